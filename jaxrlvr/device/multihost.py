"""Several processes as one: what crosses between hosts, and what ends a run of which a part is gone.

Every process runs the same program on the same host values. Arrays are handed over in parts (`put`, `fetch`); what only
one process can know, it tells the others as JSON (`gather`, `first`). With one process all of this is plain jax.
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
_TOLD = {error.__name__: error for error in (InputError, StorageError, TrainingStopped, signals.Interrupted)}
_rounds = itertools.count()
_watch: _Watch | None = None


def process_count() -> int:
  return jax_internals().distributed.num_processes


def process_index() -> int:
  return jax_internals().distributed.process_id


def initialise(deadline: float, silence: float) -> None:
  """Joins the other processes; call it before any device is touched. On Cloud TPU nothing need be told, elsewhere see
  the three variables. Processes but the first say nothing on stdout, and only errors on stderr."""
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
  """Host arrays, equal on all processes, onto devices; each process hands over what its own devices hold.

  `places`: a tree of shardings, or a prefix of one."""
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
  """All of the arrays, on every process, in one transfer; values of the host stay as they are."""
  if process_count() == 1:
    return jax.device_get(tree)

  def near(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    return (x if x.is_fully_replicated else _replicate(x.sharding.mesh)(x)).addressable_data(0)

  with waiting("the devices"):
    return jax.device_get(jax.tree.map(near, tree))


@functools.cache
def _any():
  return jax.jit(lambda x: x.any())


def anywhere(flag: bool) -> jax.Array:
  """Whether the flag is set on any process, on the devices of the mesh that is set: nobody waits for it here."""
  mesh = jax.sharding.get_mesh()
  return _any()(put(np.full(mesh.size, flag), NamedSharding(mesh, P(mesh.axis_names))))


def gather(make: Callable[[], object]) -> list:
  """What `make` returned on each process, as JSON can hold it; an error or a stop on one is raised on all."""
  if process_count() == 1:
    return [make()]
  try:
    mine = {"value": make()}
  except tuple(_TOLD.values()) as error:
    mine = {"error": type(error).__name__, "told": str(error)}
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
      raise _TOLD[one["error"]](one["told"])
  return [one["value"] for one in each]


def first(make: Callable[[], object]) -> Any:
  """What `make` returns on the first process, the only one where it runs."""
  return gather(make if not process_index() else lambda: None)[0]


def any_stop_requested() -> bool:
  """Has a signal asked any process to stop?"""
  return any(gather(signals.stop_requested))


def share(grade: Callable[[Sequence], list[Verdict]], jobs: Sequence) -> list[Verdict]:
  """The verdicts on all jobs, of which each process grades its part: all go on from the same, timeouts included."""
  if process_count() == 1:
    return grade(jobs)
  parts = gather(lambda: [dataclasses.astuple(v) for v in grade(jobs[process_index() :: process_count()])])
  verdicts: list = [None] * len(jobs)
  for k, part in enumerate(parts):
    verdicts[k :: process_count()] = [Verdict(*v) for v in part]
  return verdicts


@contextlib.contextmanager
def waiting(where: str) -> Iterator[None]:
  """Marks what can only end when all processes have come to it."""
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
    """Call it before the service ends, and before Python does: a thread inside of the service's client crashes both."""
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
    """Why this process would wait in vain, "" if it would not."""
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
  """jax's client aborts when the service that the first process keeps goes away; there is no other way to be told."""
  told = (_watch and (_watch.verdict or _watch.told)) or (
    "the runtime gave up, its reason is above: most likely process 0, which keeps the coordination service, is gone"
  )
  os.write(2, f"jaxrlvr: {visible(told)}\n".encode(errors="backslashreplace"))
  os._exit(GONE)


def await_verdict() -> None:
  """Behind an error that the end of another process may have caused: gives the watch the time to name it."""
  if _watch is not None:
    time.sleep(_watch.silence + 6 * _BEAT)


def leave(code: int, told: str) -> None:
  """Ends this process's part: in step with the others where all are done, else telling them and without them."""
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
