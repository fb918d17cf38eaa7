"""Metrics of updates, which can be combined: over the microbatches of an update, and over the updates of a step.

Each metric is a small tree of scalar arrays, so that jit and loops can carry it. The interface follows clu.metrics:
`merge` two metrics, `compute` the value. clu itself is not needed to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct


class Metric:
  """The interface of all metrics. A metric whose fields are all 0 is that of no microbatch: merging it changes
  nothing."""

  def merge(self, other: Self) -> Self:
    """Returns the metric of two microbatches, or of two sets of them, together; they belong to the same update."""
    raise NotImplementedError

  def compute(self) -> jax.Array:
    """Returns the value, a scalar; NaN where there is none, as for a mean over nothing."""
    raise NotImplementedError

  @classmethod
  def over_updates(cls, metrics: Sequence[Self]) -> jax.Array:
    """Returns one value for the updates of a step: here the mean of their values without NaNs; NaN if all are NaN."""
    return jnp.nanmean(jnp.stack([metric.compute() for metric in metrics]))


@struct.dataclass
class Sum(Metric):
  """A sum over the tokens of an update, each already multiplied by its weight in the loss, as the loss itself."""

  total: jax.Array

  def merge(self, other: Sum) -> Sum:
    """Returns the sum over both."""
    return Sum(self.total + other.total)

  def compute(self) -> jax.Array:
    """Returns the sum."""
    return self.total


@struct.dataclass
class WeightedMean(Metric):
  """A weighted mean over the tokens of an update, whose weights need not sum to 1."""

  total: jax.Array  # sum of weight * value
  weight: jax.Array  # sum of the weights

  def merge(self, other: WeightedMean) -> WeightedMean:
    """Returns the mean over both."""
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def compute(self) -> jax.Array:
    """Returns the mean; NaN where the weights sum to 0."""
    return self.total / self.weight


@struct.dataclass
class Maximum(Metric):
  """The largest of values that are not negative, over the microbatches of an update and the updates of a step."""

  value: jax.Array

  def merge(self, other: Maximum) -> Maximum:
    """Returns the larger of both."""
    return Maximum(jnp.maximum(self.value, other.value))

  def compute(self) -> jax.Array:
    """Returns the largest value; 0 for no microbatch."""
    return self.value

  @classmethod
  def over_updates(cls, metrics: Sequence[Maximum]) -> jax.Array:
    """Returns the largest value of all updates."""
    return jnp.max(jnp.stack([metric.value for metric in metrics]))


def merge(metrics: dict[str, Metric], others: dict[str, Metric]) -> dict[str, Metric]:
  """Merges the metrics of two microbatches by name; returns the merged ones. Both must have the same names."""
  return {name: metric.merge(others[name]) for name, metric in metrics.items()}


@jax.jit
def values_of(*updates: dict[str, Metric]) -> dict[str, jax.Array]:
  """Returns the value of each metric, a scalar on the device, by name.

  updates: the metrics of each update of a step, at least one, all with the same names. With several, a value is what
  the metric's `over_updates` says: mostly the mean over the updates.
  """
  first, *others = updates
  if not others:
    return {name: metric.compute() for name, metric in first.items()}
  return {name: metric.over_updates([update[name] for update in updates]) for name, metric in first.items()}
