"""The weights that sampling reads: in the compute dtype or 8 bits, one array a layer, sharded on sampling's mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax

from jaxrlvr.device import sharding
from jaxrlvr.model.int8 import Int8, quantise
from jaxrlvr.model.spec import Leaf, Spec
from jaxrlvr.model.weight_table import adapter_leaves, leaves


def weight_shardings(
  spec: Spec, mesh: jax.sharding.Mesh, int8: tuple[str, ...] = (), *, adapters: bool = False
) -> dict:
  """Returns the sharding of each array of sampling's weights on `mesh`, a tree like that of `lay_out_weights`.

  Keys are names of weights; adapters: those of the adapters of `spec.lora`, else those of all other weights. A value is
  a NamedSharding, or an Int8 of two of them for a weight in 8 bits; of a weight that each layer has, a tuple with one
  of these for each layer. `int8`: as in `Sampling.int8`. Raises InputError if the mesh can't split an array evenly.
  """

  def sharding_of(name: str, leaf: Leaf):
    shape, axes = leaf.layer_shape, leaf.layer_axes
    place: Any = sharding.checked_sharding(mesh, name, shape, axes)
    if name in _in_8_bits(spec, int8):
      scale_shape = tuple(1 if i in leaf.input_axes else n for i, n in enumerate(shape))
      scale_axes = tuple(None if i in leaf.input_axes else axis for i, axis in enumerate(axes))
      scale_place: Any = sharding.checked_sharding(mesh, name, scale_shape, scale_axes)
      place = Int8(place, scale_place)
    return (place,) * spec.layers if leaf.layered else place

  table = adapter_leaves(spec) if adapters else leaves(spec)
  return {name: sharding_of(name, leaf) for name, leaf in table.items()}


def _in_8_bits(spec: Spec, int8: tuple[str, ...]) -> list[str]:
  """Returns the names of the weights that sampling reads in 8 bits: none, or those that products read, not adapters."""
  if "weights" not in int8:
    return []
  return [name for name, leaf in leaves(spec).items() if leaf.input_axes]


@functools.lru_cache
def lay_out_weights(
  spec: Spec, mesh: jax.sharding.Mesh | None = None, int8: tuple[str, ...] = (), *, adapters: bool = False
) -> jax.stages.Wrapped:
  """Returns a jitted function: it takes the master weights {name: array} and returns the weights that sampling reads.

  These have the same names. A weight that each layer has becomes a tuple, an array for each layer, which a decode step
  reads without a copy. Arrays are in the compute dtype; with "weights" in `int8` (as in `Sampling.int8`), those that
  products read are Int8, in 8 bits, except adapters. They are sharded on `mesh` as `weight_shardings` says, and then
  the function takes the adapters of `spec.lora` alone (`adapters`), or all other weights. With None it takes any
  weights, and they stay where the master weights lie.
  """
  table = leaves(spec) | adapter_leaves(spec)
  in_8_bits = _in_8_bits(spec, int8)

  def convert(w, name: str):
    return quantise(w, table[name].input_axes) if name in in_8_bits else w.astype(spec.dtype)

  def laid_out(params):
    weights = {}
    for name, w in params.items():
      if table[name].layered:
        weights[name] = tuple(convert(w[layer], name) for layer in range(spec.layers))
      else:
        weights[name] = convert(w, name)
    return weights

  return jax.jit(laid_out, out_shardings=weight_shardings(spec, mesh, int8, adapters=adapters) if mesh else None)


class FrozenWeights:
  """Weights that training leaves as they are, with their copy for sampling, which samplers of one layout share."""

  def __init__(self, weights: dict[str, jax.Array]):
    """weights: by name, on the mesh of training; {}: all weights are trained."""
    self.weights = weights
    self._lay_out: jax.stages.Wrapped | None = None  # the function that has made the copy
    self._laid_out: dict[str, Any] = {}

  def laid_out(self, lay_out: jax.stages.Wrapped) -> dict[str, Any]:
    """Returns the copy that `lay_out`, from `lay_out_weights`, makes of the weights.

    It is made once, and kept until a copy of another layout takes its place.
    """
    if self.weights and lay_out is not self._lay_out:
      self._laid_out = {}  # frees the former copy before the new one is made
      self._laid_out = lay_out(self.weights)
      self._lay_out = lay_out
    return self._laid_out
