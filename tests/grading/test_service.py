"""The promises of the grading service when jobs hang, grow or die, and labels that no answer could match."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.grading import golden_jobs, hostile_jobs, job, needs_data
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.data import columns
from jaxrlvr.grading.frames import framed, read_frame
from jaxrlvr.grading.service import Job, Service

ROOT = pathlib.Path(__file__).parents[2]
# Passes the guards, as its label is one too, and hangs in Math-Verify.
TOWER = job("math", r"\boxed{\lim_{x\to 0} 9^{9^{9^9}}}", r"\lim_{x\to 0} 9^{9^{9^{9}}}+0")
GROWING = job("math", r"\boxed{\lim_{y\to 0} 2^{999999999}+x}", r"\lim_{y\to 0} x+2^{999999999}+0")
RIGHT, WRONG = job("math", "\\boxed{x+1}", "1+x"), job("math", "\\boxed{x+2}", "1+x")


def children(parent):
  """Returns {pid: (state, command line)} of a process's children."""
  states = {}
  for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        if int(ppid) == parent:
          states[int(folder.name)] = (state, (folder / "cmdline").read_text())
      except OSError:
        continue
  return states


def servers(parent):
  return {pid for pid, (_, command) in children(parent).items() if "jaxrlvr.grading.worker" in command}


@pytest.fixture
def own_servers():
  """A function that returns the pids of worker processes started during the test, zombies included."""
  before = set(children(os.getpid()))
  return lambda: set(children(os.getpid())) - before


