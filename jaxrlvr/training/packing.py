"""Documents packed into rows of equal length, each a segment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


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
