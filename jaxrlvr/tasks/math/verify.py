"""Grades mathematical answers strictly: by this library's reader, and by Math-Verify for integrals, sums and the like.

Short hostile text can make Math-Verify hang or fill the memory, so `grade` and `readable` must run behind
grading.service. In the private functions `answer` and `label` are texts that `spelling.respell` returned.
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

_MAX_NESTING = 8  # brackets inside brackets; the time to parse grows exponentially with them
_LOOSE = 1e-3  # rounded numbers may differ by this share of their size
_TIGHT = 1e-40  # exact numbers that differ by more are different, even if Math-Verify's 15 digits agree

# What can make a short answer slow to evaluate; allowed only if the label has the same.
_SLOW = (
  re.compile(r"\\(?:sum|i*int|oint|prod|lim)"),
  re.compile(r"\^\s*(?:\{[^{}]*|\([^()]*|[^\s{}()+\-*/=,;])\s*\^"),  # a power in an exponent
  re.compile(r"\^[^+=,;]*\)\s*\}?\s*\^"),  # a power of a power
  re.compile(r"\^[\s{(]*-?\s*\d[\d,\s]{4,}"),
  re.compile(r"\)[\s}]*\^[\s{(]*\d{3,}"),
  re.compile(r"(?:!|\^[^!]*|\d{4,})[\s)}\]]*!"),
  re.compile(r"\\[dt]?binom[^!]*(?:\d{4,}|\^)"),
)
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathit|operatorname)\b|[{}\s]")
_RATIONAL = re.compile(
  r"(?P<sign>[+-]?)"
  r"(?:(?P<whole>[0-9]+)(?:/(?P<divisor>[0-9]+)|(?P<decimals>\.[0-9]+))?"
  r"|\\[dt]?frac(?: ?\{(?P<top>[+-]?[0-9]+)\} ?\{(?P<bottom>[0-9]+)\}| ?(?P<top_digit>[0-9])(?P<bottom_digit>[0-9])))"
)
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ](?!\d)|(?<!\d)\\[!,;: ]|(?<![\d,]) | (?!\d)")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_BRACED_CHARACTER = re.compile(r"([_^])\{([A-Za-z0-9])\}(?!\d)")
_LETTER = re.compile(r"(?:\\text ?\{)?\(?[A-E]\)?\}?")
_BAR = re.compile(r"\\(?:\||[lr]?[vV]ert(?![a-zA-Z]))")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_CHOICE_WITH_VALUE = re.compile(r"(?:\\(?:text|textbf|mathrm)\s*\{)?\(?([A-E])\)\}?(?:\\?[\s~])+(\S.*)")
_CAPITAL_WORD = re.compile("NO|[A-Z]{3,}")
_FILLER_WORDS = re.compile(r"^(?:an?|the) | solutions$| and\b")

# Signs and words between two numbers, of which Math-Verify may read only one. Allowed for a label with such a sign, and
# for a label with several answers.
_SIGN_BETWEEN = re.compile(r"(?<=.)(?:\\(?:equiv|[bp]?mod|neq?)(?![a-zA-Z])|[≠≡])")
_WORD_BETWEEN = re.compile(r"\b(?:or|not|maybe)\b")
_SEVERAL = re.compile(r"[,;]|\\pm|±|\b(?:or|and)\b")
_EVALUATED = re.compile(r"\\(?:i*int|oint|sum|prod|lim)(?![a-zA-Z])")
_SUBSCRIPT = re.compile(r"_ ?\{[^{}]*\}")
_LETTERS = frozenset(string.ascii_letters + "'")
_SKIPPED_BY_MATH_VERIFY = re.compile(r"\\text|\.\.|…|\\[lc]?dots|(?<![\\a-zA-Z])[a-zA-Z]{3,}")  # words and dots
_BASE = re.compile(r"\d\s*_\s*\{?\s*(\w+)")
_WARMING_TEXTS = (r"\int_0^1 x\,dx", r"\sum_{k=1}^{n} k")


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a problem in mathematics; this is the verifier "math" in the mode "strict".

  `answer`: the LaTeX or text that was read in the response, None if nothing was. `label`: the answer to agree with.
  `extra`: Problem.extra or None; only its key "also" is read, {a label: [answers that are as good]}.
  Returns RIGHT iff the answer equals the label or one of these, in value or in words. Returns UNPARSEABLE if the answer
  is None, blank, over 512 characters long, can't be read, or could take too long to evaluate, and WRONG otherwise. Must
  run in a worker process (grading.service).
  """
  settled = quick(answer, label, extra)
  if settled is not None:
    return settled
  verdicts = []
  for answer_text, label_text in _pairs(answer, label, extra):
    verdicts.append(_by_text(answer_text, label_text) or _by_value(answer_text, label_text))
  return best(verdicts)


