"""Compares the reward that training pays with the true one; nothing that is trained on changes by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.analysis.passk import mean
from jaxrlvr.grading.vote import Election


def reward_metrics(
  value_PG: np.ndarray, scored_PG: np.ndarray, true_PG: np.ndarray, true_scored_PG: np.ndarray, binary: bool
) -> Mapping[str, float]:
  """Returns the mean true reward of a batch and, for a paid reward of 0 or 1, how often it errs.

  value_PG: the paid reward of P problems with G responses each. true_PG: the true reward; exactly 1 means right.
  scored_PG, true_scored_PG: bool arrays; False where the paid or the true reward could not be computed, whose value is
  then not read. binary: whether the paid reward is always 0 or 1.

  Keys: true_reward (mean over the responses that have one). Only if `binary`, over the responses that have both
  rewards:
    reward_accuracy      share that is paid and right, or neither
    false_positive_rate  share of the wrong responses that were paid
    false_negative_rate  share of the right responses that were not paid
  A mean of nothing is nan.
  """
  metrics = {"true_reward": mean(true_PG[true_scored_PG])}
  if binary:
    both, right, paid = scored_PG & true_scored_PG, true_PG == 1, value_PG == 1
    metrics["reward_accuracy"] = mean((paid == right)[both])
    metrics["false_positive_rate"] = mean(paid[both & ~right])
    metrics["false_negative_rate"] = mean(~paid[both & right])
  return metrics


def label_metrics(label_right_P: Sequence[float | None], elections_P: Sequence[Election] | None) -> Mapping[str, float]:
  """Returns how many labels of a batch's problems are right and, where votes made them, how clear these were.

  label_right_P: 1.0 where a problem's label is a right answer, 0.0 where it is wrong, None where that is not known.
  elections_P: the vote that made each problem's label; None where labels were not voted. A mean of nothing is nan.
  Keys: label_accuracy (share of right labels, among those of which it is known) and, only for voted labels:
    vote/majority_ratio  mean share of all samples of a problem that voted for the winning answer
    vote/margin          mean lead of the winning answer over the second, as a share of all samples
    vote/none            share of problems for which no sample voted
  """
  metrics = {"label_accuracy": mean([right for right in label_right_P if right is not None])}
  if elections_P is not None:
    metrics["vote/majority_ratio"] = mean([election.ratio for election in elections_P])
    metrics["vote/margin"] = mean([election.margin for election in elections_P])
    metrics["vote/none"] = mean([election.winner is None for election in elections_P])
  return metrics


def cause_metrics(cause_PG: Sequence[Sequence[str]]) -> Mapping[str, float]:
  """Returns the shares of responses that could not be read or took too long: {"unparseable": share, "timeout": share}.

  cause_PG: for P problems with G responses each, the cause that grading against the truth recorded: "" for a plain
  verdict; "unparseable" (no readable answer), "timeout", or another one, which counts in neither share. Both are nan
  without a response.
  """
  causes = [cause for row in cause_PG for cause in row]
  return {
    "unparseable": mean([cause == "unparseable" for cause in causes]),
    "timeout": mean([cause == "timeout" for cause in causes]),
  }
