"""Runs that are resumed: with every shipped config, from damaged checkpoints, and never silently from the start."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrlvr import cli
from jaxrlvr.base import logbook, signals
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.config import files as configs
from jaxrlvr.device import checkpoint
from jaxrlvr.rewards import table
from jaxrlvr.stages import run_directory as runs

ROOT = Path(__file__).parents[2]
SHIPPED = {  # config: its main arguments
  "base": ("",),
  "baselines": ("", "one", "mean", "tiny"),
  "colab": ("cpu", "gpu", "tpu"),
  "demo": ("", "3"),
  "miniature": ("1,tiny",),
  "noisy": ("", "0.3", "graph", "tiny"),
  "proxy": ("", "self_certainty", "tiny"),
  "scarce": ("", "science", "llama3.2-3b-instruct", "tiny"),
  "section3_rl": ("", "llama3.2-3b-instruct,v5e-8"),
  "section4": ("cpt", "sft"),
  "shape": ("qwen3-0.6b", "llama3.1-8b"),
  "smoke": ("",),
  "study": ("", "512", "tiny"),
  "thinking": ("tiny",),
}


def run(*argv):
  """Runs the command line in this process; returns its exit code."""
  with pytest.raises(SystemExit) as stop:
    cli.run([str(a) for a in argv])
  return stop.value.code


def test_every_shipped_config_is_listed_here():
  assert set(SHIPPED) == {path.stem for path in configs.FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", [f"{name}:{arg}".rstrip(":") for name, args in SHIPPED.items() for arg in args])
def test_a_recorded_config_is_that_of_the_file(tmp_path, name):
  """With the file or with the recorded config, a run begins and resumes alike, and so do the links of a chain."""
  config = configs.load(name)
  links = [configs.derive(config, link.get("set", {})) for link in config.chain]
  for number, one in enumerate((config, *links[-3:])):
    workdir = tmp_path / str(number)
    with runs.open_run(one, workdir, "rl") as begun:
      begun.begin()
    recorded = configs.load(str(workdir / "config.json"))
    assert recorded.to_dict() == one.to_dict()
    for config_now in (one, recorded):
      with runs.open_run(config_now, workdir, "rl") as going_on:
        assert not going_on.finished
  with pytest.raises(InputError, match="config.seed"):
    runs.open_run(configs.derive(config, {"seed": config.seed + 1}), tmp_path / "0", "rl").__enter__()


def test_a_signal_before_a_run_begins_leaves_nothing(tmp_path, monkeypatch):
  with runs.open_run(configs.base(), tmp_path / "w", "rl") as one:
    monkeypatch.setattr(signals, "_asked", [15])
    with pytest.raises(signals.Interrupted, match="stopped by a signal; the same command goes on"):
      one.begin(problems=[])
  assert not (tmp_path / "w").exists()


def refuse(workdir):
  """Opens a run directory and raises InputError before the run begins."""
  with pytest.raises(InputError, match="refused"), runs.open_run(configs.base(), workdir, "rl"):
    assert runs.in_use(workdir)
    raise InputError("refused")


def test_a_refused_run_leaves_nothing_that_it_made(tmp_path):
  """Folders that were there stay, and so do files that others put there meanwhile."""
  refuse(tmp_path / "new" / "runs" / "w")
  assert not list(tmp_path.iterdir())
  (tmp_path / "empty").mkdir()
  refuse(tmp_path / "empty")
  assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
  (tmp_path / "other.txt").touch()
  with pytest.raises(InputError, match="holds other files"):
    runs.open_run(configs.base(), tmp_path, "rl").__enter__()
  assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "other.txt"]
  with pytest.raises(InputError, match="refused"), runs.open_run(configs.base(), tmp_path / "runs" / "w", "rl"):
    (tmp_path / "runs" / "of-another").mkdir()
    raise InputError("refused")
  assert [path.name for path in (tmp_path / "runs").iterdir()] == ["of-another"]


def test_a_run_that_began_keeps_its_lock(tmp_path):
  with runs.open_run(configs.base(), tmp_path / "w", "rl") as one:
    one.begin()
  with runs.open_run(configs.base(), tmp_path / "w", "rl"), pytest.raises(InputError, match="in use by process"):
    runs.open_run(configs.base(), tmp_path / "w", "rl").__enter__()
  assert (tmp_path / "w" / ".lock").exists()


def test_a_lock_that_a_refused_run_removes_is_made_again(tmp_path, monkeypatch):
  """The file is removed between another run's open and its lock: that run locks a new file."""
  flock, workdir = fcntl.flock, tmp_path / "w"

  def remove_first(lock, operation):
    monkeypatch.setattr(fcntl, "flock", flock)
    (workdir / ".lock").unlink()
    workdir.rmdir()
    flock(lock, operation)

  monkeypatch.setattr(fcntl, "flock", remove_first)
  with runs.open_run(configs.base(), workdir, "rl"):
    assert runs.in_use(workdir)


