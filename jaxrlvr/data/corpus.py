"""Training text from files: documents of a text column for CPT, prompts with a trace and a solution for SFT."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrlvr.data import embedded, layout, raw, rows
from jaxrlvr.data.embedded import Text
from jaxrlvr.data.store import text as checked
from jaxrlvr.text.tokenizer import THINK, THINK_END, Tokenizer
from jaxrlvr.types import InputError, Problem

LINES = 1024  # of a jsonl file that are shuffled and held together, as the rows of a parquet row group are


class _Block(NamedTuple):
  file: Path
  number: int  # the row group, or the byte at which the lines begin
  first: int  # row of the file, or line
  rows: int


class TextRows:
  """A text column of the files that a path or a name in raw.RAW stands for, without reading them at the start.

  A call gives document `number` as a pure function of (seed, number): an epoch takes the blocks of rows in an order of
  its own, and the rows of a block too. A row without text is an error; the first `skip_bad` of them give "" instead.
  """

  def __init__(self, source: str, column: str, seed: int, skip_bad: int = 0):
    path, place = raw.find(source)
    self._column, self._seed, self._skip_bad = column or place.text or "text", seed, skip_bad
    blocks = [block for file in rows.files(path, place.patterns) for block in _blocks(file, self._column)]
    if not blocks:
      raise InputError(f"{source}: found 0 rows, wanted at least 1")
    self._blocks, self._bad = blocks, set()
    self._rows = functools.lru_cache(2)(lambda block: list(_read(self._blocks[block], self._column)))
    self._epoch = functools.lru_cache(2)(self._order)

  def __len__(self) -> int:
    return sum(block.rows for block in self._blocks)

  @property
  def skipped(self) -> int:
    """Rows without text met so far."""
    return len(self._bad)

  def __call__(self, number: int) -> Text:
    epoch, place = divmod(number, len(self))
    order, ends = self._epoch(epoch)
    turn = int(np.searchsorted(ends, place, side="right"))
    block = int(order[turn])
    size = self._blocks[block].rows
    inside = np.random.default_rng([self._seed, epoch, block]).permutation(size)[place - (int(ends[turn]) - size)]
    where, cell = self._rows(block)[inside]
    try:
      if isinstance(cell, rows.BadRow):
        raise cell
      return Text(checked(self._column, cell))
    except rows.BadRow as error:
      self._bad.add(where)
      if len(self._bad) > min(self._skip_bad, len(self) - 1):
        raise InputError(f"{where}, {error}; correct or drop the row, or raise skip_bad = {self._skip_bad}") from None
      return Text("")

  def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng([self._seed, epoch]).permutation(len(self._blocks))
    return order, np.cumsum([self._blocks[block].rows for block in order])


def _blocks(file: Path, column: str) -> list[_Block]:
  kinds = {".parquet": _parquet_blocks, ".jsonl": _jsonl_blocks}
  if file.suffix not in kinds:
    raise InputError(f"{file}: text is read from parquet and jsonl files; export the data set to one of them")
  return list(kinds[file.suffix](file, column))


def _parquet_blocks(file: Path, column: str) -> Iterator[_Block]:
  with rows.parquet(file) as table:
    if column not in table.schema_arrow.names:
      raise InputError(f"{file}: column {column} is missing, found {', '.join(table.schema_arrow.names)}")
    first = 0
    for group in range(table.num_row_groups):
      count = table.metadata.row_group(group).num_rows
      if count:
        yield _Block(file, group, first, count)
      first += count


def _jsonl_blocks(file: Path, column: str) -> Iterator[_Block]:
  start = first = 0
  with rows.lines(file) as handle:
    while taken := list(itertools.islice(handle, LINES)):
      if count := sum(bool(line.strip()) for line in taken):
        yield _Block(file, start, first, count)
      start, first = start + sum(map(len, taken)), first + len(taken)


def _read(block: _Block, column: str) -> Iterator[tuple[str, object]]:
  """(place, cell or BadRow) of each row."""
  if block.file.suffix == ".parquet":
    with rows.parquet(block.file) as table:
      cells = table.read_row_group(block.number, columns=[column])[column].to_pylist()
    yield from ((f"{block.file}: row {row}", cell) for row, cell in enumerate(cells, block.first))
    return
  with rows.lines(block.file) as handle:
    handle.seek(block.number)
    for number, line in enumerate(itertools.islice(handle, LINES), block.first + 1):
      if line.strip():
        row = rows.json_row(line, number == 1)
        yield f"{block.file}:{number}", row.get(column) if isinstance(row, Mapping) else row


def pairs(
  source: str,
  columns: Sequence[str],
  tokenizer: Tokenizer,
  max_tokens: int,
  system: str = "",
  skip_bad: int = 0,
  verified: Callable[[Sequence[tuple[Problem, str]]], Sequence[bool]] | None = None,
) -> layout.Loaded:
  """The prompts of a source (as for `layout.load`; targets prompt, trace and solution) that both arms train on.

  Left out and counted: what is longer than `max_tokens` with its trace (too_long), and the problems whose solution
  `verified`, given (problem, solution) pairs, finds wrong.
  """
  path, place = raw.find(source)
  wanted, columns = ("prompt", "trace", "solution"), columns or place.columns
  if not columns:
    raise InputError(f"{source}: no columns; name them, such as prompt=problem, trace=reasoning, solution=answer")
  found, counts = layout.load(path, "auto", columns, system, skip_bad, wanted, place.patterns)
  short = [problem for problem in found if _tokens(problem, tokenizer, max_tokens) <= max_tokens]
  right = verified([(problem, problem.extra["solution"]) for problem in short]) if verified else [True] * len(short)
  kept = [problem for problem, keep in zip(short, right, strict=True) if keep]
  counts = {**counts, "too_long": len(found) - len(short), "wrong": len(short) - len(kept)}
  if not kept:
    raise InputError(f"{source}: no row is left to train on ({layout.told(counts)}); raise max_tokens = {max_tokens}")
  return layout.Loaded(kept, counts)


def _tokens(problem: Problem, tokenizer: Tokenizer, enough: int) -> int:
  """Tokens of the thinking target with its prompt; no token stands for less than a byte of text."""
  made = response(problem, True)
  prompt = len(tokenizer.render(problem.messages))
  most = prompt + len(made.text.encode()) + 1
  return most if most <= enough else len(embedded.document(made, tokenizer).ids)


def response(problem: Problem, thinking: bool) -> Text:
  """What SFT trains on: the solution, behind its trace if `thinking`; the prompt is context only."""
  trace, solution = problem.extra["trace"].strip(), problem.extra["solution"]
  return Text(f"{THINK}\n{trace}\n{THINK_END}\n\n{solution}" if thinking else solution, problem, True)


def responses(problems: Sequence[Problem], seed: int, thinking: bool) -> Callable[[int], Text]:
  """Document `number` of endless epochs, each in an order of its own that both arms share."""
  order = functools.lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(problems)))

  def document(number: int) -> Text:
    epoch, place = divmod(number, len(problems))
    return response(problems[order(epoch)[place]], thinking)

  return document
