"""Verifiers and tasks of a user's own, by name (`base.named`): checks them, and calls them as the library's are called.

A verifier is a function whose parameters tell what it gets:

* answer: what was read in the response; it is not called where nothing was
* text, response or solution_str: the whole response
* label or ground_truth: the text to agree with
* extra or extra_info: `Problem.extra`, as a dict; data_source: its entry of this name, "" without one

It returns whether the response is right: a bool, a number from 0 to 1, a `Verdict`, or None for a response that it
leaves unscored; a mapping with such a value as `score` is taken too.

A task is a module, or an object, with functions `problems` and `verify`, and perhaps `faithfulness`, `strategy` and
`corpus`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.tasks import own_labels
from jaxrlvr.tasks.splits import split_of_text
from jaxrlvr.tasks.verdicts import UNPARSEABLE

_ANSWER, _TEXT = ("answer",), ("text", "response", "solution_str")
_LABEL, _EXTRA, _SOURCE = ("label", "ground_truth"), ("extra", "extra_info"), ("data_source",)
_PARAMETERS = (*_ANSWER, *_TEXT, *_LABEL, *_EXTRA, *_SOURCE)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][\w.]*")  # a name of an object in a module
_OTHER_PREFIXES = ("tfds",)  # PREFIX:NAME that is no module
_MAX_MISSES = 100_000  # problems in a row of the other split, or seen before, after which a generator is given up


class Scorer(NamedTuple):
  """A user's verifier, called as the library's are."""

  function: Callable[[str | None, str, Mapping | None], Verdict]  # (answer or text, label, extra) -> verdict
  takes_text: bool  # whether it takes the whole text of the response in the place of the answer

  def quick(self, text: str | None, label: str, extra: Mapping | None) -> Verdict | None:
    """Returns the verdict on a response without an answer, None for any other. Takes the same as `function`."""
    return UNPARSEABLE if text is None else None


def scorer(name: str) -> Scorer:
  """Returns the verifier that a name stands for. Raises InputError where it is no function with known parameters."""
  function = named.load(name)
  if not callable(function):
    raise InputError(f"verifier {name}: is {type(function).__name__}, no function; name a function")
  parameters = inspect.signature(function).parameters.values()
  by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
  taken = [one.name for one in by_name if one.name in _PARAMETERS]
  unfilled = [one.name for one in by_name if one.name not in taken and one.default is one.empty]
  takes_text, takes_answer = bool(set(_TEXT) & set(taken)), bool(set(_ANSWER) & set(taken))
  if unfilled or takes_text == takes_answer:
    raise InputError(
      f"verifier {name}: has the parameters ({', '.join(one.name for one in by_name)}); name them answer, or text for "
      "the whole response, not both; label; and, if it is needed, extra"
    )
  return Scorer(functools.partial(_score, name, function, tuple(taken)), takes_text)


def _score(
  name: str, function: Callable, taken: Sequence[str], text: str | None, label: str, extra: Mapping | None
) -> Verdict:
  """Calls a user's verifier and returns its verdict. taken: its parameters. Raises TypeError for another result."""
  values = {
    **dict.fromkeys((*_ANSWER, *_TEXT), text),
    **dict.fromkeys(_LABEL, label),
    **dict.fromkeys(_EXTRA, dict(extra or {})),
    **dict.fromkeys(_SOURCE, str((extra or {}).get("data_source", ""))),
  }
  result = function(**{parameter: values[parameter] for parameter in taken})
  if isinstance(result, Mapping) and "score" in result:
    result = result["score"]
  if result is None or isinstance(result, Verdict):
    return result or Verdict(None, "abstained")
  if hasattr(result, "item"):  # a scalar of an array library
    result = result.item()
  if isinstance(result, numbers.Real) and 0 <= float(result) <= 1:
    return Verdict(float(result))
  raise TypeError(f"{name} returned {repr(result)[:80]}; return True, False, a number from 0 to 1, or None")


class OwnTask(NamedTuple):
  """A user's task."""

  name: str  # as a config names it
  problems: Callable  # yields problems
  verify: str  # the name of its verifier
  corpus: Callable | None  # yields texts for CPT


def is_task(source: str) -> bool:
  """Returns whether a source of problems or texts has the form of a task: path.py, path.py:NAME or module:NAME."""
  if source.partition(":")[0].endswith(".py"):
    return True
  return _MODULE.fullmatch(source) is not None and source.partition(":")[0] not in _OTHER_PREFIXES


def task(source: str) -> OwnTask:
  """Returns the task that a source names. Raises InputError where it can't be imported, or lacks what a task needs."""
  is_module = source.endswith(".py")
  holder = named.load_file(source) if is_module else named.load(source)
  prefix = f"{source}:" if is_module else f"{source}."
  for needed in ("problems", "verify"):
    if not callable(getattr(holder, needed, None)):
      raise InputError(f"{source}: has no function {needed}; a task has problems() and verify() (docs/extending.md)")
  verify = f"{prefix}verify"
  scorer(verify)
  faithfulness_of_verifier(verify)
  strategy_of_verifier(verify)
  return OwnTask(source, holder.problems, verify, getattr(holder, "corpus", None))


