"""Frames the messages from a service to its worker: the length in four bytes, big-endian, then the message."""

from __future__ import annotations

import struct
from typing import BinaryIO

_LENGTH = struct.Struct(">I")


def framed(message: bytes) -> bytes:
  """Returns the frame of a message: its length, then the message. Raises struct.error for 2**32 bytes or more."""
  return _LENGTH.pack(len(message)) + message


def read_frame(stream: BinaryIO) -> bytes | None:
  """Waits for the next frame of a stream and returns its message; None if the stream ends before the frame does."""
  prefix = stream.read(_LENGTH.size)
  if len(prefix) < _LENGTH.size:
    return None
  (length,) = _LENGTH.unpack(prefix)
  message = stream.read(length)
  return message if len(message) == length else None
