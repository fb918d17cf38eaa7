"""Saturation against the golden cases (linear reading, literal residual) and where it is undefined."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrlvr.analysis.passk import interval, redrawn
from jaxrlvr.analysis.saturation import column_at, drawn_gap, gap, phases, saturation, value_at

GOLDEN = Path(__file__).parents[2] / "shared" / "data" / "golden" / "metrics.json"


@pytest.fixture(scope="module")
def golden():
  if not GOLDEN.is_file():
    pytest.skip(f"golden data is not there: {GOLDEN}")
  return json.loads(GOLDEN.read_text())


def steps(evals):
  return {int(step): value for step, value in evals.items()}


def test_golden_cases(golden):
  for case in golden["cases"]:
    expected, small = case["expected"], steps(case["eval_small"])
    found = saturation(case["rewards"], small, golden["excluded_last_steps"])
    assert found.t_sat == expected["t_sat"], case["name"]
    assert found.reward_max == pytest.approx(expected["r_max"], abs=1e-9)
    if found.t_sat is None:
      assert (found.value, found.gain, found.residual) == (None, None, None) and found.note, case["name"]
      continue
    read = expected["at_t_sat"]
    told = {"value": read["M_at"], "gain": read["gain"], "residual": read["residual_including_t_sat_value"]}
    for name, readings in told.items():
      assert getattr(found, name) == pytest.approx(readings["linear"], abs=1e-9), (case["name"], name)
    if case["eval_large"] is not None:
      both = gap(steps(case["eval_large"]), small, found.t_sat)
      assert both == pytest.approx(read["gap_large_minus_small"]["linear"], abs=1e-9), case["name"]


def test_golden_holds_both_kinds(golden):
  defined = [case["expected"]["t_sat"] is not None for case in golden["cases"]]
  assert any(defined) and not all(defined)


def test_short_run_says_so():
  found = saturation([0.1, 0.9, 0.9], {0: 0.2, 3: 0.4}, tail=3)
  assert found.t_sat is None and "3 steps" in found.note and found.reward_max == 0.9
  assert saturation([0.1, 0.9, 0.9], {0: 0.2, 3: 0.4}, tail=1).t_sat == 2


def test_late_rise_names_its_step():
  found = saturation([0.1, 0.2, 0.3, 0.9], {0: 0.0}, tail=2)
  assert found.t_sat is None and "first reached at step 4" in found.note


def test_between_names_the_neighbours_and_residual_is_never_negative():
  found = saturation([0.5, 1.0, 1.0, 1.0, 1.0, 1.0], {0: 0.2, 1: 0.3, 4: 0.6, 6: 0.1}, tail=1)
  assert (found.t_sat, found.between) == (2, (1, 4))
  assert found.value == pytest.approx(0.4) and found.gain == pytest.approx(0.2)
  assert found.residual == pytest.approx(0.2)
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
  found = saturation(rewards, evals, tail=1)
  assert note in found.note and found.gain is None


def test_a_run_that_was_never_paid_says_so():
  found = saturation([None, 0.0, 0.0, 0.0], {0: 0.1, 4: 0.2}, tail=1)
  assert found.t_sat == 2 and found.gain == pytest.approx(0.05) and "no reward is above 0" in found.note
  assert saturation([0.5, 0.5, 0.5], {0: 0.1, 3: 0.2}, tail=1).note == ""


def test_missing_rewards_keep_their_step():
  assert saturation([None, 0.1, None, 1.0, 1.0], {0: 0.0, 5: 1.0}, tail=1).t_sat == 4


def test_outside_of_the_evaluations_there_is_no_value():
  assert value_at({0: 0.0, 10: 1.0}, 5) == pytest.approx(0.5)
  assert value_at({0: 0.0, 10: 1.0}, 11) is None and value_at({}, 0) is None
  assert gap({0: 1.0}, {0: 0.5}, None) is None and gap({0: 1.0}, {0: 0.5}, 0) == pytest.approx(0.5)
  assert gap({0: 1.0}, {0: 0.5, 9: 0.5}, 9) is None


STEPS = [0, 2, 5, 9]


@pytest.mark.parametrize("rewards", [[0.1, 0.5, 1.0, *[1.0] * 6], [0.1, 1.0, *[0.9] * 7], [1.0] * 9], ids=str)
def test_many_curves_are_read_as_one(rewards):
  M_DS = np.random.default_rng(0).random((20, 4))
  for M_S, gain, residual in zip(M_DS, *phases(M_DS, STEPS, rewards.index(1.0) + 1, len(rewards)), strict=True):
    one = saturation(rewards, dict(zip(STEPS, M_S, strict=True)), tail=1)
    assert (gain, residual) == (pytest.approx(one.gain), pytest.approx(one.residual))
  assert phases(M_DS, STEPS, 10, 12) == (None, None) and column_at(M_DS, [], 0) is None
  assert phases(M_DS, [1, 2, 5, 9], 3, 9)[0] is None


def test_redrawn_gap_is_that_of_the_same_problems():
  draw = np.random.default_rng(1)
  small_PS, shift_P = draw.random((30, 4)), draw.normal(0.2, 0.01, 30)
  curves = [(STEPS, redrawn(values_PS)) for values_PS in (small_PS + shift_P[:, None], small_PS)]
  found_D = drawn_gap(*curves, 4)
  low, high = interval(found_D)
  assert low < shift_P.mean() < high and high - low == pytest.approx(2 * 1.96 * shift_P.std() / 30**0.5, rel=0.1)
  assert drawn_gap(*curves, None) is None and drawn_gap((STEPS, None), curves[1], 4) is None
  assert drawn_gap(*curves, 10) is None


def test_redrawn_means_are_those_of_a_bootstrap():
  values_PS = np.random.default_rng(2).random((25, 2))
  drawn_DS = redrawn(values_PS, draws=4000)
  assert drawn_DS.shape == (4000, 2) and drawn_DS.mean(0) == pytest.approx(values_PS.mean(0), abs=0.01)
  assert drawn_DS.std(0) == pytest.approx(values_PS.std(0) / 5, rel=0.05)
  assert np.corrcoef(drawn_DS.T)[0, 1] == pytest.approx(np.corrcoef(values_PS.T)[0, 1], abs=0.05)
  np.testing.assert_allclose(redrawn(values_PS[:, :1], draws=4000), drawn_DS[:, :1], atol=1e-12)
