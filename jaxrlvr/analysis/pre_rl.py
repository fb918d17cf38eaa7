"""What a policy shows before RL, from samples of it: which problems can teach it, whether its votes would be right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.analysis.passk import evaluation_figures, mean, with_interval


def measure(records: Sequence[Mapping], samples: int, ks: Sequence[int]) -> tuple[dict[str, float], list[int]]:
  """(figures by name, all with intervals over problems as NAME_low and NAME_high; problems by how often solved).

  Those of `passk.evaluation_figures`, and usable, never, always: shares of the problems solved 1 to samples - 1 times,
  never, always; vote_right, vote_margin: is the most frequent answer right, and its lead as a share of the samples,
  over the problems that somebody voted on; certainty_auc: `separation` inside of problems, their mean. nan: undefined.
  """
  by_problem: dict[str, list[Mapping]] = {}
  for row in records:
    by_problem.setdefault(row["problem"], []).append(row)
  rows_P = list(by_problem.values())
  solved = [sum(map(_right, rows)) for rows in rows_P if any(row["scored"] for row in rows)]
  votes = [vote(rows) for rows in rows_P]
  apart = [separation([(r["certainty"], _right(r)) for r in rows if r["scored"]]) for rows in rows_P]
  shares: dict[str, list] = {
    "usable": [0 < n < samples for n in solved],
    "never": [n == 0 for n in solved],
    "always": [n == samples for n in solved],
    "vote_right": [right for right, _ in votes if right is not None],
    "vote_margin": [margin for _, margin in votes if margin is not None],
    "certainty_auc": [x for x in apart if x is not None],
  }
  found = evaluation_figures(records, ks)
  for name, values in shares.items():
    found |= with_interval(name, values)
  for name, holds in (("format", lambda r: r["answer"] is not None), ("clipped", lambda r: r["stop"] == "length")):
    found |= with_interval(name, [mean([holds(row) for row in rows]) for rows in rows_P])
  counts = Counter(solved)
  return found | {"usable_problems": float(sum(shares["usable"]))}, [counts[n] for n in range(samples + 1)]


def _right(row: Mapping) -> bool:
  return row["scored"] and row["true_reward"] == 1


def vote(rows: Sequence[Mapping]) -> tuple[float | None, float | None]:
  """(is the most frequent answer right, its lead on the next one as a share of all samples) of one problem's samples.

  Of a tie the answer seen first wins. None: nobody could grade it; (None, None): nobody voted.
  """
  votes = Counter(row["cluster"] for row in rows if row["cluster"] is not None).most_common(2)
  if not votes:
    return None, None
  winner = next(row for row in rows if row["cluster"] == votes[0][0])
  margin = (votes[0][1] - (votes[1][1] if len(votes) > 1 else 0)) / len(rows)
  return float(_right(winner)) if winner["scored"] else None, margin


def separation(pairs: Sequence[tuple[float, bool]]) -> float | None:
  """AUC: the chance that a right response has a larger value than a wrong one, ties half; None without one of each."""
  right, wrong = (np.array([value for value, is_right in pairs if is_right == wanted]) for wanted in (True, False))
  if not len(right) or not len(wrong):
    return None
  return float(np.mean((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)))
