"""How a batch is split over the cores of a CPU: each thread samples some of the problems."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrlvr.sampling.types import Batch, Rollout

_ROWS = 64  # rows of a thread, at least


def count(weights: dict, problems: int, group: int) -> int:
  """Returns into how many parts to split a batch: on a CPU one for each core, if each has enough rows.

  Most of a decode step is too small for XLA to share out between cores. On other devices, and where a mesh splits the
  batch, it is 1.
  """
  (device, *others) = jax.tree.leaves(weights)[0].sharding.device_set
  if device.platform != "cpu" or others:
    return 1
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  for parts in range(min(cores, problems), 1, -1):
    if problems % parts == 0 and problems // parts * group >= _ROWS:
      return parts
  return 1


@functools.partial(jax.jit, static_argnums=2)
def split(batch: Batch, stops: jax.Array, parts: int) -> tuple[list[Batch], jax.Array]:
  """Returns equal parts of a batch, and the stop-string automaton; all are arrays on the device."""
  pieces = [jnp.split(x, parts) for x in batch]
  return [Batch(*part) for part in zip(*pieces, strict=True)], stops


@jax.jit
def join(rollouts: Sequence[Rollout]) -> Rollout:
  """Returns the responses of all parts, in their order."""
  return jax.tree.map(lambda *x: jnp.concatenate(x), *rollouts)


def sample_each(sample_part: Callable[[Batch], Rollout], batches: Sequence[Batch]) -> list[Rollout]:
  """Returns the responses to each batch, sampled by a thread of its own in the caller's mesh."""
  mesh = jax.sharding.get_mesh()  # a thread knows neither mesh nor guard

  def run(batch: Batch) -> Rollout:
    with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh), jax.transfer_guard("disallow"):
      return sample_part(batch)

  with concurrent.futures.ThreadPoolExecutor(len(batches)) as pool:
    return list(pool.map(run, batches))
