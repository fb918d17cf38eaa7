"""The stage rl: trains a policy by GRPO or a variant on a weak or true reward, and logs the truth beside it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.analysis import reward_vs_truth
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import TrainingStopped
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.device import multihost, sharding
from jaxrlvr.device.idle import Busy
from jaxrlvr.grading.service import Service
from jaxrlvr.grading.vote import Grade
from jaxrlvr.model import row_layout
from jaxrlvr.rewards import expression, verifiable
from jaxrlvr.rewards.noise import add_noise
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.evaluate import Evaluator
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.unpaid import Unpaid, shares
from jaxrlvr.stages.watch import Watch
from jaxrlvr.training import objective
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.update import TrainState, update


class UpdateBatch(NamedTuple):
  """The rows that one update trains on."""

  batch: objective.RolloutBatch  # tokens, positions, segments and log-probabilities, all [rows, slots]
  live: jax.Array  # number of microbatches that hold responses; these are the first ones


class Learner(NamedTuple):
  """Turns the graded responses of a step into updates of the policy. It has no state: it is the same at every step."""

  policy: build_policy.Policy
  loss_fn: object  # the loss of a batch, as `training.objective.grpo` returns it
  optimizer: object  # an optax optimizer
  updates: int  # number of updates in a step
  layout: row_layout.RowLayout  # how responses lie in the rows of an update
  settings: ConfigDict  # config.rl

  def score(self, params: Mapping[str, jax.Array], batch: objective.RolloutBatch, live: jax.Array) -> jax.Array:
    """Returns the log-probability [R,S] of each token of a batch under these weights, at the sampling temperature."""
    return objective.logp(params, batch, live, **self.scoring())

  def scoring(self) -> dict:
    """Returns the keyword arguments of `objective.logp`: spec, temperature, and parts (the number of microbatches)."""
    s = self.settings
    return {"spec": self.policy.spec, "temperature": s.temperature, "parts": s.microbatches}

  def weigh(self, drawn: rollout.Drawn, graded: Graded) -> objective.Weights:
    """Returns the weight in the loss and the advantage of each response that is trained on, both [P,G].

    drawn: all responses of a step. graded: the rewards of those that are trained on, the first G to each problem.
    Unscored responses have no part in the means of their group, and neither have responses that were cut off if
    rl.mask_truncated is set.
    """
    s = self.settings
    counted_PG = graded.scored_PG
    if s.mask_truncated:
      counted_PG = counted_PG & (drawn.stop_PG[:, : s.group_size] != STOP_LENGTH)
    return objective.weigh(
      drawn.length_PG[:, : s.group_size],
      graded.value_PG,
      counted_PG,
      max_tokens=s.response_tokens,
      baseline=s.baseline,
      scale_std=s.scale_std,
      reduce=s.reduce,
      updates=self.updates,
      correction=s.correction,
      noise=s.correction_noise or s.noise,
    )

  def empty(self, weights: objective.Weights) -> int:
    """Returns how many of a step's updates have no gradient from any response's advantage.

    Momentum, weight decay and the KL term may still change the weights in them.
    """
    has_gradient_PG = (weights.weight_PG != 0) & (weights.advantage_PG != 0)
    return sum(not has_gradient_PG[first :: self.updates].any() for first in range(self.updates))

  def shape(self) -> tuple[int, int]:
    """Returns (rows, slots a row) of an update's batch; a slot holds a token."""
    s = self.settings
    responses = s.problems_per_step * s.group_size // self.updates
    return self.layout.rows(responses), self.layout.slots

  def parts(
    self,
    params: Mapping[str, jax.Array],
    ref_params: Mapping[str, jax.Array],
    prompts: rollout.Prompts,
    drawn: rollout.Drawn,
    kept_PG: np.ndarray | None = None,
  ) -> list[UpdateBatch]:
    """Lays out the batch of each update of a step and scores it, and returns these batches.

    params: weights of the policy, which are the old policy of all updates of the step. prompts, drawn: the step's
    prompts and all responses, of which the first rl.group_size to each prompt are trained on. ref_params: weights of
    the reference model; None: there is none. kept_PG: responses that get a place if rl.pack is set; None: all. The
    groups go to the updates in turn: with two, even problems to the first and odd ones to the second. With one update a
    step the old policy is the policy itself, whose log-probabilities the update computes anyway, so that the batch has
    none.
    """
    s, mesh = self.settings, self.policy.mesh
    placements = self._place(prompts, drawn, kept_PG)
    replicated, by_rows = sharding.named_sharding(mesh), sharding.named_sharding(mesh, "batch")
    shardings = (replicated, [(by_rows, replicated)] * len(placements))
    # One transfer for all batches of the step.
    problems, placements = multihost.put(((prompts.tokens_PS, prompts.length_P), placements), shardings)
    tokens_PS, length_P = problems
    parts = []
    for (segments_RS, positions_RS), live in placements:
      batch = objective.lay_out_batch(
        tokens_PS,
        length_P,
        drawn.rollout,
        segments_RS,
        positions_RS,
        samples=s.votes or s.group_size,
        group=s.group_size,
        layout=self.layout,
      )
      old_logp_RS = ref_logp_RS = None
      if self.updates > 1:
        old_logp_RS = self.score(params, batch, live)
      if ref_params is not None:
        ref_logp_RS = self.score(ref_params, batch, live)
      parts.append(UpdateBatch(batch.replace(old_logp_RS=old_logp_RS, ref_logp_RS=ref_logp_RS), live))
    return parts

  def _place(self, prompts: rollout.Prompts, drawn: rollout.Drawn, kept_PG: np.ndarray | None) -> list:
    """Returns ((segments [R,S], positions [R,S]), number of live microbatches) for each update, as numpy arrays."""
    s = self.settings
    rows, _ = self.shape()
    length_PG = drawn.length_PG[:, : s.group_size]
    kept_B = np.ones(length_PG.size, bool)
    if s.pack and kept_PG is not None:
      kept_B = kept_PG.reshape(-1)
    response_PUG = np.arange(length_PG.size).reshape(-1, self.updates, s.group_size)
    placements = []
    for response_PG in response_PUG.swapaxes(0, 1):
      kept = response_PG[kept_B[response_PG]]
      placed = self.layout.place(prompts.length_P, length_PG, kept, rows, s.microbatches, s.pack)
      placements.append(((placed.segments_RS, placed.positions_RS), np.int32(placed.live)))
    return placements

  def __call__(
    self, state: TrainState, rates, parts: list[UpdateBatch], weights: objective.Weights
  ) -> tuple[TrainState, dict]:
    """Does all updates of a step and returns (new state, metrics of the step).

    rates: learning rate of each update. parts: the batches that the method `parts` returned. weights: the weight and
    the advantage of each response, both [P,G], as `weigh` returned them. The state's arrays are donated. The metrics
    are device arrays by name that may still be under computation.
    """
    replicated = sharding.named_sharding(self.policy.mesh)
    (weight_PG, advantage_PG), rates = multihost.put((weights, list(rates)), replicated)
    metrics_of_updates = []
    for part, rate in zip(parts, rates, strict=True):
      batch = objective.add_weights(part.batch, weight_PG, advantage_PG)
      state, metrics = update(
        state,
        batch,
        rate,
        part.live,
        loss_fn=self.loss_fn,
        optimizer=self.optimizer,
        microbatches=self.settings.microbatches,
      )
      metrics_of_updates.append(metrics)
    return state, values_of(*metrics_of_updates)


