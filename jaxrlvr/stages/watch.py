"""Follows the phase of a run (learning, memorising, collapsed) while it trains, and may end the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from jaxrlvr.analysis import passk
from jaxrlvr.analysis import phase as phases
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
  """Decides the phase of a run (`analysis.phase.phase`) as it trains.

  Make it as Watch(rows, before, worthwhile, stop), give each step's metrics to `observe`, and read `phase`, `stops`,
  `in_words` and `summary` after that. It decides by the rows of metrics.jsonl alone, so that a resumed run decides as
  an unbroken one would.
  """

  before: Mapping[str, float]  # mean true reward of each held-out problem at step 0, by "SET/PROBLEM"
  # As of the last step: `claim` ("learning", "memorising", "collapsed" or "not decided") and `reward` ("early", "flat",
  # "rising" or "saturated").
  phase: phases.Phase

  def __init__(self, rows: Sequence[dict], before: Mapping[str, float], worthwhile: float, stop: bool):
    """rows: those that metrics.jsonl has already. worthwhile: the least gain in held-out accuracy, from 0 to 1, that is
    worth having. stop: whether `stops` becomes true when the policy memorises."""
    self._rows, self.before = list(rows), before
    self._worthwhile, self._stop = worthwhile, stop
    self.phase = self._decide_phase()

  def observe(self, step: int, metrics: Mapping, means: Mapping[str, float] | None = None) -> dict[str, float]:
    """Takes the metrics of the next step, decides the phase anew, and returns metrics to log with those of the step.

    metrics: needs `reward` and `true_reward`; nan where there is none. means: mean true reward of each held-out problem
    by "SET/PROBLEM", if the step was evaluated, else None.

    Keys: learning, memorising and collapsed (each 1.0 or 0.0); saturated (1.0 or 0.0; nan: too early to say); and, if
    the step was evaluated, heldout_gain (mean gain since step 0 over held-out problems) with the ends of its 95 %
    interval, heldout_gain_low and heldout_gain_high. Warns, with advice, at the first step of the run that is
    memorising and at the first that has collapsed.
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
        _LOG.warning("step %d: %s: %s; %s", step, claim, phases.CLAIMS[claim], advice)
    added |= claims
    self._rows[-1] |= added
    return added

  def _gain(self, means: Mapping[str, float]) -> dict[str, float]:
    """Returns the gain of these means over `before`, paired by problem, and its interval under the names in _GAIN."""
    shared = [problem for problem in self.before if problem in means]
    before = [self.before[problem] for problem in shared]
    now = [means[problem] for problem in shared]
    return dict(zip(_GAIN, map(float, passk.paired_gain(before, now)), strict=True))

  def _decide_phase(self) -> phases.Phase:
    """Returns the phase as of the last row."""
    latest_gain = None
    for row in self._rows:
      if row.get("heldout_gain") is not None:
        latest_gain = passk.Gain(row["heldout_gain"], row["heldout_gain_low"], row["heldout_gain_high"])
    rewards = [row.get("reward") for row in self._rows]
    true_rewards = [row.get("true_reward") for row in self._rows]
    return phases.phase(rewards, true_rewards, latest_gain, len(self.before), self._worthwhile)

  @property
  def stops(self) -> bool:
    """Property: whether to end the run: the last step was evaluated and is memorising, and the constructor's `stop` is
    set."""
    if not self._stop or not self._rows:
      return False
    last = self._rows[-1]
    return bool(last.get("memorising")) and "heldout_gain" in last

  @property
  def in_words(self) -> str:
    """Property: the phase for the line of progress, with what the reward does in brackets: "learning (rising)"."""
    return f"{self.phase.claim} ({self.phase.reward})"

  def summary(self) -> dict:
    """Returns what summary.json says of the phase. Call it when at least one step is observed or was in the rows.

    Keys: steps (number of the last step); phase (the claim as of it); and, only if `stops`, stopped: {"step": number of
    the last step, "why": a sentence with advice}.
    """
    last_step = self._rows[-1]["step"]
    figures = {"steps": last_step, "phase": self.phase.claim}
    if self.stops:
      why = f"memorising: {phases.CLAIMS['memorising']}; {_ADVICE['memorising']}"
      figures["stopped"] = {"step": last_step, "why": why}
    return figures
