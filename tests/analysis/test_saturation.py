"""Saturation against the golden cases (linear interpolation, the literal residual), and where it is undefined."""

import json

import numpy as np
import pytest

from jaxrlvr.analysis.passk import mean_draws, percentile_interval
from jaxrlvr.analysis.saturation import (
  STATES,
  CurveDraws,
  gain_draws,
  gap_draws,
  large_small_gap,
  median_time,
  reward_draws,
  rewards_by_problem,
  saturation,
  timing,
  value_at,
  values_at,
)


@pytest.fixture
def runs(golden):
  return json.loads((golden / "metrics.json").read_text())


def steps(evals):
  return {int(step): value for step, value in evals.items()}


def test_golden_cases(runs):
  for case in runs["cases"]:
    expected, small = case["expected"], steps(case["eval_small"])
    reading = saturation(case["rewards"], small, runs["excluded_last_steps"])
    assert reading.t_sat == expected["t_sat"], case["name"]
    assert reading.reward_max == pytest.approx(expected["r_max"], abs=1e-9)
    if reading.t_sat is None:
      assert (reading.value, reading.gain, reading.residual) == (None, None, None) and reading.note, case["name"]
      continue
    read = expected["at_t_sat"]
    expected_readings = {
      "value": read["M_at"],
      "gain": read["gain"],
      "residual": read["residual_including_t_sat_value"],
    }
    for name, readings in expected_readings.items():
      assert getattr(reading, name) == pytest.approx(readings["linear"], abs=1e-9), (case["name"], name)
    if case["eval_large"] is not None:
      both = large_small_gap(steps(case["eval_large"]), small, reading.t_sat)
      assert both == pytest.approx(read["gap_large_minus_small"]["linear"], abs=1e-9), case["name"]


def test_golden_holds_both_kinds(runs):
  defined = [case["expected"]["t_sat"] is not None for case in runs["cases"]]
  assert any(defined) and not all(defined)


def test_short_run_says_so():
  reading = saturation([0.1, 0.9, 0.9], {0: 0.2, 3: 0.4}, tail=3)
  assert reading.t_sat is None and "3 steps" in reading.note and reading.reward_max == 0.9
  assert saturation([0.1, 0.9, 0.9], {0: 0.2, 3: 0.4}, tail=1).t_sat == 2


def test_late_rise_names_its_step():
  reading = saturation([0.1, 0.2, 0.3, 0.9], {0: 0.0}, tail=2)
  assert reading.t_sat is None and "first reached at step 4" in reading.note


def test_between_names_the_neighbours_and_residual_is_never_negative():
  reading = saturation([0.5, 1.0, 1.0, 1.0, 1.0, 1.0], {0: 0.2, 1: 0.3, 4: 0.6, 6: 0.1}, tail=1)
  assert (reading.t_sat, reading.between) == (2, (1, 4))
  assert reading.value == pytest.approx(0.4) and reading.gain == pytest.approx(0.2)
  assert reading.residual == pytest.approx(0.2)
  falling = saturation([1.0, 1.0, 1.0], {0: 0.9, 3: 0.0}, tail=1)
  assert falling.t_sat == 1 and falling.residual == 0.0


@pytest.mark.parametrize(
  "rewards, evals, note",
  [
    ([], {0: 0.1}, "no training reward"),
    ([None, None], {0: 0.1}, "no training reward"),
    ([-2.0, -1.0, -1.0], {0: 0.1}, "below 0"),
    ([1.0, 1.0, 1.0], {0: 0.1}, "both sides of step 1"),
    ([1.0, 1.0, 1.0], {1: 0.1, 3: 0.2}, "no evaluation at step 0"),
  ],
)
def test_undefined_says_why(rewards, evals, note):
  reading = saturation(rewards, evals, tail=1)
  assert note in reading.note and reading.gain is None


def test_a_run_that_was_never_paid_says_so():
  reading = saturation([None, 0.0, 0.0, 0.0], {0: 0.1, 4: 0.2}, tail=1)
  assert reading.t_sat == 2 and reading.gain == pytest.approx(0.05) and "no reward is above 0" in reading.note
  assert saturation([0.5, 0.5, 0.5], {0: 0.1, 3: 0.2}, tail=1).note == ""


