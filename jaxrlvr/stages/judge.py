"""The judge stage: faithfulness and diversity of the responses that a run recorded, at chosen steps."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.analysis import reasoning
from jaxrlvr.analysis.saturation import saturation
from jaxrlvr.base import logbook, object_store, signals
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.base.types import Problem
from jaxrlvr.config.files import derive
from jaxrlvr.device import multihost
from jaxrlvr.judging import endpoint, judges, rubric
from jaxrlvr.judging.judges import Judge
from jaxrlvr.judging.rubric import Label, Response
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.curate import lot
from jaxrlvr.stages.run_directory import Run, open_run, read_config

LABELS_FILE = "labels.jsonl"
_FIELDS: dict[str, type | tuple[type, ...]] = {
  "step": int,
  "problem": str,
  "sample": int,
  "prompt": str,
  "text": str,
  "true_reward": (int, float, type(None)),
}  # of a recorded response, and their types
_PRINTED = ("F(1)/all", "diversity", "faithful_diversity")  # at the end


def make_judge(config: ConfigDict, group: ConfigDict, cache: Path) -> Judge:
  """The judge of `config.judge` or `config.judge.second`."""
  try:
    fields = {f.name: group[f.name] for f in dataclasses.fields(endpoint.Endpoint) if f.name in group}
    place = endpoint.Endpoint(**fields) if group.name == "http" else None
    model = local_model(config, group) if group.name == "local" else None
    return judges.JUDGES[group.name](
      judges.Settings(place, object_store.path(config.judge.cache or cache), object_store.local(group.file), model)
    )
  except InputError as error:
    reason = str(error).replace("config.init", "model")  # where a policy judges
    raise InputError(f"config.judge{'' if group is config.judge else '.second'}: {reason}") from error


def local_model(config: ConfigDict, group: ConfigDict) -> judges.LocalModel:
  """The policy of `group.model` as something that completes prompts, greedily."""
  if not group.model:
    raise InputError("model is empty; name the run directory of a policy (`jaxrlvr import` makes one of a model)")
  changes = {"init": group.model, "model.path": "", "tokenizer": "", "rl.prompt_tokens": group.prompt_tokens}
  changes |= {"rl.response_tokens": group.tokens, "rl.stop_strings": (), "plan.mean_tokens": 0}
  own = derive(config, changes, "judge")
  policy = build_policy.load_policy(own)
  sampler = rollout.Sampler(own, policy, "judge", group=1, temperature=0.0, top_k=0, top_p=1.0)
  size, counts = sampler.batch_size(group.concurrency, group.concurrency), Counter()

  def complete(prompts: list[str]) -> Iterator[str | None]:
    asked = [Problem(str(i), ({"role": "user", "content": text},), "", "", "") for i, text in enumerate(prompts)]
    ids = {p.id: policy.tokenizer.render(p.messages) for p in asked}
    fits = [p for p in asked if len(ids[p.id]) <= group.prompt_tokens]
    counts.update(calls=len(fits), too_long=len(asked) - len(fits), prompt_tokens=sum(len(ids[p.id]) for p in fits))
    openings = {p.id: policy.tokenizer.opening(p.messages) for p in fits}
    batches = (
      sampler.sweep(sampler.weights(policy.params), rollout.Loaded(fits, ids, openings, 0), size) if fits else ()
    )
    texts = (
      response.text if stop != STOP_LENGTH else None  # cut off, its last word may be the beginning of another
      for drawn in batches
      for (response,), (stop,) in zip(drawn.answers.response_PG, drawn.stop_PG, strict=False)
    )
    for p in asked:
      yield next(texts) if len(ids[p.id]) <= group.prompt_tokens and not signals.asked() else None

  identity = {"weights": policy.origin["digests"], "tokenizer": logbook.digest(policy.tokenizer.pieces())}
  identity |= {"tokens": group.tokens, "dtype": config.model.dtype, "think": config.model.think}
  return judges.LocalModel(complete, json.dumps(identity, sort_keys=True), counts)


def recorded(folder: Path, name: str) -> dict[int, Path]:
  """Files of recorded responses by step: of the evaluated set `name`, or of training where it is ""."""
  place, form = ("evals", re.escape(name)) if name else ("rollouts", "step")
  found = ((re.fullmatch(rf"{form}_(\d+)\.jsonl", path.name), path) for path in (folder / place).glob("*.jsonl"))
  files = {int(match[1]): path for match, path in found if match}
  if not files:
    raise InputError(f"config.judge.run = {str(folder)!r}: has no {place}/{name or 'step'}_*.jsonl; name another run, "
                     "or an evaluated set of it (config.judge.set)")  # fmt: skip
  return dict(sorted(files.items()))


def choose_steps(files: Mapping[int, Path], wanted: Sequence[int], folder: Path, tail: int) -> list[int]:
  """The steps that are asked for; else the first, the last, and the first at or behind t_sat."""
  if absent := sorted(set(wanted) - set(files)):
    raise InputError(f"config.judge.steps: step {absent[0]} is not recorded; there are {', '.join(map(str, files))}")
  if wanted:
    return sorted(set(wanted))
  rows = logbook.read_jsonl(folder / "metrics.jsonl")
  try:
    rewards = {row["step"]: row.get("reward") for row in rows}
    t_sat = saturation([rewards.get(t) for t in range(1, max(rewards, default=0) + 1)], {}, tail).t_sat
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{folder / 'metrics.jsonl'}: a step or reward is no number ({error}); restore it, or name steps "
      "(config.judge.steps)"
    ) from error
  saturated = [step for step in files if t_sat is not None and step >= t_sat][:1]
  return sorted({min(files), *saturated, max(files)})


def recorded_responses(config: ConfigDict) -> dict[int, list[dict]]:
  """Recorded responses by step: the same problems at each, by lot, and of each problem its first samples."""
  j = config.judge
  if not j.run:
    raise InputError("config.judge.run is empty; name the run directory whose responses are to be judged")
  folder = Path(object_store.local(j.run))
  read_config(folder)
  files = recorded(folder, j.set)
  steps = choose_steps(files, j.steps, folder, config.saturation_tail)
  by_step = {step: _by_problem(files[step]) for step in steps}
  shared = set.intersection(*(set(by_problem) for by_problem in by_step.values()))
  if not shared:
    raise InputError(f"config.judge: no problem is at all of the steps {steps}; judge an evaluated set, whose problems "
                     "are (config.judge.set), or fewer steps (config.judge.steps)")  # fmt: skip
  problems = sorted(shared, key=lambda problem: lot(config.seed, problem))[: j.problems]
  return {
    step: [row for p in problems for row in sorted(by_problem[p], key=lambda row: row["sample"])[: j.samples]]
    for step, by_problem in by_step.items()
  }


def _by_problem(file: Path) -> dict[str, list[dict]]:
  """The recorded responses of a file, by problem; InputError where a field is absent or of another type."""
  by_problem: dict[str, list[dict]] = {}
  for row in logbook.read_jsonl(file):
    odd = [name for name, types in _FIELDS.items() if not isinstance(row.get(name, ...), types)]
    if odd:
      raise InputError(
        f"{file}: can't be read as recorded responses ({odd[0]} is absent or of another kind); restore the file, or "
        "judge other steps (config.judge.steps)"
      )
    by_problem.setdefault(row["problem"], []).append({name: row[name] for name in _FIELDS})
  return by_problem


class _Labelled(NamedTuple):
  """A question to the judge, and its label."""

  task: str
  row: int  # of the response that it is about; of two the first
  responses: tuple[Response, ...]
  label: Label


def judge_step(rows: Sequence[Mapping], first: Judge, second: Judge | None) -> tuple[list[dict], list[dict]]:
  """Returns (judged responses, labels): faithfulness of all, then strategies as the clusters need them.

  The second judge gets the questions that the first one got.
  """
  rows_of: dict[str, list[int]] = {}
  for i, row in enumerate(rows):
    rows_of.setdefault(row["problem"], []).append(i)
  rows_P = list(rows_of.values())
  responses = [Response(row["prompt"], row["text"]) for row in rows]
  faithfulness = first.faithfulness(responses)
  labelled = [_Labelled("faithfulness", i, (responses[i],), label) for i, label in enumerate(faithfulness)]

  def same(triples):
    at = [(rows_P[p][a], rows_P[p][b]) for p, a, b in triples]
    pairs = [(responses[a], responses[b]) for a, b in at]
    labels = first.same_strategy(pairs)
    for (row, _), pair, label in zip(at, pairs, labels, strict=True):
      if pair[0].text != pair[1].text:  # of the same text nobody is asked
        labelled.append(_Labelled("strategy", row, pair, label))
    return labels

  clusters_P = reasoning.cluster_all([len(some) for some in rows_P], same)
  cluster = dict(zip(sum(rows_P, []), sum(clusters_P, []), strict=True))
  judged = [
    {"step": row["step"], "problem": row["problem"], "sample": row["sample"],
     "correct": None if row["true_reward"] is None else row["true_reward"] == 1,
     "faithfulness": label, "cluster": cluster[i], "key": rubric.key("faithfulness", (responses[i],))}
    for i, (row, label) in enumerate(zip(rows, faithfulness, strict=True))
  ]  # fmt: skip
  labels = [
    {"step": rows[one.row]["step"], "task": one.task, "problem": rows[one.row]["problem"],
     "key": rubric.key(one.task, one.responses), "label": one.label}
    for one in labelled
  ]  # fmt: skip
  if second is not None:
    pairs = [(one.responses[0], one.responses[1]) for one in labelled if one.task == "strategy"]
    others = second.faithfulness(responses) + second.same_strategy(pairs)
    labels = [row | {"second": label} for row, label in zip(labels, others, strict=True)]
  return judged, labels


def stop_if_missing(step: int, labels: Sequence[Mapping], limit: float) -> None:
  """TrainingStopped where more than this share of a judge's labels is missing."""
  for name, whose in (("label", ""), ("second", "of the second judge ")):
    values = [row[name] for row in labels if name in row]
    missing = values.count(None)
    if missing > limit * len(values):
      raise TrainingStopped(
        f"step {step}: {missing} of {len(values)} labels {whose}are missing, over config.judge.max_missing = {limit}; "
        "see that it answers (warnings above) with the line it is asked for (exact knows only the embedded "
        "arithmetic). The same command goes on, and asks http only for what is missing"
      )


