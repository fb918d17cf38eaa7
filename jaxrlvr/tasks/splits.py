"""Defines what all generators of problems share: the levels of difficulty 1 to 5, and the splits train and heldout."""

from __future__ import annotations

import hashlib

LEVELS = (1, 2, 3, 4, 5)  # difficulty
SPLITS = ("train", "heldout")
_TEXTS_PER_HELDOUT = 8  # one text in so many is held out


def split_of_text(text: str) -> str:
  """Returns the split that a problem belongs to: "heldout" for one text in eight, "train" for all others.

  `text`: the problem's question. A hash of it decides, and no seed, so no question is ever in both splits. Generators
  drop the problems of the other split.
  """
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  train, heldout = SPLITS
  is_heldout = int.from_bytes(digest, "little") % _TEXTS_PER_HELDOUT == 0
  return heldout if is_heldout else train