def test_missing_rewards_keep_their_step():
  assert saturation([None, 0.1, None, 1.0, 1.0], {0: 0.0, 5: 1.0}, tail=1).t_sat == 4


def test_outside_of_the_evaluations_there_is_no_value():
  assert value_at({0: 0.0, 10: 1.0}, 5) == pytest.approx(0.5)
  assert value_at({0: 0.0, 10: 1.0}, 11) is None and value_at({}, 0) is None
  assert large_small_gap({0: 1.0}, {0: 0.5}, None) is None and large_small_gap({0: 1.0}, {0: 0.5}, 0) == pytest.approx(
    0.5
  )
  assert large_small_gap({0: 1.0}, {0: 0.5, 9: 0.5}, 9) is None


STEPS = [0, 2, 5, 9]


@pytest.mark.parametrize("rewards", [[0.1, 0.5, 1.0, *[1.0] * 6], [0.1, 1.0, *[0.9] * 7], [1.0] * 9], ids=str)
def test_many_curves_are_read_as_one(rewards):
  M_DS = np.random.default_rng(0).random((20, 4))
  gains = gain_draws(CurveDraws(STEPS, M_DS), rewards.index(1.0) + 1, len(rewards))
  for M_S, gain, residual in zip(M_DS, gains.until_t_sat, gains.residual, strict=True):
    one = saturation(rewards, dict(zip(STEPS, M_S, strict=True)), tail=1)
    assert (gain, residual) == (pytest.approx(one.gain), pytest.approx(one.residual))
  np.testing.assert_array_equal(gains.to_the_end, M_DS[:, -1] - M_DS[:, 0])
  assert gain_draws(CurveDraws(STEPS, M_DS), 10, 12)[:2] == (None, None) and values_at(M_DS, [], 0) is None
  assert gain_draws(CurveDraws([1, 2, 5, 9], M_DS), 3, 9).until_t_sat is None


def test_redrawn_gap_is_that_of_the_same_problems():
  draw = np.random.default_rng(1)
  small_PS, shift_P = draw.random((30, 4)), draw.normal(0.2, 0.01, 30)
  curves = [CurveDraws(STEPS, mean_draws(values_PS)) for values_PS in (small_PS + shift_P[:, None], small_PS)]
  found_D = gap_draws(*curves, 4)
  low, high = percentile_interval(found_D)
  assert low < shift_P.mean() < high and high - low == pytest.approx(2 * 1.96 * shift_P.std() / 30**0.5, rel=0.1)
  assert gap_draws(*curves, None) is None and gap_draws(CurveDraws(STEPS, None), curves[1], 4) is None
  assert gap_draws(*curves, 10) is None


def test_redrawn_means_are_those_of_a_bootstrap():
  values_PS = np.random.default_rng(2).random((25, 2))
  drawn_DS = mean_draws(values_PS, draws=4000)
  assert drawn_DS.shape == (4000, 2) and drawn_DS.mean(0) == pytest.approx(values_PS.mean(0), abs=0.01)
  assert drawn_DS.std(0) == pytest.approx(values_PS.std(0) / 5, rel=0.05)
  assert np.corrcoef(drawn_DS.T)[0, 1] == pytest.approx(np.corrcoef(values_PS.T)[0, 1], abs=0.05)
  np.testing.assert_allclose(mean_draws(values_PS[:, :1], draws=4000), drawn_DS[:, :1], atol=1e-12)


def recorded(shares, problems, samples, same, seed=0):
  """Returns (mean reward, rewards by problem), lists over the steps of a run that is right with chances `shares`."""
  draw, rewards_T = np.random.default_rng(seed), []
  for t, share in enumerate(shares):
    first = 0 if same else t * problems
    rewards_T.append({f"p{first + p}": draw.binomial(1, share, samples).tolist() for p in range(problems)})
  return [np.mean(list(step.values())) for step in rewards_T], rewards_T


