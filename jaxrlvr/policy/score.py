"""Log-probability, entropy and self-certainty of given tokens, with the vocabulary in chunks: [B,T,V] never exists."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.policy import forward as fwd
from jaxrlvr.policy.spec import Spec


@struct.dataclass
class Scores:
  """Per-token statistics of p = softmax(logits / temperature), in nats, float32."""

  logp_BT: jax.Array  # log p of the token that stands there
  entropy_BT: jax.Array  # H(p)
  certainty_BT: jax.Array  # KL(U || p), U uniform over the real vocabulary (the paper's self-certainty)


def _chunks(head_VD: jax.Array, chunk: int) -> jax.Array:
  vocab, width = head_VD.shape
  pieces = -(-vocab // min(chunk, vocab))
  size = -(-vocab // pieces)
  return jnp.pad(head_VD, ((0, pieces * size - vocab), (0, 0))).reshape(pieces, size, width)


def _logits(hidden, piece, index, known, scale):
  """Scaled float32 logits [..., size] of one chunk of columns, and which of the columns are real."""
  real = index * piece.shape[0] + jnp.arange(piece.shape[0]) < known
  return jnp.einsum("...d,vd->...v", hidden, piece, preferred_element_type=jnp.float32) * scale, real


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_stats(hidden, head_VD, target, known: int, chunk: int, scale: float):
  """(logp, entropy, certainty) of `target` [...] under scale * hidden @ head.T, columns from `known` on left out."""
  return _stats_forward(hidden, head_VD, target, known, chunk, scale)[0]


def _stats_forward(hidden, head_VD, target, known, chunk, scale):
  pieces = _chunks(head_VD, chunk)

  def step(carry, xs):
    top, total, weighted, plain, chosen = carry
    index, piece = xs
    logits, real = _logits(hidden, piece, index, known, scale)
    new_top = jnp.maximum(top, jnp.max(jnp.where(real, logits, -jnp.inf), -1))
    e = jnp.where(real, jnp.exp(logits - new_top[..., None]), 0.0)
    shrink = jnp.exp(top - new_top)
    local = target - index * piece.shape[0]
    mine = (local >= 0) & (local < piece.shape[0])
    here = jnp.take_along_axis(logits, jnp.clip(local, 0, piece.shape[0] - 1)[..., None], -1)[..., 0]
    return (
      new_top,
      total * shrink + jnp.sum(e, -1),
      (weighted + (top - new_top) * total) * shrink + jnp.sum(e * (logits - new_top[..., None]), -1),
      plain + jnp.sum(jnp.where(real, logits, 0.0), -1),
      jnp.where(mine, here, chosen),
    ), None

  zero = jnp.zeros(hidden.shape[:-1], jnp.float32)
  start = (jnp.full_like(zero, fwd.NEGATIVE), zero, zero, zero, zero)
  (top, total, weighted, plain, chosen), _ = jax.lax.scan(step, start, (jnp.arange(len(pieces)), pieces))
  log_z = top + jnp.log(total)
  entropy = jnp.log(total) - weighted / total  # relative to the largest logit, or float32 loses its small digits
  certainty = log_z - plain / known - jnp.log(float(known))
  return (chosen - log_z, entropy, certainty), (hidden, head_VD, target, log_z, entropy)


def _stats_backward(known, chunk, scale, kept, gradient):
  hidden, head_VD, target, log_z, entropy = kept
  g_logp, g_entropy, g_certainty = gradient
  pieces = _chunks(head_VD, chunk)

  def step(d_hidden, xs):
    index, piece = xs
    logits, real = _logits(hidden, piece, index, known, scale)
    logp = logits - log_z[..., None]
    p = jnp.exp(logp)
    hit = target[..., None] == index * piece.shape[0] + jnp.arange(piece.shape[0])
    d = g_logp[..., None] * (hit - p) - g_entropy[..., None] * p * (logp + entropy[..., None])
    d = jnp.where(real, d + g_certainty[..., None] * (p - 1.0 / known), 0.0) * scale
    d = d.astype(piece.dtype)
    d_hidden += jnp.einsum("...v,vd->...d", d, piece, preferred_element_type=jnp.float32)
    flat = d.reshape(-1, d.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    return d_hidden, jnp.einsum("nv,nd->vd", *flat, preferred_element_type=jnp.float32)

  zero = jnp.zeros(hidden.shape, jnp.float32)
  d_hidden, d_head = jax.lax.scan(step, zero, (jnp.arange(len(pieces)), pieces))
  d_head = d_head.reshape(-1, head_VD.shape[1])[: head_VD.shape[0]]
  return d_hidden.astype(hidden.dtype), d_head.astype(head_VD.dtype), None


token_stats.defvjp(_stats_forward, _stats_backward)


def score(params, tokens_BT, positions_BT, segments_BT, spec: Spec, *, start=1, temperature=1.0, remat=False) -> Scores:
  """Statistics [B, T-start] of tokens start..T-1, each given the tokens of its segment before it.

  `params` are the float32 masters. A token whose predecessor lies in another segment has no context: mask it out.
  """
  weights = fwd.cast(params, spec)
  attend = fwd.causal(segments_BT)
  hidden_BTD, _ = fwd.forward(weights, tokens_BT, positions_BT, attend, None, spec, remat=remat)
  hidden, target = hidden_BTD[:, start - 1 : -1], tokens_BT[:, start:]
  return Scores(
    *token_stats(hidden, fwd.head_VD(weights, spec), target, spec.known_vocab, spec.vocab_chunk, 1 / temperature)
  )