def test_what_json_can_not_hold_is_refused():
  with pytest.raises(InputError, match=r"config.paper.gains: holds nan"):
    configs.derive(configs.base(), {"paper.gains": (("a", float("nan")),)})
  nested = configs.derive(configs.base(), {"paper.gains": [["a", [1, 2.0]], ["b", 3]]})
  assert nested.paper.gains == (("a", (1, 2.0)), ("b", 3))
  recorded = nested.to_dict() | {"paper": nested.paper.to_dict() | {"gains": [["a", [1.0, 2]], ["b", 3.0]]}}
  assert configs.differences(nested, recorded, ()) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Workdirs of a tokenizer and of six steps of pre-training, with checkpoints at steps 3 and 6."""
  folder = tmp_path_factory.mktemp("trained")
  assert run("tokenizer", "--config=smoke", f"--workdir={folder / 'tokenizer'}") == 0
  assert run(*pretrain(folder, folder / "base")) == 0
  return folder


def pretrain(folder, workdir, *more):
  return ("pretrain", "--config=smoke", f"--config.tokenizer={folder / 'tokenizer'}", f"--workdir={workdir}", *more)


def meta_file(workdir, step):
  return next((workdir / "checkpoints" / str(step) / "meta").rglob("metadata"))


def stored(workdir):
  return checkpoint.Checkpoints(workdir, read_only=True)


def test_no_changed_bit_of_meta_is_accepted(trained):
  """Flips each of many single bits: whatever reads the changed value first refuses it."""
  text = meta_file(trained / "base", 6).read_bytes()
  saved = json.loads(text)
  checkpoint.check_meta(saved, 6)
  refused = same = 0
  for position in range(0, len(text), 7):
    changed = bytearray(text)
    changed[position] ^= 1 << (position % 8)
    try:
      read = json.loads(changed)
    except ValueError:
      refused += 1
      continue
    if read == saved and json.dumps(read, sort_keys=True) == json.dumps(saved, sort_keys=True):
      same += 1  # white space, say
      checkpoint.check_meta(read, 6)
      continue
    with pytest.raises(StorageError):
      checkpoint.check_meta(read, 6)
    refused += 1
  assert refused > 100 and same < refused / 10
  with pytest.raises(StorageError, match="holds step 6, its folder says 3"):
    checkpoint.check_meta(saved, 3)


def test_leaves_and_digests_are_the_same_ones():
  saved = {"['params']['a']": "1", "['params']['b']": "2", "['train']['c']": "3"}
  both = {name: digest for name, digest in saved.items() if "params" in name}
  checkpoint.check_leaves(saved, both, ("params",))
  for wrong, message in (
    ({"['params']['a']": "1"}, "b'.*was saved and is not there"),
    (both | {"['params']['x']": "9"}, "x'.*has no digest"),
    (both | {"['params']['a']": "9"}, "a'.*is not what was saved"),
  ):
    with pytest.raises(StorageError, match=message):
      checkpoint.check_leaves(saved, wrong, ("params",))
  with pytest.raises(StorageError, match="has no digest"):
    checkpoint.check_leaves({}, both, ("params",))


def altered(workdir, number, **changes):
  """Rewrites entries of a checkpoint's meta, and its digest."""
  file = meta_file(workdir, number)
  meta = json.loads(file.read_text()) | changes
  meta["digest"] = checkpoint.digest_of_meta(meta)
  file.write_text(json.dumps(meta))


def test_a_checkpoint_without_digests_is_taken_by_nobody(tmp_path, trained, capsys):
  shutil.copytree(trained / "base", tmp_path / "base")
  for step in (3, 6):
    altered(tmp_path / "base", step, digests={})
  for stage in ("export", "cpt"):
    code = run(stage, "--config=smoke", f"--config.init={tmp_path / 'base'}", f"--workdir={tmp_path / stage}")
    assert code == 4 and "none of steps [3, 6] can be restored" in capsys.readouterr().err
  altered(tmp_path / "base", 6, step=3)
  assert run("export", "--config=smoke", f"--config.init={tmp_path / 'base'}", f"--workdir={tmp_path / 'e'}") == 4


