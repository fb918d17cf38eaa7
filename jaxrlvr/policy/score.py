"""Log-probability, entropy and self-certainty of given tokens, with the vocabulary in chunks: [B,T,V] never exists."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr import shard
from jaxrlvr.policy import forward as fwd
from jaxrlvr.policy.attention import NEGATIVE
from jaxrlvr.policy.spec import Spec


@struct.dataclass
class Scores:
  """Per-token statistics of p = softmax(logits / temperature), in nats, float32."""

  logp_BT: jax.Array  # log p of the token that stands there
  entropy_BT: jax.Array  # H(p)
  certainty_BT: jax.Array  # KL(U || p), U uniform over the real vocabulary (the paper's self-certainty)


def _pieces(vocab: int, chunk: int) -> int:
  """How many equal pieces of at most `chunk` columns: a number that divides the columns where one is near."""
  least = -(-vocab // min(chunk, vocab))
  return next((n for n in range(least, 2 * least + 1) if vocab % n == 0), least)


def _chunks(head_VD: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
  """(the head in pieces [pieces, columns, D], the token id of each column); each device's part is cut up by itself."""
  vocab, width = head_VD.shape
  shards = shard.here("vocab")
  pieces = _pieces(vocab // shards, max(chunk // shards, 1))
  size = -(-vocab // (shards * pieces))

  def cut(x, fill):
    x = jnp.pad(x, ((0, shards * pieces * size - vocab), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
    x = x.reshape(shards, pieces, size, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(pieces, shards * size, *x.shape[3:])

  return shard.constrain(cut(head_VD, 0), None, "vocab", "embed"), cut(jnp.arange(vocab), vocab)


def _join(pieces, vocab: int) -> jax.Array:
  """The inverse of `_chunks` for the head."""
  shards = shard.here("vocab")
  x = pieces.reshape(len(pieces), shards, -1, pieces.shape[-1]).swapaxes(0, 1)
  return x.reshape(-1, x.shape[-1])[:vocab]


def _logits(hidden, piece, scale):
  """Scaled float32 logits [..., columns] of one piece."""
  return jnp.einsum("...d,vd->...v", hidden, piece, preferred_element_type=jnp.float32) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_stats(hidden, head_VD, target, known: int, chunk: int, scale: float):
  """(logp, entropy, certainty) of `target` [...] under scale * hidden @ head.T, columns from `known` on left out."""
  return _stats_forward(hidden, head_VD, target, known, chunk, scale)[0]


def _stats_forward(hidden, head_VD, target, known, chunk, scale):
  pieces, ids = _chunks(head_VD, chunk)

  def step(carry, xs):
    top, total, weighted, plain, chosen = carry
    piece, id_C = xs
    logits, real = _logits(hidden, piece, scale), id_C < known
    new_top = jnp.maximum(top, jnp.max(jnp.where(real, logits, -jnp.inf), -1))
    e = jnp.where(real, jnp.exp(logits - new_top[..., None]), 0.0)
    shrink = jnp.exp(top - new_top)
    return (
      new_top,
      total * shrink + jnp.sum(e, -1),
      (weighted + (top - new_top) * total) * shrink + jnp.sum(e * (logits - new_top[..., None]), -1),
      plain + jnp.sum(jnp.where(real, logits, 0.0), -1),
      chosen + jnp.sum(jnp.where(target[..., None] == id_C, logits, 0.0), -1),
    ), None

  zero = jnp.zeros(hidden.shape[:-1], jnp.float32)
  start = (jnp.full_like(zero, NEGATIVE), zero, zero, zero, zero)
  (top, total, weighted, plain, chosen), _ = jax.lax.scan(step, start, (pieces, ids))
  log_z = top + jnp.log(total)
  entropy = jnp.log(total) - weighted / total  # relative to the largest logit, or float32 loses its small digits
  certainty = log_z - plain / known - jnp.log(float(known))
  return (chosen - log_z, entropy, certainty), (hidden, head_VD, target, log_z, entropy)


def _stats_backward(known, chunk, scale, kept, gradient):
  hidden, head_VD, target, log_z, entropy = kept
  g_logp, g_entropy, g_certainty = gradient
  pieces, ids = _chunks(head_VD, chunk)

  def step(d_hidden, xs):
    piece, id_C = xs
    logits, real = _logits(hidden, piece, scale), id_C < known
    logp = logits - log_z[..., None]
    p = jnp.exp(logp)
    hit = target[..., None] == id_C
    d = g_logp[..., None] * (hit - p) - g_entropy[..., None] * p * (logp + entropy[..., None])
    d = jnp.where(real, d + g_certainty[..., None] * (p - 1.0 / known), 0.0) * scale
    d = d.astype(piece.dtype)
    d_hidden += jnp.einsum("...v,vd->...d", d, piece, preferred_element_type=jnp.float32)
    flat = d.reshape(-1, d.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    d_piece = jnp.einsum("nv,nd->vd", *flat, preferred_element_type=jnp.float32)
    return d_hidden, shard.constrain(d_piece, "vocab", "embed")

  zero = jnp.zeros(hidden.shape, jnp.float32)
  d_hidden, d_head = jax.lax.scan(step, zero, (pieces, ids))
  return d_hidden.astype(hidden.dtype), _join(d_head, len(head_VD)).astype(head_VD.dtype), None


token_stats.defvjp(_stats_forward, _stats_backward)


def score(params, tokens_BT, positions_BT, segments_BT, spec: Spec, *, start=1, temperature=1.0) -> Scores:
  """Statistics [B, T-start] of tokens start..T-1, each given the tokens of its segment before it.

  `params` are the float32 masters. A token whose predecessor lies in another segment has no context: mask it out.
  """
  weights = fwd.cast(params, spec)
  hidden_BTD, _ = fwd.forward(weights, tokens_BT, positions_BT, fwd.causal(segments_BT, spec), None, spec)
  hidden, target = hidden_BTD[:, start - 1 : -1], tokens_BT[:, start:]
  return Scores(
    *token_stats(hidden, fwd.head_VD(weights, spec), target, spec.known_vocab, spec.vocab_chunk, 1 / temperature)
  )
