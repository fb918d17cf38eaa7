"""Grades batches of responses; verifiers that hostile text can hurt run in worker processes that can be killed."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import multiprocessing.connection
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.frames import framed
from jaxrlvr.tasks.table import VERIFIERS, is_verifier, verifier_of
from jaxrlvr.tasks.verdicts import UNPARSEABLE
from jaxrlvr.text.answer import Parsed, boxed_response

_LOG = logging.getLogger(__name__)
_MODES = ("strict", "study")  # modes that a service can be created with
_MAX_TEXT = 1 << 17  # characters from the end of a response that a verifier of whole responses sees
_MAX_ANSWER = 1 << 13  # characters; a longer answer counts as none
_START_SECONDS = 120.0  # that a server may take to start: it imports Math-Verify, perhaps on a busy machine
_MAX_LOST_STARTS = 3  # servers that may be killed while they start, before a batch is given up
_GRACE_SECONDS = 5.0  # beyond the wall limit, before a silent server is given up
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
  """One response to grade against one answer.

  extra is Problem.extra: what the verifier needs besides. Its key "also" maps a label to the list of answers that are
  as good. It must hold only JSON values if the verifier is isolated.
  """

  verifier: str  # Problem.verifier, a key of tasks.table.VERIFIERS
  response: Parsed  # as text.answer.parse_response or text.answer.boxed_response returns it
  label: str  # the answer to agree with: a problem's label, its truth, or another response's answer
  extra: Mapping = dataclasses.field(default_factory=dict)


_ModedJob = tuple[str, Job]  # a job and the mode in which it is graded: a key of tasks.table.MODES


def _grade_here(grade: Callable[[Sequence[_ModedJob]], list[Verdict]], jobs: Sequence[_ModedJob]) -> list[Verdict]:
  """Grades all jobs in this process."""
  return grade(jobs)


class Service:
  """Grades jobs, in worker processes where that is needed. Use it as `with Service() as service:`.

  A verifier that hostile text could make slow or large is isolated (`Verifier.isolated`: mathematics and Reasoning
  Gym): its jobs run in worker processes, under limits, and such a process is killed if a job breaks them. Other jobs,
  and isolated ones whose verdict is obvious, are graded in this process. Worker processes start with the first job that
  needs them, and stay until `close` or the end of the `with` block. A service is for one thread at a time.
  """

  def __init__(
    self,
    workers: int | None = None,
    cpu_seconds: float = 1.5,
    wall_seconds: float = 10.0,
    memory_bytes: int = 1 << 30,
    mode: str = "strict",
    share: Callable = _grade_here,
  ):
    """Keeps the settings; starts no process yet.

    workers: how many worker processes may run; None: one for each CPU. cpu_seconds, wall_seconds, memory_bytes: what
    each job in a worker process may use. mode: "strict" grades by this library's rules; "study" grades mathematics as
    the study's released code does. share: divides the jobs among the hosts of a run (`multihost.grade_jointly`);
    it is called as share(grade, jobs), may call `grade` with a part of the jobs, and returns the verdicts on all jobs.
    By default this process grades all of them. Raises ValueError for an unknown mode.
    """
    if mode not in _MODES:
      raise ValueError(f"verifier mode {mode!r} is unknown; use one of {', '.join(_MODES)}")
    self._mode, self._share = mode, share
    self._workers = workers or os.cpu_count() or 1
    self._limits = (cpu_seconds, wall_seconds, memory_bytes)
    self._servers: list[_Server] = []
    self._own: dict[str, list[str]] = {}  # sources, when workers first imported it, of each verifier of a user's own

  def __enter__(self) -> Service:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
    """Returns a verdict for each job, in their order; [] for no jobs. With several hosts all must call it together.

    A verdict has a score from 0 to 1, 1 for an answer that agrees with the label, and a cause:
    - "": the answer was read and compared.
    - "unparseable": the response states no answer that the verifier can read; the score is 0.
    - "timeout", "memory": the job used more time or memory than it may; the score is None.
    - "died": the worker process ended over the job; the score is None.
    - "error": the verifier raised an error; the score is None. What a user's own verifier raised is logged.
    - "abstained": a user's own verifier returned None; the score is None.

    Isolated jobs that are equal are graded once. Raises ValueError for an unknown verifier, InputError for a Reasoning
    Gym task that can't be graded here, and RuntimeError if worker processes can't start.
    """
    for name in {job.verifier for job in jobs}:
      if not is_verifier(name):
        raise ValueError(f"verifier {name!r} is unknown; use one of {', '.join(VERIFIERS)}, or path.py:NAME")
    return self._share(self._grade, [(self._mode, job) for job in jobs])

  def unreadable_answers(self, problems: Iterable[Problem]) -> list[tuple[Problem, str]]:
    """Checks the problems' own answers; returns a pair (problem, reason) for each that its verifier can't read.

    A problem's answers are its label, its truth, and the alternatives of both in extra["also"]. Each is graded as an
    answer to itself; one that does not score 1 counts as unreadable, also where the verifier ran out of time. No
    response can match it unless it has the very same text. A problem with several such answers has several pairs. The
    reason is a sentence for people with the verifier, the first 80 characters of the answer, and the verdict's cause.
    """
    answers: list[tuple[Problem, str]] = []
    for problem in problems:
      answers += [(problem, text) for text in _accepted_answers(problem)]
    jobs = []
    for problem, text in answers:
      extra = {**problem.extra, "also": {}}
      jobs.append(("labels", Job(problem.verifier, boxed_response(text), text, extra)))
    verdicts = self._share(self._grade, jobs)
    unreadable = []
    for (problem, text), verdict in zip(answers, verdicts, strict=True):
      if named.is_name(problem.verifier):  # its labels need not be answers, as the number that an expression must reach
        is_readable = verdict.score is not None and verdict.cause != UNPARSEABLE.cause
      else:
        is_readable = verdict.score == 1
      if not is_readable:
        reason = verdict.cause or "it is not equal to itself"
        unreadable.append((problem, f"{problem.verifier} can't read {text[:80]!r}: {reason}"))
    return unreadable

  def close(self) -> None:
    """Ends the worker processes, and kills those that don't end within a second. A later job starts new ones."""
    for server in self._servers:
      server.close()
    self._servers = []

  def _grade(self, jobs: Sequence[_ModedJob]) -> list[Verdict]:
    """Returns verdicts in the order of the jobs: on some at once, on the others from the worker processes."""
    settled = [_settle(mode, job) for mode, job in jobs]
    payloads = [outcome for outcome in settled if isinstance(outcome, bytes)]
    self._import_own({job.verifier for _, job in jobs if named.is_name(job.verifier)})
    different = list(dict.fromkeys(payloads))
    graded = self._grade_isolated(different)
    verdicts = []
    for outcome in settled:
      if isinstance(outcome, bytes):
        verdicts.append(graded[outcome])
      else:
        verdicts.append(outcome)
    return verdicts

  def _import_own(self, names: Collection[str]) -> None:
    """Has workers import verifiers of a user's own before they take jobs, and ends those that have not."""
    missing = sorted({named.absolute(name) for name in names} - set(self._own))
    if missing:
      self.close()
      self._own |= {name: named.sources(name) for name in missing}

  def _grade_isolated(self, payloads: list[bytes]) -> dict[bytes, Verdict]:
    """Returns the verdict on each payload, which are all different."""
    try:
      servers = self._living_servers(min(self._workers, len(payloads)))
      return _Batch(payloads, servers, self._replace).grade()
    except BaseException:
      self.close()  # a server that still has a job would answer the next batch with the verdict on it
      raise

  def _living_servers(self, count: int) -> list[_Server]:
    """Returns `count` servers. New ones, and those that were starting when the last batch ended, are not ready yet."""
    dead = [server for server in self._servers if not server.alive()]
    for server in dead:
      self._servers.remove(server)
      server.close()
    missing = count - len(self._servers)
    self._servers += [self._start_server() for _ in range(missing)]  # they start side by side
    return self._servers[:count]

  def _start_server(self) -> _Server:
    """Starts a server. Raises InputError where a user's verifier has changed: servers would then grade by two rules."""
    for name, sources in self._own.items():
      if named.sources(name) != sources:
        raise InputError(
          f"verifier {name}: its code was changed while it was at work; restore it and run the same command again"
        )
    return _Server(*self._limits, list(self._own))

  def _replace(self, server: _Server) -> _Server:
    """Kills a server and returns a new one in its place, which is not ready yet."""
    server.close(patience=0.0)
    place = self._servers.index(server)
    self._servers[place] = self._start_server()
    return self._servers[place]


