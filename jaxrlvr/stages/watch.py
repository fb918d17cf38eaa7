"""Follows the phase of a run (learning, memorising, collapsed) while it trains, and may end the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from jaxrlvr.analysis import passk, phase
from jaxrlvr.base import logbook

_LOG = logging.getLogger(__name__)
_GAIN = ("heldout_gain", "heldout_gain_low", "heldout_gain_high")  # the metrics of a `passk.Gain`, in its order
_ADVICE = {
  "memorising": "stop, and before RL try Thinking SFT, CPT on the domain, or more problems (`jaxrlvr diagnose` tells "
  "which)",
  "collapsed": "stop: what is paid is not what is right; take another reward, right labels, or a lower learning rate "
  "(config.rl.reward, config.rl.optim.lr)",
}


class Watch:
  """Decides the phase of a run (`analysis.phase`) after each step.

  It knows nothing but the rows of metrics.jsonl, so that a resumed run decides as an unbroken one would. `phase` is the
  phase as of the last step: `claim` ("learning", "memorising", "collapsed" or "not decided") and `reward` ("early",
  "flat", "rising" or "saturated"). `before` is the mean true reward at step 0 by held-out problem.
  """

  def __init__(self, rows: Sequence[dict], before: Mapping[str, float], worthwhile: float, stop: bool):
    """rows: the rows of metrics.jsonl that are written already. before: mean true reward at step 0, by held-out
    problem. worthwhile: the least gain in held-out accuracy that is worth having. stop: whether memorising ends the
    run."""
    self._rows, self.before = list(rows), before
    self._worthwhile, self._stop = worthwhile, stop
    self.phase = self._decide_phase()

  def __call__(self, step: int, metrics: Mapping, means: Mapping[str, float] | None = None) -> dict[str, float]:
    """Takes the metrics of a step, decides the phase, and returns metrics to add to those of the step.

    metrics: needs `reward` and `true_reward`. means: mean true reward by held-out problem, if the step was evaluated.
    Returns `learning`, `memorising` and `collapsed`, each 1 or 0; `saturated`, 1 or 0, or nan while it is too early to
    say; and after an evaluation `heldout_gain`, the gain since step 0, with the ends of its interval,
    `heldout_gain_low` and `_high`. Warns at the first step that is memorising and at the first that has collapsed.
    """
    added: dict[str, float] = {}
    if means is not None:
      added = self._gain(means)
    rewards = {name: float(metrics[name]) for name in ("reward", "true_reward")}
    self._rows.append(logbook.finite({"step": step, **rewards, **added}))  # nan is None, as in metrics.jsonl
    self.phase = self._decide_phase()
    added["saturated"] = math.nan if self.phase.reward == "early" else float(self.phase.reward == "saturated")
    claims = {claim: float(self.phase.claim == claim) for claim in ("learning", "memorising", "collapsed")}
    for claim, advice in _ADVICE.items():
      if claims[claim] and not any(row.get(claim) for row in self._rows):
        _LOG.warning("step %d: %s: %s; %s", step, claim, phase.CLAIMS[claim], advice)
    added |= claims
    self._rows[-1] |= added
    return added

  def _gain(self, means: Mapping[str, float]) -> dict[str, float]:
    """Returns the gain of these means over `before`, paired by problem, and its interval under the names in _GAIN."""
    shared = [problem for problem in self.before if problem in means]
    before = [self.before[problem] for problem in shared]
    now = [means[problem] for problem in shared]
    return dict(zip(_GAIN, map(float, passk.paired_gain(before, now)), strict=True))

  def _decide_phase(self) -> phase.Phase:
    """Returns the phase as of the last row."""
    latest_gain = None
    for row in self._rows:
      if row.get("heldout_gain") is not None:
        latest_gain = passk.Gain(row["heldout_gain"], row["heldout_gain_low"], row["heldout_gain_high"])
    rewards = [row.get("reward") for row in self._rows]
    true_rewards = [row.get("true_reward") for row in self._rows]
    return phase.phase(rewards, true_rewards, latest_gain, len(self.before), self._worthwhile)

  @property
  def stops(self) -> bool:
    """Whether the run ends at the last step: it was evaluated, it is memorising, and `stop` was set."""
    if not self._stop or not self._rows:
      return False
    last = self._rows[-1]
    return bool(last.get("memorising")) and "heldout_gain" in last

  @property
  def in_words(self) -> str:
    """The phase as the line of progress shows it: the claim, and what the reward does in brackets."""
    return f"{self.phase.claim} ({self.phase.reward})"

  def summary(self) -> dict:
    """Returns figures for the run's summary: `steps`, the last step; `phase`, the claim; and `stopped`, {"step",
    "why"}, if the run ended itself."""
    step = self._rows[-1]["step"]
    figures = {"steps": step, "phase": self.phase.claim}
    if self.stops:
      why = f"memorising: {phase.CLAIMS['memorising']}; {_ADVICE['memorising']}"
      figures["stopped"] = {"step": step, "why": why}
    return figures
