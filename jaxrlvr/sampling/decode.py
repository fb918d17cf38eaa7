"""The sampling loop: a prompt is prefilled once, its G continuations share it, finished rows leave the batch."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.attention import NEGATIVE
from jaxrlvr.model.int8 import Int8, dequantise, quantise
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.model.spec import Spec, leaves
from jaxrlvr.sampling.drawing import draw_known
from jaxrlvr.sampling.types import STOP_EOS, STOP_LENGTH, STOP_STRING, Rollout, Sampling


@struct.dataclass
class _State:
  """What a decode step carries; every array is led by the live rows R."""

  rollout: Rollout
  last_R: jax.Array
  done_R: jax.Array
  matched_R: jax.Array  # state of the stop-string automaton
  key_R: jax.Array
  row_R: jax.Array  # index of the row inside its shard's part of the batch
  prompt_R: jax.Array  # prompt length


def _emit(state: _State, logits_RV, t, s: Sampling, stops, known: int) -> _State:
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
  return state.replace(rollout=rollout, last_R=token.token_R, done_R=done_R, matched_R=matched_R)


@struct.dataclass
class _Slots:
  """What attention reads of one layer; N rows or problems, S slots, in the layouts that decode reads fastest."""

  k_NKhS: jax.Array | Int8
  v_NKSh: jax.Array | Int8


class _Prompt(NamedTuple):
  """The shared part of attention: one entry a problem, or a row once the batch has shrunk."""

  layers: tuple[_Slots, ...]
  mask_PS: jax.Array


def _slots(k_NKSh, v_NKSh, s: Sampling) -> _Slots:
  k_NKhS = k_NKSh.swapaxes(2, 3)
  return _Slots(quantise(k_NKhS, (2,)), quantise(v_NKSh, (3,))) if "cache" in s.int8 else _Slots(k_NKhS, v_NKSh)


def _scores(q_NKqh, slots: _Slots):
  """float32 scores [N,K,q,S] of the queries."""
  k_NKhS, dtype = slots.k_NKhS, q_NKqh.dtype
  scale = q_NKqh.shape[-1] ** -0.5
  if isinstance(k_NKhS, Int8):  # the scale of a slot goes behind the product: 8 bits are all that is read
    k_NKhS, scale = k_NKhS.value.astype(dtype), k_NKhS.scale * scale
  return jnp.einsum("nkqh,nkhs->nkqs", q_NKqh, k_NKhS, preferred_element_type=jnp.float32) * scale


def _mixed(weight_NKqS, slots: _Slots, dtype):
  """float32 sums [N,K,q,h] of the values, weighted."""
  v_NKSh = slots.v_NKSh
  if isinstance(v_NKSh, Int8):
    weight_NKqS, v_NKSh = weight_NKqS * v_NKSh.scale.swapaxes(2, 3), v_NKSh.value.astype(dtype)
  return jnp.einsum("nkqs,nksh->nkqh", weight_NKqS.astype(dtype), v_NKSh, preferred_element_type=jnp.float32)


def _decode_attend(prompt: _Prompt, blocks, slot, s: Sampling):
  """Attention of one new token over its problem's prompt (shared by the group) and its own response so far.

  Each part is weighted relative to the largest score of all, and the sums are put together at the end: scores of
  different parts are never copied beside each other.
  """

  def attend(q_RHth, k_RKth, v_RKth, cache):
    layer, live = cache
    rows, _, _, head_dim = q_RHth.shape
    problems, kv_heads = len(prompt.mask_PS), k_RKth.shape[1]

    def to_problems(x):  # [R, K, g, n] -> [P, K, G*g, n]: rows of a problem become queries of one product
      x = x.reshape(problems, rows // problems, kv_heads, -1, x.shape[-1]).swapaxes(1, 2)
      return x.reshape(problems, kv_heads, -1, x.shape[-1])

    def to_rows(x):  # and back
      x = x.reshape(problems, kv_heads, rows // problems, -1, x.shape[-1]).swapaxes(1, 2)
      return x.reshape(rows, kv_heads, -1, x.shape[-1])

    def write(old, new):  # along the axis of slots, the only one whose lengths differ
      start = [slot if n != m else 0 for n, m in zip(new.shape, old.shape, strict=True)]
      return jax.lax.dynamic_update_slice(old, new, start)

    live = jax.tree.map(write, live, _slots(k_RKth, v_RKth, s))
    q_RKgh = q_RHth.reshape(rows, kv_heads, -1, head_dim)
    own = [*(block[layer] for block in blocks), live]
    own_scores = [_scores(q_RKgh, part) for part in own]
    own_scores[-1] = jnp.where(jnp.arange(s.slots) <= slot, own_scores[-1], NEGATIVE)
    shared = prompt.layers[layer]
    past = jnp.where(prompt.mask_PS[:, None, None], _scores(to_problems(q_RKgh), shared), NEGATIVE)
    tops = [to_rows(jnp.max(past, -1, keepdims=True)), *(jnp.max(x, -1, keepdims=True) for x in own_scores)]
    top = functools.reduce(jnp.maximum, tops)
    past = jnp.exp(past - to_problems(top))
    own_scores = [jnp.exp(x - top) for x in own_scores]
    total = to_rows(jnp.sum(past, -1, keepdims=True)) + sum(jnp.sum(x, -1, keepdims=True) for x in own_scores)
    dtype = q_RHth.dtype
    out = to_rows(_mixed(past, shared, dtype)) + sum(
      _mixed(x, part, dtype) for x, part in zip(own_scores, own, strict=True)
    )
    return (out / total).astype(dtype).reshape(q_RHth.shape), (layer, live)

  return attend


def _local(fn, shards: int, *arrays):
  """fn of the rows of each shard of the batch apart, so that no row leaves its device."""
  out = jax.vmap(fn)(*(x.reshape(shards, -1, *x.shape[1:]) for x in arrays))
  return sharding.constrain(out.reshape(-1, *out.shape[2:]), "batch", *[sharding.ANY] * (out.ndim - 2))


def _each(fn, shards: int, tree, index):
  """`_local` of (leaf, index) for each leaf of a tree."""
  return jax.tree.map(lambda x: _local(fn, shards, x, index), tree)


def _read(weights, prompt_PS, prompt_length_P, spec: Spec, s: Sampling) -> tuple[jax.Array, _Prompt]:
  """(final hidden state of the last prompt token [P,D], what later tokens attend to)."""
  slots = jnp.arange(prompt_PS.shape[1])
  pad_P1 = prompt_PS.shape[1] - prompt_length_P[:, None]
  mask_PS = slots >= pad_P1
  rows = fwd.causal(mask_PS.astype(jnp.int32), spec, Separate(mask_PS.shape[1]))
  positions_PS = jnp.maximum(slots - pad_P1, 0)

  def attend(q_PHSh, k_PKSh, v_PKSh, _):
    return rows(q_PHSh, k_PKSh, v_PKSh, None)[0], _slots(k_PKSh, v_PKSh, s)

  hidden, layers = fwd.forward(weights, prompt_PS, positions_PS, attend, (None,) * spec.layers, spec)
  return hidden[:, -1], _Prompt(layers, mask_PS)


def _fresh(keys_B, prompt_length_P, s: Sampling, shards: int) -> _State:
  rows = len(keys_B)
  zeros_RT = jnp.zeros((rows, s.max_tokens), jnp.float32)
  zero_R = jnp.zeros(rows, jnp.int32)
  return _State(
    rollout=Rollout(jnp.full((rows, s.max_tokens), s.pad_id, jnp.int32), zero_R, zero_R, *[zeros_RT] * 4),
    last_R=zero_R,
    done_R=jnp.zeros(rows, bool),
    matched_R=zero_R,
    key_R=keys_B,
    row_R=jnp.arange(rows) % (rows // shards),
    prompt_R=jnp.repeat(prompt_length_P, s.group),
  )


def _alive(state: _State, shards: int):
  """Live rows of the shard that has most."""
  return jnp.max(jnp.sum(~state.done_R.reshape(shards, -1), 1))


def _logits(weights, hidden_RD, spec: Spec) -> jax.Array:
  """Made where each device's part of the head lies: else the head would be gathered for every token."""
  head_VD = dequantise(fwd.head_VD(weights, spec), hidden_RD.dtype)
  logits_RV = jnp.einsum("rd,vd->rv", hidden_RD, head_VD, preferred_element_type=jnp.float32)
  return sharding.constrain(logits_RV, "batch", "vocab")


