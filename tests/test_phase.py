"""The live phase: running curves by name, and what a run makes of it (the stop of a real run: test_diagnose.py)."""

import numpy as np
import pytest

from jaxrlvr import logbook
from jaxrlvr.analysis.passk import Gain
from jaxrlvr.analysis.saturation import phase
from jaxrlvr.stages.rl import Watch

FLAT, UP, DOWN = Gain(0.0, -0.02, 0.02), Gain(0.1, 0.02, 0.2), Gain(-0.1, -0.2, -0.02)


def curve(rise, plateau, noise, seed=0):
  """Up from 0.2 to 0.8 over so many steps, then level."""
  ideal = np.concatenate([np.linspace(0.2, 0.8, rise), np.full(plateau, 0.8)])
  return ideal + np.random.default_rng(seed).normal(0, noise, len(ideal))


@pytest.mark.parametrize(
  "rewards, name",
  [
    (curve(100, 0, 0.0), "rising"),
    (curve(100, 0, 0.05), "rising"),
    (curve(30, 100, 0.0), "saturated"),
    (curve(30, 100, 0.05), "saturated"),  # noise above 1 % hides no plateau
    (curve(300, 20, 0.05), "rising"),  # and a plateau that is young is none
    (np.full(60, 1.0), "saturated"),  # full from the start
    (0.3 + np.random.default_rng(1).normal(0, 0.05, 90), "flat"),
    (np.zeros(90), "early"),
    (-np.linspace(2, 1, 90), "early"),
    (curve(10, 9, 0.0), "early"),
    ([], "early"),
    ([None] * 50, "early"),
    (np.linspace(1.0, 0.2, 90), "flat"),
  ],
  ids="rising noisy-rise plateau noisy-plateau young full level zero negative short none missing falling".split(),
)
def test_curves(rewards, name):
  assert phase(rewards) == name
  assert phase(rewards, UP) == name


def test_steps_without_a_reward_are_left_out():
  rewards = curve(30, 100, 0.05)
  holes = [x for r in rewards for x in (r, None, float("nan"))]
  assert phase(holes) == phase(rewards) == "saturated"


def test_a_slow_rise_is_not_called_a_plateau():
  """At every third step of 20 noisy runs that rise throughout, more slowly than their noise a step."""
  calls = [phase(0.3 + np.arange(n) * 6e-4 + np.random.default_rng(seed).normal(0, 0.03, 496)[:n])
           for seed in range(20) for n in range(20, 497, 3)]  # fmt: skip
  assert calls.count("saturated") < 0.02 * len(calls) and calls.count("rising") > 0.6 * len(calls)


def test_memorising_needs_a_plateau_without_gain_or_a_rise_with_a_loss():
  level, rising = curve(30, 100, 0.05), curve(100, 0, 0.05)
  assert [phase(level, gain) for gain in (None, FLAT, UP, DOWN)] == ["saturated", "memorising"] + [
    "saturated", "memorising",
  ]  # fmt: skip
  assert [phase(rising, gain) for gain in (FLAT, UP, DOWN)] == ["rising", "rising", "memorising"]
  assert phase(np.full(60, 0.3) + np.random.default_rng(0).normal(0, 0.05, 60), DOWN) == "flat"
  assert phase(level, Gain(*[float("nan")] * 3)) == "saturated"


def test_a_run_watches_itself_the_same_way_from_wherever_it_goes_on(tmp_path, caplog):
  """Rewards rise and level off, held-out accuracy does not move; evaluations at every 16th step."""
  rewards = [float("nan"), *curve(10, 70, 0.005)]
  before = {"s/a": 0.0, "s/b": 0.5, "s/gone": 1.0}

  def means(step):
    return {"s/a": 0.5, "s/b": 1.0, "s/new": 0.0} if step < 30 else {"s/a": 0.0, "s/b": 0.5}

  def go(watch, start):
    made = []
    for step, reward in enumerate(rewards[start:], start + 1):
      more = means(step) if step % 16 == 0 else None
      made.append({"step": step, "reward": reward, **watch(step, {"reward": reward}, more), "stops": watch.stops})
    return made

  rows = go(Watch([], before, True), 0)
  gains = {r["step"]: r["heldout_gain"] for r in rows if "heldout_gain" in r}
  assert gains == {16: 0.5, 32: 0.0, 48: 0.0, 64: 0.0, 80: 0.0}
  first = next(r["step"] for r in rows if r["memorising"])
  assert 32 <= first and caplog.text.count("memorising") == 1 and f"step {first}: memorising" in caplog.text
  assert [r["step"] for r in rows if r["stops"]] == [s for s in gains if s >= first]
  assert not any(r["stops"] for r in go(Watch([], before, False), 0))
  logbook.write_jsonl(tmp_path / "metrics.jsonl", rows)
  back = logbook.read_jsonl(tmp_path / "metrics.jsonl")
  for start in (1, 20, 40, first, 70):
    caplog.clear()
    assert go(Watch(back[:start], before, True), start) == rows[start:]
    assert caplog.text.count("memorising") == (start < first)
    assert Watch(back[:start], before, True).stops == rows[start - 1]["stops"]