class _Batch:
  """Isolated jobs and the servers that grade them.

  A job whose server was killed is given to another server, once: no job can kill a server. The other servers go on
  while a new one starts.
  """

  def __init__(self, payloads: list[bytes], servers: list[_Server], replace: Callable[[_Server], _Server]):
    self._replace = replace
    self._verdicts: dict[bytes, Verdict] = {}
    self._errors: dict[bytes, str] = {}  # what a user's own verifier raised, by payload
    self._queue = collections.deque(payloads)
    self._retried: set[bytes] = set()
    self._lost_starts = 0
    self._idle = [server for server in servers if server.ready]
    self._starting = {server.channel: server for server in servers if not server.ready}
    self._busy: dict[int, tuple[_Server, bytes]] = {}  # by channel: the server and its job

  def grade(self) -> dict[bytes, Verdict]:
    """Returns the verdict on each payload. Raises RuntimeError if servers can't start."""
    while self._queue or self._busy:
      self._send_jobs()
      self._wait()
    if self._errors:
      payload, error = next(iter(self._errors.items()))
      _, verifier, text, label, _ = json.loads(payload)
      _LOG.warning(
        "verifier %s: raised for %d different responses, which are unscored; the first: %r against the label %r: %s",
        verifier,
        len(self._errors),
        text[:80],
        label[:80],
        error,
      )
    return self._verdicts

  def _send_jobs(self) -> None:
    while self._queue and self._idle:
      server, payload = self._idle.pop(), self._queue.popleft()
      server.send(payload)
      self._busy[server.channel] = (server, payload)

  def _wait(self) -> None:
    """Waits until a server answers or is late, and deals with all such servers."""
    waiting = {channel: server for channel, (server, _) in self._busy.items()}
    waiting.update(self._starting)
    deadline = min(server.deadline for server in waiting.values())
    timeout = max(0.0, deadline - time.monotonic())
    answered: list[Any] = multiprocessing.connection.wait(list(waiting), timeout)
    now = time.monotonic()
    late = [channel for channel, server in waiting.items() if server.deadline <= now]
    for channel in {*answered, *late}:
      if channel in self._starting:
        self._greet(channel, is_late=channel in late)
      else:
        self._receive(channel, has_answered=channel in answered)

  def _greet(self, channel: int, is_late: bool) -> None:
    """Makes a server that has started idle, or replaces one that was killed while it started."""
    server = self._starting.pop(channel)
    try:
      server.greet()
      self._idle.append(server)
    except RuntimeError:
      self._lost_starts += 1
      if not server.was_killed or is_late or self._lost_starts > _MAX_LOST_STARTS:
        raise
      self._start_successor(server)

  def _receive(self, channel: int, has_answered: bool) -> None:
    """Takes the verdict of a busy server, or replaces the server if it died or is late."""
    server, payload = self._busy.pop(channel)
    verdict = server.verdict() if has_answered else None
    if verdict:
      self._verdicts[payload] = verdict
      if server.error:
        self._errors[payload] = server.error
      self._idle.append(server)
      return
    if has_answered and payload not in self._retried:
      self._retried.add(payload)
      self._queue.append(payload)
    else:
      self._verdicts[payload] = Verdict(None, "died")
    self._start_successor(server)

  def _start_successor(self, server: _Server) -> None:
    successor = self._replace(server)
    self._starting[successor.channel] = successor


