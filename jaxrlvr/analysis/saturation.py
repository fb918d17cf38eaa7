"""When the training reward stops rising, and how much evaluation gains before and after that (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

T_SAT_SHARE = 0.99  # share of the largest reward at which a run counts as saturated
_SHARE_OF_RISE = 0.9  # share of the way from the first reward to the largest window mean at which t90 is reached
_T90_WINDOW = 7  # steps in each of these windows, of which t90 names the middle one
CLEARLY = 4.0  # a rise of fewer standard errors may be noise


@dataclasses.dataclass(frozen=True)
class Saturation:
  """The step at which a run saturates, and its evaluations M there.

  Figures are in M's unit. Where one is undefined it is None, and `note` says why.
  """

  t_sat: int | None  # first step whose reward has 99 % of the largest, counted from 1; None: none, or in the tail
  reward_max: float | None  # the largest mean reward of a step; None where no reward was logged
  value: float | None = None  # M(t_sat), interpolated between the evaluations `between`
  between: tuple[int, int] | None = None  # the last evaluated step <= t_sat and the first >= t_sat
  gain: float | None = None  # M(t_sat) - M(0), the gain before saturation
  residual: float | None = None  # max of M(t_sat) and of M at the evaluations in [t_sat, T], minus M(t_sat); >= 0
  note: str = ""  # what is undefined and why, or what a reader should mind


def saturation(reward_T: Sequence[float | None], evals: Mapping[int, float], tail: int = 50) -> Saturation:
  """Finds the step t_sat at which a run saturates, and reads its evaluations there.

  reward_T: the mean training reward of each step t = 1..T; None where none was logged. evals: {step: M} in any order, M
  a held-out figure such as accuracy; step 0 is before training. tail: number of last steps in which saturation is not
  looked for.

  t_sat is the first step whose reward has 99 % of the largest. It is None, with the reason in `note`, where no reward
  was logged, where the largest is below 0, or where that step lies in the tail. M is interpolated linearly between
  evaluated steps. Its figures are None without t_sat, or where t_sat lies outside of the evaluated steps; the gain also
  where step 0 was not evaluated. For a run whose reward never rose t_sat means nothing: `timing` tells that.
  """
  reward_T = np.array([np.nan if reward is None else reward for reward in reward_T], np.float64)
  T = len(reward_T)
  if not np.isfinite(reward_T).any():
    return Saturation(None, None, note="no training reward was logged")
  reward_max = float(np.nanmax(reward_T))
  if T <= tail:
    return Saturation(None, reward_max, note=f"{T} steps: saturation is not looked for in the last {tail}")
  saturated_steps = np.flatnonzero(reward_T >= T_SAT_SHARE * reward_max) + 1
  if not len(saturated_steps):
    return Saturation(None, reward_max, note=f"undefined: the largest reward, {reward_max:.3g}, is below 0")
  t_sat = int(saturated_steps[0])
  if t_sat > T - tail:
    note = f"not saturated: 99% of the largest reward is first reached at step {t_sat}, in the last {tail} of {T}"
    return Saturation(None, reward_max, note=note)
  return _read_evaluations(t_sat, reward_max, evals, T)


def _read_evaluations(t_sat: int, reward_max: float, evals: Mapping[int, float], T: int) -> Saturation:
  """Returns t_sat with the value, the gain and the residual of the evaluations {step: M}."""
  value = value_at(evals, t_sat)
  if value is None:
    return Saturation(t_sat, reward_max, note=f"no evaluations on both sides of step {t_sat}")
  last_before = max(step for step in evals if step <= t_sat)
  first_after = min(step for step in evals if step >= t_sat)
  later = [figure for step, figure in evals.items() if t_sat <= step <= T]
  residual = max([value, *later]) - value
  notes = []
  if reward_max == 0:
    notes.append("no reward is above 0, and so the first has 99% of the largest")
  gain = None
  if 0 in evals:
    gain = value - evals[0]
  else:
    notes.append("no evaluation at step 0")
  return Saturation(t_sat, reward_max, value, (last_before, first_after), gain, residual, "; ".join(notes))


def value_at(evals: Mapping[int, float], step: int) -> float | None:
  """Returns the value of one curve at a step, interpolated linearly between its steps.

  evals: the curve, {step: value} in any order. None before its first and after its last step, and for an empty curve.
  """
  steps = sorted(evals)
  value_1 = values_at(np.array([[evals[evaluated] for evaluated in steps]]), steps, step)
  return None if value_1 is None else float(value_1[0])


def large_small_gap(large: Mapping[int, float], small: Mapping[int, float], t_sat: int | None) -> float | None:
  """Returns the large-small gap G(n', n) = M_n' - M_n of two runs, in M's unit, both read at the small run's t_sat.

  large: evaluations {step: M} of the run with n' training problems. small: those of the run with n < n' training
  problems. t_sat: the step at which the small run saturates, None if it does not. M is interpolated linearly between
  evaluated steps. None where t_sat is None, or lies outside of the evaluated steps of either run.
  """
  if t_sat is None:
    return None
  large_value, small_value = value_at(large, t_sat), value_at(small, t_sat)
  if large_value is None or small_value is None:
    return None
  return large_value - small_value


def values_at(M_DS: np.ndarray, steps: Sequence[int], step: int) -> np.ndarray | None:
  """Returns the values [D] of D curves at a step, interpolated linearly between evaluated steps.

  M_DS: the values of the D curves at the S evaluated `steps`, which ascend. None before the first and after the last of
  these, and where there are none.
  """
  if not len(steps) or not steps[0] <= step <= steps[-1]:
    return None
  right = int(np.searchsorted(steps, step))
  if steps[right] == step:
    return M_DS[:, right]
  left = right - 1
  share = (step - steps[left]) / (steps[right] - steps[left])
  return (1 - share) * M_DS[:, left] + share * M_DS[:, right]


class CurveDraws(NamedTuple):
  """A run's evaluations in D bootstrap draws of the evaluated problems."""

  steps: Sequence[int]  # the evaluated steps, ascending
  M_DS: np.ndarray | None  # M in each of D draws at each of the S steps; None where responses were not recorded


class GainDraws(NamedTuple):
  """What a run gained, in each of D bootstrap draws: arrays [D] in the unit of its evaluations M; None: undefined."""

  until_t_sat: np.ndarray | None = None  # M(t_sat) - M(0)
  residual: np.ndarray | None = None  # the largest M from t_sat on, minus M(t_sat); never below 0
  to_the_end: np.ndarray | None = None  # the last evaluation minus the first


def gain_draws(curves: CurveDraws, t_sat: int | None, T: int) -> GainDraws:
  """Returns bootstrap draws [D] of a run's gain until t_sat, of its residual after it, and of its gain to the end.

  curves: the run's evaluations M in each of D draws. t_sat: the step at which the run saturates, None if it does not.
  T: the number of training steps; later evaluations do not count in the residual. M is interpolated linearly between
  evaluated steps. All three fields are None without draws or with fewer than two evaluations. The first two are None
  without t_sat or where it lies outside of the evaluated steps, and the first where step 0 was not evaluated.
  """
  steps, M_DS = curves
  if M_DS is None or len(steps) < 2:
    return GainDraws()
  to_the_end = M_DS[:, -1] - M_DS[:, 0]
  value_D = None if t_sat is None else values_at(M_DS, steps, t_sat)
  if value_D is None:
    return GainDraws(to_the_end=to_the_end)
  later_DS = M_DS[:, [t_sat <= step <= T for step in steps]]
  residual_D = np.column_stack([value_D, later_DS]).max(1) - value_D
  gain_D = value_D - M_DS[:, list(steps).index(0)] if 0 in steps else None
  return GainDraws(gain_D, residual_D, to_the_end)


def gap_draws(large: CurveDraws, small: CurveDraws, t_sat: int | None) -> np.ndarray | None:
  """Returns bootstrap draws [D] of the large-small gap M_n' - M_n, both evaluated at the small run's t_sat.

  large: evaluations of the run with more training problems (n') in each of D draws. small: those of the run with fewer
  (n). t_sat: the step at which the small run saturates, None if it does not. Draws are subtracted one by one: they are
  paired if both runs were evaluated on the same problems and drawn with the same seed. None where t_sat is None, lies
  outside of the evaluated steps of either run, or a run has no draws.
  """
  if t_sat is None or large.M_DS is None or small.M_DS is None:
    return None
  large_D = values_at(large.M_DS, large.steps, t_sat)
  small_D = values_at(small.M_DS, small.steps, t_sat)
  if large_D is None or small_D is None:
    return None
  return large_D - small_D


def rises_clearly(reward_T: np.ndarray, width: int) -> bool:
  """Returns whether some mean over `width` successive rewards lies clearly above the mean of the first `width` rewards.

  reward_T: finite rewards, at least two and at least `width` of them. Clearly means by more than 4 standard errors of a
  difference of two such means. The standard error is estimated from differences of successive rewards, so that a slow
  rise does not count as noise.
  """
  error = np.sqrt(np.mean(np.diff(reward_T) ** 2) / width)  # sqrt(2 / width) times the noise of one reward
  means = np.convolve(reward_T, np.full(width, 1 / width), "valid")
  return bool(means.max() - means[0] > CLEARLY * error)


class Time(NamedTuple):
  """A step, counted from 1, with the ends of its 95 % interval over draws of the rewards."""

  step: int | None  # None: it lies after T_eff, or the run has no such step (`Timing.state` says which)
  low: int | None  # the lower end; None: it lies after T_eff, or there is no interval (`Timing.has_intervals`)
  high: int | None  # the upper end, likewise


_UNKNOWN_TIME = Time(None, None, None)

# What can be said of a run's saturation. Keys: Timing.state.
STATES: Mapping[str, str] = {
  "saturated": "the reward rose, and t_sat lies within T_eff",
  "not saturated": "the reward rose, and t_sat lies behind T_eff: right-censored",
  "undefined": "the reward rose and stayed below 0, where 99 % of the largest is never reached",
  "no rise": "the reward never lay clearly above its first values, so that t_sat and t90 mean nothing",
  "too short": "fewer than 14 rewards: a rise can't be told from noise",
  "not measured": "no training reward was logged",
}


class Timing(NamedTuple):
  """When a run's reward saturates, and how certain that is."""

  # "saturated" (t_sat lies within T_eff), "not saturated" (after T_eff), "undefined" (the reward rose and stayed below
  # 0), "no rise", "too short" (fewer than 14 rewards) or "not measured" (no reward): the keys of STATES.
  state: str
  t_eff: int  # T - tail, the last step at which saturation is looked for
  has_intervals: bool  # if True, an end of an interval that is None lies after T_eff
  t_sat: Time  # first step with 99 % of the largest reward; its step is None unless the state is "saturated"
  t90: Time  # first step at which a mean over 7 steps has gone 90 % of the way up; its step is None: after T_eff


def timing(reward_T: Sequence[float | None], reward_DT: np.ndarray | None = None, tail: int = 50) -> Timing:
  """Finds t_sat and t90 of a run with their intervals, and says whether its reward rose at all.

  reward_T: the mean training reward of each step 1..T; None where none was logged. reward_DT: the same in D bootstrap
  draws (`reward_draws`), nan where none was logged, from which the intervals come. Without it, or if it is not finite
  at exactly the steps that have a reward, there are no intervals. tail: number of last steps in which saturation is not
  looked for; T_eff = T - tail.

  t_sat is the first step whose reward has 99 % of the largest. t90 is the first step at which the mean over the 7 steps
  around it has gone 90 % of the way from the first reward to the largest such mean; steps without a reward are left out
  of means. Both count from 1 and are None if they lie after T_eff. `state` is the first of these that holds:
    not measured   no reward was logged
    too short      there are fewer than 14 rewards
    no rise        no mean over 7 successive rewards, nor over a third of all, lies clearly (4 standard errors) above
                   the first such mean
    undefined      the reward rose and stayed below 0; there is a t90 all the same
    saturated      t_sat lies within T_eff
    not saturated  it lies after T_eff: t_sat is right-censored
  In the first three states both times are None.
  """
  reward_T = np.array([np.nan if reward is None else reward for reward in reward_T], np.float64)
  finite_T = reward_T[np.isfinite(reward_T)]
  t_eff = max(len(reward_T) - tail, 0)
  if not len(finite_T):
    return Timing("not measured", t_eff, False, _UNKNOWN_TIME, _UNKNOWN_TIME)
  if len(finite_T) < 2 * _T90_WINDOW:
    return Timing("too short", t_eff, False, _UNKNOWN_TIME, _UNKNOWN_TIME)
  widths = {_T90_WINDOW, max(_T90_WINDOW, len(finite_T) // 3)}
  if not any(rises_clearly(finite_T, width) for width in widths):
    return Timing("no rise", t_eff, False, _UNKNOWN_TIME, _UNKNOWN_TIME)
  has_draws = reward_DT is not None and np.array_equal(np.isfinite(reward_DT).all(0), np.isfinite(reward_T))
  drawn_DT = np.asarray(reward_DT) if has_draws else None
  t_sat = _time_with_interval(_times_of_t_sat, reward_T, drawn_DT, t_eff)
  t90 = _time_with_interval(_times_of_t90, reward_T, drawn_DT, t_eff)
  if np.max(finite_T) < 0:
    return Timing("undefined", t_eff, has_draws, _UNKNOWN_TIME, t90)
  state = "not saturated" if t_sat.step is None else "saturated"
  return Timing(state, t_eff, has_draws, t_sat, t90)


def _time_with_interval(
  times_of: Callable[[np.ndarray, int], np.ndarray], reward_T: np.ndarray, reward_DT: np.ndarray | None, t_eff: int
) -> Time:
  """Returns the time of the logged rewards, and its percentile interval over the draws where there are draws."""
  step = _step_or_none(times_of(reward_T[None], t_eff)[0])
  if reward_DT is None:
    return Time(step, None, None)
  low, high = np.percentile(times_of(reward_DT, t_eff), (2.5, 97.5), method="inverted_cdf")
  return Time(step, _step_or_none(low), _step_or_none(high))


def _step_or_none(step: float) -> int | None:
  return int(step) if np.isfinite(step) else None


def _times_of_t_sat(reward_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns t_sat [D] of D reward curves, the first step whose reward has 99 % of the curve's largest.

  reward_DT: the reward at each step 1..T, nan where none was logged; a curve needs at least one. Steps count from 1;
  inf where t_sat lies after step t_eff, or all rewards are below 0.
  """
  reached_DT = reward_DT >= T_SAT_SHARE * np.nanmax(reward_DT, axis=1, keepdims=True)
  return _first_reached(reached_DT, t_eff)


def _times_of_t90(reward_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns t90 [D] of D reward curves: the step at which a mean over 7 steps has gone 90 % of the way up.

  reward_DT: the reward at each step 1..T with T >= 7, nan where none was logged; a curve needs at least one. The way up
  goes from the first reward to the largest mean over 7 successive steps; t90 is the middle of the first window that has
  gone so far. Steps count from 1; inf where t90 lies after step t_eff.
  """
  finite_DT = np.isfinite(reward_DT)
  sums_DT = _window_sums(np.where(finite_DT, reward_DT, 0.0))
  counts_DT = _window_sums(finite_DT.astype(np.float64))
  mean_DT = np.where(counts_DT > 0, sums_DT / np.maximum(counts_DT, 1), -np.inf)
  half = _T90_WINDOW // 2
  top_D = mean_DT[:, half:-half].max(1)  # over whole windows alone
  first_finite_D = finite_DT.argmax(1)
  first_D = np.take_along_axis(reward_DT, first_finite_D[:, None], 1)[:, 0]
  level_D = first_D + _SHARE_OF_RISE * (top_D - first_D)
  return _first_reached(mean_DT >= level_D[:, None], t_eff)


def _window_sums(values_DT: np.ndarray) -> np.ndarray:
  """Returns the sum over the _T90_WINDOW steps around each step; over fewer at both ends."""
  D, T = values_DT.shape
  half = _T90_WINDOW // 2
  running_DT = np.concatenate([np.zeros((D, 1)), np.cumsum(values_DT, 1)], 1)
  begin_T = np.maximum(np.arange(T) - half, 0)
  end_T = np.minimum(np.arange(T) + half + 1, T)
  return running_DT[:, end_T] - running_DT[:, begin_T]


def _first_reached(reached_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns the first step [D] that is reached, counted from 1; inf where there is none up to t_eff."""
  step_D = np.where(reached_DT.any(1), reached_DT.argmax(1) + 1.0, np.inf)
  return np.where(step_D <= t_eff, step_D, np.inf)


def rewards_by_problem(rows: Sequence[Mapping], votes: int, group: int) -> dict[str, list[float]]:
  """Returns {problem: rewards} of one training step: the rewards whose mean is the step's reward.

  rows: a row for each response of the step, as training writes them to rollouts/, with `problem` (its id), `sample`
  (its number among the problem's responses, from 0) and `reward` (None: unscored). votes: number of samples of a
  problem that vote together, at least 1. group: the first `group` of these are trained on, and only their rewards are
  returned: those with sample % votes < group. Rewards that are None or not finite are left out, and so are problems
  without a reward.
  """
  rewards: dict[str, list[float]] = {}
  for row in rows:
    is_trained_on = row["sample"] % votes < group
    if row["reward"] is not None and np.isfinite(row["reward"]) and is_trained_on:
      rewards.setdefault(row["problem"], []).append(float(row["reward"]))
  return rewards


def reward_draws(recorded_T: Sequence[Mapping[str, Sequence[float]]], draws: int = 500, seed: int = 0) -> np.ndarray:
  """Returns [draws, T]: the mean reward of each training step in many bootstrap draws; nan at steps without a reward.

  recorded_T: {problem: rewards of its responses} for each step 1..T (`rewards_by_problem`); {} at a step without a
  reward. draws: number of draws. seed: seeds them; the same seed gives the same draws. If every step trains on the same
  problems, a draw takes the responses to each problem with replacement. If steps train on different problems, which
  problems a step had is chance as well: a draw takes its problems with replacement, each with all its responses. Steps
  are drawn independently of each other. The mean is over the responses that a draw takes.
  """
  generator = np.random.default_rng(seed)
  problems_of_steps = set()
  rewards_TP = []
  for step in recorded_T:
    rewards_of = {problem: rewards for problem, rewards in step.items() if len(rewards)}
    rewards_TP.append(list(rewards_of.values()))
    if rewards_of:
      problems_of_steps.add(frozenset(rewards_of))
  redraw = _redraw_responses if len(problems_of_steps) == 1 else _redraw_problems
  reward_DT = np.full((draws, len(rewards_TP)), np.nan)
  for t, rewards_P in enumerate(rewards_TP):
    if rewards_P:
      reward_DT[:, t] = redraw(rewards_P, draws, generator)
  return reward_DT


def _redraw_responses(rewards_P: Sequence[Sequence[float]], draws: int, generator: np.random.Generator) -> np.ndarray:
  """Returns mean rewards [draws], with the responses to each problem drawn with replacement."""
  sum_D = np.zeros(draws)
  for rewards in rewards_P:
    values, counts = np.unique(np.asarray(rewards, np.float64), return_counts=True)
    times_DV = generator.multinomial(len(rewards), counts / len(rewards), draws)
    sum_D += times_DV @ values
  return sum_D / sum(map(len, rewards_P))


def _redraw_problems(rewards_P: Sequence[Sequence[float]], draws: int, generator: np.random.Generator) -> np.ndarray:
  """Returns mean rewards [draws], with whole problems drawn with replacement."""
  count_P = np.array([len(rewards) for rewards in rewards_P])
  sum_P = np.array([np.sum(rewards) for rewards in rewards_P])
  P = len(rewards_P)
  times_DP = generator.multinomial(P, np.full(P, 1 / P), draws)
  return (times_DP @ sum_P) / (times_DP @ count_P)


class MedianTime(NamedTuple):
  """The median of several runs' times, where some runs were too short to reach theirs (right-censored)."""

  runs: int  # number of runs
  reached: int  # runs whose time is known; the others' times are larger than their t_eff
  median: float | None  # the Kaplan-Meier median; None where too few times are known
  at_least: float  # a lower bound of it: the median with t_eff in the place of unknown times; nan without a run


def median_time(times: Sequence[float | None], t_eff: Sequence[int]) -> MedianTime:
  """Returns the Kaplan-Meier median of a time, such as t_sat, over several runs.

  times: the time of each run, in steps; None where the run did not reach it by step `t_eff`. t_eff: the last step at
  which each run's time was looked for. Leave out the runs whose reward did not rise: they have no time. Without a run
  the median is None and `at_least` is nan. Where exactly half of the runs survive between two known times, the median
  is the middle of these, as for a list of even length; None if there is no later known time. ValueError where the
  sequences have different lengths.
  """
  if not len(times):
    return MedianTime(0, 0, None, float("nan"))
  known_R = np.array([time is not None for time in times])
  time_R = np.array([limit if time is None else time for time, limit in zip(times, t_eff, strict=True)], np.float64)
  median = _kaplan_meier_median(time_R, known_R)
  return MedianTime(len(times), int(known_R.sum()), median, float(np.median(time_R)))


def _kaplan_meier_median(time_R: np.ndarray, known_R: np.ndarray) -> float | None:
  """Returns the time at which one half of the runs survives; `time_R` is a lower bound where `known_R` is False."""
  surviving, level_began = 1.0, None
  for time in np.unique(time_R[known_R]):
    if level_began is not None:
      return (level_began + float(time)) / 2
    at_risk = (time_R >= time).sum()
    ended = (known_R & (time_R == time)).sum()
    surviving *= 1 - ended / at_risk
    if surviving < 0.5 - 1e-9:
      return float(time)
    if surviving < 0.5 + 1e-9:
      level_began = float(time)
  return None
