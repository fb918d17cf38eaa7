"""The table of a policy's weights (`leaves`), from which init, sharding, import, export and checkpoints derive."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model import families
from jaxrlvr.model.spec import Leaf, Spec, adapter_names


def leaves(spec: Spec) -> dict[str, Leaf]:
  """Returns every weight of the policy by name, as its family's table says; adapters are not among them.

  From this table init, sharding, import, export and checkpoints derive. Each family has the weights embed and
  final_norm, and head unless `spec.tied`. Raises InputError for a family that can't be found.
  """
  return families.family_of(spec.family).leaves(spec)


def adapter_leaves(spec: Spec) -> dict[str, Leaf]:
  """Returns the adapters of a policy by name; {} without `spec.lora`.

  A target NAME, whose weight in a layer has the shape [*inputs, *outputs], has the adapters NAME_lora_a, of shape
  [N, *inputs, rank], and NAME_lora_b, of shape [N, rank, *outputs]. They are sharded as the target, and the rank is not
  split. Raises InputError for a target that is no weight of the layers, or has no inputs, as norms and biases.
  """
  if spec.lora is None:
    return {}
  table, adapters = leaves(spec), {}
  rank = spec.lora.rank
  for target in spec.lora.targets:
    if target not in table or not table[target].layered or not table[target].input_axes:
      known = [name for name, leaf in table.items() if leaf.layered and leaf.input_axes]
      raise InputError(f"targets of LoRA: {target!r} is no weight that layers multiply with; take {', '.join(known)}")
    leaf = table[target]
    inputs = 1 + len(leaf.input_axes)  # axes of the layers and of the inputs
    name_a, name_b = adapter_names(target)
    shape_a, axes_a = (*leaf.shape[:inputs], rank), (*leaf.axes[:inputs], None)
    shape_b, axes_b = (leaf.shape[0], rank, *leaf.shape[inputs:]), ("layers", None, *leaf.axes[inputs:])
    adapters[name_a] = Leaf(shape_a, axes_a, leaf.fan_in, leaf.hf_name)
    adapters[name_b] = Leaf(shape_b, axes_b, rank, leaf.hf_name)
  return adapters


def shardings(spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.sharding.NamedSharding]:
  """Returns the sharding on the mesh of each weight, by its name in `leaves`, as `Leaf.axes` states it.

  KV heads that attention repeats (`sharding.kv_copies`) are not split: each device holds all of them. Raises
  InputError, naming weight and axis, where the mesh doesn't split a weight evenly.
  """
  sharding_of = {}
  for name, leaf in leaves(spec).items():
    sharding_of[name] = sharding.checked_sharding(mesh, name, leaf.shape, leaf.axes)
  return sharding_of


def count_weights(spec: Spec) -> int:
  """Returns how many numbers the policy's weights have in all; a tied head and the padding rows count once."""
  return sum(math.prod(leaf.shape) for leaf in leaves(spec).values())


def init(spec: Spec, key: jax.Array) -> dict[str, jax.Array]:
  """Returns fresh float32 weights, by their names in `leaves`: normal with variance 1/fan_in, norms 1, biases 0.

  Call it inside jit, with `shardings` as the shardings of the result, so that no device holds all weights. All are
  pieces of one flat draw, because a draw for each weight takes 14 times as long to compile.
  """
  flat = jax.random.normal(key, (count_weights(spec),))
  params, start = {}, 0
  for name, leaf in leaves(spec).items():
    size = math.prod(leaf.shape)
    draw = flat[start : start + size].reshape(leaf.shape)
    start += size
    if leaf.fan_in is None:
      params[name] = jnp.full(leaf.shape, leaf.constant, jnp.float32)
    else:
      params[name] = draw / leaf.fan_in**0.5
  return params
