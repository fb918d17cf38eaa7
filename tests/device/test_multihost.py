"""Two processes compute what one process does, and none waits for a process that is gone."""

import json
import operator
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrlvr import cli
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import multihost

ROOT = Path(__file__).parents[2]
TINY = """
from jaxrlvr.config import base

def get_config(arg=""):
  c = base("smoke")
  c.mesh.data, c.mesh.fsdp = 2, 4
  c.sft.steps, c.sft.rows, c.sft.microbatches = 3, 16, 2
  c.rl.steps, c.rl.microbatches, c.rl.response_tokens = 2, 1, 5
  c.rl.reward = "0.5*random(0.5) + verifiable + 0.1*mine.py:by_process"
  c.heldout.count, c.evaluate.problems_per_batch, c.evaluate.every = 3, 8, 0
  c.verify.mode = "study"
  c.chain = (
    {"name": "tokenizer", "stage": "tokenizer"},
    {"name": "sft", "stage": "sft", "tokenizer": "tokenizer"},
    {"name": "rl", "stage": "rl", "init": "sft"},
  )[:int(arg)]
  return c
"""


# Pays differently on each process: both must use the values of the first one.
REWARD = """
import os

def by_process(completions, **columns):
  return [len(text) + int(os.environ.get("JAX_PROCESS_ID", "0")) for text in completions]
"""


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def flags(devices):
  """Returns the XLA_FLAGS of these tests for a process with `devices` devices."""
  return re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])


def start(program, devices, number=2, **more):
  """Starts `number` processes of a program, with `devices` devices each, that form one group of jax; returns them."""
  shared = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": flags(devices),
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    "JAX_NUM_PROCESSES": str(number),
    "PYTHONPATH": str(ROOT),
  }
  settings = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
  return [
    subprocess.Popen([sys.executable, *map(str, program)], env=shared | {"JAX_PROCESS_ID": str(i)}, **settings)
    for i in range(number)
  ]


def outcomes(processes, seconds=300):
  """Waits for processes and returns (exit code, stdout, stderr) of each; kills all that are left in any case."""
  try:
    outputs = [p.communicate(timeout=seconds) for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]


def command(stage, workdir, *more):
  return ["-m", "jaxrlvr.cli", stage, f"--workdir={workdir}", *more]


def files(workdir):
  # How the arrays of checkpoints are cut over files depends on the number of processes.
  names = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()}
  return {name for name in names if "ocdbt" not in name and "checkpoints" not in name}


def same(one, two):
  """Asserts that two rows of metrics are equal up to the rounding of float32."""
  assert one.keys() == two.keys()
  for key in one.keys() - {"step_time", "idle"}:
    if key == "sampling/sampling_logp_difference/max":
      continue  # is itself rounding
    np.testing.assert_allclose(
      *(np.array(row[key], float) for row in (one, two)), rtol=2e-4, atol=2e-5, err_msg=key, equal_nan=True
    )


