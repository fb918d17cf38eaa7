"""Whole answers as typed values, and when two of them are equal.

An answer is a formula with or without a unit, a list, set, tuple, interval, union, matrix, ratio, residue, word or
relation.
What is none of these raises formula.Unknown.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple, TypeGuard

from jaxrlvr.tasks.math import formula, numeric, units
from jaxrlvr.tasks.math.formula import INFINITY, Formula, FormulaToken, Number, Operation, Symbol, Unknown, symbols
from jaxrlvr.tasks.math.spelling import bare_words

_NEGATIVE_INFINITY = Operation("neg", (INFINITY,))
_QUALIFIERS = frozenset("when if at where for with provided because since as assuming given".split())
_JOINERS = frozenset(("or", "and"))
_SIGNS = {"=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\in": "in"}
_CLOSING = {"(": ")]", "[": ")]", "{": "}", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
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
_BASES = dict(
  zip("two three four five six seven eight nine ten eleven twelve".split(), map(str, range(2, 13)), strict=True)
) | {"sixteen": "16"}
_POINT = re.compile(
  r"(?:the )?(?:point|vertex|cent(?:er|re)|focus|midpoint|coordinate|ordered pair|vector|solution)s?(?: is| are| at)?:?"
)
_DERIVATIVES = frozenset(("y'", "f'(x)", "dy/dx", r"\frac{dy}{dx}", r"\frac{d}{dx}f(x)", r"\frac{d}{dx}y"))
_FUNCTION = re.compile(r"[a-zA-Z](?:\^\{-1\})?\([a-z]\)")
_SUBSCRIPT = re.compile(r"(?<=^[xyztrkm])_(?:\d|\{\d\})$")  # of the first and the second solution
_SIMPLE = re.compile(_SYMBOL)
_UNIT_VECTORS = ("hat{i}", "hat{j}", "hat{k}")
_CONSTANTS = frozenset(("C", "K", "c", "k", "C_1", "C_0"))  # of integration


class Scalar(NamedTuple):
  """A formula as it stands, and read as a number with a unit; either may be None, not both."""

  tree: Formula | None
  number: Formula | None = None
  unit: units.Unit = ()
  loose: bool = False  # the unit is one bare letter right behind the number


class Bracketed(NamedTuple):
  """Items in order between brackets: a tuple, or of two an interval."""

  opening: str
  closing: str
  items: tuple


class Collection(NamedTuple):
  """A set, or a list without brackets, whose order says nothing."""

  items: tuple
  listed: bool = False  # without braces


class Interval(NamedTuple):
  """The numbers between two."""

  low: Formula
  high: Formula
  low_closed: bool
  high_closed: bool


class Region(NamedTuple):
  """A union of intervals, of the variable where one is named."""

  pieces: tuple[Interval, ...]
  variable: str = ""


class Matrix(NamedTuple):
  """Rows of values."""

  rows: tuple


class Ratio(NamedTuple):
  """Numbers parted by colons, or a time of day with what follows it."""

  parts: tuple[str, ...]
  suffix: str


class Residue(NamedTuple):
  """What a number leaves when it is divided by another."""

  value: object
  modulus: int
  variable: str = ""


class Based(NamedTuple):
  """Digits in a base."""

  digits: str
  base: str


class Words(NamedTuple):
  """An answer in words."""

  text: str


class Relation(NamedTuple):
  """Sides with signs between them, and the text of each side."""

  sides: tuple
  signs: tuple[str, ...]
  texts: tuple[str, ...]


_ALL_REALS = Region((Interval(_NEGATIVE_INFINITY, INFINITY, False, False),))


# Reading


def read(text: str) -> object:
  """Returns the value that a respelled text stands for. Raises Unknown."""
  tokens = formula.tokens(text)
  if not tokens:
    raise Unknown("nothing")
  worded = all(token.kind == "text" or token.kind == "letters" for token in tokens)
  if worded and (any(token.kind == "text" for token in tokens) or any(formula.is_word(t.text) for t in tokens)):
    if len(tokens) > 1 or len(bare_words(text)) != 1:
      return Words(bare_words(text))
  tokens, parameters = _without_qualifiers(tokens)
  value = _list(tokens)
  for number, (name, domain) in enumerate(parameters):
    if domain == "Z" or name not in _CONSTANTS:
      value = _renamed(value, name, Symbol(f"any of {domain} {number}"))
  return value


def _depths(tokens: list[FormulaToken]) -> list[int]:
  """Returns for each token how many brackets are open around it. Raises Unknown where they do not match."""
  stack, depths, bars = [], [], 0
  for token in tokens:
    text = token.text if token.kind in ("sign", "command") else ""
    if stack and text and text in _CLOSING[stack[-1]] and (text == _CLOSING[stack[-1]] or len(text) == 1):
      stack.pop()
      depths.append(len(stack))
      continue
    if text in (")", "]", "}", r"\}"):
      raise Unknown("a bracket that was not opened")
    depths.append(len(stack) + bars)
    if text in _CLOSING:
      stack.append(text)
  if stack:
    raise Unknown("a bracket that never closes")
  return depths


def _split(tokens: list[FormulaToken], is_separator) -> tuple[list[list[FormulaToken]], list[FormulaToken]]:
  parts, separators = [[]], []
  for token, depth in zip(tokens, _depths(tokens), strict=True):
    if depth == 0 and is_separator(token):
      separators.append(token)
      parts.append([])
    else:
      parts[-1].append(token)
  return parts, separators


def _without_qualifiers(tokens: list[FormulaToken]) -> tuple[list[FormulaToken], list[tuple[str, str]]]:
  """Returns the tokens before `where ...`, `k in Z` and the like, and parameters with what set they are from.

  Raises Unknown where another answer stands behind another condition.
  """
  end = len(tokens)
  depths = _depths(tokens)
  for place in range(1, len(tokens)):
    if depths[place]:
      continue
    token = tokens[place]
    first = _first_word(token)
    bare = token.kind == "letters" and token.spaced and place + 1 < len(tokens) and tokens[place + 1].spaced
    if first in _QUALIFIERS and (token.kind == "text" or bare) and tokens[place - 1].text not in ("=", "+", "-", ","):
      end = place
      break
    if token.text in (",", "(", ";", ":") and (_ranges(tokens[place + 1 :]) or _excludes(tokens, place)):
      end = place
      break
    if token.kind == "text" and first in _QUALIFIERS:
      end = place - (tokens[place - 1].text == ",")
      break
  _check_conditions(tokens[end:])
  parameters = []
  for place in range(end, len(tokens)):
    texts = [token.text for token in tokens[place + 1 :]]
    if texts[:2] == [r"\in", r"\mathbb"]:
      parameters.append((tokens[place].text, _domain(tokens[place + 3 :])))
    elif texts and tokens[place + 1].kind == "text" and "integer" in texts[0]:
      parameters.append((tokens[place].text, _integers_of(texts[0])))
    elif place > end and tokens[place].kind == "letters" and "integer" in tokens[place - 1].text:
      parameters.append((tokens[place].text, _integers_of(tokens[place - 1].text)))
  return tokens[:end], parameters


def _check_conditions(tokens: list[FormulaToken]) -> None:
  """Raises Unknown where what looks like conditions holds another answer."""
  said = " ".join(token.text for token in tokens if token.kind in ("text", "letters")).casefold()
  conditions = [word for word in re.findall(r"[a-z]+", said) if word in ("if", "when", "for")]
  if len(conditions) > len(set(conditions)) or re.search(r"\b(?:otherwise|else|not?|or|respectively)\b", said):
    raise Unknown("several answers")
  if tokens[:1] == [FormulaToken("sign", "(")]:
    parts = [tokens]
  else:
    parts, _ = _split(tokens, lambda token: token.text == ",")
  for part in parts[2:] if not parts[0] else parts[1:]:
    if not any(token.text in _SIGNS or token.kind == "text" for token in part):
      raise Unknown("more behind a condition")


def _domain(tokens: list[FormulaToken]) -> str:
  """Returns the name of a set of numbers with what is attached to it, as Z^+."""
  end = next(
    (n for n, t in enumerate(tokens) if t.kind == "text" or t.text in (",", ")", ";", ".", r"\}")), len(tokens)
  )
  return _text(tokens[:end]).translate(str.maketrans("", "", "{}"))


def _integers_of(text: str) -> str:
  return "Z^+" if "positive" in text or "natural" in text else "Z_\\ge0" if "negative" in text else "Z"


def _first_word(token: FormulaToken) -> str:
  return (token.text.replace(",", " ").split() or [""])[0].strip("(").casefold()


def _excludes(tokens: list[FormulaToken], place: int) -> bool:
  """Returns whether behind the place stands `x \\ne ...` of a letter that occurs before it, and nothing else."""
  before, behind = tokens[:place], tokens[place + 1 :]
  signs = [token.text for token in (*before, *behind) if token.text in _SIGNS and token.text != "="]
  if [token.text for token in behind[:1] + behind[2:4]] == ["|", "|", "<"]:
    behind = [behind[1], FormulaToken("command", r"\ne"), *behind[4:]]
    signs[-1:] = [r"\ne"]
  letters = {letter for token in before if token.kind == "letters" for letter in token.text}
  return len(behind) > 2 and signs == [behind[1].text] == [r"\ne"] and behind[0].text in letters


def _ranges(tokens: list[FormulaToken]) -> bool:
  """Returns whether tokens say that a parameter is an integer."""
  return (
    len(tokens) >= 3
    and tokens[0].kind == "letters"
    and len(tokens[0].text) == 1
    and tokens[1].text == r"\in"
    and tokens[2].text == r"\mathbb"
  )


def _joiner(token: FormulaToken) -> str:
  if token.kind in ("text", "letters"):
    word = token.text.strip(" ,").casefold()
    return word if word in _JOINERS else ""
  if token.kind == "command":
    return {r"\lor": "or", r"\vee": "or", r"\land": "and", r"\wedge": "and"}.get(token.text, "")
  return token.text if token.kind == "sign" and token.text in ",;" else ""


def _list(tokens: list[FormulaToken]) -> object:
  texts = [token.text for token in tokens]
  if texts.count(r"\pmod") == 1 and r"\equiv" not in texts[2:]:
    return _residue(tokens)
  parts, separators = _split(tokens, lambda token: bool(_joiner(token)))
  if len(parts) == 1:
    return _item(tokens)
  joiners = [_joiner(token) for token in separators]
  if [] in parts[:1] or [] in parts[-1:]:
    raise Unknown("an empty item")
  items = [_item(part) for part in parts if part]
  items = _named_alike(items)
  if any(not part and joiners[n - 1] not in ",;" for n, part in enumerate(parts) if n):
    raise Unknown("an empty item")
  regions = [item for item in items if isinstance(item, Region)]
  if len(regions) == len(items):
    return _joined(regions, joiners)
  if regions:
    points = [_point(item) for item in items]
    if None not in points and set(joiners) <= {"or", ","}:
      return _joined(points, ["or"] * len(joiners))
  return Collection(tuple(_spread(items)), listed=True)


def _point(item: object) -> Region | None:
  """Returns a region as it is, and x=1 as the one of that number; None for all else."""
  if not isinstance(item, Relation) or item.signs != ("=",) or not isinstance(item.sides[1], Scalar):
    return item if isinstance(item, Region) else None
  name = item.sides[0].tree if isinstance(item.sides[0], Scalar) else None
  region = _as_region(item.sides[1])
  return Region(region.pieces, name.name) if region is not None and isinstance(name, Symbol) else None


def _named_alike(items: list) -> list:
  """Gives the name of the first of several values to the others: x = 1, 2; x != 1, 2."""
  first = items[0]
  if isinstance(first, Region) and len(first.pieces) == 2 and all(isinstance(item, Scalar) for item in items[1:]):
    bound = first.pieces[0].high
    if first.pieces == _beyond(bound, "!=") and all(item.tree is not None for item in items[1:]):
      return [first, *(Region(_beyond(item.tree, "!="), first.variable) for item in items[1:])]
  named = isinstance(first, Relation) and first.signs == ("=",) and bool(_NAME.fullmatch(first.texts[0]))
  if not named or not all(isinstance(item, Scalar | Bracketed | Collection) for item in items[1:]):
    return items
  return [first, *(first._replace(sides=(first.sides[0], item), texts=(first.texts[0], "")) for item in items[1:])]


def _joined(items: list[Region], joiners: list[str]) -> Region:
  """Joins inequalities: `or` is a union, `and` an intersection, a comma an intersection where it is not empty."""
  pieces = items[0].pieces
  variables = {item.variable for item in items if item.variable}
  if len(variables) > 1:
    raise Unknown("inequalities of several variables")
  for item, joiner in zip(items[1:], joiners, strict=False):
    both = _intersection(pieces, item.pieces)
    pieces = pieces + item.pieces if joiner == "or" or joiner in ",;" and not both else both
  return Region(tuple(pieces), *variables)


def _item(tokens: list[FormulaToken]) -> object:
  parts, separators = _split(tokens, lambda token: token.kind != "text" and token.text in _SIGNS)
  if len(parts) == 1:
    return _side(tokens)
  signs = tuple(_SIGNS[token.text] for token in separators)
  texts = tuple(_text(part) for part in parts)
  sides = tuple(_lenient_side(part, text) for part, text in zip(parts, texts, strict=True))
  return _region(sides, signs) or Relation(*_oriented(sides, signs, texts))


def _residue(tokens: list[FormulaToken]) -> Residue:
  """Reads `x \\equiv 3 \\pmod{7}`, and the same without a variable."""
  place = [token.text for token in tokens].index(r"\pmod")
  modulus = _text(tokens[place + 1 :]).strip("{}")
  sides, _ = _split(tokens[:place], lambda token: token.text in (r"\equiv", "="))
  if (
    not modulus.isdigit()
    or int(modulus) == 0
    or len(sides) > 2
    or len(sides) == 2
    and not _SIMPLE.fullmatch(_text(sides[0]))
  ):
    raise Unknown("a residue")
  return Residue(_list(sides[-1]), int(modulus), _text(sides[0]) if len(sides) == 2 else "")


def _text(tokens: list[FormulaToken]) -> str:
  return "".join(f"\\text{{{token.text}}}" if token.kind == "text" else token.text for token in tokens)


def _lenient_side(tokens: list[FormulaToken], text: str) -> object:
  """Returns a side of a relation; one that is only a name may be what no formula is."""
  try:
    return _side(tokens)
  except Unknown:
    if _NAME.fullmatch(text):
      return Words(text)
    raise


def _oriented(sides: tuple, signs: tuple, texts: tuple) -> tuple:
  """Turns 7=x around."""
  is_symbol = [isinstance(side, Scalar) and isinstance(side.tree, Symbol) for side in sides]
  if signs == ("=",) and is_symbol == [False, True] and not _NAME.fullmatch(texts[0]):
    return sides[::-1], signs, texts[::-1]
  return sides, signs, texts


def _region(sides: tuple, signs: tuple) -> object | None:
  """Returns what inequalities or memberships of one variable allow; None for all other relations."""
  if signs == ("in",) and isinstance(sides[0], Scalar) and isinstance(sides[0].tree, Symbol):
    region = _as_region(sides[1])
    return Region(region.pieces, sides[0].tree.name) if region else sides[1]
  if signs == ("in",) and isinstance(sides[0], Bracketed) and isinstance(sides[1], Collection):
    return sides[1]
  trees = [side.tree if isinstance(side, Scalar) else None for side in sides]
  if None in trees or not set(signs) <= {"<", ">", "<=", ">=", "!="}:
    return None
  if len(sides) == 2 and "!=" not in signs:
    region = _around(trees[0], trees[1], signs[0]) or _around(trees[1], trees[0], _turned(signs[0]))
    if region is not None:
      return region
  variables = [n for n, tree in enumerate(trees) if isinstance(tree, Symbol) and symbols(tree)]
  if len(sides) == 2 and len(variables) >= 1:
    place = variables[0]
    sign = signs[0] if place == 0 else _turned(signs[0])
    return Region(_beyond(trees[1 - place], sign), trees[place].name)
  if len(sides) == 3 and 1 in variables and "!=" not in signs:
    left, right = _beyond(trees[0], _turned(signs[0]))[0], _beyond(trees[2], signs[1])[0]
    rising = [sign[0] for sign in signs]
    if rising == [">", ">"]:
      return Region((Interval(right.low, left.high, right.low_closed, left.high_closed),), trees[1].name)
    if rising == ["<", "<"]:
      return Region((Interval(left.low, right.high, left.low_closed, right.high_closed),), trees[1].name)
  return None


def _around(tree: Formula, bound: Formula, sign: str) -> Region | None:
  """Returns what |ax+b| < bound or x^2 < bound allow, or with another sign; None for all else."""
  squared = isinstance(tree, Operation) and tree.name == "pow" and tree.arguments[1] == Number(Fraction(2))
  if not squared and not (isinstance(tree, Operation) and tree.name == "abs"):
    return None
  inner, names, limit = tree.arguments[0], symbols(tree), numeric.real(bound)
  if len(names) != 1 or limit is None or not limit > 0:
    return None
  (name,) = names
  offset, at_one = (formula.replace(inner, name, Number(Fraction(value))) for value in (0, 1))
  slope = Operation("add", (at_one, Operation("neg", (offset,))))
  line = Operation("add", (Operation("mul", (slope, Symbol(name))), offset))
  rise = numeric.real(slope)
  if not rise or not numeric.equal(inner, line):
    return None
  bound = Operation("root", (bound, Number(Fraction(2)))) if squared else bound
  ends = [
    Operation("div", (Operation("add", (end, Operation("neg", (offset,)))), slope))
    for end in (Operation("neg", (bound,)), bound)
  ]
  low, high = ends if rise > 0 else ends[::-1]
  closed = sign.endswith("=")
  if sign[0] == "<":
    return Region((Interval(low, high, closed, closed),), name)
  return Region((*_beyond(low, _turned(sign)), *_beyond(high, sign)), name)


def _turned(sign: str) -> str:
  return sign.translate(str.maketrans("<>", "><"))


def _beyond(bound: Formula, sign: str) -> tuple[Interval, ...]:
  """Returns the intervals of what is < (or another sign) a bound."""
  below = Interval(_NEGATIVE_INFINITY, bound, False, sign == "<=")
  above = Interval(bound, INFINITY, sign == ">=", False)
  return (below, above) if sign == "!=" else (below,) if sign[0] == "<" else (above,)


def _side(tokens: list[FormulaToken]) -> object:
  for sign, join in ((r"\cup", _union), (r"\cap", _intersected), (r"\setminus", _without), (r"\backslash", _without)):
    parts, separators = _split(tokens, lambda token, sign=sign: token.text == sign and token.kind == "command")
    if separators:
      return join([_side(part) for part in parts])
  if tokens[:1] == [FormulaToken("command", r"\mathbb", tokens[0].spaced)] if tokens else False:
    return _numbers(tokens)
  if not tokens:
    raise Unknown("an empty side")
  return _atom(tokens)


def _numbers(tokens: list[FormulaToken]) -> object:
  """Reads a named set of numbers, also without some points: \\mathbb{R} - \\{1\\}."""
  name = "".join(token.text for token in tokens[1:4])
  if not re.fullmatch(r"\{[A-Z]\}", name):
    raise Unknown("a set of numbers")
  name = name[1]
  rest = tokens[4:]
  if rest and rest[0].text == "-":
    return _without([_numbers(tokens[:4]), _side(rest[1:])])
  if rest:
    raise Unknown("more behind a set of numbers")
  return _ALL_REALS if name == "R" else Words(f"the numbers {name}")


def _union(parts: list) -> object:
  if all(isinstance(part, Collection) for part in parts):
    return Collection(tuple(item for part in parts for item in part.items))
  regions = [_as_region(part) for part in parts]
  if None in regions:
    raise Unknown("a union of what is no set of numbers")
  return Region(tuple(piece for region in regions for piece in region.pieces))


def _intersected(parts: list) -> object:
  regions = [_as_region(part) for part in parts]
  if None in regions:
    raise Unknown("an intersection of what is no set of numbers")
  pieces = regions[0].pieces
  for region in regions[1:]:
    pieces = _intersection(pieces, region.pieces)
  return Region(tuple(pieces))


def _without(parts: list) -> object:
  region = _as_region(parts[0])
  hole = _as_region(parts[1]) if len(parts) == 2 and isinstance(parts[1], Bracketed) else None
  if region is not None and hole is not None:
    (gap,) = hole.pieces
    below, above = (
      _beyond(gap.low, "<" if gap.low_closed else "<="),
      _beyond(gap.high, ">" if gap.high_closed else ">="),
    )
    return Region(_intersection(region.pieces, below + above))
  points = parts[1].items if len(parts) == 2 and isinstance(parts[1], Collection) else None
  if region is None or points is None or any(not isinstance(p, Scalar) or p.tree is None for p in points):
    raise Unknown("a difference of sets")
  pieces = region.pieces
  for point in points:
    pieces = _intersection(pieces, _beyond(point.tree, "!="))
  return Region(tuple(pieces))


def _atom(tokens: list[FormulaToken]) -> object:
  if len(tokens) == 1 and tokens[0].text == r"\emptyset":
    return Collection(())
  depths = _depths(tokens)
  opening = tokens[0].text if tokens[0].kind != "text" else ""
  if tokens[-1].text == "}" and [token.text for token in tokens[-4:-1]] in (["^", "{", "T"], ["^", "{", r"\top"]):
    return _transposed(_atom(tokens[:-4]))
  if len(tokens) > 3 and tokens[-2].text == "^" and tokens[-1].text in ("T", r"\top", r"\intercal"):
    return _transposed(_atom(tokens[:-2]))
  if tokens[0].text == r"\begin":
    return _matrix(tokens)
  if tokens[1:2] and tokens[1].text in ("(", r"\langle") and tokens[-1].text == ")" and _names_a_point(tokens[0]):
    point = _side(tokens[1:])
    if isinstance(point, Bracketed):
      return point
  whole = opening in ("(", "[", r"\{", "{") and all(depth > 0 for depth in depths[1:-1]) and len(tokens) > 1
  if whole and depths[-1] == 0 and tokens[-1].text in (")", "]", r"\}", "}"):
    return _bracketed(tokens, opening)
  return _ratio(tokens) or _based(tokens) or _spread_sign(_scalar(tokens))


def _names_a_point(token: FormulaToken) -> bool:
  if token.kind == "text":
    return bool(_POINT.fullmatch(token.text.strip().casefold()))
  return token.kind == "letters" and len(token.text) == 1 and token.text.isupper()


def _transposed(value: object) -> object:
  """Returns a matrix or a vector on its side. Raises Unknown for all else."""
  if isinstance(value, Matrix):
    return Matrix(tuple(zip(*value.rows, strict=True)))
  if isinstance(value, Bracketed):
    return Bracketed("(", ")", value.items)
  raise Unknown("a power of no matrix")


def _bracketed(tokens: list[FormulaToken], opening: str) -> object:
  inner, closing = tokens[1:-1], tokens[-1].text
  if opening == r"\{":
    parts, bars = _split(inner, lambda token: token.text in ("|", r"\mid", ":") and token.kind != "text")
    if len(bars) == 1:
      return _builder(*parts)
    return Collection(tuple(_spread([_item(part) for part in _commas(inner)]))) if inner else Collection(())
  items = _commas(inner)
  if len(items) == 1 and opening in "({" and closing in ")}":
    return _list(inner) if inner else _scalar(tokens)
  if opening == "{":
    return _list(inner)
  return Bracketed(opening, closing, tuple(_item(part) for part in items))


def _builder(left: list[FormulaToken], condition: list[FormulaToken]) -> object:
  """Reads a set by its condition: { x in R | x > 1 }, { k pi | k in Z }."""
  if _ranges(condition) and len(left) > 1 and r"\in" not in [token.text for token in left]:
    return _renamed(_list(left), condition[0].text, Symbol(f"any of {_domain(condition[3:])} 0"))
  if r"\in" in [token.text for token in left]:
    left, _ = left[:1], left
  if len(left) != 1:
    raise Unknown("a set of formulas")
  value = _list(condition)
  if not isinstance(value, Region):
    raise Unknown("a set by another condition")
  return value


def _commas(tokens: list[FormulaToken]) -> list[list[FormulaToken]]:
  return _split(tokens, lambda token: token.kind == "sign" and token.text in ",;")[0]


def _matrix(tokens: list[FormulaToken]) -> Matrix:
  """Reads a matrix with round or square brackets, or none."""
  texts = [token.text for token in tokens]
  kinds = ("pmatrix", "bmatrix", "matrix", "Bmatrix")
  if len(tokens) < 8 or texts[2] not in kinds or texts[-4:-3] != [r"\end"] or r"\begin" in texts[1:]:
    raise Unknown("an environment")
  rows = _split(tokens[4:-4], lambda token: token.text == "\\\\")[0]
  rows = [row for row in rows if row]
  cells = [_split(row, lambda token: token.text == "&")[0] for row in rows]
  if len({len(row) for row in cells}) != 1:
    raise Unknown("rows of different lengths")
  return Matrix(tuple(tuple(_item(cell) for cell in row) for row in cells))


def _ratio(tokens: list[FormulaToken]) -> Ratio | None:
  """Reads 3:4 and 7:30 PM; None for what has no colon."""
  parts, colons = _split(tokens, lambda token: token.kind == "sign" and token.text == ":")
  if not colons:
    return None
  last = parts[-1]
  suffix = "".join(token.text for token in last[1:]).replace(".", "").strip().casefold()
  numbers = [part[0] for part in parts if part]
  plain = len(numbers) == len(parts) and all(token.kind == "number" for token in numbers)
  if not plain or any(len(part) > 1 for part in parts[:-1]) or suffix not in ("", "am", "pm"):
    raise Unknown("a colon")
  return Ratio(tuple(token.text for token in numbers), suffix)


def _based(tokens: list[FormulaToken]) -> Based | None:
  """Reads 1011_2 and 1A_{16}; None for what has no such subscript, or one that a symbol has, as in 3V_0."""
  for place, token in enumerate(tokens):
    if token.text == "_" and place and all(t.kind in ("number", "letters") for t in tokens[:place]):
      if tokens[0].kind != "number":
        return None
      digits = "".join(t.text for t in tokens[:place])
      base = _text(tokens[place + 1 :]).strip("{}").removeprefix(r"\text{").rstrip("}").strip()
      base = _BASES.get(base, base)
      if _are_digits(digits, base):
        return Based(digits.upper(), base)
      if digits.isdigit():
        raise Unknown("a subscript of a number")
      return None
  return None


def _are_digits(digits: str, base: str) -> bool:
  """Returns whether all are digits of the base; small letters are so only in base 16."""
  if base.isdigit() and len(base) < 3 and 2 <= int(base) <= 36:
    digits = digits.upper() if base == "16" else digits
    return all(sign in _DIGITS[: int(base)] for sign in digits)
  return False


def _scalar(tokens: list[FormulaToken]) -> Scalar:
  currency, tokens = _currency(tokens)
  if len(tokens) > 1 and tokens[-1].text in (r"\%", "%"):
    if currency:
      raise Unknown("percent of a currency")
    return Scalar(Operation("percent", (formula.read(tokens[:-1]),)))
  tree = None
  try:
    tree = formula.read(tokens)
  except Unknown as error:
    tree_error = error
  if currency:
    number, unit, _ = _measured(tokens) or (tree, (), False)
    if number is None:
      raise tree_error
    return _scaled(number, units.multiplier(unit)[0], ((currency, 1),))
  measured = None if tree is not None and not symbols(tree) else _measured(tokens)
  if measured is None:
    if tree is None:
      raise tree_error
    return Scalar(tree)
  number, unit, loose = measured
  factor, unit = units.multiplier(unit)
  if unit == (("percent", 1),):
    return Scalar(Operation("percent", (number,)))
  if unit == (("degree", 1),):
    return Scalar(Operation("degree", (number,)))
  if factor != 1 or not unit:
    return _scaled(number, factor, unit)
  return Scalar(tree, number, unit, loose)


def _scaled(number: Formula, factor: int, unit: units.Unit) -> Scalar:
  """Returns the number times what a word such as `million` means."""
  number = number if factor == 1 else Operation("mul", (number, Number(Fraction(factor))))
  return Scalar(None, number, unit) if unit else Scalar(number)


def _currency(tokens: list[FormulaToken]) -> tuple[str, list[FormulaToken]]:
  for place in (0, 1):
    name = units.CURRENCIES.get(tokens[place].text) if place < len(tokens) else None
    if name and (place == 0 or tokens[0].text == "-") and len(tokens) > place + 1:
      return name, [*tokens[:place], *tokens[place + 1 :]]
  name = units.CURRENCIES.get(tokens[-1].text.strip())
  return (name, tokens[:-1]) if name and len(tokens) > 1 else ("", tokens)


def _measured(tokens: list[FormulaToken]) -> tuple[Formula, units.Unit, bool] | None:
  """Returns the number, the unit behind it, and whether that is only a letter or two without a space; else None."""
  for place in range(1, len(tokens)):
    token, rest = tokens[place], tokens[place:]
    degrees = token.text == "^" and any(t.text == r"\circ" for t in rest[:3])
    if len(rest) < 3 and {t.text for t in rest} == {"'"} and tokens[place - 1].kind == "number":
      return formula.read(tokens[:place]), (("ft" if len(rest) == 1 else "in", 1),), False
    starts = token.kind in ("text", "letters") or degrees or token.text in (r"\mu", r"\Omega", r"\frac")
    if not starts or not _unit_like(rest):
      continue
    unit = units.read(" ".join(_text([t]) for t in rest))
    if not unit and token.kind != "text" or unit is None:
      continue
    try:
      number = formula.read(tokens[:place])
    except Unknown:
      continue
    if not symbols(number):
      return number, unit, token.kind == "letters" and not token.spaced
  return None


def _unit_like(tokens: list[FormulaToken]) -> bool:
  """Returns whether tokens can be a unit: text, or bare letters that are a known unit or a word."""
  bare = 0
  for token in tokens:
    if token.kind == "letters":
      known = token.text in units.LETTERS or len(token.text) > 1 and token.text in units.KNOWN
      if not known and (len(token.text) < 3 or not formula.is_word(token.text)):
        return False
      bare += token.text in units.LETTERS and token.spaced
    elif token.kind == "number" and not token.text.isdigit():
      return False
  joined = any(token.text in ("/", r"\cdot", "*", "^") for token in tokens) or _text(tokens) in units.PRODUCTS
  return joined or bare <= 1


def _spread_sign(scalar: Scalar) -> object:
  """Turns a plus-minus into the list of both values."""
  if scalar.tree is None or not formula.has(scalar.tree, "pm", "mp"):
    return scalar
  return Collection(tuple(Scalar(formula.signed(scalar.tree, upper)) for upper in (True, False)), listed=True)


def _spread(items: list) -> list:
  spread = []
  for item in items:
    spread += item.items if isinstance(item, Collection) and item.listed else [item]
  return spread


def _renamed(value: object, name: str, symbol: Symbol) -> object:
  if isinstance(value, Scalar):
    return value._replace(tree=None if value.tree is None else formula.replace(value.tree, name, symbol))
  if isinstance(value, Relation):
    return value._replace(sides=tuple(_renamed(side, name, symbol) for side in value.sides))
  if isinstance(value, Residue):
    return value
  if isinstance(value, Collection | Bracketed):
    return value._replace(items=tuple(_renamed(item, name, symbol) for item in value.items))
  return value


# Comparing


def is_right(answer: object, label: object) -> bool:
  """Returns whether an answer is right for a label. Raises numeric.TooLarge."""
  label = _unnamed(label)
  if isinstance(label, Relation):
    return _same_relation(answer, label)
  if isinstance(answer, Relation):
    return any(is_right(value, label) for value in _values(answer, label))
  answer = _values_of_list(answer, label)
  if _names_several(label) and isinstance(answer, Collection | Bracketed) and not _names_several(answer):
    listed = isinstance(answer, Collection) and answer.listed or isinstance(answer, Bracketed) and answer.opening == "("
    return listed and _in_order(answer.items, tuple(item.sides[-1] for item in label.items))
  if isinstance(answer, Residue) or isinstance(label, Residue):
    return _same_residue(answer, label)
  braces = [isinstance(value, Collection) and not value.listed for value in (answer, label)]
  answer, label = _as_vector(_simple(answer), label), _as_vector(_simple(label), answer)
  if isinstance(answer, Scalar) and isinstance(label, Scalar):
    return _same_scalar(answer, label)
  if isinstance(answer, Region) or isinstance(label, Region):
    return _same_region(_as_region(answer), _as_region(label))
  if isinstance(label, Matrix) or isinstance(answer, Matrix):
    return _same_matrix(answer, label)
  if isinstance(answer, Bracketed) and isinstance(label, Bracketed):
    brackets = answer.opening == label.opening and answer.closing == label.closing
    return brackets and _in_order(answer.items, label.items)
  if isinstance(answer, Collection) and isinstance(label, Collection):
    return _same_items(answer.items, label.items)
  if isinstance(answer, Bracketed | Collection) and isinstance(label, Bracketed | Collection) and True not in braces:
    for group, collection in ((answer, label), (label, answer)):
      if isinstance(group, Bracketed) and isinstance(collection, Collection) and collection.listed:
        return (group.opening, group.closing) == ("(", ")") and _in_order(answer.items, label.items)
  return _same_rest(answer, label)


def _unnamed(value: object) -> object:
  """Returns x=1, x=2 as the list of the values, all else as it is."""
  if not isinstance(value, Collection) or not all(isinstance(item, Relation) for item in value.items):
    return value
  names = {item.texts[0] for item in value.items if item.signs == ("=",) and _NAME.fullmatch(item.texts[0])}
  if len(names) != 1 or len(value.items) < 2 or any(len(item.sides) != 2 for item in value.items):
    return value
  return Collection(tuple(_spread([item.sides[1] for item in value.items])), listed=True)


def _names_several(value: object) -> TypeGuard[Collection]:
  """Returns whether a list says of several names what they are, as x=1, y=2."""
  if not isinstance(value, Collection) or not all(isinstance(item, Relation) for item in value.items):
    return False
  return len({item.texts[0] for item in value.items}) == len(value.items) > 1


def _same_rest(answer: object, label: object) -> bool:
  if isinstance(answer, Ratio) and isinstance(label, Ratio):
    return _same_ratio(answer, label)
  for ratio, other in ((answer, label), (label, answer)):
    if isinstance(ratio, Ratio) and isinstance(other, Scalar):
      plain = len(ratio.parts) == 2 and not ratio.suffix and other.tree is not None
      return plain and numeric.fractional(other.tree) and _divides(ratio, other.tree)
  if isinstance(label, Based) and isinstance(answer, Scalar):
    value = answer.tree.value if isinstance(answer.tree, Number) else None
    return label.digits.isdigit() and value == int(label.digits)
  return answer == label


def _same_residue(answer: object, label: object) -> bool:
  answer = _as_residue(answer, label)
  if not isinstance(answer, Residue) or not isinstance(label, Residue) or answer.modulus != label.modulus:
    return False
  values = [_integers(each.value, label.modulus) for each in (answer, label)]
  return None not in values and values[0] == values[1]


def _as_residue(value: object, label: object) -> object:
  """Returns 7k+3 of any integer k as the residue of 3."""
  if isinstance(value, Relation) and value.signs == ("=",) and _NAME.fullmatch(value.texts[0]):
    value = value.sides[1]
  if not isinstance(value, Scalar) or value.tree is None or symbols(value.tree) != {"any of Z 0"}:
    return value
  base, slope = (formula.replace(value.tree, "any of Z 0", Number(Fraction(number))) for number in (0, 1))
  step = numeric.real(Operation("add", (slope, Operation("neg", (base,)))))
  if not isinstance(step, Fraction) or step.denominator > 1 or step == 0:
    return value
  line = Operation("add", (Operation("mul", (Number(step), Symbol("any of Z 0"))), base))
  return Residue(Scalar(base), abs(int(step))) if numeric.equal(value.tree, line) else value


def _integers(value: object, modulus: int) -> set[int] | None:
  """Returns the residues of an integer or of several; None for all else."""
  items = value.items if isinstance(value, Collection) else (value,)
  numbers = [numeric.real(item.tree) if isinstance(item, Scalar) and item.tree is not None else None for item in items]
  if any(not isinstance(number, Fraction) or number.denominator != 1 for number in numbers):
    return None
  return {int(number) % modulus for number in numbers}


def _as_vector(value: object, other: object) -> object:
  """Returns a sum of unit vectors as the tuple of its components, where the other is a tuple or a matrix."""
  if not isinstance(value, Scalar) or value.tree is None or not isinstance(other, Bracketed | Matrix):
    return value
  if not symbols(value.tree) & set(_UNIT_VECTORS):
    return value
  size = len(other.items) if isinstance(other, Bracketed) else max(len(other.rows), len(other.rows[0]))
  parts = []
  for name in _UNIT_VECTORS:
    part = value.tree
    for each in _UNIT_VECTORS:
      part = formula.replace(part, each, Number(Fraction(int(each == name))))
    parts.append(part)
  total = Operation(
    "add", tuple(Operation("mul", pair) for pair in zip(parts, map(Symbol, _UNIT_VECTORS), strict=True))
  )
  if not numeric.equal(value.tree, total) or size < 3 and _UNIT_VECTORS[2] in symbols(value.tree):
    return value
  return Bracketed("(", ")", tuple(map(Scalar, parts[:size])))


def _divides(ratio: Ratio, tree: Formula) -> bool:
  parts = [Number(Fraction(part)) for part in ratio.parts]
  return numeric.equal(Operation("div", tuple(parts)), tree)


def _same_ratio(a: Ratio, b: Ratio) -> bool:
  if a.suffix != b.suffix or len(a.parts) != len(b.parts):
    return False
  if any(part.startswith("0") for ratio in (a, b) for part in ratio.parts[1:]) and a.parts[1:] != b.parts[1:]:
    return False
  ours, wanted = ([Fraction(part) for part in ratio.parts] for ratio in (a, b))
  if ours == wanted:
    return True
  clock = any(part.startswith("0") or ratio.suffix for ratio in (a, b) for part in ratio.parts)
  if clock or not wanted[0] or not ours[0]:
    return False
  return [part / ours[0] for part in ours] == [part / wanted[0] for part in wanted]


def _simple(value: object) -> object:
  """Returns a set without repetitions, and its one item where there is one."""
  if not isinstance(value, Collection):
    return value
  items = []
  for item in value.items:
    if isinstance(item, Relation) or not any(_twice(item, other) for other in items):
      items.append(item)
  if len(items) == 1 and not isinstance(items[0], Relation | Collection):
    return items[0]
  return value._replace(items=tuple(items))


def _twice(a: object, b: object) -> bool:
  try:
    return is_right(a, b) or is_right(b, a)
  except numeric.TooLarge:
    return False


def _in_order(a: tuple, b: tuple) -> bool:
  return len(a) == len(b) and all(is_right(x, y) for x, y in zip(a, b, strict=True))


def _same_items(a: tuple, b: tuple) -> bool:
  left = list(b)
  for item in a:
    place = next((n for n, other in enumerate(left) if is_right(item, other)), None)
    if place is None:
      return False
    del left[place]
  return not left


def _same_matrix(answer: object, label: object) -> bool:
  rows = []
  for value in (answer, label):
    if isinstance(value, Matrix):
      vector = len(value.rows) == 1 or len(value.rows[0]) == 1
      rows.append((value.rows, [cell for row in value.rows for cell in row] if vector else None))
    elif isinstance(value, Bracketed) and (value.opening, value.closing) == ("(", ")"):
      rows.append((None, list(value.items)))
    else:
      return False
  (ours, vector), (wanted, wanted_vector) = rows
  if ours is not None and wanted is not None:
    return _in_order(tuple(map(_row, ours)), tuple(map(_row, wanted)))
  return vector is not None and wanted_vector is not None and _in_order(tuple(vector), tuple(wanted_vector))


def _row(cells: tuple) -> Bracketed:
  return Bracketed("row", "row", cells)


def _same_scalar(answer: Scalar, label: Scalar) -> bool:
  if label.unit and answer.unit:
    if units.same_unit(answer.unit, label.unit) and numeric.agree(answer.number, label.number):
      return True
    return answer.tree is not None and label.tree is not None and numeric.agree(answer.tree, label.tree)
  if label.tree is not None and answer.tree is not None:
    hatted = bool(symbols(label.tree) & set(_UNIT_VECTORS))
    for pair in zip("ijk", _UNIT_VECTORS, strict=True):  # both as the label has them
      old, new = pair if hatted else pair[::-1]
      answer = answer._replace(tree=formula.replace(answer.tree, old, Symbol(new)))
  if answer.tree is not None and label.tree is not None and _same_trees(answer.tree, label.tree):
    return True
  if label.unit and not label.loose and answer.tree is not None:
    if _has_sign(answer.tree, "degree") and label.unit[0][0] in ("degC", "degF"):
      return numeric.agree(answer.tree.arguments[0], label.number)
    return numeric.agree(answer.tree, label.number)
  if answer.unit and label.tree is not None and not symbols(label.tree):
    return not _has_sign(label.tree, "percent", "degree") and numeric.agree(answer.number, label.tree)
  return False


def _has_sign(tree: Formula, *names: str) -> bool:
  return isinstance(tree, Operation) and tree.name in names


def _same_trees(answer: Formula, label: Formula) -> bool:
  """Compares formulas; of degrees and percents either may leave out the sign, behind 1 and more."""
  for sign in ("percent", "degree"):
    signed = [_has_sign(tree, sign) for tree in (answer, label)]
    if all(signed):
      return numeric.agree(answer.arguments[0], label.arguments[0])
    if signed[1] and numeric.agree(answer, label.arguments[0]):
      return True
    if signed[0] and (sign == "degree" or _is_large(label)) and numeric.agree(answer.arguments[0], label):
      return True
  return numeric.agree(_with_constant(answer, label), label)


def _is_large(tree: Formula) -> bool:
  tree = tree.arguments[0] if _has_sign(tree, "neg") else tree
  return isinstance(tree, Number) and tree.value >= 1


def _with_constant(answer: Formula, label: Formula) -> Formula:
  """Names a constant of integration as the label does."""
  if not all(isinstance(tree, Operation) and tree.name == "add" for tree in (answer, label)):
    return answer
  ours, wanted = ([part.name for part in tree.arguments if isinstance(part, Symbol)] for tree in (answer, label))
  new = [name for name in wanted if name in _CONSTANTS and name not in symbols(answer)]
  old = [name for name in ours if name in _CONSTANTS and name not in symbols(label)]
  return formula.replace(answer, old[0], Symbol(new[0])) if len(new) == len(old) == 1 else answer


# Relations


def _values(relation: Relation, label: object) -> list:
  """Returns what an equation, or a chain of them, says the answer is; nothing where it is no answer or not true."""
  if not set(relation.signs) <= {"=", "~"} or not _true(relation):
    return []
  numbers = [side for side in relation.sides if _is_number(side)]
  first = relation.sides[0]
  if not _is_number(first) and not _NAME.fullmatch(relation.texts[0]):
    rounded = relation.signs == ("~",) and isinstance(first, Scalar) and first.tree is not None
    return [first] if rounded and _is_number(first) else []
  if "~" in relation.signs:
    exact = relation.sides[: relation.signs.index("~") + 1]
    about = [isinstance(side, Scalar) and not (symbols(side.tree) if side.tree else ()) for side in relation.sides]
    if about[-1] and not isinstance(exact[-1], Scalar) or about[len(exact) - 1] and not all(about[len(exact) :]):
      return []
    decimals = [s for s in numbers if s.tree is not None and numeric.decimal(s.tree)]
    return [exact[-1], *decimals] if len(exact) > 1 or _is_number(first) else [*numbers]
  return [*numbers, relation.sides[-1]] if not numbers or _is_number(relation.sides[-1]) else []


def _is_number(side: object) -> bool:
  return isinstance(side, Scalar) and (side.tree is None or not symbols(side.tree) or bool(side.unit))


def _true(relation: Relation) -> bool:
  """Returns whether the numbers in a chain are equal, but for roundings that it shows."""
  trees = [
    (side.tree if side.tree is not None and not symbols(side.tree) else side.number)
    for side in relation.sides
    if _is_number(side)
  ]
  for a, b in zip(trees, trees[1:], strict=False):
    if not (_same_trees(a, b) or numeric.rounds(a, b) or numeric.rounds(b, a)):
      return False
  return True


def _same_relation(answer: object, label: Relation) -> bool:
  named = bool(_NAME.fullmatch(label.texts[0])) and set(label.signs) == {"="}
  if isinstance(answer, Collection) and len(answer.items) == 1:
    answer = answer.items[0]
  if not isinstance(answer, Relation):
    return named and not isinstance(answer, Words) and is_right(answer, label.sides[-1])
  if answer == label:
    return True
  if not _true(answer):
    return False
  if set(answer.signs) == set(label.signs) == {"="}:
    if answer.texts[0] == label.texts[0] or _functions(answer.texts[0], label.texts[0]):
      return is_right(answer.sides[-1], label.sides[-1])
  if len(answer.sides) != 2 or len(label.sides) != 2:
    return False
  return _equivalent(answer, label)


def _functions(a: str, b: str) -> bool:
  """Returns whether one is y and the other a function, or one y and the other y(x), or both a derivative."""
  functions = any(first == "y" and _FUNCTION.fullmatch(second) for first, second in ((a, b), (b, a)))
  return functions or {a, b} <= _DERIVATIVES


def _equivalent(answer: Relation, label: Relation) -> bool:
  """Returns whether the differences of the sides are multiples of each other, of an inequality by a positive number."""
  differences = []
  for relation in (answer, label):
    trees = [side.tree if isinstance(side, Scalar) else None for side in relation.sides]
    if None in trees:
      return False
    if relation.signs[0] in (">", ">="):
      trees.reverse()
    differences.append(Operation("add", (trees[0], Operation("neg", (trees[1],)))))
  signs = [{">": "<", ">=": "<="}.get(relation.signs[0], relation.signs[0]) for relation in (answer, label)]
  first, second = differences
  return signs[0] == signs[1] and numeric.proportional(first, second, positive=signs[0] in ("<", "<="))


def _values_of_list(answer: object, label: object) -> object:
  """Returns a list of equations, as x=1, y=2, as the list of their values: in order of the names where they differ."""
  if not isinstance(answer, Collection | Bracketed) or not any(isinstance(item, Relation) for item in answer.items):
    return answer
  if isinstance(label, Collection | Bracketed) and any(isinstance(item, Relation) for item in label.items):
    return answer
  if not all(isinstance(item, Relation) for item in answer.items):
    return Words("\0")
  values = [(item.texts[0], _values(item, label)) for item in answer.items]
  if not all(found for _, found in values):
    return Words("\0")
  names = [name for name, _ in values]
  if len({_SUBSCRIPT.sub("", name) for name in names}) == 1:
    return Collection(tuple(_spread([found[-1] for _, found in values])), listed=True)
  ordered = tuple(found[-1] for _, found in sorted(values, key=lambda pair: pair[0]))
  if isinstance(label, Collection) and label.listed:
    return Collection(ordered, listed=True) if _in_order(ordered, label.items) else Words("\0")
  return Bracketed("(", ")", ordered)


# Regions


def _as_region(value: object) -> Region | None:
  if isinstance(value, Region):
    return value
  if isinstance(value, Bracketed) and len(value.items) == 2 and value.opening in "([":
    trees = [item.tree if isinstance(item, Scalar) else None for item in value.items]
    if None not in trees:
      low, high = trees
      return Region((Interval(low, high, value.opening == "[", value.closing == "]"),))
  if isinstance(value, Scalar) and value.tree is not None:
    value = Collection((value,))
  if isinstance(value, Collection) and value.listed and all(isinstance(item, Bracketed) for item in value.items):
    regions = [_as_region(item) for item in value.items]
    return None if None in regions else Region(tuple(piece for region in regions for piece in region.pieces))
  if isinstance(value, Collection) and all(isinstance(item, Scalar) and item.tree is not None for item in value.items):
    return Region(tuple(Interval(item.tree, item.tree, True, True) for item in value.items))
  return None


def _same_region(answer: Region | None, label: Region | None) -> bool:
  if answer is None or label is None:
    return False
  if answer.variable and label.variable and answer.variable != label.variable:
    return False
  ours, wanted = _merged(answer.pieces), _merged(label.pieces)
  return len(ours) == len(wanted) and all(_same_interval(a, b) for a, b in zip(ours, wanted, strict=True))


def _same_interval(a: Interval, b: Interval) -> bool:
  closed = (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
  return closed and _same_end(a.low, b.low) and _same_end(a.high, b.high)


def _same_end(a: Formula, b: Formula) -> bool:
  return a == b or numeric.agree(a, b)


def _position(tree: Formula) -> float | Fraction:
  """Returns where a bound lies. Raises Unknown for one that is no real number."""
  if tree in (INFINITY, _NEGATIVE_INFINITY):
    return float("inf") if tree == INFINITY else float("-inf")
  value = numeric.real(tree)
  if value is None:
    raise Unknown("a bound that is no number")
  return numeric.fraction(value)


def _merged(pieces: tuple[Interval, ...]) -> list[Interval]:
  """Returns the intervals in order, those that overlap or touch as one; with bounds that are letters, as they stand."""
  try:
    placed = sorted(((_position(piece.low), not piece.low_closed, _position(piece.high), piece) for piece in pieces),
                    key=lambda item: item[:3])  # fmt: skip
  except Unknown:
    return list(pieces)
  merged: list[tuple] = []
  for low, _, high, piece in placed:
    if high < low or high == low and not (piece.low_closed and piece.high_closed):
      continue
    if merged:
      end, last = merged[-1]
      if low < end or low == end and (piece.low_closed or last.high_closed):
        if high > end or high == end and piece.high_closed:
          merged[-1] = (high, last._replace(high=piece.high, high_closed=piece.high_closed))
        continue
    merged.append((high, piece))
  return [piece for _, piece in merged]


def _intersection(a: tuple[Interval, ...], b: tuple[Interval, ...]) -> tuple[Interval, ...]:
  pieces = []
  for x in a:
    for y in b:
      low = max((x, y), key=lambda piece: (_position(piece.low), not piece.low_closed))
      high = min((x, y), key=lambda piece: (_position(piece.high), piece.high_closed))
      piece = Interval(low.low, high.high, low.low_closed, high.high_closed)
      pieces += _merged((piece,))
  return tuple(pieces)
