"""Faithfulness, diversity and agreement against separate computations, and missing labels, which may not count."""

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest

from jaxrlvr.analysis import passk, reasoning
from jaxrlvr.tasks.arithmetic import faithfulness as exact
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.splits import LEVELS
from jaxrlvr.text.answer import parse_response, thinking


def row(problem, faithfulness, cluster=0, correct=True):
  return {"problem": problem, "faithfulness": faithfulness, "cluster": cluster, "correct": correct}


def test_faithfulness_shares_by_hand():
  """Problem p has labels 1, 0.5 (right), 0 (wrong) and a missing one; q has 1 (right), 1 (wrong) and 0 (unscored)."""
  rows = [row("p", 1.0), row("p", 0.5), row("p", 0.0, correct=False), row("p", None)]
  rows += [row("q", 1.0), row("q", 1.0, correct=False), row("q", 0.0, correct=None)]
  figures = reasoning.reasoning_figures(rows)
  want = {
    "all": (3 / 6, 1 / 6, 2 / 6, 6, 1),
    "correct": (2 / 3, 1 / 3, 0.0, 3, 1),
    "incorrect": (1 / 2, 0.0, 1 / 2, 2, 0),
  }
  for subset, values in want.items():
    names = [f"F({x})/{subset}" for x in ("1", "0.5", "0")] + [f"labelled/{subset}", f"missing/{subset}"]
    assert [figures[name] for name in names] == pytest.approx(values), subset
  # both problems drawn, or one of them twice: the interval of F(1) reaches from p's 1/3 to q's 2/3
  assert (figures["F(1)/all_low"], figures["F(1)/all_high"]) == pytest.approx((1 / 3, 2 / 3))


def test_nothing_labelled_is_undefined_and_never_zero():
  figures = reasoning.reasoning_figures([row("p", None, None), row("q", None, None)])
  assert (
    math.isnan(figures["F(1)/all"]) and math.isnan(figures["diversity"]) and math.isnan(figures["faithful_diversity"])
  )
  assert figures["missing/all"] == figures["diversity/left_out"] == 2 and figures["diversity/problems"] == 0
  only = reasoning.reasoning_figures([row("p", 1.0, correct=True)])
  assert math.isnan(only["F(1)/incorrect"]) and only["labelled/incorrect"] == 0 and only["F(1)/correct"] == 1


def test_interval_is_over_problems_and_narrows_with_them():
  draw = np.random.default_rng(0)

  def width(problems):
    rows = [row(p, float(draw.random() < rate)) for p, rate in enumerate(draw.random(problems)) for _ in range(16)]
    figures = reasoning.reasoning_figures(rows)
    assert figures["F(1)/all_low"] < figures["F(1)/all"] < figures["F(1)/all_high"]
    return figures["F(1)/all_high"] - figures["F(1)/all_low"]

  assert width(200) < width(8) / 2
  alike = reasoning.reasoning_figures([row(p, float(i < 8)) for p in range(8) for i in range(16)])
  assert alike["F(1)/all_low"] == alike["F(1)/all_high"] == 0.5  # problems do not differ, responses within them do


def entropy_by_hand(clusters):
  """Returns the diversity by its definition, with logarithms of another base."""
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
  """Clusters as the paper describes it, with lists of members; returns {item: number of its cluster}."""
  clusters = []
  for i, item in enumerate(items):
    answers = [same(items[members[0]], item) for members in clusters]
    before = answers[: answers.index(True)] if True in answers else answers
    if None in before:
      continue
    if True in answers:
      clusters[answers.index(True)].append(i)
    else:
      clusters.append([i])
  return {i: number for number, members in enumerate(clusters) for i in members}


