"""Rewards by majority vote: the most frequent answer among a problem's samples serves as its label (TTRL)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import FORMATS


def majority_vote(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer among a problem's samples, 0 for others and for responses without an answer.

  `grade`: takes jobs and returns a verdict for each, in their order. An answer that could not be compared with the most
  frequent one is unscored.
  """
  votes_PG = [[True] * len(responses) for responses in answers.response_PG]
  return pay_winner(answers, votes_PG, grade)


def majority_vote_thinking(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer among responses of the thinking format; only these vote and are paid."""
  thinks = FORMATS["thinking_format"]
  votes_PG = [list(map(thinks, responses)) for responses in answers.response_PG]
  return pay_winner(answers, votes_PG, grade)


def pay_winner(answers: Answers, votes_PG: Sequence[Sequence[bool]] | np.ndarray, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer among the responses that vote, and 0 to a response that does not vote.

  votes_PG: True where a response votes. Where none of a group votes, all get 0. `grade`: takes jobs and returns a
  verdict for each, in their order. An answer that could not be compared with the most frequent one is unscored. The
  grades hold the elections, one a problem.
  """
  answer_PG = []
  for responses, votes_G in zip(answers.response_PG, votes_PG, strict=True):
    answer_PG.append([response.answer if votes else None for response, votes in zip(responses, votes_G, strict=True)])
  elections = elect(answers.problems, answer_PG, grade)
  value_PG, scored_PG = [], []
  for election in elections:
    winner = None if election.winner is None else election.cluster_G[election.winner]
    value_PG.append([cluster is not None and cluster == winner for cluster in election.cluster_G])
    scored_PG.append([not cause for cause in election.cause_G])
  cause_PG = [election.cause_G for election in elections]
  return Graded(np.array(value_PG, np.float32), np.array(scored_PG), cause_PG, elections)
