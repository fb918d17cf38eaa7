"""Measures how fast grading is, whether it keeps its limits, and what it leaves behind: one line of JSON each.

python launch/bench_verify.py [--rows 512] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import random
import resource
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from jaxrlvr.grading.service import Job, Service
from jaxrlvr.text.answer import boxed_response, parse_response

_RESPELL = (("\\frac", "\\dfrac"), ("(", "\\left( "), (")", " \\right)"), ("\\pi", " \\pi"), ("+", " + "), ("-", "- "))
CHUNKS = 8  # ours and the reference take turns, so that a change of load meets both


def labels(rng: random.Random, rows: int) -> list[str]:
  """Returns labels in the proportions of MATH-500: half integers, then fractions, roots, expressions, tuples, ..."""
  a, b, c = (lambda: rng.randint(2, 60)), (lambda: rng.choice((2, 3, 5, 7, 11, 13))), (lambda: rng.choice("xynt"))
  kinds = (
    *[lambda: str(rng.choice((1, 1, 1, -1)) * rng.randint(0, 2000))] * 9,
    *[lambda: f"\\frac{{{a()}}}{{{a() + 1}}}"] * 3,
    lambda: f"{a()}\\sqrt{{{b()}}}",
    lambda: f"\\frac{{{a()}\\sqrt{{{b()}}}}}{{{b()}}}",
    lambda: f"{a()}{c()}^2-{a()}{c()}+{a()}",
    lambda: f"({a()}, \\frac{{\\pi}}{{{b()}}})",
    lambda: f"(-\\infty,{a()}) \\cup [{a() + 60},\\infty)",
    lambda: f"{a()}\\pi",
    lambda: f"{a()}, {a()}",
    lambda: f"\\begin{{pmatrix}} {a()} \\\\ -{a()} \\end{{pmatrix}}",
  )
  return [rng.choice(kinds)() for _ in range(rows)]


def honest(rng: random.Random, rows: int) -> list[Job]:
  """Returns jobs with answers such as policies give: a third verbatim, a third respelled, a third of others."""
  all_labels = labels(rng, rows)
  jobs = []
  for label in all_labels:
    answer = rng.choice((label, "respelled", rng.choice(all_labels)))
    if answer == "respelled":
      answer = label
      for old, new in _RESPELL:
        answer = answer.replace(old, new)
    text = f"We compute step by step and find that the answer is $\\boxed{{{answer}}}$."
    jobs.append(Job("math", parse_response(text, "boxed"), label))
  return jobs


def hanging(count: int) -> list[Job]:
  """Returns jobs that never end: their labels are towers of powers too, so that the guards let them pass."""
  towers = [f"\\lim_{{x\\to 0}} 9^{{9^{{9^{{{n}}}}}}}" for n in range(9, 9 + count)]
  return [Job("math", boxed_response(tower), f"{tower}+0") for tower in towers]


def seconds(work, *arguments) -> tuple[float, object]:
  """Calls work(*arguments) and returns (seconds, its result)."""
  start = time.perf_counter()
  result = work(*arguments)
  return time.perf_counter() - start, result


def serial(jobs: list[Job]) -> list[float]:
  """Returns the scores that Math-Verify gives, called as its users call it."""
  import math_verify

  read, verify = math_verify.parse, math_verify.verify
  return [float(verify(read(f"\\boxed{{{job.label}}}"), read(job.response.text))) for job in jobs]


def resident() -> float:
  """Returns the peak of this process's memory in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def children() -> list[str]:
  """Returns the state of each child of this process; Z is a zombie."""
  states = []
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      state, parent = stat.read_text().rpartition(")")[2].split()[:2]
    except OSError:
      continue
    if int(parent) == os.getpid():
      states.append(state)
  return states