def make_learner(
  config: ConfigDict, policy: build_policy.Policy, length_P: Sequence[int] = ()
) -> tuple[Learner, np.ndarray]:
  """Returns (learner, learning rate of each update of the run) for a config's settings.

  length_P: lengths of the prompts in tokens, by which the layout of rows is chosen if rl.branches is -1; (): unknown.
  The rates are a numpy array with an entry for each update of all steps, in order. Raises InputError where the layout
  that rl.branches asks for is not possible.
  """
  s = config.rl
  problems_per_update = s.minibatch_problems or s.problems_per_step
  updates = s.problems_per_step // problems_per_update
  optimizer, rates = build_policy.make_optimizer(s.optim, s.steps * updates)
  loss_fn = objective.grpo(
    policy.spec,
    temperature=s.temperature,
    kl_beta=s.kl_beta,
    kl_estimator=s.kl_estimator,
    clip_low=s.clip_low,
    clip_high=s.clip_high,
    dual_clip=s.dual_clip or None,
    ratio=s.ratio,
    importance_cap=s.importance_cap or None,
  )
  layout = row_layout.choose(
    s.branches,
    length_P,
    prompt_tokens=s.prompt_tokens,
    response_tokens=s.response_tokens,
    group=s.group_size,
    responses=problems_per_update * s.group_size,
    parts=s.microbatches * sharding.shard_count(policy.mesh, "batch"),
    attention=policy.spec.attention,
  )
  return Learner(policy, loss_fn, optimizer, updates, layout, s), rates


