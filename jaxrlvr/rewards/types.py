"""What rewards take (`Answers`) and return (`Graded`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.types import Problem
from jaxrlvr.grading.vote import Election
from jaxrlvr.text.answer import Parsed


class Answers(NamedTuple):
  """The responses of a batch, G to each of P problems, with statistics that the device computed.

  Row p of every [P,G] field belongs to problems[p]. A response is a `Parsed`, with text (all of it), answer (None: it
  states none) and trace (its thinking; None: it has none). Keys of statistics: certainty and entropy, means over the
  response's tokens, and sequence_logp, the sum of their log-probabilities; each is float [P,G], in nats. Only the
  rewards in rewards.statistics read them.
  """

  problems: Sequence[Problem]  # P
  response_PG: Sequence[Sequence[Parsed]]  # [P][G]
  statistics: Mapping[str, np.ndarray]
  sample_PG: np.ndarray  # int [P,G]: number of each response among its problem's samples of this step, from 0
  seed: int = 0  # the run's seed, for rewards that draw random numbers
  step: int = 0  # the step of training that the responses belong to


class Graded(NamedTuple):
  """The reward of each response: what a reward function returns.

  An unscored response is one that nobody could grade. It is not a wrong response: it counts in no mean and is not
  trained on, and its value has no meaning. Its cause is "timeout", "memory" or "died", by what happened to the
  verifier's process, or "error": the verifier raised, or a value was not finite. The cause of a scored response is
  "unparseable" if it states no answer that the verifier can read, else "".
  elections_P has an Election for each problem if the reward is a majority vote, or a sum or product with one; of
  several votes it has those of the first.
  """

  value_PG: np.ndarray  # float32 [P,G]
  scored_PG: np.ndarray  # bool [P,G]; False: the response is unscored
  cause_PG: list[list[str]]  # [P][G]
  elections_P: list[Election] | None = None  # None: no reward in it is a vote


def graded_by_value(value_PG: np.ndarray | Sequence[Sequence[float]]) -> Graded:
  """Returns grades with these values [P,G] as float32, and without elections.

  A response whose value is finite is scored, with the cause "". One whose value is nan or infinite is unscored, with
  the cause "error", and keeps that value. Booleans become 0 and 1.
  """
  value_PG = np.asarray(value_PG, np.float32)
  scored_PG = np.isfinite(value_PG)
  return Graded(value_PG, scored_PG, np.where(scored_PG, "", "error").tolist())
