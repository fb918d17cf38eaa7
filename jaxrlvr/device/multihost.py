"""Several processes that run as one: exchanges between hosts, and the end of a run that has lost a process.

Every process runs the same program on the same host values. `put` and `fetch` move arrays, of which each process holds
a part; `gather` and `first` exchange values that only one process knows, as JSON. With one process all of this is plain
jax, and values are not turned to JSON.

A thread of each process, the watch, looks after the others. Where one of them is dead, or doesn't come to where all
must meet, it says which on stderr and ends its own process with exit code GONE.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlvr.base import signals
from jaxrlvr.base.errors import InputError, StorageError, TrainingStopped
from jaxrlvr.base.escape import visible
from jaxrlvr.base.types import Verdict
from jaxrlvr.device.jax_internals import jax_internals

GONE = 5  # exit code of a process whose peers are gone: all of them may be started again
_BEAT = 1.0  # seconds between two signs of life
_BEATS_TO_FIND = 6  # beats, besides `silence`, in which the watch finds a process that has ended, and ends its own
_BARRIER_MS = 7 * 86_400_000  # milliseconds that a barrier waits: the watch ends the process earlier
_SHARED_ERRORS = {error.__name__: error for error in (InputError, StorageError, TrainingStopped, signals.Interrupted)}
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_rounds = itertools.count()
_watch: _Watch | None = None


def process_count() -> int:
  """Returns the number of processes of the run; 1 before `initialise`. Looks for no devices."""
  return jax_internals().distributed.num_processes


def process_index() -> int:
  """Returns the number of this process, from 0 to process_count() - 1; 0 before `initialise`. Looks for no devices."""
  return jax_internals().distributed.process_id


def initialise(deadline: float, silence: float) -> None:
  """Joins the other processes; call it once on each of them, before jax looks for devices.

  deadline: seconds that this process waits where all must meet, before it ends itself with GONE. silence: seconds
  without a sign of life after which a process counts as dead. The environment variables JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID say which processes there are; on Cloud TPU they may be left out. All processes
  but the first then write nothing to stdout and only errors to stderr. Raises InputError for wrong variables, and where
  the processes don't meet.
  """
  global _watch
  address, processes, index = _read_variables()
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
  try:
    jax.distributed.initialize(
      address,
      processes,
      index,
      heartbeat_timeout_seconds=int(2 * silence) + 10,  # the watch is earlier, and names who is gone
    )
  except (ValueError, RuntimeError) as error:
    names = ", ".join(_VARIABLES)
    raise InputError(
      f"--distributed: {str(error).splitlines()[0]}; set {names}, or leave it out where one process is all"
    ) from error
  _watch = _Watch(deadline, silence)
  _watch.start()
  if process_index():
    signals.be_quiet()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    logging.getLogger("jaxrlvr").setLevel(logging.ERROR)
  jax.devices()  # all wait for each other in this; later on one might ask while another waits elsewhere


def _read_variables() -> tuple[str | None, int | None, int | None]:
  """Returns the values of _VARIABLES, or None for each if none is set. Raises InputError if they are wrong."""
  texts = {name: os.environ.get(name, "") for name in _VARIABLES}
  address, processes, index = texts.values()
  wrong = []
  if any(texts.values()):
    wrong = [name for name, text in texts.items() if not text]
  if not wrong and processes:
    is_valid = processes.isdecimal() and index.isdecimal() and int(index) < int(processes)
    if not is_valid:
      wrong = ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
  if wrong:
    stated = ", ".join(f"{name} = {texts[name]!r}" for name in wrong)
    raise InputError(
      f"--distributed: {stated}; wanted the first host's address as HOST:PORT, the number of processes, and which of "
      "them this is, from 0 on"
    )
  if not address:
    return None, None, None
  return address, int(processes), int(index)


def put(tree: Any, shardings: Any) -> Any:
  """Returns the tree with its host arrays on the devices, as jax arrays of these shardings.

  tree: arrays, equal on all processes, each of which transfers what its own devices hold. shardings: a tree of the same
  structure, or a prefix of one, such as a single sharding for all arrays.
  """
  if process_count() == 1:
    return jax.device_put(tree, shardings)

  def put_array(x, place):
    x = np.asarray(x)
    index_by_device = place.addressable_devices_indices_map(x.shape)
    pieces = [jax.device_put(x[index], device) for device, index in index_by_device.items()]
    return jax.make_array_from_single_device_arrays(x.shape, place, pieces)

  return jax.tree.map(put_array, tree, jax.tree.broadcast(shardings, tree))


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def fetch(tree: Any) -> Any:
  """Returns the tree with every jax array as a whole numpy array, on every process, in one transfer; waits for them.

  All processes must call it together, with trees of the same arrays. Other leaves are returned unchanged.
  """
  if process_count() == 1:
    return jax.device_get(tree)

  def local_copy(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    if not x.is_fully_replicated:
      x = _replicate(x.sharding.mesh)(x)
    return x.addressable_data(0)

  with waiting("the devices"):
    return jax.device_get(jax.tree.map(local_copy, tree))


@functools.cache
def _any():
  return jax.jit(lambda x: x.any())


def is_set_anywhere(flag: bool) -> jax.Array:
  """Returns whether the flag is set on any process, as a scalar bool array on the mesh of `jax.set_mesh`.

  All processes must call it together, each with its own flag. None waits for the result here: `fetch` it later.
  """
  mesh = jax.sharding.get_mesh()
  flag_of_device = np.full(mesh.size, flag)
  flags = put(flag_of_device, NamedSharding(mesh, P(mesh.axis_names)))
  return _any()(flags)


def gather(compute: Callable[[], object]) -> list:
  """Calls `compute` on every process and returns the results of all, in the order of the processes, on each of them.

  compute: takes nothing and returns what JSON can hold: with several processes tuples come back as lists, and keys of
  dicts as strings. All processes must call `gather` together. Where `compute` raises an InputError, StorageError,
  TrainingStopped or Interrupted on one process, the same error is raised on all; another error only where it happened.
  """
  if process_count() == 1:
    return [compute()]
  try:
    own_result = {"value": compute()}
  except tuple(_SHARED_ERRORS.values()) as error:
    own_result = {"error": type(error).__name__, "message": str(error)}
  number, client = next(_rounds), jax_internals().distributed.client
  with waiting(f"exchange {number}"):
    client.key_value_set_bytes(f"jaxrlvr/{number}/{process_index()}", json.dumps(own_result).encode())
    client.wait_at_barrier(f"jaxrlvr/{number}", _BARRIER_MS)
    texts = dict(client.key_value_dir_get_bytes(f"jaxrlvr/{number}/"))
  if not process_index():
    client.key_value_delete(f"jaxrlvr/{number - 1}/")  # all are past it
  results = [json.loads(texts[f"jaxrlvr/{number}/{process}"]) for process in range(process_count())]
  for result in results:
    if "error" in result:
      raise _SHARED_ERRORS[result["error"]](result["message"])
  return [result["value"] for result in results]


def first(compute: Callable[[], object]) -> Any:
  """Calls `compute` on the first process alone and returns its result on all of them.

  All processes must call it together. The result passes through JSON, and errors are shared, as in `gather`.
  """
  return gather(compute if not process_index() else lambda: None)[0]


def any_stop_requested() -> bool:
  """Returns whether a signal (SIGTERM, SIGINT) has asked any process to stop.

  All processes must call it together, and wait for each other in it.
  """
  return any(gather(signals.stop_requested))


def grade_jointly(grade: Callable[[Sequence], list[Verdict]], jobs: Sequence) -> list[Verdict]:
  """Returns the verdicts on all jobs, in their order, on every process.

  Process k of n grades jobs k, k + n, k + 2n and so on. grade: returns a verdict for each job of the sequence that it
  gets. jobs: the same on all processes, which must call it together. So all go on with the same verdicts, even if a job
  ran out of time on one of them.
  """
  if process_count() == 1:
    return grade(jobs)
  own_jobs = jobs[process_index() :: process_count()]
  fields_by_process = gather(lambda: [dataclasses.astuple(verdict) for verdict in grade(own_jobs)])
  verdicts: list = [None] * len(jobs)
  for process, fields_of_verdicts in enumerate(fields_by_process):
    verdicts[process :: process_count()] = [Verdict(*fields) for fields in fields_of_verdicts]
  return verdicts


@contextlib.contextmanager
def waiting(meeting: str) -> Iterator[None]:
  """Marks a block that ends only when all processes have reached it, for the watch.

  meeting: what the block is called in the watch's message, such as "checkpoint 12". Where a process doesn't reach the
  block within the deadline of `initialise`, the watch names it and ends this process. Does nothing with one process.
  """
  if _watch is not None:
    _watch.arrive(meeting)
  try:
    yield
  finally:
    if _watch is not None:
      _watch.waiting_since = None


class _Sign(NamedTuple):
  """A sign of life of a process."""

  beat: int  # number of the sign
  arrivals: int  # how many meetings the process has come to
  meeting: str  # the last of them
  host: str


class _LastSign(NamedTuple):
  """The newest sign of life that has come from a process."""

  sign: _Sign
  when: float  # seconds of time.monotonic()


_FIRST_MEETING = "the start"


class _Watch:
  """Two threads: one exchanges signs of life, one looks at the clock and ends a process that would wait in vain.

  jax's own heartbeats see that a process died, but abort without a name; that one hangs they don't see."""

  def __init__(self, deadline: float, silence: float):
    self.deadline, self.silence = deadline, silence
    self.arrivals, self.meeting = 0, _FIRST_MEETING
    self.waiting_since: float | None = None  # when this process began to wait for the others; None: it does not
    self.own_reason = ""  # why this process ends, for the others
    self.reason_of_other = ""  # why another process has ended
    self.leaving = False  # this process ends by itself: reasons of others are not for it
    self.over = threading.Event()
    self.threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._look)]
    self.answered = time.monotonic()  # when the service last answered
    self.last_signs: Mapping[int, _LastSign] = {}  # by process

  def start(self) -> None:
    no_sign = _LastSign(_Sign(0, 0, _FIRST_MEETING, "?"), time.monotonic())
    self.last_signs = dict.fromkeys(range(process_count()), no_sign)
    for thread in self.threads:
      thread.start()

  def stop(self) -> None:
    """Ends both threads. Call it before the service or Python ends: a thread inside the client would crash them."""
    self.over.set()
    for thread in self.threads:
      thread.join()

  def arrive(self, meeting: str) -> None:
    """Notes that this process has come to a meeting, and waits there for the others."""
    self.arrivals, self.meeting, self.waiting_since = self.arrivals + 1, meeting, time.monotonic()

  def end_with(self, reason: str) -> None:
    """Tells the others why this process ends, and waits until they must have heard it.

    The first process waits longer: the service ends with it, so that the others must end before it.
    """
    self.own_reason = reason
    time.sleep(_BEAT * (2 if process_index() else 4))

  def _beat(self) -> None:
    """Sends a sign of life every _BEAT seconds, and reads those of the others, until `over` is set."""
    client = jax_internals().distributed.client
    beat = 0
    while not self.over.wait(_BEAT if beat else 0.0):
      beat += 1
      own_sign = _Sign(beat, self.arrivals, self.meeting, platform.node())
      try:
        own_key = f"jaxrlvr-life/{process_index()}"
        client.key_value_set_bytes(own_key, json.dumps(own_sign).encode(), allow_overwrite=True)
        if self.own_reason:
          client.key_value_set_bytes("jaxrlvr-life/end", self.own_reason.encode(), allow_overwrite=True)
        rows = dict(client.key_value_dir_get_bytes("jaxrlvr-life/"))
      except RuntimeError:  # the service is gone, or too busy to answer: `_find_reason` waits for `silence`
        continue
      self.reason_of_other = rows.get("jaxrlvr-life/end", b"").decode()
      self.answered = time.monotonic()
      self.last_signs = {
        process: self._newest(last, rows.get(f"jaxrlvr-life/{process}")) for process, last in self.last_signs.items()
      }

  def _newest(self, last: _LastSign, text: bytes | None) -> _LastSign:
    """Returns the sign of life in `text`, as of now, or `last` where `text` is None or holds the same sign."""
    if text is None:
      return last
    sign = _Sign(*json.loads(text))
    return last if sign == last.sign else _LastSign(sign, self.answered)

  def _look(self) -> None:
    """Looks at the clock twice a beat, until `over` is set; ends the process where it would wait in vain."""
    while not self.over.wait(_BEAT / 2):
      reason = self.reason_of_other or self._find_reason(time.monotonic())
      if reason and not self.leaving:
        self.end_with(reason)
        if not self.leaving:
          print(f"jaxrlvr: {reason}", file=sys.stderr, flush=True)
          os._exit(GONE)

  def _find_reason(self, now: float) -> str:
    """Returns why this process would wait in vain, "" if it would not. now: time.monotonic()."""
    unanswered = now - self.answered
    for process, (sign, when) in self.last_signs.items():
      silent = now - when
      if process != process_index() and silent > self.silence and unanswered < self.silence:
        return (
          f"process {process} on {sign.host} died or was stopped: silent for {silent:.0f} s, last at {sign.meeting}"
        )
    if unanswered > self.silence:
      return f"process 0 died or was stopped: its coordination service is silent for {unanswered:.0f} s"
    since = self.waiting_since
    if since is None or now - since <= self.deadline:
      return ""
    waited = f"process {process_index()} waited {now - since:.0f} s for {self.meeting}"
    return f"{waited} (config.hosts.deadline_seconds): {self._who_is_behind()}"

  def _who_is_behind(self) -> str:
    """Returns which other processes have come to the fewest meetings, and fewer than this one, in words."""
    signs = {process: last.sign for process, last in self.last_signs.items() if process != process_index()}
    fewest = min((sign.arrivals for sign in signs.values()), default=self.arrivals)
    if fewest >= self.arrivals:
      return "no process is behind"
    behind = [
      f"process {process} on {sign.host}, last at {sign.meeting}"
      for process, sign in signs.items()
      if sign.arrivals == fewest
    ]
    return f"{'; '.join(behind)} hangs"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
  """Ends the process with GONE. jax's client aborts where the first process's service is gone, without other notice."""
  reason = ""
  if _watch is not None:
    reason = _watch.reason_of_other or _watch.own_reason
  if not reason:
    reason = (
      "the runtime gave up, its reason is above: most likely process 0, which keeps the coordination service, is gone"
    )
  os.write(2, f"jaxrlvr: {visible(reason)}\n".encode(errors="backslashreplace"))
  os._exit(GONE)


def give_watch_time() -> None:
  """Waits, after an error that the end of another process may have caused, so that the watch can find which it was.

  If it finds one, it names it and ends this process with GONE; otherwise returns after silence + 6 seconds (`silence`
  of `initialise`). Returns at once with one process.
  """
  if _watch is not None:
    time.sleep(_watch.silence + _BEATS_TO_FIND * _BEAT)


def leave(code: int, reason: str) -> None:
  """Ends this process's part in the run; does nothing with one process.

  code: the exit code that the process is about to end with. With 0 and 143 (stopped by a signal) all processes end like
  this: waits for them, leaves jax's distributed runtime and returns. With another code tells the others `reason`, an
  error in one line, and ends the process with `code` at once; their watch then ends them with GONE.
  """
  if _watch is None:
    return
  if code in (0, signals.EXIT_CODE):
    gather(lambda: None)
    _watch.leaving = True
    _watch.stop()
    jax.distributed.shutdown()
    return
  _watch.leaving = True
  _watch.end_with(f"process {process_index()} on {platform.node()} ended with exit code {code}: {reason}")
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
