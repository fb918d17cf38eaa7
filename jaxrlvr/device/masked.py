"""Masked reductions; no other file divides by the sum of a mask.

The functions whose parameters are of the type `Array` take NumPy arrays, and compute on the host, or JAX arrays, and
compute on devices. Masks are boolean, True where a value counts, of the shape of the values. axis None: over all axes.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)


def _library(x: Array):
  """Returns numpy for a NumPy array, else jax.numpy."""
  return np if isinstance(x, np.ndarray) else jnp


def mean(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
  """Returns the mean of x where mask is True, 0 where the mask is True nowhere along `axis`.

  Values outside the mask may be NaN; one inside makes the mean NaN. keepdims: reduced axes stay, with length 1.
  """
  xp = _library(x)
  total = xp.sum(xp.where(mask, x, 0.0), axis, keepdims=keepdims)
  return total / xp.maximum(xp.sum(mask, axis, keepdims=keepdims), 1)


def std(x: Array, mask: Array, axis: int | None = None, keepdims: bool = False) -> Array:
  """Returns the sample standard deviation of x where mask is True, divided by n - 1; 0 for fewer than two values.

  Values outside the mask may be NaN.
  """
  xp = _library(x)
  deviation = xp.where(mask, x - mean(x, mask, axis, keepdims=True), 0.0)
  count = xp.sum(mask, axis, keepdims=keepdims)
  return xp.sqrt(xp.sum(deviation**2, axis, keepdims=keepdims) / xp.maximum(count - 1, 1))


def spread(x: Array, mask: Array, axis: int, keepdims: bool = False) -> Array:
  """Returns the largest minus the smallest value of x where mask is True; 0 where the mask is True nowhere.

  Values outside the mask may be NaN.
  """
  xp = _library(x)
  high = xp.max(xp.where(mask, x, -xp.inf), axis, keepdims=keepdims)
  low = xp.min(xp.where(mask, x, xp.inf), axis, keepdims=keepdims)
  return xp.where(xp.any(mask, axis, keepdims=keepdims), high - low, 0.0)


def segment_mean(x_BT: jax.Array, mask_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
  """Returns [B,T] with, at each slot, the mean of x over the slots of its segment where mask is True.

  A segment is a run of adjacent slots with an equal number in segments_BT; padding (0) counts as one too. 0 where the
  mask is True nowhere in the segment.
  """
  run_BT = jnp.cumsum(jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0, 1)

  def run_sum(x_T, run_T):
    return jax.ops.segment_sum(x_T, run_T, len(run_T))[run_T]

  masked_BT = jnp.where(mask_BT, x_BT, 0.0)
  ones_BT = mask_BT.astype(jnp.float32)
  total_BT = jax.vmap(run_sum)(masked_BT, run_BT)
  count_BT = jax.vmap(run_sum)(ones_BT, run_BT)
  return total_BT / jnp.maximum(count_BT, 1)


# Weights of the tokens of responses by name of the reduction; parameters as in `response_weights`, but length_B is
# float32 and 0 where rows_B is False. Adding 0 times the length gives the result its shape.


def _token_mean(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / _at_least_one(length_B)


def _sequence_mean_token_mean(length_B, rows_B, max_tokens):
  return 1.0 / _library(length_B).maximum(length_B, 1) / _at_least_one(rows_B)


def _sequence_mean_token_sum(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / _at_least_one(rows_B)


def _constant_length(length_B, rows_B, max_tokens):
  return length_B * 0.0 + 1.0 / (_at_least_one(rows_B) * max_tokens)


def _at_least_one(values_B):
  """Returns the sum of the values, at least 1: so that a batch without rows does not divide by 0."""
  xp = _library(values_B)
  return xp.maximum(xp.sum(values_B), 1)


# How losses of tokens are reduced to one number; keys: values of `rl.reduce`. Beside each the weight of a token.
REDUCTIONS = {
  "token-mean": _token_mean,  # 1 / tokens of all responses that count (the study's trainer, DAPO)
  "sequence-mean-token-mean": _sequence_mean_token_mean,  # 1 / (length * responses) (the paper's formula)
  "sequence-mean-token-sum": _sequence_mean_token_sum,  # 1 / responses (the paper's GRPO-POS and GRPO-NEG)
  "constant-length": _constant_length,  # 1 / (responses * max_tokens) (Dr.GRPO)
}


def response_weights(length_B: Array, rows_B: Array, reduce: str, max_tokens: int) -> Array:
  """Returns float32 [B], the weight of every token of each response in the loss: loss = sum(weight * token loss).

  length_B: tokens of each response of the whole update, so that the losses of its microbatches only have to be added.
  rows_B: bool, False where a response is left out; its weight is 0, and it counts neither as response nor by its
  tokens. reduce: a value of `rl.reduce`. With N responses that count, a token of a response of L tokens weighs, for
  "token-mean", 1 / tokens of all N responses; for "sequence-mean-token-mean" 1 / (N * L); for "sequence-mean-token-sum"
  1 / N; for "constant-length" 1 / (N * max_tokens). Raises KeyError for another name.
  """
  xp = _library(length_B)
  length_B = xp.where(rows_B, length_B, 0).astype(xp.float32)
  return xp.where(rows_B, REDUCTIONS[reduce](length_B, rows_B, max_tokens), 0.0)


def token_weights(mask_BT: jax.Array, reduce: str, max_tokens: int) -> jax.Array:
  """Returns float32 [B,T]: `response_weights` at the tokens where mask_BT is True, 0 elsewhere.

  mask_BT: the tokens of the loss; those of a row are one response, and every row counts. reduce, max_tokens: as in
  `response_weights`.
  """
  rows_B = jnp.ones(mask_BT.shape[0], bool)
  return mask_BT * response_weights(jnp.sum(mask_BT, 1), rows_B, reduce, max_tokens)[:, None]
