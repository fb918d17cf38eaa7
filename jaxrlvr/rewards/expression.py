"""Sums and products of rewards, as the config key `rl.reward` writes them: parses and grades them."""

from __future__ import annotations

import ast
import difflib
import functools
import itertools
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.table import REWARDS
from jaxrlvr.rewards.types import Answers, Graded


class Factor(NamedTuple):
  """A reward in an expression: a key of `REWARDS` and its arguments, as in `random(0.3)`."""

  name: str
  arguments: tuple[float, ...] = ()

  def __str__(self) -> str:
    if not self.arguments:
      return self.name
    return f"{self.name}({', '.join(map(str, self.arguments))})"


Terms = list[tuple[float, tuple[Factor, ...]]]  # a sum of products: (weight, factors) of each


def parse(text: str) -> Terms:
  """Returns an expression such as `0.7*verifiable*thinking_format + 0.3*one_box` as a sum of products.

  Raises InputError for text that is no such expression, names that are no rewards, and a term without any reward.
  """
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError) as error:
    raise InputError(f"reward {text!r}: can't be read ({error}); write names, numbers, +, - and *") from None
  terms = _terms(tree, text)
  if not all(factors for _, factors in terms):
    raise InputError(f"reward {text!r}: a number alone pays everybody the same; drop it")
  return terms


def _terms(node: ast.expr, text: str) -> Terms:
  """Returns the sum of products that a node of the syntax tree stands for; `text` is the whole expression."""
  match node:
    case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
      sign = 1.0 if isinstance(node.op, ast.Add) else -1.0
      return _terms(left, text) + [(sign * weight, factors) for weight, factors in _terms(right, text)]
    case ast.BinOp(left=left, op=ast.Mult(), right=right):
      pairs = itertools.product(_terms(left, text), _terms(right, text))
      return [(v * w, a + b) for (v, a), (w, b) in pairs]
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return [(-weight, factors) for weight, factors in _terms(operand, text)]
    case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and np.isfinite(value):
      return [(float(value), ())]
    case ast.Name(id=name):
      return [(1.0, (_factor(name, (), text),))]
    case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
      values = list(itertools.chain.from_iterable(_terms(arg, text) for arg in args))
      are_numbers = not any(factors for _, factors in values)
      if are_numbers:
        arguments = tuple(weight for weight, _ in values)
        return [(1.0, (_factor(name, arguments, text),))]
  raise InputError(f"reward {text!r}: {ast.unparse(node)!r} is not understood; write names, numbers, +, - and *")


def _factor(name: str, arguments: tuple[float, ...], text: str) -> Factor:
  """Returns a checked factor. Raises InputError for an unknown reward, and for arguments that it does not take."""
  if name not in REWARDS:
    similar = difflib.get_close_matches(name, REWARDS, 1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"use {', '.join(REWARDS)}"
    raise InputError(f"reward {text!r}: there is no {name!r}; {hint}")
  if arguments and (name != "random" or len(arguments) > 1 or not 0 <= arguments[0] <= 1):
    raise InputError(f"reward {text!r}: {name}{arguments} is not understood; only random(RATE), RATE in [0, 1], is")
  return Factor(name, arguments)


def is_binary(terms: Terms) -> bool:
  """Returns whether the reward is always 0 or 1, so that an answer is right or wrong by it."""
  if len(terms) != 1:
    return False
  ((weight, factors),) = terms
  return weight == 1.0 and all(REWARDS[factor.name].binary for factor in factors)


def looks_at_votes(terms: Terms) -> bool:
  """Returns whether a factor needs all `rl.votes` samples, also those that are not trained on."""
  return any(REWARDS[factor.name].votes for _, factors in terms for factor in factors)


def grade_terms(terms: Terms, answers: Answers, grade: Grade) -> tuple[Graded, dict[str, Graded]]:
  """Grades the answers; returns (grades of the whole reward, grades of each factor by its text, as "random(0.3)").

  `terms`: what `parse` returned. `grade`: takes jobs and returns a verdict for each, in their order.
  An answer that one factor can't score is unscored, with the cause of the first such factor.
  """
  graded: dict[Factor, Graded] = {}
  for _, factors in terms:
    for factor in factors:
      if factor not in graded:
        graded[factor] = REWARDS[factor.name].function(answers, grade, *factor.arguments)
  value = sum(weight * np.prod([graded[factor].value_PG for factor in factors], 0) for weight, factors in terms)
  scored = np.all([grades.scored_PG for grades in graded.values()], axis=0)
  causes = [np.array(grades.cause_PG, object) for grades in graded.values()]
  first_cause = functools.reduce(lambda earlier, later: np.where(earlier == "", later, earlier), causes)
  elections = next((grades.elections_P for grades in graded.values() if grades.elections_P), None)
  reward = np.where(scored, value, 0.0).astype(np.float32)
  whole = Graded(reward, scored, first_cause.tolist(), elections)
  return whole, {str(factor): grades for factor, grades in graded.items()}
