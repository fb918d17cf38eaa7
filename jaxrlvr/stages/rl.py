"""The stage rl: trains a policy by GRPO or a variant on a weak or true reward, and logs the truth beside it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.device import multihost
from jaxrlvr.device.idle import Busy
from jaxrlvr.grading.service import Service
from jaxrlvr.rewards import expression, functions, verifiable
from jaxrlvr.stages import build_policy, outcome, rollout
from jaxrlvr.stages.evaluate import EVALUATION_KEYS, Evaluator
from jaxrlvr.stages.learner import UpdateBatch, check_sizes, make_learner
from jaxrlvr.stages.memory import check_fits
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.step_grades import (
  StepGrades,
  grade_step,
  host_metrics,
  stop_if_unscored,
  trained_responses,
  write_rollouts,
)
from jaxrlvr.stages.unpaid import Unpaid
from jaxrlvr.stages.watch import Watch
from jaxrlvr.training import objective

# What makes the batches that are sampled for training smaller, in words.
_SAMPLING_KEYS = (
  "config.rl.response_tokens, config.rl.problems_per_step or config.rl.group_size (or .votes), or raise "
  "config.rl.sample_parts"
)


class Sampled(NamedTuple):
  """The responses of a step, before they are graded."""

  step: int  # its number, from 1
  prompts: rollout.Prompts  # of the step's problems
  drawn: rollout.Drawn  # the responses, those that only vote included
  batches: list[UpdateBatch] | None  # of the step's updates, scored by the reference model; None: there is none
  begun: float  # when the step began, on the clock of time.monotonic


class Trainer:
  """A run of RL, with the state of its policy. `open_trainer` makes it, and restores the state.

  For each number that `steps` yields call `sample`, `grade` and `update`, then call `finish`, all within `on_devices`.
  On several hosts all processes must call these together.
  """

  def __init__(
    self,
    config: ConfigDict,
    run: Run,
    policy: build_policy.Policy,
    sampler: rollout.Sampler,
    service: Service,
    busy: Busy,
  ):
    """Reads the problems and the held-out sets.

    run: the open run directory. policy: without weights, which `load` adds. sampler: samples its responses. service:
    grades answers. busy: records when the devices are at work. Raises InputError where problems can't be read, or are
    held out though they must not be.
    """
    self._config, self._settings = config, config.rl
    self._run, self._policy, self._sampler, self._service, self._busy = run, policy, sampler, service, busy
    self._terms = expression.parse(config.rl.reward)
    keep = expression.own_columns(self._terms)
    self._loaded = rollout.load_problems(config, "problems", policy.tokenizer, service, {"keep": keep})
    problems = self._loaded.problems
    prompt_lengths = [len(self._loaded.ids[problem.id]) for problem in problems]
    self._learner, self._rates = make_learner(config, policy, prompt_lengths)
    self._evaluator = Evaluator(config, policy, service, problems)
    self._calls = functions.Calls(config.rl.completions, _first_with_jax_of_its_own)
    for name, shape in expression.own_shapes(self._terms).items():
      functions.check_columns(name, shape, problems)

  def load(self, load_weights: Callable[[], build_policy.Policy]) -> None:
    """Loads the policy's weights by `load_weights`. Raises InputError where the run takes more memory than is free."""
    samplings = [(self._sampler.sampling, self._sampler.work(self._settings.problems_per_step))]
    samplings.append(self._evaluator.sampling)
    estimate = self._learner.memory(samplings)
    is_evaluation = estimate.sampling is not samplings[0][1]
    sampling_keys = EVALUATION_KEYS if is_evaluation else _SAMPLING_KEYS
    check_fits(estimate, self._policy.mesh, self._run, sampling_keys)
    self._policy = load_weights()

  @property
  def config(self) -> ConfigDict:
    """Property: the config of the run."""
    return self._config

  @property
  def policy(self) -> build_policy.Policy:
    """Property: the policy with its present weights, which the next update takes."""
    return self._policy if self.finished else self._policy._replace(params=self._state.params)

  @property
  def finished(self) -> bool:
    """Property: whether the run is finished, so that nothing is left to do."""
    return self._run.finished

  @property
  def summary(self) -> dict | None:
    """Property: the summary of the finished run, whose keys `rl` names; None: it is not finished."""
    return self._run.summary

  @contextlib.contextmanager
  def on_devices(self) -> Iterator[None]:
    """Sets the mesh of training for the block, and forbids transfers between host and devices that are not spelled."""
    with jax.set_mesh(self._policy.mesh), jax.transfer_guard("disallow"):
      yield

  def begin(self) -> None:
    """Begins the run. Raises InputError where the directory's run has other problems, tokenizer or first weights."""
    self._run.begin(
      problems=self._loaded.problems,
      heldout=self._evaluator.problems,
      tokenizer=self._policy.tokenizer.pieces(),
      origin=self._policy.origin.get("digests"),
    )

  def restore(self) -> None:
    """Restores the training state and all that follows the run; a run without a checkpoint begins at step 0.

    At step 0 the policy is evaluated. A run that was stopped between a save and its evaluation is evaluated there.
    """
    self._write_files_of_policy()
    self._label_right = verifiable.labels_right(self._loaded.problems, self._service.grade)
    self._ref_params = build_policy.reference_weights(self._policy) if self._learner.needs_reference else None
    meta = self._restore_state()
    self._progress = self._run.progress(self._settings.steps, self._start)
    if meta is None:
      self._run.log(0, self._evaluator(self._state.params, self._run, 0))
    before = meta["before"] if meta else self._evaluator.means
    last_logged = self._follow_metrics(before)
    if meta and meta["unevaluated"] and last_logged < self._start:
      self._evaluate_saved_step(meta["unevaluated"])

  def _write_files_of_policy(self) -> None:
    """Writes what a stage needs to start from this run, and prompt.txt with the first problem's prompt."""
    workdir, problems = self._run.workdir, self._loaded.problems
    build_policy.write_policy_files(self._config, self._policy, workdir, problems)
    rollout.write_prompt(workdir, self._policy, problems[0])

  def _restore_state(self) -> dict | None:
    """Sets the training state and the number of the last step that is done; returns the checkpoint's meta record.

    None: there is no checkpoint, the state is that before the first update.
    """
    fresh_state = build_policy.fresh_state(self._policy, self._learner.optimizer)
    self._state, meta = self._run.restore(fresh_state)
    self._start = self._done = self._saved = meta["step"] if meta else 0
    return meta

  def _follow_metrics(self, before: Mapping[str, float]) -> int:
    """Makes what follows the run's metrics from those written so far; returns the last step among these, -1 for none.

    before: mean true reward of each held-out problem at step 0.
    """
    s = self._settings
    rows = multihost.first(lambda: logbook.read_jsonl(self._run.workdir / "metrics.jsonl"))
    self._watch = Watch(rows, before, s.worthwhile_gain, s.stop_when_memorising)
    self._unpaid = Unpaid(rows, self._config)
    self._num_tokens = max((row.get("num_tokens", 0) for row in rows), default=0)
    return max((row["step"] for row in rows), default=-1)

  def _evaluate_saved_step(self, unevaluated: Mapping[str, float | None]) -> None:
    """Evaluates and logs the restored step. unevaluated: its metrics without those of the evaluation, null for nan."""
    step = self._start
    metrics = {name: math.nan if value is None else value for name, value in unevaluated.items()}
    self._num_tokens = metrics["num_tokens"]
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._log(step, metrics, self._evaluator.means)

  def steps(self) -> Iterator[int]:
    """Yields the numbers of the steps that are left to do, up to rl.steps, counted from 1, each once it is its turn.

    Ends early where rl.stop_when_memorising is set and the last evaluation shows that the policy memorises.
    """
    while self._done < self._settings.steps and not self._watch.stops:
      yield self._done + 1

  def sample(self, step: int) -> Sampled:
    """Samples the step's problems and returns the responses; the device may still score them by the reference model."""
    begun = time.monotonic()
    prompts, drawn = self._draw(step)
    batches = self._score(prompts, drawn) if self._learner.needs_reference else None
    return Sampled(step, prompts, drawn, batches, begun)

  def grade(self, sampled: Sampled) -> StepGrades:
    """Grades responses by the reward and by the truth. Raises InputError where a user's reward returns no reward."""
    noise, grade = self._settings.noise, self._service.grade
    with jax.transfer_guard("allow"):  # a reward of a user's own may compute with jax
      return grade_step(self._terms, noise, sampled.drawn.answers, self._label_right, grade, self._calls)

  def update(self, sampled: Sampled, grades: StepGrades) -> dict[str, float]:
    """Trains on graded responses and logs the step's metrics; evaluates and saves if the step is due for it.

    Returns the metrics that the host knows: all if the step was evaluated, else those that need no device. Raises
    TrainingStopped where too many responses are unscored or updates are not finite, and Interrupted, after saving, if a
    signal has asked the run to stop.
    """
    step = sampled.step
    metrics = self._train(sampled, grades)
    means = None
    every = self._config.evaluate.every
    evaluates = step == self._settings.steps or (every and step % every == 0)
    if evaluates:
      metrics = self._save_and_evaluate(step, metrics, sampled.begun)
      means = self._evaluator.means
    else:
      metrics["step_time"] = time.monotonic() - sampled.begun
    self._done = step
    self._log(step, metrics, means)
    self._progress(step, {"reward": metrics["reward"], "true": metrics["true_reward"], "phase": self._watch.in_words})
    if evaluates:
      self._run.flush()
      self._run.raise_if_asked_after_save()
    elif self._run.due(step, self._settings.steps):
      self._save(step, unevaluated=None)
      self._run.raise_if_asked_after_save()
    return {name: float(value) for name, value in metrics.items() if not isinstance(value, jax.Array)}

  def _train(self, sampled: Sampled, grades: StepGrades) -> dict:
    """Updates the policy and returns the metrics of the step; the device still computes some of them.

    The device updates while the host writes rollouts.
    """
    s, learner = self._settings, self._learner
    step, prompts, drawn = sampled.step, sampled.prompts, sampled.drawn
    paid = trained_responses(grades.paid, s.group_size)
    weights = learner.weigh(drawn, paid)
    batches = sampled.batches
    if batches is None:
      # Where the loss has no further terms, responses whose advantage is 0 have no gradient and get no place.
      kept_PG = None if learner.needs_all_responses else weights.advantage_PG != 0
      batches = learner.make_batches(self._state.params, None, prompts, drawn, kept_PG)
    metrics: dict[str, Any] = {**self._update(step, batches, weights)}
    rows = write_rollouts(self._run.workdir, step, drawn, grades)
    stop_if_unscored(step, paid, s.max_unscored)
    metrics |= host_metrics(grades, drawn, rows, s.group_size)
    self._num_tokens += drawn.length_PG.sum() + prompts.length_P.sum() * drawn.length_PG.shape[1]
    metrics["num_tokens"] = self._num_tokens
    return metrics | {"empty_updates": learner.count_empty_updates(weights), "idle": self._busy.idle()}

  def _draw(self, step: int) -> tuple[rollout.Prompts, rollout.Drawn]:
    """Samples the step's problems and returns (prompts, responses)."""
    problems, occurrence_P = problem_lists.batch(
      self._loaded.problems, self._config.seed, step, self._settings.problems_per_step
    )
    prompts = self._sampler.prompts(problems, self._loaded, occurrence_P)
    return prompts, self._sampler.draw(self._sampler.weights(self._state.params), prompts, step)

  def _score(self, prompts: rollout.Prompts, drawn: rollout.Drawn) -> list[UpdateBatch]:
    """Returns the batches of the step's updates, with log-probabilities by the reference model under computation."""
    batches = self._learner.make_batches(self._state.params, self._ref_params, prompts, drawn)
    self._busy.watch([update_batch.batch.ref_logp_RS for update_batch in batches])
    return batches

  def _update(self, step: int, batches: list[UpdateBatch], weights: objective.Weights) -> dict[str, jax.Array]:
    """Updates the state and returns the updates' metrics, which are still being computed."""
    updates = self._learner.updates_per_step
    rates = self._rates[(step - 1) * updates : step * updates]
    self._state, metrics = self._learner.do_updates(self._state, rates, batches, weights)
    self._busy.watch(metrics)
    return metrics

  def _save(self, step: int, unevaluated: dict | None) -> None:
    """Saves a checkpoint of the step. unevaluated: the metrics of a step that is evaluated after this save, else
    None."""
    self._run.save(step, self._state, origin=self._policy.origin, before=self._watch.before, unevaluated=unevaluated)
    self._saved = step

  def _save_and_evaluate(self, step: int, metrics: Mapping, begun: float) -> dict[str, float]:
    """Saves the step, evaluates it, and returns its metrics on the host with those of the evaluation.

    A run that is stopped during the evaluation goes on with the evaluation. begun: when the step began.
    """
    metrics = {name: float(value) for name, value in multihost.fetch(metrics).items()}
    metrics["step_time"] = time.monotonic() - begun
    self._save(step, logbook.finite(metrics))
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._busy.idle()  # resets the count: idle time of the evaluation is not the next step's
    return metrics

  def _log(self, step: int, metrics: dict, means: Mapping[str, float] | None) -> None:
    """Adds the phase to the metrics and logs them. means: true reward by held-out problem if the step was evaluated."""
    metrics |= self._watch.observe(step, metrics, means)
    self._unpaid.observe(step, metrics)
    self._run.log(step, metrics)

  def save_last_step(self) -> None:
    """Saves a checkpoint of the last step that is done, unless there is one, and waits until it is on disk."""
    if self._saved != self._done:
      self._save(self._done, unevaluated=None)
      self._run.wait()

  def finish(self) -> dict:
    """Finishes the run, prints what it has gained, and returns its summary, whose keys `rl` names."""
    self._run.flush()  # of a run that was resumed only to evaluate its last step, the metrics are not written yet
    summary = self._run.finish(
      **self._watch.summary(),
      **self._unpaid.summary(),
      problems=len(self._loaded.problems),
      dropped=self._loaded.dropped,
      paper=self._config.paper.to_dict(),
      **self._evaluator.overlaps(),
      **_final_metrics(self._run.workdir),
    )
    rows = logbook.read_jsonl(self._run.workdir / "metrics.jsonl")
    print(outcome.paragraph(rows, summary, self._run.home))
    return summary


