"""The parts that the layers of all families are built from: norms, rotary positions, products, attention, the MLP.

Letters of axes: B rows, T slots, D width, n = B*T tokens, H query heads, K KV heads, h width of a head, d numbers of it
that rotate, F width of an MLP, M outputs of a product, r rank of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrlvr.device import sharding
from jaxrlvr.model.rope import cos_and_sin
from jaxrlvr.model.spec import Spec, adapter_names

PRODUCT = "product"  # the checkpoint name of products with weights, which the policy "dots" of `forward.REMAT` stores

# Computes a layer's attention: (q_BHTh, k_BKTh, v_BKTh, the layer's entry of the cache) -> (out_BHTh, its new entry).
# q and k have been rotated to their positions.
AttendInLayer = Callable[[jax.Array, jax.Array, jax.Array, object], tuple[jax.Array, object]]
# Changes (q_BHTh, k_BKTh) before they are rotated, as norms of heads do, and returns both.
Adjust = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Angles(NamedTuple):
  """What queries and keys get from their positions: the rotary angles, and a factor of queries in some families.

  All arrays are float32. d numbers of a head rotate.
  """

  cos: jax.Array  # [..., d/2]
  sin: jax.Array  # [..., d/2]
  query_scale: jax.Array | None = None  # [..., 1], what queries are multiplied by; None: nothing


class LayerInputs(NamedTuple):
  """What a layer takes beside hidden states and weights; `forward` makes it."""

  angles: Angles  # of the layer's kind, float32 [B,1,T,d/2]
  attend: AttendInLayer
  entry: object  # the layer's entry of the cache; None: there is no cache


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
  """Returns scale * x / sqrt(mean(x^2) + eps), with the mean over `axes`, in x's dtype (Zhang and Sennrich 2019).

  The mean is taken in float32. scale: an array that broadcasts against x.
  """
  return _normed(x, eps, axes).astype(x.dtype) * scale.astype(x.dtype)


def wide_rms_norm(x: jax.Array, scale: jax.Array, eps: float, axes: tuple[int, ...] = (-1,)) -> jax.Array:
  """Returns what `rms_norm` does, but multiplies with the scale in float32 too, and rounds to x's dtype at the end."""
  return (_normed(x, eps, axes) * scale.astype(jnp.float32)).astype(x.dtype)


def _normed(x, eps, axes):
  """Returns x / sqrt(mean(x^2) + eps), with the mean over `axes`, in float32."""
  wide = x.astype(jnp.float32)
  return wide * jax.lax.rsqrt(jnp.mean(wide**2, axes, keepdims=True) + eps)


def rope_tables(positions: int, spec: Spec) -> Angles:
  """Returns the rotary angles at positions 0 .. positions - 1, [kinds, positions, d/2], for `spec.layer_kinds`.

  `forward` takes them. float32, because bfloat16 can't tell positions beyond 256 apart. Layers that do not rotate have
  the angle 0 everywhere.
  """
  tables = [_rope_table(positions, spec, kind.rotary) for kind in spec.layer_kinds]
  return jax.tree.map(lambda *arrays: jnp.stack(arrays), *tables)