def kappa(labels: Sequence[Mapping], task: str) -> dict:
  """Agreement of both judges over all steps, with intervals over problems."""
  by_problem: dict[str, list[tuple]] = {}
  for row in labels:
    if row["task"] == task:
      by_problem.setdefault(row["problem"], []).append((row["label"], row["second"]))
  return reasoning.agreement(list(by_problem.values()))._asdict()


def judge(config: ConfigDict, workdir: str | Path) -> dict:
  """Judges responses that the run `config.judge.run` recorded; a step whose file is there is not judged again.

  judged/step_*.jsonl has a row a response, labels.jsonl one a label (what the judge `replay` reads), metrics.jsonl one
  a step with all figures, summary.json these, kappa to the second judge, and what the judging took.
  """
  j = config.judge
  if multihost.count() > 1:
    raise InputError("the stage judge runs as one process; leave out --distributed")
  with open_run(config, workdir, "judge") as run:
    panel = {"first": make_judge(config, j, run.workdir / "cache")}
    if j.second.name:
      panel["second"] = make_judge(config, j.second, run.workdir / "cache")
    responses = recorded_responses(config)
    run.begin(responses=list(responses.items()))
    if run.finished:
      return run.summary
    files = {step: run.workdir / "judged" / f"step_{step:06d}.jsonl" for step in responses}
    progress = run.progress(len(responses))
    for number, (step, rows) in enumerate(responses.items(), 1):
      if not files[step].is_file():
        run.raise_if_asked()
        judged, labels = judge_step(rows, panel["first"], panel.get("second"))
        spend(run, panel)
        run.raise_if_asked()  # what a stopping judge leaves out is not missing
        others = [row for row in logbook.read_jsonl(run.workdir / LABELS_FILE) if row["step"] != step]
        logbook.write_jsonl(run.workdir / LABELS_FILE, others + labels)
        stop_if_missing(step, labels, j.max_missing)
        logbook.write_jsonl(files[step], judged)
      progress(number)
    return run.finish(**write_figures(config, run, files))


