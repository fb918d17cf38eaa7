"""Labels of one judge on disk, so that no question is asked twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jaxrlvr.base.errors import StorageError
from jaxrlvr.judging.rubric import sha256_of


class Folder:
  """Labels of one judge by the keys of questions, a small file each; what can't be read is not known.

  `judge` names all that the labels depend on but the question: several judges and runs may share a folder.
  """

  def __init__(self, folder: Path, judge: str):
    self._folder, self._judge = folder, judge

  def _file(self, key: str) -> Path:
    return self._folder / f"{sha256_of(self._judge, key)}.json"

  def get(self, key: str) -> object:
    """Returns what is kept under the key, whatever it is; None where nothing is."""
    try:
      return json.loads(self._file(key).read_text())["label"]
    except (OSError, ValueError, TypeError, KeyError):
      return None

  def __setitem__(self, key: str, label: float | bool) -> None:
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      part = self._file(key).with_suffix(f".{os.getpid()}.part")  # several runs may share a folder
      part.write_text(json.dumps({"label": label, "judge": self._judge, "key": key}) + "\n")
      part.replace(self._file(key))
    except OSError as error:
      raise StorageError(
        f"{self._folder}: can't keep a label ({error.strerror}); name another folder (config.judge.cache)"
      ) from error
