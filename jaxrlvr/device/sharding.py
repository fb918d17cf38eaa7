"""Shardings: the device mesh, the table from logical axes to mesh axes, and rows split into microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlvr.base.errors import InputError

AXES = ("data", "fsdp", "tensor")

ANY = P.UNCONSTRAINED  # in the place of a logical axis: the compiler may choose the sharding

# Mesh axes of each logical axis. A logical axis that is not named here is not split.
RULES = {
  "batch": ("data", "fsdp"),
  "copies": "data",  # rows of an array that is split along "embed" too
  "everywhere": AXES,  # rows of an array that is split along no other axis
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
}


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | np.ndarray | None = None
) -> Mesh:
  """Returns a mesh of the devices (None: all) with axes data, fsdp and tensor of these sizes.

  One size may be -1: the number of devices divided by the other sizes. Raises InputError where the sizes don't cover
  the devices exactly.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  known = int(np.prod([n for n in sizes if n != -1]))
  open_sizes = sizes.count(-1)
  if open_sizes > 1 or known < 1 or devices.size % known or (not open_sizes and known != devices.size):
    raise InputError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor}: does not cover {devices.size} devices; at most one may be -1 "
      "and the product of the others must divide the number of devices"
    )
  sizes = [devices.size // known if n == -1 else n for n in sizes]
  return Mesh(devices.reshape(sizes), AXES)


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """Returns a mesh of the same devices for sampling: weights in `tensor` shards, rows over all other devices.

  Its fsdp axis has size 1, so that decoding gathers no weight.
  """
  return make_mesh(data=-1, tensor=tensor, devices=mesh.devices.reshape(-1))


def spec(*axes) -> P:
  """Returns the PartitionSpec of an array whose dimensions have these logical axes: keys of RULES, None or ANY."""
  return P(*(axis if axis is ANY else RULES.get(axis) for axis in axes))


def named_sharding(mesh: Mesh | AbstractMesh, *axes: str | None) -> NamedSharding:
  """Returns the sharding, on the mesh, of an array whose dimensions have these logical axes."""
  return NamedSharding(mesh, spec(*axes))


def size(mesh: Mesh | AbstractMesh, axis: str | None) -> int:
  """Returns how many shards the mesh cuts a logical axis into; 1 for None and axes that RULES lacks."""
  mesh_axes = RULES.get(axis) or ()
  if isinstance(mesh_axes, str):
    mesh_axes = (mesh_axes,)
  return int(np.prod([mesh.shape[name] for name in mesh_axes]))


def size_here(axis: str) -> int:
  """Returns `size` on the mesh that `jax.set_mesh` has set; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else size(mesh, axis)


def kv_copies(kv_heads: int, shards: int) -> int:
  """Returns how often attention repeats each KV head, so that each of `shards` shards along `tensor` has one.

  1 where `shards` is no multiple of `kv_heads`: the KV heads are then split, or `place` refuses them.
  """
  return shards // kv_heads if shards % kv_heads == 0 else 1


def place(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
  """Returns the sharding of an array whose dimensions have these logical axes.

  Fewer KV heads than shards are not split: every device holds all, and attention repeats them (`kv_copies`). Raises
  InputError, with `name`, where a dimension can't be split evenly.
  """
  split_axes: list[str | None] = []
  for length, axis in zip(shape, axes, strict=True):
    is_repeated = axis == "kv_heads" and kv_copies(length, size(mesh, axis)) > 1
    split_axes.append(None if is_repeated else axis)
  check_divisible(mesh, name, shape, tuple(split_axes))
  return named_sharding(mesh, *split_axes)


def check_divisible(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> None:
  """Raises InputError, naming array, axis and sizes, where a dimension can't be split evenly."""
  for length, axis in zip(shape, axes, strict=True):
    if length % size(mesh, axis):
      raise InputError(
        f"{name}: axis {axis!r} has size {length}, not divisible by {size(mesh, axis)} (mesh {dict(mesh.shape)}); "
        f"lower {' * '.join(np.atleast_1d(RULES[axis]))} in config.mesh or change the size"
      )


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Returns x, constrained to the sharding of these logical axes on the mesh of `jax.set_mesh`, if there is one."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*axes))


def split_rows(tree: Any, parts: int, block: int = 1) -> Any:
  """Splits every array [B, ...] of the tree into microbatches: [parts, B/parts, ...].

  Blocks of `block` rows are dealt out in turn, so that every device holds an equal share of every part.
  """

  def split(x):
    rest = x.shape[1:]
    dealt = x.reshape(-1, parts, block, *rest).swapaxes(0, 1)
    return constrain(dealt.reshape(parts, -1, *rest), None, "batch", *[None] * len(rest))

  return jax.tree.map(split, tree)


def part(parts: Any, i: int | jax.Array) -> Any:
  """Returns microbatch number i, arrays [B/parts, ...], of the tree that `split_rows` returned."""
  return jax.tree.map(lambda x: constrain(x[i], "batch", *[None] * (x.ndim - 2)), parts)


def join_rows(tree: Any, block: int = 1) -> Any:
  """Joins microbatches [parts, N, ...] to one batch [parts * N, ...], with the rows in their order before `split_rows`.

  `block` must be that of `split_rows`. The result is sharded over "batch".
  """

  def join(x):
    parts, rest = x.shape[0], x.shape[2:]
    blocks = x.reshape(parts, -1, block, *rest).swapaxes(0, 1)
    return constrain(blocks.reshape(-1, *rest), "batch", *[None] * len(rest))

  return jax.tree.map(join, tree)
