"""GRPO and its variants: advantages on the host, losses on devices. Each variant is a row of a table here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlvr.device import masked
from jaxrlvr.training.metrics import Maximum, Metric, WeightedMean

_STD_EPS = 1e-6  # added to standard deviations that advantages are divided by
_MAX_LOG_RATIO = 20.0  # log-ratios are clamped to +- this, and the k3 estimate to +- _MAX_K3, as in the study's trainer
_MAX_K3 = 10.0


def _keep_all(reward_PG):
  return np.ones(reward_PG.shape, bool)


class _Baseline(NamedTuple):
  """What is subtracted from the rewards of a group, and which of its responses are then trained on."""

  # (rewards [P,G], scored [P,G]) -> what is subtracted: a number, [P,1] or [P,G]
  value: Callable[[np.ndarray, np.ndarray], np.ndarray | float]
  is_constant: bool = False  # False: computed from the group, so that equal rewards have the advantage 0
  kept: Callable[[np.ndarray], np.ndarray] = _keep_all  # rewards [P,G] -> False where the advantage becomes 0


def _group_mean(reward_PG, scored_PG):
  return masked.mean(reward_PG, scored_PG, 1, keepdims=True)


def _leave_one_out(reward_PG, scored_PG):
  kept_PG = np.where(scored_PG, reward_PG, 0.0)
  others_PG = np.sum(scored_PG, 1, keepdims=True) - scored_PG
  return (np.sum(kept_PG, 1, keepdims=True) - kept_PG) / np.maximum(others_PG, 1)


# Keys: values of `rl.baseline`. GRPO-POS and GRPO-NEG are here twice: by the paper's formula (zero, one), which needs
# rl.scale_std=False, and as the released code has them (positive, negative).
BASELINES = {
  "mean": _Baseline(_group_mean),  # GRPO
  "leave-one-out": _Baseline(_leave_one_out),  # RLOO
  "zero": _Baseline(lambda reward_PG, scored_PG: 0.0, is_constant=True),  # right answers only, REINFORCE
  "one": _Baseline(lambda reward_PG, scored_PG: 1.0, is_constant=True),  # wrong answers only
  "positive": _Baseline(_group_mean, kept=lambda reward_PG: reward_PG != 0),  # GRPO without responses of reward 0
  "negative": _Baseline(_group_mean, kept=lambda reward_PG: reward_PG != 1),  # GRPO without responses of reward 1
}


def group_advantage(
  reward_PG: np.ndarray, scored_PG: np.ndarray | None = None, *, baseline: str = "mean", scale_std: bool = True
) -> np.ndarray:
  """Computes the advantage of each response, (reward - baseline) / standard deviation; returns [P,G] float64 in numpy.

  reward_PG: rewards of the G responses to each of P problems, a group each. scored_PG: False where a response could not
  be scored; it gets 0 and counts in no statistic, so that its reward may be NaN (None: all are scored).
  baseline: what is subtracted: "mean" (of the group), "leave-one-out" (mean of the other responses), "zero" or "one".
  "positive" and "negative" subtract the mean too, and then set responses of reward 0, or of reward 1, to 0.
  scale_std: divide by the group's sample standard deviation + 1e-6 (False: don't, as Dr.GRPO). A group whose scored
  rewards are all equal gets exactly 0, except with "zero" or "one" and scale_std False.
  """
  reward_PG = np.asarray(reward_PG, np.float64)
  scored_PG = np.ones(reward_PG.shape, bool) if scored_PG is None else np.asarray(scored_PG)
  subtracted = BASELINES[baseline]
  spread_P1 = masked.spread(reward_PG, scored_PG, 1, keepdims=True)
  advantage_PG = reward_PG - subtracted.value(reward_PG, scored_PG)
  if scale_std:
    advantage_PG = advantage_PG / (masked.std(reward_PG, scored_PG, 1, keepdims=True) + _STD_EPS)
  if scale_std or not subtracted.is_constant:
    advantage_PG = np.where(spread_P1 > 0, advantage_PG, 0.0)
  return np.where(scored_PG & subtracted.kept(reward_PG), advantage_PG, 0.0)


def _uncorrected(reward_PG, scored_PG, false_positive, false_negative, *, baseline, scale_std):
  return group_advantage(reward_PG, scored_PG, baseline=baseline, scale_std=scale_std)


def _backward(reward_PG, scored_PG, false_positive, false_negative, *, baseline, scale_std):
  """Returns the advantages of unbiased estimates of the clean rewards.

  The standard deviation is that of a clean 0/1 reward with the estimated mean.
  That mean is kept half a response away from 0 and 1, where the standard deviation would be 0.
  """
  reward_PG, scored_PG = np.asarray(reward_PG, np.float64), np.asarray(scored_PG)
  clean_PG = (reward_PG - false_positive) / (1.0 - false_positive - false_negative)
  advantage_PG = group_advantage(clean_PG, scored_PG, baseline=baseline, scale_std=False)
  advantage_PG = np.where(BASELINES[baseline].kept(reward_PG), advantage_PG, 0.0)  # kept looks at the noisy reward
  if not scale_std:
    return advantage_PG
  count_P1 = np.maximum(np.sum(scored_PG, 1, keepdims=True), 1)
  mean_P1 = masked.mean(clean_PG, scored_PG, 1, keepdims=True)
  mean_P1 = np.clip(mean_P1, 0.5 / count_P1, 1.0 - 0.5 / count_P1)
  std_P1 = np.sqrt(mean_P1 * (1.0 - mean_P1) * count_P1 / np.maximum(count_P1 - 1, 1))
  return advantage_PG / (std_P1 + _STD_EPS)


def _forward(reward_PG, scored_PG, false_positive, false_negative, *, baseline, scale_std):
  """Returns advantages with mean 0 for a truly right answer and -(1 - fp - fn) for a wrong one; no group statistics."""
  return np.where(scored_PG, false_negative - (np.asarray(reward_PG) < 0.5), 0.0)


# Advantages from a noisy 0/1 reward, which pays wrong answers at the rate false_positive and fails to pay right answers
# at the rate false_negative. A correction of the reward itself would be affine, which group statistics cancel; these
# correct advantages. Each takes (reward_PG, scored_PG, false_positive, false_negative, *, baseline, scale_std) and
# returns advantages [P,G] in float64. Keys: values of `rl.correction`.
CORRECTIONS = {"none": _uncorrected, "backward": _backward, "forward": _forward}


def _k1(d):
  return -d


def _k2(d):
  return 0.5 * d**2


def _k3(d):
  """Returns e^d - d - 1, clamped as in the study's trainer; beyond the clamps there is no gradient."""
  d = jnp.clip(d, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  return jnp.clip(jnp.expm1(d) - d, -_MAX_K3, _MAX_K3)


def _k3_k2(d):
  """Has k3's low-variance value and k2's gradient, which on policy is that of the true reverse KL."""
  return jax.lax.stop_gradient(_k3(d) - _k2(d)) + _k2(d)


# Estimators of a token's KL(policy || reference model), from d = ref_logp - logp. Keys: values of `rl.kl_estimator`.
KL = {"k1": _k1, "k2": _k2, "k3": _k3, "k3-k2": _k3_k2}


def kl(logp_BT: jax.Array, ref_logp_BT: jax.Array, estimator: str = "k3") -> jax.Array:
  """Estimates KL(policy || reference model) at each sampled token; returns [B,T] in nats.

  logp_BT, ref_logp_BT: log-probability of the token under the policy and under the reference model. estimator, with
  d = ref_logp - logp: "k1" is -d, "k2" d^2 / 2, "k3" e^d - d - 1 with d clamped to +-20 and the value to +-10
  (Schulman, Approximating KL Divergence), and "k3-k2" has k3's value and k2's gradient. As a loss, k1 has a zero mean
  gradient, and k3 does not descend the reverse KL; k2 and "k3-k2" do. The study uses k3.
  """
  return KL[estimator](ref_logp_BT - logp_BT)


def _token_ratio(log_ratio_BT, mask_BT, segments_BT):
  """Has each token's own log-ratio."""
  return log_ratio_BT


def _sequence_ratio(log_ratio_BT, mask_BT, segments_BT):
  """Has the response's mean log-ratio as value and the token's own gradient (GSPO)."""
  mean_BT = masked.segment_mean(log_ratio_BT, mask_BT, segments_BT)
  return jax.lax.stop_gradient(mean_BT - log_ratio_BT) + log_ratio_BT


# The importance ratio of a token or of its whole response. Keys: values of `rl.ratio`.
RATIOS = {"token": _token_ratio, "sequence": _sequence_ratio}


def policy_loss(
  logp_BT: jax.Array,
  old_logp_BT: jax.Array,
  advantage_BT: jax.Array,
  weights_BT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  ratio: str = "token",
  segments_BT: jax.Array | None = None,
  sampler_logp_BT: jax.Array | None = None,
  importance_cap: float | None = None,
) -> tuple[jax.Array, dict[str, Metric]]:
  """Computes the clipped surrogate of PPO and GRPO; returns (loss to be minimised, a scalar; metrics by name).

  The loss is sum(weight * max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))), r = exp(policy's - old policy's
  log-probability) with the difference clamped to +-20. advantage_BT: A, [B,T], or [B,1] for a row each.
  weights_BT: weight of each token; 0 leaves it out, whatever its other values (`masked.token_weights` makes them).
  dual_clip: the loss of a token with A < 0 is at most -A * dual_clip (None: no bound).
  ratio: "token", or "sequence" (GSPO): r is that of the mean log-ratio of the token's response, a run of equal
  segments_BT (None: a row), while its gradient is the token's own.
  importance_cap: multiply each token's loss by min(exp(old - sampler's log-probability), importance_cap), truncated
  importance sampling; it needs sampler_logp_BT, which nothing else reads (None: don't).
  Metrics, each a mean over the tokens that have a weight: clip_ratio/low_mean, clip_ratio/high_mean and their sum
  clip_ratio/region_mean, and clip_ratio/dual (1 where that clip acts); ppo_kl (old - policy's log-probability); and
  with importance_cap sampling/importance_sampling_ratio/mean and /max, of the capped ratio. They are TRL's metrics of
  these names, except for clip_ratio/dual and verl's ppo_kl.
  """
  mask_BT = weights_BT > 0
  segments_BT = jnp.zeros(mask_BT.shape, jnp.int32) if segments_BT is None else segments_BT
  log_ratio_BT = RATIOS[ratio](jnp.where(mask_BT, logp_BT - old_logp_BT, 0.0), mask_BT, segments_BT)
  log_ratio_BT = jnp.clip(log_ratio_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  ratio_BT = jnp.exp(log_ratio_BT)
  unclipped_BT = -advantage_BT * ratio_BT
  clipped_BT = -advantage_BT * jnp.clip(ratio_BT, 1.0 - clip_low, 1.0 + clip_high)
  loss_BT = jnp.maximum(unclipped_BT, clipped_BT)
  capped_BT = jnp.zeros_like(mask_BT, bool)
  if dual_clip is not None:
    bound_BT = -advantage_BT * dual_clip
    capped_BT = (advantage_BT < 0) & (loss_BT > bound_BT)
    loss_BT = jnp.where(advantage_BT < 0, jnp.minimum(loss_BT, bound_BT), loss_BT)
  if importance_cap is not None:
    gap_BT = jnp.where(mask_BT, old_logp_BT - sampler_logp_BT, 0.0)
    importance_BT = jnp.minimum(jnp.exp(jnp.clip(gap_BT, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)), importance_cap)
    loss_BT = loss_BT * jax.lax.stop_gradient(importance_BT)

  is_clipped_BT = clipped_BT > unclipped_BT
  metrics: dict[str, Metric] = {
    "clip_ratio/low_mean": token_mean(is_clipped_BT & (advantage_BT < 0), mask_BT),
    "clip_ratio/high_mean": token_mean(is_clipped_BT & (advantage_BT > 0), mask_BT),
    "clip_ratio/region_mean": token_mean(is_clipped_BT & (advantage_BT != 0), mask_BT),
    "clip_ratio/dual": token_mean(capped_BT, mask_BT),
    "ppo_kl": token_mean(-log_ratio_BT, mask_BT),
  }
  if importance_cap is not None:
    metrics["sampling/importance_sampling_ratio/mean"] = token_mean(importance_BT, mask_BT)
    metrics["sampling/importance_sampling_ratio/max"] = Maximum(jnp.max(jnp.where(mask_BT, importance_BT, 0.0)))
  loss = jnp.sum(jnp.where(mask_BT, weights_BT * loss_BT, 0.0))
  return loss, jax.lax.stop_gradient(metrics)


def token_mean(x_BT: jax.Array, mask_BT: jax.Array) -> WeightedMean:
  """Returns the mean of x over the tokens where the mask is true, each with the same weight; both [B,T]."""
  return WeightedMean(jnp.sum(jnp.where(mask_BT, x_BT, 0.0)), jnp.sum(mask_BT, dtype=jnp.float32))