def speed(rng, rows):
  """Compares the time and the scores of grading with those of serial Math-Verify."""
  jobs = honest(rng, rows)
  ours = theirs = agree = 0
  serial(jobs[:2])
  with Service(workers=2) as service:
    service.grade(hanging(1) + jobs[:1])  # both servers are up
    for n in range(CHUNKS):
      part = jobs[n::CHUNKS]
      took, verdicts = seconds(service.grade, part)
      plain, scores = seconds(serial, part)
      ours, theirs = ours + took, theirs + plain
      agree += sum(verdict.score == score for verdict, score in zip(verdicts, scores, strict=True))
  yield {
    "what": "honest answers against serial Math-Verify",
    "seconds": ours,
    "serial_seconds": theirs,
    "ratio": theirs / ours,
    "same_scores": agree / rows,
  }


def hangs(rng, rows):
  """Grades jobs one in ten of which never ends; counts unscored jobs, zombies and processes that are left."""
  jobs = honest(rng, rows - rows // 10) + hanging(rows // 10)
  rng.shuffle(jobs)
  with Service(workers=2) as service:
    took, verdicts = seconds(service.grade, jobs)
    zombies = children().count("Z")
  lost = sum(verdict.score is None for verdict in verdicts)
  yield {
    "what": "one in ten never ends",
    "seconds": took,
    "hangs": rows // 10,
    "unscored": lost,
    "zombies": zombies,
    "processes_after": len(children()),
  }


def memory(rng, rows):
  """Measures by how much this process's memory grows while it grades `rows` jobs."""
  with Service(workers=2) as service:
    service.grade(honest(rng, 16))
    before = resident()
    done = 0
    while done < rows:
      islands = [Job("largest_island", parse_response("\\boxed{6}" * 500, "boxed"), "6") for _ in range(900)]
      service.grade([*honest(rng, 100), *islands])
      done += 1000
  yield {"what": "host memory", "rows": done, "grown_mib": resident() - before}


def workers(rng, rows):
  """Compares the verdicts of one worker with those of four."""
  jobs = honest(rng, rows // 4)
  scores = []
  for count in (1, 4):
    with Service(workers=count) as service:
      scores.append(service.grade(jobs))
  yield {"what": "1 and 4 workers say the same", "rows": len(jobs), "same": scores[0] == scores[1]}


def overlap(rng, rows):
  """Measures how much of grading is hidden, as another thread computes while it waits on pipes."""
  jobs, matrix = honest(rng, rows // 2), np.ones((400, 400), np.float32) / 400

  def compute(rounds=150):
    for _ in range(rounds):
      (matrix @ matrix).sum()

  with Service(workers=1) as service:
    service.grade(jobs[:1])
    rounds = 150
    grading, _ = seconds(service.grade, jobs)
    one, _ = seconds(compute)
    rounds = max(1, int(rounds * grading / one))
    computing, _ = seconds(compute, rounds)
    cpu = time.process_time()
    service.grade(jobs)
    cpu = time.process_time() - cpu

    def both():
      thread = threading.Thread(target=service.grade, args=(jobs,))
      thread.start()
      compute(rounds)
      thread.join()

    together, _ = seconds(both)
  yield {
    "what": "grading beside other work of the host",
    "grading_seconds": grading,
    "computing_seconds": computing,
    "together_seconds": together,
    "hidden": (grading + computing - together) / min(grading, computing),
    "host_cpu_share": cpu / grading,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--rows", type=int, default=512)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement; default: all")
  chosen = parser.parse_args()
  logging.disable(logging.CRITICAL)
  for name in [chosen.only] if chosen.only else MEASUREMENTS:
    measure, rows = MEASUREMENTS[name]
    for line in measure(random.Random(chosen.seed), rows or chosen.rows):
      print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}), flush=True)


# Keys: --only. The number of rows, None for --rows.
MEASUREMENTS = {
  "speed": (speed, None),
  "hangs": (hangs, None),
  "memory": (memory, 10_000),
  "workers": (workers, None),
  "overlap": (overlap, None),
}

if __name__ == "__main__":
  main()
