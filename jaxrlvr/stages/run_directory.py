"""A run directory, held by one run: what is in it, whether to go on, and where to write."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import inspect
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store, signals
from jaxrlvr.base.errors import InputError, StorageError, TrainingStopped
from jaxrlvr.config import values
from jaxrlvr.config.files import differences
from jaxrlvr.config.keys import declared
from jaxrlvr.device import checkpoint, multihost
from jaxrlvr.device.jax_internals import jax_internals
from jaxrlvr.rewards import expression, table

_LOG = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parents[1]
# Stages that may be resumed with any other config: a report is always made anew, links of a chain check themselves.
_ANY_CONFIG = ("report", "chain", "grid")
SAVED = "saved.json"  # in the workdir: the step of the last checkpoint that is known to be on disk
_TRAINING = ("pretrain", "cpt", "sft", "rl")  # stages with checkpoints
_PUSH_SECONDS = 60.0  # at most, between two times that a store gets what is new, but for saves
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
  """One stage at work in its directory: checkpoints, logbook, progress.

  `home` is that directory, `workdir` where this process writes and reads back: the same where it is local and the
  process is the first, else a folder that ends with the run. That of the first goes up to a `home` on a store.
  """

  def __init__(self, config: ConfigDict, home: Path, workdir: Path, stage: str, earlier: dict | None):
    self.config, self.home, self.workdir, self.stage = config, home, workdir, stage
    self.summary = earlier  # of the finished run this directory already holds, else None
    self.checkpoints: checkpoint.Checkpoints | None = None
    self._logbook: logbook.Logbook | None = None
    self._mirror = (
      object_store.Mirror(workdir, home) if object_store.is_remote(home) and not multihost.process_index() else None
    )
    self._pushed = time.monotonic()
    self._asked = False  # by a signal to any process, as of the last metrics
    self._pending: tuple[int, Mapping] | None = None
    self._saving: int | None = None  # step of a save that may not be on disk yet

  @property
  def finished(self) -> bool:
    return self.summary is not None

  def begin(self, **inputs) -> None:
    """Writes config and manifest: call it when all input is checked, so that a refused run leaves nothing behind.

    `inputs` are the data the run depends on, by name; a run that goes on, or is finished, must find the same. A signal
    that came before ends the run here.
    """
    self.raise_if_asked()
    multihost.first(lambda: self._begin({name: logbook.digest(value) for name, value in inputs.items()}))

  def _begin(self, digests: Mapping[str, str]) -> None:
    file = self.workdir / "manifest.json"
    before = logbook.read_json(file).get("inputs", digests)
    for name in digests:
      if before.get(name) != digests[name]:
        raise InputError(
          f"{self.home}: {name} are not those the run began with; restore them or choose another workdir"
        )
    if self.finished:
      _LOG.warning("%s: already finished, nothing is done again", self.home)
      return
    sources = sources_of_rewards(self.config) if self.stage == "rl" else {}
    earlier = logbook.read_json(file).get("rewards", sources)
    if changed := sorted(name for name in sources if earlier.get(name) != sources[name]):
      _LOG.warning(
        "%s: the code of %s is not what the run began with: steps from here on are graded or paid by other rules; "
        "restore it, or take another --workdir",
        self.home, ", ".join(changed),
      )  # fmt: skip
    (self.workdir / "summary.json").unlink(missing_ok=True)  # of a run that now gets more steps
    logbook.write_json(self.workdir / "config.json", {"stage": self.stage, **self.config.to_dict()})
    logbook.write_json(file, manifest() | {"inputs": digests, "rewards": sources})
    self._push()

  def restore(self, state: Any) -> tuple[Any, dict | None]:
    """(state, meta) of the newest checkpoint, (state, None) for a fresh start; opens the logbook at that step."""
    self.checkpoints = checkpoint.Checkpoints(self.home, self.config.checkpoint.keep)
    train = {"opt_state": state.opt_state, "counts": (state.updates, state.skipped, state.skipped_in_a_row)}
    found = self.checkpoints.restore(state.params, train)
    if found is None:
      multihost.first(self._check_fresh)
    if found is None and self.config.resume == "required":
      raise InputError(f"{self.home}: has no checkpoint, but config.resume = 'required'; use 'auto' to start afresh")
    step = found[2]["step"] if found else -1
    self._logbook = logbook.Logbook(self.workdir, step, self.config.tensorboard)
    if found is None:
      return state, None
    _LOG.warning("%s: goes on from step %d", self.home, step)
    params, train, meta = found
    return type(state)(params, train["opt_state"], *train["counts"]), meta

  def _check_fresh(self) -> None:
    """StorageError where checkpoints were here and are gone; a warning where steps are done again without any."""
    rows = logbook.read_jsonl(self.workdir / "metrics.jsonl")
    last = max((row["step"] for row in rows), default=0)
    if saved := logbook.read_json(self.workdir / SAVED):
      raise StorageError(
        f"{self.home}: its checkpoints are gone (the last was of step {saved['step']}), while metrics.jsonl tells of "
        f"steps up to {last}; restore checkpoints/ from a copy, or take another --workdir, or remove this directory "
        "to start afresh"
      )
    if last:
      _LOG.warning("%s: ended before its first checkpoint; steps 1 to %d are done again", self.home, last)

  def _mark_saved(self) -> None:
    """Notes the step of the last save: call it only when that is on disk."""
    if self._saving is not None:
      step, self._saving = self._saving, None
      multihost.first(lambda: logbook.write_json(self.workdir / SAVED, {"step": step}))

  def _wait(self) -> None:
    self.checkpoints.wait()
    self._mark_saved()

  def save(self, step: int, state: Any, **meta) -> None:
    """Writes the metrics of this step, then starts to save a checkpoint that resumes right behind it."""
    self.flush()
    multihost.first(lambda: self._check_is_there(step))
    train = {"opt_state": state.opt_state, "counts": (state.updates, state.skipped, state.skipped_in_a_row)}
    self.checkpoints.save(step, state.params, train, {"seed": self.config.seed, "stage": self.stage, **meta})
    self._mark_saved()  # the save before, which this one has waited for
    self._saving = step

  def _check_is_there(self, step: int) -> None:
    if not (self.home / "config.json").exists():
      raise StorageError(f"{self.home}: was removed while the run was at step {step}; nothing was saved there")
    self._push()

  def _push(self) -> None:
    if self._mirror is not None:
      self._mirror.push()
      self._pushed = time.monotonic()

  def progress(self, total: int, start: int = 0) -> logbook.Progress:
    return logbook.Progress(self.home.name, total, start, stream=sys.stdout if multihost.process_index() else None)

  def log(self, step: int, metrics: Mapping) -> dict[str, float]:
    """Takes a step's metrics and returns those of the step before, fetched only now that the next step is under way."""
    self.checkpoints.check()
    before = self.flush()
    if time.monotonic() - self._pushed > _PUSH_SECONDS:
      self._push()
    if multihost.process_count() > 1:
      metrics = {**metrics, "asked": multihost.anywhere(signals.stop_requested())}
    self._pending = (step, metrics)
    return before

  def flush(self) -> dict[str, float]:
    """Writes the metrics that wait, and stops the run if too many updates in a row were not finite."""
    if self._pending is None:
      return {}
    step, metrics = self._pending
    self._pending = None
    metrics = multihost.fetch(metrics)
    self._asked = bool(metrics.pop("asked", self._asked))
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
    return step % self.config.checkpoint.every == 0 or step == total or self._is_asked()

  def _is_asked(self) -> bool:
    return self._asked if multihost.process_count() > 1 else signals.stop_requested()

  def raise_if_asked(self, saved: bool = False) -> None:
    """Ends the run if a signal asked for it, in loops that have nothing to save, or whose step is `saved` already."""
    if multihost.any_stop_requested():
      if saved:
        self._wait()
      behind = ", checkpoint saved" if saved else ""
      raise signals.Interrupted(f"{self.home}: stopped by a signal{behind}; the same command goes on")

  def stop_if_asked(self) -> None:
    """Call right behind a save: ends the run if a signal asked for it."""
    if self._is_asked():
      self._wait()
      raise signals.Interrupted(f"{self.home}: stopped by a signal, checkpoint saved; the same command goes on")

  def finish(self, **summary) -> dict:
    """Waits for the disk, then marks the run as finished."""
    if self.checkpoints is not None:
      self.flush()
      self._wait()
    self.summary = multihost.first(lambda: self._finish({"stage": self.stage, "finished": True, **summary}))
    return self.summary

  def _finish(self, summary: dict) -> dict:
    logbook.write_json(self.workdir / "summary.json", summary)
    self._push()
    return summary

  def close(self) -> None:
    """Closes files and sends what is left; what fails is told, not raised, so that it hides no other error."""
    if self._logbook is not None:
      self._logbook.close()
    for last in (self._push, *([self.checkpoints.wait] if self.checkpoints is not None else [])):
      try:
        last()
      except StorageError as error:
        _LOG.warning("%s", error)
    if self.checkpoints is not None:
      self.checkpoints.close()


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: str | Path, stage: str) -> Iterator[Run]:
  """The run in `workdir`, locked against other runs; nothing is written until its `begin`.

  A directory that another config has used, or that holds something else, is refused; nothing in it is overwritten.
  On an object store there are no locks: two runs must not be given one directory.
  """
  home = object_store.path(workdir)
  with contextlib.ExitStack() as stack:

    def look() -> dict | None:
      used = stack.enter_context(_claimed(home) if object_store.is_remote(home) else _locked(home))
      if not used and config.resume == "required":
        raise InputError(f"{home}: holds no run, but config.resume = 'required'; use 'auto' to start afresh")
      return _check_used(config, home, stage) if used else None

    earlier = multihost.first(look)
    own = home
    if multihost.process_index() or object_store.is_remote(home):
      own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxrlvr-")))
      if not multihost.process_index():
        object_store.pull(home, own, ("checkpoints", "rollouts", "evals"))
    run = Run(config, home, own, stage, earlier)
    stack.callback(run.close)
    yield run


