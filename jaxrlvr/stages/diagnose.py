"""Before RL: what a policy's own samples say of it, and what RL will probably do to it under each weak setting."""

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
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.stages import build_policy, diagnosis_page
from jaxrlvr.stages.curate import lot
from jaxrlvr.stages.evaluate import graded
from jaxrlvr.stages.judge import LABELS_FILE, judge_step, make_judge
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.survey import open_survey


def diagnose(config: ConfigDict, workdir: str | Path) -> dict:
  """Samples `config.diagnose.problems` of `config.problems` as RL would, judges some, and says what RL will meet.

  diagnosis.md is the page to read, diagnosis.json its numbers, rows/ has all responses, labels.jsonl the judge's. In
  an outage of a judge `http` the page tells the rest, and the stage ends unfinished.
  """
  d, j = config.diagnose, config.judge
  if multihost.process_count() > 1 and j.name not in ("exact", "replay"):
    raise InputError(f"config.judge.name = {j.name!r} judges in one process; leave out --distributed, or take exact")
  with open_run(config, workdir, "diagnose") as run:
    policy = build_policy.load_policy(config)
    judge = make_judge(config, j, run.workdir / "cache")
    reference = faithful_diversity_of(d.reference)
    with open_survey(run, policy, limit=d.problems) as survey:
      survey.begin()
      if run.finished:
        return run.summary
      for drawn, grade in survey.batches(survey.problems):
        survey.record(_responses(drawn.answers.problems, graded(drawn, 0, grade)))
    responses = {row["id"]: row["responses"] for row in survey.rows}
    figures, histogram = _figures(config, responses)
    figures_of_reasoning, judging = judged(_chosen(config, responses), run, judge, config)
    figures |= figures_of_reasoning
    billions, verifiers = policy_spec.count_weights(policy.spec) / 1e9, {p.verifier for p in survey.problems}
    near = prediction.is_near(billions, verifiers)
    domain = prediction.domain_of(d.domain, config.problems.source, verifiers)
    predictions = prediction.predict(figures, near, judging["problems"], domain, reference)
    diagnosis = {
      "domain": domain,
      "reference": reference,
      "figures": figures,
      "histogram": histogram,
      "predictions": [p._asdict() for p in predictions],
      "near": near,
      "billions": billions,
      "judging": judging,
    }
    _write(run, diagnosis, predictions)
    if j.name == "http" and not judging["measured"]:  # it may answer another time
      raise TrainingStopped(
        f"{judging['missing']} of {judging['labels']} labels are missing, over config.judge.max_missing = "
        f"{j.max_missing}; see that it answers (warnings above). The same command asks only for what is missing"
      )
    return run.finish(dropped=survey.dropped, **diagnosis)


def _responses(problems: Sequence[Problem], records: Sequence[Mapping]) -> list[dict]:
  """A row a problem, with the records of its responses, of which there are as many each."""
  K = len(records) // len(problems)
  return [{"id": problem.id, "responses": records[i * K : (i + 1) * K]} for i, problem in enumerate(problems)]


def _figures(config: ConfigDict, responses: Mapping[str, Sequence[Mapping]]) -> tuple[dict[str, float], list[int]]:
  """(what the verifier says of all responses, how many problems are solved how often)."""
  samples = config.diagnose.samples
  ks = sorted({samples, *(k for k in config.evaluate.pass_k if k < samples)})
  records = [record for of_problem in responses.values() for record in of_problem]
  return pre_rl.measure(records, samples, ks)


def _chosen(config: ConfigDict, responses: Mapping[str, Sequence[Mapping]]) -> list[Mapping]:
  """The records that are judged: of some problems, by lot, the first samples."""
  j = config.judge
  problems = sorted(responses, key=lambda problem: lot(config.seed, problem))[: j.problems]
  return [record for problem in problems for record in responses[problem][: j.samples]]


def _write(run: Run, diagnosis: Mapping, predictions: Sequence[prediction.Prediction]) -> None:
  """Writes diagnosis.json and the page, and prints what of the page is read first."""
  logbook.write_json(run.workdir / "diagnosis.json", diagnosis)
  page = diagnosis_page.sections(run.config, diagnosis, predictions)
  text = "\n".join(f"{title}\n\n{body.rstrip()}\n" for title, body in page.items())
  logbook.write_atomic(run.workdir / "diagnosis.md", text)
  print(
    page[diagnosis_page.MEASURED] + "\n" + page[diagnosis_page.PREDICTED] + f"\nthe page: {run.home / 'diagnosis.md'}"
  )


def faithful_diversity_of(folder: str) -> float | None:
  """Returns the faithful diversity of a former diagnosis; None for "". InputError where it can't be read."""
  if not folder:
    return None
  path = Path(object_store.local(folder)) / "diagnosis.json"
  try:
    found = json.loads(path.read_text())["figures"]["faithful_diversity"]
    if isinstance(found, (int, float)):
      return float(found)
    reason = "faithful_diversity was not measured there"
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    reason = f"it can't be read ({type(error).__name__}: {error})"
  raise InputError(
    f"config.diagnose.reference = {folder!r}: {path}: {reason}; name the run directory of a diagnosis whose judge "
    "measured faithfulness"
  )


def judged(rows: Sequence[Mapping], run: Run, judge: Judge, config: ConfigDict) -> tuple[dict[str, float], dict]:
  """(figures of reasoning, nan where too many labels are missing; what was judged by whom)."""
  responses, labels = judge_step(rows, judge, None)
  run.raise_if_asked()  # what a stopping judge leaves out is not missing
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
