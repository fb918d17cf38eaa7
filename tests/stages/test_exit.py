"""Exit codes and last lines of real processes, whatever their threads are doing when they end."""

import importlib.metadata
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxrlvr import cli
from jaxrlvr.base import logbook
from jaxrlvr.config import manual
from jaxrlvr.config.rules import declared

ROOT = Path(__file__).parents[2]


def start(*argv, code=None, **environment):
  """Starts the command line, or Python with `code`, in a process that compiles all its programs itself."""
  words = ["-c", code] if code else ["-m", "jaxrlvr.cli"]
  env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
  return subprocess.Popen(
    [sys.executable, *words, *map(str, argv)],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process, seconds=240):
  """Waits for a process and returns (exit code, stdout, stderr); kills it if that takes too long."""
  try:
    output = process.communicate(timeout=seconds)
  finally:
    process.kill()
  return process.returncode, *output


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """The workdir of a finished run, whose process ended with 0."""
  workdir = tmp_path_factory.mktemp("exit") / "tokenizer"
  code, out, err = end(start("tokenizer", "--config=smoke", "--config.text.documents=120", f"--workdir={workdir}"))
  assert (code, out) == (0, f"done: {workdir}\n"), err
  return workdir


def test_bad_input_ends_with_2(tmp_path):
  code, _, stderr = end(start("rl", "--config=smoke", "--config.rl.steps=0", f"--workdir={tmp_path / 'w'}"))
  assert code == 2 and stderr == "jaxrlvr: config.rl.steps = 0: wanted at least 1\n"
  assert end(start("rl"))[0] == end(start("fly", "--workdir=x"))[0] == 2


def test_rl_that_stops_itself_ends_with_3_while_its_threads_compile_and_wait(tmp_path, tokenizer):
  """It starts from fresh weights, with no program compiled before."""
  words = [f"--config.tokenizer={tokenizer}", f"--workdir={tmp_path / 'rl'}", "--config.rl.optim.lr=1e30"]
  code, _, stderr = end(start("rl", "--config=smoke", *words, "--config.stop_after_bad_updates=1"))
  assert code == 3 and "loss or gradient was not finite 1 times in a row" in stderr.splitlines()[-1], stderr
  assert "terminate" not in stderr and "Traceback" not in stderr


THREADS = """
import sys, threading, time
from jaxrlvr import cli, stages
from jaxrlvr.base import errors
def stage(config, workdir):
  threading.Thread(target=time.sleep, args=(600,)).start()  # Python would wait for it
  raise {error}
stages.STAGES["report"] = stage
cli.run()
"""


@pytest.mark.parametrize(
  ("error", "code", "last"),
  [
    ("errors.TrainingStopped('of itself')", 3, "jaxrlvr: of itself"),
    ("errors.StorageError('no disk')", 4, "jaxrlvr: no disk"),
    ("ZeroDivisionError('a bug')", 1, "ZeroDivisionError: a bug"),
    ("errors.InputError('\\x1b[2J in an id')", 2, "jaxrlvr: ⟨U+001B⟩[2J in an id"),
  ],
)
def test_no_thread_keeps_a_process_from_its_code(tmp_path, error, code, last):
  begun = time.monotonic()
  process = start("report", f"--workdir={tmp_path}", code=THREADS.format(error=error), PYTHONIOENCODING="utf-8")
  code_found, _, stderr = end(process, 60)
  assert (code_found, stderr.splitlines()[-1]) == (code, last) and time.monotonic() - begun < 60
  assert ("Traceback" in stderr) == (code == 1)


def test_a_signal_ends_with_143_and_the_first_one_says_what_happens(tmp_path, tokenizer):
  words = [f"--config.tokenizer={tokenizer}", f"--workdir={tmp_path / 'w'}", "--config.pretrain.steps=100000"]
  process = start("pretrain", "--config=smoke", *words, "--config.checkpoint.every=100000")
  deadline = time.monotonic() + 200
  while len(logbook.read_jsonl(tmp_path / "w" / "metrics.jsonl")) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  begun = time.monotonic()
  process.send_signal(signal.SIGINT)
  code, _, stderr = end(process, 60)
  assert code == 143 and "stopping after this step" in stderr and "again ends at once" in stderr, stderr
  assert "checkpoint saved" in stderr.splitlines()[-1] and time.monotonic() - begun < 30
  assert [p.name.isdigit() for p in (tmp_path / "w" / "checkpoints").iterdir()] == [True]


def test_a_device_that_is_not_there_is_told_and_only_where_one_is_needed(tmp_path, tokenizer):
  words = ["--config=smoke", f"--config.tokenizer={tokenizer}"]
  code, _, stderr = end(start("pretrain", *words, f"--workdir={tmp_path / 'a'}", JAX_PLATFORMS="cuda"))
  assert code == 2 and stderr.startswith("jaxrlvr: JAX_PLATFORMS = 'cuda': jax finds no such device"), stderr
  assert stderr.count("\n") == 1
  code, out, stderr = end(start("prepare", "--config=smoke", f"--workdir={tmp_path / 'b'}", JAX_PLATFORMS="cuda"))
  assert code == 0 and "4 of 4 problems" in out, stderr


