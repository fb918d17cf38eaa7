"""Which recorded responses a report shows, as much of each as a page bears, and nothing in them that acts."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrlvr.base.escape import visible
from jaxrlvr.base.logbook import finite, read_jsonl
from jaxrlvr.reporting.runs import RecordedRun

HEAD, TAIL = 1200, 500  # characters shown of a longer response
EMBEDDED = 1_500_000  # characters of responses that a page holds at most
_FIELDS = "problem sample tokens stop answer truth label reward true_reward scored cause".split()


def choose_responses(runs: Sequence[RecordedRun], samples: int) -> tuple[list[dict], int, int]:
  """(responses shown, how many are recorded there, shown at most of a run and step): as many as fit into the page."""
  places, recorded = [], 0
  for run in runs:
    for where, step, path in _places(run):
      some, count = run.read(functools.partial(_place, run, where, step, samples), path, ([], 0))
      places.append(some)
      recorded += count
  each, lengths = samples, [[len(json.dumps(one)) for one in some] for some in places]
  while each > 1 and sum(sum(some[:each]) for some in lengths) > EMBEDDED:
    each -= 1
  return [one for some in places for one in some[:each]], recorded, each


def _place(run: RecordedRun, where: str, step: int, samples: int, path: Path) -> tuple[list[dict], int]:
  """(responses of a file that are worth showing, how many it has)."""
  rows = read_jsonl(path)
  for row in rows if where == (run.judged_set or "training") else ():
    label = run.labels.get((step, row["problem"], row["sample"]))
    row["faithfulness"] = row.get("faithfulness") if label is None else label
  return [_response(run, where, step, row) for row in _pick(rows, samples)], len(rows)


def _places(run: RecordedRun) -> list[tuple[str, int, Path]]:
  """(set or "training", step, file): evaluations at first and last, training at first, t_sat and last, judged steps."""
  files = (run.workdir / "rollouts").glob("step_*.jsonl")
  trained = {int(path.stem[5:]): path for path in files if path.stem[5:].isdigit()}
  steps = [s for s in {min(trained, default=0), max(trained, default=0), run.t_sat} if s in trained]
  found = {("training", step) for step in steps} | {(run.set, s) for s in (*list(run.evals)[:1], *list(run.evals)[-1:])}
  found |= {(run.judged_set or "training", step) for step in run.judged_steps}
  files = [(w, s, trained.get(s) if w == "training" else run.eval_file(w, s)) for w, s in sorted(found)]
  return [place for place in files if place[2] is not None]


def _pick(rows: Sequence[Mapping], count: int) -> list[Mapping]:
  """`count` rows: right and wrong, faithful and not, paid and unpaid in turn; those of a kind from many problems."""
  kinds: dict[tuple, dict] = {}
  for row in rows:
    kind = tuple(str(row.get(name)) for name in ("true_reward", "faithfulness", "reward"))
    kinds.setdefault(kind, {}).setdefault(row["problem"], row)
  alike = {score: sorted((kind for kind in kinds if kind[0] == score), reverse=True) for score, *_ in kinds}
  order = sorted(sorted(kinds, reverse=True), key=lambda kind: alike[kind[0]].index(kind))  # right and wrong alternate
  queues = [list(kinds[kind].values()) for kind in order]
  queues = [queue[:: max(1, len(queue) // max(count, 1))] for queue in queues]
  turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
  return turns[:count]


def _response(run: RecordedRun, where: str, step: int, row: Mapping) -> dict:
  """What the page shows of a recorded response, with nothing in it that moves a cursor or turns the writing."""
  text, prompt = row["text"], row.get("prompt") or row["problem"]
  left_out = max(0, len(text) - HEAD - TAIL)
  made = {name: row.get(name) for name in _FIELDS} | {
    "run": run.name, "setting": run.setting, "arm": run.arm, "where": where, "step": step, "left_out": left_out,
    "faithful": row.get("faithfulness"), "prompt": prompt[:HEAD] + (" …" if len(prompt) > HEAD else ""),
    "head": text[:HEAD] if left_out else text, "rest": text[-TAIL:] if left_out else "",
  }  # fmt: skip
  return {name: visible(value) if isinstance(value, str) else finite(value) for name, value in made.items()}
