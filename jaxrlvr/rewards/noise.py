"""Noise of a binary reward, added between verifier and policy."""

from __future__ import annotations

import numpy as np

from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.types import Answers, Graded


def add_noise(graded: Graded, answers: Answers, false_positive: float, false_negative: float) -> Graded:
  """Returns a binary reward with noise: turns a 0 into 1 at the rate false_positive, a 1 into 0 at false_negative.

  Both rates are probabilities from 0 to 1. `graded`: values of 0 and 1 only. `answers`: the responses that were graded;
  the draws are a function of their seed, step, problem and sample alone. Which responses are scored does not change.
  """
  u_PG = uniform(answers, "noise")
  stays_1_PG = u_PG >= false_negative
  becomes_1_PG = u_PG < false_positive
  value_PG = np.where(graded.value_PG == 1, stays_1_PG, becomes_1_PG)
  return graded._replace(value_PG=value_PG.astype(np.float32))
