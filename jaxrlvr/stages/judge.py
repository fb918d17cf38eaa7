"""The judge stage: labels the responses that a run recorded, and measures their faithfulness and diversity."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.analysis import reasoning
from jaxrlvr.analysis.saturation import saturation
from jaxrlvr.base import logbook, named, object_store, signals
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.base.types import Problem
from jaxrlvr.config.files import derive, search_beside
from jaxrlvr.device import multihost
from jaxrlvr.judging import endpoint, judges, own, rubric
from jaxrlvr.judging.judges import Judge
from jaxrlvr.judging.rubric import Label, Response
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.curate import random_sort_key
from jaxrlvr.stages.run_directory import Run, open_run, read_config

LABELS_FILE = "labels.jsonl"  # in the run directory: a row for each question to the judges
_USAGE_FILE = "usage.json"  # in the run directory: what each judge has counted so far
# The fields of a recorded response that are read, and their types.
_FIELDS: dict[str, type | tuple[type, ...]] = {
  "step": int,
  "problem": str,
  "sample": int,
  "prompt": str,
  "text": str,
  "true_reward": (int, float, type(None)),
}
_FIELDS_OF_OWN_TASKS = ("answer", "verifier")  # read too where the problem is of a user's own task
_PRINTED = ("F(1)/all", "diversity", "faithful_diversity")  # the figures that are printed at the end


def make_judge(config: ConfigDict, group: ConfigDict, cache: Path) -> Judge:
  """Makes the judge that a group of keys describes.

  group: `config.judge`, or `config.judge.second`, whose `name` is "exact", "http", "local", "replay" or the name of a
  user's own. cache: the folder in which models keep their labels, unless config.judge.cache names one; it is made with
  the first.
  "local" loads a policy; "http" asks nothing yet. Raises InputError, with the group's name, where a key of the group
  does not serve that judge, such as an empty url.
  """
  try:
    http_endpoint, model = None, None
    if group.name == "http":
      names = [field.name for field in dataclasses.fields(endpoint.Endpoint)]
      http_endpoint = endpoint.Endpoint(**{name: group[name] for name in names if name in group})
    if group.name == "local":
      model = local_model(config, group)
    folder = object_store.path(config.judge.cache or cache)
    if named.is_name(group.name):
      return own.judge_of(group.name, folder, group.concurrency)
    settings = judges.Settings(endpoint=http_endpoint, cache=folder, file=object_store.local(group.file), local=model)
    return judges.JUDGES[group.name](settings)
  except InputError as error:
    reason = str(error).replace("config.init", "model")  # the policy that judges is named by `model`
    name = "config.judge" if group is config.judge else "config.judge.second"
    raise InputError(f"{name}: {reason}") from error


def local_model(config: ConfigDict, group: ConfigDict) -> judges.LocalModel:
  """Loads the policy of the run directory `group.model` as a judge, which samples greedily.

  group: `config.judge` or `config.judge.second`. The result's `complete` takes a list of texts, each the user's message
  of a prompt of its own, and yields the text of each completion, of at most group.tokens tokens, in their order. It
  yields None for a prompt longer than group.prompt_tokens, for a completion that is cut off, and for all that follow a
  signal to stop. Raises InputError where group.model is empty or holds no policy.
  """
  if not group.model:
    raise InputError("model is empty; name the run directory of a policy (`jaxrlvr import` makes one of a model)")
  changes = {
    "init": group.model,
    "model.path": "",
    "model.adapter": "",
    "tokenizer": "",
    "rl.prompt_tokens": group.prompt_tokens,
    "rl.response_tokens": group.tokens,
    "rl.stop_strings": (),
    "plan.mean_tokens": 0,
  }
  judge_config = derive(config, changes, "judge")
  policy = build_policy.load_policy(judge_config)
  completions = _Completions(judge_config, policy, group)
  identity = {
    "weights": policy.origin["digests"],
    "tokenizer": logbook.digest(policy.tokenizer.pieces()),
    "tokens": group.tokens,
    "dtype": config.model.dtype,
    "think": config.model.think,
  }
  if config.model.date:
    identity["date"] = config.model.date
  return judges.LocalModel(completions, json.dumps(identity, sort_keys=True), completions.counts)


class _Completions:
  """Completes prompts with a policy, as `local_model` says.

  `counts`: numbers of calls (prompts that fit), too_long (prompts that do not) and prompt_tokens.
  """

  def __init__(self, judge_config: ConfigDict, policy: build_policy.Policy, group: ConfigDict):
    self.counts: Counter[str] = Counter()
    self._policy = policy
    self._sampler = rollout.Sampler(judge_config, policy, "judge", group=1, temperature=0.0, top_k=0, top_p=1.0)
    self._batch_size = self._sampler.batch_size(group.concurrency, group.concurrency)
    self._most_tokens = group.prompt_tokens

  def __call__(self, prompts: list[str]) -> Iterator[str | None]:
    """Yields the completion of each prompt, in their order; None where there is none to trust."""
    tokenizer = self._policy.tokenizer
    problems = [_problem_of(str(number), prompt) for number, prompt in enumerate(prompts)]
    ids = {problem.id: tokenizer.render(problem.messages) for problem in problems}
    fitting = [problem for problem in problems if len(ids[problem.id]) <= self._most_tokens]
    self.counts["calls"] += len(fitting)
    self.counts["too_long"] += len(problems) - len(fitting)
    self.counts["prompt_tokens"] += sum(len(ids[problem.id]) for problem in fitting)
    texts: Iterator[str | None] = iter(())
    if fitting:
      openings = {problem.id: tokenizer.opening(problem.messages) for problem in fitting}
      loaded = rollout.PromptedProblems(fitting, ids, openings, 0)
      weights = self._sampler.weights(self._policy.params)
      texts = _texts_of(self._sampler.sweep(weights, loaded, self._batch_size))
    for problem in problems:
      fits = len(ids[problem.id]) <= self._most_tokens
      yield next(texts) if fits and not signals.stop_requested() else None


def _problem_of(number: str, prompt: str) -> Problem:
  """Returns a prompt in the form that the sampler takes, as one user message."""
  return Problem(number, ({"role": "user", "content": prompt},), "", "", "")


def _texts_of(batches: Iterable[rollout.Drawn]) -> Iterator[str | None]:
  """Yields the text of each response, one to a problem; None where it is cut off at the limit of tokens.

  The last word of a text that is cut off may be the beginning of another, so that its label can't be trusted.
  """
  for drawn in batches:
    for (response,), (stop,) in zip(drawn.answers.response_PG, drawn.stop_PG, strict=False):
      yield None if stop == STOP_LENGTH else response.text


def _recorded_files(folder: Path, name: str) -> dict[int, Path]:
  """Returns {step: file of recorded responses} of the run directory `folder`, steps ascending.

  name: an evaluated set, whose files are in evals/; "" for the responses of training, in rollouts/. Raises InputError
  where there is no such file.
  """
  place, prefix = ("evals", name) if name else ("rollouts", "step")
  files = {}
  for path in (folder / place).glob("*.jsonl"):
    match = re.fullmatch(rf"{re.escape(prefix)}_(\d+)\.jsonl", path.name)
    if match:
      files[int(match[1])] = path
  if not files:
    raise InputError(
      f"config.judge.run = {str(folder)!r}: has no {place}/{prefix}_*.jsonl; name another run, or an evaluated set of "
      "it (config.judge.set)"
    )
  return dict(sorted(files.items()))


def _choose_steps(files: Mapping[int, Path], steps: Sequence[int], folder: Path, tail: int) -> list[int]:
  """Chooses the steps that are judged, ascending.

  files: the recorded responses by step. steps: those that the user asks for; if there are none, the first recorded
  step, the last, and the first at or behind t_sat (none where the run in `folder` did not saturate). tail: number of
  last steps in which saturation is not looked for. Raises InputError where a step is not recorded, or metrics.jsonl
  can't be read.
  """
  absent = sorted(set(steps) - set(files))
  if absent:
    raise InputError(f"config.judge.steps: step {absent[0]} is not recorded; there are {', '.join(map(str, files))}")
  if steps:
    return sorted(set(steps))
  rows = logbook.read_jsonl(folder / "metrics.jsonl")
  try:
    rewards = {row["step"]: row.get("reward") for row in rows}
    reward_T = [rewards.get(step) for step in range(1, max(rewards, default=0) + 1)]
    t_sat = saturation(reward_T, {}, tail).t_sat
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{folder / 'metrics.jsonl'}: a step or reward is no number ({error}); restore it, or name steps "
      "(config.judge.steps)"
    ) from error
  chosen = {min(files), max(files)}
  saturated = [step for step in files if t_sat is not None and step >= t_sat]
  chosen.update(saturated[:1])
  return sorted(chosen)


def _responses_to_judge(config: ConfigDict) -> dict[int, list[dict]]:
  """Returns {step: rows of the responses to judge} of the run config.judge.run.

  A row has step, problem (id), sample, prompt, text, true_reward (None: unscored), and answer and verifier where the
  problem is of a user's own task. Each step has the same problems,
  config.judge.problems random ones of those that all steps have, and of each problem its first config.judge.samples
  responses; fewer where fewer are recorded. Raises InputError where the run is not named, holds no responses, or its
  steps have no problem in common.
  """
  settings = config.judge
  if not settings.run:
    raise InputError("config.judge.run is empty; name the run directory whose responses are to be judged")
  folder = Path(object_store.local(settings.run))
  read_config(folder)
  search_beside(folder / "config.json")
  files = _recorded_files(folder, settings.set)
  steps = _choose_steps(files, settings.steps, folder, config.saturation_tail)
  responses = {step: _responses_by_problem(files[step]) for step in steps}
  common_problems = set.intersection(*map(set, responses.values()))
  if not common_problems:
    raise InputError(
      f"config.judge: no problem is at all of the steps {steps}; judge an evaluated set, whose problems are "
      "(config.judge.set), or fewer steps (config.judge.steps)"
    )
  problems = sorted(common_problems, key=lambda problem: random_sort_key(config.seed, problem))[: settings.problems]
  rows: dict[int, list[dict]] = {step: [] for step in steps}
  for step in steps:
    for problem in problems:
      responses_in_order = sorted(responses[step][problem], key=lambda row: row["sample"])
      rows[step] += responses_in_order[: settings.samples]
  return rows


def _code_of_tasks(settings: ConfigDict, responses: Mapping[int, Sequence[Mapping]]) -> dict:
  """Returns {"tasks": texts of the code} of the users' tasks whose responses the judge exact labels; {} without any.

  Labels by other code must not be mixed with them. Raises InputError where the code of a task is not found.
  """
  if "exact" not in (settings.name, settings.second.name):
    return {}
  verifiers = {row.get("verifier", "") for rows in responses.values() for row in rows}
  own_verifiers = sorted(filter(named.is_name, verifiers))
  return {"tasks": [named.sources(name) for name in own_verifiers]} if own_verifiers else {}


def _responses_by_problem(file: Path) -> dict[str, list[dict]]:
  """Returns {problem: its recorded responses} of a file. InputError where a field is absent or of another type."""
  by_problem: dict[str, list[dict]] = {}
  for row in logbook.read_jsonl(file):
    wrong_fields = [name for name, types in _FIELDS.items() if not isinstance(row.get(name, ...), types)]
    if wrong_fields:
      raise InputError(
        f"{file}: can't be read as recorded responses ({wrong_fields[0]} is absent or of another kind); restore the "
        "file, or judge other steps (config.judge.steps)"
      )
    fields = [*_FIELDS, *(_FIELDS_OF_OWN_TASKS if "verifier" in row else ())]
    by_problem.setdefault(row["problem"], []).append({name: row[name] for name in fields})
  return by_problem


class _Labelled(NamedTuple):
  """A question to the judge, with its label."""

  task: str  # a key of `rubric.TASKS`
  row: int  # position of the response that it is about, or of the first of two
  responses: tuple[Response, ...]
  label: Label


class JudgedStep(NamedTuple):
  """What judging one step's responses gives: rows that JSON can hold.

  A row of `responses` has step, problem (id), sample, correct (None: unscored), faithfulness (1.0: the trace leads to
  the answer; 0.5: in part; 0.0: not; None: missing), cluster (the number from 0 of its strategy among the problem's;
  None: unknown) and key (digest of the question). A row of `labels` has step, task ("faithfulness" or "strategy"),
  problem, key, label (faithfulness as above; strategy: whether both are the same; None: missing) and, only where there
  is a second judge that knows the question, `second`, its label.
  """

  responses: list[dict]  # a row for each response, in their order
  labels: list[dict]  # a row for each question to the judge


def judge_step(rows: Sequence[Mapping], first: Judge, second: Judge | None) -> JudgedStep:
  """Judges one step's responses: the faithfulness of each, then as many pairs of strategies as clustering needs.

  rows: recorded responses with step, problem (id), sample, prompt, text and true_reward (1: right; None: unscored; all
  responses are judged); answer and verifier, which rows of older runs lack, tell the judge `exact` which task it is.
  Responses to one problem are compared with each other, whatever their order. first: the judge whose labels count. It
  is asked only about responses that it knows how to judge. second: a judge that is asked the same questions, for their
  agreement; None if there is none. A label is None where a judge is not asked or leaves it out; nothing is raised and
  nothing written. The result has `responses`, a row for each response, and `labels`, a row for each question; their
  keys are those that `JudgedStep` names.
  """
  responses = [Response(row["prompt"], row["text"], row.get("answer"), row.get("verifier", "")) for row in rows]
  known = [number for number, response in enumerate(responses) if first.knows("faithfulness", response)]
  faithfulness: list[Label] = [None] * len(rows)
  questions = []
  for number, label in zip(known, first.faithfulness([responses[number] for number in known]), strict=True):
    faithfulness[number] = label
    questions.append(_Labelled("faithfulness", number, (responses[number],), label))
  cluster_numbers, strategy_questions = _cluster_strategies(rows, responses, first)
  questions += strategy_questions
  judged = []
  for row, response, label, cluster_number in zip(rows, responses, faithfulness, cluster_numbers, strict=True):
    judged.append(
      {
        "step": row["step"],
        "problem": row["problem"],
        "sample": row["sample"],
        "correct": None if row["true_reward"] is None else row["true_reward"] == 1,
        "faithfulness": label,
        "cluster": cluster_number,
        "key": rubric.key("faithfulness", (response,)),
      }
    )
  labels = [_row_of_label(question, rows[question.row]) for question in questions]
  if second is not None:
    labels = _with_second_labels(labels, questions, second)
  return JudgedStep(judged, labels)


def _with_second_labels(rows: list[dict], questions: Sequence[_Labelled], judge: Judge) -> list[dict]:
  """Returns rows of LABELS_FILE with the labels of a second judge as `second`, where it knows the questions."""
  known = [number for number, question in enumerate(questions) if judge.knows(question.task, question.responses[0])]
  about_one = [number for number in known if questions[number].task == "faithfulness"]
  about_two = [number for number in known if questions[number].task == "strategy"]
  labels = judge.faithfulness([questions[number].responses[0] for number in about_one])
  labels += judge.same_strategy([questions[number].responses for number in about_two])
  result = list(rows)
  for number, label in zip(about_one + about_two, labels, strict=True):
    result[number] = rows[number] | {"second": label}
  return result


def _row_of_label(question: _Labelled, row: Mapping) -> dict:
  """Returns a question's row of LABELS_FILE; `row`: the recorded response that it is about."""
  return {
    "step": row["step"],
    "task": question.task,
    "problem": row["problem"],
    "key": rubric.key(question.task, question.responses),
    "label": question.label,
  }


