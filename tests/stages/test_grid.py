"""A grid of runs side by side: order, failures, finished runs, which do not run again, and the report's input."""

import fcntl
import functools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxrlvr import cli
from jaxrlvr.base import logbook, signals
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.config import files as configs
from jaxrlvr.stages import STAGES
from jaxrlvr.stages.grid import cells, grid
from jaxrlvr.stages.links import links_needed, read_links
from jaxrlvr.stages.run_directory import in_use


def of_links(*links, jobs=2):
  config = configs.load("smoke", {"grid.jobs": str(jobs)})
  return configs.derive(config, {"text.documents": 120, "chain": links})


TOKENIZER = {"name": "words", "stage": "tokenizer"}
NO_RUN = {"name": "bad", "stage": "judge", "files": {"judge.run": "words"}}  # a tokenizer has no responses


@pytest.fixture
def stages():
  """Returns the stages, with a report that returns only the runs that it was asked for."""
  return STAGES | {"report": lambda config, workdir: {"report": f"{config.report.runs}"}}


def test_what_fails_is_told_and_the_others_go_on(tmp_path, stages, capsys):
  other = {"name": "more", "stage": "tokenizer", "set": {"text.vocab": 340}, "cell": {"arm": "A", "setting": "S"}}
  behind = {"name": "behind", "stage": "judge", "files": {"judge.run": "bad"}}
  config = of_links(TOKENIZER, NO_RUN, behind, other)
  run = functools.partial(grid, stages)
  with pytest.raises(TrainingStopped, match=r"2 of 4 links are not finished; failed: bad \(exit code 2\)") as error:
    run(config, tmp_path)
  assert f"('{tmp_path}',)" in str(error.value)  # what was finished is reported on
  assert "words': has no rollouts/" in (tmp_path / "links" / "bad.log").read_text()
  assert f"bad: exit code 2, see {tmp_path}" in capsys.readouterr().err and not (tmp_path / "behind").exists()
  written_at = {name: (tmp_path / name / "summary.json").stat().st_mtime_ns for name in ("words", "more")}
  summary = run(of_links(TOKENIZER, other), tmp_path)
  assert summary["finished"] and summary["links"] == 2 and summary["report"] == f"('{tmp_path}',)"
  assert written_at == {name: (tmp_path / name / "summary.json").stat().st_mtime_ns for name in written_at}
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
  grid(stages, config, tmp_path)
  lines = [shlex.split(line) for line in (tmp_path / "commands.txt").read_text().splitlines()]
  assert [line[:2] for line in lines] == [["jaxrlvr", "tokenizer"], ["jaxrlvr", "judge"]]
  flags, overrides = cli.parse_arguments(lines[1][1:])
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

  monkeypatch.setattr(signals, "stop_requested", when_it_runs)
  with pytest.raises(signals.Interrupted):
    grid(stages, of_links(TOKENIZER, long), tmp_path)
  assert (
    "stopped" in (tmp_path / "links" / "long.log").read_text() and not (tmp_path / "long" / "summary.json").exists()
  )


def test_links_name_what_they_start_from(tmp_path):
  with pytest.raises(InputError, match="link 'bad' takes judge.run from 'words', which is no earlier link"):
    read_links(of_links(NO_RUN), tmp_path, STAGES)
  for more, key in (({"tokenizer": "words"}, "tokenizer"), ({"runs": {"A": "words"}}, "a run")):
    with pytest.raises(InputError, match=f"link 'b' takes {key} from 'words', which is no earlier link"):
      read_links(of_links({"name": "b", "stage": "report", **more}), tmp_path, STAGES)
  assert links_needed({"init": "a", "tokenizer": "b", "files": {"x": "c/d.jsonl"}, "runs": {"t": "e"}}) == set("abce")


