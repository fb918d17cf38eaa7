"""The verifiable reward, which compares answers with labels, and the truth, which is graded in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import stated


def grade_by_label(answers: Answers, grade: Grade) -> Graded:
  """Pays the verifier's score (1 if equal, else 0) for an answer against the problem's label, which may be wrong.

  `grade`: takes jobs and returns a verdict for each, in their order. A response that could not be graded is unscored.
  """
  return grade_against(answers, [problem.label for problem in answers.problems], grade)


def grade_by_truth(answers: Answers, grade: Grade) -> Graded:
  """Pays the verifier's score (1 if equal, else 0) for an answer against the problem's truth.

  Evaluation uses it, and every run logs it beside its reward. `grade`: takes jobs and returns a verdict for each, in
  their order. A response that could not be graded is unscored.
  """
  return grade_against(answers, [problem.truth for problem in answers.problems], grade)


def grade_against(answers: Answers, key_P: Sequence[str], grade: Grade) -> Graded:
  """Returns grades of every response, by its problem's verifier, against the problem's answer in `key_P`.

  `key_P`: one answer for each of the P problems. `grade`: takes jobs and returns a verdict for each, in their order.
  A value is the verdict's score, from 0 to 1, and 0 where the response is unscored.
  """
  jobs = []
  for problem, key, responses in zip(answers.problems, key_P, answers.response_PG, strict=True):
    jobs += [Job(problem.verifier, response, key, problem.extra) for response in responses]
  verdicts = grade(jobs)
  shape = (len(answers.problems), -1)
  causes = np.array([verdict.cause for verdict in verdicts], object)
  scores = np.array([np.nan if verdict.score is None else verdict.score for verdict in verdicts], np.float32)
  value_PG = scores.reshape(shape)
  finite_value_PG = np.nan_to_num(value_PG, posinf=0.0, neginf=0.0)
  return Graded(finite_value_PG, np.isfinite(value_PG), causes.reshape(shape).tolist())


def labels_right(problems: Sequence[Problem], grade: Grade) -> dict[str, float | None]:
  """Returns by problem id whether its label is a right answer: 1.0, 0.0, or None where the verifier can't say."""
  jobs = [Job(problem.verifier, stated(problem.label), problem.truth, problem.extra) for problem in problems]
  verdicts = grade(jobs)
  return {problem.id: verdict.score for problem, verdict in zip(problems, verdicts, strict=True)}


def grade_once(grade: Grade) -> Grade:
  """Returns a `grade` with a memory: it grades a response against an answer once, for all rewards."""
  known: dict[tuple, Verdict] = {}
  kept_alive: list[Job] = []  # so that the id of an `extra` is never that of another

  def grade_new(jobs: Sequence[Job]) -> list[Verdict]:
    addresses = [(job.verifier, job.response, job.label, id(job.extra)) for job in jobs]
    new = {address: job for address, job in zip(addresses, jobs, strict=True) if address not in known}
    known.update(zip(new, grade(list(new.values())), strict=True))
    kept_alive.extend(new.values())
    return [known[address] for address in addresses]

  return grade_new
