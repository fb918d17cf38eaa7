"""The table of rewards. To add a reward, write its function in a module of its family and add a row here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxrlvr.rewards import form, spurious, statistics, verifiable, votes
from jaxrlvr.rewards.types import Graded
from jaxrlvr.text.answer import FORMATS


class Argument(NamedTuple):
  """A number that a reward takes in an expression, in brackets behind its name, as in `random(0.3)`."""

  name: str  # the parameter of the reward's function
  low: float  # smallest value that it may have
  high: float  # largest value that it may have


class Reward(NamedTuple):
  """A row of REWARDS: a function that pays responses, and what its callers must know of it.

  The function is called as function(answers, grade, **arguments) and returns a `Graded` with the answers' P and G.
  answers: an `Answers`. grade: takes a list of `grading.Job` and returns a `Verdict` for each, in their order; a reward
  that needs no verifier does not call it. arguments: the numbers that the expression in `rl.reward` gives, by their
  names in the row; the function has defaults for them. A function raises nothing for a response that it can't grade: it
  leaves it unscored.
  """

  function: Callable[..., Graded]
  binary: bool = True  # whether all values are 0 or 1
  votes: bool = False  # whether it compares a problem's samples, so that it needs all `rl.votes` of them
  arguments: tuple[Argument, ...] = ()  # numbers that it takes, in the order in which an expression may give them


# Keys: names in `rl.reward`. Comments say what pays.
REWARDS: dict[str, Reward] = {
  "verifiable": Reward(verifiable.grade_by_label),  # the answer is the label's, which may be wrong
  "inverse": Reward(spurious.inverse),  # an answer that is not the label's
  "wrong_label": Reward(spurious.wrong_label, votes=True),  # the group's most frequent wrong answer
  "majority_vote": Reward(votes.majority_vote, votes=True),  # the group's most frequent answer (TTRL)
  # The most frequent answer among the group's responses that keep thinking_format.
  "majority_vote_thinking": Reward(votes.majority_vote_thinking, votes=True),
  "self_certainty": Reward(statistics.self_certainty, binary=False),  # Intuitor
  "token_entropy": Reward(statistics.token_entropy, binary=False),  # - mean H(p)
  "sequence_entropy": Reward(statistics.sequence_entropy, binary=False),  # log p(response)
  "random": Reward(
    spurious.random_reward, arguments=(Argument("rate", 0.0, 1.0),)
  ),  # random(0.3): 1 with this probability, else with 0.5
  **{name: Reward(functools.partial(form.keeps_format, name=name)) for name in FORMATS},
}
