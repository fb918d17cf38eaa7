"""The stage judge, from recorded responses to figures."""

import json
import math
import operator
import shutil

import pytest

from helpers.judging import faithfulness, honest, strategy
from helpers.serving import completion, send
from jaxrlvr import cli
from jaxrlvr.analysis import reasoning
from jaxrlvr.base import logbook, signals
from jaxrlvr.config import files as configs
from jaxrlvr.judging import rubric
from jaxrlvr.judging.rubric import Response
from jaxrlvr.stages.judge import figure_in_words
from jaxrlvr.tasks.arithmetic import problems as arithmetic

STEPS, P, K = (1, 2, 3, 4), 10, 6


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """The directory of an RL run whose traces become more careful: ten problems, two responses each at every step."""
  folder = tmp_path_factory.mktemp("rl") / "run"
  logbook.write_json(folder.parent / "run" / "config.json", {"stage": "rl", **configs.base().to_dict()})
  problems = arithmetic.problems(0, "train", (2,), P, ("expression",))
  draw = arithmetic.rng(0, "test")
  for step in STEPS:
    rows = []
    for p in problems:
      for sample in range(2 * K):
        ways = (arithmetic.direct, arithmetic.terse, lambda tree: arithmetic.hasty(tree, draw, 0.3), arithmetic.careful)
        text = draw.choices(ways, (3, 2, 2, 2 * step))[0](p.extra["tree"])
        right = None if draw.random() < 0.1 else float(f"boxed{{{p.truth}}}" in text)
        rows.append(
          {
            "step": step,
            "problem": p.id,
            "sample": sample,
            "prompt": p.messages[-1]["content"],
            "text": text,
            "true_reward": right,
            "tokens": 5,
          }
        )
    draw.shuffle(rows)
    logbook.write_jsonl(folder / "rollouts" / f"step_{step:06d}.jsonl", rows)
  logbook.write_jsonl(folder / "metrics.jsonl", ({"step": s, "reward": min(s, 2) / 2} for s in (0, *STEPS)))
  return folder


def run(run_dir, workdir, *options):
  words = ["judge", "--config=smoke", f"--workdir={workdir}", f"--config.judge.run={run_dir}"]
  with pytest.raises(SystemExit) as stop:
    cli.run([*words, f"--config.judge.samples={K}", *(f"--config.{o}" for o in options)])
  return stop.value.code


def judged_files(workdir):
  return {int(p.stem[-6:]): logbook.read_jsonl(p) for p in sorted((workdir / "judged").iterdir())}


