"""Reads whole answers as typed values, and compares an answer's value with a label's.

A value is one of the types below: a formula with or without a unit, a list, set, tuple, interval, union, matrix, ratio,
residue, number in a base, text in words, or relation. Other modules pass values from `read` to `is_right`, and need to
know of their types only `Words`. A text that is none of these raises formula.Unknown.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from types import UnionType
from typing import NamedTuple, TypeAlias, TypeGuard

from jaxrlvr.tasks.math import formula, numeric, units
from jaxrlvr.tasks.math.formula import INFINITY, Formula, FormulaToken, Number, Operation, Symbol, Unknown, symbols
from jaxrlvr.tasks.math.spelling import bare_words

_NEGATIVE_INFINITY = Operation("neg", (INFINITY,))
_QUALIFIERS = frozenset("when if at where for with provided because since as assuming given".split())
_JOINERS = frozenset(("or", "and"))
_JOINING_COMMANDS = {r"\lor": "or", r"\vee": "or", r"\land": "and", r"\wedge": "and"}
_SIGNS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\in": "in"}
# Brackets that close an opening one. An interval may have two different ones. A text that is cut off may end in a
# backslash.
_CLOSING = {
  "(": (")", "]"),
  "[": (")", "]"),
  "{": ("}",),
  r"\{": (r"\}", "}", "\\"),
  r"\lfloor": (r"\rfloor",),
  r"\lceil": (r"\rceil",),
}
_SYMBOL = (
  rf"(?:[A-Za-z]|\\(?:{'|'.join((*formula.GREEK, *formula.ALIASES))})(?![A-Za-z]))"
  + r"(?:_(?:\{(?:[^{}]|\\text\{[^{}]*\})*\}|\w|\\[a-z]+))?(?:'|\^\*|\^\{\*\})*"
)
# What may stand left of `=` in an answer: one symbol, a function of symbols, a difference, an angle, a side, words.
_NAME = re.compile(
  rf"{_SYMBOL}|\\Delta{_SYMBOL}|m?\\angle[A-Z]+|m?\\angle\d|[A-Z]{{2,4}}|\|[A-Z]{{2}}\||\\?\|\|?(?![xytn]\|){_SYMBOL}\\?\|\|?"
  rf"|\\(?:sin|cos|tan|cot|sec|csc)(?:\(?{_SYMBOL}\)?|\{{{_SYMBOL}\}})|\\(?:overline|hat|bar|vec|tilde|dot)\{{(?:{_SYMBOL})+\}}(?:_\w)?"
  rf"|(?:\\sigma|\\chi|R|s)(?:_\w)?\^(?:2|\{{2\}})|\({_SYMBOL}(?:,{_SYMBOL})+\)|(?:\\det|\\gcd|\\max|\\min)\(?[^=]*"
  r"|\\frac\{d[^{}=]*(?:\{\d\})?[^{}=]*\}\{d[a-z](?:\^\{?\d\}?)?\}[^=]*|d[a-z]/d[a-z]|[A-Z]\^(?:\{-1\}|T)|\[[A-Z]{3,}\]"
  r"|[a-w](?:[+-][a-w])+|\|[a-w]-[a-w]\||\\(?:i*int|oint|sum|prod|lim).*"
  rf"|{_SYMBOL}(?:\^\{{-1\}})?\((?:{_SYMBOL}|-?\d+)(?:,(?:{_SYMBOL}|\d+))*\)|(?:[PEVNn]|\\mathbb\{{[PE]\}})[(\[][^=]*[)\]]|\\(?:deg|dim|ker)[^=]*"
  r"|\\text\{(?![^{}]*\b(?:not?|wrong|incorrect|twice|half|double|times|two|three|plus|minus|if|or)\b)[^{}]*\}(?:_\w|_\{\w*\})?(?:\([^()]*\)|[A-Z]{1,4})?"
)
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASES = {
  "two": "2",
  "three": "3",
  "four": "4",
  "five": "5",
  "six": "6",
  "seven": "7",
  "eight": "8",
  "nine": "9",
  "ten": "10",
  "eleven": "11",
  "twelve": "12",
  "sixteen": "16",
}
_POINT = re.compile(
  r"(?:the )?(?:point|vertex|cent(?:er|re)|focus|midpoint|coordinate|ordered pair|vector|solution)s?(?: is| are| at)?:?"
)
_DERIVATIVES = frozenset(("y'", "f'(x)", "dy/dx", r"\frac{dy}{dx}", r"\frac{d}{dx}f(x)", r"\frac{d}{dx}y"))
_FUNCTION = re.compile(r"[a-zA-Z](?:\^\{-1\})?\([a-z]\)")
_SUBSCRIPT = re.compile(r"(?<=^[xyztrkm])_(?:\d|\{\d\})$")  # of the first and the second solution
_SIMPLE = re.compile(_SYMBOL)
_ANY_INTEGER = "any of Z 0"  # name of the symbol for an integer that the answer leaves open
_UNIT_VECTORS = ("hat{i}", "hat{j}", "hat{k}")
_CONSTANTS = frozenset(("C", "K", "c", "k", "C_1", "C_0"))  # of integration


AnswerValue: TypeAlias = object  # one of the following types


class _Scalar(NamedTuple):
  """A formula, a number with a unit, or a text that can be read as both."""

  # The whole as a formula, in which the letters of a unit are variables; None: it can't be read so, as `3\\text{ m}`.
  tree: Formula | None
  number: Formula | None = None  # what stands before the unit; None: it has no unit
  unit: units.Unit = ()
  loose: bool = False  # whether the unit is bare letters right behind the number, which may be variables


class _Bracketed(NamedTuple):
  """Items in order between brackets: a tuple, or an interval of two items."""

  opening: str  # such as "(" or "["; "row" for a row of a matrix
  closing: str  # such as ")" or "]"; "row" for a row of a matrix
  items: tuple  # of answer values


class _Collection(NamedTuple):
  """A set, or a list without brackets; the order of the items means nothing."""

  items: tuple  # of answer values
  listed: bool = False  # whether it has no braces


class _Interval(NamedTuple):
  """The numbers between two bounds."""

  low: Formula
  high: Formula
  low_closed: bool  # whether `low` is in the interval
  high_closed: bool  # whether `high` is in the interval


class _Region(NamedTuple):
  """A union of intervals."""

  pieces: tuple[_Interval, ...]
  variable: str = ""  # whose values it has; "": none is named


class _Matrix(NamedTuple):
  """Rows of values, of one length."""

  rows: tuple  # of tuples of answer values


class _Ratio(NamedTuple):
  """Numbers separated by colons, or a time of day."""

  parts: tuple[str, ...]  # numbers in digits, as they are written
  suffix: str  # "am", "pm" or ""


class _Residue(NamedTuple):
  """All numbers that leave a value, or one of several, when they are divided by the modulus."""

  value: AnswerValue  # the remainder, or a Collection of remainders
  modulus: int
  variable: str = ""  # whose values these numbers are; "": none is named


class _Based(NamedTuple):
  """Digits in a base, as `1011_2`."""

  digits: str
  base: str  # in decimal digits, from "2" to "36"


class Words(NamedTuple):
  """An answer in words, or a name that is no formula."""

  text: str  # of an answer as `spelling.bare_words` returns it


class _Relation(NamedTuple):
  """An equation, an inequality, or a chain of them."""

  sides: tuple  # values
  signs: tuple[str, ...]  # between the sides: values of _SIGNS
  texts: tuple[str, ...]  # of the sides, without spaces


_ALL_REALS = _Region((_Interval(_NEGATIVE_INFINITY, INFINITY, False, False),))
_NOTHING = Words("\0")  # equal to no answer


# Reading


def read(text: str) -> AnswerValue:
  """Returns the value of an answer, for `is_right`. The value of an answer in words is a `Words`.

  `text`: the answer in the spelling that `spelling.respell` returns.
  Raises formula.Unknown for a text that it can't read, also for an empty one, numeric.TooLarge if its numbers need too
  many digits, and RecursionError for a product of some 300 factors.
  """
  tokens = formula.tokens(text)
  if not tokens:
    raise Unknown("nothing")
  words = bare_words(text)
  if _are_words(tokens) and (len(tokens) > 1 or len(words) != 1):
    return Words(words)
  tokens, parameters = _without_qualifiers(tokens)
  value = _list(tokens)
  for number, parameter in enumerate(parameters):
    if parameter.domain == "Z" or parameter.name not in _CONSTANTS:
      value = _renamed(value, parameter.name, Symbol(f"any of {parameter.domain} {number}"))
  return value


def _are_words(tokens: list[FormulaToken]) -> bool:
  """Returns whether tokens are text or bare letters, with at least one text or word among them."""
  if any(token.kind not in ("text", "letters") for token in tokens):
    return False
  return any(token.kind == "text" or formula.is_word(token.text) for token in tokens)


def _depths(tokens: list[FormulaToken]) -> list[int]:
  """Returns for each token how many brackets are open around it. Raises Unknown if brackets do not match."""
  opened: list[str] = []
  depths = []
  for token in tokens:
    text = token.text if token.kind in ("sign", "command") else ""
    if opened and text in _CLOSING[opened[-1]]:
      opened.pop()
      depths.append(len(opened))
      continue
    if text in (")", "]", "}", r"\}"):
      raise Unknown("a bracket that was not opened")
    depths.append(len(opened))
    if text in _CLOSING:
      opened.append(text)
  if opened:
    raise Unknown("a bracket that never closes")
  return depths


def _split(
  tokens: list[FormulaToken], is_separator: Callable[[FormulaToken], bool]
) -> tuple[list[list[FormulaToken]], list[FormulaToken]]:
  """Returns the parts between separators that stand outside of brackets, and the separators. Raises Unknown."""
  parts: list[list[FormulaToken]] = [[]]
  separators = []
  for token, depth in zip(tokens, _depths(tokens), strict=True):
    if depth == 0 and is_separator(token):
      separators.append(token)
      parts.append([])
    else:
      parts[-1].append(token)
  return parts, separators


class _Parameter(NamedTuple):
  """A letter of an answer that stands for any number of a set."""

  name: str
  domain: str  # name of the set, such as Z or Z^+


def _without_qualifiers(tokens: list[FormulaToken]) -> tuple[list[FormulaToken], list[_Parameter]]:
  """Returns the tokens before qualifiers such as `where ...` and `k \\in Z`, and the parameters that these name.

  Raises Unknown if the qualifiers hold another answer.
  """
  end = _start_of_qualifiers(tokens)
  _check_conditions(tokens[end:])
  return tokens[:end], _parameters(tokens, end)


def _start_of_qualifiers(tokens: list[FormulaToken]) -> int:
  """Returns the place of the first token of the qualifiers; the number of tokens if there are none."""
  depths = _depths(tokens)
  for place in range(1, len(tokens)):
    if depths[place]:
      continue
    token, previous = tokens[place], tokens[place - 1]
    is_text = token.kind == "text"
    is_qualifier = _first_word(token) in _QUALIFIERS
    if is_qualifier and (is_text or _stands_alone(tokens, place)) and previous.text not in ("=", "+", "-", ","):
      return place
    if token.text in (",", "(", ";", ":"):
      if _says_integer(tokens[place + 1 :]) or _excludes(tokens, place):
        return place
    if is_qualifier and is_text:
      return place - 1 if previous.text == "," else place
  return len(tokens)


def _stands_alone(tokens: list[FormulaToken], place: int) -> bool:
  """Returns whether a token is bare letters with spaces around them."""
  token = tokens[place]
  if token.kind != "letters" or place + 1 == len(tokens):
    return False
  return token.spaced and tokens[place + 1].spaced


def _parameters(tokens: list[FormulaToken], start: int) -> list[_Parameter]:
  """Returns the letters that the qualifiers from `start` on name: `k \\in Z`, `k an integer`, `integer k`."""
  parameters = []
  for place in range(start, len(tokens)):
    token, previous = tokens[place], tokens[place - 1]
    behind = tokens[place + 1 :]
    if [following.text for following in behind[:2]] == [r"\in", r"\mathbb"]:
      parameters.append(_Parameter(token.text, _domain(behind[2:])))
    elif behind and behind[0].kind == "text" and "integer" in behind[0].text:
      parameters.append(_Parameter(token.text, _integers_named(behind[0].text)))
    elif place > start and token.kind == "letters" and "integer" in previous.text:
      parameters.append(_Parameter(token.text, _integers_named(previous.text)))
  return parameters


def _check_conditions(tokens: list[FormulaToken]) -> None:
  """Raises Unknown if qualifiers hold another answer."""
  text = " ".join(token.text for token in tokens if token.kind in ("text", "letters")).casefold()
  conditions = [word for word in re.findall(r"[a-z]+", text) if word in ("if", "when", "for")]
  if len(conditions) > len(set(conditions)) or re.search(r"\b(?:otherwise|else|not?|or|respectively)\b", text):
    raise Unknown("several answers")
  if tokens[:1] == [FormulaToken("sign", "(")]:
    return
  parts, _ = _split(tokens, lambda token: token.text == ",")
  further = parts[1:] if parts[0] else parts[2:]  # the first is empty if a comma stands before the qualifiers
  for part in further:
    if not any(token.text in _SIGNS or token.kind == "text" for token in part):
      raise Unknown("more behind a condition")


def _domain(tokens: list[FormulaToken]) -> str:
  """Returns the name of the set of numbers that tokens begin with, without braces, such as Z^+."""
  end = len(tokens)
  for place, token in enumerate(tokens):
    if token.kind == "text" or token.text in (",", ")", ";", ".", r"\}"):
      end = place
      break
  return _text(tokens[:end]).replace("{", "").replace("}", "")


def _integers_named(text: str) -> str:
  """Returns the set of integers that words describe."""
  if "positive" in text or "natural" in text:
    return "Z^+"
  return "Z_\\ge0" if "negative" in text else "Z"


def _first_word(token: FormulaToken) -> str:
  """Returns the first word of a token in lower case; "" if it has none."""
  words = token.text.replace(",", " ").split()
  if not words:
    return ""
  return words[0].strip("(").casefold()


def _excludes(tokens: list[FormulaToken], place: int) -> bool:
  """Returns whether `x \\ne ...` or `|x| < ...` follows a place, of a letter x that occurs before it.

  There must be no other comparison among the tokens.
  """
  signs = [token.text for token in tokens if token.text in _SIGNS and token.text != "="]
  behind = [token.text for token in tokens[place + 1 :]]
  if behind[:1] + behind[2:4] == ["|", "|", "<"]:
    letter, sign, bound = behind[1], "<", behind[4:]
  elif behind[1:2] == [r"\ne"]:
    letter, sign, bound = behind[0], r"\ne", behind[2:]
  else:
    return False
  letters_before = "".join(token.text for token in tokens[:place] if token.kind == "letters")
  return bool(bound) and signs == [sign] and letter in list(letters_before)


def _says_integer(tokens: list[FormulaToken]) -> bool:
  """Returns whether tokens begin as `k \\in \\mathbb`."""
  if len(tokens) < 3:
    return False
  letter, sign, number_set = tokens[:3]
  is_letter = letter.kind == "letters" and len(letter.text) == 1
  return is_letter and sign.text == r"\in" and number_set.text == r"\mathbb"


def _joiner(token: FormulaToken) -> str:
  """Returns how a token joins items: "or", "and", "," or ";"; "" if it does not."""
  if token.kind in ("text", "letters"):
    word = token.text.strip(" ,").casefold()
    return word if word in _JOINERS else ""
  if token.kind == "command":
    return _JOINING_COMMANDS.get(token.text, "")
  return token.text if token.kind == "sign" and token.text in (",", ";") else ""


def _list(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a list without brackets, several inequalities, or a single item."""
  texts = [token.text for token in tokens]
  if texts.count(r"\pmod") == 1 and r"\equiv" not in texts[2:]:
    return _residue(tokens)
  parts, separators = _split(tokens, lambda token: bool(_joiner(token)))
  if len(parts) == 1:
    return _item(tokens)
  joiners = [_joiner(token) for token in separators]
  if not parts[0] or not parts[-1]:
    raise Unknown("an empty item")
  items = _named_alike([_item(part) for part in parts if part])
  for joiner, part in zip(joiners, parts[1:], strict=True):
    if not part and joiner not in (",", ";"):
      raise Unknown("an empty item")
  regions = [item for item in items if isinstance(item, _Region)]
  if len(regions) == len(items):
    return _joined(regions, joiners)
  if regions:
    points = [_point(item) for item in items]
    if None not in points and set(joiners) <= {"or", ","}:
      return _joined(points, ["or"] * len(joiners))
  return _Collection(tuple(_spread(items)), listed=True)