def _cluster_strategies(
  rows: Sequence[Mapping], responses: Sequence[Response], judge: Judge
) -> tuple[list[int | None], list[_Labelled]]:
  """Clusters the responses to each problem by strategy.

  Returns the number of each response's cluster, counted in its problem (None: a label is missing, or the judge compares
  no responses to this problem), and the questions that the judge was asked.
  """
  positions_by_problem: dict[str, list[int]] = {}
  for position, row in enumerate(rows):
    if judge.knows("strategy", responses[position]):
      positions_by_problem.setdefault(row["problem"], []).append(position)
  positions_P = list(positions_by_problem.values())
  questions: list[_Labelled] = []

  def same_strategy(triples):  # of (problem, representative, response), three numbers
    """Answers the questions of `reasoning.cluster_all`, and keeps those that the judge was asked."""
    first_positions, pairs = [], []
    for problem, representative, response in triples:
      positions = positions_P[problem]
      first_positions.append(positions[representative])
      pairs.append((responses[positions[representative]], responses[positions[response]]))
    labels = judge.same_strategy(pairs)
    for position, pair, label in zip(first_positions, pairs, labels, strict=True):
      if pair[0].text != pair[1].text:  # a judge is not asked about two equal texts
        questions.append(_Labelled("strategy", position, pair, label))
    return labels

  sizes = [len(positions) for positions in positions_P]
  clusters_P = reasoning.cluster_all(sizes, same_strategy)
  cluster_numbers: list[int | None] = [None] * len(rows)
  for positions, clusters in zip(positions_P, clusters_P, strict=True):
    for position, cluster_number in zip(positions, clusters, strict=True):
      cluster_numbers[position] = cluster_number
  return cluster_numbers, questions


