"""Log-probability, entropy and self-certainty of given tokens, one vocabulary chunk at a time: no [B,T,V] array."""

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

_MIN_TOKENS = 256  # tokens whose logits are computed at once, at least
_MAX_PARTS = 8  # pieces into which the tokens of a microbatch are cut, at most


@struct.dataclass
class Scores:
  """Statistics of each token under p = softmax(logits / temperature), in nats, float32; a pytree."""

  logp_BT: jax.Array  # log p of the token
  entropy_BT: jax.Array  # H(p), of the distribution that the token was drawn from
  certainty_BT: jax.Array  # KL(U || p) >= 0, U uniform over the known vocabulary: the paper's self-certainty


class _Cut(NamedTuple):
  """How each device's columns of the head are cut."""

  pieces: int
  columns: int  # of a piece, with padding


def _cut(vocab: int, chunk: int, shards: int) -> _Cut:
  """Returns how to cut `vocab` columns, split into `shards` shards, into pieces of at most `chunk` on all shards.

  The fewest pieces that divide a shard evenly, of up to twice as many as are needed; else the fewest, the last padded.
  """
  columns = vocab // shards
  fewest = -(-columns // min(max(chunk // shards, 1), columns))
  evenly = (pieces for pieces in range(fewest, 2 * fewest + 1) if columns % pieces == 0)
  pieces = next(evenly, fewest)
  return _Cut(pieces, -(-vocab // (shards * pieces)))


def piece_columns(vocab: int, chunk: int, shards: int) -> int:
  """Returns how many columns of the head a device computes logits of at once.

  vocab: columns of the whole head, which is split into `shards` shards. chunk: columns on all shards together, at most.
  """
  return _cut(vocab, chunk, shards).columns


def piece_tokens(tokens: int) -> int:
  """Returns how many of a device's tokens it computes logits of at once. tokens: those of a microbatch."""
  return -(-tokens // _token_pieces(tokens))


def _chunks(head_VD: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
  """Cuts the head into pieces of columns; returns it as [pieces, columns, D], and each column's token id.

  A piece holds an equal share of every device's columns, so that no device waits. Padding columns have the id `vocab`.
  """
  vocab, width = head_VD.shape
  shards = sharding.shards_here("vocab")
  pieces, size = _cut(vocab, chunk, shards)

  def cut(x, fill):
    padding = [(0, shards * pieces * size - vocab)] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, padding, constant_values=fill)
    x = x.reshape(shards, pieces, size, *x.shape[1:]).swapaxes(0, 1)
    return x.reshape(pieces, shards * size, *x.shape[3:])

  return sharding.constrain(cut(head_VD, 0), None, "vocab", "embed"), cut(jnp.arange(vocab), vocab)


def _join(pieces, vocab: int) -> jax.Array:
  """Joins the pieces [pieces, columns, D] of `_chunks` to the head [vocab, D]."""
  shards = sharding.shards_here("vocab")
  x = pieces.reshape(len(pieces), shards, -1, pieces.shape[-1]).swapaxes(0, 1)
  return x.reshape(-1, x.shape[-1])[:vocab]


class _TokenOrder(NamedTuple):
  """An order of each shard's tokens with the tokens to score first, so that pieces without such a token are skipped."""

  index_SN: jax.Array  # the token of each place in the order; places beyond the last token fill the last piece
  place_SM: jax.Array  # the place of each token in the order
  live: jax.Array  # how many pieces hold a token to score, in the shard that has most of them

  def pieces(self, x):
    """Returns x [B, T, ...] in this order as [shards, pieces, tokens, ...], 0 in places without a token."""
    shards, tokens = self.place_SM.shape
    x = x.reshape(shards, tokens, *x.shape[2:])
    index = self.index_SN.reshape(*self.index_SN.shape, *[1] * (x.ndim - 2))
    ordered = jnp.take_along_axis(x, index, 1, mode="fill", fill_value=0)
    x = ordered.reshape(shards, _token_pieces(tokens), -1, *x.shape[2:])
    return sharding.constrain(x, "batch", *[None] * (x.ndim - 1))

  def rows(self, x, like):
    """Returns the pieces x in the order of the rows, [B, T, ...] with the B and T of `like`: undoes `pieces`."""
    x = x.reshape(x.shape[0], -1, *x.shape[3:])
    place = self.place_SM.reshape(*self.place_SM.shape, *[1] * (x.ndim - 2))
    x = jnp.take_along_axis(x, place, 1)
    return sharding.constrain(x.reshape(*like.shape, *x.shape[2:]), "batch", *[None] * (x.ndim - 1))


def _token_pieces(tokens: int) -> int:
  """Returns into how many pieces a shard's tokens are cut."""
  return max(1, min(_MAX_PARTS, tokens // _MIN_TOKENS))


def _order(scored_BT: jax.Array) -> _TokenOrder:
  """Returns the order that puts the tokens where `scored_BT` is True first in each shard."""
  shards = sharding.shards_here("batch")
  scored_SM = scored_BT.reshape(shards, -1)
  tokens = scored_SM.shape[1]
  pieces = _token_pieces(tokens)
  index_SM = jnp.argsort(~scored_SM, axis=1, stable=True)
  index_SN = jnp.pad(index_SM, ((0, 0), (0, -tokens % pieces)), constant_values=tokens)
  piece_size = index_SN.shape[1] // pieces
  live = -(-jnp.max(jnp.sum(scored_SM, 1)) // piece_size)  # rounded up
  return _TokenOrder(index_SN, jnp.argsort(index_SM, axis=1), live)


def _logits(hidden, piece, scale):
  """Returns scaled float32 logits [..., columns] for one piece of the head."""
  return jnp.einsum("...d,vd->...v", hidden, piece, preferred_element_type=jnp.float32) * scale


class TokenStats(NamedTuple):
  """Statistics of tokens, each float32 [B,T] in nats; p is the softmax of the scaled logits."""

  logp: jax.Array  # log p of the target
  entropy: jax.Array  # H(p)
  certainty: jax.Array  # KL(U || p), U uniform over the known vocabulary


class _Running(NamedTuple):
  """What the forward pass accumulates over the columns of the head, for each token."""

  top: jax.Array  # the largest logit
  total: jax.Array  # sum of exp(logit - top)
  weighted: jax.Array  # sum of exp(logit - top) * (logit - top)
  plain: jax.Array  # sum of the logits
  chosen: jax.Array  # the target's logit


def _with_columns(running: _Running, logits, id_C, is_known, target) -> _Running:
  """Returns the running values of tokens [...] after more columns of the head, whose logits are [..., columns].

  id_C: token id of each column. is_known: which columns count as vocabulary. target: token id [...] to be scored.
  """
  top, total, weighted, plain, chosen = running
  new_top = jnp.maximum(top, jnp.max(jnp.where(is_known, logits, -jnp.inf), -1))
  exp = jnp.where(is_known, jnp.exp(logits - new_top[..., None]), 0.0)
  shrink = jnp.exp(top - new_top)
  new_total = total * shrink + jnp.sum(exp, -1)
  new_weighted = (weighted + (top - new_top) * total) * shrink + jnp.sum(exp * (logits - new_top[..., None]), -1)
  new_plain = plain + jnp.sum(jnp.where(is_known, logits, 0.0), -1)
  new_chosen = chosen + jnp.sum(jnp.where(target[..., None] == id_C, logits, 0.0), -1)
  return _Running(new_top, new_total, new_weighted, new_plain, new_chosen)


class _PerToken(NamedTuple):
  """What the backward pass reads of each token: its target, two statistics, and the gradients of all three."""

  target: jax.Array
  log_z: jax.Array
  entropy: jax.Array
  d_logp: jax.Array
  d_entropy: jax.Array
  d_certainty: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def token_stats(
  hidden_BTD: jax.Array,
  head_VD: jax.Array,
  target_BT: jax.Array,
  scored_BT: jax.Array,
  known_vocab: int,
  vocab_chunk: int,
  scale: float,
) -> TokenStats:
  """Returns log-probability, entropy and self-certainty of the tokens `target_BT` under logits scale * hidden @ head.T.

  hidden_BTD: the state that predicts each token. target_BT: ids below known_vocab. scored_BT: bool; where it is False
  all three are 0 and have no gradient, and most of these logits are not computed. known_vocab: only ids below it count
  as vocabulary. vocab_chunk: how many ids' logits are held at once. scale: 1 / temperature. Differentiable in
  hidden_BTD and head_VD; the last three arguments must be positional and static.
  """
  return _stats_forward(hidden_BTD, head_VD, target_BT, scored_BT, known_vocab, vocab_chunk, scale)[0]


def _stats_forward(hidden_BTD, head_VD, target_BT, scored_BT, known_vocab, vocab_chunk, scale):
  """Returns what `token_stats` returns, and what its backward pass needs: no logits."""
  order = _order(scored_BT)
  hidden, target = order.pieces(hidden_BTD), order.pieces(target_BT)

  def add_columns(running, head_piece):
    columns, id_C = head_piece
    columns = sharding.constrain(columns, "vocab", None)  # gathered here once, not for each piece of the tokens
    columns = columns.astype(hidden_BTD.dtype)
    is_known = id_C < known_vocab

    def add_tokens(i, running):
      hidden_here, target_here = hidden[:, i], target[:, i]
      before = _Running(*(x[:, i] for x in running))
      logits = _logits(hidden_here, columns, scale)
      after = _with_columns(before, logits, id_C, is_known, target_here)
      return jax.tree.map(lambda x, value: x.at[:, i].set(value), running, after)

    return jax.lax.fori_loop(0, order.live, add_tokens, running), None

  zero = jnp.zeros(target.shape, jnp.float32)
  top = jnp.full_like(zero, NEGATIVE)
  start = _Running(top, total=zero, weighted=zero, plain=zero, chosen=zero)
  running, _ = jax.lax.scan(add_columns, start, _chunks(head_VD, vocab_chunk))
  total = jnp.where(running.total > 0, running.total, 1.0)  # 0 for tokens in pieces that were skipped
  log_z = running.top + jnp.log(total)
  entropy = jnp.log(total) - running.weighted / total  # relative to the top logit, or float32 loses its small digits
  certainty = log_z - running.plain / known_vocab - jnp.log(float(known_vocab))

  def by_row(x):
    return jnp.where(scored_BT, order.rows(x, target_BT), 0.0)

  logp = running.chosen - log_z
  stats = TokenStats(by_row(logp), by_row(entropy), by_row(certainty))
  return stats, (hidden_BTD, head_VD, target_BT, scored_BT, log_z, entropy)


def _stats_backward(known_vocab, vocab_chunk, scale, residuals, gradient):
  """Returns the gradients of hidden states and head; logits are computed again, one piece at a time."""
  hidden_BTD, head_VD, target_BT, scored_BT, log_z, entropy = residuals
  order = _order(scored_BT)
  hidden, target = order.pieces(hidden_BTD), order.pieces(target_BT)
  d_stats = (order.pieces(jnp.where(scored_BT, d_BT, 0.0)) for d_BT in gradient)
  per_token = _PerToken(target, log_z, entropy, *d_stats)

  def add_columns(d_hidden, head_piece):
    columns, id_C = head_piece
    columns = sharding.constrain(columns, "vocab", None)  # gathered here once, not for each piece of the tokens
    columns = columns.astype(hidden_BTD.dtype)
    is_known = id_C < known_vocab

    def add_tokens(i, carry):
      d_hidden, d_columns = carry
      token = jax.tree.map(lambda x: x[:, i, :, None], per_token)
      hidden_here = hidden[:, i]
      logp = _logits(hidden_here, columns, scale) - token.log_z
      p = jnp.exp(logp)
      d_logits = token.d_logp * ((token.target == id_C) - p)
      d_logits = d_logits - token.d_entropy * p * (logp + token.entropy)
      d_logits = d_logits + token.d_certainty * (p - 1.0 / known_vocab)
      d_logits = jnp.where(is_known, d_logits, 0.0) * scale
      d_logits = d_logits.astype(columns.dtype)
      d_hidden_here = jnp.einsum("snv,vd->snd", d_logits, columns, preferred_element_type=jnp.float32)
      d_columns += jnp.einsum("snv,snd->svd", d_logits, hidden_here, preferred_element_type=jnp.float32)
      return d_hidden.at[:, i].add(d_hidden_here), d_columns

    zero = sharding.constrain(jnp.zeros((len(hidden), *columns.shape), jnp.float32), "batch", "vocab", None)
    d_hidden, d_columns = jax.lax.fori_loop(0, order.live, add_tokens, (d_hidden, zero))
    return d_hidden, sharding.constrain(jnp.sum(d_columns, 0), "vocab", "embed")  # shards add up once a piece

  zero = jnp.zeros(hidden.shape, jnp.float32)
  d_hidden, d_head = jax.lax.scan(add_columns, zero, _chunks(head_VD, vocab_chunk))
  d_hidden = order.rows(d_hidden, target_BT)
  d_hidden = d_hidden.astype(hidden_BTD.dtype)
  d_head = _join(d_head, len(head_VD)).astype(head_VD.dtype)
  return d_hidden, d_head, None, None


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
  scored_BT: jax.Array | None = None,
  layout: RowLayout | None = None,
) -> Scores:
  """Returns statistics [B, T-start] of the tokens in slots start .. T-1, each given the earlier tokens of its text.

  Runs the forward pass; differentiable in `params`, the float32 master weights by name. tokens_BT: token ids.
  positions_BT: position of each token in its text. segments_BT: number of the text in each slot, 0 for padding.
  start: at least 1. temperature: logits are divided by it. scored_BT: bool [B,T], the tokens to score (None: all);
  other tokens get 0, and most of their logits are not computed. layout: how texts are laid out on the rows (None:
  `Separate`, one behind another). The first token of a text, and padding, have no context: mask their numbers out,
  which mean nothing. The first token of a response is given its prompt, wherever the layout has placed it.
  """
  weights = fwd.cast(params, spec)
  if layout is None:
    layout = Separate(tokens_BT.shape[1])
  if scored_BT is None:
    scored_BT = jnp.ones(tokens_BT.shape, bool)
  attend = fwd.causal(segments_BT, spec, layout)
  hidden_BTD, _ = fwd.forward(weights, tokens_BT, positions_BT, attend, None, spec)
  previous_hidden = layout.previous_hidden(hidden_BTD, segments_BT, start)
  stats = token_stats(
    previous_hidden,
    fwd.head_VD(weights, spec),
    tokens_BT[:, start:],
    scored_BT[:, start:],
    spec.known_vocab,
    spec.vocab_chunk,
    1 / temperature,
  )
  return Scores(stats.logp, stats.entropy, stats.certainty)
