"""Loss functions for `update`, language modelling and GRPO, and the batches that they take.

In names of arrays, R stands for the rows of a batch and S for the slots of a row, each of which holds a token.
"""

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
from jaxrlvr.model.score import Scores, score
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Rollout
from jaxrlvr.training import loss
from jaxrlvr.training.metrics import Maximum, Metric, Sum
from jaxrlvr.training.terms import Term, term_values
from jaxrlvr.training.update import LossFn


@struct.dataclass
class TextBatch:
  """A batch, or microbatch, of documents that are packed into rows, as `packing.pack` packs them."""

  tokens_BT: jax.Array  # token ids
  positions_BT: jax.Array  # position of the token in its segment
  segments_BT: jax.Array  # the documents of a row are segments 1, 2, ...; 0: padding
  weights_BT: jax.Array  # weight of predicting this token in the loss of the whole batch; 0: not predicted


def _weighted_sum(x: jax.Array | float, weights: jax.Array) -> jax.Array:
  """Returns the sum of x times its weights; where a weight is 0, x may be NaN."""
  return jnp.sum(jnp.where(weights > 0, weights * x, 0.0))


@functools.lru_cache  # the same function for the same values, so that stages share compiled programs
def language_modelling(spec: Spec) -> LossFn:
  """Returns the loss function (params, `TextBatch`) -> (loss, metrics) that `update` takes.

  The loss is the cross-entropy of the predicted tokens in nats, summed with the batch's weights. The metric "entropy"
  is the model's entropy there, in nats, summed with the same weights.
  """

  def loss_fn(params, batch: TextBatch):
    is_target_BT = batch.weights_BT > 0
    scores = score(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, spec, scored_BT=is_target_BT)
    weights_BT = batch.weights_BT[:, 1:]  # slot 0 has no score
    metrics = {"entropy": Sum(_weighted_sum(scores.entropy_BT, weights_BT))}
    return -_weighted_sum(scores.logp_BT, weights_BT), metrics

  return loss_fn


@struct.dataclass
class RolloutBatch:
  """A batch, or microbatch, of prompts and their responses, placed on rows by `layout`.

  Every array is [R,S]. Response n is number n % group of those to prompt n // group, counted over the whole step.
  """

  tokens_RS: jax.Array  # token ids
  positions_RS: jax.Array  # position of the token in its text, a prompt and the response behind it
  segments_RS: jax.Array  # 1 + n where the slot holds a token of response n, or of its prompt; 0: padding
  # Weight of the token in the loss of the update, 0 in slots without a response's token. `lay_out_batch` writes 1 for
  # each response token; `add_weights` puts in the weights.
  weights_RS: jax.Array
  advantage_RS: jax.Array  # of the token's response; 0 before `add_weights`
  sampler_logp_RS: jax.Array  # log-probability with which the token was sampled, in nats; 0 outside of responses
  old_logp_RS: jax.Array | None  # log-probability under the policy that began the step; None: under the policy itself
  ref_logp_RS: jax.Array | None  # log-probability under the reference model; None: nothing in the loss needs it
  layout: RowLayout = struct.field(pytree_node=False)


