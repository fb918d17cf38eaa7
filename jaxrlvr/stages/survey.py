"""A survey: a policy's samples of many problems, batch by batch, and the rows that a stage makes of them."""

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
  """The problems of a stage that samples many of them, and `rows`: one a problem that was sampled, with its id.

  The rows of a batch go to a file in rows/ of the run directory. A run that goes on reads them back and samples the
  problems behind them.
  """

  def __init__(
    self, run: Run, policy: Policy, sampler: rollout.Sampler, service: Service, loaded: rollout.PromptedProblems
  ):
    self.problems, self.dropped = loaded.problems, loaded.dropped
    self.rows: list[dict] = []
    self._run, self._policy, self._sampler, self._service, self._loaded = run, policy, sampler, service, loaded
    self._progress: logbook.Progress | None = None

  def begin(self) -> None:
    """Begins the run, and reads the rows of one that goes on. Call it when all input is checked."""
    run, policy = self._run, self._policy
    run.begin(problems=self.problems, tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"))
    if not run.finished:
      self.rows = multihost.first(self._recorded)
      self._progress = run.progress(len(self.problems), len(self.rows))

  def _recorded(self) -> list[dict]:
    rows = []
    for file in sorted((self._run.workdir / "rows").glob("*.jsonl")):
      rows += logbook.read_jsonl(file)
    return rows

  def batches(self, ordered: Sequence[Problem]) -> Iterator[tuple[rollout.Drawn, Grade]]:
    """Yields the samples of the problems that have no row yet, in this order, and a grader that remembers its verdicts.

    `record` a batch's rows before you ask for the next. Where a signal asked for it, the run ends instead of sampling.
    """
    total = len(self.problems)
    e, samples = self._run.config.evaluate, self._sampler.sampling.group
    size = self._sampler.batch_size(max(1, e.problems_per_batch * e.samples // samples), total)
    weights = self._sampler.weights(self._policy.params)
    sweep = self._sampler.sweep(weights, self._loaded._replace(problems=list(ordered)), size, len(self.rows))
    while len(self.rows) < total:
      self._run.raise_if_asked()
      yield next(sweep), verifiable.grade_once(self._service.grade)

  def record(self, rows: Sequence[dict]) -> None:
    """Writes the rows of the batch at hand, one a problem, and adds them to `rows`."""
    logbook.write_jsonl(self._run.workdir / "rows" / f"{len(self.rows):08d}.jsonl", rows)
    self.rows += rows
    self._progress(len(self.rows))


@contextlib.contextmanager
def open_survey(run: Run, policy: Policy, limit: int = 0) -> Iterator[Survey]:
  """The survey of `config.problems` by a policy, as often each as the stage's `samples` say, with devices and graders.

  `limit`: of a generator as many problems instead of `problems.count`, of a file the first so many; 0: as configured.
  """
  config = run.config
  changes: dict[str, Any] = {}
  if limit:
    count = limit if config.problems.source in problem_lists.GENERATORS else 0
    changes = {"count": count, "at_most": limit}
  sampler = rollout.Sampler(config, policy, run.stage, group=config[run.stage].samples)
  with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
    loaded = rollout.load_problems(config, "problems", policy.tokenizer, service, **changes)
    yield Survey(run, policy, sampler, service, loaded)