def places(spec: Spec, mesh: jax.sharding.Mesh, int8: tuple[str, ...] = ()) -> dict:
  """Where the weights that `lay_out_weights` makes lie."""

  def place(name, leaf):
    shape, axes = leaf.shape[leaf.layered :], leaf.axes[leaf.layered :]
    whole = sharding.place(mesh, name, shape, axes)
    if "weights" in int8 and leaf.summed:
      shape = tuple(1 if i in leaf.summed else n for i, n in enumerate(shape))
      scale = sharding.place(mesh, name, shape, tuple(None if i in leaf.summed else a for i, a in enumerate(axes)))
      whole = Int8(whole, scale)
    return (whole,) * spec.layers if leaf.layered else whole

  return {name: place(name, leaf) for name, leaf in leaves(spec).items()}


@functools.lru_cache
def lay_out_weights(spec: Spec, mesh: jax.sharding.Mesh | None = None, int8: tuple[str, ...] = ()):
  """The program that makes sampling's weights of the masters: in the compute dtype (or 8 bits, "weights" in `int8`),
  each layer's by itself, which a decode step reads without a copy, and laid out on sampling's mesh if one is given."""
  table = leaves(spec)

  def make(name, w):
    return quantise(w, table[name].summed) if "weights" in int8 and table[name].summed else w.astype(spec.dtype)

  def laid_out(params):
    return {
      name: tuple(make(name, w[i]) for i in range(spec.layers)) if table[name].layered else make(name, w)
      for name, w in params.items()
    }

  return jax.jit(laid_out, out_shardings=places(spec, mesh, int8) if mesh else None)


