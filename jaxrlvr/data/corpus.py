"""Training text from files: documents of a text column for CPT, prompts with a trace and a solution for SFT."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import columns as layout
from jaxrlvr.data import embedded_text, files, hub
from jaxrlvr.data.embedded_text import Text
from jaxrlvr.data.prepared import text as checked
from jaxrlvr.data.problems import shuffled
from jaxrlvr.text.tags import THINK, THINK_END
from jaxrlvr.text.tokenizer import Tokenizer


class TextRows:
  """A text column of the files that a path or a name in raw.RAW stands for, without reading them at the start.

  A call gives document `number` as a pure function of (seed, number): an epoch takes the blocks of rows in an order of
  its own, and the rows of a block too. A row without text is an error; the first `skip_bad` of them give "" instead.
  """

  def __init__(self, source: str, column: str, seed: int, skip_bad: int = 0):
    path, place = hub.locate(source)
    self._column, self._seed, self._skip_bad = column or place.text or "text", seed, skip_bad
    self._blocks = list(files.blocks(path, (self._column,), place.patterns, need=self._column))
    self._bad: set[str] = set()  # places
    self._rows = functools.lru_cache(2)(lambda block: list(self._blocks[block].read()))
    self._epoch = functools.lru_cache(2)(self._order)

  def __len__(self) -> int:
    return sum(block.size for block in self._blocks)

  @property
  def skipped(self) -> int:
    """Rows without text met so far."""
    return len(self._bad)

  def __call__(self, number: int) -> Text:
    epoch, place = divmod(number, len(self))
    order, ends = self._epoch(epoch)
    turn = int(np.searchsorted(ends, place, side="right"))
    block = int(order[turn])
    size = self._blocks[block].size
    inside = np.random.default_rng([self._seed, epoch, block]).permutation(size)[place - (int(ends[turn]) - size)]
    where, row = self._rows(block)[inside]
    try:
      if isinstance(row, files.BadRow):
        raise row
      return Text(checked(self._column, row.get(self._column)))
    except files.BadRow as error:
      self._bad.add(where)
      if len(self._bad) > min(self._skip_bad, len(self) - 1):
        raise InputError(f"{where}, {error}; correct or drop the row, or raise skip_bad = {self._skip_bad}") from None
      return Text("")

  def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
    return order, np.cumsum([self._blocks[block].size for block in order])


def pairs(
  source: str,
  columns: Sequence[str],
  tokenizer: Tokenizer,
  max_tokens: int,
  system: str = "",
  skip_bad: int = 0,
  verified: Callable[[Sequence[tuple[Problem, str]]], Sequence[bool]] | None = None,
  thinking: bool = True,
) -> layout.ProblemsAndCounts:
  """The prompts of a source (as for `columns.load`; targets prompt, solution and trace) that both arms train on.

  A trace stands in a column of its own, or in the solution between `<think>` and `</think>`. A source without any trace
  serves only the arm that is not `thinking`.

  Left out and counted: rows without an answer behind their think tags (unclosed), rows without a trace where others
  have one (untraced), what is longer than `max_tokens` with its trace (too_long), and the problems whose solution
  `verified`, given (problem, solution) pairs, finds wrong.
  """
  path, place = hub.locate(source)
  wanted, columns = ("prompt", "solution"), columns or place.columns
  if not columns:
    raise InputError(f"{source}: no columns; name them, such as prompt=problem, trace=reasoning, solution=answer")
  loaded, counts = layout.load(
    path, "auto", columns, system, skip_bad, wanted, place.patterns, key="config.sft.columns"
  )
  split = [with_trace(problem) for problem in loaded]
  closed = [problem for problem in split if problem is not None]
  traced = [problem for problem in closed if "trace" in problem.extra]
  if thinking and not traced:
    raise InputError(
      f"{source}: holds no traces, which Thinking SFT trains on; add trace=COLUMN to its columns, take solutions with "
      f"{THINK}...{THINK_END}, or train the other arm (sft.thinking=False)"
    )
  usable = traced or closed
  fits = [problem for problem in usable if len(embedded_text.document(longest(problem), tokenizer).ids) <= max_tokens]
  right = verified([(problem, problem.extra["solution"]) for problem in fits]) if verified else [True] * len(fits)
  kept = [problem for problem, keep in zip(fits, right, strict=True) if keep]
  counts = {
    **counts,
    "unclosed": len(loaded) - len(closed),
    "untraced": len(closed) - len(usable),
    "too_long": len(usable) - len(fits),
    "wrong": len(fits) - len(kept),
  }
  if not kept:
    what = layout.counts_in_words(counts)
    raise InputError(f"{source}: no row is left to train on ({what}); raise max_tokens = {max_tokens}")
  return layout.ProblemsAndCounts(kept, counts)


def with_trace(problem: Problem) -> Problem | None:
  """The problem with its trace and its solution apart and free of think tags.

  None where a think tag never closes, or nothing follows the last one.
  The trace is that of its own column where there is one, else what the solution holds between think tags.
  """
  solution, trace = problem.extra["solution"], problem.extra.get("trace")
  thought, closed, answer = solution.rpartition(THINK_END)
  if THINK in answer or (closed and not answer.strip()):
    return None
  if trace is None and closed:
    trace = thought
  elif trace is not None and THINK_END in trace:
    trace = trace.rpartition(THINK_END)[0]
  extra = {**problem.extra, "solution": answer.lstrip() if closed else solution}
  if trace is not None:
    extra["trace"] = trace.replace(THINK, "").replace(THINK_END, "").strip()
    if not extra["trace"]:
      del extra["trace"]
  return dataclasses.replace(problem, extra=extra)


def longest(problem: Problem) -> Text:
  """The response with its trace where there is one."""
  return response(problem, "trace" in problem.extra)


def response(problem: Problem, thinking: bool) -> Text:
  """What SFT trains on: the solution, behind its trace if `thinking`; the prompt is context only."""
  solution = problem.extra["solution"]
  if not thinking:
    return Text(solution, problem, True)
  return Text(f"{THINK}\n{problem.extra['trace'].strip()}\n{THINK_END}\n\n{solution}", problem, True)


def responses(problems: Sequence[Problem], seed: int, thinking: bool) -> Callable[[int], Text]:
  """Document `number` of endless epochs, each in an order of its own that both arms share."""
  return lambda number: response(problems[shuffled(seed, number, len(problems))], thinking)
