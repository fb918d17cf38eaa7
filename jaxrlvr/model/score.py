"""Log-probability, entropy and self-certainty of given tokens, with the vocabulary in chunks: [B,T,V] never exists."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.attention import NEGATIVE
from jaxrlvr.model.row_layout import RowLayout, Separate
from jaxrlvr.model.spec import Spec

_TOKENS, _PARTS = 256, 8  # tokens whose logits are made at once, at least, and pieces of a micro-batch, at most


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
  shards = sharding.size_here("vocab")
  pieces = _pieces(vocab // shards, max(chunk // shards, 1))
  size = -(-vocab // (shards * pieces))

  def cut(x, fill):
    x = jnp.pad(x, ((0, shards * pieces * size - vocab), *[(0, 0)] * (x.ndim - 1)), constant_values=fill)
    x = x.reshape(shards, pieces, size, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(pieces, shards * size, *x.shape[3:])

  return sharding.constrain(cut(head_VD, 0), None, "vocab", "embed"), cut(jnp.arange(vocab), vocab)


def _join(pieces, vocab: int) -> jax.Array:
  """The inverse of `_chunks` for the head."""
  shards = sharding.size_here("vocab")
  x = pieces.reshape(len(pieces), shards, -1, pieces.shape[-1]).swapaxes(0, 1)
  return x.reshape(-1, x.shape[-1])[:vocab]


class _Order(NamedTuple):
  """The tokens of each of s shards in p pieces of n, those that are wanted first."""

  index_SN: jax.Array  # into a shard's tokens; beyond them what fills the last piece, 0 in `pieces`
  back_SM: jax.Array  # where a shard's tokens stand in it
  live: jax.Array  # pieces that hold a wanted token, in the fullest shard

  def pieces(self, x):
    """[B, T, ...] as [s, p, n, ...]."""
    shards, tokens = self.back_SM.shape
    x = x.reshape(shards, tokens, *x.shape[2:])
    index = self.index_SN.reshape(*self.index_SN.shape, *[1] * (x.ndim - 2))
    x = jnp.take_along_axis(x, index, 1, mode="fill", fill_value=0).reshape(shards, _parts(tokens), -1, *x.shape[2:])
    return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))

  def rows(self, x, like):
    """The inverse, with the leading axes of `like` [B, T]."""
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    x = jnp.take_along_axis(x, self.back_SM.reshape(*self.back_SM.shape, *[1] * (x.ndim - 2)), 1)
    return sharding.constrain(x.reshape(*like.shape, *x.shape[2:]), "batch", *[None] * (x.ndim - 1))


def _parts(tokens: int) -> int:
  return max(1, min(_PARTS, tokens // _TOKENS))


def _order(wanted_BT: jax.Array) -> _Order:
  shards = sharding.size_here("batch")
  wanted_SM = wanted_BT.reshape(shards, -1)
  tokens = wanted_SM.shape[1]
  index_SM = jnp.argsort(~wanted_SM, axis=1, stable=True)
  filled = jnp.pad(index_SM, ((0, 0), (0, -tokens % _parts(tokens))), constant_values=tokens)
  size = filled.shape[1] // _parts(tokens)
  live = -(-jnp.max(jnp.sum(wanted_SM, 1)) // size)
  return _Order(filled, jnp.argsort(index_SM, axis=1), live)


def _logits(hidden, piece, scale):
  """Scaled float32 logits [..., columns] of one piece."""
  return jnp.einsum("...d,vd->...v", hidden, piece, preferred_element_type=jnp.float32) * scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def token_stats(
  hidden_BTD: jax.Array,
  head_VD: jax.Array,
  target_BT: jax.Array,
  wanted_BT: jax.Array,
  known: int,
  chunk: int,
  scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(logp, entropy, certainty) of `target` under scale * hidden @ head.T, columns from `known` on left out.

  What is not wanted is 0 and costs next to nothing.
  """
  return _stats_forward(hidden_BTD, head_VD, target_BT, wanted_BT, known, chunk, scale)[0]


