"""Frames messages between a service and its worker: the length of a message, then its bytes."""

from __future__ import annotations

import struct
from typing import BinaryIO

_LENGTH = struct.Struct(">I")


def framed(message: bytes) -> bytes:
  """Returns a message behind its length, for `read_frame`. Raises struct.error for 2**32 bytes or more."""
  return _LENGTH.pack(len(message)) + message


def read_frame(stream: BinaryIO) -> bytes | None:
  """Waits for the next frame of a stream and returns its message, as `framed` took it.

  Returns None if the stream ends before a whole length, and a shorter message if it ends within the message.
  """
  prefix = stream.read(_LENGTH.size)
  if len(prefix) < _LENGTH.size:
    return None
  (length,) = _LENGTH.unpack(prefix)
  return stream.read(length)