def test_a_finished_run_with_a_damaged_end_is_finished_again(tmp_path, trained, caplog, capsys):
  """It resumes from the checkpoint before, says so, and ends with the same weights."""
  base = tmp_path / "base"
  shutil.copytree(trained / "base", base)
  text = meta_file(base, 6).read_text()
  meta_file(base, 6).write_text(text.replace('"step": 6', '"step": 5').replace('"step":6', '"step":5'))
  assert meta_file(base, 6).read_text() != text
  assert run("cpt", "--config=smoke", f"--config.init={base}", f"--workdir={tmp_path / 'cpt'}") == 2
  assert "with --resume=check" in capsys.readouterr().err
  assert run(*pretrain(trained, base)) == 0 and "already finished" in caplog.text
  caplog.clear()
  assert run(*pretrain(trained, base, "--resume=check")) == 0
  assert "checkpoints/6: passed over" in caplog.text and "goes on from step 3" in caplog.text
  digests, before = (json.loads(meta_file(one, 6).read_text())["digests"] for one in (base, trained / "base"))
  assert digests == before
  caplog.clear()
  shutil.rmtree(base / "checkpoints" / "6")
  assert run(*pretrain(trained, base)) == 0 and "its last checkpoint is gone" in caplog.text
  assert json.loads(meta_file(base, 6).read_text())["digests"] == before


def test_checkpoints_that_are_gone_are_told_and_nothing_begins_anew(tmp_path, trained, capsys, caplog):
  base = tmp_path / "base"
  shutil.copytree(trained / "base", base)
  (base / "summary.json").unlink()
  shutil.rmtree(base / "checkpoints")
  metrics = (base / "metrics.jsonl").read_bytes()
  assert run(*pretrain(trained, base)) == 4
  stderr = capsys.readouterr().err
  assert "its checkpoints are gone (the last was of step 6)" in stderr and "steps up to 6" in stderr
  assert "another --workdir" in stderr and (base / "metrics.jsonl").read_bytes() == metrics
  (base / runs.SAVED).unlink()  # as after a kill before the first save
  assert run(*pretrain(trained, base)) == 0
  assert "ended before its first checkpoint; steps 1 to 6 are done again" in caplog.text


def test_a_reward_that_changed_is_noticed(tmp_path, caplog, monkeypatch):
  """The changed reward is a user's function in the table, or this package's code, which is known by its files."""
  config = configs.derive(configs.base("smoke"), {"rl.reward": "0.5*one_box + random"})

  def first(answers, grade):
    return 1

  def second(answers, grade):
    return 2

  def begin(stage="rl"):
    caplog.clear()
    with runs.open_run(config, tmp_path / stage, stage) as one:
      one.begin()
    return "is not what the run began with" in caplog.text and re.search(r"the code of (.*) is not", caplog.text)[1]

  monkeypatch.setitem(table.REWARDS, "random", table.Reward(first))
  assert not begin() and not begin()
  monkeypatch.setitem(table.REWARDS, "random", table.Reward(second))
  assert begin() == "rl.reward 'random'" and not begin()  # the manifest now tells of the new one
  sources = runs.digests_of_code(config, "rl")
  assert {"the verifiers", "the reading of answers", "rl.reward 'one_box'"} <= set(sources)
  assert runs.manifest()["verifiers"] == sources["the verifiers"] != logbook.digest([])
  monkeypatch.setattr(runs, "digests_of_code", lambda *_: sources | {"the verifiers": "other"})
  assert begin() == "the verifiers"


SLOW = pytest.mark.slow
KILLED = [  # (config, stage) of what can be run on a CPU in seconds
  ("scarce:tiny", "rl"),
  pytest.param("noisy:tiny", "rl", marks=SLOW),
  pytest.param("proxy:tiny", "rl", marks=SLOW),
  pytest.param("baselines:one,tiny", "rl", marks=SLOW),
  pytest.param("study:tiny", "rl", marks=SLOW),
  pytest.param("smoke", "sft", marks=SLOW),
]


@pytest.mark.parametrize(("name", "stage"), KILLED)
def test_a_killed_run_of_a_shipped_config_goes_on(tmp_path, trained, request, caplog, name, stage):
  data = f",data={request.getfixturevalue('official')}" if name != "smoke" else ""
  words = [stage, f"--config={name}{data}", f"--workdir={tmp_path / 'run'}", f"--config.init={trained / 'base'}"]
  words += [f"--config.{stage}.steps=6", "--config.checkpoint.every=1", "--config.evaluate.every=0"]
  process = subprocess.Popen([sys.executable, "-m", "jaxrlvr.cli", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
  saved = tmp_path / "run" / runs.SAVED
  deadline = time.monotonic() + 240
  while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.02)
  process.kill()
  stderr = process.communicate()[1]
  assert process.returncode == -signal.SIGKILL, stderr
  assert run(*words, "--resume=required") == 0 and "goes on from step" in caplog.text
  rows = logbook.read_jsonl(tmp_path / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows][-6:] == list(range(1, 7))
