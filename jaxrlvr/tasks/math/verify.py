"""Strict grading of mathematical answers: our own reader, and Math-Verify for integrals, sums, products and limits.

Math-Verify can hang or eat memory on short hostile text, so this runs only behind grading.service.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.choice import letter
from jaxrlvr.tasks.math import answers
from jaxrlvr.tasks.math.formula import Unknown
from jaxrlvr.tasks.math.numeric import TooLarge
from jaxrlvr.tasks.math.spelling import bare_words, respell
from jaxrlvr.tasks.verdicts import MAX_ANSWER, RIGHT, UNPARSEABLE, WRONG, best, legible

MAX_NESTING = 8  # brackets inside brackets: parsing time is exponential in them
_LOOSE = 1e-3  # rounded numbers must agree to this share of their size
_TIGHT = 1e-40  # exact numbers further apart than this are different, whatever their first 15 digits say

# What makes a short answer dear to evaluate; allowed only where the label holds the same kind.
_DEAR = tuple(
  re.compile(pattern)
  for pattern in (
    r"\\(?:sum|i*int|oint|prod|lim)",
    r"\^\s*(?:\{[^{}]*|\([^()]*|[^\s{}()+\-*/=,;])\s*\^",  # a power in an exponent
    r"\^[^+=,;]*\)\s*\}?\s*\^",  # a power of a power
    r"\^[\s{(]*-?\s*\d[\d,\s]{4,}",
    r"\)[\s}]*\^[\s{(]*\d{3,}",
    r"(?:!|\^[^!]*|\d{4,})[\s)}\]]*!",
    r"\\[dt]?binom[^!]*(?:\d{4,}|\^)",
  )
)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|operatorname)\b|[{}\s]")
_RATIONAL = re.compile(
  r"([+-]?)(?:([0-9]+)(?:/([0-9]+)|(\.[0-9]+))?|\\[dt]?frac(?: ?\{([+-]?[0-9]+)\} ?\{([0-9]+)\}| ?([0-9])([0-9])))"
)
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ](?!\d)|(?<!\d)\\[!,;: ]|(?<![\d,]) | (?!\d)")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_BRACED = re.compile(r"([_^])\{([A-Za-z0-9])\}(?!\d)")
_LETTER = re.compile(r"(?:\\text ?\{)?\(?[A-E]\)?\}?")
_BAR = re.compile(r"\\(?:\||[lr]?[vV]ert(?![a-zA-Z]))")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm)\s*\{)?\(?([A-E])\)\}?(?:\\?[\s~])+(\S.*)")
# Of two numbers with one of these between them Math-Verify may read one; right only for a label that has it too, or,
# of the words, that has several answers.
_EMPTY = re.compile(r"^(?:an?|the) | solutions$| and\b")  # of words
_BETWEEN = re.compile(r"(?<=.)(?:\\(?:equiv|[bp]?mod|neq?)(?![a-zA-Z])|[≠≡])")
_HEDGE, _SEVERAL = re.compile(r"\b(?:or|not|maybe)\b"), re.compile(r"[,;]|\\pm|±|\b(?:or|and)\b")
_EVALUATED = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])")
_SCRIPT = re.compile(r"_ ?\{[^{}]*\}")
_LETTERS = frozenset(string.ascii_letters + "'")
# What Math-Verify skips: words, and dots.
_WORDED = re.compile(r"\\text|\.\.|…|\\[lc]?dots|(?<![\\a-zA-Z])[a-zA-Z]{3,}")
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\w+)")


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer equals the label or one of the label's `extra["also"]`."""
  settled = quick(answer, label, extra)
  if settled is not None:
    return settled
  return best(_by_text(*pair) or _by_value(*pair) for pair in _pairs(answer, label, extra))