def test_help_and_codes_agree(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.run(["--help"])
  assert stop.value.code == 0
  stdout = capsys.readouterr().out
  assert "default: base" in stdout
  assert all(f"{code} " in stdout for code in (0, 1, 2, 3, 4, 5, 143)) and set(cli.CODES.values()) == {2, 3, 4, 143}


def test_help_of_a_stage_tells_its_keys_as_configs_base_declares_them(capsys):
  keys = declared()
  pages = {stage: manual.keys_of(stage) for stage in manual.STAGE_PAGES}
  assert set(keys) == {key for names in pages.values() for key in names} and all(pages.values())
  assert (keys["sft.optim.lr"].meaning, keys["heldout.levels"]) == ("peak learning rate", keys["problems.levels"])
  for stage in manual.STAGE_PAGES:
    with pytest.raises(SystemExit) as stop:
      cli.run([stage, "--help"])
    page = capsys.readouterr().out
    assert stop.value.code == 0 and page.startswith(f"jaxrlvr {stage}: ") and "example\n  jaxrlvr " in page
    joined = " ".join(page.split("\n      "))
    for name in pages[stage]:
      assert f"  {name} = {keys[name].default!r}: {keys[name].meaning}" in joined or name == "chain"
    flags, _ = cli.parse_arguments([stage, *shlex.split(manual.STAGE_PAGES[stage].example)])
    assert flags.workdir.startswith(("runs/", "models/"))
  assert "seed = 0: random seed of fresh weights, data order and samples [from 0 to 2**32 - 1]\n" in page
  with pytest.raises(SystemExit):
    cli.run(["--version"])
  assert capsys.readouterr().out == f"jaxrlvr {importlib.metadata.version('jaxrlvr')}\n"


def test_usage_lines_name_every_kind_of_word(capsys):
  for words in ([], ["rl"]):
    with pytest.raises(SystemExit):
      cli.run([*words, "--help"])
    usage = capsys.readouterr().out.split("usage")[1].split("\n")[0]
    assert all(word in usage for word in ("--workdir=DIR", "--config=FILE[:ARG]", "--config.KEY=VALUE")), usage


def test_the_help_of_rl_begins_with_its_most_used_keys():
  page = manual.page("rl")
  first, _, others = page.partition("\nother keys of rl\n")
  most_used = manual.STAGE_PAGES["rl"].most_used
  assert len(most_used) == 12 and set(most_used) <= set(manual.keys_of("rl"))
  assert "\nmost used keys\n  init = " in first and "\nkeys that other stages read too\n" in others
  for key in most_used:
    assert f"\n  {key} = " in first and f"\n  {key} = " not in others


def test_a_wrong_stage_lists_the_stages_under_their_present_names(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.run(["grit", "--workdir=x"])
  error = capsys.readouterr().err
  assert stop.value.code == 2 and "there is no stage 'grit'; did you mean grid?" in error
  assert all(stage in error for stage in manual.STAGE_PAGES) and "study" not in error


def test_a_bare_stage_points_to_its_help(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.parse_arguments(["rl"])
  error = capsys.readouterr().err
  assert stop.value.code == 2 and "no --workdir" in error and "`jaxrlvr rl --help`" in error
  for words, is_told in (([], True), (["--config=base"], False), (["--config.seed=1"], False)):
    flags, _ = cli.parse_arguments(["rl", "--workdir=w", *words])
    error = capsys.readouterr().err
    assert flags.config == "base"
    assert ("the built-in default, configs/base.py; `jaxrlvr rl --help` explains its keys" in error) == is_told


@pytest.mark.parametrize(
  ("does", "slow"),
  [
    ("from jaxrlvr import cli", {"jax", "numpy", "pyarrow", "ml_collections"}),
    ("from jaxrlvr.config import manual; manual.page('rl')", {"jax", "numpy", "pyarrow", "ml_collections"}),
    ("from jaxrlvr.config import base; base('demo')", {"jax"}),
  ],
  ids=["cli", "page", "config"],
)
def test_help_is_quick_and_configs_load_without_jax(does, slow):
  _, _, stderr = end(start(code=f"import sys; {does}; sys.exit(str({slow} & set(sys.modules) or ''))"))
  assert stderr.strip() == ""


def test_a_disk_that_fills_up_ends_with_4_and_one_line(tokenizer, small_disk):
  """The line names the cure, and there is no traceback of the library that writes."""
  small = small_disk("700k")
  words = [f"--config.tokenizer={tokenizer}", f"--workdir={small / 'w'}", "--config.checkpoint.every=1"]
  code, _, stderr = end(start("pretrain", "--config=smoke", *words))
  lines = [line for line in stderr.splitlines() if "the disk is full" in line]
  assert (
    code == 4 and lines and f"{small}/w" in lines[-1] and "bytes to write" in lines[-1] and "free space" in lines[-1]
  )
  assert "Traceback" not in stderr and "asyncio" not in stderr, stderr
