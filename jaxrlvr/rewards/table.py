"""The table of rewards. To add a reward, write its function in a module of its family and add a row here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxrlvr.rewards import form, spurious, statistics, verifiable, votes
from jaxrlvr.rewards.types import Graded
from jaxrlvr.text.answer import FORMATS


class Reward(NamedTuple):
  """What a name in `rl.reward` stands for."""

  function: Callable[..., Graded]  # (answers, grade, *arguments in the expression) -> grades
  binary: bool = True  # always 0 or 1
  votes: bool = False  # needs all `rl.votes` samples, also those that are not trained on


# Keys: names in `rl.reward`. Comments say what pays.
REWARDS: dict[str, Reward] = {
  "verifiable": Reward(verifiable.grade_by_label),  # the answer is the label's, which may be wrong
  "inverse": Reward(spurious.inverse),  # an answer that is not the label's
  "wrong_label": Reward(spurious.wrong_label, votes=True),  # the group's most frequent wrong answer
  "majority_vote": Reward(votes.majority_vote, votes=True),  # the group's most frequent answer (TTRL)
  "majority_vote_thinking": Reward(
    votes.majority_vote_thinking, votes=True
  ),  # likewise, among responses of the thinking format
  "self_certainty": Reward(statistics.self_certainty, binary=False),  # Intuitor
  "token_entropy": Reward(statistics.token_entropy, binary=False),  # - mean H(p)
  "sequence_entropy": Reward(statistics.sequence_entropy, binary=False),  # log p(response)
  "random": Reward(spurious.random_reward),  # random(0.3): 1 with this probability, else with 0.5
  **{name: Reward(functools.partial(form.keeps_format, name=name)) for name in FORMATS},
}
