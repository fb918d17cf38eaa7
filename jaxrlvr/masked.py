"""Masked reductions: the only room that divides by a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> jax.Array:
  """Mean of x where mask is True, 0 where the mask is empty; values outside the mask may be NaN."""
  total = jnp.sum(jnp.where(mask, x, 0.0), axis, keepdims=keepdims)
  return total / jnp.maximum(jnp.sum(mask, axis, keepdims=keepdims), 1)


def std(x: jax.Array, mask: jax.Array, axis: int | None = None, keepdims: bool = False) -> jax.Array:
  """Sample standard deviation (ddof 1) of x where mask is True; 0 where fewer than two values are."""
  deviation = jnp.where(mask, x - mean(x, mask, axis, keepdims=True), 0.0)
  count = jnp.sum(mask, axis, keepdims=keepdims)
  return jnp.sqrt(jnp.sum(deviation**2, axis, keepdims=keepdims) / jnp.maximum(count - 1, 1))


def spread(x: jax.Array, mask: jax.Array, axis: int, keepdims: bool = False) -> jax.Array:
  """Largest minus smallest value of x where mask is True; 0 where the mask is empty."""
  high = jnp.max(jnp.where(mask, x, -jnp.inf), axis, keepdims=keepdims)
  low = jnp.min(jnp.where(mask, x, jnp.inf), axis, keepdims=keepdims)
  return jnp.maximum(high - low, 0.0)


def _token_mean(mask_BT, rows_B, max_tokens):
  return mask_BT / jnp.maximum(jnp.sum(mask_BT), 1)


def _sequence_mean_token_mean(mask_BT, rows_B, max_tokens):
  return mask_BT / jnp.maximum(jnp.sum(mask_BT, 1, keepdims=True), 1) / jnp.maximum(jnp.sum(rows_B), 1)


def _sequence_mean_token_sum(mask_BT, rows_B, max_tokens):
  return mask_BT / jnp.maximum(jnp.sum(rows_B), 1)


def _constant_length(mask_BT, rows_B, max_tokens):
  return mask_BT / (jnp.maximum(jnp.sum(rows_B), 1) * max_tokens)


# How token losses become one number. Keys: value of `rl.reduce`.
REDUCTIONS = {
  "token-mean": _token_mean,  # all tokens of the batch alike (the study's trainer, DAPO)
  "sequence-mean-token-mean": _sequence_mean_token_mean,  # 1/len inside each response (the paper's formula)
  "sequence-mean-token-sum": _sequence_mean_token_sum,  # no 1/len (the paper's GRPO-POS and GRPO-NEG)
  "constant-length": _constant_length,  # sum / (rows * max_tokens) (Dr.GRPO)
}


def token_weights(mask_BT: jax.Array, reduce: str, max_tokens: int, rows_B: jax.Array | None = None) -> jax.Array:
  """Weights w_BT with loss = sum(w_BT * token_loss_BT); made once for a whole batch, so micro-batches only add up.

  `rows_B` says which rows count in a mean over rows (default: all); `max_tokens` is the constant of constant-length.
  """
  rows_B = jnp.ones(mask_BT.shape[0], bool) if rows_B is None else rows_B
  return REDUCTIONS[reduce](mask_BT.astype(jnp.float32), rows_B, max_tokens)
