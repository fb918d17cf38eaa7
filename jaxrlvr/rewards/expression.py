"""Parses and grades expressions of rewards: sums and products of names, as the config key `rl.reward` has them."""

from __future__ import annotations

import ast
import difflib
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.table import REWARDS
from jaxrlvr.rewards.types import Answers, Graded


class Factor(NamedTuple):
  """A reward in an expression."""

  name: str  # a key of rewards.table.REWARDS
  arguments: tuple[float, ...] = ()  # numbers for its function: (0.3,) for `random(0.3)`, else ()

  def __str__(self) -> str:
    """Returns the factor as an expression writes it: "one_box", or "random(0.3)"."""
    if not self.arguments:
      return self.name
    return f"{self.name}({', '.join(map(str, self.arguments))})"


# A sum of products. Each product is its weight and its factors, at least one; its value is weight * factor * factor...
Terms = list[tuple[float, tuple[Factor, ...]]]


def parse(text: str) -> Terms:
  """Parses an expression such as `0.7*verifiable*thinking_format + 0.3*one_box` into a sum of products.

  An expression has names of REWARDS, numbers, `+`, `-`, `*`, parentheses, and `random(RATE)` with a rate from 0 to 1.
  A product without a number has the weight 1. The result is multiplied out: `2*(a + b)` gives the terms 2*a and 2*b.
  Raises InputError for any other text, for a name that is no reward, and for a number that stands alone (`a + 0.1`).
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
      return _product(_terms(left, text), _terms(right, text))
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return [(-weight, factors) for weight, factors in _terms(operand, text)]
    case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and np.isfinite(value):
      return [(float(value), ())]
    case ast.Name(id=name):
      return [(1.0, (_factor(name, (), text),))]
    case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
      argument_terms = []
      for arg in args:
        argument_terms += _terms(arg, text)
      are_numbers = not any(factors for _, factors in argument_terms)
      if are_numbers:
        arguments = tuple(weight for weight, _ in argument_terms)
        return [(1.0, (_factor(name, arguments, text),))]
  raise InputError(f"reward {text!r}: {ast.unparse(node)!r} is not understood; write names, numbers, +, - and *")


def _product(left: Terms, right: Terms) -> Terms:
  """Multiplies out two sums: each term of the left one times each term of the right one."""
  terms = []
  for left_weight, left_factors in left:
    for right_weight, right_factors in right:
      terms.append((left_weight * right_weight, left_factors + right_factors))
  return terms


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
  """Returns whether a reward is always 0 or 1, so that an answer is right or wrong by it.

  terms: the reward, as `parse` returns it. It is binary if it is one product, of binary rewards, with the weight 1.
  """
  if len(terms) != 1:
    return False
  ((weight, factors),) = terms
  return weight == 1.0 and all(REWARDS[factor.name].binary for factor in factors)


def needs_votes(terms: Terms) -> bool:
  """Returns whether a reward compares a problem's samples, so that it needs all `rl.votes` of them.

  Some of these samples only vote and are not trained on. terms: the reward, as `parse` returns it.
  """
  return any(REWARDS[factor.name].votes for factor in _different_factors(terms))


def _different_factors(terms: Terms) -> list[Factor]:
  """Returns the factors of all terms, each once, in the order in which they occur."""
  factors = {}
  for _, product in terms:
    factors.update(dict.fromkeys(product))
  return list(factors)


def grade_terms(terms: Terms, answers: Answers, grade: Grade) -> tuple[Graded, dict[str, Graded]]:
  """Pays the responses; returns the grades of the whole reward, and those of each factor by its text.

  A response that one factor can't score is unscored as a whole: its value is 0. Its cause is the first that is not ""
  among its factors. The elections of the whole are those of the first factor that has any, else None. Keys of the
  second result: the factor's name, with its arguments if it has any, as "random(0.3)". A factor that occurs several
  times is graded once.

  terms: the reward, as `parse` returns it. grade: takes jobs and returns a verdict for each, in their order; several
  factors may give it the same job, so that `verifiable.with_memory(grade)` saves time.
  """
  graded: dict[Factor, Graded] = {}
  for factor in _different_factors(terms):
    graded[factor] = REWARDS[factor.name].function(answers, grade, *factor.arguments)
  value_PG = 0.0
  for weight, factors in terms:
    product_PG = np.prod([graded[factor].value_PG for factor in factors], axis=0)
    value_PG = value_PG + weight * product_PG
  scored_PG = np.all([grades.scored_PG for grades in graded.values()], axis=0)
  cause_PG = np.full(scored_PG.shape, "", object)
  elections = None
  for grades in graded.values():
    cause_PG = np.where(cause_PG == "", np.array(grades.cause_PG, object), cause_PG)
    elections = elections or grades.elections_P
  reward_PG = np.where(scored_PG, value_PG, 0.0).astype(np.float32)
  whole = Graded(reward_PG, scored_PG, cause_PG.tolist(), elections)
  return whole, {str(factor): grades for factor, grades in graded.items()}
