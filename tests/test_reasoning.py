"""Faithfulness, diversity and agreement against computations of their own, and what missing verdicts may not do."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from jaxrlvr.analysis import passk, reasoning
from jaxrlvr.data import arithmetic
from jaxrlvr.text.answer import parse
from jaxrlvr.verify import arithmetic as exact


def row(problem, faithfulness, cluster=0, correct=True):
  return {"problem": problem, "faithfulness": faithfulness, "cluster": cluster, "correct": correct}


def test_faithfulness_shares_by_hand():
  """p: 1, 0.5 right, 0 wrong, one missing; q: 1 right, 1 wrong, 0 unscored."""
  rows = [row("p", 1.0), row("p", 0.5), row("p", 0.0, correct=False), row("p", None)]
  rows += [row("q", 1.0), row("q", 1.0, correct=False), row("q", 0.0, correct=None)]
  found = reasoning.summarise(rows)
  want = {
    "all": (3 / 6, 1 / 6, 2 / 6, 6, 1),
    "correct": (2 / 3, 1 / 3, 0.0, 3, 1),
    "incorrect": (1 / 2, 0.0, 1 / 2, 2, 0),
  }
  for subset, values in want.items():
    names = [f"F({x})/{subset}" for x in ("1", "0.5", "0")] + [f"labelled/{subset}", f"missing/{subset}"]
    assert [found[name] for name in names] == pytest.approx(values), subset
  # both problems drawn, or one of them twice: the interval of F(1) reaches from p's 1/3 to q's 2/3
  assert (found["F(1)/all_low"], found["F(1)/all_high"]) == pytest.approx((1 / 3, 2 / 3))


def test_nothing_labelled_is_undefined_and_never_zero():
  found = reasoning.summarise([row("p", None, None), row("q", None, None)])
  assert math.isnan(found["F(1)/all"]) and math.isnan(found["diversity"]) and math.isnan(found["faithful_diversity"])
  assert found["missing/all"] == found["diversity/left_out"] == 2 and found["diversity/problems"] == 0
  only = reasoning.summarise([row("p", 1.0, correct=True)])
  assert math.isnan(only["F(1)/incorrect"]) and only["labelled/incorrect"] == 0 and only["F(1)/correct"] == 1


def test_interval_is_over_problems_and_narrows_with_them():
  draw = np.random.default_rng(0)

  def width(problems):
    rows = [row(p, float(draw.random() < rate)) for p, rate in enumerate(draw.random(problems)) for _ in range(16)]
    found = reasoning.summarise(rows)
    assert found["F(1)/all_low"] < found["F(1)/all"] < found["F(1)/all_high"]
    return found["F(1)/all_high"] - found["F(1)/all_low"]

  assert width(200) < width(8) / 2
  alike = reasoning.summarise([row(p, float(i < 8)) for p in range(8) for i in range(16)])
  assert alike["F(1)/all_low"] == alike["F(1)/all_high"] == 0.5  # problems do not differ, responses within them do


def entropy_by_hand(clusters):
  """Div from the definition, with logs of another base."""
  shares = [n / len(clusters) for n in Counter(clusters).values()]
  n_eff = 2 ** -sum(p * math.log2(p) for p in shares)
  return (n_eff - 1) / (len(shares) - 1) if len(shares) > 1 else 0.0


def test_diversity_against_the_definition():
  draw = np.random.default_rng(1)
  for size, kinds in itertools.product((1, 2, 5, 16), (1, 2, 3, 16)):
    clusters = draw.integers(kinds, size=size).tolist()
    assert reasoning.diversity(clusters) == pytest.approx(entropy_by_hand(clusters), abs=1e-12)
  assert reasoning.diversity([4, 4, 4]) == 0.0 and reasoning.diversity(range(16)) == pytest.approx(1.0)
  assert reasoning.diversity([0] * 15 + [1]) == pytest.approx(math.exp(0.2337917) - 1, abs=1e-6)
  assert math.isnan(reasoning.diversity([]))


def slow_clusters(items, same):
  """The procedure as the paper tells it, as sets of members."""
  made = []
  for i, item in enumerate(items):
    said = [same(items[members[0]], item) for members in made]
    before = said[: said.index(True)] if True in said else said
    if None in before:
      continue
    if True in said:
      made[said.index(True)].append(i)
    else:
      made.append([i])
  return {i: number for number, members in enumerate(made) for i in members}


def test_greedy_clusters_against_the_slow_way():
  """Any relation: not symmetric, not transitive, with answers missing."""
  draw = np.random.default_rng(2)
  left_out = 0
  for _ in range(200):
    size = int(draw.integers(1, 9))
    table = draw.choice(np.array([True, False, None], object), size=(size, size), p=(0.3, 0.55, 0.15))
    same = lambda a, b, table=table: table[a, b]  # noqa: E731
    found = reasoning.cluster(range(size), same)
    want = slow_clusters(range(size), same)
    assert found == [want.get(i) for i in range(size)]
    left_out += found.count(None)
  assert left_out > 50


def test_each_is_compared_with_the_first_member_in_order_of_creation():
  asked = []

  def same(a, b):
    asked.append((a, b))
    return abs(a - b) <= 1

  assert reasoning.cluster([0, 1, 2, 5, 1], same) == [0, 0, 1, 2, 0]  # 2 is near to 1, but not to 0, the first
  assert asked == [(0, 1), (0, 2), (0, 5), (2, 5), (0, 1)]


def test_problems_advance_side_by_side_and_alike():
  items, sizes = [[3, 3, 4], [], [1], [7, 8, 8, 9]], []

  def same(triples):
    sizes.append(len(triples))
    assert len({p for p, _, _ in triples}) == len(triples)
    return [items[p][a] == items[p][b] for p, a, b in triples]

  assert reasoning.cluster_all([len(x) for x in items], same) == [[0, 0, 1], [], [0], [0, 1, 1, 2]]
  assert sizes == [2, 2, 1, 1, 1]


def test_left_out_responses_are_in_no_cluster_and_no_share():
  found = reasoning.diversities("diversity", [[0, 1, None], [None, None], []])
  assert found["diversity"] == pytest.approx(1.0) and found["diversity/n_eff"] == pytest.approx(2.0)
  assert (found["diversity/problems"], found["diversity/left_out"], found["diversity/clusters"]) == (1, 3, 2)


def test_with_half_of_it_left_out_a_problem_has_no_diversity():
  """The first response founds a cluster unasked: in an outage that is all there is, and no diversity of 0."""
  outage = reasoning.cluster(range(4), lambda a, b: None)
  assert outage == [0, None, None, None]
  found = reasoning.diversities("diversity", [outage, [0, 1, None, None], [0], [0, 1]])
  assert found["diversity/problems"] == 2 and found["diversity/left_out"] == 5 and found["diversity"] == 0.5


def test_faithful_diversity_is_that_of_responses_labelled_one():
  rows = [row("p", x, c) for x, c in ((1.0, 0), (1.0, 1), (0.5, 2), (0.0, 3), (None, 4), (1.0, None))]
  found = reasoning.summarise([*rows, row("q", 0.5, 0)])
  assert found["faithful_diversity"] == pytest.approx(1.0) and found["faithful_diversity/clusters"] == 2
  assert found["faithful_diversity/problems"] == 1 and found["faithful_diversity/left_out"] == 1
  assert found["diversity"] == pytest.approx(0.5)  # p: five of five clusters, q: one


def test_kappa_of_a_table_by_hand():
  """20 both say 1, 5 and 10 they differ, 15 both say 0: p_o = 0.7, p_e = 0.5*0.6 + 0.5*0.4 = 0.5, kappa = 0.4."""
  pairs = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
  found = reasoning.agreement([[pair] for pair in pairs])
  assert found.kappa == pytest.approx(0.4) and found.agreed == pytest.approx(0.7) and found.both == 50
  assert found.low < 0.4 < found.high and 0.1 < found.low and found.high < 0.7
  three = [(1.0, 1.0)] * 4 + [(0.5, 0.5)] * 2 + [(0.0, 0.0)] * 2 + [(1.0, 0.5), (0.5, 0.0)]
  # marginals (5, 3, 2) and (4, 3, 3) of 10: p_e = (20 + 9 + 6) / 100, p_o = 0.8
  assert reasoning.agreement([three]).kappa == pytest.approx((0.8 - 0.35) / 0.65)
  assert reasoning.agreement([[(True, False), (False, True)]]).kappa == pytest.approx(-1.0)


def test_kappa_leaves_missing_out_and_says_where_it_is_undefined():
  pairs = [(1.0, 1.0), (0.0, 0.0), (None, 1.0), (0.0, None), (None, None)]
  found = reasoning.agreement([pairs])
  assert found.kappa == 1.0 and (found.both, found.missing) == (2, 3)
  same = reasoning.agreement([[(1.0, 1.0)] * 3])
  assert same.kappa is None and same.agreed == 1.0 and "same label" in same.note
  nothing = reasoning.agreement([[(None, 1.0)], []])
  assert nothing.kappa is None and (nothing.both, nothing.missing) == (0, 1) and "both judges" in nothing.note
  constant = reasoning.agreement([[(1.0, 1.0), (1.0, 0.0)]])  # one judge is constant: no better than chance
  assert constant.kappa == 0.0 and constant.note == ""


def test_bootstrap_leaves_out_undefined_draws():
  """Of two problems one is constant: draws of it alone have no kappa, all others have one."""
  found = reasoning.agreement([[(1.0, 1.0)] * 4, [(1.0, 1.0), (0.0, 0.0)]])
  assert found.kappa == 1.0 and (found.low, found.high) == (1.0, 1.0)
  assert all(math.isnan(x) for x in passk.bootstrap([1.0, 2.0], lambda values: math.nan))


def strategy(text):
  """What a response of this text does."""
  return exact.strategy(parse(text, "boxed"))


def test_strategies_of_the_embedded_domain():
  def trace(*lines):
    return arithmetic.respond("\n".join(lines), "1")

  chain = trace("7+5=12", "2*3=6", "6+8=14")
  assert strategy(chain) == ("(((5+7)*3)+8)",) != ()
  assert strategy(trace("5+7=12", "3*2=6", "8+6=14")) == strategy(chain)  # sides of + and *
  assert strategy(trace("7+5=13", "3*3=9", "9+8=17")) == strategy(chain)  # a slip is carried on
  assert strategy(trace("2*3=6", "7+5=12", "6+8=14")) != strategy(chain)  # the product needs the sum
  assert strategy(trace("7+5=12")) != strategy(chain)
  assert strategy(trace("13-8=5")) != strategy(trace("18-3=15"))
  two = trace("1+2=3", "4*7=28", "3+8=11")
  assert strategy(two) == strategy(trace("4*7=28", "1+2=3", "8+3=11"))  # neither needs the other
  assert strategy(trace("1+2=3", "4*7=28")) == strategy(trace("1+2=9", "4*7=28"))  # a slip in what is left hanging
  assert strategy("\\boxed{1}") == strategy(trace()) == strategy(trace("well")) == ()
  assert strategy("<think>\n7+5=12\n2*3") == strategy(trace("7+5=12", "hm"))
  assert len(strategy(trace(*["3+3=6"] * 3000))) < 300


def test_operations_of_a_question():
  for level, kind in itertools.product(arithmetic.LEVELS, arithmetic.KINDS):
    for index in range(20):
      p = arithmetic.problem(0, "train", level, index, kind)
      assert arithmetic.operations(p.messages[-1]["content"]) == p.extra["operations"] == level + 1
  for text in ("", "What is 1+1?", "Start with 5, then +7. Last digit? And why?", "Work out a+b. Last digit?"):
    assert arithmetic.operations(text) is None
