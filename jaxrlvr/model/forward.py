"""The policy's only forward pass: training, prefill and decode differ by the `attend` function and cache passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrlvr.device import sharding
from jaxrlvr.model import attention
from jaxrlvr.model.int8 import dequantise
from jaxrlvr.model.rope import cos_and_sin
from jaxrlvr.model.row_layout import RowLayout
from jaxrlvr.model.spec import Spec
from jaxrlvr.model.weight_table import adapter_leaves, adapter_names, leaves

# Computes a layer's attention: (q_BHTh, k_BKTh, v_BKTh, the layer's entry of the cache) -> (out_BHTh, its new entry).
# q and k have been rotated to their positions.
Attend = Callable[[jax.Array, jax.Array, jax.Array, object], tuple[jax.Array, object]]

_PRODUCT = "product"  # the checkpoint name of products with weights

# What a layer stores for its backward pass, which computes everything else again: a policy of `jax.checkpoint`, or None
# where everything is stored. Keys: values of `model.remat`.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_only_these_names(_PRODUCT),  # products with weights
  "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input
}


def _rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """Returns scale_D * x / sqrt(mean(x^2) + eps) over the last axis, in x's dtype (Zhang and Sennrich 2019).

  The mean is taken in float32.
  """
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + eps)
  return wide.astype(x.dtype) * scale_D.astype(x.dtype)


def rope_table(positions: int, spec: Spec) -> tuple[jax.Array, jax.Array]:
  """Returns (cos, sin), each float32 [positions, rotated/2], of the rotary angles at positions 0 .. positions - 1.

  `forward` takes it. float32, because bfloat16 can't tell positions beyond 256 apart. Frequencies are scaled as
  `spec.rope_scaling` says, if it is not None.
  """
  return cos_and_sin(positions, spec.rope_theta, spec.rotated, spec.rope_scaling, spec.max_positions)


def _rotate(x_BHTh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x with rotary position embedding, in x's dtype; angles: (cos, sin), each float32 [B,1,T,d/2].

  The first d numbers of a head rotate. Numbers i and i + d/2 form a pair, as in Hugging Face's weights.
  """
  cos, sin = angles
  pairs, head_dim = cos.shape[-1], x_BHTh.shape[-1]
  cuts = [pairs] if 2 * pairs == head_dim else [pairs, 2 * pairs]
  low, high, *unrotated = jnp.split(x_BHTh.astype(jnp.float32), cuts, -1)
  rotated = [low * cos - high * sin, high * cos + low * sin]
  return jnp.concatenate([*rotated, *unrotated], -1).astype(x_BHTh.dtype)


def causal(segments_BT: jax.Array, spec: Spec, layout: RowLayout) -> Attend:
  """Returns the `attend` function that training, scoring and prefill pass to `forward`: causal, without a cache.

  It is (q_BHTh, k_BKTh, v_BKTh, ignored) -> (out_BHTh, None), and computes with `ATTENTION[spec.attention]`.
  segments_BT: number of the text in each slot; 0 is padding, where the output has no meaning. A token attends to its
  own segment up to itself, and to its prompt, which `layout` may have placed elsewhere on the row.
  """
  attend_rows = attention.ATTENTION[spec.attention]

  def attend(q_BHTh, k_BKTh, v_BKTh, cache):
    return layout.attend(attend_rows, q_BHTh, k_BKTh, v_BKTh, segments_BT), None

  return attend


def cast(params: Mapping[str, jax.Array], spec: Spec) -> dict[str, jax.Array]:
  """Returns all weights in the compute dtype, `spec.dtype`; call it once, outside of any loop over tokens.

  params: the weights by name, as in `weight_table.leaves`; no `Int8` among them. Weights in a narrower dtype stay as
  they are: each layer widens its own, so that no wide copy of all of them is in memory.
  """
  wide = jnp.dtype(spec.dtype)
  return {name: w if w.dtype.itemsize < wide.itemsize else w.astype(wide) for name, w in params.items()}


def head_VD(params: dict, spec: Spec) -> jax.Array:
  """Returns the weights [V,D] that give logits: params["embed"] if `spec.tied` is set, else params["head"]."""
  return params["embed"] if spec.tied else params["head"]


