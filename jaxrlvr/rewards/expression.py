"""Parses and grades expressions of rewards: sums and products of names, as the config key `rl.reward` has them."""

from __future__ import annotations

import ast
import difflib
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards import functions as own
from jaxrlvr.rewards.table import REWARDS
from jaxrlvr.rewards.types import Answers, Graded

_NAME = re.compile(
  r"""(?P<quote>["'])(?P<quoted>[^"']+:[A-Za-z_]\w*)(?P=quote)|(?P<plain>[\w.~/](?:[\w.~/-]*[\w~/])?:[A-Za-z_]\w*)"""
)
_PLACEHOLDER = "named_{}_"
_WORD = re.compile(rf"{_NAME.pattern}|(?<![\w.])(?P<word>[A-Za-z_]\w*)(?!\s*=)", re.X)


class Factor(NamedTuple):
  """A reward in an expression."""

  name: str  # a key of rewards.table.REWARDS, or the name of a user's function as `base.named` reads it
  arguments: tuple[tuple[str, float], ...] = ()  # (parameter, number) pairs: (("rate", 0.3),) for `random(0.3)`

  def __str__(self) -> str:
    """Returns the factor as an expression writes it: "one_box", "random(0.3)", or "my.py:brief(limit=200.0)"."""
    if not self.arguments:
      return self.name
    if self.name in REWARDS:
      return f"{self.name}({', '.join(str(number) for _, number in self.arguments)})"
    return f"{self.name}({', '.join(f'{parameter}={number}' for parameter, number in self.arguments)})"


# A sum of products. Each product is its weight and its factors, at least one; its value is weight * factor * factor...
Terms = list[tuple[float, tuple[Factor, ...]]]


def parse(text: str) -> Terms:
  """Parses an expression such as `0.7*verifiable*thinking_format + 0.3*one_box` into a sum of products.

  An expression has names of REWARDS, names of a user's functions (path.py:NAME, package.module:NAME; in quotes if the
  path holds other characters than letters, digits and `._-~/`), numbers, `+`, `-`, `*` and parentheses. A reward may
  take numbers: `random(0.3)`, `my.py:brief(limit=200)`. A minus before a path needs a space behind it. A product
  without a number has the weight 1. The result is multiplied out: `2*(a + b)` gives the terms 2*a and 2*b.
  Raises InputError for any other text, for a name that is no reward, for a function that can't be imported or has no
  known shape, and for a number that stands alone (`a + 0.1`).
  """
  names: list[str] = []

  def placeholder(match: re.Match) -> str:
    names.append(match["quoted"] or match["plain"])
    return _PLACEHOLDER.format(len(names) - 1)

  try:
    tree = ast.parse(_NAME.sub(placeholder, text).strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError) as error:
    raise InputError(f"reward {text!r}: can't be read ({error}); write names, numbers, +, - and *") from None
  terms = _Reader(text, names).terms(tree)
  if not all(factors for _, factors in terms):
    raise InputError(f"reward {text!r}: a number alone pays everybody the same; drop it")
  return terms