class _Server:
  """The host's end of one worker process, a `grading.worker`.

  `channel`: file descriptor of its output. `ready`: whether it has started and can take a job. `deadline`: when it must
  have started, later when it must have graded its job, on the clock of time.monotonic. `error`: what a user's own
  verifier raised over the last job, in words; "": nothing.
  """

  def __init__(self, cpu_seconds: float, wall_seconds: float, memory_bytes: int, own_verifiers: Sequence[str]):
    self._wall_seconds = wall_seconds
    limits = (str(cpu_seconds), str(wall_seconds), str(memory_bytes))
    self._command = [sys.executable, "-m", "jaxrlvr.grading.worker", *limits, *own_verifiers]
    self._folder = tempfile.TemporaryDirectory(prefix="jaxrlvr-") if own_verifiers else None
    self._process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=_worker_environment(pathlib.Path(self._folder.name) if self._folder else None),
      start_new_session=True,  # Ctrl-C reaches the host alone, which then ends the worker
    )
    self.channel = self._process.stdout.fileno()
    self.ready = False
    self.error = ""
    self.deadline = time.monotonic() + _START_SECONDS

  def alive(self) -> bool:
    """Returns whether the process still runs."""
    return self._process.poll() is None

  @property
  def was_killed(self) -> bool:
    """Whether a signal ended the process."""
    code = self._process.poll()
    return code is not None and code < 0

  def greet(self) -> None:
    """Reads the line by which a new server says that it is ready, without waiting for it.

    Raises RuntimeError if the server has written none, and InputError if a user's own verifier can't be imported there;
    it is then closed.
    """
    readable = multiprocessing.connection.wait([self.channel], 0.0)
    line = self._process.stdout.readline() if readable else b""
    self.ready = line == b'"ready"\n'
    if not self.ready:
      self.close()
      if line.endswith(b"\n"):
        raise InputError(
          f"verifier {json.loads(line)['error']}; it runs in a worker process, whose only environment variables of "
          f"yours are {', '.join(_KEPT_VARIABLES)}"
        )
      raise RuntimeError(
        f"verifier worker ended with code {self._process.returncode} before its first job; see why with"
        f" `{' '.join(self._command)} < /dev/null`"
      )

  def send(self, payload: bytes) -> None:
    """Sends one job. A dead server raises nothing here; `verdict` then returns None."""
    self.deadline = time.monotonic() + self._wall_seconds + _GRACE_SECONDS
    try:
      self._process.stdin.write(framed(payload))
      self._process.stdin.flush()
    except BrokenPipeError:
      pass

  def verdict(self) -> Verdict | None:
    """Waits for the verdict on the job that was sent; returns None if the server died before."""
    line = self._process.stdout.readline()
    if not line.endswith(b"\n"):
      return None
    score, cause, self.error = json.loads(line)
    return Verdict(score, cause)

  def close(self, patience: float = 1.0) -> None:
    """Lets the server end its child and itself; kills it if it has not ended within `patience` seconds."""
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
    if self._folder is not None:
      self._folder.cleanup()