def _projections(x_nD: jax.Array, w: Mapping[str, jax.Array], names: Sequence[str], spec: Spec) -> list[jax.Array]:
  """Returns x @ w[name], [n, M], for each name; M is the product of the weight's output axes.

  Where `w` has adapters of a weight, their product (`Lora`) is added. Each product with a weight is named, so that the
  policy "dots" of REMAT stores it. Weights that share their input are passed together, because the backward pass then
  transposes x once for all of them.
  """
  width = x_nD.shape[1]
  weights = [_with_one_input_axis(w[name], width) for name in names]
  low_rank = {name: adapter_names(name) for name in names if adapter_names(name)[0] in w}
  adapters_a = [_with_one_input_axis(w[name_a], width) for name_a, _ in low_rank.values()]
  products = [checkpoint_name(product_nM, _PRODUCT) for product_nM in _products(x_nD, (*weights, *adapters_a))]
  projections = dict(zip(names, products, strict=False))
  for (name, (_, name_b)), x_nr in zip(low_rank.items(), products[len(names) :], strict=True):
    (change_nM,) = _products(x_nr, (w[name_b],))
    projections[name] += spec.lora.scale * checkpoint_name(change_nM, _PRODUCT)
  return [projections[name] for name in names]


def _with_one_input_axis(weight: jax.Array, inputs: int) -> jax.Array:
  """Returns a weight with all axes of its `inputs` inputs, as those of heads and head width, merged to the first."""
  return weight if len(weight) == inputs else weight.reshape(inputs, -1)


@jax.custom_vjp
def _products(x_nD, weights):
  """Returns x @ w, [n, M], for each weight w [D, ...]; on a CPU the backward pass transposes x first.

  Gradients of weights are products that sum over rows, for which a CPU otherwise takes up to twice as long.
  """
  return tuple(x_nD @ _flat(w, x_nD.dtype) for w in weights)


def _flat(weight: jax.Array, dtype) -> jax.Array:
  """Returns a weight [D, ...] as a matrix [D, M] in `dtype`."""
  return weight.reshape(len(weight), -1).astype(dtype)


def _products_backward(residuals, gradients):
  """Returns the gradients of x and of the weights."""
  x_nD, weights = residuals
  flat_weights = tuple(_flat(w, x_nD.dtype) for w in weights)
  d_x = gradients[0] @ flat_weights[0].T
  for d, w in zip(gradients[1:], flat_weights[1:], strict=True):
    d_x = d_x + d @ w.T

  def transposed(x_nD, gradients):
    x_Dn = jax.lax.optimization_barrier(x_nD.T)
    return tuple(x_Dn @ d for d in gradients)

  def plain(x_nD, gradients):
    return tuple(x_nD.T @ d for d in gradients)

  d_weights = jax.lax.platform_dependent(x_nD, gradients, cpu=transposed, default=plain)
  shaped = [d.reshape(w.shape).astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)]
  return d_x, tuple(shaped)


_products.defvjp(lambda x_nD, weights: (_products(x_nD, weights), (x_nD, weights)), _products_backward)


def _layer(x_BTD, w, angles, attend, cache, spec: Spec):
  """Runs one layer with the weights `w`; returns (hidden states [B,T,D], the layer's new cache)."""
  w = {name: dequantise(x, spec.dtype) for name, x in w.items()}
  x_BTD, cache = _attention_block(x_BTD, w, angles, attend, cache, spec)
  return _mlp_block(x_BTD, w, spec), cache


def _attention_block(x_BTD, w, angles, attend, cache, spec: Spec):
  """Adds attention to the hidden states; returns (hidden states [B,T,D], the layer's new cache)."""
  rows, time, width = x_BTD.shape
  y_nD = _rms_norm(x_BTD, w["attn_norm"], spec.norm_eps).reshape(-1, width)  # flat: a quarter less time on CPU

  def split_heads(x_nM):
    # Transposed by hand: on CPU, an einsum to "bnth" would compute [n*h, b*t] and read it column by column.
    return x_nM.reshape(rows, time, -1, spec.head_dim).swapaxes(1, 2)

  q, k, v = (split_heads(x_nM) for x_nM in _projections(y_nD, w, ("q", "k", "v"), spec))
  if spec.qkv_bias:
    q = q + w["q_bias"][:, None]
    k = k + w["k_bias"][:, None]
    v = v + w["v_bias"][:, None]
  if spec.qk_norm:
    q = _rms_norm(q, w["q_norm"], spec.norm_eps)
    k = _rms_norm(k, w["k_norm"], spec.norm_eps)
  copies = sharding.kv_copies(spec.kv_heads, sharding.shards_here("kv_heads"))
  if copies > 1:
    k = jnp.repeat(k, copies, 1)
    v = jnp.repeat(v, copies, 1)
  q = sharding.constrain(q, "batch", "heads", None, None)
  k = sharding.constrain(k, "batch", "kv_heads", None, None)
  v = sharding.constrain(v, "batch", "kv_heads", None, None)
  q = _rotate(q, angles)
  k = _rotate(k, angles)
  out_BHTh, cache = attend(q, k, v, cache)
  out_nM = out_BHTh.swapaxes(1, 2).reshape(rows * time, -1)
  (out_nD,) = _projections(out_nM, w, ("o",), spec)
  return sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None), cache


