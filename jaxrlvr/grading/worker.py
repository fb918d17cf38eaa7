"""The fork server behind grading.service: `python -m jaxrlvr.grading.worker CPU_SECONDS WALL_SECONDS MEMORY_BYTES
[VERIFIER ...]`.

Its standard input carries jobs, each a frame (`grading.frames`) with the JSON [mode, verifier, text, label, extra]. The
mode is a key of tasks.table.MODES; the text is what the verifier reads: the answer, null if there is none, or the whole
response. The process writes the line "ready" when it has started, then a line of JSON for each job: [score, cause], as
in base.types.Verdict. Jobs run one after another in a child process, which inherits the imported parser and obeys
kernel limits. A child that breaks a limit, dies, uses much more memory than at its start, or has done _JOBS_PER_CHILD
jobs is killed with its process group; the next job gets a new child.
"""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Verdict
from jaxrlvr.grading.frames import framed, read_frame
from jaxrlvr.tasks.table import verifier_of

_ERROR_CHARACTERS = 300  # of what a user's own verifier raised
_REPLY_BYTES = 4096  # size of a child's reply; at most PIPE_BUF, so that it arrives in one piece
_OPEN_FILES = 32  # that a child may have
_JOBS_PER_CHILD = 32  # a fork costs as much as one or two easy jobs
_MAX_GROWTH = 1 / 16  # of the memory limit: a child that has grown by more gets no further job


def main(cpu_seconds: float, wall_seconds: float, memory_bytes: int, own_verifiers: Sequence[str] = ()) -> None:
  """Serves jobs from standard input until it closes. Writes "ready", then one JSON line [score, cause, error] a job.

  cpu_seconds, wall_seconds, memory_bytes: what each job may use. A job that uses more has the score null and the cause
  "timeout" or "memory". own_verifiers: names of verifiers of a user's own (`base.named`), which are imported first; of
  these alone `error` says in words what was raised, "": nothing. Call it only in a process of its own: it redirects the
  standard streams and forks children.
  """
  jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
  devnull = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):  # what a verifier reads or prints must not reach the host
    os.dup2(devnull, stream)

  def new_child() -> _Child:
    return _Child((jobs.fileno(), replies.fileno()), cpu_seconds, wall_seconds, memory_bytes)

  named.adopt()
  try:
    for verifier in own_verifiers or ("math",):
      _warm(verifier)
  except InputError as error:  # an import failed here and not at the host, whose environment is another
    replies.write(json.dumps({"error": str(error)}).encode() + b"\n")
    replies.flush()
    sys.exit(1)
  child = None
  reply = b'"ready"'
  while True:
    replies.write(reply + b"\n")
    replies.flush()
    job = read_frame(jobs)
    if job is None:
      return
    verifier = json.loads(job)[1]
    _warm(verifier)
    if child is not None and (child.is_spent or verifier not in child.warmed):
      child.end()
      child = None
    if child is None:
      child = new_child()
    reply = child.run(job, jobs.fileno())
    if child.was_killed:
      child = new_child()
      reply = child.run(job, jobs.fileno())


_warmed: set[str] = set()


def _warm(verifier: str) -> None:
  """Warms a verifier, once, so that later children inherit what it has imported and cached."""
  if verifier not in _warmed:
    verifier_of("strict", verifier).warm()
    gc.freeze()  # keeps the collector from touching, and so copying, pages that children share
    _warmed.add(verifier)


