"""The phase of a live run: claims that intervals decide, and what a run does with them."""

import numpy as np
import pytest

from jaxrlvr.analysis.passk import Gain, paired_gain
from jaxrlvr.analysis.phase import CLAIMS, phase, reward_phase
from jaxrlvr.base import logbook
from jaxrlvr.stages.watch import Watch

FLAT, UP, DOWN, WIDE = Gain(0.0, -0.02, 0.02), Gain(0.1, 0.02, 0.2), Gain(-0.1, -0.2, -0.02), Gain(0.0, -0.1, 0.1)
T = np.arange(1, 61)


def curve(rise, plateau, noise, seed=0):
  """Returns a noisy reward curve that rises from 0.2 to 0.8 over `rise` steps and stays there for `plateau` steps."""
  ideal = np.concatenate([np.linspace(0.2, 0.8, rise), np.full(plateau, 0.8)])
  return ideal + np.random.default_rng(seed).normal(0, noise, len(ideal))


def drawn(shares, rollouts=256, seed=0):
  """Returns the share of right rollouts in each step, drawn with the chances `shares`."""
  return np.random.default_rng(seed).binomial(rollouts, shares) / rollouts


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
  assert reward_phase(rewards) == name
  assert phase(rewards, [None] * len(rewards), None, 0, 0.05) == ("not decided", name)


def test_steps_without_a_reward_are_left_out():
  rewards = curve(30, 100, 0.05)
  holes = [x for r in rewards for x in (r, None, float("nan"))]
  assert reward_phase(holes) == reward_phase(rewards) == "saturated"
  assert phase(holes, holes, FLAT, 100, 0.05) == phase(rewards, rewards, FLAT, 100, 0.05)


def test_a_slow_rise_is_not_called_a_plateau():
  """Looks at every third step of 20 noisy runs that rise throughout, by less per step than their noise."""
  calls = [
    reward_phase(0.3 + np.arange(n) * 6e-4 + np.random.default_rng(seed).normal(0, 0.03, 496)[:n])
    for seed in range(20)
    for n in range(20, 497, 3)
  ]
  assert calls.count("saturated") < 0.02 * len(calls) and calls.count("rising") > 0.6 * len(calls)


def test_a_gain_that_is_not_shown_is_not_one_that_is_excluded():
  level, rising = curve(30, 100, 0.05), curve(100, 0, 0.05)
  for rewards in (level, rising):
    claims = [phase(rewards, rewards, gain, 200, 0.05).claim for gain in (None, FLAT, UP, DOWN, WIDE)]
    assert claims == ["not decided", "memorising", "learning", "memorising", "not decided"]
  flat = np.full(60, 0.3) + np.random.default_rng(0).normal(0, 0.05, 60)
  assert phase(flat, flat, DOWN, 200, 0.05) == ("not decided", "flat")  # the reward has not risen
  assert phase(level, level, Gain(*[float("nan")] * 3), 200, 0.05).claim == "not decided"
  assert phase(level, level, FLAT, 200, 0.01).claim == "not decided"  # a gain of 0.02 is worth having there
  small_gain = Gain(0.03, 0.01, 0.04)
  assert phase(level, level, small_gain, 200, 0.05).claim == "learning"


def test_few_held_out_problems_decide_little():
  """With 16 problems of 4 samples, neither an interval of width 0 nor a real gain of 10 points is called memorising."""
  reward = drawn(0.98 - 0.5 * np.exp(-T / 10))
  nothing = Gain(0.0, 0.0, 0.0)
  assert [phase(reward, reward, nothing, problems, 0.05).claim for problems in (16, 64)] == [
    "not decided",
    "memorising",
  ]
  draw, claims = np.random.default_rng(0), {0.0: [], 0.1: []}
  for gain, claims_of_gain in claims.items():
    for _ in range(60):
      share_P = 0.8 * draw.random(16)
      before_P, after_P = draw.binomial(4, share_P) / 4, draw.binomial(4, share_P + gain) / 4
      claims_of_gain.append(phase(reward, reward, Gain(*paired_gain(before_P, after_P)), 16, 0.05).claim)
  assert claims[0.1].count("memorising") <= 1 and claims[0.0].count("learning") <= 2
  assert claims[0.0].count("not decided") > 50