class _Reader:
  """Reads the syntax tree of an expression. text: the whole expression; names: what its placeholders stand for."""

  def __init__(self, text: str, names: Sequence[str]):
    self._text = text
    self._name_of = {_PLACEHOLDER.format(number): name for number, name in enumerate(names)}

  def terms(self, node: ast.expr) -> Terms:
    """Returns the sum of products that a node stands for. Raises InputError where it stands for none."""
    match node:
      case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
        sign = 1.0 if isinstance(node.op, ast.Add) else -1.0
        return self.terms(left) + [(sign * weight, factors) for weight, factors in self.terms(right)]
      case ast.BinOp(left=left, op=ast.Mult(), right=right):
        return _product(self.terms(left), self.terms(right))
      case ast.UnaryOp(op=ast.USub(), operand=operand):
        return [(-weight, factors) for weight, factors in self.terms(operand)]
      case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and np.isfinite(value):
        return [(float(value), ())]
      case ast.Name(id=name):
        return [(1.0, (self._factor(name, [], {}),))]
      case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(one.arg for one in keywords):
        values = [self._number(arg) for arg in args]
        by_name = {str(one.arg): self._number(one.value) for one in keywords}
        if len(by_name) < len(keywords):
          raise InputError(f"reward {self._text!r}: a number is given twice; drop one")
        return [(1.0, (self._factor(name, values, by_name),))]
    raise self._not_understood(node)

  def _number(self, node: ast.expr) -> float:
    """Returns the number that an argument of a reward is. Raises InputError where it is none."""
    terms = self.terms(node)
    if any(factors for _, factors in terms):
      raise self._not_understood(node)
    return sum(weight for weight, _ in terms)

  def _not_understood(self, node: ast.expr) -> InputError:
    source = ast.unparse(node)
    for placeholder, name in self._name_of.items():
      source = source.replace(placeholder, name)
    hint = "; name a function in the file, as path.py:NAME" if ".py" in source else ""
    return InputError(f"reward {self._text!r}: {source!r} is not understood; write names, numbers, +, - and *{hint}")

  def _factor(self, name: str, values: Sequence[float], by_name: Mapping[str, float]) -> Factor:
    """Returns a checked factor. values: its numbers without a name; by_name: those with one.

    Raises InputError for an unknown reward, and for numbers that it does not take.
    """
    if name in self._name_of:
      return self._own_factor(self._name_of[name], values, by_name)
    if name not in REWARDS:
      similar = difflib.get_close_matches(name, REWARDS, 1)
      hint = f"did you mean {similar[0]!r}?" if similar else f"use {', '.join(REWARDS)}, or path.py:NAME"
      raise InputError(f"reward {self._text!r}: there is no {name!r}; {hint}")
    expected = {one.name: one for one in REWARDS[name].arguments}
    numbers = dict(zip(expected, values, strict=False)) | dict(by_name)
    fits = all(key in expected and expected[key].low <= numbers[key] <= expected[key].high for key in numbers)
    if not fits or len(numbers) < len(values) + len(by_name):
      takes = [f"{one.name.upper()} in [{one.low:g}, {one.high:g}]" for one in expected.values()]
      written = ", ".join([*map(str, values), *(f"{key}={number}" for key, number in by_name.items())])
      raise InputError(
        f"reward {self._text!r}: {name}({written}) is not understood; {name} takes {', '.join(takes) or 'no numbers'}"
      )
    return Factor(name, tuple(numbers.items()))

  def _own_factor(self, name: str, values: Sequence[float], by_name: Mapping[str, float]) -> Factor:
    """Returns a factor of a user's function, which is imported to check how it is called."""
    if values:
      raise InputError(f"reward {self._text!r}: name the numbers of {name}, as {name}(limit={values[0]:g})")
    own.shape_of(name, named.load(name), list(by_name))
    return Factor(name, tuple(by_name.items()))


def _product(left: Terms, right: Terms) -> Terms:
  """Multiplies out two sums: each term of the left one times each term of the right one."""
  terms = []
  for left_weight, left_factors in left:
    for right_weight, right_factors in right:
      terms.append((left_weight * right_weight, left_factors + right_factors))
  return terms


def _is_binary(factor: Factor) -> bool:
  """Returns whether a reward is always 0 or 1; a user's function is if it has an attribute `binary` that is true."""
  if named.is_name(factor.name):
    return bool(getattr(named.load(factor.name), "binary", False))
  return REWARDS[factor.name].binary


def _needs_votes(factor: Factor) -> bool:
  """Returns whether a reward compares samples; a user's function does if it has an attribute `votes` that is true."""
  if named.is_name(factor.name):
    return bool(getattr(named.load(factor.name), "votes", False))
  return REWARDS[factor.name].votes


def own_names(text: str) -> list[str]:
  """Returns the names of the user's functions in an expression, each once, in order. Raises InputError as `parse`."""
  return list(dict.fromkeys(factor.name for factor in _different_factors(parse(text)) if named.is_name(factor.name)))


def with_own_names(text: str, names: Mapping[str, str]) -> tuple[str, set[str]]:
  """Returns an expression with the names of functions in the place of words, and the words that it has.

  names: by word, as {"brief": "given:brief"}. A word counts as one that the expression has also where its name stands
  there already. The expression is not checked.
  """
  word_of = {name: word for word, name in names.items()}
  used: set[str] = set()

  def replaced(match: re.Match) -> str:
    word = match["word"] or word_of.get(match["quoted"] or match["plain"], "")
    if word not in names:
      return match[0]
    used.add(word)
    return names[word]

  return _WORD.sub(replaced, text), used


def unknown_words(text: str) -> list[str]:
  """Returns the words of an expression that are no rewards of the table and no parameters, each once, in order."""
  words = [match["word"] for match in _WORD.finditer(text) if match["word"]]
  return [word for word in dict.fromkeys(words) if word not in REWARDS]


def own_shapes(terms: Terms) -> dict[str, own.Shape]:
  """Returns the shape, with the columns that it takes, of each function of a user's in a reward, by its name."""
  shapes = {}
  for factor in _different_factors(terms):
    if named.is_name(factor.name):
      parameters = [parameter for parameter, _ in factor.arguments]
      shapes[factor.name] = own.shape_of(factor.name, named.load(factor.name), parameters)
  return shapes


def own_columns(terms: Terms) -> tuple[str, ...]:
  """Returns the columns of the problems' rows that functions of a user's in a reward take; EVERY: all of them."""
  columns: list[str] = []
  for shape in own_shapes(terms).values():
    columns += own.columns_taken(shape)
  return tuple(dict.fromkeys(columns))


