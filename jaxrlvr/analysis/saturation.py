"""When the training reward stops rising, and how much evaluation gains before and after that (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

T_SAT_SHARE = 0.99  # of the largest reward: reached, a run counts as saturated
SHARE_OF_RISE = 0.9  # of the way from the first reward to the largest mean: reached at t90
T90_WINDOW = 7  # steps that such a mean is taken over, of which t90 names the middle one
CLEARLY = 4.0  # standard errors that a rise must have, or it is noise


@dataclasses.dataclass(frozen=True)
class Saturation:
  """t_sat and what evaluation M says about it, in M's unit; None where undefined; `note` says why, or what to mind."""

  t_sat: int | None  # first t <= T - tail with reward_t >= 0.99 max reward; steps count from 1
  reward_max: float | None
  value: float | None = None  # M(t_sat), on the line between the evaluations `between`
  between: tuple[int, int] | None = None  # evaluation steps at or around t_sat
  gain: float | None = None  # M(t_sat) - M(0), pre-saturation
  residual: float | None = None  # max of M over [t_sat, T], M(t_sat) among it, - M(t_sat): never below 0
  note: str = ""


def saturation(reward_T: Sequence[float | None], evals: Mapping[int, float], tail: int = 50) -> Saturation:
  """Saturation of a run whose step t = 1..T had mean training reward reward_T[t - 1] and evaluations {step: M}."""
  reward_T = np.array([np.nan if r is None else r for r in reward_T], np.float64)
  T = len(reward_T)
  if not np.isfinite(reward_T).any():
    return Saturation(None, None, note="no training reward was logged")
  reward_max = float(np.nanmax(reward_T))
  reached = np.flatnonzero(reward_T >= T_SAT_SHARE * reward_max) + 1
  if T <= tail:
    return Saturation(None, reward_max, note=f"{T} steps: saturation is not looked for in the last {tail}")
  if not len(reached):
    return Saturation(None, reward_max, note=f"undefined: the largest reward, {reward_max:.3g}, is below 0")
  t_sat = int(reached[0])
  if t_sat > T - tail:
    told = f"not saturated: 99% of the largest reward is first reached at step {t_sat}, in the last {tail} of {T}"
    return Saturation(None, reward_max, note=told)
  value = value_at(evals, t_sat)
  if value is None:
    return Saturation(t_sat, reward_max, note=f"no evaluations on both sides of step {t_sat}")
  between = (max(s for s in evals if s <= t_sat), min(s for s in evals if s >= t_sat))
  gain = value - evals[0] if 0 in evals else None
  residual = max([value, *(m for s, m in evals.items() if t_sat <= s <= T)]) - value
  note = ["no reward is above 0, and so the first has 99% of the largest"] * (reward_max == 0)
  note += ["no evaluation at step 0"] * (gain is None)
  return Saturation(t_sat, reward_max, value, between, gain, residual, "; ".join(note))


def value_at(evals: Mapping[int, float], step: int) -> float | None:
  """M(step) on the straight line between the neighbouring evaluations; None outside of them."""
  steps = sorted(evals)
  found_1 = column_at(np.array([[evals[s] for s in steps]]), steps, step)
  return None if found_1 is None else float(found_1[0])


def gap(large: Mapping[int, float], small: Mapping[int, float], t_sat: int | None) -> float | None:
  """G(n', n) = M_n' - M_n, both read at t_sat of the run with n < n' problems; None where one can't be read."""
  values = (None, None) if t_sat is None else (value_at(large, t_sat), value_at(small, t_sat))
  return None if None in values else values[0] - values[1]


def column_at(M_DS: np.ndarray, steps: Sequence[int], step: int) -> np.ndarray | None:
  """`value_at` of many redrawn curves [D, S] over the same ascending evaluation steps."""
  if not len(steps) or not steps[0] <= step <= steps[-1]:
    return None
  right = int(np.searchsorted(steps, step))
  if steps[right] == step:
    return M_DS[:, right]
  left, share = right - 1, (step - steps[right - 1]) / (steps[right] - steps[right - 1])
  return (1 - share) * M_DS[:, left] + share * M_DS[:, right]


def phases(M_DS: np.ndarray, steps: Sequence[int], t_sat: int, T: int) -> tuple[np.ndarray | None, np.ndarray | None]:
  """(gain, residual) [D] of redrawn curves, as `saturation` reads them from one; None where undefined."""
  value_D = column_at(M_DS, steps, t_sat)
  if value_D is None:
    return None, None
  later_DS = M_DS[:, [t_sat <= s <= T for s in steps]]
  residual_D = np.column_stack([value_D, later_DS]).max(1) - value_D
  return (value_D - M_DS[:, list(steps).index(0)] if 0 in steps else None), residual_D


