"""Reads problems, samples responses to their prompts, and records these: what RL and evaluation have in common."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, named, signals
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import files as rows
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.data.columns import as_setting
from jaxrlvr.device import keys, masked, multihost, sharding
from jaxrlvr.device.idle import Busy
from jaxrlvr.grading.service import Service
from jaxrlvr.planning import memory
from jaxrlvr.planning.memory import SamplingWork
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling import sample
from jaxrlvr.sampling.types import STOP_EOS, STOP_NAMES, Rollout, Sampling
from jaxrlvr.sampling.weights import lay_out_weights
from jaxrlvr.stages.build_policy import Policy
from jaxrlvr.tasks.arithmetic.faithfulness import Faithfulness
from jaxrlvr.tasks.table import VERIFIERS, is_verifier, verifier_of
from jaxrlvr.text.answer import Parsed, parse_response
from jaxrlvr.text.stop_strings import automaton
from jaxrlvr.text.tags import THINK
from jaxrlvr.text.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
_ITEMS_PER_CHECK = 512  # number of items that are graded between two checks for a signal
_NO_CHANGES: Mapping[str, Any] = MappingProxyType({})
_LABEL_CHARACTERS = 200  # of a label that an error message quotes


class Prompts(NamedTuple):
  """A batch of P prompts, padded on the left to one width S. All arrays are on the host."""

  problems: list[Problem]
  tokens_PS: np.ndarray  # int32 token ids; padding stands before each prompt
  length_P: np.ndarray  # int32 number of tokens of each prompt, without padding
  hash_P: np.ndarray  # hash of each problem's id, from which the random keys of its samples are derived
  occurrence_P: np.ndarray  # how many times the problem occurs earlier in this batch
  opening_P: list[str]  # the think tag that the chat template left open at the end of each prompt; "": none


class Drawn(NamedTuple):
  """The responses to a batch of prompts, G to each of P problems, on the device and, parsed, on the host.

  `answers` has the fields problems, response_PG (parsed: text, answer, trace), statistics, sample_PG, seed and step.
  The keys of its statistics are logp, certainty, entropy and sequence_logp (`Sampler.draw`), each [P,G].
  """

  rollout: Rollout  # on the device: tokens_BT, length_B, logp_BT and more, a row for each response, problem by problem
  answers: Answers  # on the host, as everything below
  length_PG: np.ndarray  # number of tokens of each response, its end token included
  stop_PG: np.ndarray  # why each response ended: 0 limit of tokens, 1 end token, 2 stop string (`STOP_NAMES`)

  @property
  def answer_PG(self) -> list[list[str | None]]:
    """Property: the answer that each response gives, as text, in a list for each problem. None: it gives none."""
    answer_PG = []
    for responses in self.answers.response_PG:
      answer_PG.append([response.answer for response in responses])
    return answer_PG


class PromptedProblems(NamedTuple):
  """Problems whose prompts are short enough, with these prompts as tokens."""

  problems: list[Problem]
  ids: dict[str, list[int]]  # token ids of the prompt by problem id, without padding
  openings: dict[str, str]  # by problem id: the think tag that the chat template left open at the prompt's end, or ""
  dropped: int  # number of problems that were left out, as their prompts are too long


class Sampler:
  """Samples responses of a policy to batches of prompts.

  Make it as Sampler(config, policy, stream), with a name for the random stream; call `weights` with the policy's
  present parameters, and give the result to `draw` (one batch) or `sweep` (all problems). On several hosts all
  processes must make the sampler and call its methods together, with the same arguments.
  """

  sampling: Sampling  # its settings: group (responses to a prompt), max_tokens, temperature, ...

  def __init__(
    self, config: ConfigDict, policy: Policy, stream: str, parts: int = 1, busy: Busy | None = None, **changes
  ):
    """stream: name of the random stream; samplers with different names draw different samples. parts: number of parts
    of a batch that are sampled one after another; more take less memory, and samples stay the same. busy: records when
    the devices sample; None: nothing does. changes: fields of `Sampling` that differ from RL's, as group=16."""
    self._policy, self._seed, self._stream, self._parts = policy, config.seed, stream, parts
    self._busy = busy
    self._width = config.rl.prompt_tokens
    self._reading = config.answer.read
    self.sampling = sampling_settings(config, policy.tokenizer, **changes)
    _warn_of_length(self._width + self.sampling.max_tokens, policy.spec.max_positions)
    self._shards = sharding.shard_count(policy.sample_mesh, "batch")
    everywhere = sharding.named_sharding(policy.sample_mesh)
    self._stops = multihost.put(_stop_automaton(config.rl.stop_strings, policy.tokenizer), everywhere)
    self._lay_out = lay_out_weights(policy.spec, policy.sample_mesh, self.sampling.int8)
    self._lay_out_trained = self._lay_out
    if policy.spec.lora is not None:
      self._lay_out_trained = lay_out_weights(policy.spec, policy.sample_mesh, adapters=True)
    self._join = jax.jit(
      lambda parts: jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts),
      out_shardings=sharding.named_sharding(policy.mesh, "batch"),
    )

  def weights(self, params: Mapping[str, jax.Array]) -> Mapping[str, Any]:
    """Returns a copy of the policy's weights as `draw` and `sweep` take them, with these trained ones.

    It lies on the mesh of sampling, in the compute dtype, or in 8 bits where the settings say so; adapters are never in
    8 bits. Call it again when the trained weights have changed. Frozen weights are copied at the first call alone.
    """
    frozen = self._policy.frozen.laid_out(self._lay_out)
    return {**frozen, **self._lay_out_trained(params)}

  def prompts(self, problems: Sequence[Problem], loaded: PromptedProblems, occurrence_P: np.ndarray) -> Prompts:
    """Returns the batch of these problems' prompts, in their order, padded on the left to config.rl.prompt_tokens.

    loaded: must hold the prompts of all of `problems` (KeyError). occurrence_P: how many times each problem occurs
    earlier in the batch, so that two occurrences get different samples; zeros where no problem occurs twice.
    """
    width = self._width
    tokens_PS = np.full((len(problems), width), self._policy.tokenizer.pad_id, np.int32)
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

  def work(self, problems: int) -> SamplingWork:
    """Returns what sampling a batch of this many problems takes of a device's memory."""
    return work_of_sampler(self._policy, self.sampling, problems, self._width, self._parts)

  def batch_size(self, problems_per_batch: int, largest_set: int) -> int:
    """Returns the number of problems to sample in a batch: a multiple of the shards into which the mesh splits it.

    It is the least such multiple that is not below `problems_per_batch`, the number that the config asks for, or not
    below `largest_set`, the number of problems in the largest set to be sampled, if that is smaller.
    """
    problems_per_shard = -(-min(problems_per_batch, largest_set) // self._shards)
    return problems_per_shard * self._shards

  def sweep(
    self, weights: Mapping[str, Any], loaded: PromptedProblems, size: int, start: int = 0, stream: str = ""
  ) -> Iterator[Drawn]:
    """Samples all problems of `loaded` from index `start` on, and yields the responses batch by batch, in order.

    weights: what `weights` returned. size: problems of a batch, as `batch_size` returned it. stream: name of the random
    stream; "": the sampler's own. Samples depend on the stream, the problem and the config's seed alone, not on `size`
    or `start`. Every batch has `size` problems, so that nothing is recompiled: the last one is filled up with copies of
    its last problem. `answers.problems` and `answers.response_PG` leave the copies out, arrays keep them at their end.
    """
    for first in range(start, len(loaded.problems), size):
      problems = loaded.problems[first : first + size]
      copies = [problems[-1]] * (size - len(problems))
      occurrence_P = np.maximum(np.arange(size) - len(problems) + 1, 0).astype(np.int32)
      drawn = self.draw(weights, self.prompts(problems + copies, loaded, occurrence_P), 0, stream)
      answers = drawn.answers._replace(problems=problems, response_PG=drawn.answers.response_PG[: len(problems)])
      yield drawn._replace(answers=answers)

  def draw(self, weights: Mapping[str, Any], prompts: Prompts, step: int, stream: str = "") -> Drawn:
    """Samples a group of responses to each prompt and returns them, the rollout sharded as training takes it.

    weights: what `weights` returned. prompts: what `prompts` returned. stream: name of the random stream; "": the
    sampler's own. Samples depend on the stream, the step, the problem, its occurrence and the config's seed alone. The
    statistics of a response are in nats: logp, certainty and entropy are means over its tokens, sequence_logp is the
    log-probability of all of it under the model itself, without temperature or truncation.
    """
    begun = time.monotonic()
    group = self.sampling.group
    sample_PG = prompts.occurrence_P[:, None] * group + np.arange(group, dtype=np.int32)
    rollout = self._sample(weights, prompts, sample_PG, step, stream or self._stream)
    tokens_BT, length_B, stop_B, statistics = multihost.fetch(
      (rollout.tokens_BT, rollout.length_B, rollout.stop_B, _row_statistics(rollout))
    )
    if self._busy is not None:
      self._busy.add(begun, time.monotonic())
    texts = _response_texts(self._policy.tokenizer, tokens_BT, length_B, stop_B)
    responses = []
    for row, text in enumerate(texts):
      text = with_opening(text, prompts.opening_P[row // group])
      responses.append(parse_response(text, self._reading))
    response_PG = [responses[first : first + group] for first in range(0, len(responses), group)]
    statistics = {name: values_B.reshape(-1, group) for name, values_B in statistics.items()}
    answers = Answers(prompts.problems, response_PG, statistics, sample_PG, seed=self._seed, step=step)
    return Drawn(rollout, answers, length_B.reshape(-1, group), stop_B.reshape(-1, group))

  def _sample(self, weights, prompts: Prompts, sample_PG: np.ndarray, step: int, stream: str) -> Rollout:
    """Samples the parts of a batch one after another and returns their rollout. sample_PG: index of each sample among
    its problem's samples of this step, from which its random key is derived."""
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
        keys_B = keys.of_samples(address, hash_P, sample_PG)
        rollouts.append(sample(weights, tokens_PS, length_P, keys_B, self._stops, policy.spec, self.sampling))
    return self._join(rollouts)


def work_of_sampler(
  policy: Policy, sampling: Sampling, problems: int, prompt_tokens: int, parts: int = 1
) -> SamplingWork:
  """Returns what a `Sampler` takes of a device's memory to sample a batch.

  policy: its weights are not read. problems: prompts in the batch, each padded to `prompt_tokens`. parts: number of
  equal parts that are sampled one after another, of which only one is computed at a time.
  """
  work = memory.work_of_sampling(
    policy.spec,
    policy.sample_mesh,
    problems=-(-problems // parts),
    prompt_tokens=prompt_tokens,
    group=sampling.group,
    max_tokens=sampling.max_tokens,
    block_slots=sampling.block_slots,
    int8=sampling.int8,
  )
  return work._replace(rollout=parts * work.rollout)


@functools.lru_cache(2)  # each sampler of a stage needs the same automaton
def _stop_automaton(strings: tuple[str, ...], tokenizer: Tokenizer) -> np.ndarray:
  """Returns the automaton that finds the stop strings in tokens."""
  return automaton(strings, tokenizer.pieces())


@functools.cache
def _warn_of_length(tokens: int, max_positions: int) -> None:
  """Warns, once for these numbers, where responses may go beyond the positions that the model was made for (0:
  unknown)."""
  if 0 < max_positions < tokens:
    _LOG.warning(
      "config.rl.prompt_tokens + response_tokens = %d: the model was made for %d positions", tokens, max_positions
    )


@jax.jit
def _row_statistics(rollout: Rollout) -> dict[str, jax.Array]:
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


def _response_texts(tokenizer: Tokenizer, tokens_BT: np.ndarray, length_B: np.ndarray, stop_B: np.ndarray) -> list[str]:
  """Returns the text of each row of tokens up to its length, without the end token that a response may have.

  length_B: number of tokens of each response, its end token included. stop_B: why each ended, as in `Drawn.stop_PG`.
  """
  ends = length_B - (stop_B == STOP_EOS)
  return [tokenizer.decode(row[:end].tolist()) for row, end in zip(tokens_BT, ends, strict=True)]


def with_opening(text: str, opening: str) -> str:
  """Returns `opening + text`, or the text as it is if it begins with the think tag itself.

  opening: the think tag that the prompt ended with, as `Prompts.opening_P` has it; "": none. With the tag in front, the
  parser of responses sees where the trace begins.
  """
  return text if text.lstrip().startswith(THINK) else opening + text


def sampling_settings(config: ConfigDict, tokenizer: Tokenizer, **changes) -> Sampling:
  """Returns the settings with which config.rl samples: group, max_tokens, temperature, top_k, top_p, shrink, blocks.

  The group is rl.votes if that is set, else rl.group_size. tokenizer: its end tokens end a response. changes: fields
  of `Sampling` whose values differ from RL's; beside those above also int8. Raises InputError for impossible values.
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


def _leave_out_none(problem: Problem) -> bool:
  """Returns False: no problem is left out."""
  return False


class _Names(NamedTuple):
  """What messages about a list of problems call its settings."""

  place: str  # the beginning of a message
  columns: str  # the key of its columns, as `columns.as_setting` takes it
  split: str
  verifier: str


def _names(key: str, changes: Mapping[str, Any]) -> _Names:
  """Returns what messages call the settings of the group `key`, or of an entry of heldout.sets (changes["entry"])."""
  if "entry" not in changes:
    return _Names(f"config.{key}", f"config.{key}.columns", f"config.{key}.split", f"config.{key}.verifier")
  own_set = changes["entry"]
  return _Names(f"config.{key}.sets: {own_set.name}", f'config.{key}.sets="{own_set.template}"', "split", "verifier=")


def read_problems(
  config: ConfigDict,
  key: str,
  changes: Mapping[str, Any] = _NO_CHANGES,
  leave_out: Callable[[Problem], bool] = _leave_out_none,
) -> list[Problem]:
  """Reads and returns the problems that the group `key` of a config names; the list may be empty.

  key: "problems" or "heldout". changes: {key of the group: value to use instead}, as {"count": 0}; it may also have
  "at_most", the number of problems after which the list is cut, "keep", the columns of files that go to `Problem.row`,
  "derived", the `columns.Derived` of files, and "entry", the `own_sets.OwnSet` that it is of, for messages. leave_out:
  takes a problem and returns whether to leave it out; such a problem does not count as one of the group's `count`.
  Raises InputError for a source that can't be read, and for a problem whose verifier is unknown or lacks a field.
  """
  group = config[key].to_dict() | dict(changes)
  split, preferred = ("train", rows.TRAINING) if key == "problems" else ("heldout", rows.HELD_OUT)
  keys = ("count", "levels", "kinds", "seed", "verifier", "columns", "system", "skip_bad", "copies")
  fields = {name: group[name] for name in keys}
  names = _names(key, changes)
  files = rows.Split(group["split"], preferred, names.split)
  try:
    problems = problem_lists.load(
      group["source"],
      split=split,
      file_split=files,
      columns_key=names.columns,
      keep=changes.get("keep", ()),
      derived=changes.get("derived"),
      leave_out=leave_out,
      **fields,
    )
  except InputError as error:
    raise InputError(f"{names.place}: {error}") from error
  if group.get("at_most"):
    problems = problems[: group["at_most"]]
  for problem in problems:
    _check_problem(f"{names.place}: {group['source']}", problem)
  return problems


def _check_problem(place: str, problem: Problem) -> None:
  """Raises InputError for a problem whose verifier is unknown or lacks a field of `extra` that it needs.

  place: beginning of the message, which names the source.
  """
  if not is_verifier(problem.verifier):
    raise InputError(
      f"{place}: problem {problem.id} has verifier {problem.verifier!r}; use one of {', '.join(VERIFIERS)}, or "
      "path.py:NAME"
    )
  verifier = verifier_of("strict", problem.verifier)
  missing = [name for name in verifier.needs if name not in problem.extra]
  if missing:
    raise InputError(f"{place}: problem {problem.id} has no extra.{missing[0]}, which {problem.verifier} needs")


def load_problems(
  config: ConfigDict,
  key: str,
  tokenizer: Tokenizer,
  service: Service,
  changes: Mapping[str, Any] = _NO_CHANGES,
  leave_out: Callable[[Problem], bool] = _leave_out_none,
) -> PromptedProblems:
  """Reads the problems of the group `key` of a config, and returns them with their prompts as tokens.

  key, changes, leave_out: as `read_problems` takes them. service: its workers tell which labels the verifiers can't
  parse.

  Two keys of the group decide what becomes of bad problems. `too_long`, for prompts over rl.prompt_tokens: "error"
  raises InputError, "drop" leaves them out. `unreadable`, for labels or truths that can't be parsed: "error", "drop" or
  "warn", which keeps them. What is left out or kept so gives a warning. Raises InputError also where the source can't
  be read, or no problem is left, and Interrupted if a signal has asked the run to stop.
  """
  problems = read_problems(config, key, changes, leave_out)
  if not problems:
    source = changes.get("source", config[key].source)
    raise InputError(f"{_names(key, changes).place}: no problem is left of {source}; name other ones")
  ids = {problem.id: tokenizer.render(problem.messages) for problem in problems}
  openings = {problem.id: tokenizer.opening(problem.messages) for problem in problems}
  short_enough = _with_short_prompts(config, key, changes, problems, ids)
  kept, _ = with_readable_labels(config, key, short_enough, service, changes)
  return PromptedProblems(kept, ids, openings, dropped=len(problems) - len(short_enough))


def _with_short_prompts(
  config: ConfigDict,
  key: str,
  changes: Mapping[str, Any],
  problems: Sequence[Problem],
  ids: Mapping[str, Sequence[int]],
) -> list[Problem]:
  """Returns the problems whose prompts are not too long, and warns of the others or raises InputError.

  changes: as `read_problems` takes them. ids: tokens of the prompt by problem id. The group's key `too_long` decides
  between warning and error.
  """
  place = _names(key, changes).place
  limit = config.rl.prompt_tokens
  too_long = [problem for problem in problems if len(ids[problem.id]) > limit]
  if too_long and config[key].too_long == "error":
    longest = max(too_long, key=lambda problem: len(ids[problem.id]))
    tokens = len(ids[longest.id])
    raise InputError(
      f"{place}: {len(too_long)} of {len(problems)} prompts are longer than config.rl.prompt_tokens = "
      f"{limit}; the longest, problem {longest.id}, has {tokens} tokens: "
      f"config.rl.prompt_tokens={tokens} fits all of {place}; raise it, or take config.{key}.too_long=drop"
    )
  if len(too_long) == len(problems):
    raise InputError(
      f"{place}: none of {len(problems)} problems is left, all prompts are too long; raise config.rl.prompt_tokens"
    )
  if too_long:
    _LOG.warning(
      "%s: %s: %d of %d problems dropped, their prompts are over config.rl.prompt_tokens = %d",
      place,
      changes.get("source", config[key].source),
      len(too_long),
      len(problems),
      limit,
    )
  return [problem for problem in problems if len(ids[problem.id]) <= limit]


def with_readable_labels(
  config: ConfigDict,
  key: str,
  problems: list[Problem],
  service: Service,
  changes: Mapping[str, Any] = _NO_CHANGES,
) -> tuple[list[Problem], list[tuple[Problem, str]]]:
  """Returns (problems to go on with, a pair of problem and reason, as text, for each unreadable problem).

  A problem is unreadable where its verifier can't parse its label, its truth or an alternative of these
  (`Service.unreadable_answers`). The key `unreadable` of the group `key` decides what is done with such problems:
  "warn" keeps them, "drop" leaves them out, each with a warning, and "error" raises InputError. If no problem is
  readable InputError is raised in any case, as no answer could be paid. The second list has the unreadable ones of both
  "warn" and "drop". changes: as `read_problems` takes them, for messages. Raises Interrupted if a signal has asked the
  run to stop.
  """
  names = _names(key, changes)
  try:
    unreadable = _join_reasons(grade_in_parts(service.unreadable_answers, problems))
  except InputError as error:
    raise InputError(f"{names.place}: {error}") from error
  if not unreadable:
    return problems, []
  action = config[key].unreadable
  source = changes.get("source", config[key].source)
  first, reason = unreadable[0]
  message = (
    f"{names.place}: {source}: {len(unreadable)} of {len(problems)} labels can't be read by their verifier, the first "
    f"that of problem {first.id} ({reason})"
  )
  if len(unreadable) == len(problems):
    label = first.label[:_LABEL_CHARACTERS]
    columns = changes.get("columns", config[key].columns)
    raise InputError(
      f"{message}; labels are read from {_label_column(source, columns)}, the first as {label!r}. Name the column of "
      f"the answers, as {as_setting(names.columns, ('prompt=A', 'label=B'))} (a last line `#### ANSWER` counts as the "
      "answer), boxed=B where it is the last box of a solution, or the verifier that reads them "
      f"({names.verifier})"
    )
  if action == "error":
    raise InputError(f"{message}; correct them, or take config.{key}.unreadable=drop")
  if action != "drop":
    _LOG.warning("%s; kept (config.%s.unreadable)", message, key)
    return list(problems), unreadable
  _LOG.warning("%s; dropped", message)
  unreadable_ids = {problem.id for problem, _ in unreadable}
  return [problem for problem in problems if problem.id not in unreadable_ids], unreadable


def _join_reasons(unreadable_answers: Sequence[tuple[Problem, str]]) -> list[tuple[Problem, str]]:
  """Joins the pairs (problem, reason) of each problem to one pair, in the order of the problems' first pairs."""
  problems: dict[str, Problem] = {}
  reasons: dict[str, list[str]] = {}
  for problem, reason in unreadable_answers:
    problems[problem.id] = problem
    reasons.setdefault(problem.id, []).append(reason)
  return [(problem, "; ".join(reasons[problem.id])) for problem in problems.values()]


def grade_in_parts(grade: Callable[[Sequence], list], items: Sequence) -> list:
  """Calls `grade` with one part of the items after another, and returns its results joined to one list.

  grade: takes some items and returns a list, such as `Service.grade` and `Service.unreadable_answers`. Without items it
  is not called. Raises Interrupted between two parts if a signal has asked the run to stop. On several hosts all
  processes must call it together.
  """
  results = []
  for first in range(0, len(items), _ITEMS_PER_CHECK):
    results += grade(items[first : first + _ITEMS_PER_CHECK])
    if multihost.any_stop_requested():
      raise signals.Interrupted("grading was stopped by a signal; the same command begins it again")
  return results


def _label_column(source: str, columns: Sequence[str]) -> str:
  """Returns in words where the labels of a source come from, for an error message: "the column of label=B".

  source: a file, a data set, or the name of a generator. columns: entries FIELD=COLUMN of the config; (): the source's
  usual ones.
  """
  if problem_lists.is_generated(source):
    return "the generator"
  for entry in columns or problem_lists.columns_of(source):
    entry = entry.strip()
    if entry.startswith(("label", "boxed")):
      return f"the column of {entry}"
  return "the field label"


def verifier_service(config: ConfigDict) -> Service:
  """Returns a service that grades answers in worker processes, within the limits of config.verify.

  Use it as a context manager, which ends the workers. On several hosts each process has one, and all must call its
  `grade` together: each grades a share of the jobs.
  """
  v = config.verify
  return Service(v.workers, v.cpu_seconds, v.wall_seconds, v.memory_mib << 20, v.mode, multihost.grade_jointly)


def records(drawn: Drawn, step: int, true: Graded, columns: Mapping[str, Sequence[Sequence]]) -> list[dict]:
  """Returns a row for each response, problem by problem, as the files of rollouts/ and evals/ hold them.

  true: the grades by the truth. columns: further columns by name, each with a value for each response [P][G].

  Keys of a row, beside `columns`: step; problem (its id); sample (number among the problem's responses, from 0);
  prompt; text (of the response); answer (text; None: it gives none); label and truth (of the problem); tokens (their
  number); stop (why it ended: "length", "eos" or "string"); logp, certainty, entropy (means over tokens) and
  sequence_logp (of the whole response), in nats; true_reward (None: unscored); scored (bool); cause (why it is
  unscored, or "unparseable"; "": neither); faithfulness (1, 0.5 or 0 by the exact judge of the problem's task) and
  step_true (share of right steps), both None for a task without such a judge; verifier (its name), only where it is a
  user's own.
  """
  rows = []
  for i, problem in enumerate(drawn.answers.problems):
    for g, response in enumerate(drawn.answers.response_PG[i]):
      faithfulness = _exact_faithfulness(problem, response)
      row = {
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
      }
      row |= {name: float(values_PG[i, g]) for name, values_PG in drawn.answers.statistics.items()}
      row |= {
        "true_reward": float(true.value_PG[i, g]) if true.scored_PG[i, g] else None,
        "scored": bool(true.scored_PG[i, g]),
        "cause": true.cause_PG[i][g],
        "faithfulness": faithfulness.label if faithfulness else None,
        "step_true": faithfulness.step_true if faithfulness else None,
      }
      if named.is_name(problem.verifier):
        row["verifier"] = problem.verifier
      row |= {name: values_PG[i][g] for name, values_PG in columns.items()}
      rows.append(row)
  return rows


def transcript(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns a prompt as rows record it: the content of its only message.

  Of several messages each follows a line `[ROLE]`, with an empty line between two of them. messages: at least one, each
  with the keys role and content.
  """
  if len(messages) == 1:
    return messages[0]["content"]
  return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def write_prompt(workdir: Path, policy: Policy, problem: Problem) -> None:
  """Writes a problem's prompt to WORKDIR/prompt.txt as the policy sees it, up to where a response begins.

  Control tokens are written by their names. An earlier file is replaced. On several hosts the first process alone
  writes, so that all may call it.
  """
  if not multihost.process_index():
    logbook.write_atomic(workdir / "prompt.txt", policy.tokenizer.prompt_text(problem.messages))


def _exact_faithfulness(problem: Problem, response: Parsed) -> Faithfulness | None:
  """Returns label and share of right steps by the exact judge of the problem's task; None for a task without one."""
  judge = verifier_of("strict", problem.verifier).faithfulness
  return judge(response, problem.messages[-1]["content"]) if judge else None
