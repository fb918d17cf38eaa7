"""Saturation against the golden cases (linear reading, literal residual) and where it is undefined."""

import json
from pathlib import Path

import pytest

from jaxrlvr.analysis.saturation import gap, saturation, value_at

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


def test_missing_rewards_keep_their_step():
  assert saturation([None, 0.1, None, 1.0, 1.0], {0: 0.0, 5: 1.0}, tail=1).t_sat == 4


def test_outside_of_the_evaluations_there_is_no_value():
  assert value_at({0: 0.0, 10: 1.0}, 5) == pytest.approx(0.5)
  assert value_at({0: 0.0, 10: 1.0}, 11) is None and value_at({}, 0) is None
  assert gap({0: 1.0}, {0: 0.5}, None) is None and gap({0: 1.0}, {0: 0.5}, 0) == pytest.approx(0.5)
  assert gap({0: 1.0}, {0: 0.5, 9: 0.5}, 9) is None
