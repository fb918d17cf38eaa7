"""The stages as functions of Python: each takes a config and a run directory, and returns the `Run` that is there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jaxrlvr.base.errors import InputError

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from jaxrlvr.door import own_code
  from jaxrlvr.door.runs import Run


def train(
  config: ConfigDict,
  workdir: str | os.PathLike,
  *,
  reward: own_code.OwnRewards = None,
  verifier: own_code.OwnVerifier = None,
  stage: str = "rl",
) -> Run:
  """Runs a stage in a run directory and returns its `Run`.

  The directory is made if absent, and continued if it holds a run of this config; of a finished run the `Run` is
  returned at once. The config stays as it is.

  reward: a function of any shape that `rl.reward` takes (docs/rewards.md), lambdas and closures too. It takes the place
  of `rl.reward`, unless that expression has its name, as "0.5*brevity + verifiable". Several are a mapping by name.
  verifier: a function of the parameters answer (or text), label and perhaps extra (docs/verifiers.md), for the problems
  and held-out problems that come from files. It runs in worker processes. Pass the same functions again to go on with
  a run, unless they can be imported. stage: a key of `stages.STAGES`, such as "sft" or "chain"; "rl": RL.

  Raises InputError for a wrong config or function; TrainingStopped where a stage stops itself; StorageError for files
  that can't be written or are damaged. After an interrupt of the kernel the same call goes on from the last checkpoint.
  """
  return _run(stage, config, workdir, reward, verifier)


def evaluate(config: ConfigDict, workdir: str | os.PathLike, *, verifier: own_code.OwnVerifier = None) -> Run:
  """Measures the policy of `config.init` or `config.model.path` on the held-out sets; returns the `Run`.

  Its `metrics` are one row of eval/SET/FIGURE, its `evaluations` the responses. verifier and errors: as of `train`.
  """
  return _run("evaluate", config, workdir, None, verifier)


def diagnose(config: ConfigDict, workdir: str | os.PathLike, *, verifier: own_code.OwnVerifier = None) -> Run:
  """Predicts, before RL, what it does to the policy under each weak supervision; returns the `Run`.

  Its `summary` has the predictions, `report()` is the page to read. verifier and errors: as of `train`.
  """
  return _run("diagnose", config, workdir, None, verifier)


def plan(config: ConfigDict, workdir: str | os.PathLike, *, reward: own_code.OwnRewards = None) -> Run:
  """Compiles `config.plan.stage` for the TPU slice `config.plan.topology`, without a TPU; returns the `Run`.

  Its `summary` has memory and hours. Raises InputError where the stage does not fit; the message has the settings with
  which it does, and `Run(workdir)` the whole plan. reward: as of `train`; it counts by whether it looks at all votes.
  """
  return _run("plan", config, workdir, reward, None)


def _run(
  stage: str,
  config: ConfigDict,
  workdir: str | os.PathLike,
  reward: own_code.OwnRewards,
  verifier: own_code.OwnVerifier,
) -> Run:
  """Runs a stage with functions that were passed from Python, and returns the run."""
  from jaxrlvr.door import own_code  # here, so that `import jaxrlvr` loads nothing heavy
  from jaxrlvr.door.runs import Run
  from jaxrlvr.stages import STAGES

  if stage not in STAGES:
    raise InputError(f"stage={stage!r}: there is none of this name; use one of {', '.join(STAGES)}")
  with own_code.configured(config, stage, reward, verifier) as checked:
    STAGES[stage](checked, os.fspath(workdir))
  return Run(workdir)
