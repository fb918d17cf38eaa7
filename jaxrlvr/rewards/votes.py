"""Rewards by the vote of a problem's own samples: the most frequent answer is taken for the label (TTRL)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import FORMATS


def majority_vote(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer of the group."""
  return pay_winner(answers, [[True] * len(responses) for responses in answers.response_PG], grade)


def majority_vote_thinking(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer of the responses of the thinking format; only they vote and are paid."""
  thinks = FORMATS["thinking_format"]
  return pay_winner(answers, [[thinks(response) for response in responses] for responses in answers.response_PG], grade)


def pay_winner(answers: Answers, votes_PG: Sequence[Sequence[bool]] | np.ndarray, grade: Grade) -> Graded:
  """Pays 1 where a response gives the most frequent answer of those that vote; without any vote nobody is paid."""
  answer_PG = [
    [response.answer if votes else None for response, votes in zip(*row, strict=True)]
    for row in zip(answers.response_PG, votes_PG, strict=True)
  ]
  elections = elect(answers.problems, answer_PG, grade)
  won_P = [None if e.winner is None else e.cluster_G[e.winner] for e in elections]
  value = [[c is not None and c == won for c in e.cluster_G] for e, won in zip(elections, won_P, strict=True)]
  cause = [e.cause_G for e in elections]
  scored = np.array([[not c for c in row] for row in cause])
  return Graded(np.array(value, np.float32), scored, cause, elections)