class RewardAndTruth(NamedTuple):
  """The grades of all responses of a step, [P, samples], with those that only vote."""

  paid: Graded  # the reward, with noise if there is any
  parts: dict[str, Graded]  # the reward's factors by name, without noise
  true: Graded  # grades by the truth
  # Whether the label that rewards went by is right, 1 or 0, for each problem with such a label: the vote's winner where
  # the reward is a vote, else the problem's own label. None: it could not be graded.
  label_right_P: list[float | None]


def reward_and_truth(
  terms: expression.Terms,
  noise: tuple[float, float],
  answers: Answers,
  label_right: Mapping[str, float | None],
  grade: Grade,
) -> RewardAndTruth:
  """Grades responses by the reward and, without any influence on it, by the truth; returns both.

  terms: the parsed reward. noise: rates of false positives and of false negatives. label_right: whether the problem's
  own label is right, 1 or 0 (None: unknown), by problem id. grade: grades a list of jobs and returns their verdicts; no
  job is graded twice.
  """
  grade = verifiable.with_memory(grade)
  paid, parts = expression.grade_terms(terms, answers, grade)
  true = verifiable.grade_by_truth(answers, grade)
  if any(noise):
    paid = add_noise(paid, answers, *noise)
  if paid.elections_P is None:
    label_right_P = [label_right[problem.id] for problem in answers.problems]
  else:
    label_right_P = []
    for i, election in enumerate(paid.elections_P):
      if election.winner is not None:
        is_scored = true.scored_PG[i, election.winner]
        label_right_P.append(float(true.value_PG[i, election.winner]) if is_scored else None)
  return RewardAndTruth(paid, parts, true, label_right_P)


def trained(graded: Graded, group: int) -> Graded:
  """Returns the grades [P, group] of the first `group` responses to each problem, which are trained on.

  graded: the grades of all responses [P, samples], with those that only vote.
  """
  return graded._replace(
    value_PG=graded.value_PG[:, :group],
    scored_PG=graded.scored_PG[:, :group],
    cause_PG=[row[:group] for row in graded.cause_PG],
  )


