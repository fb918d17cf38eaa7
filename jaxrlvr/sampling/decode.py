"""The decode loop: a prompt is prefilled once, its G responses share it, finished rows leave the batch."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.int8 import dequantise
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling import cache as caches
from jaxrlvr.sampling.cache import CacheBlock, Prompt
from jaxrlvr.sampling.drawing import draw_known
from jaxrlvr.sampling.types import STOP_EOS, STOP_LENGTH, STOP_STRING, Batch, Rollout, Sampling


@struct.dataclass
class State:
  """What a decode step carries beside the cache; every array is led by the R rows that are still in the batch."""

  rollout: Rollout
  last_R: jax.Array  # the newest token
  done_R: jax.Array
  matched_R: jax.Array  # state of the stop-string automaton
  key_R: jax.Array
  row_R: jax.Array  # index of the row inside its shard's part of the batch
  prompt_R: jax.Array  # prompt length


class Finished(NamedTuple):
  """Rows that left the batch together."""

  rollout: Rollout
  row_R: jax.Array  # as in `State`


class Decoded(NamedTuple):
  """Where decoding stopped."""

  live: CacheBlock  # the block in work
  state: State
  t: jax.Array  # tokens of each live response, less one
  alive: jax.Array  # live rows of the shard that has most


class Halved(NamedTuple):
  """The half of a batch that goes on, and the half that has finished."""

  prompt: Prompt
  state: State
  blocks: tuple[CacheBlock, ...]
  live: CacheBlock
  finished: Finished


@functools.partial(jax.jit, static_argnames=("spec", "s", "shards"))
def prefill(
  weights: dict,
  prompt_PS: jax.Array,
  prompt_length_P: jax.Array,
  keys_B: jax.Array,
  stops: jax.Array,
  spec: Spec,
  s: Sampling,
  *,
  shards: int = 1,
) -> tuple[Prompt, State]:
  """Returns the prompts' cache, and the state after the first token of each response; arguments as of `sample`."""
  hidden_PD, prompt = caches.read_prompts(weights, prompt_PS, prompt_length_P, spec, s)
  state = _first_state(keys_B, prompt_length_P, s, shards)
  first_RV = jnp.repeat(_logits(weights, hidden_PD, spec), s.group, 0)
  return prompt, _emit(state, first_RV, 0, s, stops, spec.known_vocab)


@functools.partial(jax.jit, static_argnames="s")
def empty_block(prompt: Prompt, state: State, s: Sampling) -> CacheBlock:
  """Returns room for the keys and values of the next `s.slots` tokens of each row."""
  return caches.new_block(prompt, len(state.done_R), s.slots)


@functools.partial(jax.jit, static_argnames=("spec", "s", "enough", "shards"), donate_argnames="live")
def decode(
  weights: dict,
  prompt: Prompt,
  blocks: tuple[CacheBlock, ...],
  live: CacheBlock,
  state: State,
  t: jax.Array,
  stops: jax.Array,
  spec: Spec,
  s: Sampling,
  *,
  enough: int,
  shards: int = 1,
) -> Decoded:
  """Decodes until the block is full, `s.max_tokens` is reached, or at most `enough` rows a shard are unfinished.

  `blocks` are the full ones, `live` is the one in work, `t` the tokens of each response so far, less one.
  """
  first = len(blocks) * s.slots
  table = fwd.rope_table(prompt.mask_PS.shape[1] + s.max_tokens, spec)

  def go_on(carry):
    t, state, _ = carry
    return (t < min(first + s.slots, s.max_tokens - 1)) & (_alive(state, shards) > enough)

  def step(carry):
    t, state, live = carry
    attend = caches.decode_attend(prompt, blocks, t - first, s)
    positions_R1 = (state.prompt_R + t)[:, None]
    layers = tuple(enumerate(live))
    hidden_R1D, layers = fwd.forward(weights, state.last_R[:, None], positions_R1, attend, layers, spec, table)
    state = _emit(state, _logits(weights, hidden_R1D[:, 0], spec), t + 1, s, stops, spec.known_vocab)
    return t + 1, state, tuple(slots for _, slots in layers)

  t, state, live = jax.lax.while_loop(go_on, step, (t, state, live))
  return Decoded(live, state, t, _alive(state, shards))


