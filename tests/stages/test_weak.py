"""Weak supervision as a user runs it: rewards in RL, filter, subset, corrupt, prepare, sets, configs of the study."""

import csv
import dataclasses
import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers.command_line import QUICK, metrics, rollouts, run_smoke
from jaxrlvr.base import logbook
from jaxrlvr.base import signals as stopping
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.config import files as configs
from jaxrlvr.data import prepared
from jaxrlvr.grading.service import Service
from jaxrlvr.stages import STAGES, rollout
from jaxrlvr.stages import curate as label
from jaxrlvr.stages.evaluate import domain_means

TWELVE = dict(corrupt__samples=12, evaluate__problems_per_batch=24)  # eight problems at once, as in RL with 12 votes


def problems(file):
  return [prepared.from_row(row) for row in logbook.read_jsonl(Path(file))]


def test_votes_are_drawn_beside_what_is_trained_on(tmp_path, init):
  assert run_smoke("rl", tmp_path / "rl", init=init, rl__reward="majority_vote", rl__votes=12, **QUICK) == 0
  rows = rollouts(tmp_path / "rl")
  assert len(rows) == 8 * 12 and len({(r["problem"], r["sample"]) for r in rows}) == 96
  last = metrics(tmp_path / "rl")[1]
  groups = [rows[i : i + 12] for i in range(0, 96, 12)]
  for group in groups:
    votes = Counter(r["answer"] for r in group if r["answer"] is not None)
    best = max(votes.values())
    paid = {r["answer"] for r in group if r["reward"] == 1}
    assert len(paid) == 1 and votes[paid.pop()] == best
    assert all(r["reward"] == float(votes[r["answer"]] == best) or votes[r["answer"]] == best for r in group)
  trained = [r for group in groups for r in group[:4]]
  assert last["reward"] == pytest.approx(np.mean([r["reward"] for r in trained]))
  assert last["true_reward"] == pytest.approx(np.mean([r["true_reward"] for r in trained]))
  ratios, label_right = [], []
  for group in groups:
    winners = [row for row in group if row["reward"] == 1]
    ratios.append(len(winners) / 12)
    label_right.append(winners[0]["true_reward"])
  assert last["vote/majority_ratio"] == pytest.approx(np.mean(ratios))
  assert last["label_accuracy"] == pytest.approx(np.mean(label_right))


def test_parts_noise_and_correction_are_logged_and_change_training(tmp_path, init):
  """With the same seed the first rollouts are the same and the updates differ."""
  grad = {}
  for name, more in {
    "plain": {},
    "again": {},
    "noise": dict(rl__noise="(0.3,0.2)"),
    "backward": dict(rl__noise="(0.3,0.2)", rl__correction="backward"),
    "forward": dict(rl__noise="(0.3,0.2)", rl__correction="forward"),
    "mixture": dict(rl__reward="0.5*verifiable + 0.5*random(0.25)*one_box"),
    "entropy": dict(rl__reward="token_entropy"),
  }.items():
    assert run_smoke("rl", tmp_path / name, init=init, **(QUICK | dict(rl__steps=1) | more)) == 0
    grad[name] = metrics(tmp_path / name)[1]["grad_norm"]
    texts = [r["text"] for r in rollouts(tmp_path / name)]
    assert texts == [r["text"] for r in rollouts(tmp_path / "plain")]
  assert grad.pop("plain") == grad["again"]
  assert len(set(grad.values())) == len(grad)
  row, rows = metrics(tmp_path / "noise")[1], rollouts(tmp_path / "noise")
  wrong = [r["reward"] for r in rows if r["true_reward"] == 0]
  assert row["false_positive_rate"] == pytest.approx(np.mean(wrong)) and 0.05 < np.mean(wrong) < 0.7
  assert [r["reward"] for r in rows] == [r["reward"] for r in rollouts(tmp_path / "forward")]
  row = metrics(tmp_path / "mixture")[1]
  assert {"rewards/verifiable/mean", "rewards/random(0.25)/std", "rewards/one_box/mean"} <= set(row)
  assert "reward_accuracy" not in row and "true_reward" in row
  entropy = [r["entropy"] for r in rollouts(tmp_path / "entropy")]
  assert metrics(tmp_path / "entropy")[1]["reward"] == pytest.approx(-np.mean(entropy), rel=1e-5)


