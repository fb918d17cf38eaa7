"""Shadow truth: how a weak reward compares with the true one, at no change to what is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.analysis.passk import mean
from jaxrlvr.grading.vote import Election


def reward_metrics(
  value_PG: np.ndarray, scored_PG: np.ndarray, true_PG: np.ndarray, true_scored_PG: np.ndarray, binary: bool
) -> Mapping[str, float]:
  """The true reward and, for rewards of 0 and 1, how often the two agree and how the reward errs.

  false_positive_rate: share of truly wrong answers that were paid; false_negative_rate: of right ones that were not.
  """
  metrics = {"true_reward": mean(true_PG[true_scored_PG])}
  if binary:
    both, right, paid = scored_PG & true_scored_PG, true_PG == 1, value_PG == 1
    metrics |= {
      "reward_accuracy": mean((paid == right)[both]),
      "false_positive_rate": mean(paid[both & ~right]),
      "false_negative_rate": mean(~paid[both & right]),
    }
  return metrics


def label_metrics(label_right_P: Sequence[float | None], elections_P: Sequence[Election] | None) -> Mapping[str, float]:
  """Share of labels that are right answers; of voted ones also by how much they won, and how often nobody voted."""
  metrics = {"label_accuracy": mean([right for right in label_right_P if right is not None])}
  if elections_P is not None:
    metrics |= {
      "vote/majority_ratio": mean([e.ratio for e in elections_P]),
      "vote/margin": mean([e.margin for e in elections_P]),
      "vote/none": mean([e.winner is None for e in elections_P]),
    }
  return metrics


def cause_metrics(cause_PG: Sequence[Sequence[str]]) -> Mapping[str, float]:
  """Shares of answers that hold nothing to read, and of those that ran out of time against the true answer."""
  flat = [cause for row in cause_PG for cause in row]
  return {name: mean([cause == name for cause in flat]) for name in ("unparseable", "timeout")}
