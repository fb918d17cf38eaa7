"""The weights as sampling reads them: in the compute dtype or 8 bits, an array a layer, laid out on sampling's mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxrlvr.device import sharding
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.spec import Leaf, Spec, leaves


def places(spec: Spec, mesh: jax.sharding.Mesh, int8: tuple[str, ...] = ()) -> dict:
  """Returns where the weights that `lay_out_weights` makes lie."""

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
  """Returns the program that makes sampling's weights of the masters, on sampling's mesh if one is given.

  They are in the compute dtype, or in 8 bits with "weights" in `int8`. Each layer's weight becomes an array by itself,
  which a decode step reads without a copy.
  """
  table = leaves(spec)

  def make(w, leaf: Leaf):
    return quantise(w, leaf.summed) if "weights" in int8 and leaf.summed else w.astype(spec.dtype)

  def laid_out(params):
    weights = {}
    for name, w in params.items():
      leaf = table[name]
      weights[name] = tuple(make(w[i], leaf) for i in range(spec.layers)) if leaf.layered else make(w, leaf)
    return weights

  return jax.jit(laid_out, out_shardings=places(spec, mesh, int8) if mesh else None)
