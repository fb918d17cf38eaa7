"""Runs stages as a user does, and reads what they wrote."""

from pathlib import Path

import pytest

from jaxrlvr import cli
from jaxrlvr.base import logbook

QUICK = dict(rl__steps=2, evaluate__every=0, heldout__count=8, checkpoint__every=10)


def run(*argv):
  """Runs the command line in this process; returns its exit code."""
  with pytest.raises(SystemExit) as stop:
    cli.run([str(a) for a in argv])
  return stop.value.code


def run_smoke(stage, workdir, **changes):
  """Runs a stage of the smoke config; returns its exit code. `__` in a key stands for a dot."""
  argv = [stage, "--config=smoke", f"--workdir={workdir}", "--config.rl.shrink=0"]
  argv += [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]
  with pytest.raises(SystemExit) as stop:
    cli.run([str(a) for a in argv])
  return stop.value.code


def metrics(workdir):
  return logbook.read_jsonl(Path(workdir) / "metrics.jsonl")


def rollouts(workdir, step=1):
  return logbook.read_jsonl(Path(workdir) / "rollouts" / f"step_{step:06d}.jsonl")
