"""Run directories: opens one for a run, checks whether the run may go on there, and writes what a run leaves.

A stage writes `with open_run(config, workdir, stage) as run:`, checks its input, calls `run.begin`, returns
`run.summary` if the run is finished already, does its work, and returns `run.finish(...)`.
"""

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
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, named, object_store, signals
from jaxrlvr.base.errors import InputError, StorageError, TrainingStopped
from jaxrlvr.config import manual, values
from jaxrlvr.config.files import differences
from jaxrlvr.config.rules import declared
from jaxrlvr.device import checkpoint, multihost
from jaxrlvr.device.jax_internals import jax_internals
from jaxrlvr.rewards import expression, table

_LOG = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parents[1]
# Stages that may be resumed with any other config: a report is always written anew, links of a chain check their own.
_ANY_CONFIG = ("report", "chain", "grid")
_CONFIG_FILE = "config.json"  # in the workdir: a directory with it holds a run
_LOCK_FILE = ".lock"  # in the workdir: locked by the process that works there, whose name it holds
_LOCK_ATTEMPTS = 3
SAVED = "saved.json"  # in the workdir: the step of the last checkpoint that is known to be on disk
_TRAINING = ("pretrain", "cpt", "sft", "rl")  # stages that write checkpoints
_PUSH_SECONDS = 60.0  # time after which new files are sent to an object store, in addition to each save
_PACKAGES = (  # packages whose versions the manifest records
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
  """One stage at work in its run directory: its manifest, checkpoints, logbook and summary. `open_run` makes it.

  Read and write files below `workdir`, and show `home` to the user. They differ where the run directory is on an object
  store, to which the first process sends what is new, and on all processes but the first, whose `workdir` is a
  temporary folder that is thrown away. On several hosts all processes must call begin, restore, save, log, flush, due,
  raise_if_asked, raise_if_asked_after_save and finish together.
  """

  config: ConfigDict
  stage: str  # the name of the stage, such as "rl"
  home: Path  # the run directory as the user named it, perhaps on an object store
  workdir: Path  # a local folder
  summary: dict | None  # content of summary.json if the run is finished, else None

  def __init__(self, config: ConfigDict, home: Path, workdir: Path, stage: str, earlier: dict | None):
    """earlier: summary of the finished run that the directory holds already; None: it holds none."""
    self.config, self.home, self.workdir, self.stage = config, home, workdir, stage
    self.summary = earlier
    self.checkpoints: checkpoint.Checkpoints | None = None
    self._logbook: logbook.Logbook | None = None
    self._mirror: object_store.Mirror | None = None
    if object_store.is_remote(home) and not multihost.process_index():
      self._mirror = object_store.Mirror(workdir, home)
    self._last_push = time.monotonic()
    self._asked = False  # whether a signal had asked any process to stop when the last metrics were logged
    self._pending: tuple[int, Mapping] | None = None  # step and metrics that are not written yet
    self._saving: int | None = None  # step of a save that may not be on disk yet

  @property
  def finished(self) -> bool:
    """Property: whether the run is finished, so that nothing is left to do and `summary` is its result."""
    return self.summary is not None

  def begin(self, **inputs) -> None:
    """Writes config.json and manifest.json, which make the directory that of a run. A finished run writes nothing.

    Call it once, when all input is checked, so that a refused run leaves no files. inputs: what the run depends on
    beside its config, by a name for messages, as problems=[...]; any values that JSON, dataclasses and named tuples are
    made of, None included. Their digests are kept in manifest.json. Raises InputError where the directory's run began
    with an input of another digest, and where processes of a run have different code; and Interrupted if a signal has
    asked the run to stop. Warns where the code of rewards, of verifiers, or of the user's own objects has changed since
    the run began.
    """
    self.raise_if_asked()
    code_of_processes = multihost.gather(lambda: digests_of_code(self.config, self.stage))
    code_digests = code_of_processes[0]
    for number, others in enumerate(code_of_processes):
      differing = sorted(name for name in code_digests if others.get(name) != code_digests[name])
      if differing:
        raise InputError(
          f"the code of {differing[0]} on process {number} is not that on process 0; copy it to all hosts"
        )
    digests = {name: logbook.digest(value) for name, value in inputs.items()}
    multihost.first(lambda: self._begin(digests, code_digests))

  def _begin(self, digests: Mapping[str, str], code_digests: Mapping[str, str]) -> None:
    """Does the work of `begin` on the first process. digests: of inputs, by name. code_digests: of code, by name."""
    file = self.workdir / "manifest.json"
    recorded = logbook.read_json(file)
    self._check_inputs(digests, recorded.get("inputs", digests))
    if self.finished:
      _LOG.warning("%s: already finished, nothing is done again", self.home)
      return
    changed = self._warn_of_changed_code(code_digests, recorded.get("code", code_digests))
    code_changes = list(recorded.get("code_changes", []))
    if changed:
      rows = logbook.read_jsonl(self.workdir / "metrics.jsonl")
      last_step = max((row["step"] for row in rows), default=0)
      code_changes.append({"last_step": last_step, "code": {name: code_digests[name] for name in changed}})
    (self.workdir / "summary.json").unlink(missing_ok=True)  # it is there if a finished run gets more steps
    logbook.write_json(self.workdir / _CONFIG_FILE, {"stage": self.stage, **self.config.to_dict()})
    new = manifest() | {"inputs": digests, "code": code_digests, "code_changes": code_changes}
    folders = [recorded.get("folder"), *recorded.get("earlier_folders", ())]
    new["earlier_folders"] = [one for one in dict.fromkeys(folders) if one and one != new["folder"]]
    logbook.write_json(file, new)
    self._push()

  def _check_inputs(self, digests: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    """Raises InputError where the digest of an input is not the recorded one."""
    for name in digests:
      if recorded.get(name) != digests[name]:
        raise InputError(
          f"{self.home}: {name} are not those the run began with; restore them or choose another workdir"
        )

  def _warn_of_changed_code(self, digests: Mapping[str, str], recorded: Mapping[str, str]) -> list[str]:
    """Warns where code is not the recorded one, by these digests, and returns the names of what has changed."""
    changed = sorted(name for name in digests if recorded.get(name) != digests[name])
    if changed:
      _LOG.warning(
        "%s: the code of %s is not what the run began with: what is done from here on follows other rules; "
        "restore it, or take another --workdir",
        self.home,
        ", ".join(changed),
      )
    return changed

  def restore(self, state: Any) -> tuple[Any, dict | None]:
    """Opens checkpoints and logbook, and returns the newest checkpoint as (training state, its meta record).

    Call it once, after `begin` and before `log` and `save`. Without a checkpoint it returns (the given state, None).
    Metrics of steps after the checkpoint are dropped from metrics.jsonl, as these steps are done again.

    state: a `TrainState`; the restored one has its shapes and shardings. The meta record has step (the last step that
    is done), seed, stage, digests (of each array) and what was given to `save` as `meta`. Raises InputError where
    config.resume is "required" and there is no checkpoint, and StorageError where all checkpoints are damaged, or the
    run had some that are gone.
    """
    self.checkpoints = checkpoint.Checkpoints(self.home, self.config.checkpoint.keep)
    restored = self.checkpoints.restore(state.params, _training_part(state))
    if restored is None:
      multihost.first(self._check_fresh)
      if self.config.resume == "required":
        raise InputError(f"{self.home}: has no checkpoint, but config.resume = 'required'; use 'auto' to start afresh")
      self._logbook = logbook.Logbook(self.workdir, -1, self.config.tensorboard)
      return state, None
    params, train, meta = restored
    self._logbook = logbook.Logbook(self.workdir, meta["step"], self.config.tensorboard)
    _LOG.warning("%s: goes on from step %d", self.home, meta["step"])
    return type(state)(params, train["opt_state"], *train["counts"]), meta

  def _check_fresh(self) -> None:
    """Raises StorageError where the directory had checkpoints that are gone; warns where steps are done again."""
    rows = logbook.read_jsonl(self.workdir / "metrics.jsonl")
    last = max((row["step"] for row in rows), default=0)
    saved = logbook.read_json(self.workdir / SAVED)
    if saved:
      raise StorageError(
        f"{self.home}: its checkpoints are gone (the last was of step {saved['step']}), while metrics.jsonl tells of "
        f"steps up to {last}; restore checkpoints/ from a copy, or take another --workdir, or remove this directory "
        "to start afresh"
      )
    if last:
      _LOG.warning("%s: ended before its first checkpoint; steps 1 to %d are done again", self.home, last)

  def _mark_saved(self) -> None:
    """Writes the step of the last save to saved.json. Call it only when that save is on disk."""
    if self._saving is not None:
      step, self._saving = self._saving, None
      multihost.first(lambda: logbook.write_json(self.workdir / SAVED, {"step": step}))

  def wait(self) -> None:
    """Waits until the last save is on disk. Raises StorageError where it has failed."""
    self.checkpoints.wait()
    self._mark_saved()

  def save(self, step: int, state: Any, **meta) -> None:
    """Starts to save a checkpoint, from which the run resumes with step + 1, and writes the metrics that are pending.

    The state's arrays are copied before it returns, and may be donated then; files are written in the background. meta:
    further entries of the checkpoint's meta record, as JSON can hold them. Raises StorageError where the save before it
    has failed, a weight or moment is not finite, or the run directory was removed meanwhile, and what `flush` raises.
    """
    self.flush()
    multihost.first(lambda: self._check_is_there(step))
    record = {"seed": self.config.seed, "stage": self.stage, **meta}
    self.checkpoints.save(step, state.params, _training_part(state), record)
    self._mark_saved()  # of the save before, for which this one has waited
    self._saving = step

  def _check_is_there(self, step: int) -> None:
    """Raises StorageError where the run directory was removed; sends new files to an object store."""
    if not (self.home / _CONFIG_FILE).exists():
      raise StorageError(f"{self.home}: was removed while the run was at step {step}; nothing was saved there")
    self._push()

  def _push(self) -> None:
    """Sends new files to the object store, if the run directory is on one."""
    if self._mirror is not None:
      self._mirror.push()
      self._last_push = time.monotonic()

  def progress(self, total: int, start: int = 0) -> logbook.Progress:
    """Returns an object that shows a line of progress on stderr; its name is that of the run directory.

    Call the object as progress(step, figures) after each step. step: number of steps that are done, from `start` + 1 to
    `total`. figures: {name: number or text} to show; None: those shown last. total: number of all steps. start: number
    of steps that were done before, which the estimate of the time left does not count.
    """
    return logbook.Progress(self.home.name, total, start, stream=sys.stdout if multihost.process_index() else None)

  def log(self, step: int, metrics: Mapping) -> dict[str, float]:
    """Takes the metrics of a step, writes those of the step before to metrics.jsonl, and returns the written ones.

    Writing one step late keeps the device busy: metrics may be device arrays that are still being computed. Returns {}
    at the first call. Call it after `restore`, and `flush` (or `save`, `finish`) for the last step's.

    metrics: numbers by name, as arrays without axes or Python numbers; nan is written as null. `skipped_in_a_row`
    (number of updates that were not finite) is read and not written. Raises TrainingStopped where that reaches
    config.stop_after_bad_updates, and StorageError if the last save has failed.
    """
    self.checkpoints.check()
    written = self.flush()
    if time.monotonic() - self._last_push > _PUSH_SECONDS:
      self._push()
    if multihost.process_count() > 1:
      metrics = {**metrics, "asked": multihost.is_set_anywhere(signals.stop_requested())}
    self._pending = (step, metrics)
    return written

  def flush(self) -> dict[str, float]:
    """Writes the metrics that `log` took last and has not written, and returns them as numbers by name.

    It waits until the device has computed them. Returns {} if none are pending. Raises TrainingStopped as `log` does.
    """
    if self._pending is None:
      return {}
    step, metrics = self._pending
    self._pending = None
    metrics = multihost.fetch(metrics)
    self._asked = bool(metrics.pop("asked", self._asked))
    skipped = int(metrics.pop("skipped_in_a_row", 0))
    self._logbook.write(step, metrics)
    if skipped >= self.config.stop_after_bad_updates:
      raise TrainingStopped(
        f"step {step}: loss or gradient was not finite {skipped} times in a row; the weights are those of before. "
        f"Lower the learning rate (config.{self.stage}.optim.lr)"
      )
    return metrics

  def due(self, step: int, total: int) -> bool:
    """Returns whether to save after this step: at each multiple of config.checkpoint.every, at the last step (`total`),
    and if a signal has asked the run to stop."""
    return step % self.config.checkpoint.every == 0 or step == total or self._is_asked()

  def _is_asked(self) -> bool:
    """Returns whether a signal has asked the run to stop; all processes of a run get the same answer."""
    return self._asked if multihost.process_count() > 1 else signals.stop_requested()

  def raise_if_asked(self, saved: bool = False) -> None:
    """Raises Interrupted if a signal has asked the run to stop: for loops without checkpoints, such as an evaluation.

    On several hosts the processes exchange a message. saved: whether `save` was called for the present step; it then
    first waits until that checkpoint is on disk, and the message says so.
    """
    if multihost.any_stop_requested():
      if saved:
        self.wait()
      checkpoint_saved = ", checkpoint saved" if saved else ""
      raise signals.Interrupted(f"{self.home}: stopped by a signal{checkpoint_saved}; the same command goes on")

  def raise_if_asked_after_save(self) -> None:
    """Raises Interrupted if a signal has asked the run to stop, when the checkpoint is on disk: for training loops.

    Call it right after `save`. The processes need no message: they read what the metrics of the last step say.
    """
    if self._is_asked():
      self.wait()
      raise signals.Interrupted(f"{self.home}: stopped by a signal, checkpoint saved; the same command goes on")

  def finish(self, **summary) -> dict:
    """Writes summary.json, which marks the run as finished, and returns its content.

    Keys: stage, finished (True), and those of `summary`. Metrics that are pending and the last save are on disk before
    it. Raises TrainingStopped as `log` does, and StorageError where a file can't be written.
    """
    if self.checkpoints is not None:
      self.flush()
      self.wait()
    self.summary = multihost.first(lambda: self._finish({"stage": self.stage, "finished": True, **summary}))
    return self.summary

  def _finish(self, summary: dict) -> dict:
    """Writes summary.json on the first process and returns its content."""
    logbook.write_json(self.workdir / "summary.json", summary)
    self._push()
    return summary

  def _close(self) -> None:
    """Waits for the last save, closes files, and sends new files to the object store.

    A StorageError becomes a warning, as another error may be under way.
    """
    if self._logbook is not None:
      self._logbook.close()
    with _storage_errors_as_warnings():
      self._push()
    if self.checkpoints is not None:
      with _storage_errors_as_warnings():
        self.checkpoints.wait()
      self.checkpoints.close()


@contextlib.contextmanager
def _storage_errors_as_warnings() -> Iterator[None]:
  """Logs a StorageError of the block as a warning instead of raising it."""
  try:
    yield
  except StorageError as error:
    _LOG.warning("%s", error)


def _training_part(state: Any) -> dict:
  """Returns what a checkpoint holds of a training state beside its weights."""
  return {"opt_state": state.opt_state, "counts": (state.updates, state.skipped, state.skipped_in_a_row)}


@contextlib.contextmanager
def open_run(config: ConfigDict, workdir: str | Path, stage: str) -> Iterator[Run]:
  """Opens a run directory as a context manager: creates and locks it, yields its `Run`, and closes that at the end.

  workdir: local, or on an object store, where there are no locks: give no two runs one directory. stage: the name of
  the stage. If the block ends before `Run.begin`, the lock and the folders that were created are removed again. Raises
  InputError for a directory that holds a run of another stage or config, or other files and no run; that is in use or
  can't be written; or whose content config.resume does not allow ("never": a run, "required": no run).
  """
  home = object_store.path(workdir)
  with contextlib.ExitStack() as stack:

    def claim() -> dict | None:
      """Locks the directory and returns the summary of the finished run in it; None: there is none."""
      used = stack.enter_context(_claimed(home) if object_store.is_remote(home) else _locked(home))
      if not used and config.resume == "required":
        raise InputError(f"{home}: holds no run, but config.resume = 'required'; use 'auto' to start afresh")
      return _check_used(config, home, stage) if used else None

    earlier = multihost.first(claim)
    folder = home
    if multihost.process_index() or object_store.is_remote(home):
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxrlvr-")))
      if not multihost.process_index():
        object_store.pull(home, folder, ("checkpoints", "rollouts", "evals"))
    run = Run(config, home, folder, stage, earlier)
    stack.callback(run._close)
    stack.enter_context(named.held())  # what a run is named is hashed at its beginning, and must stay that
    yield run


def set_compile_cache(folder: str) -> None:
  """Sets the folder in which this process keeps compiled programs for later ones. Call it before the first program.

  folder: a path; "" keeps none. "auto": the folder that JAX_COMPILATION_CACHE_DIR names, else ~/.cache/jaxrlvr on
  accelerators and none on CPU, as a CPU's programs may not run on another CPU.
  """
  if folder == "auto":
    if jax.config.values["jax_compilation_cache_dir"] or jax.default_backend() == "cpu":
      return
    folder = "~/.cache/jaxrlvr"
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder) or None)


