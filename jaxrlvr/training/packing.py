"""Packs documents into rows of equal length; each document is a segment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
  """A tokenised document."""

  ids: list[int]
  prompt: int  # number of tokens at the start that are only context, never a target


class Packed(NamedTuple):
  """A batch of packed rows; padding has segment 0."""

  tokens_BT: np.ndarray
  positions_BT: np.ndarray  # position of the token in its document
  segments_BT: np.ndarray  # the documents of a row are segments 1, 2, ...
  target_BT: np.ndarray  # True where the loss predicts the token from those before it in its segment


def pack(
  document: Callable[[int], Document], cursor: tuple[int, int], rows: int, length: int, end: int | None = None
) -> tuple[Packed, tuple[int, int]]:
  """Packs documents in order; returns the next batch, of `rows` rows of `length` slots, and the cursor behind it.

  document: returns document number 0, 1, ...; the batch is a pure function of it and the cursor.
  cursor: (number of the next document, how many of its tokens earlier batches hold).
  end: number of the first document that is not packed (None: no end); the batch then ends in padding.
  A document that does not fit on the rest of a row begins the next row; only one longer than a row is split.
  """
  shape = (rows, length)
  batch = Packed(
    tokens_BT=np.zeros(shape, np.int32),
    positions_BT=np.zeros(shape, np.int32),
    segments_BT=np.zeros(shape, np.int32),
    target_BT=np.zeros(shape, bool),
  )
  number, used = cursor
  row = slot = segment = 0
  while row < rows and number != end:
    current = document(number)
    remaining = len(current.ids) - used
    take = min(remaining, length - slot)
    is_longer_than_a_row = len(current.ids) > length
    if take < remaining and not is_longer_than_a_row:
      row, slot, segment = row + 1, 0, 0
      continue
    if take > 0:  # a document may be empty
      segment += 1
    slots = np.s_[row, slot : slot + take]
    positions = np.arange(take)
    batch.tokens_BT[slots] = current.ids[used : used + take]
    batch.positions_BT[slots] = positions
    batch.segments_BT[slots] = segment
    batch.target_BT[slots] = (positions > 0) & (positions + used >= current.prompt)
    slot += take
    used += take
    if used == len(current.ids):
      number, used = number + 1, 0
    if slot == length:
      row, slot, segment = row + 1, 0, 0
  return batch, (number, used)


def rows_of(tokens: Iterable[int], length: int) -> int:
  """Returns how many rows of `length` slots `pack` needs for all documents.

  tokens: the number of tokens of each document, in order.
  """
  full_rows = slot = 0
  for size in tokens:
    fits_on_row = size <= length - slot
    if not fits_on_row and size <= length:
      full_rows, slot = full_rows + 1, 0
    slot += size
    full_rows += slot // length
    slot %= length
  return full_rows + 1 if slot > 0 else full_rows
