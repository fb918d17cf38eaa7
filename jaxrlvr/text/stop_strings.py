"""Stop strings as a table that a device can walk: an Aho-Corasick automaton over tokens instead of characters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.errors import InputError


def automaton(strings: Sequence[str], pieces: Sequence[bytes]) -> np.ndarray:
  """int32 [states, V]: next state after a token, whatever way the text was cut into tokens.

  `pieces` are the bytes each token stands for. State 0 is the start, the last state means "a stop string has
  occurred" and is never left. Without stop strings there are two states and the last is never reached.
  """
  patterns = [s.encode() for s in strings]
  if b"" in patterns:
    raise InputError(f"stop strings {list(strings)!r}: an empty string would stop every response at once; remove it")
  prefixes = sorted({p[:n] for p in patterns for n in range(len(p))} | {b""}, key=lambda p: (len(p), p))
  number = {prefix: i for i, prefix in enumerate(prefixes)}
  found = len(prefixes)
  if not patterns:
    return np.zeros((2, len(pieces)), np.int32)

  def after(prefix: bytes, byte: int) -> int:
    text = prefix + bytes([byte])
    if any(text.endswith(p) for p in patterns):
      return found
    return next(number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)

  by_byte = np.array([[after(prefix, b) for b in range(256)] for prefix in prefixes] + [[found] * 256], np.int32)
  table = np.empty((found + 1, len(pieces)), np.int32)
  for token, piece in enumerate(pieces):
    state = np.arange(found + 1)
    for byte in piece:
      state = by_byte[state, byte]
    table[:, token] = state
  return table
