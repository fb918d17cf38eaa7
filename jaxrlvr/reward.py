"""Rewards as values in one table: what RL is told about the answers of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.types import Problem, Verdict
from jaxrlvr.verify.service import Job

Grade = Callable[[Sequence[Job]], list[Verdict]]


class Graded(NamedTuple):
  """Outcome of each answer; where scored is False nobody could say, and the value means nothing."""

  value_PG: np.ndarray  # float32
  scored_PG: np.ndarray  # bool
  cause_PG: list[list[str]]  # "" where scored


class Answers(NamedTuple):
  """The responses of a batch, problem-major, with what the device measured of them."""

  problems: Sequence[Problem]  # P
  text_PG: Sequence[Sequence[str]]
  statistics: Mapping[str, np.ndarray]  # [P,G] each, such as the mean self-certainty of a response


def remembering(grade: Grade) -> Grade:
  """`grade` that grades a response against an answer once, however many rewards ask: both see one verdict."""
  known: dict[tuple, Verdict] = {}

  def once(jobs: Sequence[Job]) -> list[Verdict]:
    addresses = [(job.verifier, job.response, job.label, id(job.extra)) for job in jobs]
    new = {address: job for address, job in zip(addresses, jobs, strict=True) if address not in known}
    known.update(zip(new, grade(list(new.values())), strict=True))
    return [known[address] for address in addresses]

  return once


def grade_against(answers: Answers, wanted: Sequence[str], grade: Grade) -> Graded:
  """Every response graded by its problem's verifier against `wanted`, one answer a problem."""
  jobs = [
    Job(problem.verifier, text, answer, problem.extra)
    for problem, answer, texts in zip(answers.problems, wanted, answers.text_PG, strict=True)
    for text in texts
  ]
  verdicts = grade(jobs)
  shape = (len(answers.problems), -1)
  cause = np.array([v.cause for v in verdicts], object).reshape(shape).tolist()
  value = np.array([v.score if v.score is not None else 0.0 for v in verdicts], np.float32).reshape(shape)
  finite = np.isfinite(value)
  return Graded(
    np.where(finite, value, 0.0), finite & np.array([v.score is not None for v in verdicts]).reshape(shape), cause
  )


def truth(answers: Answers, grade: Grade) -> Graded:
  """Graded against the true answers: what evaluation uses, and what every run logs beside its reward."""
  return grade_against(answers, [p.truth for p in answers.problems], grade)


def verifiable(answers: Answers, grade: Grade) -> Graded:
  """1 where the response's answer is the label's, which may be wrong, else 0."""
  return grade_against(answers, [p.label for p in answers.problems], grade)


# Keys: value of `rl.reward`.
REWARDS: dict[str, Callable[[Answers, Grade], Graded]] = {"verifiable": verifiable}
