"""The one forward of the policy: training, prefill and decode differ by `attend` and the cache handed in."""

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

_PRODUCT = "product"  # the name by which REMAT knows a product with weights

# What the backward pass finds of a layer, the rest is computed again: a policy of `jax.checkpoint`, None: all is kept.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_only_these_names(_PRODUCT),  # products with weights
  "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input
}


def rms_norm(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """Root-mean-square norm over the last axis, in float32 (Zhang and Sennrich 2019)."""
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + eps)
  return wide.astype(x.dtype) * scale_D


def rope_table(most: int, spec: Spec) -> tuple[jax.Array, jax.Array]:
  """cos and sin [most, h/2] of positions 0.., in float32 (bfloat16 can't tell those beyond 256 apart), scaled if set.

  A table, because a compiler would put the cosines of each element into each layer.
  """
  frequency = spec.rope_theta ** (-jnp.arange(0, spec.head_dim, 2, dtype=jnp.float32) / spec.head_dim)
  if (scaling := spec.rope_scaling) is not None:
    turns = scaling.original_max_position * frequency / (2 * jnp.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = jnp.clip(smooth, 0.0, 1.0)
    frequency = frequency * (smooth + (1.0 - smooth) / scaling.factor)
  angle_Mh = jnp.arange(most, dtype=jnp.float32)[:, None] * frequency
  return jnp.cos(angle_Mh), jnp.sin(angle_Mh)


def rotate(x_BHTh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary embedding, halves rotated against each other as Hugging Face stores them."""
  cos, sin = angles
  low, high = jnp.split(x_BHTh.astype(jnp.float32), 2, -1)
  return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], -1).astype(x_BHTh.dtype)


def causal(segments_BT: jax.Array, spec: Spec, layout: RowLayout) -> Attend:
  """Returns the attention of whole rows: a token sees the earlier tokens of its own segment, and its prompt wherever
  `layout` puts that. Segment 0 is padding, whatever it sees."""
  attend_rows = attention.ATTENTION[spec.attention]

  def attend(q_BHTh, k_BKTh, v_BKTh, cache):
    return layout.attend(attend_rows, q_BHTh, k_BKTh, v_BKTh, segments_BT), None

  return attend


def cast(params: Mapping[str, jax.Array], spec: Spec) -> dict[str, jax.Array]:
  """Weights in the compute dtype; done once, outside of any loop."""
  return {name: w.astype(spec.dtype) for name, w in params.items()}


def head_VD(params: dict, spec: Spec) -> jax.Array:
  return params["embed"] if spec.tied else params["head"]


def products(x_nD: jax.Array, *weights: jax.Array) -> tuple[jax.Array, ...]:
  """x @ w of each weight [D, ...], its other axes behind each other."""
  return tuple(checkpoint_name(y, _PRODUCT) for y in _products(x_nD, weights))


@jax.custom_vjp
def _products(x_nD, weights):
  """A CPU is up to twice as slow where a product sums over rows, as those for the gradients of weights do: there x is
  transposed first, once for all of them."""
  return tuple(x_nD @ w.reshape(len(w), -1) for w in weights)


def _products_backward(kept, gradients):
  x_nD, weights = kept
  flat = tuple(w.reshape(len(w), -1) for w in weights)
  d_x = functools.reduce(jnp.add, (d @ w.T for d, w in zip(gradients, flat, strict=True)))

  def transposed(x_nD, gradients):
    x_Dn = jax.lax.optimization_barrier(x_nD.T)
    return tuple(x_Dn @ d for d in gradients)

  def plain(x_nD, gradients):
    return tuple(x_nD.T @ d for d in gradients)

  d_weights = jax.lax.platform_dependent(x_nD, gradients, cpu=transposed, default=plain)
  return d_x, tuple(d.reshape(w.shape) for d, w in zip(d_weights, weights, strict=True))


_products.defvjp(lambda x_nD, weights: (_products(x_nD, weights), (x_nD, weights)), _products_backward)


def _layer(x_BTD, w, angles, attend, cache, spec: Spec):
  w = {name: dequantise(x, spec.dtype) for name, x in w.items()}
  rows, time, width = x_BTD.shape
  y_nD = rms_norm(x_BTD, w["attn_norm"], spec.norm_eps).reshape(-1, width)  # flat: a quarter less time on CPU
  # transposed by hand: an einsum to "bnth" would make, on CPU, [n*h, b*t] and read it column by column
  q, k, v = (
    x.reshape(rows, time, -1, spec.head_dim).swapaxes(1, 2) for x in products(y_nD, *(w[name] for name in "qkv"))
  )
  if spec.qkv_bias:
    q, k, v = (a + w[name][:, None] for a, name in ((q, "q_bias"), (k, "k_bias"), (v, "v_bias")))
  if spec.qk_norm:
    q, k = rms_norm(q, w["q_norm"], spec.norm_eps), rms_norm(k, w["k_norm"], spec.norm_eps)
  if (copies := sharding.kv_copies(spec.kv_heads, sharding.size_here("kv_heads"))) > 1:
    k, v = jnp.repeat(k, copies, 1), jnp.repeat(v, copies, 1)
  q, k, v = (
    sharding.constrain(a, "batch", axis, None, None) for a, axis in ((q, "heads"), (k, "kv_heads"), (v, "kv_heads"))
  )
  out, cache = attend(rotate(q, angles), rotate(k, angles), v, cache)
  (out_nD,) = products(out.swapaxes(1, 2).reshape(rows * time, -1), w["o"].reshape(-1, width))
  x_BTD = sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None)
  y_nD = rms_norm(x_BTD, w["mlp_norm"], spec.norm_eps).reshape(-1, width)
  gate_nF, up_nF = products(y_nD, w["gate"], w["up"])
  (out_nD,) = products(jax.nn.silu(gate_nF) * up_nF, w["down"])
  return sharding.constrain(x_BTD + out_nD.reshape(x_BTD.shape), "batch", None, None), cache


def forward(
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Attend,
  cache: Any,
  spec: Spec,
  table: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
  """Final hidden states [B,T,D] (normed, before the head) and the new cache.

  A cache that is a tuple, one entry a layer, goes through unrolled layers (a scan would copy it each token) and comes
  back as one; with None the layers are one scan, and nothing comes back. `params` must be in the compute dtype
  (`cast`) or 8 bits, weights of layers stacked or, for unrolled layers, a tuple with those of each.
  Positions lie below T, or in `table` (`rope_table`), which a loop makes once for all its tokens.
  """
  stacked = {name: params[name] for name, leaf in leaves(spec).items() if leaf.layered}
  x_BTD = dequantise(jax.tree.map(lambda table: table[tokens_BT], params["embed"]), spec.dtype)
  x_BTD = sharding.constrain(x_BTD, "copies", None, "embed")  # no device gathers the table
  x_BTD = sharding.constrain(x_BTD, "batch", None, None)
  table = rope_table(positions_BT.shape[1], spec) if table is None else table
  angles = tuple(x_Mh[positions_BT][:, None] for x_Mh in table)
  if isinstance(cache, tuple):
    new = []
    for i, entry in enumerate(cache):
      x_BTD, entry = _layer(x_BTD, {name: w[i] for name, w in stacked.items()}, angles, attend, entry, spec)
      new.append(entry)
    cache = tuple(new)
  else:

    def body(x_BTD, w):
      return _layer(x_BTD, w, angles, attend, None, spec)[0], None

    body = body if REMAT[spec.remat] is None else jax.checkpoint(body, policy=REMAT[spec.remat])
    x_BTD, cache = jax.lax.scan(body, x_BTD, stacked, unroll=spec.unroll)
  return rms_norm(x_BTD, params["final_norm"], spec.norm_eps), cache
