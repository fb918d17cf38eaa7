"""What is minimised: loss functions of (weights, batch) for `update`, and the batches they take."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr import loss, masked, shard
from jaxrlvr.policy.sample import Rollout
from jaxrlvr.policy.score import score
from jaxrlvr.policy.spec import Spec
from jaxrlvr.update import LossFn


@struct.dataclass
class TextBatch:
  """Packed rows; weights_BT are those of the whole batch and 0 where nothing is to be predicted."""

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array
  weights_BT: jax.Array


@functools.lru_cache  # the same function for the same values, so that stages share compiled programs
def language_modelling(spec: Spec) -> LossFn:
  """Cross-entropy in nats a target token."""

  def loss_fn(params, batch: TextBatch):
    scores = score(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, spec)
    weights_BT = batch.weights_BT[:, 1:]
    metrics = {"entropy": jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.entropy_BT, 0.0))}
    return -jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.logp_BT, 0.0)), metrics

  return loss_fn


@struct.dataclass
class RolloutBatch:
  """Prompt and response side by side, left-padded prompts: the response begins at the same slot in every row."""

  tokens_BS: jax.Array  # S prompt slots, then T response slots
  positions_BS: jax.Array
  segments_BS: jax.Array  # 1 at real tokens, 0 at padding
  mask_BT: jax.Array  # scored response tokens
  weights_BT: jax.Array  # of the update these rows belong to
  advantage_B: jax.Array
  sampler_logp_BT: jax.Array
  old_logp_BT: jax.Array | None  # None: the policy itself, one update a step
  ref_logp_BT: jax.Array | None  # None: no KL


@functools.partial(jax.jit, static_argnames=("spec", "parts", "temperature", "start"))
def logp(params, batch: RolloutBatch, spec: Spec, *, start: int, temperature: float, parts: int) -> jax.Array:
  """log-probability [B,T] of the response tokens, `parts` of the rows at a time."""

  def part(rows):
    return score(params, *rows, spec, start=start, temperature=temperature).logp_BT

  rows = (batch.tokens_BS, batch.positions_BS, batch.segments_BS)
  return shard.join_rows(jax.lax.map(part, shard.split_rows(rows, parts)))


@functools.partial(jax.jit, static_argnames=("samples", "group"))
def rollout_rows(prompt_PS, prompt_length_P, rollout: Rollout, *, samples: int, group: int) -> RolloutBatch:
  """Rows to train on, not yet weighted: the first `group` of the `samples` responses to each prompt."""
  if group < samples:
    rollout = jax.tree.map(lambda x: _first_rows(x, samples, group), rollout)
  slots, max_tokens = prompt_PS.shape[1], rollout.tokens_BT.shape[1]
  pad_B1 = slots - jnp.repeat(prompt_length_P, group)[:, None]
  slot_S = jnp.arange(slots + max_tokens)
  mask_BT = jnp.arange(max_tokens) < rollout.length_B[:, None]
  return RolloutBatch(
    tokens_BS=jnp.concatenate([jnp.repeat(prompt_PS, group, 0), rollout.tokens_BT], 1),
    positions_BS=jnp.maximum(slot_S - pad_B1, 0),
    segments_BS=((slot_S >= pad_B1) & (slot_S < slots + rollout.length_B[:, None])).astype(jnp.int32),
    mask_BT=mask_BT,
    weights_BT=mask_BT.astype(jnp.float32),
    advantage_B=jnp.zeros(len(mask_BT)),
    sampler_logp_BT=rollout.logp_BT,
    old_logp_BT=None,
    ref_logp_BT=None,
  )


def _first_rows(x, samples: int, group: int):
  x = x.reshape(-1, samples, *x.shape[1:])[:, :group]
  return shard.constrain(x.reshape(-1, *x.shape[2:]), "batch", *[None] * (x.ndim - 2))


@functools.partial(jax.jit, static_argnames=("baseline", "scale_std", "reduce", "updates", "correction", "noise"))
def weigh(
  rows: RolloutBatch,
  reward_PG,
  scored_PG,
  *,
  baseline,
  scale_std,
  reduce,
  updates=1,
  correction="none",
  noise=(0.0, 0.0),
) -> RolloutBatch:
  """The rows with advantages, and weights of each of the `updates` parts that `split_rows` makes of them.

  noise: the rates (false positive, false negative) that `correction` (`loss.CORRECTIONS`) assumes.
  """
  group, scored_B = reward_PG.shape[1], scored_PG.reshape(-1)
  mask_BT = rows.mask_BT & scored_B[:, None]
  parts = shard.split_rows((mask_BT, scored_B), updates, group)
  weights_BT = jax.vmap(lambda mask, scored: masked.token_weights(mask, reduce, mask.shape[-1], scored))(*parts)
  advantage_PG = loss.CORRECTIONS[correction](reward_PG, scored_PG, *noise, baseline=baseline, scale_std=scale_std)
  return rows.replace(
    mask_BT=mask_BT, weights_BT=shard.join_rows(weights_BT, group), advantage_B=advantage_PG.reshape(-1)
  )


@functools.lru_cache
def grpo(spec: Spec, *, start: int, temperature: float, kl_beta: float, kl_estimator: str, **clipping) -> LossFn:
  """GRPO's loss of a `RolloutBatch`: clipped surrogate (keywords of `loss.policy_loss`) + kl_beta * KL(policy || ref).

  Metrics are weighted like the loss; "sampling/logp_difference" is between the sampler's and the scorer's logp.
  """

  def loss_fn(params, batch: RolloutBatch):
    rows = (batch.tokens_BS, batch.positions_BS, batch.segments_BS)
    scores = score(params, *rows, spec, start=start, temperature=temperature)
    mask_BT, here = batch.mask_BT, scores.logp_BT
    old = jax.lax.stop_gradient(here) if batch.old_logp_BT is None else batch.old_logp_BT
    value, metrics = loss.policy_loss(
      here,
      old,
      batch.advantage_B,
      mask_BT,
      weights_BT=batch.weights_BT,
      sampler_logp_BT=batch.sampler_logp_BT,
      **clipping,
    )

    def total(x_BT):
      return jnp.sum(jnp.where(mask_BT, batch.weights_BT * x_BT, 0.0))

    if batch.ref_logp_BT is not None:
      ref_BT = jnp.where(mask_BT, batch.ref_logp_BT, jax.lax.stop_gradient(here))  # no NaN from behind the mask
      metrics["kl"] = total(loss.kl(here, ref_BT, kl_estimator))
      value = value + kl_beta * metrics["kl"]
    gap_BT = jnp.where(mask_BT, jnp.abs(here - batch.sampler_logp_BT), 0.0)
    metrics["entropy"] = total(scores.entropy_BT)
    metrics["self_certainty"] = total(scores.certainty_BT)
    metrics["sampling/logp_difference/mean"] = total(gap_BT)
    metrics["max/sampling/logp_difference/max"] = jnp.max(gap_BT)
    return value, jax.lax.stop_gradient(metrics)

  return loss_fn
