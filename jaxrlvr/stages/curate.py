"""What a model's own samples say of problems: `filter` keeps those of a difficulty, `corrupt` gives others labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import prepared
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.data import subset as subsets
from jaxrlvr.device import multihost
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.reporting import charts
from jaxrlvr.rewards import expression
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.tasks.verdicts import WRONG
from jaxrlvr.text.answer import stated

_LOG = logging.getLogger(__name__)
PROBLEMS = "problems.jsonl"


class Survey(NamedTuple):
  """A stage that samples many problems and writes one row about each."""

  stage: str
  order: Callable[[Sequence[Problem]], list[Problem]]  # in which they are sampled
  measure: Callable[[rollout.Drawn, Grade], list[dict]]  # a row a problem, each with its id
  enough: Callable[[Sequence[dict], int], bool]  # (rows so far, problems in all): may the rest be left out?
  write: Callable[[Run, Sequence[Problem], Mapping[str, dict]], dict]  # (run, problems, rows by id) -> summary
  load: Mapping[str, object] = {}  # what of config.problems is to be otherwise
  prepare: Callable[[Run, build_policy.Policy], None] = lambda run, policy: None  # refuses what else can't be used


def survey(config: ConfigDict, workdir: str | Path, how: Survey) -> dict:
  """Runs a survey of `config.problems` by the policy of `config.init`; one that goes on keeps its whole batches."""
  samples = config[how.stage].samples
  with open_run(config, workdir, how.stage) as run:
    policy = build_policy.load_policy(config)
    how.prepare(run, policy)
    sampler = rollout.Sampler(config, policy, how.stage, group=samples)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      loaded = rollout.load_problems(config, "problems", policy.tokenizer, service, **how.load)
      ordered = loaded._replace(problems=how.order(loaded.problems))
      e, total = config.evaluate, len(loaded.problems)
      size = sampler.batch_size(max(1, e.problems_per_batch * e.samples // samples), total)
      inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
      run.begin(problems=loaded.problems, **inputs)
      if run.finished:
        return run.summary
      files = sorted((run.workdir / "rows").glob("*.jsonl"))
      rows = multihost.first(lambda: [row for file in files for row in logbook.read_jsonl(file)])
      progress = run.progress(total, len(rows))
      batches = sampler.sweep(sampler.weights(policy.params), ordered, size, len(rows))
      while len(rows) < total and not how.enough(rows, total):
        run.raise_if_asked()
        made = how.measure(next(batches), expression.remembering(service.grade))
        logbook.write_jsonl(run.workdir / "rows" / f"{len(rows):08d}.jsonl", made)
        rows += made
        progress(len(rows))
    return run.finish(dropped=loaded.dropped, **how.write(run, loaded.problems, {row["id"]: row for row in rows}))


def filter_problems(config: ConfigDict, workdir: str | Path) -> dict:
  """Keeps the problems of which the policy of `config.init` solves `filter.low` to `filter.high` of its samples.

  The kept ones go to problems.jsonl, with `extra["solved"]` and `extra["samples"]`; rows/ tells of all.
  """
  f = config.filter

  def measure(drawn, grade):
    true = expression.truth(drawn.answers, grade)
    each = zip(drawn.answers.problems, true.value_PG, true.scored_PG, true.cause_PG, strict=True)
    return [
      {"id": p.id, "solved": int((value == 1)[scored].sum()), "scored": int(scored.sum()),
       "unscored": Counter(cause for cause, known in zip(causes, scored, strict=True) if not known)}
      for p, value, scored, causes in each
    ]  # fmt: skip

  def write(run: Run, problems: Sequence[Problem], rows):
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
    print(f"{run.home / PROBLEMS}: {len(kept)} of {len(problems)} problems are solved {f.low} to {f.high} times in "
          f"{f.samples}; {bars[0]} never, {bars[-1]} always")  # fmt: skip
    unscored = sum((Counter(row["unscored"]) for row in rows.values()), Counter())
    if unscored:
      _LOG.warning("%d samples could not be graded (%s) and count as not solved; %d problems are left out, as none of "
                   "theirs could", unscored.total(), dict(unscored), len(problems) - len(solved))  # fmt: skip
    return {"problems": len(problems), "kept": len(kept), "histogram": bars, "unscored": dict(unscored)}

  return survey(config, workdir, Survey("filter", list, measure, lambda rows, total: False, write))


def subset(config: ConfigDict, workdir: str | Path) -> dict:
  """Orders filtered problems so that any first N are spread over the difficulties: problems.jsonl, easy to nest.

  `problems.source` is what `filter` wrote, all of it; `problems.count` of a later run takes the first N.
  """
  with open_run(config, workdir, "subset") as run:
    generated = config.problems.source in problem_lists.GENERATED
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
LABELS: dict[str, Callable[[Problem, str, Grade], bool]] = {
  "wrong": is_wrong,
  "majority": lambda problem, answer, grade: True,
}


def corrupt(config: ConfigDict, workdir: str | Path) -> dict:
  """Gives a share of the problems the label that the policy of `config.init` itself most often gives wrongly.

  For each gamma of `corrupt.gammas` all problems go to gamma_G.jsonl, with a wrong label on the first gamma * N that
  have one in a random order: what is corrupted at a small gamma is at a larger one (paper, section 3.2). The truth
  stays beside the label. `corrupt.label` = "majority" takes the most frequent answer instead, right or wrong.
  """
  c = config.corrupt

  def order(problems: Sequence[Problem]) -> list[Problem]:
    done = [p for p in problems if p.label != p.truth]
    if done:
      raise InputError(
        f"config.problems: {len(done)} of {len(problems)} problems have a label that is not their truth, first "
        f"{done[0].id} (label {done[0].label[:80]!r}, truth {done[0].truth[:80]!r}); start from the true labels"
      )
    return by_lot(config.seed, problems)

  def measure(drawn, grade):
    problems = drawn.answers.problems
    answers_PG = [[response.answer for response in responses] for responses in drawn.answers.response_PG]
    rows = []
    for problem, election, answers in zip(problems, elect(problems, answers_PG, grade), answers_PG, strict=True):
      votes = Counter(cluster for cluster in election.cluster_G if cluster is not None).most_common()
      leaders = ((answers[election.cluster_G.index(cluster)].strip(), n) for cluster, n in votes)
      fit = (leader for leader in leaders if LABELS[c.label](problem, leader[0], grade))
      label, n = next(fit, (None, 0))
      rows.append({"id": problem.id, "truth": problem.truth, "label": label, "votes": n, "samples": c.samples})
    return rows

  def enough(rows: Sequence[dict], total: int) -> bool:
    return sum(row["label"] is not None for row in rows) >= round(max(c.gammas) * total)

  def write(run: Run, problems: Sequence[Problem], rows):
    drawn = [p.id for p in by_lot(config.seed, problems) if p.id in rows and rows[p.id]["label"] is not None]
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
        _LOG.warning(
          "%s: %d were asked for; the others have no such answer in %d samples", file.name, wanted, c.samples
        )
    without = sorted(row["id"] for row in rows.values() if row["label"] is None)
    return {"problems": len(problems), "sampled": len(rows), "without_such_answer": without, "files": files}

  return survey(config, workdir, Survey("corrupt", order, measure, enough, write))


def _relabel(problem: Problem, label: str) -> Problem:
  return dataclasses.replace(problem, label=label, extra={**problem.extra, "relabelled": True})