@pytest.mark.parametrize(
  "reward, true, claim",
  [
    (1 - 0.7 * np.exp(-T / 8), 0.1 + 0 * T, "collapsed"),  # a vote for one answer, whatever is right
    (np.ones(60), 0 * T, "collapsed"),
    (0.02 * T, 0.08 + 0.35 * np.exp(-T / 10), "collapsed"),  # certainty
    (1 - 0.013 * T, 1 - 0.013 * T, "collapsed"),  # broken off
    (0.4 - 0.3 * np.exp(-T / 20), 0.09 + 0 * T, "memorising"),  # wrong labels
    (0.98 - 0.5 * np.exp(-T / 10), 0.98 - 0.5 * np.exp(-T / 10), "memorising"),
    (0.1 + 0 * T, 0.1 + 0 * T, "not decided"),
    (0.3 + 0 * T, 0.02 + 0 * T, "not decided"),
  ],
)
def test_a_collapse_is_no_rise(reward, true, claim):
  binary = max(reward) <= 1
  reward, true = drawn(reward) if binary else reward, drawn(true, seed=1) if list(true) != list(reward) else drawn(true)
  assert phase(reward, true, FLAT, 200, 0.05).claim == claim
  gained = phase(reward, true, UP, 200, 0.05).claim
  assert gained == ("collapsed" if claim == "collapsed" else "learning")
  assert phase(reward, true, None, 200, 0.05).claim == ("collapsed" if claim == "collapsed" else "not decided")


def test_noise_is_no_collapse():
  claims = []
  for seed in range(300):
    level = drawn(0.2 + 0 * T, 64, seed)
    claims.append(phase(level, level, None, 0, 0.05).claim)
  assert claims.count("collapsed") <= 2


def test_a_run_watches_itself_the_same_way_from_wherever_it_goes_on(tmp_path, caplog):
  """Rewards rise and level off; held-out accuracy, evaluated at every 16th step, rises and falls back."""
  rewards = [float("nan"), *curve(10, 70, 0.005)]
  before = {f"s/{i}": 0.5 for i in range(80)} | {"s/gone": 1.0}

  def means(step):
    return {f"s/{i}": 1.0 if step < 30 else 0.5 for i in range(80)} | {"s/new": 0.0}

  def go(watch, start):
    rows = []
    for step, reward in enumerate(rewards[start:], start + 1):
      metrics = {"reward": reward, "true_reward": reward}
      more = watch.observe(step, metrics, means(step) if step % 16 == 0 else None)
      rows.append({"step": step, **metrics, **more, "stops": watch.stops, "in_words": watch.in_words})
    return rows

  rows = go(Watch([], before, 0.05, True), 0)
  gains = {row["step"]: row["heldout_gain"] for row in rows if "heldout_gain" in row}
  assert gains == {16: 0.5, 32: 0.0, 48: 0.0, 64: 0.0, 80: 0.0}
  first = next(row["step"] for row in rows if row["memorising"])
  assert first == 32 and caplog.text.count("memorising:") == 1 and f"step {first}: memorising" in caplog.text
  assert all(row["learning"] == (16 <= row["step"] < 32) and not row["collapsed"] for row in rows)
  assert [row["step"] for row in rows if row["stops"]] == [step for step in gains if step >= first]
  assert rows[15]["in_words"].startswith("learning (") and rows[-1]["in_words"] == "memorising (saturated)"
  assert not any(row["stops"] for row in go(Watch([], before, 0.05, False), 0))
  assert not any(row["stops"] or row["memorising"] for row in go(Watch([], before, 0.01, True), 0))
  logbook.write_jsonl(tmp_path / "metrics.jsonl", rows)
  back = logbook.read_jsonl(tmp_path / "metrics.jsonl")
  for start in (1, 20, 40, first, 70):
    caplog.clear()
    assert go(Watch(back[:start], before, 0.05, True), start) == rows[start:]
    assert caplog.text.count("memorising:") == (start < first)
    assert Watch(back[:start], before, 0.05, True).stops == rows[start - 1]["stops"]
    assert Watch(back[:start], before, 0.05, True).in_words == rows[start - 1]["in_words"]


def test_summary_tells_the_claim_and_why_it_ended():
  rows = [{"step": step, "reward": 0.5, "true_reward": 0.5} for step in range(1, 41)]
  gain = {"heldout_gain": 0.0, "heldout_gain_low": 0.0, "heldout_gain_high": 0.0, "memorising": 1.0}
  watch = Watch([*rows[:-1], rows[-1] | gain], {f"s/{i}": 0.5 for i in range(80)}, 0.05, True)
  summary = watch.summary()
  assert (summary["steps"], summary["phase"], summary["stopped"]["step"]) == (40, "memorising", 40)
  assert CLAIMS["memorising"] in summary["stopped"]["why"]
  assert Watch(rows, {}, 0.05, True).summary() == {"steps": 40, "phase": "not decided"}


def test_a_collapse_is_told_once_and_does_not_stop(caplog):
  watch = Watch([], {"s/a": 0.0}, 0.05, True)
  rows = [watch.observe(step, {"reward": 1.0, "true_reward": 0.0}) for step in range(1, 41)]
  assert [row["collapsed"] for row in rows] == [0.0] * 19 + [1.0] * 21 and not watch.stops
  assert caplog.text.count("step 20: collapsed:") == 1 == caplog.text.count("collapsed:")


def test_a_reward_above_1_is_never_taken_for_full():
  assert phase(20 + T, 0 * T, None, 200, 0.05).claim == "not decided"
  assert phase(np.minimum(1, 0.5 + T), 0 * T, None, 200, 0.05).claim == "collapsed"
