"""Generates the built-in domain from a seed: last-digit arithmetic, whose reasoning can be judged exactly.

A problem is a chain ("Start with 7, then +5, *3, ...") or an expression with brackets; only its last digit is asked. A
problem of level n has n + 1 operations. It is exact to carry on with the last digit of each result, so every step is
one of about 200 small facts; without the steps, the answer is close to a uniform digit. A thinking trace has one line a
step: `7+5=12`, then `2*3=6`. The kind "large" is a chain of numbers with two digits, of which only the last one counts.
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
_TOKEN = re.compile(r"[0-9]+|\S")

Tree = int | tuple[str, "Tree", "Tree"]  # a number, or (operator, left, right)


class WorkedStep(NamedTuple):
  """One operation of a problem with its result."""

  left: int
  operator: str  # "+", "-" or "*"
  right: int
  result: int


def rng(seed: int, stream: str, *address: int) -> random.Random:
  """Returns the random generator of one item: number `address` in the stream of this name.

  It is the same whatever was drawn for other items.
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


def steps(tree: Tree) -> tuple[list[WorkedStep], int]:
  """Returns the steps that solve a tree, in the order of evaluation, and the last digit of the whole.

  Each step works with the last digits of earlier results. A difference first adds ten to the left side (`13-8=5`), so
  that no result is negative and every line is true as it stands.
  """
  if isinstance(tree, int):
    return [], tree % 10
  operator, left, right = tree
  left_steps, left_digit = steps(left)
  right_steps, right_digit = steps(right)
  if operator == "-":
    left_digit += 10
    result = left_digit - right_digit
  elif operator == "+":
    result = left_digit + right_digit
  else:
    result = left_digit * right_digit
  last_step = WorkedStep(left_digit, operator, right_digit, result)
  return [*left_steps, *right_steps, last_step], result % 10


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


def question(tree: Tree, kind: str) -> str:
  """Returns the question that asks for the last digit of a tree; `read_question` reads it back.

  It writes a tree of kind "expression" with brackets, and any other as a chain.
  """
  if kind == "expression":
    return f"Work out {_bracketed(tree)}. Last digit?"
  start, moves = _chain(tree)
  return f"Start with {start}, then {', '.join(moves)}. Last digit?"


def parse_expression(text: str, precedence: bool = True) -> Tree | None:
  """Returns the tree of an expression of whole numbers, +, -, * and brackets; None for any other text.

  `precedence`: whether * binds closer than + and -; else operators count from left to right. A number may have a sign
  at the beginning of an expression and behind an operator. A text of more than 200 characters is not read.
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
  """Returns the tree of a question in the form that `question` writes; None for any other text."""
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
  """Returns problem number `index` of an endless stream of a kind (see KINDS) on a level.

  Problem.extra has the keys level, kind, operations (their number) and tree. Train and held-out problems never share a
  text, whatever the seeds; problems of one stream may repeat. Raises InputError for an unknown split, level or kind.
  """
  if split not in SPLITS or level not in LEVELS or kind not in KINDS:
    raise InputError(f"split {split!r}, level {level!r}, kind {kind!r}: take one each of {SPLITS}, {LEVELS}, {KINDS}")
  draw = rng(seed, f"{stream}/{split}/{kind}", level, index)
  operations = level + 1
  while True:
    tree = _draw_tree(draw, operations, kind)
    text = question(tree, kind)
    if split_of_text(text) == split:
      break
  _, last_digit = steps(tree)
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
  """Returns `count` different problems, levels and kinds in turn; a longer list begins with the shorter ones.

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
    if draws - last_new > 20 * len(by_id) + 1000:
      raise InputError(f"{split} problems of levels {tuple(levels)}: only {len(by_id)} of {count} exist; ask for fewer")
  return list(by_id.values())


def line(step: WorkedStep) -> str:
  """Returns the line of a trace for a step, such as `7+5=12`."""
  return f"{step.left}{step.operator}{step.right}={step.result}"


def careful(tree: Tree) -> str:
  """Returns a response whose trace has every step, with the right answer."""
  worked, last_digit = steps(tree)
  return respond("\n".join(line(step) for step in worked), str(last_digit))


def hasty(tree: Tree, draw: random.Random, right_share: float) -> str:
  """Returns a response whose trace has the first step only; its answer is right with probability `right_share`."""
  worked, last_digit = steps(tree)
  if draw.random() >= right_share:
    last_digit = (last_digit + draw.randrange(1, 10)) % 10
  return respond(line(worked[0]), str(last_digit))


def terse(tree: Tree) -> str:
  """Returns a response whose trace has the first step only, with the right answer.

  Nothing in it is wrong, but the trace does not lead to the answer.
  """
  worked, last_digit = steps(tree)
  return respond(line(worked[0]), str(last_digit))


def direct(tree: Tree) -> str:
  """Returns a response of the right answer alone, without thinking."""
  _, last_digit = steps(tree)
  return respond(None, str(last_digit))


def respond(trace: str | None, answer: str) -> str:
  """Returns the text of a response: the trace between thinking tags, if there is one, then the answer in a box."""
  box = f"\\boxed{{{answer}}}"
  if trace is None:
    return box
  return f"{THINK}\n{trace}\n{THINK_END}\n{box}"


_NOUNS = "bird tree river stone house child garden road cloud horse lamp book door field boat hill".split()
_ADJECTIVES = "small green old quiet bright long cold round warm tall".split()
_VERBS = "sees finds passes keeps likes follows leaves draws".split()
_DIGIT_WORDS = "zero one two three four five six seven eight nine".split()


def filler(draw: random.Random) -> str:
  """Returns two to four plain sentences that have nothing to do with the task."""

  def phrase():
    return f"the {draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}"

  sentences = [f"{phrase()} {draw.choice(_VERBS)} {phrase()}." for _ in range(draw.randrange(2, 5))]
  return " ".join(sentences)


def facts(draw: random.Random) -> str:
  """Returns eight lines of easy facts: most are single steps, others last digits or digits in words."""
  lines = []
  for _ in range(8):
    (step,), digit = steps(_draw_tree(draw, 1, "chain"))
    choices = [
      line(step),
      f"the last digit of {step.result} is {digit}",
      f"{_DIGIT_WORDS[digit]} is {digit}",
    ]
    lines += draw.choices(choices, weights=(8, 1, 1))
  return "\n".join(lines)


def _worked_lines(tree: Tree) -> str:
  worked, last_digit = steps(tree)
  return "\n".join(line(step) for step in worked) + f"\nso the last digit is {last_digit}."


def _worked_words(tree: Tree) -> str:
  verbs = {"+": "add", "-": "take away", "*": "times"}
  worked, last_digit = steps(tree)
  parts = [f"{verbs[step.operator]} {step.right}: {line(step)}" for step in worked]
  return ", ".join(parts) + f". The answer is {last_digit}."


def _worked_kept(tree: Tree) -> str:
  worked, _ = steps(tree)
  parts = [f"{line(step)}, keep {step.result % 10}" for step in worked]
  return "; ".join(parts) + "."


# Texts that solve a tree step by step, in different words.
WORDINGS: tuple[Callable[[Tree], str], ...] = (careful, _worked_lines, _worked_words, _worked_kept)
