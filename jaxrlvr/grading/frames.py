"""Frames between a service and its worker: a message of bytes behind its length."""

from __future__ import annotations

import struct
from typing import BinaryIO

_LENGTH = struct.Struct(">I")


def framed(message: bytes) -> bytes:
  """Returns the message as `read_frame` takes it apart again. At most 2**32 - 1 bytes."""
  return _LENGTH.pack(len(message)) + message


def read_frame(stream: BinaryIO) -> bytes | None:
  """Returns the next message of a stream that blocks; None where the stream has ended before its length was whole."""
  prefix = stream.read(_LENGTH.size)
  if len(prefix) < _LENGTH.size:
    return None
  return stream.read(_LENGTH.unpack(prefix)[0])
