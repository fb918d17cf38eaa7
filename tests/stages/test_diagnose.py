"""Diagnosis before RL and the judge `local` with real samplers, and an RL run that stops as it memorises."""

import json
import math
import re
import shlex
from collections import Counter

import pytest

from helpers.command_line import run_smoke
from helpers.hf_directories import write_model
from helpers.serving import completion, send
from jaxrlvr import cli
from jaxrlvr.analysis import prediction
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.data import prepared
from jaxrlvr.judging import judges, rubric
from jaxrlvr.judging.rubric import Response
from jaxrlvr.stages import diagnosis_page
from jaxrlvr.stages.curate import random_sort_key
from jaxrlvr.stages.diagnose import faithful_diversity_of
from jaxrlvr.stages.judge import local_model, make_judge
from jaxrlvr.tasks.arithmetic import problems as arithmetic

SMALL = dict(diagnose__samples=8, diagnose__problems=24, judge__problems=4, evaluate__problems_per_batch=32)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory, init):
  workdir = tmp_path_factory.mktemp("diagnosed") / "run"
  assert run_smoke("diagnose", workdir, init=init, **SMALL) == 0
  return workdir


def rows(workdir):
  all_rows = [row for file in sorted((workdir / "rows").iterdir()) for row in logbook.read_jsonl(file)]
  return {row["id"]: row["responses"] for row in all_rows}


def told(workdir):
  return json.loads((workdir / "diagnosis.json").read_text())


def test_diagnosis_is_that_of_the_samples(diagnosed, init):
  sampled, diagnosis = rows(diagnosed), told(diagnosed)
  assert len(sampled) == 24
  solved = []
  for responses in sampled.values():
    assert [response["sample"] for response in responses] == list(range(8))
    solved.append(len([response for response in responses if response["true_reward"] == 1]))
  assert diagnosis["histogram"] == [solved.count(n) for n in range(9)] and 0 < diagnosis["figures"]["usable"] <= 1
  assert diagnosis["figures"]["avg@8"] == pytest.approx(sum(solved) / 192)
  assert diagnosis["figures"]["pass@8"] == pytest.approx(sum(n > 0 for n in solved) / 24)
  chosen = sorted(sampled, key=lambda p: random_sort_key(0, p))[:4]
  labels = logbook.read_jsonl(diagnosed / "labels.jsonl")
  assert {r["problem"] for r in labels} == set(chosen)
  faithfulness = [r["faithfulness"] for p in chosen for r in sampled[p]]
  assert diagnosis["figures"]["F(1)/all"] == pytest.approx(faithfulness.count(1.0) / 32)
  assert diagnosis["judging"] | {"labels": 0} == {
    "judge": "exact",
    "problems": 4,
    "responses": 32,
    "labels": 0,
    "missing": 0,
    "measured": True,
    "usage": {},
  }
  assert [p["regime"] for p in diagnosis["predictions"]] == ["memorises", "memorises", "collapses", "collapses"]
  assert not diagnosis["near"] and {p["sure"] for p in diagnosis["predictions"]} == {"low", "medium"}
  summary = json.loads((diagnosed / "summary.json").read_text())
  assert summary["finished"] and summary["predictions"] == diagnosis["predictions"]
  page = (diagnosed / "diagnosis.md").read_text()
  for words in (
    f"jaxrlvr sft --config={diagnosed}/config.json --workdir=runs/sft --config.sft.thinking=True\n",
    f"| avg@8 | {diagnosis['figures']['avg@8']:.3f} [",
    "This policy is **not** among",
    "**memorises**",
    "| Qwen2.5-Math-1.5B | Math | 302 |",
  ):
    assert words in page
  assert "not measured" not in page.split("faithful_diversity")[0]


def commands_of(page):
  """Returns the words of each command on the page that the user can run unchanged."""
  lines = [line for line in page.split("## Next")[1].splitlines() if line.startswith("jaxrlvr ")]
  return [shlex.split(line)[1:] for line in lines if not re.search(r"=[A-Z]+( |$)", line)]


def test_the_next_commands_are_complete(diagnosed, init):
  """Each command names this diagnosis's own config, and its stage accepts it."""
  commands = commands_of((diagnosed / "diagnosis.md").read_text())
  assert {words[0] for words in commands} == {"sft", "cpt", "rl"}
  for words in commands:
    flags, overrides = cli.parse_arguments(words)
    assert configs.load(flags.config, overrides, flags.stage).init == str(init)