@functools.partial(jax.jit, static_argnames=("spec", "s", "shards"))
def prefill(weights, prompt_PS, prompt_length_P, keys_B, stops, spec: Spec, s: Sampling, *, shards: int = 1):
  """(keys and values of the prompts, state after the first token of each response); arguments as of `sample`."""
  hidden_PD, prompt = _read(weights, prompt_PS, prompt_length_P, spec, s)
  state = _fresh(keys_B, prompt_length_P, s, shards)
  first_RV = jnp.repeat(_logits(weights, hidden_PD, spec), s.group, 0)
  return prompt, _emit(state, first_RV, 0, s, stops, spec.known_vocab)


@functools.partial(jax.jit, static_argnames="s")
def empty_block(prompt: _Prompt, state: _State, s: Sampling) -> tuple[_Slots, ...]:
  """Room for the keys and values of the next `s.slots` tokens of each live row."""
  rows = len(state.done_R)

  def room(x, slots):
    shape = (rows, *(s.slots if axis == slots else n for axis, n in enumerate(x.shape[1:], 1)))
    return sharding.constrain(jnp.zeros(shape, x.dtype), "batch", "kv_heads", None, None)

  return tuple(
    _Slots(*(jax.tree.map(functools.partial(room, slots=a), x) for x, a in ((layer.k_NKhS, 3), (layer.v_NKSh, 2))))
    for layer in prompt.layers
  )