def quick(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """What `grade` will say, where the texts decide it without the parser; else None. Cheap and safe on any text."""
  return best(_by_text(*pair) for pair in _pairs(answer, label, extra))


def readable(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the parser finds something in the label, so that it can be compared with another spelling."""
  settled = quickly_readable(answer, label, extra)
  return settled or best(RIGHT if _is_readable(text) else UNPARSEABLE for text in _readings(label))


def _is_readable(text: str) -> bool:
  return _value(text) is not None or _found(text)


def quickly_readable(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """What `readable` will say of a number, a word, or a text that the guards refuse; else None."""
  if not label.strip() or len(label) > MAX_ANSWER or _unreadable(label):
    return UNPARSEABLE
  texts = _readings(label)
  return RIGHT if any(_rational(text) or _WRAPPER.sub("", text).isalpha() for text in texts) else None


def warm() -> None:
  """Imports Math-Verify and fills some of its grammar caches, so that forked children inherit both."""
  for text in _WARM:
    _parse(text)
  _parse.cache_clear()


_WARM = (r"\int_0^1 x\,dx", r"\sum_{k=1}^{n} k")


def _pairs(answer: str | None, label: str, extra: Mapping | None) -> list[tuple[str, str]]:
  """Every reading of the answer with every reading of an accepted label; none without an answer of fair size."""
  answer = legible(answer)
  if answer is None:
    return []
  labels = (label, *(extra or {}).get("also", {}).get(label, ()))
  short = (text for text in labels if len(text) <= MAX_ANSWER)
  return [pair for text in short for pair in _paired(_readings(answer), _readings(text))]


def _paired(ours: tuple[str, ...], wanted: tuple[str, ...]) -> list[tuple[str, str]]:
  """Which readings to compare. Of two choices with their values both must agree: the letters do as they stand."""
  if len(ours) > 1 and len(wanted) > 1:
    return [(ours[2], wanted[2])] if ours[1] == wanted[1] else [(ours[1], wanted[1])]
  return [(a, b) for b in wanted for a in ours]


def _readings(text: str) -> tuple[str, ...]:
  """The text respelled for the parser; of a choice with its value, as `(C) 3`, also each of the two alone."""
  choice = _CHOICE.fullmatch(text.strip())
  choice = choice if choice and letter(text) == choice[1] else None
  text = respell(text)
  return (text, choice[1], respell(choice[2])) if choice else (text,)


def _by_text(answer: str, label: str) -> Verdict | None:
  """Whether the two are equal, where that needs no parser; else None."""
  if answer == label:
    return RIGHT
  if _unreadable(answer):
    return UNPARSEABLE
  if _spelled(answer) == _spelled(label) or _spelled(_TEXT.sub(r"\1", answer)) == _spelled(_TEXT.sub(r"\1", label)):
    return RIGHT
  ours, wanted = _rational(answer), _rational(label)
  if ours and wanted and (ours.value == wanted.value or ours.exact and wanted.exact):
    return RIGHT if ours.value == wanted.value else WRONG
  if _LETTER.fullmatch(label) and letter(answer) == letter(label):
    return RIGHT
  return None


def _by_value(answer: str, label: str) -> Verdict:
  """Compares what two texts stand for; of what our own reader does not know Math-Verify may judge one kind."""
  ours, wanted = _value(answer), _value(label)
  if _same_words(answer, label, ours, wanted):
    return RIGHT
  if ours is not None and wanted is not None:
    try:
      return RIGHT if answers.is_right(ours, wanted) else WRONG
    except (TooLarge, Unknown, RecursionError):
      return WRONG
  if _too_dear(answer, label):
    return UNPARSEABLE
  if wanted is not None or not _for_math_verify(answer, label):
    return WRONG if _found(answer) else UNPARSEABLE
  return _math_verify(answer, label)


def _same_words(answer: str, label: str, ours: object | None, wanted: object | None) -> bool:
  """Returns whether both say the same in words; all in capitals, as YES, is a word too where the label is one."""
  shouted = isinstance(wanted, answers.Words) and re.fullmatch("NO|[A-Z]{3,}", answer) and not label.isupper()
  said, meant = (_EMPTY.sub("", bare_words(text)) for text in (answer, label))
  unread = ours is None or wanted is None or all(isinstance(value, answers.Words) for value in (ours, wanted))
  return (unread or bool(shouted)) and said == meant != ""


@functools.lru_cache(64)
def _value(text: str) -> object | None:
  """Returns what our own reader makes of a text; None for what it does not know."""
  try:
    return answers.read(text)
  except (Unknown, TooLarge, RecursionError):  # a product of some 300 factors is that deep
    return None


def _spelled(text: str) -> str:
  """The text without what only changes its looks; a space that may part two numbers stays."""
  text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
  return _BRACED.sub(r"\1\2", text)


class _Rational(NamedTuple):
  value: Fraction
  exact: bool  # a decimal is not: it may be rounded


def _rational(text: str) -> _Rational | None:
  """An integer, a fraction of two or a decimal; None for all else."""
  match = _RATIONAL.fullmatch(text)
  if not match:
    return None
  sign, whole, below, decimals, *fraction = match.groups()
  top, bottom = fraction[:2] if fraction[0] else fraction[2:] if fraction[2] else (whole + (decimals or ""), below or 1)
  if int(bottom) == 0:
    return None
  value = Fraction(top) / int(bottom)
  return _Rational(-value if sign == "-" else value, decimals is None)


def _unreadable(text: str) -> bool:
  return not text.isprintable() or _nesting(text) > MAX_NESTING


def _too_dear(answer: str, label: str) -> bool:
  return any(pattern.search(answer) and not pattern.search(label) for pattern in _DEAR)


def _for_math_verify(answer: str, label: str) -> bool:
  """Whether the label is of the one kind that Math-Verify may judge, and the answer none that it takes for another.

  It reads what it knows and skips the rest: so both must hold the same letters and digits, and no words or dots.
  """
  said = [_COMMAND.sub("", text) for text in (answer, label)]
  letters, digits = ([sorted(s for s in text if s in signs) for text in said] for signs in (_LETTERS, string.digits))
  alike = letters[0] == letters[1] and set(digits[0]) == set(digits[1])
  evaluated = alike and _EVALUATED.search(label) and "=" not in _SCRIPT.sub("", label)
  return bool(evaluated) and not _misread(answer, label) and not any(map(_WORDED.search, (answer, label)))


def _misread(answer: str, label: str) -> bool:
  """Whether the answer is of a kind that Math-Verify is known to take for what it is not."""
  left, equals, _ = answer.partition("=")
  if equals and "=" not in label and not any(map(str.isalpha, _COMMAND.sub("", left))):
    return True  # 1=7 is read as 7
  if _BETWEEN.search(answer) and not _BETWEEN.search(label) or _HEDGE.search(answer) and not _SEVERAL.search(label):
    return True
  if any(a.startswith("(") and b.startswith("\\{") for a, b in ((answer, label), (label, answer))):
    return True  # a tuple is no set
  bases = _BASE.findall(answer)
  return bool(bases) and bases != _BASE.findall(label)  # 10_2 is read as 10


def _nesting(text: str) -> int:
  """Returns how deep brackets and bars are nested; a bar behind an operator, a bracket or another bar opens."""
  depth = deepest = bars = 0
  before = "("
  for sign in _BAR.sub("|", text):
    depth += (sign in "([{") - (sign in ")]}")
    if sign == "|":
      bars = bars + 1 if before in "([{|+-*/^=,<>" else 0
    deepest = max(deepest, depth + bars)
    before = before if sign == " " else sign
  return deepest


def _math_verify(answer: str, label: str) -> Verdict:
  from math_verify import verify

  wanted, found = _parse(label), _parse(answer)
  if verify(wanted, found, timeout_seconds=None, allow_set_relation_comp=True):
    return WRONG if _only_close(wanted[0], found[0]) else RIGHT
  return WRONG if _found(answer) else UNPARSEABLE


@functools.lru_cache(8)
def _parse(text: str) -> list:
  """What Math-Verify reads: SymPy objects, then the text itself."""
  from math_verify import LatexExtractionConfig, parse

  return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)


def _found(text: str) -> bool:
  return any(not isinstance(item, str) for item in _parse(text))


def _only_close(a: object, b: object) -> bool:
  """Whether two numbers that Math-Verify takes for equal differ beyond its 15 digits or six decimals."""
  from sympy import Expr, Float, UnevaluatedExpr

  if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.free_symbols or b.free_symbols:
    return False
  if a.has(UnevaluatedExpr) or b.has(UnevaluatedExpr):  # percents are loose
    return False
  gap, size = (abs(x.doit().evalf(50)) for x in (a - b, a))
  if not (gap.is_comparable and size.is_comparable):
    return False
  rounded = a.has(Float) or b.has(Float)  # it compares six decimals, which is nothing to go by for 6.6e-34
  return bool(gap > (_TIGHT if not rounded else size * _LOOSE))