def _stop_if_missing(step: int, labels: Sequence[Mapping], limit: float) -> None:
  """Raises TrainingStopped where more than the share `limit` of the labels of either judge is missing at this step.

  labels: a row for each question, with `label` and, where there is a second judge, `second`; None: missing.
  """
  for column, owner in (("label", ""), ("second", "of the second judge ")):
    labels_of_judge = [row[column] for row in labels if column in row]
    missing, count = labels_of_judge.count(None), len(labels_of_judge)
    if missing > limit * count:
      raise TrainingStopped(
        f"step {step}: {missing} of {count} labels {owner}are missing, over config.judge.max_missing = {limit}; "
        "see that it answers (warnings above) with the line it is asked for (exact knows only the built-in "
        "arithmetic, and tasks in one file that have faithfulness()). The same command goes on, and asks http only "
        "for what is missing"
      )


def _agreement_on(labels: Sequence[Mapping], task: str) -> dict:
  """Compares both judges on a task, over the labels of all steps.

  labels: a row for each question, with task, problem, label and second (None: missing). task: "faithfulness" or
  "strategy". Returns the fields of `reasoning.Agreement` by name: kappa (Cohen's; None: undefined), low and high (ends
  of its 95 % interval), agreed (share of equal labels), both (number of questions that both labelled), missing (number
  that at least one did not) and note (why kappa is None; "": it is not).
  """
  by_problem: dict[str, list[tuple]] = {}
  for row in labels:
    if row["task"] == task and "second" in row:
      by_problem.setdefault(row["problem"], []).append((row["label"], row["second"]))
  return reasoning.agreement(list(by_problem.values()))._asdict()


