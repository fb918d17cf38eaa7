"""What a model's own samples say of problems: `filter` keeps those of a difficulty, `corrupt` gives others labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import prepared
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.data import subset as subsets
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.reporting import charts
from jaxrlvr.rewards import verifiable
from jaxrlvr.rewards.types import Graded
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.survey import open_survey
from jaxrlvr.tasks.verdicts import WRONG
from jaxrlvr.text.answer import stated

_LOG = logging.getLogger(__name__)
PROBLEMS = "problems.jsonl"


def filter_problems(config: ConfigDict, workdir: str | Path) -> dict:
  """Keeps the problems of which the policy of `config.init` solves `filter.low` to `filter.high` of its samples.

  The kept ones go to problems.jsonl, with `extra["solved"]` and `extra["samples"]`; rows/ tells of all.
  """
  with open_run(config, workdir, "filter") as run:
    policy = build_policy.load_policy(config)
    with open_survey(run, policy) as survey:
      survey.begin()
      if run.finished:
        return run.summary
      for drawn, grade in survey.batches(survey.problems):
        survey.record(_solve_counts(drawn.answers.problems, verifiable.grade_by_truth(drawn.answers, grade)))
    rows = {row["id"]: row for row in survey.rows}
    return run.finish(dropped=survey.dropped, **_keep(run, survey.problems, rows))


def _solve_counts(problems: Sequence[Problem], true: Graded) -> list[dict]:
  """Of each problem how many of its samples are right, how many could be graded, and why the others could not."""
  rows = []
  for problem, value_G, scored_G, cause_G in zip(problems, true.value_PG, true.scored_PG, true.cause_PG, strict=True):
    solved, scored = int((value_G == 1)[scored_G].sum()), int(scored_G.sum())
    unscored = Counter(cause for cause, known in zip(cause_G, scored_G, strict=True) if not known)
    rows.append({"id": problem.id, "solved": solved, "scored": scored, "unscored": unscored})
  return rows


def _keep(run: Run, problems: Sequence[Problem], rows: Mapping[str, dict]) -> dict:
  """Writes the problems that are solved often enough and not too often, and the histogram; returns the summary."""
  f = run.config.filter
  solved = {p.id: rows[p.id]["solved"] for p in problems if rows[p.id]["scored"]}
  kept = [
    dataclasses.replace(p, extra={**p.extra, "solved": solved[p.id], "samples": f.samples})
    for p in problems
    if f.low <= solved.get(p.id, -1) <= f.high
  ]
  if not kept:
    raise InputError(
      f"none of {len(problems)} problems is solved {f.low} to {f.high} times in {f.samples}; {run.home}/rows tells"
      " how often each is; take other problems, another policy, or another range in another workdir"
    )
  counts = Counter(solved.values())
  bars = [counts[n] for n in range(f.samples + 1)]
  charts.histogram(run.workdir / "histogram.png", bars, f"Problems by solve@{f.samples}")
  prepared.save(run.workdir / PROBLEMS, kept)
  print(
    f"{run.home / PROBLEMS}: {len(kept)} of {len(problems)} problems are solved {f.low} to {f.high} times in "
    f"{f.samples}; {bars[0]} never, {bars[-1]} always"
  )
  unscored = sum((Counter(row["unscored"]) for row in rows.values()), Counter())
  if unscored:
    _LOG.warning(
      "%d samples could not be graded (%s) and count as not solved; %d problems are left out, as none of theirs could",
      unscored.total(), dict(unscored), len(problems) - len(solved),
    )  # fmt: skip
  return {"problems": len(problems), "kept": len(kept), "histogram": bars, "unscored": dict(unscored)}


def subset(config: ConfigDict, workdir: str | Path) -> dict:
  """Orders filtered problems so that any first N are spread over the difficulties: problems.jsonl, easy to nest.

  `problems.source` is what `filter` wrote, all of it; `problems.count` of a later run takes the first N.
  """
  with open_run(config, workdir, "subset") as run:
    generated = config.problems.source in problem_lists.GENERATORS
    found = [] if generated else rollout.read_problems(config, "problems", count=0)
    unknown = [p.id for p in found if not {"solved", "samples"} <= set(p.extra)]
    if unknown or generated:
      raise InputError(
        f"config.problems.source = {config.problems.source!r}: {len(unknown) or 'all'} of its problems do not "
        "say how often they were solved; run `jaxrlvr filter` first and name its problems.jsonl"
      )
    run.begin(problems=found)
    if run.finished:
      return run.summary
    samples, *others = sorted({p.extra["samples"] for p in found})
    if others:
      raise InputError(f"config.problems.source: solved out of {samples} and of {others[0]} samples; filter them alike")
    order = subsets.round_robin([p.extra["solved"] for p in found], config.seed, config.subset.count, samples)
    prepared.save(run.workdir / PROBLEMS, [found[i] for i in order])
    if len(order) < config.subset.count:
      _LOG.warning("%d problems were asked for, %d of %d are of use", config.subset.count, len(order), len(found))
    print(f"{run.home / PROBLEMS}: {len(order)} of {len(found)} problems")
    counts = Counter(found[i].extra["solved"] for i in order)
    return run.finish(problems=len(order), per_bin=[counts[n] for n in range(samples + 1)])


def by_lot(seed: int, problems: Sequence[Problem]) -> list[Problem]:
  """The problems in a random order that is a function of the seed and their ids, not of the order they come in."""
  return sorted(problems, key=lambda p: lot(seed, p.id))


def lot(seed: int, problem_id: str) -> bytes:
  return hashlib.blake2b(f"{seed}/{problem_id}".encode()).digest()


def is_wrong(problem: Problem, answer: str, grade: Grade) -> bool:
  """Wrong against the truth, and the truth wrong against it: a corrupted label must not pay the right answer.

  An answer of which nobody can say either is not taken.
  """
  pairs = ((answer, problem.truth), (problem.truth, answer))
  verdicts = grade([Job(problem.verifier, stated(said), wanted, problem.extra) for said, wanted in pairs])
  return all(verdict == WRONG for verdict in verdicts)


# Which answers of the policy a new label may be: (problem, answer, grade). Keys: value of `corrupt.label`.
NEW_LABELS: dict[str, Callable[[Problem, str, Grade], bool]] = {
  "wrong": is_wrong,
  "majority": lambda problem, answer, grade: True,
}


def corrupt(config: ConfigDict, workdir: str | Path) -> dict:
  """Gives a share of the problems the label that the policy of `config.init` itself most often gives wrongly.

  For each gamma of `corrupt.gammas` all problems go to gamma_G.jsonl, with a wrong label on the first gamma * N that
  have one in a random order: what is corrupted at a small gamma is at a larger one (paper, section 3.2). The truth
  stays beside the label. `corrupt.label` = "majority" takes the most frequent answer instead, right or wrong.
  """
  with open_run(config, workdir, "corrupt") as run:
    policy = build_policy.load_policy(config)
    with open_survey(run, policy) as survey:
      _check_labels_are_true(survey.problems)
      survey.begin()
      if run.finished:
        return run.summary
      most = round(max(config.corrupt.gammas) * len(survey.problems))
      batches = survey.batches(by_lot(config.seed, survey.problems))
      while _relabelled(survey.rows) < most and (batch := next(batches, None)):
        survey.record(_new_labels(config, *batch))
    rows = {row["id"]: row for row in survey.rows}
    return run.finish(dropped=survey.dropped, **_write_gammas(run, survey.problems, rows))


def _check_labels_are_true(problems: Sequence[Problem]) -> None:
  done = [p for p in problems if p.label != p.truth]
  if done:
    raise InputError(
      f"config.problems: {len(done)} of {len(problems)} problems have a label that is not their truth, first "
      f"{done[0].id} (label {done[0].label[:80]!r}, truth {done[0].truth[:80]!r}); start from the true labels"
    )


def _relabelled(rows: Sequence[dict]) -> int:
  return sum(row["label"] is not None for row in rows)


def _new_labels(config: ConfigDict, drawn: rollout.Drawn, grade: Grade) -> list[dict]:
  """Of each problem its most frequent answer that may be a label, and how many samples gave it; None where none may."""
  c, problems = config.corrupt, drawn.answers.problems
  answers_PG = [[response.answer for response in responses] for responses in drawn.answers.response_PG]
  rows = []
  for problem, election, answers in zip(problems, elect(problems, answers_PG, grade), answers_PG, strict=True):
    votes = Counter(cluster for cluster in election.cluster_G if cluster is not None).most_common()
    leaders = ((answers[election.cluster_G.index(cluster)].strip(), n) for cluster, n in votes)
    fit = (leader for leader in leaders if NEW_LABELS[c.label](problem, leader[0], grade))
    label, n = next(fit, (None, 0))
    rows.append({"id": problem.id, "truth": problem.truth, "label": label, "votes": n, "samples": c.samples})
  return rows


def _write_gammas(run: Run, problems: Sequence[Problem], rows: Mapping[str, dict]) -> dict:
  """Writes all problems once a gamma, with new labels on its share of them; returns the summary."""
  c, seed = run.config.corrupt, run.config.seed
  drawn = [p.id for p in by_lot(seed, problems) if p.id in rows and rows[p.id]["label"] is not None]
  files = {}
  for gamma in c.gammas:
    file, wanted = run.workdir / f"gamma_{gamma:.2f}.jsonl", round(gamma * len(problems))
    chosen = set(drawn[:wanted])
    labelled = [_relabel(p, rows[p.id]["label"]) if p.id in chosen else p for p in problems]
    prepared.save(file, labelled)
    with file.open("rb") as written:
      digest = hashlib.file_digest(written, "sha256").hexdigest()
    files[file.name] = {"gamma": gamma, "relabelled": len(chosen), "sha256": digest}
    print(f"{run.home / file.name}: {len(chosen)} of {len(problems)} labels are the policy's own")
    if len(chosen) < wanted:
      _LOG.warning("%s: %d were asked for; the others have no such answer in %d samples", file.name, wanted, c.samples)
  without = sorted(row["id"] for row in rows.values() if row["label"] is None)
  return {"problems": len(problems), "sampled": len(rows), "without_such_answer": without, "files": files}


def _relabel(problem: Problem, label: str) -> Problem:
  return dataclasses.replace(problem, label=label, extra={**problem.extra, "relabelled": True})
