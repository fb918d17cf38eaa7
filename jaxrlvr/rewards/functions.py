"""Rewards that are functions of a user's own, in the shape of this library, of TRL or of verl.

The names of a function's parameters tell its shape:

* (answers, grade): this library's: returns `Graded`, as the functions in `rewards.table` do.
* (prompts, completions, ...): TRL's: gets lists with an entry a response, and returns a list of values.
* (prompt, completion, ...): the same, called once a response.
* (data_source, solution_str, ground_truth, extra_info): verl's, called once a response; returns a value, or a mapping
  with the value as `score`.
* (data_sources, solution_strs, ground_truths, extra_infos): the same with lists.

Further parameters of TRL's shape are columns of the problem's row, and numbers that the expression gives. A value is a
number, or None for a response that the reward leaves unscored. Functions may be async: calls for single responses then
run side by side.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import math
import numbers
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import EVERY, Problem
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.text.answer import Parsed

_LOG = logging.getLogger(__name__)
ABSTAINED = "abstained"  # cause of a response for which the function returned None
RAISED = "raised"  # cause of a response for which it raised an error
_LABELS = ("label", "ground_truth", "answer", "solution")  # columns that are the label where the row has no such column
_LARGEST = float(np.finfo(np.float32).max)  # rewards are kept as float32
COMPLETIONS = ("text", "messages")  # values of `rl.completions`


def _call_here(make: Callable[[], Any]) -> Any:
  """Calls a function in this process and returns its result."""
  return make()


class Calls(NamedTuple):
  """What a run says about calls of a user's functions."""

  completions: str = "text"  # what TRL's shape gets: "text", or "messages", as [{"role": "assistant", "content": TEXT}]
  # Calls a function on one process of a run and returns its result on all, so that all pay alike.
  on_first: Callable[[Callable[[], Any]], Any] = _call_here


HERE = Calls()  # for a run of one process


class Shape(NamedTuple):
  """Which arguments a user's function takes."""

  name: str  # "own", "trl" or "verl"
  is_batched: bool  # whether it takes lists with an entry a response
  filled: tuple[str, ...]  # parameters that the shape itself fills
  columns: tuple[str, ...] = ()  # parameters of TRL's shape that are filled from the problem's row
  # Those of `columns` that have a default, and are left out where no row has them; None stands for single ones.
  optional: tuple[str, ...] = ()
  takes_all: bool = False  # whether it takes every column, as **columns


class Call(NamedTuple):
  """A user's function, ready to be called."""

  text: str  # its name, for messages
  function: Callable  # with the numbers of the expression
  shape: Shape


_SHAPES = (  # (name, whether batched, parameters that tell it, parameters that it fills)
  ("own", True, ("answers", "grade"), ("answers", "grade")),
  ("trl", True, ("completions",), ("prompts", "completions")),
  ("trl", False, ("completion",), ("prompt", "completion")),
  ("verl", True, ("solution_strs",), ("data_sources", "solution_strs", "ground_truths", "extra_infos")),
  ("verl", False, ("solution_str",), ("data_source", "solution_str", "ground_truth", "extra_info")),
)
_FILLED_BY_SHAPE = ("prompt", "completion", "prompts", "completions")  # columns of these names are not passed on
_ERRORS = (Exception, SystemExit, asyncio.CancelledError)  # what a function may raise without ending the run
_ABSENT = ("completion_ids", "completions_ids", "trainer_state", "environments", "log_extra", "log_metric")  # TRL's


def shape_of(text: str, function: Any, numbers_given: Sequence[str] = ()) -> Shape:
  """Reads from a function's parameters how it is called, and returns its shape.

  text: the function's name in `rl.reward`, for messages. numbers_given: names of the parameters that numbers in
  `rl.reward` fill.

  Raises InputError for an object that is no function, and for parameters that no shape has.
  """
  if not callable(function):
    raise InputError(f"reward {text}: is {type(function).__name__}, no function; name a function")
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError):
    raise InputError(f"reward {text}: its parameters can't be read; wrap it in a function of your own") from None
  takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
  unknown = [name for name in numbers_given if name not in parameters]
  if unknown and not takes_all:
    raise InputError(f"reward {text}: has no parameter {unknown[0]!r}; it has {', '.join(parameters)}")
  shape = _matching_shape(text, parameters, takes_all)
  filled = [name for name in numbers_given if name in shape.filled]
  if filled:
    raise InputError(f"reward {text}: its parameter {filled[0]!r} takes no number from rl.reward; drop it there")
  others = [
    one
    for one in parameters.values()
    if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.name not in (*shape.filled, *numbers_given)
  ]
  required = [one.name for one in others if one.default is one.empty]
  if shape.name != "trl" and required:
    raise InputError(
      f"reward {text}: nothing fills its parameter {required[0]!r}; give it a default, or a number in rl.reward, as "
      f"{text}({required[0]}=1)"
    )
  absent = [name for name in required if name in _ABSENT]
  if absent:
    raise InputError(f"reward {text}: its parameter {absent[0]!r} is TRL's and there is no such thing here; drop it")
  if shape.name != "trl":
    return shape
  columns = [one.name for one in others if one.name not in _ABSENT]
  return shape._replace(columns=tuple(columns), optional=tuple(name for name in columns if name not in required))


