"""The stages filter, subset and corrupt, which select or relabel problems by a policy's own samples."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import prepared
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.data import subset as subsets
from jaxrlvr.grading.service import Job
from jaxrlvr.grading.vote import Election, Grade, elect
from jaxrlvr.reporting import charts
from jaxrlvr.rewards import verifiable
from jaxrlvr.rewards.types import Graded
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.survey import Survey, open_survey
from jaxrlvr.tasks.verdicts import WRONG
from jaxrlvr.text.answer import boxed_response

_LOG = logging.getLogger(__name__)
_PROBLEMS_FILE = "problems.jsonl"  # in the run directory: the problems that filter and subset choose


def filter_problems(config: ConfigDict, workdir: str | Path) -> dict:
  """Keeps the problems that a policy solves at least filter.low and at most filter.high times in filter.samples
  samples.

  The policy is that of `config.init` or `config.model.path`, the problems are those of `config.problems`; answers are
  graded by the truth. Writes problems.jsonl (the problems kept, each with `solved`, its number of right samples, and
  `samples` in its `extra`), histogram.png, and rows/ (of every problem: id, solved, scored, unscored). A sample that
  could not be graded counts as not right; a problem of which none could be graded is not kept. Returns the summary: the
  numbers of `problems`, `kept` and `dropped` (prompt too long) ones, `histogram` (list: how many problems are solved 0,
  1, 2, ... times) and `unscored` ({cause: number of samples that could not be graded}). A finished run returns its
  summary; one that was stopped does not sample again what rows/ holds. Raises InputError where no problem would be
  kept.
  """
  with open_run(config, workdir, "filter") as run:
    policy = build_policy.load_policy(config)
    with open_survey(run, policy) as survey:
      survey.begin()
      if run.finished:
        return run.summary
      for drawn, grade in survey.batches(survey.problems):
        graded = verifiable.grade_by_truth(drawn.answers, grade)
        survey.record(_solve_counts(drawn.answers.problems, graded))
    rows = {row["id"]: row for row in survey.rows}
    return run.finish(dropped=survey.dropped, **_keep(run, survey.problems, rows))


def _solve_counts(problems: Sequence[Problem], true: Graded) -> list[dict]:
  """Returns a row for each problem, to be recorded.

  A row has `id`, `solved` (number of right samples), `scored` (number of samples that could be graded) and `unscored`
  ({cause: number of samples that could not be graded}).
  """
  rows = []
  for problem, value_G, scored_G, cause_G in zip(problems, true.value_PG, true.scored_PG, true.cause_PG, strict=True):
    right_G = (value_G == 1) & scored_G
    unscored = Counter(cause for cause, scored in zip(cause_G, scored_G, strict=True) if not scored)
    rows.append({"id": problem.id, "solved": int(right_G.sum()), "scored": int(scored_G.sum()), "unscored": unscored})
  return rows


def _keep(run: Run, problems: Sequence[Problem], rows: Mapping[str, dict]) -> dict:
  """Writes the problems that are solved neither too seldom nor too often, and the histogram; returns the summary.

  rows: the row of each problem by its id. Problems of which no sample could be graded are left out.
  """
  settings = run.config.filter
  allowed = f"{settings.low} to {settings.high} times in {settings.samples}"
  solved = {problem.id: rows[problem.id]["solved"] for problem in problems if rows[problem.id]["scored"]}
  kept = []
  for problem in problems:
    if settings.low <= solved.get(problem.id, -1) <= settings.high:
      extra = {**problem.extra, "solved": solved[problem.id], "samples": settings.samples}
      kept.append(dataclasses.replace(problem, extra=extra))
  if not kept:
    raise InputError(
      f"none of {len(problems)} problems is solved {allowed}; {run.home}/rows tells"
      " how often each is; take other problems, another policy, or another range in another workdir"
    )
  problems_solved = Counter(solved.values())
  histogram = [problems_solved[times] for times in range(settings.samples + 1)]
  charts.write_histogram(run.workdir / "histogram.png", histogram, f"Problems by solve@{settings.samples}")
  prepared.save(run.workdir / _PROBLEMS_FILE, kept)
  print(
    f"{run.home / _PROBLEMS_FILE}: {len(kept)} of {len(problems)} problems are solved {allowed}; "
    f"{histogram[0]} never, {histogram[-1]} always"
  )
  unscored: Counter[str] = Counter()
  for row in rows.values():
    unscored.update(row["unscored"])
  if unscored:
    _LOG.warning(
      "%d samples could not be graded (%s) and count as not solved; %d problems are left out, as none of theirs could",
      unscored.total(),
      dict(unscored),
      len(problems) - len(solved),
    )
  return {"problems": len(problems), "kept": len(kept), "histogram": histogram, "unscored": dict(unscored)}


def subset(config: ConfigDict, workdir: str | Path) -> dict:
  """Orders filtered problems so that the first N of them, for any N, are spread over all difficulties.

  problems.source names the problems.jsonl of a run of `filter`, or a set with a column that says how often each problem
  was solved (subset.solved), of which all problems are read. Problems that were
  solved equally often are in random order by config.seed; the result takes one from each such group in turn. Writes
  problems.jsonl with the first subset.count of them, without problems that were solved never or always; with fewer than
  subset.count it writes these and warns. A later run takes the first N by problems.count. Returns the summary:
  `problems` (number written) and `per_bin` (list: how many of these were solved 0, 1, 2, ... times). A finished run
  returns its summary. Raises InputError for problems that don't say how often they were solved, or were filtered with
  different numbers of samples.
  """
  with open_run(config, workdir, "subset") as run:
    problems = _read_filtered(config)
    run.begin(problems=problems)
    if run.finished:
      return run.summary
    samples, *other_samples = sorted({problem.extra["samples"] for problem in problems})
    if other_samples:
      raise InputError(
        f"config.problems.source: solved out of {samples} and of {other_samples[0]} samples; filter them alike, or "
        "take rates (config.subset.measure=rate) with one number for config.subset.samples"
      )
    solved = [problem.extra["solved"] for problem in problems]
    order = subsets.round_robin(solved, config.seed, config.subset.count, samples)
    prepared.save(run.workdir / _PROBLEMS_FILE, [problems[i] for i in order])
    if len(order) < config.subset.count:
      _LOG.warning("%d problems were asked for, %d of %d are of use", config.subset.count, len(order), len(problems))
    print(f"{run.home / _PROBLEMS_FILE}: {len(order)} of {len(problems)} problems")
    problems_solved = Counter(solved[i] for i in order)
    return run.finish(problems=len(order), per_bin=[problems_solved[times] for times in range(samples + 1)])


def _read_filtered(config: ConfigDict) -> list[Problem]:
  """Returns all problems of `problems.source`. Raises InputError where they don't say how often they were solved."""
  is_generated = problem_lists.is_generated(config.problems.source)
  group = config.subset
  changes: dict[str, Any] = {"count": 0}
  if group.solved:
    changes["derived"] = subsets.solve_counts(group.solved, group.samples, group.measure)
  problems = [] if is_generated else rollout.read_problems(config, "problems", changes)
  unknown = [problem.id for problem in problems if not {"solved", "samples"} <= set(problem.extra)]
  if unknown or is_generated:
    raise InputError(
      f"config.problems.source = {config.problems.source!r}: {len(unknown) or 'all'} of its problems do not "
      "say how often they were solved; run `jaxrlvr filter` first and name its problems.jsonl, or name the column that "
      "says it (config.subset.solved, .samples)"
    )
  return problems


