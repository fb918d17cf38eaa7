"""Loss functions for `update`, language modelling and GRPO, and the batches that they take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrlvr.device import masked, sharding
from jaxrlvr.model.row_layout import RowLayout
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Rollout
from jaxrlvr.training import loss
from jaxrlvr.training.metrics import Maximum, Metric, Sum, WeightedMean
from jaxrlvr.training.update import LossFn


@struct.dataclass
class TextBatch:
  """A batch, or microbatch, of packed documents."""

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array
  weights_BT: jax.Array  # weight of each token in the loss of the whole batch; 0: not a target


@functools.lru_cache  # the same function for the same values, so that stages share compiled programs
def language_modelling(spec: Spec) -> LossFn:
  """Returns the loss function of a `TextBatch`: weighted cross-entropy in nats. Its metric is entropy."""

  def loss_fn(params, batch: TextBatch):
    scored_BT = batch.weights_BT > 0
    scores = score(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, spec, scored_BT=scored_BT)
    weights_BT = batch.weights_BT[:, 1:]
    entropy = jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.entropy_BT, 0.0))
    metrics = {"entropy": Sum(entropy)}
    return -jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.logp_BT, 0.0)), metrics

  return loss_fn


@struct.dataclass
class RolloutBatch:
  """Prompts and their responses, placed on rows by `layout`."""

  tokens_RS: jax.Array
  positions_RS: jax.Array
  segments_RS: jax.Array  # 1 + number of the response, 0: padding
  weights_RS: (
    jax.Array
  )  # weight of each token in the update's loss, 0: not in it; before `add_weights` 1 at each response token
  advantage_RS: jax.Array
  sampler_logp_RS: jax.Array
  old_logp_RS: jax.Array | None  # None: equal to the policy's, for one update a step
  ref_logp_RS: jax.Array | None  # of the reference model; None: the loss has no KL term
  layout: RowLayout = struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnames=("spec", "parts", "temperature"))
def logp(
  params: Mapping[str, jax.Array], batch: RolloutBatch, live: jax.Array, spec: Spec, *, temperature: float, parts: int
) -> jax.Array:
  """Returns the log-probability [R,S] of each response token, 0 in other slots.

  The rows are cut into `parts` microbatches; only the first `live` are scored, tokens in the others get 0.
  """
  rows = (batch.tokens_RS, batch.positions_RS, batch.segments_RS, batch.weights_RS > 0)
  rows = sharding.split_rows(rows, parts)

  def part(i, done):
    tokens_RS, positions_RS, segments_RS, scored_RS = sharding.microbatch(rows, i)
    scores = score(
      params,
      tokens_RS,
      positions_RS,
      segments_RS,
      spec,
      temperature=temperature,
      scored_BT=scored_RS,
      layout=batch.layout,
    )
    logp_RS = jnp.pad(scores.logp_BT, ((0, 0), (1, 0)))  # slot 0 has no score
    return jax.lax.dynamic_update_index_in_dim(done, logp_RS, i, 0)

  zeros = sharding.constrain(jnp.zeros(rows[0].shape), None, "batch", None)
  return sharding.join_rows(jax.lax.fori_loop(0, live, part, zeros))


@functools.partial(jax.jit, static_argnames=("samples", "group", "layout"))
def lay_out_batch(
  prompt_PS: jax.Array,
  prompt_length_P: jax.Array,
  rollout: Rollout,
  segments_RS: jax.Array,
  positions_RS: jax.Array,
  *,
  samples: int,
  group: int,
  layout: RowLayout,
) -> RolloutBatch:
  """Gathers prompts and responses into the rows where `layout.place` has placed them; returns the batch.

  prompt_PS: prompts, padded on the left. segments_RS, positions_RS: what `layout.place` returned.
  samples: responses that the rollout holds to each prompt; group: how many of these, the first, are placed. In the
  batch advantages are 0, weights 1 at each response token, and there are no log-probabilities but the sampler's.
  """
  number_RS = jnp.maximum(segments_RS - 1, 0)
  problem_RS = number_RS // group
  row_RS = problem_RS * samples + number_RS % group
  prompt_RS = jnp.where(segments_RS > 0, prompt_length_P[problem_RS], 1)  # 1: padding must not look like a response
  slot_RS = jnp.maximum(positions_RS - prompt_RS, 0)
  whole = [sharding.constrain(x, None, None) for x in (prompt_PS, rollout.tokens_BT, rollout.logp_BT)]
  prompt_PS, tokens_BT, logp_BT = whole
  prompt_token_RS = prompt_PS[problem_RS, prompt_PS.shape[1] - prompt_RS + jnp.minimum(positions_RS, prompt_RS - 1)]
  answers_RS = positions_RS >= prompt_RS
  weights_RS = answers_RS.astype(jnp.float32)
  return RolloutBatch(
    tokens_RS=jnp.where(answers_RS, tokens_BT[row_RS, slot_RS], prompt_token_RS),
    positions_RS=positions_RS,
    segments_RS=segments_RS,
    weights_RS=weights_RS,
    advantage_RS=jnp.zeros_like(weights_RS),
    sampler_logp_RS=jnp.where(answers_RS, logp_BT[row_RS, slot_RS], 0.0),
    old_logp_RS=None,
    ref_logp_RS=None,
    layout=layout,
  )


class Weights(NamedTuple):
  """Weight and advantage of each response, [P,G] float32 on the host."""

  weight_PG: np.ndarray  # weight of each of the response's tokens in the loss; 0: not in the loss
  advantage_PG: np.ndarray


def weigh(
  length_PG: np.ndarray,
  reward_PG: np.ndarray,
  scored_PG: np.ndarray,
  *,
  max_tokens: int,
  baseline: str,
  scale_std: bool,
  reduce: str,
  updates: int = 1,
  correction: str = "none",
  noise: Sequence[float] = (0.0, 0.0),
) -> Weights:
  """Returns weight and advantage of each response, computed on the host from lengths [P,G] and rewards [P,G].

  updates: number of updates that the problems are divided among; problem p belongs to update p % updates, and weights
  are means over one update. Responses that are not scored count in no mean and get 0.
  baseline, scale_std: as for `loss.group_advantage`. reduce, max_tokens: as for `masked.response_weights`.
  correction: a key of `loss.CORRECTIONS`; noise: the rates (false positive, false negative) that it assumes.
  """
  length_PG, scored_PG = np.asarray(length_PG), np.asarray(scored_PG)
  weight_PG = np.zeros(length_PG.shape, np.float32)
  for first in range(updates):
    of_update = slice(first, None, updates)
    weight_PG[of_update] = masked.response_weights(length_PG[of_update], scored_PG[of_update], reduce, max_tokens)
  corrected_advantage = loss.CORRECTIONS[correction]
  advantage_PG = corrected_advantage(reward_PG, scored_PG, *noise, baseline=baseline, scale_std=scale_std)
  return Weights(weight_PG, advantage_PG.astype(np.float32))


@jax.jit
def add_weights(batch: RolloutBatch, weight_PG: jax.Array, advantage_PG: jax.Array) -> RolloutBatch:
  """Returns the batch with the weights and advantages that `weigh` returned, at each token of the responses."""
  number_RS = jnp.maximum(batch.segments_RS - 1, 0)
  weights_RS = batch.weights_RS * weight_PG.reshape(-1)[number_RS]
  advantage_RS = batch.weights_RS * advantage_PG.reshape(-1)[number_RS]
  return dataclasses.replace(batch, weights_RS=weights_RS, advantage_RS=advantage_RS)


@functools.lru_cache
def grpo(spec: Spec, *, temperature: float, kl_beta: float, kl_estimator: str, **clipping) -> LossFn:
  """Returns GRPO's loss function of a `RolloutBatch`: clipped surrogate + kl_beta * KL(policy || reference model).

  clipping: keywords of `loss.policy_loss`. kl_estimator: a key of `loss.KL`.
  Metrics: those of `loss.policy_loss`, weighted like the loss; ppo_kl and sampling/logp_difference/mean, means over the
  batch's response tokens; sampling/logp_difference/max; and kl where there is a reference model. logp_difference is
  |scorer's - sampler's| log-probability.
  """

  def loss_fn(params, batch: RolloutBatch):
    scores = score(
      params,
      batch.tokens_RS,
      batch.positions_RS,
      batch.segments_RS,
      spec,
      temperature=temperature,
      scored_BT=batch.weights_RS > 0,
      layout=batch.layout,
    )
    policy_logp = scores.logp_BT
    batch = jax.tree.map(lambda x_RS: x_RS[:, 1:], batch)  # slot 0 has no score
    weights, mask = batch.weights_RS, batch.weights_RS > 0
    old_logp = batch.old_logp_RS
    if old_logp is None:
      old_logp = jax.lax.stop_gradient(policy_logp)
    value, shares = loss.policy_loss(
      policy_logp,
      old_logp,
      batch.advantage_RS,
      mask,
      weights_BT=weights,
      segments_BT=batch.segments_RS,
      sampler_logp_BT=batch.sampler_logp_RS,
      **clipping,
    )

    def total(x):
      return jnp.sum(jnp.where(mask, weights * x, 0.0))

    gap = jnp.where(mask, jnp.abs(policy_logp - batch.sampler_logp_RS), 0.0)
    weight_here = total(1.0)
    metrics: dict[str, Metric] = {name: Sum(share) for name, share in shares.items()}
    metrics["ppo_kl"] = WeightedMean(shares["ppo_kl"], weight_here)
    metrics["sampling/logp_difference/mean"] = WeightedMean(total(gap), weight_here)
    metrics["sampling/logp_difference/max"] = Maximum(jnp.max(gap))
    if batch.ref_logp_RS is not None:
      # Equal log-probabilities outside of the mask, so that no NaN reaches the gradient.
      ref_logp = jnp.where(mask, batch.ref_logp_RS, jax.lax.stop_gradient(policy_logp))
      kl = total(loss.kl(policy_logp, ref_logp, kl_estimator))
      metrics["kl"] = Sum(kl)
      value = value + kl_beta * kl
    return value, jax.lax.stop_gradient(metrics)

  return loss_fn
