"""Where a response keeps its answer: the last box, after the last closing think tag."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
_BOX = "\\boxed"
_BRACE = re.compile(r"[{}]")


def last_box(text: str) -> str | None:
  """What the last `\\boxed{...}` holds; None if there is none, no brace follows at once, or it never closes."""
  start = text.rfind(_BOX) + len(_BOX)
  if start < len(_BOX) or not text.startswith("{", start):
    return None
  depth = 0
  for brace in _BRACE.finditer(text, start):
    depth += 1 if brace.group() == "{" else -1
    if depth == 0:
      return text[start + 1 : brace.start()]
  return None


def after_thinking(text: str) -> str:
  """What follows the last `</think>`, or all of the text where no thinking was closed."""
  return text.rpartition(CLOSE)[2]


def thinking(text: str) -> str | None:
  """What stands between the first `<think>` and the last `</think>`; None unless both occur in this order."""
  start, end = text.find(OPEN), text.rfind(CLOSE)
  return text[start + len(OPEN) : end] if 0 <= start < end else None