def _in_random_order(seed: int, problems: Sequence[Problem]) -> list[Problem]:
  """Returns the problems in a random order, which depends on the seed and their ids but not on their present order."""
  return sorted(problems, key=lambda problem: random_sort_key(seed, problem.id))


def random_sort_key(seed: int, problem_id: str) -> bytes:
  """Returns a key by which sorting puts problems into a random order: a digest, 64 bytes, of the seed and the id.

  The order of two problems depends on nothing but the seed and their ids, so that it is the same in every run.
  """
  return hashlib.blake2b(f"{seed}/{problem_id}".encode()).digest()


def can_be_wrong_label(problem: Problem, answer: str, grade: Grade) -> bool:
  """Returns whether a label with this answer would be wrong, and would never pay the right answer.

  It is where the verifier finds the answer wrong with `problem.truth` as the label, and the truth wrong with the answer
  as the label. grade: takes a list of `Job` and returns a `Verdict` for each, in their order, as `Service.grade` does.
  Returns False where either verdict is unscored (the verifier failed) or unparseable.
  """
  answer_by_truth = Job(problem.verifier, boxed_response(answer), problem.truth, problem.extra)
  truth_by_answer = Job(problem.verifier, boxed_response(problem.truth), answer, problem.extra)
  return all(verdict == WRONG for verdict in grade([answer_by_truth, truth_by_answer]))