def test_filter_subset_rl(tmp_path, init, capsys):
  count = 48
  assert (
    run_smoke("filter", tmp_path / "filter", init=init, problems__count=count, filter__samples=4, filter__high=3) == 0
  )
  kept = problems(tmp_path / "filter" / "problems.jsonl")
  summary = json.loads((tmp_path / "filter" / "summary.json").read_text())
  rows = [r for f in sorted((tmp_path / "filter" / "rows").iterdir()) for r in logbook.read_jsonl(f)]
  assert len(rows) == sum(summary["histogram"]) == count and len({r["id"] for r in rows}) == count
  assert {p.id: p.extra["solved"] for p in kept} == {r["id"]: r["solved"] for r in rows if 1 <= r["solved"] <= 3}
  assert 4 < len(kept) < count and (tmp_path / "filter" / "histogram.png").stat().st_size > 1000
  source = tmp_path / "filter" / "problems.jsonl"
  assert run_smoke("subset", tmp_path / "subset", problems__source=source, problems__count=0, subset__count=16) == 0
  ordered = problems(tmp_path / "subset" / "problems.jsonl")
  solved = [p.extra["solved"] for p in ordered]
  assert solved[: len(set(solved))] == sorted(set(solved))  # one of each difficulty first
  chosen = dict(problems__source=tmp_path / "subset" / "problems.jsonl", problems__count=3)
  assert run_smoke("rl", tmp_path / "rl", init=init, **chosen, **QUICK) == 0
  assert {r["problem"] for r in rollouts(tmp_path / "rl")} == {p.id for p in ordered[:3]}
  mixed = [dataclasses.replace(p, extra=p.extra | {"samples": 4 + i % 2}) for i, p in enumerate(kept)]
  prepared.save(tmp_path / "mixed.jsonl", mixed)
  assert run_smoke("subset", tmp_path / "mixed", problems__source=tmp_path / "mixed.jsonl") == 2
  assert "filter them alike" in capsys.readouterr().err
  # a source that was never filtered
  assert run_smoke("subset", tmp_path / "no", problems__count=4) == 2
  assert "run `jaxrlvr filter` first" in capsys.readouterr().err
  assert (
    run_smoke(
      "filter", tmp_path / "none", init=init, problems__count=8, filter__samples=4, filter__low=4, filter__high=4
    )
    == 2
  )
  assert "none of 8 problems" in capsys.readouterr().err


def test_a_filter_keeps_its_range_alone(tmp_path, init):
  settings = dict(init=init, problems__count=24, filter__samples=4, filter__low=0, filter__high=0)
  assert run_smoke("filter", tmp_path / "f", **settings) == 0
  assert {p.extra["solved"] for p in problems(tmp_path / "f" / "problems.jsonl")} == {0}
  assert sum(json.loads((tmp_path / "f" / "summary.json").read_text())["histogram"][1:]) > 0


def test_the_random_order_depends_on_seed_and_ids_alone():
  problems = [Problem(f"p{i}", (), "1", "1", "math") for i in range(50)]
  order = [p.id for p in label._in_random_order(0, problems)]
  assert order == [p.id for p in label._in_random_order(0, problems[::-1])] != [p.id for p in problems]
  assert order != [p.id for p in label._in_random_order(1, problems)]


