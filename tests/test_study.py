"""A grid of runs side by side: order, failures, what is not run again, and what a report gets to know of it."""

import json
import shlex

import pytest

from jaxrlvr import config as configs
from jaxrlvr import main, stopping
from jaxrlvr.stages import STAGES
from jaxrlvr.stages.chain import needs, plan
from jaxrlvr.stages.study import cells, study
from jaxrlvr.types import InputError, TrainingStopped


def of_links(*links, jobs=2):
  config = configs.load("smoke", {"study.jobs": str(jobs)})
  return configs.derive(config, {"text.documents": 120, "chain": links})


TOKENIZER = {"name": "words", "stage": "tokenizer"}
NO_RUN = {"name": "bad", "stage": "judge", "files": {"judge.run": "words"}}  # a tokenizer has no responses


@pytest.fixture
def stages():
  """The stages, of which the report only says what it was asked for."""
  return STAGES | {"report": lambda config, workdir: {"report": f"{config.report.runs}"}}


def test_what_fails_is_told_and_the_others_go_on(tmp_path, stages, capsys):
  other = {"name": "more", "stage": "tokenizer", "set": {"text.vocab": 340}, "cell": {"arm": "A", "setting": "S"}}
  behind = {"name": "behind", "stage": "judge", "files": {"judge.run": "bad"}}
  config = of_links(TOKENIZER, NO_RUN, behind, other)
  run = study(stages)
  with pytest.raises(TrainingStopped, match=r"2 of 4 links are not finished; failed: bad \(exit code 2\)") as told:
    run(config, tmp_path)
  assert f"('{tmp_path}',)" in str(told.value)  # what was finished is reported on
  assert "words': has no rollouts/" in (tmp_path / "links" / "bad.log").read_text()
  assert f"bad: exit code 2, see {tmp_path}" in capsys.readouterr().err and not (tmp_path / "behind").exists()
  made = {name: (tmp_path / name / "summary.json").stat().st_mtime_ns for name in ("words", "more")}
  summary = run(of_links(TOKENIZER, other), tmp_path)
  assert summary["finished"] and summary["links"] == 2 and summary["report"] == f"('{tmp_path}',)"
  assert made == {name: (tmp_path / name / "summary.json").stat().st_mtime_ns for name in made}
  assert "report" not in run(of_links(TOKENIZER), tmp_path)  # there is no cell
  (tmp_path / "words" / "summary.json").write_text("{")
  with pytest.raises(InputError, match="words/summary.json: is no JSON object .*; restore it, or take it out"):
    run(of_links(TOKENIZER), tmp_path)
  (tmp_path / "words" / "summary.json").unlink()
  started = (tmp_path / "links" / "words.log").read_text()
  with pytest.raises(TrainingStopped):
    run(of_links(TOKENIZER | {"set": {"text.vocab": 341}}), tmp_path)  # another config is not taken for done
  assert (tmp_path / "links" / "words.log").read_text() != started


def test_without_jobs_it_writes_the_commands(tmp_path, stages):
  config = of_links(TOKENIZER, NO_RUN, jobs=0)
  study(stages)(config, tmp_path)
  lines = [shlex.split(line) for line in (tmp_path / "commands.txt").read_text().splitlines()]
  assert [line[:2] for line in lines] == [["jaxrlvr", "tokenizer"], ["jaxrlvr", "judge"]]
  flags, overrides = main.parse(lines[1][1:])
  loaded = configs.load(flags.config, overrides)
  assert loaded.judge.run == str(tmp_path / "words") and flags.workdir == str(tmp_path / "bad")
  assert loaded.text.documents == 120 and loaded.chain == ()


def test_a_signal_ends_the_links_too(tmp_path, stages, monkeypatch):
  long = {"name": "long", "stage": "pretrain", "tokenizer": "words", "set": {"pretrain.steps": 10**6}}
  asked = []

  def when_it_runs():
    log = tmp_path / "links" / "long.log"
    if log.is_file() and "long" in log.read_text():
      asked.append(True)
    return bool(asked)

  monkeypatch.setattr(stopping, "asked", when_it_runs)
  with pytest.raises(stopping.Interrupted):
    study(stages)(of_links(TOKENIZER, long), tmp_path)
  assert (
    "stopped" in (tmp_path / "links" / "long.log").read_text() and not (tmp_path / "long" / "summary.json").exists()
  )


def test_links_name_what_they_start_from(tmp_path):
  with pytest.raises(InputError, match="link 'bad' takes judge.run from 'words', of no earlier link"):
    plan(of_links(NO_RUN), tmp_path, STAGES)
  assert needs({"init": "a", "tokenizer": "b", "files": {"x": "c/d.jsonl"}, "runs": {"t": "e"}}) == set("abce")


def test_the_miniature_has_all_cells():
  config = configs.load("miniature:2")
  found = cells(config.chain, "title")["cells"]
  assert len(found) == 2 * 4 * 5 == len({(c["arm"], c["setting"], c["seed"]) for c in found})
  assert {c["seed"] for c in found} == {0, 1} and {c["n"] for c in found} == {8, 512, None}
  links = {link["name"]: link for link in config.chain}
  assert all(links[c["judged"]]["files"]["judge.run"] == c["rl"] == c["name"] for c in found)
  noisy = [link for link in config.chain if link["stage"] == "rl" and "0.7" in link["cell"]["setting"]]
  assert all(link["files"]["problems.source"].startswith(f"{link['init'][:-2]}-labels-") for link in noisy)
  json.dumps(cells(config.chain, ""))
  assert {c["seed"] for c in cells(configs.load("miniature:1,first=3").chain, "")["cells"]} == {3}


def test_section_4_has_all_cells():
  config = configs.load("thinking")
  links = {link["name"]: link for link in config.chain}
  found = cells(config.chain, "title")["cells"]
  arms = {"Base + Thinking", "Base + Non-thinking", "CPT + Thinking", "CPT + Non-thinking", "Instruct"}
  settings = {"N = 8": 8, "majority vote": None, "gamma = 0.7": None}
  assert len(found) == 15 and {(c["arm"], c["setting"]) for c in found} == {(a, s) for a in arms for s in settings}
  assert all(c["n"] == settings[c["setting"]] for c in found)
  assert all(links[c["judged"]]["files"]["judge.run"] == c["rl"] for c in found)
  for cell in found:
    link = links[cell["rl"]]
    own = configs.derive(config, link["set"])
    thinking = cell["arm"].endswith(" Thinking")
    assert own.rl.response_tokens == (8192 if thinking else 2048)
    assert own.heldout.prompts == ("think" if thinking else "non-think")
    assert ("llama-3b-think" in own.problems.source) == thinking
    voted = cell["setting"] == "majority vote"
    assert own.rl.steps == (600 if voted else 496) and ("sky_math_1024" in own.problems.source) == voted
    assert ("majority_vote" in own.rl.reward, own.rl.votes) == (voted, 16 if voted else 0)
    if cell["arm"] == "Instruct":
      assert "init" not in link and own.init == "models/llama3.2-3b-instruct"
    else:
      assert links[link["init"]]["stage"] == "sft"
      assert links[link["init"]].get("init") == ("cpt" if cell["arm"].startswith("CPT") else None)
  assert 1e-5 <= config.sft.optim.lr <= 5e-5 and config.judge.model == "o3"
  assert {c["n"] for c in cells(configs.load("thinking:large").chain, "")["cells"]} == {8, 2048, None}
  plan(config, configs.FOLDER, STAGES)  # each link's config is one