def test_greedy_clusters_against_the_slow_way():
  """The relation is random: neither symmetric nor transitive, and with answers missing."""
  draw = np.random.default_rng(2)
  left_out = 0
  for _ in range(200):
    size = int(draw.integers(1, 9))
    table = draw.choice(np.array([True, False, None], object), size=(size, size), p=(0.3, 0.55, 0.15))
    same = lambda a, b, table=table: table[a, b]  # noqa: E731
    numbers = reasoning.cluster(range(size), same)
    want = slow_clusters(range(size), same)
    assert numbers == [want.get(i) for i in range(size)]
    left_out += numbers.count(None)
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
  figures = reasoning.diversity_figures("diversity", [[0, 1, None], [None, None], []])
  assert figures["diversity"] == pytest.approx(1.0) and figures["diversity/n_eff"] == pytest.approx(2.0)
  assert (figures["diversity/problems"], figures["diversity/left_out"], figures["diversity/clusters"]) == (1, 3, 2)


def test_with_half_of_it_left_out_a_problem_has_no_diversity():
  """During an outage only the first response is in a cluster, as it founds one unasked: that is no diversity of 0."""
  outage = reasoning.cluster(range(4), lambda a, b: None)
  assert outage == [0, None, None, None]
  figures = reasoning.diversity_figures("diversity", [outage, [0, 1, None, None], [0], [0, 1]])
  assert figures["diversity/problems"] == 2 and figures["diversity/left_out"] == 5 and figures["diversity"] == 0.5


def test_faithful_diversity_is_that_of_responses_labelled_one():
  rows = [row("p", x, c) for x, c in ((1.0, 0), (1.0, 1), (0.5, 2), (0.0, 3), (None, 4), (1.0, None))]
  figures = reasoning.reasoning_figures([*rows, row("q", 0.5, 0)])
  assert figures["faithful_diversity"] == pytest.approx(1.0) and figures["faithful_diversity/clusters"] == 2
  assert figures["faithful_diversity/problems"] == 1 and figures["faithful_diversity/left_out"] == 1
  assert figures["diversity"] == pytest.approx(0.5)  # p: five of five clusters, q: one


def test_diversity_of_the_correct_responses():
  rows = [row("p", 1.0, c, right) for c, right in ((0, True), (1, True), (2, False), (3, None), (None, True))]
  figures = reasoning.reasoning_figures([*rows, row("q", 1.0, 0, False)])
  assert figures["diversity/correct"] == pytest.approx(1.0) and figures["diversity/correct/clusters"] == 2
  assert figures["diversity/correct/problems"] == 1 and figures["diversity/correct/left_out"] == 1


def test_kappa_of_a_table_by_hand():
  """Of 50 items both call 20 one and 15 zero; they differ on 5 and 10.

  p_o = 0.7, p_e = 0.5*0.6 + 0.5*0.4 = 0.5, kappa = 0.4.
  """
  pairs = [(1.0, 1.0)] * 20 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10 + [(0.0, 0.0)] * 15
  agreement = reasoning.agreement([[pair] for pair in pairs])
  assert agreement.kappa == pytest.approx(0.4) and agreement.agreed == pytest.approx(0.7) and agreement.both == 50
  assert agreement.low < 0.4 < agreement.high and 0.1 < agreement.low and agreement.high < 0.7
  three = [(1.0, 1.0)] * 4 + [(0.5, 0.5)] * 2 + [(0.0, 0.0)] * 2 + [(1.0, 0.5), (0.5, 0.0)]
  # marginals (5, 3, 2) and (4, 3, 3) of 10: p_e = (20 + 9 + 6) / 100, p_o = 0.8
  assert reasoning.agreement([three]).kappa == pytest.approx((0.8 - 0.35) / 0.65)
  assert reasoning.agreement([[(True, False), (False, True)]]).kappa == pytest.approx(-1.0)


def test_kappa_leaves_missing_out_and_says_where_it_is_undefined():
  pairs = [(1.0, 1.0), (0.0, 0.0), (None, 1.0), (0.0, None), (None, None)]
  agreement = reasoning.agreement([pairs])
  assert agreement.kappa == 1.0 and (agreement.both, agreement.missing) == (2, 3)
  same = reasoning.agreement([[(1.0, 1.0)] * 3])
  assert same.kappa is None and same.agreed == 1.0 and "same label" in same.note
  nothing = reasoning.agreement([[(None, 1.0)], []])
  assert nothing.kappa is None and (nothing.both, nothing.missing) == (0, 1) and "both judges" in nothing.note
  constant = reasoning.agreement([[(1.0, 1.0), (1.0, 0.0)]])  # one judge is constant: no better than chance
  assert constant.kappa == 0.0 and constant.note == ""