def judge(config: ConfigDict, workdir: str | Path) -> dict:
  """Judges responses that the run config.judge.run recorded, and measures their faithfulness and diversity.

  The judge is the one that config.judge.name names; its settings are the other keys of config.judge. If
  config.judge.second.name is set, a second judge, with the settings in config.judge.second, is asked the same
  questions, for the agreement of both.

  Writes judged/step_NNNNNN.jsonl and labels.jsonl (rows as `JudgedStep` says; the judge `replay` reads labels.jsonl),
  usage.json (what each judge counted) and metrics.jsonl (a row for each step, with the figures of
  `reasoning.reasoning_figures`, null: undefined), and prints the main figures of each step.

  Returns the summary: `figures` ({step as text: {figure: value, nan: undefined}}), `kappa` ({"faithfulness": agreement,
  "strategy": agreement} of two judges, each with kappa, low, high, agreed, both, missing and note; {} without a second)
  and `usage` ({"first": counts, "second": counts}: numbers of calls, retries, cached labels, missing labels, too_long
  prompts, prompt_tokens and completion_tokens, as far as the judge counts them, and `cost` where prices are given). A
  finished run returns its summary; one that was stopped judges the steps that have no file in judged/. Raises
  InputError for wrong keys, responses that can't be read, or several processes, TrainingStopped where more than
  judge.max_missing of a step's labels are missing, and Interrupted after a signal.
  """
  settings = config.judge
  if multihost.process_count() > 1:
    raise InputError("the stage judge runs as one process; leave out --distributed")
  with open_run(config, workdir, "judge") as run:
    panel = {"first": make_judge(config, settings, run.workdir / "cache")}
    if settings.second.name:
      panel["second"] = make_judge(config, settings.second, run.workdir / "cache")
    responses = _responses_to_judge(config)
    run.begin(responses=list(responses.items()), **_code_of_tasks(settings, responses))
    if run.finished:
      return run.summary
    files = {step: run.workdir / "judged" / f"step_{step:06d}.jsonl" for step in responses}
    progress = run.progress(len(responses))
    for number, (step, rows) in enumerate(responses.items(), 1):
      if not files[step].is_file():
        run.raise_if_asked()
        judged = judge_step(rows, panel["first"], panel.get("second"))
        _add_counts(run, panel)
        run.raise_if_asked()  # labels that a signal kept from being asked for are not missing
        labels_file = run.workdir / LABELS_FILE
        other_steps = [row for row in logbook.read_jsonl(labels_file) if row["step"] != step]
        logbook.write_jsonl(labels_file, other_steps + judged.labels)
        _stop_if_missing(step, judged.labels, settings.max_missing)
        logbook.write_jsonl(files[step], judged.responses)
      progress(number)
    return run.finish(**_write_figures(config, run, files))


