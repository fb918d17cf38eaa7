"""Control rewards: one says nothing about what is right, the others say the opposite."""

from __future__ import annotations

import numpy as np

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value
from jaxrlvr.rewards.verifiable import grade_by_label, grade_by_truth
from jaxrlvr.rewards.votes import pay_winner
from jaxrlvr.tasks.verdicts import UNPARSEABLE


def random_reward(answers: Answers, grade: Grade, rate: float = 0.5) -> Graded:
  """Pays 1 with probability `rate` (0 to 1), else 0, whatever was answered. Every response is scored.

  The draw depends only on the seed, the step, the problem's id and the sample's number. `grade` is not called.
  """
  return graded_by_value(uniform(answers, "random reward") < rate)


def inverse(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for a readable answer that differs from the label; 0 for one that equals it, and for no readable answer.

  If the verifier scores between 0 and 1, it pays one minus that score. A response that could not be graded is unscored,
  with the verdict's cause.

  grade: takes jobs and returns a verdict for each, in their order.
  """
  graded = grade_by_label(answers, grade)
  readable_PG = np.array(graded.cause_PG, object) != UNPARSEABLE.cause
  value_PG = np.where(readable_PG & graded.scored_PG, 1.0 - graded.value_PG, 0.0)
  return graded._replace(value_PG=value_PG.astype(np.float32))


def wrong_label(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent wrong answer among a problem's samples, and 0 for every other response.

  Wrong means that the verifier scores the answer below 1 against the problem's truth, not against its label. Right
  answers and responses without an answer get 0. If two wrong answers are equally frequent, the one that occurs first is
  paid. A problem without a wrong answer pays nobody.
  A response is unscored if it could not be graded against the truth, or if its answer could not be compared with the
  most frequent wrong one. Its cause says why. The grades hold no elections.

  grade: takes jobs and returns a verdict for each, in their order.
  """
  by_truth = grade_by_truth(answers, grade)
  wrong_PG = by_truth.scored_PG & (by_truth.value_PG < 1)
  by_vote = pay_winner(answers, wrong_PG, grade)
  truth_causes_PG = np.array(by_truth.cause_PG, object)
  vote_causes_PG = np.array(by_vote.cause_PG, object)
  cause_PG = np.where(by_truth.scored_PG, vote_causes_PG, truth_causes_PG)
  return Graded(by_vote.value_PG, by_vote.scored_PG & by_truth.scored_PG, cause_PG.tolist())