def _mlp_block(x_BTD, w, spec: Spec):
  """Adds the gated MLP to the hidden states [B,T,D]."""
  y_nD = _rms_norm(x_BTD, w["mlp_norm"], spec.norm_eps).reshape(-1, x_BTD.shape[-1])
  gate_nF, up_nF = _projections(y_nD, w, ("gate", "up"), spec)
  (out_nD,) = _projections(jax.nn.silu(gate_nF) * up_nF, w, ("down",), spec)
  return sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None)


def forward(
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Attend,
  cache: Any,
  spec: Spec,
  rope: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
  """Returns the final hidden states [B,T,D] (normed, before the head, in `spec.dtype`) and the new cache.

  params: the weights by name, as in `weight_table.leaves`, in the compute dtype (`cast`) or as `Int8`. Those of layers
  are stacked along the first axis; with a cache they may be tuples with one array a layer. Adapters of `spec.lora`, by
  their names in `weight_table.adapter_leaves`, are used if they are among them; without them the base is computed.
  tokens_BT: token ids below `spec.vocab`. positions_BT: position of each token in its own text, from 0.
  attend: computes a layer's attention, (q_BHTh, k_BKTh, v_BKTh, entry) -> (out_BHTh, new entry), where entry is the
  layer's part of the cache; `causal` returns one.
  cache: a tuple with one entry a layer, in whatever form `attend` takes. The layers then run unrolled, because a scan
  would copy the cache at every token, and a tuple of the new entries is returned. With None the layers run as one
  scan, `attend` gets None, and None is returned.
  rope: the `rope_table` of every position that occurs, from a caller that computes it once for a loop over tokens.
  None: the table of positions 0 .. T-1 is computed here, and no position may be larger.
  """
  layer_leaves = {name: leaf for name, leaf in leaves(spec).items() if leaf.layered} | adapter_leaves(spec)
  layer_weights = {name: params[name] for name in layer_leaves if name in params}
  embeddings = jax.tree.map(lambda array: array[tokens_BT], params["embed"])  # of both arrays of an Int8
  x_BTD = dequantise(embeddings, spec.dtype).astype(spec.dtype)
  x_BTD = sharding.constrain(x_BTD, "copies", None, "embed")  # so that no device gathers the whole embedding table
  x_BTD = sharding.constrain(x_BTD, "batch", None, None)
  if rope is None:
    rope = rope_table(positions_BT.shape[1], spec)
  angles = tuple(table_Mh[positions_BT][:, None] for table_Mh in rope)
  if isinstance(cache, tuple):
    x_BTD, new_cache = _unrolled_layers(x_BTD, layer_weights, angles, attend, cache, spec)
  else:
    x_BTD, new_cache = _scanned_layers(x_BTD, layer_weights, angles, attend, spec), None
  return _rms_norm(x_BTD, params["final_norm"], spec.norm_eps), new_cache


def _unrolled_layers(x_BTD, layer_weights, angles, attend, cache: tuple, spec: Spec):
  """Runs all layers one by one, each with its entry of the cache; returns hidden states [B,T,D] and the new cache."""
  new_entries = []
  for layer, entry in enumerate(cache):
    w = {name: weights[layer] for name, weights in layer_weights.items()}
    x_BTD, new_entry = _layer(x_BTD, w, angles, attend, entry, spec)
    new_entries.append(new_entry)
  return x_BTD, tuple(new_entries)


def _scanned_layers(x_BTD, layer_weights, angles, attend, spec: Spec):
  """Runs all layers as one scan, without a cache; returns hidden states [B,T,D]."""

  def body(x_BTD, w):
    x_BTD, _ = _layer(x_BTD, w, angles, attend, None, spec)
    return x_BTD, None

  if REMAT[spec.remat] is not None:
    body = jax.checkpoint(body, policy=REMAT[spec.remat])
  x_BTD, _ = jax.lax.scan(body, x_BTD, layer_weights, unroll=spec.unroll)
  return x_BTD