def _add_counts(run: Run, panel: Mapping[str, Judge]) -> None:
  """Adds what the judges counted since the last call to usage.json, so that the counts of a resumed run go on.

  panel: {"first": judge, "second": judge, if there is one}. Sets the judges' own counts back to 0.
  """
  totals = _read_usage(run)
  for name, member in panel.items():
    totals[name] = dict(Counter(totals.get(name, {})) + member.counts)
    member.counts.clear()
  logbook.write_json(run.workdir / _USAGE_FILE, totals)


def _read_usage(run: Run) -> dict[str, dict[str, int]]:
  """Returns what each judge has counted so far: {"first" or "second": counts}; {} before the first count.

  A judge leaves out what it does not count. Keys: calls (of an endpoint, with retries, or of a local model), retries,
  prompt_tokens and completion_tokens, cached (questions whose label was known before), missing (questions that were
  asked, or too long, and got no label) and too_long (prompts that a local model can't hold).
  """
  return logbook.read_json(run.workdir / _USAGE_FILE)


def _write_figures(config: ConfigDict, run: Run, files: Mapping[int, Path]) -> dict:
  """Computes the figures of all steps, writes them to metrics.jsonl, and prints the most important ones.

  files: the judged responses by step. Returns the summary's entries `figures`, `kappa` and `usage`, as `judge` says.
  """
  figures = {step: reasoning.reasoning_figures(logbook.read_jsonl(file)) for step, file in files.items()}
  metrics = [{"step": step} | figures_of_step for step, figures_of_step in figures.items()]
  logbook.write_jsonl(run.workdir / "metrics.jsonl", metrics)
  for step, figures_of_step in figures.items():
    print(f"step {step}: " + ", ".join(figure_in_words(figures_of_step, name) for name in _PRINTED))
  costs = _read_usage(run)
  for name, group in (("first", config.judge), ("second", config.judge.second)):
    if name in costs and group.price_in + group.price_out:
      price = costs[name].get("prompt_tokens", 0) * group.price_in
      price += costs[name].get("completion_tokens", 0) * group.price_out
      costs[name]["cost"] = price / 1e6
  labels = logbook.read_jsonl(run.workdir / LABELS_FILE)  # read in any case: a damaged file is an error
  agreements = {}
  if config.judge.second.name:
    agreements = {task: _agreement_on(labels, task) for task in rubric.TASKS}
  return {"figures": {str(step): values for step, values in figures.items()}, "kappa": agreements, "usage": costs}


def figure_in_words(figures: Mapping[str, float], name: str) -> str:
  """Returns a figure as "NAME VALUE [LOW, HIGH]", or says in words why it is nan.

  figures: those of `reasoning.reasoning_figures`. name: of a figure that has an interval, NAME_low and NAME_high.
  """
  if math.isnan(figures[name]):
    none_is_faithful = name == "faithful_diversity" and figures["F(1)/all"] == 0
    return f"{name}: no response is faithful" if none_is_faithful else f"{name}: not measured"
  return f"{name} {figures[name]:.3f} [{figures[f'{name}_low']:.3f}, {figures[f'{name}_high']:.3f}]"
