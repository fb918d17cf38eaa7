"""Keys and values that decoding reads: prompts, responses in blocks, and the attention of a new token to both."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.attention import NEGATIVE
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Sampling


@struct.dataclass
class Slots:
  """Keys and values of one layer; N rows or problems, S slots, in the layouts that a decode step reads fastest."""

  k_NKhS: jax.Array | Int8
  v_NKSh: jax.Array | Int8


CacheBlock = tuple[Slots, ...]  # one piece of the cache of responses, an entry a layer


class Prompt(NamedTuple):
  """Keys and values of the prompts: an entry of N a problem, or a row once the batch was halved."""

  layers: tuple[Slots, ...]
  mask_PS: jax.Array  # False: padding


def read_prompts(
  weights: dict, prompt_PS: jax.Array, prompt_length_P: jax.Array, spec: Spec, s: Sampling
) -> tuple[jax.Array, Prompt]:
  """Returns the final hidden state of each prompt's last token [P,D], and what later tokens attend to."""
  slots_S = jnp.arange(prompt_PS.shape[1])
  pad_P1 = prompt_PS.shape[1] - prompt_length_P[:, None]
  mask_PS = slots_S >= pad_P1
  attend_rows = fwd.causal(mask_PS.astype(jnp.int32), spec, Separate(mask_PS.shape[1]))
  positions_PS = jnp.maximum(slots_S - pad_P1, 0)

  def attend(q_PHSh, k_PKSh, v_PKSh, _):
    return attend_rows(q_PHSh, k_PKSh, v_PKSh, None)[0], _slots(k_PKSh, v_PKSh, s)

  hidden_PSD, layers = fwd.forward(weights, prompt_PS, positions_PS, attend, (None,) * spec.layers, spec)
  return hidden_PSD[:, -1], Prompt(layers, mask_PS)


def new_block(prompt: Prompt, rows: int, slots: int) -> CacheBlock:
  """Returns zeros for the keys and values of the next `slots` tokens of each of `rows` rows."""

  def zeros(x, slot_axis):
    shape = [rows, *x.shape[1:]]
    shape[slot_axis] = slots
    return sharding.constrain(jnp.zeros(shape, x.dtype), "batch", "kv_heads", None, None)

  block = []
  for layer in prompt.layers:
    k_RKhS = jax.tree.map(functools.partial(zeros, slot_axis=3), layer.k_NKhS)
    block.append(Slots(k_RKhS, jax.tree.map(functools.partial(zeros, slot_axis=2), layer.v_NKSh)))
  return tuple(block)


def decode_attend(prompt: Prompt, blocks: tuple[CacheBlock, ...], slot: jax.Array, s: Sampling) -> fwd.Attend:
  """Returns attention of one new token to its problem's prompt, shared by the group, and to its own response so far.

  `blocks` are the full ones; the cache of a layer is (its number, its entry of the block in work), whose slot `slot`
  is written. Each part is weighted relative to the largest score of all, and the sums are put together at the end:
  scores of different parts are never copied beside each other.
  """

  def attend(q_RHth, k_RKth, v_RKth, cache):
    layer, live = cache
    live = jax.tree.map(functools.partial(_write, slot=slot), live, _slots(k_RKth, v_RKth, s))
    rows, kv_heads, dtype = len(q_RHth), k_RKth.shape[1], q_RHth.dtype
    problems = len(prompt.mask_PS)
    q_RKgh = q_RHth.reshape(rows, kv_heads, -1, q_RHth.shape[-1])
    own = [*(block[layer] for block in blocks), live]
    own_scores = [_scores(q_RKgh, part) for part in own]
    own_scores[-1] = jnp.where(jnp.arange(s.slots) <= slot, own_scores[-1], NEGATIVE)
    shared = prompt.layers[layer]
    past = _scores(_to_problems(q_RKgh, problems), shared)
    past = jnp.where(prompt.mask_PS[:, None, None], past, NEGATIVE)
    tops = [_to_rows(jnp.max(past, -1, keepdims=True), rows), *(jnp.max(x, -1, keepdims=True) for x in own_scores)]
    top = functools.reduce(jnp.maximum, tops)
    past = jnp.exp(past - _to_problems(top, problems))
    own_scores = [jnp.exp(x - top) for x in own_scores]
    total = _to_rows(jnp.sum(past, -1, keepdims=True), rows)
    total = total + sum(jnp.sum(x, -1, keepdims=True) for x in own_scores)
    mixed = _to_rows(_mixed(past, shared, dtype), rows)
    mixed = mixed + sum(_mixed(x, part, dtype) for x, part in zip(own_scores, own, strict=True))
    return (mixed / total).astype(dtype).reshape(q_RHth.shape), (layer, live)

  return attend


def _slots(k_NKSh, v_NKSh, s: Sampling) -> Slots:
  k_NKhS = k_NKSh.swapaxes(2, 3)
  if "cache" in s.int8:
    return Slots(quantise(k_NKhS, (2,)), quantise(v_NKSh, (3,)))
  return Slots(k_NKhS, v_NKSh)


def _write(old, new, slot):
  """Puts `new` at `slot` of the axis of slots, the only one whose lengths differ."""
  start = [slot if n != m else 0 for n, m in zip(new.shape, old.shape, strict=True)]
  return jax.lax.dynamic_update_slice(old, new, start)


def _scores(q_NKqh, slots: Slots) -> jax.Array:
  """Returns float32 scores [N,K,q,S] of the queries."""
  k_NKhS = slots.k_NKhS
  scale = q_NKqh.shape[-1] ** -0.5
  if isinstance(k_NKhS, Int8):  # the scale of a slot goes behind the product: 8 bits are all that is read
    scale = k_NKhS.scale * scale
    k_NKhS = k_NKhS.value.astype(q_NKqh.dtype)
  return jnp.einsum("nkqh,nkhs->nkqs", q_NKqh, k_NKhS, preferred_element_type=jnp.float32) * scale


def _mixed(weight_NKqS, slots: Slots, dtype) -> jax.Array:
  """Returns float32 sums [N,K,q,h] of the values, weighted."""
  v_NKSh = slots.v_NKSh
  if isinstance(v_NKSh, Int8):
    weight_NKqS = weight_NKqS * v_NKSh.scale.swapaxes(2, 3)
    v_NKSh = v_NKSh.value.astype(dtype)
  return jnp.einsum("nkqs,nksh->nkqh", weight_NKqS.astype(dtype), v_NKSh, preferred_element_type=jnp.float32)


def _to_problems(x_RKgn, problems: int):
  """Returns [P, K, G*g, n]: rows of a problem become queries of one product."""
  rows, kv_heads, _, last = x_RKgn.shape
  x = x_RKgn.reshape(problems, rows // problems, kv_heads, -1, last).swapaxes(1, 2)
  return x.reshape(problems, kv_heads, -1, last)


def _to_rows(x_PKqn, rows: int):
  """Returns [R, K, g, n], what `_to_problems` was given."""
  problems, kv_heads, _, last = x_PKqn.shape
  x = x_PKqn.reshape(problems, kv_heads, rows // problems, -1, last).swapaxes(1, 2)
  return x.reshape(rows, kv_heads, -1, last)
