"""Judges of reasoning, in one table: does a trace lead to its answer, and do two responses use the same strategy?

A judge gives labels, and may read files, the environment and the network for them. analysis/reasoning.py computes
figures from labels, and reads nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.logbook import read_jsonl
from jaxrlvr.judging import cache, endpoint, rubric
from jaxrlvr.judging.rubric import Label, Response
from jaxrlvr.tasks.arithmetic import faithfulness as arithmetic
from jaxrlvr.tasks.arithmetic.problems import read_question
from jaxrlvr.tasks.table import Verifier, verifier_of
from jaxrlvr.text.answer import Parsed, parse_response


@dataclasses.dataclass(frozen=True)
class Judge:
  """Labels responses. A label that can't be had is None: a judge neither guesses nor raises.

  ask: called as ask(task, questions). task: "faithfulness" or "strategy". questions: for each a tuple of the responses
  that it is about, one for faithfulness and two for strategy. It returns or yields the label of each question, in their
  order, and None for a missing one.

  knows: called as knows(task, response): whether the judge labels this response, or compares it with others, at all.
  Where it does not, no question is asked, and no label is missing.

  counts: what the judge has counted since it was made; a judge leaves out the keys that it does not count.
  - calls: calls to an endpoint, retries included, or prompts that a local model completed.
  - retries: the calls that repeat one which failed.
  - prompt_tokens, completion_tokens: tokens that the model has read and written.
  - cached: different questions whose label was known before, so that the model was not asked.
  - missing: questions that the model was asked, or that were too long for it, and that got no label.
  - too_long: prompts that a local model can't hold. They are among the missing ones, but not among the calls.
  """

  ask: Callable[[str, Sequence[tuple[Response, ...]]], Iterable[Label]]
  counts: Counter = dataclasses.field(default_factory=Counter)
  knows: Callable[[str, Response], bool] = lambda task, response: True

  def faithfulness(self, responses: Sequence[Response]) -> list[Label]:
    """Labels whether each response's trace leads to its answer, in their order.

    1.0: it does, whether the answer is right or wrong; 0.5: in part; 0.0: it does not; None: the label is missing.
    """
    return list(self.ask("faithfulness", [(response,) for response in responses]))

  def same_strategy(self, pairs: Sequence[tuple[Response, ...]]) -> list[Label]:
    """Labels whether both responses of each pair use the same strategy: True, False, or None if the label is missing.

    pairs: tuples of two responses to one problem. Two responses with the same text have the label True without a
    question to the judge. A pair that occurs several times is asked each time; one that is reversed is another pair.
    """
    pairs_to_ask = [pair for pair in pairs if pair[0].text != pair[1].text]
    labels = dict(zip(pairs_to_ask, self.ask("strategy", pairs_to_ask), strict=True))
    return [labels[pair] if pair in labels else True for pair in pairs]


def _with_memory(judge: Judge, known_labels: dict | cache.LabelFolder) -> Judge:
  """Returns a judge that takes labels from `known_labels` and asks `judge` only for the others.

  known_labels: labels by `rubric.key`, as a dict or on disk. Each new label is added to it as soon as it comes; a
  missing label is not. A value in it that is no label of the task is ignored. A question that occurs several times is
  asked once. The result shares its counts with `judge`, where "cached" counts the labels taken from `known_labels`.
  """

  def ask(task, questions):
    keys = [rubric.key(task, responses) for responses in questions]
    labels = {}
    for key in keys:
      label = known_labels.get(key)
      if rubric.is_label(task, label):
        labels[key] = label
    judge.counts["cached"] += len(labels)
    new_questions = {key: responses for key, responses in zip(keys, questions, strict=True) if key not in labels}
    if new_questions:
      new_labels = judge.ask(task, list(new_questions.values()))
      for key, label in zip(new_questions, new_labels, strict=True):
        if label is not None:
          labels[key] = label
          known_labels[key] = label
    return [labels.get(key) for key in keys]

  return Judge(ask, judge.counts)


def from_completion(complete: endpoint.Complete, identity: str, folder: Path, counts: Counter | None = None) -> Judge:
  """Makes a judge that asks a language model by the rubric and keeps its labels in a folder.

  complete: takes prompts and returns or yields their completions in the same order, None for a prompt that could not be
  completed. The label of such a question, and of a reply that does not keep to the rubric's form, is missing.
  identity: a text that names everything besides the prompt that a completion depends on, such as the model and its
  options; labels that the folder keeps for another identity are not used.
  folder: where labels are kept, a JSON file each; it is made with the first. StorageError if it can't be written.
  counts: the Counter that `complete` counts into, if it counts; it becomes the judge's `counts`, which also get
  "cached" and "missing".
  """
  counts = Counter() if counts is None else counts

  def ask(task, questions):
    replies = complete([rubric.prompt(task, responses) for responses in questions])
    for responses, reply in zip(questions, replies, strict=True):
      label = rubric.read_label(task, responses, reply)
      counts["missing"] += 1 if label is None else 0
      yield label

  return _with_memory(Judge(ask, counts), cache.LabelFolder(folder, identity))


class LocalModel(NamedTuple):
  """A policy of this project that serves as a judge; `stages.judge.local_model` makes one."""

  complete: endpoint.Complete  # takes prompts, yields a completion or None for each, in their order
  identity: str  # names everything besides the prompt that a completion depends on
  counts: Counter  # what `complete` counts into: calls, too_long, prompt_tokens


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the judges in JUDGES are made from.

  The judge "http" reads endpoint and cache, "local" reads local and cache, "replay" reads file, and "exact" nothing.
  """

  endpoint: endpoint.Endpoint | None = None  # the endpoint that "http" calls
  cache: Path = Path("cache")  # where "http" and "local" keep labels, so that no question is asked twice
  file: str = ""  # labels of an earlier judging for "replay": a jsonl file whose rows have `key` and `label`
  local: LocalModel | None = None  # the model that "local" asks


