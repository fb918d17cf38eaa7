"""pass@k against brute force and the golden table, votes, intervals, and unscored rows, which never count as wrong."""

import itertools
import json
import math

import numpy as np
import pytest

from jaxrlvr.analysis import passk


@pytest.fixture
def cases(golden):
  return json.loads((golden / "pass_at_k.json").read_text())


def record(
  problem, sample, score, answer="1", text="\\boxed{1}", tokens=3, stop="eos", faithfulness=None, step_true=None
):
  return {
    "problem": problem,
    "sample": sample,
    "true_reward": score,
    "scored": score is not None,
    "answer": answer,
    "cluster": None if answer is None else int(answer),
    "text": text,
    "tokens": tokens,
    "stop": stop,
    "faithfulness": faithfulness,
    "step_true": step_true,
  }


def records_of(rewards):
  return [record(f"p{p}", s, r) for p, runs in enumerate(rewards) for s, r in enumerate(runs)]


def test_golden_table(cases):
  rows = [(row["n"], row["c"], row["k"], row["pass_at_k"]) for row in cases["table"]]
  n, c, k, expected = map(np.array, zip(*rows, strict=True))
  np.testing.assert_allclose(passk.pass_at_k(n, c, k), expected, rtol=0, atol=1e-12)
  assert ((k > n) & (c > 0)).any() and ((k > n) & (c == 0)).any()  # the odd cases are among them


@pytest.mark.parametrize("index", [0, 1, 2])
def test_golden_sets(cases, index):
  one = cases["sets"][index]
  ks = [int(k) for k in one["average_pass_at_k"]]
  figures = passk.evaluation_figures(records_of(one["rewards"]), ks)
  K = max(len(runs) for runs in one["rewards"])
  assert figures[f"avg@{K}"] == pytest.approx(one["avg_at_n_mean_of_problem_means"], abs=1e-12)
  for k in ks:
    enough = any(len(runs) >= k for runs in one["rewards"])
    expected = one["average_pass_at_k"][str(k)] if enough else math.nan  # the released code says 0 for "unknown"
    assert figures[f"pass@{k}"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_equals_brute_force_over_all_subsets():
  for n in range(1, 8):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
      drawn = list(itertools.combinations([1] * c + [0] * (n - c), k))
      assert passk.pass_at_k(n, c, k) == pytest.approx(np.mean([any(d) for d in drawn]), abs=1e-12)


def test_stable_for_large_n():
  assert passk.pass_at_k(10**9, 1, 1) == pytest.approx(1e-9, rel=1e-12, abs=0)
  assert passk.pass_at_k(10**6, 999, 1000) == pytest.approx(passk.pass_at_k(10**6, 1000, 999), rel=1e-12)
  exact = 1 - math.comb(9000, 500) / math.comb(10_000, 500)
  assert passk.pass_at_k(10_000, 1000, 500) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_impossible_counts_are_refused(n, c, k):
  with pytest.raises(ValueError, match="0 <= c <= n"):
    passk.pass_at_k(n, c, k)


@pytest.mark.parametrize(
  "clusters, right, expected",
  [
    ([0, 1, 1], [1, 0, 0], 0.0),
    ([1, 0, 0, 1], [1, 0, 0, 1], 1.0),  # tie: the first seen
    ([0, 1, 1, 0], [0, 1, 1, 0], 0.0),
    ([None, None, None, 0], [0, 0, 0, 1], 1.0),  # no answer doesn't vote
    ([None, None], [0, 0], 0.0),
  ],
)
def test_majority(clusters, right, expected):
  assert passk.maj_at_k(clusters, right) == expected


def test_interval_covers_and_narrows():
  draw = np.random.default_rng(1)
  covered = 0
  for _ in range(150):
    values_P = draw.binomial(16, 0.3, size=60) / 16
    low, high = passk.bootstrap(values_P, draws=200, seed=3)
    covered += low <= 0.3 <= high
  assert 0.88 <= covered / 150 <= 0.99
  wide, narrow = (np.diff(passk.bootstrap(draw.random(n), draws=300))[0] for n in (25, 2500))
  assert 5 < wide / narrow < 20  # 1 / sqrt(P)


def test_interval_uses_statistic_level_and_seed():
  values_P = np.arange(41.0)
  low, high = passk.bootstrap(values_P, np.median, level=0.5)
  assert low < 20 < high
  assert np.diff(passk.bootstrap(values_P, np.median, level=0.99))[0] > high - low
  assert passk.bootstrap(values_P, seed=1) == passk.bootstrap(values_P, seed=1) != passk.bootstrap(values_P, seed=2)


def test_paired_gain_removes_the_spread_between_problems():
  before_P = np.linspace(0, 0.8, 50)
  gain = passk.paired_gain(before_P, before_P + 0.1)
  assert gain == pytest.approx((0.1, 0.1, 0.1))
  with pytest.raises(ValueError, match="same problems"):
    passk.paired_gain(before_P, before_P[1:])


def test_unscored_rows_leave_n_and_are_never_wrong():
  rows = [record("a", s, score) for s, score in enumerate([1.0, 0.0, None, None])]
  rows += [record("b", s, 1.0) for s in range(4)]
  rows += [record("c", s, None) for s in range(4)]
  figures = passk.evaluation_figures(rows, ks=(1, 2, 3))
  assert figures["avg@4"] == pytest.approx((0.5 + 1.0) / 2)
  assert figures["pass@1"] == pytest.approx(0.75)
  assert figures["pass@2"] == 1.0
  assert figures["pass@3"] == 1.0  # problem a has 2 scored samples: left out, not 0
  assert figures["maj@4"] == 1.0
  assert figures["unscored"] == pytest.approx(6 / 12)
  assert figures["avg@4_low"] <= figures["avg@4"] <= figures["avg@4_high"]


def test_shares_of_responses():
  rows = [
    record("a", 0, 1.0, text="<think>\n\\boxed{2}</think> \\boxed{1}", tokens=10, faithfulness=1, step_true=1.0),
    record("a", 1, 0.0, None, text="<think>\\boxed{1}</think> one", tokens=20, stop="length", faithfulness=0.5),
    record("a", 2, 0.0, None, text="", tokens=0, faithfulness=0, step_true=0.5),
    record("a", 3, 0.0, None, text="\\boxed{3", tokens=2),
  ]
  figures = passk.evaluation_figures(rows, ks=(4,))
  assert {name: figures[name] for name in ("format", "mean_length", "clipped")} == {
    "format": 0.25,
    "mean_length": 8.0,
    "clipped": 0.25,
  }
  assert figures["faithful"] == pytest.approx(1 / 3)
  assert figures["step_true"] == 0.75
  assert (figures["avg@4"], figures["if_extracted@4"], figures["problems"]) == (0.25, 1.0, 1.0)
  assert math.isnan(passk.evaluation_figures(records_of([[1.0]]), ks=(2,))["faithful"])
  with pytest.raises(ValueError, match="no record"):
    passk.evaluation_figures([], ks=(1,))
