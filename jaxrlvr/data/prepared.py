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

FIELDS = tuple(field.name for field in dataclasses.fields(Problem))
_NESTED = ("messages", "extra")  # fields stored as JSON text in a tfds data set


def from_row(row: Mapping) -> Problem:
  """Returns the problem of a row that `save` wrote, with lists for tuples in `extra`. Raises BadCell."""
  texts = {field: text(field, row[field]) for field in FIELDS if field not in _NESTED}
  extra = struct("extra", row["extra"])
  also = extra.get("also", {})
  if not isinstance(also, Mapping) or not all(isinstance(answers, list) for answers in also.values()):
    raise BadCell("extra.also", also, "an object from an answer to the list of those that are as good")
  turns = _parsed("messages", row["messages"], "JSON text")
  return Problem(**texts, messages=messages("messages", turns), extra=extra)


def _parsed(column: str, cell: object, wanted: str) -> Any:
  """Returns the cell, parsed where it is JSON text. Raises BadCell, with what is `wanted`, for other text."""
  try:
    return parse_json(cell) if isinstance(cell, str) else cell
  except ValueError:
    raise BadCell(column, cell, wanted) from None


def struct(column: str, cell: object) -> dict:
  """Returns a cell that is a struct, a map or the text of a JSON object as a dict, else raises BadCell."""
  wanted = "a struct, a map or the text of a JSON object"
  cell = _parsed(column, cell, wanted)
  try:
    return dict(cell)
  except (TypeError, ValueError):
    raise BadCell(column, cell, wanted) from None


def text(column: str, cell: object) -> str:
  """Returns the cell if it is text that is not blank and can be encoded as UTF-8, else raises BadCell."""
  if not isinstance(cell, str) or not cell.strip():
    raise BadCell(column, cell, "a text that is not empty")
  try:
    cell.encode()
  except UnicodeEncodeError:
    raise BadCell(column, cell, "a text without halves of surrogate pairs") from None
  return cell


def messages(column: str, cell: object) -> tuple[Mapping[str, str], ...]:
  """Returns a cell's chat turns, dicts with role and content, else raises BadCell.

  Only the content of a system message may be empty.
  """
  if not isinstance(cell, list) or not cell:
    raise BadCell(column, cell, "a non-empty list of messages")
  turns = []
  for message in cell:
    try:
      role = text(column, message["role"])
      empty = role == "system" and message["content"] == ""
      turns.append({"role": role, "content": "" if empty else text(column, message["content"])})
    except (TypeError, KeyError, BadCell):
      raise BadCell(column, message, "a message with a role and a content, both text") from None
  return tuple(turns)


def save(path: str | pathlib.Path, problems: Sequence[Problem]) -> None:
  """Writes a problem set atomically: to a jsonl file if the path ends in .jsonl, else to a tfds folder.

  Replaces an existing jsonl file. Raises InputError for an existing folder and for an empty set.
  """
  path = pathlib.Path(path)
  if not problems:
    raise InputError(f"{path}: 0 problems to write, wanted at least 1")
  write = _write_jsonl if path.suffix == ".jsonl" else _write_tfds
  if path.is_dir():
    raise InputError(f"{path}: is there already; remove it or write to another folder")
  temporary = path.with_name(f".{path.name}.part")
  path.parent.mkdir(parents=True, exist_ok=True)
  _remove(temporary)  # left by a process that was killed while writing
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
        yield number, cells | {field: _json(problem, cells[field]) for field in _NESTED}

  with contextlib.redirect_stdout(io.StringIO()):  # it prints
    builder = Problems(data_dir=path, file_format="array_record")
    builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)
