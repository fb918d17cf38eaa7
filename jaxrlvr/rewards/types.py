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

  Row p of every [P,G] field belongs to problems[p].
  """

  problems: Sequence[Problem]  # P
  # [P][G], each with text (the whole response), answer (None: it states none) and trace (its thinking, or None).
  response_PG: Sequence[Sequence[Parsed]]
  # Keys: certainty and entropy (means over the response's tokens) and sequence_logp (the sum of its tokens'
  # log-probabilities). Values: float [P,G], in nats. Only the rewards in rewards.statistics read it.
  statistics: Mapping[str, np.ndarray]
  sample_PG: np.ndarray  # int [P,G]: number of each response among its problem's samples of this step, from 0
  seed: int = 0  # the run's seed, for rewards that draw random numbers
  step: int = 0  # the step of training that the responses belong to


class Graded(NamedTuple):
  """The reward of each response: what a reward function returns.

  An unscored response is one that nobody could grade. It is not a wrong response: it counts in no mean and is not
  trained on, and its value has no meaning.
  """

  value_PG: np.ndarray  # float32 [P,G]
  scored_PG: np.ndarray  # bool [P,G]; False: the response is unscored
  # [P][G]. Of an unscored response: "timeout", "memory" or "died" (what happened to the verifier's process), or "error"
  # (the verifier raised, or a value was not finite). Of a scored one: "unparseable" (it states no answer that the
  # verifier can read) or "".
  cause_PG: list[list[str]]
  # One a problem, where the reward is a majority vote; None for other rewards. A sum or product of rewards has those of
  # its first majority vote.
  elections_P: list[Election] | None = None


def graded_by_value(value_PG: np.ndarray | Sequence[Sequence[float]]) -> Graded:
  """Returns grades with these values [P,G] as float32, and without elections.

  A response whose value is finite is scored, with the cause "". One whose value is nan or infinite is unscored, with
  the cause "error", and keeps that value. Booleans become 0 and 1.
  """
  value_PG = np.asarray(value_PG, np.float32)
  scored_PG = np.isfinite(value_PG)
  return Graded(value_PG, scored_PG, np.where(scored_PG, "", "error").tolist())
