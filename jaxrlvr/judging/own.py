"""Judges of a user's own, by name (`base.named`): functions and objects whose parameters tell what they are.

* a function (prompts) or (prompt): a language model. It gets requests that hold the rubric, and returns the text of the
  reply to each; labels are read and kept as those of other models are.
* a function of one response, with a parameter text or response: it labels faithfulness itself.
* an object, or a class, with a function `faithfulness`, `strategy`, or both (see `tasks.own_labels`).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlvr.base import logbook, named, signals
from jaxrlvr.base.errors import InputError
from jaxrlvr.judging import judges
from jaxrlvr.judging.judges import Judge
from jaxrlvr.judging.rubric import Label, Response
from jaxrlvr.tasks import own_labels

_LOG = logging.getLogger(__name__)
_SHAPES = "(prompts) or (prompt) for a language model, or (question, response) for a function that labels faithfulness"


class OwnJudge(NamedTuple):
  """What a name stands for. Either there is a model, or at least one of the two functions."""

  model: Callable | None = None  # takes prompts, or one prompt, and returns replies
  is_batched: bool = False  # whether the model takes a list of prompts
  faithfulness: own_labels.Faithful | None = None
  strategy: own_labels.Same | None = None


def find(name: str) -> OwnJudge:
  """Returns the judge of a name. Raises InputError where it is not found, or its parameters are of no known shape."""
  holder = named.load(name)
  if isinstance(holder, type):
    try:
      holder = holder()
    except Exception as error:  # the user's code may raise anything
      raise InputError(f"judge {name}: can't be made: {named.error_line(error)}") from error
  own = OwnJudge()
  if hasattr(holder, "faithfulness"):
    own = own._replace(faithfulness=own_labels.faithfulness_of(f"judge {name}.faithfulness", holder.faithfulness))
  if hasattr(holder, "strategy"):
    own = own._replace(strategy=own_labels.strategy_of(f"judge {name}.strategy", holder.strategy))
  if own.faithfulness or own.strategy:
    return own
  if not callable(holder):
    raise InputError(
      f"judge {name}: is {type(holder).__name__}, without functions faithfulness or strategy; name a function {_SHAPES}"
    )
  parameters = own_labels.parameters_of(f"judge {name}", holder)
  names = [one.name for one in parameters]
  if "text" in names or "response" in names:
    return OwnJudge(faithfulness=own_labels.faithfulness_of(f"judge {name}", holder))
  required = [one.name for one in parameters if one.default is one.empty]
  if required not in (["prompts"], ["prompt"]):
    raise InputError(
      f"judge {name}: has the parameters ({', '.join(names)}), which is no known shape; name them {_SHAPES}"
    )
  return OwnJudge(holder, required == ["prompts"])


def judge_of(name: str, folder: Path, concurrency: int) -> Judge:
  """Makes the judge that a name stands for.

  folder: where labels of a language model are kept, under an identity that changes with its code. concurrency: number
  of calls at a time of a function that takes one prompt, or of prompts in a call of one that takes a list. Raises
  InputError as `find` does.
  """
  own = find(name)
  if own.model is not None:
    replies = _Replies(name, own.model, own.is_batched, concurrency)
    identity = {"judge": named.place_of(name).name, "code": logbook.digest(named.sources(name))}
    return judges.from_completion(replies, json.dumps(identity, sort_keys=True), folder, replies.counts)

  def label(task: str, responses: tuple[Response, ...]) -> Label:
    question = judges.question_of(responses[0])
    first, *others = [judges.parsed(response) for response in responses]
    if others:
      return own.strategy(first, others[0], question) if own.strategy else None
    result = own.faithfulness(first, question) if own.faithfulness else None
    return result[0] if result else None

  def knows(task: str, response: Response) -> bool:
    return (own.strategy if task == "strategy" else own.faithfulness) is not None

  return Judge(lambda task, questions: [label(task, responses) for responses in questions], knows=knows)


class _Replies:
  """Completes prompts with a user's function; `counts`: number of calls (prompts that it was asked)."""

  def __init__(self, name: str, function: Callable, is_batched: bool, concurrency: int):
    self.counts: Counter[str] = Counter()
    self._name, self._function, self._is_batched, self._concurrency = name, function, is_batched, concurrency

  def __call__(self, prompts: list[str]) -> Iterator[str | None]:
    """Yields the reply to each prompt, in their order.

    It is None where the function returned None or raised an error, of which the first is logged, and after a signal to
    stop. Raises InputError where a result is no text, or a list has another length than that of the prompts.
    """
    size = self._concurrency if self._is_batched else 1
    batches = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    errors: list[str] = []
    with ThreadPoolExecutor(1 if self._is_batched else self._concurrency) as pool:
      for replies, errors_of_batch in pool.map(self._replies, batches):
        errors += errors_of_batch
        yield from replies
    if errors:
      _LOG.warning(
        "judge %s: raised for %d of %d prompts, whose labels are missing; the first: %s",
        self._name,
        len(errors),
        len(prompts),
        errors[0],
      )

  def _replies(self, prompts: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Returns (reply to each prompt, errors in words). A function of lists that raises gets each prompt alone."""
    if signals.stop_requested():
      return [None] * len(prompts), []
    try:
      result = self._function(list(prompts) if self._is_batched else prompts[0])
      if inspect.isawaitable(result):
        result = asyncio.run(_awaited(result))
    except Exception as error:  # the user's code may raise anything
      if len(prompts) == 1:
        self.counts["calls"] += 1
        return [None], [named.error_line(error)]
      replies, errors = [], []
      for prompt in prompts:
        reply, errors_of_prompt = self._replies([prompt])
        replies += reply
        errors += errors_of_prompt
      return replies, errors
    self.counts["calls"] += len(prompts)
    return self._checked(result if self._is_batched else [result], len(prompts)), []

  def _checked(self, replies: Any, count: int) -> list[str | None]:
    """Returns the replies. Raises InputError where they are no list of this length of texts or None."""
    if isinstance(replies, str) or not isinstance(replies, Sequence):
      raise InputError(f"judge {self._name}: returned {repr(replies)[:80]} for {count} prompts; return a list of texts")
    if len(replies) != count:
      raise InputError(f"judge {self._name}: returned {len(replies)} replies to {count} prompts; return one each")
    for reply in replies:
      if reply is not None and not isinstance(reply, str):
        raise InputError(
          f"judge {self._name}: returned {repr(reply)[:80]} ({type(reply).__name__}) for a prompt; return the text of "
          "the reply, or None"
        )
    return list(replies)


async def _awaited(value: Any) -> Any:
  """Returns what an awaitable gives."""
  return await value