def test_an_interrupted_filter_goes_on_behind_its_last_batch(tmp_path, init):
  settings = dict(init=init, problems__count=24, filter__samples=4, filter__high=3)
  assert run_smoke("filter", tmp_path / "whole", **settings) == 0
  assert run_smoke("filter", tmp_path / "cut", **settings) == 0
  rows = tmp_path / "cut" / "rows"
  files = sorted(rows.iterdir())
  assert len(files) > 2
  for file in files[1:]:
    file.unlink()
  (tmp_path / "cut" / "summary.json").unlink()
  assert run_smoke("filter", tmp_path / "cut", **settings) == 0
  read = [(tmp_path / name / "problems.jsonl").read_text() for name in ("whole", "cut")]
  assert read[0] == read[1] and len(list(rows.iterdir())) == len(files)


def test_corrupt_rl(tmp_path, init):
  settings = dict(init=init, problems__count=20, **TWELVE)
  assert run_smoke("corrupt", tmp_path / "corrupt", corrupt__gammas="(0.2,0.5,0.9)", **settings) == 0
  sets = {g: problems(tmp_path / "corrupt" / f"gamma_{g:.2f}.jsonl") for g in (0.2, 0.5, 0.9)}
  ids, labels, wrong = [], [], {}
  for gamma, corrupted in sets.items():
    wrong[gamma] = {p.id for p in corrupted if p.label != p.truth}
    ids.append([p.id for p in corrupted])
    labels.append({p.id: p.label for p in corrupted if p.id in wrong[0.2]})
  assert [len(wrong[g]) for g in (0.2, 0.5, 0.9)] == [4, 10, 18] and wrong[0.2] < wrong[0.5] < wrong[0.9]
  assert ids[0] == ids[1] == ids[2] and labels[0] == labels[1] == labels[2]
  summary = json.loads((tmp_path / "corrupt" / "summary.json").read_text())
  digest = hashlib.sha256((tmp_path / "corrupt" / "gamma_0.50.jsonl").read_bytes()).hexdigest()
  assert summary["files"]["gamma_0.50.jsonl"] == {"gamma": 0.5, "relabelled": 10, "sha256": digest}
  # another run, another order of problems, a smaller gamma: the same labels
  shuffled = tmp_path / "shuffled.jsonl"
  prepared.save(shuffled, problems_as_they_were(sets[0.9])[::-1])
  settings |= dict(problems__source=shuffled, corrupt__gammas="(0.5,)")
  assert run_smoke("corrupt", tmp_path / "again", **settings) == 0
  corrupted_again = problems(tmp_path / "again" / "gamma_0.50.jsonl")
  assert {p.id: p.label for p in corrupted_again} == {p.id: p.label for p in sets[0.5]}
  source = tmp_path / "corrupt" / "gamma_0.90.jsonl"
  assert run_smoke("rl", tmp_path / "rl", init=init, problems__source=source, problems__count=0, **QUICK) == 0
  rows = rollouts(tmp_path / "rl")
  share = np.mean([r["label"] == r["truth"] for r in rows])
  assert metrics(tmp_path / "rl")[1]["label_accuracy"] == pytest.approx(share) and share < 0.6
  assert all(r["reward"] == float(r["answer"] == r["label"]) for r in rows)


def test_corrupt_samples_no_more_than_it_needs(tmp_path, init):
  """Nor does a run that was killed before its end and resumes."""
  settings = dict(init=init, problems__count=24, corrupt__gammas="(0.1,)", **TWELVE)
  assert run_smoke("corrupt", tmp_path, **settings) == 0
  summary, rows = (tmp_path / "summary.json").read_text(), sorted((tmp_path / "rows").iterdir())
  assert json.loads(summary)["sampled"] == 8 and len(rows) == 1
  (tmp_path / "summary.json").unlink()
  assert run_smoke("corrupt", tmp_path, **settings) == 0
  assert (tmp_path / "summary.json").read_text() == summary and sorted((tmp_path / "rows").iterdir()) == rows


