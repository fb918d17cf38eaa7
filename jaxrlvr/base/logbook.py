"""Files and lines that a run writes: JSON, tables, metrics, progress. A kill loses no line, a resume doubles none."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxrlvr.base import disk, escape
from jaxrlvr.base.errors import InputError


def write_atomic(path: Path, text: str) -> None:
  """Writes a text file as a whole or not at all. Raises StorageError, with the path, where it can't be written."""
  path.parent.mkdir(exist_ok=True)  # without parents: a run directory that was removed must not be created again
  part = path.with_name(path.name + ".part")
  content = text.encode("utf-8", "backslashreplace")
  with disk.writing(path, len(content)):
    try:
      with part.open("wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
      part.replace(path)
    except OSError:
      part.unlink(missing_ok=True)
      raise


def finite(value: object) -> Any:
  """Returns the value as JSON can hold it: at any depth infinity and NaN become None, and tuples become lists."""
  if isinstance(value, Mapping):
    return {key: finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: Path, value: object) -> None:
  """Writes a value as an indented JSON file with sorted keys, as a whole or not at all.

  Infinity and NaN become null. Raises StorageError, with the path, where the file can't be written.
  """
  write_atomic(path, json.dumps(finite(value), indent=1, sort_keys=True, default=list) + "\n")


def markdown(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a Markdown table with a head of `columns`, every line ended.

  Pipes are escaped and control characters made visible, so that no cell breaks the table.
  """
  columns = list(columns)
  lines = [_markdown_line(columns), _markdown_line(["---"] * len(columns))]
  lines += [_markdown_line(row) for row in rows]
  return "".join(lines)


def _markdown_line(cells: Iterable) -> str:
  return "| " + " | ".join(map(_markdown_cell, cells)) + " |\n"


def _markdown_cell(cell) -> str:
  return escape.visible(str(cell), kept="").replace("|", "\\|")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FORMULA = tuple(
  "=+-@\uff1d\uff0b\uff0d\uff20"
)  # the last four are full-width forms, which some spreadsheets read alike


def csv_text(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a table as CSV whose first line holds the columns. None becomes an empty field.

  Text that a spreadsheet could take for a formula, as it begins like one and is no plain number, gets a leading `'`. So
  does text with control characters, which are made visible.
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  for line in (columns, *rows):
    writer.writerow([_csv_cell(cell) for cell in line])
  return out.getvalue()


def _csv_cell(cell):
  """Returns a cell as `csv_text` writes it."""
  if cell is None or isinstance(cell, (int, float)):
    return cell
  text = str(cell)
  visible = escape.visible(text, kept="")
  like_a_formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
  return f"'{visible}" if like_a_formula or visible != text else text


def digest(value: object) -> str:
  """Returns a SHA-256 digest, in hex, of a value's `content` as JSON; what JSON can't hold counts by its repr."""
  text = json.dumps(content(value), sort_keys=True, default=repr)
  return hashlib.sha256(text.encode()).hexdigest()


def content(value: Any) -> Any:
  """Returns the value with dataclasses and named tuples, at any depth, as dicts {field: value}.

  Fields that have their default are left out, so that adding a field with a default to a type changes no digest. Keys
  of mappings become strings, and tuples become lists.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {}
    for field in dataclasses.fields(value):
      entry = getattr(value, field.name)
      if not _is_default(field, entry):
        fields[field.name] = content(entry)
    return fields
  if isinstance(value, tuple) and hasattr(value, "_fields"):
    record: Any = value
    fields = {}
    for name, entry in record._asdict().items():
      if name not in record._field_defaults or not _same(record._field_defaults[name], entry):
        fields[name] = content(entry)
    return fields
  if isinstance(value, Mapping):
    return {str(key): content(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [content(entry) for entry in value]
  return value


def _is_default(field: dataclasses.Field, value: object) -> bool:
  if field.default_factory is not dataclasses.MISSING:
    return _same(field.default_factory(), value)
  return field.default is not dataclasses.MISSING and _same(field.default, value)


def _same(default, value) -> bool:
  return type(default) is type(value) and content(default) == content(value)


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
  """Writes rows as a JSON Lines file and replaces the whole file, so that a resumed run doubles no row.

  Infinity and NaN become null; no rows give an empty file. Raises StorageError where it can't be written.
  """
  write_atomic(path, "".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
  """Returns the rows of a JSON Lines file; [] if there is no file.

  A last line without a line end, left by a kill while it was written, is left out. Raises InputError, with the line's
  number, where another line is no JSON object.
  """
  if not path.is_file():
    return []
  lines = enumerate(path.read_bytes().split(b"\n")[:-1], 1)
  return [_object(f"{path}, line {number}", line) for number, line in lines if line]


def read_json(path: Path) -> dict:
  """Returns the object that a JSON file holds; {} if there is no file. Raises InputError where it holds no object."""
  return _object(str(path), path.read_bytes()) if path.is_file() else {}


def _object(place: str, text: bytes) -> dict:
  """Returns the JSON object in a text. Raises InputError that names the place where it is none."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    problem = str(error)
  else:
    if isinstance(value, dict):
      return value
    problem = f"a {type(value).__name__}"
  raise InputError(f"{place}: is no JSON object ({problem}); restore it, or take it out")


class Logbook:
  """Writes metrics.jsonl, one line a step and each flushed, and if `tensorboard` is set TensorBoard events too."""

  def __init__(self, workdir: Path, resume_step: int, tensorboard: bool = False):
    """Opens the files, and drops lines of steps after `resume_step`, which are about to be run again."""
    self._events = _events(workdir) if tensorboard else None
    self._path = workdir / "metrics.jsonl"
    kept = [row for row in read_jsonl(self._path) if row["step"] <= resume_step]
    write_jsonl(self._path, kept)
    self._file = self._path.open("a", encoding="utf-8")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes the metrics of a step, numbers by name, as one line of JSON with the key step; NaN and infinity as null.

    Raises StorageError where they can't be written.
    """
    values = {name: float(value) for name, value in metrics.items()}
    line = json.dumps({"step": step} | finite(values)) + "\n"
    with disk.writing(self._path, len(line)):
      self._file.write(line)
      self._file.flush()
    if self._events is not None:
      self._events.write_scalars(step, values)

  def close(self) -> None:
    """Closes the files, without an error for a line that was not written: `write` has raised it."""
    with contextlib.suppress(OSError):
      self._file.close()
    if self._events is not None:
      self._events.close()


def _events(workdir: Path):
  """Returns a writer of TensorBoard events. Raises InputError where its packages are missing."""
  try:
    from clu import metric_writers
  except ImportError as error:
    raise InputError(
      f"config.tensorboard = True needs clu and TensorFlow ({error}); install the extra `tensorboard` or choose False"
    ) from error
  return metric_writers.SummaryWriter(str(workdir / "tensorboard"))


class Progress:
  """Shows a line with the step, the time left and the latest figures.

  The line is redrawn in place on a terminal, and printed as a new line every few seconds elsewhere.
  """

  def __init__(self, name: str, total: int, start: int = 0, seconds: float = 10.0, stream=None):
    """Begins to measure time. name: first word of the line. total: number of steps, of which `start` are done already.
    seconds: least time between two lines that are not on a terminal. stream: default stderr."""
    self._name, self._total, self._start, self._seconds = name, total, start, seconds
    self._out = escape.below(stream or sys.stderr)
    self._terminal = self._out.isatty()
    self._begun = self._first = time.monotonic()
    self._shown = -math.inf
    self._figures: Mapping[str, float | str] = {}

  def __call__(self, step: int, figures: Mapping[str, float | str] | None = None) -> None:
    """Shows that `step` steps are done, with these figures: numbers or texts by name.

    None: with the figures that were shown last. A line that would come too soon after the last one is left out, but for
    the last step.
    """
    now = time.monotonic()
    self._figures = figures or self._figures
    if step <= self._start + 1:
      self._first = now  # the first step compiles: the estimate leaves it out
    last = step >= self._total
    least_seconds = 0.2 if self._terminal else self._seconds
    if now - self._shown < least_seconds and not last:
      return
    self._shown = now
    figures = "  ".join(map(_figure, self._figures.items()))
    line = f"{self._name:<18} {step:>5}/{self._total}  {self._timing(step, now)}  {figures}"
    line = escape.visible(line, kept="")
    if self._terminal:
      escape.draw_progress(self._out, line, last)
    else:
      self._out.write(line + "\n")
    self._out.flush()

  def _timing(self, step: int, now: float) -> str:
    """Returns how long all steps took, behind the last one, else an estimate of the time left."""
    if step >= self._total:
      return f"took {_clock(now - self._begun)}"
    timed_steps = step - self._start - 1
    if timed_steps <= 0:
      return "compiling"
    seconds_per_step = (now - self._first) / timed_steps
    return f"ETA {_clock(seconds_per_step * (self._total - step))}"


def _figure(named_value: tuple[str, float | str]) -> str:
  name, value = named_value
  return f"{name} {value}" if isinstance(value, str) else f"{name} {value:.3g}"


def _clock(seconds: float) -> str:
  """Returns seconds as H:MM:SS, or M:SS below an hour."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
