"""The fork server behind grading.service: `python -m jaxrlvr.grading.worker CPU_SECONDS WALL_SECONDS MEMORY_BYTES`.

It reads length-prefixed JSON jobs from its standard input and answers each with one line of JSON. Jobs run one after
another in a child that inherits the warm parser and obeys kernel limits; a child that breaks one, dies, has grown or
has done its share is killed with its group, and the next job gets a fresh one.
"""

from __future__ import annotations

import gc
import json
import math as numbers
import os
import resource
import select
import signal
import sys
import time

from jaxrlvr.base.types import Verdict
from jaxrlvr.grading.frames import framed, read_frame
from jaxrlvr.tasks.table import VERIFIERS, verifier_of

_REPLY_BYTES = 4096  # a child's one write; at most PIPE_BUF, so it arrives whole
_OPEN_FILES = 32
_SHARE = 32  # jobs a child does: a fork costs as much as an easy job or two
_KEPT_GROWTH = 1 / 16  # of the memory limit: what a child may have grown by and still get another job


def main(cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
  """Serves jobs until the host closes our standard input, by intent or by dying."""
  jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
  nowhere = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):  # what a verifier reads or prints must not reach the host
    os.dup2(nowhere, stream)
  _warm("math")
  child = None
  reply = b'"ready"'
  while True:
    replies.write(reply + b"\n")
    replies.flush()
    job = read_frame(jobs)
    if job is None:
      return
    name = json.loads(job)[1]
    _warm(name)
    if child is None or child.spent or name not in child.warmed:
      if child:
        child.end()
      child = _Child((jobs.fileno(), replies.fileno()), cpu_seconds, wall_seconds, memory_bytes)
    reply = child.run(job, jobs.fileno())
    if child.killed:  # from outside: no limit and no job ends so
      child = _Child((jobs.fileno(), replies.fileno()), cpu_seconds, wall_seconds, memory_bytes)
      reply = child.run(job, jobs.fileno())


_warmed: set[str] = set()


def _warm(verifier: str) -> None:
  if verifier not in _warmed:
    VERIFIERS[verifier].warm()
    gc.freeze()  # keeps the collector from touching, and so copying, pages that children share
    _warmed.add(verifier)


class _Child:
  """The server's end of the process that runs verifiers."""

  def __init__(self, servers_own: tuple[int, ...], cpu: float, wall: float, memory: int):
    self._wall, self._left, self.spent, self.warmed = wall, _SHARE, False, set(_warmed)
    self.killed = False  # by a signal that another process sent
    jobs, self._jobs = os.pipe()
    self._verdicts, verdicts = os.pipe()
    self._pid = os.fork()
    if self._pid == 0:
      for inherited in (*servers_own, self._jobs, self._verdicts):
        os.close(inherited)
      _serve(os.fdopen(jobs, "rb"), verdicts, cpu, wall, memory)
    os.close(jobs)
    os.close(verdicts)

  def run(self, job: bytes, host: int) -> bytes:
    """The child's [score, cause] for one job, or the cause of its death. Ends all where the host hangs up first."""
    deadline = time.monotonic() + self._wall
    try:
      _write(self._jobs, framed(job))
    except BrokenPipeError:
      pass
    ready, _, _ = select.select([self._verdicts, host], [], [], max(0.0, deadline - time.monotonic()))
    reply = os.read(self._verdicts, _REPLY_BYTES) if self._verdicts in ready else b""
    if host in ready:  # one job at a time: input now is the end of the input
      self.end()
      sys.exit()
    self._left -= 1
    if reply:
      score, cause, grown = json.loads(reply)
      self.spent = grown or not self._left
      return json.dumps([score, cause]).encode()
    self.spent = True
    status = self.end()
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    self.killed = bool(ready) and ended_by in (signal.SIGKILL, signal.SIGTERM)
    out_of_time = not ready or ended_by in (signal.SIGPROF, signal.SIGXCPU)
    return json.dumps([None, "timeout" if out_of_time else "died"]).encode()

  def end(self) -> int | None:
    """Kills the child and its group; its exit status, None where that was told before."""
    if self._pid is None:
      return None
    for kill in (os.killpg, os.kill):  # the second for a child that has not yet opened its group
      try:
        kill(self._pid, signal.SIGKILL)
      except ProcessLookupError:
        pass
    _, status = os.waitpid(self._pid, 0)
    self._pid = None
    os.close(self._jobs)
    os.close(self._verdicts)
    return status


def _write(pipe: int, data: bytes) -> None:
  while data:
    data = data[os.write(pipe, data) :]


def _serve(jobs, verdicts: int, cpu: float, wall: float, memory: int) -> None:
  """The child's whole life: limits, then one write for each job; it never returns."""
  try:
    os.setpgid(0, 0)
    _limit(memory)
    before = _peak()
    while (job := read_frame(jobs)) is not None:
      _wind(cpu, wall)
      verdict = _verdict(*json.loads(job))
      signal.setitimer(signal.ITIMER_REAL, 0.0)  # an idle child has all the time
      grown = _peak() - before
      if verdict.score == 0 and grown > memory / 2:  # a parser that swallowed its MemoryError says 0: not a verdict
        verdict = Verdict(None, "memory")
      os.write(verdicts, json.dumps([verdict.score, verdict.cause, grown > memory * _KEPT_GROWTH]).encode())
  finally:
    os._exit(0)


def _verdict(mode: str, name: str, said: str | None, label: str, extra: dict) -> Verdict:
  try:
    return verifier_of(mode, name).function(said, label, extra)
  except MemoryError:
    return Verdict(None, "memory")
  except BaseException:
    return Verdict(None, "error")


def _peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(memory: int) -> None:
  for kind, limit in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _OPEN_FILES)):
    resource.setrlimit(kind, (limit, limit))
  if sys.platform == "linux":
    with open("/proc/self/statm") as pages:
      size = int(pages.read().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _wind(cpu: float, wall: float) -> None:
  """Starts the clocks of one job; each of them ends the process."""
  for alarm, timer, after in (
    (signal.SIGPROF, signal.ITIMER_PROF, cpu),
    (signal.SIGALRM, signal.ITIMER_REAL, wall + 1),  # for a child whose server was killed
  ):
    signal.signal(alarm, signal.SIG_DFL)
    signal.setitimer(timer, after)
  used = resource.getrusage(resource.RUSAGE_SELF)
  whole = numbers.ceil(used.ru_utime + used.ru_stime + cpu) + 1  # the kernel's own count, behind the timer's
  resource.setrlimit(resource.RLIMIT_CPU, (whole, resource.RLIM_INFINITY))


if __name__ == "__main__":
  main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