def titles(terms: Terms) -> dict[Factor, str]:
  """Returns the title of each factor in names of metrics, as rewards/TITLE/mean.

  It is the factor's text, "random(0.3)"; of a user's function it is NAME, as in TRL, or FILE.NAME where two factors
  would have one title, or FOLDER.FILE.NAME where they still would.
  """
  titles_of = {factor: _titles_of(factor) for factor in _different_factors(terms)}
  count = Counter(title for some in titles_of.values() for title in dict.fromkeys(some))
  return {factor: next((one for one in some if count[one] == 1), some[-1]) for factor, some in titles_of.items()}


def _titles_of(factor: Factor) -> list[str]:
  """Returns titles that a factor could have, the shortest first."""
  if not named.is_name(factor.name):
    return [str(factor)]
  place = named.place_of(factor.name)
  path = (place.module.removesuffix(".py") if place.is_file else place.module.replace(".", "/")).replace("\\", "/")
  title = str(factor._replace(name=place.name))
  return [title, f"{path.rpartition('/')[2]}.{title}", f"{path.replace('/', '.')}.{title}"]


def is_binary(terms: Terms) -> bool:
  """Returns whether a reward is always 0 or 1, so that an answer is right or wrong by it.

  terms: the reward, as `parse` returns it. It is binary if it is one product, of binary rewards, with the weight 1.
  """
  if len(terms) != 1:
    return False
  ((weight, factors),) = terms
  return weight == 1.0 and all(map(_is_binary, factors))


def needs_votes(terms: Terms) -> bool:
  """Returns whether a reward compares a problem's samples, so that it needs all `rl.votes` of them.

  Some of these samples only vote and are not trained on. terms: the reward, as `parse` returns it.
  """
  return any(map(_needs_votes, _different_factors(terms)))


def _different_factors(terms: Terms) -> list[Factor]:
  """Returns the factors of all terms, each once, in the order in which they occur."""
  factors = {}
  for _, product in terms:
    factors.update(dict.fromkeys(product))
  return list(factors)


def _abstained(factor: Factor, grades: Graded) -> np.ndarray:
  """Returns [P,G]: whether a user's function abstained from each response. Rewards of the table never do."""
  if not named.is_name(factor.name):
    return np.zeros(np.shape(grades.scored_PG), bool)
  return ~grades.scored_PG & (np.array(grades.cause_PG, object) == own.ABSTAINED)


def grade_terms(
  terms: Terms, answers: Answers, grade: Grade, calls: own.Calls = own.HERE
) -> tuple[Graded, dict[str, Graded]]:
  """Pays the responses; returns the grades of the whole reward, and those of each factor by its title.

  A user's function may abstain from a response (None). A product in which one does is then left out of the sum, as TRL
  leaves it out, and a response of which every product is left out is unscored. A response that any other factor can't
  score is unscored as a whole. The value of an unscored response is 0, and its cause the first that is not "" among its
  factors; a scored one that a function abstained from has the cause "". The elections of the whole are those of the
  first factor that has any, else None. Keys of the second result: the factor's title, as `titles` returns it. A factor
  that occurs several times is graded once.

  terms: the reward, as `parse` returns it. grade: takes jobs and returns a verdict for each, in their order; several
  factors may give it the same job, so that `verifiable.with_memory(grade)` saves time. calls: how
  functions of a user's are called. Raises InputError where such a function returns what is no reward.
  """
  graded: dict[Factor, Graded] = {}
  for factor in _different_factors(terms):
    arguments = dict(factor.arguments)
    if named.is_name(factor.name):
      function = named.load(factor.name)
      shape = own.shape_of(factor.name, function, list(arguments))
      call = own.Call(factor.name, functools.partial(function, **arguments), shape)
      graded[factor] = own.grade_by_function(call, answers, grade, calls)
    else:
      graded[factor] = REWARDS[factor.name].function(answers, grade, **arguments)
  abstained = {factor: _abstained(factor, grades) for factor, grades in graded.items()}
  value_PG = 0.0
  has_product_PG = np.zeros(np.shape(answers.sample_PG), bool)
  for weight, factors in terms:
    product_PG = np.prod([graded[factor].value_PG for factor in factors], axis=0)
    counts_PG = ~np.any([abstained[factor] for factor in factors], axis=0)
    value_PG = value_PG + weight * np.where(counts_PG, product_PG, 0.0)
    has_product_PG |= counts_PG
  scored_PG = has_product_PG & np.all([graded[one].scored_PG | abstained[one] for one in graded], axis=0)
  cause_PG = np.full(scored_PG.shape, "", object)
  elections = None
  for factor, grades in graded.items():
    cause_of_factor_PG = np.where(abstained[factor] & scored_PG, "", np.array(grades.cause_PG, object))
    cause_PG = np.where(cause_PG == "", cause_of_factor_PG, cause_PG)
    elections = elections or grades.elections_P
  reward_PG = np.where(scored_PG, value_PG, 0.0).astype(np.float32)
  whole = Graded(reward_PG, scored_PG, cause_PG.tolist(), elections)
  title_of = titles(terms)
  return whole, {title_of[factor]: grades for factor, grades in graded.items()}