def _first_with_jax_of_its_own(make: Callable[[], Any]) -> Any:
  """Calls a user's function on the first process and returns its result on all; its jax sees no mesh of the run."""

  def call() -> Any:
    with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
      return make()

  return multihost.first(call)


@contextlib.contextmanager
def open_trainer(config: ConfigDict, workdir: str | Path) -> Iterator[Trainer]:
  """Opens a run of RL as a context manager: yields its trainer with the state restored, unless the run is finished.

  Raises InputError for a config that does not fit its data, devices or run directory.
  """
  with open_run(config, workdir, "rl") as run, Busy() as busy:
    start = build_policy.open_policy(config, to_train=True)
    policy, s = start.policy, config.rl
    check_sizes(config, policy)
    sampler = rollout.Sampler(config, policy, "rl", s.sample_parts, busy, int8=s.sample_int8)
    with rollout.verifier_service(config) as service:
      with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
        trainer = Trainer(config, run, policy, sampler, service, busy)
      trainer.load(start.load)
      with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
        trainer.begin()
        if not trainer.finished:
          trainer.restore()
      yield trainer


def rl(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the policy of `config.init` by RL on `config.problems`, and returns the run's summary.

  Writes metrics.jsonl, rollouts/, evals/ and checkpoints/ into the run directory `workdir`, and at the end prints a
  paragraph with the accuracy before and after, the places of its files and the next command. A finished run is not
  trained again: its summary is returned.

  Keys of the summary: stage; finished (True); steps (the last step); phase (at that step: "learning", "memorising",
  "collapsed" or "not decided"); stopped ({"step", "why"}; only if the run ended itself); unpaid (an explanation; only
  if no step had a reward); problems (their number); dropped (number left out as their prompts are too long); paper
  (the group config.paper: what the paper reports of the experiment); heldout_overlap and heldout_left_out (numbers by
  held-out set, as in `evaluate`); and the last value of each metric eval/SET/FIGURE.

  Raises InputError for a config that does not fit its data, devices or run directory; TrainingStopped where too many
  responses can't be graded or too many updates in a row are not finite; Interrupted, with a checkpoint, at a signal.
  """
  with open_trainer(config, workdir) as trainer:
    if trainer.finished:
      return trainer.summary
    with trainer.on_devices():
      for step in trainer.steps():
        sampled = trainer.sample(step)
        grades = trainer.grade(sampled)
        trainer.update(sampled, grades)
      return trainer.finish()


def _final_metrics(workdir: Path) -> dict:
  """Returns {name: last value} of the metrics eval/SET/FIGURE in WORKDIR/metrics.jsonl; {} where there are none."""
  final = {}
  for row in logbook.read_jsonl(workdir / "metrics.jsonl"):
    for name, value in row.items():
      if name.startswith("eval/"):
        final[name] = value
  return final
