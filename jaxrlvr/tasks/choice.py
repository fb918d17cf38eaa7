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
  """Returns RIGHT iff the answer names the label's letter and no other; the text of the choice may follow.

  UNPARSEABLE if the answer does not name exactly one letter. `extra` is not read.
  """
  chosen = letter(legible(answer) or "")
  if chosen is None:
    return UNPARSEABLE
  return RIGHT if chosen == letter(label) else WRONG


def letter(text: str) -> str | None:
  """Returns the one letter A..Z that a text names, as `C`, `\\textbf{(C)}`, `Option C` and `C) 10 eV` do.

  Returns None for a text that names several or none, as `A or C`, `Cat` and `AC`.
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
