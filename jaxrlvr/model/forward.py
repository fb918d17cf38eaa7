"""The policy's only forward pass: training, prefill and decode differ by the `attend` function and cache passed in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlvr.device import sharding
from jaxrlvr.model import attention, families
from jaxrlvr.model.int8 import dequantise
from jaxrlvr.model.layers import PRODUCT, Angles, AttendInLayer, LayerInputs, rope_tables
from jaxrlvr.model.row_layout import RowLayout
from jaxrlvr.model.spec import Spec
from jaxrlvr.model.weight_table import adapter_leaves, leaves

# Computes a layer's attention: (q_BHTh, k_BKTh, v_BKTh, the layer's entry of the cache, window=the layer's window) ->
# (out_BHTh, its new entry). q and k have been rotated to their positions; window: as in `LayerKind`.
Attend = Callable[..., tuple[jax.Array, object]]

# What a layer stores for its backward pass, which computes everything else again: a policy of `jax.checkpoint`, or None
# where everything is stored. Keys: values of `model.remat`.
REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),  # products with weights
  "full": jax.checkpoint_policies.nothing_saveable,  # the layer's input
}


def causal(segments_BT: jax.Array, spec: Spec, layout: RowLayout) -> Attend:
  """Returns the `attend` function that training, scoring and prefill pass to `forward`: causal, without a cache.

  It is (q_BHTh, k_BKTh, v_BKTh, ignored, window) -> (out_BHTh, None), and computes with `ATTENTION[spec.attention]`.
  segments_BT: number of the text in each slot; 0 is padding, where the output has no meaning. A token attends to its
  own segment up to itself, and to its prompt, which `layout` may have placed elsewhere on the row.
  """
  attend_rows = attention.ATTENTION[spec.attention]

  def attend(q_BHTh, k_BKTh, v_BKTh, entry, window=0):
    return layout.attend(attend_rows, q_BHTh, k_BKTh, v_BKTh, segments_BT, window), None

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


def forward(
  params: Mapping[str, Any],
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Attend,
  cache: Any,
  spec: Spec,
  rope: Angles | None = None,
) -> tuple[jax.Array, Any]:
  """Returns the final hidden states [B,T,D] (normed, before the head, in `spec.dtype`) and the new cache.

  params: the weights by name, as in `weight_table.leaves`, in the compute dtype (`cast`) or as `Int8`. Those of layers
  are stacked along the first axis; with a cache they may be tuples with one array a layer. Adapters of `spec.lora`, by
  their names in `weight_table.adapter_leaves`, are used if they are among them; without them the base is computed.
  tokens_BT: token ids below `spec.vocab`. positions_BT: position of each token in its own text, from 0.
  attend: computes a layer's attention, (q_BHTh, k_BKTh, v_BKTh, entry, window) -> (out_BHTh, new entry), where entry is
  the layer's part of the cache, and window a static int (`LayerKind.window`); `causal` returns one.
  cache: a tuple with one entry a layer, in whatever form `attend` takes. The layers then run unrolled, because a scan
  would copy the cache at every token, and a tuple of the new entries is returned. With None the layers run as one
  scan, `attend` gets None, and None is returned.
  rope: the `rope_tables` of every position that occurs, from a caller that computes it once for a loop over tokens.
  None: the tables of positions 0 .. T-1 are computed here, and no position may be larger.
  """
  family = families.family_of(spec.family)
  layer_leaves = {name: leaf for name, leaf in leaves(spec).items() if leaf.layered} | adapter_leaves(spec)
  layer_weights = {name: params[name] for name in layer_leaves if name in params}
  embeddings = jax.tree.map(lambda array: array[tokens_BT], params["embed"])  # of both arrays of an Int8
  x_BTD = dequantise(embeddings, spec.dtype).astype(spec.dtype)
  x_BTD = sharding.constrain(x_BTD, "copies", None, "embed")  # so that no device gathers the whole embedding table
  x_BTD = sharding.constrain(x_BTD, "batch", None, None)
  x_BTD = family.embed(x_BTD, spec)
  if rope is None:
    rope = rope_tables(positions_BT.shape[1], spec)
  angles = jax.tree.map(lambda table: table[:, positions_BT][:, :, None], rope)  # [kinds,B,1,T,h/2]
  if isinstance(cache, tuple):
    x_BTD, new_cache = _unrolled_layers(x_BTD, layer_weights, angles, attend, cache, spec)
  else:
    x_BTD, new_cache = _scanned_layers(x_BTD, layer_weights, angles, attend, spec), None
  return family.norm(x_BTD, params["final_norm"], spec.norm_eps), new_cache


def _layer(x_BTD, w, inputs: LayerInputs, spec: Spec):
  """Runs one layer with the weights `w`; returns (hidden states [B,T,D], the layer's new entry of the cache)."""
  w = {name: dequantise(x, spec.dtype) for name, x in w.items()}
  return families.family_of(spec.family).block(x_BTD, w, inputs, spec)


def _angles_of(angles: Angles, kind: jax.Array | int) -> Angles:
  """Returns the angles [B,1,T,h/2] of layers of one kind."""
  return jax.tree.map(lambda table: table[kind], angles)


def _unrolled_layers(x_BTD, layer_weights, angles, attend: Attend, cache: tuple, spec: Spec):
  """Runs all layers one by one, each with its entry of the cache; returns hidden states [B,T,D] and the new cache."""
  new_entries = []
  for layer, entry in enumerate(cache):
    w = {name: weights[layer] for name, weights in layer_weights.items()}
    kind = spec.kind_of_layer[layer]
    attend_here = functools.partial(attend, window=spec.layer_kinds[kind].window)
    x_BTD, new_entry = _layer(x_BTD, w, LayerInputs(_angles_of(angles, kind), attend_here, entry), spec)
    new_entries.append(new_entry)
  return x_BTD, tuple(new_entries)


def _scanned_layers(x_BTD, layer_weights, angles, attend: Attend, spec: Spec):
  """Runs all layers as one scan, without a cache; returns hidden states [B,T,D].

  Where layers are of several kinds, the scan carries the index of each layer's kind. A window over all T slots of a
  row counts as none.
  """
  kinds, time = spec.layer_kinds, x_BTD.shape[1]
  window_of_kind = [kind.window if attention.limits(kind.window, time) else 0 for kind in kinds]

  def body(x_BTD, layer):
    w, kind = layer
    if kind is None:
      kind, attend_here = 0, functools.partial(attend, window=window_of_kind[0])
    else:
      attend_here = _switched(attend, kind, window_of_kind)
    x_BTD, _ = _layer(x_BTD, w, LayerInputs(_angles_of(angles, kind), attend_here, None), spec)
    return x_BTD, None

  if REMAT[spec.remat] is not None:
    body = jax.checkpoint(body, policy=REMAT[spec.remat])
  kind_N = jnp.array(spec.kind_of_layer, jnp.int32) if len(kinds) > 1 else None
  x_BTD, _ = jax.lax.scan(body, x_BTD, (layer_weights, kind_N), unroll=spec.unroll)
  return x_BTD


def _switched(attend: Attend, kind: jax.Array, window_of_kind: Sequence[int]) -> AttendInLayer:
  """Returns attention with the window of a layer whose kind, an index in these, is known on the device alone."""
  windows = sorted(set(window_of_kind))
  if len(windows) == 1:
    return functools.partial(attend, window=windows[0])
  branches = [functools.partial(attend, window=window) for window in windows]
  branch_of_kind = jnp.array([windows.index(window) for window in window_of_kind], jnp.int32)

  def attend_here(q_BHTh, k_BKTh, v_BKTh, entry):
    return jax.lax.switch(branch_of_kind[kind], branches, q_BHTh, k_BKTh, v_BKTh, entry)

  return attend_here