@contextlib.contextmanager
def _claimed(home) -> Iterator[bool]:
  """Creates a folder on an object store, which can't be locked, and yields whether it holds a run.

  Raises InputError where it holds other files or can't be reached.
  """
  with object_store.translate_errors(InputError, f"--workdir={home}"):
    used = (home / _CONFIG_FILE).exists()
    other_files = [] if used or not home.exists() else [file.name for file in home.iterdir()]
    home.mkdir(parents=True, exist_ok=True)
  _check_no_other_files(home, other_files)
  yield used


def _check_no_other_files(home, other_files: list[str]) -> None:
  """Raises InputError for a directory without a run that holds these files."""
  if other_files:
    raise InputError(
      f"--workdir={home}: holds other files ({other_files[0]}, ...) and no run; choose another directory"
    )


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[bool]:
  """Creates a local directory, holds its lock during the block, and yields whether it holds a run.

  If it holds none at the end either, the lock's file and the folders that were created are removed. The kernel frees
  the lock however the process ends. Raises InputError where the directory is in use, holds other files, or can't be
  written.
  """
  try:
    absent = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    lock = _open_locked(workdir)
  except OSError as error:
    raise InputError(f"--workdir={workdir}: can't be written ({error.strerror}); choose another directory") from error
  with lock:
    try:
      used = (workdir / _CONFIG_FILE).is_file()
      if not used:
        other_files = [file.name for file in workdir.iterdir() if file.name != _LOCK_FILE and file.suffix != ".part"]
        _check_no_other_files(workdir, other_files)
      lock.truncate(0)
      lock.write(f"process {os.getpid()} on {platform.node()}")
      lock.flush()
      yield used
    finally:
      if not (workdir / _CONFIG_FILE).is_file():
        _remove_lock(lock, workdir, absent)