def _point(item: AnswerValue) -> _Region | None:
  """Returns a region as it is, and x=1 as the region of that number; None for all else."""
  if isinstance(item, _Region):
    return item
  if not isinstance(item, _Relation) or item.signs != ("=",):
    return None
  name, number = item.sides
  if not isinstance(name, _Scalar) or not isinstance(name.tree, Symbol) or not isinstance(number, _Scalar):
    return None
  region = _as_region(number)
  return None if region is None else _Region(region.pieces, name.tree.name)


def _named_alike(items: list) -> list:
  """Returns items of which the first names its value with this name for all: x = 1, 2; x != 1, 2."""
  first, others = items[0], items[1:]
  if isinstance(first, _Region) and len(first.pieces) == 2 and _are_formulas(others):
    point = first.pieces[0].high
    if first.pieces == _beyond(point, "!="):
      return [first, *(_Region(_beyond(item.tree, "!="), first.variable) for item in others)]
  if not _gives_value(first) or not _are_all(others, _Scalar | _Bracketed | _Collection):
    return items
  named = [first]
  for item in others:
    named.append(_Relation((first.sides[0], item), first.signs, (first.texts[0], "")))
  return named


def _joined(items: list[_Region], joiners: list[str]) -> _Region:
  """Joins inequalities: `or` to a union, `and` to an intersection, a comma to an intersection if it is not empty."""
  variables = {item.variable for item in items if item.variable}
  if len(variables) > 1:
    raise Unknown("inequalities of several variables")
  pieces = items[0].pieces
  for item, joiner in zip(items[1:], joiners, strict=False):
    common = _intersection(pieces, item.pieces)
    if joiner == "or" or joiner in (",", ";") and not common:
      pieces = pieces + item.pieces
    else:
      pieces = common
  return _Region(pieces, *variables)


