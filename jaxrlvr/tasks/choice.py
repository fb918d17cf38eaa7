"""Multiple choice: which one letter does a boxed answer name?"""

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
_NAMED = tuple(
  re.compile(pattern)
  for pattern in (
    r"([A-Za-z])()",
    r"[(\[] ?([A-Za-z]) ?[)\]]\.?(.*)",
    r"([A-Za-z]) ?(?:[)\]]|[.:](?= |$))(.*)",
  )
)
_ANOTHER = re.compile(
  r"^ ?(?:[,&/;^_=!*<>]|\\(?:ne|approx|cdot|times)|(?:or|and|nor|not|to)\b|[A-Z]$)"
  r"|(?:\b(?:or|and)|[,&/]) ?[A-Z]$"
  r"|(?<![A-Za-z0-9])[A-Za-z] ?(?:[)\]:]|\.(?= |$))"
  r"|\b(?:not?|wrong|false|incorrect|except|but|neither|none)\b"
)


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer names the label's letter and no other; the choice's text may follow."""
  said, wanted = letter(legible(answer) or ""), letter(label)
  return UNPARSEABLE if said is None else RIGHT if said == wanted else WRONG


def letter(text: str) -> str | None:
  """The one letter A..Z that `C`, `\\textbf{(C)}`, `Option C` or `C) 10 eV` names; None for `A or C`, `Cat`, `AC`."""
  text = " ".join(_MARKUP.sub(" ", text).strip("* ").split())
  for _ in range(2):  # the answer is option C
    text = text[introduction.end() :] if (introduction := _INTRODUCTION.match(text)) else text
  for pattern in _NAMED:
    named = pattern.fullmatch(text)
    if named and not _ANOTHER.search(named[2].rstrip(" .")):
      return named[1].upper()
  return None
