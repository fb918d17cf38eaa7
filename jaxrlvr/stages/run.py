"""A run directory, held by one process: what is in it, whether to go on, and where to write."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxrlvr import checkpoint, logbook, stopping
from jaxrlvr import config as configs
from jaxrlvr.types import InputError, StorageError, TrainingStopped

_LOG = logging.getLogger(__name__)
# Keys in which a resumed run may differ from the run it goes on with, by stage; the links of a chain check themselves.
_HARMLESS = (
  "init",  # its weights count, not its path
  "model.path",
  "tokenizer",
  "saturation_tail",
  "resume",
  "tensorboard",
  "checkpoint.",
  "report.",
  "verify.workers",
  "verify.cpu_seconds",
  "verify.wall_seconds",
  "verify.memory_mib",
  "mesh.",
  "chain",
  "evaluate.problems_per_batch",
)
MAY_CHANGE = {"analyze": ("",), "chain": ("",)}
_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "ml-collections",
  "sentencepiece",
  "tokenizers",
  "math-verify",
  "numpy",
)


class Run:
  """One stage at work in its directory: checkpoints, logbook, progress."""

  def __init__(self, config: ConfigDict, workdir: Path, stage: str, earlier: dict | None):
    self.config, self.workdir, self.stage = config, workdir, stage
    self.summary = earlier  # of the finished run this directory already holds, else None
    self.checkpoints = None
    self._logbook = None
    self._pending: tuple[int, Mapping] | None = None

  @property
  def finished(self) -> bool:
    return self.summary is not None

  def begin(self, **inputs) -> None:
    """Writes config and manifest: call it when all input is checked, so that a refused run leaves nothing behind.

    `inputs` are the data the run depends on, by name; a run that goes on, or is finished, must find the same.
    """
    digests = {name: logbook.digest(value) for name, value in inputs.items()}
    file = self.workdir / "manifest.json"
    before = json.loads(file.read_text())["inputs"] if file.is_file() else digests
    for name in digests:
      if before.get(name) != digests[name]:
        raise InputError(
          f"{self.workdir}: {name} are not those the run began with; restore them or choose another workdir"
        )
    if self.finished:
      _LOG.warning("%s: already finished, nothing is done again", self.workdir)
      return
    (self.workdir / "summary.json").unlink(missing_ok=True)  # of a run that now gets more steps
    logbook.write_json(self.workdir / "config.json", {"stage": self.stage, **self.config.to_dict()})
    logbook.write_json(file, manifest() | {"inputs": digests})

  def restore(self, state):
    """(state, meta) of the newest checkpoint, (state, None) for a fresh start; opens the logbook at that step."""
    self.checkpoints = checkpoint.Checkpoints(self.workdir, self.config.checkpoint.keep)
    train = {"opt_state": state.opt_state, "counts": (state.updates, state.skipped, state.skipped_in_a_row)}
    found = self.checkpoints.restore(state.params, train)
    if found is None and self.config.resume == "required":
      raise InputError(f"{self.workdir}: has no checkpoint, but config.resume = 'required'; use 'auto' to start afresh")
    step = found[2]["step"] if found else -1
    self._logbook = logbook.Logbook(self.workdir, step, self.config.tensorboard)
    if found is None:
      return state, None
    _LOG.warning("%s: goes on from step %d", self.workdir, step)
    params, train, meta = found
    return type(state)(params, train["opt_state"], *train["counts"]), meta

  def save(self, step: int, state, **meta) -> None:
    """Writes the metrics of this step, then starts to save a checkpoint that resumes right behind it."""
    self.flush()
    if not (self.workdir / "config.json").is_file():
      raise StorageError(f"{self.workdir}: was removed while the run was at step {step}; nothing was saved there")
    train = {"opt_state": state.opt_state, "counts": (state.updates, state.skipped, state.skipped_in_a_row)}
    self.checkpoints.save(step, state.params, train, {"seed": self.config.seed, "stage": self.stage, **meta})

  def log(self, step: int, metrics: Mapping) -> dict[str, float]:
    """Takes a step's metrics and returns those of the step before, fetched only now that the next step is under way."""
    self.checkpoints.check()
    before = self.flush()
    self._pending = (step, metrics)
    return before

  def flush(self) -> dict[str, float]:
    """Writes the metrics that wait, and stops the run if too many updates in a row were not finite."""
    if self._pending is None:
      return {}
    step, metrics = self._pending
    self._pending = None
    metrics = jax.device_get(metrics)
    bad = int(metrics.pop("skipped_in_a_row", 0))
    self._logbook.write(step, metrics)
    if bad >= self.config.stop_after_bad_updates:
      raise TrainingStopped(
        f"step {step}: loss or gradient was not finite {bad} times in a row; the weights are those of before. "
        f"Lower the learning rate (config.{self.stage}.optim.lr)"
      )
    return metrics

  def due(self, step: int, total: int) -> bool:
    """Is this step to be saved?"""
    return step % self.config.checkpoint.every == 0 or step == total or stopping.asked()

  def stop_if_asked(self) -> None:
    """Call right behind a save: ends the run if a signal asked for it."""
    if stopping.asked():
      self.checkpoints.wait()
      raise stopping.Interrupted(f"{self.workdir}: stopped by a signal, checkpoint saved; the same command goes on")

  def finish(self, **summary) -> dict:
    """Waits for the disk, then marks the run as finished."""
    if self.checkpoints is not None:
      self.flush()
      self.checkpoints.wait()
    self.summary = {"stage": self.stage, "finished": True, **summary}
    logbook.write_json(self.workdir / "summary.json", self.summary)
    return self.summary

  def close(self) -> None:
    """Closes files; a failed save is told, not raised, so that it hides no other error."""
    if self._logbook is not None:
      self._logbook.close()
    if self.checkpoints is not None:
      try:
        self.checkpoints.wait()
      except StorageError as error:
        _LOG.warning("%s", error)
      self.checkpoints.close()


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: str | Path, stage: str) -> Iterator[Run]:
  """The run in `workdir`, locked against other processes; nothing is written until its `begin`.

  A directory that another config has used, or that holds something else, is refused; nothing in it is overwritten.
  """
  workdir = Path(workdir).absolute()
  with _locked(workdir) as used:
    earlier = _check_used(config, workdir, stage) if used else None
    if not used and config.resume == "required":
      raise InputError(f"{workdir}: holds no run, but config.resume = 'required'; use 'auto' to start afresh")
    run = Run(config, workdir, stage, earlier)
    try:
      yield run
    finally:
      run.close()


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[bool]:
  """Holds the directory's lock (the kernel frees it however the process dies); yields whether a run is in there."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / ".lock").open("a+")
  except OSError as error:
    raise InputError(f"--workdir={workdir}: can't be written ({error.strerror}); choose another directory") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      lock.seek(0)
      raise InputError(
        f"--workdir={workdir}: in use by {lock.read().strip()}; wait for it or choose another"
      ) from error
    used = (workdir / "config.json").is_file()
    strangers = [p.name for p in workdir.iterdir() if p.name != ".lock" and p.suffix != ".part"]
    if strangers and not used:
      raise InputError(
        f"--workdir={workdir}: holds other files ({strangers[0]}, ...) and no run; choose another directory"
      )
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    yield used


def _check_used(config: ConfigDict, workdir: Path, stage: str) -> dict | None:
  if config.resume == "never":
    raise InputError(f"--workdir={workdir}: holds a run and config.resume = 'never'; choose another or use 'auto'")
  before = read_config(workdir)
  if (other := before.pop("stage")) != stage:
    raise InputError(f"--workdir={workdir}: holds a run of stage {other!r}, not {stage!r}; choose another directory")
  free = MAY_CHANGE.get(stage, _HARMLESS)
  longer = stage == "rl" and config.rl.steps > before["rl"]["steps"]
  if longer and config.rl.optim.schedule == "constant" and not config.rl.optim.warmup:
    free = (*free, "rl.steps")  # more steps change no step that is done
  changed = configs.differences(config, before, free)
  if changed:
    raise InputError(
      f"--workdir={workdir}: holds a run with another config; choose another directory or undo\n  "
      + "\n  ".join(changed)
    )
  summary = workdir / "summary.json"
  earlier = json.loads(summary.read_text()) if summary.is_file() else None
  return None if longer else earlier


def read_config(workdir: Path) -> dict:
  """The config and stage of the run in a directory; InputError where it holds none."""
  try:
    found = json.loads((workdir / "config.json").read_text())
    if "stage" in found and "checkpoint" in found:
      return found
    problem = "config.json is another program's"
  except (OSError, ValueError, TypeError) as error:
    problem = f"config.json: {type(error).__name__}"
  raise InputError(f"{workdir}: holds no run ({problem}); name another directory")


def manifest() -> dict:
  """Versions and source state that the run's figures come from."""
  here = Path(__file__).resolve().parent
  command = ["git", "-C", here, "describe", "--always", "--dirty"]
  try:
    source = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
  except OSError:  # no git on this machine
    source = None
  return {
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "git": source,
    "verifiers": logbook.digest([p.read_text() for p in sorted((here.parent / "verify").glob("*.py"))]),
    "devices": [str(d) for d in jax.devices()],
    "command": sys.argv[1:],
  }
