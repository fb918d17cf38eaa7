"""The policy's only forward pass: training, prefill and decode differ by the `attend` function and cache passed in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrlvr.device import sharding
from jaxrlvr.model import attention
from jaxrlvr.model.int8 import dequantise
from jaxrlvr.model.row_layout import RowLayout
from jaxrlvr.model.spec import Spec, leaves

# (q_BHTh, k_BKTh, v_BKTh, one layer's cache) -> (out_BHTh, that layer's new cache)
Attend = Callable[[jax.Array, jax.Array, jax.Array, object], tuple[jax.Array, object]]

_PRODUCT = "product"  # the checkpoint name of products with weights

# What a layer stores for its backward pass, which computes everything else again: a policy of `jax.checkpoint`, or None
# where everything is stored. Keys: values of `model.remat`.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_only_these_names(_PRODUCT),  # products with weights
  "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input
}


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """Returns the root-mean-square norm over the last axis, computed in float32 (Zhang and Sennrich 2019)."""
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + eps)
  return wide.astype(x.dtype) * scale_D


def rope_table(positions: int, spec: Spec) -> tuple[jax.Array, jax.Array]:
  """Returns cos and sin, each [positions, h/2], of the rotary angles at positions 0 .. positions - 1.

  float32, because bfloat16 can't tell positions beyond 256 apart. Frequencies are scaled as `spec.rope_scaling` says.
  A table is looked up, because a compiler would otherwise compute the cosines anew in each layer.
  """
  frequency = spec.rope_theta ** (-jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim)
  if (scaling := spec.rope_scaling) is not None:
    turns = scaling.original_max_position * frequency / (2 * jnp.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    frequency = frequency * (smooth + (1.0 - smooth) / scaling.factor)
  angle_Mh = jnp.arange(positions, dtype=jnp.float32)[:, None] * frequency
  return jnp.cos(angle_Mh), jnp.sin(angle_Mh)


def rotate(x_BHTh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x with rotary position embedding; the two halves of h form the pairs, as in Hugging Face's weights.

  angles: cos and sin, [B,1,T,h/2].
  """
  cos, sin = angles
  low, high = jnp.split(x_BHTh.astype(jnp.float32), 2, -1)
  return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x_BHTh.dtype)


def causal(segments_BT: jax.Array, spec: Spec, layout: RowLayout) -> Attend:
  """Returns the `attend` function of training and scoring: causal attention inside segments, without a cache.

  A token attends to its own segment up to itself, and to its prompt wherever `layout` puts it. Segment 0 is padding;
  the output there has no meaning.
  """
  attend_rows = attention.ATTENTION[spec.attention]

  def attend(q_BHTh, k_BKTh, v_BKTh, cache):
    return layout.attend(attend_rows, q_BHTh, k_BKTh, v_BKTh, segments_BT), None

  return attend


def cast(params: Mapping[str, jax.Array], spec: Spec) -> dict[str, jax.Array]:
  """Returns the weights in the compute dtype; call it once, outside of any loop."""
  return {name: w.astype(spec.dtype) for name, w in params.items()}


def head_VD(params: dict, spec: Spec) -> jax.Array:
  """Returns the head's weights: the embedding table where they are tied."""
  return params["embed"] if spec.tied else params["head"]


