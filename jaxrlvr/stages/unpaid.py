"""Why a run is paid nothing: what became of the answers, and the config key that would change it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook

_LOG = logging.getLogger(__name__)
STEPS = 5  # without any reward, and it is told

# What becomes of an answer, each of exactly one kind. The first that holds counts.
ANSWER_KINDS = ("unscored", "right", "cut_off", "unparseable", "wrong")


def shares(
  true_PG: np.ndarray, scored_PG: np.ndarray, cause_PG: Sequence[Sequence[str]], cut_PG: np.ndarray
) -> dict[str, float]:
  """Returns the share of each of ANSWER_KINDS among these responses as `answers/KIND`, by the true answers.

  true_PG, scored_PG, cause_PG: what grading against the truth said (`rewards.types.Graded`). cut_PG: whether a
  response was ended by the limit of tokens. A response that was cut off and is right all the same counts as right.
  """
  unparseable_PG = np.array(cause_PG, object) == "unparseable"
  holds = {
    "unscored": ~scored_PG,
    "right": true_PG == 1,
    "cut_off": cut_PG,
    "unparseable": unparseable_PG,
    "wrong": np.ones(scored_PG.shape, bool),
  }
  left_PG = np.ones(scored_PG.shape, bool)
  made = {}
  for kind in ANSWER_KINDS:
    mine_PG = left_PG & holds[kind]
    made[f"answers/{kind}"] = float(mine_PG.mean())
    left_PG &= ~mine_PG
  return made


def cure(kind: str, config: ConfigDict) -> str:
  """Returns the config key that would change it, where most answers are of this kind."""
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
  """Tells once where a run goes without any reward, from the rows of its metrics: a resumed run says the same."""

  def __init__(self, rows: Sequence[Mapping], config: ConfigDict):
    self._config = config
    self._rows = [row for row in rows if "answers/wrong" in row]
    self._told = any(self._silent(self._rows[:end]) for end in range(len(self._rows) + 1))

  def __call__(self, step: int, metrics: Mapping) -> None:
    """Takes a step's metrics, and warns behind the first STEPS in a row (or all of a shorter run) without reward."""
    names = ("reward", "reward_std", *(f"answers/{kind}" for kind in ANSWER_KINDS))
    self._rows.append(logbook.finite({name: float(metrics[name]) for name in names}))
    if not self._told and self._silent(self._rows):
      self._told = True
      _LOG.warning("step %d: %s", step, self._why(self._rows[-STEPS:]))

  def _silent(self, rows: Sequence[Mapping]) -> bool:
    last = rows[-STEPS:]
    return len(last) >= min(STEPS, self._config.rl.steps) and not any(map(_paid, last))

  def _why(self, rows: Sequence[Mapping]) -> str:
    mean = {kind: float(np.mean([row[f"answers/{kind}"] for row in rows])) for kind in ANSWER_KINDS}
    told = ", ".join(f"{mean[kind]:.0%} {kind.replace('_', ' ')}" for kind in ANSWER_KINDS)
    most = max(mean, key=mean.get)
    return (
      f"no response was paid anything in {len(rows)} steps, so nothing is learned; answers: {told}; "
      f"{cure(most, self._config)}"
    )

  def summary(self) -> dict[str, str]:
    """For the run's summary: `unpaid` with the reason, which is also warned of, where no step had any reward."""
    if not self._rows or any(map(_paid, self._rows)):
      return {}
    why = self._why(self._rows)
    _LOG.warning("the run ends as it began: %s", why)
    return {"unpaid": why}


def _paid(row: Mapping) -> bool:
  """Was any response of this step paid something but 0?"""
  return bool(row["reward"]) or bool(row["reward_std"])
