"""The decode loop: a prompt is prefilled once, its G responses share it, finished rows leave the batch.

A row is a response in the batch; it is finished once its response has ended, and live until then. R is the number of
rows that are still in the batch. The batch is split into shards, whose rows never leave their device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.int8 import dequantise
from jaxrlvr.model.layers import rope_tables
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling import cache as caches
from jaxrlvr.sampling.cache import CacheBlock, PromptCache
from jaxrlvr.sampling.drawing import draw_known
from jaxrlvr.sampling.types import STOP_EOS, STOP_LENGTH, STOP_STRING, Batch, Rollout, Sampling

_LEAST_ROWS_TO_HALVE = 4  # of a shard


@struct.dataclass
class State:
  """What a decode step carries beside the cache, for the R rows that are still in the batch."""

  rollout: Rollout  # what has been drawn so far; its arrays have R rows
  last_R: jax.Array  # int32: the newest token
  done_R: jax.Array  # bool: whether the row is finished
  matched_R: jax.Array  # int32: state of the stop-string automaton
  key_R: jax.Array  # random keys, as in `Batch.keys_B`
  row_R: jax.Array  # int32: index of the row in its shard of the whole batch
  prompt_length_R: jax.Array  # int32: tokens of its prompt


class Finished(NamedTuple):
  """Rows that left the batch together."""

  rollout: Rollout
  row_R: jax.Array  # int32: index of each row in its shard of the whole batch


class Decoded(NamedTuple):
  """What a call of `decode` leaves behind."""

  open_block: CacheBlock  # with the keys and values of the tokens up to the one before the newest
  state: State
  t: jax.Array  # int32 scalar: index of the newest token of each live row
  live_rows: jax.Array  # int32 scalar: live rows of the shard that has most


class Halved(NamedTuple):
  """The half of a batch's rows that goes on, and the half that has left, whose rows are all finished."""

  prompt: PromptCache  # of the rows that go on, an entry for each row
  state: State
  full_blocks: tuple[CacheBlock, ...]
  open_block: CacheBlock
  finished: Finished  # the rows that have left


@functools.partial(jax.jit, static_argnames=("spec", "s", "shards"))
def prefill(
  weights: dict, batch: Batch, stops: jax.Array, spec: Spec, s: Sampling, *, shards: int = 1
) -> tuple[PromptCache, State]:
  """Runs the prompts and draws the first token of each response; returns (the prompts' cache, the state then).

  weights: as `lay_out_weights` returns them. stops: table of stop strings, int32 [states, V]. shards: number of equal
  parts that the mesh splits the batch into, each with whole groups.
  """
  prompt_PS, prompt_length_P, keys_B = batch
  hidden_PD, prompt = caches.read_prompts(weights, prompt_PS, prompt_length_P, spec, s)
  state = _first_state(keys_B, prompt_length_P, s, shards)
  first_RV = jnp.repeat(_logits(weights, hidden_PD, spec), s.group, 0)
  return prompt, _draw_token(state, first_RV, 0, s, stops, spec.known_vocab)


@functools.partial(jax.jit, static_argnames=("spec", "s", "until_live", "shards"), donate_argnames="open_block")
def decode(
  weights: dict,
  prompt: PromptCache,
  full_blocks: tuple[CacheBlock, ...],
  open_block: CacheBlock,
  state: State,
  t: jax.Array,
  stops: jax.Array,
  spec: Spec,
  s: Sampling,
  *,
  until_live: int,
  shards: int = 1,
) -> Decoded:
  """Decodes until no shard has more than `until_live` live rows, the open block is full, or s.max_tokens is reached.

  Takes no step if one of these holds already. Finished rows stay in the batch, and nothing more is recorded for them.
  full_blocks: the blocks of the cache before the open one, oldest first. open_block: the block that is being filled;
  its memory is reused, so the caller must not read it again. t: int32 scalar, index of the newest token of each live
  row, 0 after `prefill`. stops: table of stop strings, int32 [states, V]. shards: number of equal parts that the mesh
  splits the batch into.
  """
  first = len(full_blocks) * s.block_slots
  table = rope_tables(prompt.mask_PS.shape[1] + s.max_tokens, spec)

  def goes_on(carry):
    t, state, _ = carry
    last = min(first + s.block_slots, s.max_tokens - 1)
    return (t < last) & (_most_live_rows(state, shards) > until_live)

  def step(carry):
    t, state, open_block = carry
    attend = caches.decode_attend(prompt, full_blocks, t - first, s)
    positions_R1 = (state.prompt_length_R + t)[:, None]
    layers = tuple(enumerate(open_block))
    hidden_R1D, layers = fwd.forward(weights, state.last_R[:, None], positions_R1, attend, layers, spec, table)
    logits_RV = _logits(weights, hidden_R1D[:, 0], spec)
    state = _draw_token(state, logits_RV, t + 1, s, stops, spec.known_vocab)
    return t + 1, state, tuple(slots for _, slots in layers)

  t, state, open_block = jax.lax.while_loop(goes_on, step, (t, state, open_block))
  return Decoded(open_block, state, t, _most_live_rows(state, shards))


