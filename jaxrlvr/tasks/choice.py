"""Grades multiple choice: an answer must name the label's letter and no other."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

_MARKUP = re.compile(
  r"\\(?:boldsymbol|bm|underline|text(?:bf|it|rm)?|math(?:bf|it|rm|sf)|bf|rm|left|right|quad|[ ,;()])|[{}$~\s]"
)
_INTRODUCTION = re.compile(
  r"(?:the )?(?:(?:correct|final|best) )?(?:answer|option|choice)(?: is)?(?: ?:)? ?", re.IGNORECASE
)
# Group 1 is the letter, group 2 the text of the choice behind it.
_LETTER_WITH_TEXT = (
  re.compile(r"([A-Za-z])()"),  # C
  re.compile(r"[(\[] ?([A-Za-z]) ?[)\]]\.?(.*)"),  # (C) 10 eV
  re.compile(r"([A-Za-z]) ?(?:[)\]]|[.:](?= |$))(.*)"),  # C) 10 eV, or C: 10 eV
)
# A text behind a letter that names another letter, or takes the first one back.
_ANOTHER_CHOICE = re.compile(
  r"^ ?(?:[,&/;^_=!*<>]|\\(?:ne|approx|cdot|times)|(?:or|and|nor|not|to)\b|[A-Z]$)"
  r"|(?:\b(?:or|and)|[,&/]) ?[A-Z]$"
  r"|(?<![A-Za-z0-9])[A-Za-z] ?(?:[)\]:]|\.(?= |$))"
  r"|\b(?:not?|wrong|false|incorrect|except|but|neither|none)\b"
)


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a multiple choice problem; this is the verifier "choice".

  `answer`: what was read in the response, such as `C`, `(C)` or `C) 10 eV`; None if nothing was. `label`: the right
  letter in any of these spellings; no answer agrees with a label that names none or several. `extra`: Problem.extra,
  which is not read.
  Returns RIGHT (score 1) iff the answer names the label's letter and no other, WRONG (score 0) if it names another
  letter, and UNPARSEABLE (score 0) if it names no letter or several, is None or blank, or has over 512 characters.
  """
  chosen = letter(legible(answer) or "")
  if chosen is None:
    return UNPARSEABLE
  return RIGHT if chosen == letter(label) else WRONG


def letter(text: str) -> str | None:
  """Returns the one letter that a text names, in upper case A..Z: "C" for `c`, `\\textbf{(C)}`, `Option C`, `C) 10 eV`.

  Returns None for a text that names several letters or none, as `A or C`, `Cat`, `AC` and "".
  """
  text = _MARKUP.sub(" ", text).strip("* ")
  text = " ".join(text.split())
  for _ in range(2):  # `the answer is option C` has two introductions
    introduction = _INTRODUCTION.match(text)
    if introduction:
      text = text[introduction.end() :]
  for pattern in _LETTER_WITH_TEXT:
    match = pattern.fullmatch(text)
    if match and not _ANOTHER_CHOICE.search(match[2].rstrip(" .")):
      return match[1].upper()
  return None
