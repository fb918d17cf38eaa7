"""Turns stop strings into a table that a device can walk: an Aho-Corasick automaton that reads tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.errors import InputError


def automaton(strings: Sequence[str], pieces: Sequence[bytes]) -> np.ndarray:
  """Returns a table, int32 [states, V], that finds stop strings in a text however it was cut into tokens.

  Entry [s, v] is the state after token v is read in state s. Start a text in state 0. The last state, states - 1, means
  that a stop string has occurred; it is never left. Without stop strings there are two states, and the last one is
  never reached. A token without bytes leaves the state as it is.

  strings: the stop strings, which are compared as UTF-8. pieces: the bytes of each of the V tokens, as
  `Tokenizer.pieces` returns them. Raises InputError for an empty stop string.
  """
  patterns = [string.encode() for string in strings]
  if b"" in patterns:
    raise InputError(f"stop strings {list(strings)!r}: an empty string would stop every response at once; remove it")
  if not patterns:
    return np.zeros((2, len(pieces)), np.int32)
  byte_table = _byte_automaton(patterns)
  states = len(byte_table)
  table = np.empty((states, len(pieces)), np.int32)
  for token, piece in enumerate(pieces):
    state_S = np.arange(states)  # where the token leads to from each state
    for byte in piece:
      state_S = byte_table[state_S, byte]
    table[:, token] = state_S
  return table


def _byte_automaton(patterns: Sequence[bytes]) -> np.ndarray:
  """Returns int32 [states, 256]: the state after a byte is read in a state; the last state means a pattern occurred.

  Every other state stands for the longest end of the text so far that begins a pattern.
  """
  prefixes = {b""}
  for pattern in patterns:
    prefixes.update(pattern[:length] for length in range(len(pattern)))
  ordered = sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
  number = {prefix: state for state, prefix in enumerate(ordered)}
  stopped = len(ordered)
  table = np.full((stopped + 1, 256), stopped, np.int32)
  for state, prefix in enumerate(ordered):
    for byte in range(256):
      text = prefix + bytes([byte])
      if not any(text.endswith(pattern) for pattern in patterns):
        table[state, byte] = _longest_known_end(text, number)
  return table


def _longest_known_end(text: bytes, number: dict[bytes, int]) -> int:
  """Returns the number of the longest end of the text that is a key; the empty end always is one."""
  for start in range(len(text)):
    if text[start:] in number:
      return number[text[start:]]
  return number[b""]
