"""Problems from files: the study's own, other layouts, our own sets, raw data sets, and what is said of broken ones."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from jaxrlvr.data import layout

OFFICIAL = pathlib.Path(__file__).parents[2] / "shared" / "data" / "official"
needs_official = pytest.mark.skipif(not OFFICIAL.exists(), reason="needs ../shared/data/official")

PROMPT = [{"role": "user", "content": "1+1?"}]
ISLAND = json.dumps({"source_dataset": "largest_island", "solution": 7})
LOCK = {
  "source_dataset": "quantum_lock",
  "buttons": [{"name": "A", "type": "add", "value": 2, "active_state": "any"}],
  "initial_state": "red",
  "initial_value": 0,
  "target_value": 4,
  "solution_path": ["A", "A"],
}


def load(path, verifier="auto", **kwargs):
  return layout.load(path, verifier, **kwargs).problems


def row(prompt=PROMPT, label="2", extra_info=None):
  return {"prompt": prompt, "reward_model": {"ground_truth": label, "style": "rule"}, "extra_info": extra_info}


def write(path, rows):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  return path


@needs_official
def test_every_official_file_loads():
  rows = unique = 0
  for path in sorted(OFFICIAL.rglob("*.parquet")):
    problems = load(path)
    assert problems and len({problem.id for problem in problems}) == len(problems)
    graph = "graph" in path.parts or "island" in path.name or "lock" in path.name
    assert all((problem.verifier != "math") == graph for problem in problems), path
    wrong = sum(problem.label != problem.truth for problem in problems)
    assert bool(wrong) == ("noisy" in path.parts), path
    if "noisy" in path.parts:
      gamma = float(path.stem.rpartition("gamma")[2])
      assert abs(wrong / len(problems) - gamma) < 0.03, path
    rows += pyarrow.parquet.read_metadata(path).num_rows
    unique += len(problems)
  assert (rows, unique) == (52_616, 50_803)


@needs_official
def test_the_eight_problem_files_hold_eight_problems():
  paths = sorted(OFFICIAL.rglob("*_8.parquet"))
  assert [len(load(path)) for path in paths] == [8] * 6
  models = ("llama-3b-think", "llama-3b")
  think, plain = (load(OFFICIAL / "math" / "train" / model / "sky_math_8.parquet") for model in models)
  assert [problem.label for problem in think] == [problem.label for problem in plain]
  assert not {problem.id for problem in think} & {problem.id for problem in plain}  # other prompts, other ids


@needs_official
def test_ids_and_truths_of_noisy_files_are_those_of_the_clean_file():
  clean = {p.id: p for p in load(OFFICIAL / "graph" / "train" / "qwen-math-7b" / "graph_882.parquet")}
  noisy = load(OFFICIAL / "graph" / "noisy" / "qwen-math-7b" / "graph_882_gamma0.50.parquet")
  assert {p.id: p.truth for p in noisy} == {key: p.label for key, p in clean.items()}


def test_label_truth_and_verifier(tmp_path):
  rows = [
    row(label='["24"]', extra_info=json.dumps({"original_ground_truth": '["25", "26"]'})),
    row([{"role": "user", "content": "b"}], '["5"]', ISLAND),
    row([{"role": "user", "content": "c"}], '["3", "4"]', '{"index": 1, "split": null}'),
    row([{"role": "user", "content": "d"}], "[1, 2]"),
    row([{"role": "user", "content": "e"}], "B → A", json.dumps(LOCK)),
    row([{"role": "user", "content": "b"}], "9", ISLAND),
  ]
  path = write(tmp_path / "a.parquet", rows)
  problems = load(path)
  assert [(p.label, p.truth, p.verifier) for p in problems] == [
    ("24", "25", "math"),
    ("5", "7", "largest_island"),
    ("3", "3", "math"),
    ("[1, 2]", "[1, 2]", "math"),
    ("B → A", "A → A", "quantum_lock"),
  ]
  assert problems[0].extra["also"] == {"25": ["26"]}
  assert problems[2].extra == {"index": 1, "also": {"3": ["4"]}}
  assert [p.verifier for p in load(path, "math")] == ["math"] * 5
  with pytest.raises(ValueError, match=r"a.parquet: row 0, column extra_info: .*largest_island, quantum_lock"):
    load(path, "graph")
  with pytest.raises(ValueError, match="'grpah'; use one of auto, math, graph"):
    load(path, "grpah")


@pytest.mark.parametrize(
  ("broken", "said"),
  [
    (row(prompt=None), "column prompt: found None, wanted a non-empty list"),
    (row(prompt=[]), r"column prompt: found \[\]"),
    (row(prompt=[{"role": "user", "content": None}]), "column prompt: .*wanted a message"),
    (row(prompt=[{"role": "", "content": "a"}]), "column prompt: .*wanted a message"),
    (row(prompt=[{"role": "user", "content": " "}]), "column prompt: .*wanted a message"),
    (row(label=None), "column reward_model.ground_truth: found None"),
    (row(label=""), "column reward_model.ground_truth: found ''"),
    (row(label="[]"), r"column reward_model.ground_truth: found '\[\]'"),
    (row(label='["5", ""]'), "column reward_model.ground_truth: found"),
    (row() | {"reward_model": None}, "column reward_model: found None"),
    (row(extra_info='{"source_dataset": "largest_island"'), "column extra_info: found '{"),
    (row(extra_info="[1]"), r"column extra_info: found \[1\]"),
    (row(extra_info='{"source_dataset": "quantum_lock"}'), "column extra_info: .*wanted the key buttons"),
  ],
)
def test_a_malformed_row_is_named(tmp_path, broken, said):
  path = write(tmp_path / "bad.parquet", [row(extra_info=ISLAND), broken])
  with pytest.raises(ValueError, match=rf"^\S*bad\.parquet: row 1, {said}") as error:
    load(path)
  assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_broken_file_is_named(tmp_path):
  whole = write(tmp_path / "whole.parquet", [row()]).read_bytes()
  for name, content in (("cut", whole[:-20]), ("empty", b""), ("text", b"prompt,answer\n")):
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.parquet: not a readable parquet file"):
      load(path)
  with pytest.raises(ValueError, match=r"gone\.parquet: not a readable parquet file"):
    load(tmp_path / "gone.parquet")
  for column in ("prompt", "reward_model"):
    path = write(tmp_path / "less.parquet", [{key: value for key, value in row().items() if key != column}])
    with pytest.raises(ValueError, match=rf"less\.parquet: row 0, column {column}\S* is missing"):
      load(path)
  none = pyarrow.Table.from_pylist([row()]).slice(0, 0)
  pyarrow.parquet.write_table(none, tmp_path / "none.parquet")
  with pytest.raises(ValueError, match=r"none\.parquet: found 0 rows"):
    load(tmp_path / "none.parquet")