@pytest.mark.parametrize("links", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(tmp_path, links):
  """Runs SFT, then RL, on a mesh over the devices of both processes, and compares metrics, texts and files."""
  config = tmp_path / "tiny.py"
  config.write_text(TINY)
  (tmp_path / "mine.py").write_text(REWARD)
  both = start(command("chain", tmp_path / "two", f"--config={config}:{links}", "--distributed"), devices=4)
  with pytest.raises(SystemExit) as stop:
    cli.run(["chain", f"--workdir={tmp_path / 'one'}", f"--config={config}:{links}"])
  assert stop.value.code == 0
  (code0, out0, err0), (code1, out1, err1) = outcomes(both)
  assert (code0, code1) == (0, 0), err0 + err1
  warnings = [line for line in err1.splitlines() if "spmd_partitioner" not in line]
  assert "done: " in out0 and "done: " not in out1 and "3/3" in err0 and not warnings, warnings
  assert files(tmp_path / "one") == files(tmp_path / "two")
  for stage, steps in (("sft", [1, 2, 3]), ("rl", [0, 1, 2]))[: links - 1]:
    lines = [logbook.read_jsonl(tmp_path / name / stage / "metrics.jsonl") for name in ("one", "two")]
    assert [row["step"] for row in lines[1]] == steps
    for one, two in zip(*lines, strict=True):
      same(one, two)
  assert lines[1][1]["grad_norm"] > 0
  devices = json.loads((tmp_path / "two" / stage / "manifest.json").read_text())["devices"]
  assert len(devices) == 8
  if links == 2:
    return
  for name in ("rollouts/step_000001.jsonl", "rollouts/step_000002.jsonl", "evals/heldout_000002.jsonl"):
    one, two = (logbook.read_jsonl(tmp_path / run / "rl" / name) for run in ("one", "two"))
    compared = operator.itemgetter("problem", "sample", "text", "true_reward", "cause")
    assert list(map(compared, one)) == list(map(compared, two)) and one


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("hosts") / "tokenizer"
  with pytest.raises(SystemExit):
    cli.run(["tokenizer", "--config=smoke", f"--workdir={workdir}"])
  return workdir


def training(tokenizer, workdir, steps=100_000):
  more = [
    "--config=smoke",
    f"--config.tokenizer={tokenizer}",
    "--config.mesh.data=-1",
    "--config.checkpoint.every=1000",
  ]
  more += [f"--config.sft.steps={steps}", "--config.sft.optim.schedule=constant", "--config.sft.optim.warmup=0.0"]
  return command("sft", workdir, *more, "--config.hosts.silence_seconds=4", "--config.hosts.deadline_seconds=60")


def wait_for_lines(workdir, number, processes):
  deadline = time.monotonic() + 200
  while len(logbook.read_jsonl(workdir / "metrics.jsonl")) < number:
    assert time.monotonic() < deadline and all(p.poll() is None for p in processes), outcomes(processes, 1)
    time.sleep(0.05)


@pytest.mark.parametrize(
  ("number", "victim"),
  [
    (signal.SIGKILL, 1),
    pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
  ],
)
def test_a_process_that_is_gone_is_named_and_nobody_waits_for_it(tmp_path, tokenizer, number, victim):
  both = start([*training(tokenizer, tmp_path / "w"), "--distributed"], devices=1)
  wait_for_lines(tmp_path / "w", 2, both)
  both[victim].send_signal(number)
  begun = time.monotonic()
  try:
    _, stderr = both[1 - victim].communicate(timeout=60)
  finally:
    for process in both:
      process.kill()
    both[victim].communicate()
  assert both[1 - victim].returncode == multihost.GONE, stderr
  assert f"process {victim}" in stderr.splitlines()[-1] and "Traceback" not in stderr
  assert time.monotonic() - begun < 30


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_can_go_on(tmp_path, tokenizer):
  program = training(tokenizer, tmp_path / "w")
  both = start([*program, "--distributed"], devices=1)
  wait_for_lines(tmp_path / "w", 2, both)
  both[1].send_signal(signal.SIGTERM)
  (code0, _, err0), (code1, _, err1) = outcomes(both)
  assert (code0, code1) == (143, 143), err0 + err1
  assert "checkpoint saved" in err0
  steps = [row["step"] for row in logbook.read_jsonl(tmp_path / "w" / "metrics.jsonl")]
  saved = [int(p.name) for p in (tmp_path / "w" / "checkpoints").iterdir()]
  assert saved == [steps[-1]] and steps == list(range(1, steps[-1] + 1))
  env = {"XLA_FLAGS": flags(1), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  alone = subprocess.Popen(
    [sys.executable, *program, "--resume=required"], env=os.environ | env, cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  wait_for_lines(tmp_path / "w", steps[-1] + 2, [alone])
  alone.send_signal(signal.SIGTERM)
  stderr = alone.communicate(timeout=60)[1]
  assert alone.returncode == 143 and f"goes on from step {steps[-1]}" in stderr


SCRIPT = """
import logging, sys, time
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Verdict
from jaxrlvr.device import multihost
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.text.answer import boxed_response
logging.basicConfig()
multihost.initialise(deadline=3.0, silence=20.0)
me = multihost.process_index()
assert multihost.gather(lambda: [me, "x" * 3_000_000]) == [[k, "x" * 3_000_000] for k in range(3)]
assert multihost.first(lambda: me) == 0
try:
  multihost.gather(lambda: (_ for _ in ()).throw(InputError("only mine")) if me == 1 else 0)
  sys.exit("not raised")
except InputError as error:
  assert str(error) == "only mine"
seen = []
def grade(jobs):
  seen.extend(jobs)
  return [Verdict(None, f"timeout {me}") if job == 4 else Verdict(job / 7) for job in jobs]
verdicts = multihost.grade_jointly(grade, range(8))
assert verdicts == [Verdict(None, "timeout 1") if k == 4 else Verdict(k / 7) for k in range(8)], verdicts
assert seen == list(range(8))[me::3], seen
assert multihost.grade_jointly(grade, []) == []
service = Service(mode="strict", share=multihost.grade_jointly)
assert [v.score for v in service.grade([Job("choice", boxed_response(x), "B") for x in "ABCD"])] == [0, 1, 0, 0]
print("well", flush=True)
logging.getLogger("jaxrlvr.x").warning("told once")
if me == 2:
  time.sleep(60)  # alive, but it will not come
multihost.gather(lambda: 0)
"""


def test_exchange_between_three_and_one_that_hangs(tmp_path):
  file = tmp_path / "script.py"
  file.write_text(SCRIPT)
  three = start([file], devices=1, number=3)
  ended = outcomes(three, 60)
  assert [code for code, _, _ in ended] == [multihost.GONE] * 3, ended
  assert ended[0][1].endswith("well\n") and "well" not in ended[1][1]
  assert "told once" in ended[0][2] and "told once" not in ended[1][2]
  for _, _, stderr in ended:
    assert "process 2 on" in stderr.splitlines()[-1] and "hangs" in stderr.splitlines()[-1], stderr


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_NUM_PROCESSES = '', JAX_PROCESS_ID = ''; wanted"),
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS = ''"),
    (
      {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      "JAX_PROCESS_ID = '2'",
    ),
    (
      {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
      "JAX_NUM_PROCESSES = 'two'",
    ),
  ],
)
def test_wrong_variables_are_named(monkeypatch, changes, words):
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in changes.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(InputError, match=words):
    multihost.initialise(1.0, 1.0)