def cpu_of_reaped(pid):
  """Returns the CPU seconds of a process's children that ended and were waited for."""
  fields = (pathlib.Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
  return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def wait_for(condition, seconds=5.0):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  return condition()


def test_an_unknown_mode_names_the_choices():
  with pytest.raises(ValueError, match="mode 'lax' is unknown; use one of strict, study"):
    Service(mode="lax")


def test_labels_that_the_verifier_cannot_read_are_named(service):
  def problem(label, verifier="math", truth=None, **extra):
    return Problem(f"{verifier}{label}", (), label, truth or label, verifier, extra)

  fine = [problem(label) for label in ("7", r"\frac12", "x^2+1", "(1,2]", r"\text{Evelyn}", "3.5", r"50\%", "(C) 3")]
  fine += [problem("5", "largest_island"), problem("A → B", "quantum_lock"), problem("(C)", "choice")]
  fine += [problem("7", "arithmetic"), problem("2", "reasoning_gym", source_dataset="gcd", entry={"answer": "2"})]
  lost = [problem(r"\frac"), problem(""), problem(r"2\serac{angle}{"), problem("7\0"), problem("x+1", truth=r"\sqrt{")]
  lost += [problem("7", also={"7": [r"\frac{1"]}), problem("Cat", "choice"), problem("seven", "arithmetic")]
  unreadable = service.unreadable_answers(fine + lost)
  assert [named for named, _ in unreadable] == lost
  assert all(named.verifier in reason and "can't read" in reason for named, reason in unreadable)


@pytest.mark.slow
def test_share_of_the_official_labels_that_can_be_read(service, official, capsys):
  """Prints how many labels can be read; each is right against itself, and nearly all can be read."""
  print_row = "{:58} {:>5} {:>8} {:>10}  {}".format
  lines, answers, lost = [], 0, 0
  for path in sorted(official.rglob("*.parquet")):
    problems = columns.load(path).problems
    texts = [(problem, text) for problem in problems for text in dict.fromkeys((problem.label, problem.truth))]
    itself = [job(problem.verifier, f"\\boxed{{{text}}}", text, problem.extra) for problem, text in texts]
    accepted = sum(verdict.score == 1 for verdict in service.grade(itself))
    unreadable = service.unreadable_answers(problems)
    answers, lost = answers + len(texts), lost + len(unreadable)
    shares = (f"{share / len(texts):.2%}" for share in (accepted, len(unreadable)))
    lines.append(
      print_row(str(path.relative_to(official)), len(texts), *shares, "; ".join(r for _, r in unreadable[:3]))
    )
  with capsys.disabled():
    print("", print_row("file", "n", "itself", "unreadable", "first of them"), *lines, sep="\n")
  assert lost < 0.01 * answers


def test_the_host_imports_neither_jax_nor_sympy():
  dear = {"jax", "sympy", "math_verify", "ml_collections"}
  code = f"import sys, jaxrlvr.grading.service; print({dear} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == "set()\n"


def test_a_hang_is_cut_and_its_batch_unharmed(own_servers):
  with Service(workers=2, cpu_seconds=1.0) as service:
    service.grade([RIGHT, WRONG])  # servers take their time to start
    start = time.monotonic()
    verdicts = service.grade([RIGHT, TOWER, WRONG, TOWER, RIGHT] * 10)
    hung = Verdict(None, "timeout")
    assert verdicts == [Verdict(1.0), hung, Verdict(0.0), hung, Verdict(1.0)] * 10
    assert time.monotonic() - start < 10  # equal jobs run once
    for pid in own_servers():
      assert len(children(pid)) <= 1
      assert "jax" not in (pathlib.Path("/proc") / str(pid) / "maps").read_text().replace(str(ROOT), "")
    assert len(own_servers()) == 2
  assert not own_servers()


def test_fractions_of_a_cpu_second_count_and_each_job_has_its_own(own_servers):
  """The limit is neither rounded to seconds nor shared by the jobs of a child, which hands over after its share."""
  with Service(workers=1, cpu_seconds=0.4) as short:
    short.grade([RIGHT])
    (server,) = own_servers()
    before = cpu_of_reaped(server)
    assert short.grade([TOWER]) == [Verdict(None, "timeout")]
    assert 0.25 < cpu_of_reaped(server) - before < 0.95  # in ticks of the kernel
    many = [job("math", f"\\boxed{{x+{n}+y}}", f"y+{n}+x") for n in range(300)]
    assert short.grade(many) == [Verdict(1.0)] * 300


def test_the_wall_limit_counts_from_the_start_of_the_job():
  slow = [Job("math", TOWER.response, TOWER.label + " " * spaces) for spaces in range(3)]
  with Service(workers=1, cpu_seconds=30.0, wall_seconds=0.5) as service:
    assert service.grade([*slow, RIGHT]) == [Verdict(None, "timeout")] * 3 + [Verdict(1.0)]


def test_memory_is_bounded():
  with Service(workers=1, memory_bytes=1 << 26, cpu_seconds=10.0) as service:
    assert service.grade([GROWING, RIGHT]) == [Verdict(None, "memory"), Verdict(1.0)]


@pytest.mark.parametrize("of_server", [False, True], ids=["its child", "the server"])
def test_a_killed_server_or_child_costs_no_verdict(own_servers, of_server):
  """The job of a killed process is graded again, once, and is still cut off if it hangs."""
  with Service(workers=1, cpu_seconds=1.0) as service:
    assert service.grade([RIGHT]) == [Verdict(1.0)]
    (server,) = own_servers()
    (child,) = children(server)
    threading.Timer(0.3, os.kill, (server if of_server else child, signal.SIGKILL)).start()
    assert service.grade([TOWER, RIGHT, WRONG]) == [Verdict(None, "timeout"), Verdict(1.0), Verdict(0.0)]
    (idle,) = own_servers()
    assert (idle != server) == of_server
    os.kill(idle, signal.SIGKILL)  # between two batches
    assert wait_for(lambda: children(os.getpid())[idle][0] == "Z")
    threading.Timer(0.1, lambda: os.kill(min(own_servers()), signal.SIGKILL)).start()  # and its successor, as it starts
    assert service.grade([RIGHT]) == [Verdict(1.0)]
  assert not own_servers()


def test_the_others_go_on_while_a_dead_server_is_replaced(own_servers):
  many = [job("math", f"\\boxed{{x+{n}+y}}", f"y+{n}+x") for n in range(50)]
  with Service(workers=2) as service:
    assert wait_for(lambda: service.grade(many) and all(server.ready for server in service._servers), 60)
    victim = min(own_servers())
    os.kill(victim, signal.SIGSTOP)  # it takes a job and says nothing
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    verdicts = service.grade(many)
    assert verdicts == [Verdict(1.0)] * len(many)
    assert any(not server.ready for server in service._servers)  # the batch has not waited for the successor
    assert service.grade(many) == [Verdict(1.0)] * len(many)


def test_servers_and_their_children_end_with_a_killed_host():
  code = (
    "from jaxrlvr.grading.service import *\n"
    "with Service(workers=1, cpu_seconds=60, wall_seconds=60) as service:\n"
    f"  service.grade([{RIGHT!r}]); print(flush=True); service.grade([{TOWER!r}])"
  )
  with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as host:
    host.stdout.readline()
    (server,) = servers(host.pid)
    assert wait_for(lambda: children(server))
    (child,) = children(server)
    host.kill()
  for pid in (server, child):
    assert wait_for(lambda pid=pid: not (pathlib.Path("/proc") / str(pid) / "exe").exists())


def test_odd_text_passes_through(service):
  box = "\\boxed{0.5}"
  texts = [f"\ud800 {box}", f"\0{box}", "\u202e" * 1_000_000 + box, box + "x" * 9000, ""]
  verdicts = service.grade([job("math", text, "\\frac12") for text in texts])
  assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_in_process_and_isolated_jobs_keep_their_order(service):
  island = job("largest_island", "\\boxed{6}", "6")
  assert service.grade([island, WRONG, RIGHT, island]) == [Verdict(score) for score in (1.0, 0.0, 1.0, 1.0)]
  assert service.grade([]) == []


def test_faults_of_ours_are_not_scores(service):
  broken = job("quantum_lock", "\\boxed{A}", "B", {"buttons": [{}]})
  assert service.grade([broken, RIGHT]) == [Verdict(None, "error"), Verdict(1.0)]
  with pytest.raises(ValueError, match="'maths' is unknown; use one of math, "):
    service.grade([job("maths", "", "")])


@pytest.mark.slow
@needs_data
def test_scores_do_not_depend_on_workers_or_load(service):
  _, golden = golden_jobs()
  _, hostile = hostile_jobs()
  quiet = service.grade(golden + hostile)
  busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
  try:
    with Service(workers=4, wall_seconds=60.0) as many:
      assert many.grade(golden + hostile) == quiet
  finally:
    for process in busy:
      process.kill()
      process.wait()


def test_a_frame_that_is_cut_off_holds_no_message():
  frame = framed(b"[1]")
  stream = io.BytesIO(frame + framed(b""))
  assert [read_frame(stream) for _ in range(3)] == [b"[1]", b"", None]
  for length in range(len(frame)):
    assert read_frame(io.BytesIO(frame[:length])) is None
