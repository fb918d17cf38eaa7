"""Reads a response once: finds its answer and its thinking trace, and tells which formats it keeps."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from typing import NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.text.tags import THINK, THINK_END

_LOG = logging.getLogger(__name__)
_BOX = "\\boxed"
_CLOSED_BOX = re.compile(r"\\boxed\{[^\n]*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # matches escaped characters too, as an escaped brace opens nothing
_MARK = "####"
_NUMBER = re.compile(r"-?\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


class Parsed(NamedTuple):
  """A response with its answer and its thinking trace. Verifiers, votes and judges all start from this record."""

  text: str  # the whole response, with its tags
  answer: str | None  # the text of the answer; None: the response states none, or its thinking was never closed
  trace: str | None  # the text between the thinking tags, without them; None: there are not both


def last_box(text: str) -> str | None:
  """Returns the content of the last `\\boxed{...}` of a text, as it stands there, with nested braces.

  Returns None if the text has no `\\boxed`, if the last one is not directly followed by `{`, or if that brace is never
  closed. An earlier box then does not count.
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


def _after_mark(text: str) -> str | None:
  """Returns what follows the last `####` on its line, as in the solutions of GSM8K, without white space around it.

  Returns None if the text has no `####`, or only white space follows it on its line.
  """
  _, mark, text_behind = text.rpartition(_MARK)
  answer = text_behind.partition("\n")[0].strip()
  if not mark or not answer:
    return None
  return answer


def _last_number(text: str) -> str | None:
  """Returns the last number of a text, without `$` and without commas between its thousands; None without a number.

  A number is an optional minus sign, digits, and perhaps a decimal part, as -1,234.50 or .5; of 1/2 it is the 2. Agrees
  with lm-eval's filter flexible-extract, except for numbers followed by a full stop or a comma.
  """
  numbers = _NUMBER.findall(text)
  if not numbers:
    return None
  return numbers[-1].replace("$", "").replace(",", "")


# Functions that read the answer in the text behind the thinking: each takes that text, and returns the answer or None.
# Keys: values of the config key `answer.read`, which may also name a function of the user's own.
READINGS: dict[str, Callable[[str], str | None]] = {
  "boxed": last_box,
  "hash": _after_mark,
  "last-number": _last_number,
}


_failed: dict[str, Callable] = {}  # functions of a user's own that have raised an error, by name


def own_reading(name: str) -> Callable[[str], str | None]:
  """Returns the function of a user's own that a name (`base.named`) stands for.

  Raises InputError where it can't be imported, and where it is no function that can be called with one text.
  """
  function = named.load(name)
  if not callable(function):
    raise InputError(f"{name}: is {type(function).__name__}, no function; name a function")
  try:
    parameters = inspect.signature(function)
  except (TypeError, ValueError):  # a compiled function may have none
    return function
  try:
    parameters.bind("")
  except TypeError:
    raise InputError(f"{name}: takes {parameters}; it must take one text, what follows the thinking") from None
  return function


def _read(reading: str, text: str) -> str | None:
  """Returns the answer that a text states, None for none. reading: see `parse_response`.

  If a function of the user's own raises an error there is no answer; the first error of each is logged.
  """
  if not named.is_name(reading):
    return READINGS[reading](text)
  function = own_reading(reading)
  try:
    answer = function(text)
  except Exception as error:  # the user's code may raise anything
    if _failed.get(reading) is not function:
      _failed[reading] = function
      _LOG.warning(
        "answer.read %s: raised %s on %r; a response on which it raises has no answer, and later errors are not logged",
        reading,
        named.error_line(error),
        text[-100:],
      )
    return None
  if answer is None or isinstance(answer, str):
    return answer
  raise InputError(
    f"config.answer.read = {reading!r}: returned {repr(answer)[:80]} ({type(answer).__name__}) for {text[-100:]!r}; "
    "return the answer as a text, or None where there is none"
  )


def parse_response(text: str, reading: str) -> Parsed:
  """Reads the answer and the thinking trace of a response.

  The trace is the text between the first `<think>` and the last `</think>`. The answer is read in the text behind the
  last `</think>`, or in the whole text if there is no such tag. It is None if that part states no answer, or if a
  `<think>` stands in it, because the thinking was then never closed.

  text: the whole response, including a `<think>` that the prompt opened for it (`Tokenizer.opening`). reading: how to
  read the answer: "boxed" (the content of the last \\boxed{}), "hash" (what follows the last #### on its line),
  "last-number" (the last number), or the name of a function of the user's own (`own_reading`), which raises InputError
  where it returns neither a text nor None. Another reading raises KeyError.
  """
  behind_thinking = after_thinking(text)
  answer = None
  if THINK not in behind_thinking:
    answer = _read(reading, behind_thinking)
  return Parsed(text, answer, thinking(text))


def boxed_response(answer: str) -> Parsed:
  """Makes a response that consists of this answer in a box: text "\\boxed{ANSWER}", the answer as it is, no trace.

  With it a label, or another sample's answer, can be graded as if a policy had stated it.
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


# Formats that a reward can pay for. Each function takes a response and returns whether it keeps the format. Keys: names
# in `rl.reward`.
FORMATS: dict[str, Callable[[Parsed], bool]] = {
  "think_tags": _think_tags,  # <think>, and </think> behind it
  "one_box": _one_box,  # exactly one box in the whole text, and it closes
  "box_last": _box_last,  # nothing but white space behind the last box
  "thinking_format": _thinking_format,  # both tags, and an answer behind them
  # As in the study's released code: <think> anywhere, and a box on one line behind the first </think>.
  "study_thinking_format": _study_thinking_format,
}
