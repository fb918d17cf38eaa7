"""Labels of reasoning by functions of a user's own: checks their parameters, and calls them.

A function `faithfulness` says of one response whether its reasoning leads to its answer: 1 (it does), 0.5 (in part) or
0; `strategy` says of two responses to one problem whether both go about it in the same way. Both may return None where
they can't say.
"""

from __future__ import annotations

import functools
import inspect
import logging
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.text.answer import Parsed

_LOG = logging.getLogger(__name__)
_LABELS = (1.0, 0.5, 0.0)
_TEXT, _QUESTION = ("text", "response"), ("question", "prompt")
_PARAMETERS = (*_TEXT, "trace", "answer", *_QUESTION)  # those that `faithfulness` may take
# Label and share of right steps (None: unknown), or None for no label.
Faithful = Callable[[Parsed, str], tuple[float, float | None] | None]
Same = Callable[[Parsed, Parsed, str], bool | None]


def parameters_of(name: str, function: Any) -> list[inspect.Parameter]:
  """Returns the parameters of a function that have a name; `name`: that of the function, for messages.

  Raises InputError for what is no function.
  """
  if not callable(function):
    raise InputError(f"{name}: is {type(function).__name__}, no function; name a function")
  try:
    parameters = inspect.signature(function).parameters.values()
  except (TypeError, ValueError):
    raise InputError(f"{name}: its parameters can't be read; wrap it in a function of your own") from None
  return [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def faithfulness_of(name: str, function: Any) -> Faithful:
  """Returns a user's function `faithfulness` as a function (response, question) -> (label, share of right steps).

  Its parameters are among text or response (the whole response), trace (its thinking; None: it has none), answer (None:
  it states none) and question or prompt (the last message of the prompt). It returns a label, or a pair of it and the
  share of right steps. The result is None where it returns None, and, with a warning, where it raises an error or
  returns something else. name: for messages. Raises InputError for other parameters.
  """
  parameters = parameters_of(name, function)
  unfilled = [one.name for one in parameters if one.name not in _PARAMETERS and one.default is one.empty]
  if unfilled:
    raise InputError(
      f"{name}: nothing fills its parameter {unfilled[0]!r}; name its parameters among {', '.join(_PARAMETERS)}, or "
      "give it a default"
    )
  taken = [one.name for one in parameters if one.name in _PARAMETERS]

  def label(response: Parsed, question: str) -> tuple[float, float | None] | None:
    values = {
      **dict.fromkeys(_TEXT, response.text),
      **dict.fromkeys(_QUESTION, question),
      "trace": response.trace,
      "answer": response.answer,
    }
    try:
      result = function(**{parameter: values[parameter] for parameter in taken})
    except Exception as error:  # the user's code may raise anything
      return _warn(name, f"raised {named.error_line(error)}")
    value, share = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if result is None or value is None:
      return None
    if not isinstance(value, (numbers.Real, np.bool_)) or float(value) not in _LABELS:
      return _warn(name, f"returned {repr(result)[:80]}; return 1, 0.5, 0 or None")
    return float(value), None if share is None else float(share)

  return label


def strategy_of(name: str, function: Any) -> Same:
  """Returns a user's function `strategy` as a function (response, response, question) -> whether both are the same.

  Its first two parameters, whatever their names, take the texts of two responses to one problem; one more may be
  question or prompt. The result is None where it returns None, and, with a warning, where it raises an error or returns
  something else. name: for messages. Raises InputError for other parameters.
  """
  parameters = parameters_of(name, function)
  others = [one.name for one in parameters[2:] if one.default is one.empty or one.name in _QUESTION]
  if len(parameters) < 2 or any(other not in _QUESTION for other in others):
    raise InputError(
      f"{name}: has the parameters ({', '.join(one.name for one in parameters)}); it takes two responses, and perhaps "
      "question"
    )

  def same(first: Parsed, second: Parsed, question: str) -> bool | None:
    try:
      result = function(first.text, second.text, **dict.fromkeys(others, question))
    except Exception as error:  # the user's code may raise anything
      return _warn(name, f"raised {named.error_line(error)}")
    if result is None:
      return None
    if not isinstance(result, (bool, np.bool_)):
      return _warn(name, f"returned {repr(result)[:80]}; return True (the same), False or None")
    return bool(result)

  return same


@functools.lru_cache(256)
def _warn(name: str, words: str) -> None:
  """Logs a warning, once for the same words, and returns None: the label is missing."""
  _LOG.warning("%s: %s; the label is missing", name, words)