def set_compile_cache(folder: str) -> None:
  """Where compiled programs are kept between runs; on a CPU, whose programs fit no other, only where a folder is named.

  A folder that jax itself was told of (JAX_COMPILATION_CACHE_DIR) stays."""
  if folder == "auto":
    if jax.config.values["jax_compilation_cache_dir"] or jax.default_backend() == "cpu":
      return
    folder = "~/.cache/jaxrlvr"
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)


@contextlib.contextmanager
def _claimed(home) -> Iterator[bool]:
  """Whether a run is at this place on a store, which can't be locked."""
  with object_store.translate_errors(InputError, f"--workdir={home}"):
    used = (home / "config.json").exists()
    strangers = [] if used or not home.exists() else [p.name for p in home.iterdir()]
    home.mkdir(parents=True, exist_ok=True)
  _refuse(home, strangers)
  yield used


def _refuse(home, strangers: list[str]) -> None:
  if strangers:
    raise InputError(f"--workdir={home}: holds other files ({strangers[0]}, ...) and no run; choose another directory")


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[bool]:
  """Holds the directory's lock (the kernel frees it however the process dies); yields whether a run is in there.

  Where the file system has no locks that is told, and the run goes on."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / ".lock").open("a+")
  except OSError as error:
    raise InputError(f"--workdir={workdir}: can't be written ({error.strerror}); choose another directory") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      lock.seek(0)
      raise InputError(
        f"--workdir={workdir}: in use by {lock.read().strip()}; wait for it or choose another"
      ) from error
    except OSError as error:  # some mounts, such as Drive's or NFS without its daemon, know no locks
      _LOG.warning("%s: can't be locked there (%s); give no second run this directory", workdir, error.strerror)
    used = (workdir / "config.json").is_file()
    strangers = [p.name for p in workdir.iterdir() if p.name != ".lock" and p.suffix != ".part"]
    if not used:
      _refuse(workdir, strangers)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    yield used


def in_use(workdir: Path) -> bool:
  """Whether another process holds the lock of a local directory."""
  file = workdir / ".lock"
  if not file.is_file():
    return False
  with file.open("rb") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:  # no locks there
      return False
  return False


def _check_used(config: ConfigDict, workdir: Path, stage: str) -> dict | None:
  if config.resume == "never":
    raise InputError(f"--workdir={workdir}: holds a run and config.resume = 'never'; choose another or use 'auto'")
  before = read_config(workdir)
  if (other := before.pop("stage")) != stage:
    raise InputError(f"--workdir={workdir}: holds a run of stage {other!r}, not {stage!r}; choose another directory")
  free = {name for name, key in declared().items() if key.may_change or stage in _ANY_CONFIG}
  earlier = logbook.read_json(workdir / "summary.json") or None
  unstopped = earlier and "stopped" in earlier and not config.rl.stop_when_memorising
  longer = stage == "rl" and (config.rl.steps > before["rl"]["steps"] or unstopped)
  if longer and config.rl.optim.schedule == "constant" and not config.rl.optim.warmup:
    free.add("rl.steps")  # more steps change no step that is done
  unknown = sorted(set(values.names(config)) ^ set(values.names(ConfigDict(before))))
  if unknown:
    raise InputError(
      f"--workdir={workdir}: holds a run of another version of jaxrlvr (config.{unknown[0]} is new or gone); go on "
      "with that version (git in manifest.json), or choose another directory"
    )
  changed = differences(config, before, free)
  if changed:
    raise InputError(
      f"--workdir={workdir}: holds a run with another config; choose another directory or undo\n  "
      + "\n  ".join(changed)
    )
  return None if longer or _is_to_be_checked(config, workdir, stage, earlier) else earlier


def _is_to_be_checked(config: ConfigDict, workdir: Path, stage: str, earlier: dict | None) -> bool:
  """Whether a finished run is opened again: as config.resume asks to check it, or as its last checkpoint is gone."""
  if earlier is None or stage not in _TRAINING:
    return False
  if config.resume == "check":
    return True
  folder = workdir / "checkpoints"
  steps = [place.name for place in folder.iterdir() if place.name.isdecimal()] if folder.is_dir() else []
  if not steps or str(earlier.get("steps")) in steps:
    return False
  _LOG.warning("%s: was finished, but its last checkpoint is gone; goes on from the one before", workdir)
  return True


def read_config(workdir: Path) -> dict:
  """The config and stage of the run in a directory; InputError where it holds none."""
  try:
    found = json.loads((workdir / "config.json").read_text())
    if isinstance(found, dict) and "stage" in found and "checkpoint" in found:
      return found
    problem = "config.json is another program's"
  except (OSError, ValueError, TypeError, RecursionError) as error:
    problem = f"config.json: {type(error).__name__}"
  raise InputError(f"{workdir}: holds no run ({problem}); name another directory")


def sources_of_rewards(config: ConfigDict) -> dict[str, str]:
  """Digests of the code that grades and pays: of the verifiers, of answer parsing, and of each name in rl.reward.

  A function that was put into the table of rewards from outside of this package is known by its own source."""
  sources = {
    "the verifiers": _digest_of_files(_verifier_files()),
    "the reading of answers": _digest_of_files([_PACKAGE / "text" / "answer.py", _PACKAGE / "text" / "tags.py"]),
  }
  for name in sorted({factor.name for _, factors in expression.parse(config.rl.reward) for factor in factors}):
    sources[f"rl.reward {name!r}"] = logbook.digest(_source(table.REWARDS[name].function))
  return sources


def _verifier_files() -> list[Path]:
  return sorted([*(_PACKAGE / "tasks").rglob("*.py"), *(_PACKAGE / "grading").glob("*.py")])


def _digest_of_files(paths: Sequence[Path]) -> str:
  return logbook.digest([path.read_text() for path in paths])


def _source(function) -> list[str]:
  """Returns what a reward's code is: its own text, and of one of this package all of its room."""
  if isinstance(function, functools.partial):
    arguments = [f"{name}={value!r}" for name, value in function.keywords.items() if not callable(value)]
    return [*_source(function.func), *map(repr, function.args), *arguments]
  try:
    module = inspect.getmodule(function)
    if module is not None and module.__name__.startswith("jaxrlvr."):
      return [path.read_text() for path in sorted(Path(module.__file__).parent.glob("*.py"))]
    return [inspect.getsource(function)]
  except (OSError, TypeError):  # typed in, or compiled
    code = getattr(function, "__code__", None)
    return [code.co_code.hex(), repr(code.co_consts)] if code else [type(function).__qualname__]


def manifest() -> dict:
  """Versions and source state that the run's figures come from."""
  command = ["git", "-C", str(_PACKAGE), "describe", "--always", "--dirty"]
  try:
    source = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
  except OSError:  # no git on this machine
    source = None
  uses_devices = jax_internals().backends_are_initialized()
  return {
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "git": source,
    "verifiers": _digest_of_files(_verifier_files()),
    "devices": [str(d) for d in jax.devices()] if uses_devices else [],
    "command": sys.argv[1:],
  }