def test_bootstrap_leaves_out_undefined_draws():
  """One of two problems is constant: draws that hold only it have no kappa, all other draws have one."""
  agreement = reasoning.agreement([[(1.0, 1.0)] * 4, [(1.0, 1.0), (0.0, 0.0)]])
  assert agreement.kappa == 1.0 and (agreement.low, agreement.high) == (1.0, 1.0)
  assert all(math.isnan(x) for x in passk.bootstrap([1.0, 2.0], lambda values: math.nan))


def strategy(text):
  """Returns the exact judge's description of the strategy of a response with this text."""
  return exact.strategy(parse_response(text, "boxed"))


def test_strategies_of_the_built_in_domain():
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


def test_questions_are_read_as_they_were_made():
  for level, kind in itertools.product(LEVELS, arithmetic.KINDS):
    for index in range(20):
      p = arithmetic.problem(0, "train", level, index, kind)
      assert arithmetic.read_question(p.messages[-1]["content"]) == p.extra["tree"]
  for text in (
    "",
    "What is 1+1?",
    "Start with 5, then +7. Last digit? And why?",
    "Work out a+b. Last digit?",
    "Work out 3+. Last digit?",
    "Work out (3+4. Last digit?",
    "Work out 3+4). Last digit?",
    f"Work out {'(' * 5000}. Last digit?",
  ):
    assert arithmetic.read_question(text) is None


def test_expressions_by_precedence_and_from_left_to_right():
  assert arithmetic.parse_expression("3+2*7") == ("+", 3, ("*", 2, 7))
  assert arithmetic.parse_expression("3+2*7", precedence=False) == ("*", ("+", 3, 2), 7)
  assert arithmetic.parse_expression("-4 - (5+1)") == ("-", -4, ("+", 5, 1))
  assert arithmetic.parse_expression("((7))") == 7
  for text in ("", "3 4", "3**4", "--3", "-(3)", "()", "(3+4", "3+4)", "3+x", "3/4", "1" * 201):
    assert arithmetic.parse_expression(text) is None, text


CHAIN = "Start with 3, then -2, +7, *7, -4, *3. Last digit?"  # 3 1 8 6 2 6
TREE = "Work out ((9-4)*3)+(8-(2+5)). Last digit?"  # 5 5 (7 1) 6
LARGE = "Start with 37, then +25, *13. Last digit?"  # 2 6
HEAD = "13-2=11\n1+7=8\n8*7=56\n16-4=12\n"  # all steps of the chain but the last


def judged(trace, stated, question=CHAIN):
  return exact.faithfulness(parse_response(arithmetic.respond(trace, stated), "boxed"), question)


