"""Problems from files: the study's own, other layouts, prepared sets, raw data sets, and messages on broken files."""

import csv
import itertools
import json
import operator
import os
import pathlib
import re
import subprocess
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import EVERY, Problem
from jaxrlvr.config import files as configs
from jaxrlvr.data import columns as layout
from jaxrlvr.data import corpus, problems, tfds_catalog
from jaxrlvr.data import files as rows
from jaxrlvr.data import hub as raw
from jaxrlvr.data import prepared as store
from jaxrlvr.tasks.arithmetic import faithfulness as judge
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.arithmetic import verify
from jaxrlvr.text.answer import parse_response


def answer(text, label, extra):
  """Returns the verdict on a response with this text."""
  return verify.grade(parse_response(text, "boxed").answer, label, extra)


def faithfulness(text, question):
  """Returns the exact judge's label of a response with this text."""
  return judge.faithfulness(parse_response(text, "boxed"), question).label


OFFICIAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "official"
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


def test_a_verifier_that_a_user_adds_grades_all_rows_that_name_it(tmp_path, monkeypatch):
  monkeypatch.setattr(layout, "VERIFIER_CHOICES", (*layout.VERIFIER_CHOICES, "integer"))
  path = write(tmp_path / "a.parquet", [row(), row([{"role": "user", "content": "b"}], "5", ISLAND)])
  assert [problem.verifier for problem in load(path, "integer")] == ["integer", "integer"]


@pytest.mark.parametrize(
  ("broken", "message"),
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
def test_a_malformed_row_is_named(tmp_path, broken, message):
  path = write(tmp_path / "bad.parquet", [row(extra_info=ISLAND), broken])
  with pytest.raises(ValueError, match=rf"^\S*bad\.parquet: row 1, {message}") as error:
    load(path)
  assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_broken_file_is_named(tmp_path):
  whole = write(tmp_path / "whole.parquet", [row()]).read_bytes()
  for name, content in (("cut", whole[:-20]), ("empty", b""), ("text", b"prompt,answer\n")):
    path = tmp_path / f"{name}.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.parquet: not a readable parquet file"):
      load(path)
  with pytest.raises(ValueError, match=r"gone\.parquet: no such file"):
    load(tmp_path / "gone.parquet")
  for column in ("prompt", "reward_model"):
    path = write(tmp_path / "less.parquet", [{key: value for key, value in row().items() if key != column}])
    with pytest.raises(ValueError, match=r"less\.parquet: row 0: the names of the columns \(.*\) don't say which one"):
      load(path)
  none = pyarrow.Table.from_pylist([row()]).slice(0, 0)
  pyarrow.parquet.write_table(none, tmp_path / "none.parquet")
  with pytest.raises(ValueError, match=r"none\.parquet: found 0 rows"):
    load(tmp_path / "none.parquet")


PLAIN = ("prompt=problem", "label=answer", "truth=gold", "id=uid", "extra.level=meta.level")
GOOD = {"problem": "1+1?", "answer": "3", "gold": 2, "uid": 7, "meta": {"level": 4}}


def write_lines(path, lines, encoding="utf-8"):
  path.parent.mkdir(exist_ok=True)
  path.write_bytes("".join(json.dumps(one) + "\n" for one in lines).encode(encoding))
  return path


def test_a_column_map_reads_jsonl_parquet_and_folders_alike(tmp_path):
  second = GOOD | {"problem": "2+2?", "uid": "b", "answer": '["4", "four"]', "gold": "4"}
  lines = write_lines(tmp_path / "in" / "a.jsonl", [GOOD, second], "utf-8-sig")  # begins with a byte-order mark
  texts = [one | {"gold": str(one["gold"]), "uid": str(one["uid"])} for one in (GOOD, second)]
  table = write(tmp_path / "b.parquet", texts)
  first = Problem("7", ({"role": "user", "content": "1+1?"},), "3", "2", "math", {"level": 4})
  assert load(lines, columns=PLAIN) == load(table, columns=PLAIN)
  assert load(lines, columns=PLAIN)[0] == first
  assert load(lines, columns=PLAIN)[1].extra == {"level": 4, "also": {"4": ["four"]}}
  part = (*PLAIN[:2], "extra.deep=meta.level.x?", "extra.no=none?")
  nulls = write_lines(tmp_path / "nulls.jsonl", [GOOD | {"meta": None}])
  assert load(nulls, columns=part)[0].extra == {}
  messages = load(table, columns=PLAIN, system="Be brief.")[0].messages
  assert [turn["role"] for turn in messages] == ["system", "user"] and messages[0]["content"] == "Be brief."
  (tmp_path / "in" / ".cache").mkdir()
  (tmp_path / "in" / ".cache" / "half.jsonl").write_text("{")
  write_lines(tmp_path / "in" / "sub" / "c.jsonl", [GOOD | {"problem": "3+3?", "uid": 9}])
  assert [p.id for p in load(tmp_path / "in", columns=PLAIN)] == ["7", "b", "9"]
  study = write_lines(tmp_path / "study.jsonl", [row(extra_info=json.loads(ISLAND))])
  assert load(study) == load(write(tmp_path / "study.parquet", [row(extra_info=ISLAND)]))


