"""Grades batches of responses; verifiers that hostile text can hurt run in processes that can be killed."""

from __future__ import annotations

import collections
import dataclasses
import json
import multiprocessing.connection
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.frames import framed
from jaxrlvr.tasks.table import VERIFIERS, verifier_of
from jaxrlvr.text.answer import Parsed, stated

_GRADING = ("strict", "study")  # the modes a service can have
_TEXT_KEPT = 1 << 17  # characters of a whole text that are read, from its end
_ANSWER_KEPT = 1 << 13  # of an answer: a longer one is none
_START_SECONDS = 120.0  # to import Math-Verify on a busy machine
_LOST_STARTS = 3  # servers that are killed while they start, before a batch is given up
_GRACE_SECONDS = 5.0  # on top of the wall limit, before a silent server is given up
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
_WORKER_VARIABLES = {
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
  "PYTHONHASHSEED": "0",
  "PYTHONSAFEPATH": "1",
  "PYTHONUTF8": "1",
}


@dataclasses.dataclass(frozen=True)
class Job:
  """One response to grade by the named verifier; `extra` must be JSON where the verifier is isolated."""

  verifier: str
  response: Parsed
  label: str
  extra: Mapping = dataclasses.field(default_factory=dict)


class Service:
  """A context manager that grades; its fork servers start with the first isolated job and end with it.

  `mode`: "strict", our own reading, or "study", the released code's reading of mathematics.
  `share`: what calls the grading with the jobs, or with this process's part of them, and returns all verdicts.
  """

  def __init__(
    self,
    workers: int | None = None,
    cpu_seconds: float = 1.5,
    wall_seconds: float = 10.0,
    memory_bytes: int = 1 << 30,
    mode: str = "strict",
    share: Callable = lambda grade, asked: grade(asked),
  ):
    if mode not in _GRADING:
      raise ValueError(f"verifier mode {mode!r} is unknown; use one of {', '.join(_GRADING)}")
    self._mode, self._share = mode, share
    self._workers = workers or os.cpu_count() or 1
    self._limits = (cpu_seconds, wall_seconds, memory_bytes)
    self._servers: list[_Server] = []

  def __enter__(self) -> Service:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
    """Verdicts in the order of the jobs; equal isolated jobs are graded once."""
    unknown = sorted({job.verifier for job in jobs} - set(VERIFIERS))
    if unknown:
      raise ValueError(f"verifier {unknown[0]!r} is unknown; use one of {', '.join(VERIFIERS)}")
    return self._share(self._grade, [(self._mode, job) for job in jobs])

  def unreadable(self, problems: Iterable[Problem]) -> list[tuple[Problem, str]]:
    """Problems with an answer (label, truth or alternative) that only its very text can match, and the reason."""
    answers = [(problem, text) for problem in problems for text in _answers(problem)]
    asked = [
      ("labels", Job(problem.verifier, stated(text), text, {**problem.extra, "also": {}})) for problem, text in answers
    ]
    verdicts = self._share(self._grade, asked)
    return [
      (problem, f"{problem.verifier} can't read {text[:80]!r}: {verdict.cause or 'it is not equal to itself'}")
      for (problem, text), verdict in zip(answers, verdicts, strict=True)
      if verdict.score != 1
    ]

  def _grade(self, asked: Sequence[tuple[str, Job]]) -> list[Verdict]:
    """Verdicts on jobs, each in its mode."""
    settled = [_settle(*one) for one in asked]
    graded = self._grade_isolated(list(dict.fromkeys(payload for payload in settled if isinstance(payload, bytes))))
    return [graded[verdict] if isinstance(verdict, bytes) else verdict for verdict in settled]

  def close(self) -> None:
    """Ends the servers and what they run; a later job starts new ones."""
    for server in self._servers:
      server.close()
    self._servers = []

  def _grade_isolated(self, payloads: list[bytes]) -> dict[bytes, Verdict]:
    """Verdicts by job. A job whose server was killed, which no job can do, is given to another one, once."""
    verdicts: dict[bytes, Verdict] = {}
    queue, given_again, lost_starts = collections.deque(payloads), set(), 0
    try:
      servers = self._living_servers(min(self._workers, len(payloads)))
      idle = [server for server in servers if server.ready]
      starting = {server.channel: server for server in servers if not server.ready}
      busy: dict[int, tuple[_Server, bytes]] = {}
      while queue or busy:
        while queue and idle:
          server, payload = idle.pop(), queue.popleft()
          server.send(payload)
          busy[server.channel] = (server, payload)
        waiting = {channel: server for channel, (server, _) in busy.items()} | starting
        timeout = max(0.0, min(server.deadline for server in waiting.values()) - time.monotonic())
        answered: list[Any] = multiprocessing.connection.wait(list(waiting), timeout)
        late = [channel for channel, server in waiting.items() if server.deadline <= time.monotonic()]
        for channel in {*answered, *late}:
          if channel in starting:
            server = starting.pop(channel)
            try:
              server.greet()
              idle.append(server)
            except RuntimeError:
              lost_starts += 1
              if not server.was_killed or channel in late or lost_starts > _LOST_STARTS:
                raise
              successor = self._replace(server)
              starting[successor.channel] = successor
            continue
          server, payload = busy.pop(channel)
          verdict = server.verdict() if channel in answered else None
          if verdict:
            verdicts[payload] = verdict
            idle.append(server)
            continue
          if channel in answered and payload not in given_again:
            given_again.add(payload)
            queue.append(payload)
          else:
            verdicts[payload] = Verdict(None, "died")
          successor = self._replace(server)  # the others go on while it starts
          starting[successor.channel] = successor
    except BaseException:
      self.close()  # a server with a job at hand would answer the next batch with this one's verdict
      raise
    return verdicts

  def _living_servers(self, count: int) -> list[_Server]:
    """Returns so many servers; those that are new, or were still starting when a batch ended, are not ready."""
    for server in [server for server in self._servers if not server.alive()]:
      self._servers.remove(server)
      server.close()
    new = [_Server(*self._limits) for _ in range(count - len(self._servers))]  # they start side by side
    self._servers += new
    return self._servers[:count]

  def _replace(self, dead: _Server) -> _Server:
    dead.close(patience=0.0)
    new = self._servers[self._servers.index(dead)] = _Server(*self._limits)
    return new