def test_what_corrupt_refuses(tmp_path, init, capsys):
  labels = [("p", "4", "5"), ("q", "4", "4")]
  problems = [
    Problem(i, ({"role": "user", "content": i},), *rest, "arithmetic", {"operations": 1}) for i, *rest in labels
  ]
  prepared.save(tmp_path / "noisy.jsonl", problems)
  settings = dict(init=init, problems__source=tmp_path / "noisy.jsonl", problems__count=0)
  assert run_smoke("corrupt", tmp_path / "c", **settings) == 2
  assert "start from the true labels" in capsys.readouterr().err
  for gammas in ("(0.5,0.501)", "(True,)", "(1.5,)", "()"):
    assert run_smoke("corrupt", tmp_path / "g", init=init, corrupt__gammas=gammas) == 2
    assert "config.corrupt.gammas" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("accepted", "wrong"),
  [({("7", "8")}, False), ({("8", "7")}, False), (set(), True), ({("7", "7"), ("8", "8")}, True)],
)
def test_a_corrupted_label_must_not_pay_the_truth_either_way(accepted, wrong):
  p = Problem("p", (), "8", "8", "arithmetic", {})

  def grade(jobs):
    return [Verdict(float((job.response.answer, job.label) in accepted)) for job in jobs]

  assert label.can_be_wrong_label(p, "7", grade) is wrong
  for verdict in (Verdict(None, "timeout"), Verdict(0.0, "unparseable")):
    assert not label.can_be_wrong_label(p, "7", lambda jobs, v=verdict: [v for _ in jobs])


def test_filter_counts_what_could_not_be_graded_apart(tmp_path, init, monkeypatch, caplog):
  """One of four samples can't be graded, and of one problem none can."""
  real, lost = label.verifiable.grade_by_truth, []

  def truth(answers, grade):
    graded = real(answers, grade)
    lost[:] = lost or [answers.problems[0].id]
    known = graded.scored_PG & (np.arange(4) != 2) & np.array([[p.id not in lost] for p in answers.problems])
    cause = np.where(known, "", "timeout").tolist()
    return graded._replace(scored_PG=known, cause_PG=cause, value_PG=np.where(known, graded.value_PG, 1.0))

  monkeypatch.setattr(label.verifiable, "grade_by_truth", truth)
  settings = dict(init=init, problems__count=24, filter__samples=4, filter__low=0, filter__high=3)
  assert run_smoke("filter", tmp_path / "f", **settings) == 0
  summary = json.loads((tmp_path / "f" / "summary.json").read_text())
  assert summary["unscored"] == {"timeout": 23 + 4} and sum(summary["histogram"]) == 23
  kept = problems(tmp_path / "f" / "problems.jsonl")
  assert lost[0] not in {p.id for p in kept} and all(p.extra["solved"] < 4 for p in kept)
  assert "27 samples could not be graded" in caplog.text and "1 problems are left out" in caplog.text


def test_another_reading_of_answers_is_another_run(tmp_path, init, capsys):
  settings = dict(init=init, **QUICK)
  assert run_smoke("rl", tmp_path / "rl", **settings) == 0
  assert run_smoke("rl", tmp_path / "rl", verify__cpu_seconds=3.0, **settings) == 0
  assert run_smoke("rl", tmp_path / "rl", verify__mode="study", **settings) == 2
  assert "config.verify.mode" in capsys.readouterr().err