@functools.partial(jax.jit, static_argnames=("spec", "parts", "temperature"))
def logp(
  params: Mapping[str, jax.Array], batch: RolloutBatch, live: jax.Array, spec: Spec, *, temperature: float, parts: int
) -> jax.Array:
  """Scores the responses of a batch, one microbatch after another; returns log-probabilities [R,S] in nats.

  params: weights of the policy, or of another model of the same spec. parts: number of microbatches, which must divide
  the rows. live: number of microbatches to score, from the first; it is not static, so that one program serves all.
  Slots of the other microbatches, and slots where batch.weights_RS is 0, have 0. Logits are divided by `temperature`.
  """
  is_response_RS = batch.weights_RS > 0
  microbatches = sharding.split_rows((batch.tokens_RS, batch.positions_RS, batch.segments_RS, is_response_RS), parts)

  def add_microbatch(i, logp_MRS):
    tokens_RS, positions_RS, segments_RS, scored_RS = sharding.microbatch(microbatches, i)
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
    return jax.lax.dynamic_update_index_in_dim(logp_MRS, logp_RS, i, 0)

  zeros_MRS = sharding.constrain(jnp.zeros(microbatches[0].shape), None, "batch", None)
  return sharding.join_rows(jax.lax.fori_loop(0, live, add_microbatch, zeros_MRS))


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
  """Copies prompts and responses to the slots in which a layout has placed them; returns the batch.

  prompt_PS: token ids of P prompts, padded on the left. prompt_length_P: tokens of each prompt, at least 1.
  rollout: `samples` responses to each prompt, problem-major: sample k to prompt p is row p * samples + k.
  segments_RS, positions_RS: which token each slot holds, as `layout.place` returns them. They number responses among
  the first `group` samples to each prompt: segment 1 + n is sample n % group to prompt n // group; 0 is padding.
  In the batch, weights are 1 at each response token and advantages 0 (`add_weights` sets both), sampler_logp_RS is
  rollout.logp_BT, and old_logp_RS and ref_logp_RS are None.
  """
  # Every device may need any prompt and any response.
  prompt_PS = sharding.constrain(prompt_PS, None, None)
  tokens_BT = sharding.constrain(rollout.tokens_BT, None, None)
  logp_BT = sharding.constrain(rollout.logp_BT, None, None)
  number_RS = jnp.maximum(segments_RS - 1, 0)  # of the slot's response; padding takes number 0
  problem_RS = number_RS // group
  rollout_row_RS = problem_RS * samples + number_RS % group
  # Padding has position 0, and gets a prompt of one token, so that it does not look like a response.
  prompt_length_RS = jnp.where(segments_RS > 0, prompt_length_P[problem_RS], 1)
  is_response_RS = positions_RS >= prompt_length_RS

  prompt_start_RS = prompt_PS.shape[1] - prompt_length_RS
  prompt_slot_RS = prompt_start_RS + jnp.minimum(positions_RS, prompt_length_RS - 1)
  response_slot_RS = jnp.maximum(positions_RS - prompt_length_RS, 0)
  prompt_token_RS = prompt_PS[problem_RS, prompt_slot_RS]
  response_token_RS = tokens_BT[rollout_row_RS, response_slot_RS]
  weights_RS = is_response_RS.astype(jnp.float32)
  return RolloutBatch(
    tokens_RS=jnp.where(is_response_RS, response_token_RS, prompt_token_RS),
    positions_RS=positions_RS,
    segments_RS=segments_RS,
    weights_RS=weights_RS,
    advantage_RS=jnp.zeros_like(weights_RS),
    sampler_logp_RS=jnp.where(is_response_RS, logp_BT[rollout_row_RS, response_slot_RS], 0.0),
    old_logp_RS=None,
    ref_logp_RS=None,
    layout=layout,
  )