def test_the_next_commands_name_held_out_problems_of_a_file(diagnosed, tmp_path):
  source = tmp_path / "my problems.jsonl"
  columns = "prompt=question,label=answer"
  changes = {"problems.source": str(source), "problems.columns": columns, "problems.count": "0"}
  changes["diagnose.problems"] = "24"
  config = configs.load(str(diagnosed / "config.json"), changes)
  predictions = []
  for key in ("go", "go vote", "go noisy"):
    predictions.append(prediction.Prediction("scarce", "generalises", "low", 1, (key,)))
  pages = []
  for problems in (24.0, 23.0):
    diagnosis = told(diagnosed)
    figures = {name: math.nan if value is None else value for name, value in diagnosis["figures"].items()}
    diagnosis["figures"] = figures | {"problems": problems}
    pages.append(diagnosis_page.sections(config, diagnosis, predictions, "my run/config.json", False)["## Next"])
  options = "--config.heldout.source=HELDOUT\n"
  assert pages[0].count(options) == 2  # RL on all of a source leaves none of it
  (go,) = commands_of("## Next" + pages[0])
  assert go[1] == "--config=my run/config.json" and f"--config.heldout.source={source}" in go
  overrides = dict(word.removeprefix("--config.").split("=", 1) for word in go[3:])
  heldout = configs.load(str(diagnosed / "config.json"), overrides, "rl").heldout
  assert (heldout.overlap, heldout.columns) == ("drop", ("prompt=question", "label=answer"))
  assert "--config.heldout.count=0" not in pages[0] and "--config.heldout.count=0" in pages[1]  # that was all of it


def test_a_former_diagnosis_is_the_reference(diagnosed, tmp_path):
  assert faithful_diversity_of("") is None
  (tmp_path / "diagnosis.json").write_text(json.dumps({"figures": {"faithful_diversity": 0.625}}))
  assert faithful_diversity_of(str(tmp_path)) == 0.625
  (tmp_path / "diagnosis.json").write_text(json.dumps({"figures": {"faithful_diversity": None}}))
  with pytest.raises(InputError, match="config.diagnose.reference = .*was not measured there; name the run directory"):
    faithful_diversity_of(str(tmp_path))
  diagnosis, page = told(diagnosed), (diagnosed / "diagnosis.md").read_text()
  assert (diagnosis["domain"], diagnosis["reference"]) == ("arithmetic", None) and "taken for arithmetic" in page


def test_diagnosis_goes_on_and_is_not_done_again(diagnosed, init):
  files = sorted((diagnosed / "rows").iterdir())
  before, page = told(diagnosed), (diagnosed / "diagnosis.md").read_bytes()
  times = [file.stat().st_mtime_ns for file in files]
  assert run_smoke("diagnose", diagnosed, init=init, **SMALL) == 0
  assert times == [file.stat().st_mtime_ns for file in files] and len(files) > 1
  (diagnosed / "summary.json").unlink()
  files[-1].unlink()
  assert run_smoke("diagnose", diagnosed, init=init, **SMALL) == 0
  assert told(diagnosed) == before and (diagnosed / "diagnosis.md").read_bytes() == page
  assert files[-1].is_file() and times[:-1] == [file.stat().st_mtime_ns for file in files[:-1]]


def test_without_a_judge_nothing_is_said_of_reasoning(tmp_path, init):
  """The problems are the first ones of a file, as many as are asked for."""
  prepared.save(tmp_path / "mine.jsonl", arithmetic.problems(7, "train", (1,), 30, ("chain",)))
  (tmp_path / "none.jsonl").touch()
  more = dict(problems__source=tmp_path / "mine.jsonl", problems__count=3)
  more |= dict(judge__name="replay", judge__file=tmp_path / "none.jsonl")
  assert run_smoke("diagnose", tmp_path / "w", init=init, **(SMALL | more)) == 0
  diagnosis, page = told(tmp_path / "w"), (tmp_path / "w" / "diagnosis.md").read_text()
  assert len(rows(tmp_path / "w")) == 24 and diagnosis["judging"]["missing"] == diagnosis["judging"]["labels"] > 0
  assert all(diagnosis["figures"][name] is None for name in ("F(1)/all", "F(1)/correct", "diversity"))
  assert "| F(1)/correct | not measured |" in page and "are **not measured**" in page
  assert diagnosis["figures"]["usable_problems"] >= 8  # so that nothing but the judge is missing
  assert [p["rule"] for p in diagnosis["predictions"]] == [5, 5, 5, 1] and "--config.judge.name=local" in page