def test_rows_that_their_verifier_can_not_judge(tmp_path, capsys, caplog):
  base = {"id": "p", "messages": [{"role": "user", "content": "?"}], "label": "1", "truth": "1", "extra": {}}
  for more, message in (
    ({"verifier": "maths"}, "verifier 'maths'; use one of math"),
    ({"verifier": "quantum_lock"}, "no extra.buttons"),
    ({"verifier": "math", "extra": {"also": ["x"]}}, "extra.also"),
    ({"verifier": "reasoning_gym", "extra": {"source_dataset": "countdown", "entry": {}}}, "countdown"),
  ):
    (tmp_path / "p.jsonl").write_text(json.dumps(base | more) + "\n")
    assert (
      run_smoke("prepare", tmp_path / f"out-{message[:5]}", problems__source=tmp_path / "p.jsonl", problems__count=0)
      == 2
    )
    error = capsys.readouterr().err
    assert message in error and "config.problems" in error
  rows = [
    base | {"id": f"p{i}", "messages": [{"role": "user", "content": str(i)}], "verifier": "math"} for i in range(9)
  ]
  (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert run_smoke("prepare", tmp_path / "out", problems__source=tmp_path / "p.jsonl", problems__count=4) == 0
  assert "the first 4 of 9 problems" in caplog.text


def test_means_of_a_domain():
  c = configs.derive(configs.base(), {"heldout.domain": "math"})
  average = {"math500": 0.5, "amc": 0.25, "scp-hard": 0.1, "other": 1.0}
  means = domain_means(c, {f"eval/{name}/avg@16": value for name, value in average.items()})
  assert means == pytest.approx({"eval/in-domain/avg@16": 0.375, "eval/out-of-domain/avg@16": 0.1})


def problems_as_they_were(problems_now):
  return [dataclasses.replace(p, label=p.truth) for p in problems_now]


def test_problems_without_a_wrong_answer_are_passed_over_and_told(tmp_path, init, caplog):
  """Labels are the policy's own answers; a label that it always gives can't be corrupted."""
  settings = dict(init=init, rl__temperature=0.01, evaluate__problems_per_batch=2)
  always = dict(filter__samples=4, filter__low=4, filter__high=4)
  assert run_smoke("filter", tmp_path / "f", problems__count=40, **always, **settings) == 0
  settings |= dict(problems__source=tmp_path / "f" / "problems.jsonl", problems__count=0)
  assert run_smoke("corrupt", tmp_path / "c", corrupt__samples=4, corrupt__gammas="(1.0,)", **settings) == 0
  summary = json.loads((tmp_path / "c" / "summary.json").read_text())
  assert summary["files"]["gamma_1.00.jsonl"]["relabelled"] == 0
  assert len(summary["without_such_answer"]) == summary["problems"] > 0
  assert "have no such answer in 4 samples" in caplog.text


def test_majority_labels(tmp_path, init):
  settings = dict(init=init, problems__count=10, corrupt__label="majority", corrupt__gammas="(1.0,)")
  assert run_smoke("corrupt", tmp_path / "m", **settings, **TWELVE) == 0
  generated = problems(tmp_path / "m" / "gamma_1.00.jsonl")
  assert all(p.extra["relabelled"] for p in generated) and len({p.label == p.truth for p in generated}) == 2


@pytest.mark.parametrize("kind", ["jsonl", "tfds"])
def test_prepared_sets_serve_as_sources(tmp_path, init, kind):
  if kind == "tfds":
    pytest.importorskip("tensorflow_datasets")
  assert run_smoke("prepare", tmp_path / "p", problems__count=6, prepare__format=kind) == 0
  summary = logbook.read_json(tmp_path / "p" / "summary.json")
  (tmp_path / "p" / "summary.json").unlink()  # killed before its end
  assert run_smoke("prepare", tmp_path / "p", problems__count=6, prepare__format=kind) == 0
  assert logbook.read_json(tmp_path / "p" / "summary.json") == summary
  path = tmp_path / "p" / ("problems.jsonl" if kind == "jsonl" else "problems")
  settings = dict(problems__source=path, problems__count=6, rl__reward="verifiable*one_box")
  assert run_smoke("rl", tmp_path / "rl", init=init, **settings, **QUICK) == 0
  direct = {r["problem"] for r in rollouts(tmp_path / "rl")}
  assert len(direct) == 6 and all(r["faithfulness"] is not None for r in rollouts(tmp_path / "rl"))


def test_labels_that_nobody_can_read(tmp_path, init, caplog, capsys):
  rows = [{"prompt": f"p{i}", "answer": label} for i, label in enumerate(("12", r"\frac12", "\\frac{", "4"))]
  (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = dict(
    problems__source=tmp_path / "q.jsonl", problems__columns="prompt=prompt,label=answer", problems__count=0
  )
  assert run_smoke("prepare", tmp_path / "warn", **settings) == 0
  assert "1 of 4 labels can't be read" in caplog.text
  (bad,) = logbook.read_jsonl(tmp_path / "warn" / "unreadable.jsonl")
  assert bad["label"] == "\\frac{"
  assert run_smoke("prepare", tmp_path / "drop", problems__unreadable="drop", **settings) == 0
  assert [p.label for p in problems(tmp_path / "drop" / "problems.jsonl")] == ["12", r"\frac12", "4"]
  assert run_smoke("rl", tmp_path / "rl", init=init, problems__unreadable="error", **settings, **QUICK) == 2
  assert "problems.unreadable=drop" in capsys.readouterr().err
  (tmp_path / "q.jsonl").write_text("".join(json.dumps(row | {"answer": "\\frac{ long"}) + "\n" for row in rows))
  for stage, more in (("prepare", {}), ("rl", QUICK | {"init": init, "problems__unreadable": "drop"})):
    assert run_smoke(stage, tmp_path / "none", **settings, **more) == 2
    error = capsys.readouterr().err
    assert "4 of 4 labels can't be read" in error and "#### ANSWER" in error
    assert "from the column of label=answer, the first as '\\\\frac{ long'" in error


def test_a_problem_with_two_unreadable_answers_counts_once(caplog):
  """Its label and its truth can't be read; of two problems one is left, in one row with both reasons."""
  config = configs.load("smoke", {"problems.unreadable": "drop"})
  message = ({"role": "user", "content": "?"},)
  spoilt = Problem("spoilt", message, "\\frac{ a", "\\frac{ b", "math")
  fine = Problem("fine", message, "1", "1", "math")
  with rollout.verifier_service(config) as service:
    kept, unreadable = rollout.with_readable_labels(config, "problems", [spoilt, fine], service)
  assert kept == [fine] and "1 of 2 labels can't be read" in caplog.text
  [(problem, reason)] = unreadable
  assert problem == spoilt and "'\\\\frac{ a'" in reason and "'\\\\frac{ b'" in reason


def test_a_signal_ends_the_reading_of_labels(tmp_path, monkeypatch):
  settings = dict(problems__count=5)
  monkeypatch.setattr(stopping, "_asked", [])
  monkeypatch.setattr(rollout, "_ITEMS_PER_CHECK", 2)
  graded, signals, unreadable = [], [15], Service.unreadable_answers

  def watched(self, part):
    graded.append(len(part))
    stopping._asked.extend(signals)
    return unreadable(self, part)

  monkeypatch.setattr(Service, "unreadable_answers", watched)
  assert run_smoke("prepare", tmp_path / "p", **settings) == 143 and graded == [2]
  assert not (tmp_path / "p").exists()
  assert run_smoke("prepare", tmp_path / "p", **settings) == 143 and graded == [2]  # it came before the stage began
  stopping._asked.clear()
  signals.clear()
  assert run_smoke("prepare", tmp_path / "p", **settings) == 0 and graded == [2, 2, 2, 1]


def test_labels_with_a_number_in_words_are_told_where_the_number_is_not_paid(tmp_path, caplog):
  labels = ("15 marbles", "about 15", "3 pears and 12 apples", r"\sqrt{15}", "Evelyn", "7")
  rows = [{"prompt": f"p{i}", "answer": label} for i, label in enumerate(labels)]
  (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  settings = dict(problems__source=tmp_path / "q.jsonl", problems__count=0)
  for mode, count, first in (("strict", 1, "about 15"), ("study", 2, "15 marbles")):
    caplog.clear()
    assert run_smoke("prepare", tmp_path / mode, verify__mode=mode, **settings) == 0
    assert (
      f"{count} of 6 labels hold a number in words that is not paid without them, the first {first!r}" in caplog.text
    )
  (tmp_path / "q.jsonl").write_text(json.dumps(rows[0]) + "\n")
  caplog.clear()
  assert run_smoke("prepare", tmp_path / "paid", **settings) == 0 and "in words" not in caplog.text


def test_several_sets_in_one_table(tmp_path, init, official, capsys):
  sets = ("amc", "gpqa-diamond", "quantum-lock-qwen")
  settings = dict(heldout__sets=",".join(sets), heldout__domain="math", heldout__at_most=3, heldout__too_long="drop")
  settings |= dict(heldout__folder=official / "eval", rl__prompt_tokens=1024, rl__response_tokens=8)
  assert run_smoke("evaluate", tmp_path / "e", init=init, **settings) == 0
  summary = json.loads((tmp_path / "e" / "summary.json").read_text())
  assert all(1 <= summary[f"eval/{name}/problems"] <= 3 for name in sets)
  assert summary["eval/out-of-domain/avg@4"] == summary["eval/gpqa-diamond/avg@4"]
  with open(tmp_path / "e" / "table.csv") as file:
    table = {row["set"]: row for row in csv.DictReader(file)}
  assert set(table) == {*sets, "in-domain", "out-of-domain"}
  assert {"avg@4", "pass@4", "maj@4", "format", "if_extracted@4"} <= set(table["amc"])
  stdout = capsys.readouterr().out
  assert "| amc |" in stdout and stdout.startswith((tmp_path / "e" / "table.md").read_text()[:20])
  assert run_smoke("evaluate", tmp_path / "n", init=init, heldout__domain="math", heldout__folder=tmp_path) == 2
  assert "config.heldout.folder" in capsys.readouterr().err


SLOW = pytest.mark.slow
EXPERIMENTS = [
  ("scarce", ""),
  pytest.param("noisy", "graph", marks=SLOW),
  pytest.param("proxy", "", marks=SLOW),
  pytest.param("baselines", "one", marks=SLOW),
  pytest.param("scarce", "llama3.2-3b-thinking,32", marks=SLOW),
  pytest.param("scarce", "science,llama3.2-3b-instruct,64", marks=SLOW),
  pytest.param("scarce", "graph,llama3.1-8b-instruct", marks=SLOW),
  pytest.param("noisy", "0.3", marks=SLOW),
  pytest.param("proxy", "self_certainty", marks=SLOW),
  pytest.param("proxy", "llama3.2-3b-thinking", marks=SLOW),
  pytest.param("baselines", "", marks=SLOW),
]


@pytest.mark.parametrize(("name", "arg"), EXPERIMENTS)
def test_configs_of_the_study_run_small(tmp_path, init, official, name, arg):
  """A built-in policy gets their real prompts and labels: every path runs, and scores mean nothing."""
  words = ",".join(filter(None, (arg, "tiny", f"data={official}")))
  c = configs.load(f"{name}:{words}", {"init": str(init)})
  summary = STAGES["rl"](c, tmp_path / "rl")
  rows = metrics(tmp_path / "rl")
  assert [r["step"] for r in rows] == [0, 1, 2] and all(math.isfinite(r["loss"]) for r in rows[1:])
  assert "label_accuracy" in rows[1] and summary["paper"]["figure"]
  assert any(key.startswith("eval/in-domain") for key in rows[-1])
  full = configs.load(f"{name}:{arg}")
  assert full.rl.steps == (850 if name == "proxy" else 496)
  assert full.rl.problems_per_step == 64 and full.rl.optim.lr == 1e-6
  assert (full.rl.minibatch_problems == 32) == ("majority" in full.rl.reward or "thinking" in full.init)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rl.votes": 16}, "config.rl.votes is set"),
    ({"rl.votes": 4, "rl.reward": "majority_vote"}, "below config.rl.group_size"),
    ({"rl.noise": (0.1, 0.1), "rl.reward": "self_certainty"}, "need a reward of 0 and 1"),
    ({"rl.noise": (0.6, 0.5), "rl.correction": "backward"}, "less than 1"),
    ({"rl.correction": "backward"}, "assumes no noise"),
    ({"rl.correction_noise": (0.1, 0.1)}, "does not read it"),
    ({"rl.noise": (0.1, 0.1), "rl.correction": "forward", "rl.scale_std": False}, "takes the place of baseline"),
    ({"rl.noise": (0.1, 1.1)}, "two rates from 0 to 1"),
    ({"filter.low": 9, "filter.high": 3}, "low <= high"),
    ({"heldout.sets": ("nope",)}, "config.heldout.sets: 'nope': wanted one of math500"),
  ],
)
def test_settings_that_can_not_go_together(changes, message):
  with pytest.raises(InputError, match=message):
    configs.derive(configs.base(), changes)


def test_settings_of_the_study():
  c = configs.load("scarce:qwen2.5-math-1.5b,math,8")
  assert c.problems.source == "study-data/math/train/qwen-math-1.5b/sky_math_8.parquet"
  assert (c.rl.kl_beta, c.rl.clip_low, c.rl.dual_clip, c.rl.reduce) == (0.001, 0.2, 3.0, "token-mean")
  assert "302" in c.paper.expected and c.heldout.domain == "math"
  c = configs.load("noisy:graph,0.5")
  assert c.problems.source.endswith("graph/noisy/qwen-math-7b/graph_882_gamma0.50.parquet")
  c = configs.load("proxy:llama3.2-3b-thinking")
  assert (c.rl.reward, c.rl.votes, c.rl.group_size) == ("majority_vote_thinking", 16, 8)
  assert (c.rl.steps, c.problems.source[-21:]) == (850, "sky_math_1024.parquet")
  assert "Qwen2.5-3B on Science after step 500" in c.paper.expected and "table 8" in c.paper.figure
  for words, message in (
    ("scarce:quick", "chooses nothing"),
    ("scarce:graph,8", "no graph problems"),
    ("scarce:mth", "math"),
  ):
    with pytest.raises(InputError, match=message):
      configs.load(words)


def test_baselines_differ_in_the_baseline_only():
  by_name = {name: configs.load(f"baselines:{name}") for name in ("mean", "zero", "one", "positive", "negative")}
  for name, c in by_name.items():
    assert (c.rl.baseline, c.rl.reduce) == (name, "sequence-mean-token-sum")
    assert c.rl.scale_std == (name not in ("zero", "one")) and c.heldout.domain == "science"
    assert c.problems.source.endswith("science/train/qwen-math-1.5b/scp_8.parquet")
  assert configs.load("baselines:1024").problems.source.endswith("scp_1024.parquet")


EXPECTED = {  # t_sat and gains at N = 8 (tables 1 and 3)
  "qwen2.5-math-1.5b,math": (302, {"math500": 29.7, "amc": 18.7, "scp-hard": 10.5}),
  "qwen2.5-1.5b,math": (170, {"math500": 32.1, "amc": 12.7, "scp-hard": 7.0}),
  "qwen2.5-1.5b,science": (161, {"scp-hard": 6.4, "gpqa-diamond": 13.3, "math500": 32.3}),
  "llama3.2-3b-instruct,math": (55, {"math500": 10.8, "amc": 8.8, "scp-hard": 3.9}),
}


@pytest.mark.parametrize("words", EXPECTED)
def test_what_the_paper_reports(words):
  c = configs.load(f"scarce:{words},8")
  assert (c.paper.t_sat, dict(c.paper.gains)) == EXPECTED[words]
  if words == "qwen2.5-1.5b,math":
    assert "+42.6" in c.paper.expected and "+15.8" in c.paper.expected


def test_noise_that_models_stand():
  assert "from gamma 0.5" in configs.load("noisy:llama3.2-3b-instruct,science").paper.expected
  assert "to gamma 0.7" in configs.load("noisy:qwen2.5-math-1.5b,science").paper.expected
