"""Reads a response once: its answer, its trace, and the formats that it can be held to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from jaxrlvr.text.tags import THINK, THINK_END

_BOX = "\\boxed"
_CLOSED_BOX = re.compile(r"\\boxed\{[^\n]*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped one is part of the answer
_MARK = "####"
_NUMBER = re.compile(r"-?\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


class Parsed(NamedTuple):
  """A response and what was read in it; all that grades, votes or judges goes on from this."""

  text: str
  answer: str | None  # None: it states none, or its thinking was opened and not closed
  trace: str | None  # its thinking, None where that was not both opened and closed


def last_box(text: str) -> str | None:
  """What the last `\\boxed{...}` holds; None if there is none, no brace follows at once, or it never closes."""
  start = text.rfind(_BOX) + len(_BOX)
  if start < len(_BOX) or not text.startswith("{", start):
    return None
  depth = 0
  for brace in _BRACE.finditer(text, start):
    depth += (brace.group() == "{") - (brace.group() == "}")
    if depth == 0:
      return text[start + 1 : brace.start()]
  return None


def after_mark(text: str) -> str | None:
  """What follows the last `####` on its line, as in the solutions of GSM8K; None where nothing does."""
  _, mark, behind = text.rpartition(_MARK)
  answer = behind.partition("\n")[0].strip()
  return answer if mark and answer else None


def last_number(text: str) -> str | None:
  """The last number, without `$` and without the commas between its thousands; None where there is none.

  Finds what lm-eval's filter flexible-extract finds, but for numbers with a full stop or a comma behind them.
  """
  numbers = _NUMBER.findall(text)
  return numbers[-1].replace("$", "").replace(",", "") if numbers else None


# How the answer is read from what follows the thinking. Keys: value of `answer.read`.
READINGS: dict[str, Callable[[str], str | None]] = {
  "boxed": last_box,
  "hash": after_mark,
  "last-number": last_number,
}


def parse(text: str, reading: str) -> Parsed:
  """Reads a response by a row of READINGS. Where thinking was opened and not closed there is no answer."""
  rest = after_thinking(text)
  answer = None if THINK in rest else READINGS[reading](rest)
  return Parsed(text, answer, thinking(text))


def stated(answer: str) -> Parsed:
  """A response that states this answer and nothing else: how a label, or somebody's vote, is put to a verifier."""
  return Parsed(f"{_BOX}{{{answer}}}", answer, None)


def after_thinking(text: str) -> str:
  """What follows the last `</think>`, or all of the text where no thinking was closed."""
  return text.rpartition(THINK_END)[2]


def thinking(text: str) -> str | None:
  """What stands between the first `<think>` and the last `</think>`; None unless both occur in this order."""
  start, end = text.find(THINK), text.rfind(THINK_END)
  return text[start + len(THINK) : end] if 0 <= start < end else None


def _one_box(response: Parsed) -> bool:
  return response.text.count(_BOX) == 1 and last_box(response.text) is not None


def _box_last(response: Parsed) -> bool:
  box = last_box(response.text)
  return box is not None and response.text.rstrip().endswith(f"{_BOX}{{{box}}}")


def _thinking_format(response: Parsed) -> bool:
  return response.trace is not None and response.answer is not None


def _study_thinking_format(response: Parsed) -> bool:
  return THINK in response.text and bool(_CLOSED_BOX.search(response.text.partition(THINK_END)[2]))


# What a response's form can be held to. Keys: names in `rl.reward`.
FORMATS: dict[str, Callable[[Parsed], bool]] = {
  "think_tags": lambda response: response.trace is not None,  # <think>, and </think> behind it
  "one_box": _one_box,  # exactly one box in the whole text, and it closes
  "box_last": _box_last,  # nothing but white space behind the last box
  "thinking_format": _thinking_format,  # the tags, and an answer behind them
  "study_thinking_format": _study_thinking_format,  # as released: tags anywhere, a box on one line behind the first
}
