"""Control rewards, which say nothing about what is right, or the opposite."""

from __future__ import annotations

import numpy as np

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value
from jaxrlvr.rewards.verifiable import grade_by_label, grade_by_truth
from jaxrlvr.rewards.votes import pay_winner
from jaxrlvr.tasks.verdicts import UNPARSEABLE


def random_reward(answers: Answers, grade: Grade, rate: float = 0.5) -> Graded:
  """Pays 1 with probability `rate` (0 to 1), else 0, whatever was answered; `grade` is not called.

  The draw is a function of seed, step, problem and sample alone.
  """
  return graded_by_value(uniform(answers, "random reward") < rate)


def inverse(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for an answer that differs from the label, 0 for a response without an answer that the verifier can read.

  `grade`: takes jobs and returns a verdict for each, in their order. A response that could not be graded is unscored.
  """
  graded = grade_by_label(answers, grade)
  has_answer_PG = np.array(graded.cause_PG, object) != UNPARSEABLE.cause
  value_PG = np.where(has_answer_PG & graded.scored_PG, 1.0 - graded.value_PG, 0.0)
  return graded._replace(value_PG=value_PG.astype(np.float32))


def wrong_label(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the group's most frequent wrong answer; unscored where the verifier can't say whether one is wrong."""
  true = grade_by_truth(answers, grade)
  wrong_PG = true.scored_PG & (true.value_PG < 1)
  voted = pay_winner(answers, wrong_PG, grade)
  cause_PG = np.array(voted.cause_PG, object)
  unknown_PG = ~true.scored_PG
  cause_PG[unknown_PG] = np.array(true.cause_PG, object)[unknown_PG]
  return Graded(voted.value_PG, voted.scored_PG & true.scored_PG, cause_PG.tolist())