@pytest.mark.parametrize(
  "trace, stated, question",
  [
    (HEAD + "2*3=6", "6", CHAIN),
    ("3-2=1\n1+7=8\n8*7=56\n6-4=2\n2*3=6", "6", CHAIN),  # nothing borrowed where nothing need be
    ("3-2=1\n1+7=8\n8*7=56\n56-4=52\n52*3=156", "6", CHAIN),  # whole results gone on with
    ("13-2=11\n7+1=8\n7*8=56\n16-4=12\n3*2=6", "6", CHAIN),  # sides changed
    ("13-2=11\n1+7=9\n9*7=63\n13-4=9\n9*3=27", "7", CHAIN),  # a slip, gone on with to a wrong answer
    (HEAD + "2*3=8", "8", CHAIN),  # a slip at the end
    ("13-2=1\n1+7=8\n8*7=56\n16-4=12\n2*3=6", "6", CHAIN),  # a ten borrowed and forgotten is a slip of one line
    ("3+7=10\n10-2=8\n8*7=56\n16-4=12\n2*3=6", "6", CHAIN),  # the run -2, +7 in another order
    ("7-2=5\n3+5=8\n8*7=56\n16-4=12\n2*3=6", "6", CHAIN),  # and grouped otherwise
    ("3+5=8\n8*7=56\n16-4=12\n2*3=6", "6", CHAIN),  # -2, +7 done in the head
    ("3-2+7=8\n8*7-4=52\n2*3=6", "6", CHAIN),  # two operations in a line
    ("3-2=1+7=8*7=56-4=52*3=156", "6", CHAIN),  # equals signs in a row
    ("((3-2+7)*7-4)*3=156", "6", CHAIN),
    ("so:\n" + HEAD + "\nand then\n2*3=6\ndone", "6", CHAIN),  # words are no steps
    ("take away 2: 13-2=11, add 7: 1+7=8, times 7: 8*7=56, 16-4=12, 2*3=6. The answer is 6.", "6", CHAIN),
    ("13-2=11, keep 1; 1+7=8, keep 8; 8*7=56, keep 6; 16-4=12, keep 2; 2*3=6, keep 6.", "6", CHAIN),
    ("1. 3 - 2 = 1\n2. $1 + 7 = 8$\n3. 8 × 7 = 56\n- 6 − 4 = 2\n- 2 \\times 3 = 6", "6", CHAIN),
    ("19-4=15\n5*3=15\n2+5=7\n18-7=11\n5+1=6", "6", TREE),
    ("2+5=7\n8-7=1\n9-4=5\n5*3=15\n15+1=16", "6", TREE),  # the right branch first
    ("2+5=7\n9-4=5\n8-7=1\n5*3=15\n1+5=6", "6", TREE),
    ("9-4=5\n5*3=15\n5+8=13\n13-2=11\n11-5=6", "6", TREE),  # its brackets opened
    ("37+25=62\n62*13=806", "6", LARGE),
    ("7+5=12\n2*3=6", "6", LARGE),
    ("37+25=62\n2*13=26", "6", LARGE),
  ],
)
def test_a_trace_that_does_what_is_asked_is_faithful(trace, stated, question):
  assert judged(trace, stated, question).label == 1.0


@pytest.mark.parametrize(
  "trace, stated, label",
  [
    ("13-2=12\n2+7=8\n8*7=56\n16-4=12\n2*3=6", "6", 0.5),  # two slips
    ("13-2=11\n1+7=9\n8*7=56\n16-4=12\n2*3=6", "6", 0.5),  # a false result that is not gone on with
    ("13-2=11\n1+7=8\n8*7=56\n16-5=11\n1*3=3", "3", 0.5),  # one invented number
    ("13-2=11\n1+7=8\n8*7=56\n6+4=10\n0*3=0", "0", 0.5),  # another operation
    ("13-2=11\n1+7=8\n8*7=56", "6", 0.5),  # the last steps are missing, and yet the answer is there
    (HEAD + "2*3=6\n6+0=6", "6", 0.5),  # a step too many
    ("13-2=11\n13-2=11\n1+7=8\n8*7=56\n16-4=12\n2*3=6", "6", 0.5),  # told again
    ("13-2=11\n7++5=12\n1+7=8\n8*7=56\n16-4=12\n2*3=6", "6", 0.5),  # what can't be read
    ("13-2=11\n1+7=8\n14/7=2\n8*7=56\n16-4=12\n2*3=6", "6", 0.5),
    ("2+2=4\n14-7=7\n7*9=63\n3-1=2\n2*3=6", "6", 0.0),  # true, chained, and on numbers of its own
    ("4+1=5\n5+9=14\n4*9=36\n6+1=7\n7+9=16", "6", 0.0),
    ("13-2=11\n1*7=7\n17-4=13\n3*3=9", "9", 0.0),  # an operation left out, and the rest off it
    ("3-2+7*7-4*3=6", "6", 0.0),  # several operations in a line are a guess where they don't come to it
    (HEAD + "2*3=6", "7", 0.0),  # another answer
    (HEAD + "2*3=6\nso the last digit is 4.", "6", 0.0),
    (HEAD + "2*3=", "6", 0.0),
    ("13-2=11", "6", 0.0),
    ("2*3=6", "6", 0.0),
    ("the last digit is 6", "6", 0.0),
    ("", "6", 0.0),
    (None, "6", 0.0),
    (HEAD + "2*3=6", "16", 0.0),
    (HEAD + "2*3=6", "six", 0.0),
  ],
)
def test_a_trace_that_does_something_else_is_not(trace, stated, label):
  assert judged(trace, stated).label == label