def _stats_forward(hidden_BTD, head_VD, target_BT, wanted_BT, known, chunk, scale):
  order = _order(wanted_BT)
  hidden, target = order.pieces(hidden_BTD), order.pieces(target_BT)

  def step(carry, xs):
    piece, id_C = sharding.constrain(xs[0], "vocab", None), xs[1]  # gathered once, not for each piece of the tokens
    real = id_C < known

    def tokens(i, carry):
      here, aim, top, total, weighted, plain, chosen = (x[:, i] for x in (hidden, target, *carry))
      logits = _logits(here, piece, scale)
      new_top = jnp.maximum(top, jnp.max(jnp.where(real, logits, -jnp.inf), -1))
      e = jnp.where(real, jnp.exp(logits - new_top[..., None]), 0.0)
      shrink = jnp.exp(top - new_top)
      new = (
        new_top,
        total * shrink + jnp.sum(e, -1),
        (weighted + (top - new_top) * total) * shrink + jnp.sum(e * (logits - new_top[..., None]), -1),
        plain + jnp.sum(jnp.where(real, logits, 0.0), -1),
        chosen + jnp.sum(jnp.where(aim[..., None] == id_C, logits, 0.0), -1),
      )
      return tuple(x.at[:, i].set(y) for x, y in zip(carry, new, strict=True))

    return jax.lax.fori_loop(0, order.live, tokens, carry), None

  zero = jnp.zeros(target.shape, jnp.float32)
  start = (jnp.full_like(zero, NEGATIVE), zero, zero, zero, zero)
  (top, total, weighted, plain, chosen), _ = jax.lax.scan(step, start, _chunks(head_VD, chunk))
  total = jnp.where(total > 0, total, 1.0)  # of tokens in no live piece
  log_z = top + jnp.log(total)
  entropy = jnp.log(total) - weighted / total  # relative to the largest logit, or float32 loses its small digits
  certainty = log_z - plain / known - jnp.log(float(known))
  stats = (jnp.where(wanted_BT, order.rows(x, target_BT), 0.0) for x in (chosen - log_z, entropy, certainty))
  return tuple(stats), (hidden_BTD, head_VD, target_BT, wanted_BT, log_z, entropy)


def _stats_backward(known, chunk, scale, kept, gradient):
  hidden_BTD, head_VD, target_BT, wanted_BT, log_z, entropy = kept
  order = _order(wanted_BT)
  hidden, target = order.pieces(hidden_BTD), order.pieces(target_BT)
  by_token = (log_z, entropy, *(order.pieces(jnp.where(wanted_BT, g_BT, 0.0)) for g_BT in gradient))

  def step(d_hidden, xs):
    piece, id_C = sharding.constrain(xs[0], "vocab", None), xs[1]  # gathered once, not for each piece of the tokens
    real = id_C < known

    def tokens(i, carry):
      d_hidden, d_piece = carry
      aim, log_z, entropy, g_logp, g_entropy, g_certainty = (x[:, i, :, None] for x in (target, *by_token))
      here = hidden[:, i]
      logp = _logits(here, piece, scale) - log_z
      p = jnp.exp(logp)
      d = g_logp * ((aim == id_C) - p) - g_entropy * p * (logp + entropy)
      d = jnp.where(real, d + g_certainty * (p - 1.0 / known), 0.0) * scale
      d = d.astype(piece.dtype)
      d_here = jnp.einsum("snv,vd->snd", d, piece, preferred_element_type=jnp.float32)
      d_piece += jnp.einsum("snv,snd->svd", d, here, preferred_element_type=jnp.float32)
      return d_hidden.at[:, i].add(d_here), d_piece

    none = sharding.constrain(jnp.zeros((len(hidden), *piece.shape), jnp.float32), "batch", "vocab", None)
    d_hidden, d_piece = jax.lax.fori_loop(0, order.live, tokens, (d_hidden, none))
    return d_hidden, sharding.constrain(jnp.sum(d_piece, 0), "vocab", "embed")  # shards add up once a piece

  zero = jnp.zeros(hidden.shape, jnp.float32)
  d_hidden, d_head = jax.lax.scan(step, zero, _chunks(head_VD, chunk))
  d_hidden = order.rows(d_hidden, target_BT)
  return d_hidden.astype(hidden_BTD.dtype), _join(d_head, len(head_VD)).astype(head_VD.dtype), None, None


token_stats.defvjp(_stats_forward, _stats_backward)


def score(
  params: Mapping[str, jax.Array],
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  segments_BT: jax.Array,
  spec: Spec,
  *,
  start: int = 1,
  temperature: float = 1.0,
  wanted_BT: jax.Array | None = None,
  layout: RowLayout | None = None,
) -> Scores:
  """Statistics [B, T-start] of tokens start..T-1, each given the tokens of its segment before it.

  `params` are the float32 masters. A token whose predecessor lies in another segment has no context: mask it out.
  wanted_BT: tokens to look at (None: all); the others' statistics are 0, and their logits are not made. layout: how
  texts stand on the rows (not named: one behind another); a response's first token is given its prompt.
  """
  weights = fwd.cast(params, spec)
  layout = layout or Separate(tokens_BT.shape[1])
  wanted_BT = jnp.ones(tokens_BT.shape, bool) if wanted_BT is None else wanted_BT
  hidden_BTD, _ = fwd.forward(weights, tokens_BT, positions_BT, fwd.causal(segments_BT, spec, layout), None, spec)
  hidden = layout.previous_hidden(hidden_BTD, segments_BT, start)
  head_VD, target, wanted = fwd.head_VD(weights, spec), tokens_BT[:, start:], wanted_BT[:, start:]
  return Scores(*token_stats(hidden, head_VD, target, wanted, spec.known_vocab, spec.vocab_chunk, 1 / temperature))