def host_metrics(
  judged: RewardAndTruth, drawn: rollout.Drawn, rows: Sequence[Mapping], group: int, binary: bool
) -> dict:
  """Returns the metrics of a step that the host computes: rewards, truth, lengths and faithfulness.

  rows: the step's rows of rollouts/. group: number of responses to each problem that are trained on; the metrics are
  about these, except lengths and faithfulness. binary: whether the reward is 0 or 1. A mean of nothing is nan.

  Keys of rewards: reward and reward_std (mean and standard deviation), frac_reward_zero_std (share of problems whose
  responses are all paid alike), unscored (share), unscored/CAUSE, and rewards/NAME/mean and rewards/NAME/std for each
  factor of the reward. Of truth: true_reward and, if binary, reward_accuracy, false_positive_rate and
  false_negative_rate; label_accuracy and, where labels are voted, vote/majority_ratio, vote/margin and vote/none;
  unparseable, timeout and answers/KIND (shares of responses, by what became of their answers). Of responses:
  completions/mean_length (tokens), completions/clipped_ratio (share cut off), entropy and self_certainty (nats a token)
  and, if any response has a label of faithfulness, faithful (share of these with label 1) and step_true (mean share of
  right steps).
  """
  paid, true = trained(judged.paid, group), trained(judged.true, group)
  is_cut_off_PG = drawn.stop_PG == STOP_LENGTH
  metrics = _reward_statistics(paid)
  metrics |= {
    "completions/mean_length": drawn.length_PG.mean(),
    "completions/clipped_ratio": is_cut_off_PG.mean(),
  }
  for name, statistic in (("entropy", "entropy"), ("self_certainty", "certainty")):
    metrics[name] = np.average(drawn.answers.statistics[statistic][:, :group], weights=drawn.length_PG[:, :group])
  for name, part in judged.parts.items():
    part = trained(part, group)
    values = part.value_PG[part.scored_PG]
    metrics[f"rewards/{name}/mean"] = reward_vs_truth.mean(values)
    metrics[f"rewards/{name}/std"] = values.std() if len(values) else np.nan
  for cause, count in _count_causes(paid).items():
    metrics[f"unscored/{cause}"] = count / paid.scored_PG.size
  metrics |= reward_vs_truth.reward_metrics(paid.value_PG, paid.scored_PG, true.value_PG, true.scored_PG, binary)
  metrics |= reward_vs_truth.label_metrics(judged.label_right_P, judged.paid.elections_P)
  metrics |= reward_vs_truth.cause_metrics(true.cause_PG)
  metrics |= shares(true.value_PG, true.scored_PG, true.cause_PG, is_cut_off_PG[:, :group])
  faithfulness = [row["faithfulness"] for row in rows if row["faithfulness"] is not None]
  if faithfulness:
    step_true = [row["step_true"] for row in rows if row["step_true"] is not None]
    metrics["faithful"] = np.mean([label == 1.0 for label in faithfulness])
    metrics["step_true"] = reward_vs_truth.mean(step_true)
  return metrics


def _reward_statistics(paid: Graded) -> dict:
  """Returns `reward`, `reward_std` and `frac_reward_zero_std` over scored responses, and the share `unscored`."""
  scored_PG = paid.scored_PG
  groups = []
  for value_G, scored_G in zip(paid.value_PG, scored_PG, strict=True):
    if scored_G.any():
      groups.append(value_G[scored_G])
  if not groups:
    rewards = dict.fromkeys(("reward", "reward_std", "frac_reward_zero_std"), np.nan)
    return rewards | {"unscored": 1.0 - scored_PG.mean()}
  return {
    "reward": paid.value_PG[scored_PG].mean(),
    "reward_std": np.mean([group.std(ddof=1) if len(group) > 1 else 0.0 for group in groups]),
    "frac_reward_zero_std": np.mean([np.ptp(group) == 0 for group in groups]),
    "unscored": 1.0 - scored_PG.mean(),
  }


def _count_causes(graded: Graded) -> Counter[str]:
  """Returns how many responses are unscored, by cause."""
  cause_PG = np.array(graded.cause_PG, object)
  return Counter(cause_PG[~graded.scored_PG])