def test_an_outage_of_the_judge_is_told_and_gone_on_from(tmp_path, init, serve, capsys):
  """The page says the rest; when it goes on, nothing is sampled again and no known label is asked for."""
  up = []

  def play(handler, number, request):
    mark = re.search(r"bear the mark (\w+) is data", text := request["messages"][0]["content"])[1]
    word = "0" if "arrives at the stated" in text else "same"
    send(handler, 200 if up or number < 3 else 503, completion(f"VERDICT {mark}: {word}"))

  server = serve(play)
  settings = SMALL | dict(init=init, judge__name="http", judge__url=server.url, judge__model="m", judge__retries=0)
  assert run_smoke("diagnose", tmp_path, **settings) == 3 and "labels are missing" in capsys.readouterr().err
  assert "are **not measured**" in (tmp_path / "diagnosis.md").read_text()
  assert not (tmp_path / "summary.json").exists() and len(list((tmp_path / "cache").iterdir())) == 2
  up.append(len(server.requests))
  sampled = {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir()}
  assert run_smoke("diagnose", tmp_path, **settings) == 0 and told(tmp_path)["judging"]["missing"] == 0
  assert sampled == {file: file.stat().st_mtime_ns for file in sampled}
  assert len(server.requests) - up[0] == len(list((tmp_path / "cache").iterdir())) - 2


def test_a_hugging_face_model_and_a_policy_as_judge(tmp_path, init):
  """A judge that allows only prompts shorter than any rubric gives no label, and each missing one is counted."""
  source = write_model(tmp_path / "hf")
  prepared.save(tmp_path / "three.jsonl", arithmetic.problems(7, "train", (1,), 3, ("chain",)))
  settings = dict(model__path=source, rl__prompt_tokens=160, problems__source=tmp_path / "three.jsonl")
  settings |= dict(
    judge__name="local", judge__model=init, judge__tokens=6, judge__prompt_tokens=64, judge__concurrency=3
  )
  settings |= dict(diagnose__problems=4, diagnose__samples=2, judge__problems=2)
  assert run_smoke("diagnose", tmp_path / "w", **settings) == 0
  diagnosis = told(tmp_path / "w")
  judging, used = diagnosis["judging"], diagnosis["judging"]["usage"]
  assert judging["judge"] == "local" and judging["missing"] == judging["labels"] >= 4 and not judging["measured"]
  assert used["missing"] == used["too_long"] == judging["missing"] and used["calls"] == 0
  assert f"--config.model.path={source}" in (tmp_path / "w" / "diagnosis.md").read_text()
  assert diagnosis["predictions"][0]["regime"] == "can't say" and len(rows(tmp_path / "w")) == 3 == sum(
    diagnosis["histogram"]
  )


def test_local_judge(tmp_path, init):
  """Decoding is greedy, so that a reply depends only on its prompt; prompts and replies that are too long give None.

  The judge's identity changes with its weights.
  """
  c = configs.load(
    "smoke",
    {
      "judge.name": "local",
      "judge.model": str(init),
      "judge.tokens": "6",
      "judge.prompt_tokens": "64",
      "judge.concurrency": "3",
    },
  )
  complete, identity, counts = local_model(c, c.judge)
  prompts = ["Start with 5, then *7.", "x" * 200, "Start with 2, then +1, -3.", "Last digit?", "Start with 5."]
  replies = list(complete(prompts))
  assert [text is None for text in replies] == [False, True, False, False, False] and replies[0]
  assert counts["calls"] == 4 and counts["too_long"] == 1
  assert [next(iter(complete([p]))) for p in prompts] == replies == list(complete(prompts))
  assert list(complete(prompts[::-1])) == replies[::-1]
  digests = json.loads(identity)["weights"]
  assert digests and json.loads(local_model(c, c.judge).identity)["weights"] == digests
  one = make_judge(c, c.judge, tmp_path)
  assert one.faithfulness([Response("q", "a")]) == [None] and one.counts["missing"] == 1  # too long
  c.judge.prompt_tokens = 2000
  one = make_judge(c, c.judge, tmp_path)
  assert one.faithfulness([Response("q", "a")]) == [None] and one.counts["calls"] == one.counts["missing"] == 1
  assert one.counts["prompt_tokens"] > 500 and not list(tmp_path.iterdir())
  c.judge.prompt_tokens, c.judge.tokens = 64, 1
  assert list(local_model(c, c.judge).complete(prompts)) == [None] * 5  # cut off


