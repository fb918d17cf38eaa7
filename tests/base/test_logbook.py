"""Files that survive a kill, and the progress line."""

import csv
import dataclasses
import errno
import io
import json
import os
import sys
from typing import NamedTuple

import pytest

from jaxrlvr.base import disk, escape, logbook
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.base.logbook import Logbook, Progress, digest, read_jsonl, write_json, write_jsonl
from jaxrlvr.base.types import Problem


def test_metrics_behind_the_checkpoint_are_dropped_and_written_again(tmp_path):
  log = Logbook(tmp_path, -1)
  for step in range(4):
    log.write(step, {"loss": step, "bad": float("nan")})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "lo')  # a kill while writing
  assert [r["step"] for r in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
  log = Logbook(tmp_path, 2)
  log.write(3, {"loss": 33.0})
  log.close()
  rows = read_jsonl(tmp_path / "metrics.jsonl")
  assert [(r["step"], r["loss"]) for r in rows] == [(0, 0), (1, 1), (2, 2), (3, 33)] and rows[0]["bad"] is None


def test_hostile_text_stays_one_line_a_row(tmp_path):
  rows = [{"text": "a\nb\u2028\u0000\x1b[31m\ud800"}, {"text": "c"}]
  write_jsonl(tmp_path / "r.jsonl", rows)
  assert read_jsonl(tmp_path / "r.jsonl") == rows and (tmp_path / "r.jsonl").read_bytes().count(b"\n") == 2


def test_json_has_no_nan(tmp_path):
  write_json(tmp_path / "s.json", {"a": float("inf"), "b": {"c": float("nan")}, "d": (1, 2)})
  text = (tmp_path / "s.json").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": {"c": None}, "d": [1, 2]}


def test_progress_tells_the_time_left(monkeypatch):
  now = [0.0]
  monkeypatch.setattr("jaxrlvr.base.logbook.time.monotonic", lambda: now[0])
  out = io.StringIO()
  progress = Progress("rl", 10, stream=out, seconds=0.0)
  for step in range(1, 11):
    now[0] += 30.0 if step == 1 else 2.0  # the first step compiles
    progress(step, {"reward": step / 10})
  lines = out.getvalue().split("\n")
  assert "compiling" in lines[0] and "ETA 0:16" in lines[1] and "reward 0.2" in lines[1]
  assert "10/10" in lines[9] and "took 0:48" in lines[9]


def test_what_is_told_on_a_terminal_stands_on_lines_of_its_own(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr("sys.stderr", escape.VisibleStream(terminal))
  progress = Progress("rl", 3)
  for step in (1, 2, 3):
    progress._shown = float("-inf")  # long ago
    progress(step)
    if step == 2:
      print("WARNING: one\nWARNING: two", file=sys.stderr)
  kept = [line.split("\r\x1b[K")[-1] for line in terminal.getvalue().split("\n")]
  assert kept[:2] == ["WARNING: one", "WARNING: two"] and "3/3" in kept[2] and kept[3:] == [""]


def test_tensorboard_says_what_it_needs(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "clu", None)
  with pytest.raises(InputError, match="extra `tensorboard`"):
    Logbook(tmp_path, -1, tensorboard=True)


def test_metrics_line_survives_and_has_no_nan(tmp_path):
  log = Logbook(tmp_path, -1)
  log.write(0, {"bad": float("nan")})
  assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "bad": None}]  # flushed before close
  log.close()
  write_jsonl(tmp_path / "r.jsonl", [{"reward": float("nan")}])
  assert read_jsonl(tmp_path / "r.jsonl") == [{"reward": None}]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
  def killed(descriptor):
    raise KeyboardInterrupt

  write_json(tmp_path / "s.json", 1)
  monkeypatch.setattr("jaxrlvr.base.logbook.os.fsync", killed)
  with pytest.raises(KeyboardInterrupt):
    write_json(tmp_path / "s.json", 2)
  assert json.loads((tmp_path / "s.json").read_text()) == 1


