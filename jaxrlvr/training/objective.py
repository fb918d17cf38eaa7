"""What is minimised: loss functions of (weights, batch) for `update`, and the batches they take."""

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
  """Packed rows; weights_BT are those of the whole batch and 0 where nothing is to be predicted."""

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array
  weights_BT: jax.Array


@functools.lru_cache  # the same function for the same values, so that stages share compiled programs
def language_modelling(spec: Spec) -> LossFn:
  """Cross-entropy in nats a target token."""

  def loss_fn(params, batch: TextBatch):
    wanted_BT = batch.weights_BT > 0
    scores = score(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, spec, wanted_BT=wanted_BT)
    weights_BT = batch.weights_BT[:, 1:]
    entropy = jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.entropy_BT, 0.0))
    metrics = {"entropy": Sum(entropy)}
    return -jnp.sum(jnp.where(weights_BT > 0, weights_BT * scores.logp_BT, 0.0)), metrics

  return loss_fn


@struct.dataclass
class RolloutBatch:
  """Prompts and their responses on the rows of `layout`."""

  tokens_RS: jax.Array
  positions_RS: jax.Array
  segments_RS: jax.Array  # 1 + the response's number, 0: padding
  weights_RS: jax.Array  # of the update these rows belong to; 0 where nothing is trained on; 1 before `grade`
  advantage_RS: jax.Array
  sampler_logp_RS: jax.Array
  old_logp_RS: jax.Array | None  # None: the policy itself, one update a step
  ref_logp_RS: jax.Array | None  # None: no KL
  layout: RowLayout = struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnames=("spec", "parts", "temperature"))
def logp(
  params: Mapping[str, jax.Array], batch: RolloutBatch, live: jax.Array, spec: Spec, *, temperature: float, parts: int
) -> jax.Array:
  """log-probability [R,S] of the responses' tokens in the first `live` of `parts` parts of the rows, else 0."""
  rows = (batch.tokens_RS, batch.positions_RS, batch.segments_RS, batch.weights_RS > 0)
  rows = sharding.split_rows(rows, parts)

  def part(i, done):
    *where, wanted_RS = sharding.part(rows, i)
    scores = score(params, *where, spec, temperature=temperature, wanted_BT=wanted_RS, layout=batch.layout)
    return jax.lax.dynamic_update_index_in_dim(done, jnp.pad(scores.logp_BT, ((0, 0), (1, 0))), i, 0)

  none = sharding.constrain(jnp.zeros(rows[0].shape), None, "batch", None)
  return sharding.join_rows(jax.lax.fori_loop(0, live, part, none))


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
  """Returns prompts and responses where `layout.place` says.

  Numbers count the first `group` of the `samples` responses to each prompt. Prompts are padded on the left.
  """
  number_RS = jnp.maximum(segments_RS - 1, 0)
  problem_RS = number_RS // group
  row_RS = problem_RS * samples + number_RS % group
  prompt_RS = jnp.where(segments_RS > 0, prompt_length_P[problem_RS], 1)  # so that padding is no response
  slot_RS = jnp.maximum(positions_RS - prompt_RS, 0)
  whole = [sharding.constrain(x, None, None) for x in (prompt_PS, rollout.tokens_BT, rollout.logp_BT)]
  prompt_PS, tokens_BT, logp_BT = whole
  given_RS = prompt_PS[problem_RS, prompt_PS.shape[1] - prompt_RS + jnp.minimum(positions_RS, prompt_RS - 1)]
  answers_RS = positions_RS >= prompt_RS
  weights_RS = answers_RS.astype(jnp.float32)
  return RolloutBatch(
    tokens_RS=jnp.where(answers_RS, tokens_BT[row_RS, slot_RS], given_RS),
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
  """What an update makes of each response, [P,G] float32 on the host."""

  weight_PG: np.ndarray  # of each of its tokens in the loss; 0: not in the loss
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
  """Weighs responses, on the host; problem p belongs to update p % updates and its means.

  Responses that are not scored count in no mean and get 0. noise: the rates (false positive, false negative) that
  `correction` (`loss.CORRECTIONS`) assumes.
  """
  length_PG, scored_PG = np.asarray(length_PG), np.asarray(scored_PG)
  weight_PG = np.zeros(length_PG.shape, np.float32)
  for first in range(updates):
    mine = slice(first, None, updates)
    weight_PG[mine] = masked.response_weights(length_PG[mine], scored_PG[mine], reduce, max_tokens)
  corrected = loss.CORRECTIONS[correction]
  advantage_PG = corrected(reward_PG, scored_PG, *noise, baseline=baseline, scale_std=scale_std)
  return Weights(weight_PG, advantage_PG.astype(np.float32))


@jax.jit
def add_weights(batch: RolloutBatch, weight_PG: jax.Array, advantage_PG: jax.Array) -> RolloutBatch:
  """The batch with what `weigh` found for its responses."""
  number_RS = jnp.maximum(batch.segments_RS - 1, 0)
  weights_RS = batch.weights_RS * weight_PG.reshape(-1)[number_RS]
  advantage_RS = batch.weights_RS * advantage_PG.reshape(-1)[number_RS]
  return dataclasses.replace(batch, weights_RS=weights_RS, advantage_RS=advantage_RS)


@functools.lru_cache
def grpo(spec: Spec, *, temperature: float, kl_beta: float, kl_estimator: str, **clipping) -> LossFn:
  """GRPO's loss of a `RolloutBatch`: clipped surrogate (keywords of `loss.policy_loss`) + kl_beta * KL(policy || ref).

  Metrics are weighted like the loss; "sampling/logp_difference" is between the sampler's and the scorer's logp. Means
  that responses without advantage would change are over those in the batch.
  """

  def loss_fn(params, batch: RolloutBatch):
    where, wanted_RS = (batch.tokens_RS, batch.positions_RS, batch.segments_RS), batch.weights_RS > 0
    here = score(params, *where, spec, temperature=temperature, wanted_BT=wanted_RS, layout=batch.layout).logp_BT
    batch = jax.tree.map(lambda x_RS: x_RS[:, 1:], batch)
    weights, mask, sampler = batch.weights_RS, batch.weights_RS > 0, batch.sampler_logp_RS
    old = jax.lax.stop_gradient(here) if batch.old_logp_RS is None else batch.old_logp_RS
    how = dict(weights_BT=weights, segments_BT=batch.segments_RS, sampler_logp_BT=sampler)
    value, shares = loss.policy_loss(here, old, batch.advantage_RS, mask, **how, **clipping)

    def total(x):
      return jnp.sum(jnp.where(mask, weights * x, 0.0))

    gap = jnp.where(mask, jnp.abs(here - sampler), 0.0)
    seen = total(1.0)
    metrics: dict[str, Metric] = {name: Sum(share) for name, share in shares.items()}
    metrics["ppo_kl"] = WeightedMean(shares["ppo_kl"], seen)
    metrics["sampling/logp_difference/mean"] = WeightedMean(total(gap), seen)
    metrics["sampling/logp_difference/max"] = Maximum(jnp.max(gap))
    if batch.ref_logp_RS is not None:
      ref = jnp.where(mask, batch.ref_logp_RS, jax.lax.stop_gradient(here))  # no NaN from behind the mask
      kl = total(loss.kl(here, ref, kl_estimator))
      metrics["kl"] = Sum(kl)
      value = value + kl_beta * kl
    return value, jax.lax.stop_gradient(metrics)

  return loss_fn