def _open_locked(workdir: Path) -> TextIO:
  """Creates a directory and its lock's file, and returns that file, open and locked.

  A file system without locks gives a warning. Raises InputError where another process holds the lock.
  """
  for _ in range(_LOCK_ATTEMPTS):
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / _LOCK_FILE).open("a+")
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      with lock:
        lock.seek(0)
        holder = lock.read().strip()
      raise InputError(f"--workdir={workdir}: in use by {holder}; wait for it or choose another") from error
    except OSError as error:  # some mounts, such as Drive's or NFS without its daemon, know no locks
      _LOG.warning("%s: can't be locked there (%s); give no second run this directory", workdir, error.strerror)
      break
    if os.fstat(lock.fileno()).st_nlink:
      break
    lock.close()  # a run that was refused has removed the file between our open and our lock
  return lock


def _remove_lock(lock: TextIO, workdir: Path, created: Sequence[Path]) -> None:
  """Removes the lock's file and those of the folders `created`, innermost first, that are empty then."""
  file = workdir / _LOCK_FILE
  with contextlib.suppress(OSError):  # someone else has removed or uses them
    if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
      file.unlink()
    for folder in created:
      folder.rmdir()


def in_use(workdir: Path) -> bool:
  """Returns whether a process, this one included, has a local run directory open.

  It is False for a directory that does not exist, and on file systems without locks.
  """
  file = workdir / _LOCK_FILE
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
  """Checks whether a directory's run may go on with this config; returns its summary if nothing is left to do, else
  None.

  Raises InputError where it is of another stage or version, or keys differ that must stay.
  """
  if config.resume == "never":
    raise InputError(f"--workdir={workdir}: holds a run and config.resume = 'never'; choose another or use 'auto'")
  recorded = read_config(workdir)
  recorded_stage = recorded.pop("stage")
  if recorded_stage != stage:
    raise InputError(
      f"--workdir={workdir}: holds a run of stage {recorded_stage!r}, not {stage!r}; choose another directory"
    )
  may_differ = {name for name, key in declared().items() if key.may_change or stage in _ANY_CONFIG}
  earlier = logbook.read_json(workdir / "summary.json") or None
  no_longer_stops = earlier and "stopped" in earlier and not config.rl.stop_when_memorising
  longer = stage == "rl" and (config.rl.steps > recorded["rl"]["steps"] or no_longer_stops)
  if longer and config.rl.optim.schedule == "constant" and not config.rl.optim.warmup:
    may_differ.add("rl.steps")  # the number of steps then changes no step that was done
  new_or_gone = sorted(set(values.names(config)) ^ set(values.names(ConfigDict(recorded))))
  if new_or_gone:
    raise InputError(
      f"--workdir={workdir}: holds a run of another version of jaxrlvr (config.{new_or_gone[0]} is new or gone); go on "
      "with that version (git in manifest.json), or choose another directory"
    )
  changed = differences(config, recorded, may_differ)
  if changed:
    raise InputError(
      f"--workdir={workdir}: holds a run with another config; choose another directory or undo\n  "
      + "\n  ".join(changed)
    )
  return None if longer or _is_to_be_checked(config, workdir, stage, earlier) else earlier