@functools.partial(jax.jit, static_argnames=("spec", "s", "enough", "shards"), donate_argnames="live")
def decode(weights, prompt: _Prompt, blocks, live, state: _State, t, stops, spec, s: Sampling, *, enough, shards=1):
  """(live block, state, t, live rows of the fullest shard) once at most `enough` of these are left, the block is full
  or `s.max_tokens` are made. blocks: the full ones; t: tokens of each response so far, less one."""
  first = len(blocks) * s.slots
  table = fwd.rope_table(prompt.mask_PS.shape[1] + s.max_tokens, spec)

  def go_on(carry):
    t, state, _ = carry
    return (t < min(first + s.slots, s.max_tokens - 1)) & (_alive(state, shards) > enough)

  def step(carry):
    t, state, live = carry
    attend = _decode_attend(prompt, blocks, t - first, s)
    positions_R1 = (state.prompt_R + t)[:, None]
    layers = tuple(enumerate(live))
    hidden, cache = fwd.forward(weights, state.last_R[:, None], positions_R1, attend, layers, spec, table)
    state = _emit(state, _logits(weights, hidden[:, 0], spec), t + 1, s, stops, spec.known_vocab)
    return t + 1, state, tuple(block for _, block in cache)

  t, state, live = jax.lax.while_loop(go_on, step, (t, state, live))
  return live, state, t, _alive(state, shards)


