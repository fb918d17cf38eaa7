"""Error messages for full disks and other failed writes: the path, the bytes to write and the bytes that are free."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from jaxrlvr.base.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COPY_BLOCK = 16 << 20  # bytes that `copy` reads at a time
_MIB = 1 << 20


def describe(error: OSError, path: str | os.PathLike, size: int | None = None) -> str:
  """Returns the message for a failed write to the file or folder `path`.

  error: what the write raised. size: number of bytes that were to be written; None: unknown. Where the disk, the quota
  or the largest size of a file is used up, the message names these bytes and the free ones, and advises to free space
  or to choose another --workdir. For any other error it gives the reason and advises to check the place.
  """
  reason = error.strerror or type(error).__name__
  if error.errno not in _FULL:
    return f"{path}: can't be written ({reason}); see that the place is there and may be written, or choose another"
  to_write = "" if size is None else f"{_bytes(size)} to write, "
  free = _free(path)
  free_space = "free space unknown" if free is None else f"{_bytes(free)} free"
  return f"{path}: the disk is full ({reason}: {to_write}{free_space}); free space there, or choose another --workdir"


def is_full(error: BaseException) -> bool:
  """Returns whether this error, or an error in its chain of causes and contexts, says that a disk is full.

  Full means that the disk, the quota or the largest size of a file is used up. It is seen by the error number, or by
  the system's words for it in the message of an error of any type.
  """
  seen = set()
  while error is not None and id(error) not in seen:
    if isinstance(error, OSError) and error.errno in _FULL:
      return True
    if any(os.strerror(number) in str(error) for number in _FULL):
      return True
    seen.add(id(error))
    error = error.__cause__ or error.__context__
  return False


@contextlib.contextmanager
def writing(path: str | os.PathLike, size: int | None = None) -> Iterator[None]:
  """Turns an OSError of the `with` block, which writes to `path`, into a StorageError with the message of `describe`.

  size: number of bytes that the block writes, for the message; None: unknown. Other errors pass unchanged.
  """
  try:
    yield
  except OSError as error:
    raise StorageError(describe(error, path, size)) from error


def copy(source: Path | epath.Path, target: Path) -> None:
  """Copies a file, which may be on an object store, to the local file `target`, and replaces it.

  The folder of `target` must exist. Raises StorageError, with path and bytes, where `target` can't be written; part of
  it may be left then. Raises the OSError of the system where `source` can't be opened.
  """
  with source.open("rb") as source_file:
    source_file.seek(0, os.SEEK_END)
    size = source_file.tell()
    source_file.seek(0)
    with writing(target, size), target.open("wb") as target_file:
      shutil.copyfileobj(source_file, target_file, _COPY_BLOCK)


def _free(path: str | os.PathLike) -> int | None:
  """Returns how many bytes this user may still write on the path's file system; None: unknown."""
  place = Path(path).absolute()
  for folder in (place, *place.parents):
    try:
      return shutil.disk_usage(folder).free
    except OSError:
      continue
  return None


def _bytes(count: int) -> str:
  """Returns a number of bytes in words: "1,024 bytes", or in MiB from 1 MiB on."""
  if count < _MIB:
    return f"{count:,} bytes"
  return f"{count / _MIB:,.1f} MiB"
