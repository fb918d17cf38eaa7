"""Surveys: a stage samples many problems with a policy, batch by batch, and records a row for each problem."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from jaxrlvr.base import logbook
from jaxrlvr.base.types import Problem
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.device import multihost
from jaxrlvr.grading.service import Service
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards import verifiable
from jaxrlvr.stages import rollout
from jaxrlvr.stages.build_policy import Policy
from jaxrlvr.stages.run_directory import Run


class Survey:
  """Samples the problems of a stage and keeps a row for each, so that a resumed run goes on where it stopped.

  `open_survey` makes it. Call `begin`; then, for each batch that `batches` yields, make a row for each of its problems
  and call `record` with these. Each batch's rows are written to a file of the folder rows/ of the run directory; a
  resumed run reads them and samples only the problems that follow. On several hosts all processes must call each method
  together.
  """

  problems: list[Problem]  # all problems
  dropped: int  # number of problems that were left out, as their prompts are too long
  rows: list[dict]  # what the stage has recorded of each problem that was sampled, in the order of sampling

  def __init__(
    self, run: Run, policy: Policy, sampler: rollout.Sampler, service: Service, loaded: rollout.PromptedProblems
  ):
    self.problems, self.dropped = loaded.problems, loaded.dropped
    self.rows = []
    self._run, self._policy, self._sampler = run, policy, sampler
    self._service, self._loaded = service, loaded
    self._progress: logbook.Progress | None = None

  def begin(self) -> None:
    """Begins the run (`Run.begin`), and reads into `rows` what an earlier part of it has recorded.

    Call it when all input is checked. If the run is finished then (`run.finished`), `rows` stays empty and there is
    nothing to sample. Raises InputError where the run began with other problems, another tokenizer or other weights.
    """
    run, policy = self._run, self._policy
    run.begin(problems=self.problems, tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"))
    if not run.finished:
      self.rows = multihost.first(self._recorded)
      self._progress = run.progress(len(self.problems), len(self.rows))

  def _recorded(self) -> list[dict]:
    """Returns the rows of all files in rows/."""
    rows = []
    for file in sorted((self._run.workdir / "rows").glob("*.jsonl")):
      rows += logbook.read_jsonl(file)
    return rows

  def batches(self, ordered: Sequence[Problem]) -> Iterator[tuple[rollout.Drawn, Grade]]:
    """Samples batch by batch, and yields (responses of a batch, a function that grades) until all problems have a row.

    Of the responses, `answers.problems` are the problems of the batch. The function takes a list of jobs and returns
    their verdicts, as `Service.grade`, and grades no job twice. Call `record` before asking for the next batch.

    ordered: all of `problems` in the order in which to sample them, the same one in a resumed run. As many of the first
    as `rows` has are skipped. Raises Interrupted between batches if a signal has asked the run to stop.
    """
    total = len(self.problems)
    e, samples = self._run.config.evaluate, self._sampler.sampling.group
    responses_per_batch = e.problems_per_batch * e.samples  # as an evaluation samples them
    size = self._sampler.batch_size(max(1, responses_per_batch // samples), total)
    weights = self._sampler.weights(self._policy.params)
    sweep = self._sampler.sweep(weights, self._loaded._replace(problems=list(ordered)), size, len(self.rows))
    while len(self.rows) < total:
      self._run.raise_if_asked()
      yield next(sweep), verifiable.with_memory(self._service.grade)

  def record(self, rows: Sequence[dict]) -> None:
    """Writes the rows of the last batch to a file in rows/, adds them to `rows`, and shows the progress.

    rows: one for each problem of the batch, in its order, as JSON can hold them.
    """
    logbook.write_jsonl(self._run.workdir / "rows" / f"{len(self.rows):08d}.jsonl", rows)
    self.rows += rows
    self._progress(len(self.rows))


@contextlib.contextmanager
def open_survey(run: Run, policy: Policy, limit: int = 0) -> Iterator[Survey]:
  """Opens a survey of `run.config.problems` as a context manager, which reads the problems and starts the workers.

  Each problem is sampled as often as the key `samples` of the group of the run's stage says, as config.filter.samples.
  policy: samples the responses. limit: largest number of problems; a generator makes so many, of a file the first are
  taken; 0: as many as config.problems says. Raises InputError where the problems can't be read (`load_problems`).
  """
  config = run.config
  changes: dict[str, Any] = {}
  if limit:
    is_generated = problem_lists.is_generated(config.problems.source)
    changes = {"count": limit if is_generated else 0, "at_most": limit}
  sampler = rollout.Sampler(config, policy, run.stage, group=config[run.stage].samples)
  with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
    loaded = rollout.load_problems(config, "problems", policy.tokenizer, service, changes)
    yield Survey(run, policy, sampler, service, loaded)