@functools.partial(jax.jit, static_argnames=("fan", "shards"))
def halve(prompt: _Prompt, state: _State, cache, *, fan: int, shards: int = 1):
  """(prompt, state, cache) of the half of the rows that holds all live ones, and what the other half has made.

  From here on each row holds its own copy of its prompt's keys and values: half of what no sharing would take.
  `fan` is how many rows share a prompt now.
  """
  half = len(state.done_R) // shards // 2
  order = _local(lambda done_R: jnp.argsort(done_R, stable=True), shards, state.done_R)
  finished = _each(lambda x, i: x[i[half:]], shards, (state.rollout, state.row_R), order)
  state, cache = _each(lambda x, i: x[i[:half]], shards, (state, cache), order)
  return _each(lambda x, i: x[i[:half] // fan], shards, prompt, order), state, cache, finished


@functools.partial(jax.jit, static_argnames="shards")
def _collect(parts, *, shards: int) -> Rollout:
  """All responses in the order in which they were asked for, from (rollout, row) of those that ended together."""
  rollout, row_B = jax.tree.map(lambda *x: _local(lambda *y: jnp.concatenate(y), shards, *x), *parts)
  return _each(lambda x, i: x[jnp.argsort(i)], shards, rollout, row_B)


_start = jax.jit(lambda: jnp.int32(0))
_ended = jax.jit(lambda state: state.replace(done_R=jnp.ones_like(state.done_R)))


class _Loop(NamedTuple):
  """The programs of `sample` after the prompts are read, and the order in which they run."""

  weights: dict
  stops: jax.Array
  spec: Spec
  s: Sampling
  shards: int

  def enough(self, rows: int, halvings: int) -> int:
    """Live rows a shard at which the batch is halved; 0: it is small enough, or was halved as often as it may be."""
    here = rows // self.shards
    return 0 if halvings == self.s.shrink or here % 2 or here < 4 else here // 2

  def decode(self, prompt, blocks, live, state, t, halvings):
    enough = self.enough(len(state.done_R), halvings)
    given = (self.weights, prompt, blocks, live, state, t, self.stops, self.spec, self.s)
    return *decode(*given, enough=enough, shards=self.shards), enough

  def halve(self, prompt, state, cache, halvings):
    return halve(prompt, state, cache, fan=1 if halvings else self.s.group, shards=self.shards)

  def warm(self, prompt, state) -> None:
    """Runs every program that responses of any length can need, without a step: nothing compiles later on."""
    state, parts, most = _ended(state), [], -(-self.s.max_tokens // self.s.slots)
    for halvings in range(self.s.shrink + 1):
      blocks = ()
      for _ in range(most):
        live, state, _, _, enough = self.decode(
          prompt, blocks, empty_block(prompt, state, self.s), state, _start(), halvings
        )
        blocks = (*blocks, live)
        halved = self.halve(prompt, state, (blocks[:-1], live), halvings) if enough else None
      _collect([*parts, (state.rollout, state.row_R)], shards=self.shards)
      if halved is None:
        return
      prompt, state, _, made = halved
      parts.append(made)

  def run(self, prompt, state) -> Rollout:
    t, blocks, parts = _start(), (), []
    live = empty_block(prompt, state, self.s)
    while True:
      live, state, t, alive, enough = self.decode(prompt, blocks, live, state, t, len(parts))
      made, left = map(int, jax.device_get((t, alive)))
      if not left or made + 1 >= self.s.max_tokens:
        return _collect([*parts, (state.rollout, state.row_R)], shards=self.shards)
      if left <= enough:
        prompt, state, (blocks, live), part = self.halve(prompt, state, (blocks, live), len(parts))
        parts.append(part)
      if made == (len(blocks) + 1) * self.s.slots:
        blocks, live = (*blocks, live), empty_block(prompt, state, self.s)


_WARM = set()  # what `sample` has run
_ROWS = 64  # of a thread on a CPU, at least


def _threads(weights, problems: int, group: int) -> int:
  """Parts of the batch that are sampled at once: on a CPU one a core, for most of a step is too small to share out."""
  (device, *others) = jax.tree.leaves(weights)[0].sharding.device_set
  if device.platform != "cpu" or others:
    return 1
  most = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), problems)
  return max(n for n in range(1, most + 1) if n == 1 or not (problems % n or problems // n * group < _ROWS))


@functools.partial(jax.jit, static_argnums=2)
def _cut(arrays, stops, parts: int):
  """(arrays of each part, stops), all on the device."""
  return list(zip(*(jnp.split(x, parts) for x in arrays), strict=True)), stops


_join = jax.jit(lambda made: jax.tree.map(lambda *x: jnp.concatenate(x), *made))


def sample(weights, prompt_PS, prompt_length_P, keys_B, stops, spec: Spec, s: Sampling, *, shards: int = 1) -> Rollout:
  """G continuations of each prompt, a pure function of weights, prompt and row key.

  weights: masters, or as `lay_out_weights` makes them, which saves that work; prompt_PS: left-padded token ids;
  prompt_length_P: how many of the last slots are real (at least 1); keys_B: one a row (`keys.rows`); stops: the
  stop-string automaton (`text.stop_strings.automaton`), int [states, V], its last state meaning found; shards: pieces
  that the batch is cut into on the mesh, rows are compacted inside each.

  The host chooses between programs as responses end: their number is at most (halvings + 1) * blocks of the cache, and
  the first call of a shape compiles them all. On a CPU each core samples a part of the batch, if it has rows enough.
  """
  if not isinstance(weights["q"], tuple):
    weights = lay_out_weights(spec, None, s.int8)(weights)
  parts, given = _threads(weights, len(prompt_PS), s.group), (prompt_PS, prompt_length_P, keys_B)
  if parts == 1:
    return _part(weights, *given, stops, spec, s, shards)
  (first, *rest), stops = _cut(given, stops, parts)
  mesh = jax.sharding.get_mesh()  # a thread knows neither mesh nor guard

  def part(given):
    with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh), jax.transfer_guard("disallow"):
      return _part(weights, *given, stops, spec, s, shards)

  with concurrent.futures.ThreadPoolExecutor(parts) as pool:
    made = pool.submit(part, first)
    if _shape(first[0], stops, spec, s, shards) not in _WARM:
      made.result()  # compiles what the others run
    rest = list(pool.map(part, rest))
    return _join([made.result(), *rest])


def _shape(prompt_PS, stops, spec, s, shards):
  return spec, s, shards, prompt_PS.shape, stops.shape, jax.sharding.get_abstract_mesh()


def _part(weights, prompt_PS, prompt_length_P, keys_B, stops, spec: Spec, s: Sampling, shards: int) -> Rollout:
  prompt, state = prefill(weights, prompt_PS, prompt_length_P, keys_B, stops, spec, s, shards=shards)
  loop = _Loop(weights, stops, spec, s, shards)
  if (shape := _shape(prompt_PS, stops, spec, s, shards)) not in _WARM:
    loop.warm(prompt, state)
    _WARM.add(shape)
  return loop.run(prompt, state)
