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
  """Samples the problems of a stage and keeps their rows, so that a run that is resumed goes on where it stopped.

  `problems` are all problems, `dropped` is the number of problems that were left out as their prompts are too long, and
  `rows` has a row for each problem that was sampled, with its `id` and what the stage records. The rows of each batch
  are written to a file in rows/ of the run directory; a resumed run reads them and samples only the problems that
  follow. `open_survey` makes it. Call `begin`, then for each batch of `batches` call `record`.
  """

  def __init__(
    self, run: Run, policy: Policy, sampler: rollout.Sampler, service: Service, loaded: rollout.PromptedProblems
  ):
    self.problems, self.dropped = loaded.problems, loaded.dropped
    self.rows: list[dict] = []
    self._run, self._policy, self._sampler = run, policy, sampler
    self._service, self._loaded = service, loaded
    self._progress: logbook.Progress | None = None

  def begin(self) -> None:
    """Begins the run, and reads the rows that a resumed run has written. Call it when all input is checked."""
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
    """Yields (samples of a batch, a grader) until all problems have a row.

    ordered: all problems in the order in which they are sampled; the first ones, which have rows already, are skipped.
    The grader remembers its verdicts. Call `record` with the rows of a batch before asking for the next one. Raises
    Interrupted between batches if a signal has asked the run to stop.
    """
    total = len(self.problems)
    e, samples = self._run.config.evaluate, self._sampler.sampling.group
    rows_at_a_time = e.problems_per_batch * e.samples
    size = self._sampler.batch_size(max(1, rows_at_a_time // samples), total)
    weights = self._sampler.weights(self._policy.params)
    sweep = self._sampler.sweep(weights, self._loaded._replace(problems=list(ordered)), size, len(self.rows))
    while len(self.rows) < total:
      self._run.raise_if_asked()
      yield next(sweep), verifiable.with_memory(self._service.grade)

  def record(self, rows: Sequence[dict]) -> None:
    """Writes the rows of the last batch that was yielded, one for each problem, and adds them to `rows`."""
    logbook.write_jsonl(self._run.workdir / "rows" / f"{len(self.rows):08d}.jsonl", rows)
    self.rows += rows
    self._progress(len(self.rows))


@contextlib.contextmanager
def open_survey(run: Run, policy: Policy, limit: int = 0) -> Iterator[Survey]:
  """Yields a survey of `config.problems` by a policy, with the workers that grade and the mesh that samples set up.

  On several hosts all processes must open it and call its methods together. Each problem is sampled as often as the key
  `samples` of the run's stage says. limit: number of problems, in the place of problems.count: so many are generated,
  or the first of a file are taken; 0: as configured.
  """
  config = run.config
  changes: dict[str, Any] = {}
  if limit:
    count = limit if config.problems.source in problem_lists.GENERATORS else 0
    changes = {"count": count, "at_most": limit}
  sampler = rollout.Sampler(config, policy, run.stage, group=config[run.stage].samples)
  with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
    loaded = rollout.load_problems(config, "problems", policy.tokenizer, service, changes)
    yield Survey(run, policy, sampler, service, loaded)