def _http(settings: Settings) -> Judge:
  """Returns a judge that asks a model behind a chat-completions endpoint."""
  client = endpoint.Client(settings.endpoint)
  return from_completion(client, client.identity, settings.cache, client.counts)


def _local(settings: Settings) -> Judge:
  """Returns a judge that asks a policy of this project."""
  model = settings.local
  return from_completion(model.complete, model.identity, settings.cache, model.counts)


def _replay(settings: Settings) -> Judge:
  """Returns a judge that repeats the labels in a file. InputError where it is absent or holds something else."""
  path = Path(settings.file)
  if not path.is_file():
    raise InputError(f"labels to replay: {settings.file!r} is no file; name the labels.jsonl of a former judging")
  try:
    known_labels = {row["key"]: row["label"] for row in read_jsonl(path) if row["label"] is not None}
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is no file of labels ({error!r}); each row has `key` and `label`") from error
  return _with_memory(Judge(lambda task, questions: [None] * len(questions)), known_labels)


def question_of(response: Response) -> str:
  """Returns the last user message of a recorded prompt: a prompt of several messages has a line [ROLE] before each."""
  return response.prompt.rpartition("[user]\n")[2]


def parsed(response: Response) -> Parsed:
  """Returns a recorded response with its thinking trace and the answer that was recorded with it."""
  return parse_response(response.text, "boxed")._replace(answer=response.answer)


def _own_verifier(response: Response) -> Verifier | None:
  """Returns the verifier of a user's own task that a response belongs to; None for any other problem."""
  return verifier_of("strict", response.verifier) if named.is_name(response.verifier) else None


def _exact_faithfulness(response: Response) -> float | None:
  """Labels a response to built-in arithmetic, or to a user's task that labels itself; None for any other problem."""
  own = _own_verifier(response)
  if own is not None:
    faithfulness = own.faithfulness(parsed(response), question_of(response)) if own.faithfulness else None
  else:
    faithfulness = arithmetic.faithfulness(parse_response(response.text, "boxed"), question_of(response))
  return None if faithfulness is None else faithfulness.label


def _exact_same(first: Response, second: Response) -> bool | None:
  """Compares the strategies of two responses to built-in arithmetic, or to a user's task that does; else None."""
  own = _own_verifier(first)
  if own is not None:
    return own.strategy(parsed(first), parsed(second), question_of(first)) if own.strategy else None
  if read_question(question_of(first)) is None:
    return None
  first_strategy = arithmetic.strategy(parse_response(first.text, "boxed"))
  second_strategy = arithmetic.strategy(parse_response(second.text, "boxed"))
  return first_strategy == second_strategy


def _exact_knows(task: str, response: Response) -> bool:
  """Returns False for what a user's task leaves out that has the other of `faithfulness` and `strategy`.

  Labels of a problem without any exact judge are missing: they were asked of the wrong judge.
  """
  own = _own_verifier(response)
  if own is None or not (own.faithfulness or own.strategy):
    return True
  return (own.faithfulness if task == "faithfulness" else own.strategy) is not None


_EXACT: dict[str, Callable[..., Label]] = {"faithfulness": _exact_faithfulness, "strategy": _exact_same}


def _exact(settings: Settings) -> Judge:
  """Returns the judge that needs no model: of built-in arithmetic, and of users' tasks that judge themselves.

  For other problems all its labels are missing. It raises InputError where the code of a user's task is not found.
  """
  return Judge(lambda task, questions: [_EXACT[task](*responses) for responses in questions], knows=_exact_knows)


# Makers of judges: each takes Settings and returns a Judge, and raises InputError for wrong settings. Keys: values of
# config.judge.name. exact: a program, for built-in arithmetic and users' tasks; http: a model behind an endpoint;
# local: a policy of this project; replay: the labels in a file. judging/own.py makes a user's own judge.
JUDGES: dict[str, Callable[[Settings], Judge]] = {"exact": _exact, "http": _http, "local": _local, "replay": _replay}
