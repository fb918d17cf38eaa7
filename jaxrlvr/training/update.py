"""One optimiser update from a batch cut into micro-batches, whose size never changes the gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxrlvr.device import sharding
from jaxrlvr.training.metrics import Maximum, Metric, Sum, WeightedMean, merge


@struct.dataclass
class TrainState:
  params: dict[str, jax.Array]  # float32 masters
  opt_state: optax.OptState
  updates: jax.Array  # updates asked for, the skipped ones included
  skipped: jax.Array  # updates left out because loss or gradient was not finite
  skipped_in_a_row: jax.Array


# (params, micro-batch) -> (its share of the loss, its metrics)
LossFn = Callable[[dict, Any], tuple[jax.Array, dict[str, Metric]]]


def init_state(params: dict[str, jax.Array], optimizer: optax.GradientTransformation) -> TrainState:
  return TrainState(params, optimizer.init(params), *(jnp.zeros((), jnp.int32) for _ in range(3)))


def accumulate(
  loss_fn: LossFn, params: dict[str, jax.Array], batch: Any, microbatches: int, live: jax.Array | int | None = None
) -> tuple[dict[str, jax.Array], jax.Array, dict[str, Metric]]:
  """(gradient, loss, metrics) of a whole batch, as the sum over the first `live` (None: all) of its `microbatches`.

  The weights inside the batch are those of the whole batch, so parts add up and nothing is divided here. How many are
  live may be a traced number: what the others hold costs no time.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if microbatches == 1:
    (loss, metrics), gradient = grad_fn(params, batch)
    return gradient, loss, metrics

  parts = sharding.split_rows(batch, microbatches)

  def step(i, carry):
    (loss, metrics), gradient = grad_fn(params, sharding.part(parts, i))
    return jax.tree.map(jnp.add, carry[0], gradient), carry[1] + loss, merge(carry[2], metrics)

  first = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))
  (loss, metrics), gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
  return jax.lax.fori_loop(0, microbatches if live is None else live, step, (gradient, loss, metrics))


@functools.partial(jax.jit, static_argnames=("loss_fn", "optimizer", "microbatches"), donate_argnames="state")
def update(
  state: TrainState,
  batch: Any,
  rate: jax.Array,
  live: jax.Array | None = None,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  microbatches: int = 1,
) -> tuple[TrainState, dict[str, Metric]]:
  """Returns (new state, metrics by name) after one step of learning rate `rate` on the first `live` micro-batches.

  A non-finite loss or gradient changes no weight and no moment; it is counted.
  """
  gradient, loss, metrics = accumulate(loss_fn, state.params, batch, microbatches, live)
  norm = optax.tree.norm(gradient)
  good = jnp.isfinite(norm) & jnp.isfinite(loss)
  change, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  fresh = (jax.tree.map(lambda w, step: w - rate * step, state.params, change), opt_state)
  params, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), fresh, (state.params, state.opt_state))
  state = TrainState(
    params,
    opt_state,
    updates=state.updates + 1,
    skipped=state.skipped + ~good,
    skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
  )
  return state, metrics | {
    "loss": Sum(loss),
    "grad_norm": WeightedMean(norm, jnp.ones_like(norm)),
    "learning_rate": Maximum(jnp.where(good, rate, 0.0)),
    "skipped_updates": Maximum(state.skipped),
    "skipped_in_a_row": Maximum(state.skipped_in_a_row),
  }
