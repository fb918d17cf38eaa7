"""Judges of reasoning as values in one table: does a trace lead to its answer, are two strategies the same?

Beside the measures in analysis/reasoning, not among them: a judge may read files, the environment and the network.
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
from jaxrlvr.tasks.arithmetic.problems import asked
from jaxrlvr.text.answer import parse


@dataclasses.dataclass(frozen=True)
class Judge:
  """Answers in the order of what is asked, None where there is no label: never a guess, never an exception.

  `ask` takes a task's name and a tuple of responses for each question, and may give labels one by one as they come.
  """

  ask: Callable[[str, Sequence[tuple[Response, ...]]], Iterable[Label]]
  counts: Counter = dataclasses.field(default_factory=Counter)  # calls, retries, cached, missing, tokens

  def faithfulness(self, items: Sequence[Response]) -> list[Label]:
    """Label of each response: 1.0, 0.5 or 0.0."""
    return list(self.ask("faithfulness", [(item,) for item in items]))

  def same_strategy(self, pairs: Sequence[tuple[Response, Response]]) -> list[Label]:
    """Do both of a pair, responses to one problem, solve it in the same way? What is the same text does."""
    unlike = [pair for pair in pairs if pair[0].text != pair[1].text]
    labels = dict(zip(unlike, self.ask("strategy", unlike), strict=True))
    return [labels[pair] if pair in labels else True for pair in pairs]


def with_cache(judge: Judge, known: dict | cache.Folder) -> Judge:
  """`judge`, asked only for what is not known; each label goes there as it comes, a missing one does not."""

  def ask(task, questions):
    keys = [rubric.key(task, responses) for responses in questions]
    labels = {key: label for key in keys if rubric.is_label(task, label := known.get(key))}
    judge.counts["cached"] += len(labels)
    new = {key: responses for key, responses in zip(keys, questions, strict=True) if key not in labels}
    for key, label in zip(new, judge.ask(task, list(new.values())) if new else (), strict=True):
      if label is not None:
        known[key] = labels[key] = label
    return [labels.get(key) for key in keys]

  return Judge(ask, judge.counts)


def from_completion(complete: endpoint.Complete, identity: str, folder: Path, counts: Counter | None = None) -> Judge:
  """A judge from a function that completes prompts; `identity` names all that its answers depend on but the prompt."""
  counts = Counter() if counts is None else counts

  def ask(task, questions):
    replies = complete([rubric.prompt(task, responses) for responses in questions])
    for responses, reply in zip(questions, replies, strict=True):
      label = rubric.read_label(task, responses, reply)
      counts["missing"] += label is None
      yield label

  return with_cache(Judge(ask, counts), cache.Folder(folder, identity))


class LocalModel(NamedTuple):
  """A policy as something that completes prompts."""

  complete: endpoint.Complete
  identity: str  # names all that a completion depends on but the prompt
  counts: Counter  # of what `complete` did


@dataclasses.dataclass(frozen=True)
class Settings:
  """Where labels come from, of which each judge reads its part."""

  endpoint: endpoint.Endpoint | None = None
  cache: Path = Path("cache")
  file: str = ""  # labels of a former judging, as jsonl rows with `key` and `label`
  local: LocalModel | None = None


def _http(settings: Settings) -> Judge:
  client = endpoint.Client(settings.endpoint)
  return from_completion(client, client.identity, settings.cache, client.counts)


def _local(settings: Settings) -> Judge:
  model = settings.local
  return from_completion(model.complete, model.identity, settings.cache, model.counts)


def _replay(settings: Settings) -> Judge:
  path = Path(settings.file)
  if not path.is_file():
    raise InputError(f"labels to replay: {settings.file!r} is no file; name the labels.jsonl of a former judging")
  try:
    known = {row["key"]: row["label"] for row in read_jsonl(path) if row["label"] is not None}
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is no file of labels ({error!r}); each row has `key` and `label`") from error
  return with_cache(Judge(lambda task, questions: [None] * len(questions)), known)


def _question(response: Response) -> str:
  """The last user message of a recorded prompt, which names roles where there are several messages."""
  return response.prompt.rpartition("[user]\n")[2]


def _exact_faithfulness(response: Response) -> float | None:
  judged = arithmetic.faithfulness(parse(response.text, "boxed"), _question(response))
  return None if judged is None else judged.label


def _exact_same(first: Response, second: Response) -> bool | None:
  if asked(_question(first)) is None:
    return None
  return arithmetic.strategy(parse(first.text, "boxed")) == arithmetic.strategy(parse(second.text, "boxed"))


_EXACT: dict[str, Callable[..., Label]] = {"faithfulness": _exact_faithfulness, "strategy": _exact_same}


def _exact(settings: Settings) -> Judge:
  """Of the embedded arithmetic, which needs no model (tasks/arithmetic/faithfulness.py); of anything else no label."""
  return Judge(lambda task, questions: [_EXACT[task](*responses) for responses in questions])


JUDGES: dict[str, Callable[[Settings], Judge]] = {"exact": _exact, "http": _http, "local": _local, "replay": _replay}