@functools.partial(jax.jit, static_argnames=("fan", "shards"))
def halve(
  prompt: Prompt, blocks: tuple[CacheBlock, ...], live: CacheBlock, state: State, *, fan: int, shards: int = 1
) -> Halved:
  """Cuts the batch to the half of the rows that holds all unfinished ones; `fan` rows share a prompt so far.

  From here on each row holds its own copy of its prompt's keys and values: half of what no sharing would take.
  """
  half = len(state.done_R) // shards // 2
  order_R = _local(lambda done_R: jnp.argsort(done_R, stable=True), shards, state.done_R)
  finished = _each(lambda x, i: x[i[half:]], shards, Finished(state.rollout, state.row_R), order_R)
  state, blocks, live = _each(lambda x, i: x[i[:half]], shards, (state, blocks, live), order_R)
  prompt = _each(lambda x, i: x[i[:half] // fan], shards, prompt, order_R)
  return Halved(prompt, state, blocks, live, finished)


@functools.partial(jax.jit, static_argnames="shards")
def collect(parts: list[Finished], *, shards: int) -> Rollout:
  """Returns the responses of all parts in the order of the batch."""
  rollout, row_B = jax.tree.map(lambda *x: _local(lambda *y: jnp.concatenate(y), shards, *x), *parts)
  return _each(lambda x, i: x[jnp.argsort(i)], shards, rollout, row_B)


_zero = jax.jit(lambda: jnp.int32(0))
_all_done = jax.jit(lambda state: dataclasses.replace(state, done_R=jnp.ones_like(state.done_R)))


class DecodeLoop:
  """Samples batches of one shape: the host chooses between programs as responses end.

  The first batch compiles every program that responses of any length can need; nothing compiles later on. Threads may
  share a loop: the first one compiles while the others wait.
  """

  def __init__(self, spec: Spec, s: Sampling, shards: int):
    self._spec, self._s, self._shards = spec, s, shards
    self._compiled, self._compiling = False, threading.Lock()

  def __call__(self, weights, batch: Batch, stops) -> Rollout:
    if self._compiled:
      prompt, state = self._prefill(weights, batch, stops)
    else:
      with self._compiling:
        prompt, state = self._prefill(weights, batch, stops)
        if not self._compiled:
          self._compile(weights, prompt, state, stops)
          self._compiled = True
    return self._run(weights, prompt, state, stops)

  def _prefill(self, weights, batch: Batch, stops) -> tuple[Prompt, State]:
    return prefill(weights, *batch, stops, self._spec, self._s, shards=self._shards)

  def _compile(self, weights, prompt: Prompt, state: State, stops) -> None:
    """Compiles every program by running it once, without a step, on rows that have all ended."""
    state = _all_done(state)
    parts: list[Finished] = []
    blocks_at_most = -(-self._s.max_tokens // self._s.slots)
    for halvings in range(self._s.shrink + 1):
      enough, blocks, halved = self._enough(state, halvings), (), None
      for _ in range(blocks_at_most):
        live = empty_block(prompt, state, self._s)
        live = self._decode(weights, prompt, blocks, live, state, _zero(), stops, enough).live
        if enough:
          halved = self._halve(prompt, blocks, live, state, halvings)
        blocks = (*blocks, live)
      self._collect(parts, state)
      if halved is None:
        return
      prompt, state = halved.prompt, halved.state
      parts.append(halved.finished)

  def _run(self, weights, prompt: Prompt, state: State, stops) -> Rollout:
    t, blocks, parts = _zero(), (), []
    live = empty_block(prompt, state, self._s)
    while True:
      enough = self._enough(state, len(parts))
      live, state, t, alive = self._decode(weights, prompt, blocks, live, state, t, stops, enough)
      tokens, unfinished = map(int, jax.device_get((t, alive)))
      if not unfinished or tokens + 1 >= self._s.max_tokens:
        return self._collect(parts, state)
      if unfinished <= enough:
        prompt, state, blocks, live, finished = self._halve(prompt, blocks, live, state, len(parts))
        parts.append(finished)
      if tokens == (len(blocks) + 1) * self._s.slots:
        blocks, live = (*blocks, live), empty_block(prompt, state, self._s)

  def _enough(self, state: State, halvings: int) -> int:
    """Returns how many unfinished rows a shard may have for the batch to be halved; 0: it is never halved again."""
    rows_of_shard = len(state.done_R) // self._shards
    if halvings == self._s.shrink or rows_of_shard % 2 or rows_of_shard < 4:
      return 0
    return rows_of_shard // 2

  def _decode(self, weights, prompt, blocks, live, state, t, stops, enough: int) -> Decoded:
    arrays = (weights, prompt, blocks, live, state, t, stops)
    return decode(*arrays, self._spec, self._s, enough=enough, shards=self._shards)

  def _halve(self, prompt, blocks, live, state, halvings: int) -> Halved:
    fan = 1 if halvings else self._s.group
    return halve(prompt, blocks, live, state, fan=fan, shards=self._shards)

  def _collect(self, parts: list[Finished], state: State) -> Rollout:
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
  """Returns the loop of this process for batches of these shapes on this mesh, so that each is compiled once."""
  return DecodeLoop(spec, s, shards)


def _first_state(keys_B, prompt_length_P, s: Sampling, shards: int) -> State:
  rows = len(keys_B)
  zeros_RT = jnp.zeros((rows, s.max_tokens), jnp.float32)
  zero_R = jnp.zeros(rows, jnp.int32)
  return State(
    rollout=Rollout(jnp.full((rows, s.max_tokens), s.pad_id, jnp.int32), zero_R, zero_R, *[zeros_RT] * 4),
    last_R=zero_R,
    done_R=jnp.zeros(rows, bool),
    matched_R=zero_R,
    key_R=keys_B,
    row_R=jnp.arange(rows) % (rows // shards),
    prompt_R=jnp.repeat(prompt_length_P, s.group),
  )


def _logits(weights, hidden_RD, spec: Spec) -> jax.Array:
  """Returns logits, sharded over the vocabulary: else every device would gather the head for every token."""
  head_VD = dequantise(fwd.head_VD(weights, spec), hidden_RD.dtype)
  logits_RV = jnp.einsum("rd,vd->rv", hidden_RD, head_VD, preferred_element_type=jnp.float32)
  return sharding.constrain(logits_RV, "batch", "vocab")


def _emit(state: State, logits_RV, t, s: Sampling, stops, known: int) -> State:
  """Draws token t of each live row and records it; each device looks at some rows over the whole vocabulary."""
  if not len(logits_RV) % sharding.size_here("everywhere"):
    logits_RV = sharding.constrain(logits_RV, "everywhere", None)
  token = draw_known(logits_RV, state.key_R, t, s, known)
  live_R = ~state.done_R
  matched_R = stops[state.matched_R, token.token_R]
  eos_R = jnp.isin(token.token_R, jnp.array(s.eos_ids, jnp.int32))
  string_R = matched_R == len(stops) - 1
  r = state.rollout

  def put(array_RT, value_R):
    column = jnp.where(live_R, value_R, array_RT[:, t])[:, None].astype(array_RT.dtype)
    return jax.lax.dynamic_update_slice(array_RT, column, (0, t))

  stop_R = jnp.where(eos_R, STOP_EOS, jnp.where(string_R, STOP_STRING, STOP_LENGTH))
  rollout = Rollout(
    tokens_BT=put(r.tokens_BT, token.token_R),
    length_B=r.length_B + live_R,
    stop_B=jnp.where(live_R, stop_R, r.stop_B),
    logp_BT=put(r.logp_BT, token.logp_R),
    model_logp_BT=put(r.model_logp_BT, token.model_logp_R),
    certainty_BT=put(r.certainty_BT, token.certainty_R),
    entropy_BT=put(r.entropy_BT, token.entropy_R),
  )
  done_R = state.done_R | eos_R | string_R
  return dataclasses.replace(state, rollout=rollout, last_R=token.token_R, done_R=done_R, matched_R=matched_R)


def _alive(state: State, shards: int):
  """Returns the live rows of the shard that has most."""
  return jnp.max(jnp.sum(~state.done_R.reshape(shards, -1), 1))


def _local(fn, shards: int, *arrays):
  """Returns fn of the rows of each shard of the batch apart, so that no row leaves its device."""
  out = jax.vmap(fn)(*(x.reshape(shards, -1, *x.shape[1:]) for x in arrays))
  return sharding.constrain(out.reshape(-1, *out.shape[2:]), "batch", *[sharding.ANY] * (out.ndim - 2))


def _each(fn, shards: int, tree, index):
  """Returns `_local` of (leaf, index) for each leaf of a tree."""
  return jax.tree.map(lambda x: _local(fn, shards, x, index), tree)
