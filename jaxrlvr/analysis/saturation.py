"""When the training reward stops rising, and how much evaluation gains before and after that (paper, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

SHARE = 0.99  # of the largest reward: reached, a run counts as saturated


@dataclasses.dataclass(frozen=True)
class Saturation:
  """t_sat and what evaluation M says about it, in M's unit; None where undefined, and `note` says why."""

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
  return Saturation(t_sat, reward_max, value, between, gain, residual, "" if 0 in evals else "no evaluation at step 0")


def value_at(evals: Mapping[int, float], step: int) -> float | None:
  """M(step) on the straight line between the neighbouring evaluations; None outside of them."""
  steps = sorted(evals)
  if not steps or not steps[0] <= step <= steps[-1]:
    return None
  return float(np.interp(step, steps, [evals[s] for s in steps]))


def gap(large: Mapping[int, float], small: Mapping[int, float], t_sat: int | None) -> float | None:
  """G(n', n) = M_n' - M_n, both read at t_sat of the run with n < n' problems; None where one can't be read."""
  values = (None, None) if t_sat is None else (value_at(large, t_sat), value_at(small, t_sat))
  return None if None in values else values[0] - values[1]


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