@functools.partial(jax.jit, static_argnames=("rows_per_prompt", "shards"))
def halve(
  prompt: PromptCache,
  full_blocks: tuple[CacheBlock, ...],
  open_block: CacheBlock,
  state: State,
  *,
  rows_per_prompt: int,
  shards: int = 1,
) -> Halved:
  """Halves each shard of the batch: live rows stay, together with as many finished rows as fill the half.

  No shard may have more live rows than half of its rows. rows_per_prompt: rows that share an entry of `prompt`: the
  group at first, 1 once the batch has been halved. From then on each row holds its own copy of its prompt's keys and
  values; these copies take half the memory that copies for the whole batch would take. shards: number of equal parts
  that the mesh splits the batch into.
  """
  half = len(state.done_R) // shards // 2
  order_R = _by_shard(lambda done_R: jnp.argsort(done_R, stable=True), shards, state.done_R)
  leaving = Finished(state.rollout, state.row_R)
  finished = _index_by_shard(lambda x, order: x[order[half:]], shards, leaving, order_R)
  staying = (state, full_blocks, open_block)
  state, full_blocks, open_block = _index_by_shard(lambda x, order: x[order[:half]], shards, staying, order_R)
  prompt = _index_by_shard(lambda x, order: x[order[:half] // rows_per_prompt], shards, prompt, order_R)
  return Halved(prompt, state, full_blocks, open_block, finished)


@functools.partial(jax.jit, static_argnames="shards")
def collect(parts: list[Finished], *, shards: int) -> Rollout:
  """Returns the responses of the whole batch in its order.

  parts: the rows that left the batch at each halving and those that remained, each row once, in any order. shards:
  number of equal parts that the mesh splits the batch into.
  """
  rollout, row_B = jax.tree.map(lambda *x: _by_shard(lambda *y: jnp.concatenate(y), shards, *x), *parts)
  return _index_by_shard(lambda x, row: x[jnp.argsort(row)], shards, rollout, row_B)


_zero = jax.jit(lambda: jnp.int32(0))
_all_done = jax.jit(lambda state: dataclasses.replace(state, done_R=jnp.ones_like(state.done_R)))


class DecodeLoop:
  """Samples batches of one shape: `loop(weights, batch, stops)` returns the Rollout of a Batch.

  weights: as `lay_out_weights` returns them. stops: table of stop strings, int32 [states, V]. On the host, it chooses
  the next program as responses end: to decode on, to halve the batch, or to open another block of the cache.
  The first call compiles every program that responses of any length can need; nothing compiles later on. Threads may
  share a loop: the first one compiles while the others wait. All processes of the mesh must call it together.
  """

  def __init__(self, spec: Spec, s: Sampling, shards: int):
    """shards: number of equal parts that the mesh splits the batch into, each with whole groups."""
    self._spec, self._s, self._shards = spec, s, shards
    self._compiled, self._compiling = False, threading.Lock()

  def __call__(self, weights, batch: Batch, stops) -> Rollout:
    """Returns the responses to a batch; compiles all programs first if no call has done so."""
    if self._compiled:
      prompt, state = self._prefill(weights, batch, stops)
    else:
      with self._compiling:
        prompt, state = self._prefill(weights, batch, stops)
        if not self._compiled:
          self._compile(weights, prompt, state, stops)
          self._compiled = True
    return self._run(weights, prompt, state, stops)

  def _prefill(self, weights, batch: Batch, stops) -> tuple[PromptCache, State]:
    return prefill(weights, batch, stops, self._spec, self._s, shards=self._shards)

  def _compile(self, weights, prompt: PromptCache, state: State, stops) -> None:
    """Compiles every program by running it once, without a step, on rows that have all ended."""
    state = _all_done(state)
    parts: list[Finished] = []
    most_blocks = math.ceil(self._s.max_tokens / self._s.block_slots)
    for halvings in range(self._s.shrink + 1):
      until_live, full_blocks, halved = self._until_live(state, halvings), (), None
      for _ in range(most_blocks):
        open_block = self._empty_block(prompt, state)
        open_block = self._decode(
          weights, prompt, full_blocks, open_block, state, _zero(), stops, until_live
        ).open_block
        if until_live:
          halved = self._halve(prompt, full_blocks, open_block, state, halvings)
        full_blocks = (*full_blocks, open_block)
      self._collect(parts, state)
      if halved is None:
        return
      prompt, state = halved.prompt, halved.state
      parts.append(halved.finished)

  def _run(self, weights, prompt: PromptCache, state: State, stops) -> Rollout:
    """Decodes all responses after their first token, and returns them."""
    t, full_blocks, parts = _zero(), (), []
    open_block = self._empty_block(prompt, state)
    while True:
      until_live = self._until_live(state, halvings=len(parts))
      decoded = self._decode(weights, prompt, full_blocks, open_block, state, t, stops, until_live)
      open_block, state, t, _ = decoded
      newest, live_rows = map(int, jax.device_get((t, decoded.live_rows)))
      if not live_rows or newest + 1 >= self._s.max_tokens:
        return self._collect(parts, state)
      if live_rows <= until_live:
        halved = self._halve(prompt, full_blocks, open_block, state, halvings=len(parts))
        prompt, state, full_blocks, open_block, finished = halved
        parts.append(finished)
      if newest == (len(full_blocks) + 1) * self._s.block_slots:
        full_blocks, open_block = (*full_blocks, open_block), self._empty_block(prompt, state)

  def _until_live(self, state: State, halvings: int) -> int:
    """Returns the live rows that a shard may have when the batch is halved; 0: it is never halved again.

    halvings: how often it has been halved.
    """
    rows_of_shard = len(state.done_R) // self._shards
    if halvings == self._s.shrink or rows_of_shard % 2 or rows_of_shard < _LEAST_ROWS_TO_HALVE:
      return 0
    return rows_of_shard // 2

  def _empty_block(self, prompt: PromptCache, state: State) -> CacheBlock:
    return caches.empty_block(prompt, len(state.done_R), self._s.block_slots)

  def _decode(self, weights, prompt, full_blocks, open_block, state, t, stops, until_live: int) -> Decoded:
    arrays = (weights, prompt, full_blocks, open_block, state, t, stops)
    return decode(*arrays, self._spec, self._s, until_live=until_live, shards=self._shards)

  def _halve(self, prompt, full_blocks, open_block, state, halvings: int) -> Halved:
    rows_per_prompt = 1 if halvings else self._s.group
    return halve(prompt, full_blocks, open_block, state, rows_per_prompt=rows_per_prompt, shards=self._shards)

  def _collect(self, parts: list[Finished], state: State) -> Rollout:
    """Returns the responses of the rows that left the batch and of those that are still in it."""
    return collect([*parts, Finished(state.rollout, state.row_R)], shards=self._shards)


@functools.cache
def decode_loop(
  spec: Spec,
  s: Sampling,
  shards: int,
  prompt_shape: tuple[int, int],
  stops_shape: tuple[int, int],
  mesh: jax.sharding.AbstractMesh,
) -> DecodeLoop:
  """Returns this process's loop for batches of these shapes on this mesh: the same one for the same arguments.

  prompt_shape: (P, S) of the batch's prompts. stops_shape: (states, V) of the table of stop strings. mesh: the abstract
  mesh that is set when the loop is called. The last three only tell loops apart, so that each shape is compiled once.
  """
  return DecodeLoop(spec, s, shards)


def _first_state(keys_B, prompt_length_P, s: Sampling, shards: int) -> State:
  """Returns the state before the first token."""
  rows = len(keys_B)
  zeros_RT = jnp.zeros((rows, s.max_tokens), jnp.float32)
  zero_R = jnp.zeros(rows, jnp.int32)
  rollout = Rollout(
    tokens_BT=jnp.full((rows, s.max_tokens), s.pad_id, jnp.int32),
    length_B=zero_R,
    stop_B=zero_R,
    logp_BT=zeros_RT,
    model_logp_BT=zeros_RT,
    certainty_BT=zeros_RT,
    entropy_BT=zeros_RT,
  )
  return State(
    rollout=rollout,
    last_R=zero_R,
    done_R=jnp.zeros(rows, bool),
    matched_R=zero_R,
    key_R=keys_B,
    row_R=jnp.arange(rows) % (rows // shards),
    prompt_length_R=jnp.repeat(prompt_length_P, s.group),
  )


def _logits(weights, hidden_RD, spec: Spec) -> jax.Array:
  """Returns logits, sharded over the vocabulary: else every device would gather the head for every token."""
  head_VD = dequantise(fwd.head_VD(weights, spec), hidden_RD.dtype)
  logits_RV = jnp.einsum("rd,vd->rv", hidden_RD, head_VD, preferred_element_type=jnp.float32)
  return sharding.constrain(logits_RV, "batch", "vocab")


def _draw_token(state: State, logits_RV, t, s: Sampling, stops, known: int) -> State:
  """Draws token t of each live row and records it; returns the state after it.

  Each device looks at some of the rows, over the whole vocabulary. known: `Spec.known_vocab`.
  """
  if not len(logits_RV) % sharding.shards_here("everywhere"):
    logits_RV = sharding.constrain(logits_RV, "everywhere", None)
  token = draw_known(logits_RV, state.key_R, t, s, known)
  live_R = ~state.done_R
  matched_R = stops[state.matched_R, token.token_R]
  eos_R = jnp.isin(token.token_R, jnp.array(s.eos_ids, jnp.int32))
  string_R = matched_R == len(stops) - 1
  old = state.rollout

  def put(array_RT, value_R):
    column = jnp.where(live_R, value_R, array_RT[:, t])[:, None].astype(array_RT.dtype)
    return jax.lax.dynamic_update_slice(array_RT, column, (0, t))

  stop_R = jnp.where(eos_R, STOP_EOS, jnp.where(string_R, STOP_STRING, STOP_LENGTH))
  rollout = Rollout(
    tokens_BT=put(old.tokens_BT, token.token_R),
    length_B=old.length_B + live_R,
    stop_B=jnp.where(live_R, stop_R, old.stop_B),
    logp_BT=put(old.logp_BT, token.logp_R),
    model_logp_BT=put(old.model_logp_BT, token.model_logp_R),
    certainty_BT=put(old.certainty_BT, token.certainty_R),
    entropy_BT=put(old.entropy_BT, token.entropy_R),
  )
  done_R = state.done_R | eos_R | string_R
  return dataclasses.replace(state, rollout=rollout, last_R=token.token_R, done_R=done_R, matched_R=matched_R)


def _most_live_rows(state: State, shards: int):
  """Returns the live rows of the shard that has most."""
  return jnp.max(jnp.sum(~state.done_R.reshape(shards, -1), 1))


def _by_shard(fn, shards: int, *arrays):
  """Applies fn to the rows of each shard of the batch apart, so that no row leaves its device; returns the rows."""
  out = jax.vmap(fn)(*(x.reshape(shards, -1, *x.shape[1:]) for x in arrays))
  return sharding.constrain(out.reshape(-1, *out.shape[2:]), "batch", *[sharding.ANY] * (out.ndim - 2))


def _index_by_shard(fn, shards: int, tree, index_R):
  """Returns the tree with each leaf x replaced by fn(x, index_R), applied to each shard apart."""
  return jax.tree.map(lambda x: _by_shard(fn, shards, x, index_R), tree)
