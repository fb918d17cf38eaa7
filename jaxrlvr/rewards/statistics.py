"""Rewards that the policy's own probabilities give: how sure it is of what it wrote. In nats."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value


def self_certainty(answers: Answers, grade: Grade) -> Graded:
  """Pays the mean self-certainty of a response's tokens (Intuitor)."""
  return graded_by_value(answers.statistics["certainty"])


def token_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays minus the mean entropy of a response's tokens."""
  return graded_by_value(-answers.statistics["entropy"])


def sequence_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays the response's log-probability: minus the entropy over whole responses, estimated from one sample."""
  return graded_by_value(answers.statistics["sequence_logp"])
