"""Training text from files: documents of a text column for CPT, prompts with trace and solution for SFT."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import built_in_text, files, hub
from jaxrlvr.data import columns as layout
from jaxrlvr.data.built_in_text import Text
from jaxrlvr.data.prepared import checked_text
from jaxrlvr.data.problems import shuffled_index
from jaxrlvr.tasks import own
from jaxrlvr.text.tags import THINK, THINK_END
from jaxrlvr.text.tokenizer import Tokenizer

_CACHED = 2  # blocks, and orders of epochs, that are kept: an epoch's last ones and the next one's first ones


class TextRows:
  """The texts of a column of files as documents, a `Text` for each number from 0 on; `len` is the number of rows.

  A call with a number returns the document, a pure function of seed and number. Rows are read a block at a time: each
  epoch of `len` documents takes the blocks, and the rows of each block, in a random order of its own.
  source: a path or a data set of the hub, see `hub.locate`. column: the column with the text; "": that of a data set
  that `hub.locate` knows, else "text". skip_bad: how many rows may lack a text; each gives Text(""), a document without
  tokens. Creating the object raises InputError for files that can't be read or lack the column, and a call raises it,
  with the row's place, at a further row without text.
  """

  def __init__(self, source: str, column: str, seed: int, skip_bad: int = 0):
    path, data_set = hub.locate(source)
    self._column, self._seed, self._skip_bad = column or data_set.text_column or "text", seed, skip_bad
    split = hub.split_to_read(source, data_set, None)
    self._blocks = list(files.blocks(path, (self._column,), data_set.patterns, need=self._column, split=split))
    self._bad: set[str] = set()  # places of rows without text
    self._rows = functools.lru_cache(_CACHED)(lambda block: list(self._blocks[block].read()))
    self._order = functools.lru_cache(_CACHED)(self._draw_order)

  def __len__(self) -> int:
    return sum(block.size for block in self._blocks)

  @property
  def skipped(self) -> int:
    """Number of different rows without text that calls have met so far."""
    return len(self._bad)

  def __call__(self, number: int) -> Text:
    place, row = self._row(number)
    try:
      if isinstance(row, files.BadRow):
        raise row
      return Text(checked_text(self._column, row.get(self._column)))
    except files.BadRow as error:
      self._bad.add(place)
      may_be_bad = min(self._skip_bad, len(self) - 1)  # with no text at all, packing would never end
      if len(self._bad) > may_be_bad:
        raise InputError(f"{place}, {error}; correct or drop the row, or raise skip_bad = {self._skip_bad}") from None
      return Text("")

  def _row(self, number: int) -> files.Row:
    """Returns the row of document `number`, with its place."""
    epoch, position = divmod(number, len(self))
    order = self._order(epoch)
    turn = int(np.searchsorted(order.ends, position, side="right"))
    block = int(order.blocks[turn])
    size = self._blocks[block].size
    position_in_block = position - (int(order.ends[turn]) - size)
    order_in_block = np.random.default_rng([self._seed, epoch, block]).permutation(size)
    return self._rows(block)[order_in_block[position_in_block]]

  def _draw_order(self, epoch: int) -> _BlockOrder:
    blocks = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
    return _BlockOrder(blocks, np.cumsum([self._blocks[block].size for block in blocks]))


class _BlockOrder(NamedTuple):
  """The order of the blocks of rows in an epoch; both arrays have an entry for each block."""

  blocks: np.ndarray  # their indices
  ends: np.ndarray  # number of rows up to the end of each


class TaskTexts:
  """Documents by number from the `corpus` of a user's own task, in the order in which it yields them.

  A corpus that ends begins again; one that never ends is read as far as it is asked for. source: the task's name.
  Raises InputError for a task without a corpus, for one that yields nothing, and for an item that is no text.
  """

  def __init__(self, source: str, seed: int):
    self._source = source
    self._texts: list[str] = []
    self._more = iter(own.corpus_texts(source, seed))

  def __call__(self, number: int) -> Text:
    while number >= len(self._texts):
      text = next(self._more, None)
      if text is None:
        break
      self._texts.append(text)
    if not self._texts:
      raise InputError(f"{self._source}: corpus() yields no text; yield at least one")
    return Text(self._texts[number % len(self._texts)])


def sft_problems(
  source: str,
  columns: Sequence[str],
  tokenizer: Tokenizer,
  max_tokens: int,
  system: str = "",
  skip_bad: int = 0,
  verified: Callable[[Sequence[tuple[Problem, str]]], Sequence[bool]] | None = None,
  thinking: bool = True,
) -> layout.ProblemsAndCounts:
  """Returns the problems of a source that SFT can train on, and counts of its rows.

  extra["solution"] of a problem is its solution, and extra["trace"] its trace if it has one, both without think tags.
  If any row has a trace, only rows with one are kept: training with and without thinking sees the same problems.
  source: a path or a data set of the hub, see `hub.locate`.
  columns: entries TARGET=COLUMN, as of `columns.load`, for prompt and solution, and for trace unless the solution holds
    it between `<think>` and `</think>`; (): those of a data set that `hub.locate` knows.
  tokenizer, max_tokens: problems with more tokens of prompt, trace and solution are left out.
  system: a system message for prompts that have none. skip_bad: how many rows may be bad and are left out.
  verified: takes a list of (problem, solution) and returns for each whether it is right; None: all are kept.
  thinking: whether traces are trained on, so that there must be some.
  Keys of the counts: those of `columns.ProblemsAndCounts`, and for further rows that are left out: unclosed (no answer
  behind the think tags), untraced (no trace, where others have one), too_long and wrong (by `verified`). Raises
  InputError where no problem is left, and where none has a trace if `thinking`.
  """
  path, data_set = hub.locate(source)
  columns = columns or data_set.columns
  if not columns:
    raise InputError(f"{source}: no columns; name them, such as prompt=problem, trace=reasoning, solution=answer")
  loaded, counts = layout.load(
    path,
    columns=columns,
    system=system,
    skip_bad=skip_bad,
    required_targets=("prompt", "solution"),
    patterns=data_set.patterns,
    split=hub.split_to_read(source, data_set, None),
    columns_key="config.sft.columns",
  )
  closed = [problem for problem in map(_with_separate_trace, loaded) if problem is not None]
  traced = [problem for problem in closed if "trace" in problem.extra]
  if thinking and not traced:
    raise InputError(
      f"{source}: holds no traces, which Thinking SFT trains on; add trace=COLUMN to its columns, take solutions with "
      f"{THINK}...{THINK_END}, or train the other arm (sft.thinking=False)"
    )
  usable = traced or closed
  fitting = [problem for problem in usable if _count_tokens(problem, tokenizer) <= max_tokens]
  kept = fitting
  if verified is not None:
    verdicts = verified([(problem, problem.extra["solution"]) for problem in fitting])
    kept = [problem for problem, is_right in zip(fitting, verdicts, strict=True) if is_right]
  counts = {
    **counts,
    "unclosed": len(loaded) - len(closed),
    "untraced": len(closed) - len(usable),
    "too_long": len(usable) - len(fitting),
    "wrong": len(fitting) - len(kept),
  }
  if not kept:
    words = layout.counts_in_words(counts)
    raise InputError(f"{source}: no row is left to train on ({words}); raise max_tokens = {max_tokens}")
  return layout.ProblemsAndCounts(kept, counts)


def _with_separate_trace(problem: Problem) -> Problem | None:
  """Returns the problem with trace and solution separated, in `extra`, and without think tags.

  The trace is taken from its own column, else from between the think tags of the solution; without any, `extra` has no
  key trace. Returns None where a think tag is not closed or nothing follows the last one.
  """
  solution, trace = problem.extra["solution"], problem.extra.get("trace")
  before_end_tag, end_tag, answer = solution.rpartition(THINK_END)
  if THINK in answer or (end_tag and not answer.strip()):
    return None
  if trace is None and end_tag:
    trace = before_end_tag
  elif trace is not None and THINK_END in trace:
    trace = trace.rpartition(THINK_END)[0]
  trace = (trace or "").replace(THINK, "").replace(THINK_END, "").strip()
  extra = {**problem.extra, "solution": answer.lstrip() if end_tag else solution}
  extra.pop("trace", None)
  if trace:
    extra["trace"] = trace
  return dataclasses.replace(problem, extra=extra)


def _count_tokens(problem: Problem, tokenizer: Tokenizer) -> int:
  """Returns the number of tokens of the prompt and the response, with its trace if it has one."""
  longest_response = response(problem, thinking="trace" in problem.extra)
  return len(built_in_text.document(longest_response, tokenizer).ids)


def response(problem: Problem, thinking: bool) -> Text:
  """Returns the document that SFT trains on for a problem of `sft_problems`; its prompt is only context.

  Its text is the solution, with `thinking` behind the trace between think tags. Raises KeyError for `thinking` without
  a trace.
  """
  solution = problem.extra["solution"]
  if not thinking:
    return Text(solution, problem, prompt_is_context=True)
  trace = problem.extra["trace"].strip()
  return Text(f"{THINK}\n{trace}\n{THINK_END}\n\n{solution}", problem, prompt_is_context=True)


def responses(problems: Sequence[Problem], seed: int, thinking: bool) -> Callable[[int], Text]:
  """Returns a function that returns the `response` at a number, 0, 1, ..., of endless epochs over the problems.

  Each epoch has a random order of its own, a pure function of seed and epoch that `thinking` does not change.
  """
  return lambda number: response(problems[shuffled_index(seed, number, len(problems))], thinking)