class Weights(NamedTuple):
  """Weight and advantage of each of G responses to P problems, float32 in numpy."""

  weight_PG: np.ndarray  # weight in the loss of each token of the response; 0: the response is not in the loss
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
  """Computes the weight and the advantage of each response, on the host, from its length and its reward.

  length_PG: tokens of each of G responses to P problems. scored_PG: False where a response could not be scored; it gets
  0 and counts in no mean, so that its reward may be NaN.
  reduce: how losses of tokens become one, which decides the weights: "token-mean" (1 / tokens of all responses),
  "sequence-mean-token-mean" (1 / (length * responses)), "sequence-mean-token-sum" (1 / responses), or "constant-length"
  (1 / (responses * max_tokens); nothing else reads max_tokens).
  updates: number of updates that share the problems: problem p belongs to update p % updates. The sums above are over
  the scored responses of one update.
  baseline, scale_std: how rewards become advantages (`loss.group_advantage`): "mean", "leave-one-out", "zero", "one",
  "positive" or "negative". correction: for a 0/1 reward that is wrong at the rates noise = (false positive, false
  negative): "none" (noise is not read), "backward" or "forward" (`loss.CORRECTIONS`).
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
  """Returns the batch with weights and advantages at each token of the responses that are placed in it.

  weight_PG, advantage_PG: of the G responses to each of P problems, as `weigh` returns them, in the order in which
  batch.segments_RS numbers the responses. The batch must come from `lay_out_batch`, with weights of 0 and 1.
  """
  number_RS = jnp.maximum(batch.segments_RS - 1, 0)
  weights_RS = batch.weights_RS * weight_PG.reshape(-1)[number_RS]
  advantage_RS = batch.weights_RS * advantage_PG.reshape(-1)[number_RS]
  return dataclasses.replace(batch, weights_RS=weights_RS, advantage_RS=advantage_RS)


def _sampler_metrics(old_logp: jax.Array, sampler_logp: jax.Array, mask: jax.Array) -> dict[str, Metric]:
  """Returns the metrics of how far the sampler's log-probabilities differ from the old policy's; arrays are [R, S-1].

  mask: whether a token counts.
  """
  difference = jnp.where(mask, jnp.abs(old_logp - sampler_logp), 0.0)
  return {
    "sampling/sampling_logp_difference/mean": loss.token_mean(difference, mask),
    "sampling/sampling_logp_difference/max": Maximum(jnp.max(difference)),
  }


def _terms_and_means(
  terms: Sequence[Term], scores: Scores, old_logp: jax.Array, batch: RolloutBatch
) -> tuple[jax.Array, dict[str, Metric]]:
  """Returns (what terms add to the loss of a batch, their means over its tokens by the names of their metrics).

  scores: of the batch by the policy. batch: without slot 0, as old_logp and the scores are.
  """
  weights, mask = batch.weights_RS, batch.weights_RS > 0
  arrays = {
    "logp": scores.logp_BT,
    "old_logp": old_logp,
    "sampler_logp": batch.sampler_logp_RS,
    "entropy": scores.entropy_BT,
    "certainty": scores.certainty_BT,
    "advantages": batch.advantage_RS,
    "weights": weights,
    "mask": mask,
  }
  if batch.ref_logp_RS is not None:
    arrays["ref_logp"] = batch.ref_logp_RS
  added, means = jnp.zeros(()), dict[str, Metric]()
  for term, value in zip(terms, term_values(terms, arrays), strict=True):
    added = added + term.weight * _weighted_sum(value, weights)
    means[term.metric] = loss.token_mean(value, mask)
  return added, means


@functools.lru_cache  # the same function for the same values, so that stages share compiled programs
def grpo(
  spec: Spec,
  *,
  temperature: float,
  kl_beta: float,
  kl_estimator: str,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  ratio: str = "token",
  importance_cap: float | None = None,
  terms: tuple[Term, ...] = (),
) -> LossFn:
  """Returns GRPO's loss function (params, `RolloutBatch`) -> (loss, metrics) that `update` takes.

  The loss is `loss.policy_loss` + kl_beta * KL(policy || reference model) + further terms (`terms.Term`), in which each
  token has its weight of the batch. A term that takes ref_logp needs a batch with ref_logp_RS.
  temperature: that of sampling, by which logits are divided. kl_estimator: "k1", "k2", "k3" or "k3-k2" (`loss.kl`).
  The ratio of new to old policy's probability, of each "token" or of the whole "sequence" (ratio), is clipped to
  1 - clip_low .. 1 + clip_high, and to at most dual_clip where the advantage is negative (None: it is not).
  importance_cap: cap of the weights that correct for the sampler's log-probabilities (None: no such weights).
  Metrics: those of `loss.policy_loss`; kl (mean in nats, only where the batch has ref_logp_RS), and
  sampling/sampling_logp_difference/mean and /max (absolute difference of the old policy's and the sampler's
  log-probability), and the mean of each term as loss/NAME, all over the response tokens with a weight.
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
    weights = batch.weights_RS
    old_logp = batch.old_logp_RS
    if old_logp is None:
      old_logp = jax.lax.stop_gradient(policy_logp)
    value, metrics = loss.policy_loss(
      policy_logp,
      old_logp,
      batch.advantage_RS,
      weights,
      segments_BT=batch.segments_RS,
      sampler_logp_BT=batch.sampler_logp_RS,
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
      ratio=ratio,
      importance_cap=importance_cap,
    )
    metrics |= _sampler_metrics(old_logp, batch.sampler_logp_RS, weights > 0)
    if batch.ref_logp_RS is not None:
      # Equal log-probabilities where there is no response, so that no NaN reaches the gradient.
      ref_logp = jnp.where(weights > 0, batch.ref_logp_RS, jax.lax.stop_gradient(policy_logp))
      kl = loss.kl(policy_logp, ref_logp, kl_estimator)
      metrics["kl"] = loss.token_mean(kl, weights > 0)
      if kl_beta:
        value = value + kl_beta * _weighted_sum(kl, weights)
    if terms:
      added, means = _terms_and_means(terms, scores, old_logp, batch)
      value, metrics = value + added, metrics | means
    return value, jax.lax.stop_gradient(metrics)

  return loss_fn
