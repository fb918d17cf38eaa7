"""Documents and responses packed into rows of equal length, each a segment of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrlvr.types import InputError


class Document(NamedTuple):
  ids: list[int]
  prompt: int  # tokens at the start that are context only, never a target


class Packed(NamedTuple):
  """One batch; slots that hold no document have segment 0."""

  tokens_BT: np.ndarray
  positions_BT: np.ndarray  # inside the document
  segments_BT: np.ndarray  # 1, 2, ... along a row
  target_BT: np.ndarray  # True where a token is to be predicted from the ones before it


def pack(document: Callable[[int], Document], cursor: tuple[int, int], rows: int, length: int):
  """The next `Packed` batch of [rows, length] and the cursor behind it, a pure function of the cursor.

  The cursor is (document number, tokens of it already used). Documents are taken in order; one that does not fit the
  rest of a row begins the next row, and only one that is longer than a row is cut.
  """
  batch = Packed(*(np.zeros((rows, length), kind) for kind in (np.int32, np.int32, np.int32, bool)))
  number, used = cursor
  row = start = segment = 0
  while row < rows:
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


class Placed(NamedTuple):
  """Where texts stand in the rows of a batch."""

  segments_RS: np.ndarray  # 1 + the text's number, 0: padding
  positions_RS: np.ndarray  # inside the text
  live: int  # parts of the batch that hold a text; they are the first ones


def place(length_N, numbers, rows: int, width: int, parts: int, share: bool = True) -> Placed:
  """Each of the texts `numbers`, of `length_N[number]` tokens, on one of `rows` rows of `width` slots.

  Longest first, each on the first row with room for it; share=False: in order, each on a row of its own. The rows are
  filled part by part of those that `shard.split_rows` makes. InputError where they don't suffice; as many rows as texts
  always do.
  """
  segments_RS, positions_RS = np.zeros((2, rows, width), np.int32)
  free_R = np.full(rows, width)
  for number in sorted(numbers, key=lambda n: (-length_N[n] * share, n)):
    length = length_N[number]
    row = int(np.argmax(free_R >= (length if share else width)))
    if length > free_R[row]:
      raise InputError(f"text {number} of {length} tokens finds no room on {rows} rows of {width}; make more rows")
    here = np.s_[row, width - free_R[row] : width - free_R[row] + length]
    segments_RS[here], positions_RS[here] = number + 1, np.arange(length)
    free_R[row] -= length
  used = int(np.sum(free_R < width))

  def deal(x_RS):
    return x_RS.reshape(parts, -1, width).swapaxes(0, 1).reshape(rows, width)

  return Placed(deal(segments_RS), deal(positions_RS), -(-used * parts // rows))
