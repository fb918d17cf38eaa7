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
from typing import Any, TextIO

from jaxrlvr.base import disk, escape
from jaxrlvr.base.errors import InputError


def write_atomic(path: Path, text: str) -> None:
  """Writes a local text file in UTF-8 as a whole or not at all, and replaces an older one.

  A missing folder is made if the folder above it exists. Halves of surrogate pairs are written as escapes. Raises
  StorageError, with the path, where the file can't be written.
  """
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
  """Returns the value with infinity and NaN, which JSON lacks, as None at any depth.

  Mappings become dicts with the same keys, and tuples become lists. Everything else stays as it is, arrays too.
  """
  if isinstance(value, Mapping):
    return {key: finite(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [finite(entry) for entry in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def write_json(path: Path, value: object) -> None:
  """Writes a value as an indented JSON file with sorted keys, as a whole or not at all.

  Infinity and NaN become null; sets, arrays and other iterables become lists. Raises TypeError for a value that JSON
  can't hold, and StorageError, with the path, where the file can't be written.
  """
  write_atomic(path, json.dumps(finite(value), indent=1, sort_keys=True, default=list) + "\n")


def markdown(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a Markdown table as text, every line with a line end. columns: the heads. rows: the cells of each row.

  A cell is written as `str(cell)`, None as "None". Pipes are escaped and unprintable characters made visible, so that
  no cell breaks the table. Rows shorter or longer than `columns` are written as they are.
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
# First characters of a formula. The last four are full-width forms, which some spreadsheets read alike.
_FORMULA_SIGNS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
_TERMINAL_SECONDS = 0.2  # least time between two lines of progress on a terminal


def csv_text(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a table as CSV text. columns: the heads, in the first line. rows: the cells of each row.

  Lines end in a single line feed. None becomes an empty field, and other values are written as `str` writes them. Text
  that a spreadsheet could take for a formula, as it begins like one and is no plain number, gets a leading `'`. So does
  text with unprintable characters, which are made visible.
  """
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  for cells in (columns, *rows):
    writer.writerow(map(_csv_cell, cells))
  return out.getvalue()


def _csv_cell(cell):
  """Returns a cell as `csv_text` writes it."""
  if cell is None or isinstance(cell, (int, float)):
    return cell
  text = str(cell)
  visible = escape.visible(text, kept="")
  looks_like_formula = text.lstrip().startswith(_FORMULA_SIGNS) and not _NUMBER.fullmatch(text)
  if looks_like_formula or visible != text:
    return f"'{visible}"
  return text


def digest(value: object) -> str:
  """Returns the SHA-256 digest of a value, 64 hexadecimal digits.

  It is that of the value's `content` as JSON with sorted keys, so that fields with their default change nothing. A
  value that JSON can't hold, such as a function, is replaced by its repr.
  """
  text = json.dumps(content(value), sort_keys=True, default=repr)
  return hashlib.sha256(text.encode()).hexdigest()


def content(value: Any) -> Any:
  """Returns the value with dataclasses and named tuples, at any depth, as dicts {field: value}.

  Fields that equal their default are left out, so that a digest does not change when a type gets a further field with
  a default; so are fields of dataclasses that equality leaves out. Keys of mappings become strings, and other tuples
  become lists. All other values stay as they are.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {}
    for field in dataclasses.fields(value):
      entry = getattr(value, field.name)
      if field.compare and not _is_default(field, entry):
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


def _same(default: object, value: object) -> bool:
  return type(default) is type(value) and content(default) == content(value)


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
  """Writes all rows, dicts, as a JSON Lines file and replaces an older one, so that a resumed run doubles no row.

  The file is written as a whole or not at all. Infinity and NaN become null; no rows give an empty file. Raises
  TypeError for a value that JSON can't hold, and StorageError where the file can't be written.
  """
  write_atomic(path, "".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
  """Returns the rows of a JSON Lines file; [] if there is no file.

  A last line without a line end, left by a kill while it was written, is left out, and so are empty lines. Raises
  InputError, with the line's number, where any other line is no JSON object.
  """
  if not path.is_file():
    return []
  ended_lines = path.read_bytes().split(b"\n")[:-1]
  rows = []
  for number, line in enumerate(ended_lines, 1):
    if line:
      rows.append(_object(f"{path}, line {number}", line))
  return rows


def read_json(path: Path) -> dict:
  """Returns the object that a JSON file holds, as a dict; {} if there is no file.

  Raises InputError, with the path, for a file that is damaged or holds anything else.
  """
  return _object(str(path), path.read_bytes()) if path.is_file() else {}


def _object(place: str, text: bytes) -> dict:
  """Returns the JSON object in a text. Raises InputError, which names `place`, for anything else."""
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
  """Writes the metrics of a run to WORKDIR/metrics.jsonl, one JSON line a step, each flushed at once.

  resume_step: the last step that counts as done; lines of later steps, which are about to run again, are dropped from
  the file when it is opened. -1: a new run, which begins with an empty file. tensorboard: whether events for
  TensorBoard are written too, to WORKDIR/tensorboard; raises InputError where its packages are missing. A run has one
  Logbook, on the process that writes.
  """

  def __init__(self, workdir: Path, resume_step: int, tensorboard: bool = False):
    self._events = _events(workdir) if tensorboard else None
    self._path = workdir / "metrics.jsonl"
    kept = [row for row in read_jsonl(self._path) if row["step"] <= resume_step]
    write_jsonl(self._path, kept)
    self._file = self._path.open("a", encoding="utf-8")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds a line {"step": step, NAME: number, ...}, with null for NaN and infinity. metrics: numbers by name.

    A step is to be written once: a second call adds a second line. Raises StorageError where it can't be written.
    """
    values = {name: float(value) for name, value in metrics.items()}
    line = json.dumps({"step": step} | finite(values)) + "\n"
    with disk.writing(self._path, len(line)):
      self._file.write(line)
      self._file.flush()
    if self._events is not None:
      self._events.write_scalars(step, values)

  def close(self) -> None:
    """Closes the files. Raises nothing for a line that could not be written, as `write` has raised StorageError."""
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
  """Shows a line of progress, such as `rl   12/100  ETA 1:30  reward 0.42`; call it after each step.

  The line is redrawn in place on a terminal, at most five times a second, and printed as a new line elsewhere. `ETA` is
  the time left, M:SS or H:MM:SS, estimated from all steps but the first, which compiles; after the last step the line
  says how long all steps took. Time is measured from the creation of the object.
  name: first word of the line. total: number of the last step. start: how many steps were done before, by a run that is
  resumed. seconds: least time between two lines that are not on a terminal. stream: where to write; None: stderr.
  """

  def __init__(self, name: str, total: int, start: int = 0, seconds: float = 10.0, stream: TextIO | None = None):
    self._name, self._total, self._start = name, total, start
    self._out = escape.unwrapped(stream or sys.stderr)
    self._terminal = self._out.isatty()
    self._least_seconds = _TERMINAL_SECONDS if self._terminal else seconds
    self._created = self._first_step_ended = time.monotonic()
    self._shown = -math.inf  # when the last line was shown
    self._figures: Mapping[str, float | str] = {}

  def __call__(self, step: int, figures: Mapping[str, float | str] | None = None) -> None:
    """Shows that `step` steps are done. figures: numbers or texts by name; None: those of the last call with figures.

    Shows nothing if a line was shown too short a time ago, but always shows the last step.
    """
    now = time.monotonic()
    self._figures = figures or self._figures
    if step <= self._start + 1:
      self._first_step_ended = now
    last = step >= self._total
    if now - self._shown < self._least_seconds and not last:
      return
    self._shown = now
    figure_texts = "  ".join(map(_figure, self._figures.items()))
    line = f"{self._name:<18} {step:>5}/{self._total}  {self._timing(step, now)}  {figure_texts}"
    line = escape.visible(line, kept="")
    if self._terminal:
      escape.draw_progress(self._out, line, last)
    else:
      self._out.write(line + "\n")
    self._out.flush()

  def _timing(self, step: int, now: float) -> str:
    """Returns the part of the line on time: an estimate of the time left, or after the last step the time they took."""
    if step >= self._total:
      return f"took {_clock(now - self._created)}"
    timed_steps = step - self._start - 1
    if timed_steps <= 0:
      return "compiling"
    seconds_per_step = (now - self._first_step_ended) / timed_steps
    return f"ETA {_clock(seconds_per_step * (self._total - step))}"


def _figure(named_value: tuple[str, float | str]) -> str:
  name, value = named_value
  if isinstance(value, str):
    return f"{name} {value}"
  return f"{name} {value:.3g}"


def _clock(seconds: float) -> str:
  """Returns seconds as H:MM:SS, or M:SS below an hour."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
