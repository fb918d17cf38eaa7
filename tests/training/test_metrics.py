"""Metrics of updates, merged over microbatches and over updates by their types."""

import jax.numpy as jnp
import numpy as np

from jaxrlvr.training.metrics import Maximum, Sum, WeightedMean, merge, values_of


def metrics_of(total, weight, largest):
  values = [jnp.float32(x) for x in (total, weight, largest)]
  return {"sum": Sum(values[0]), "mean": WeightedMean(*values[:2]), "max": Maximum(values[2])}


ONE, TWO, NOTHING = metrics_of(3.0, 2.0, 5.0), metrics_of(1.0, 6.0, 7.0), metrics_of(0.0, 0.0, 0.0)


def test_micro_batches_are_merged_before_anything_is_divided():
  merged = values_of(merge(merge(NOTHING, ONE), TWO))
  assert merged == {"sum": 4.0, "mean": 0.5, "max": 7.0}
  assert values_of(merge(TWO, ONE)) == merged


def test_updates_count_alike_and_those_without_a_value_not_at_all():
  values = values_of(ONE, NOTHING, TWO)
  np.testing.assert_allclose(values["sum"], 4 / 3, rtol=1e-6)
  np.testing.assert_allclose(values["mean"], (3 / 2 + 1 / 6) / 2, rtol=1e-6)
  assert values["max"] == 7.0
  assert np.isnan(values_of(NOTHING)["mean"]) and np.isnan(values_of(NOTHING, NOTHING)["mean"])
