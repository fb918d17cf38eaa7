"""Arithmetic: its problems, the verifier of its answers, and the exact judge of its traces."""

import re

import pytest

from helpers.grading import SAYS, read
from jaxrlvr.tasks.arithmetic import faithfulness as judge
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.arithmetic import verify
from jaxrlvr.tasks.splits import LEVELS
from jaxrlvr.text.answer import parse_response


def faithfulness(text, question):
  """Returns the exact judge's label of a response with this text."""
  return judge.faithfulness(parse_response(text, "boxed"), question).label


def plain_value(tree):
  """Returns the integer value of a tree by ordinary arithmetic, without dropping digits."""
  if isinstance(tree, int):
    return tree
  a, b = plain_value(tree[1]), plain_value(tree[2])
  return {"+": a + b, "-": a - b, "*": a * b}[tree[0]]


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_answers_are_the_last_digit_and_traces_are_faithful(kind):
  for level in LEVELS:
    for index in range(60):
      p = arithmetic.problem(0, "train", level, index, kind)
      tree, n = p.extra["tree"], p.extra["operations"]
      assert n == level + 1 and int(p.truth) == plain_value(tree) % 10 and p.label == p.truth
      asked = p.messages[0]["content"]
      assert arithmetic.read_question(asked) == tree
      assert all(len(number) == (2 if kind == "large" else 1) for number in re.findall(r"\d+", asked))
      if kind == "expression":
        text = p.messages[0]["content"].removeprefix("Work out ").split(". Last")[0]
        assert eval(text) % 10 == int(p.truth)
      careful = arithmetic.careful(tree)
      assert verify.grade(read(careful), p.label, p.extra).score == 1.0 and faithfulness(careful, asked) == 1.0
      for a, op, b, result in arithmetic.solve(tree).steps:
        assert eval(f"{a}{op}{b}") == result >= 0


def test_train_and_heldout_never_meet():
  trains = {arithmetic.problem(s, "train", 1, i).id for s in range(3) for i in range(800)}
  held = {arithmetic.problem(s, "heldout", 1, i).id for s in range(3) for i in range(800)}
  assert not trains & held and len(held) > 100
  few, many = (arithmetic.problems(0, "train", (2, 4), n) for n in (8, 64))
  assert many[:8] == few and len({p.id for p in many}) == 64
  assert {p.extra["level"] for p in many} == {2, 4}
  with pytest.raises(ValueError, match="only .* exist"):
    arithmetic.problems(0, "heldout", (1,), 10**6 // 8)


def test_problems_differ_by_seed_and_stream():
  def ids(seed, stream):
    return [arithmetic.problem(seed, "train", 4, i, stream=stream).id for i in range(20)]

  assert not set(ids(0, "rl")) & set(ids(1, "rl")) and not set(ids(0, "rl")) & set(ids(0, "sft"))


@pytest.mark.parametrize(
  ("response", "score"),
  [
    ("\\boxed{7}", True),
    ("\\boxed{ +07 }", True),
    ("\\boxed{-7}", False),
    ("7", None),
    ("\\boxed{\uff17}", None),
    ("\\boxed{7.0}", None),
    ("\\boxed{" + "0" * 20 + "7}", None),
    ("\\boxed{7}</think>", None),
  ],
)
def test_arithmetic(response, score):
  assert verify.grade(read(response), "7", {}) == SAYS[score]
