"""When the training reward stops rising, and how much evaluation gains before and after that (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.analysis.passk import Gain

SHARE = 0.99  # of the largest reward: reached, a run counts as saturated
_WINDOW = 10  # steps at least that are averaged over before a running curve is called anything
_CLEARLY = 4.0  # standard errors that a rise must have


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
  reached = np.flatnonzero(reward_T >= SHARE * reward_max) + 1
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


def phase(reward_T: Sequence[float | None], gain: Gain | None = None) -> str:
  """Where a run that goes on stands, by its rewards so far: early, flat, rising, saturated or memorising.

  Compared are means over windows of W rewards, W the third of those that are there (not None or nan), at least 10.
  early: there are fewer than 2 W, or none was above 0. flat: no window is clearly above the first one, that is by 4
  standard errors of such a difference (from successive rewards, which a slow rise hardly enters). saturated: it has
  risen clearly, and a window that ended W steps ago or earlier already had 0.99 of the last one's mean; or, whatever
  it was before, each of the last 2 W rewards has 0.99 of the largest. So t_sat of the definition lies behind by W steps
  or more, and a rise that noise hides is not taken for a plateau. Else rising.

  memorising: saturated, and `gain`, of evaluation over the same problems since step 0, has 0 or less in its interval;
  or risen clearly while all of that interval lies below 0.
  """
  reward_T = np.array([np.nan if r is None else r for r in reward_T], np.float64)
  reward_T = reward_T[np.isfinite(reward_T)]
  W = max(_WINDOW, len(reward_T) // 3)
  if len(reward_T) < 2 * W or reward_T.max() <= 0:
    return "early"
  means = np.convolve(reward_T, np.full(W, 1 / W), "valid")
  error = np.sqrt(np.mean(np.diff(reward_T) ** 2) / W)  # of a difference: sqrt(2 / W) times the noise of one reward
  full = reward_T[-2 * W :].min() >= SHARE * reward_T.max()
  risen = means.max() - means[0] > _CLEARLY * error
  saturated = full or (risen and means[: len(means) - W].max() >= SHARE * means[-1])
  if gain is not None and ((saturated and gain.low <= 0) or (risen and gain.high < 0)):
    return "memorising"
  return "saturated" if saturated else "rising" if risen else "flat"


def column_at(M_DS, steps: Sequence[int], step: int) -> np.ndarray | None:
  """`value_at` of many redrawn curves [D, S] over the same ascending evaluation steps."""
  if not len(steps) or not steps[0] <= step <= steps[-1]:
    return None
  right = int(np.searchsorted(steps, step))
  if steps[right] == step:
    return M_DS[:, right]
  left, share = right - 1, (step - steps[right - 1]) / (steps[right] - steps[right - 1])
  return (1 - share) * M_DS[:, left] + share * M_DS[:, right]


def phases(M_DS, steps: Sequence[int], t_sat: int, T: int) -> tuple[np.ndarray | None, np.ndarray | None]:
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
