"""Subsets by the solve counts and pass rates that a set brings in columns of its own."""

import json
from pathlib import Path

import pytest

from helpers.command_line import run
from jaxrlvr.base import logbook

COUNTS = "info.difficulty.Qwen2.5-Math-1.5B"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write([0, 1, 1, 2, 3, 3, 4, 4])


def write(counts, samples=4):
  rows = []
  for number, count in enumerate(counts):
    info = {"difficulty": {"Qwen2.5-Math-1.5B": count}, "failed": samples - count if count is not None else None}
    rate = None if count is None else str(count / samples)
    rows.append({"question": f"{number}?", "answer": str(number), "info": info, "rate": rate, "n": samples})
  Path("set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def subset(workdir, source="set.jsonl", **keys):
  changes = [f"--config.subset.{key}={value}" for key, value in keys.items()]
  return run("subset", "--config=base", f"--workdir={workdir}", f"--config.problems.source={source}", *changes)


def test_counts_rates_and_failures_choose_the_same_problems():
  chosen = []
  for workdir, keys in (
    ("a", dict(solved=COUNTS, samples="n")),
    ("b", dict(solved="info.failed", samples="4", measure="failed")),
    ("c", dict(solved="rate", samples="4", measure="rate")),
  ):
    assert subset(workdir, **keys) == 0
    assert json.loads(Path(workdir, "summary.json").read_text())["per_bin"] == [0, 2, 1, 2, 0]
    chosen.append(logbook.read_jsonl(Path(workdir, "problems.jsonl")))
  assert chosen[0] == chosen[1] == chosen[2] and [row["extra"]["solved"] for row in chosen[0]] == [1, 2, 3, 1, 3]
  assert subset("d", "a/problems.jsonl", solved="extra.samples", samples="8") == 0  # a prepared set, by any column
  assert {row["extra"]["solved"] for row in logbook.read_jsonl(Path("d/problems.jsonl"))} == {4}
  assert subset("e", solved="rate", samples="2", measure="rate") == 0  # 1 of 4 and 3 of 4 are neither never nor always
  assert len(logbook.read_jsonl(Path("e/problems.jsonl"))) == 5


@pytest.mark.parametrize(
  ("counts", "keys", "words"),
  [
    ([1, None], dict(solved=COUNTS, samples="4"), f"set.jsonl:2, column {COUNTS}: found None, wanted a whole number"),
    ([1, -1], dict(solved=COUNTS, samples="4"), "set.jsonl:2, column info.difficulty.Qwen2.5-Math-1.5B: found -1"),
    ([1, 5], dict(solved=COUNTS, samples="n"), "set.jsonl:2, column info.difficulty.Qwen2.5-Math-1.5B: found 5"),
    ([1, 5], dict(solved="rate", samples="4", measure="rate"), "column rate: found '1.25', wanted a share from 0 to 1"),
    ([1, 0.5], dict(solved=COUNTS, samples="4"), "found 0.5, wanted a whole number from 0 to 4"),
    ([1], dict(solved="count", samples="4"), "set.jsonl:1, column count is missing, found question, answer"),
    ([1], dict(solved=COUNTS, samples="answer"), "column answer: found '0', wanted a whole number from 2"),
    ([1], dict(solved=COUNTS), "config.subset.solved and config.subset.samples go together"),
    ([1], dict(measure="rate"), "config.subset.measure is set, but it is what config.subset.solved holds"),
    ([1], dict(solved=COUNTS, samples="1"), "config.subset.samples = '1': wanted a number from 2"),
    ([1], {}, "or name the column that says it (config.subset.solved, .samples)"),
  ],
)
def test_what_is_no_count_names_the_row_and_the_cure(capsys, counts, keys, words):
  write(counts)
  assert subset("run", **keys) == 2
  assert words in capsys.readouterr().err
