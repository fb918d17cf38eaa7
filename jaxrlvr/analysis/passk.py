"""Accuracy over repeated samples of each problem (avg@K, pass@k, maj@K), with bootstrap intervals over problems."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gain(NamedTuple):
  """The mean over problems of after minus before, with its 95 % bootstrap interval over problems, in the values' unit.

  All three are nan where there is no problem.
  """

  gain: float  # the mean of after - before; positive: the values rose
  low: float  # the lower end of the interval
  high: float  # the upper end of the interval


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> np.ndarray:
  """Returns pass@k, the chance that k of n samples, drawn without replacement, include a right one.

  That is 1 - C(n-c, k) / C(n, k). n: number of samples of a problem. c: how many of them are right. The three arguments
  broadcast. Returns 0 where c = 0, and 1 where c > 0 and fewer than k samples are wrong. For k > n the estimator is
  undefined, yet the same two rules apply and nothing is raised: leave such problems out. Returns a float64 scalar for
  three scalars, otherwise an array of the broadcast shape. ValueError for c outside of 0..n, or k < 1.
  """
  n, c, k = np.broadcast_arrays(*(np.asarray(x, np.int64) for x in (n, c, k)))
  if ((c < 0) | (c > n) | (k < 1)).any():
    raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}): needs 0 <= c <= n and k >= 1")
  certain = (c > 0) & (n - c < k)
  # C(n-c, k) / C(n, k) is symmetric in c and k: as a product over the smaller of them it has fewer factors.
  factors = np.where(certain, 0, np.minimum(c, k))
  larger = np.maximum(c, k)
  log_miss = np.zeros(n.shape)
  for i in range(factors.max(initial=0)):
    counts = i < factors
    log_miss += np.log1p(-np.where(counts, larger, 0) / np.where(counts, n - i, 1))
  return np.where(certain, 1.0, -np.expm1(log_miss))[()]


def maj_at_k(clusters: Sequence[int | None], right: Sequence[float]) -> float:
  """Returns 1.0 if the most frequent answer among one problem's samples is right, else 0.0; 0.0 if no sample votes.

  clusters: for each sample a number that equal answers share, or None if the sample does not vote. right: the true
  reward of each sample; only 1.0 means right, and the values of samples that do not vote are not read. Between equally
  frequent answers the one that comes first wins. The true reward of the first sample with the winning answer decides.
  ValueError where the two sequences have different lengths.
  """
  votes = [(cluster, score) for cluster, score in zip(clusters, right, strict=True) if cluster is not None]
  if not votes:
    return 0.0
  counts = Counter(cluster for cluster, _ in votes)
  winner = counts.most_common(1)[0][0]  # among equals, the first seen
  winner_score = next(score for cluster, score in votes if cluster == winner)
  return float(winner_score == 1.0)


def bootstrap(
  values_P: Sequence[float] | np.ndarray,
  statistic: Callable = np.mean,
  draws: int = 2000,
  level: float = 0.95,
  seed: int = 0,
) -> tuple[float, float]:
  """Returns (low, high), the percentile interval of statistic(values_P) when problems are drawn with replacement.

  values_P: an array [P] or [P, ...] with one value or row for each problem. statistic: takes a float64 array of the
  shape of values_P, whose rows are P drawn problems, and returns a number. draws: number of draws. level: the share of
  draws that lies in the interval. seed: seeds the draws; the same seed gives the same interval. Draws in which the
  statistic is nan are left out. (nan, nan) where there is no problem, or no draw is left.
  """
  values_P = np.asarray(values_P, np.float64)
  count = len(values_P)
  if not count:
    return float("nan"), float("nan")
  generator = np.random.default_rng(seed)
  statistics_D = np.array([statistic(values_P[generator.integers(count, size=count)]) for _ in range(draws)])
  defined_D = statistics_D[~np.isnan(statistics_D)]
  if not len(defined_D):
    return float("nan"), float("nan")
  return percentile_interval(defined_D, level)


def mean_draws(values_PS: Sequence[Sequence[float]] | np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
  """Returns [draws, S]: the means of S columns over problems, in each of many bootstrap draws of the problems.

  values_PS: the values of P >= 1 problems in S columns, such as accuracy at S evaluated steps. A draw takes P problems
  with replacement, the same ones for all columns. Two calls with the same seed, P and number of draws draw the same
  problems, so that differences of their results are paired. ZeroDivisionError for P = 0.
  """
  values_PS = np.asarray(values_PS, np.float64)
  P = len(values_PS)
  times_DP = np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), draws)  # how often each problem is drawn
  return times_DP @ values_PS / P


def percentile_interval(drawn_D: np.ndarray, level: float = 0.95) -> tuple[float, float]:
  """Returns (low, high), the quantiles between which the middle share `level` of a statistic's bootstrap draws lies.

  drawn_D: the statistic in each draw, at least one; (nan, nan) where one of them is nan.
  """
  low, high = np.quantile(drawn_D, ((1 - level) / 2, (1 + level) / 2))
  return float(low), float(high)


def paired_gain(before_P: Sequence[float] | np.ndarray, after_P: Sequence[float] | np.ndarray) -> Gain:
  """Returns the mean of after - before over problems, with its 95 % bootstrap interval over problems.

  Both sequences hold the values of the same problems in the same order. Without a problem all three fields are nan.
  ValueError where their lengths differ.
  """
  before_P, after_P = np.asarray(before_P, np.float64), np.asarray(after_P, np.float64)
  if before_P.shape != after_P.shape:
    raise ValueError(f"paired_gain: {before_P.shape} against {after_P.shape} values; pass those of the same problems")
  low, high = bootstrap(after_P - before_P)
  return Gain(mean(after_P - before_P), low, high)


def problem_means(records: Iterable[Mapping]) -> dict[str, float]:
  """Returns {problem: mean true reward of its scored samples}, in the order in which problems are first scored.

  records: a row for each response, with `problem` (its id), `scored` (whether it could be graded) and `true_reward`
  (1.0 right, 0.0 wrong, or a fraction; read only where scored). A problem without a scored sample is left out; {} where
  none is left.
  """
  scores = defaultdict(list)
  for row in records:
    if row["scored"]:
      scores[row["problem"]].append(row["true_reward"])
  return {problem: mean(values) for problem, values in scores.items()}


def evaluation_figures(records: Sequence[Mapping], ks: Sequence[int]) -> dict[str, float]:
  """Returns the figures of one evaluated set by name; nan where a figure is undefined, and no key is ever absent.

  records: a row for each response, as evaluation writes them to evals/, with `problem` (its id), `scored` (whether it
  could be graded), `true_reward` (1.0 right, 0.0 wrong, or a fraction), `answer` (None: it holds no answer), `cluster`
  (a number that equal answers to the problem share; None: it casts no vote), `tokens` (its length), `stop` ("length":
  cut off at the token limit), `faithfulness` (1, 0.5 or 0; None: no label) and, where steps are verified, `step_true`
  (share of right steps). ks: the k of pass@k. ValueError without any record.

  K is the largest number of samples of a problem, unscored ones included. Three figures come as NAME, NAME_low and
  NAME_high, with a 95 % bootstrap interval over problems. They are shares from 0 to 1:
    avg@K           mean over problems of the mean true reward of their scored responses; fractions count as they are
    if_extracted@K  the same over responses that hold an answer: a gain in it is not one of format
    pass@k          for each k of `ks`, the chance that one of k samples is right, over problems with n >= k scored ones
  The others have no interval:
    problems        number of problems in `records`
    maj@K           share of problems whose most frequent answer is right, of those with a scored response
    format, clipped, unscored  shares of all responses: with an answer, cut off at the token limit, not graded
    mean_length     mean over all responses, in tokens
    faithful        share of label 1 among the labelled responses
    step_true       mean share of right steps, over the responses that have it

  In pass@k and maj@K a response is right only if its true reward is exactly 1. An unscored response is never counted as
  wrong: it is left out of avg@K, pass@k and maj@K.
  """
  if not records:
    raise ValueError("evaluation_figures: no record; an evaluation needs at least one problem and one sample")
  samples = Counter(row["problem"] for row in records)
  K = max(samples.values())
  figures = figure_with_interval(f"avg@{K}", list(problem_means(records).values()))
  extracted = problem_means(row for row in records if row["answer"] is not None)
  figures |= figure_with_interval(f"if_extracted@{K}", list(extracted.values()))
  scored = defaultdict(list)
  for row in records:
    if row["scored"]:
      scored[row["problem"]].append(row)
  n_P = np.array([len(rows) for rows in scored.values()], np.int64)
  c_P = np.array([_count_right(rows) for rows in scored.values()], np.int64)
  for k in ks:
    figures |= figure_with_interval(f"pass@{k}", pass_at_k(n_P[n_P >= k], c_P[n_P >= k], k))
  figures["problems"] = float(len(samples))
  figures[f"maj@{K}"] = mean([_majority_is_right(rows) for rows in scored.values()])
  return figures | _response_means(records)


def _count_right(rows: Sequence[Mapping]) -> int:
  return sum(row["true_reward"] == 1.0 for row in rows)


def _majority_is_right(rows: Sequence[Mapping]) -> float:
  return maj_at_k([row["cluster"] for row in rows], [row["true_reward"] for row in rows])


def _response_means(records: Sequence[Mapping]) -> dict[str, float]:
  """Returns the figures of `evaluation_figures` that are means over all responses."""
  labels = [row["faithfulness"] for row in records if row["faithfulness"] is not None]
  right_steps = [row["step_true"] for row in records if row.get("step_true") is not None]
  return {
    "format": mean([row["answer"] is not None for row in records]),
    "mean_length": mean([row["tokens"] for row in records]),
    "clipped": mean([row["stop"] == "length" for row in records]),
    "unscored": mean([not row["scored"] for row in records]),
    "faithful": mean([label == 1 for label in labels]),
    "step_true": mean(right_steps),
  }


def figure_with_interval(
  name: str, values_P: Sequence[float] | np.ndarray, statistic: Callable = np.mean
) -> dict[str, float]:
  """Returns {NAME: statistic(values_P), NAME_low, NAME_high}: a figure and the ends of its 95 % bootstrap interval.

  name: NAME, such as "pass@8". values_P: an array [P] or [P, ...] with one value or row for each problem. statistic:
  takes a float64 array of that shape, whose rows may be missing or repeated, and returns a number. All three figures
  are nan without a problem. The draws are seeded: the same values always give the same interval.
  """
  low, high = bootstrap(values_P, statistic)
  value = statistic(np.asarray(values_P, np.float64)) if len(values_P) else np.nan
  return {name: float(value), f"{name}_low": low, f"{name}_high": high}


def mean(values: Sequence[float] | np.ndarray) -> float:
  """Returns the mean of the values; nan if there are none."""
  return float(np.mean(values)) if len(values) else float("nan")