def test_every_row_is_counted(tmp_path):
  other = {"problem": "x", "answer": "1", "kind": "physics"}
  lines = [{"problem": text, "answer": label, "kind": "math"} for text, label in ("a1", "a1", "a2", "b1", "b1")]
  path = write_lines(tmp_path / "a.jsonl", [*lines, other, {"problem": "c", "kind": "math"}, {"answer": "1"}, other])
  path.write_bytes(path.read_bytes() + b"\n  \n{\n")
  columns = ("prompt=problem", "label=answer", "kind==math")
  problems, counts = layout.load(path, columns=columns, skip_bad=3)
  assert [(p.messages[0]["content"], p.label) for p in problems] == [("a", "1"), ("b", "1")]
  assert counts == {"rows": 10, "other": 2, "unanswered": 0, "bad": 3, "copies": 2, "conflicts": 1}
  with pytest.raises(ValueError, match=r"a\.jsonl:12, no JSON .* raise skip_bad = 2"):
    layout.load(path, columns=columns, skip_bad=2)
  solved = [{"q": t, "s": s} for t, s in (("a", "so \\boxed{4}."), ("b", " 7/2 "), ("c", "see\nabove"), ("d", None))]
  path = write_lines(tmp_path / "b.jsonl", solved)
  problems, counts = layout.load(path, columns=("prompt=q", "boxed=s?"))
  assert [p.label for p in problems] == ["4", "7/2"] and counts["unanswered"] == 2


