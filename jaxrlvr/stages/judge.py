"""The judge stage: faithfulness and diversity of the responses that a run recorded, at chosen steps."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.analysis import reasoning
from jaxrlvr.analysis.saturation import saturation
from jaxrlvr.base import logbook, object_store, signals
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.base.types import Problem
from jaxrlvr.config.files import derive
from jaxrlvr.device import multihost
from jaxrlvr.judging import endpoint, judges
from jaxrlvr.judging.judges import Judge, Response
from jaxrlvr.sampling.decode import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.curate import lot
from jaxrlvr.stages.run_directory import Run, open_run, read_config

_READ = {"step": int, "problem": str, "sample": int, "prompt": str, "text": str,
         "true_reward": (int, float, type(None))}  # of a recorded response  # fmt: skip
_TOLD = ("F(1)/all", "diversity", "faithful_diversity")  # printed at the end


def make(config: ConfigDict, group: ConfigDict, cache: Path) -> Judge:
  """The judge of `config.judge` or `config.judge.second`."""
  try:
    fields = {f.name: group[f.name] for f in dataclasses.fields(endpoint.Endpoint) if f.name in group}
    place = endpoint.Endpoint(**fields) if group.name == "http" else None
    policy = local(config, group) if group.name == "local" else None
    return judges.JUDGES[group.name](
      judges.Settings(place, object_store.path(config.judge.cache or cache), object_store.local(group.file), policy)
    )
  except InputError as error:
    told = str(error).replace("config.init", "model")  # where a policy judges
    raise InputError(f"config.judge{'' if group is config.judge else '.second'}: {told}") from error


def local(config: ConfigDict, group: ConfigDict) -> tuple[endpoint.Complete, str, Counter]:
  """(what completes prompts by the policy of `group.model`, greedily; what it depends on; counts of what it did)."""
  if not group.model:
    raise InputError("model is empty; name the run directory of a policy (`jaxrlvr import` makes one of a model)")
  how = {"init": group.model, "model.path": "", "tokenizer": "", "rl.prompt_tokens": group.prompt_tokens}
  how |= {"rl.response_tokens": group.tokens, "rl.stop_strings": (), "plan.mean_tokens": 0}
  policy = build_policy.load_policy(own := derive(config, how, "judge"))
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
      response.text if stop != STOP_LENGTH else None  # cut off, a verdict may be the beginning of another
      for drawn in batches
      for (response,), (stop,) in zip(drawn.answers.response_PG, drawn.stop_PG, strict=False)
    )
    for p in asked:
      yield next(texts) if len(ids[p.id]) <= group.prompt_tokens and not signals.asked() else None

  made = {"weights": policy.origin["digests"], "tokenizer": logbook.digest(policy.tokenizer.pieces())}
  made |= {"tokens": group.tokens, "dtype": config.model.dtype, "think": config.model.think}
  return complete, json.dumps(made, sort_keys=True), counts


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


def choose(config: ConfigDict) -> dict[int, list[dict]]:
  """Recorded responses by step: the same problems at each, by lot, and of each problem its first samples."""
  j = config.judge
  if not j.run:
    raise InputError("config.judge.run is empty; name the run directory whose responses are to be judged")
  folder = Path(object_store.local(j.run))
  read_config(folder)
  files = recorded(folder, j.set)
  steps = choose_steps(files, j.steps, folder, config.saturation_tail)
  by_step: dict[int, dict[str, list[dict]]] = {step: {} for step in steps}
  for step, by_problem in by_step.items():
    for row in logbook.read_jsonl(files[step]):
      if odd := [name for name, kind in _READ.items() if not isinstance(row.get(name, ...), kind)]:
        told = f"can't be read as recorded responses ({odd[0]} is absent or of another kind)"
        raise InputError(f"{files[step]}: {told}; restore the file, or judge other steps (config.judge.steps)")
      by_problem.setdefault(row["problem"], []).append({name: row[name] for name in _READ})
  shared = set.intersection(*(set(by_problem) for by_problem in by_step.values()))
  if not shared:
    raise InputError(f"config.judge: no problem is at all of the steps {steps}; judge an evaluated set, whose problems "
                     "are (config.judge.set), or fewer steps (config.judge.steps)")  # fmt: skip
  problems = sorted(shared, key=lambda problem: lot(config.seed, problem))[: j.problems]
  return {
    step: [row for p in problems for row in sorted(by_problem[p], key=lambda row: row["sample"])[: j.samples]]
    for step, by_problem in by_step.items()
  }


def judge_step(rows: Sequence[Mapping], first: Judge, second: Judge | None) -> tuple[list[dict], list[dict]]:
  """(judged responses, verdicts): the labels of all, then strategies as the clusters need them.

  The second judge gets the questions that the first one got.
  """
  at_P: dict[str, list[int]] = {}
  for i, row in enumerate(rows):
    at_P.setdefault(row["problem"], []).append(i)
  responses, groups = [Response(row["prompt"], row["text"]) for row in rows], list(at_P.values())
  labels = first.faithfulness(responses)
  asked = [("faithfulness", i, (r,), said) for i, (r, said) in enumerate(zip(responses, labels, strict=True))]

  def same(triples):
    at = [(groups[p][a], groups[p][b]) for p, a, b in triples]
    said = first.same_strategy([(responses[a], responses[b]) for a, b in at])
    both = (("strategy", a, (responses[a], responses[b]), x) for (a, b), x in zip(at, said, strict=True))
    asked.extend(one for one in both if one[2][0].text != one[2][1].text)  # of the same text nobody is asked
    return said

  clusters_P = reasoning.cluster_all([len(group) for group in groups], same)
  cluster = dict(zip(sum(groups, []), sum(clusters_P, []), strict=True))
  judged = [
    {"step": row["step"], "problem": row["problem"], "sample": row["sample"],
     "correct": None if row["true_reward"] is None else row["true_reward"] == 1,
     "faithfulness": label, "cluster": cluster[i], "key": judges.key("faithfulness", (responses[i],))}
    for i, (row, label) in enumerate(zip(rows, labels, strict=True))
  ]  # fmt: skip
  verdicts = [
    {"step": rows[i]["step"], "task": task, "problem": rows[i]["problem"], "key": judges.key(task, question),
     "verdict": said}
    for task, i, question, said in asked
  ]  # fmt: skip
  if second is not None:
    pairs = [question for task, _, question, _ in asked if task == "strategy"]
    others = second.faithfulness(responses) + second.same_strategy(pairs)
    verdicts = [row | {"second": said} for row, said in zip(verdicts, others, strict=True)]
  return judged, verdicts


def stop_if_missing(step: int, verdicts: Sequence[Mapping], limit: float) -> None:
  for name in ("verdict", "second"):
    said = [row[name] for row in verdicts if name in row]
    missing = said.count(None)
    if missing > limit * len(said):
      raise TrainingStopped(
        f"step {step}: {missing} of {len(said)} verdicts {'of the second judge ' * (name == 'second')}are missing, "
        f"over config.judge.max_missing = {limit}; see that it answers (warnings above) with the line it is asked for "
        "(exact knows only the embedded arithmetic). The same command goes on, and asks http only for what is missing"
      )


def kappa(verdicts: Sequence[Mapping], task: str) -> dict:
  """Agreement of both judges over all steps, with intervals over problems."""
  by_problem: dict[str, list[tuple]] = {}
  for row in verdicts:
    if row["task"] == task:
      by_problem.setdefault(row["problem"], []).append((row["verdict"], row["second"]))
  return reasoning.agreement(list(by_problem.values()))._asdict()


def judge(config: ConfigDict, workdir: str | Path) -> dict:
  """Judges responses that the run `config.judge.run` recorded; a step whose file is there is not judged again.

  judged/step_*.jsonl has a row a response, verdicts.jsonl one a verdict (what the judge `replay` reads), metrics.jsonl
  one a step with all figures, summary.json these, kappa to the second judge, and what the judging took.
  """
  j = config.judge
  if multihost.count() > 1:
    raise InputError("the stage judge runs as one process; leave out --distributed")
  with open_run(config, workdir, "judge") as run:
    panel = {"first": make(config, j, run.workdir / "cache")}
    if j.second.name:
      panel["second"] = make(config, j.second, run.workdir / "cache")
    chosen = choose(config)
    run.begin(responses=list(chosen.items()))
    if run.finished:
      return run.summary
    files = {step: run.workdir / "judged" / f"step_{step:06d}.jsonl" for step in chosen}
    progress = run.progress(len(chosen))
    for number, (step, rows) in enumerate(chosen.items(), 1):
      if not files[step].is_file():
        run.raise_if_asked()
        judged, verdicts = judge_step(rows, panel["first"], panel.get("second"))
        spend(run, panel)
        run.raise_if_asked()  # what a stopping judge leaves out is not missing
        others = [row for row in logbook.read_jsonl(run.workdir / "verdicts.jsonl") if row["step"] != step]
        logbook.write_jsonl(run.workdir / "verdicts.jsonl", others + verdicts)
        stop_if_missing(step, verdicts, j.max_missing)
        logbook.write_jsonl(files[step], judged)
      progress(number)
    return run.finish(**conclude(config, run, files))


def spend(run: Run, panel: Mapping[str, Judge]) -> None:
  """Adds what the judges did since the last call to usage.json, which a resumed run goes on with."""
  spent = usage(run)
  for name, one in panel.items():
    spent[name] = dict(Counter(spent.get(name, {})) + one.counts)
    one.counts.clear()
  logbook.write_json(run.workdir / "usage.json", spent)


def usage(run: Run) -> dict[str, dict[str, int]]:
  return logbook.read_json(run.workdir / "usage.json")


def conclude(config: ConfigDict, run: Run, files: Mapping[int, Path]) -> dict:
  """Figures of all steps from the files that tell of them, to metrics.jsonl and the summary."""
  figures = {step: reasoning.summarise(logbook.read_jsonl(file)) for step, file in files.items()}
  logbook.write_jsonl(run.workdir / "metrics.jsonl", ({"step": step} | found for step, found in figures.items()))
  for step, found in figures.items():
    told = (f"{name} {found[name]:.3f} [{found[f'{name}_low']:.3f}, {found[f'{name}_high']:.3f}]" for name in _TOLD)
    print(f"step {step}: " + ", ".join(told))
  spent = usage(run)
  for name, group in (("first", config.judge), ("second", config.judge.second)):
    if name in spent and group.price_in + group.price_out:
      tokens = [spent[name].get(f"{side}_tokens", 0) for side in ("prompt", "completion")]
      spent[name]["cost"] = (tokens[0] * group.price_in + tokens[1] * group.price_out) / 1e6
  verdicts = logbook.read_jsonl(run.workdir / "verdicts.jsonl")
  agreed = {task: kappa(verdicts, task) for task in judges.TASKS} if config.judge.second.name else {}
  return {"figures": {str(step): found for step, found in figures.items()}, "kappa": agreed, "usage": spent}
