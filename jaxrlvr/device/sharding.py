"""Where arrays lie: the device mesh, and the one table from logical axes to mesh axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlvr.base.errors import InputError

AXES = ("data", "fsdp", "tensor")

ANY = P.UNCONSTRAINED  # in place of a logical axis: the compiler may choose

# Logical axis -> mesh axes. Axes that are not named here are not split.
RULES = {
  "batch": ("data", "fsdp"),
  "copies": "data",  # rows of what is split along "embed" too
  "everywhere": AXES,  # rows of work that no other axis shares
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
}


def make_mesh(
  data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | np.ndarray | None = None
) -> Mesh:
  """Mesh with axes (data, fsdp, tensor); one size may be -1: what is left of the devices."""
  devices = np.asarray(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  known = int(np.prod([n for n in sizes if n != -1]))
  if sizes.count(-1) > 1 or known < 1 or devices.size % known or (-1 not in sizes and known != devices.size):
    raise InputError(
      f"mesh data={data} fsdp={fsdp} tensor={tensor}: does not cover {devices.size} devices; at most one may be -1 "
      "and the product of the others must divide the number of devices"
    )
  sizes = [devices.size // known if n == -1 else n for n in sizes]
  return Mesh(devices.reshape(sizes), AXES)


def sampling_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """The same devices for sampling: weights cut `tensor` ways and never gathered, rows split over what is left."""
  return make_mesh(data=-1, tensor=tensor, devices=mesh.devices.reshape(-1))


def spec(*axes) -> P:
  """PartitionSpec of an array whose dimensions carry these logical axes."""
  return P(*(axis if axis is ANY else RULES.get(axis) for axis in axes))


def named_sharding(mesh: Mesh | AbstractMesh, *axes: str | None) -> NamedSharding:
  return NamedSharding(mesh, spec(*axes))


def size(mesh: Mesh | AbstractMesh, axis: str | None) -> int:
  """Number of pieces that a logical axis is cut into."""
  names = RULES.get(axis) or ()
  return int(np.prod([mesh.shape[n] for n in ((names,) if isinstance(names, str) else names)]))


def size_here(axis: str) -> int:
  """`size` on the mesh of `jax.set_mesh`; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else size(mesh, axis)


def kv_copies(kv_heads: int, pieces: int) -> int:
  """How often each KV head is repeated so that every one of `pieces` devices along `tensor` has one of its own."""
  return pieces // kv_heads if pieces % kv_heads == 0 else 1


def place(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
  """Where an array lies; KV heads fewer than their pieces stay whole, and attention repeats them (`kv_copies`)."""
  pairs = zip(shape, axes, strict=True)
  axes = tuple(None if a == "kv_heads" and kv_copies(n, size(mesh, a)) > 1 else a for n, a in pairs)
  check_divisible(mesh, name, shape, axes)
  return named_sharding(mesh, *axes)


def check_divisible(mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> None:
  """Raises InputError, naming leaf, axis and numbers, where a dimension can't be split evenly."""
  for length, axis in zip(shape, axes, strict=True):
    if length % size(mesh, axis):
      raise InputError(
        f"{name}: axis {axis!r} has size {length}, not divisible by {size(mesh, axis)} (mesh {dict(mesh.shape)}); "
        f"lower {' * '.join(np.atleast_1d(RULES[axis]))} in config.mesh or change the size"
      )


def constrain(x: jax.Array, *axes) -> jax.Array:
  """Pins x to its logical axes under `jax.set_mesh`; without a mesh it is x."""
  return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec(*axes))


def split_rows(tree: Any, parts: int, block: int = 1) -> Any:
  """Arrays [B, ...] as [parts, B/parts, ...]; blocks of rows are dealt out in turn: every part is on every device."""

  def split(x):
    x = x.reshape(-1, parts, block, *x.shape[1:]).swapaxes(0, 1)
    return constrain(x.reshape(parts, -1, *x.shape[3:]), None, "batch", *[None] * (x.ndim - 3))

  return jax.tree.map(split, tree)


def part(parts: Any, i: int | jax.Array) -> Any:
  """Part number i of what `split_rows` made."""
  return jax.tree.map(lambda x: constrain(x[i], "batch", *[None] * (x.ndim - 2)), parts)


def join_rows(tree: Any, block: int = 1) -> Any:
  """The inverse of `split_rows`."""

  def join(x):
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:]).swapaxes(0, 1)
    return constrain(x.reshape(-1, *x.shape[3:]), "batch", *[None] * (x.ndim - 3))

  return jax.tree.map(join, tree)
