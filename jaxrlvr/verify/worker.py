"""The fork server behind verify.service: `python -m jaxrlvr.verify.worker CPU_SECONDS WALL_SECONDS MEMORY_BYTES`.

It reads length-prefixed JSON jobs from its standard input and answers each with one line of JSON. Every job runs in
a child of its own that inherits the warm parser, obeys kernel limits and is killed with its group when it is over.
"""

from __future__ import annotations

import functools
import gc
import json
import math as numbers
import os
import resource
import select
import signal
import struct
import sys
import time

from jaxrlvr.types import Verdict
from jaxrlvr.verify import MODES, VERIFIERS

PREFIX = struct.Struct(">I")  # length of the job that follows
_REPLY_BYTES = 4096  # a child's one write; at most PIPE_BUF, so it arrives whole
_OPEN_FILES = 32


def main(cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
  """Serves jobs until the host closes our standard input, by intent or by dying."""
  jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
  nowhere = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):  # what a verifier reads or prints must not reach the host
    os.dup2(nowhere, stream)
  _warm("math")
  reply = "ready"
  while True:
    replies.write(json.dumps(reply).encode() + b"\n")
    replies.flush()
    job = _receive(jobs)
    if job is None:
      return
    _warm(job[1])
    reply = _supervise(job, jobs.fileno(), replies.fileno(), cpu_seconds, wall_seconds, memory_bytes)


@functools.cache
def _warm(verifier: str) -> None:
  VERIFIERS[verifier].warm()
  gc.freeze()  # keeps the collector from touching, and so copying, pages that children share


def _receive(jobs) -> list | None:
  prefix = jobs.read(PREFIX.size)
  if len(prefix) < PREFIX.size:
    return None
  return json.loads(jobs.read(PREFIX.unpack(prefix)[0]))


def _supervise(job: list, jobs: int, replies: int, cpu: float, wall: float, memory: int) -> list:
  """Runs one job in a child and returns its [score, cause]; the child and its group are gone afterwards."""
  deadline = time.monotonic() + wall
  read, write = os.pipe()
  child = os.fork()
  if child == 0:
    for inherited in (jobs, replies, read):
      os.close(inherited)
    _run(job, write, cpu, wall, memory)
  os.close(write)
  ready, _, _ = select.select([read, jobs], [], [], max(0.0, deadline - time.monotonic()))
  reply = os.read(read, _REPLY_BYTES) if read in ready else b""
  os.close(read)
  _kill(child)
  _, status = os.waitpid(child, 0)
  if jobs in ready:  # one job at a time: input now is the end of the input
    sys.exit()
  if reply:
    return json.loads(reply)
  out_of_time = not ready or os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGXCPU)
  return [None, "timeout" if out_of_time else "died"]


def _kill(child: int) -> None:
  for kill in (os.killpg, os.kill):  # the second for a child that has not yet opened its group
    try:
      kill(child, signal.SIGKILL)
    except ProcessLookupError:
      pass


def _run(job: list, write: int, cpu: float, wall: float, memory: int) -> None:
  """The child's whole life: limits, verifier, one write; it never returns."""
  try:
    os.setpgid(0, 0)
    _limit(cpu, wall, memory)
    mode, name, response, label, extra = job
    verdict = MODES[mode][name].function(response, label, extra)
    # A parser that swallowed its MemoryError says 0: not a verdict.
    if verdict.score == 0 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > memory / 2:
      verdict = Verdict(None, "memory")
  except MemoryError:
    verdict = Verdict(None, "memory")
  except BaseException:
    verdict = Verdict(None, "error")
  try:
    os.write(write, json.dumps([verdict.score, verdict.cause]).encode())
  finally:
    os._exit(0)


def _limit(cpu: float, wall: float, memory: int) -> None:
  seconds = numbers.ceil(cpu) + 1  # the kernel counts whole seconds: a second line behind the timer's fractions
  for kind, soft, hard in (
    (resource.RLIMIT_CPU, seconds, seconds + 1),
    (resource.RLIMIT_FSIZE, 0, 0),
    (resource.RLIMIT_CORE, 0, 0),
    (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
  ):
    resource.setrlimit(kind, (soft, hard))
  if sys.platform == "linux":
    with open("/proc/self/statm") as pages:
      size = int(pages.read().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
  for alarm, timer, after in (
    (signal.SIGPROF, signal.ITIMER_PROF, cpu),
    (signal.SIGALRM, signal.ITIMER_REAL, wall + 1),  # ends a child whose server was killed
  ):
    signal.signal(alarm, signal.SIG_DFL)
    signal.setitimer(timer, after)


if __name__ == "__main__":
  main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
