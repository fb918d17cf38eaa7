"""Documents and responses packed into rows of equal length, each a segment of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Branches


class Document(NamedTuple):
  ids: list[int]
  prompt: int  # tokens at the start that are context only, never a target


class Packed(NamedTuple):
  """One batch; slots that hold no document have segment 0."""

  tokens_BT: np.ndarray
  positions_BT: np.ndarray  # inside the document
  segments_BT: np.ndarray  # 1, 2, ... along a row
  target_BT: np.ndarray  # True where a token is to be predicted from the ones before it


def pack(
  document: Callable[[int], Document], cursor: tuple[int, int], rows: int, length: int, end: int | None = None
) -> tuple[Packed, tuple[int, int]]:
  """The next `Packed` batch of [rows, length] and the cursor behind it, a pure function of the cursor.

  The cursor is (document number, tokens of it already used). Documents are taken in order; one that does not fit the
  rest of a row begins the next row, and only one that is longer than a row is cut. Before document number `end` packing
  stops, and the rest of the batch is padding.
  """
  batch = Packed(*(np.zeros((rows, length), kind) for kind in (np.int32, np.int32, np.int32, bool)))
  number, used = cursor
  row = start = segment = 0
  while row < rows and number != end:
    one = document(number)
    take = min(len(one.ids) - used, length - start)
    if len(one.ids) - used > take and len(one.ids) <= length:
      row, start, segment = row + 1, 0, 0
      continue
    segment += take > 0  # a document may be empty
    where, inside = np.s_[row, start : start + take], np.arange(take)
    batch.tokens_BT[where], batch.positions_BT[where] = one.ids[used : used + take], inside
    batch.segments_BT[where] = segment
    batch.target_BT[where] = (inside > 0) & (inside + used >= one.prompt)
    start, used = start + take, used + take
    if used == len(one.ids):
      number, used = number + 1, 0
    if start == length:
      row, start, segment = row + 1, 0, 0
  return batch, (number, used)


def rows_of(tokens: Iterable[int], length: int) -> int:
  """Returns how many rows of `length` slots `pack` fills with documents of so many tokens."""
  full = start = 0
  for size in tokens:
    if size > length - start and size <= length:
      full, start = full + 1, 0
    start += size
    full, start = full + start // length, start % length
  return full + (start > 0)


class Placed(NamedTuple):
  """Where texts stand in the rows of a batch."""

  segments_RS: np.ndarray  # 1 + the text's number, 0: padding
  positions_RS: np.ndarray  # inside the text
  live: int  # parts of the batch that hold a text; they are the first ones


def _first_fit(length_N, numbers, free, share: bool):
  """(number, bin, slots before it) of each text, longest first in the first bin with room for it; -1: in none.

  free: slots of each bin. share=False: in order, each in a bin of its own.
  """
  free, left = np.array(free), np.array(free)
  for number in sorted(numbers, key=lambda n: (-length_N[n] * share, n)):
    fits = left >= length_N[number] if share else left == free
    at = int(np.argmax(fits)) if np.any(fits) else -1
    yield number, at, int(free[at] - left[at])
    left[at] -= length_N[number]


class _Rows:
  """`Placed` in the making."""

  def __init__(self, rows: int, width: int):
    self.segments_RS, self.positions_RS = np.zeros((2, rows, width), np.int32)

  def put(self, number: int, row: int, slot: int, first: int, tokens: int) -> None:
    if not 0 <= row < len(self.segments_RS):
      rows, width = self.segments_RS.shape
      raise InputError(f"text {number} of {tokens} tokens finds no room on {rows} rows of {width}; make more rows")
    here = np.s_[row, slot : slot + tokens]
    self.segments_RS[here], self.positions_RS[here] = number + 1, np.arange(first, first + tokens)

  def deal(self, parts: int) -> Placed:
    rows, width = self.segments_RS.shape
    used = int(np.sum(np.any(self.segments_RS, 1)))
    both = np.stack([self.segments_RS, self.positions_RS]).reshape(2, parts, -1, width).swapaxes(1, 2)
    return Placed(*both.reshape(2, rows, width), -(-used * parts // rows))


def place(length_N, numbers, rows: int, width: int, parts: int, share: bool = True) -> Placed:
  """Each of the texts `numbers`, of `length_N[number]` tokens, on one of `rows` rows of `width` slots.

  Longest first, each on the first row with room for it; share=False: in order, each on a row of its own. The rows are
  filled part by part of those that `sharding.split_rows` makes. InputError where they don't suffice; as many rows as
  texts always do.
  """
  made = _Rows(rows, width)
  for number, row, slot in _first_fit(length_N, numbers, [width] * rows, share):
    made.put(number, row, slot, 0, length_N[number])
  return made.deal(parts)


def branch(prompt_P, length_N, numbers, group: int, rows: int, branches: Branches, parts: int, share=True) -> Placed:
  """As `place`, for responses of `length_N` tokens behind prompts of `prompt_P`, on rows with `branches`;
  number // group is a response's problem.

  A row holds one prompt, with its first response's number. group / count rows a problem always suffice.
  """
  made, row = _Rows(rows, branches.prompt + branches.count * branches.piece), 0
  for problem, mine in itertools.groupby(sorted(numbers), lambda number: number // group):
    mine, prompt, last = list(mine), prompt_P[problem], -1
    for number, piece, slot in _first_fit(length_N, mine, [branches.piece] * len(mine), share):
      at, inside = row + piece // branches.count, piece % branches.count
      made.put(number, at, branches.prompt + inside * branches.piece + slot, prompt, length_N[number])
      if piece > last and not inside:
        made.put(number, at, branches.prompt - prompt, 0, prompt)
      last = max(last, piece)
    row += last // branches.count + 1
  return made.deal(parts)
