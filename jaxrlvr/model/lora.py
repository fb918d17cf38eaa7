"""Low-rank adapters (LoRA, Hu et al. 2021): their first values, their shardings, and weights with them merged in."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model.spec import Leaf, Spec, adapter_names
from jaxrlvr.model.weight_table import adapter_leaves, leaves


def trained_leaves(spec: Spec) -> dict[str, Leaf]:
  """Returns the weights that training changes, by name: the adapters of `spec.lora`, or all weights without it."""
  return leaves(spec) if spec.lora is None else adapter_leaves(spec)


def trained_shardings(spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.sharding.NamedSharding]:
  """Returns the sharding on the mesh of each weight of `trained_leaves` by name, as `Leaf.axes` states it.

  Raises InputError, naming weight and axis, where the mesh doesn't split one evenly.
  """
  sharding_of = {}
  for name, leaf in trained_leaves(spec).items():
    sharding_of[name] = sharding.checked_sharding(mesh, name, leaf.shape, leaf.axes)
  return sharding_of


def count_adapters(spec: Spec) -> int:
  """Returns how many numbers the adapters of `spec.lora` have in all; 0 without it."""
  return sum(math.prod(leaf.shape) for leaf in adapter_leaves(spec).values())


def check_rank(spec: Spec) -> None:
  """Raises InputError where the rank of `spec.lora` is above the inputs or the outputs of one of its targets.

  Adapters of such a rank have more numbers than it takes to change the whole weight.
  """
  for target in spec.lora.targets if spec.lora else ():
    leaf = leaves(spec)[target]
    inputs, outputs = leaf.fan_in or 1, math.prod(leaf.layer_shape) // (leaf.fan_in or 1)
    if spec.lora.rank > min(inputs, outputs):
      raise InputError(
        f"rank of LoRA = {spec.lora.rank}: is above {min(inputs, outputs)}, the smaller side of {target} "
        f"[{inputs}, {outputs}]; lower it"
      )


def init_adapters(spec: Spec, key: jax.Array) -> dict[str, jax.Array]:
  """Returns fresh float32 adapters by their names in `adapter_leaves`, with which the policy is its base.

  As PEFT does, a is uniform within +-1 / sqrt(inputs), and b is 0. All a are pieces of one flat draw. Call it inside
  jit, with `trained_shardings` as the shardings of the result; the numbers do not depend on them.
  """
  table = adapter_leaves(spec)
  names_a = [adapter_names(target)[0] for target in spec.lora.targets]
  sizes = [math.prod(table[name].shape) for name in names_a]
  flat = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
  adapters = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in table.items()}
  start = 0
  for name, size in zip(names_a, sizes, strict=True):
    leaf = table[name]
    adapters[name] = flat[start : start + size].reshape(leaf.shape) / leaf.fan_in**0.5
    start += size
  return adapters


def merge_adapters(params: Mapping[str, jax.Array], spec: Spec) -> dict[str, jax.Array]:
  """Returns all weights of the base, by their names in `leaves`, with the adapters added: float32, sharded as before.

  params: the weights and the adapters of `spec.lora`, by name, in any dtype. On several hosts all processes must call
  it together.
  """
  return {name: merged_weight(name, params, spec) for name in leaves(spec)}


def merged_weight(name: str, params: Mapping[str, jax.Array], spec: Spec) -> jax.Array:
  """Returns one weight of `merge_adapters`, w + alpha / rank * a @ b, or just w in float32 where it is no target."""
  weight = params[name]
  if spec.lora is None or name not in spec.lora.targets:
    return _wide(weight)
  a, b = (params[adapter] for adapter in adapter_names(name))
  return _with_product(weight.sharding)(weight, a, b, spec.lora.scale)


@jax.jit
def _wide(weight: jax.Array) -> jax.Array:
  """Returns the weight in float32."""
  return weight.astype(jnp.float32)


@functools.lru_cache
def _with_product(place: jax.sharding.Sharding) -> jax.stages.Wrapped:
  """Returns the jitted function (w, a, b, scale) -> w + scale * a @ b in float32, whose result has this sharding."""

  def add(weight, a, b, scale):
    layers, rank = b.shape[:2]
    # In full float32: products of a TPU or GPU would otherwise round their inputs.
    product = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision=jax.lax.Precision.HIGHEST)
    return weight.astype(jnp.float32) + scale * product.reshape(weight.shape)

  return jax.jit(add, out_shardings=place)
