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

_COPY_BLOCK = 16 << 20  # bytes that are copied at a time


def is_remote(name: str | os.PathLike) -> bool:
  """Returns whether a name is an address on an object store, such as gs://bucket/run, rather than a local path.

  Any name with `://` counts as one.
  """
  return "://" in os.fspath(name)


def path(name: str | os.PathLike) -> Path | epath.Path:
  """Returns a name as a path object: an epath.Path for an address such as gs://bucket/run.

  For any other name returns an absolute pathlib.Path with `~` expanded. Nothing needs to exist there.
  """
  if is_remote(name):
    return epath.Path(name)
  return Path(os.path.expanduser(name)).absolute()


@contextlib.contextmanager
def translate_errors(kind: type[Exception], place: object) -> Iterator[None]:
  """Turns any Exception of the `with` block, which reads or writes a place on an object store, into one of type `kind`.

  place: the address, or the flag with its address, with which the message begins; the first line of the error's own
  message follows as the reason. InputError and StorageError pass unchanged.
  """
  try:
    yield
  except (InputError, StorageError):
    raise
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise kind(f"{place}: can't be reached ({reason}); see name, access and the extra `gcs`") from error


def _files(folder, left_out: tuple[str, ...]):
  """Yields the paths of all files in a folder and below it, by name.

  Leaves out unfinished files (*.part), and files and folders at any depth whose names are in `left_out`.
  """
  for file in sorted(folder.iterdir()):
    if file.name in left_out or file.suffix == ".part":
      continue
    if file.is_dir():
      yield from _files(file, left_out)
    else:
      yield file


def _transfer(source, target) -> None:
  """Copies a file of any size in blocks. On an object store it appears only when it is complete."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open("rb") as source_file, target.open("wb") as target_file:
    shutil.copyfileobj(source_file, target_file, _COPY_BLOCK)


def pull(place: Path | epath.Path, folder: Path, left_out: tuple[str, ...] = ()) -> None:
  """Copies all files in and below a place, on an object store, to a local folder, which is made if need be.

  left_out: names of files and of folders, at any depth, that are not copied; unfinished files (*.part) are not either.
  Local files of the same names are replaced, others stay. A place that does not exist counts as empty. Raises
  InputError where the place can't be read.
  """
  with translate_errors(InputError, place):
    if not place.exists():
      return
    for file in _files(place, left_out):
      _transfer(file, folder / PurePath(file).relative_to(PurePath(place)))


class Mirror:
  """Keeps a place on an object store equal to a local folder: each `push` sends what has changed since the last one.

  folder: the local folder. place: the path of the place (see `path`). A file has changed if its size or its time of
  change has. Files that the folder holds when the Mirror is created count as sent: create it after `pull`.
  """

  def __init__(self, folder: Path, place: Path | epath.Path):
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
    """Sends new and changed files of the folder, and removes from the place files that the folder no longer has.

    summary.json, which says that a run is finished, is sent last. Raises StorageError where the place can't be reached;
    the next call then sends the same files again.
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
  """Removes the local copies that `local` made in this process.

  Needed only before `os._exit`, which skips Python's own clean-up. A later call of `local` copies anew.
  """
  if _copies.cache_info().currsize:
    _copies().cleanup()
    _copies.cache_clear()
    _copy.cache_clear()


def _copy_folder(place: epath.Path, copy: Path, only: tuple[str, ...]) -> None:
  """Copies a folder without its checkpoints; with `only`, nothing but the files of these names that it has."""
  if not only:
    pull(place, copy, ("checkpoints",))
  for file_name in only:
    file = place / file_name
    if file.exists():
      _transfer(file, copy / file_name)


@functools.cache
def _copy(name: str, only: tuple[str, ...]) -> Path:
  """Copies the file or folder at an address to this process's folder of copies, once; returns the path of the copy."""
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
  """Returns a path under which a file or folder can be read locally.

  A local name is returned with `~` expanded, whether or not it exists. A file or folder on an object store is copied to
  a temporary folder when it is first asked for; later calls of this process return the same copy.
  only: names of files directly in a remote folder; then only these are copied, as far as they exist. (): the whole
  folder but for checkpoints/. Raises InputError where the store has no such file or folder, or can't be reached.
  """
  if is_remote(name):
    return str(_copy(name, only))
  return os.path.expanduser(name)
