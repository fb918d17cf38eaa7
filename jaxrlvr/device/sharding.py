"""Shardings: the device mesh, the table from logical axes to mesh axes, and rows split into microbatches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlvr.base.errors import InputError

# Axes of the mesh: rows are split along data and fsdp, weights along fsdp and tensor.
AXES = ("data", "fsdp", "tensor")

ANY = P.UNCONSTRAINED  # in the place of a logical axis: the compiler may choose how that dimension is split

# Mesh axes that each logical axis is split along. None and axes that are not named here, such as "layers": not split.
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
  """Returns a mesh of the devices (None: all of the run) with axes data, fsdp and tensor of these sizes.

  One size may be -1: it becomes the number of devices divided by the other sizes. Raises InputError where the sizes
  don't cover the devices exactly.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  open_sizes = sizes.count(-1)
  known = math.prod(size for size in sizes if size != -1)
  if open_sizes == 1:
    is_covered = known >= 1 and devices.size % known == 0
  else:
    is_covered = open_sizes == 0 and known == devices.size
  if not is_covered:
    raise InputError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor}: does not cover {devices.size} devices; at most one may be -1 "
      "and the product of the others must divide the number of devices"
    )
  sizes = [devices.size // known if size == -1 else size for size in sizes]
  return Mesh(devices.reshape(sizes), AXES)


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """Returns a mesh of the same devices for sampling, with sizes data = devices / tensor, fsdp = 1 and this `tensor`.

  Weights are cut into `tensor` shards, so that decoding gathers none, and rows are split over the groups of devices.
  Raises InputError where `tensor` doesn't divide the number of devices.
  """
  return make_mesh(data=-1, tensor=tensor, devices=mesh.devices.reshape(-1))


def spec(*axes) -> P:
  """Returns the PartitionSpec of an array whose dimensions have these logical axes.

  axes: one for each dimension, from the first on: "batch", "copies", "everywhere", "embed", "heads", "kv_heads", "mlp"
  or "vocab" (keys of RULES); None or any other name for a dimension that is not split; ANY to let the compiler choose.
  """
  mesh_axes = [ANY if axis is ANY else RULES.get(axis) for axis in axes]
  return P(*mesh_axes)


def named_sharding(mesh: Mesh | AbstractMesh, *axes: str | None) -> NamedSharding:
  """Returns the sharding, on the mesh, of an array whose dimensions have these logical axes, as `spec` takes them.

  Without axes: replicated on all devices. Nothing is checked; `checked_sharding` does.
  """
  return NamedSharding(mesh, spec(*axes))


def shard_count(mesh: Mesh | AbstractMesh, axis: str | None) -> int:
  """Returns into how many shards the mesh cuts a logical axis; 1 for None and for axes that are not split."""
  mesh_axes = RULES.get(axis) or ()
  if isinstance(mesh_axes, str):
    mesh_axes = (mesh_axes,)
  return int(np.prod([mesh.shape[name] for name in mesh_axes]))


def shards_here(axis: str) -> int:
  """Returns `shard_count` of a logical axis on the mesh that `jax.set_mesh` has set; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else shard_count(mesh, axis)


def kv_copies(kv_heads: int, shards: int) -> int:
  """Returns how often attention repeats each KV head, so that each of `shards` shards along `tensor` gets one.

  That is shards / kv_heads if it is a whole number, else 1: KV heads are then split, or can't be. 1: not repeated.
  """
  return shards // kv_heads if shards % kv_heads == 0 else 1


def checked_sharding(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
  """Returns the sharding of a weight of this shape, whose dimensions have these logical axes, as `spec` takes them.

  The dimension "kv_heads" is not split where attention copies KV heads (`kv_copies`): every device then holds all.
  Raises InputError, which begins with `name`, where another dimension can't be split evenly.
  """
  split_axes: list[str | None] = []
  for length, axis in zip(shape, axes, strict=True):
    if axis == "kv_heads" and kv_copies(length, shard_count(mesh, axis)) > 1:
      axis = None
    split_axes.append(axis)
  check_divisible(mesh, name, shape, tuple(split_axes))
  return named_sharding(mesh, *split_axes)


def check_divisible(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> None:
  """Raises InputError where the mesh doesn't split a dimension of this shape evenly along its logical axis.

  name: what the error begins with, such as a weight's name or a config key. The error also names axis and sizes.
  """
  for length, axis in zip(shape, axes, strict=True):
    shards = shard_count(mesh, axis)
    if length % shards:
      raise InputError(
        f"{name}: axis {axis!r} has size {length}, not divisible by {shards} (mesh {dict(mesh.shape)}); "
        f"lower {' * '.join(np.atleast_1d(RULES[axis]))} in config.mesh or change the size"
      )


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Returns x, constrained inside jit to the sharding of these logical axes, as `spec` takes them.

  The mesh is that of `jax.set_mesh`; without one x is returned unchanged.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*axes))


def split_rows(tree: Any, parts: int, block: int = 1) -> Any:
  """Returns the tree with every array [B, ...] cut into microbatches, [parts, B/parts, ...].

  Row i goes to microbatch i % parts: rows are dealt out in turn, so that every device, which holds adjacent rows, has
  an equal share of each microbatch. block: so many adjacent rows are dealt out together. B must be a multiple of
  parts * block. Works inside jit; microbatches are sharded over "batch" on the mesh of `jax.set_mesh`.
  """

  def split(x):
    row_shape = x.shape[1:]
    dealt = x.reshape(-1, parts, block, *row_shape).swapaxes(0, 1)
    return constrain(dealt.reshape(parts, -1, *row_shape), None, "batch", *[None] * len(row_shape))

  return jax.tree.map(split, tree)


def microbatch(microbatches: Any, i: int | jax.Array) -> Any:
  """Returns microbatch number i, a tree of arrays [B/parts, ...], of the tree that `split_rows` returned.

  i: from 0 to parts - 1; may be a traced number.
  """
  return jax.tree.map(lambda x: constrain(x[i], "batch", *[None] * (x.ndim - 2)), microbatches)


def join_rows(tree: Any, block: int = 1) -> Any:
  """Returns the tree with all microbatches [parts, N, ...] joined to batches [parts * N, ...]: undoes `split_rows`.

  Rows are in the order that they had before `split_rows`, whose `block` must be passed again. The result is sharded
  over "batch" on the mesh of `jax.set_mesh`.
  """

  def join(x):
    parts, row_shape = x.shape[0], x.shape[2:]
    blocks = x.reshape(parts, -1, block, *row_shape).swapaxes(0, 1)
    return constrain(blocks.reshape(-1, *row_shape), "batch", *[None] * len(row_shape))

  return jax.tree.map(join, tree)
