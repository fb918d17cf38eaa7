"""Samples the parts of a batch on the cores of a CPU: each thread takes some of the problems."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrlvr.sampling.types import Batch, Rollout

_LEAST_ROWS = 64  # responses of a part


def part_count(weights: dict, problems: int, group: int) -> int:
  """Returns the number of equal parts to split a batch into, so that each core of a CPU samples one of them.

  It is at most the number of cores, divides `problems`, and leaves each part at least 64 responses, `group` a problem;
  else it is 1. It is also 1 if the arrays of `weights` lie on another kind of device or on several devices.
  Most of a decode step is too small for XLA to share out between cores.
  """
  (device, *others) = jax.tree.leaves(weights)[0].sharding.device_set
  if device.platform != "cpu" or others:
    return 1
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  for parts in range(min(cores, problems), 1, -1):
    if problems % parts == 0 and problems // parts * group >= _LEAST_ROWS:
      return parts
  return 1


@functools.partial(jax.jit, static_argnums=2)
def split(batch: Batch, stops: jax.Array, parts: int) -> tuple[list[Batch], jax.Array]:
  """Cuts a batch into `parts` batches of the same number of prompts, in order; returns (these batches, `stops`).

  The number of prompts must be a multiple of `parts`. stops: tokens that end a response. They are returned as they are,
  but on the device: threads, which run under a transfer guard, could not copy them from the host.
  """
  pieces = [jnp.split(x, parts) for x in batch]
  return [Batch(*part) for part in zip(*pieces, strict=True)], stops


@jax.jit
def join(rollouts: Sequence[Rollout]) -> Rollout:
  """Returns one rollout with the responses of all rollouts, in their order."""
  return jax.tree.map(lambda *x: jnp.concatenate(x), *rollouts)


def sample_each(sample_part: Callable[[Batch], Rollout], batches: Sequence[Batch]) -> list[Rollout]:
  """Returns `sample_part(batch)` of each batch, in their order; each call runs in a thread of its own.

  The threads use the mesh that is set in the caller's thread, and may not copy between host and device implicitly.
  """
  mesh = jax.sharding.get_mesh()  # a thread inherits neither the mesh nor the transfer guard

  def run(batch: Batch) -> Rollout:
    with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh), jax.transfer_guard("disallow"):
      return sample_part(batch)

  with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
    return list(pool.map(run, batches))