def problems(
  source: str, seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str = ""
) -> list[Problem]:
  """Returns `count` different problems of a user's task.

  seed, split ("train" or "heldout"), levels and kinds are passed to those parameters of its `problems` that have these
  names. Each item that it yields is a `Problem`, or a mapping with `prompt` (text, or messages) and `label`, perhaps
  `truth` and `id`, and further entries, which become `Problem.extra`. If `problems` takes no `split`, a hash of the
  prompt decides which split a problem belongs to, so that both never share one. system: text of a system message for
  prompts that have none; "": none. Raises InputError where the function raises an error, yields something else, or
  yields too few problems.
  """
  own = task(source)
  known = dict(seed=seed, split=split, levels=tuple(levels), count=count, kinds=tuple(kinds))
  taken = {name: value for name, value in known.items() if name in inspect.signature(own.problems).parameters}
  by_id: dict[str, Problem] = {}
  misses = 0
  for item in _items(source, "problems", own.problems, taken):
    problem = _problem(own, item, system)
    is_of_split = "split" in taken or split_of_text(problem.messages[-1]["content"]) == split
    if problem.id in by_id and problem.messages != by_id[problem.id].messages:
      raise InputError(f"{source}: problems() yielded two problems with the id {problem.id!r}; give each its own")
    if not is_of_split or problem.id in by_id:
      misses += 1
      if misses == _MAX_MISSES:
        break
      continue
    misses = 0
    by_id[problem.id] = problem
    if len(by_id) == count:
      return list(by_id.values())
  raise InputError(
    f"{source}: gives {len(by_id)} different problems of the split {split!r}, {count} were asked for; lower the count"
  )


def _items(source: str, name: str, function: Callable, arguments: Mapping[str, Any]) -> Iterator[Any]:
  """Yields what a user's function yields or returns. Raises InputError, with its name and the line, where it fails."""
  try:
    yield from function(**arguments)
  except InputError:
    raise
  except (Exception, SystemExit) as error:  # the user's code may raise anything
    raise InputError(f"{source}: {name}() raised {named.error_line(error)}") from error


def _problem(own: OwnTask, item: Any, system: str) -> Problem:
  """Returns an item of a task as a problem."""
  if isinstance(item, Problem):
    return dataclasses.replace(item, extra=_json_entries(own, item.extra))
  if not isinstance(item, Mapping) or not {"prompt", "label"} <= set(item):
    raise InputError(
      f"{own.name}: problems() yielded {repr(item)[:80]}; yield mappings with prompt and label, such as "
      '{"prompt": "2 + 2", "label": "4"}'
    )
  prompt = item["prompt"]
  if not _is_prompt(prompt) or item["label"] is None:
    raise InputError(
      f"{own.name}: problems() yielded {repr(dict(item))[:200]}; a prompt is a text, or a list of messages, as "
      '[{"role": "user", "content": "2 + 2"}], and a label is not None'
    )
  messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
  if system and all(turn["role"] != "system" for turn in messages):
    messages.insert(0, {"role": "system", "content": system})
  extra = {key: value for key, value in item.items() if key not in ("prompt", "label", "truth", "id")}
  label = str(item["label"])
  digest = hashlib.sha1(json.dumps(messages).encode()).hexdigest()[:16]
  return Problem(
    id=str(item.get("id", digest)),
    messages=tuple(messages),
    label=label,
    truth=str(item.get("truth", label)),
    verifier=own.verify,
    extra=_json_entries(own, extra),
  )


def _json_entries(own: OwnTask, entries: Mapping) -> dict:
  """Returns the further entries of a problem as its verifier will get them. Raises InputError for what is no JSON."""
  try:
    return json.loads(json.dumps(dict(entries)))
  except (TypeError, ValueError) as error:
    raise InputError(f"{own.name}: problems() yielded further entries that are no JSON ({error})") from None


def _is_prompt(prompt: Any) -> bool:
  """Returns whether a prompt is a text, or messages with the texts role and content."""
  if isinstance(prompt, str) or not isinstance(prompt, Sequence):
    return isinstance(prompt, str) and bool(prompt.strip())
  texts = [(turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None,) for turn in prompt]
  return bool(texts) and all(isinstance(text, str) for turn in texts for text in turn)


def corpus_texts(source: str, seed: int) -> Iterable[str]:
  """Yields the texts of a task's `corpus`, which may take a parameter `seed`; it may never end.

  Raises InputError for a task without a corpus, and for an item that is no text.
  """
  own = task(source)
  if own.corpus is None:
    raise InputError(f"{source}: has no function corpus; add one that yields texts")
  takes_seed = "seed" in inspect.signature(own.corpus).parameters
  for text in _items(source, "corpus", own.corpus, {"seed": seed} if takes_seed else {}):
    if not isinstance(text, str) or not text.strip():
      raise InputError(f"{source}: corpus() yielded {repr(text)[:80]}; yield texts")
    yield text


def faithfulness_of_verifier(verifier: str) -> own_labels.Faithful | None:
  """Returns the function `faithfulness` beside the function `verify` of a task; None where there is none.

  verifier: its name. What is returned is called as `own_labels.faithfulness_of` says. Raises InputError for one with
  unknown parameters.
  """
  name, function = _beside(verifier, "faithfulness")
  return own_labels.faithfulness_of(name, function) if function else None


def strategy_of_verifier(verifier: str) -> own_labels.Same | None:
  """Returns the function `strategy` beside the function `verify` of a task; None where there is none.

  It compares two responses as `own_labels.strategy_of` says. Raises InputError for one with unknown parameters.
  """
  name, function = _beside(verifier, "strategy")
  return own_labels.strategy_of(name, function) if function else None


def _beside(verifier: str, function: str) -> tuple[str, Callable | None]:
  """Returns (name, function) of a function of a task beside its `verify`; None: there is no such function."""
  place = named.place_of(verifier)
  names = place.name.split(".")
  name = f"{place.module}:{'.'.join([*names[:-1], function])}"
  if names[-1] != "verify":
    return name, None
  named.load(verifier)
  try:
    return name, named.load(name)
  except InputError:
    return name, None