def quick(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """Returns the verdict of `grade`, which takes the same arguments, if the texts alone decide it, else None.

  So equal texts are RIGHT, two different fractions are WRONG, and an answer of None is UNPARSEABLE. Fast and safe on
  any text, in any process.
  """
  return best(_by_text(answer_text, label_text) for answer_text, label_text in _pairs(answer, label, extra))


def readable(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Checks a label; this is the verifier "math" in the mode "labels".

  Returns RIGHT iff the label can be read, so that it can be compared with other spellings, else UNPARSEABLE. `answer`
  and `extra` are not read; they are there because all verifiers take them. Must run in a worker process
  (grading.service).
  """
  settled = quickly_readable(answer, label, extra)
  if settled is not None:
    return settled
  for text in _readings(label):
    if _value(text) is not None or _math_verify_reads(text):
      return RIGHT
  return UNPARSEABLE


def quickly_readable(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """Returns the verdict of `readable`, which takes the same arguments, if it needs no parser, else None.

  Fast and safe on any text. It is RIGHT for a number and for a word, UNPARSEABLE for a text that is blank, too long,
  unprintable or too deeply nested.
  """
  if not label.strip() or len(label) > MAX_ANSWER or _is_refused(label):
    return UNPARSEABLE
  for text in _readings(label):
    if _rational(text) is not None or _WRAPPER.sub("", text).isalpha():
      return RIGHT
  return None


def warm() -> None:
  """Imports Math-Verify and fills some caches of its grammar, so that forked children inherit both.

  Takes seconds. Call it once, before a process forks children that grade.
  """
  for text in _WARMING_TEXTS:
    _parse(text)
  _parse.cache_clear()


def _pairs(answer: str | None, label: str, extra: Mapping | None) -> list[tuple[str, str]]:
  """Returns the readings of the answer and of the accepted labels that are to be compared, as (answer, label).

  Returns none if there is no answer or it is too long; labels that are too long are left out.
  """
  answer = legible(answer)
  if answer is None:
    return []
  alternatives = (extra or {}).get("also", {}).get(label, ())
  pairs = []
  for text in (label, *alternatives):
    if len(text) <= MAX_ANSWER:
      pairs += _compared(_readings(answer), _readings(text))
  return pairs


def _compared(answer_readings: tuple[str, ...], label_readings: tuple[str, ...]) -> list[tuple[str, str]]:
  """Returns which readings to compare: each with each, but of two choices with values the values.

  If the letters of the two choices differ, these are compared, so that the verdict is WRONG.
  """
  if len(answer_readings) > 1 and len(label_readings) > 1:
    _, answer_letter, answer_value = answer_readings
    _, label_letter, label_value = label_readings
    if answer_letter == label_letter:
      return [(answer_value, label_value)]
    return [(answer_letter, label_letter)]
  return [(answer, label) for label in label_readings for answer in answer_readings]


def _readings(text: str) -> tuple[str, ...]:
  """Returns the respelled text; of a choice with its value, as `(C) 3`, also the letter and the respelled value."""
  choice = _CHOICE_WITH_VALUE.fullmatch(text.strip())
  respelled = respell(text)
  if choice is None or letter(text) != choice[1]:
    return (respelled,)
  return (respelled, choice[1], respell(choice[2]))


def _by_text(answer: str, label: str) -> Verdict | None:
  """Compares two texts without a parser. Returns None if that does not decide."""
  if answer == label:
    return RIGHT
  if _is_refused(answer):
    return UNPARSEABLE
  if _plain_spelling(answer) == _plain_spelling(label):
    return RIGHT
  if _plain_spelling(_TEXT.sub(r"\1", answer)) == _plain_spelling(_TEXT.sub(r"\1", label)):
    return RIGHT
  answer_number, label_number = _rational(answer), _rational(label)
  if answer_number is not None and label_number is not None:
    if answer_number.value == label_number.value:
      return RIGHT
    if answer_number.is_exact and label_number.is_exact:
      return WRONG
  if _LETTER.fullmatch(label) and letter(answer) == letter(label):
    return RIGHT
  return None


def _by_value(answer: str, label: str) -> Verdict:
  """Compares the values of two texts, if need be and if it is safe by Math-Verify."""
  answer_value, label_value = _value(answer), _value(label)
  if _same_words(answer, label, answer_value, label_value):
    return RIGHT
  if answer_value is not None and label_value is not None:
    try:
      return RIGHT if answers.is_right(answer_value, label_value) else WRONG
    except (TooLarge, Unknown, RecursionError):
      return WRONG
  if _is_slow(answer, label):
    return UNPARSEABLE
  if label_value is not None or not _is_for_math_verify(answer, label):
    return WRONG if _math_verify_reads(answer) else UNPARSEABLE
  return _by_math_verify(answer, label)


def _same_words(
  answer: str, label: str, answer_value: answers.AnswerValue | None, label_value: answers.AnswerValue | None
) -> bool:
  """Returns whether both say the same in words, apart from filler words.

  It does not count if both are values other than words. An answer in capitals, as YES, is a word if the label is one.
  """
  values = (answer_value, label_value)
  is_open = None in values or all(isinstance(value, answers.Words) for value in values)
  if not is_open:
    is_capital_word = _CAPITAL_WORD.fullmatch(answer) is not None
    if not isinstance(label_value, answers.Words) or not is_capital_word or label.isupper():
      return False
  answer_words = _FILLER_WORDS.sub("", bare_words(answer))
  label_words = _FILLER_WORDS.sub("", bare_words(label))
  return answer_words == label_words != ""


@functools.lru_cache(64)
def _value(text: str) -> answers.AnswerValue | None:
  """Returns the value that this library's reader finds in a text; None if it does not know it."""
  try:
    return answers.read(text)
  except (Unknown, TooLarge, RecursionError):  # RecursionError: for one, a product of some 300 factors
    return None


def _plain_spelling(text: str) -> str:
  """Returns the text without what only changes its looks; a space that may separate two numbers stays."""
  text = _SPACING.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
  return _BRACED_CHARACTER.sub(r"\1\2", text)


class _Rational(NamedTuple):
  """A number in digits."""

  value: Fraction
  is_exact: bool  # False for a decimal, which may be rounded


def _rational(text: str) -> _Rational | None:
  """Returns the number that a text is: an integer, a fraction of two integers or a decimal; None for all else."""
  match = _RATIONAL.fullmatch(text)
  if match is None:
    return None
  if match["top"]:
    top, bottom = match["top"], match["bottom"]
  elif match["top_digit"]:
    top, bottom = match["top_digit"], match["bottom_digit"]
  else:
    top, bottom = match["whole"] + (match["decimals"] or ""), match["divisor"] or "1"
  if int(bottom) == 0:
    return None
  value = Fraction(top) / int(bottom)
  if match["sign"] == "-":
    value = -value
  return _Rational(value, is_exact=match["decimals"] is None)


def _is_refused(text: str) -> bool:
  """Returns whether a text has unprintable characters or is nested too deeply to be parsed."""
  return not text.isprintable() or _nesting(text) > _MAX_NESTING


def _is_slow(answer: str, label: str) -> bool:
  """Returns whether the answer has something that can take long to evaluate and that the label does not have."""
  return any(pattern.search(answer) and not pattern.search(label) for pattern in _SLOW)


def _is_for_math_verify(answer: str, label: str) -> bool:
  """Returns whether Math-Verify may compare the two.

  The label must have an integral, sum, product or limit. As Math-Verify skips what it does not know, both must have the
  same letters, equally often, and the same digits, and neither may have words or dots.
  """
  if not _EVALUATED.search(label) or "=" in _SUBSCRIPT.sub("", label):
    return False
  answer_signs, label_signs = _COMMAND.sub("", answer), _COMMAND.sub("", label)
  if _letters(answer_signs) != _letters(label_signs) or _digits(answer_signs) != _digits(label_signs):
    return False
  if _is_misread(answer, label):
    return False
  return not _SKIPPED_BY_MATH_VERIFY.search(answer) and not _SKIPPED_BY_MATH_VERIFY.search(label)


def _letters(text: str) -> list[str]:
  """Returns the letters and primes of a text, sorted."""
  return sorted(sign for sign in text if sign in _LETTERS)


def _digits(text: str) -> set[str]:
  """Returns the digits of a text."""
  return {sign for sign in text if sign in string.digits}


def _is_misread(answer: str, label: str) -> bool:
  """Returns whether the answer has a form that Math-Verify is known to misread."""
  left, equals, _ = answer.partition("=")
  if equals and "=" not in label and not any(sign.isalpha() for sign in _COMMAND.sub("", left)):
    return True  # it reads 1=7 as 7
  if _SIGN_BETWEEN.search(answer) and not _SIGN_BETWEEN.search(label):
    return True
  if _WORD_BETWEEN.search(answer) and not _SEVERAL.search(label):
    return True
  for first, second in ((answer, label), (label, answer)):
    if first.startswith("(") and second.startswith("\\{"):
      return True  # it takes a tuple for a set
  bases = _BASE.findall(answer)
  return bool(bases) and bases != _BASE.findall(label)  # it reads 10_2 as 10


def _nesting(text: str) -> int:
  """Returns how deep brackets and bars are nested; a bar behind an operator, a bracket or another bar opens."""
  depth = deepest = open_bars = 0
  previous = "("
  for sign in _BAR.sub("|", text):
    if sign in "([{":
      depth += 1
    elif sign in ")]}":
      depth -= 1
    elif sign == "|":
      opens = previous in "([{|+-*/^=,<>"
      open_bars = open_bars + 1 if opens else 0
    deepest = max(deepest, depth + open_bars)
    if sign != " ":
      previous = sign
  return deepest


def _by_math_verify(answer: str, label: str) -> Verdict:
  """Compares what Math-Verify reads in the two texts."""
  from math_verify import verify

  label_reading, answer_reading = _parse(label), _parse(answer)
  if verify(label_reading, answer_reading, timeout_seconds=None, allow_set_relation_comp=True):
    return WRONG if _is_only_close(label_reading[0], answer_reading[0]) else RIGHT
  return WRONG if _math_verify_reads(answer) else UNPARSEABLE


@functools.lru_cache(8)
def _parse(text: str) -> list:
  """Returns what Math-Verify reads in a text: SymPy objects, then the text itself."""
  from math_verify import LatexExtractionConfig, parse

  return parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)


def _math_verify_reads(text: str) -> bool:
  """Returns whether Math-Verify reads anything in a text."""
  return any(not isinstance(item, str) for item in _parse(text))


def _is_only_close(a: object, b: object) -> bool:
  """Returns whether two numbers that Math-Verify takes for equal differ beyond its 15 digits or six decimals."""
  from sympy import Expr, Float, UnevaluatedExpr

  if not (isinstance(a, Expr) and isinstance(b, Expr)) or a.free_symbols or b.free_symbols:
    return False
  if a.has(UnevaluatedExpr) or b.has(UnevaluatedExpr):  # percents, of which one may lack the sign
    return False
  difference = abs((a - b).doit().evalf(50))
  size = abs(a.doit().evalf(50))
  if not (difference.is_comparable and size.is_comparable):
    return False
  if a.has(Float) or b.has(Float):
    return bool(difference > size * _LOOSE)  # six decimals say nothing of 6.6e-34
  return bool(difference > _TIGHT)
