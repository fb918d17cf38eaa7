"""Where a response keeps its answer: the last box, after the last closing think tag."""

from __future__ import annotations

import re
from collections.abc import Callable

OPEN, CLOSE = "<think>", "</think>"
_BOX = "\\boxed"
_CLOSED_BOX = re.compile(r"\\boxed\{[^\n]*\}")
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


def final(text: str) -> str | None:
  """What a response answers: the last box after the thinking."""
  return last_box(after_thinking(text))


def thinking(text: str) -> str | None:
  """What stands between the first `<think>` and the last `</think>`; None unless both occur in this order."""
  start, end = text.find(OPEN), text.rfind(CLOSE)
  return text[start + len(OPEN) : end] if 0 <= start < end else None


def _one_box(text: str) -> bool:
  return text.count(_BOX) == 1 and last_box(text) is not None


def _box_last(text: str) -> bool:
  answer = last_box(text)
  return answer is not None and text.rstrip().endswith(f"{_BOX}{{{answer}}}")


def _thinking_format(text: str) -> bool:
  return thinking(text) is not None and final(text) is not None


def _study_thinking_format(text: str) -> bool:
  return OPEN in text and bool(_CLOSED_BOX.search(text.partition(CLOSE)[2]))


# What a response's form can be held to. Keys: names in `rl.reward`.
FORMATS: dict[str, Callable[[str], bool]] = {
  "think_tags": lambda text: thinking(text) is not None,  # <think>, and </think> behind it
  "one_box": _one_box,  # exactly one box, and it closes
  "box_last": _box_last,  # nothing but white space behind the last box
  "thinking_format": _thinking_format,  # the tags, and a box behind them
  "study_thinking_format": _study_thinking_format,  # as released: tags anywhere, a box on one line behind the first
}