@pytest.mark.parametrize(
  ("line", "message"),
  [
    (b'{"problem": "a", "ans', r"no JSON .*, and the file ends here: cut off\?"),
    (b'{"problem": "\xff", "answer": "1"}\n', r"not UTF-8 \(byte 13 of the line\)"),
    (b"[" * 100_000 + b"\n", r"no JSON \(nested too deeply\)"),
    (b"[1]\n", r"found \[1\], wanted a JSON object"),
    (b'{"problem": "a"}\n', "column answer is missing, found problem;"),
    (b'{"problem": null, "answer": "1"}\n', "column problem: found None"),
    (b'{"problem": " ", "answer": "1"}\n', "column problem: found ' ', wanted a text that is not empty"),
    (b'{"problem": 3, "answer": "1"}\n', "column problem: found 3, wanted"),
    (b'{"problem": "\\ud800", "answer": "1"}\n', "column problem: .* surrogate"),
    (b'{"problem": "a", "answer": ""}\n', "column answer: found ''"),
    (b'{"problem": "a", "answer": true}\n', "column answer: found True"),
    (b'{"problem": "a", "answer": NaN}\n', "column answer: found nan"),
  ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
  path = tmp_path / "bad.jsonl"
  path.write_bytes(b'{"problem": "0", "answer": "0"}\n\n' + line)
  with pytest.raises(ValueError, match=rf"^\S*bad\.jsonl:3, {message}") as error:
    load(path, columns=("prompt=problem", "label=answer"))
  assert "\n" not in str(error.value) and len(str(error.value)) < 400
  assert len(load(path, columns=("prompt=problem", "label=answer"), skip_bad=1)) == 1


def test_wrong_paths_and_maps_are_named(tmp_path):
  path = write_lines(tmp_path / "a.jsonl", [GOOD, GOOD | {"problem": "2+2?"}])
  for columns, message in (
    (("promt=problem",), "columns entry 'promt=problem': wanted TARGET=COLUMN .*prompt, label"),
    (("prompt=problem",), "no column for label; add label=COLUMN"),
    (PLAIN, r"a\.jsonl:2, column id: found '7', wanted an id that no other prompt has"),
    (("prompt=problem", "label=answer", "extra.a=meta.b.c"), "column meta.b: found None, wanted a struct"),
    (("prompt=problem", "label=answer", "problem==x"), r"no row gives a problem \(2 rows, 2 other\)"),
  ):
    with pytest.raises(ValueError, match=message):
      load(path, columns=columns)
  for name, message in (("a.txt", r"ends in none of \.parquet, \.jsonl"), ("", r"holds no file like \*\.parquet or")):
    (tmp_path / "empty").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
      load(tmp_path / "empty" / name)
  with pytest.raises(ValueError, match=r"gone\.jsonl: not a readable file \(No such file"):
    load(tmp_path / "gone.jsonl")
  os.mkfifo(tmp_path / "pipe.jsonl")
  with pytest.raises(ValueError, match=r"pipe\.jsonl: is no regular file"):
    load(tmp_path / "pipe.jsonl")


def test_messages_that_end_in_an_assistant_turn_are_cut_off_by_name_or_refused(tmp_path):
  turns = [{"role": "system", "content": ""}, *PROMPT, {"role": "assistant", "content": "so \\boxed{2}"}]
  path = write_lines(tmp_path / "a.jsonl", [{"messages": turns, "answer": "2"}])
  with pytest.raises(ValueError, match=r"a\.jsonl:1, column messages: .*with --columns prompt=messages\[:-1\]"):
    load(path, columns=("prompt=messages", "label=answer"))
  columns = ("prompt=messages[:-1]", "boxed=messages[-1]", "solution=messages[-1]")
  (problem,) = load(path, columns=columns)
  assert problem.messages == tuple(turns[:-1]) and (problem.label, problem.extra["solution"]) == (
    "2",
    turns[-1]["content"],
  )
  for odd in (turns[-1:], turns[:-1]):
    path = write_lines(tmp_path / "b.jsonl", [{"messages": odd}])
    with pytest.raises(ValueError, match="wanted messages that end in an assistant turn behind others"):
      load(path, columns=columns)


def test_only_a_system_message_may_be_empty(tmp_path):
  for role, empty in (("system", True), ("user", False)):
    path = write_lines(tmp_path / "a.jsonl", [{"p": [{"role": role, "content": ""}, *PROMPT], "l": "2"}])
    if empty:
      assert load(path, columns=("prompt=p", "label=l"))[0].messages[0] == {"role": "system", "content": ""}
    else:
      with pytest.raises(ValueError, match="column p: found .*, wanted a message with a role and a content, both text"):
        load(path, columns=("prompt=p", "label=l"))


OWN = [{"question": "1+1?", "answer": "One, then two.\n#### 2"}, {"question": "6*7?", "answer": "So\n#### 1,042 "}]
AS_READ = [("1+1?", "2"), ("6*7?", "1,042")]


def asked(loaded):
  return [(p.messages[-1]["content"], p.label) for p in loaded]


def test_files_of_questions_and_answers_need_no_columns(tmp_path, caplog):
  """In files of any kind the columns are recognised and the log names them; in GSM8K the answer follows ####."""
  write_lines(tmp_path / "a.jsonl", OWN)
  write(tmp_path / "a.parquet", OWN)
  (tmp_path / "list.json").write_text(json.dumps(OWN))
  (tmp_path / "key.json").write_text(json.dumps({"version": 1, "data": OWN}))
  write_lines(tmp_path / "lines.json", OWN)
  with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
    table = csv.DictWriter(file, ["question", "answer"])
    table.writeheader()
    table.writerows(OWN)
  line = '--config.problems.columns="prompt=question,label=answer"'
  for name in ("a.jsonl", "a.parquet", "list.json", "key.json", "lines.json", "a.csv"):
    caplog.clear()
    assert asked(load(tmp_path / name, columns_key="config.problems.columns")) == AS_READ, name
    assert f"{name}: columns are taken by their names; this line sets them: {line}" in caplog.text
  for names in (("prompt", "answer"), ("Problem", "Solution"), ("query", "final_answer")):
    renamed = [dict(zip(names, one.values(), strict=True)) for one in OWN]
    assert asked(load(write_lines(tmp_path / "b.jsonl", renamed))) == AS_READ


@pytest.mark.parametrize(
  ("columns", "guess"),
  [
    ({"text": "a", "target": "1"}, "prompt=text,label=target"),
    ({"prompt": "a", "question": "a", "answer": "1"}, "prompt=prompt,label=answer"),
    ({"problem": "a", "answer": "1", "label": "2"}, "prompt=problem,label=answer"),
    (
      {"turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "1"}]},
      r"prompt=turns\[:-1\],boxed=turns\[-1\]",
    ),
  ],
)
def test_columns_that_can_not_be_told_are_asked_for(tmp_path, columns, guess):
  path = write_lines(tmp_path / "a.jsonl", [columns])
  with pytest.raises(InputError, match=rf'a\.jsonl:1: the names of .* don.t say .*--config.problems.columns="{guess}"'):
    load(path, columns_key="config.problems.columns")


ASKED, SAID = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "So \\boxed{2}"}


@pytest.mark.parametrize(
  ("cells", "columns"),
  [
    ({"messages": [ASKED, SAID]}, "prompt=messages[:-1],boxed=messages[-1]"),
    ({"messages": [ASKED], "answer": 2}, "prompt=messages,label=answer"),
    ({"messages": [ASKED, SAID], "solution": "2"}, "prompt=messages[:-1],boxed=solution"),
    ({"prompt": [ASKED, SAID]}, "prompt=prompt[:-1],boxed=prompt[-1]"),
    ({"prompt": [ASKED, SAID], "label": "2"}, "prompt=prompt[:-1],label=label"),
    ({"prompt": "1+1?", "messages": [ASKED, SAID]}, "prompt=messages[:-1],boxed=messages[-1]"),
    ({"problem": "1+1?", "solution": "2", "messages": [ASKED, SAID]}, "prompt=problem,boxed=solution"),
    ({"question": "1+1?", "answer": "Two.", "short_answer": "2"}, "prompt=question,label=short_answer"),
  ],
)
def test_chat_messages_and_short_answers_need_no_columns(tmp_path, caplog, cells, columns):
  path = write_lines(tmp_path / "a.jsonl", [cells])
  assert asked(load(path)) == [("1+1?", "2")] and f'--columns="{columns}"' in caplog.text
  assert ",".join(layout.default_columns(path)) == columns


def test_examples_in_front_of_the_question_stay_in_the_prompt_and_are_told(tmp_path, caplog):
  turns = [{"role": "user", "content": "0+1?"}, {"role": "assistant", "content": "1"}]
  rows_of_file = [{"prompt": turns * 2 + [ASKED], "answer": "2"}, {"prompt": "6*7?", "answer": "42"}]
  few_shot, plain = load(write_lines(tmp_path / "a.jsonl", rows_of_file))
  assert few_shot.messages == (*turns, *turns, ASKED) and (few_shot.label, len(plain.messages)) == ("2", 1)
  assert "a.jsonl: 1 of 2 prompts hold earlier turns of user and assistant (up to 2 answers); they stay" in caplog.text
  caplog.clear()
  load(write_lines(tmp_path / "a.jsonl", rows_of_file[1:]))
  assert "earlier turns" not in caplog.text


def test_columns_that_a_reward_takes_are_kept_as_they_stand_in_the_row(tmp_path):
  cells = {"question": "1+1?", "answer": "Two.\n#### 2", "level": {"n": 3}, "other": None}
  files_of_rows = [write_lines(tmp_path / "a.jsonl", [cells]), write(tmp_path / "a.parquet", [cells])]
  for path, columns in itertools.product(files_of_rows, ((), ("prompt=question", "label=answer"))):
    (problem,) = load(path, columns=columns, keep=("answer", "level", "absent"))
    assert (problem.label, problem.extra, problem.row) == ("2", {}, {"answer": cells["answer"], "level": {"n": 3}})
    assert load(path, columns=columns, keep=("level", EVERY))[0].row == cells
    assert load(path, columns=columns) == [problem] and load(path, columns=columns)[0].row == {}
  store.save(tmp_path / "set.jsonl", [problem])
  saved = json.loads((tmp_path / "set.jsonl").read_text())
  assert "row" not in saved
  (again,) = load(write_lines(tmp_path / "more.jsonl", [saved | {"level": 4}]), keep=("level",))
  assert again == problem and again.row == {"level": 4}


def test_the_rows_of_the_page_on_data_are_right(tmp_path):
  page = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
  lines = [line for line in page.read_text().splitlines() if line.startswith('{"question"')]
  (tmp_path / "mine.jsonl").write_text("\n".join(lines))
  assert len(lines) == 2
  for problem in load(tmp_path / "mine.jsonl"):
    first, *steps = re.fullmatch(r"Start with (\d), then (.*)\. Last digit\?", problem.messages[0]["content"]).groups()
    value = int(first)
    for step in steps[0].split(", "):
      value = {"+": operator.add, "-": operator.sub, "*": operator.mul}[step[0]](value, int(step[1:]))
    assert problem.label == str(value % 10)


def test_names_with_dots_and_spaces_between_entries(tmp_path):
  line = {"q.x": "1+1?", "d": {"a.b": "2"}, "difficulty": {"Qwen2.5-Math-7B": 4, "Qwen2": {"5-Math-7B": 9}}}
  path = write_lines(tmp_path / "a.jsonl", [line])
  columns = configs.load(
    "base",
    {"problems.source": "a.jsonl", "problems.columns": "prompt=q.x, label=d.a.b ,extra.n=difficulty.Qwen2.5-Math-7B"},
  )
  (problem,) = load(path, columns=columns.problems.columns)
  assert (problem.messages[0]["content"], problem.label, problem.extra) == ("1+1?", "2", {"n": 4})


def test_copies_and_conflicts_are_named_kept_or_refused(tmp_path, caplog):
  labels = (("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"))
  path = write_lines(tmp_path / "a.jsonl", [{"question": q, "answer": label} for q, label in labels])
  settings = dict(columns_key="config.heldout.columns")
  assert asked(load(path, **settings)) == [("a", "1"), ("b", "1")]
  message = "4 rows, 1 copies, 1 conflicts; left out: line 4 repeats line 1 with the label '2' for '1', line 3 repeats"
  assert message in caplog.text and "; config.heldout.copies=keep keeps them" in caplog.text
  caplog.clear()
  kept = load(path, **settings, copies="keep")
  assert asked(kept) == list(labels) and len({p.id for p in kept}) == 4 and "left out" not in caplog.text
  assert load(path, **settings)[0].id == kept[0].id
  with pytest.raises(InputError, match="line 3 repeats line 1; correct one, or take copies"):
    load(path, **settings, copies="error")
  caplog.clear()
  load(path)  # as SFT, whose rows with a known prompt can't be kept
  assert "left out" in caplog.text and "keep" not in caplog.text


def test_only_regular_files_with_lines_of_some_length_are_read(tmp_path, monkeypatch):
  assert rows.MAX_LINE_BYTES == 64 << 20
  monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
  path = write_lines(tmp_path / "long.jsonl", [*OWN, OWN[0] | {"question": "x" * (1 << 20)}])
  with pytest.raises(InputError, match=r"long\.jsonl: the line at byte \d+ is longer than 1 MiB; is it JSON"):
    load(path)
  (tmp_path / "long.csv").write_text("question,answer\n" + "x" * (1 << 21) + ",1\n")
  with pytest.raises(InputError, match=r"long\.csv: not a readable csv .*field larger"):
    load(tmp_path / "long.csv")
  for kind in rows.SUFFIXES:
    os.mkfifo(tmp_path / f"pipe{kind}")
    with pytest.raises(InputError, match=rf"pipe\{kind}: is no regular file .*; write its content to a file"):
      load(tmp_path / f"pipe{kind}")


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.json", "{", r"no JSON \(.*; correct the file"),
    ("a.json", "{}", "found 0 lists of objects, wanted one, or a row a line; write the rows as a list of objects"),
    ("a.json", '{"a": [{}], "b": [{}]}', "found 2 lists of objects"),
    ("a.csv", "question,answer\nonly one\n", r"a\.csv:2, found fewer cells than the 2 names of the first line"),
    ("a.csv", "question,answer\n1,2,3\n", r"a\.csv:2, found more cells"),
    ("a.csv", "answer,answer\n1,2\n", r"two columns have one name \(answer, answer\); rename one"),
    ("a.csv", 'question,answer\n"a,1\n', r"not a readable csv file in UTF-8"),
    ("a.csv", "question,answer\n", "found 0 rows"),
    ("a.csv", "question;answer\n1;2\n", "first line names one column, 'question;answer'; separate the cells by commas"),
    ("gone.csv", None, r"gone\.csv: no such file; correct the path"),
    ("gsm8k", None, "a data set of the Hugging Face hub is named ORG/NAME"),
  ],
)
def test_files_of_other_kinds_name_what_is_wrong_with_them(tmp_path, monkeypatch, name, content, message):
  monkeypatch.chdir(tmp_path)
  if content is not None:
    pathlib.Path(name).write_text(content)
  with pytest.raises(InputError, match=message):
    load(name)


def prepared():
  """Returns problems of both kinds whose `extra` holds tuples, and one with a system message and odd characters."""
  problems = arithmetic.problems(3, "train", (1, 4), 6, arithmetic.KINDS)
  odd = ({"role": "system", "content": "x\u2028y"}, {"role": "user", "content": 'é "→" \\frac\n'})
  return [*problems, Problem("odd/1", odd, "a\nb", "c", "math", {"also": {"a": ["ü"]}, "n": 1.5, "none": None})]


def test_prepared_sets_round_trip(tmp_path):
  path = tmp_path / "new" / "set.jsonl"
  store.save(path, prepared()[:2])
  store.save(path, prepared())
  assert [p.name for p in path.parent.iterdir()] == ["set.jsonl"]
  reloaded = load(path)
  plain = [json.loads(json.dumps(vars(p))) for p in prepared()]
  assert [json.loads(json.dumps(vars(p))) for p in reloaded] == plain and reloaded[0].messages == prepared()[0].messages
  for p in reloaded[:6]:
    text = arithmetic.careful(p.extra["tree"])  # lists now
    assert answer(text, p.label, p.extra).score == 1.0 and faithfulness(text, p.messages[0]["content"]) == 1.0
  with pytest.raises(ValueError, match="problem bad: extra can't be written as JSON"):
    store.save(path, [Problem("bad", ({"role": "user", "content": "a"},), "a", "a", "math", {"x": {1}})])
  assert len(load(path)) == 7 and [p.name for p in path.parent.iterdir()] == ["set.jsonl"]  # the old set is whole
  line = json.dumps(vars(prepared()[0]) | {"truth": None})
  path.write_text(line + "\n")
  with pytest.raises(ValueError, match=r"set\.jsonl:1, column truth: found None"):
    load(path)


def test_tfds_sets_need_no_tensorflow(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  pytest.importorskip("array_record")
  folder = tmp_path / "sets" / "mine"
  store.save(folder, prepared())
  store.save(tmp_path / "same.jsonl", prepared())
  assert load(folder) == load(tmp_path / "same.jsonl")
  assert [p.name for p in folder.parent.iterdir()] == ["mine"]
  columns = ("prompt=label", "label=truth", "extra.kind=extra.kind?")
  assert load(folder, columns=columns)[-1] == Problem(
    load(folder, columns=columns)[-1].id, ({"role": "user", "content": "a\nb"},), "c", "c", "math", {}
  )
  with pytest.raises(ValueError, match="mine: is there already"):
    store.save(folder, prepared())
  next(folder.glob("*.array_record*")).unlink()
  with pytest.raises(ValueError, match="mine: no readable tfds data set"):
    load(folder)
  code = (
    "import sys, jaxrlvr.data.problems\nfrom jaxrlvr.data import files\nassert 'tensorflow_datasets' not in sys.modules"
  )
  code += "\nfiles.tfds(); sys.exit('tensorflow' in sys.modules)"
  root = pathlib.Path(__file__).parents[2]
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_prepared_sets_take_a_system_message_and_no_other_verifier(tmp_path):
  store.save(tmp_path / "a.jsonl", prepared())
  plain, asked_for = load(tmp_path / "a.jsonl"), load(tmp_path / "a.jsonl", system="Box it.")
  assert [p.messages[0] for p in asked_for[:6]] == [{"role": "system", "content": "Box it."}] * 6
  assert [p.messages[1:] for p in asked_for[:6]] == [p.messages for p in plain[:6]] and asked_for[6] == plain[6]
  assert [p.id for p in asked_for] == [p.id for p in plain]
  with pytest.raises(
    InputError, match="verifier = 'choice': .* prepared set, .* \\(here arithmetic\\); leave it at auto"
  ):
    load(tmp_path / "a.jsonl", "choice")


def test_splits_of_a_tfds_folder(tmp_path, caplog):
  package = pytest.importorskip("tensorflow_datasets")
  pytest.importorskip("array_record")

  class Rows(package.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = package.core.Version("1.0.0")

    def _info(self):
      features = package.features.FeaturesDict({name: package.features.Text() for name in ("question", "answer")})
      return package.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, manager):
      return {name: self._generate_examples(name) for name in ("train", "test")}

    def _generate_examples(self, name):
      yield 0, {"question": name, "answer": "1"}

  package.disable_progress_bar()
  builder = Rows(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  folder = builder.data_dir

  def read(name, prefer):
    return [p.messages[0]["content"] for p in load(folder, split=rows.Split(name, prefer, "KEY"))]

  assert read("", rows.TRAINING) == ["train"] and read("", rows.HELD_OUT) == ["test"]
  assert "of the splits train, test read is test (KEY)" in caplog.text
  assert read("test", rows.TRAINING) == ["test"] and read("all", rows.TRAINING) == ["train", "test"]
  with pytest.raises(InputError, match="KEY = 'dev': .* holds the splits train, test; name one of these"):
    read("dev", rows.TRAINING)


def raw_files(root):
  """Writes small files that are laid out as the four raw data sets are."""
  sky = {"data_source": "train-math-a", "ability": "math", "extra_info": {"index": 5, "model_difficulty": {"m": 3}}}
  sky |= {"prompt": PROMPT, "reward_model": {"ground_truth": '["24"]', "style": "rule"}}
  scp = {"domain": "Physics", "problem": "How far?", "matched_solution": "long\n\\boxed{3 m}", "o1_solution": "3"}
  later = {"domain": "Biology", "problem": "Why?", "extracted_solution": "ATP", "r1_solution": ""}
  thought = {"problem": "1+1?", "deepseek_reasoning": "One, two.", "deepseek_solution": "It is \\boxed{2}."}
  thought |= {"ground_truth_solution": "\\boxed{2}", "domain": "math", "source": "numina", "test_cases": None}
  for folder in ("sky/data", "scp", "open/metadata", "open/data", "cc/4plus", "cc/3"):
    (root / folder).mkdir(parents=True)
  write(root / "sky/data/math-00000-of-00001.parquet", [sky])
  write(root / "sky/data/code-00000-of-00001.parquet", [{"not": "wanted"}])
  write_lines(root / "scp/old.jsonl", [scp])
  write(root / "scp/scp.parquet", [later, later | {"problem": "How?", "extracted_solution": "word " * 40}])
  code = thought | {"problem": "sort", "domain": "code"}
  write(root / "open/metadata/train-00000-of-00001.parquet", [thought, code])
  write(root / "open/data/train-00000-of-00001.parquet", [{"conversations": "x"}])
  write(root / "cc/4plus/part_0.parquet", [{"id": "1", "text": "Let $x$.", "metadata": {"url": "u"}}])
  write(root / "cc/3/part_0.parquet", [{"id": "1", "text": "no"}])


def test_raw_sets_from_a_local_copy(tmp_path):
  raw_files(tmp_path)
  (sky,), _ = problems.read(f"skywork-or1:{tmp_path / 'sky'}", system="Box it.")
  assert (sky.label, sky.verifier, sky.extra["model_difficulty"]) == ("24", "math", {"m": 3})
  assert [turn["role"] for turn in sky.messages] == ["system", "user"]
  scp, counts = problems.read(f"scp-116k:{tmp_path / 'scp'}")
  assert [(p.label, p.extra["domain"]) for p in scp] == [("3 m", "Physics"), ("ATP", "Biology")]
  assert counts["unanswered"] == 1
  for folder in ("open", "open/metadata"):
    (thought,), counts = problems.read(f"openthoughts-114k:{tmp_path / folder}")
    assert thought.label == "2" and thought.extra["trace"] == "One, two." and counts["other"] == 1
  text = corpus.TextRows(f"nemotron-cc-math:{tmp_path / 'cc'}", "", 0)
  assert len(text) == 1 and text(0).text == "Let $x$."
  with pytest.raises(ValueError, match="is plain text without problems"):
    problems.read(f"nemotron-cc-math:{tmp_path / 'cc'}")
  with pytest.raises(ValueError, match=r"holds no file like data/math-\*\.parquet"):
    problems.read(f"skywork-or1:{tmp_path / 'cc'}")


def test_raw_sets_from_the_hub(tmp_path, monkeypatch):
  """The cache is used if it is whole, otherwise the network; if neither has the set, the error names the cure."""
  raw_files(tmp_path)
  asked = []

  def snapshot_download(repository, repo_type, revision, allow_patterns, local_files_only):
    asked.append((repository, repo_type, tuple(allow_patterns), local_files_only))
    if not local_files_only:
      raise ConnectionError("no route\nto the hub")
    return str(tmp_path / "sky")

  hub = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  assert len(problems.read("skywork-or1").problems) == 1
  assert asked == [("Skywork/Skywork-OR1-RL-Data", "dataset", ("data/math-*.parquet",), True)]
  for name in ("data/math-00000-of-00001.parquet", "data/code-00000-of-00001.parquet"):
    (tmp_path / "sky" / name).rename(tmp_path / "sky" / name.replace("00001", "00002"))  # a shard is missing
  cure = "take skywork-or1:FOLDER with a local copy of Skywork/Skywork-OR1-RL-Data"
  with pytest.raises(ValueError, match=rf"skywork-or1: .*\(ConnectionError: no route\); {cure}"):
    problems.read("skywork-or1")
  assert [call[-1] for call in asked] == [True, True, False]
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ValueError, match=rf"pip install 'jaxrlvr\[hub\]', or {cure}"):
    problems.read("skywork-or1")
  assert raw.locate("a/b.parquet") == ("a/b.parquet", raw.DataSet(""))


def test_any_set_of_the_hub_by_its_name(tmp_path, monkeypatch):
  """The configs of a data set are its folders; an error about a set that can't be read names the cure."""
  cure = r"pip install 'jaxrlvr\[hub\]', or name a local copy, as gsm8k, which `hf download openai/gsm8k .*` makes .*"
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(InputError, match=rf"openai/gsm8k: huggingface_hub is not installed; {cure}$"):
    problems.read("openai/gsm8k")
  for config in ("main", "socratic"):
    for split in ("train", "test"):
      (tmp_path / config).mkdir(exist_ok=True)
      write(tmp_path / config / f"{split}-00000-of-00001.parquet", [OWN[0] | {"question": f"{config} {split}"}])
  hub = types.SimpleNamespace(snapshot_download=lambda *_, **__: str(tmp_path))
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
  with pytest.raises(InputError, match="has the configs main, socratic; name one, as openai/gsm8k:main"):
    problems.read("openai/gsm8k")
  with pytest.raises(InputError, match="openai/gsm8k:other: it has the configs main, socratic; name one of these"):
    problems.read("openai/gsm8k:other")
  assert asked(problems.read("openai/gsm8k:main").problems) == [("main train", "2")]
  held_out = problems.read("openai/gsm8k:main", split=rows.Split(prefer=rows.HELD_OUT))
  assert asked(held_out.problems) == [("main test", "2")]


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
  """Makes a cache of the hub by hand, with two configs of one set, and returns the folder of their files."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  repository = tmp_path / "hub" / "datasets--openai--gsm8k"
  for commit, answer in (("a" * 40, "2"), ("b" * 40, "3")):
    for config in ("main", "socratic"):
      for split in ("train", "test"):
        file = repository / "snapshots" / commit / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, [{"question": f"{config} {split}", "answer": f"One.\n#### {answer}"}])
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text("a" * 40)
  (repository / "refs" / "v1").write_text("b" * 40)
  return repository / "snapshots" / ("a" * 40)


def test_a_set_in_the_cache_of_the_hub_by_config_revision_and_split(hub_cache, tmp_path, monkeypatch):
  def read(source, split=None):
    return asked(problems.read(source, split=split).problems)

  assert read("openai/gsm8k:main@train") == [("main train", "2")]
  assert read("openai/gsm8k:socratic@test", rows.Split(prefer=rows.TRAINING)) == [("socratic test", "2")]
  assert read("openai/gsm8k@v1:main@test") == read("openai/gsm8k@v1:main", rows.Split("test")) == [("main test", "3")]
  split = rows.Split("test", key="config.problems.split")
  with pytest.raises(InputError, match=r"config\.problems\.split = 'test': the source openai/gsm8k:main@train names"):
    read("openai/gsm8k:main@train", split)
  with pytest.raises(InputError, match="the split of openai/gsm8k = 'dev': .*but test, train"):
    read("openai/gsm8k:main@dev")
  shard = hub_cache / "main" / "train-00001-of-00009.parquet"
  shard.write_bytes(b"")
  with pytest.raises(InputError, match=r"\(only some of its files are there\); name a local copy, as gsm8k/main@train"):
    read("openai/gsm8k:main@train")
  shard.unlink()
  with pytest.raises(
    InputError, match=r"@v2:main.*as gsm8k/main@test, .*gsm8k --repo-type dataset --revision v2 --local"
  ):
    read("openai/gsm8k@v2:main@test")
  monkeypatch.chdir(tmp_path)
  (tmp_path / "gsm8k").symlink_to(hub_cache)
  assert read("gsm8k/main@test") == [("main test", "2")], "a local copy, as the message says"
  with pytest.raises(
    InputError, match=r"config\.problems\.split = 'test': the source gsm8k/main@train names the split"
  ):
    read("gsm8k/main@train", split)


def test_a_word_behind_the_name_of_a_set_is_a_split_if_it_is_a_usual_one(hub_cache):
  for config in ("socratic", "main"):
    for file in (hub_cache / config).iterdir():
      file.rename(hub_cache / f"{config}-{file.name}") if config == "main" else file.unlink()
  train = asked(problems.read("openai/gsm8k@train").problems)
  assert train == asked(problems.read("openai/gsm8k:default@train").problems) == [("main train", "2")]
  assert asked(problems.read("openai/gsm8k@main@test").problems) == [("main test", "2")]
  with pytest.raises(InputError, match="openai/gsm8k: has the configs main, socratic"):
    problems.read("openai/gsm8k@v1")
  for file in hub_cache.glob("*.parquet"):
    file.rename(file.with_name(file.name.replace("train", "a").replace("test", "b")))
  assert len(problems.read("openai/gsm8k@train").problems) == 2, "a set whose files name no split is all train"


def test_a_set_of_tfds_by_its_name(tmp_path, monkeypatch):
  package = pytest.importorskip("tensorflow_datasets")
  pytest.importorskip("array_record")
  from tensorflow_datasets.core import constants
  from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k

  for split in ("train", "test"):
    write_lines(tmp_path / split, [{"question": split, "answer": "One and one.\n#### 2"}])
  monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "sets"))
  monkeypatch.setattr(
    Gsm8k,
    "_split_generators",
    lambda self, _: {name: self._generate_examples(tmp_path / name) for name in ("train", "test")},
  )
  monkeypatch.setattr(tfds_catalog, "_is_online", lambda: False)
  with pytest.raises(InputError, match=r"tfds:gsm8k: is not prepared in .*no network; .*source=tfds:gsm8k@test .*copy"):
    problems.read("tfds:gsm8k@test")
  monkeypatch.setattr(tfds_catalog, "_is_online", lambda: True)
  assert asked(problems.read("tfds:gsm8k@test").problems) == [("test", "2")]
  monkeypatch.setattr(Gsm8k, "_split_generators", None)  # what is prepared is not prepared again
  assert asked(problems.read("tfds:gsm8k").problems) == [("train", "2")]
  assert asked(problems.read("tfds:gsm8k:1.0.0", split=rows.Split("test")).problems) == [("test", "2")]
  with pytest.raises(InputError, match="the split of tfds:gsm8k@dev = 'dev': .* holds the splits train, test"):
    problems.read("tfds:gsm8k@dev")
  with pytest.raises(InputError, match=r"tfds:no_such_set: .*not found; tfds\.list_builders\(\) lists the names"):
    problems.read("tfds:no_such_set")
  info = next(tmp_path.rglob("dataset_info.json"))
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(InputError, match="can be read only with TensorFlow; set the environment variable TFDS_DATA_DIR"):
    problems.read("tfds:gsm8k")
  assert "tensorflow" not in sys.modules and package
