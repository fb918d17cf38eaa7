"""The weights that sampling reads: in the compute dtype or 8 bits, one array a layer, sharded on sampling's mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxrlvr.device import sharding
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.spec import Leaf, Spec
from jaxrlvr.model.weight_table import leaves


def weight_shardings(spec: Spec, mesh: jax.sharding.Mesh, int8: tuple[str, ...] = ()) -> dict:
  """Returns the sharding of each array of sampling's weights on `mesh`, a tree like that of `lay_out_weights`.

  Keys are names of weights. A value is a NamedSharding, or an Int8 of two of them for a weight in 8 bits; of a weight
  that each layer has, a tuple with one of these for each layer. `int8`: as in `Sampling.int8`.
  Raises InputError if the mesh can't split an array evenly.
  """

  def sharding_of(name: str, leaf: Leaf):
    shape, axes = leaf.layer_shape, leaf.layer_axes
    place: Any = sharding.checked_sharding(mesh, name, shape, axes)
    if "weights" in int8 and leaf.input_axes:
      scale_shape = tuple(1 if i in leaf.input_axes else n for i, n in enumerate(shape))
      scale_axes = tuple(None if i in leaf.input_axes else axis for i, axis in enumerate(axes))
      scale_place: Any = sharding.checked_sharding(mesh, name, scale_shape, scale_axes)
      place = Int8(place, scale_place)
    return (place,) * spec.layers if leaf.layered else place

  return {name: sharding_of(name, leaf) for name, leaf in leaves(spec).items()}


@functools.lru_cache
def lay_out_weights(
  spec: Spec, mesh: jax.sharding.Mesh | None = None, int8: tuple[str, ...] = ()
) -> jax.stages.Wrapped:
  """Returns a jitted function: it takes the master weights {name: array} and returns the weights that sampling reads.

  These have the same names. A weight that each layer has becomes a tuple, an array for each layer, which a decode step
  reads without a copy. Arrays are in the compute dtype; with "weights" in `int8` (as in `Sampling.int8`), those that
  products read are Int8, in 8 bits. They are sharded on `mesh` as `weight_shardings` says; with None they stay where
  the master weights lie.
  """
  table = leaves(spec)

  def convert(w, leaf: Leaf):
    if "weights" in int8 and leaf.input_axes:
      return quantise(w, leaf.input_axes)
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

  return jax.jit(laid_out, out_shardings=weight_shardings(spec, mesh, int8) if mesh else None)