def test_a_link_cannot_take_the_place_of_the_grids_report(tmp_path):
  config = of_links(TOKENIZER | {"name": "report", "cell": {"arm": "a", "setting": "s"}})
  with pytest.raises(InputError, match="link name 'report': the grid writes the report on its cells there"):
    grid(STAGES, config, tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_the_miniature_has_all_cells():
  config = configs.load("miniature:2")
  grid_cells = cells(config.chain, "title")["cells"]
  assert len(grid_cells) == 2 * 4 * 5 == len({(c["arm"], c["setting"], c["seed"]) for c in grid_cells})
  assert {c["seed"] for c in grid_cells} == {0, 1} and {c["n"] for c in grid_cells} == {8, 512, None}
  links = {link["name"]: link for link in config.chain}
  assert all(links[c["judged"]]["files"]["judge.run"] == c["rl"] == c["name"] for c in grid_cells)
  noisy = [link for link in config.chain if link["stage"] == "rl" and "0.7" in link["cell"]["setting"]]
  assert all(link["files"]["problems.source"].startswith(f"{link['init'][:-2]}-labels-") for link in noisy)
  json.dumps(cells(config.chain, ""))
  assert {c["seed"] for c in cells(configs.load("miniature:1,first=3").chain, "")["cells"]} == {3}


def test_section_4_has_all_cells():
  config = configs.load("thinking")
  links = {link["name"]: link for link in config.chain}
  grid_cells = cells(config.chain, "title")["cells"]
  arms = {"Base + Thinking", "Base + Non-thinking", "CPT + Thinking", "CPT + Non-thinking", "Instruct"}
  settings = {"N = 8": 8, "majority vote": None, "gamma = 0.7": None}
  assert len(grid_cells) == 15 and {(c["arm"], c["setting"]) for c in grid_cells} == {
    (a, s) for a in arms for s in settings
  }
  assert all(c["n"] == settings[c["setting"]] for c in grid_cells)
  assert all(links[c["judged"]]["files"]["judge.run"] == c["rl"] for c in grid_cells)
  for cell in grid_cells:
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
  trained = [configs.derive(config, link["set"]).sft for link in config.chain if link["stage"] == "sft"]
  assert [(sft.epochs, sft.steps) for sft in trained] == [(3, 0)] * 4
  assert 1e-5 <= config.sft.optim.lr <= 5e-5 and config.judge.model == "o3"
  assert {c["n"] for c in cells(configs.load("thinking:large").chain, "")["cells"]} == {8, 2048, None}
  read_links(config, configs.FOLDER, STAGES)  # each link's config is one


@pytest.mark.parametrize(
  "name",
  ["../../evil", "/tmp/evil", "..", ".", "", "a/b", "a\\b", "a\n", ".hidden", "x" * 101, "links", "config.json", 3],
)
def test_a_link_writes_below_the_workdir_alone(name):
  with pytest.raises(InputError, match="config.chain: link name"):
    of_links(TOKENIZER | {"name": name})
  assert of_links(TOKENIZER | {"name": "a-1.5_b"}).chain


@pytest.mark.parametrize("more", [{"init": "../x"}, {"files": {"judge.run": "words/../../x"}}, {"runs": {"A": "/etc"}}])
def test_a_link_starts_from_earlier_links_alone(more):
  with pytest.raises(InputError, match="wanted a path below an earlier link"):
    of_links(TOKENIZER, {"name": "b", "stage": "report", **more})


def test_paths_with_a_colon(tmp_path, stages, monkeypatch):
  """A colon may be in the path of a grid, a link's config, a config file with an argument, and a reported run."""
  workdir = tmp_path / "runs" / "10:30"
  assert grid(stages, of_links(TOKENIZER), workdir)["links"] == 1
  recorded = workdir / "links" / "words.json"
  assert configs.load(str(recorded)).text.documents == 120
  file = tmp_path / "a:b.py"
  file.write_text((configs.FOLDER / "demo.py").read_text())
  assert (configs.load(str(file)).seed, configs.load(f"{file}:7").seed) == (0, 7)
  assert configs.load("scarce:data=gs://bucket/a:b").problems.source.startswith("gs://bucket/a:b/math/")
  with pytest.raises(InputError, match="no such file"):
    configs.load(f"{tmp_path}/c:d.py")
  from jaxrlvr.stages.report import named_places

  assert list(named_places((str(workdir),))) == [("10:30", str(workdir))]
  assert list(named_places((f"A={workdir}",))) == [("A", str(workdir))]


def test_a_link_that_is_in_use_is_waited_for(tmp_path, stages, capsys):
  config = of_links(TOKENIZER)
  logbook.write_json(tmp_path / "config.json", {"stage": "grid", **config.to_dict()})  # a grid has begun here
  (tmp_path / "words").mkdir()
  with (tmp_path / "words" / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert in_use(tmp_path / "words")
    timer = threading.Timer(2.0, fcntl.flock, (lock, fcntl.LOCK_UN))
    timer.start()
    assert grid(stages, config, tmp_path)["links"] == 1
    timer.join()
  assert "words: in use by another process; waiting" in capsys.readouterr().err


def test_the_former_name_of_the_stage_prints_a_notice(tmp_path, capsys):
  words = [f"--config={tmp_path / 'grid.py'}", "--config.grid.jobs=0"]
  (tmp_path / "grid.py").write_text(GRID)
  for stage, notice in (("study", "jaxrlvr: the stage study is called grid now, and does the same\n"), ("grid", "")):
    with pytest.raises(SystemExit) as end:
      cli.run([stage, f"--workdir={tmp_path / 'w'}", *words])
    assert end.value.code == 0 and capsys.readouterr().err == notice
  assert logbook.read_json(tmp_path / "w" / "config.json")["stage"] == "grid"


GRID = """
from jaxrlvr.config import base

def get_config(arg=""):
  c = base("smoke")
  c.text.documents = 120
  c.checkpoint.every = 10**6
  c.chain = (
    {"name": "words", "stage": "tokenizer"},
    {"name": "long", "stage": "pretrain", "tokenizer": "words", "set": {"pretrain.steps": 10**6}},
  )
  return c
"""


def test_links_end_with_a_grid_that_is_killed_and_go_on_with_the_next(tmp_path):
  (tmp_path / "grid.py").write_text(GRID)
  words = [
    sys.executable,
    "-m",
    "jaxrlvr.cli",
    "grid",
    f"--config={tmp_path / 'grid.py'}",
    f"--workdir={tmp_path / 'w'}",
  ]
  long = tmp_path / "w" / "long"

  def begin(lines):
    grid = subprocess.Popen(words, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(logbook.read_jsonl(long / "metrics.jsonl")) < lines and grid.poll() is None:
      assert time.monotonic() < deadline
      time.sleep(0.05)
    return grid

  grid = begin(3)
  process = int(re.search(r"process (\d+) on", (long / ".lock").read_text())[1])
  os.kill(process, signal.SIGUSR2)  # the kernel may send it more than once: for each thread of the grid
  grid.send_signal(signal.SIGKILL)
  grid.communicate()
  deadline = time.monotonic() + 60
  while in_use(long):
    assert time.monotonic() < deadline, "the link outlives its grid"
    time.sleep(0.05)
  saved = max(int(p.name) for p in (long / "checkpoints").iterdir())
  grid = begin(saved + 2)
  os.kill(grid.pid, signal.SIGTERM)
  stderr = grid.communicate(timeout=60)[1]
  assert grid.returncode == signals.EXIT_CODE and "exit code 2" not in stderr, stderr
  log = (tmp_path / "w" / "links" / "long.log").read_text()
  assert f"goes on from step {saved}" in log and "in use by" not in log
