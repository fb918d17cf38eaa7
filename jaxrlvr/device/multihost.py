"""Several processes that run as one: exchanges between hosts, and the end of a run that has lost a process.

Every process runs the same program on the same host values. `put` and `fetch` move arrays, of which each process holds
a part; `gather` and `first` exchange values that only one process knows, as JSON. With one process all of this is plain
jax.
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
from typing import Any

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
_LONG = 7 * 86_400_000  # ms that a barrier waits: the watch ends the process earlier
_SHARED_ERRORS = {error.__name__: error for error in (InputError, StorageError, TrainingStopped, signals.Interrupted)}
_rounds = itertools.count()
_watch: _Watch | None = None


def process_count() -> int:
  """Returns the number of processes."""
  return jax_internals().distributed.num_processes


def process_index() -> int:
  """Returns the number of this process, from 0."""
  return jax_internals().distributed.process_id


def initialise(deadline: float, silence: float) -> None:
  """Joins the other processes; call it before any device is touched.

  deadline: seconds that this process waits for the others before it ends itself. silence: seconds without a sign of
  life after which a process counts as dead. On Cloud TPU nothing must be set; elsewhere JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID are read. All processes but the first then write nothing to stdout and only
  errors to stderr. Raises InputError for wrong variables, and where the processes don't meet.
  """
  global _watch
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  found = {name: os.environ.get(name, "") for name in names}
  numbers = [found[name] for name in names[1:]]
  wrong = [n for n in names if any(found.values()) and not found[n]]
  if not wrong and any(numbers) and not (all(map(str.isdecimal, numbers)) and int(numbers[1]) < int(numbers[0])):
    wrong = list(names[1:])
  if wrong:
    raise InputError(
      f"--distributed: {', '.join(f'{n} = {found[n]!r}' for n in wrong)}; wanted the first host's address as "
      "HOST:PORT, the number of processes, and which of them this is, from 0 on"
    )
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
  try:
    processes, which = (int(n) if n else None for n in numbers)
    jax.distributed.initialize(
      found[names[0]] or None,
      processes,
      which,
      heartbeat_timeout_seconds=int(2 * silence) + 10,  # the watch is earlier, and names who is gone
    )
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"--distributed: {str(error).splitlines()[0]}; set {', '.join(names)}, or leave it out where one process is all"
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


def put(tree: Any, places: Any) -> Any:
  """Puts host arrays, equal on all processes, onto the devices; each process transfers what its own devices hold.

  places: the shardings, as a tree of the same structure or a prefix of one.
  """
  if process_count() == 1:
    return jax.device_put(tree, places)

  def one(x, place):
    x = np.asarray(x)
    parts = place.addressable_devices_indices_map(x.shape).items()
    return jax.make_array_from_single_device_arrays(
      x.shape, place, [jax.device_put(x[part], device) for device, part in parts]
    )

  return jax.tree.map(one, tree, jax.tree.broadcast(places, tree))


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def fetch(tree: Any) -> Any:
  """Returns the tree with every array as a whole numpy array, on every process, in one transfer.

  All processes must call it together. Other leaves are unchanged.
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


def anywhere(flag: bool) -> jax.Array:
  """Returns, as an array on the mesh of `jax.set_mesh`, whether the flag is set on any process.

  All processes must call it together; none waits for the result here.
  """
  mesh = jax.sharding.get_mesh()
  return _any()(put(np.full(mesh.size, flag), NamedSharding(mesh, P(mesh.axis_names))))


def gather(make: Callable[[], object]) -> list:
  """Calls `make` on every process and returns the results of all, by process, as JSON can hold them.

  All processes must call it together. An InputError, StorageError, TrainingStopped or Interrupted that one process
  raises is raised on all.
  """
  if process_count() == 1:
    return [make()]
  try:
    mine = {"value": make()}
  except tuple(_SHARED_ERRORS.values()) as error:
    mine = {"error": type(error).__name__, "message": str(error)}
  number, client = next(_rounds), jax_internals().distributed.client
  with waiting(f"exchange {number}"):
    client.key_value_set_bytes(f"jaxrlvr/{number}/{process_index()}", json.dumps(mine).encode())
    client.wait_at_barrier(f"jaxrlvr/{number}", _LONG)
    found = dict(client.key_value_dir_get_bytes(f"jaxrlvr/{number}/"))
  if not process_index():
    client.key_value_delete(f"jaxrlvr/{number - 1}/")  # all are past it
  each = [json.loads(found[f"jaxrlvr/{number}/{k}"]) for k in range(process_count())]
  for one in each:
    if "error" in one:
      raise _SHARED_ERRORS[one["error"]](one["message"])
  return [one["value"] for one in each]


def first(make: Callable[[], object]) -> Any:
  """Calls `make` on the first process alone and returns its result on all; errors are as in `gather`."""
  return gather(make if not process_index() else lambda: None)[0]


def any_stop_requested() -> bool:
  """Returns whether a signal has asked any process to stop; all processes must call it together."""
  return any(gather(signals.stop_requested))


def share(grade: Callable[[Sequence], list[Verdict]], jobs: Sequence) -> list[Verdict]:
  """Returns the verdicts on all jobs, on every process; each process grades a part of them.

  So all processes go on with the same verdicts, also where a job ran out of time on one.
  """
  if process_count() == 1:
    return grade(jobs)
  parts = gather(lambda: [dataclasses.astuple(v) for v in grade(jobs[process_index() :: process_count()])])
  verdicts: list = [None] * len(jobs)
  for k, part in enumerate(parts):
    verdicts[k :: process_count()] = [Verdict(*v) for v in part]
  return verdicts


