"""Draws the next token of each row from its logits: truncation, one uniform number, and statistics of the token."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlvr.model.attention import NEGATIVE
from jaxrlvr.sampling.types import Sampling

_PIECE = 128  # columns of the vocabulary whose probabilities are summed up together


class Token(NamedTuple):
  """The next token of each of R rows, and what is recorded of it, in nats."""

  token_R: jax.Array  # int32
  logp_R: jax.Array  # log-probability under the distribution sampled from (temperature, top-k, top-p)
  model_logp_R: jax.Array  # log-probability under the model itself (temperature 1)
  certainty_R: jax.Array  # KL(uniform || model) over the next token
  entropy_R: jax.Array  # entropy of the model's distribution of the next token


def draw(logits_RV: jax.Array, key_R: jax.Array, t: jax.Array, s: Sampling) -> tuple[jax.Array, jax.Array]:
  """Returns (a token of each row, int32 [R]; its log-probability under the truncated, tempered distribution).

  Of the settings it reads temperature, top_k and top_p. At temperature 0 it takes the likeliest token, with
  log-probability 0. Else it inverts the cumulative distribution at one uniform number, a function of the row's random
  key and of t, the index of the token in its response, from 0.
  """
  if s.temperature == 0:
    return jnp.argmax(logits_RV, -1).astype(jnp.int32), jnp.zeros(len(logits_RV))
  logits_RV = _truncate(logits_RV, s)
  u_R = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t)))(key_R)
  p_RV = jnp.exp(logits_RV - jnp.max(logits_RV, -1, keepdims=True))
  padding = -p_RV.shape[1] % _PIECE
  # N pieces of C columns, for two short sums instead of one over V.
  p_RNC = jnp.pad(p_RV, ((0, 0), (0, padding))).reshape(len(p_RV), -1, _PIECE)
  mass_RN = jnp.sum(p_RNC, -1)
  piece_R, remainder_R = _invert(mass_RN, u_R * jnp.sum(mass_RN, -1))
  p_RC = jnp.take_along_axis(p_RNC, piece_R[:, None, None], 1)[:, 0]
  column_R, _ = _invert(p_RC, remainder_R)
  token_R = piece_R * _PIECE + column_R
  chosen_R = jnp.take_along_axis(logits_RV, token_R[:, None], -1)[:, 0]
  return token_R.astype(jnp.int32), chosen_R - jax.nn.logsumexp(logits_RV, -1)


def draw_known(logits_RV: jax.Array, key_R: jax.Array, t: jax.Array, s: Sampling, known: int) -> Token:
  """Draws the next token of each row among the first `known` columns, and returns it with its statistics.

  known: number of tokens that the tokenizer has; further columns of the vocabulary are padding. key_R: a random key of
  each row, the same for all its tokens: t, the index of the token in its response from 0, is mixed in. Of the
  statistics logp is that of the draw, with temperature, top-k and top-p; model_logp, certainty and entropy are of the
  model's own distribution over the known tokens.
  """
  real_V = jnp.arange(logits_RV.shape[1]) < known
  logits_RV = jnp.where(real_V, logits_RV, NEGATIVE)
  token_R, logp_R = draw(logits_RV, key_R, t, s)
  shifted_RV = logits_RV - jnp.max(logits_RV, -1, keepdims=True)
  exp_RV = jnp.exp(shifted_RV)
  total_R = jnp.sum(exp_RV, -1)
  log_z_R = jnp.max(logits_RV, -1) + jnp.log(total_R)
  mean_R = jnp.sum(jnp.where(real_V, logits_RV, 0.0), -1) / known
  return Token(
    token_R=token_R,
    logp_R=logp_R,
    model_logp_R=jnp.take_along_axis(logits_RV, token_R[:, None], -1)[:, 0] - log_z_R,
    certainty_R=log_z_R - mean_R - jnp.log(float(known)),
    entropy_R=jnp.log(total_R) - jnp.sum(exp_RV * shifted_RV, -1) / total_R,
  )


def _truncate(logits_RV, s: Sampling) -> jax.Array:
  """Returns tempered logits with the tokens outside of top-k and top-p at NEGATIVE."""
  logits_RV = logits_RV / s.temperature
  if not s.top_k and s.top_p == 1:
    return logits_RV
  ordered_RV = -jnp.sort(-logits_RV, -1)
  if s.top_k:
    floor_R1 = ordered_RV[:, min(s.top_k, ordered_RV.shape[1]) - 1, None]
    logits_RV = jnp.where(logits_RV >= floor_R1, logits_RV, NEGATIVE)
    ordered_RV = jnp.where(ordered_RV >= floor_R1, ordered_RV, NEGATIVE)
  if s.top_p < 1:
    p_RV = jax.nn.softmax(ordered_RV, -1)
    kept_RV = jnp.cumsum(p_RV, -1) - p_RV < s.top_p
    floor_R1 = jnp.min(jnp.where(kept_RV, ordered_RV, jnp.inf), -1, keepdims=True)
    logits_RV = jnp.where(logits_RV >= floor_R1, logits_RV, NEGATIVE)
  return logits_RV


def _invert(mass_RN, target_R) -> tuple[jax.Array, jax.Array]:
  """Returns (the first index at which the running sum of `mass` exceeds the target, target less the sum before it).

  The mass at that index is never 0.
  """
  sum_RN = jnp.cumsum(mass_RN, -1)
  index_R = jnp.sum(sum_RN <= target_R[:, None], -1)
  last_R = mass_RN.shape[1] - 1 - jnp.argmax(mass_RN[:, ::-1] > 0, -1)  # rounding may put the target above the sum
  index_R = jnp.minimum(index_R, last_R)
  before_R = jnp.take_along_axis(sum_RN - mass_RN, index_R[:, None], -1)[:, 0]
  return index_R, jnp.maximum(target_R - before_R, 0.0)
