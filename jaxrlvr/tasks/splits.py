"""Defines levels of difficulty and splits, which all generators of problems share."""

from __future__ import annotations

import hashlib

LEVELS = (1, 2, 3, 4, 5)  # difficulty
SPLITS = ("train", "heldout")
_TEXTS_PER_HELDOUT = 8  # one text in so many is held out


def split_of_text(text: str) -> str:
  """Returns the split that a problem's question belongs to: "heldout" for one text in eight, "train" for all others.

  A hash of the text decides, and no seed, so no text is ever in both splits.
  """
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  train, heldout = SPLITS
  is_heldout = int.from_bytes(digest, "little") % _TEXTS_PER_HELDOUT == 0
  return heldout if is_heldout else train
