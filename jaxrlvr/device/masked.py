"""Masked reductions: the only room that divides by a mask.

Those of NumPy arrays are computed on the host, those of JAX arrays on devices, by the same lines.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


def _library(x: Array):
  """The library whose array x is."""
  return np if isinstance(x, np.ndarray) else jnp


def mean(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
  """Mean of x where mask is True, 0 where the mask is empty; values outside the mask may be NaN."""
  xp = _library(x)
  total = xp.sum(xp.where(mask, x, 0.0), axis, keepdims=keepdims)
  return total / xp.maximum(xp.sum(mask, axis, keepdims=keepdims), 1)


def std(x: Array, mask: Array, axis: int | None = None, keepdims: bool = False) -> Array:
  """Sample standard deviation (ddof 1) of x where mask is True; 0 where fewer than two values are."""
  xp = _library(x)
  deviation = xp.where(mask, x - mean(x, mask, axis, keepdims=True), 0.0)
  count = xp.sum(mask, axis, keepdims=keepdims)
  return xp.sqrt(xp.sum(deviation**2, axis, keepdims=keepdims) / xp.maximum(count - 1, 1))


def spread(x: Array, mask: Array, axis: int, keepdims: bool = False) -> Array:
  """Largest minus smallest value of x where mask is True; 0 where the mask is empty."""
  xp = _library(x)
  high = xp.max(xp.where(mask, x, -xp.inf), axis, keepdims=keepdims)
  low = xp.min(xp.where(mask, x, xp.inf), axis, keepdims=keepdims)
  return xp.where(xp.any(mask, axis, keepdims=keepdims), high - low, 0.0)


def segment_mean(x_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
  """`mean` along each run of equal numbers in segments_BT, at each of its slots."""
  run_BT = jnp.cumsum(jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0, 1)

  def row(x_T, run_T):
    return jax.ops.segment_sum(x_T, run_T, len(run_T))[run_T]

  total_BT, count_BT = (jax.vmap(row)(x, run_BT) for x in (jnp.where(mask_BT, x_BT, 0.0), mask_BT.astype(jnp.float32)))
  return total_BT / jnp.maximum(count_BT, 1)


def _token_mean(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / _at_least_one(length_B)


def _sequence_mean_token_mean(length_B, rows_B, max_tokens):
  return 1.0 / _library(length_B).maximum(length_B, 1) / _at_least_one(rows_B)


def _sequence_mean_token_sum(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / _at_least_one(rows_B)


def _constant_length(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / (_at_least_one(rows_B) * max_tokens)


def _at_least_one(values_B):
  """Their sum, or 1 where that is less: a batch without rows divides by nothing."""
  xp = _library(values_B)
  return xp.maximum(xp.sum(values_B), 1)


# How token losses become one number. Keys: value of `rl.reduce`.
REDUCTIONS = {
  "token-mean": _token_mean,  # all tokens of the batch alike (the study's trainer, DAPO)
  "sequence-mean-token-mean": _sequence_mean_token_mean,  # 1/len inside each response (the paper's formula)
  "sequence-mean-token-sum": _sequence_mean_token_sum,  # no 1/len (the paper's GRPO-POS and GRPO-NEG)
  "constant-length": _constant_length,  # sum / (rows * max_tokens) (Dr.GRPO)
}


def response_weights(length_B: Array, rows_B: Array, reduce: str, max_tokens: int) -> Array:
  """Weight of each token of responses of `length_B` tokens, 0 where `rows_B` is False: such a row counts in no mean.

  loss = sum(weight * token loss); made once for a whole batch, so micro-batches only add up. `max_tokens` is the
  constant of constant-length.
  """
  xp = _library(length_B)
  length_B = xp.where(rows_B, length_B, 0).astype(xp.float32)
  return xp.where(rows_B, REDUCTIONS[reduce](length_B, rows_B, max_tokens), 0.0)


def token_weights(mask_BT: jax.Array, reduce: str, max_tokens: int) -> jax.Array:
  """`response_weights` at the tokens of a batch whose rows all count."""
  rows_B = jnp.ones(mask_BT.shape[0], bool)
  return mask_BT * response_weights(jnp.sum(mask_BT, 1), rows_B, reduce, max_tokens)[:, None]