def _is_to_be_checked(config: ConfigDict, workdir: Path, stage: str, earlier: dict | None) -> bool:
  """Returns whether a finished training run is opened again to check or restore its last checkpoint.

  It is if config.resume is "check", or if its last checkpoint is gone while earlier ones are there. earlier: its
  summary.
  """
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
  """Returns the content of a run directory's config.json: the groups and keys of the config, and the key stage.

  workdir: local or on an object store. Raises InputError where the directory does not exist or holds no run.
  """
  try:
    config = json.loads((workdir / _CONFIG_FILE).read_text())
    if isinstance(config, dict) and "stage" in config and "checkpoint" in config:
      return config
    problem = "config.json is another program's"
  except (OSError, ValueError, TypeError, RecursionError) as error:
    problem = f"config.json: {type(error).__name__}"
  raise InputError(f"{workdir}: holds no run ({problem}); name another directory")


def digests_of_code(config: ConfigDict, stage: str) -> dict[str, str]:
  """Returns digests of code that a run's figures depend on, by a phrase for messages, as "rl.reward 'verifiable'".

  They are, for the stage rl, the verifiers, the parsing of answers and each built-in reward in rl.reward; and for every
  stage the user's own objects (`base.named`) that the keys it reads name. Raises InputError where one of these can't be
  found.
  """
  digests = {}
  if stage == "rl":
    digests["the verifiers"] = _digest_of_files(_verifier_files())
    digests["the reading of answers"] = _digest_of_files(
      [_PACKAGE / "text" / f"{name}.py" for name in ("answer", "tags")]
    )
    for name in sorted({factor.name for _, factors in expression.parse(config.rl.reward) for factor in factors}):
      if name in table.REWARDS:
        digests[f"rl.reward {name!r}"] = logbook.digest(_source(table.REWARDS[name].function))
  keys_read = manual.keys_read(stage, config)
  for key, declaration in declared().items():
    if key in keys_read:
      for name in declaration.rule.own_names(values.get(config, key)):
        digests[f"{key} {name!r}"] = logbook.digest(named.sources(name))
  return digests