def drawn_gap(large: tuple, small: tuple, t_sat: int | None) -> np.ndarray | None:
  """`gap` [D] of redrawn (steps, curves or None) of both runs: paired where the problems are the same."""
  if t_sat is None or large[1] is None or small[1] is None:
    return None
  values = [column_at(M_DS, steps, t_sat) for steps, M_DS in (large, small)]
  return None if any(value is None for value in values) else values[0] - values[1]


def rises_clearly(reward_T: np.ndarray, width: int) -> bool:
  """Whether a mean over `width` successive rewards lies clearly above that of the first ones.

  Clearly is by 4 standard errors of the difference of two such means. The noise is that of successive rewards, which a
  slow rise hardly enters.
  """
  error = np.sqrt(np.mean(np.diff(reward_T) ** 2) / width)  # sqrt(2 / width) times the noise of one reward
  means = np.convolve(reward_T, np.full(width, 1 / width), "valid")
  return bool(means.max() - means[0] > CLEARLY * error)


class Time(NamedTuple):
  """A step with its 95 % interval. None: it lies behind T_eff, or can't be told (see `Timing`)."""

  step: int | None
  low: int | None
  high: int | None


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
  """When a run's reward saturates, and how surely."""

  state: str  # a key of STATES
  t_eff: int  # T - tail, the last step at which saturation is looked for
  redrawn: bool  # whether there are intervals; then an end None lies behind T_eff
  t_sat: Time  # of the paper's definition (`saturation`); None where the state is not "saturated"
  t90: Time  # first step at which a mean over 7 steps has gone 90 % of the way up; None: behind T_eff, or no rise