# Functions (problem, answer, grade) that say whether an answer of the policy may be the new label, by
# config.corrupt.label.
_MAY_BE_LABEL: dict[str, Callable[[Problem, str, Grade], bool]] = {
  "wrong": can_be_wrong_label,
  "majority": lambda problem, answer, grade: True,
}


def corrupt(config: ConfigDict, workdir: str | Path) -> dict:
  """Gives shares of the problems a new label: the most frequent wrong answer of a policy (paper, section 3.2).

  The policy is that of `config.init` or `config.model.path`, with corrupt.samples samples to a problem. With
  corrupt.label "majority" the new label is the most frequent answer, right or wrong. For each gamma in corrupt.gammas
  all N problems are written, in their order, to gamma_G.jsonl, G with two decimals (gamma_0.70.jsonl). In a random
  order of the problems the first round(gamma * N) that have such an answer get the new label, so that a problem that is
  relabelled at a small gamma is relabelled at a larger one too; its extra has `relabelled`. The truth stays as it was.
  Where fewer than gamma * N problems have such an answer, all of these are relabelled and a warning says so. Sampling
  ends when the largest gamma has enough; rows/ holds what was sampled.

  Returns the summary: the numbers of `problems`, `sampled` and `dropped` (prompt too long) ones, `without_such_answer`
  (ids of problems that were sampled and have none), and `files` ({file: {"gamma", "relabelled": number of problems,
  "sha256"}}). A finished run returns its summary and writes nothing; one that was stopped goes on with the problems
  that rows/ lacks. Raises InputError for problems whose label is not their truth.
  """
  with open_run(config, workdir, "corrupt") as run:
    policy = build_policy.load_policy(config)
    with open_survey(run, policy) as survey:
      _check_labels_are_true(survey.problems)
      survey.begin()
      if run.finished:
        return run.summary
      _survey_new_labels(config, survey)
    rows = {row["id"]: row for row in survey.rows}
    return run.finish(dropped=survey.dropped, **_write_gammas(run, survey.problems, rows))


def _survey_new_labels(config: ConfigDict, survey: Survey) -> None:
  """Records new labels of problems in random order until the largest gamma has enough, or all problems were sampled."""
  needed = round(max(config.corrupt.gammas) * len(survey.problems))
  batches = survey.batches(_in_random_order(config.seed, survey.problems))
  while _count_relabelled(survey.rows) < needed:
    batch = next(batches, None)
    if batch is None:
      break
    drawn, grade = batch
    survey.record(_new_labels(config, drawn, grade))


def _check_labels_are_true(problems: Sequence[Problem]) -> None:
  """Raises InputError where a label is not the truth already."""
  untrue = [problem for problem in problems if problem.label != problem.truth]
  if untrue:
    first = untrue[0]
    raise InputError(
      f"config.problems: {len(untrue)} of {len(problems)} problems have a label that is not their truth, first "
      f"{first.id} (label {first.label[:80]!r}, truth {first.truth[:80]!r}); start from the true labels"
    )