def _verifier_files() -> list[Path]:
  """Returns the source files of all verifiers and of grading."""
  return sorted([*(_PACKAGE / "tasks").rglob("*.py"), *(_PACKAGE / "grading").glob("*.py")])


def _digest_of_files(paths: Sequence[Path]) -> str:
  """Returns a digest of the texts of these files."""
  return logbook.digest([path.read_text() for path in paths])


def _source(function) -> list[str]:
  """Returns texts that stand for a reward's code: all files of its folder if it is in this package, else its source.

  For a partial function its arguments follow; for a function without source its byte code stands.
  """
  if isinstance(function, functools.partial):
    arguments = [f"{name}={value!r}" for name, value in function.keywords.items() if not callable(value)]
    return [*_source(function.func), *map(repr, function.args), *arguments]
  module = inspect.getmodule(function)
  if module is not None and module.__name__.startswith("jaxrlvr."):
    return [path.read_text() for path in sorted(Path(module.__file__).parent.glob("*.py"))]
  return named.source_of(function)


def manifest() -> dict:
  """Returns what the figures of a run depend on beside its config and inputs, as manifest.json records it.

  Keys: `python`, `packages` (versions), `git` (commit; None: unknown), `verifiers` (digest of their code), `devices`
  ([] before the first use of jax), `command` (the arguments of the process) and `folder` (its working directory, where
  user's own files are looked for).
  """
  command = ["git", "-C", str(_PACKAGE), "describe", "--always", "--dirty"]
  try:
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
  except OSError:  # no git on this machine
    commit = None
  uses_devices = jax_internals().backends_are_initialized()
  return {
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    "git": commit,
    "verifiers": _digest_of_files(_verifier_files()),
    "devices": [str(d) for d in jax.devices()] if uses_devices else [],
    "command": sys.argv[1:],
    "folder": os.getcwd(),
  }