def _item(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a relation or a single side."""
  parts, separators = _split(tokens, lambda token: token.kind != "text" and token.text in _SIGNS)
  if len(parts) == 1:
    return _side(tokens)
  relation = _Relation(
    sides=tuple(_side_or_name(part) for part in parts),
    signs=tuple(_SIGNS[token.text] for token in separators),
    texts=tuple(_text(part) for part in parts),
  )
  region = _region(relation.sides, relation.signs)
  return region or _with_name_first(relation)


def _residue(tokens: list[FormulaToken]) -> _Residue:
  """Reads `x \\equiv 3 \\pmod{7}`, and the same without a variable."""
  place = [token.text for token in tokens].index(r"\pmod")
  modulus = _text(tokens[place + 1 :]).strip("{}")
  sides, _ = _split(tokens[:place], lambda token: token.text in (r"\equiv", "="))
  variable = _text(sides[0]) if len(sides) == 2 else ""
  if not modulus.isdigit() or int(modulus) == 0 or len(sides) > 2:
    raise Unknown("a residue")
  if len(sides) == 2 and not _SIMPLE.fullmatch(variable):
    raise Unknown("a residue")
  return _Residue(_list(sides[-1]), int(modulus), variable)


def _text(tokens: list[FormulaToken]) -> str:
  """Returns the text of tokens, without spaces."""
  return "".join(f"\\text{{{token.text}}}" if token.kind == "text" else token.text for token in tokens)


def _side_or_name(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a side of a relation; a name that is no formula is read as words."""
  try:
    return _side(tokens)
  except Unknown:
    text = _text(tokens)
    if _NAME.fullmatch(text):
      return Words(text)
    raise


def _with_name_first(relation: _Relation) -> _Relation:
  """Returns 7=x as x=7, other relations as they are."""
  if relation.signs != ("=",) or _NAME.fullmatch(relation.texts[0]):
    return relation
  left, right = relation.sides
  if _is_symbol(left) or not _is_symbol(right):
    return relation
  return _Relation(relation.sides[::-1], relation.signs, relation.texts[::-1])


def _is_symbol(value: AnswerValue) -> bool:
  return isinstance(value, _Scalar) and isinstance(value.tree, Symbol)


def _region(sides: tuple, signs: tuple[str, ...]) -> AnswerValue | None:
  """Returns what inequalities or a membership of one variable allow; None for all other relations."""
  if signs == ("in",):
    return _members(*sides)
  trees = [side.tree if isinstance(side, _Scalar) else None for side in sides]
  if None in trees or not set(signs) <= {"<", ">", "<=", ">=", "!="}:
    return None
  if len(trees) == 2:
    left, right = trees
    return _region_of_two(left, right, signs[0])
  if len(trees) == 3 and "!=" not in signs:
    left, middle, right = trees
    return _region_between(left, middle, right, signs[0], signs[1])
  return None


def _members(member: AnswerValue, domain: AnswerValue) -> AnswerValue | None:
  """Returns the set that a variable or a tuple is in; None for all other members."""
  if isinstance(member, _Scalar) and isinstance(member.tree, Symbol):
    region = _as_region(domain)
    return _Region(region.pieces, member.tree.name) if region else domain
  if isinstance(member, _Bracketed) and isinstance(domain, _Collection):
    return domain
  return None


def _region_of_two(left: Formula, right: Formula, sign: str) -> _Region | None:
  """Returns what an inequality of two sides allows; None if neither is a variable, or |ax+b| or x^2 with a bound."""
  if sign != "!=":
    region = _around(left, right, sign) or _around(right, left, _turned(sign))
    if region is not None:
      return region
  if _is_variable(left):
    return _Region(_beyond(right, sign), left.name)
  if _is_variable(right):
    return _Region(_beyond(left, _turned(sign)), right.name)
  return None


def _region_between(
  left: Formula, middle: Formula, right: Formula, first_sign: str, second_sign: str
) -> _Region | None:
  """Returns what a < x < b or a > x > b allows; None for all other chains."""
  if not _is_variable(middle):
    return None
  (from_left,) = _beyond(left, _turned(first_sign))
  (from_right,) = _beyond(right, second_sign)
  if first_sign[0] == second_sign[0] == "<":
    below, above = from_left, from_right
  elif first_sign[0] == second_sign[0] == ">":
    below, above = from_right, from_left
  else:
    return None
  return _Region((_Interval(below.low, above.high, below.low_closed, above.high_closed),), middle.name)


def _is_variable(tree: Formula) -> TypeGuard[Symbol]:
  return isinstance(tree, Symbol) and bool(symbols(tree))


def _around(tree: Formula, bound: Formula, sign: str) -> _Region | None:
  """Returns what |ax+b| < bound or (ax+b)^2 < bound allows, or with another sign; None for all else."""
  if not isinstance(tree, Operation):
    return None
  is_square = tree.name == "pow" and tree.arguments[1] == _number(2)
  if not is_square and tree.name != "abs":
    return None
  inner, names, limit = tree.arguments[0], symbols(tree), numeric.real(bound)
  if len(names) != 1 or limit is None or not limit > 0:
    return None
  (name,) = names
  offset, at_one = formula.replace(inner, name, _number(0)), formula.replace(inner, name, _number(1))
  slope = _difference(at_one, offset)
  line = Operation("add", (Operation("mul", (slope, Symbol(name))), offset))
  rise = numeric.real(slope)
  if not rise or not numeric.equal(inner, line):
    return None
  distance = Operation("root", (bound, _number(2))) if is_square else bound
  low = Operation("div", (_difference(Operation("neg", (distance,)), offset), slope))
  high = Operation("div", (_difference(distance, offset), slope))
  if rise < 0:
    low, high = high, low
  if sign[0] == "<":
    is_closed = sign.endswith("=")
    return _Region((_Interval(low, high, is_closed, is_closed),), name)
  return _Region((*_beyond(low, _turned(sign)), *_beyond(high, sign)), name)


def _number(value: int) -> Number:
  return Number(Fraction(value))


def _difference(a: Formula, b: Formula) -> Formula:
  return Operation("add", (a, Operation("neg", (b,))))


def _turned(sign: str) -> str:
  """Returns the sign of an inequality whose sides change places."""
  return sign.translate(str.maketrans("<>", "><"))


def _beyond(bound: Formula, sign: str) -> tuple[_Interval, ...]:
  """Returns the numbers that are <, <=, >, >= or != a bound, as one or two intervals."""
  below = _Interval(_NEGATIVE_INFINITY, bound, False, sign == "<=")
  above = _Interval(bound, INFINITY, sign == ">=", False)
  if sign == "!=":
    return (below, above)
  return (below,) if sign[0] == "<" else (above,)


def _side(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a side of a relation: an expression of sets, a set of numbers, or what `_atom` reads."""
  for command, combine in _SET_OPERATIONS.items():
    parts, separators = _split(tokens, functools.partial(_is_command, command))
    if separators:
      return combine([_side(part) for part in parts])
  if not tokens:
    raise Unknown("an empty side")
  if _is_command(r"\mathbb", tokens[0]):
    return _number_set(tokens)
  return _atom(tokens)


def _is_command(command: str, token: FormulaToken) -> bool:
  return token.kind == "command" and token.text == command


def _number_set(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a named set of numbers, also without some points: \\mathbb{R} - \\{1\\}."""
  name = re.fullmatch(r"\{([A-Z])\}", "".join(token.text for token in tokens[1:4]))
  if name is None:
    raise Unknown("a set of numbers")
  behind = tokens[4:]
  if behind and behind[0].text == "-":
    return _without([_number_set(tokens[:4]), _side(behind[1:])])
  if behind:
    raise Unknown("more behind a set of numbers")
  return _ALL_REALS if name[1] == "R" else Words(f"the numbers {name[1]}")


def _union(parts: list) -> AnswerValue:
  """Returns the union of sets. Raises Unknown if they are neither all sets of items nor all sets of numbers."""
  if _are_all(parts, _Collection):
    items: list[AnswerValue] = []
    for part in parts:
      items += part.items
    return _Collection(tuple(items))
  region = _union_of_regions(parts)
  if region is None:
    raise Unknown("a union of what is no set of numbers")
  return region


def _union_of_regions(values: Iterable) -> _Region | None:
  """Returns the union of values that are sets of numbers; None if one is not."""
  pieces: list[_Interval] = []
  for value in values:
    region = _as_region(value)
    if region is None:
      return None
    pieces += region.pieces
  return _Region(tuple(pieces))


def _intersected(parts: list) -> _Region:
  """Returns the intersection of sets of numbers. Raises Unknown for others."""
  regions = [_as_region(part) for part in parts]
  if None in regions:
    raise Unknown("an intersection of what is no set of numbers")
  pieces = regions[0].pieces
  for region in regions[1:]:
    pieces = _intersection(pieces, region.pieces)
  return _Region(pieces)


def _without(parts: list) -> _Region:
  """Returns a set of numbers without an interval or without the points of a set. Raises Unknown for all else."""
  region = _as_region(parts[0])
  if region is None or len(parts) != 2:
    raise Unknown("a difference of sets")
  removed = parts[1]
  if isinstance(removed, _Bracketed):
    hole = _as_region(removed)
    if hole is None:
      raise Unknown("a difference of sets")
    (gap,) = hole.pieces
    below = _beyond(gap.low, "<" if gap.low_closed else "<=")
    above = _beyond(gap.high, ">" if gap.high_closed else ">=")
    return _Region(_intersection(region.pieces, below + above))
  if not isinstance(removed, _Collection) or not _are_formulas(removed.items):
    raise Unknown("a difference of sets")
  pieces = region.pieces
  for point in removed.items:
    pieces = _intersection(pieces, _beyond(point.tree, "!="))
  return _Region(pieces)


_SET_OPERATIONS = {r"\cup": _union, r"\cap": _intersected, r"\setminus": _without, r"\backslash": _without}


def _is_formula(value: AnswerValue) -> TypeGuard[_Scalar]:
  """Returns whether a value can be read as a formula."""
  return isinstance(value, _Scalar) and value.tree is not None


def _are_formulas(items: Iterable) -> bool:
  return all(_is_formula(item) for item in items)


def _are_all(items: Iterable, types: type | UnionType) -> bool:
  """Returns whether all items have one of these types."""
  return all(isinstance(item, types) for item in items)


def _gives_value(value: AnswerValue) -> TypeGuard[_Relation]:
  """Returns whether a value is an equation that gives a name its value, as x=1."""
  if not isinstance(value, _Relation) or value.signs != ("=",):
    return False
  return _NAME.fullmatch(value.texts[0]) is not None


def _atom(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a set, tuple, interval, matrix, point, ratio, number in a base, or a formula with or without a unit."""
  texts = [token.text for token in tokens]
  if texts == [r"\emptyset"]:
    return _Collection(())
  depths = _depths(tokens)
  if texts[-1] == "}" and texts[-4:-1] in (["^", "{", "T"], ["^", "{", r"\top"]):
    return _transposed(_atom(tokens[:-4]))
  if len(tokens) > 3 and texts[-2] == "^" and texts[-1] in ("T", r"\top", r"\intercal"):
    return _transposed(_atom(tokens[:-2]))
  if texts[0] == r"\begin":
    return _matrix(tokens)
  if len(tokens) > 1 and texts[1] in ("(", r"\langle") and texts[-1] == ")" and _names_a_point(tokens[0]):
    point = _side(tokens[1:])
    if isinstance(point, _Bracketed):
      return point
  if _is_bracketed(tokens, depths):
    return _bracketed(tokens)
  return _ratio(tokens) or _based(tokens) or _both_signs(_scalar(tokens))


def _is_bracketed(tokens: list[FormulaToken], depths: list[int]) -> bool:
  """Returns whether the first token is a bracket that the last one closes."""
  first, last = tokens[0], tokens[-1]
  if len(tokens) < 2 or first.kind == "text" or first.text not in ("(", "[", r"\{", "{"):
    return False
  if last.text not in (")", "]", r"\}", "}"):
    return False
  return depths[-1] == 0 and all(depth > 0 for depth in depths[1:-1])


def _names_a_point(token: FormulaToken) -> bool:
  """Returns whether a token is a capital, or words such as `the point` and `vertex`."""
  if token.kind == "text":
    return _POINT.fullmatch(token.text.strip().casefold()) is not None
  return token.kind == "letters" and len(token.text) == 1 and token.text.isupper()


def _transposed(value: AnswerValue) -> AnswerValue:
  """Returns a matrix transposed, and a vector as a tuple. Raises Unknown for all else."""
  if isinstance(value, _Matrix):
    return _Matrix(tuple(zip(*value.rows, strict=True)))
  if isinstance(value, _Bracketed):
    return _Bracketed("(", ")", value.items)
  raise Unknown("a power of no matrix")


def _bracketed(tokens: list[FormulaToken]) -> AnswerValue:
  """Reads a set, tuple or interval, or what stands in brackets that mean nothing."""
  opening, inner, closing = tokens[0].text, tokens[1:-1], tokens[-1].text
  if opening == r"\{":
    return _set(inner)
  parts = _between_commas(inner)
  if len(parts) == 1 and opening in ("(", "{") and closing in (")", "}"):
    return _list(inner) if inner else _scalar(tokens)
  if opening == "{":
    return _list(inner)
  return _Bracketed(opening, closing, tuple(_item(part) for part in parts))


def _set(inner: list[FormulaToken]) -> AnswerValue:
  """Reads what stands between the braces of a set."""
  parts, bars = _split(inner, lambda token: token.text in ("|", r"\mid", ":") and token.kind != "text")
  if len(bars) == 1:
    return _set_by_condition(*parts)
  if not inner:
    return _Collection(())
  return _Collection(tuple(_spread([_item(part) for part in _between_commas(inner)])))


def _set_by_condition(member: list[FormulaToken], condition: list[FormulaToken]) -> AnswerValue:
  """Reads a set by its condition: { x in R | x > 1 }, { k pi | k in Z }."""
  has_domain = r"\in" in [token.text for token in member]
  if _says_integer(condition) and len(member) > 1 and not has_domain:
    return _renamed(_list(member), condition[0].text, Symbol(f"any of {_domain(condition[3:])} 0"))
  if not has_domain and len(member) != 1:
    raise Unknown("a set of formulas")
  value = _list(condition)
  if not isinstance(value, _Region):
    raise Unknown("a set by another condition")
  return value


def _between_commas(tokens: list[FormulaToken]) -> list[list[FormulaToken]]:
  """Returns the parts between commas or semicolons outside of brackets."""
  parts, _ = _split(tokens, lambda token: token.kind == "sign" and token.text in (",", ";"))
  return parts


def _matrix(tokens: list[FormulaToken]) -> _Matrix:
  """Reads a matrix with round or square brackets, or none."""
  texts = [token.text for token in tokens]
  kinds = ("pmatrix", "bmatrix", "matrix", "Bmatrix")
  if len(tokens) < 8 or texts[2] not in kinds or texts[-4] != r"\end" or r"\begin" in texts[1:]:
    raise Unknown("an environment")
  lines, _ = _split(tokens[4:-4], lambda token: token.text == "\\\\")
  rows = []
  for line in lines:
    if line:
      cells, _ = _split(line, lambda token: token.text == "&")
      rows.append(cells)
  if len({len(row) for row in rows}) != 1:
    raise Unknown("rows of different lengths")
  return _Matrix(tuple(_row(cells) for cells in rows))


def _row(cells: list[list[FormulaToken]]) -> tuple:
  return tuple(_item(cell) for cell in cells)


def _ratio(tokens: list[FormulaToken]) -> _Ratio | None:
  """Reads 3:4 and 7:30 PM; returns None if there is no colon."""
  parts, colons = _split(tokens, lambda token: token.kind == "sign" and token.text == ":")
  if not colons:
    return None
  suffix = "".join(token.text for token in parts[-1][1:]).replace(".", "").strip().casefold()
  are_numbers = all(part and part[0].kind == "number" for part in parts)
  if not are_numbers or any(len(part) > 1 for part in parts[:-1]) or suffix not in ("", "am", "pm"):
    raise Unknown("a colon")
  return _Ratio(tuple(part[0].text for part in parts), suffix)


def _based(tokens: list[FormulaToken]) -> _Based | None:
  """Reads 1011_2 and 1A_{16}; returns None for what has no such subscript, or one of a symbol, as in 3V_0."""
  place = next((place for place, token in enumerate(tokens) if token.text == "_"), 0)
  before = tokens[:place]
  if not before or before[0].kind != "number" or any(token.kind not in ("number", "letters") for token in before):
    return None
  digits = "".join(token.text for token in before)
  base = _text(tokens[place + 1 :]).strip("{}").removeprefix(r"\text{").rstrip("}").strip()
  base = _BASES.get(base, base)
  if _are_digits(digits, base):
    return _Based(digits.upper(), base)
  if digits.isdigit():
    raise Unknown("a subscript of a number")
  return None


def _are_digits(digits: str, base: str) -> bool:
  """Returns whether all are digits of a base from 2 to 36; small letters are digits in base 16 only."""
  if not base.isdigit() or len(base) > 2 or not 2 <= int(base) <= 36:
    return False
  if base == "16":
    digits = digits.upper()
  return all(digit in _DIGITS[: int(base)] for digit in digits)


def _scalar(tokens: list[FormulaToken]) -> _Scalar:
  """Reads a formula, an amount of money, a percentage, or a number with a unit."""
  currency, tokens = _currency(tokens)
  if len(tokens) > 1 and tokens[-1].text in (r"\%", "%"):
    if currency:
      raise Unknown("percent of a currency")
    return _Scalar(Operation("percent", (formula.read(tokens[:-1]),)))
  tree = unknown = None
  try:
    tree = formula.read(tokens)
  except Unknown as error:
    unknown = error
  if currency:
    return _money(tokens, tree, currency, unknown)
  measured = None
  if tree is None or symbols(tree):
    measured = _measured(tokens)
  if measured is not None:
    return _with_unit(tree, measured)
  if tree is None:
    raise unknown
  return _Scalar(tree)


def _money(tokens: list[FormulaToken], tree: Formula | None, currency: str, unknown: Unknown | None) -> _Scalar:
  """Returns an amount of money; behind it may stand `million` and other words. Raises `unknown` if it is no number."""
  measured = _measured(tokens)
  number, factor = tree, 1
  if measured is not None:
    number = measured.number
    factor, _ = units.multiplier(measured.unit)
  if number is None:
    raise unknown
  return _scaled(number, factor, ((currency, 1),))


class _Measured(NamedTuple):
  """A number with a unit behind it."""

  number: Formula
  unit: units.Unit
  loose: bool  # see Scalar


def _with_unit(tree: Formula | None, measured: _Measured) -> _Scalar:
  """Returns a number with its unit; percent, degrees and `million` become operations."""
  factor, unit = units.multiplier(measured.unit)
  if unit == (("percent", 1),):
    return _Scalar(Operation("percent", (measured.number,)))
  if unit == (("degree", 1),):
    return _Scalar(Operation("degree", (measured.number,)))
  if factor != 1 or not unit:
    return _scaled(measured.number, factor, unit)
  return _Scalar(tree, measured.number, unit, measured.loose)


def _scaled(number: Formula, factor: int, unit: units.Unit) -> _Scalar:
  """Returns a number times a factor, with a unit if it has one."""
  if factor != 1:
    number = Operation("mul", (number, _number(factor)))
  return _Scalar(None, number, unit) if unit else _Scalar(number)


def _currency(tokens: list[FormulaToken]) -> tuple[str, list[FormulaToken]]:
  """Returns the currency before or behind a number, and the tokens without it; "" if there is none."""
  if len(tokens) > 1:
    for place in (0, 1):
      name = units.CURRENCIES.get(tokens[place].text)
      is_in_front = place == 0 or tokens[0].text == "-"
      if name and is_in_front and len(tokens) > place + 1:
        return name, [*tokens[:place], *tokens[place + 1 :]]
    name = units.CURRENCIES.get(tokens[-1].text.strip())
    if name:
      return name, tokens[:-1]
  return "", tokens


def _measured(tokens: list[FormulaToken]) -> _Measured | None:
  """Reads a number and the unit behind it; returns None if there is none."""
  for place in range(1, len(tokens)):
    token, behind = tokens[place], tokens[place:]
    if len(behind) < 3 and all(mark.text == "'" for mark in behind) and tokens[place - 1].kind == "number":
      unit = "ft" if len(behind) == 1 else "in"
      return _Measured(formula.read(tokens[:place]), ((unit, 1),), loose=False)
    if not _begins_unit(behind) or not _can_be_unit(behind):
      continue
    unit = units.read(" ".join(_text([piece]) for piece in behind))
    if unit is None or not unit and token.kind != "text":
      continue
    try:
      number = formula.read(tokens[:place])
    except Unknown:
      continue
    if not symbols(number):
      return _Measured(number, unit, loose=token.kind == "letters" and not token.spaced)
  return None


def _begins_unit(tokens: list[FormulaToken]) -> bool:
  """Returns whether a unit can begin with the first token."""
  first = tokens[0]
  if first.kind in ("text", "letters") or first.text in (r"\mu", r"\Omega", r"\frac"):
    return True
  return first.text == "^" and any(token.text == r"\circ" for token in tokens[:3])


def _can_be_unit(tokens: list[FormulaToken]) -> bool:
  """Returns whether all letters are text, known units or words.

  Of units without a sign between them, only one may be a single letter with a space before it.
  """
  bare_units = 0
  for token in tokens:
    if token.kind == "letters":
      is_letter = token.text in units.LETTERS
      is_known = is_letter or len(token.text) > 1 and token.text in units.KNOWN
      if not is_known and (len(token.text) < 3 or not formula.is_word(token.text)):
        return False
      if is_letter and token.spaced:
        bare_units += 1
    elif token.kind == "number" and not token.text.isdigit():
      return False
  has_sign = any(token.text in ("/", r"\cdot", "*", "^") for token in tokens)
  return has_sign or _text(tokens) in units.PRODUCTS or bare_units <= 1


def _both_signs(scalar: _Scalar) -> AnswerValue:
  """Returns the list of both values of a plus-minus; a formula without one as it is."""
  if scalar.tree is None or not formula.has(scalar.tree, "pm", "mp"):
    return scalar
  upper, lower = formula.signed(scalar.tree, True), formula.signed(scalar.tree, False)
  return _Collection((_Scalar(upper), _Scalar(lower)), listed=True)


def _spread(items: Iterable) -> list:
  """Returns items, with each list among them replaced by its items."""
  spread = []
  for item in items:
    if isinstance(item, _Collection) and item.listed:
      spread += item.items
    else:
      spread.append(item)
  return spread


def _renamed(value: AnswerValue, name: str, symbol: Symbol) -> AnswerValue:
  """Returns a value with another symbol in the place of the one named `name`."""
  if isinstance(value, _Scalar) and value.tree is not None:
    return value._replace(tree=formula.replace(value.tree, name, symbol))
  if isinstance(value, _Relation):
    return value._replace(sides=tuple(_renamed(side, name, symbol) for side in value.sides))
  if isinstance(value, _Collection | _Bracketed):
    return value._replace(items=tuple(_renamed(item, name, symbol) for item in value.items))
  return value


# Comparing


def is_right(answer: AnswerValue, label: AnswerValue) -> bool:
  """Returns whether an answer's value is right for a label's value; both are values that `read` returned.

  The two are not treated alike: an answer may say more than the label, as `x=7` for 7, and only a label with a decimal
  point may be rounded.
  Raises formula.Unknown for values that can't be compared, numeric.TooLarge if the comparison needs too many digits,
  and RecursionError for very long formulas.
  """
  label = _without_common_name(label)
  if isinstance(label, _Relation):
    return _is_right_for_relation(answer, label)
  if isinstance(answer, _Relation):
    return any(is_right(value, label) for value in _answers_of(answer))
  answer = _values_of_list(answer, label)
  if _names_several(label) and isinstance(answer, _Collection | _Bracketed) and not _names_several(answer):
    is_ordered = answer.listed if isinstance(answer, _Collection) else answer.opening == "("
    label_values = tuple(item.sides[-1] for item in label.items)
    return is_ordered and _all_right(answer.items, label_values)
  if isinstance(answer, _Residue) or isinstance(label, _Residue):
    return _same_residue(answer, label)
  has_set = _is_set(answer) or _is_set(label)
  answer, label = _as_vector(_simplified(answer), label), _as_vector(_simplified(label), answer)
  if isinstance(answer, _Scalar) and isinstance(label, _Scalar):
    return _is_right_scalar(answer, label)
  if isinstance(answer, _Region) or isinstance(label, _Region):
    return _same_region(_as_region(answer), _as_region(label))
  if isinstance(label, _Matrix) or isinstance(answer, _Matrix):
    return _same_matrix(answer, label)
  if isinstance(answer, _Bracketed | _Collection) and isinstance(label, _Bracketed | _Collection):
    return _same_sequence(answer, label, has_set)
  return _same_others(answer, label)


def _is_set(value: AnswerValue) -> bool:
  return isinstance(value, _Collection) and not value.listed


def _same_sequence(answer: _Bracketed | _Collection, label: _Bracketed | _Collection, has_set: bool) -> bool:
  """Compares tuples, lists and sets; a list may stand for a tuple, but not if one of the two was written as a set."""
  if isinstance(answer, _Bracketed) and isinstance(label, _Bracketed):
    same_brackets = (answer.opening, answer.closing) == (label.opening, label.closing)
    return same_brackets and _all_right(answer.items, label.items)
  if isinstance(answer, _Collection) and isinstance(label, _Collection):
    return _same_items(answer.items, label.items)
  if has_set:
    return False
  bracketed, collection = (answer, label) if isinstance(answer, _Bracketed) else (label, answer)
  if not collection.listed or (bracketed.opening, bracketed.closing) != ("(", ")"):
    return False
  return _all_right(answer.items, label.items)


def _without_common_name(value: AnswerValue) -> AnswerValue:
  """Returns x=1, x=2 as the list of its values, all else as it is."""
  if not isinstance(value, _Collection) or len(value.items) < 2:
    return value
  if not _are_all(value.items, _Relation) or any(len(item.sides) != 2 for item in value.items):
    return value
  names = {item.texts[0] for item in value.items if _gives_value(item)}
  if len(names) != 1:
    return value
  values = _spread(item.sides[1] for item in value.items)
  return _Collection(tuple(values), listed=True)


def _names_several(value: AnswerValue) -> TypeGuard[_Collection]:
  """Returns whether a list gives the values of several names, as x=1, y=2."""
  if not isinstance(value, _Collection) or not _are_all(value.items, _Relation):
    return False
  names = {item.texts[0] for item in value.items}
  return len(names) == len(value.items) > 1


def _same_others(answer: AnswerValue, label: AnswerValue) -> bool:
  """Compares ratios, numbers in a base, words, and values of different types."""
  if isinstance(answer, _Ratio) and isinstance(label, _Ratio):
    return _same_ratio(answer, label)
  if isinstance(answer, _Ratio) and isinstance(label, _Scalar):
    return _ratio_equals(answer, label)
  if isinstance(label, _Ratio) and isinstance(answer, _Scalar):
    return _ratio_equals(label, answer)
  if isinstance(label, _Based) and isinstance(answer, _Scalar):
    is_number = isinstance(answer.tree, Number) and label.digits.isdigit()
    return is_number and answer.tree.value == int(label.digits)
  return answer == label


def _ratio_equals(ratio: _Ratio, scalar: _Scalar) -> bool:
  """Returns whether a ratio of two numbers equals a fraction."""
  if len(ratio.parts) != 2 or ratio.suffix or scalar.tree is None or not numeric.fractional(scalar.tree):
    return False
  parts = tuple(Number(Fraction(part)) for part in ratio.parts)
  return numeric.equal(Operation("div", parts), scalar.tree)


def _same_residue(answer: AnswerValue, label: AnswerValue) -> bool:
  """Returns whether both are residues of one modulus with the same values."""
  answer = _as_residue(answer)
  if not isinstance(answer, _Residue) or not isinstance(label, _Residue) or answer.modulus != label.modulus:
    return False
  answer_values = _residue_values(answer.value, label.modulus)
  label_values = _residue_values(label.value, label.modulus)
  return answer_values is not None and answer_values == label_values


def _as_residue(value: AnswerValue) -> AnswerValue:
  """Returns 7k+3 for any integer k as the residue of 3; all else as it is."""
  if _gives_value(value):
    value = value.sides[1]
  if not _is_formula(value) or symbols(value.tree) != {_ANY_INTEGER}:
    return value
  at_zero = formula.replace(value.tree, _ANY_INTEGER, _number(0))
  at_one = formula.replace(value.tree, _ANY_INTEGER, _number(1))
  step = numeric.real(_difference(at_one, at_zero))
  if not isinstance(step, Fraction) or step.denominator > 1 or step == 0:
    return value
  line = Operation("add", (Operation("mul", (Number(step), Symbol(_ANY_INTEGER))), at_zero))
  if not numeric.equal(value.tree, line):
    return value
  return _Residue(_Scalar(at_zero), abs(int(step)))


def _residue_values(value: AnswerValue, modulus: int) -> set[int] | None:
  """Returns the residues of an integer or of a list of integers; None for all else."""
  residues = set()
  items = value.items if isinstance(value, _Collection) else (value,)
  for item in items:
    if not _is_formula(item):
      return None
    number = numeric.real(item.tree)
    if not isinstance(number, Fraction) or number.denominator != 1:
      return None
    residues.add(int(number) % modulus)
  return residues


def _as_vector(value: AnswerValue, other: AnswerValue) -> AnswerValue:
  """Returns a sum of unit vectors as the tuple of its components if the other value is a tuple or a matrix."""
  if not _is_formula(value) or not isinstance(other, _Bracketed | _Matrix):
    return value
  if not symbols(value.tree) & set(_UNIT_VECTORS):
    return value
  size = len(other.items) if isinstance(other, _Bracketed) else max(len(other.rows), len(other.rows[0]))
  components = [_component(value.tree, name) for name in _UNIT_VECTORS]
  products = []
  for component, name in zip(components, _UNIT_VECTORS, strict=True):
    products.append(Operation("mul", (component, Symbol(name))))
  if not numeric.equal(value.tree, Operation("add", tuple(products))):
    return value
  if size < 3 and _UNIT_VECTORS[2] in symbols(value.tree):
    return value
  return _Bracketed("(", ")", tuple(_Scalar(component) for component in components[:size]))


def _component(tree: Formula, name: str) -> Formula:
  """Returns a formula with 1 in the place of this unit vector and 0 in the place of the others."""
  for unit_vector in _UNIT_VECTORS:
    tree = formula.replace(tree, unit_vector, _number(1 if unit_vector == name else 0))
  return tree


def _same_ratio(answer: _Ratio, label: _Ratio) -> bool:
  """Compares ratios, or times of day, whose parts must be equal."""
  if answer.suffix != label.suffix or len(answer.parts) != len(label.parts):
    return False
  later_parts = (*answer.parts[1:], *label.parts[1:])
  if any(part.startswith("0") for part in later_parts) and answer.parts[1:] != label.parts[1:]:
    return False
  answer_numbers = [Fraction(part) for part in answer.parts]
  label_numbers = [Fraction(part) for part in label.parts]
  if answer_numbers == label_numbers:
    return True
  is_time = bool(answer.suffix) or any(part.startswith("0") for part in (*answer.parts, *label.parts))
  if is_time or not label_numbers[0] or not answer_numbers[0]:
    return False
  answer_shares = [number / answer_numbers[0] for number in answer_numbers]
  label_shares = [number / label_numbers[0] for number in label_numbers]
  return answer_shares == label_shares


def _simplified(value: AnswerValue) -> AnswerValue:
  """Returns a collection without repetitions; one of a single item as this item."""
  if not isinstance(value, _Collection):
    return value
  items: list[AnswerValue] = []
  for item in value.items:
    if isinstance(item, _Relation) or not any(_are_equal(item, other) for other in items):
      items.append(item)
  if len(items) == 1 and not isinstance(items[0], _Relation | _Collection):
    return items[0]
  return value._replace(items=tuple(items))


def _are_equal(a: AnswerValue, b: AnswerValue) -> bool:
  """Returns whether one of the two is right for the other; False if they are too large to compare."""
  try:
    return is_right(a, b) or is_right(b, a)
  except numeric.TooLarge:
    return False


def _all_right(answers: tuple, labels: tuple) -> bool:
  """Returns whether there are as many answers as labels and each is right for the label in its place."""
  if len(answers) != len(labels):
    return False
  return all(is_right(answer, label) for answer, label in zip(answers, labels, strict=True))


def _same_items(answers: tuple, labels: tuple) -> bool:
  """Returns whether each answer is right for a label of its own, in any order, and no label is left."""
  unmatched = list(labels)
  for answer in answers:
    place = next((place for place, label in enumerate(unmatched) if is_right(answer, label)), None)
    if place is None:
      return False
    del unmatched[place]
  return not unmatched


def _same_matrix(answer: AnswerValue, label: AnswerValue) -> bool:
  """Compares matrices; a matrix of one row or column may also be a tuple, or lie the other way."""
  if isinstance(answer, _Matrix) and isinstance(label, _Matrix):
    return _all_right(_as_rows(answer), _as_rows(label))
  answer_vector, label_vector = _vector(answer), _vector(label)
  return answer_vector is not None and label_vector is not None and _all_right(answer_vector, label_vector)


def _as_rows(matrix: _Matrix) -> tuple[_Bracketed, ...]:
  return tuple(_Bracketed("row", "row", cells) for cells in matrix.rows)


def _vector(value: AnswerValue) -> tuple | None:
  """Returns the components of a tuple, or of a matrix with one row or column; None for all else."""
  if isinstance(value, _Bracketed) and (value.opening, value.closing) == ("(", ")"):
    return value.items
  if isinstance(value, _Matrix) and (len(value.rows) == 1 or len(value.rows[0]) == 1):
    return tuple(cell for row in value.rows for cell in row)
  return None


def _is_right_scalar(answer: _Scalar, label: _Scalar) -> bool:
  """Compares formulas and numbers with units; of two numbers one may lack its unit."""
  if label.unit and answer.unit:
    if units.same_unit(answer.unit, label.unit) and numeric.agree(answer.number, label.number):
      return True
    return answer.tree is not None and label.tree is not None and numeric.agree(answer.tree, label.tree)
  if answer.tree is not None and label.tree is not None:
    answer = answer._replace(tree=_with_same_unit_vectors(answer.tree, label.tree))
    if _agree(answer.tree, label.tree):
      return True
  if label.unit and not label.loose and answer.tree is not None:
    unit, _ = label.unit[0]
    if _is_operation(answer.tree, "degree") and unit in ("degC", "degF"):
      return numeric.agree(answer.tree.arguments[0], label.number)
    return numeric.agree(answer.tree, label.number)
  if answer.unit and label.tree is not None and not symbols(label.tree):
    return not _is_operation(label.tree, "percent", "degree") and numeric.agree(answer.number, label.tree)
  return False


def _with_same_unit_vectors(answer: Formula, label: Formula) -> Formula:
  """Returns the answer with unit vectors i, j, k with hats if the label has hats, else without."""
  has_hats = bool(symbols(label) & set(_UNIT_VECTORS))
  for letter, hatted in zip("ijk", _UNIT_VECTORS, strict=True):
    if has_hats:
      answer = formula.replace(answer, letter, Symbol(hatted))
    else:
      answer = formula.replace(answer, hatted, Symbol(letter))
  return answer


def _is_operation(tree: Formula, *names: str) -> TypeGuard[Operation]:
  """Returns whether a formula is an operation of one of these names."""
  return isinstance(tree, Operation) and tree.name in names


def _agree(answer: Formula, label: Formula) -> bool:
  """Compares formulas, one of which may lack its degree or percent sign.

  The sign of a percentage below 1 counts.
  """
  for sign in ("percent", "degree"):
    answer_has_sign, label_has_sign = _is_operation(answer, sign), _is_operation(label, sign)
    if answer_has_sign and label_has_sign:
      return numeric.agree(answer.arguments[0], label.arguments[0])
    if label_has_sign and numeric.agree(answer, label.arguments[0]):
      return True
    if answer_has_sign and (sign == "degree" or _is_large(label)) and numeric.agree(answer.arguments[0], label):
      return True
  return numeric.agree(_with_constant(answer, label), label)


def _is_large(tree: Formula) -> bool:
  """Returns whether a formula is a number of size 1 or more."""
  if _is_operation(tree, "neg"):
    tree = tree.arguments[0]
  return isinstance(tree, Number) and tree.value >= 1


def _with_constant(answer: Formula, label: Formula) -> Formula:
  """Returns a sum with its constant of integration named as the label names it."""
  if not _is_operation(answer, "add") or not _is_operation(label, "add"):
    return answer
  own = [name for name in _constants(answer) if name not in symbols(label)]
  labels = [name for name in _constants(label) if name not in symbols(answer)]
  if len(own) != 1 or len(labels) != 1:
    return answer
  return formula.replace(answer, own[0], Symbol(labels[0]))


def _constants(total: Operation) -> list[str]:
  """Returns the names of the terms of a sum that may be constants of integration."""
  return [term.name for term in total.arguments if isinstance(term, Symbol) and term.name in _CONSTANTS]


# Relations


def _answers_of(relation: _Relation) -> list:
  """Returns the values that an equation, or a chain of them, gives as the answer: any may be meant.

  Returns none if it is no answer, or its numbers are not equal.
  """
  if not set(relation.signs) <= {"=", "~"} or not _is_true(relation):
    return []
  first, last = relation.sides[0], relation.sides[-1]
  numbers = [side for side in relation.sides if _is_number(side)]
  if not _is_number(first) and not _NAME.fullmatch(relation.texts[0]):
    is_rounded = relation.signs == ("~",) and isinstance(first, _Scalar) and first.tree is not None
    return [first] if is_rounded and _is_number(first) else []
  if "~" in relation.signs:
    return _answers_of_approximation(relation, numbers)
  if not numbers or _is_number(last):
    return [*numbers, last]
  return []


def _answers_of_approximation(relation: _Relation, numbers: list) -> list:
  """Returns the exact value of a chain with an approximation, and the decimals in it; without one all numbers."""
  exact_sides = relation.sides[: relation.signs.index("~") + 1]
  exact = exact_sides[-1]
  are_constant = [_is_constant(side) for side in relation.sides]
  if are_constant[-1] and not isinstance(exact, _Scalar):
    return []
  if are_constant[len(exact_sides) - 1] and not all(are_constant[len(exact_sides) :]):
    return []
  if len(exact_sides) == 1 and not _is_number(relation.sides[0]):
    return numbers
  decimals = [side for side in numbers if side.tree is not None and numeric.has_decimal_point(side.tree)]
  return [exact, *decimals]


def _is_constant(side: AnswerValue) -> bool:
  """Returns whether a side is a number or a formula without variables."""
  return isinstance(side, _Scalar) and (side.tree is None or not symbols(side.tree))


def _is_number(side: AnswerValue) -> TypeGuard[_Scalar]:
  """Returns whether a side is a number, perhaps with a unit."""
  return isinstance(side, _Scalar) and (side.tree is None or not symbols(side.tree) or bool(side.unit))


def _is_true(relation: _Relation) -> bool:
  """Returns whether the numbers in a chain are equal, or roundings of their neighbours."""
  trees = []
  for side in relation.sides:
    if _is_number(side):
      has_value = side.tree is not None and not symbols(side.tree)
      trees.append(side.tree if has_value else side.number)
  for a, b in zip(trees, trees[1:], strict=False):
    if not (_agree(a, b) or numeric.rounds(a, b) or numeric.rounds(b, a)):
      return False
  return True


def _is_right_for_relation(answer: AnswerValue, label: _Relation) -> bool:
  """Compares an answer with a relation; the value alone is enough for an equation that gives a name its value."""
  if isinstance(answer, _Collection) and len(answer.items) == 1:
    answer = answer.items[0]
  if not isinstance(answer, _Relation):
    names_value = _NAME.fullmatch(label.texts[0]) and set(label.signs) == {"="}
    return bool(names_value) and not isinstance(answer, Words) and is_right(answer, label.sides[-1])
  if answer == label:
    return True
  if not _is_true(answer):
    return False
  if set(answer.signs) == set(label.signs) == {"="}:
    answer_name, label_name = answer.texts[0], label.texts[0]
    if answer_name == label_name or _are_one_function(answer_name, label_name):
      return is_right(answer.sides[-1], label.sides[-1])
  if len(answer.sides) != 2 or len(label.sides) != 2:
    return False
  return _are_equivalent(answer, label)


def _are_one_function(a: str, b: str) -> bool:
  """Returns whether one is y and the other a function such as f(x), or both a derivative of it."""
  if a == "y" and _FUNCTION.fullmatch(b) or b == "y" and _FUNCTION.fullmatch(a):
    return True
  return {a, b} <= _DERIVATIVES


def _are_equivalent(answer: _Relation, label: _Relation) -> bool:
  """Returns whether two relations allow the same values.

  The differences of their sides must be multiples of each other; for inequalities, by a positive number.
  """
  answer_difference, label_difference = _left_minus_right(answer), _left_minus_right(label)
  if answer_difference is None or label_difference is None:
    return False
  sign = _sign_turned_to_less(answer)
  if sign != _sign_turned_to_less(label):
    return False
  return numeric.proportional(answer_difference, label_difference, positive=sign in ("<", "<="))


_TURNED_TO_LESS = {">": "<", ">=": "<="}


def _sign_turned_to_less(relation: _Relation) -> str:
  """Returns the first sign of a relation, with < for > and <= for >=."""
  sign = relation.signs[0]
  return _TURNED_TO_LESS.get(sign, sign)


def _left_minus_right(relation: _Relation) -> Formula | None:
  """Returns the difference of the sides of a relation, turned if its sign is > or >=; None if one is no formula."""
  left, right = (side.tree if isinstance(side, _Scalar) else None for side in relation.sides)
  if left is None or right is None:
    return None
  if relation.signs[0] in _TURNED_TO_LESS:
    left, right = right, left
  return _difference(left, right)


def _values_of_list(answer: AnswerValue, label: AnswerValue) -> AnswerValue:
  """Returns a list of equations, as x=1, y=2, as the list of their values; all else as it is.

  If the names differ, the values are a tuple in the order of the names. Returns _NOTHING if an equation gives no value,
  and if the label is a list in another order. A label with equations is compared with the equations.
  """
  if not _has_relation(answer) or _has_relation(label):
    return answer
  if not _are_all(answer.items, _Relation):
    return _NOTHING
  values_by_item = [(item.texts[0], _answers_of(item)) for item in answer.items]
  if not all(values for _, values in values_by_item):
    return _NOTHING
  names = {_SUBSCRIPT.sub("", name) for name, _ in values_by_item}
  if len(names) == 1:
    return _Collection(tuple(_spread(values[-1] for _, values in values_by_item)), listed=True)
  values_by_item.sort(key=lambda item: item[0])
  ordered = tuple(values[-1] for _, values in values_by_item)
  if not isinstance(label, _Collection) or not label.listed:
    return _Bracketed("(", ")", ordered)
  return _Collection(ordered, listed=True) if _all_right(ordered, label.items) else _NOTHING


def _has_relation(value: AnswerValue) -> TypeGuard[_Collection | _Bracketed]:
  """Returns whether a value is a list, a set or a tuple with a relation among its items."""
  if not isinstance(value, _Collection | _Bracketed):
    return False
  return any(isinstance(item, _Relation) for item in value.items)


# Regions


def _as_region(value: AnswerValue) -> _Region | None:
  """Returns an interval, a set of numbers, or a list of intervals as a region; None for all else."""
  if isinstance(value, _Region):
    return value
  if isinstance(value, _Bracketed) and len(value.items) == 2 and value.opening in ("(", "["):
    if _are_formulas(value.items):
      low, high = value.items
      return _Region((_Interval(low.tree, high.tree, value.opening == "[", value.closing == "]"),))
  if isinstance(value, _Scalar) and value.tree is not None:
    value = _Collection((value,))
  if not isinstance(value, _Collection):
    return None
  if value.listed and _are_all(value.items, _Bracketed):
    return _union_of_regions(value.items)
  if _are_formulas(value.items):
    return _Region(tuple(_Interval(item.tree, item.tree, True, True) for item in value.items))
  return None


def _same_region(answer: _Region | None, label: _Region | None) -> bool:
  """Compares regions; of two variables one may be unnamed."""
  if answer is None or label is None:
    return False
  if answer.variable and label.variable and answer.variable != label.variable:
    return False
  answer_pieces, label_pieces = _merged(answer.pieces), _merged(label.pieces)
  if len(answer_pieces) != len(label_pieces):
    return False
  return all(_same_interval(a, b) for a, b in zip(answer_pieces, label_pieces, strict=True))


def _same_interval(answer: _Interval, label: _Interval) -> bool:
  if (answer.low_closed, answer.high_closed) != (label.low_closed, label.high_closed):
    return False
  return _same_bound(answer.low, label.low) and _same_bound(answer.high, label.high)


def _same_bound(answer: Formula, label: Formula) -> bool:
  return answer == label or numeric.agree(answer, label)


def _position(bound: Formula) -> float | Fraction:
  """Returns the number that a bound is. Raises Unknown if it is no real number."""
  if bound == INFINITY:
    return float("inf")
  if bound == _NEGATIVE_INFINITY:
    return float("-inf")
  value = numeric.real(bound)
  if value is None:
    raise Unknown("a bound that is no number")
  return numeric.fraction(value)


class _Placed(NamedTuple):
  """An interval with the positions of its bounds."""

  low: float | Fraction
  high: float | Fraction
  piece: _Interval

  @property
  def is_empty(self) -> bool:
    """Whether no number is in the interval."""
    if self.low == self.high:
      return not (self.piece.low_closed and self.piece.high_closed)
    return self.high < self.low


def _merged(pieces: tuple[_Interval, ...]) -> list[_Interval]:
  """Returns the intervals in order; intervals that overlap or touch are joined, and empty ones are left out.

  If a bound is no number, they are returned as they are.
  """
  try:
    placed = [_Placed(_position(piece.low), _position(piece.high), piece) for piece in pieces]
  except Unknown:
    return list(pieces)
  placed.sort(key=lambda item: (item.low, not item.piece.low_closed, item.high))
  merged: list[_Placed] = []
  for current in placed:
    if current.is_empty:
      continue
    if merged and _touch(merged[-1], current):
      merged[-1] = _joined_intervals(merged[-1], current)
    else:
      merged.append(current)
  return [item.piece for item in merged]


def _touch(left: _Placed, right: _Placed) -> bool:
  """Returns whether there is no number between two intervals, the first of which begins first."""
  if right.low == left.high:
    return right.piece.low_closed or left.piece.high_closed
  return right.low < left.high


def _joined_intervals(left: _Placed, right: _Placed) -> _Placed:
  """Returns two intervals that touch as one."""
  if right.high > left.high or right.high == left.high and right.piece.high_closed:
    piece = left.piece._replace(high=right.piece.high, high_closed=right.piece.high_closed)
    return _Placed(left.low, right.high, piece)
  return left


def _intersection(a: tuple[_Interval, ...], b: tuple[_Interval, ...]) -> tuple[_Interval, ...]:
  """Returns the intervals that two unions have in common. Raises Unknown for a bound that is no number."""
  pieces: list[_Interval] = []
  for piece_a in a:
    for piece_b in b:
      both = (piece_a, piece_b)
      low = max(both, key=lambda piece: (_position(piece.low), not piece.low_closed))
      high = min(both, key=lambda piece: (_position(piece.high), piece.high_closed))
      common = _Interval(low.low, high.high, low.low_closed, high.high_closed)
      pieces += _merged((common,))
  return tuple(pieces)
