"""The verifiable reward: the answer is the label's. Also the truth, which is graded in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import stated


def grade_by_label(answers: Answers, grade: Grade) -> Graded:
  """Grades against the labels, which may be wrong."""
  return grade_against(answers, [problem.label for problem in answers.problems], grade)


def grade_by_truth(answers: Answers, grade: Grade) -> Graded:
  """Grades against the true answers: what evaluation uses, and what every run logs beside its reward."""
  return grade_against(answers, [problem.truth for problem in answers.problems], grade)


def grade_against(answers: Answers, key_P: Sequence[str], grade: Grade) -> Graded:
  """Grades every response by its problem's verifier against `key_P`, one answer a problem."""
  jobs = [
    Job(problem.verifier, response, key, problem.extra)
    for problem, key, responses in zip(answers.problems, key_P, answers.response_PG, strict=True)
    for response in responses
  ]
  verdicts = grade(jobs)
  shape = (len(answers.problems), -1)
  cause = np.array([v.cause for v in verdicts], object).reshape(shape).tolist()
  value = np.array([v.score if v.score is not None else np.nan for v in verdicts], np.float32).reshape(shape)
  return Graded(np.nan_to_num(value, posinf=0.0, neginf=0.0), np.isfinite(value), cause)


def labels_right(problems: Sequence[Problem], grade: Grade) -> dict[str, float | None]:
  """Returns by problem id whether its label is a right answer: 1.0, 0.0, or None where its verifier can't say."""
  jobs = [Job(p.verifier, stated(p.label), p.truth, p.extra) for p in problems]
  return {p.id: verdict.score for p, verdict in zip(problems, grade(jobs), strict=True)}


def grade_once(grade: Grade) -> Grade:
  """Returns `grade` that grades a response against an answer once, however many rewards ask: all see one verdict."""
  known: dict[tuple, Verdict] = {}
  kept_alive: list[Job] = []  # or the id of an `extra` could come to mean another

  def grade_new(jobs: Sequence[Job]) -> list[Verdict]:
    addresses = [(job.verifier, job.response, job.label, id(job.extra)) for job in jobs]
    new = {address: job for address, job in zip(addresses, jobs, strict=True) if address not in known}
    known.update(zip(new, grade(list(new.values())), strict=True))
    kept_alive.extend(new.values())
    return [known[address] for address in addresses]

  return grade_new