FORMULAS = (
  "=1+1",
  "+1+1",
  "-1+1",
  "@SUM(A1)",
  "-",
  "--5",
  "-0.5x",
  " =1",
  "\t=1",
  "\r=1",
  "\n=1",
  "＝1",
  "+1 2",
  "-1,000",
)
SIGNS = {"\x1b[2J": "⟨U+001B⟩[2J", "a\u202eb": "a⟨U+202E⟩b", "a\nb": "a⟨U+000A⟩b", "\x00": "⟨U+0000⟩"}


@pytest.mark.parametrize("text", [*FORMULAS, *SIGNS])
def test_a_spreadsheet_takes_no_cell_for_a_formula(text):
  """Neither a column's name nor a value is read as a formula: the text stands behind an apostrophe."""
  columns, row = csv.reader(io.StringIO(logbook.csv_text([text], [[text]])))
  assert columns == row == ["'" + SIGNS.get(text, escape.visible(text, kept=""))]


def test_numbers_and_plain_text_are_cells_as_they_are():
  cells = ["-0.5", "+3", "-.5e-3", "1e+9", "a=b", 'say "x", y', "5 - 3", "", "±1"]
  assert next(csv.reader(io.StringIO(logbook.csv_text(cells, [])))) == cells
  assert logbook.csv_text(["a", "b", "c", "d"], [[-0.5, -3, None, 0]]) == "a,b,c,d\n-0.5,-3,,0\n"


def test_markdown_cells_stay_cells():
  assert logbook.markdown(["a|b"], [["x\ny\x1b"]]) == "| a\\|b |\n| --- |\n| x⟨U+000A⟩y⟨U+001B⟩ |\n"


def test_a_field_with_a_default_that_is_added_changes_no_digest():
  def problem(*more, **values):
    fields = [("id", str), ("messages", tuple), ("extra", dict, dataclasses.field(default_factory=dict)), *more]
    return dataclasses.make_dataclass("Problem", fields)(**values)

  given = dict(id="a", messages=({"role": "user", "content": "x"},))
  new = ("hint", str, dataclasses.field(default="none"))
  assert digest([problem(**given)]) == digest([problem(new, **given)])
  assert digest([problem(new, **given, hint="seven")]) != digest([problem(new, **given)])
  assert digest([problem(**given, extra={"a": 1})]) != digest([problem(**given)])

  class Before(NamedTuple):
    id: str

  class After(NamedTuple):
    id: str
    weight: float = 1.0

  assert digest(Before("a")) == digest(After("a")) != digest(After("a", 2.0))
  two = [Problem("a", ({"role": "user", "content": "x"},), "1", truth, "math") for truth in "12"]
  assert digest(two[:1]) != digest(two[1:]) and digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_told_with_path_bytes_and_cure(tmp_path):
  log = Logbook(tmp_path, -1)
  log._file.close()
  log._file = open("/dev/full", "w")  # every write of it finds no space
  with pytest.raises(
    StorageError,
    match=r"metrics.jsonl: the disk is full \(No space left on device: \d+ bytes to write, .* free\); free space",
  ):
    log.write(0, {"loss": 1.0})
  log.close()
  with pytest.raises(StorageError, match="can't be written .Permission denied"), disk.writing(tmp_path):
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))
  outer = RuntimeError("a save failed")
  outer.__cause__ = ValueError("Error writing: [OS error 28: ENOSPC No space left on device]")
  assert disk.is_full(outer) and not disk.is_full(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))


def test_what_is_told_moves_no_cursor(capsys):
  with escape.visible_output():
    print("\x1b[2J\ta\r\u202eb\ud800\n\x07é")
  assert capsys.readouterr().out == "⟨U+001B⟩[2J\ta⟨U+000D⟩⟨U+202E⟩b⟨U+D800⟩\n⟨U+0007⟩é\n"
  narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  escape.VisibleStream(narrow).write("é\x1b")
  narrow.flush()
  assert narrow.buffer.getvalue() == b"\\xe9\\u27e8U+001B\\u27e9"
  out = io.StringIO()
  Progress("a\x1b[2J\nb", 1, stream=out)(1, {"phase": "\x1b"})
  assert out.getvalue().count("\n") == 1 and "\x1b" not in out.getvalue()