@contextlib.contextmanager
def waiting(where: str) -> Iterator[None]:
  """Marks a block that ends only when all processes have reached it; the watch names a process that does not."""
  if _watch is not None:
    _watch.arrive(where)
  try:
    yield
  finally:
    if _watch is not None:
      _watch.since = None


class _Watch:
  """Two threads: one exchanges signs of life, one looks at the clock and ends a process that would wait in vain.

  jax's own heartbeats see that a process died, but abort without a name; that one hangs they don't see."""

  def __init__(self, deadline: float, silence: float):
    self.deadline, self.silence = deadline, silence
    self.arrivals, self.where = 0, "the start"
    self.since: float | None = None  # when this process began to wait for the others; None: it does not
    self.told = ""  # what this process says of its end
    self.verdict = ""  # what another has said
    self.leaving = False  # this process ends by itself: what others say is not for it
    self.over = threading.Event()
    self.threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._look)]
    self.answered = time.monotonic()
    self.seen: Mapping[int, tuple[list, float]] = {}

  def start(self) -> None:
    self.seen = {k: ([0, 0, "the start", "?"], time.monotonic()) for k in range(process_count())}
    for thread in self.threads:
      thread.start()

  def stop(self) -> None:
    """Ends both threads. Call it before the service or Python ends: a thread inside the client would crash them."""
    self.over.set()
    for thread in self.threads:
      thread.join()

  def arrive(self, where: str) -> None:
    self.arrivals, self.where, self.since = self.arrivals + 1, where, time.monotonic()

  def _beat(self) -> None:
    client = jax_internals().distributed.client
    beat = 0
    while not self.over.wait(_BEAT if beat else 0.0):
      beat += 1
      sign = json.dumps([beat, self.arrivals, self.where, platform.node()]).encode()
      try:
        client.key_value_set_bytes(f"jaxrlvr-life/{process_index()}", sign, allow_overwrite=True)
        if self.told:
          client.key_value_set_bytes("jaxrlvr-life/end", self.told.encode(), allow_overwrite=True)
        rows = dict(client.key_value_dir_get_bytes("jaxrlvr-life/"))
        self.verdict = rows.get("jaxrlvr-life/end", b"").decode()
      except RuntimeError:  # the service is gone, or too busy to answer: `judge` waits for `silence`
        continue
      now = time.monotonic()
      self.answered = now
      signs = {k: json.loads(rows.get(f"jaxrlvr-life/{k}", b"null")) or old for k, (old, _) in self.seen.items()}
      self.seen = {k: (new, self.seen[k][1] if new == self.seen[k][0] else now) for k, new in signs.items()}

  def _look(self) -> None:
    while not self.over.wait(_BEAT / 2):
      told = self.verdict or self.judge(time.monotonic())
      if told and not self.leaving:
        self.told = told  # for the others
        # The service ends with the first process: the others end before it.
        time.sleep(_BEAT * (2 if process_index() else 4))
        if not self.leaving:
          print(f"jaxrlvr: {told}", file=sys.stderr, flush=True)
          os._exit(GONE)

  def judge(self, now: float) -> str:
    """Returns why this process would wait in vain, "" if it would not. now: time.monotonic()."""
    for k, ((_, _, where, host), at) in self.seen.items():
      if k != process_index() and now - at > self.silence and now - self.answered < self.silence:
        return f"process {k} on {host} died or was stopped: silent for {now - at:.0f} s, last at {where}"
    if now - self.answered > self.silence:
      return f"process 0 died or was stopped: its coordination service is silent for {now - self.answered:.0f} s"
    since = self.since
    if since is None or now - since <= self.deadline:
      return ""
    signs = {k: sign for k, (sign, _) in self.seen.items()} | {process_index(): [0, self.arrivals, self.where, ""]}
    least = min(arrivals for _, arrivals, _, _ in signs.values())
    names = [f"process {k} on {s[3]}, last at {s[2]}" for k, s in signs.items() if s[1] == least != self.arrivals]
    behind = f"{'; '.join(names)} hangs" if names else "no process is behind"
    waited = f"process {process_index()} waited {now - since:.0f} s for {self.where}"
    return f"{waited} (config.hosts.deadline_seconds): {behind}"


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
  """Ends the process with GONE. jax's client aborts where the first process's service is gone, without other notice."""
  told = (_watch and (_watch.verdict or _watch.told)) or (
    "the runtime gave up, its reason is above: most likely process 0, which keeps the coordination service, is gone"
  )
  os.write(2, f"jaxrlvr: {visible(told)}\n".encode(errors="backslashreplace"))
  os._exit(GONE)


def await_verdict() -> None:
  """Waits, after an error that the end of another process may have caused, until the watch can have named it."""
  if _watch is not None:
    time.sleep(_watch.silence + 6 * _BEAT)


def leave(code: int, told: str) -> None:
  """Ends this process's part in the run.

  Waits for the others where all are done (exit codes 0 and 143); else tells them the reason `told` and exits at once.
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
  _watch.told = f"process {process_index()} on {platform.node()} ended with exit code {code}: {told}"
  time.sleep(_BEAT * (2 if process_index() else 4))
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
