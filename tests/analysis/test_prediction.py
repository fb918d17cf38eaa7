"""Figures taken before RL against brute force, and the table of rules, with a case of its own for every row."""

import itertools
import math
import random

import pytest

from jaxrlvr.analysis import pre_rl, prediction
from jaxrlvr.analysis.prediction import COLLAPSES, GENERALISES, MEMORISES, UNKNOWN

NAN = float("nan")
YES, NO, OPEN, NONE = (0.8, 0.6, 0.9), (0.1, 0.0, 0.3), (0.5, 0.4, 0.6), (NAN, NAN, NAN)


def figures(*, usable=30.0, labelled=60.0, **changes):
  intervals = {
    "format": YES,
    "clipped": NO,
    "F(1)/correct": YES,
    "vote_right": YES,
    "certainty_auc": OPEN,
    "faithful_diversity": NONE,
  } | changes
  all_figures = {
    f"{name}{end}": x for name, xs in intervals.items() for end, x in zip(("", "_low", "_high"), xs, strict=True)
  }
  return all_figures | {"usable_problems": usable, "labelled/correct": labelled}


def faithful(interval, **more):
  return figures(**{"F(1)/correct": interval}, **more)


DIVERSE = {"faithful_diversity": (0.6, 0.5, 0.7)}
# Figures, domain and reference: regimes of scarce, noisy, vote, and their rules.
CASES = {
  "good": (figures(), "math", None, (GENERALISES, GENERALISES, GENERALISES), (10, 11, 12)),
  "good miniature": (figures(), "arithmetic", None, (GENERALISES, GENERALISES, GENERALISES), (10, 11, 12)),
  "unfaithful": (faithful(NO), "math", None, (MEMORISES, MEMORISES, COLLAPSES), (6, 6, 7)),
  "unfaithful in Science": (faithful(NO), "science", None, (MEMORISES, MEMORISES, COLLAPSES), (6, 6, 7)),
  "open": (faithful(OPEN), "math", None, (UNKNOWN,) * 3, (9,) * 3),
  "open, wrong votes": (faithful(OPEN, vote_right=NO), "math", None, (UNKNOWN, UNKNOWN, COLLAPSES), (9, 9, 8)),
  "unjudged": (faithful(NONE), "math", None, (UNKNOWN,) * 3, (5,) * 3),
  "unboxed": (faithful(YES, format=NO), "math", None, (UNKNOWN,) * 3, (2,) * 3),
  "perhaps cut off": (
    faithful(NO, clipped=OPEN, format=OPEN),
    "math",
    None,
    (MEMORISES, MEMORISES, COLLAPSES),
    (6, 6, 7),
  ),
  "cut off": (faithful(NO, clipped=YES), "math", None, (UNKNOWN,) * 3, (3,) * 3),
  "seven usable": (faithful(NO, usable=7.0), "math", None, (UNKNOWN,) * 3, (4,) * 3),
  "eight usable": (faithful(NO, usable=8.0), "math", None, (MEMORISES, MEMORISES, COLLAPSES), (6, 6, 7)),
  "wrong votes": (figures(vote_right=NO), "math", None, (GENERALISES, GENERALISES, COLLAPSES), (10, 11, 8)),
  "open votes": (figures(vote_right=OPEN), "math", None, (GENERALISES, GENERALISES, UNKNOWN), (10, 11, 13)),
  "no votes": (figures(vote_right=NONE), "math", None, (GENERALISES, GENERALISES, UNKNOWN), (10, 11, 13)),
  "Science without reference": (figures(**DIVERSE), "science", None, (UNKNOWN,) * 3, (18,) * 3),
  "another domain": (figures(**DIVERSE), "other", None, (UNKNOWN,) * 3, (18,) * 3),
  "Science, less diverse": (figures(**DIVERSE), "science", 0.8, (MEMORISES, MEMORISES, COLLAPSES), (14, 14, 15)),
  "Graph, as diverse": (figures(**DIVERSE), "graph", 0.4, (GENERALISES, UNKNOWN, UNKNOWN), (16, 17, 17)),
  "Graph, near the reference": (figures(**DIVERSE), "graph", 0.55, (UNKNOWN,) * 3, (18,) * 3),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
  before, domain, reference, want, rules = CASES[name]
  predictions = prediction.predict(before, True, 8, domain, reference)
  assert [p.setting for p in predictions] == list(prediction.WEAK_SETTINGS)
  assert tuple(p.regime for p in predictions) == (*want, COLLAPSES) and tuple(p.rule for p in predictions) == (
    *rules,
    1,
  )
  assert all((p.sure == "") == (p.regime == UNKNOWN) and p.advice for p in predictions)


def test_every_rule_and_every_advice_is_reached():
  predictions = [
    p
    for before, domain, reference, *_ in CASES.values()
    for p in prediction.predict(before, True, 8, domain, reference)
  ]
  assert {p.rule for p in predictions} == set(range(1, len(prediction.REGIME_RULES) + 1))
  assert {key for p in predictions for key in p.advice} == set(prediction.ADVICE)


def test_faithfulness_alone_predicts_no_gain_where_all_are_faithful():
  """In the paper, Llama on Science saturates at step 61 although it is as faithful as the model that generalises."""
  for domain in ("science", "graph", "other"):
    for reference in (None, 0.0, 0.5, 1.0):
      predictions = prediction.predict(figures(), True, 8, domain, reference)
      assert all(p.regime == UNKNOWN for p in predictions[:3])  # diversity was not measured
  assert not any("61" in rule.why for rule in prediction.REGIME_RULES)
  assert ("Qwen2.5-1.5B", "Science", 161) in prediction.REFERENCES and len(prediction.REFERENCES) == 8


def test_domains_of_problems():
  asked = {
    ("", "math/llama-3b/math_8.parquet", ("math",)): "math",
    ("", "science/llama-3b/scp_8.parquet", ("math",)): "science",
    ("", "mine.jsonl", ("choice",)): "science",
    ("", "graph_882.parquet", ("quantum_lock", "largest_island")): "graph",
    ("", "arithmetic", ("arithmetic",)): "arithmetic",
    ("", "reasoning_gym", ("reasoning_gym",)): "other",
    ("", "mine.jsonl", ("math", "arithmetic")): "other",
    ("science", "mine.jsonl", ("math",)): "science",
  }
  assert {key: prediction.domain_of(*key) for key in asked} == asked
  assert set(asked.values()) == set(prediction.DOMAIN_NAMES) > set(prediction.SEPARATES)


def test_how_sure():
  """Under "scarce" and "certainty", each doubt costs one level, and no prediction is surer than its rule allows."""

  def sure(near=True, judged=8, **more):
    return [p.sure for p in prediction.predict(figures(**more), near, judged, "math")][::3]

  assert sure() == ["medium", "high"] and sure(near=False) == ["low", "medium"]
  assert sure(judged=7) == sure(labelled=15.0) == ["low", "high"]
  assert sure(near=False, judged=7, labelled=0.0) == ["low", "medium"]
  near = [
    prediction.resembles_references(*asked)
    for asked in (
      (3.2, ["math"]),
      (1.54, ["math", "quantum_lock"]),
      (8.03, []),
      (0.5, ["math"]),
      (14.0, ["math"]),
      (3.2, ["math", "arithmetic"]),
    )
  ]
  assert near == [True, True, True, False, False, False]


def test_half_is_most_only_by_the_whole_interval():
  for (low, high), want in {(0.5, 0.9): None, (0.51, 0.9): True, (0.1, 0.5): None, (0.1, 0.49): False}.items():
    assert prediction.lies_above_half({"x_low": low, "x_high": high}, "x") is want


SAMPLES = 4


def records(seed):
  """Returns responses to 30 problems: some are unscored or cast no vote, and certainties have few values, so that they
  tie.
  """
  draw, rows = random.Random(seed), []
  for problem in range(30):
    ease = draw.choice((0.0, 0.3, 0.7, 1.0))
    for sample in range(SAMPLES):
      right, scored = draw.random() < ease, draw.random() > 0.1
      cluster = draw.choice((None, *range(1, 4))) if not right else 0
      rows.append(
        {
          "problem": f"p{problem}",
          "sample": sample,
          "scored": scored,
          "cluster": cluster,
          "true_reward": float(right) if scored else None,
          "certainty": draw.choice((1.0, 2.0, 3.0)),
          "text": "" if cluster is None else f"\\boxed{{{cluster}}}",
          "faithfulness": None,
          "tokens": 3,
          "answer": None if cluster is None else str(cluster),
          "stop": draw.choice(("eos", "length")),
        }
      )
  return rows


@pytest.mark.parametrize("seed", range(3))
def test_figures_against_brute_force(seed):
  rows = records(seed)
  figures, histogram = pre_rl.measure(rows, SAMPLES, (1, SAMPLES))
  groups = [list(group) for _, group in itertools.groupby(rows, lambda r: r["problem"])]
  solved = []
  for group in groups:
    if any(row["scored"] for row in group):
      solved.append(len([row for row in group if row["true_reward"] == 1.0]))
  assert histogram == [solved.count(n) for n in range(SAMPLES + 1)] and sum(histogram) == len(solved)
  assert figures["usable"] == pytest.approx(sum(0 < n < SAMPLES for n in solved) / len(solved))
  assert figures["usable_problems"] == sum(0 < n < SAMPLES for n in solved) > 0
  assert figures["never"] + figures["usable"] + figures["always"] == pytest.approx(1)
  rights, margins, aucs = [], [], []
  for g in groups:
    tally = {}
    for r in g:
      if r["cluster"] is not None:
        tally[r["cluster"]] = tally.get(r["cluster"], 0) + 1
    ranked = sorted(tally, key=lambda c: (-tally[c], [r["cluster"] for r in g].index(c)))
    if ranked:
      margins.append((tally[ranked[0]] - (tally[ranked[1]] if len(ranked) > 1 else 0)) / SAMPLES)
      first = next(r for r in g if r["cluster"] == ranked[0])
      rights += [first["true_reward"]] if first["scored"] else []
    pairs = [(a["certainty"], b["certainty"]) for a in g for b in g if a["true_reward"] == 1 and b["true_reward"] == 0]
    aucs += [sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)] if pairs else []
  for name, values in (("vote_right", rights), ("vote_margin", margins), ("certainty_auc", aucs)):
    assert figures[name] == pytest.approx(sum(values) / len(values)), name
    assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
  assert figures["format"] == pytest.approx(sum(r["answer"] is not None for r in rows) / len(rows))
  assert figures["clipped"] == pytest.approx(sum(r["stop"] == "length" for r in rows) / len(rows))


def test_what_is_undefined_is_nan():
  rows = [dict(r, scored=False, true_reward=None, cluster=None) for r in records(0)]
  figures, histogram = pre_rl.measure(rows, SAMPLES, (1,))
  assert all(math.isnan(figures[name]) for name in ("usable", "vote_right", "vote_margin", "certainty_auc"))
  assert sum(histogram) == 0 and pre_rl.vote(rows[:4]) == (None, None) and pre_rl.auc([(1.0, True)]) is None