def timing(reward_T: Sequence[float | None], reward_DT: np.ndarray | None = None, tail: int = 50) -> Timing:
  """Returns t_sat and t90 of a run with mean rewards reward_T, steps 1..T, and whether they mean anything.

  reward_DT: the rewards redrawn (`redrawn_rewards`), from which the intervals come. There are none where it is None, or
  lacks a step that has a reward.
  The rise goes from the first reward to the largest mean over 7 successive rewards; steps without a reward are left
  out of means. It is clear if `rises_clearly` says so of means over 7 steps or over a third of all.
  """
  reward_T = np.array([np.nan if r is None else r for r in reward_T], np.float64)
  t_eff, finite_T = max(len(reward_T) - tail, 0), reward_T[np.isfinite(reward_T)]
  nothing = Time(None, None, None)
  if not len(finite_T):
    return Timing("not measured", t_eff, False, nothing, nothing)
  if len(finite_T) < 2 * T90_WINDOW:
    return Timing("too short", t_eff, False, nothing, nothing)
  if not any(rises_clearly(finite_T, width) for width in {T90_WINDOW, max(T90_WINDOW, len(finite_T) // 3)}):
    return Timing("no rise", t_eff, False, nothing, nothing)
  whole = reward_DT is not None and np.array_equal(np.isfinite(reward_DT).all(0), np.isfinite(reward_T))
  t_sat, t90 = (
    _timed(read(reward_T[None], t_eff)[0], read(np.asarray(reward_DT), t_eff) if whole else None)
    for read in (times_of_t_sat, times_of_t90)
  )
  if np.max(finite_T) < 0:
    return Timing("undefined", t_eff, whole, nothing, t90)
  return Timing("not saturated" if t_sat.step is None else "saturated", t_eff, whole, t_sat, t90)


def _timed(step: float, drawn_D: np.ndarray | None) -> Time:
  ends = () if drawn_D is None else np.percentile(drawn_D, (2.5, 97.5), method="inverted_cdf")
  at = [int(t) if np.isfinite(t) else None for t in (step, *ends)]
  return Time(*at) if len(at) == 3 else Time(at[0], None, None)


def times_of_t_sat(reward_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns t_sat [D] of many curves; inf where it lies behind step t_eff."""
  reached_DT = reward_DT >= T_SAT_SHARE * np.nanmax(reward_DT, axis=1, keepdims=True)
  return _first(reached_DT, t_eff)


def times_of_t90(reward_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns t90 [D] of many curves; inf where it lies behind step t_eff."""
  there_DT = np.isfinite(reward_DT)
  sums_DT = _window_sums(np.where(there_DT, reward_DT, 0.0))
  counts_DT = _window_sums(there_DT.astype(np.float64))
  mean_DT = np.where(counts_DT > 0, sums_DT / np.maximum(counts_DT, 1), -np.inf)
  top_D = mean_DT[:, T90_WINDOW // 2 : -(T90_WINDOW // 2)].max(1)
  first_D = np.take_along_axis(reward_DT, there_DT.argmax(1)[:, None], 1)[:, 0]
  level_D = first_D + SHARE_OF_RISE * (top_D - first_D)
  return _first(mean_DT >= level_D[:, None], t_eff)


def _window_sums(values_DT: np.ndarray) -> np.ndarray:
  """Returns sums over the T90_WINDOW steps around each; over fewer at the ends."""
  T, half = values_DT.shape[1], T90_WINDOW // 2
  until_DT = np.concatenate([np.zeros((len(values_DT), 1)), np.cumsum(values_DT, 1)], 1)
  begin_T, end_T = np.maximum(np.arange(T) - half, 0), np.minimum(np.arange(T) + half + 1, T)
  return until_DT[:, end_T] - until_DT[:, begin_T]


def _first(reached_DT: np.ndarray, t_eff: int) -> np.ndarray:
  """Returns the first step [D] that is reached, counted from 1; inf where there is none, or it lies behind t_eff."""
  step_D = np.where(reached_DT.any(1), reached_DT.argmax(1) + 1.0, np.inf)
  return np.where(step_D <= t_eff, step_D, np.inf)


def rewards_by_problem(rows: Sequence[Mapping], votes: int, group: int) -> dict[str, list[float]]:
  """Returns the rewards that count in a step's mean, by problem, from its rows of rollouts/.

  votes: samples drawn of a problem at a time, of which the first `group` are trained on. Unscored ones are left out.
  """
  found: dict[str, list[float]] = {}
  for row in rows:
    if row["reward"] is not None and np.isfinite(row["reward"]) and row["sample"] % votes < group:
      found.setdefault(row["problem"], []).append(float(row["reward"]))
  return found


def redrawn_rewards(recorded_T: Sequence[Mapping[str, Sequence[float]]], draws: int = 500, seed: int = 0) -> np.ndarray:
  """Returns mean rewards [draws, T] of redrawn rollouts; nan at steps without any.

  recorded_T: of each step 1..T the rewards of its responses by problem (`rewards_by_problem`). Where every step has
  the same problems, the responses of each are redrawn; else problems are chance too, and whole problems are redrawn.
  """
  draw = np.random.default_rng(seed)
  kept_T = [{problem: rewards for problem, rewards in step.items() if len(rewards)} for step in recorded_T]
  same_problems = len({frozenset(step) for step in kept_T if step}) == 1
  reward_DT = np.full((draws, len(kept_T)), np.nan)
  for t, step in enumerate(kept_T):
    if not step:
      continue
    count_P = np.array([len(rewards) for rewards in step.values()])
    if same_problems:
      sum_D = np.zeros(draws)
      for rewards in step.values():
        values, counts = np.unique(np.asarray(rewards, np.float64), return_counts=True)
        sum_D += draw.multinomial(len(rewards), counts / len(rewards), draws) @ values
      reward_DT[:, t] = sum_D / count_P.sum()
    else:
      sum_P = np.array([np.sum(rewards) for rewards in step.values()])
      times_DP = draw.multinomial(len(step), np.full(len(step), 1 / len(step)), draws)
      reward_DT[:, t] = (times_DP @ sum_P) / (times_DP @ count_P)
  return reward_DT


class MedianTime(NamedTuple):
  """The median of several runs' times, some of them right-censored."""

  runs: int
  reached: int  # runs whose time is known, so that the others' is larger than their T_eff
  median: float | None  # of Kaplan and Meier; None where too few are known
  at_least: float  # the median is at least this: that of all times, with T_eff in place of those not known; nan: no run


def median_time(times: Sequence[float | None], t_eff: Sequence[int]) -> MedianTime:
  """Returns the Kaplan-Meier median of times that are None where they lie behind the run's t_eff.

  Leave out the runs without a rise: they have no time. Where the survival curve is level at one half, the median is
  the middle of that level, as for a list of even length; None if no time ends the level.
  """
  if not len(times):
    return MedianTime(0, 0, None, float("nan"))
  known_R = np.array([time is not None for time in times])
  time_R = np.array([limit if time is None else time for time, limit in zip(times, t_eff, strict=True)], np.float64)
  at_least = float(np.median(time_R))
  surviving, level_began = 1.0, None
  for time in np.unique(time_R[known_R]):
    if level_began is not None:
      return MedianTime(len(times), int(known_R.sum()), (level_began + float(time)) / 2, at_least)
    at_risk = (time_R >= time).sum()
    surviving *= 1 - (known_R & (time_R == time)).sum() / at_risk
    if surviving < 0.5 - 1e-9:
      return MedianTime(len(times), int(known_R.sum()), float(time), at_least)
    if surviving < 0.5 + 1e-9:
      level_began = float(time)
  return MedianTime(len(times), int(known_R.sum()), None, at_least)
