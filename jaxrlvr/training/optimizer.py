"""The optimizer, AdamW after clipping by global norm, and the table of learning-rate schedules."""

from __future__ import annotations

import functools

import numpy as np
import optax


def _constant(peak, warmup, steps, floor):
  if not warmup:
    return optax.constant_schedule(peak)
  return optax.schedules.warmup_constant_schedule(0.0, peak, warmup)


def _cosine(peak, warmup, steps, floor):
  first = 0.0 if warmup else peak
  return optax.warmup_cosine_decay_schedule(first, peak, warmup, max(steps, warmup + 1), floor * peak)


def _linear(peak, warmup, steps, floor):
  decay = optax.linear_schedule(peak, floor * peak, max(steps - warmup, 1))
  if not warmup:
    return decay
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


# Learning rate over updates, after a linear warm-up. Keys: values of `optim.schedule`.
SCHEDULES = {"constant": _constant, "cosine": _cosine, "linear": _linear}


def rates(name: str, peak: float, warmup: int, steps: int, floor: float) -> np.ndarray:
  """Returns the learning rate of each update of a run, [steps] float32.

  name: "constant", "cosine" or "linear". Over the first `warmup` updates the rate rises linearly from 0, which is the
  rate of the first one, to `peak`; with warmup 0 it begins at `peak`. Then "constant" stays there, and the others fall
  until update number `steps`, at which they would reach floor * peak. floor: a share of `peak`, from 0 to 1.
  """
  schedule = SCHEDULES[name](peak, warmup, steps, floor)
  return np.array(np.broadcast_to(schedule(np.arange(steps)), (steps,)), np.float32)


@functools.lru_cache
def adamw(
  b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float, moment: str = "float32"
) -> optax.GradientTransformation:
  """Returns AdamW without the learning rate, as an optax transformation: a step subtracts rate * its update.

  The rate is an argument of `update.update` instead, so that one program serves all rates. Gradients are first scaled
  down to the global norm clip_norm if theirs is larger (0: they are not). b1, b2, eps: as in Adam. weight_decay: share
  of each weight that is added to its update; every weight decays, as in the study's trainer. moment: dtype of the first
  moment, "float32" or "bfloat16". The second is float32: with b2 = 0.999 a bfloat16 would round its decay away.
  """
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
    optax.scale_by_adam(b1, b2, eps, mu_dtype=moment),
    optax.add_decayed_weights(weight_decay),
  )