@pytest.fixture(scope="module")
def exact(recorded, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("exact") / "run"
  assert run(recorded, workdir) == 0
  return workdir


def test_stage_judges_the_same_problems_at_first_saturated_and_last_step(exact, recorded):
  files = judged_files(exact)
  assert list(files) == [1, 2, 4]  # the reward is full at step 2
  address_of = operator.itemgetter("problem", "sample")
  addresses = [list(map(address_of, rows)) for rows in files.values()]
  assert addresses[0] == addresses[1] == addresses[2] and len(addresses[0]) == 8 * K
  assert {sample for _, sample in addresses[0]} == set(range(K))
  for step, rows in files.items():
    drawn = logbook.read_jsonl(recorded / "rollouts" / f"step_{step:06d}.jsonl")
    source = {(r["problem"], r["sample"]): r for r in drawn}
    by_problem = {}
    for row in rows:
      assert set(row) == {"step", "problem", "sample", "correct", "faithfulness", "cluster", "key"}
      one = source[row["problem"], row["sample"]]
      assert row["correct"] == (None if one["true_reward"] is None else one["true_reward"] == 1.0)
      assert row["faithfulness"] == faithfulness(one["text"], one["prompt"])
      assert row["key"] == rubric.key("faithfulness", (Response(one["prompt"], one["text"]),))
      by_problem.setdefault(row["problem"], []).append((strategy(one["text"]), row["cluster"]))
    for pairs in by_problem.values():
      seen = list(dict.fromkeys(way for way, _ in pairs))
      assert [seen.index(way) for way, _ in pairs] == [cluster for _, cluster in pairs]


def test_stage_tells_figures_of_each_step(exact, capsys):
  summary = json.loads((exact / "summary.json").read_text())
  assert summary["finished"] and summary["kappa"] == {} and summary["usage"] == {"first": {}}
  assert list(summary["figures"]) == ["1", "2", "4"]
  rows = logbook.read_jsonl(exact / "metrics.jsonl")
  for (step, judged), row in zip(judged_files(exact).items(), rows, strict=True):
    want = logbook.finite(reasoning.reasoning_figures(judged))
    assert {"step": step} | want == row and want == summary["figures"][str(step)]
    assert want["labelled/all"] == 8 * K and want["F(1)/all_low"] <= want["F(1)/all"] <= want["F(1)/all_high"]
  assert rows[0]["F(1)/all"] < rows[-1]["F(1)/all"] and 0 < rows[0]["diversity"] < 1


def test_stage_over_http_equals_the_exact_judge_and_goes_on_after_an_outage(
  exact,
  recorded,
  tmp_path,
  serve,
  monkeypatch,
  caplog,
):
  monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
  broken = [True]

  def play(handler, number, request):
    if broken[0] and number > 30:
      return send(handler, 503)
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    send(handler, body=completion(honest(request["messages"][0]["content"]), usage=usage))

  server, workdir = serve(play), tmp_path / "w"
  options = ["judge.name=http", f"judge.url={server.url}", "judge.model=m", "judge.key_variable=JUDGE_KEY"]
  options += ["judge.retries=0", "judge.price_in=1.0", "judge.price_out=3.0", "judge.second.name=replay"]
  options += [f"judge.second.file={exact / 'labels.jsonl'}"]
  assert run(recorded, workdir, *options) == 3
  assert "503" in caplog.text and not (workdir / "judged").exists() and not (workdir / "summary.json").exists()
  known = len(list((workdir / "cache").iterdir()))
  broken[0], tried = False, len(server.requests)
  assert 0 < known <= 30
  assert run(recorded, workdir, *options) == 0
  assert judged_files(workdir) == judged_files(exact)
  summary = json.loads((workdir / "summary.json").read_text())
  assert {k: v for k, v in summary["figures"].items()} == json.loads((exact / "summary.json").read_text())["figures"]
  for one in summary["kappa"].values():
    assert one["kappa"] == 1.0 and one["missing"] == 0 and one["both"] > 100
  questions = len({r["key"] for r in logbook.read_jsonl(workdir / "labels.jsonl")})
  assert len(server.requests) - tried == questions - known
  used = summary["usage"]["first"]
  assert used["calls"] == len(server.requests) and used["prompt_tokens"] == 100 * questions
  assert used["cost"] == pytest.approx((100 * questions + 3 * 10 * questions) / 1e6)
  assert all(b"sk-very-secret" not in p.read_bytes() for p in workdir.rglob("*") if p.is_file())
  assert "sk-very-secret" not in caplog.text and set(server.keys) == {"Bearer sk-very-secret"}

  seen = len(server.requests)
  (workdir / "summary.json").unlink()
  (workdir / "judged" / "step_000002.jsonl").unlink()
  before = {p: p.stat().st_mtime_ns for p in (workdir / "judged").iterdir()}
  assert run(recorded, workdir, *options) == 0 and judged_files(workdir) == judged_files(exact)
  assert len(server.requests) == seen and before == {p: p.stat().st_mtime_ns for p in before}
  assert json.loads((workdir / "summary.json").read_text())["usage"]["first"]["cached"] > 0


def test_stage_without_a_judge_that_answers_makes_up_nothing(recorded, tmp_path, serve, capsys):
  server = serve(lambda h, n, r: send(h, 401))
  options = ["judge.name=http", f"judge.url={server.url}", "judge.model=m", "judge.concurrency=1"]
  assert run(recorded, tmp_path / "a", *options) == 3 and len(server.requests) == 1
  assert "labels are missing" in capsys.readouterr().err and not (tmp_path / "a" / "judged").exists()
  assert run(recorded, tmp_path / "b", *options, "judge.max_missing=1.0") == 0
  figures = json.loads((tmp_path / "b" / "summary.json").read_text())["figures"]["1"]
  assert figures["F(1)/all"] is None and figures["diversity/problems"] < 8 and figures["missing/all"] == 8 * K
  assert figures["diversity/left_out"] > 0 and figures["faithful_diversity"] is None


def test_figures_without_a_value_are_printed_in_words():
  figures = {"F(1)/all": 0.0, "F(1)/all_low": 0.0, "F(1)/all_high": 0.0, "faithful_diversity": math.nan}
  assert figure_in_words(figures, "F(1)/all") == "F(1)/all 0.000 [0.000, 0.000]"
  assert figure_in_words(figures, "faithful_diversity") == "faithful_diversity: no response is faithful"
  figures["F(1)/all"] = math.nan
  assert figure_in_words(figures, "faithful_diversity") == "faithful_diversity: not measured"


def test_stage_stops_by_a_signal_and_goes_on(recorded, tmp_path, serve, monkeypatch):
  """Labels that were not asked for because of the signal are not recorded as missing."""
  monkeypatch.setattr(signals, "_asked", [])

  def play(handler, number, request):
    if number == 20:
      signals._asked.append(15)
    send(handler, body=completion(honest(request["messages"][0]["content"])))

  server = serve(play)
  options = ["judge.name=http", f"judge.url={server.url}", "judge.model=m", "judge.steps=(1,)"]
  options += ["judge.max_missing=1.0"]
  assert run(recorded, tmp_path, *options) == 143 and not (tmp_path / "judged").exists()
  assert 20 <= len(server.requests) < 30
  signals._asked.clear()
  assert run(recorded, tmp_path, *options) == 0
  assert all(r["faithfulness"] is not None and r["cluster"] is not None for r in judged_files(tmp_path)[1])


def test_stage_takes_evaluated_sets_and_chosen_steps(recorded, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(recorded, folder)
  (folder / "evals").mkdir()
  for step in (0, 3):
    shutil.copy(folder / "rollouts" / "step_000003.jsonl", folder / "evals" / f"quiz_{step:06d}.jsonl")
  shutil.copy(folder / "rollouts" / "step_000003.jsonl", folder / "evals" / "other_000009.jsonl")
  assert run(folder, tmp_path / "w", "judge.set=quiz", "judge.problems=3") == 0
  files = judged_files(tmp_path / "w")
  assert list(files) == [0, 3] and len(files[0]) == 3 * K
  assert run(folder, tmp_path / "v", "judge.steps=(3,)", "judge.problems=100") == 0
  assert {step: len(rows) for step, rows in judged_files(tmp_path / "v").items()} == {3: P * K}
  chosen = {r["problem"] for r in files[0]}
  assert run(folder, tmp_path / "u", "judge.set=quiz", "judge.problems=3", "seed=5") == 0
  assert chosen != {r["problem"] for r in judged_files(tmp_path / "u")[0]}


def test_stage_refuses_bad_input_before_any_work(recorded, tmp_path, capsys):
  apart = tmp_path / "apart"
  shutil.copytree(recorded, apart)
  rows = logbook.read_jsonl(apart / "rollouts" / "step_000004.jsonl")
  logbook.write_jsonl(apart / "rollouts" / "step_000004.jsonl", (r | {"problem": "x" + r["problem"]} for r in rows))
  torn = tmp_path / "torn"
  shutil.copytree(recorded, torn)
  (torn / "rollouts" / "step_000001.jsonl").write_text('{"problem": "p"}\n')
  changed = {}
  for name, file, old, new in (
    ("metrics", "metrics.jsonl", '{"step": 3', '{"st'),
    ("rows", "metrics.jsonl", '{"step": 3', '[3]\n{"step": 3'),
    ("bytes", "metrics.jsonl", '"step": 3', '"\udcff": 3'),
    ("step", "metrics.jsonl", '"step": 3', '"step": "x"'),
    ("reward", "metrics.jsonl", '"reward": 0.5', '"reward": "x"'),
    ("line", "rollouts/step_000001.jsonl", '"text"', '"te'),
    ("right", "rollouts/step_000001.jsonl", '"true_reward": 1.0', '"true_reward": "yes"'),
  ):
    shutil.copytree(recorded, changed.setdefault(name, tmp_path / name))
    text = (changed[name] / file).read_text()
    assert old in text
    (changed[name] / file).write_text(text.replace(old, new, 1), errors="surrogateescape")
  http = ["judge.name=http", "judge.model=m"]
  for folder, options, words in (
    ("", [], "config.judge.run is empty"),
    (tmp_path / "nowhere", [], "holds no run"),
    (recorded, ["judge.set=quiz"], "has no evals/quiz_*.jsonl"),
    (recorded, ["judge.steps=(1,7)"], "step 7 is not recorded; there are 1, 2, 3, 4"),
    (apart, [], "no problem is at all of the steps"),
    (torn, [], "can't be read as recorded responses (step is absent"),
    (changed["metrics"], [], "metrics.jsonl, line 4: is no JSON object"),
    (changed["rows"], [], "line 4: is no JSON object (a list); restore it, or take it out"),
    (changed["bytes"], [], "line 4: is no JSON object ('utf-8' codec"),
    (changed["reward"], [], "metrics.jsonl: a step or reward is no number (could not convert string to float: 'x')"),
    (changed["step"], [], "or name steps (config.judge.steps)"),
    (changed["line"], [], "step_000001.jsonl, line 1: is no JSON object"),
    (changed["right"], [], "(true_reward is absent or of another kind)"),
    (recorded, ["judge.name=oracle"], "config.judge.name = 'oracle': wanted one of exact, http, local, replay"),
    (recorded, ["judge.problems=0"], "wanted at least 1"),
    (recorded, http, "config.judge: url ''"),
    (recorded, [*http, "judge.url=ftp://h/v1"], "http://localhost:8000/v1"),
    (recorded, [*http, "judge.url=http://h/v1", "judge.key_variable=NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
    (recorded, [*http, "judge.url=http://h/v1", "judge.key_variable=sk-123"], "the name of an environment variable"),
    (recorded, ["judge.second.name=replay", "judge.second.file=gone.jsonl"], "config.judge.second: labels to replay"),
  ):
    assert run(folder, tmp_path / "w", *options) == 2, options
    stderr = capsys.readouterr().err
    assert words in stderr and stderr.count("\n") == 1, stderr
    assert not (tmp_path / "w").exists()


def test_stage_does_not_go_on_with_other_responses(exact, recorded, tmp_path, capsys):
  folder, workdir = tmp_path / "moved", tmp_path / "w"
  shutil.copytree(recorded, folder)
  shutil.copytree(exact, workdir)
  assert run(folder, workdir) == 0  # the same, from another place
  file = folder / "rollouts" / "step_000004.jsonl"
  file.write_text(file.read_text().replace("boxed{1}", "boxed{2}"))
  assert run(folder, workdir) == 2 and "responses are not those the run began with" in capsys.readouterr().err
  assert run(recorded, workdir, "judge.samples=3") == 2
  assert "config.judge.samples" in capsys.readouterr().err


def test_stage_tells_which_of_its_own_files_is_spoilt(exact, recorded, tmp_path, capsys):
  for name in ("summary.json", "manifest.json", "usage.json", "labels.jsonl", "judged/step_000002.jsonl"):
    workdir = tmp_path / name
    shutil.copytree(exact, workdir)
    (workdir / "summary.json").unlink()
    (workdir / name).write_text("{\n1\n")
    assert run(recorded, workdir) == 2, name
    assert f"jaxrlvr: {workdir / name}" in (stderr := capsys.readouterr().err) and "is no JSON object" in stderr