def _matching_shape(text: str, parameters: Mapping[str, inspect.Parameter], takes_all: bool) -> Shape:
  """Returns the shape that the names of parameters tell, without columns. Raises InputError where they tell none."""
  for name, is_batched, telling, filled in _SHAPES:
    if set(telling) <= set(parameters):
      taken = tuple(one for one in filled if one in parameters or takes_all)
      return Shape(name, is_batched, taken, takes_all=takes_all)
  shapes = " or ".join(f"({', '.join(filled)})" for _, _, _, filled in _SHAPES)
  raise InputError(
    f"reward {text}: has the parameters ({', '.join(parameters)}), which is no known shape; name them {shapes}"
  )


def columns_taken(shape: Shape) -> tuple[str, ...]:
  """Returns the names of the columns of a problem's row that a function of this shape takes; () for none.

  If it takes all columns, as **columns, the last of these names is EVERY.
  """
  if shape.name == "verl":
    return ("data_source",)
  every = (EVERY,) if shape.name == "trl" and shape.takes_all else ()
  return (*shape.columns, *every)


_REQUIRED = object()
_ABSENT_CELL = object()  # in the place of a cell that a row lacks


def column(problem: Problem, name: str, default: Any = _REQUIRED) -> Any:
  """Returns a column of a problem: an entry of `extra`, a cell of `row`, its id, or its label by a usual name of one.

  default: for a column that the row lacks; without one that raises KeyError.
  """
  if name in problem.extra:
    return problem.extra[name]
  if name in problem.row:
    return problem.row[name]
  if name == "id":
    return problem.id
  if name in _LABELS:
    return problem.label
  if default is _REQUIRED:
    raise KeyError(name)
  return default


def check_columns(text: str, shape: Shape, problems: Sequence[Problem]) -> None:
  """Raises InputError where a function takes a column without a default that one of the problems lacks.

  text: the function's name, for messages. shape: what `shape_of` returned. The error names the column, the problem and
  the columns that it has.
  """
  for name in shape.columns:
    if name in shape.optional:
      continue
    for problem in problems:
      try:
        column(problem, name)
      except KeyError:
        there = ", ".join([*problem.extra, *problem.row, "id", "label"])
        raise InputError(
          f"reward {text}: takes the column {name!r}, which problem {problem.id} lacks (it has {there}), and the file "
          f'has no column of this name; name one that it has, as config.problems.columns="...,extra.{name}=COLUMN", or '
          "give the parameter a default"
        ) from None


class _Row(NamedTuple):
  """One response with its problem."""

  problem: Problem
  response: Parsed
  sample: int

  def __str__(self) -> str:
    return f"problem {self.problem.id}, sample {self.sample}"


def grade_by_function(call: Call, answers: Answers, grade: Grade, calls: Calls) -> Graded:
  """Calls a user's function for all responses of a step and returns what it pays, as grades [P,G].

  answers: P problems with G responses each. grade: takes jobs and returns a verdict for each; only functions of the
  shape (answers, grade) get it. calls: what the run says about calls. On several hosts all must call this together.

  A response is unscored with the cause "abstained" where the function returned None, "error" where its value is not
  finite, and "raised" where it raised an error, which is logged with the row. A function that takes lists and raises is
  called again with each response alone. Raises InputError, with the row, for a result of another length or type.
  """
  if call.shape.name == "own":
    try:
      graded = call.function(answers, grade)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"reward {call.text}: raised {named.error_line(error)}; mend it") from error
    return _checked(call.text, graded, answers)
  rows = []
  for problem, responses, samples in zip(answers.problems, answers.response_PG, answers.sample_PG, strict=True):
    rows += [_Row(problem, response, int(sample)) for response, sample in zip(responses, samples, strict=True)]
  values, causes = calls.on_first(lambda: _values_and_causes(call, rows, calls.completions))
  grid = (len(answers.problems), -1)
  value_B = np.array([math.nan if value is None else value for value in values], np.float32)
  scored_B = np.isfinite(value_B)
  return Graded(
    np.where(scored_B, value_B, 0.0).astype(np.float32).reshape(grid),
    scored_B.reshape(grid),
    np.array(causes, object).reshape(grid).tolist(),
  )


