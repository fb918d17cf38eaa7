"""GRPO and its variants: advantages on the host, losses on devices. Each variant is a row of a table here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlvr.device import masked


class Baseline(NamedTuple):
  """What is subtracted from the rewards of a group, and which of its responses are then trained on."""

  value: Callable[[np.ndarray, np.ndarray], np.ndarray | float]  # of (rewards [P,G], scored [P,G])
  relative: bool = True  # computed from the group: equals the rewards where these are all equal
  kept: Callable[[np.ndarray], np.ndarray] = lambda reward_PG: np.ones(
    reward_PG.shape, bool
  )  # False: the advantage becomes 0


def _group_mean(reward_PG, scored_PG):
  return masked.mean(reward_PG, scored_PG, 1, keepdims=True)


def _leave_one_out(reward_PG, scored_PG):
  kept_PG = np.where(scored_PG, reward_PG, 0.0)
  others_PG = np.sum(scored_PG, 1, keepdims=True) - scored_PG
  return (np.sum(kept_PG, 1, keepdims=True) - kept_PG) / np.maximum(others_PG, 1)


# Keys: values of `rl.baseline`. GRPO-POS and GRPO-NEG are here twice: by the paper's formula (zero, one), which needs
# rl.scale_std=False, and as the released code has them (positive, negative).
BASELINES = {
  "mean": Baseline(_group_mean),  # GRPO
  "leave-one-out": Baseline(_leave_one_out),  # RLOO
  "zero": Baseline(lambda reward_PG, scored_PG: 0.0, relative=False),  # right answers only, REINFORCE
  "one": Baseline(lambda reward_PG, scored_PG: 1.0, relative=False),  # wrong answers only
  "positive": Baseline(_group_mean, kept=lambda reward_PG: reward_PG != 0),  # GRPO without the rows of reward 0
  "negative": Baseline(_group_mean, kept=lambda reward_PG: reward_PG != 1),  # GRPO without the rows of reward 1
}


def group_advantage(
  reward_PG: np.ndarray, scored_PG: np.ndarray | None = None, *, baseline: str = "mean", scale_std: bool = True
) -> np.ndarray:
  """Returns advantages [P,G] in float64, computed on the host: reward - baseline.

  baseline: a key of `BASELINES`; responses that it does not train on get 0. scale_std: divide by the group's sample
  standard deviation + 1e-6 (False: Dr.GRPO). scored_PG: False where nobody could score a response, which then counts in
  no statistic and gets 0 (None: all are scored). A group whose scored rewards are all equal gets exactly 0, except
  under the constant baselines ("zero", "one") without scaling.
  """
  reward_PG = np.asarray(reward_PG, np.float64)
  scored_PG = np.ones(reward_PG.shape, bool) if scored_PG is None else np.asarray(scored_PG)
  row = BASELINES[baseline]
  spread_P1 = masked.spread(reward_PG, scored_PG, 1, keepdims=True)
  advantage_PG = reward_PG - row.value(reward_PG, scored_PG)
  if scale_std:
    advantage_PG = advantage_PG / (masked.std(reward_PG, scored_PG, 1, keepdims=True) + 1e-6)
  if scale_std or row.relative:
    advantage_PG = np.where(spread_P1 > 0, advantage_PG, 0.0)
  return np.where(scored_PG & row.kept(reward_PG), advantage_PG, 0.0)


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
  return advantage_PG / (std_P1 + 1e-6)


def _forward(reward_PG, scored_PG, false_positive, false_negative, *, baseline, scale_std):
  """Returns advantages with mean 0 for a truly right answer and -(1 - fp - fn) for a wrong one; no group statistics."""
  return np.where(scored_PG, false_negative - (np.asarray(reward_PG) < 0.5), 0.0)


# Advantages from a noisy 0/1 reward, which pays wrong answers at the rate false_positive and fails to pay right answers
# at the rate false_negative. A correction of the reward itself would be affine, which group statistics cancel; these
# correct advantages. Keys: values of `rl.correction`.
CORRECTIONS = {"none": _uncorrected, "backward": _backward, "forward": _forward}


def _k1(d):
  return -d


def _k2(d):
  return 0.5 * d**2


def _k3(d):
  """Clamps as the study's trainer does: d to +-20, the value to +-10, without gradient beyond."""
  d = jnp.clip(d, -20.0, 20.0)
  return jnp.clip(jnp.expm1(d) - d, -10.0, 10.0)