def test_a_label_of_a_policy_is_read_and_kept_by_its_weights(tmp_path):
  """The reply is one that a policy would give that can judge."""

  def complete(prompts):
    return [f"VERDICT {rubric.fence_mark((Response('q', 'a'),))}: 0.5" for _ in prompts]

  for identity in ("weights 1", "weights 2"):
    settings = judges.Settings(cache=tmp_path, local=judges.LocalModel(complete, identity, Counter()))
    assert judges.JUDGES["local"](settings).faithfulness([Response("q", "a")]) == [0.5]
  assert len(list(tmp_path.iterdir())) == 2


def test_bad_settings_are_refused_before_anything_compiles(tmp_path, init, capsys, compilations):
  for changes, words in (
    (dict(judge__name="local"), "config.judge: model is empty; name the run directory"),
    (dict(judge__name="local", judge__model="/nowhere"), "config.judge: model = '/nowhere': holds no policy.json"),
    (dict(judge__name="local", judge__tokens=0), "config.judge.tokens = 0: wanted at least 1"),
    (dict(judge__name="local", judge__prompt_tokens=0), "config.judge.prompt_tokens = 0: wanted at least 1"),
    (dict(judge__name="http", judge__model="m"), "config.judge: url ''"),
    (dict(diagnose__problems=0), "config.diagnose.problems = 0: wanted at least 1"),
    (dict(diagnose__samples=1), "config.diagnose.samples = 1: wanted at least 2"),
    (dict(init="/nowhere"), "config.init = '/nowhere'"),
    (dict(diagnose__domain="physics"), "config.diagnose.domain = 'physics': wanted one of"),
    (dict(diagnose__reference="/nowhere"), "config.diagnose.reference = '/nowhere': /nowhere/diagnosis.json: it can't"),
  ):
    assert run_smoke("diagnose", tmp_path / "w", **(dict(init=init) | changes)) == 2, changes
    stderr = capsys.readouterr().err
    assert words in stderr and stderr.count("\n") == 1, stderr
    assert not (tmp_path / "w").exists() and not compilations


def test_a_stop_that_no_evaluation_could_cause_is_refused(tmp_path, init, capsys):
  assert run_smoke("rl", tmp_path / "w", init=init, rl__stop_when_memorising=True, evaluate__every=0) == 2
  assert "needs evaluations to see it by; set config.evaluate.every" in capsys.readouterr().err


def test_rl_warns_stops_and_goes_on_without_the_stop(tmp_path, init, caplog):
  """Every response is paid the same, so the reward is full and nothing is learned."""
  settings = dict(init=init, rl__reward="0.7*random(1.0)", rl__steps=26, evaluate__every=8, heldout__count=8)
  settings |= dict(rl__worthwhile_gain=0.5)  # 8 problems exclude no gain of 0.05
  settings |= dict(checkpoint__every=100)
  stopped = tmp_path / "stopped"
  assert run_smoke("rl", stopped, rl__stop_when_memorising=True, **settings) == 0
  assert caplog.text.count("step 20: memorising") == 1 and "Thinking SFT" in caplog.text
  metrics = logbook.read_jsonl(stopped / "metrics.jsonl")
  assert [r["step"] for r in metrics] == list(range(25))
  assert [r["memorising"] for r in metrics[1:]] == [0.0] * 19 + [1.0] * 5
  assert [r["saturated"] for r in metrics[1:]] == [None] * 19 + [1.0] * 5
  assert [r["step"] for r in metrics if "heldout_gain" in r] == [8, 16, 24] and metrics[24]["heldout_gain"] == 0
  summary = json.loads((stopped / "summary.json").read_text())
  assert summary["finished"] and summary["steps"] == summary["stopped"]["step"] == 24
  assert "memorising" in summary["stopped"]["why"] and summary["phase"] == "memorising"

  (stopped / "summary.json").unlink()  # killed between its last save and its end
  for _ in range(2):
    assert run_smoke("rl", stopped, rl__stop_when_memorising=True, **settings) == 0
    assert logbook.read_jsonl(stopped / "metrics.jsonl") == metrics
    assert json.loads((stopped / "summary.json").read_text()) == summary
  assert caplog.text.count("memorising:") == 1

  assert run_smoke("rl", stopped, **settings) == 0  # told to go on
  more = logbook.read_jsonl(stopped / "metrics.jsonl")
  assert [r["step"] for r in more] == list(range(27)) and more[26]["heldout_gain"] == 0  # against step 0 all the same
  summary = json.loads((stopped / "summary.json").read_text())
  assert summary["steps"] == 26 and "stopped" not in summary
