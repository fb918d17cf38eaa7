"""Keys and values that decoding reads: prompts, responses in blocks, and the attention of a new token to both.

Letters of axes: P problems, R rows of the batch, N either of them; S slots; H heads; K KV heads; g heads that share a
KV head; h width of a head; q queries of one KV head.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.model import forward as fwd
from jaxrlvr.model.attention import NEGATIVE, limits
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Sampling


@struct.dataclass
class Slots:
  """Keys and values of one layer for N problems or rows, in the layouts that a decode step reads fastest.

  Both are arrays in the compute dtype, or Int8 with a scale for each slot where `Sampling.int8` has "cache".
  """

  k_NKhS: jax.Array | Int8
  v_NKSh: jax.Array | Int8


CacheBlock = tuple[Slots, ...]  # keys and values of the R rows in `Sampling.block_slots` slots, an entry for each layer


class PromptCache(NamedTuple):
  """Keys and values of the prompts, and which of their slots count.

  The leading axis has one entry for each problem, whose rows share it. Once the batch has been halved, it has one for
  each row instead.
  """

  layers: tuple[Slots, ...]  # an entry for each layer
  mask_PS: jax.Array  # bool; False: padding


def read_prompts(
  weights: dict, prompt_PS: jax.Array, prompt_length_P: jax.Array, spec: Spec, s: Sampling
) -> tuple[jax.Array, PromptCache]:
  """Runs the model on the prompts; returns (final hidden state [P,D] of each prompt's last token, the prompts' cache).

  weights: as `lay_out_weights` returns them. prompt_PS, prompt_length_P: as in `Batch`.
  """
  slots_S = jnp.arange(prompt_PS.shape[1])
  pad_P1 = prompt_PS.shape[1] - prompt_length_P[:, None]
  mask_PS = slots_S >= pad_P1
  attend_rows = fwd.causal(mask_PS.astype(jnp.int32), spec, Separate(mask_PS.shape[1]))
  positions_PS = jnp.maximum(slots_S - pad_P1, 0)

  def attend(q_PHSh, k_PKSh, v_PKSh, _, window=0):
    return attend_rows(q_PHSh, k_PKSh, v_PKSh, None, window)[0], _slots(k_PKSh, v_PKSh, s)

  hidden_PSD, layers = fwd.forward(weights, prompt_PS, positions_PS, attend, (None,) * spec.layers, spec)
  return hidden_PSD[:, -1], PromptCache(layers, mask_PS)


@functools.partial(jax.jit, static_argnames=("rows", "slots"))
def empty_block(prompt: PromptCache, rows: int, slots: int) -> CacheBlock:
  """Returns a block of zeros for `rows` rows and `slots` slots, with the layers, heads and dtypes of `prompt`."""

  def zeros(x, slot_axis):
    shape = [rows, *x.shape[1:]]
    shape[slot_axis] = slots
    return sharding.constrain(jnp.zeros(shape, x.dtype), "batch", "kv_heads", None, None)

  block = []
  for layer in prompt.layers:
    k_RKhS = jax.tree.map(functools.partial(zeros, slot_axis=3), layer.k_NKhS)
    v_RKSh = jax.tree.map(functools.partial(zeros, slot_axis=2), layer.v_NKSh)
    block.append(Slots(k_RKhS, v_RKSh))
  return tuple(block)


def decode_attend(prompt: PromptCache, full_blocks: tuple[CacheBlock, ...], slot: jax.Array, s: Sampling) -> fwd.Attend:
  """Returns the `attend` function of a decode step, in which each row has one new token.

  The new token attends to its problem's prompt, to the row's tokens in `full_blocks`, and in the open block, which is
  being filled, to the slots up to `slot`, where its own key and value are written first.

  `slot`: int32 scalar, index in the open block. `full_blocks`: the blocks before the open one, oldest first.
  The function takes q [R,H,1,h], k and v [R,K,1,h], as the layer's cache (number of the layer, Slots of the open block
  in this layer), and the layer's window, static: tokens that the new one sees, itself the last; 0: all. It returns
  (the attention's output [R,H,1,h], the same pair with the new token in it).
  """

  def attend(q_RHth, k_RKth, v_RKth, cache, window=0):
    layer, open_slots = cache
    open_slots = jax.tree.map(functools.partial(_write, slot=slot), open_slots, _slots(k_RKth, v_RKth, s))
    q_RKgh = q_RHth.reshape(len(q_RHth), k_RKth.shape[1], -1, q_RHth.shape[-1])
    prompt_part = _Part(prompt.layers[layer], prompt.mask_PS)
    response = [_Part(block[layer]) for block in full_blocks]
    response.append(_Part(open_slots, last=slot))
    prompt_slots, slots_before = prompt.mask_PS.shape[1], len(full_blocks) * s.block_slots
    if limits(window, prompt_slots + slots_before + s.block_slots):
      # A prompt ends at its last slot, so that the response goes on from it slot by slot.
      prompt_part = prompt_part._replace(first=prompt_slots + slots_before + slot - window + 1)
      response = _blocks_in_window(response, slot, s.block_slots, window)
    out_RKgh = _attend_to_parts(q_RKgh, prompt_part, response)
    return out_RKgh.reshape(q_RHth.shape), (layer, open_slots)

  return attend


class _Part(NamedTuple):
  """A part of what a new token attends to: the prompt, or a block of the response."""

  slots: Slots
  mask_PS: jax.Array | None = None  # bool, of the prompt; False: padding
  first: jax.Array | None = None  # int32 scalar: the first slot that it sees; None: that of the part
  last: jax.Array | None = None  # int32 scalar: the last slot that it sees; None: that of the part


def _blocks_in_window(response: list[_Part], slot, block_slots: int, window: int) -> list[_Part]:
  """Returns the blocks of the response with what lies before the window hidden.

  slot: index of the new token in the open block, the last. A block is left out where it lies before the window
  wherever in the open block the new token stands, and unchanged where it lies in the window wherever that stands.
  """
  seen = []
  for number, part in enumerate(response):
    slots_before = (len(response) - 1 - number) * block_slots  # from the block's first slot to that of the open block
    if slots_before - (block_slots - 1) >= window:
      continue
    if limits(window, slots_before + block_slots):
      part = part._replace(first=slots_before + slot - window + 1)
    seen.append(part)
  return seen


def _attend_to_parts(q_RKgh, prompt: _Part, response: list[_Part]) -> jax.Array:
  """Returns attention [R,K,g,h] to the prompt and to all parts of the response.

  The softmax is taken over all parts together: each part's scores are exponentiated relative to the largest score of
  all, and the sums are added at the end, so that scores of different parts are never copied beside each other.
  """
  rows, problems, dtype = len(q_RKgh), len(prompt.mask_PS), q_RKgh.dtype
  scores = [_masked_scores(q_RKgh, part) for part in response]
  prompt_scores = _masked_scores(_to_problems(q_RKgh, problems), prompt)
  maxima = [_to_rows(jnp.max(prompt_scores, -1, keepdims=True), rows)]
  maxima += [jnp.max(part_scores, -1, keepdims=True) for part_scores in scores]
  largest = functools.reduce(jnp.maximum, maxima)
  prompt_weight = jnp.exp(prompt_scores - _to_problems(largest, problems))
  weights = [jnp.exp(part_scores - largest) for part_scores in scores]
  total = _to_rows(jnp.sum(prompt_weight, -1, keepdims=True), rows)
  total = total + sum(jnp.sum(weight, -1, keepdims=True) for weight in weights)
  mixed = _to_rows(_mixed(prompt_weight, prompt.slots, dtype), rows)
  mixed = mixed + sum(_mixed(weight, part.slots, dtype) for weight, part in zip(weights, response, strict=True))
  return (mixed / total).astype(dtype)


def _masked_scores(q_NKqh, part: _Part) -> jax.Array:
  """Returns float32 scores [N,K,q,S] of the queries, NEGATIVE in slots that they don't see."""
  scores = _scores(q_NKqh, part.slots)
  if part.mask_PS is not None:
    scores = jnp.where(part.mask_PS[:, None, None], scores, NEGATIVE)
  if part.last is not None:
    scores = jnp.where(jnp.arange(scores.shape[-1]) <= part.last, scores, NEGATIVE)
  if part.first is not None:
    scores = jnp.where(jnp.arange(scores.shape[-1]) >= part.first, scores, NEGATIVE)
  return scores


def _slots(k_NKSh, v_NKSh, s: Sampling) -> Slots:
  """Returns keys and values in the layouts of the cache, in 8 bits if the settings say so."""
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
  if isinstance(k_NKhS, Int8):  # a slot's scale multiplies the product, so that only the 8 bits are read
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
  """Returns [P, K, G*g, n]: the queries of a problem's rows become queries of one product."""
  rows, kv_heads, _, last = x_RKgn.shape
  x = x_RKgn.reshape(problems, rows // problems, kv_heads, -1, last).swapaxes(1, 2)
  return x.reshape(problems, kv_heads, -1, last)


def _to_rows(x_PKqn, rows: int):
  """Returns [R, K, g, n]: undoes `_to_problems`."""
  problems, kv_heads, _, last = x_PKqn.shape
  x = x_PKqn.reshape(problems, kv_heads, rows // problems, -1, last).swapaxes(1, 2)
  return x.reshape(rows, kv_heads, -1, last)
