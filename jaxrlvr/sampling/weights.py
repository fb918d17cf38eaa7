"""The weights that sampling reads: in the compute dtype or 8 bits, one array a layer, sharded on sampling's mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxrlvr.device import sharding
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.spec import Leaf, Spec, leaves


def places(spec: Spec, mesh: jax.sharding.Mesh, int8: tuple[str, ...] = ()) -> dict:
  """Returns the shardings, on sampling's mesh, of the weights of `lay_out_weights`, as a tree like these."""

  def place(name: str, leaf: Leaf):
    shape, axes = (leaf.shape[1:], leaf.axes[1:]) if leaf.layered else (leaf.shape, leaf.axes)
    there: Any = sharding.place(mesh, name, shape, axes)
    if "weights" in int8 and leaf.summed:
      scale_shape = tuple(1 if i in leaf.summed else n for i, n in enumerate(shape))
      scale_axes = tuple(None if i in leaf.summed else axis for i, axis in enumerate(axes))
      of_scale: Any = sharding.place(mesh, name, scale_shape, scale_axes)
      there = Int8(there, of_scale)
    return (there,) * spec.layers if leaf.layered else there

  return {name: place(name, leaf) for name, leaf in leaves(spec).items()}


@functools.lru_cache
def lay_out_weights(
  spec: Spec, mesh: jax.sharding.Mesh | None = None, int8: tuple[str, ...] = ()
) -> jax.stages.Wrapped:
  """Returns a compiled function from master weights to sampling's weights, on `mesh` if there is one.

  These are in the compute dtype, or in 8 bits with "weights" in `int8`. A weight of layers becomes a tuple, an array
  for each layer, which a decode step reads without a copy.
  """
  table = leaves(spec)

  def convert(w, leaf: Leaf):
    if "weights" in int8 and leaf.summed:
      return quantise(w, leaf.summed)
    return w.astype(spec.dtype)

  def laid_out(params):
    weights = {}
    for name, w in params.items():
      leaf = table[name]
      if leaf.layered:
        weights[name] = tuple(convert(w[layer], leaf) for layer in range(spec.layers))
      else:
        weights[name] = convert(w, leaf)
    return weights

  return jax.jit(laid_out, out_shardings=places(spec, mesh, int8) if mesh else None)
