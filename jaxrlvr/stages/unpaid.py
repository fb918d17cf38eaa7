"""Explains why a run gets no reward: what became of its answers, and which config key would change it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook

_LOG = logging.getLogger(__name__)
STEPS = 5  # number of steps in a row without any reward after which a warning is given

# What may become of an answer. Each answer is of exactly one kind, the first that holds.
ANSWER_KINDS = ("unscored", "right", "cut_off", "unparseable", "wrong")


def answer_shares(
  true_PG: np.ndarray, scored_PG: np.ndarray, cause_PG: Sequence[Sequence[str]], is_cut_off_PG: np.ndarray
) -> dict[str, float]:
  """Returns {"answers/KIND": share of the responses that are of this kind}; the five shares sum to 1.

  true_PG: the true reward of P problems with G responses each. scored_PG: bool; False where grading against the truth
  gave no verdict, whose true reward is then not read. cause_PG: the cause that grading recorded, such as "unparseable"
  or "timeout"; "" for a plain verdict. is_cut_off_PG: bool; whether the limit of tokens ended the response. There must
  be at least one response. Each is of the first KIND that holds:
    unscored     it could not be graded
    right        its true reward is exactly 1
    cut_off      it was ended by the limit of tokens
    unparseable  its cause is "unparseable": it holds no readable answer
    wrong        otherwise; a true reward between 0 and 1 is wrong too
  """
  unparseable_PG = np.array(cause_PG, object) == "unparseable"
  holds = {
    "unscored": ~scored_PG,
    "right": true_PG == 1,
    "cut_off": is_cut_off_PG,
    "unparseable": unparseable_PG,
    "wrong": np.ones(scored_PG.shape, bool),
  }
  unassigned_PG = np.ones(scored_PG.shape, bool)
  share_of_kind = {}
  for kind in ANSWER_KINDS:
    is_kind_PG = unassigned_PG & holds[kind]
    share_of_kind[f"answers/{kind}"] = float(is_kind_PG.mean())
    unassigned_PG &= ~is_kind_PG
  return share_of_kind


def _advice(kind: str, config: ConfigDict) -> str:
  """Returns what to do where most answers are of a kind of ANSWER_KINDS: a phrase that names the keys to change."""
  reading, reward, v = config.answer.read, config.rl.reward, config.verify
  return {
    "cut_off": f"raise config.rl.response_tokens (now {config.rl.response_tokens}), or train the policy to end sooner",
    "unparseable": f"most hold no answer by config.answer.read = {reading!r}: ask for one in the prompt "
    r"(config.problems.system, as 'Put the final answer in \boxed{}.'), or read another one (hash, last-number)",
    "wrong": "the problems are too hard for the policy: take easier ones (config.problems; `jaxrlvr filter` keeps "
    "those that it sometimes solves), or see that the labels are right",
    "unscored": f"raise the limits of grading (config.verify.cpu_seconds = {v.cpu_seconds:g}, .wall_seconds = "
    f"{v.wall_seconds:g}, .memory_mib = {v.memory_mib})",
    "right": f"the answers are right and config.rl.reward = {reward!r} pays none of them: see its labels and formats",
  }[kind]


class Unpaid:
  """Warns once in a run that gets no reward for STEPS steps in a row.

  Make it as Unpaid(rows, config), and give each step's metrics to `observe`. It decides by the rows of metrics.jsonl
  alone, so that a resumed run warns when an unbroken one would.
  """

  def __init__(self, rows: Sequence[Mapping], config: ConfigDict):
    """rows: those that metrics.jsonl has already. config: of the run, whose keys the advice names."""
    self._config = config
    self._rows = [row for row in rows if "answers/wrong" in row]
    self._warned = any(self._end_unpaid(self._rows[:end]) for end in range(len(self._rows) + 1))

  def observe(self, step: int, metrics: Mapping) -> None:
    """Takes the metrics of the next step, and warns if none of the last STEPS steps paid anything; of a run with fewer
    steps, if none of all. It warns only once in a run, however often that is resumed.

    metrics: needs reward, reward_std and answers/KIND for each of ANSWER_KINDS; nan counts as nothing paid.
    """
    names = ("reward", "reward_std", *(f"answers/{kind}" for kind in ANSWER_KINDS))
    self._rows.append(logbook.finite({name: float(metrics[name]) for name in names}))
    if not self._warned and self._end_unpaid(self._rows):
      self._warned = True
      _LOG.warning("step %d: %s", step, self._explanation(self._rows[-STEPS:]))

  def _end_unpaid(self, rows: Sequence[Mapping]) -> bool:
    """Returns whether none of the last STEPS rows, or of all rows of a shorter run, has a reward."""
    last = rows[-STEPS:]
    return len(last) >= min(STEPS, self._config.rl.steps) and not any(map(_has_reward, last))

  def _explanation(self, rows: Sequence[Mapping]) -> str:
    """Returns a sentence with the shares of ANSWER_KINDS in these steps, and advice for the most frequent kind."""
    mean_share = {}
    for kind in ANSWER_KINDS:
      mean_share[kind] = float(np.mean([row[f"answers/{kind}"] for row in rows]))
    answers = ", ".join(f"{share:.0%} {kind.replace('_', ' ')}" for kind, share in mean_share.items())
    most_frequent = max(mean_share, key=mean_share.get)
    return (
      f"no response was paid anything in {len(rows)} steps, so nothing is learned; answers: {answers}; "
      f"{_advice(most_frequent, self._config)}"
    )

  def summary(self) -> dict[str, str]:
    """Returns what summary.json says of a run in which no step paid anything, and warns of it then; else {}.

    Key: unpaid (a sentence with the shares of ANSWER_KINDS over all steps and advice). Without any step it is {} too.
    """
    if not self._rows or any(map(_has_reward, self._rows)):
      return {}
    explanation = self._explanation(self._rows)
    _LOG.warning("the run ends as it began: %s", explanation)
    return {"unpaid": explanation}


def _has_reward(row: Mapping) -> bool:
  """Returns whether any response of this step was paid anything but 0."""
  return bool(row["reward"]) or bool(row["reward_std"])