def _checked(text: str, graded: Any, answers: Answers) -> Graded:
  """Returns the grades of a function of this library's shape. Raises InputError where they are none, or too few."""
  size = np.shape(answers.sample_PG)
  if not isinstance(graded, Graded) or np.shape(graded.value_PG) != size or np.shape(graded.scored_PG) != size:
    raise InputError(f"reward {text}: returned {_short(graded)}; return a Graded with arrays of shape {size}")
  return graded


def _values_and_causes(call: Call, rows: Sequence[_Row], completions: str) -> tuple[list[float | None], list[str]]:
  """Returns (value of each row, None: unscored; why it is unscored, "": it is scored)."""
  results, errors = _results(call, rows, completions)
  values: list[float | None] = []
  causes: list[str] = []
  for row, result, error in zip(rows, results, errors, strict=True):
    value = None if error else _number(call.text, result, row)
    if error:
      cause = RAISED
    elif value is None:
      cause = ABSTAINED
    elif not abs(value) <= _LARGEST:
      value, cause = None, "error"
    else:
      cause = ""
    values.append(value)
    causes.append(cause)
  _log_errors(call.text, rows, errors)
  return values, causes


def _results(call: Call, rows: Sequence[_Row], completions: str) -> tuple[list[Any], list[str]]:
  """Calls the function; returns (its result for each row, the error of each row in words, "": none)."""
  if call.shape.is_batched:
    return _results_of_lists(call, rows, completions)
  pending: list[Any] = []
  for row in rows:
    try:
      arguments = _arguments(call.shape, [row], completions)
      pending.append(call.function(**{name: values[0] for name, values in arguments.items()}))
    except _ERRORS as error:
      pending.append(error)
  results = _await_all(pending)
  return results, [_explained(result, completions) if isinstance(result, _ERRORS) else "" for result in results]


def _results_of_lists(call: Call, rows: Sequence[_Row], completions: str) -> tuple[list[Any], list[str]]:
  """As `_results`, for a function that takes lists. If it raises, it is called with each row alone."""
  try:
    results = _await_all([call.function(**_arguments(call.shape, rows, completions))])[0]
    if isinstance(results, _ERRORS):
      raise results
  except _ERRORS as error:
    if len(rows) == 1:
      return [None], [_explained(error, completions)]
    results, errors = [], []
    for row in rows:
      result, error_of_row = _results_of_lists(call, [row], completions)
      results += result
      errors += error_of_row
    return results, errors
  return _as_list(call.text, results, rows), [""] * len(rows)


def _arguments(shape: Shape, rows: Sequence[_Row], completions: str) -> dict[str, list]:
  """Returns the arguments of a call by parameter, each a list with an entry a row.

  For a shape that takes one response the names are those of its single parameters.
  """
  arguments = {}
  for name in shape.filled:
    fill = _FILLS[name.removesuffix("s") if shape.is_batched else name]
    arguments[name] = [fill(row, completions) for row in rows]
  for name in shape.columns:
    values = [_column_copy(row, name, *([_ABSENT_CELL] if name in shape.optional else [])) for row in rows]
    if any(value is not _ABSENT_CELL for value in values):  # rows without it must not hide those of others
      arguments[name] = [None if value is _ABSENT_CELL else value for value in values]
  if shape.takes_all and shape.name == "trl":
    others = {name for row in rows for name in (*row.problem.extra, *row.problem.row)}
    others -= {*arguments, *_FILLED_BY_SHAPE}
    for name in sorted(others | {"label"}):
      arguments.setdefault(name, [_column_copy(row, name, None) for row in rows])
  return arguments


