"""Safetensors files: where their tensors lie, reading parts, checks, and writing; and the JSON files beside them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxrlvr.base import disk, object_store
from jaxrlvr.base.errors import InputError

_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
_BLOCK = 64 << 20  # bytes of a tensor that a check holds at once
_SAMPLE = 4096  # bytes at the start, middle and end of a tensor that its digest covers
_LENGTH_BYTES = 8  # a file begins with the length of its header, a little-endian number of as many bytes


class Tensor(NamedTuple):
  """Where a tensor lies in a safetensors file; its bytes are read by `read` or `blocks`."""

  name: str  # in the file
  file: epath.Path
  dtype: np.dtype  # in the file: float32, float16, or bfloat16 of ml_dtypes
  shape: tuple[int, ...]  # in the file
  start: int  # its first byte in the file

  @property
  def row_bytes(self) -> int:
    """Bytes of one entry of the first dimension: all of a tensor of shape [n, ...] divided by n."""
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  def read(self, first: int, last: int) -> np.ndarray:
    """Returns entries first .. last - 1 of the first dimension, [last - first, ...] in the file's dtype."""
    with self.file.open("rb") as f:
      f.seek(self.start + first * self.row_bytes)
      content = f.read((last - first) * self.row_bytes)
    return np.frombuffer(content, self.dtype).reshape(last - first, *self.shape[1:])

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields the whole tensor in blocks of entries of the first dimension, of at most 64 MiB (or one entry) each."""
    entries = self.shape[0]
    entries_of_block = max(1, _BLOCK // max(1, self.row_bytes))
    for first in range(0, entries, entries_of_block):
      yield self.read(first, min(first + entries_of_block, entries))


def check_regular(file: epath.Path) -> None:
  """Raises InputError where a local path exists and is no regular file, such as a pipe, which could block a reader.

  Nothing is checked on an object store.
  """
  if not object_store.is_remote(file) and os.path.exists(file) and not os.path.isfile(file):
    raise InputError(f"{file}: is no regular file (a pipe, a device or a folder); take the model's own file")


def read_json_object(file: epath.Path, place: str) -> dict:
  """Reads a JSON object. Raises InputError where the file holds none.

  place: what holds such a file, for the message, such as "a Hugging Face model directory".
  """
  check_regular(file)
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{file}: can't be read ({type(error).__name__}); name {place}") from error
  if not isinstance(content, dict):
    raise InputError(f"{file}: holds a {type(content).__name__}, wanted an object; take the model's own file")
  return content


def read_header(file: epath.Path) -> dict[str, Tensor]:
  """Returns the tensors of a safetensors file by name. Raises InputError for a torn file and unknown dtypes."""
  size = file.stat().length
  with file.open("rb") as f:
    data_start = _LENGTH_BYTES + int.from_bytes(f.read(_LENGTH_BYTES), "little")
    text = f.read(data_start - _LENGTH_BYTES) if data_start <= size else b""
  try:
    header = json.loads(text)
    header.pop("__metadata__", None)
    by_name, position = {}, data_start
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
      shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
      if entry["dtype"] not in _DTYPES:
        raise InputError(
          f"{file}: tensor {name} has dtype {entry['dtype']}, wanted one of {', '.join(_DTYPES)}; cast it"
        )
      by_name[name] = Tensor(name, file, _DTYPES[entry["dtype"]], shape, position)
      size_of_tensor = math.prod(shape) * by_name[name].dtype.itemsize
      if data_start + start != position or end - start != size_of_tensor:
        raise ValueError(f"the bytes of tensor {name} are not where they should be")
      position += end - start
  except InputError:
    raise
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise InputError(f"{file}: is no whole safetensors file ({error}); fetch it again") from error
  if position != size:
    raise InputError(
      f"{file}: has {size} bytes, its header tells of {position}: it is truncated or torn; fetch it again"
    )
  return by_name


def check_finite(tensors: Iterable[Tensor]) -> None:
  """Raises InputError, naming file and tensor, for the first tensor that holds a NaN or an infinity.

  Reads every byte of the tensors, on this process alone, at most 64 MiB (or one row) at a time.
  """
  for tensor in tensors:
    for block in tensor.blocks():
      if not np.isfinite(block.astype(np.float32)).all():
        raise not_finite(tensor)


def not_finite(tensor: Tensor) -> InputError:
  """Returns the error for a tensor that holds a NaN or an infinity."""
  return InputError(f"{tensor.file}: tensor {tensor.name} holds a value that is not finite; take another copy")


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
  """Returns a SHA-256, as hex, that identifies the tensors by name, however they are divided among files.

  It covers name, dtype, shape and three samples of 4 KiB of each tensor: enough to tell weights apart after a short
  training run, but no check of every byte.
  """
  sha = hashlib.sha256()
  for name, tensor in sorted(tensors.items()):
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    sha.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
    with tensor.file.open("rb") as f:
      for offset in (0, size // 2, max(0, size - _SAMPLE)):
        f.seek(tensor.start + offset)
        sha.update(f.read(min(_SAMPLE, size - offset)))
  return sha.hexdigest()


def write(file: epath.Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, arrays: Iterable[np.ndarray]) -> None:
  """Writes a safetensors file, over one of the same name.

  shapes: of the tensors, by name, in the order of the file. dtype: of all of them, "float32", "bfloat16" or "float16".
  arrays: the tensors in the same order, of this dtype; each is written before the next is asked for. Raises
  StorageError where the disk is full.
  """
  header = _header(shapes, dtype)
  size = len(header) + sum(tensor_bytes(shape, dtype) for shape in shapes.values())
  with disk.writing(file, size), file.open("wb") as f:
    f.write(header)
    for array in arrays:
      f.write(np.ascontiguousarray(array).view(np.uint8))


def tensor_bytes(shape: tuple[int, ...], dtype: str) -> int:
  """Returns the bytes of a tensor of this shape and dtype."""
  return math.prod(shape) * jnp.dtype(dtype).itemsize


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
  """Returns the start of a safetensors file of these tensors: the length of the JSON, and the JSON, padded to 8."""
  codes = {numpy_dtype: code for code, numpy_dtype in _DTYPES.items()}
  code = codes[jnp.dtype(dtype)]
  entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + tensor_bytes(shape, dtype)
    entries[name] = {"dtype": code, "shape": shape, "data_offsets": (start, end)}
  text = json.dumps(entries).encode()
  text += b" " * (-len(text) % _LENGTH_BYTES)
  return len(text).to_bytes(_LENGTH_BYTES, "little") + text