def _worker_environment(folder: pathlib.Path | None) -> dict[str, str]:
  """Returns the environment of worker processes, which import this very library.

  folder: takes a file with what a user's own verifiers need; None: there are no such verifiers.
  """
  environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
  environment.update(_WORKER_VARIABLES)
  search_path = [str(pathlib.Path(__file__).resolve().parents[2])]
  if os.environ.get("PYTHONPATH"):
    search_path.append(os.environ["PYTHONPATH"])
  environment["PYTHONPATH"] = os.pathsep.join(search_path)
  if folder is not None:
    environment |= named.environment(folder / "given")
  return environment


def _settle(mode: str, job: Job) -> Verdict | bytes:
  """Returns the verdict if this process can find it safely, else the payload for a worker process.

  Raises InputError for a problem that no verifier here can grade.
  """
  verifier = verifier_of(mode, job.verifier)
  if verifier.whole:
    text = job.response.text[-_MAX_TEXT:]
  else:
    text = job.response.answer
    if text is not None and len(text) > _MAX_ANSWER:
      text = None
  function = verifier.quick if verifier.isolated else verifier.function
  verdict = None
  try:
    if function is not None:
      verdict = function(text, job.label, job.extra)
  except InputError:
    raise
  except Exception:  # one broken problem must not end the run
    verdict = Verdict(None, "error")
  if verdict is None:
    name = named.absolute(job.verifier) if named.is_name(job.verifier) else job.verifier
    return json.dumps([mode, name, text, job.label, dict(job.extra)]).encode()
  return verdict


def _accepted_answers(problem: Problem) -> list[str]:
  """Returns the label, the truth, and the alternatives of both, each once."""
  also = problem.extra.get("also", {})
  texts = []
  for text in (problem.label, problem.truth):
    texts += [text, *also.get(text, ())]
  return list(dict.fromkeys(texts))