def spend(run: Run, panel: Mapping[str, Judge]) -> None:
  """Adds what the judges did since the last call to usage.json, which a resumed run goes on with."""
  spent = usage(run)
  for name, one in panel.items():
    spent[name] = dict(Counter(spent.get(name, {})) + one.counts)
    one.counts.clear()
  logbook.write_json(run.workdir / "usage.json", spent)


def usage(run: Run) -> dict[str, dict[str, int]]:
  return logbook.read_json(run.workdir / "usage.json")


def write_figures(config: ConfigDict, run: Run, files: Mapping[int, Path]) -> dict:
  """Figures of all steps from the files that tell of them, to metrics.jsonl and the summary."""
  figures = {step: reasoning.reasoning_figures(logbook.read_jsonl(file)) for step, file in files.items()}
  logbook.write_jsonl(run.workdir / "metrics.jsonl", ({"step": step} | found for step, found in figures.items()))
  for step, found in figures.items():
    parts = (f"{name} {found[name]:.3f} [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]" for name in _PRINTED)
    print(f"step {step}: " + ", ".join(parts))
  spent = usage(run)
  for name, group in (("first", config.judge), ("second", config.judge.second)):
    if name in spent and group.price_in + group.price_out:
      tokens = [spent[name].get(f"{side}_tokens", 0) for side in ("prompt", "completion")]
      spent[name]["cost"] = (tokens[0] * group.price_in + tokens[1] * group.price_out) / 1e6
  labels = logbook.read_jsonl(run.workdir / LABELS_FILE)
  agreed = {}
  if config.judge.second.name:
    agreed = {task: kappa(labels, task) for task in rubric.TASKS}
  return {"figures": {str(step): found for step, found in figures.items()}, "kappa": agreed, "usage": spent}
