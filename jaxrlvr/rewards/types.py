"""What rewards are given, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.types import Problem
from jaxrlvr.grading.vote import Election
from jaxrlvr.text.answer import Parsed


class Answers(NamedTuple):
  """The responses of a batch, problem-major, with what the device measured of them."""

  problems: Sequence[Problem]  # P
  response_PG: Sequence[Sequence[Parsed]]
  statistics: Mapping[str, np.ndarray]  # [P,G] each: mean `certainty` and `entropy` a token, `sequence_logp`; nats
  sample_PG: np.ndarray  # index among the samples of its problem at this step
  seed: int = 0
  step: int = 0


class Graded(NamedTuple):
  """Outcome of each answer; where scored is False nobody could say, and the value means nothing."""

  value_PG: np.ndarray  # float32
  scored_PG: np.ndarray  # bool
  cause_PG: list[list[str]]  # why an answer is unscored; may tell more of a scored one (`base.types.Verdict`)
  elections_P: list[Election] | None = None  # where the label was voted on; of several votes in a sum the first


def graded_by_value(value_PG: np.ndarray | Sequence[Sequence[float]]) -> Graded:
  """Returns values that need no verifier as graded; one that is not finite is unscored, with the cause "error"."""
  value_PG = np.asarray(value_PG, np.float32)
  scored_PG = np.isfinite(value_PG)
  return Graded(value_PG, scored_PG, np.where(scored_PG, "", "error").tolist())
