"""The embedded domain: last-digit arithmetic whose reasoning can be checked exactly, generated from a seed.

A problem is a chain ("Start with 7, then +5, *3, ...") or a bracketed expression, of which only the last digit is
asked; one of level n has n + 1 operations. Carrying on with the last digit of each result is exact, so every step is
one of about 200 small facts; the answer without the steps is close to a uniform digit. A thinking trace is one line a
step: `7+5=12`, then `2*3=6`. The kind "large" is a chain of numbers of two digits, of which the last one counts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.splits import LEVELS, SPLITS, split_of_text
from jaxrlvr.text.tags import THINK, THINK_END

KINDS = ("chain", "expression", "large")
_FACTORS = (3, 7, 9)  # coprime to 10: multiplying by them loses nothing of the digit

_CHAIN = re.compile(r"Start with ([0-9]+), then ([+*-][0-9]+(?:, [+*-][0-9]+)*)\. Last digit\?")
_EXPRESSION = re.compile(r"Work out ([0-9()+*-]+)\. Last digit\?")
_LONGEST = 200  # characters of a question or an expression that are read
_TOKEN = re.compile(r"[0-9]+|\S")

Tree = int | tuple[str, "Tree", "Tree"]  # a number, or (operator, left, right)


def rng(seed: int, stream: str, *address: int) -> random.Random:
  """Generator of one item: the same whatever was drawn before."""
  return random.Random("/".join(map(str, (seed, stream, *address))))


def _draw_tree(draw: random.Random, operations: int, kind: str) -> Tree:
  tens = 10 * draw.randrange(1, 10) if kind == "large" else 0
  if operations == 0:
    return tens + draw.randrange(10)
  op = draw.choice("+-*")
  inner = draw.randrange(operations) if kind == "expression" and op != "*" else 0  # operations of the right branch
  left = _draw_tree(draw, operations - 1 - inner, kind)
  if inner:
    return op, left, _draw_tree(draw, inner, kind)
  return op, left, tens + (draw.choice(_FACTORS) if op == "*" else draw.randrange(1, 10))


def steps(tree: Tree) -> tuple[list[tuple[int, str, int, int]], int]:
  """(the steps (a, op, b, result) in the order of evaluation, the last digit of the whole).

  A difference borrows a ten first (`13-8=5`), so that no result is negative and every line is true as it stands.
  """
  if isinstance(tree, int):
    return [], tree % 10
  op, left, right = tree
  left_steps, a = steps(left)
  right_steps, b = steps(right)
  a += 10 * (op == "-")
  result = a + b if op == "+" else a - b if op == "-" else a * b
  return [*left_steps, *right_steps, (a, op, b, result)], result % 10


def _write(tree: Tree) -> str:
  if isinstance(tree, int):
    return str(tree)
  left, right = (_write(side) if isinstance(side, int) else f"({_write(side)})" for side in tree[1:])
  return left + tree[0] + right


def _chain(tree: Tree) -> tuple[int, list[str]]:
  if isinstance(tree, int):
    return tree, []
  start, moves = _chain(tree[1])
  return start, [*moves, f"{tree[0]}{tree[2]}"]


def question(tree: Tree, kind: str) -> str:
  if kind == "expression":
    return f"Work out {_write(tree)}. Last digit?"
  start, moves = _chain(tree)
  return f"Start with {start}, then {', '.join(moves)}. Last digit?"


def parse_expression(text: str, precedence: bool = True) -> Tree | None:
  """Returns the tree of an expression of whole numbers, +, -, * and brackets; None for any other text.

  precedence: whether * binds closer than + and -; else operators count from left to right. A number may have a sign
  where an expression begins or an operator stands before it. More than 200 characters are not read.
  """
  rank = {"+": 1, "-": 1, "*": 2 if precedence else 1}
  values: list[Tree] = []
  waiting: list[str] = []  # operators and opening brackets

  def apply_until(least: int) -> None:
    while waiting and rank.get(waiting[-1], 0) >= least:
      right = values.pop()
      values.append((waiting.pop(), values.pop(), right))

  sign, before = 1, "("  # the token before, a number told as "0"
  for token in _TOKEN.findall(text) if len(text) <= _LONGEST else ():
    begins = before != "0" and before != ")"  # whether a number or an opening bracket must come
    if token[0] in "0123456789" and begins:
      values.append(sign * int(token))
      sign, token = 1, "0"
    elif token == "-" and begins and before != "sign":
      sign, token = -1, "sign"
    elif token == "(" and begins and sign == 1:
      waiting.append(token)
    elif token == ")" and not begins:
      apply_until(1)
      if not waiting:
        return None
      waiting.pop()
    elif token in rank and not begins:
      apply_until(rank[token])
      waiting.append(token)
    else:
      return None
    before = token
  if before not in ("0", ")") or "(" in waiting:
    return None
  apply_until(1)
  return values[0]


def read_question(text: str) -> Tree | None:
  """Returns the tree of a question of this domain as it is written; None for any other text."""
  if len(text) > _LONGEST:
    return None
  if expression := _EXPRESSION.fullmatch(text):
    return parse_expression(expression[1])
  chain = _CHAIN.fullmatch(text)
  if chain is None:
    return None
  tree: Tree = int(chain[1])
  for move in chain[2].split(", "):
    tree = (move[0], tree, int(move[1:]))
  return tree


def problem(seed: int, split: str, level: int, index: int, kind: str = "chain", stream: str = "rl") -> Problem:
  """Problem number `index` of an endless stream. Train and held-out never share a text, whatever the seeds."""
  if split not in SPLITS or level not in LEVELS or kind not in KINDS:
    raise InputError(f"split {split!r}, level {level!r}, kind {kind!r}: take one each of {SPLITS}, {LEVELS}, {KINDS}")
  draw = rng(seed, f"{stream}/{split}/{kind}", level, index)
  while True:
    tree = _draw_tree(draw, level + 1, kind)
    text = question(tree, kind)
    if split_of_text(text) == split:
      break
  answer = str(steps(tree)[1])
  extra = {"level": level, "kind": kind, "operations": level + 1, "tree": tree}
  return Problem(f"arithmetic/{text}", ({"role": "user", "content": text},), answer, answer, "arithmetic", extra)


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str] = ("chain",)
) -> list[Problem]:
  """`count` different problems, levels and kinds in turn; a longer list begins with the shorter ones."""
  found: dict[str, Problem] = {}
  turns = [(level, kind) for level in levels for kind in kinds]
  index = last_new = 0
  while len(found) < count:
    level, kind = turns[index % len(turns)]
    one = problem(seed, split, level, index // len(turns), kind)
    last_new = index if one.id not in found else last_new
    found.setdefault(one.id, one)
    index += 1
    if index - last_new > 20 * len(found) + 1000:
      raise InputError(f"{split} problems of levels {tuple(levels)}: only {len(found)} of {count} exist; ask for fewer")
  return list(found.values())


def line(step: tuple[int, str, int, int]) -> str:
  a, op, b, result = step
  return f"{a}{op}{b}={result}"


def careful(tree: Tree) -> str:
  """The trace with every step, and the right answer."""
  done, answer = steps(tree)
  return respond("\n".join(line(s) for s in done), str(answer))


def hasty(tree: Tree, draw: random.Random, right_share: float) -> str:
  """The first step, then a guess that is right with probability `right_share`."""
  done, answer = steps(tree)
  if draw.random() >= right_share:
    answer = (answer + draw.randrange(1, 10)) % 10
  return respond(line(done[0]), str(answer))


def terse(tree: Tree) -> str:
  """The first step only, then the right answer: nothing in it is wrong, but the trace does not lead to the answer."""
  done, answer = steps(tree)
  return respond(line(done[0]), str(answer))


def direct(tree: Tree) -> str:
  """The right answer alone."""
  return respond(None, str(steps(tree)[1]))


def respond(trace: str | None, answer: str) -> str:
  box = f"\\boxed{{{answer}}}"
  return box if trace is None else f"{THINK}\n{trace}\n{THINK_END}\n{box}"


_NOUNS = "bird tree river stone house child garden road cloud horse lamp book door field boat hill".split()
_ADJECTIVES = "small green old quiet bright long cold round warm tall".split()
_VERBS = "sees finds passes keeps likes follows leaves draws".split()
_NUMBERS = "zero one two three four five six seven eight nine".split()


def filler(draw: random.Random) -> str:
  """A few plain sentences that have nothing to do with the task."""

  def phrase():
    return f"the {draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}"

  return " ".join(f"{phrase()} {draw.choice(_VERBS)} {phrase()}." for _ in range(draw.randrange(2, 5)))


def facts(draw: random.Random) -> str:
  """Eight easy facts: single steps, last digits, and digits in words."""
  made = []
  for _ in range(8):
    (step,), _ = steps(_draw_tree(draw, 1, "chain"))
    digit = step[3] % 10
    told = [line(step), f"the last digit of {step[3]} is {digit}", f"{_NUMBERS[digit]} is {digit}"]
    made += draw.choices(told, (8, 1, 1))
  return "\n".join(made)


def _worked_lines(tree: Tree) -> str:
  return "\n".join(line(s) for s in steps(tree)[0]) + f"\nso the last digit is {steps(tree)[1]}."


def _worked_words(tree: Tree) -> str:
  names = {"+": "add", "-": "take away", "*": "times"}
  told = [f"{names[op]} {b}: {line((a, op, b, r))}" for a, op, b, r in steps(tree)[0]]
  return ", ".join(told) + f". The answer is {steps(tree)[1]}."


def _worked_kept(tree: Tree) -> str:
  told = [f"{line(s)}, keep {s[3] % 10}" for s in steps(tree)[0]]
  return "; ".join(told) + "."


WORDINGS: tuple[Callable[[Tree], str], ...] = (careful, _worked_lines, _worked_words, _worked_kept)
