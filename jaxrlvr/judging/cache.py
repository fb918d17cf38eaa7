"""Keeps the labels of one judge on disk, so that no question is asked twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jaxrlvr.base.errors import StorageError
from jaxrlvr.judging.rubric import sha256_of


class LabelFolder:
  """The labels of one judge on disk, as `LabelFolder(folder, judge)`.

  It is used like a dict: `labels[key] = label` keeps one, `labels.get(key)` returns it. The key of a question is the
  digest that `rubric.key` returns. Each label is kept in a JSON file of its own, which is written at once and as a
  whole. Several judges and several runs, also at the same time, may share a folder.
  """

  def __init__(self, folder: Path, judge: str):
    """Reads and writes nothing yet.

    folder: where the files are; it is made with the first label. judge: a text that names everything besides the
    question that a label depends on, such as the model and its options. Labels of another judge are not seen.
    """
    self._folder, self._judge = folder, judge

  def _file(self, key: str) -> Path:
    return self._folder / f"{sha256_of(self._judge, key)}.json"

  def get(self, key: str) -> object:
    """Returns the label of a question by its key; None if none is kept, or if its file can't be read.

    The files are not checked, so that it may be any JSON value: test it with `rubric.is_label` before use.
    """
    try:
      return json.loads(self._file(key).read_text())["label"]
    except (OSError, ValueError, TypeError, KeyError):
      return None

  def __setitem__(self, key: str, label: float | bool) -> None:
    """Keeps the label of a question by its key, and replaces an earlier one.

    label: 1.0, 0.5 or 0.0 for faithfulness; True (the same strategy) or False. Raises StorageError if it can't be
    written.
    """
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      part = self._file(key).with_suffix(f".{os.getpid()}.part")  # several runs may share a folder
      part.write_text(json.dumps({"label": label, "judge": self._judge, "key": key}) + "\n")
      part.replace(self._file(key))
    except OSError as error:
      raise StorageError(
        f"{self._folder}: can't keep a label ({error.strerror}); name another folder (config.judge.cache)"
      ) from error
