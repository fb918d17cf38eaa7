"""Accuracy over repeated samples of each problem (avg@K, pass@k, maj@K) and how far a figure can be trusted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gain(NamedTuple):
  """after - before as a mean over problems, with the ends of its interval."""

  gain: float
  low: float
  high: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> np.ndarray:
  """Chance that k of n samples, drawn without putting back, hold one of the c right ones: 1 - C(n-c, k) / C(n, k).

  Arguments broadcast. 0 where c = 0, and 1 where c > 0 but fewer than k are wrong: so also for k > n, where the
  estimator has no meaning and the caller should leave the problem out.
  """
  n, c, k = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (n, c, k)))
  if ((c < 0) | (c > n) | (k < 1)).any():
    raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 0 <= c <= n and k >= 1")
  sure = (c > 0) & (n - c < k)
  few, many = np.where(sure, 0, np.minimum(c, k)), np.maximum(c, k)  # the quotient stays if c and k change places
  log_miss = np.zeros(n.shape)
  for i in range(few.max(initial=0)):
    open_ = i < few
    log_miss += np.log1p(-np.where(open_, many, 0) / np.where(open_, n - i, 1))
  return np.where(sure, 1.0, -np.expm1(log_miss))[()]


def maj_at_k(clusters: Sequence[int | None], right: Sequence[float]) -> float:
  """1.0 iff the most frequent answer of one problem's samples is right, else 0.0.

  `clusters` says which answers are the same (`grading.vote`); None doesn't vote; of a tie the answer seen first wins;
  it is as right as the first sample that gave it. 0.0 where nobody voted.
  """
  voted = [(c, r) for c, r in zip(clusters, right, strict=True) if c is not None]
  if not voted:
    return 0.0
  winner = Counter(c for c, _ in voted).most_common(1)[0][0]  # of equals, the first seen
  return float(next(r for c, r in voted if c == winner) == 1.0)


def bootstrap(
  values_P: Sequence[float] | np.ndarray,
  statistic: Callable = np.mean,
  draws: int = 2000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile interval of statistic(values_P) under redrawing problems; (nan, nan) without any value.

  A draw in which the statistic is undefined (nan) is left out.
  """
  values_P = np.asarray(values_P, np.float64)
  if not len(values_P):
    return float("nan"), float("nan")
  draw, count = np.random.default_rng(seed), len(values_P)
  drawn = np.array([statistic(values_P[draw.integers(count, size=count)]) for _ in range(draws)])
  drawn = drawn[~np.isnan(drawn)]
  return interval(drawn, level) if len(drawn) else (float("nan"), float("nan"))


def redrawn(values_PS: Sequence[Sequence[float]] | np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
  """Means over problems [draws, S], each of as many problems drawn with replacement: the same ones for all columns.

  The same seed and number of problems draw the same, so that differences of two are paired.
  """
  values_PS = np.asarray(values_PS, np.float64)
  P = len(values_PS)
  return np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), draws) @ values_PS / P


def interval(drawn_D: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """Ends of the percentile interval of redrawn statistics."""
  low, high = np.quantile(drawn_D, ((1 - level) / 2, (1 + level) / 2))
  return float(low), float(high)


def paired_gain(before_P: Sequence[float] | np.ndarray, after_P: Sequence[float] | np.ndarray, **how) -> Gain:
  """Mean of after - before over the same problems in the same order; `how` goes to `bootstrap`."""
  before_P, after_P = np.asarray(before_P, np.float64), np.asarray(after_P, np.float64)
  if before_P.shape != after_P.shape:
    raise ValueError(f"paired_gain: {before_P.shape} against {after_P.shape} values; pass those of the same problems")
  return Gain(mean(after_P - before_P), *bootstrap(after_P - before_P, **how))


def problem_means(records: Iterable[Mapping]) -> dict[str, float]:
  """Mean true reward of each problem's scored samples, in the order of first sight; without any it is left out."""
  scores = defaultdict(list)
  for row in records:
    if row["scored"]:
      scores[row["problem"]].append(row["true_reward"])
  return {problem: mean(values) for problem, values in scores.items()}


def evaluation_figures(records: Sequence[Mapping], ks: Sequence[int]) -> dict[str, float]:
  """Figures of one evaluated set by name (avg@K, pass@k, maj@K, format, ...); K: samples a problem; nan: undefined.

  if_extracted@K is avg@K over the responses that hold an answer: what is left of a gain that is not one of format.

  An unscored row is never wrong: it is taken out of its problem's n and c and doesn't vote, so pass@k estimates from
  the smaller n, and leaves out a problem with n < k. Right means a score of exactly 1; avg@K keeps fractions.
  """
  if not records:
    raise ValueError("evaluation_figures: no record; an evaluation needs at least one problem and one sample")
  samples, scored = Counter(row["problem"] for row in records), defaultdict(list)
  for row in records:
    if row["scored"]:
      scored[row["problem"]].append(row)
  n_P = np.array([len(rows) for rows in scored.values()], np.int64)
  c_P = np.array([sum(row["true_reward"] == 1.0 for row in rows) for rows in scored.values()], np.int64)
  means_P = list(problem_means(records).values())
  votes_P = [maj_at_k([r["cluster"] for r in rows], [r["true_reward"] for r in rows]) for rows in scored.values()]
  judged = [row["faithfulness"] == 1 for row in records if row["faithfulness"] is not None]
  K = max(samples.values())
  found = with_interval(f"avg@{K}", means_P)
  extracted = problem_means(row for row in records if row["answer"] is not None)
  found |= with_interval(f"if_extracted@{K}", list(extracted.values()))
  for k in ks:
    found |= with_interval(f"pass@{k}", pass_at_k(n_P[n_P >= k], c_P[n_P >= k], k))
  return found | {
    "problems": float(len(samples)),
    f"maj@{K}": mean(votes_P),
    "format": mean([row["answer"] is not None for row in records]),
    "mean_length": mean([row["tokens"] for row in records]),
    "clipped": mean([row["stop"] == "length" for row in records]),
    "unscored": mean([not row["scored"] for row in records]),
    "faithful": mean(judged),
    "step_true": mean([row["step_true"] for row in records if row.get("step_true") is not None]),
  }


def with_interval(name: str, values_P: Sequence[float] | np.ndarray, statistic: Callable = np.mean) -> dict[str, float]:
  """A statistic over problems as NAME, NAME_low, NAME_high; nan without any value."""
  low, high = bootstrap(values_P, statistic)
  value = statistic(np.asarray(values_P, np.float64)) if len(values_P) else np.nan
  return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def mean(values: Sequence[float] | np.ndarray) -> float:
  return float(np.mean(values)) if len(values) else float("nan")