def _count_relabelled(rows: Sequence[dict]) -> int:
  """Returns how many of these problems have a new label."""
  return sum(row["label"] is not None for row in rows)


def _new_labels(config: ConfigDict, drawn: rollout.Drawn, grade: Grade) -> list[dict]:
  """Returns a row for each problem, to be recorded.

  A row has `id`, `truth`, `label` (the most frequent answer that may be the new label; None: there is none), `votes`
  (how many samples gave it) and `samples` (how many samples there are).
  """
  may_be_label = _MAY_BE_LABEL[config.corrupt.label]
  problems, answers_PG = drawn.answers.problems, drawn.answer_PG
  elections = elect(problems, answers_PG, grade)
  rows = []
  for problem, election, answers_G in zip(problems, elections, answers_PG, strict=True):
    label, votes = None, 0
    for answer, votes_of_answer in _answers_by_votes(election, answers_G):
      if may_be_label(problem, answer, grade):
        label, votes = answer, votes_of_answer
        break
    rows.append(
      {
        "id": problem.id,
        "truth": problem.truth,
        "label": label,
        "votes": votes,
        "samples": config.corrupt.samples,
      }
    )
  return rows


def _answers_by_votes(election: Election, answers_G: Sequence[str | None]) -> Iterator[tuple[str, int]]:
  """Yields each different answer to a problem with its number of votes, the most frequent answer first."""
  votes_of_cluster = Counter(cluster for cluster in election.cluster_G if cluster is not None)
  for cluster, votes in votes_of_cluster.most_common():
    first_sample = election.cluster_G.index(cluster)
    yield answers_G[first_sample].strip(), votes


def _write_gammas(run: Run, problems: Sequence[Problem], rows: Mapping[str, dict]) -> dict:
  """Writes all problems once for each gamma, with new labels on that share of them; returns the summary.

  rows: the row of each problem that was sampled, by its id.
  """
  new_labels = {}
  for problem in _in_random_order(run.config.seed, problems):
    row = rows.get(problem.id)
    if row is not None and row["label"] is not None:
      new_labels[problem.id] = row["label"]
  files = {}
  for gamma in run.config.corrupt.gammas:
    name = f"gamma_{gamma:.2f}.jsonl"
    files[name] = _write_gamma(run, name, gamma, problems, new_labels)
  without = sorted(row["id"] for row in rows.values() if row["label"] is None)
  return {"problems": len(problems), "sampled": len(rows), "without_such_answer": without, "files": files}


def _write_gamma(
  run: Run, name: str, gamma: float, problems: Sequence[Problem], new_labels: Mapping[str, str]
) -> dict[str, object]:
  """Writes the problems with new labels on the share gamma of them to the file `name` of the run directory.

  new_labels: label by the problem's id, in the order in which problems are relabelled. Returns the summary's entry
  about the file: gamma, relabelled and sha256. Warns where there are too few new labels.
  """
  count = round(gamma * len(problems))
  relabelled_ids = set(itertools.islice(new_labels, count))
  relabelled = []
  for problem in problems:
    if problem.id in relabelled_ids:
      extra = {**problem.extra, "relabelled": True}
      problem = dataclasses.replace(problem, label=new_labels[problem.id], extra=extra)
    relabelled.append(problem)
  prepared.save(run.workdir / name, relabelled)
  with (run.workdir / name).open("rb") as stream:
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
  print(f"{run.home / name}: {len(relabelled_ids)} of {len(problems)} labels are the policy's own")
  if len(relabelled_ids) < count:
    samples = run.config.corrupt.samples
    _LOG.warning("%s: %d were asked for; the others have no such answer in %d samples", name, count, samples)
  return {"gamma": gamma, "relabelled": len(relabelled_ids), "sha256": digest}
