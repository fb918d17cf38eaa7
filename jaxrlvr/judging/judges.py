"""Judges of reasoning, in one table: does a trace lead to its answer, do two responses use the same strategy?

The measures that are computed from their labels are in analysis/reasoning.py, which reads nothing; a judge may read
files, the environment and the network.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.logbook import read_jsonl
from jaxrlvr.judging import cache, endpoint, rubric
from jaxrlvr.judging.rubric import Label, Response
from jaxrlvr.tasks.arithmetic import faithfulness as arithmetic
from jaxrlvr.tasks.arithmetic.problems import read_question
from jaxrlvr.text.answer import parse_response


@dataclasses.dataclass(frozen=True)
class Judge:
  """Labels responses. A label that can't be had is None: a judge neither guesses nor raises.

  ask: takes the name of a task, "faithfulness" or "strategy", and a list of questions, each a tuple of the responses
  that it is about (one for faithfulness, two for strategy); gives the label of each question in their order, None where
  it is missing, and may give each as soon as it is known. counts: numbers of calls, retries, cached (labels that were
  known before), missing (questions that got no label), too_long (prompts that the model can't hold), prompt_tokens and
  completion_tokens, as far as the judge counts them.
  """

  ask: Callable[[str, Sequence[tuple[Response, ...]]], Iterable[Label]]
  counts: Counter = dataclasses.field(default_factory=Counter)

  def faithfulness(self, items: Sequence[Response]) -> list[Label]:
    """Returns the label of each response: 1.0: its trace leads to its answer; 0.5: in part; 0.0: not; None: missing."""
    return list(self.ask("faithfulness", [(item,) for item in items]))

  def same_strategy(self, pairs: Sequence[tuple[Response, ...]]) -> list[Label]:
    """Returns whether both responses of each pair, to one problem, use the same strategy; None if that is unknown.

    pairs: tuples of two responses. Two responses with the same text use the same strategy; about these the judge is not
    asked.
    """
    unlike = [pair for pair in pairs if pair[0].text != pair[1].text]
    labels = dict(zip(unlike, self.ask("strategy", unlike), strict=True))
    return [labels[pair] if pair in labels else True for pair in pairs]


def with_cache(judge: Judge, known: dict | cache.Folder) -> Judge:
  """Returns a judge that takes labels from `known` and asks `judge` only for the others.

  known: labels by the digests of questions, as `rubric.key` returns them: a dict, or a folder that keeps them on disk.
  Each new label is added to it as soon as it comes; a missing label is not. What is found there and is no label of the
  task is asked anew. The result shares its counts with `judge`, where "cached" counts the labels taken from `known`.
  """

  def ask(task, questions):
    keys = [rubric.key(task, responses) for responses in questions]
    labels = {}
    for key in keys:
      label = known.get(key)
      if rubric.is_label(task, label):
        labels[key] = label
    judge.counts["cached"] += len(labels)
    new_questions = {key: responses for key, responses in zip(keys, questions, strict=True) if key not in labels}
    if new_questions:
      new_labels = judge.ask(task, list(new_questions.values()))
      for key, label in zip(new_questions, new_labels, strict=True):
        if label is not None:
          known[key] = labels[key] = label
    return [labels.get(key) for key in keys]

  return Judge(ask, judge.counts)


def from_completion(complete: endpoint.Complete, identity: str, folder: Path, counts: Counter | None = None) -> Judge:
  """Returns a judge that asks a language model and keeps its labels in a folder.

  complete: takes prompts and gives their completions in the same order, None for a prompt that could not be completed;
  the label of such a question, and of a reply that does not keep to the form, is missing. identity: a text that names
  everything besides the prompt that a completion depends on; labels of another identity are not used. folder: where
  labels are kept; it is made with the first. counts: what `complete` counts into, if it counts; the judge adds "cached"
  and "missing".
  """
  counts = Counter() if counts is None else counts

  def ask(task, questions):
    replies = complete([rubric.prompt(task, responses) for responses in questions])
    for responses, reply in zip(questions, replies, strict=True):
      label = rubric.read_label(task, responses, reply)
      counts["missing"] += label is None
      yield label

  return with_cache(Judge(ask, counts), cache.Folder(folder, identity))


class LocalModel(NamedTuple):
  """A policy of this project that serves as a judge."""

  complete: endpoint.Complete  # takes prompts, gives a completion or None for each, in their order
  identity: str  # names everything besides the prompt that a completion depends on
  counts: Counter  # what `complete` counts into: calls, too_long, prompt_tokens


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the judges of JUDGES are made from; each reads the fields that it needs."""

  endpoint: endpoint.Endpoint | None = None  # for "http"
  cache: Path = Path("cache")  # folder of labels, for "http" and "local"
  file: str = ""  # for "replay": labels of an earlier judging, as jsonl rows with `key` and `label`
  local: LocalModel | None = None  # for "local"


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
    known = {row["key"]: row["label"] for row in read_jsonl(path) if row["label"] is not None}
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is no file of labels ({error!r}); each row has `key` and `label`") from error
  return with_cache(Judge(lambda task, questions: [None] * len(questions)), known)


def _question(response: Response) -> str:
  """Returns the last user message of a recorded prompt: a prompt of several messages has a line [ROLE] before each."""
  return response.prompt.rpartition("[user]\n")[2]


def _exact_faithfulness(response: Response) -> float | None:
  """Labels a response to a built-in arithmetic problem; None for any other problem."""
  faithfulness = arithmetic.faithfulness(parse_response(response.text, "boxed"), _question(response))
  return None if faithfulness is None else faithfulness.label


def _exact_same(first: Response, second: Response) -> bool | None:
  """Compares the strategies of two responses to a built-in arithmetic problem; None for any other problem."""
  if read_question(_question(first)) is None:
    return None
  first_strategy = arithmetic.strategy(parse_response(first.text, "boxed"))
  second_strategy = arithmetic.strategy(parse_response(second.text, "boxed"))
  return first_strategy == second_strategy


_EXACT: dict[str, Callable[..., Label]] = {"faithfulness": _exact_faithfulness, "strategy": _exact_same}


def _exact(settings: Settings) -> Judge:
  """Returns a judge of the built-in arithmetic that needs no model; for other problems all its labels are missing."""
  return Judge(lambda task, questions: [_EXACT[task](*responses) for responses in questions])


# The judges by the name that config.judge.name gives: each takes Settings and returns a Judge. InputError where the
# settings are wrong. exact: the built-in arithmetic's own; http: a model behind an endpoint; local: a policy of this
# project; replay: labels from a file.
JUDGES: dict[str, Callable[[Settings], Judge]] = {"exact": _exact, "http": _http, "local": _local, "replay": _replay}
