"""One optimizer update from a batch cut into microbatches; their size does not change the gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.training.metrics import Maximum, Metric, Sum, WeightedMean, merge


@struct.dataclass
class TrainState:
  """What an update changes. The three counters are int32 scalars on the device."""

  params: dict[str, jax.Array]  # float32 master weights that are trained, by name
  opt_state: optax.OptState  # moments of the optimizer
  updates: jax.Array  # number of updates, skipped ones included
  skipped: jax.Array  # number of updates skipped because loss or gradient was not finite
  skipped_in_a_row: jax.Array  # number of skipped updates since the last one that was not


# (all weights, batch or microbatch) -> (loss, metrics by name). The loss is a sum over tokens, each with its weight in
# the whole batch, so that the losses of microbatches add up to that of the batch.
LossFn = Callable[[dict, Any], tuple[jax.Array, dict[str, Metric]]]


def init_state(params: dict[str, jax.Array], optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state before the first update, with these weights (not copied) and all counters 0.

  Each counter is an array of its own, so that `update` can donate all of them.
  """
  return TrainState(
    params,
    optimizer.init(params),
    updates=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


class Accumulated(NamedTuple):
  """Gradient, loss and metrics of a batch, added up over its microbatches."""

  gradient: dict[str, jax.Array]  # by name of the weight, of those that are trained
  loss: jax.Array
  metrics: dict[str, Metric]


def accumulate(
  loss_fn: LossFn,
  params: dict[str, jax.Array],
  batch: Any,
  microbatches: int,
  live: jax.Array | int | None = None,
  frozen: Mapping[str, jax.Array] | None = None,
) -> Accumulated:
  """Computes gradient, loss and metrics of a batch, one microbatch after another.

  params: the weights to differentiate by. frozen: further weights, which have no gradient (None: there are none);
  loss_fn gets both in one dict. batch: what loss_fn takes, a tree of arrays with the same number of rows;
  `sharding.split_rows` cuts it into `microbatches`, which must divide the rows. live: how many microbatches to compute,
  from the first; the others must hold only padding (None: all). It may be traced, so that one program serves every
  number. With one microbatch `live` is not read. The result does not depend on the number of microbatches but for
  rounding, as loss functions only add up.
  """

  def loss_of_all(params, batch):
    return loss_fn({**(frozen or {}), **params}, batch)

  grad_fn = jax.value_and_grad(loss_of_all, has_aux=True)
  if microbatches == 1:
    (loss, metrics), gradient = grad_fn(params, batch)
    return Accumulated(gradient, loss, metrics)

  parts = sharding.split_rows(batch, microbatches)

  def add_microbatch(i, total: Accumulated) -> Accumulated:
    (loss, metrics), gradient = grad_fn(params, sharding.microbatch(parts, i))
    return Accumulated(
      jax.tree.map(jnp.add, total.gradient, gradient), total.loss + loss, merge(total.metrics, metrics)
    )

  shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
  (loss, metrics), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  count = microbatches if live is None else live
  return jax.lax.fori_loop(0, count, add_microbatch, Accumulated(gradient, loss, metrics))


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "microbatches"), donate_argnames="state")
def update(
  state: TrainState,
  batch: Any,
  rate: jax.Array,
  live: jax.Array | None = None,
  frozen: Mapping[str, jax.Array] | None = None,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  microbatches: int = 1,
) -> tuple[TrainState, dict[str, Metric]]:
  """Updates the weights once; returns (new state, metrics by name). It is jitted, and the old state's arrays are gone.

  batch, microbatches, live, frozen: see `accumulate`; frozen weights stay as they are, and are not donated. rate:
  learning rate, a scalar. optimizer: from `optimizer.adamw`, which sees the trained weights alone.
  If the loss or the gradient's norm is not finite, weights and moments stay as they are and the update is counted as
  skipped. Metrics, for `metrics.values_of`: those of `loss_fn`, and loss, grad_norm (global, before clipping),
  learning_rate (0 if skipped), skipped_updates (of the run so far) and skipped_in_a_row.
  """
  gradient, loss, metrics = accumulate(loss_fn, state.params, batch, microbatches, live, frozen)
  norm = optax.tree.norm(gradient)
  is_finite = jnp.isfinite(norm) & jnp.isfinite(loss)
  change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  stepped = jax.tree.map(lambda w, step: w - rate * step, state.params, change)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(is_finite, new, old), (stepped, opt_state), (state.params, state.opt_state)
  )
  state = TrainState(
    params,
    opt_state,
    updates=state.updates + 1,
    skipped=state.skipped + ~is_finite,
    skipped_in_a_row=jnp.where(is_finite, 0, state.skipped_in_a_row + 1),
  )
  return state, metrics | {
    "loss": Sum(loss),
    "grad_norm": WeightedMean(norm, jnp.ones_like(norm)),
    "learning_rate": Maximum(jnp.where(is_finite, rate, 0.0)),
    "skipped_updates": Maximum(state.skipped),
    "skipped_in_a_row": Maximum(state.skipped_in_a_row),
  }
