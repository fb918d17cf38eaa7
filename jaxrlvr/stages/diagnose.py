"""The stage diagnose: measures a policy by its own samples and predicts what RL does to it under weak supervision."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.analysis import pre_rl, prediction, reasoning
from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.base.types import Problem
from jaxrlvr.device import multihost
from jaxrlvr.judging.judges import Judge
from jaxrlvr.model import weight_table
from jaxrlvr.stages import build_policy, diagnosis_page
from jaxrlvr.stages.curate import random_sort_key
from jaxrlvr.stages.evaluate import graded_rows, names_held_out
from jaxrlvr.stages.judge import LABELS_FILE, judge_step, make_judge
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.survey import open_survey


def diagnose(config: ConfigDict, workdir: str | Path) -> dict:
  """Samples problems as RL would, judges some of the responses, and predicts the effect of RL.

  Takes the first diagnose.problems of `config.problems`, diagnose.samples responses to each, and judges the first
  judge.samples responses to judge.problems of them. Writes diagnosis.md, which is the page to read, diagnosis.json with
  its numbers, rows/ with all responses, and labels.jsonl with the labels of the judge, and prints the page's tables.

  Returns the summary, whose keys diagnosis.json has too, except `dropped`:
    domain: "math", "science", "graph", "arithmetic" or "other"
    reference: faithful diversity of the diagnosis that diagnose.reference names; None: none is named
    figures: {name: value}, such as usable, avg@K, F(1)/correct and faithful_diversity (see `pre_rl.measure` and
      `reasoning.reasoning_figures`), with intervals as NAME_low and NAME_high; nan (null in the file): not measured
    histogram: list, how many problems are solved 0, 1, 2, ... times
    predictions: for each of the settings scarce, noisy, vote and certainty a dict of setting, regime ("generalises",
      "memorises", "collapses" or "can't say"), sure ("low", "medium", "high"; "": nothing is predicted), rule (its
      number in `prediction.REGIME_RULES`) and advice (keys of `prediction.ADVICE`)
    near, billions: whether the policy's size and its problems resemble the paper's; billions of weights
    judging: judge (its name), numbers of problems, responses, labels and missing labels, measured (False: more labels
      are missing than judge.max_missing allows), usage ({what the judge counts: number})
    dropped: number of problems that were left out, as their prompts are too long
  A finished run returns its summary; one that was stopped does not sample again what rows/ holds.

  Raises TrainingStopped, after the page is written, where the judge `http` left too many labels out; the same command
  then asks for these only. Raises InputError for a judge that can't run in several processes, and for a policy,
  problems or a reference that can't be read.
  """
  if multihost.process_count() > 1 and config.judge.name not in ("exact", "replay"):
    raise InputError(
      f"config.judge.name = {config.judge.name!r} judges in one process; leave out --distributed, or take exact"
    )
  with open_run(config, workdir, "diagnose") as run:
    policy = build_policy.load_policy(config)
    judge = make_judge(config, config.judge, run.workdir / "cache")
    reference = faithful_diversity_of(config.diagnose.reference)
    with open_survey(run, policy, limit=config.diagnose.problems) as survey:
      survey.begin()
      if run.finished:
        return run.summary
      for drawn, grade in survey.batches(survey.problems):
        survey.record(_responses(drawn.answers.problems, graded_rows(drawn, 0, grade)))
    responses = {row["id"]: row["responses"] for row in survey.rows}
    figures, histogram = _figures(config, responses)
    figures_of_reasoning, judging = _judge(_select_for_judging(config, responses), run, judge, config)
    figures |= figures_of_reasoning
    billions = weight_table.count_weights(policy.spec) / 1e9
    verifiers = {problem.verifier for problem in survey.problems}
    like_references = prediction.resembles_references(billions, verifiers)
    domain = prediction.domain_of(config.diagnose.domain, config.problems.source, verifiers)
    predictions = prediction.predict(figures, like_references, judging["problems"], domain, reference)
    diagnosis = {
      "domain": domain,
      "reference": reference,
      "figures": figures,
      "histogram": histogram,
      "predictions": [predicted._asdict() for predicted in predictions],
      "near": like_references,
      "billions": billions,
      "judging": judging,
    }
    _write(run, diagnosis, predictions, names_held_out(config, survey.problems))
    if config.judge.name == "http" and not judging["measured"]:  # the endpoint may answer another time
      raise TrainingStopped(
        f"{judging['missing']} of {judging['labels']} labels are missing, over config.judge.max_missing = "
        f"{config.judge.max_missing}; see that it answers (warnings above). The same command asks only for what is "
        "missing"
      )
    return run.finish(dropped=survey.dropped, **diagnosis)


def _responses(problems: Sequence[Problem], records: Sequence[Mapping]) -> list[dict]:
  """Returns a row {"id", "responses"} for each problem from the records of all responses, equally many a problem."""
  samples = len(records) // len(problems)
  rows = []
  for i, problem in enumerate(problems):
    rows.append({"id": problem.id, "responses": records[i * samples : (i + 1) * samples]})
  return rows


def _figures(config: ConfigDict, responses: Mapping[str, Sequence[Mapping]]) -> tuple[dict[str, float], list[int]]:
  """Returns (figures of `pre_rl.measure`, number of problems that are solved 0, 1, 2, ... times).

  responses: the records of each problem's responses by its id.
  """
  samples = config.diagnose.samples
  ks = sorted({samples, *(k for k in config.evaluate.pass_k if k < samples)})
  records = []
  for records_of_problem in responses.values():
    records += records_of_problem
  return pre_rl.measure(records, samples, ks)


def _select_for_judging(config: ConfigDict, responses: Mapping[str, Sequence[Mapping]]) -> list[Mapping]:
  """Returns the records to judge: the first judge.samples responses to each of judge.problems random problems."""
  problems = sorted(responses, key=lambda problem: random_sort_key(config.seed, problem))[: config.judge.problems]
  records: list[Mapping] = []
  for problem in problems:
    records += responses[problem][: config.judge.samples]
  return records


def _write(run: Run, diagnosis: Mapping, predictions: Sequence[prediction.Prediction], held_out_is_named: bool) -> None:
  """Writes diagnosis.json and diagnosis.md, and prints the page's sections of measurements and predictions.

  held_out_is_named: whether the config says which problems are held out.
  """
  logbook.write_json(run.workdir / "diagnosis.json", diagnosis)
  config_file = str(run.home / "config.json")
  page = diagnosis_page.sections(run.config, diagnosis, predictions, config_file, held_out_is_named)
  text = "\n".join(f"{title}\n\n{body.rstrip()}\n" for title, body in page.items())
  logbook.write_atomic(run.workdir / "diagnosis.md", text)
  print(
    page[diagnosis_page.MEASURED] + "\n" + page[diagnosis_page.PREDICTED] + f"\nthe page: {run.home / 'diagnosis.md'}"
  )


def faithful_diversity_of(folder: str) -> float | None:
  """Returns the faithful diversity, from 0 to 1, that an earlier diagnosis measured; None for the folder "".

  folder: the run directory of the diagnosis, whose diagnosis.json is read. Raises InputError where it holds no
  diagnosis, or one that measured no faithful diversity.
  """
  if not folder:
    return None
  path = Path(object_store.local(folder)) / "diagnosis.json"
  try:
    faithful_diversity = json.loads(path.read_text())["figures"]["faithful_diversity"]
    if isinstance(faithful_diversity, (int, float)):
      return float(faithful_diversity)
    reason = "faithful_diversity was not measured there"
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    reason = f"it can't be read ({type(error).__name__}: {error})"
  raise InputError(
    f"config.diagnose.reference = {folder!r}: {path}: {reason}; name the run directory of a diagnosis whose judge "
    "measured faithfulness"
  )


def _judge(rows: Sequence[Mapping], run: Run, judge: Judge, config: ConfigDict) -> tuple[dict[str, float], dict]:
  """Judges responses, writes labels.jsonl, and returns (figures of reasoning, a record of the judging).

  rows: recorded responses with step, problem, sample, prompt, text and true_reward. run: the open run directory of the
  diagnosis. judge: the judge that `config.judge` describes. The figures are faithfulness (F(1)/correct, ...) and
  diversity of strategies, as `reasoning.reasoning_figures` names them; all are nan, and numbers of labels 0, where more
  labels are missing than judge.max_missing allows. The record has `judge`, the numbers of `problems`, `responses`,
  `labels` and `missing` labels, `measured` (False: too many are missing) and `usage`, {what the judge counts: number}.
  """
  responses, labels = judge_step(rows, judge, None)
  run.raise_if_asked()  # a judge that was asked to stop leaves labels out, which are not missing
  logbook.write_jsonl(run.workdir / LABELS_FILE, labels)
  missing = sum(row["label"] is None for row in labels)
  measured = missing <= config.judge.max_missing * len(labels)
  judging = {
    "judge": config.judge.name,
    "problems": len({row["problem"] for row in rows}),
    "responses": len(rows),
    "labels": len(labels),
    "missing": missing,
    "measured": measured,
    "usage": judge.counts,
  }
  return reasoning.reasoning_figures(responses if measured else []), judging
