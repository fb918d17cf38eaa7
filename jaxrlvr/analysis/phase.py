"""The phase of a run that is still training: a claim about it that is made only where intervals decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import Gain
from jaxrlvr.analysis.saturation import CLEARLY, T_SAT_SHARE, rises_clearly

_LEAST_WINDOW = 10  # least number of steps in the windows whose means are compared
_RULE_OF_THREE = 3  # a property that none of n problems has is rarer than 3 / n, with 95 % confidence
FULL, NEAR_ZERO = 0.9, 0.2  # a reward between 0 and 1 is full from the first on, and near zero below the second

# What can be claimed of a run, with what each claim means. Keys: Phase.claim.
CLAIMS: Mapping[str, str] = {
  "learning": "held-out accuracy has gained since step 0: the interval of the gain lies above 0",
  "memorising": "the training reward has risen or is full, and the interval of the held-out gain excludes a gain worth "
  "having",
  "collapsed": "the true reward in training has clearly fallen, or is near 0 while the reward is full",
  "not decided": "none of these can be claimed yet",
}


class Phase(NamedTuple):
  """What is claimed of a run, and what its training reward does."""

  # "learning" (held-out accuracy has gained), "memorising" (the reward has, and a held-out gain worth having is ruled
  # out), "collapsed" (the true reward has fallen, or stays near 0 while the reward is full) or "not decided".
  claim: str
  reward: str  # "early" (too few rewards, or none above 0), "flat", "rising" or "saturated"


def reward_phase(reward_T: Sequence[float | None]) -> str:
  """Returns what the training rewards so far do: "early", "flat", "rising" or "saturated".

  reward_T: the mean reward of each step; None and values that are not finite are left out. Means over windows of W
  successive rewards are compared, where W is a third of the number of rewards and at least 10. The first rule that
  holds decides:
    early      there are fewer than 2 W rewards, or none is above 0
    saturated  each of the last 2 W rewards is at least 0.99 of the largest
    flat       no window's mean lies above the first window's by more than 4 standard errors of such a difference
    saturated  a window that ended at least W steps ago already had 0.99 of the last window's mean
    rising     otherwise
  A plateau is therefore noticed W steps or more after t_sat, and a rise that is lost in noise counts as flat.
  """
  reward_T, width = _finite_and_width(reward_T)
  if len(reward_T) < 2 * width or reward_T.max() <= 0:
    return "early"
  if _is_full(reward_T, width):
    return "saturated"
  if not rises_clearly(reward_T, width):
    return "flat"
  mean_T = _window_means(reward_T, width)
  highest_earlier = mean_T[: len(mean_T) - width].max()
  return "saturated" if highest_earlier >= T_SAT_SHARE * mean_T[-1] else "rising"


def phase(
  reward_T: Sequence[float | None],
  true_T: Sequence[float | None],
  gain: Gain | None,
  problems: int,
  worthwhile: float,
) -> Phase:
  """Decides what can be claimed of a run so far, from its rewards and its held-out gain.

  reward_T, true_T: the mean reward and the mean true reward of each training step; None and nan are left out. gain:
  held-out accuracy minus that at step 0, as a share, paired over problems; None before the second evaluation. problems:
  the number of problems that it is paired over. worthwhile: the least gain that is worth having, as a share.

  Windows are W successive steps, W a third of their number and at least 10. "Clearly" means by more than 4 standard
  errors of a difference of two windows' means. The gain's interval is widened to at least gain ± 3 / problems (rule of
  three), since a bootstrap over few problems may miss a change in so small a share of them. Without a gain, with a gain
  of nan, or with problems = 0, only "collapsed" can be claimed. Returns the reward's phase, as `reward_phase` names it,
  and the first claim that holds:
    collapsed    there are 2 W true rewards, the reward's phase is not "early", and one of two things holds: the true
                 reward of the last window lies below that of the highest one, clearly and by more than `worthwhile`; or
                 the run is paid for wrong answers: the reward, never above 1, is not "flat" and at least 0.9 in its
                 last window, while the true reward is below 0.2 there and has not risen clearly (0.9 and 0.2 are passed
                 by a standard error at least)
    learning     the gain's interval lies above 0
    memorising   the interval lies below `worthwhile`, and the reward is saturated or its last window lies clearly above
                 its first
    not decided  otherwise
  """
  state = reward_phase(reward_T)
  if _has_collapsed(state, reward_T, true_T, worthwhile):
    return Phase("collapsed", state)
  if gain is None or not np.isfinite(gain.gain) or not problems:
    return Phase("not decided", state)
  least_half_width = _RULE_OF_THREE / problems
  low = min(gain.low, gain.gain - least_half_width)
  high = max(gain.high, gain.gain + least_half_width)
  if low > 0:
    return Phase("learning", state)
  has_risen = state == "saturated" or (state == "rising" and _ends_above_start(reward_T))
  if has_risen and high < worthwhile:
    return Phase("memorising", state)
  return Phase("not decided", state)


def _finite_and_width(values_T: Sequence[float | None]) -> tuple[np.ndarray, int]:
  """Returns the values that are finite numbers, and the width W of the windows whose means are compared."""
  values_T = np.array([np.nan if value is None else value for value in values_T], np.float64)
  values_T = values_T[np.isfinite(values_T)]
  return values_T, max(_LEAST_WINDOW, len(values_T) // 3)


def _window_means(values_T: np.ndarray, width: int) -> np.ndarray:
  """Returns the mean of each window of `width` successive values, the first window first."""
  return np.convolve(values_T, np.full(width, 1 / width), "valid")


def _is_full(reward_T: np.ndarray, width: int) -> bool:
  """Returns whether each reward of the last two windows is at least 0.99 of the largest reward."""
  return bool(reward_T[-2 * width :].min() >= T_SAT_SHARE * reward_T.max())


def _ends_above_start(reward_T: Sequence[float | None]) -> bool:
  """Returns whether the last window's mean lies clearly above the first's: the reward rose and did not fall back."""
  reward_T, width = _finite_and_width(reward_T)
  mean_T = _window_means(reward_T, width)
  rise = float(mean_T[-1] - mean_T[0])
  return rises_clearly(reward_T, width) and rise > _standard_error(reward_T, width) * CLEARLY


def _standard_error(values_T: np.ndarray, width: int) -> float:
  """Returns the standard error of a difference of two windows' means, estimated from successive differences."""
  return float(np.sqrt(np.mean(np.diff(values_T) ** 2) / width))


def _has_collapsed(state: str, reward_T: Sequence, true_T: Sequence, worthwhile: float) -> bool:
  """Returns whether "collapsed" holds, as `phase` states it; `state` is the reward's phase."""
  true_T, width = _finite_and_width(true_T)
  if state == "early" or len(true_T) < 2 * width:
    return False
  mean_T = _window_means(true_T, width)
  true_error = _standard_error(true_T, width)
  fall = mean_T.max() - mean_T[-1]
  if fall > worthwhile and fall > CLEARLY * true_error:
    return True
  if state == "flat" or rises_clearly(true_T, width):
    return False
  reward_T, reward_width = _finite_and_width(reward_T)
  if reward_T.max() > 1:  # its range is not 0 to 1, so nobody knows when it is full
    return False
  last_reward = _window_means(reward_T, reward_width)[-1]
  is_paid = last_reward - _standard_error(reward_T, reward_width) >= FULL
  return bool(is_paid and mean_T[-1] + true_error < NEAR_ZERO)