def _rope_table(positions: int, spec: Spec, rotary: str) -> Angles:
  """Returns the angles [positions, d/2] of layers of one kind; rotary: as in `LayerKind`."""
  scale = query_scale(positions, spec.query_scaling_beta, spec.original_positions) if spec.query_scaling_beta else None
  if rotary == "none":
    zeros_Mh = jnp.zeros((positions, spec.rotated // 2), jnp.float32)
    return Angles(jnp.cos(zeros_Mh), zeros_Mh, scale)
  if rotary == "local":
    return Angles(*cos_and_sin(positions, spec.local_rope_theta, spec.rotated), scale)
  return Angles(*cos_and_sin(positions, spec.rope_theta, spec.rotated, spec.rope_scaling, spec.max_positions), scale)


def query_scale(positions: int, beta: float, original_positions: int) -> jax.Array:
  """Returns what queries at positions 0 .. positions - 1 are multiplied by, float32 [positions, 1].

  It is 1 + beta * ln(1 + floor(position / original_positions)), which sharpens attention in texts that are longer than
  those of pre-training (Llama 4's temperature tuning, which Ministral 3 has).
  """
  position_M1 = jnp.arange(positions, dtype=jnp.float32)[:, None]
  return 1 + beta * jnp.log1p(jnp.floor(position_M1 / original_positions))


def _rotate(x_BHTh: jax.Array, angles: Angles) -> jax.Array:
  """Returns x with rotary position embedding, in x's dtype; angles: float32 [B,1,T,d/2].

  The first d numbers of a head rotate. Numbers i and i + d/2 form a pair, as in Hugging Face's weights.
  """
  cos, sin = angles.cos, angles.sin
  pairs, head_dim = cos.shape[-1], x_BHTh.shape[-1]
  cuts = [pairs] if 2 * pairs == head_dim else [pairs, 2 * pairs]
  low, high, *unrotated = jnp.split(x_BHTh.astype(jnp.float32), cuts, -1)
  rotated = [low * cos - high * sin, high * cos + low * sin]
  return jnp.concatenate([*rotated, *unrotated], -1).astype(x_BHTh.dtype)


def project(x_nD: jax.Array, w: Mapping[str, jax.Array], names: Sequence[str], spec: Spec) -> list[jax.Array]:
  """Returns x @ w[name], [n, M], for each name; M is the product of the weight's output axes.

  Where `w` has adapters of a weight, their product (`Lora`) is added. Each product with a weight is named, so that the
  policy "dots" of `forward.REMAT` stores it. Weights that share their input are passed together, because the backward
  pass then transposes x once for all of them.
  """
  inputs = x_nD.shape[1]
  weights = [_with_one_input_axis(w[name], inputs) for name in names]
  low_rank = {name: adapter_names(name) for name in names if adapter_names(name)[0] in w}
  adapters_a = [_with_one_input_axis(w[name_a], inputs) for name_a, _ in low_rank.values()]
  products = [checkpoint_name(product_nM, PRODUCT) for product_nM in _products(x_nD, (*weights, *adapters_a))]
  projections = dict(zip(names, products, strict=False))
  for (name, (_, name_b)), x_nr in zip(low_rank.items(), products[len(names) :], strict=True):
    (change_nM,) = _products(x_nr, (w[name_b],))
    projections[name] += spec.lora.scale * checkpoint_name(change_nM, PRODUCT)
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


def flat_tokens(x_BTD: jax.Array) -> jax.Array:
  """Returns hidden states as [n, D], in which products take a quarter less time on a CPU."""
  return x_BTD.reshape(-1, x_BTD.shape[-1])


def attention(
  y_BTD: jax.Array,
  w: Mapping[str, jax.Array],
  inputs: LayerInputs,
  spec: Spec,
  adjust: Adjust | None = None,
) -> tuple[jax.Array, object]:
  """Computes a layer's attention to inputs `y_BTD`; returns (its output [B,T,D], the layer's new entry of the cache).

  w: the layer's weights by name: q, k, v, o; q_bias, k_bias and v_bias are added if they are there. inputs: as
  `forward` passes them to a block. adjust: changes q and k before they are rotated;
  None: nothing does.
  """
  rows, time, _ = y_BTD.shape

  def split_heads(x_nM):
    # Transposed by hand: on CPU, an einsum to "bnth" would compute [n*h, b*t] and read it column by column.
    return x_nM.reshape(rows, time, -1, spec.head_dim).swapaxes(1, 2)

  q, k, v = (split_heads(x_nM) for x_nM in project(flat_tokens(y_BTD), w, ("q", "k", "v"), spec))
  if "q_bias" in w:
    q = q + w["q_bias"][:, None].astype(q.dtype)
    k = k + w["k_bias"][:, None].astype(k.dtype)
    v = v + w["v_bias"][:, None].astype(v.dtype)
  if adjust is not None:
    q, k = adjust(q, k)
  copies = sharding.kv_copies(spec.kv_heads, sharding.shards_here("kv_heads"))
  if copies > 1:
    k = jnp.repeat(k, copies, 1)
    v = jnp.repeat(v, copies, 1)
  q = sharding.constrain(q, "batch", "heads", None, None)
  k = sharding.constrain(k, "batch", "kv_heads", None, None)
  v = sharding.constrain(v, "batch", "kv_heads", None, None)
  q, k = _rotate(q, inputs.angles), _rotate(k, inputs.angles)
  if inputs.angles.query_scale is not None:
    q = q * inputs.angles.query_scale.astype(q.dtype)
  out_BHTh, entry = inputs.attend(q, k, v, inputs.entry)
  (out_nD,) = project(out_BHTh.swapaxes(1, 2).reshape(rows * time, -1), w, ("o",), spec)
  return out_nD.reshape(y_BTD.shape), entry


def gated_mlp(
  y_BTD: jax.Array,
  w: Mapping[str, jax.Array],
  spec: Spec,
  activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
) -> jax.Array:
  """Returns the output [B,T,D] of a layer's MLP, down(activation(gate(y)) * up(y)), with the weights gate, up, down."""
  gate_nF, up_nF = project(flat_tokens(y_BTD), w, ("gate", "up"), spec)
  (out_nD,) = project(activation(gate_nF) * up_nF, w, ("down",), spec)
  return out_nD.reshape(y_BTD.shape)


def add(x_BTD: jax.Array, change_BTD: jax.Array) -> jax.Array:
  """Returns the residual stream after a part of a layer, split over the mesh by rows alone."""
  return sharding.constrain(x_BTD + change_BTD, "batch", None, None)
