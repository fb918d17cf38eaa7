"""Chooses the recorded responses that a report shows, and cuts them to what a page can hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.escape import visible
from jaxrlvr.base.logbook import finite, read_jsonl
from jaxrlvr.reporting.runs import RecordedRun

HEAD_CHARACTERS, TAIL_CHARACTERS = 1200, 500  # what is shown of a longer response: its beginning and its end
PAGE_CHARACTERS = 1_500_000  # characters of responses that a page holds at most
_TRAINING = "training"  # stands in the place of a set for responses of training
_FIELDS = (
  "problem",
  "sample",
  "tokens",
  "stop",
  "answer",
  "truth",
  "label",
  "reward",
  "true_reward",
  "scored",
  "cause",
)


class ShownResponses(NamedTuple):
  """The responses that a page shows, and how they were chosen."""

  # Each has problem, sample, tokens, stop, answer, truth, label, reward, true_reward, scored and cause as recorded
  # (None: not recorded); run, setting and arm (names); where ("training" or the set), step, faithful (faithfulness
  # label: 1, 0.5, 0 or None), prompt, head (the response's text, or its beginning if it is long), rest (its end if it
  # is long, else ""), left_out (number of characters between head and rest).
  responses: list[dict]
  recorded: int  # number of responses in the files that they were chosen from
  most_of_a_step: int  # most responses that are shown of a run, step and set


class _Place(NamedTuple):
  """A file of recorded responses."""

  where: str  # an evaluated set, or "training"
  step: int
  path: Path


class _Responses(NamedTuple):
  """What is read from such a file."""

  chosen: list[dict]
  recorded: int


def choose_responses(runs: Sequence[RecordedRun], samples: int) -> ShownResponses:
  """Chooses up to `samples` recorded responses of each run, step and set, to be shown on the page.

  Chosen from are the first and the last evaluation on the run's first set; the first, the saturated and the last step
  of training; and the steps that were judged. They are read from the run directories. A file that can't be read is left
  out and adds a note to its run. Right and wrong, paid and unpaid, faithful and unfaithful responses take turns. If all
  together have more than PAGE_CHARACTERS = 1.5 million characters, fewer are chosen of each, but at least one.
  """
  chosen, recorded = [], 0
  for run in runs:
    for place in _places(run):
      reader = functools.partial(_read_responses, run, place, samples)
      responses = run.read_or_note(reader, place.path, _Responses([], 0))
      chosen.append(responses.chosen)
      recorded += responses.recorded
  most = samples
  lengths = [_lengths(responses) for responses in chosen]  # of each file
  while most > 1 and sum(sum(of_file[:most]) for of_file in lengths) > PAGE_CHARACTERS:
    most -= 1
  shown = [response for responses in chosen for response in responses[:most]]
  return ShownResponses(shown, recorded, most)


def _lengths(responses: Sequence[dict]) -> list[int]:
  """Returns how many characters each response takes in the page."""
  return [len(json.dumps(response)) for response in responses]


def _places(run: RecordedRun) -> list[_Place]:
  """Returns the files whose responses a report shows of a run, sorted by set and step."""
  training_files = {}
  for path in (run.workdir / "rollouts").glob("step_*.jsonl"):
    step = path.stem.removeprefix("step_")
    if step.isdigit():
      training_files[int(step)] = path
  training_steps = {min(training_files, default=0), max(training_files, default=0), run.t_sat}
  chosen = {(_TRAINING, step) for step in training_steps if step in training_files}
  evaluated_steps = list(run.evals)
  chosen |= {(run.set, step) for step in (*evaluated_steps[:1], *evaluated_steps[-1:])}
  chosen |= {(run.judged_set or _TRAINING, step) for step in run.judged_steps}
  places = []
  for where, step in sorted(chosen):
    path = training_files.get(step) if where == _TRAINING else run.eval_file(where, step)
    if path is not None:
      places.append(_Place(where, step, path))
  return places


def _read_responses(run: RecordedRun, place: _Place, samples: int, path: Path) -> _Responses:
  """Reads a file and chooses up to `samples` of its responses. A judge's label replaces the recorded faithfulness."""
  rows = read_jsonl(path)
  if place.where == (run.judged_set or _TRAINING):
    for row in rows:
      label = run.labels.get((place.step, row["problem"], row["sample"]))
      row["faithfulness"] = row.get("faithfulness") if label is None else label
  chosen = [_response_for_page(run, place, row) for row in _pick(rows, samples)]
  return _Responses(chosen, len(rows))


def _pick(rows: Sequence[Mapping], count: int) -> list[Mapping]:
  """Picks `count` responses of as many kinds and problems as possible.

  A kind is a combination of true reward, faithfulness and reward. Kinds take turns, so that right and wrong responses
  alternate; of a kind there is at most one response to a problem, from problems spread over all.
  """
  kinds: dict[tuple, dict] = {}  # by kind, the first response to each problem
  for row in rows:
    kind = tuple(str(row.get(name)) for name in ("true_reward", "faithfulness", "reward"))
    kinds.setdefault(kind, {}).setdefault(row["problem"], row)
  queues = []
  for kind in _in_turn(kinds):
    queue = list(kinds[kind].values())
    stride = max(1, len(queue) // max(count, 1))
    queues.append(queue[::stride])
  picked = []
  for turn in range(max(map(len, queues), default=0)):
    picked += [queue[turn] for queue in queues if turn < len(queue)]
  return picked[:count]


def _in_turn(kinds: Mapping[tuple, Mapping]) -> list[tuple]:
  """Orders kinds so that those of different true rewards take turns, the highest first."""
  descending = sorted(kinds, reverse=True)
  number: dict[tuple, int] = {}  # of each kind among those with the same true reward
  for kind in descending:
    number[kind] = sum(earlier[0] == kind[0] for earlier in number)
  return sorted(descending, key=number.get)


def _response_for_page(run: RecordedRun, place: _Place, row: Mapping) -> dict:
  """Returns what page.js shows of a recorded response.

  The keys are _FIELDS and: run, setting, arm, where (set or "training"), step, faithful (its label), prompt, head and
  rest (the text, or its beginning and end) and left_out (the number of characters between). No character in it moves a
  cursor or turns the direction of writing.
  """
  text, prompt = row["text"], row.get("prompt") or row["problem"]
  left_out = max(0, len(text) - HEAD_CHARACTERS - TAIL_CHARACTERS)
  shown = {name: row.get(name) for name in _FIELDS}
  shown |= {"run": run.name, "setting": run.setting, "arm": run.arm, "where": place.where, "step": place.step}
  shown["left_out"] = left_out
  shown["faithful"] = row.get("faithfulness")
  shown["prompt"] = prompt[:HEAD_CHARACTERS] + (" …" if len(prompt) > HEAD_CHARACTERS else "")
  shown["head"] = text[:HEAD_CHARACTERS] if left_out else text
  shown["rest"] = text[-TAIL_CHARACTERS:] if left_out else ""
  return {name: visible(value) if isinstance(value, str) else finite(value) for name, value in shown.items()}