def _column_copy(row: _Row, name: str, default: Any = _REQUIRED) -> Any:
  """Returns what `column` does, as a copy: a function that changes it must not change the problem."""
  value = column(row.problem, name, default)
  return value if value is _ABSENT_CELL else copy.deepcopy(value)


def _prompt(row: _Row, completions: str) -> Any:
  """Returns a prompt as TRL's shape gets it: its messages, or the text of the last one."""
  if completions == "messages":
    return [dict(message) for message in row.problem.messages]
  return row.problem.messages[-1]["content"]


def _completion(row: _Row, completions: str) -> Any:
  """Returns a response as TRL's shape gets it: a list of one message, or its text."""
  if completions == "messages":
    return [{"role": "assistant", "content": row.response.text}]
  return row.response.text


_FILLS: Mapping[str, Callable[[_Row, str], Any]] = {  # by parameter: (row, completions) -> argument
  "prompt": _prompt,
  "completion": _completion,
  "data_source": lambda row, _: str(column(row.problem, "data_source", "")),
  "solution_str": lambda row, _: row.response.text,
  "ground_truth": lambda row, _: row.problem.label,
  "extra_info": lambda row, _: copy.deepcopy(dict(row.problem.extra)),
}


def _await_all(values: Sequence[Any]) -> list[Any]:
  """Returns the values, with the result or the error of each that is awaitable; these run side by side.

  They run in a thread of their own, as a notebook runs an event loop in this one.
  """
  if not any(inspect.isawaitable(value) for value in values):
    return list(values)
  results: list[Any] = []

  async def gather() -> list[Any]:
    return await asyncio.gather(*map(_awaited, values))

  # A daemon, so that a call that never ends does not keep an interrupted process from ending.
  thread = threading.Thread(target=lambda: results.extend(asyncio.run(gather())), daemon=True)
  thread.start()
  thread.join()
  return results


async def _awaited(value: Any) -> Any:
  """Returns a value, or what it gives when awaited, or the error that it then raises."""
  try:
    return await value if inspect.isawaitable(value) else value
  except _ERRORS as error:
    return error


def _as_list(text: str, results: Any, rows: Sequence[_Row]) -> list[Any]:
  """Returns the results of a call with lists, one a row. Raises InputError where they are no list of this length."""
  if isinstance(results, np.ndarray) or hasattr(results, "tolist"):
    results = results.tolist()  # an array of numpy, jax or torch
  if not isinstance(results, Sequence) or isinstance(results, str):
    raise InputError(
      f"reward {text}: returned {_short(results)} for {len(rows)} responses, the first {rows[0]}; return a list with a "
      "number or None for each"
    )
  if len(results) != len(rows):
    raise InputError(
      f"reward {text}: returned {len(results)} values for {len(rows)} responses, the first {rows[0]}; return one each"
    )
  return list(results)


def _number(text: str, result: Any, row: _Row) -> float | None:
  """Returns the value that a result stands for. Raises InputError, with the row, for what is no number."""
  if isinstance(result, Mapping) and "score" in result:
    result = result["score"]
  if result is None:
    return None
  if isinstance(result, (numbers.Real, np.bool_)):
    try:
      return float(result)
    except OverflowError:  # an integer beyond floats
      return math.inf
  if hasattr(result, "item") and np.ndim(result) == 0:  # a scalar of an array library
    return _number(text, result.item(), row)
  raise InputError(
    f"reward {text}: returned {_short(result)} for {row}; return a number, or None to leave the response unscored"
  )


def _short(value: Any) -> str:
  """Returns a value and its type in a few words."""
  return f"{repr(value)[:80]} ({type(value).__name__})"


def _explained(error: BaseException, completions: str) -> str:
  """Returns an error in one line, with a hint where the function may expect messages."""
  hint = ""
  if completions == "text" and isinstance(error, TypeError) and "string indices" in str(error):
    hint = "; a function that reads completion[0]['content'] needs config.rl.completions=messages"
  return named.error_line(error) + hint


def _log_errors(text: str, rows: Sequence[_Row], errors: Sequence[str]) -> None:
  """Logs how many rows raised, with the first of them."""
  failed = [(row, error) for row, error in zip(rows, errors, strict=True) if error]
  if failed:
    row, error = failed[0]
    _LOG.warning(
      "reward %s: raised for %d of %d responses, which are unscored; the first: %s: %s",
      text,
      len(failed),
      len(rows),
      row,
      error,
    )
