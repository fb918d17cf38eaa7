"""The verifiable reward, which compares answers with labels, and the truth, which is graded in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base import named
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import boxed_response


def grade_by_label(answers: Answers, grade: Grade) -> Graded:
  """Pays each response the verifier's score against its problem's label, which may be wrong.

  A score is 1 for an answer that equals the label and 0 for any other, and for a response without a readable answer
  (cause "unparseable"). A verifier of your own may also score between 0 and 1. A response that could not be graded is
  unscored, with the value 0 and the cause "timeout", "memory", "died" or "error".

  grade: takes jobs and returns a verdict for each, in their order. It is called once, with P * G jobs.
  """
  return _grade_against(answers, [problem.label for problem in answers.problems], grade)


def grade_by_truth(answers: Answers, grade: Grade) -> Graded:
  """Returns each response's score against its problem's truth. It never influences training.

  Evaluation uses it, and every run logs it beside its reward, as `true_reward`. Scores, unscored responses, causes and
  `grade` are as in `grade_by_label`.
  """
  return _grade_against(answers, [problem.truth for problem in answers.problems], grade)


def _grade_against(answers: Answers, expected_P: Sequence[str], grade: Grade) -> Graded:
  """Returns the verifiers' scores of all responses against one expected answer for each problem.

  A value is the verdict's score, from 0 to 1, and 0 where the response is unscored.
  """
  jobs = []
  for problem, expected, responses in zip(answers.problems, expected_P, answers.response_PG, strict=True):
    jobs += [Job(problem.verifier, response, expected, problem.extra) for response in responses]
  verdicts = grade(jobs)
  shape = (len(answers.problems), -1)
  causes = np.array([verdict.cause for verdict in verdicts], object)
  scores = np.array([np.nan if verdict.score is None else verdict.score for verdict in verdicts], np.float32)
  value_PG = scores.reshape(shape)
  finite_value_PG = np.nan_to_num(value_PG, posinf=0.0, neginf=0.0)
  return Graded(finite_value_PG, np.isfinite(value_PG), causes.reshape(shape).tolist())


def labels_right(problems: Sequence[Problem], grade: Grade) -> dict[str, float | None]:
  """Returns {problem id: 1.0 if the problem's label is a right answer, 0.0 if it is wrong}.

  The verifier scores the label against the truth, as if a response had stated it. The value is that score, and None
  where the verifier could not grade the label. By a user's own verifier, whose labels need not be answers, a label with
  the text of the truth is right. Of problems with the same id the last one counts.
  grade: takes jobs and returns a verdict for each, in their order. It is called once.
  """
  jobs = [Job(problem.verifier, boxed_response(problem.label), problem.truth, problem.extra) for problem in problems]
  verdicts = grade(jobs)
  scores = {}
  for problem, verdict in zip(problems, verdicts, strict=True):
    is_truth = named.is_name(problem.verifier) and problem.label == problem.truth
    scores[problem.id] = 1.0 if is_truth else verdict.score
  return scores


def with_memory(grade: Grade) -> Grade:
  """Wraps `grade` into a function that passes on only jobs that it has not seen before, and remembers all verdicts.

  Several rewards and the truth, which ask the same of a step's responses, so share the work. Two jobs are the same if
  verifier, response and label are equal and `extra` is the very same object. Unscored verdicts are remembered too.
  The memory grows until the returned function is dropped: make a new one for each batch.
  """
  verdict_of: dict[tuple, Verdict] = {}
  kept_jobs: list[Job] = []  # keeps each `extra` alive, so that no later one gets the same id

  def grade_new(jobs: Sequence[Job]) -> list[Verdict]:
    addresses = [(job.verifier, job.response, job.label, id(job.extra)) for job in jobs]
    new_jobs = {}
    for address, job in zip(addresses, jobs, strict=True):
      if address not in verdict_of:
        new_jobs[address] = job
    verdicts = grade(list(new_jobs.values()))
    verdict_of.update(zip(new_jobs, verdicts, strict=True))
    kept_jobs.extend(new_jobs.values())
    return [verdict_of[address] for address in addresses]

  return grade_new
