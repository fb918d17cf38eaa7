"""Metrics of updates, which can be combined: over microbatches, and over the updates of a step.

The interface follows clu.metrics: `merge` two, `compute` the value. clu itself is not needed to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct


class Metric:
  """What every metric does. With zeros in all fields it is the metric of no microbatch."""

  def merge(self, other: Self) -> Self:
    """Returns the metric of both microbatches together."""
    raise NotImplementedError

  def compute(self) -> jax.Array:
    """Returns the value; NaN where there is none."""
    raise NotImplementedError

  @classmethod
  def over_updates(cls, several: Sequence[Self]) -> jax.Array:
    """Returns the mean of the values of several updates; NaNs are left out."""
    return jnp.nanmean(jnp.stack([metric.compute() for metric in several]))


@struct.dataclass
class Sum(Metric):
  """A sum of the microbatches' shares, which are weighted by the weights of the whole update."""

  total: jax.Array

  def merge(self, other: Sum) -> Sum:
    return Sum(self.total + other.total)

  def compute(self) -> jax.Array:
    return self.total


@struct.dataclass
class WeightedMean(Metric):
  """A weighted mean over the microbatches; its weights may sum to less than those of the loss."""

  total: jax.Array
  weight: jax.Array

  def merge(self, other: WeightedMean) -> WeightedMean:
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def compute(self) -> jax.Array:
    return self.total / self.weight


@struct.dataclass
class Maximum(Metric):
  """The largest value, none negative, over microbatches and updates."""

  value: jax.Array

  def merge(self, other: Maximum) -> Maximum:
    return Maximum(jnp.maximum(self.value, other.value))

  def compute(self) -> jax.Array:
    return self.value

  @classmethod
  def over_updates(cls, several: Sequence[Maximum]) -> jax.Array:
    return jnp.max(jnp.stack([metric.value for metric in several]))


def merge(metrics: dict[str, Metric], others: dict[str, Metric]) -> dict[str, Metric]:
  """Merges the metrics of two microbatches, which have the same names."""
  return {name: metric.merge(others[name]) for name, metric in metrics.items()}


@jax.jit
def values_of(*updates: dict[str, Metric]) -> dict[str, jax.Array]:
  """Returns the value of each metric by name: of one update, or over the several updates of a step."""
  first, *others = updates
  if not others:
    return {name: metric.compute() for name, metric in first.items()}
  return {name: metric.over_updates([update[name] for update in updates]) for name, metric in first.items()}
