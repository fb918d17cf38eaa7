"""Reasoning Gym's own scores: right answers are paid, damaged and hostile ones are not."""

import json

import pytest

from helpers.grading import DATA, SAYS, job, needs_data
from jaxrlvr.base.errors import InputError
from jaxrlvr.tasks.gym import verify as gym


def gym_entries(seed=1, size=3):
  reasoning_gym = pytest.importorskip("reasoning_gym")
  for task in (*gym.EXACT, *gym.PLAYED):
    for entry in reasoning_gym.create_dataset(task, size=size, seed=seed):
      yield task, json.loads(json.dumps(entry, default=str))


def damaged(answer):
  return answer.replace(*("1", "3") if "1" in answer else ("e", "q")) if {"1", "e"} & set(answer) else answer + "7"


def test_each_allowed_gym_task_pays_the_oracle_and_not_a_damaged_answer(service):
  rows = [(task, entry, {"source_dataset": task, "entry": entry}) for task, entry in gym_entries()]
  jobs = [
    job("reasoning_gym", f"\\boxed{{ {text} }}", entry["answer"], extra)
    for _, entry, extra in rows
    for text in (entry["answer"], damaged(entry["answer"]), "nan", "not " + entry["answer"], entry["answer"] * 2)
  ]
  scores = [verdict.score for verdict in service.grade(jobs)]
  assert [task for n, (task, _, _) in enumerate(rows) if scores[5 * n] != 1] == []
  assert {task for n, (task, _, _) in enumerate(rows) if any(scores[5 * n + 1 : 5 * n + 5])} == set()
  assert None not in scores


def test_gym_pays_other_solutions_and_no_noisy_label_but_itself(service):
  pytest.importorskip("reasoning_gym")
  puzzle = {"jug_capacities": [3, 5], "target": 3}
  extra = {"source_dataset": "jugs", "entry": {"question": "", "answer": '["fill A"]', "metadata": {"puzzle": puzzle}}}
  other = '\\boxed{["fill B", "pour B->A"]}'
  noisy = '["fill B"]'
  pairs = [(other, '["fill A"]'), (other, noisy), (f"\\boxed{{{noisy}}}", noisy), ("\\boxed{exit()}", noisy)]
  assert service.grade([job("reasoning_gym", response, label, extra) for response, label in pairs]) == [
    SAYS[True],
    SAYS[False],
    SAYS[True],
    SAYS[None],
  ]


@needs_data
def test_hostile_gym_answers_are_never_paid(service, tmp_path):
  reasoning_gym = pytest.importorskip("reasoning_gym")
  rows = [json.loads(line) for line in (DATA / "hostile" / "answers.jsonl").read_text().splitlines()]
  rows = [row for row in rows if row["scorer"] == "reasoning_gym"]
  tested = 0
  for row in rows:
    task = row["ground_truth"]["dataset"]
    response = row.get("response") or "".join(part * count for part, count in row.get("response_segments") or ())
    if task not in (*gym.EXACT, *gym.PLAYED) or not isinstance(response, str):
      continue
    data_set = reasoning_gym.create_dataset(
      task, size=row["ground_truth"]["index"] + 1, seed=row["ground_truth"]["seed"]
    )
    entry = json.loads(json.dumps(data_set[row["ground_truth"]["index"]], default=str))
    response = response.replace("{CANARY}", str(tmp_path / "canary")).replace("@ORACLE@", entry["answer"])
    extra = {"source_dataset": task, "entry": entry}
    (verdict,) = service.grade([job("reasoning_gym", f"\\boxed{{{response}}}", entry["answer"], extra)])
    tested += 1
    assert verdict.score is not None and not (row["right_score"] == 0 and verdict.score), row["id"]
  assert tested > 30
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["n_queens", "countdown", "complex_arithmetic", "nothing", None])
def test_a_gym_task_off_the_list_is_refused_by_name(service, task):
  with pytest.raises(InputError, match=f"{task!r} can't be graded safely; use one of acre, .*jugs"):
    service.grade([job("reasoning_gym", "\\boxed{7}", "7", {"source_dataset": task, "entry": {}})])
