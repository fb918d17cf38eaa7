"""The phase of a run while it goes on, and whether it ends there."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from jaxrlvr.analysis import passk, phase
from jaxrlvr.base import logbook

_LOG = logging.getLogger(__name__)
_GAIN = ("heldout_gain", "heldout_gain_low", "heldout_gain_high")
_ADVICE = {
  "memorising": "stop, and before RL try Thinking SFT, CPT on the domain, or more problems (`jaxrlvr diagnose` tells "
  "which)",
  "collapsed": "stop: what is paid is not what is right; take another reward, right labels, or a lower learning rate "
  "(config.rl.reward, config.rl.optim.lr)",
}


class Watch:
  """The phase of a run from the rows of its metrics alone: one that is resumed says what an unbroken one does."""

  def __init__(self, rows: Sequence[dict], before: Mapping[str, float], worthwhile: float, stop: bool):
    """`before`: the means of evaluation at step 0, by problem; `worthwhile`: the least gain worth having; `stop`:
    whether a decided memorising ends the run."""
    self._rows, self.before, self._worthwhile, self._stop = list(rows), before, worthwhile, stop
    self.phase = self._read()

  def __call__(self, step: int, metrics: Mapping, means: Mapping[str, float] | None = None) -> dict[str, float]:
    """Returns what this step's metrics have to tell of the phase; `means` of an evaluation at this step."""
    more: dict[str, float] = {}
    if means is not None:
      both = [name for name in self.before if name in means]
      gain = passk.paired_gain([self.before[name] for name in both], [means[name] for name in both])
      more = dict(zip(_GAIN, map(float, gain), strict=True))
    rewards = {name: float(metrics[name]) for name in ("reward", "true_reward")}
    self._rows.append(logbook.finite({"step": step, **rewards, **more}))  # as it is read back
    self.phase = self._read()
    claims = {claim: float(self.phase.claim == claim) for claim in ("learning", "memorising", "collapsed")}
    more |= {"saturated": math.nan if self.phase.reward == "early" else float(self.phase.reward == "saturated")}
    for claim, advice in _ADVICE.items():
      if claims[claim] and not any(row.get(claim) for row in self._rows):
        _LOG.warning("step %d: %s: %s; %s", step, claim, phase.CLAIMS[claim], advice)
    more |= claims
    self._rows[-1] |= more
    return more

  def _read(self) -> phase.Phase:
    gains = [passk.Gain(*(row[name] for name in _GAIN)) for row in self._rows if row.get(_GAIN[0]) is not None]
    rewards, true = ([row.get(name) for row in self._rows] for name in ("reward", "true_reward"))
    return phase.phase(rewards, true, gains[-1] if gains else None, len(self.before), self._worthwhile)

  @property
  def stops(self) -> bool:
    """Whether the run ends here. Only at a step that was evaluated."""
    last = self._rows[-1] if self._stop and self._rows else {}
    return bool(last.get("memorising")) and _GAIN[0] in last

  @property
  def told(self) -> str:
    """The phase as the progress line has it."""
    return f"{self.phase.claim} ({self.phase.reward})"

  def summary(self) -> dict:
    """Returns the last step, what is claimed, and why the run ended where it stopped itself."""
    step = self._rows[-1]["step"]
    found = {"steps": step, "phase": self.phase.claim}
    if self.stops:
      found["stopped"] = {"step": step, "why": f"memorising: {phase.CLAIMS['memorising']}; {_ADVICE['memorising']}"}
    return found
