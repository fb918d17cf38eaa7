"""Prepared problem sets: writes every field of `Problem` to a jsonl file or a tfds data set, and reads it back."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data.files import BadCell, parse_json, tfds

FIELDS = tuple(field.name for field in dataclasses.fields(Problem) if field.name != "row")
_NESTED = ("messages", "extra")  # fields stored as JSON text in a tfds data set


def from_row(row: Mapping) -> Problem:
  """Returns the problem of a row, a mapping with all FIELDS, that `save` wrote.

  It equals the saved problem, but for lists in the place of tuples in `extra`. Raises BadCell for a cell that `save`
  could not have written.
  """
  texts: dict[str, Any] = {field: checked_text(field, row[field]) for field in FIELDS if field not in _NESTED}
  extra = checked_struct("extra", row["extra"])
  also = extra.get("also", {})
  if not isinstance(also, Mapping) or not all(isinstance(answers, list) for answers in also.values()):
    raise BadCell("extra.also", also, "an object from an answer to the list of those that are as good")
  turns = _parsed("messages", row["messages"], "JSON text")
  return Problem(**texts, messages=checked_messages("messages", turns), extra=extra)


def _parsed(column: str, cell: object, expected: str) -> Any:
  """Returns the cell, or the value of its JSON if it is text. Raises BadCell, with `expected`, for other text."""
  try:
    return parse_json(cell) if isinstance(cell, str) else cell
  except ValueError:
    raise BadCell(column, cell, expected) from None


def checked_struct(column: str, cell: object) -> dict:
  """Returns a cell as a dict. Raises BadCell, naming `column`, if it is no struct, map or text of a JSON object."""
  expected = "a struct, a map or the text of a JSON object"
  value = _parsed(column, cell, expected)
  try:
    return dict(value)
  except (TypeError, ValueError):
    raise BadCell(column, value, expected) from None


def checked_text(column: str, cell: object) -> str:
  """Returns the cell, unchanged. Raises BadCell, naming `column`, if it is no text, blank, or not valid Unicode."""
  if not isinstance(cell, str) or not cell.strip():
    raise BadCell(column, cell, "a text that is not empty")
  try:
    cell.encode()
  except UnicodeEncodeError:
    raise BadCell(column, cell, "a text without halves of surrogate pairs") from None
  return cell


def checked_messages(column: str, cell: object) -> tuple[Mapping[str, str], ...]:
  """Returns the turns of a cell that is a list of messages, each reduced to {"role": text, "content": text}.

  Raises BadCell, naming `column`, for an empty list and for blank text; only a system message may be empty.
  """
  if not isinstance(cell, list) or not cell:
    raise BadCell(column, cell, "a non-empty list of messages")
  turns = []
  for message in cell:
    try:
      role = checked_text(column, message["role"])
      content = message["content"]
      if role != "system" or content != "":
        content = checked_text(column, content)
      turns.append({"role": role, "content": content})
    except (TypeError, KeyError, BadCell):
      raise BadCell(column, message, "a message with a role and a content, both text") from None
  return tuple(turns)


def save(path: str | pathlib.Path, problems: Sequence[Problem]) -> None:
  """Writes a problem set as a whole or not at all: to a jsonl file if the path ends in .jsonl, else to a tfds folder.

  Such files and folders are sources of `problems.load` and need no columns. Missing folders above the path are made,
  and an existing jsonl file is replaced. Raises InputError for an existing folder, for no problems, for an `extra` that
  JSON can't hold, and, for a tfds folder, if tensorflow-datasets is not installed.
  """
  path = pathlib.Path(path)
  if not problems:
    raise InputError(f"{path}: 0 problems to write, wanted at least 1")
  if path.is_dir():
    raise InputError(f"{path}: is there already; remove it or write to another folder")
  temporary = path.with_name(f".{path.name}.part")
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove(temporary)  # left by a process that was killed while writing
  write = _write_jsonl if path.suffix == ".jsonl" else _write_tfds
  try:
    os.replace(write(temporary, problems), path)
  finally:
    _remove(temporary)


def _remove(place: pathlib.Path) -> None:
  """Removes a file or folder, if there is one."""
  shutil.rmtree(place, ignore_errors=True)
  place.unlink(missing_ok=True)


def _json(problem: Problem, value: object) -> str:
  """Returns the value as JSON text. Raises InputError, naming the problem, where JSON can't hold it."""
  try:
    return json.dumps(value, ensure_ascii=False)
  except TypeError as error:
    raise InputError(f"problem {problem.id}: extra can't be written as JSON ({error}); make it plain values") from None


def _write_jsonl(path: pathlib.Path, problems: Sequence[Problem]) -> pathlib.Path:
  """Writes the file and returns its path."""
  with open(path, "w", encoding="utf-8", newline="\n") as file:
    for problem in problems:
      file.write(_json(problem, {field: getattr(problem, field) for field in FIELDS}) + "\n")
    file.flush()
    os.fsync(file.fileno())
  return path


def _write_tfds(path: pathlib.Path, problems: Sequence[Problem]) -> pathlib.Path:
  """Writes a tfds data set below `path`; returns the folder inside that holds it, named by set and version."""
  package = tfds()

  class Problems(package.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, name-defined]
    VERSION = package.core.Version("1.0.0")

    def _info(self):
      features = package.features.FeaturesDict({field: package.features.Text() for field in FIELDS})
      return package.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for number, problem in enumerate(problems):
        cells = {field: getattr(problem, field) for field in FIELDS}
        for field in _NESTED:
          cells[field] = _json(problem, cells[field])
        yield number, cells

  with contextlib.redirect_stdout(io.StringIO()):  # it prints
    builder = Problems(data_dir=path, file_format="array_record")
    builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)
