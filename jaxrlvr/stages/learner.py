"""The learner of RL: lays out the responses of a step in batches, scores them, and updates the policy by GRPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import row_layout
from jaxrlvr.planning import memory
from jaxrlvr.planning.memory import Memory, SamplingWork
from jaxrlvr.rewards.types import Graded
from jaxrlvr.sampling.types import STOP_LENGTH, Sampling
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.training import objective, terms
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.terms import Term
from jaxrlvr.training.update import LossFn, TrainState, update


class UpdateBatch(NamedTuple):
  """The rows that one update trains on, cut into microbatches of equally many rows."""

  batch: objective.RolloutBatch  # tokens, positions, segments (0: padding) and log-probabilities, all [rows, slots]
  live: jax.Array  # int32 number of microbatches that hold responses; these come first, the others hold padding


class Learner(NamedTuple):
  """Turns the graded responses of an RL step into updates of the policy. `make_learner` makes it.

  It has no state: the training state is passed in and returned. At each step call `weigh`, `make_batches` and then
  `do_updates`. On several hosts all processes must call these together.
  """

  policy: build_policy.Policy
  loss_fn: LossFn  # GRPO's loss of a batch
  optimizer: optax.GradientTransformation
  updates_per_step: int  # each update trains on an equal share of the step's problems
  layout: row_layout.RowLayout  # how responses lie in the rows of an update
  settings: ConfigDict  # config.rl
  terms: tuple[Term, ...] = ()  # what is added to the loss beside GRPO's

  @property
  def needs_reference(self) -> bool:
    """Property: whether the loss reads log-probabilities by the reference model."""
    return bool(self.settings.kl_beta) or any("ref_logp" in term.takes for term in self.terms)

  @property
  def needs_all_responses(self) -> bool:
    """Property: whether responses with advantage 0 have a gradient too."""
    return self.needs_reference or bool(self.terms)

  def _score(self, params: Mapping[str, jax.Array], batch: objective.RolloutBatch, live: jax.Array) -> jax.Array:
    """Returns the log-probability [rows, slots] of each response token of a batch, at the sampling temperature.

    It is in nats, and 0 at prompts and padding. params: all weights to score by. batch, live: of an `UpdateBatch`.
    """
    return objective.logp(params, batch, live, **self.score_arguments())

  def score_arguments(self) -> dict:
    """Returns the settings that `objective.logp` takes by name: spec, temperature, and parts (microbatches)."""
    s = self.settings
    return {"spec": self.policy.spec, "temperature": s.temperature, "parts": s.microbatches}

  def weigh(self, drawn: rollout.Drawn, graded: Graded) -> objective.Weights:
    """Returns two float32 arrays [P,G] on the host: weight_PG, of a token of the response in the loss, and
    advantage_PG.

    drawn: all responses of a step. graded: the rewards of those that are trained on, the first G to each problem
    (`step_grades.trained_responses`). Responses that are unscored, or cut off if rl.mask_truncated is set, get weight
    and advantage 0 and count in no mean of their group.
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
      updates=self.updates_per_step,
      correction=s.correction,
      noise=s.correction_noise or s.noise,
    )

  def count_empty_updates(self, weights: objective.Weights) -> int:
    """Returns how many of a step's updates have no response with a weight and an advantage other than 0.

    Momentum, weight decay, the KL term and rl.loss_terms may still change the policy in them. weights: what `weigh`
    returned.
    """
    has_gradient_PG = (weights.weight_PG != 0) & (weights.advantage_PG != 0)
    empty = 0
    for update_index in range(self.updates_per_step):
      if not has_gradient_PG[update_index :: self.updates_per_step].any():
        empty += 1
    return empty

  def batch_shape(self) -> tuple[int, int]:
    """Returns (rows, slots of a row) of an update's batch; a slot holds a token."""
    s = self.settings
    responses = s.problems_per_step * s.group_size // self.updates_per_step
    return self.layout.rows(responses), self.layout.slots

  def memory(self, samplings: Sequence[tuple[Sampling, SamplingWork]]) -> Memory:
    """Returns what a run of RL takes of a device's memory, by part.

    samplings: the settings of each kind of sampling in the run, for training and for evaluation, and what a batch of it
    takes. The one that takes most counts; those of training come first.
    """
    s, policy = self.settings, self.policy
    rows, _ = self.batch_shape()
    update = memory.work_of_update(
      policy.spec, policy.mesh, self.layout, rows=rows, microbatches=s.microbatches, moment=s.optim.moment
    )
    laid_out = 0.0
    if policy.spec.lora is not None:
      laid_out = max(memory.frozen_for_sampling(policy.spec, policy.sample_mesh, one.int8) for one, _ in samplings)
    works = [work for _, work in samplings]
    responses = works[0].rollout  # which the updates read
    return Memory(
      memory.held_of_run(policy.spec, policy.mesh, s.optim.moment, self.needs_reference, laid_out),
      update._replace(batch=self.updates_per_step * update.batch + responses),
      max(works, key=sum),
    )

  def make_batches(
    self,
    params: Mapping[str, jax.Array],
    ref_params: Mapping[str, jax.Array] | None,
    prompts: rollout.Prompts,
    drawn: rollout.Drawn,
    kept_PG: np.ndarray | None = None,
  ) -> list[UpdateBatch]:
    """Lays out the responses of a step in a batch for each update, scores these, and returns them in order.

    The problems go to the updates in turn: with two, even problems to the first and odd ones to the second. Each batch
    gets log-probabilities by the old policy, unless there is one update a step (the update then computes them), and by
    the reference model, if there is one. The device may still be computing them.

    params: the trained weights of the policy, which is the old policy of all updates of the step. ref_params: all
    weights of the reference model; None: there is none. prompts, drawn: the step's prompts and all responses, of which
    the first rl.group_size to each prompt are trained on. kept_PG: bool; if rl.pack is set, only these responses get a
    place in a row; None: all.
    """
    s, mesh = self.settings, self.policy.mesh
    placements = self._place(prompts, drawn, kept_PG)
    replicated, by_rows = sharding.named_sharding(mesh), sharding.named_sharding(mesh, "batch")
    shardings = (replicated, [(by_rows, replicated)] * len(placements))
    # One transfer for all batches of the step.
    problems, placements = multihost.put(((prompts.tokens_PS, prompts.length_P), placements), shardings)
    tokens_PS, length_P = problems
    batches = []
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
      if self.updates_per_step > 1:
        old_logp_RS = self._score(self.policy.weights(params), batch, live)
      if ref_params is not None:
        ref_logp_RS = self._score(ref_params, batch, live)
      batches.append(UpdateBatch(batch.replace(old_logp_RS=old_logp_RS, ref_logp_RS=ref_logp_RS), live))
    return batches

  def _place(self, prompts: rollout.Prompts, drawn: rollout.Drawn, kept_PG: np.ndarray | None) -> list:
    """Returns ((segments [R,S], positions [R,S]), number of live microbatches) for each update, as numpy arrays."""
    s = self.settings
    rows, _ = self.batch_shape()
    length_PG = drawn.length_PG[:, : s.group_size]
    kept_B = np.ones(length_PG.size, bool)
    if s.pack and kept_PG is not None:
      kept_B = kept_PG.reshape(-1)
    response_PUG = np.arange(length_PG.size).reshape(-1, self.updates_per_step, s.group_size)
    placements = []
    for response_PG in response_PUG.swapaxes(0, 1):
      kept = response_PG[kept_B[response_PG]]
      placed = self.layout.place(prompts.length_P, length_PG, kept, rows, s.microbatches, s.pack)
      placements.append(((placed.segments_RS, placed.positions_RS), np.int32(placed.live)))
    return placements

  def do_updates(
    self, state: TrainState, rates: np.ndarray, batches: Sequence[UpdateBatch], weights: objective.Weights
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Does all updates of a step and returns (new state, metrics of the step by name).

    state: its arrays are donated, so that it must not be used afterwards. rates: learning rate of each update. batches:
    what `make_batches` returned. weights: what `weigh` returned. The metrics are device arrays without axes, as loss,
    grad_norm and kl (docs/metrics.md), which the device may still be computing.
    """
    replicated = sharding.named_sharding(self.policy.mesh)
    (weight_PG, advantage_PG), rates = multihost.put((weights, list(rates)), replicated)
    metrics_of_updates = []
    for update_batch, rate in zip(batches, rates, strict=True):
      batch = objective.add_weights(update_batch.batch, weight_PG, advantage_PG)
      state, metrics = update(
        state,
        batch,
        rate,
        update_batch.live,
        self.policy.frozen.weights,
        loss_fn=self.loss_fn,
        optimizer=self.optimizer,
        microbatches=self.settings.microbatches,
      )
      metrics_of_updates.append(metrics)
    return state, values_of(*metrics_of_updates)


def make_learner(
  config: ConfigDict, policy: build_policy.Policy, length_P: Sequence[int] = ()
) -> tuple[Learner, np.ndarray]:
  """Returns (the learner that config.rl describes, learning rate of each update of the run).

  The rates are a float32 array with updates_per_step entries for step 1, as many for step 2, and so on. length_P:
  lengths of the run's prompts in tokens, by which the layout of rows is chosen if rl.branches is -1; (): unknown.
  Raises InputError where the layout that rl.branches asks for is not possible.
  """
  s = config.rl
  problems_per_update = s.minibatch_problems or s.problems_per_step
  updates_per_step = s.problems_per_step // problems_per_update
  loss_terms = terms.parse_terms(s.loss_terms)
  optimizer, rates = build_policy.make_optimizer(s.optim, s.steps * updates_per_step)
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
    terms=loss_terms,
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
  return Learner(policy, loss_fn, optimizer, updates_per_step, layout, s, loss_terms), rates


def check_sizes(config: ConfigDict, policy: build_policy.Policy) -> None:
  """Raises InputError, before anything compiles, where the meshes can't split the batches of config.rl evenly.

  Checked are the problems of a step, the part of them that is sampled at a time, and the rows of a microbatch. policy:
  only its two meshes are read.
  """
  s = config.rl
  problems = s.minibatch_problems or s.problems_per_step
  sharding.check_divisible(policy.mesh, "config.rl.problems_per_step", (s.problems_per_step,), ("batch",))
  part = s.problems_per_step // s.sample_parts
  part_name = "config.rl.problems_per_step / config.rl.sample_parts"
  sharding.check_divisible(policy.sample_mesh, part_name, (part,), ("batch",))
  rows = problems * s.group_size
  rows_name = (
    f"rows of a micro-batch ({problems} problems an update x group {s.group_size} = {rows} rows in {s.microbatches})"
  )
  sharding.check_divisible(policy.mesh, rows_name, (rows // s.microbatches,), ("batch",))
