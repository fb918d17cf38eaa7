"""From problems to prompts, responses and their records: what RL and evaluation have in common."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, signals
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import files as rows
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.device import keys, masked, multihost, sharding
from jaxrlvr.device.idle import Busy
from jaxrlvr.grading.service import Service
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling import sample
from jaxrlvr.sampling.types import STOP_EOS, STOP_NAMES, Rollout, Sampling
from jaxrlvr.sampling.weights import lay_out_weights
from jaxrlvr.stages import memory
from jaxrlvr.stages.build_policy import Policy
from jaxrlvr.tasks.arithmetic.faithfulness import Faithfulness
from jaxrlvr.tasks.table import VERIFIERS
from jaxrlvr.text.answer import Parsed, parse_response
from jaxrlvr.text.stop_strings import automaton
from jaxrlvr.text.tags import THINK
from jaxrlvr.text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_PART = 512  # number of items that are graded between two checks for a signal


class Prompts(NamedTuple):
  """A batch of prompts, padded on the left to one width."""

  problems: list[Problem]
  tokens_PS: np.ndarray  # int32 tokens [problems, width], with padding before each prompt
  length_P: np.ndarray  # number of tokens of each prompt, without padding
  hash_P: np.ndarray  # of the problem's id, from which the random keys of its samples are derived
  occurrence_P: np.ndarray  # how many times the problem occurs earlier in this batch
  opening_P: list[str]  # the think tag that the chat template left open at the end of the prompt, or ""


class Drawn(NamedTuple):
  """The responses to a batch of prompts, on the device and, parsed, on the host."""

  rollout: Rollout  # on the device: tokens and their figures, a row for each response, problem by problem
  answers: Answers  # on the host, as everything below: problems, parsed responses [P,G], statistics of responses
  length_PG: np.ndarray  # number of tokens of each response, with its end token
  stop_PG: np.ndarray  # why each response ended, as an index into `sampling.types.STOP_NAMES`

  @property
  def answer_PG(self) -> list[list[str | None]]:
    """The answer in each response [P][G], as text; None: it holds none."""
    answer_PG = []
    for responses in self.answers.response_PG:
      answer_PG.append([response.answer for response in responses])
    return answer_PG


class PromptedProblems(NamedTuple):
  """Problems whose prompts are not too long, with these prompts."""

  problems: list[Problem]
  ids: dict[str, list[int]]  # tokens of the prompt by problem id
  openings: dict[str, str]  # the think tag that the chat template left open at the end of the prompt, by problem id
  dropped: int  # number of problems that were left out, as their prompts are too long


class Sampler:
  """Draws responses of a policy to batches of prompts.

  `sampling` holds its settings. `weights(params)` lays out the policy's weights as `sweep` and `__call__` take them. On
  several hosts all processes must make the sampler and call its methods together, with the same arguments.
  """

  def __init__(
    self, config: ConfigDict, policy: Policy, stream: str, parts: int = 1, busy: Busy | None = None, **changes
  ):
    """stream: name of the random stream, so that stages draw different samples. parts: number of parts of a batch that
    are sampled one after another; more take less memory, and samples stay the same. busy: records when the devices
    sample. changes: fields of `Sampling` that differ from RL's."""
    self._policy, self._seed, self._stream, self._parts = policy, config.seed, stream, parts
    self._busy = busy
    self._width = config.rl.prompt_tokens
    self._reading = config.answer.read
    self.sampling = sampling(config, policy.tokenizer, **changes)
    _warn_of_length(self._width + self.sampling.max_tokens, policy.spec.max_positions)
    self._shards = sharding.size(policy.sample_mesh, "batch")
    everywhere = sharding.named_sharding(policy.sample_mesh)
    self._stops = multihost.put(_stops(config.rl.stop_strings, policy.tokenizer), everywhere)
    # of the policy's masters, what `__call__` takes
    self.weights = lay_out_weights(policy.spec, policy.sample_mesh, self.sampling.int8)
    self._join = jax.jit(
      lambda parts: jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts),
      out_shardings=sharding.named_sharding(policy.mesh, "batch"),
    )

  def prompts(self, problems: Sequence[Problem], loaded: PromptedProblems, occurrence_P: np.ndarray) -> Prompts:
    """Returns the batch of these problems' prompts, padded on the left to rl.prompt_tokens.

    loaded: holds the prompts of all of `problems`. occurrence_P: how many times each problem occurs earlier in the
    batch, so that its samples differ.
    """
    return make_prompts(problems, loaded, occurrence_P, self._width, self._policy.tokenizer.pad_id)

  def check_memory(self, what: str, problems: int, cure: str) -> None:
    """Raises InputError where sampling `problems` at a time takes more memory than is free.

    On devices it only warns where just the longest responses would not fit. what: what is sampled, which begins the
    message. cure: the config keys to lower, which end it.
    """
    policy = self._policy
    memory.check_fits(what, cure, policy.spec, self.sampling, problems, self._width, policy.sample_mesh)

  def batch_size(self, at_a_time: int, largest: int) -> int:
    """Returns the number of problems to sample at a time: `at_a_time`, rounded up to what the mesh can split evenly.

    largest: number of problems in the largest set that is sampled; a batch need not hold more.
    """
    problems_per_shard = -(-min(at_a_time, largest) // self._shards)
    return problems_per_shard * self._shards

  def sweep(
    self, weights: Mapping[str, Any], loaded: PromptedProblems, size: int, start: int = 0, stream: str = ""
  ) -> Iterator[Drawn]:
    """Yields the responses to all problems from index `start` on, `size` problems at a time, in order.

    weights: the policy's weights as `self.weights` lays them out. stream: name of the random stream; "": the sampler's
    own. Samples depend on the stream, the problem and the config's seed alone. The last batch is filled up to `size`
    with copies of its last problem, whose responses the yielded `answers` leave out.
    """
    for first in range(start, len(loaded.problems), size):
      chunk = loaded.problems[first : first + size]
      padded = chunk + [chunk[-1]] * (
        size - len(chunk)
      )  # every batch has the same shape, so that nothing is recompiled
      occurrence_P = np.maximum(np.arange(size) - len(chunk) + 1, 0).astype(np.int32)
      drawn = self(weights, self.prompts(padded, loaded, occurrence_P), 0, stream)
      answers = drawn.answers._replace(problems=chunk, response_PG=drawn.answers.response_PG[: len(chunk)])
      yield drawn._replace(answers=answers)

  def __call__(self, weights, prompts: Prompts, step: int, stream: str = "") -> Drawn:
    """Samples and returns a group of responses to each prompt, their rollout sharded as training takes it.

    weights: the policy's weights as `self.weights` lays them out. stream: name of the random stream; "": the sampler's
    own. Samples depend on the stream, the step, the problem, its occurrence and the config's seed alone.
    """
    begun = time.monotonic()
    group = self.sampling.group
    sample_PG = prompts.occurrence_P[:, None] * group + np.arange(group, dtype=np.int32)
    rollout = self._sample(weights, prompts, sample_PG, step, stream or self._stream)
    tokens_BT, length_B, stop_B, statistics = multihost.fetch(
      (rollout.tokens_BT, rollout.length_B, rollout.stop_B, row_statistics(rollout))
    )
    if self._busy is not None:
      self._busy.add(begun, time.monotonic())
    texts = response_texts(self._policy.tokenizer, tokens_BT, length_B, stop_B)
    responses = []
    for row, text in enumerate(texts):
      text = with_opening(text, prompts.opening_P[row // group])
      responses.append(parse_response(text, self._reading))
    response_PG = [responses[first : first + group] for first in range(0, len(responses), group)]
    statistics = {name: values_B.reshape(-1, group) for name, values_B in statistics.items()}
    answers = Answers(prompts.problems, response_PG, statistics, sample_PG, seed=self._seed, step=step)
    return Drawn(rollout, answers, length_B.reshape(-1, group), stop_B.reshape(-1, group))

  def _sample(self, weights, prompts: Prompts, sample_PG: np.ndarray, step: int, stream: str) -> Rollout:
    """Returns the rollout of a batch, whose parts are sampled one after another. sample_PG: index of each sample."""
    policy = self._policy
    replicated = sharding.named_sharding(policy.sample_mesh)
    by_rows = sharding.named_sharding(policy.sample_mesh, "batch")
    columns = (prompts.tokens_PS, prompts.length_P, prompts.hash_P, sample_PG)
    rollouts: list[Rollout] = []
    with jax.set_mesh(policy.sample_mesh):
      address = multihost.put(keys.address(self._seed, stream, step), replicated)
      for part in zip(*(np.split(column, self._parts) for column in columns), strict=True):
        jax.block_until_ready(rollouts[-1:])  # so that the KV caches of two parts are not in memory together
        tokens_PS, length_P, hash_P, sample_PG = multihost.put(part, by_rows)
        keys_B = keys.rows(address, hash_P, sample_PG)
        rollouts.append(
          sample(weights, tokens_PS, length_P, keys_B, self._stops, policy.spec, self.sampling, shards=self._shards)
        )
    return self._join(rollouts)


@functools.lru_cache(2)  # each sampler of a stage needs the same automaton
def _stops(strings: tuple[str, ...], tokenizer: Tokenizer) -> np.ndarray:
  """Returns the automaton that finds the stop strings in tokens."""
  return automaton(strings, tokenizer.pieces())


@functools.cache
def _warn_of_length(most: int, made_for: int) -> None:
  """Warns, once for these numbers, where responses may go beyond the positions that the model was made for."""
  if 0 < made_for < most:
    _LOG.warning("config.rl.prompt_tokens + response_tokens = %d: the model was made for %d positions", most, made_for)


@jax.jit
def row_statistics(rollout: Rollout) -> dict[str, jax.Array]:
  """Returns statistics of each response, each [B] and in nats.

  `logp`, `certainty` and `entropy` are means over its tokens; `sequence_logp` is the log-probability of the whole
  response under the model itself, without temperature or truncation.
  """
  mask_BT = jnp.arange(rollout.tokens_BT.shape[1]) < rollout.length_B[:, None]
  return {
    "logp": masked.mean(rollout.logp_BT, mask_BT, 1),
    "certainty": masked.mean(rollout.certainty_BT, mask_BT, 1),
    "entropy": masked.mean(rollout.entropy_BT, mask_BT, 1),
    "sequence_logp": jnp.sum(jnp.where(mask_BT, rollout.model_logp_BT, 0.0), 1),
  }


def response_texts(tokenizer: Tokenizer, tokens_BT: np.ndarray, length_B: np.ndarray, stop_B: np.ndarray) -> list[str]:
  """Returns the text of each row of tokens up to its length, without the end token.

  tokens_BT: tokens of B responses. length_B: number of tokens of each, with an end token. stop_B: why each ended, as an
  index into `sampling.types.STOP_NAMES`; only where that is the end token is the last token left out.
  """
  ends = length_B - (stop_B == STOP_EOS)
  return [tokenizer.decode(row[:end].tolist()) for row, end in zip(tokens_BT, ends, strict=True)]


def with_opening(text: str, opening: str) -> str:
  """Returns a response behind the think tag `opening` that its prompt ended with ("": none).

  The trace then looks as if the policy had opened it. A response that begins with the tag is returned as it is.
  """
  return text if text.lstrip().startswith(THINK) else opening + text


def sampling(config: ConfigDict, tokenizer: Tokenizer, **changes) -> Sampling:
  """Returns the settings of RL's sampling by config.rl: responses to a prompt, limit of tokens, temperature, ...

  tokenizer: its end tokens end a response. changes: values of fields of `Sampling`, such as group, max_tokens,
  temperature, top_k, top_p or int8, that differ from RL's.
  """
  r = config.rl
  settings = {
    "group": r.votes or r.group_size,
    "max_tokens": r.response_tokens,
    "temperature": r.temperature,
    "top_k": r.top_k,
    "top_p": r.top_p,
    "shrink": r.shrink,
    "blocks": r.cache_blocks,
  }
  settings |= changes
  return Sampling(eos_ids=tuple(tokenizer.eos_ids), pad_id=tokenizer.pad_id, **settings)


def read_problems(
  config: ConfigDict, key: str, without: Callable[[Problem], bool] = lambda problem: False, **changes
) -> list[Problem]:
  """Reads and returns the problems that the group `key` of a config names: "problems" or "heldout".

  without: whether a problem is left out, which then does not count as one of the group's `count`. changes: values of
  the group's keys that differ for this call. Raises InputError for a source that can't be read, and for a problem that
  its verifier could not grade.
  """
  group = ConfigDict(config[key].to_dict() | changes)
  split, prefer = ("train", rows.TRAINING) if key == "problems" else ("heldout", rows.HELD_OUT)
  names = ("count", "levels", "kinds", "seed", "verifier", "columns", "system", "skip_bad", "copies")
  fields = {name: group[name] for name in names}
  files = rows.Split(group.split, prefer, f"config.{key}.split")
  try:
    problems = problem_lists.load(
      group.source, split=split, files=files, key=f"config.{key}.columns", without=without, **fields
    )
  except InputError as error:
    raise InputError(f"config.{key}: {error}") from error
  if group.get("at_most"):
    problems = problems[: group.at_most]
  for problem in problems:
    check_problem(f"config.{key}: {group.source}", problem)
  return problems


def check_problem(where: str, problem: Problem) -> None:
  """Raises InputError for a problem whose verifier is unknown or lacks a field of `extra` that it needs.

  where: beginning of the message, which names the source.
  """
  verifier = VERIFIERS.get(problem.verifier)
  if verifier is None:
    raise InputError(
      f"{where}: problem {problem.id} has verifier {problem.verifier!r}; use one of {', '.join(VERIFIERS)}"
    )
  missing = [name for name in verifier.needs if name not in problem.extra]
  if missing:
    raise InputError(f"{where}: problem {problem.id} has no extra.{missing[0]}, which {problem.verifier} needs")


def load_problems(
  config: ConfigDict,
  key: str,
  tokenizer: Tokenizer,
  service: Service,
  without: Callable[[Problem], bool] = lambda problem: False,
  **changes,
) -> PromptedProblems:
  """Reads the problems of the group `key` of a config, and returns them with their prompts as tokens.

  key: "problems" or "heldout". service: grades labels, to find those that its verifiers can't parse. without: takes a
  problem and returns whether it is left out. changes: values of the group's keys that differ for this call.

  Prompts that are longer than rl.prompt_tokens raise InputError or are dropped with a warning, as the group's key
  `too_long` says; labels that can't be parsed raise InputError, or their problems are dropped or kept with a warning,
  as its key `unreadable` says. Raises InputError where the source can't be read, or no problem is left.
  """
  problems = read_problems(config, key, without, **changes)
  source = changes.get("source", config[key].source)
  if not problems:
    raise InputError(f"config.{key}: no problem is left of {source}; name other ones")
  ids = {problem.id: tokenizer.render(problem.messages) for problem in problems}
  openings = {problem.id: tokenizer.opening(problem.messages) for problem in problems}
  short_enough = _with_short_prompts(config, key, source, problems, ids)
  kept, _ = with_readable_labels(config, key, short_enough, service, changes.get("source", ""))
  return PromptedProblems(kept, ids, openings, dropped=len(problems) - len(short_enough))


def _with_short_prompts(
  config: ConfigDict, key: str, source: str, problems: Sequence[Problem], ids: Mapping[str, Sequence[int]]
) -> list[Problem]:
  """Returns the problems whose prompts are not too long, and warns of the others or raises InputError.

  ids: tokens of the prompt by problem id. The group's key `too_long` decides between warning and error.
  """
  limit = config.rl.prompt_tokens
  too_long = [problem for problem in problems if len(ids[problem.id]) > limit]
  if too_long and config[key].too_long == "error":
    longest = max(too_long, key=lambda problem: len(ids[problem.id]))
    tokens = len(ids[longest.id])
    raise InputError(
      f"config.{key}: {len(too_long)} of {len(problems)} prompts are longer than config.rl.prompt_tokens = "
      f"{limit}; the longest, problem {longest.id}, has {tokens} tokens: "
      f"config.rl.prompt_tokens={tokens} fits all; raise it, or take config.{key}.too_long=drop"
    )
  if len(too_long) == len(problems):
    raise InputError(
      f"config.{key}: none of {len(problems)} problems is left, all prompts are too long; raise config.rl.prompt_tokens"
    )
  if too_long:
    _LOG.warning(
      "config.%s: %s: %d of %d problems dropped, their prompts are over config.rl.prompt_tokens = %d",
      key,
      source,
      len(too_long),
      len(problems),
      limit,
    )
  return [problem for problem in problems if len(ids[problem.id]) <= limit]


def with_readable_labels(
  config: ConfigDict, key: str, problems: list[Problem], service: Service, source: str = ""
) -> tuple[list[Problem], list[tuple[Problem, str]]]:
  """Returns (problems to go on with, pairs of each unreadable problem and the reason).

  A problem is unreadable where its verifier can't parse its label or truth. The key `unreadable` of the group `key`
  decides what is done with these: "warn" keeps them, "drop" leaves them out, "error" raises InputError. If no problem
  is readable InputError is raised in any case, as no answer could be paid. source: for messages, "" stands for the
  group's own.
  """
  try:
    unreadable, action = in_parts(service.unreadable, problems), config[key].unreadable
  except InputError as error:
    raise InputError(f"config.{key}: {error}") from error
  if not unreadable:
    return problems, []
  source = source or config[key].source
  first, reason = unreadable[0]
  message = (
    f"config.{key}: {source}: {len(unreadable)} of {len(problems)} labels can't be read by their verifier, the first "
    f"that of problem {first.id} ({reason})"
  )
  if len(unreadable) == len(problems):
    raise InputError(
      f"{message}; labels are read from {label_column(source, config[key].columns)}, the first as "
      f'{first.label[:200]!r}. Name the column of the answers, as config.{key}.columns="prompt=A,label=B" (a '
      "last line `#### ANSWER` counts as the answer), boxed=B where it is the last box of a solution, or the verifier "
      f"that reads them (config.{key}.verifier)"
    )
  if action == "error":
    raise InputError(f"{message}; correct them, or take config.{key}.unreadable=drop")
  if action != "drop":
    _LOG.warning("%s; kept (config.%s.unreadable)", message, key)
    return list(problems), unreadable
  _LOG.warning("%s; dropped", message)
  unreadable_ids = {problem.id for problem, _ in unreadable}
  return [problem for problem in problems if problem.id not in unreadable_ids], unreadable


def in_parts(grade: Callable[[Sequence], list], items: Sequence) -> list:
  """Grades items a part at a time and returns the results of all parts, joined; [] without items.

  grade: takes a list of items, and returns the list of their results. Raises Interrupted between two parts if a signal
  has asked the run to stop; nothing has to be saved then.
  """
  results = []
  for first in range(0, len(items), _PART):
    results += grade(items[first : first + _PART])
    if multihost.any_stop_requested():
      raise signals.Interrupted("grading was stopped by a signal; the same command begins it again")
  return results


def label_column(source: str, columns: Sequence[str]) -> str:
  """Returns in words where the labels of a source come from, for an error message: "the column of label=B".

  source: a file, a data set, or the name of a generator. columns: entries FIELD=COLUMN of the config; (): the source's
  usual ones.
  """
  if source in problem_lists.GENERATORS:
    return "the generator"
  for entry in columns or problem_lists.columns_of(source):
    entry = entry.strip()
    if entry.startswith(("label", "boxed")):
      return f"the column of {entry}"
  return "the field label"


def make_prompts(
  problems: Sequence[Problem], loaded: PromptedProblems, occurrence_P: np.ndarray, width: int, pad_id: int
) -> Prompts:
  """Returns the batch of these problems' prompts, padded on the left with `pad_id` to `width` tokens.

  occurrence_P: how many times each problem occurs earlier in the batch, so that its samples differ.
  """
  tokens_PS = np.full((len(problems), width), pad_id, np.int32)
  length_P = np.zeros(len(problems), np.int32)
  for row, problem in enumerate(problems):
    ids = loaded.ids[problem.id]
    tokens_PS[row, width - len(ids) :] = ids
    length_P[row] = len(ids)
  return Prompts(
    problems=list(problems),
    tokens_PS=tokens_PS,
    length_P=length_P,
    hash_P=np.array([keys.problem_hash(problem.id) for problem in problems]),
    occurrence_P=occurrence_P,
    opening_P=[loaded.openings[problem.id] for problem in problems],
  )


def verifier_service(config: ConfigDict) -> Service:
  """Returns the service whose worker processes grade answers, within the limits of config.verify."""
  v = config.verify
  return Service(v.workers, v.cpu_seconds, v.wall_seconds, v.memory_mib << 20, v.mode, multihost.share)


def records(drawn: Drawn, step: int, true: Graded, **more) -> list[dict]:
  """Returns a row for each response, problem by problem, as rollouts/ and evals/ hold them.

  true: the responses graded by the truth. more: further columns [P,G] by name. Beside these a row has step; problem
  (id); sample (its number among the problem's responses); prompt; text (of the response); answer (None: it holds none);
  label and truth (of the problem); tokens (their number); stop (why it ended, a name of `sampling.types.STOP_NAMES`);
  logp, certainty and entropy (means over its tokens) and sequence_logp (of the whole response), in nats; true_reward
  (None: unscored); scored (whether it could be graded); cause (why not, or what was amiss; "": nothing); faithfulness
  (label of the task's exact judge: 1, 0.5 or 0) and step_true (share of right steps), None without such a judge.
  """
  rows = []
  for i, problem in enumerate(drawn.answers.problems):
    for g, response in enumerate(drawn.answers.response_PG[i]):
      faithfulness = exact_faithfulness(problem, response)
      rows.append(
        {
          "step": step,
          "problem": problem.id,
          "sample": int(drawn.answers.sample_PG[i][g]),
          "prompt": transcript(problem.messages),
          "text": response.text,
          "answer": response.answer,
          "label": problem.label,
          "truth": problem.truth,
          "tokens": int(drawn.length_PG[i, g]),
          "stop": STOP_NAMES[drawn.stop_PG[i, g]],
          **{name: float(values[i, g]) for name, values in drawn.answers.statistics.items()},
          "true_reward": float(true.value_PG[i, g]) if true.scored_PG[i, g] else None,
          "scored": bool(true.scored_PG[i, g]),
          "cause": true.cause_PG[i][g],
          "faithfulness": faithfulness.label if faithfulness else None,
          "step_true": faithfulness.step_true if faithfulness else None,
          **{name: values[i][g] for name, values in more.items()},
        }
      )
  return rows


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the prompt as rows record it: the text of the only message, or all messages, each behind [ROLE]."""
  if len(messages) == 1:
    return messages[0]["content"]
  return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def show_prompt(workdir: Path, policy: Policy, problem: Problem) -> None:
  """Writes WORKDIR/prompt.txt: a problem's prompt as the policy sees it, up to where a response begins.

  Control tokens are written by their names. Only the first process of a run writes it.
  """
  if not multihost.process_index():
    logbook.write_atomic(workdir / "prompt.txt", policy.tokenizer.prompt_text(problem.messages))


def exact_faithfulness(problem: Problem, response: Parsed) -> Faithfulness | None:
  """Returns how faithful a response is by the exact judge of the problem's task; None for a task without one."""
  judge = VERIFIERS[problem.verifier].faithfulness
  return judge(response, problem.messages[-1]["content"]) if judge else None