def inside(time, step, t_eff):
  """Returns whether the step lies in the interval, whose unknown ends lie after `t_eff`."""
  return (time.low or t_eff + 1) <= step <= (time.high or t_eff + 1)


STEP = np.arange(1, 61)
QUICK = 0.98 - 0.43 * np.exp(-STEP / 5)  # of 256 rollouts t_sat lies between 16 and 41, the middle one at 24


@pytest.mark.parametrize("same", [True, False])
def test_intervals_of_a_quick_rise_hold_what_it_does_on_average(same):
  """Without noise the curve has t90 = 13. The interval of t90 is less than half as wide as that of t_sat."""
  widths, hits = [], []
  for seed in range(25):
    rewards, redrawn_from = recorded(QUICK, 16, 16, same, seed)
    times = timing(rewards, reward_draws(redrawn_from, 200), tail=6)
    assert (times.state, times.t_eff, times.has_intervals) == ("saturated", 54, True)
    assert times.t_sat.step == saturation(rewards, {}, 6).t_sat
    assert times.t90.low <= times.t90.step <= times.t90.high
    hits.append((inside(times.t_sat, 24, 54), inside(times.t90, 13, 54)))
    widths.append([(time.high or 55) - time.low for time in (times.t_sat, times.t90)])
  assert (np.mean(hits, 0) >= (0.9, 0.7)).all()
  assert np.median(widths, 0)[0] > 2 * np.median(widths, 0)[1]
  assert timing(QUICK, None, 6).t90.step == 13 and not timing(QUICK, None, 6).has_intervals


@pytest.mark.parametrize("steps", [60, 496])
def test_a_flat_curve_has_no_rise(steps):
  """By its definition a flat curve has a t_sat all the same, which may lie anywhere."""
  draw = np.random.default_rng(0)
  curves = draw.binomial(256, 0.1, (200, steps)) / 256
  states = [timing(rewards, None, 6).state for rewards in curves]
  assert states.count("no rise") >= 196
  t_sats = [saturation(rewards, {}, 6).t_sat for rewards in curves]
  assert np.std([t for t in t_sats if t]) > steps / 6


def test_a_run_that_was_never_paid_or_always_has_no_rise():
  for level in (0.0, 1.0):
    times = timing([level] * 60, None, 6)
    assert times.state == "no rise" and times.t_sat == times.t90 == (None, None, None)
  assert saturation([0.0] * 60, {}, 6).t_sat == 1  # the definition is the paper's
  assert timing(np.linspace(1, 0, 60), None, 6).state == "no rise"


def test_height_of_the_plateau_moves_t_sat_and_not_t90():
  """Rewards of 512 rollouts rise with a time constant of 15 steps to plateaus of 1.00 and 0.95."""
  step, timings_of = np.arange(1, 497), {}
  for top in (1.0, 0.95):
    draw = np.random.default_rng(0)
    runs = draw.binomial(512, top - 0.43 * np.exp(-step / 15), (40, 496)) / 512
    timings_of[top] = [timing(rewards, None, 50) for rewards in runs]
  t_sat = {top: np.median([one.t_sat.step for one in timings]) for top, timings in timings_of.items()}
  t90 = {top: np.median([one.t90.step for one in timings]) for top, timings in timings_of.items()}
  assert t_sat[0.95] > 1.5 * t_sat[1.0] and t90[0.95] - t90[1.0] <= 6
  rewards, redrawn_from = recorded(0.95 - 0.43 * np.exp(-step / 15), 32, 16, False)
  one = timing(rewards, reward_draws(redrawn_from, 200), 50)
  assert (one.t_sat.high or 447) - one.t_sat.low > 5 * (one.t90.high - one.t90.low)


def test_what_is_not_reached_in_time_is_censored():
  rising = np.linspace(0.1, 0.9, 60) + np.random.default_rng(0).normal(0, 0.005, 60)
  times = timing(rising, None, 10)
  assert (times.state, times.t_eff, times.t_sat.step, times.t90.step) == ("not saturated", 50, None, None)
  rewards, redrawn_from = recorded(np.linspace(0.1, 0.9, 60), 32, 16, False)
  drawn = timing(rewards, reward_draws(redrawn_from, 200), 10)
  assert drawn.state == "not saturated" and drawn.t_sat.high is None and drawn.has_intervals


