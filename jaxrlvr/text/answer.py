"""Reads a response once: its answer, its thinking trace, and the formats that a reward can ask of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from jaxrlvr.text.tags import THINK, THINK_END

_BOX = "\\boxed"
_CLOSED_BOX = re.compile(r"\\boxed\{[^\n]*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is part of the answer
_MARK = "####"
_NUMBER = re.compile(r"-?\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


class Parsed(NamedTuple):
  """A response with its answer and its thinking trace. Verifiers, votes and judges all start from this record."""

  text: str  # the whole response
  answer: str | None  # None: the response states no answer, or its thinking was opened and not closed
  trace: str | None  # the thinking; None: no thinking was both opened and closed


def last_box(text: str) -> str | None:
  """Returns the content of the last `\\boxed{...}` of a text.

  Returns None if the text has no box, no brace follows the last `\\boxed` at once, or that brace never closes.
  """
  box = text.rfind(_BOX)
  opening = box + len(_BOX)
  if box < 0 or not text.startswith("{", opening):
    return None
  depth = 0
  for brace in _BRACE.finditer(text, opening):
    if brace.group() == "{":
      depth += 1
    elif brace.group() == "}":
      depth -= 1
    if depth == 0:
      return text[opening + 1 : brace.start()]
  return None


def after_mark(text: str) -> str | None:
  """Returns what follows the last `####` on its line, as in the solutions of GSM8K.

  Returns None if the text has no `####`, or only white space follows it on its line.
  """
  _, mark, behind = text.rpartition(_MARK)
  answer = behind.partition("\n")[0].strip()
  if not mark or not answer:
    return None
  return answer


def last_number(text: str) -> str | None:
  """Returns the last number of a text, without `$` and without commas between its thousands; None without a number.

  Agrees with lm-eval's filter flexible-extract, except for numbers followed by a full stop or a comma.
  """
  numbers = _NUMBER.findall(text)
  if not numbers:
    return None
  return numbers[-1].replace("$", "").replace(",", "")


# Functions that read the answer in the text behind the thinking. Keys: values of the config key `answer.read`.
READINGS: dict[str, Callable[[str], str | None]] = {
  "boxed": last_box,
  "hash": after_mark,
  "last-number": last_number,
}


def parse_response(text: str, reading: str) -> Parsed:
  """Returns a response as a record of text (the whole response), answer and trace (each None if there is none).

  `reading` says how the answer is read in the text behind the last `</think>`: "boxed" (content of the last \\boxed{}),
  "hash" (what follows the last ####) or "last-number"; any other raises KeyError. The trace is the text between the
  first `<think>` and the last `</think>`. A response whose thinking was opened and not closed has neither.
  """
  behind_thinking = after_thinking(text)
  answer = None
  if THINK not in behind_thinking:
    answer = READINGS[reading](behind_thinking)
  return Parsed(text, answer, thinking(text))


def stated(answer: str) -> Parsed:
  """Returns a response that consists of this answer in a box, without a trace.

  So a label, or another sample's answer, can be given to a verifier as if it were a response.
  """
  return Parsed(f"{_BOX}{{{answer}}}", answer, None)


def after_thinking(text: str) -> str:
  """Returns what follows the last `</think>`, or the whole text if it has no such tag."""
  return text.rpartition(THINK_END)[2]


def thinking(text: str) -> str | None:
  """Returns the text between the first `<think>` and the last `</think>`; None unless both occur, in this order."""
  start, end = text.find(THINK), text.rfind(THINK_END)
  if start < 0 or end < start:
    return None
  return text[start + len(THINK) : end]


def _one_box(response: Parsed) -> bool:
  return response.text.count(_BOX) == 1 and last_box(response.text) is not None


def _box_last(response: Parsed) -> bool:
  content = last_box(response.text)
  if content is None:
    return False
  return response.text.rstrip().endswith(f"{_BOX}{{{content}}}")


def _thinking_format(response: Parsed) -> bool:
  return response.trace is not None and response.answer is not None


def _study_thinking_format(response: Parsed) -> bool:
  if THINK not in response.text:
    return False
  behind_first_end = response.text.partition(THINK_END)[2]
  return _CLOSED_BOX.search(behind_first_end) is not None


def _think_tags(response: Parsed) -> bool:
  return response.trace is not None


# Tests of a response's form that a reward can pay for. Keys: names in `rl.reward`.
FORMATS: dict[str, Callable[[Parsed], bool]] = {
  "think_tags": _think_tags,  # <think>, and </think> behind it
  "one_box": _one_box,  # exactly one box in the whole text, and it closes
  "box_last": _box_last,  # nothing but white space behind the last box
  "thinking_format": _thinking_format,  # both tags, and an answer behind them
  # As in the study's released code: <think> anywhere, and a box on one line behind the first </think>.
  "study_thinking_format": _study_thinking_format,
}
