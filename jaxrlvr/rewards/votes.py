"""Rewards by majority vote: the most frequent answer among a problem's samples serves as its label (TTRL)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import FORMATS


def majority_vote(answers: Answers, grade: Grade) -> Graded:
  """Pays 1 for the most frequent answer among a problem's samples, 0 for others and for responses without an answer.

  The problem's verifier says which answers are equal; labels and truth are not used. Of two equally frequent answers
  the one that occurs first is paid. If no response to a problem holds a readable answer, all get 0. An answer that the
  verifier could not compare with the most frequent one is unscored, and its cause says why. The grades hold the
  elections.

  answers: all samples of each problem, also those that vote but are not trained on.
  grade: takes jobs and returns a verdict for each, in their order. It is called several times.
  """
  votes_PG = [[True] * len(responses) for responses in answers.response_PG]
  return pay_winner(answers, votes_PG, grade)


def majority_vote_thinking(answers: Answers, grade: Grade) -> Graded:
  """Pays as `majority_vote` does, but only responses in the thinking format vote and can be paid.

  The thinking format is `<think>`, then `</think>`, and an answer behind it. A response in another form gets 0, even
  for the winning answer. If no response to a problem keeps the format, all get 0.
  """
  keeps_format = FORMATS["thinking_format"]
  votes_PG = []
  for responses in answers.response_PG:
    votes_PG.append([keeps_format(response) for response in responses])
  return pay_winner(answers, votes_PG, grade)


def pay_winner(answers: Answers, votes_PG: Sequence[Sequence[bool]] | np.ndarray, grade: Grade) -> Graded:
  """Holds an election among the responses that may vote, and pays 1 for the winning answer, 0 for everything else.

  votes_PG: True where a response may vote. One that may not gets 0. One that may, but states no answer that the
  verifier can read, does not vote either and gets 0. Where nobody votes, all responses to the problem get 0.
  An answer that could not be compared with the winning one is unscored, with the cause that `Election.cause_G` gives.
  The grades hold the elections, one a problem.

  grade: takes jobs and returns a verdict for each, in their order. It is called several times.
  """
  answer_PG = []
  for responses, votes_G in zip(answers.response_PG, votes_PG, strict=True):
    answer_PG.append([response.answer if votes else None for response, votes in zip(responses, votes_G, strict=True)])
  elections = elect(answers.problems, answer_PG, grade)
  value_PG, scored_PG, cause_PG = [], [], []
  for election in elections:
    winning_cluster = None if election.winner is None else election.cluster_G[election.winner]
    value_PG.append([cluster is not None and cluster == winning_cluster for cluster in election.cluster_G])
    scored_PG.append([cause == "" for cause in election.cause_G])
    cause_PG.append(election.cause_G)
  return Graded(np.array(value_PG, np.float32), np.array(scored_PG), cause_PG, elections)
