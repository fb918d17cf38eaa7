"""Where a run that goes on stands: what is claimed of it, and only where the intervals decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import Gain
from jaxrlvr.analysis.saturation import CLEARLY, T_SAT_SHARE, rises_clearly

LEAST_WINDOW = 10  # steps at least that are averaged over before a running curve is called anything
_THREE = 3  # what none of n draws shows has a share of at most 3 / n, with 95 % confidence
FULL, NEAR_ZERO = 0.9, 0.2  # of a reward from 0 to 1: it is full above the one, near zero below the other

# What can be claimed of a run. Keys: Phase.claim.
CLAIMS: Mapping[str, str] = {
  "learning": "held-out accuracy has gained since step 0: the interval of the gain lies above 0",
  "memorising": "the training reward has risen or is full, and the interval of the held-out gain excludes a gain worth "
  "having",
  "collapsed": "the true reward in training has clearly fallen, or is near 0 while the reward is full",
  "not decided": "none of these can be claimed yet",
}


class Phase(NamedTuple):
  """A claim, and what the training reward alone does."""

  claim: str  # a key of CLAIMS
  reward: str  # early, flat, rising or saturated


def reward_phase(reward_T: Sequence[float | None]) -> str:
  """Returns what the rewards so far do: early, flat, rising or saturated.

  Compared are means over windows of W rewards, W the third of those that are there (not None or nan), at least 10.
  early: there are fewer than 2 W, or none was above 0. flat: no window is clearly above the first one
  (`saturation.rises_clearly`). saturated: it has risen clearly, and a window that ended W steps ago or earlier already
  had 0.99 of the last one's mean; or, whatever it was before, each of the last 2 W rewards has 0.99 of the largest. So
  t_sat of the definition lies behind by W steps or more, and a rise that noise hides is not taken for a plateau. Else
  rising.
  """
  reward_T, width = _series(reward_T)
  if len(reward_T) < 2 * width or reward_T.max() <= 0:
    return "early"
  if _is_full(reward_T, width):
    return "saturated"
  if not rises_clearly(reward_T, width):
    return "flat"
  mean_T = _means(reward_T, width)
  levelled = mean_T[: len(mean_T) - width].max() >= T_SAT_SHARE * mean_T[-1]
  return "saturated" if levelled else "rising"


def phase(
  reward_T: Sequence[float | None],
  true_T: Sequence[float | None],
  gain: Gain | None,
  problems: int,
  worthwhile: float,
) -> Phase:
  """Returns the claim about a run with these training rewards and true rewards so far, and what its reward does.

  gain: of held-out accuracy since step 0 over `problems` problems, None before there is one. For a claim its interval
  is at least 3 / problems wide on either side: by the rule of three so many problems that change may have been left
  out of the draw of problems by chance. worthwhile: the least gain worth having. Compared means are over W steps, as in
  `reward_phase`, and clearly is by 4 standard errors of a difference. The first claim that holds is made.

  collapsed: the last mean of the true reward lies clearly, and by more than `worthwhile`, below its highest one; or the
  reward has risen or is full, its last mean is 0.9 or more, and that of the true reward, which has not risen clearly,
  is below 0.2 (both by a standard error at least). learning: the gain's interval lies above 0. memorising: the interval
  lies below `worthwhile`, and the reward is saturated, or its last mean lies clearly above its first one. not decided:
  all else.
  """
  state = reward_phase(reward_T)
  if _collapsed(state, reward_T, true_T, worthwhile):
    return Phase("collapsed", state)
  if gain is None or not np.isfinite(gain.gain) or not problems:
    return Phase("not decided", state)
  low, high = min(gain.low, gain.gain - _THREE / problems), max(gain.high, gain.gain + _THREE / problems)
  if low > 0:
    return Phase("learning", state)
  risen = state == "saturated" or (state == "rising" and _is_above_start(reward_T))
  return Phase("memorising" if risen and high < worthwhile else "not decided", state)


def _series(values_T: Sequence[float | None]) -> tuple[np.ndarray, int]:
  """Returns the values that are there, and the width of the windows that they are compared over."""
  values_T = np.array([np.nan if value is None else value for value in values_T], np.float64)
  values_T = values_T[np.isfinite(values_T)]
  return values_T, max(LEAST_WINDOW, len(values_T) // 3)


def _means(values_T: np.ndarray, width: int) -> np.ndarray:
  return np.convolve(values_T, np.full(width, 1 / width), "valid")


def _is_full(reward_T: np.ndarray, width: int) -> bool:
  """Whether each of the last two windows' rewards has 0.99 of the largest."""
  return bool(reward_T[-2 * width :].min() >= T_SAT_SHARE * reward_T.max())


def _is_above_start(reward_T: Sequence[float | None]) -> bool:
  """Whether the last window lies clearly above the first, so that a rise is not over."""
  reward_T, width = _series(reward_T)
  return rises_clearly(reward_T, width) and _fall(-reward_T, width) > _error(reward_T, width) * CLEARLY


def _error(values_T: np.ndarray, width: int) -> float:
  """The standard error of a difference of two windows' means, from successive values."""
  return float(np.sqrt(np.mean(np.diff(values_T) ** 2) / width))


def _fall(values_T: np.ndarray, width: int) -> float:
  mean_T = _means(values_T, width)
  return float(mean_T[0] - mean_T[-1])


def _collapsed(state: str, reward_T: Sequence, true_T: Sequence, worthwhile: float) -> bool:
  true_T, width = _series(true_T)
  if state == "early" or len(true_T) < 2 * width:
    return False
  mean_T = _means(true_T, width)
  fallen = mean_T.max() - mean_T[-1]
  if fallen > worthwhile and fallen > CLEARLY * _error(true_T, width):
    return True
  if state == "flat" or rises_clearly(true_T, width):
    return False
  reward_T, reward_width = _series(reward_T)
  least_paid = _means(reward_T, reward_width)[-1] - _error(reward_T, reward_width)
  return bool(least_paid >= FULL and mean_T[-1] + _error(true_T, width) < NEAR_ZERO)
