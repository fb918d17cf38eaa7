"""Evaluation sets of a user's own beside known ones, as a user names them, from the command line to the report."""

import json
from pathlib import Path

import pytest

from helpers.command_line import run, run_smoke
from jaxrlvr.base import logbook, named

OWN = """
def any_answer(answer, label):
  return True


def problems(seed):
  for number in range(seed, 99):
    yield {"prompt": f"Start with {number % 10}, then *7, +{number}. Last digit?", "label": number}


def verify(answer, label):
  return False
"""
SETS = (
  "arithmetic",
  "quiz=quiz.jsonl[prompt=text, label=target, kind==odd, count=3]",
  "easy=quiz.jsonl[prompt=text,label=target,verifier=own.py:any_answer]",
  "task=own.py[count=2]",
)


def question(number):
  return f"Start with {number}, then *7, *3, +9, +7, -8. Last digit?"


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(named, "_folders", [])
  monkeypatch.chdir(tmp_path)
  Path("own.py").write_text(OWN)
  rows = [{"text": question(n), "target": "9", "kind": ("even", "odd")[n % 2]} for n in range(10)]
  Path("quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  Path("mine.csv").write_text(f'q,a\n"{question(11)}",9\n"{question(12)}",9\n')
  return tmp_path


def test_sets_of_ones_own_are_evaluated_beside_known_ones(folder, init):
  source = dict(heldout__source="mine.csv", heldout__columns="prompt=q,label=a", heldout__count=1)
  more = dict(heldout__sets=",".join(SETS), evaluate__pass_k="1")
  assert run_smoke("evaluate", "run", init=init, **source, **more) == 0
  summary = json.loads(Path("run/summary.json").read_text())
  counted = {name: summary[f"eval/{name}/problems"] for name in ("arithmetic", "quiz", "easy", "task", "heldout")}
  assert counted == {"arithmetic": 1, "quiz": 3, "easy": 10, "task": 2, "heldout": 1}
  rows = {name: logbook.read_jsonl(Path(f"run/evals/{name}_000000.jsonl")) for name in counted}
  asked = "".join(sorted({row["prompt"] for row in rows["quiz"]}))
  assert [f"Start with {number}," in asked for number in range(1, 6)] == [True, False, True, False, True]
  answered = [row for row in rows["easy"] if row["answer"] is not None]
  assert answered and all(row["true_reward"] == 1 for row in answered)
  assert {row["true_reward"] for row in rows["task"]} == {0.0}
  code = json.loads(Path("run/manifest.json").read_text())["code"]
  assert {"heldout.sets 'own.py:any_answer'", "heldout.sets 'own.py:verify'"} <= set(code)
  assert run("report", "--workdir=report", "run") == 0
  page = Path("report/index.html").read_text()
  assert all(f"Accuracy on {name}, in %" in page for name in counted)


@pytest.mark.parametrize(
  ("entry", "words"),
  [
    ("quiz=none.jsonl", "config.heldout.sets: quiz: none.jsonl: not a readable file"),
    (
      "quiz=quiz.jsonl[count=3]",
      "config.heldout.sets: quiz: quiz.jsonl:1: the names of the columns (text, target, kind) don't say which one "
      "holds the prompt and which one the label; name them, such as "
      '--config.heldout.sets="arithmetic,quiz=quiz.jsonl[prompt=text,label=kind,count=3]"',
    ),
    ("quiz=quiz.jsonl[prompt=text,label=target,count=11]", "quiz: quiz.jsonl: holds 10 different problems, 11 were"),
    (
      "quiz=quiz.jsonl[prompt=text,label=target,split=dev]",
      "quiz: split = 'dev' has no effect: quiz.jsonl is one file",
    ),
    (
      "quiz=quiz.jsonl[prompt=text,label=target,verifier=graph]",
      "config.heldout.sets: quiz: quiz.jsonl:1, column extra_info: found None",
    ),
    (
      "quiz=quiz.jsonl[prompt=text,label=kind,verifier=choice]",
      'as config.heldout.sets="arithmetic,quiz=quiz.jsonl[prompt=A,label=B,verifier=choice]"',
    ),
    ("task=own.py[count=999]", "config.heldout.sets: task: own.py: gives"),
  ],
)
def test_what_can_not_be_read_names_the_set_and_the_line_that_mends_it(folder, init, capsys, entry, words):
  assert run_smoke("evaluate", "run", init=init, heldout__sets=f"arithmetic,{entry}") == 2
  err = capsys.readouterr().err
  assert words in err and not list(Path("run").glob("evals/*"))
