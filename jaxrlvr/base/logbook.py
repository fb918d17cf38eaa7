"""What a run writes for people: metrics, rollouts, progress. Every line survives a kill, and none is written twice."""

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
  """Writes a whole file or nothing; StorageError, with the path, where it can't be written."""
  path.parent.mkdir(exist_ok=True)  # no parents: a directory that was removed under a run is not made again
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
  """The value as JSON can hold it: a number that is not finite becomes None, at any depth."""
  if isinstance(value, Mapping):
    return {key: finite(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: object) -> None:
  write_atomic(path, json.dumps(finite(value), indent=1, sort_keys=True, default=list) + "\n")


def markdown(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a table in Markdown, each line ended; no cell can end its cell or line, or move a cursor."""
  columns = list(columns)
  lines = (columns, ["---"] * len(columns), *rows)
  return "".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |\n" for line in lines)


def _markdown_cell(cell) -> str:
  return escape.visible(str(cell), kept="").replace("|", "\\|")


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # with the wide forms, which some spreadsheets read alike


def csv_text(columns: Iterable, rows: Iterable[Iterable]) -> str:
  """Returns a table as CSV, its first line the columns. None is an empty field.

  A spreadsheet takes no cell for a formula: text that begins like one, but for a plain number, gets a leading `'`, and
  so does text with control characters, which become visible signs.
  """
  out = io.StringIO()
  lines = (columns, *rows)
  csv.writer(out, lineterminator="\n").writerows([_csv_cell(cell) for cell in line] for line in lines)
  return out.getvalue()


def _csv_cell(cell):
  if cell is None or isinstance(cell, (int, float)):
    return cell
  text = str(cell)
  shown = escape.visible(text, kept="")
  like_a_formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text)
  return f"'{shown}" if like_a_formula or shown != text else text


def digest(value: object) -> str:
  """Stands for a value's content: what JSON can hold, records by `content`, and the repr of anything else."""
  return hashlib.sha256(json.dumps(content(value), sort_keys=True, default=repr).encode()).hexdigest()


def content(value: Any) -> Any:
  """Returns a value with its records, dataclasses and named tuples at any depth, as {field: value}.

  Fields that have their default are left out: a field that is added to a type, with a default, changes no digest.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    kept = {}
    for field in dataclasses.fields(value):
      part = getattr(value, field.name)
      if not _is_default(field, part):
        kept[field.name] = content(part)
    return kept
  if isinstance(value, tuple) and hasattr(value, "_fields"):
    record: Any = value
    defaults, named = record._field_defaults, record._asdict()
    return {name: content(v) for name, v in named.items() if name not in defaults or not _same(defaults[name], v)}
  if isinstance(value, Mapping):
    return {str(key): content(v) for key, v in value.items()}
  if isinstance(value, list | tuple):
    return [content(v) for v in value]
  return value


def _is_default(field: dataclasses.Field, value: object) -> bool:
  if field.default_factory is not dataclasses.MISSING:
    return _same(field.default_factory(), value)
  return field.default is not dataclasses.MISSING and _same(field.default, value)


def _same(default, value) -> bool:
  return type(default) is type(value) and content(default) == content(value)


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
  """A whole jsonl file; written again after a resume it is the same file, so no row is lost or doubled."""
  write_atomic(path, "".join(json.dumps(finite(row)) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
  """Rows of a jsonl file, [] if it is absent; a half last line (a kill while writing) is left out.

  InputError where another line is no row."""
  if not path.is_file():
    return []
  lines = enumerate(path.read_bytes().split(b"\n")[:-1], 1)
  return [_object(f"{path}, line {number}", line) for number, line in lines if line]


def read_json(path: Path) -> dict:
  """The object that a JSON file holds, {} if the file is absent, InputError where it holds none."""
  return _object(str(path), path.read_bytes()) if path.is_file() else {}


def _object(place: str, text: bytes) -> dict:
  try:
    if isinstance(found := json.loads(text), dict):
      return found
    told = f"a {type(found).__name__}"
  except (ValueError, RecursionError) as error:
    told = str(error)
  raise InputError(f"{place}: is no JSON object ({told}); restore it, or take it out")


class Logbook:
  """metrics.jsonl (one line a step, flushed) and, if asked for, TensorBoard events through clu."""

  def __init__(self, workdir: Path, resume_step: int, tensorboard: bool = False):
    """Lines behind `resume_step` are dropped: their steps are about to be run again."""
    self._events = _events(workdir) if tensorboard else None
    self._path = workdir / "metrics.jsonl"
    kept = [row for row in read_jsonl(self._path) if row["step"] <= resume_step]
    write_jsonl(self._path, kept)
    self._file = self._path.open("a", encoding="utf-8")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    values = {name: float(value) for name, value in metrics.items()}
    line = json.dumps({"step": step} | finite(values)) + "\n"
    with disk.writing(self._path, len(line)):
      self._file.write(line)
      self._file.flush()
    if self._events is not None:
      self._events.write_scalars(step, values)

  def close(self) -> None:
    with contextlib.suppress(OSError):  # of a line that a full disk left unwritten, which has been told
      self._file.close()
    if self._events is not None:
      self._events.close()


def _events(workdir: Path):
  try:
    from clu import metric_writers
  except ImportError as error:
    raise InputError(
      f"config.tensorboard = True needs clu and TensorFlow ({error}); install the extra `tensorboard` or choose False"
    ) from error
  return metric_writers.SummaryWriter(str(workdir / "tensorboard"))


class Progress:
  """A line with step, time left and the latest figures: redrawn on a terminal, printed now and then elsewhere."""

  def __init__(self, name: str, total: int, start: int = 0, seconds: float = 10.0, stream=None):
    self._name, self._total, self._start, self._seconds = name, total, start, seconds
    self._out = escape.below(stream or sys.stderr)
    self._terminal = self._out.isatty()
    self._begun = self._first = time.monotonic()
    self._shown = -math.inf
    self._figures: Mapping[str, float | str] = {}

  def __call__(self, step: int, figures: Mapping[str, float | str] | None = None) -> None:
    """Says that `step` steps are done."""
    now = time.monotonic()
    self._figures = figures or self._figures
    if step <= self._start + 1:
      self._first = now  # the first step compiles: the estimate leaves it out
    last = step >= self._total
    if now - self._shown < (0.2 if self._terminal else self._seconds) and not last:
      return
    self._shown = now
    done = step - self._start - 1
    rate = (now - self._first) / done if done > 0 else 0.0
    left = (
      f"ETA {_clock(rate * (self._total - step))}" if done > 0 and not last else f"took {_clock(now - self._begun)}"
    )
    told = "  ".join(f"{name} {v if isinstance(v, str) else f'{v:.3g}'}" for name, v in self._figures.items())
    line = f"{self._name:<18} {step:>5}/{self._total}  {left if done > 0 or last else 'compiling'}  {told}"
    line = escape.visible(line, kept="")
    if self._terminal:
      escape.draw_progress(self._out, line, last)
    else:
      self._out.write(line + "\n")
    self._out.flush()


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
