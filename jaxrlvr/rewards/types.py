"""What rewards take (`Answers`) and return (`Graded`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.types import Problem
from jaxrlvr.grading.vote import Election
from jaxrlvr.text.answer import Parsed


class Answers(NamedTuple):
  """The responses of a batch, G to each of P problems, with statistics that the device computed."""

  problems: Sequence[Problem]  # P
  response_PG: Sequence[Sequence[Parsed]]
  statistics: Mapping[
    str, np.ndarray
  ]  # keys: certainty, entropy (means over tokens), sequence_logp; each [P,G], in nats
  sample_PG: np.ndarray  # integers: number of each response among its problem's samples of this step, from 0
  seed: int = 0  # the run's seed, for rewards that draw random numbers
  step: int = 0  # the step of training that the responses belong to


class Graded(NamedTuple):
  """The reward of each response. Where it is not scored, nobody could say, and the value has no meaning."""

  value_PG: np.ndarray  # float32
  scored_PG: np.ndarray  # bool
  cause_PG: list[list[str]]  # why a response is unscored, or a remark on a scored one (`base.types.Verdict`); "": none
  elections_P: list[Election] | None = None  # the first vote, where the reward has votes; None: it has none


def graded_by_value(value_PG: np.ndarray | Sequence[Sequence[float]]) -> Graded:
  """Returns the values [P,G] as float32 grades without elections.

  A value that is not finite is unscored, with the cause "error"; the cause of others is "".
  """
  value_PG = np.asarray(value_PG, np.float32)
  scored_PG = np.isfinite(value_PG)
  return Graded(value_PG, scored_PG, np.where(scored_PG, "", "error").tolist())
