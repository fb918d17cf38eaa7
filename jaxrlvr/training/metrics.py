"""Metrics of updates, as values that know how to combine: over micro-batches, and over the updates of a step.

The interface follows clu.metrics: `merge` two, `compute` the value. clu itself is not needed to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct


class Metric:
  """What each metric does. Zeros in all its fields are the metric of no micro-batch."""

  def merge(self, other: Self) -> Self:
    """Returns the metric of both micro-batches."""
    raise NotImplementedError

  def compute(self) -> jax.Array:
    """Returns the value; NaN where there is none."""
    raise NotImplementedError

  @classmethod
  def over_updates(cls, several: Sequence[Self]) -> jax.Array:
    """Returns the mean value of several updates, of those that have one."""
    return jnp.nanmean(jnp.stack([metric.compute() for metric in several]))


@struct.dataclass
class Sum(Metric):
  """Shares that add up: their weights are those of the whole update."""

  total: jax.Array

  def merge(self, other: Sum) -> Sum:
    return Sum(self.total + other.total)

  def compute(self) -> jax.Array:
    return self.total


@struct.dataclass
class WeightedMean(Metric):
  """A mean over what the micro-batches hold, which may be less than what the loss is weighted by."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: WeightedMean) -> WeightedMean:
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def compute(self) -> jax.Array:
    return self.total / self.weight


@struct.dataclass
class Maximum(Metric):
  """The largest of values from 0 on, over micro-batches and updates."""

  value: jax.Array

  def merge(self, other: Maximum) -> Maximum:
    return Maximum(jnp.maximum(self.value, other.value))

  def compute(self) -> jax.Array:
    return self.value

  @classmethod
  def over_updates(cls, several: Sequence[Maximum]) -> jax.Array:
    return jnp.max(jnp.stack([metric.value for metric in several]))


def merge(metrics: dict[str, Metric], others: dict[str, Metric]) -> dict[str, Metric]:
  """Returns the metrics of both micro-batches; both have the same names."""
  return {name: metric.merge(others[name]) for name, metric in metrics.items()}


@jax.jit
def values_of(*updates: dict[str, Metric]) -> dict[str, jax.Array]:
  """Returns the value of each metric of an update, or of the several updates of a step."""
  first, *others = updates
  if not others:
    return {name: metric.compute() for name, metric in first.items()}
  return {name: metric.over_updates([update[name] for update in updates]) for name, metric in first.items()}