def test_true_steps_are_counted_apart_from_faithfulness():
  invented = judged("2+2=4\n14-7=7\n7*9=63\n3-1=2\n2*3=6", "6")
  assert (invented.label, invented.step_true) == (0.0, 1.0)
  slip = judged("13-2=11\n1+7=9\n9*7=63\n13-4=9\n9*3=27", "7")
  assert (slip.label, slip.step_true) == (1.0, 0.8)
  assert judged("well", "6").step_true is None and judged("7++5=12\n13-2=11", "6").step_true == 0.5
  assert judged(HEAD, "6", "What is 1+1?") is None


def test_a_guess_of_all_that_is_left_is_no_merged_step():
  for question, trace, stated in (
    ("Work out (3-7)+(((0+3)+(1-8))+4). Last digit?", "13-7=6", "6"),  # the other branch comes to 0
    ("Start with 35, then +52, -92, -84, +34, +34, -42. Last digit?", "5+2=7", "7"),
    ("Start with 3, then +2, +4, -5, +1. Last digit?", "3+2=5", "5"),  # 2 is also all the others together
  ):
    assert judged(trace, stated, question).label == 0.0


def test_wordings_of_the_training_text_are_faithful():
  for kind, level, wording in itertools.product(arithmetic.KINDS, LEVELS, arithmetic.WORDINGS):
    p = arithmetic.problem(5, "train", level, 0, kind)
    trace = thinking(text := wording(p.extra["tree"])) or text
    assert judged(trace, p.truth, p.messages[0]["content"]) == (1.0, 1.0), trace


def test_traces_of_other_problems_are_hardly_ever_taken_for_this_one():
  """The traces are true, chained, and end in the right last digit; only by chance do steps fit this problem."""
  labels = []
  for kind, level, index in itertools.product(arithmetic.KINDS, (2, 3, 4, 5), range(50)):
    p, other = (arithmetic.problem(seed, "train", level, index, kind) for seed in (0, 1))
    trace = thinking(arithmetic.careful(other.extra["tree"]))
    labels.append(judged(trace, other.truth, p.messages[0]["content"]).label)
  assert labels.count(1.0) == 0 and np.mean(labels) < 0.01


@pytest.mark.parametrize(
  "trace",
  [
    "1+1=2\n" * 10**6,
    "3-2=1\n" * 3000,
    "(" * 10**6,
    "+" * 19_999,
    "=" * 19_999,
    "1=" * 9_999,
    " " * 19_990 + "=2",
    "1+" * 9_990 + "=2",
    "-" * 19_000 + "1=2",
    "1+1=" + "9" * 19_000,
    "3-2=1\n" * 10,
    "\ud800\x00３+４=７",
  ],
)
def test_hostile_traces_take_no_time(trace):
  start = time.process_time()
  assert judged(trace, "2").label == judged(trace, "1").label == 0.0
  strategy(arithmetic.respond(trace, "1"))
  assert time.process_time() - start < 2


def test_questions_of_many_operations_take_no_time():
  def many(count):
    return f"Work out {'+'.join(['1'] * (count + 1))}. Last digit?"

  start = time.process_time()
  assert judged("1+1=2\n" * 16, "2", many(16)).label == 0.0
  assert judged("+".join(["1"] * 17) + "=17", "7", many(16)).label == 1.0
  assert judged("1+1=2", "2", many(17)) is None
  assert time.process_time() - start < 5