class _Server:
  """The host's end of one worker process."""

  def __init__(self, cpu_seconds: float, wall_seconds: float, memory_bytes: int):
    root = str(pathlib.Path(__file__).resolve().parents[2])
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _WORKER_VARIABLES
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    self._wall = wall_seconds
    limits = (str(cpu_seconds), str(wall_seconds), str(memory_bytes))
    self._command = [sys.executable, "-m", "jaxrlvr.grading.worker", *limits]
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=environment,
      start_new_session=True,  # a Ctrl-C for the host is the host's to handle
    )
    self.channel = self._process.stdout.fileno()
    self.ready = False  # it has spoken
    self.deadline = time.monotonic() + _START_SECONDS  # of the start, then of the job at hand

  def alive(self) -> bool:
    return self._process.poll() is None

  @property
  def was_killed(self) -> bool:
    """Whether the process ended by a signal."""
    return (self._process.poll() or 0) < 0

  def greet(self) -> None:
    """Reads a new server's first word, which is there or will never come. Raises RuntimeError where it ended."""
    started = multiprocessing.connection.wait([self.channel], 0.0)
    self.ready = bool(started) and bool(self._process.stdout.readline())
    if not self.ready:
      self.close()
      raise RuntimeError(
        f"verifier worker ended with code {self._process.returncode} before its first job; see why with"
        f" `{' '.join(self._command)} < /dev/null`"
      )

  def send(self, payload: bytes) -> None:
    """Hands over one job; a server that is gone shows when its verdict is read."""
    self.deadline = time.monotonic() + self._wall + _GRACE_SECONDS
    try:
      self._process.stdin.write(framed(payload))
      self._process.stdin.flush()
    except BrokenPipeError:
      pass

  def verdict(self) -> Verdict | None:
    """The answer to the job at hand; None where the server died over it."""
    line = self._process.stdout.readline()
    if not line.endswith(b"\n"):
      return None
    return Verdict(*json.loads(line))

  def close(self, patience: float = 1.0) -> None:
    """Lets the server end its child and itself, and kills it where it does not within so many seconds."""
    try:
      self._process.stdin.close()
    except BrokenPipeError:
      pass
    try:
      self._process.wait(patience)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()


def _settle(mode: str, job: Job) -> Verdict | bytes:
  """The verdict where this process can give it, else what to send to a worker."""
  verifier = verifier_of(mode, job.verifier)
  if verifier.whole:
    said = job.response.text[-_TEXT_KEPT:]
  else:
    said = job.response.answer
    said = said if said is None or len(said) <= _ANSWER_KEPT else None
  here = verifier.quick if verifier.isolated else verifier.function
  try:
    verdict = here(said, job.label, job.extra) if here else None
  except InputError:
    raise
  except Exception:  # whatever is wrong with a problem must not end the run
    verdict = Verdict(None, "error")
  if verdict is None:
    return json.dumps([mode, job.verifier, said, job.label, dict(job.extra)]).encode()
  return verdict


def _answers(problem: Problem) -> list[str]:
  also = problem.extra.get("also", {})
  return list(dict.fromkeys(t for text in (problem.label, problem.truth) for t in (text, *also.get(text, ()))))
