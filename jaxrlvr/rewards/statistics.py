"""Rewards from the policy's own probabilities: how certain it is of its response, in nats."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value


def self_certainty(answers: Answers, grade: Grade) -> Graded:
  """Pays the mean self-certainty of the response's tokens, in nats (Intuitor); `grade` is not called."""
  return graded_by_value(answers.statistics["certainty"])


def token_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays the negative mean entropy of the response's tokens, in nats; `grade` is not called."""
  return graded_by_value(-answers.statistics["entropy"])


def sequence_entropy(answers: Answers, grade: Grade) -> Graded:
  """Pays the response's log-probability, a one-sample estimate of the negative entropy over whole responses."""
  return graded_by_value(answers.statistics["sequence_logp"])
