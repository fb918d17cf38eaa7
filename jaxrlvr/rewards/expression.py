"""Sums and products of rewards, as `rl.reward` writes them: read, and worth what their terms are worth."""

from __future__ import annotations

import ast
import difflib
import functools
from typing import NamedTuple

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.table import REWARDS
from jaxrlvr.rewards.types import Answers, Graded


class Factor(NamedTuple):
  """One reward of an expression, with the arguments written behind it: `random(0.3)`."""

  name: str
  arguments: tuple[float, ...] = ()

  def __str__(self) -> str:
    return self.name + (f"({', '.join(map(str, self.arguments))})" if self.arguments else "")


Terms = list[tuple[float, tuple[Factor, ...]]]  # a sum of weighted products


def parse(text: str) -> Terms:
  """Reads `0.7*verifiable*thinking_format + 0.3*one_box` as a sum of products; InputError for anything else."""
  try:
    tree = ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError) as error:
    raise InputError(f"reward {text!r}: can't be read ({error}); write names, numbers, +, - and *") from None
  terms = _terms(tree, text)
  if not all(factors for _, factors in terms):
    raise InputError(f"reward {text!r}: a number alone pays everybody the same; drop it")
  return terms


def _terms(node: ast.expr, text: str) -> Terms:
  match node:
    case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
      sign = 1.0 if isinstance(node.op, ast.Add) else -1.0
      return _terms(left, text) + [(sign * weight, factors) for weight, factors in _terms(right, text)]
    case ast.BinOp(left=left, op=ast.Mult(), right=right):
      return [(v * w, a + b) for v, a in _terms(left, text) for w, b in _terms(right, text)]
    case ast.UnaryOp(op=ast.USub(), operand=operand):
      return [(-weight, factors) for weight, factors in _terms(operand, text)]
    case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and np.isfinite(value):
      return [(float(value), ())]
    case ast.Name(id=name):
      return [(1.0, (_factor(name, (), text),))]
    case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
      values = [term for arg in args for term in _terms(arg, text)]
      if not any(factors for _, factors in values):
        return [(1.0, (_factor(name, tuple(weight for weight, _ in values), text),))]
  raise InputError(f"reward {text!r}: {ast.unparse(node)!r} is not understood; write names, numbers, +, - and *")


def _factor(name: str, arguments: tuple[float, ...], text: str) -> Factor:
  if name not in REWARDS:
    near = difflib.get_close_matches(name, REWARDS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(REWARDS)}"
    raise InputError(f"reward {text!r}: there is no {name!r}; {hint}")
  if arguments and (name != "random" or len(arguments) > 1 or not 0 <= arguments[0] <= 1):
    raise InputError(f"reward {text!r}: {name}{arguments} is not understood; only random(RATE), RATE in [0, 1], is")
  return Factor(name, arguments)


def is_binary(terms: Terms) -> bool:
  """Returns whether every value is 0 or 1, so that it can be called right or wrong."""
  return len(terms) == 1 and terms[0][0] == 1.0 and all(REWARDS[factor.name].binary for factor in terms[0][1])


def looks_at_votes(terms: Terms) -> bool:
  """Returns whether a factor looks at more samples than are trained on."""
  return any(REWARDS[factor.name].votes for _, factors in terms for factor in factors)


def grade_terms(terms: Terms, answers: Answers, grade: Grade) -> tuple[Graded, dict[str, Graded]]:
  """Returns the reward, and its factors by name. An answer that one factor can't score is unscored."""
  graded: dict[Factor, Graded] = {}
  for _, factors in terms:
    for factor in factors:
      if factor not in graded:
        graded[factor] = REWARDS[factor.name].function(answers, grade, *factor.arguments)
  value = sum(weight * np.prod([graded[factor].value_PG for factor in factors], 0) for weight, factors in terms)
  scored = np.all([g.scored_PG for g in graded.values()], axis=0)
  causes = [np.array(g.cause_PG, object) for g in graded.values()]
  cause = functools.reduce(lambda a, b: np.where(a == "", b, a), causes)
  elections = next((g.elections_P for g in graded.values() if g.elections_P), None)
  whole = Graded(np.where(scored, value, 0.0).astype(np.float32), scored, cause.tolist(), elections)
  return whole, {str(factor): g for factor, g in graded.items()}