def _k3_k2(d):
  """Has k3's low-variance value and k2's gradient, which on policy is that of the true reverse KL."""
  return jax.lax.stop_gradient(_k3(d) - _k2(d)) + _k2(d)


# Estimators of a token's KL(policy || reference model), from d = ref_logp - logp. Keys: values of `rl.kl_estimator`.
KL = {"k1": _k1, "k2": _k2, "k3": _k3, "k3-k2": _k3_k2}


def kl(logp_BT: jax.Array, ref_logp_BT: jax.Array, estimator: str = "k3") -> jax.Array:
  """Returns an estimate [B,T] of each token's KL(policy || reference model) in nats.

  estimator: a key of `KL` (Schulman, Approximating KL Divergence).
  As a loss, k1 has a zero mean gradient and k3 does not descend the reverse KL; "k3-k2" does. The study uses k3.
  """
  return KL[estimator](ref_logp_BT - logp_BT)


def _token_ratio(log_ratio_BT, mask_BT, segments_BT):
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
  advantage_B: jax.Array,
  mask_BT: jax.Array,
  *,
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float | None = None,
  ratio: str = "token",
  reduce: str = "token-mean",
  max_tokens: int = 0,
  weights_BT: jax.Array | None = None,
  segments_BT: jax.Array | None = None,
  sampler_logp_BT: jax.Array | None = None,
  importance_cap: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the clipped surrogate loss of PPO and GRPO, to be minimised, and its metrics by name.

  Metrics, weighted like the loss: clip_ratio/low, clip_ratio/high and clip_ratio/dual, shares of tokens where a clip
  acts, and ppo_kl, the mean of old - new log-probability.
  advantage_B: one number a response, or [B,T]. mask_BT: True at the tokens in the loss.
  dual_clip: c, where the advantage is negative the loss is at most -c * advantage.
  ratio: "token" or "sequence" (GSPO); a sequence is a run of equal segments_BT (None: a row).
  reduce, max_tokens: how token losses become one number (`masked.REDUCTIONS`). weights_BT replaces both where this is
  a microbatch: the weights of the whole batch.
  importance_cap: multiplies each token's loss by min(exp(old - sampler's log-probability), cap), for which
  sampler_logp_BT is needed (truncated importance sampling).
  Log-ratios are clamped to +-20 as in the study's trainer.
  """
  if weights_BT is None:
    weights_BT = masked.token_weights(mask_BT, reduce, max_tokens or mask_BT.shape[1])
  advantage_BT = advantage_B[:, None] if advantage_B.ndim == 1 else advantage_B
  segments_BT = jnp.zeros(mask_BT.shape, jnp.int32) if segments_BT is None else segments_BT
  log_ratio_BT = RATIOS[ratio](jnp.where(mask_BT, logp_BT - old_logp_BT, 0.0), mask_BT, segments_BT)
  log_ratio_BT = jnp.clip(log_ratio_BT, -20.0, 20.0)
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
    importance_BT = jnp.minimum(jnp.exp(jnp.clip(gap_BT, -20.0, 20.0)), importance_cap)
    loss_BT = loss_BT * jax.lax.stop_gradient(importance_BT)

  def total(x_BT):
    return jnp.sum(jnp.where(mask_BT, weights_BT * x_BT, 0.0))

  metrics = {
    "clip_ratio/low": total((clipped_BT > unclipped_BT) & (advantage_BT < 0)),
    "clip_ratio/high": total((clipped_BT > unclipped_BT) & (advantage_BT > 0)),
    "clip_ratio/dual": total(capped_BT),
    "ppo_kl": total(-log_ratio_BT),
  }
  return total(loss_BT), jax.lax.stop_gradient(metrics)