def test_what_timing_can_not_tell():
  assert timing([], None, 6).state == timing([None, float("nan")], None, 6).state == "not measured"
  assert timing(np.linspace(0, 1, 13), None, 1).state == "too short"
  below = timing(-np.linspace(2, 1, 60), None, 6)
  assert below.state == "undefined" and below.t_sat.step is None and below.t90.step == 52
  assert {one.state for one in (below, timing([1.0] * 60))} <= set(STATES)
  reward_DT = np.tile(QUICK, (5, 1))
  reward_DT[:, 10] = np.nan  # a step whose rollouts are not there
  assert timing(QUICK, reward_DT, 6) == timing(QUICK, None, 6)
  holes = [None if t % 9 == 4 else reward for t, reward in enumerate(QUICK)]
  assert abs(timing(holes, None, 6).t90.step - 13) <= 1
  assert timing(holes, np.tile([np.nan if h is None else h for h in holes], (3, 1)), 6).has_intervals


def test_redrawn_rewards_are_those_of_a_bootstrap():
  rewards = {"a": [0.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0, 0.5, 0.0]}
  fixed = reward_draws([rewards, rewards, {}], 4000)
  assert fixed.shape == (4000, 3) and np.isnan(fixed[:, 2]).all()
  mean = np.mean([*rewards["a"], *rewards["b"]])
  variance = sum(np.var(values) * 4 for values in rewards.values()) / 8**2  # of each problem's own responses
  assert fixed[:, 0].mean() == pytest.approx(mean, abs=0.01) and fixed[:, 0].var() == pytest.approx(variance, rel=0.1)
  assert abs(np.corrcoef(fixed[:, 0], fixed[:, 1])[0, 1]) < 0.05
  other = reward_draws([{"a": rewards["a"], "b": rewards["b"]}, {"c": [1.0], "d": []}], 4000)
  assert np.isclose(np.unique(other[:, 0]), [0.125, 0.4375, 0.75]).all() and (other[:, 1] == 1).all()  # whole problems
  uneven = reward_draws([{"a": [1.0], "b": [0.0, 0.0, 0.0]}, {"c": [1.0]}], 100)
  assert set(np.unique(uneven[:, 0])) <= {0.0, 0.25, 1.0}


def test_only_the_responses_that_are_trained_on_count():
  rows = [
    {"problem": p, "sample": s, "reward": r}
    for p, s, r in (
      ("a", 0, 1.0),
      ("a", 1, 0.0),
      ("a", 2, 1.0),
      ("a", 4, 0.5),
      ("a", 5, None),
      ("b", 0, float("nan")),
      ("b", 1, 0.0),
    )
  ]
  assert rewards_by_problem(rows, 4, 2) == {"a": [1.0, 0.0, 0.5], "b": [0.0]}


@pytest.mark.parametrize(
  "times, t_eff, median, at_least",
  [
    ((10, 20, 30), (50,) * 3, 20, 20),
    ((10, 20), (50,) * 2, 15, 15),
    ((10, None, 30), (50, 20, 50), 30, 20),  # by hand: 2/3 after 10, 0 after 30
    ((10, 20, None, None), (50,) * 4, None, 35),
    ((10, None, None), (50,) * 3, None, 50),
    ((None, None), (40, 60), None, 50),
    ((12,), (50,), 12, 12),
  ],
)
def test_median_of_censored_times(times, t_eff, median, at_least):
  estimate = median_time(times, t_eff)
  assert estimate == (len(times), sum(time is not None for time in times), median, at_least)


def test_median_of_censored_times_against_the_true_one():
  """Times are exponential with median 30, cut off at 40: the mean of known ones is far too early, the median is not."""
  draw = np.random.default_rng(0)
  times = draw.exponential(30 / np.log(2), 2000)
  censored = [float(t) if t <= 40 else None for t in times]
  assert median_time(censored, [40] * 2000).median == pytest.approx(30, rel=0.06)
  assert np.mean([t for t in censored if t is not None]) < 20
  assert median_time([], []).median is None