class _Child:
  """The server's end of the process that runs verifiers.

  `warmed`: verifiers that were warm when it was forked. `is_spent`: whether it gets no further job.
  `was_killed`: whether a signal from outside ended it, which no limit and no job sends.
  """

  def __init__(self, servers_files: tuple[int, ...], cpu_seconds: float, wall_seconds: float, memory_bytes: int):
    """Forks. `servers_files`: file descriptors of the server, which the child closes."""
    self._wall_seconds = wall_seconds
    self._jobs_left = _JOBS_PER_CHILD
    self.warmed = set(_warmed)
    self.is_spent = False
    self.was_killed = False
    jobs, self._jobs = os.pipe()
    self._verdicts, verdicts = os.pipe()
    self._pid = os.fork()
    if self._pid == 0:
      for inherited in (*servers_files, self._jobs, self._verdicts):
        os.close(inherited)
      _serve(os.fdopen(jobs, "rb"), verdicts, cpu_seconds, wall_seconds, memory_bytes)
    os.close(jobs)
    os.close(verdicts)

  def run(self, job: bytes, host: int) -> bytes:
    """Returns the JSON [score, cause, error] of one job; its cause is "timeout" or "died" if the child ends over it.

    `host`: file descriptor of the server's input. If it closes meanwhile, the child and this process end.
    """
    deadline = time.monotonic() + self._wall_seconds
    try:
      _write(self._jobs, framed(job))
    except BrokenPipeError:
      pass
    ready, _, _ = select.select([self._verdicts, host], [], [], max(0.0, deadline - time.monotonic()))
    reply = os.read(self._verdicts, _REPLY_BYTES) if self._verdicts in ready else b""
    if host in ready:  # the host sends no job before it has its reply, so the input has ended
      self.end()
      sys.exit()
    self._jobs_left -= 1
    if reply:
      score, cause, error, has_grown = json.loads(reply)
      self.is_spent = has_grown or self._jobs_left == 0
      return json.dumps([score, cause, error]).encode()
    self.is_spent = True
    status = self.end()
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    self.was_killed = bool(ready) and ended_by in (signal.SIGKILL, signal.SIGTERM)
    out_of_time = not ready or ended_by in (signal.SIGPROF, signal.SIGXCPU)
    return json.dumps([None, "timeout" if out_of_time else "died", ""]).encode()

  def end(self) -> int | None:
    """Kills the child and its group. Returns its exit status, or None if this was called before."""
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
  """Writes all bytes, in as many pieces as the pipe takes."""
  while data:
    written = os.write(pipe, data)
    data = data[written:]


def _serve(jobs, verdicts: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
  """Runs jobs in the child, under limits, until `jobs` ends; then ends the process. It never returns.

  Writes one JSON [score, cause, error, has_grown] a job to the file descriptor `verdicts`.
  """
  try:
    os.setpgid(0, 0)
    _limit(memory_bytes)
    bytes_at_start = _peak_bytes()
    while (job := read_frame(jobs)) is not None:
      _start_clocks(cpu_seconds, wall_seconds)
      verdict, error = _verdict_and_error(*json.loads(job))
      signal.setitimer(signal.ITIMER_REAL, 0.0)  # an idle child may wait for its next job
      growth = _peak_bytes() - bytes_at_start
      if verdict.score == 0 and growth > memory_bytes / 2:
        verdict = Verdict(None, "memory")  # the parser may have caught a MemoryError and taken the answer for wrong
      has_grown = growth > memory_bytes * _MAX_GROWTH
      os.write(verdicts, json.dumps([verdict.score, verdict.cause, error, has_grown]).encode())
  finally:
    os._exit(0)


def _verdict_and_error(mode: str, verifier: str, text: str | None, label: str, extra: dict) -> tuple[Verdict, str]:
  """Returns (the verdict, without a score if it runs out of memory or raises anything; what a user's own raised)."""
  try:
    return verifier_of(mode, verifier).function(text, label, extra), ""
  except MemoryError:
    return Verdict(None, "memory"), ""
  except BaseException as error:
    return Verdict(None, "error"), named.error_line(error)[:_ERROR_CHARACTERS] if named.is_name(verifier) else ""


def _peak_bytes() -> int:
  """Returns the largest memory that this process has used so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(memory_bytes: int) -> None:
  """Forbids the child to write files, and limits its open files and, on Linux, what it may allocate from now on."""
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
  if sys.platform == "linux":
    with open("/proc/self/statm") as statm:
      pages = int(statm.read().split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _start_clocks(cpu_seconds: float, wall_seconds: float) -> None:
  """Starts the clocks of one job; each of them ends the process."""
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.setitimer(signal.ITIMER_REAL, wall_seconds + 1)  # should the server die, which else keeps the wall limit
  usage = resource.getrusage(resource.RUSAGE_SELF)
  cpu_used = usage.ru_utime + usage.ru_stime
  kernels_limit = math.ceil(cpu_used + cpu_seconds) + 1  # in whole seconds: behind the timer, should that fail
  resource.setrlimit(resource.RLIMIT_CPU, (kernels_limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
  main(float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
