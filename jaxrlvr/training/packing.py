"""Packs documents into rows of equal length; each document is a segment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
  """A tokenised document."""

  ids: list[int]  # of its tokens, prompt included; may be empty
  prompt: int  # number of tokens at the start that are only context, never a target


class Packed(NamedTuple):
  """A batch of packed rows, int32 but for target_BT. In slots of padding all four arrays are 0."""

  tokens_BT: np.ndarray  # token ids
  positions_BT: np.ndarray  # position of the token in its segment, from 0
  segments_BT: np.ndarray  # the documents of a row, or pieces of documents, are segments 1, 2, ...; 0: padding
  # Where the loss predicts the token from those before it in its segment. False for a segment's first token, and for
  # tokens of a prompt.
  target_BT: np.ndarray


def pack(
  document: Callable[[int], Document], cursor: tuple[int, int], rows: int, length: int, end: int | None = None
) -> tuple[Packed, tuple[int, int]]:
  """Packs documents in order into the next batch; returns (batch, cursor for the batch after it).

  document: returns the document with a number; numbers count from 0. The batch depends on nothing else but `cursor`.
  cursor: (number of the next document, how many of its tokens earlier batches hold); (0, 0) begins.
  rows, length: size of the batch, in rows and in slots of a row. end: number of documents; when all are packed the
  batch ends in padding, and later ones are all padding (None: documents never end).
  A document that does not fit behind others begins the next row. Only one that is longer than a row is split, into
  segments that don't see each other.
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
  """Returns how many rows of `length` slots `pack` needs for documents with these numbers of tokens, in order."""
  full_rows = slot = 0
  for size in tokens:
    fits_on_row = size <= length - slot
    if not fits_on_row and size <= length:
      full_rows, slot = full_rows + 1, 0
    slot += size
    full_rows += slot // length
    slot %= length
  return full_rows + 1 if slot > 0 else full_rows
