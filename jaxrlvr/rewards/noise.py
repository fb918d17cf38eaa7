"""Noise of a reward: a channel between the verifier and the policy."""

from __future__ import annotations

import numpy as np

from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.types import Answers, Graded


def add_noise(graded: Graded, answers: Answers, false_positive: float, false_negative: float) -> Graded:
  """Returns a binary reward as seen through a channel that pays a 0 and withholds a 1 at these rates."""
  u_PG = uniform(answers, "noise")
  value_PG = np.where(graded.value_PG == 1, u_PG >= false_negative, u_PG < false_positive)
  return graded._replace(value_PG=value_PG.astype(np.float32))
