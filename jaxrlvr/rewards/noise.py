"""Noise of a binary reward, added between verifier and policy."""

from __future__ import annotations

import numpy as np

from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.types import Answers, Graded


def add_noise(graded: Graded, answers: Answers, false_positive: float, false_negative: float) -> Graded:
  """Returns the grades with noise: a 0 becomes 1 with probability false_positive, a 1 becomes 0 with false_negative.

  Both probabilities are from 0 to 1, which is not checked here. The causes, the elections and which responses are
  scored stay as they are.

  graded: grades whose values are all 0 or 1. answers: the responses that were graded. The noise of each depends only on
  their seed and step, the problem's id and the sample's number, so that a resumed run draws the same noise.
  """
  draw_PG = uniform(answers, "noise")
  stays_1_PG = draw_PG >= false_negative
  becomes_1_PG = draw_PG < false_positive
  value_PG = np.where(graded.value_PG == 1, stays_1_PG, becomes_1_PG)
  return graded._replace(value_PG=value_PG.astype(np.float32))
