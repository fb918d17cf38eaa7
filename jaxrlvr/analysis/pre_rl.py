"""What samples of a policy show before RL: which problems can teach it, and whether its votes would be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import evaluation_figures, figure_with_interval, mean


def measure(records: Sequence[Mapping], samples: int, ks: Sequence[int]) -> tuple[dict[str, float], list[int]]:
  """Returns (figures by name, histogram); histogram[n] is the number of problems solved n times, n = 0..samples.

  records: a row for each response, as evaluation writes them to evals/, with `problem`, `scored`, `true_reward`,
  `answer` (None: it holds no answer), `cluster` (a number that equal answers to the problem share; None: no vote),
  `tokens`, `stop` ("length": cut off at the token limit), `faithfulness` (1, 0.5, 0 or None) and `certainty`
  (self-certainty, in nats). samples: number of responses to each problem. ks: the k of pass@k. A problem is solved as
  often as scored responses to it have a true reward of exactly 1. ValueError without any record.

  The figures include all that `passk.evaluation_figures` returns: avg@K, if_extracted@K and pass@k with intervals;
  maj@K, problems, mean_length, unscored, faithful and step_true without. Added are, each as NAME, NAME_low and
  NAME_high with a 95 % interval over problems:
    usable, never, always  shares of problems solved 1 to samples - 1 times, never, and each time
    vote_right             share of problems whose most frequent answer is right
    vote_margin            mean number of votes by which that answer leads the next, as a share of the samples
    certainty_auc          mean over problems of the chance that a right response has a larger self-certainty than a
                           wrong one; 0.5: self-certainty does not tell them apart
    format, clipped        mean shares of a problem's responses that hold an answer, and that are cut off
  usable_problems is the number of usable problems, without an interval. An undefined figure is nan. A problem without a
  scored response counts in none of usable, never, always and the histogram; one with an unscored response is never in
  `always`.
  """
  by_problem: dict[str, list[Mapping]] = {}
  for row in records:
    by_problem.setdefault(row["problem"], []).append(row)
  rows_P = list(by_problem.values())
  times_solved = [sum(map(_is_right, rows)) for rows in rows_P if _has_scored(rows)]
  votes = [vote(rows) for rows in rows_P]
  aucs = [auc(_certainties(rows)) for rows in rows_P]
  usable = [0 < times < samples for times in times_solved]
  figures = evaluation_figures(records, ks)
  figures |= figure_with_interval("usable", usable)
  figures |= figure_with_interval("never", [times == 0 for times in times_solved])
  figures |= figure_with_interval("always", [times == samples for times in times_solved])
  figures |= figure_with_interval("vote_right", [held.right for held in votes if held.right is not None])
  figures |= figure_with_interval("vote_margin", [held.margin for held in votes if held.margin is not None])
  figures |= figure_with_interval("certainty_auc", [value for value in aucs if value is not None])
  figures |= figure_with_interval("format", [_share_with_answer(rows) for rows in rows_P])
  figures |= figure_with_interval("clipped", [_share_cut_off(rows) for rows in rows_P])
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


class Vote(NamedTuple):
  """The outcome of a majority vote among the responses to one problem."""

  right: float | None  # 1.0: the winning answer is right; 0.0: it is wrong; None: nobody voted, or it was not graded
  margin: float | None  # votes by which the winner leads the next answer / number of responses; None: nobody voted


def vote(rows: Sequence[Mapping]) -> Vote:
  """Holds a majority vote among the responses to one problem.

  rows: the problem's responses, each with `cluster` (a number that equal answers share; None: it does not vote),
  `scored` (whether it could be graded) and `true_reward` (exactly 1 for a right one). Between equally frequent answers
  the one that comes first wins; the lead is then 0. The first response with the winning answer decides whether it is
  right.
  """
  counts = Counter(row["cluster"] for row in rows if row["cluster"] is not None).most_common(2)
  if not counts:
    return Vote(None, None)
  winner, winner_votes = counts[0]
  second_votes = counts[1][1] if len(counts) > 1 else 0
  margin = (winner_votes - second_votes) / len(rows)
  first_of_winner = next(row for row in rows if row["cluster"] == winner)
  if not first_of_winner["scored"]:
    return Vote(None, margin)
  return Vote(float(_is_right(first_of_winner)), margin)


def auc(pairs: Sequence[tuple[float, bool]]) -> float | None:
  """Returns the AUC of a value that should tell right responses from wrong ones, by being larger for right ones.

  pairs: (value, whether it is right) for each response. The AUC is the chance that a right response has a larger value
  than a wrong one, where a tie counts one half; 0.5: the value tells nothing. None unless there are both a right and a
  wrong response.
  """
  right = np.array([value for value, is_right in pairs if is_right])
  wrong = np.array([value for value, is_right in pairs if not is_right])
  if not len(right) or not len(wrong):
    return None
  return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))
