"""Folders on an object store (gs://): read from a local copy, and written as whole objects from a local folder."""

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
  return "://" in os.fspath(name)


def path(name: str | os.PathLike) -> Path | epath.Path:
  """The place as a path that reads and writes there; a local one is absolute, its `~` a home directory."""
  return epath.Path(name) if is_remote(name) else Path(os.path.expanduser(name)).absolute()


@contextlib.contextmanager
def translate_errors(kind: type[Exception], place: object) -> Iterator[None]:
  """Whatever a store's package raises, as our own error."""
  try:
    yield
  except (InputError, StorageError):
    raise
  except Exception as error:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    raise kind(f"{place}: can't be reached ({reason}); see name, access and the extra `gcs`") from error


def _files(folder, left: tuple[str, ...]):
  for file in sorted(folder.iterdir()):
    if file.name in left or file.suffix == ".part":
      continue
    yield from _files(file, left) if file.is_dir() else [file]


def _transfer(source, target) -> None:
  """A file of any size, a block at a time; on a store it is there when it is whole."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open("rb") as read, target.open("wb") as write:
    shutil.copyfileobj(read, write, 1 << 24)


def pull(place: Path | epath.Path, folder: Path, left: tuple[str, ...] = ()) -> None:
  """Copies the place's files to the local folder, but for those of these names and below folders of these names."""
  with translate_errors(InputError, place):
    for file in _files(place, left) if place.exists() else ():  # a store has no empty folder
      _transfer(file, folder / PurePath(file).relative_to(PurePath(place)))


class Mirror:
  """Brings a place to what a local folder holds; what has not changed since is left alone."""

  def __init__(self, folder: Path, place):
    self._folder, self._place = folder, place
    self._known = self._now()

  def _now(self) -> dict[str, tuple[int, int]]:
    files = {file.relative_to(self._folder).as_posix(): file.stat() for file in _files(self._folder, ())}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in files.items()}

  def push(self) -> None:
    """An object is there whole or not at all; a summary, which says that all is done, goes last."""
    now = self._now()
    with translate_errors(StorageError, self._place):
      for name in self._known.keys() - now.keys():
        (self._place / name).unlink()
      for name in sorted(now, key=lambda name: (name == "summary.json", name)):
        if self._known.get(name) != now[name]:
          _transfer(self._folder / name, self._place / name)
    self._known = now


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix="jaxrlvr-")  # goes with the process


def forget() -> None:
  """Removes the local copies of this process; they go with it anyway where Python ends by itself."""
  if _copies.cache_info().currsize:
    _copies().cleanup()
    _copies.cache_clear()
    _copy.cache_clear()


@functools.cache
def _copy(name: str, only: tuple[str, ...]) -> Path:
  place, here = epath.Path(name), Path(tempfile.mkdtemp(dir=_copies().name)) / PurePath(name).name
  with translate_errors(InputError, name):
    if place.is_dir():
      here.mkdir()
      if not only:
        pull(place, here, ("checkpoints",))
      for file in (place / wanted for wanted in only):
        if file.exists():
          _transfer(file, here / file.name)
    elif place.exists():
      _transfer(place, here)
    else:
      raise InputError(f"{name}: is not there; correct the path")
  return here


def local(name: str, only: tuple[str, ...] = ()) -> str:
  """The name, or that of a local copy of what it names on a store, one in a process: a file, or a folder's files
  without checkpoints, or `only` those of these names."""
  return str(_copy(name, only)) if is_remote(name) else os.path.expanduser(name)
