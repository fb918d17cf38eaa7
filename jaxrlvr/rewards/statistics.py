"""Rewards from the policy's own probabilities, which need no label. Their values are in nats and not from 0 to 1."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value


def self_certainty(answers: Answers, grade: Grade) -> Graded:
  """Pays the response's mean self-certainty, as Intuitor does: the larger, the more certain the policy.

  It is the mean over the response's tokens of KL(U || p) in nats, where U is uniform over the vocabulary and p is the
  policy's own next-token distribution, at temperature 1 and without top-k or top-p. Reads
  `answers.statistics["certainty"]` [P,G]. A response whose statistic is not finite is unscored, with the cause "error".
  `grade` is not called.
  """
  return graded_by_value(answers.statistics["certainty"])


def token_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays minus the mean over the response's tokens of the entropy, in nats, of the policy's next-token distribution.

  The distribution is the policy's own: at temperature 1, without top-k or top-p. The value is at most 0, and larger for
  a more certain policy. Reads `answers.statistics["entropy"]` [P,G]. A response whose statistic is not finite is
  unscored, with the cause "error". `grade` is not called.
  """
  return graded_by_value(-answers.statistics["entropy"])


def sequence_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays the log-probability of the whole response in nats: the sum over its tokens, at most 0.

  It is the policy's own probability, at temperature 1 and without top-k or top-p. Its mean over samples estimates minus
  the entropy over whole responses, which gives the reward its name. Reads `answers.statistics["sequence_logp"]` [P,G].
  A response whose statistic is not finite is unscored, with the cause "error". `grade` is not called.
  """
  return graded_by_value(answers.statistics["sequence_logp"])
