"""Folders on an object store (gs://): copied to a local folder to be read, and updated from a local folder."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath

from etils import epath

from jaxrlvr.base.errors import InputError, StorageError


def is_remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is the address of an object store rather than a local path."""
  return "://" in os.fspath(name)


def path(name: str | os.PathLike) -> Path | epath.Path:
  """Returns the path of a name: an epath.Path for the address of an object store, such as gs://bucket/run.

  Any other name gives an absolute pathlib.Path with `~` expanded.
  """
  return epath.Path(name) if is_remote(name) else Path(os.path.expanduser(name)).absolute()


@contextlib.contextmanager
def translate_errors(kind: type[Exception], place: object) -> Iterator[None]:
  """Turns errors of the block into errors of type `kind` that name the place; InputError and StorageError pass."""
  try:
    yield
  except (InputError, StorageError):
    raise
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise kind(f"{place}: can't be reached ({reason}); see name, access and the extra `gcs`") from error


def _files(folder, left_out: tuple[str, ...]):
  """Yields all files in a folder and below it, except unfinished ones (*.part) and files and folders in `left_out`."""
  for file in sorted(folder.iterdir()):
    if file.name in left_out or file.suffix == ".part":
      continue
    if file.is_dir():
      yield from _files(file, left_out)
    else:
      yield file


def _transfer(source, target) -> None:
  """Copies a file of any size in blocks of 16 MiB. On an object store it appears only when it is complete."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open("rb") as read, target.open("wb") as write:
    shutil.copyfileobj(read, write, 1 << 24)


def pull(place: Path | epath.Path, folder: Path, left_out: tuple[str, ...] = ()) -> None:
  """Copies all files of a place to a local folder, except files and folders whose names are in `left_out`.

  A place that does not exist counts as empty. Raises InputError where the place can't be read.
  """
  with translate_errors(InputError, place):
    if not place.exists():
      return
    for file in _files(place, left_out):
      _transfer(file, folder / PurePath(file).relative_to(PurePath(place)))


class Mirror:
  """Updates a place on an object store from a local folder; files that have not changed are not sent again.

  Files that the folder holds when the mirror is created count as sent.
  """

  def __init__(self, folder: Path, place):
    self._folder, self._place = folder, place
    self._sent = self._stamps()

  def _stamps(self) -> dict[str, tuple[int, int]]:
    """Returns (time of the last change, size) of each file of the folder by its name below the folder."""
    stamps = {}
    for file in _files(self._folder, ()):
      stat = file.stat()
      stamps[file.relative_to(self._folder).as_posix()] = (stat.st_mtime_ns, stat.st_size)
    return stamps

  def push(self) -> None:
    """Sends new and changed files, and removes files that the folder no longer has.

    summary.json, which says that a run is finished, is sent last. Raises StorageError where the place can't be reached.
    """
    stamps = self._stamps()
    with translate_errors(StorageError, self._place):
      for name in self._sent.keys() - stamps.keys():
        (self._place / name).unlink()
      for name in sorted(stamps, key=lambda name: (name == "summary.json", name)):
        if self._sent.get(name) != stamps[name]:
          _transfer(self._folder / name, self._place / name)
    self._sent = stamps


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
  """Returns the folder of this process's local copies, which is removed when Python ends."""
  return tempfile.TemporaryDirectory(prefix="jaxrlvr-")


def forget() -> None:
  """Removes the local copies of this process. Needed only before `os._exit`, which skips Python's own clean-up."""
  if _copies.cache_info().currsize:
    _copies().cleanup()
    _copies.cache_clear()
    _copy.cache_clear()


def _copy_folder(place: epath.Path, copy: Path, only: tuple[str, ...]) -> None:
  """Copies a folder without its checkpoints, or nothing but the files `only` that it has."""
  if not only:
    pull(place, copy, ("checkpoints",))
  for file_name in only:
    file = place / file_name
    if file.exists():
      _transfer(file, copy / file_name)


@functools.cache
def _copy(name: str, only: tuple[str, ...]) -> Path:
  """Copies what a name on an object store stands for, once a process, and returns the local path; see `local`."""
  place = epath.Path(name)
  copy = Path(tempfile.mkdtemp(dir=_copies().name)) / PurePath(name).name
  with translate_errors(InputError, name):
    if place.is_dir():
      copy.mkdir()
      _copy_folder(place, copy, only)
    elif place.exists():
      _transfer(place, copy)
    else:
      raise InputError(f"{name}: is not there; correct the path")
  return copy


def local(name: str, only: tuple[str, ...] = ()) -> str:
  """Returns a local path of a file or folder: a local copy where the name is on an object store, made once a process.

  A folder is copied without checkpoints/; `only`: nothing but the files of these names in it. `~` is expanded. Raises
  InputError where the store has no such file or can't be reached.
  """
  return str(_copy(name, only)) if is_remote(name) else os.path.expanduser(name)