def products(x_nD: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
  """Returns x @ w, [n, M], for each weight w [D, ...]; M is the product of its other axes."""
  return tuple(checkpoint_name(y, _PRODUCT) for y in _products(x_nD, weights))


@jax.custom_vjp
def _products(x_nD, weights):
  """Computes `products`; the backward pass transposes x first, once for all weights, on a CPU.

  Gradients of weights are products that sum over rows, for which a CPU otherwise takes up to twice as long.
  """
  return tuple(x_nD @ w.reshape(len(w), -1) for w in weights)


def _products_backward(residuals, gradients):
  x_nD, weights = residuals
  flat_weights = tuple(w.reshape(len(w), -1) for w in weights)
  d_x = functools.reduce(jnp.add, (d @ w.T for d, w in zip(gradients, flat_weights, strict=True)))

  def transposed(x_nD, gradients):
    x_Dn = jax.lax.optimization_barrier(x_nD.T)
    return tuple(x_Dn @ d for d in gradients)

  def plain(x_nD, gradients):
    return tuple(x_nD.T @ d for d in gradients)

  d_weights = jax.lax.platform_dependent(x_nD, gradients, cpu=transposed, default=plain)
  return d_x, tuple(d.reshape(w.shape) for d, w in zip(d_weights, weights, strict=True))


_products.defvjp(lambda x_nD, weights: (_products(x_nD, weights), (x_nD, weights)), _products_backward)


def _layer(x_BTD, w, angles, attend, cache, spec: Spec):
  """Runs one layer with the weights `w`; returns (hidden states [B,T,D], the layer's new cache)."""
  w = {name: dequantise(x, spec.dtype) for name, x in w.items()}
  x_BTD, cache = _attention_block(x_BTD, w, angles, attend, cache, spec)
  return _mlp_block(x_BTD, w, spec), cache


def _attention_block(x_BTD, w, angles, attend, cache, spec: Spec):
  """Adds attention to the hidden states; returns (hidden states [B,T,D], the layer's new cache)."""
  rows, time, width = x_BTD.shape
  y_nD = rms_norm(x_BTD, w["attn_norm"], spec.norm_eps).reshape(-1, width)  # flat: a quarter less time on CPU

  def split_heads(x_nM):
    # transposed by hand: an einsum to "bnth" would make, on CPU, [n*h, b*t] and read it column by column
    return x_nM.reshape(rows, time, -1, spec.head_dim).swapaxes(1, 2)

  q, k, v = (split_heads(x_nM) for x_nM in products(y_nD, w["q"], w["k"], w["v"]))
  if spec.qkv_bias:
    q = q + w["q_bias"][:, None]
    k = k + w["k_bias"][:, None]
    v = v + w["v_bias"][:, None]
  if spec.qk_norm:
    q = rms_norm(q, w["q_norm"], spec.norm_eps)
    k = rms_norm(k, w["k_norm"], spec.norm_eps)
  copies = sharding.kv_copies(spec.kv_heads, sharding.size_here("kv_heads"))
  if copies > 1:
    k = jnp.repeat(k, copies, 1)
    v = jnp.repeat(v, copies, 1)
  q = sharding.constrain(q, "batch", "heads", None, None)
  k = sharding.constrain(k, "batch", "kv_heads", None, None)
  v = sharding.constrain(v, "batch", "kv_heads", None, None)
  out_BHTh, cache = attend(rotate(q, angles), rotate(k, angles), v, cache)
  out_nM = out_BHTh.swapaxes(1, 2).reshape(rows * time, -1)
  (out_nD,) = products(out_nM, w["o"].reshape(-1, width))
  return sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None), cache


def _mlp_block(x_BTD, w, spec: Spec):
  """Adds the gated MLP to the hidden states [B,T,D]."""
  y_nD = rms_norm(x_BTD, w["mlp_norm"], spec.norm_eps).reshape(-1, x_BTD.shape[-1])
  gate_nF, up_nF = products(y_nD, w["gate"], w["up"])
  (out_nD,) = products(jax.nn.silu(gate_nF) * up_nF, w["down"])
  return sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None)


def forward(
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Attend,
  cache: Any,
  spec: Spec,
  table: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
  """Returns the final hidden states [B,T,D] (normed, before the head) and the new cache.

  cache: a tuple with one entry a layer runs the layers unrolled, because a scan would copy the cache at every token,
  and a new tuple is returned. With None the layers run as one scan, and None is returned.
  params: weights in the compute dtype (`cast`) or in 8 bits. Weights of layers are stacked along the first axis, or,
  for unrolled layers, a tuple with one entry a layer.
  table: the `rope_table` of all positions, computed once by a caller that decodes in a loop; None: below T.
  """
  stacked = {name: params[name] for name, leaf in leaves(spec).items() if leaf.layered}
  x_BTD = dequantise(jax.tree.map(lambda table: table[tokens_BT], params["embed"]), spec.dtype)
  x_BTD = sharding.constrain(x_BTD, "copies", None, "embed")  # so that no device gathers the whole embedding table
  x_BTD = sharding.constrain(x_BTD, "batch", None, None)
  table = rope_table(positions_BT.shape[1], spec) if table is None else table
  angles = tuple(x_Mh[positions_BT][:, None] for x_Mh in table)
  if isinstance(cache, tuple):
    new_entries = []
    for i, entry in enumerate(cache):
      layer_weights = {name: w[i] for name, w in stacked.items()}
      x_BTD, new_entry = _layer(x_BTD, layer_weights, angles, attend, entry, spec)
      new_entries.append(new_entry)
    cache = tuple(new_entries)
  else:

    def body(x_BTD, w):
      return _layer(x_BTD, w, angles, attend, None, spec)[0], None

    if REMAT[spec.remat] is not None:
      body = jax.checkpoint(body, policy=REMAT[spec.remat])
    x_BTD, cache = jax.lax.scan(body, x_BTD, stacked, unroll=spec.unroll)
  return rms_norm(x_BTD, params["final_norm"], spec.norm_eps), cache
