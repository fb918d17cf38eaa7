"""Generates the built-in domain from a seed: last-digit arithmetic, whose reasoning can be judged exactly.

A problem is a chain ("Start with 7, then +5, *3, ...") or an expression with brackets; only its last digit is asked. A
problem of level n has n + 1 operations. It is exact to carry on with the last digit of each result, so every step is
one of about 200 small facts; without the steps, the answer is close to a uniform digit. A thinking trace has one line a
step: `7+5=12`, then `2*3=6`. The kind "large" is a chain of numbers with two digits, of which only the last one counts.

A tree is a whole number, or (operator, left tree, right tree) with the operator "+", "-" or "*".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.splits import LEVELS, SPLITS, split_of_text
from jaxrlvr.text.tags import THINK, THINK_END

KINDS = ("chain", "expression", "large")
_FACTORS = (3, 7, 9)  # coprime to 10, so that a product determines the other factor's last digit

_CHAIN = re.compile(r"Start with ([0-9]+), then ([+*-][0-9]+(?:, [+*-][0-9]+)*)\. Last digit\?")
_EXPRESSION = re.compile(r"Work out ([0-9()+*-]+)\. Last digit\?")
_LONGEST = 200  # characters; a longer question or expression is not read
# So many draws in a row without a new problem mean that all are known: _MISSES, and more for each known problem.
_MISSES = 1000
_MISSES_PER_PROBLEM = 20
_FACT_LINES = 8
_TOKEN = re.compile(r"[0-9]+|\S")

Tree = int | tuple[str, "Tree", "Tree"]  # a number, or (operator, left, right)


class WorkedStep(NamedTuple):
  """One operation of a problem with its result, true by ordinary arithmetic: left operator right = result >= 0."""

  left: int  # a last digit, to which ten is added before a subtraction, so that no result is negative
  operator: str  # "+", "-" or "*"
  right: int  # a last digit
  result: int  # with all its digits


class Solution(NamedTuple):
  """The way to the answer of a problem."""

  steps: list[WorkedStep]  # in the order of evaluation
  last_digit: int  # of the value, from 0 to 9


def rng(seed: int, stream: str, *address: int) -> random.Random:
  """Returns a random generator that depends on these arguments alone, not on what was drawn before.

  `stream`: any name; different streams draw independently. `address`: numbers of the item within its stream.
  """
  return random.Random("/".join(map(str, (seed, stream, *address))))


def _draw_tree(draw: random.Random, operations: int, kind: str) -> Tree:
  """Returns a random tree of a kind with so many operations."""
  tens = 10 * draw.randrange(1, 10) if kind == "large" else 0
  if operations == 0:
    return tens + draw.randrange(10)
  operator = draw.choice("+-*")
  operations_on_right = 0
  if kind == "expression" and operator != "*":
    operations_on_right = draw.randrange(operations)
  left = _draw_tree(draw, operations - 1 - operations_on_right, kind)
  if operations_on_right:
    return operator, left, _draw_tree(draw, operations_on_right, kind)
  digit = draw.choice(_FACTORS) if operator == "*" else draw.randrange(1, 10)
  return operator, left, tens + digit


def solve(tree: Tree) -> Solution:
  """Returns the steps that solve a tree, one for each operation, and the last digit of its value.

  `tree`: a whole number, which needs no steps, or (operator, left tree, right tree) with "+", "-" or "*".
  Each step works with the last digits of earlier results. A difference first adds ten to the left side (`13-8=5`), so
  that every step is true as it stands.
  """
  if isinstance(tree, int):
    return Solution([], tree % 10)
  operator, left, right = tree
  left_steps, left_digit = solve(left)
  right_steps, right_digit = solve(right)
  if operator == "-":
    left_digit += 10
    result = left_digit - right_digit
  elif operator == "+":
    result = left_digit + right_digit
  else:
    result = left_digit * right_digit
  last_step = WorkedStep(left_digit, operator, right_digit, result)
  return Solution([*left_steps, *right_steps, last_step], result % 10)


def _bracketed(tree: Tree) -> str:
  """Returns a tree as an expression, with brackets around each inner operation."""
  if isinstance(tree, int):
    return str(tree)
  operator, *sides = tree
  left, right = (_bracketed(side) if isinstance(side, int) else f"({_bracketed(side)})" for side in sides)
  return left + operator + right


def _chain(tree: Tree) -> tuple[int, list[str]]:
  """Returns the start of a chain and its moves, such as "+5"."""
  if isinstance(tree, int):
    return tree, []
  operator, left, right = tree
  start, moves = _chain(left)
  return start, [*moves, f"{operator}{right}"]


def _question(tree: Tree, kind: str) -> str:
  """Returns the question that asks for the last digit of a tree; `read_question` reads it back.

  A tree of the kind "chain" or "large" has a number as every right tree.
  """
  if kind == "expression":
    return f"Work out {_bracketed(tree)}. Last digit?"
  start, moves = _chain(tree)
  return f"Start with {start}, then {', '.join(moves)}. Last digit?"


def parse_expression(text: str, precedence: bool = True) -> Tree | None:
  """Returns the tree of an expression of whole numbers, +, -, * and brackets; None for any other text.

  A tree is a whole number, or (operator, left tree, right tree) with the operator "+", "-" or "*".
  `precedence`: whether * binds closer than + and -; else operators count from left to right. A number may have a minus
  sign at the start, behind an operator and behind an opening bracket. Returns None for more than 200 characters.
  """
  if len(text) > _LONGEST:
    return None
  return _Parser(precedence).parse(_TOKEN.findall(text))


class _Parser:
  """Parses tokens by operator precedence, without recursion."""

  def __init__(self, precedence: bool):
    self._rank = {"+": 1, "-": 1, "*": 2 if precedence else 1}
    self._operands: list[Tree] = []
    self._pending: list[str] = []  # operators and opening brackets whose right side is not complete

  def parse(self, tokens: Sequence[str]) -> Tree | None:
    """Returns the tree of all tokens; None if they are no expression."""
    sign = 1
    previous = "("  # an expression begins like the inside of a bracket; a number is noted as "0", a sign as "sign"
    for token in tokens:
      begins_operand = previous != "0" and previous != ")"
      if token[0] in "0123456789" and begins_operand:
        self._operands.append(sign * int(token))
        sign, token = 1, "0"
      elif token == "-" and begins_operand and previous != "sign":
        sign, token = -1, "sign"
      elif token == "(" and begins_operand and sign == 1:
        self._pending.append(token)
      elif token == ")" and not begins_operand:
        self._apply(lowest_rank=1)
        if not self._pending:
          return None
        self._pending.pop()
      elif token in self._rank and not begins_operand:
        self._apply(self._rank[token])
        self._pending.append(token)
      else:
        return None
      previous = token
    if previous not in ("0", ")") or "(" in self._pending:
      return None
    self._apply(lowest_rank=1)
    return self._operands[0]

  def _apply(self, lowest_rank: int) -> None:
    """Applies the last pending operators, back to a bracket or to one of a lower rank."""
    while self._pending and self._rank.get(self._pending[-1], 0) >= lowest_rank:
      right = self._operands.pop()
      left = self._operands.pop()
      self._operands.append((self._pending.pop(), left, right))


def read_question(text: str) -> Tree | None:
  """Returns the tree of a problem's question; None for any other text, and for one of more than 200 characters.

  A question is `Start with 7, then +5, *3. Last digit?` or `Work out (7+5)*3. Last digit?`. A tree is a whole number,
  or (operator, left tree, right tree) with the operator "+", "-" or "*".
  """
  if len(text) > _LONGEST:
    return None
  expression = _EXPRESSION.fullmatch(text)
  if expression:
    return parse_expression(expression[1])
  chain = _CHAIN.fullmatch(text)
  if chain is None:
    return None
  tree: Tree = int(chain[1])
  for move in chain[2].split(", "):
    operator, number = move[0], int(move[1:])
    tree = (operator, tree, number)
  return tree


def problem(seed: int, split: str, level: int, index: int, kind: str = "chain", stream: str = "rl") -> Problem:
  """Returns problem number `index` (from 0) of the endless sequence that the other arguments name.

  `split`: "train" or "heldout", which never share a question, whatever the seeds. `level`: from 1 to 5; a problem of
  level n has n + 1 operations. `kind`: "chain", "expression" or "large" (a chain of numbers with two digits). `stream`:
  any name; different streams draw independently. Problems of one sequence may repeat.
  Of the Problem, id is "arithmetic/" and the question, which is the only message; label and truth are the last digit,
  "0" to "9"; verifier is "arithmetic"; extra has level, kind, operations (their number) and tree: a number, or
  (operator, left tree, right tree). Raises InputError for an unknown split, level or kind.
  """
  if split not in SPLITS or level not in LEVELS or kind not in KINDS:
    raise InputError(f"split {split!r}, level {level!r}, kind {kind!r}: take one each of {SPLITS}, {LEVELS}, {KINDS}")
  draw = rng(seed, f"{stream}/{split}/{kind}", level, index)
  operations = level + 1
  while True:
    tree = _draw_tree(draw, operations, kind)
    text = _question(tree, kind)
    if split_of_text(text) == split:
      break
  last_digit = solve(tree).last_digit
  return Problem(
    id=f"arithmetic/{text}",
    messages=({"role": "user", "content": text},),
    label=str(last_digit),
    truth=str(last_digit),
    verifier="arithmetic",
    extra={"level": level, "kind": kind, "operations": operations, "tree": tree},
  )


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str] = ("chain",)
) -> list[Problem]:
  """Returns `count` different problems as `problem` draws them: each kind of the first level, of the second, and so on.

  `seed`: other seeds draw other problems; for one seed, a longer list begins with the shorter ones. `split`: "train" or
  "heldout", which never share a question. `levels`: at least one of the difficulties 1 to 5. `kinds`: at least one of
  "chain", "expression" and "large". After the last kind of the last level, the first of the first level follows again.
  Raises InputError for an unknown split, level or kind, and if there are too few problems.
  """
  by_id: dict[str, Problem] = {}
  streams = [(level, kind) for level in levels for kind in kinds]
  draws = last_new = 0
  while len(by_id) < count:
    index, turn = divmod(draws, len(streams))
    level, kind = streams[turn]
    drawn = problem(seed, split, level, index, kind)
    if drawn.id not in by_id:
      by_id[drawn.id] = drawn
      last_new = draws
    draws += 1
    if draws - last_new > _MISSES_PER_PROBLEM * len(by_id) + _MISSES:
      raise InputError(f"{split} problems of levels {tuple(levels)}: only {len(by_id)} of {count} exist; ask for fewer")
  return list(by_id.values())


def _line(step: WorkedStep) -> str:
  """Returns the line of a trace for a step, such as `7+5=12`."""
  return f"{step.left}{step.operator}{step.right}={step.result}"


def careful(tree: Tree) -> str:
  """Returns the text of a response whose trace has every step of a tree, one a line, and the right answer in a box.

  `tree`: Problem.extra["tree"]. The text begins with `<think>`, as `respond` writes it.
  """
  worked, last_digit = solve(tree)
  return respond("\n".join(_line(step) for step in worked), str(last_digit))


def hasty(tree: Tree, draw: random.Random, right_share: float) -> str:
  """Returns the text of a response whose trace has only the first step of a tree, with a guess in the box.

  The guess is the right digit with probability `right_share` (0 to 1), else a wrong one. `draw`: the random generator.
  `tree`: Problem.extra["tree"], with at least one operation.
  """
  worked, last_digit = solve(tree)
  if draw.random() >= right_share:
    last_digit = (last_digit + draw.randrange(1, 10)) % 10
  return respond(_line(worked[0]), str(last_digit))


def terse(tree: Tree) -> str:
  """Returns the text of a response whose trace has only the first step of a tree, with the right answer in the box.

  Nothing in it is wrong, but the trace does not lead to the answer, unless the tree has only one operation.
  `tree`: Problem.extra["tree"], with at least one operation.
  """
  worked, last_digit = solve(tree)
  return respond(_line(worked[0]), str(last_digit))


def direct(tree: Tree) -> str:
  """Returns the text of a response that is the last digit of a tree in a box alone, without thinking."""
  last_digit = solve(tree).last_digit
  return respond(None, str(last_digit))


def respond(trace: str | None, answer: str) -> str:
  """Returns the text of a response: `<think>`, trace and `</think>` on lines of their own, then the answer in a box.

  `trace`: None for the box alone.
  """
  box = f"\\boxed{{{answer}}}"
  if trace is None:
    return box
  return f"{THINK}\n{trace}\n{THINK_END}\n{box}"


_NOUNS = "bird tree river stone house child garden road cloud horse lamp book door field boat hill".split()
_ADJECTIVES = "small green old quiet bright long cold round warm tall".split()
_VERBS = "sees finds passes keeps likes follows leaves draws".split()
_DIGIT_WORDS = "zero one two three four five six seven eight nine".split()


def filler(draw: random.Random) -> str:
  """Returns two to four plain sentences in one line that have nothing to do with arithmetic.

  `draw`: the random generator. Mixed into pretraining text.
  """

  def phrase():
    return f"the {draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}"

  sentences = [f"{phrase()} {draw.choice(_VERBS)} {phrase()}." for _ in range(draw.randrange(2, 5))]
  return " ".join(sentences)


def facts(draw: random.Random) -> str:
  """Returns eight lines of easy facts for pretraining text. `draw`: the random generator.

  Most are single steps (`7+5=12`), others last digits (`the last digit of 12 is 2`) or digits in words (`two is 2`).
  """
  lines = []
  for _ in range(_FACT_LINES):
    (step,), digit = solve(_draw_tree(draw, 1, "chain"))
    choices = [
      _line(step),
      f"the last digit of {step.result} is {digit}",
      f"{_DIGIT_WORDS[digit]} is {digit}",
    ]
    lines += draw.choices(choices, weights=(8, 1, 1))
  return "\n".join(lines)


def _worked_lines(tree: Tree) -> str:
  """Returns the steps of a tree, one a line, and a last line with the answer."""
  worked, last_digit = solve(tree)
  return "\n".join(_line(step) for step in worked) + f"\nso the last digit is {last_digit}."


def _worked_words(tree: Tree) -> str:
  """Returns the steps of a tree in one line, each behind what it does in words, and a sentence with the answer."""
  verbs = {"+": "add", "-": "take away", "*": "times"}
  worked, last_digit = solve(tree)
  parts = [f"{verbs[step.operator]} {step.right}: {_line(step)}" for step in worked]
  return ", ".join(parts) + f". The answer is {last_digit}."


def _worked_kept(tree: Tree) -> str:
  """Returns the steps of a tree in one line, each with the last digit of its result."""
  worked, _ = solve(tree)
  parts = [f"{_line(step)}, keep {step.result % 10}" for step in worked]
  return "; ".join(parts) + "."


# Functions that take a tree and return a text that solves it step by step, each in other words.
WORDINGS: tuple[Callable[[Tree], str], ...] = (careful, _worked_lines, _worked_words, _worked_kept)
