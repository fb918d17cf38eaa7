"""What all generators of problems share: levels of difficulty, and the split that a problem's text belongs to."""

from __future__ import annotations

import hashlib

LEVELS = (1, 2, 3, 4, 5)  # difficulty
SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 8  # one problem in so many is held out, by a hash of its text


def split_of_text(text: str) -> str:
  """Returns the split that a problem of this text belongs to, whatever the seed: train and held-out never share one."""
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return SPLITS[int.from_bytes(digest, "little") % _HELDOUT_SHARE == 0]
