"""Prompts down to graded answers: what RL and evaluation have in common."""

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
_PART = 512  # things that are graded between two looks for a signal


class Prompts(NamedTuple):
  """A batch of prompts, left-padded to one width."""

  problems: list[Problem]
  tokens_PS: np.ndarray
  length_P: np.ndarray
  hash_P: np.ndarray  # stands for the problem in keys
  occurrence_P: np.ndarray  # how often the problem came before in this batch
  opening_P: list[str]  # the think tag that the chat template left open at the end of the prompt, or ""


class Drawn(NamedTuple):
  """Responses on the device and what of them came down to the host."""

  rollout: Rollout
  answers: Answers
  length_PG: np.ndarray
  stop_PG: np.ndarray


class PromptedProblems(NamedTuple):
  """Problems that fit, with their prompts."""

  problems: list[Problem]
  ids: dict[str, list[int]]  # prompt tokens by problem id
  openings: dict[str, str]  # the think tag that the chat template left open at the end of the prompt, by problem id
  dropped: int  # problems left out, as their prompts are too long


class Sampler:
  """Draws responses of a policy, with everything that stays the same between batches."""

  def __init__(
    self, config: ConfigDict, policy: Policy, stream: str, parts: int = 1, busy: Busy | None = None, **changes
  ):
    """`parts` of a batch are sampled one after another; changes memory, never a sample. `changes` of `sampling`.

    `busy` is told when the devices sampled."""
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
      lambda parts: jax.tree.map(lambda *x: jnp.concatenate(x), *parts),
      out_shardings=sharding.named_sharding(policy.mesh, "batch"),
    )

  def prompts(self, problems: Sequence[Problem], loaded: PromptedProblems, occurrence_P: np.ndarray) -> Prompts:
    return make_prompts(problems, loaded, occurrence_P, self._width, self._policy.tokenizer.pad_id)

  def check_memory(self, what: str, problems: int, cure: str) -> None:
    """InputError where so many problems at once take more memory than is free; `cure`: the keys to lower."""
    policy = self._policy
    memory.check_fits(what, cure, policy.spec, self.sampling, problems, self._width, policy.sample_mesh)

  def batch_size(self, wanted: int, largest: int) -> int:
    """Problems a batch that the mesh can split, at least enough for `largest` where that is less than `wanted`."""
    return -(-min(wanted, largest) // self._shards) * self._shards

  def sweep(
    self, weights: Mapping[str, Any], loaded: PromptedProblems, size: int, start: int = 0, stream: str = ""
  ) -> Iterator[Drawn]:
    """Responses to all problems from number `start` on, in order, `size` problems at a time.

    `weights`: as `self.weights` lays them out. `stream`: of the samples' randomness, "": the sampler's own.
    """
    for first in range(start, len(loaded.problems), size):
      chunk = loaded.problems[first : first + size]
      filled = chunk + [chunk[-1]] * (size - len(chunk))  # the batch keeps its shape; what fills it is dropped
      occurrence_P = np.maximum(np.arange(size) - len(chunk) + 1, 0).astype(np.int32)
      drawn = self(weights, self.prompts(filled, loaded, occurrence_P), 0, stream)
      kept = drawn.answers._replace(problems=chunk, response_PG=drawn.answers.response_PG[: len(chunk)])
      yield drawn._replace(answers=kept)

  def __call__(self, weights, prompts: Prompts, step: int, stream: str = "") -> Drawn:
    """Responses to a batch of prompts, laid out as training wants them; `stream` as in `sweep`."""
    group, policy, begun = self.sampling.group, self._policy, time.monotonic()
    index_PG = prompts.occurrence_P[:, None] * group + np.arange(group, dtype=np.int32)
    rows = (prompts.tokens_PS, prompts.length_P, prompts.hash_P, index_PG)
    made = []
    with jax.set_mesh(policy.sample_mesh):
      address = multihost.put(
        keys.address(self._seed, stream or self._stream, step), sharding.named_sharding(policy.sample_mesh)
      )
      for part in zip(*(np.split(x, self._parts) for x in rows), strict=True):
        jax.block_until_ready(made[-1:])  # or the next part's cache is allocated beside this one's
        tokens_PS, length_P, *addresses = multihost.put(part, sharding.named_sharding(policy.sample_mesh, "batch"))
        keys_B = keys.rows(address, *addresses)
        given = (weights, tokens_PS, length_P, keys_B, self._stops, policy.spec, self.sampling)
        made.append(sample(*given, shards=self._shards))
    rollout = self._join(made)
    down = multihost.fetch((rollout.tokens_BT, rollout.length_B, rollout.stop_B, row_statistics(rollout)))
    if self._busy is not None:
      self._busy.add(begun, time.monotonic())
    tokens_BT, length_B, stop_B, by_row = down
    written = response_texts(self._policy.tokenizer, tokens_BT, length_B, stop_B)
    texts = [with_opening(text, prompts.opening_P[i // group]) for i, text in enumerate(written)]
    responses = [parse_response(text, self._reading) for text in texts]
    shape = (-1, group)
    statistics = {name: values_B.reshape(shape) for name, values_B in by_row.items()}
    response_PG = [responses[i : i + group] for i in range(0, len(responses), group)]
    samples_PG = prompts.occurrence_P[:, None] * group + np.arange(group)
    answers = Answers(prompts.problems, response_PG, statistics, samples_PG, self._seed, step)
    return Drawn(rollout, answers, length_B.reshape(shape), stop_B.reshape(shape))


@functools.lru_cache(2)  # each evaluation set has a sampler of its own
def _stops(strings: tuple[str, ...], tokenizer: Tokenizer) -> np.ndarray:
  return automaton(strings, tokenizer.pieces())


@functools.cache
def _warn_of_length(most: int, made_for: int) -> None:
  if 0 < made_for < most:
    _LOG.warning("config.rl.prompt_tokens + response_tokens = %d: the model was made for %d positions", most, made_for)


@jax.jit
def row_statistics(rollout: Rollout) -> dict[str, jax.Array]:
  """Of each response [B]: means over its tokens, and the log-probability of the whole under the model itself."""
  mask_BT = jnp.arange(rollout.tokens_BT.shape[1]) < rollout.length_B[:, None]
  return {
    "logp": masked.mean(rollout.logp_BT, mask_BT, 1),
    "certainty": masked.mean(rollout.certainty_BT, mask_BT, 1),
    "entropy": masked.mean(rollout.entropy_BT, mask_BT, 1),
    "sequence_logp": jnp.sum(jnp.where(mask_BT, rollout.model_logp_BT, 0.0), 1),
  }


def response_texts(tokenizer: Tokenizer, tokens_BT: np.ndarray, length_B: np.ndarray, stop_B: np.ndarray) -> list[str]:
  """Texts of the responses, without the end token."""
  ends = length_B - (stop_B == STOP_EOS)
  return [tokenizer.decode(row[:end].tolist()) for row, end in zip(tokens_BT, ends, strict=True)]


def with_opening(text: str, opening: str) -> str:
  """Returns a response with the think tag that its prompt ended in, so that all see the trace as if the policy had
  written the tag; a tag that the policy wrote itself is not doubled."""
  return text if text.lstrip().startswith(THINK) else opening + text


def sampling(config: ConfigDict, tokenizer: Tokenizer, **changes) -> Sampling:
  """How RL samples; `changes` for evaluation."""
  r = config.rl
  values = dict(
    group=r.votes or r.group_size,
    max_tokens=r.response_tokens,
    temperature=r.temperature,
    top_k=r.top_k,
    top_p=r.top_p,
    shrink=r.shrink,
    blocks=r.cache_blocks,
  )
  return Sampling(**values | changes, eos_ids=tuple(tokenizer.eos_ids), pad_id=tokenizer.pad_id)


def read_problems(
  config: ConfigDict, key: str, without: Callable[[Problem], bool] = lambda problem: False, **changes
) -> list[Problem]:
  """The problems of `config.problems` or `config.heldout`; `changes` of that group for this call.

  `without` says of a problem whether it is left out, and does not count.
  """
  group = ConfigDict(config[key].to_dict() | changes)
  split, prefer = ("train", rows.TRAINING) if key == "problems" else ("heldout", rows.HELD_OUT)
  names = ("count", "levels", "kinds", "seed", "verifier", "columns", "system", "skip_bad", "copies")
  fields = {name: group[name] for name in names}
  files = rows.Split(group.split, prefer, f"config.{key}.split")
  try:
    found = problem_lists.load(
      group.source, split=split, files=files, key=f"config.{key}.columns", without=without, **fields
    )[: group.get("at_most") or None]
  except InputError as error:
    raise InputError(f"config.{key}: {error}") from error
  for problem in found:
    check_problem(f"config.{key}: {group.source}", problem)
  return found


def check_problem(where: str, problem: Problem) -> None:
  """InputError for a problem that its verifier could not judge, whatever was answered."""
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
  """`read_problems` with their prompts; what is too long or has no readable label is refused, dropped or told."""
  group, found = config[key], read_problems(config, key, without, **changes)
  if not found:
    raise InputError(f"config.{key}: no problem is left of {changes.get('source', group.source)}; name other ones")
  ids = {p.id: tokenizer.render(p.messages) for p in found}
  openings = {p.id: tokenizer.opening(p.messages) for p in found}
  long = [p for p in found if len(ids[p.id]) > config.rl.prompt_tokens]
  if long and group.too_long == "error":
    longest = max(long, key=lambda problem: len(ids[problem.id]))
    tokens = len(ids[longest.id])
    raise InputError(
      f"config.{key}: {len(long)} of {len(found)} prompts are longer than config.rl.prompt_tokens = "
      f"{config.rl.prompt_tokens}; the longest, problem {longest.id}, has {tokens} tokens: "
      f"config.rl.prompt_tokens={tokens} fits all; raise it, or take config.{key}.too_long=drop"
    )
  kept = [p for p in found if len(ids[p.id]) <= config.rl.prompt_tokens]
  if not kept:
    raise InputError(
      f"config.{key}: none of {len(found)} problems is left, all prompts are too long; raise config.rl.prompt_tokens"
    )
  if long:
    _LOG.warning("config.%s: %s: %d of %d problems dropped, their prompts are over config.rl.prompt_tokens = %d",
                 key, changes.get("source", group.source), len(long), len(found), config.rl.prompt_tokens)  # fmt: skip
  return PromptedProblems(
    with_readable_labels(config, key, kept, service, changes.get("source", ""))[0], ids, openings, len(long)
  )


def with_readable_labels(
  config: ConfigDict, key: str, problems: list[Problem], service: Service, source: str = ""
) -> tuple[list[Problem], list[tuple[Problem, str]]]:
  """(problems to go on with, those whose label or truth the verifier can't read, and why), by `KEY.unreadable`.

  An error where that is every problem: no answer could then be paid.
  """
  try:
    bad, action = in_parts(service.unreadable, problems), config[key].unreadable
  except InputError as error:
    raise InputError(f"config.{key}: {error}") from error
  if not bad:
    return problems, []
  (first, reason), source = bad[0], source or config[key].source
  told = (
    f"config.{key}: {source}: {len(bad)} of {len(problems)} labels can't be read by their verifier, the first that of "
    f"problem {first.id} ({reason})"
  )
  if len(bad) == len(problems):
    raise InputError(
      f"{told}; labels are read from {label_column(source, config[key].columns)}, the first as "
      f'{first.label[:200]!r}. Name the column of the answers, as config.{key}.columns="prompt=A,label=B" (a '
      "last line `#### ANSWER` counts as the answer), boxed=B where it is the last box of a solution, or the verifier "
      f"that reads them (config.{key}.verifier)"
    )
  if action == "error":
    raise InputError(f"{told}; correct them, or take config.{key}.unreadable=drop")
  _LOG.warning("%s; %s", told, "dropped" if action == "drop" else f"kept (config.{key}.unreadable)")
  unfit = {problem.id for problem, _ in bad} if action == "drop" else set()
  return [problem for problem in problems if problem.id not in unfit], bad


def in_parts(grade: Callable[[Sequence], list], items: Sequence) -> list:
  """What grading says of all items, a part at a time; a signal ends it in between, for there is nothing to save yet."""
  found = []
  for first in range(0, len(items), _PART):
    found += grade(items[first : first + _PART])
    if multihost.any_stop_requested():
      raise signals.Interrupted("grading was stopped by a signal; the same command begins it again")
  return found


def label_column(source: str, columns: Sequence[str]) -> str:
  """Says in words where the labels of a source come from."""
  if source in problem_lists.GENERATORS:
    return "the generator"
  entries = columns or problem_lists.columns_of(source)
  named = [entry.strip() for entry in entries if entry.strip().startswith(("label", "boxed"))]
  return f"the column of {named[0]}" if named else "the field label"


def make_prompts(
  problems: Sequence[Problem], loaded: PromptedProblems, occurrence_P: np.ndarray, width: int, pad_id: int
) -> Prompts:
  ids = loaded.ids
  tokens_PS = np.full((len(problems), width), pad_id, np.int32)
  for row, problem in enumerate(problems):
    tokens_PS[row, width - len(ids[problem.id]) :] = ids[problem.id]
  length_P = np.array([len(ids[p.id]) for p in problems], np.int32)
  return Prompts(
    list(problems),
    tokens_PS,
    length_P,
    np.array([keys.problem_hash(p.id) for p in problems]),
    occurrence_P,
    [loaded.openings[p.id] for p in problems],
  )


def verifier_service(config: ConfigDict) -> Service:
  v = config.verify
  return Service(v.workers, v.cpu_seconds, v.wall_seconds, v.memory_mib << 20, v.mode, multihost.share)


def records(drawn: Drawn, step: int, true: Graded, **more) -> list[dict]:
  """One row a response, as rollouts/ and evals/ hold it; `more` are [P,G] arrays to add."""
  rows = []
  for i, problem in enumerate(drawn.answers.problems):
    for g, response in enumerate(drawn.answers.response_PG[i]):
      judged = exact_faithfulness(problem, response)
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
          "faithfulness": judged.label if judged else None,
          "step_true": judged.step_true if judged else None,
          **{name: values[i][g] for name, values in more.items()},
        }
      )
  return rows


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
  """The prompt as it is recorded: the only message's text, or all messages, each behind its role in brackets."""
  if len(messages) == 1:
    return messages[0]["content"]
  return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def show_prompt(workdir: Path, policy: Policy, problem: Problem) -> None:
  """Writes prompt.txt, what the policy sees of a problem: control tokens by name, up to where the answer begins."""
  if not multihost.process_index():
    logbook.write_atomic(workdir / "prompt.txt", policy.tokenizer.rendered(problem.messages))


def exact_faithfulness(problem: Problem, response: Parsed) -> Faithfulness | None:
  """Returns what the task's exact judge says of a response; None for a task without one."""
  judge = VERIFIERS[problem.verifier].faithfulness
  return judge(response, problem.messages[-1]["content"]) if judge else None
