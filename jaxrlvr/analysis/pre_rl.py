"""What samples of a policy show before RL: which problems can teach it, and whether its votes would be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.analysis.passk import evaluation_figures, mean, with_interval


def measure(records: Sequence[Mapping], samples: int, ks: Sequence[int]) -> tuple[dict[str, float], list[int]]:
  """Returns (figures by name, histogram); histogram[n] is the number of problems solved n times, n = 0..samples.

  records: a row of each response, as evaluation writes them to evals/, with `problem`, `scored`, `true_reward`,
  `answer` (None: it holds no answer), `cluster` (a number that equal answers to the problem share; None: no vote),
  `tokens`, `stop` ("length": cut off at the token limit), `faithfulness` (1, 0.5, 0 or None) and `certainty`
  (self-certainty, in nats). samples: responses to each problem. ks: the k of pass@k. A problem is solved as many times
  as scored responses to it have a true reward of 1. ValueError without any record.

  The figures are those of `passk.evaluation_figures` (avg@K, if_extracted@K, pass@k, maj@K, problems, mean_length,
  unscored, faithful, step_true) and, each as NAME, NAME_low and NAME_high with a 95 % interval over problems:
    usable, never, always  shares of problems solved 1 to samples - 1 times, never, and each time
    vote_right             share of problems whose most frequent answer is right
    vote_margin            mean number of votes by which that answer leads the next, as a share of the samples
    certainty_auc          mean over problems of the chance that a right response has a larger self-certainty than a
                           wrong one; 0.5: self-certainty does not tell them apart
    format, clipped        shares of responses with an answer, and of those cut off at the token limit
  usable_problems is the number of usable problems, without an interval. An undefined figure is nan. A problem without a
  scored response counts in none of usable, never, always and the histogram.
  """
  by_problem: dict[str, list[Mapping]] = {}
  for row in records:
    by_problem.setdefault(row["problem"], []).append(row)
  rows_P = list(by_problem.values())
  times_solved = [sum(map(_is_right, rows)) for rows in rows_P if _has_scored(rows)]
  votes = [vote(rows) for rows in rows_P]
  separations = [separation(_certainties(rows)) for rows in rows_P]
  usable = [0 < times < samples for times in times_solved]
  figures = evaluation_figures(records, ks)
  figures |= with_interval("usable", usable)
  figures |= with_interval("never", [times == 0 for times in times_solved])
  figures |= with_interval("always", [times == samples for times in times_solved])
  figures |= with_interval("vote_right", [right for right, _ in votes if right is not None])
  figures |= with_interval("vote_margin", [margin for _, margin in votes if margin is not None])
  figures |= with_interval("certainty_auc", [auc for auc in separations if auc is not None])
  figures |= with_interval("format", [_share_with_answer(rows) for rows in rows_P])
  figures |= with_interval("clipped", [_share_cut_off(rows) for rows in rows_P])
  figures["usable_problems"] = float(sum(usable))
  counts = Counter(times_solved)
  return figures, [counts[times] for times in range(samples + 1)]


def _is_right(row: Mapping) -> bool:
  return row["scored"] and row["true_reward"] == 1


def _has_scored(rows: Sequence[Mapping]) -> bool:
  return any(row["scored"] for row in rows)


def _certainties(rows: Sequence[Mapping]) -> list[tuple[float, bool]]:
  """Returns (self-certainty, whether it is right) of each scored response."""
  return [(row["certainty"], _is_right(row)) for row in rows if row["scored"]]


def _share_with_answer(rows: Sequence[Mapping]) -> float:
  return mean([row["answer"] is not None for row in rows])


def _share_cut_off(rows: Sequence[Mapping]) -> float:
  return mean([row["stop"] == "length" for row in rows])


def vote(rows: Sequence[Mapping]) -> tuple[float | None, float | None]:
  """Holds a majority vote among one problem's responses. Returns (1.0 if the winning answer is right else 0.0, margin).

  rows: the problem's responses, each with `cluster` (a number that equal answers share; None: it does not vote),
  `scored` (whether it could be graded) and `true_reward` (1 for a right one).

  The margin is the number of votes by which the winner leads the next answer, divided by the number of responses. Of
  equally frequent answers the one that was seen first wins. The first value is None where the winner could not be
  graded; both are None where no response votes (its cluster is None).
  """
  counts = Counter(row["cluster"] for row in rows if row["cluster"] is not None).most_common(2)
  if not counts:
    return None, None
  winner, winner_votes = counts[0]
  second_votes = counts[1][1] if len(counts) > 1 else 0
  margin = (winner_votes - second_votes) / len(rows)
  first_of_winner = next(row for row in rows if row["cluster"] == winner)
  if not first_of_winner["scored"]:
    return None, margin
  return float(_is_right(first_of_winner)), margin


def separation(pairs: Sequence[tuple[float, bool]]) -> float | None:
  """Returns the AUC of a value that should tell right responses from wrong ones, from (value, is right) of each.

  That is the chance that a right response has a larger value than a wrong one, where a tie counts one half: 1 where all
  right ones have larger values, 0.5 where the value tells nothing. None unless there are both a right and a wrong
  response.
  """
  right = np.array([value for value, is_right in pairs if is_right])
  wrong = np.array([value for value, is_right in pairs if not is_right])
  if not len(right) or not len(wrong):
    return None
  return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))