def check_sizes(config: ConfigDict, policy: build_policy.Policy) -> None:
  """Raises InputError, before anything compiles, where the mesh can't split the batches of config.rl evenly."""
  s = config.rl
  problems = s.minibatch_problems or s.problems_per_step
  sharding.check_divisible(policy.mesh, "config.rl.problems_per_step", (s.problems_per_step,), ("batch",))
  part = s.problems_per_step // s.sample_parts
  name = "config.rl.problems_per_step / config.rl.sample_parts"
  sharding.check_divisible(policy.sample_mesh, name, (part,), ("batch",))
  rows = problems * s.group_size
  what = (
    f"rows of a micro-batch ({problems} problems an update x group {s.group_size} = {rows} rows in {s.microbatches})"
  )
  sharding.check_divisible(policy.mesh, what, (rows // s.microbatches,), ("batch",))


class Trainer:
  """A run of RL, with the state of its policy.

  Call `open`, then `restore`, then `step` for each step that `steps` yields, then `finish`. On several hosts all
  processes must call these together. The constructor reads the problems and the held-out sets, and raises InputError
  where they can't be read, overlap though they must not, or take more memory than is free. run: the open run directory.
  sampler: draws responses of `policy`. service: grades answers. busy: records when the devices are at work.
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
    self._config, self._settings = config, config.rl
    self._run, self._policy, self._sampler, self._service, self._busy = run, policy, sampler, service, busy
    self._loaded = rollout.load_problems(config, "problems", policy.tokenizer, service)
    problems = self._loaded.problems
    self._learner, self._rates = make_learner(config, policy, [len(self._loaded.ids[one.id]) for one in problems])
    self._evaluator = Evaluator(config, policy, service, problems)
    self._terms = expression.parse(config.rl.reward)

  def open(self) -> None:
    """Begins the run in its directory, which must hold no run with another config, other problems or other weights."""
    tokenizer, origin = self._policy.tokenizer.pieces(), self._policy.origin.get("digests")
    self._run.begin(
      problems=self._loaded.problems, heldout=self._evaluator.problems, tokenizer=tokenizer, origin=origin
    )

  def restore(self) -> None:
    """Restores the state of the last checkpoint; without one, begins at step 0 and evaluates the policy there."""
    config, s, run, problems = self._config, self._settings, self._run, self._loaded.problems
    build_policy.write_policy_files(config, self._policy, run.workdir, problems)
    rollout.write_prompt(run.workdir, self._policy, problems[0])
    self._label_right = verifiable.labels_right(problems, self._service.grade)
    self._ref_params = build_policy.reference_weights(self._policy) if s.kl_beta else None
    self._state, meta = run.restore(build_policy.fresh_state(self._policy, self._learner.optimizer))
    self._start = meta["step"] if meta else 0
    self._progress = run.progress(s.steps, self._start)
    if meta is None:
      run.log(0, self._evaluator(self._state.params, run, 0))
    rows = multihost.first(lambda: logbook.read_jsonl(run.workdir / "metrics.jsonl"))
    before = meta["before"] if meta else self._evaluator.means
    self._watch = Watch(rows, before, s.worthwhile_gain, s.stop_when_memorising)
    self._unpaid = Unpaid(rows, config)
    logged = max((row["step"] for row in rows), default=-1)
    if meta and meta["unevaluated"] and logged < self._start:
      self._evaluate_again(meta["unevaluated"])

  def _evaluate_again(self, unevaluated: Mapping[str, float | None]) -> None:
    """Evaluates and logs the last step of a run that was stopped between its save and its evaluation.

    unevaluated: the step's metrics without those of the evaluation.
    """
    step, begun = self._start, time.monotonic()
    metrics = {name: math.nan if value is None else value for name, value in unevaluated.items()}
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._log(step, metrics, self._evaluator.means, begun)

  def steps(self) -> Iterator[int]:
    """Yields the steps that are left to do. Ends early if the watch decides that the policy memorises."""
    for step in range(self._start + 1, self._settings.steps + 1):
      if self._watch.stops:
        return
      yield step

  def step(self, step: int) -> None:
    """Trains on the step's problems and logs its metrics; evaluates and saves if the step is due for it.

    Raises TrainingStopped where too many responses are unscored or updates are not finite, and Interrupted, after
    saving, if a signal has asked the run to stop.
    """
    begun = time.monotonic()
    metrics = self._train(step)
    means = None
    every = self._config.evaluate.every
    evaluates = step == self._settings.steps or (every and step % every == 0)
    if evaluates:
      metrics = self._save_and_evaluate(step, metrics)
      means = self._evaluator.means
    self._log(step, metrics, means, begun)
    self._progress(step, {"reward": metrics["reward"], "true": metrics["true_reward"], "phase": self._watch.in_words})
    if evaluates:
      self._run.flush()
      self._run.raise_if_asked_after_save()
    elif self._run.due(step, self._settings.steps):
      self._save(step, unevaluated=None)
      self._run.raise_if_asked_after_save()

  def _train(self, step: int) -> dict:
    """Samples, grades and updates, and returns the metrics of the step; the device still computes some of them.

    The device scores by the reference model while the workers grade, and updates while the host writes rollouts.
    """
    s, learner = self._settings, self._learner
    prompts, drawn = self._draw(step)
    parts = self._score(prompts, drawn) if s.kl_beta else None
    judged = reward_and_truth(self._terms, s.noise, drawn.answers, self._label_right, self._service.grade)
    graded = trained(judged.paid, s.group_size)
    weights = learner.weigh(drawn, graded)
    if parts is None:  # without a KL term, responses whose advantage is 0 have no gradient and get no place
      parts = learner.parts(self._state.params, None, prompts, drawn, weights.advantage_PG != 0)
    metrics = self._update(step, parts, weights)
    rows = write_rollouts(self._run.workdir, step, drawn, judged)
    stop_if_unscored(step, graded, s.max_unscored)
    metrics |= host_metrics(judged, drawn, rows, s.group_size, expression.is_binary(self._terms))
    return metrics | {"empty_updates": learner.empty(weights), "idle": self._busy.idle()}

  def _draw(self, step: int) -> tuple[rollout.Prompts, rollout.Drawn]:
    """Samples the step's problems and returns (prompts, responses)."""
    problems, occurrence_P = problem_lists.batch(
      self._loaded.problems, self._config.seed, step, self._settings.problems_per_step
    )
    prompts = self._sampler.prompts(problems, self._loaded, occurrence_P)
    return prompts, self._sampler.draw(self._sampler.weights(self._state.params), prompts, step)

  def _score(self, prompts: rollout.Prompts, drawn: rollout.Drawn) -> list[UpdateBatch]:
    """Returns the batches of the step's updates, with log-probabilities by the reference model under computation."""
    parts = self._learner.parts(self._state.params, self._ref_params, prompts, drawn)
    self._busy.watch([part.batch.ref_logp_RS for part in parts])
    return parts

  def _update(self, step: int, parts: list[UpdateBatch], weights: objective.Weights) -> dict[str, jax.Array]:
    """Updates the state and returns the updates' metrics, which are still being computed."""
    updates = self._learner.updates
    rates = self._rates[(step - 1) * updates : step * updates]
    self._state, metrics = self._learner(self._state, rates, parts, weights)
    self._busy.watch(metrics)
    return metrics

  def _save(self, step: int, unevaluated: dict | None) -> None:
    """Saves a checkpoint of the step. unevaluated: the metrics of a step that is evaluated after this save, else
    None."""
    self._run.save(step, self._state, origin=self._policy.origin, before=self._watch.before, unevaluated=unevaluated)

  def _save_and_evaluate(self, step: int, metrics: Mapping) -> dict[str, float]:
    """Saves the step, evaluates it, and returns its metrics on the host with those of the evaluation.

    A run that is stopped during the evaluation goes on with the evaluation.
    """
    metrics = {name: float(value) for name, value in multihost.fetch(metrics).items()}
    self._save(step, logbook.finite(metrics))
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._busy.idle()  # resets the count: idle time of the evaluation is not the next step's
    return metrics

  def _log(self, step: int, metrics: dict, means: Mapping[str, float] | None, begun: float) -> None:
    """Adds the phase and the step's time to the metrics, and logs them.

    means: mean true reward by held-out problem if the step was evaluated. begun: when the step began.
    """
    metrics |= self._watch(step, metrics, means)
    self._unpaid(step, metrics)
    self._run.log(step, metrics | {"step_time": time.monotonic() - begun})

  def finish(self) -> dict:
    """Finishes the run and returns its summary.

    Keys: stage, finished, steps (the last step), phase (the claim at it), stopped ({"step", "why"}, if the run ended
    itself), unpaid (an explanation, if no step had a reward), problems (their number), dropped (problems left out as
    their prompts are too long), paper (what the paper reports of the experiment), heldout_overlap and heldout_left_out
    (numbers by held-out set), and the last value of each metric eval/SET/FIGURE.
    """
    self._run.flush()  # of a run that was resumed only to evaluate its last step, the metrics are not written yet
    return self._run.finish(
      **self._watch.summary(),
      **self._unpaid.summary(),
      problems=len(self._loaded.problems),
      dropped=self._loaded.dropped,
      paper=self._config.paper.to_dict(),
      **self._evaluator.overlaps(),
      **final_metrics(self._run.workdir),
    )


def rl(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the policy of `config.init` by RL on `config.problems` and returns the run's summary.

  Writes metrics.jsonl, rollouts/, evals/ and checkpoints. The summary has the last step as `steps`, the `phase`, the
  number of `problems`, the last metrics eval/SET/FIGURE, and more (`Trainer.finish`). A finished run is not trained
  again. Raises InputError for a config that does not fit its data or devices, and TrainingStopped where too many
  responses can't be graded or too many updates are not finite.
  """
  with open_run(config, workdir, "rl") as run, Busy() as busy:
    policy = build_policy.load_policy(config)
    check_sizes(config, policy)
    sampler = make_sampler(config, policy, busy)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      trainer = Trainer(config, run, policy, sampler, service, busy)
      trainer.open()
      if run.finished:
        return run.summary
      trainer.restore()
      for step in trainer.steps():
        trainer.step(step)
      return trainer.finish()


def make_sampler(config: ConfigDict, policy: build_policy.Policy, busy: Busy) -> rollout.Sampler:
  """Returns the sampler of a step's responses. Raises InputError where they take more memory than is free."""
  s = config.rl
  sampler = rollout.Sampler(config, policy, "rl", s.sample_parts, busy, int8=s.sample_int8)
  cure = (
    "config.rl.response_tokens, config.rl.problems_per_step or config.rl.group_size (or .votes), or raise "
    "config.rl.sample_parts"
  )
  sampler.check_memory("sampling a step", s.problems_per_step // s.sample_parts, cure)
  return sampler


def write_rollouts(workdir: Path, step: int, drawn: rollout.Drawn, judged: RewardAndTruth) -> list[dict]:
  """Writes rollouts/step_STEP.jsonl and returns its rows, one for each response of the step, problem by problem.

  A row has the columns of `rollout.records` (step, problem, sample, text, answer, true_reward, ...) and `reward`, what
  the response was paid; nan, which the file holds as null, where it is unscored.
  """
  paid = np.where(judged.paid.scored_PG, judged.paid.value_PG, np.nan).tolist()
  rows = rollout.records(drawn, step, judged.true, {"reward": paid})
  logbook.write_jsonl(workdir / "rollouts" / f"step_{step:06d}.jsonl", rows)
  return rows


def stop_if_unscored(step: int, graded: Graded, limit: float) -> None:
  """Raises TrainingStopped, with the causes, where more than the share `limit` of the responses is unscored."""
  share = 1.0 - graded.scored_PG.mean()
  if share > limit:
    causes = dict(_count_causes(graded))
    raise TrainingStopped(
      f"step {step}: {share:.0%} of the answers could not be graded ({causes}), over config.rl.max_unscored = "
      f"{limit}; raise config.verify limits or look at what the policy writes in rollouts/"
    )


def final_metrics(workdir: Path) -> dict:
  """Returns {name: last value} of the metrics eval/SET/FIGURE in WORKDIR/metrics.jsonl; {} where there are none."""
  rows = logbook.read_jsonl(workdir / "metrics.jsonl")
  return {name: value for row in rows for name, value in row.items() if name.startswith("eval/")}
