"""Training text from files: documents of a text column for CPT, prompts with trace and solution for SFT."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import built_in_text, files, hub
from jaxrlvr.data import columns as layout
from jaxrlvr.data.built_in_text import Text
from jaxrlvr.data.prepared import text as checked
from jaxrlvr.data.problems import shuffled
from jaxrlvr.text.tags import THINK, THINK_END
from jaxrlvr.text.tokenizer import Tokenizer


class TextRows:
  """Documents by number from a text column of files; reads a block of rows when it is needed.

  source: as for `hub.locate`. column: "": that of the source's description, else "text". A call returns document
  `number`, a pure function of seed and number: each epoch takes the blocks, and the rows of each block, in a random
  order of its own. Raises InputError at a row without text; the first `skip_bad` such rows return "" instead.
  """

  def __init__(self, source: str, column: str, seed: int, skip_bad: int = 0):
    path, place = hub.locate(source)
    self._column, self._seed, self._skip_bad = column or place.text or "text", seed, skip_bad
    self._blocks = list(files.blocks(path, (self._column,), place.patterns, need=self._column))
    self._bad: set[str] = set()  # places of rows without text
    self._rows = functools.lru_cache(2)(lambda block: list(self._blocks[block].read()))
    self._epoch = functools.lru_cache(2)(self._order)

  def __len__(self) -> int:
    return sum(block.size for block in self._blocks)

  @property
  def skipped(self) -> int:
    """Number of rows without text so far."""
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
  """Returns the problems of a source that SFT can train on, the same with and without thinking, and counts of rows.

  columns: as for `columns.load`, with targets prompt, solution and trace; a trace has a column of its own, or stands in
  the solution between `<think>` and `</think>`. verified: says of each (problem, solution) whether it is right.
  Counts, besides those of `columns.load`, rows that are left out: unclosed (no answer behind the think tags), untraced
  (no trace, where other rows have one), too_long (more than `max_tokens` tokens with the trace) and wrong (by
  `verified`). Raises InputError where no row is left, and for a source without any trace if `thinking`.
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
  fits = [problem for problem in usable if len(built_in_text.document(longest(problem), tokenizer).ids) <= max_tokens]
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
  """Returns the problem with trace and solution separated, in `extra`, and without think tags.

  The trace is taken from its own column, else from between the think tags of the solution. Returns None where a think
  tag is not closed or nothing follows the last one.
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
  """Returns the response with its trace, if it has one."""
  return response(problem, "trace" in problem.extra)


def response(problem: Problem, thinking: bool) -> Text:
  """Returns what SFT trains on: the solution, behind its trace if `thinking`. The prompt is only context."""
  solution = problem.extra["solution"]
  if not thinking:
    return Text(solution, problem, True)
  return Text(f"{THINK}\n{problem.extra['trace'].strip()}\n{THINK_END}\n\n{solution}", problem, True)


def responses(problems: Sequence[Problem], seed: int, thinking: bool) -> Callable[[int], Text]:
  """Returns a function from a number to the document at that place of endless epochs, each in an order of its own.

  The order does not depend on `thinking`.
  """
  return lambda number: response(problems[shuffled(seed, number, len(problems))], thinking)
