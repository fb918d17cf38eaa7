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
  """Returns the float32 learning rate of each of `steps` updates.

  name: a key of `SCHEDULES`. The rate rises linearly from 0 to `peak` over `warmup` updates, then stays or decays to
  floor * peak.
  """
  schedule = SCHEDULES[name](peak, warmup, steps, floor)
  return np.array(np.broadcast_to(schedule(np.arange(steps)), (steps,)), np.float32)


@functools.lru_cache
def adamw(
  b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float, moment: str = "float32"
) -> optax.GradientTransformation:
  """Returns AdamW without the learning rate, which is an argument of `update`: one program serves all rates.

  Every weight decays, as in the study's trainer. clip_norm: largest global norm of gradients; 0 does not clip.
  moment: dtype of the first moment. The second is float32: with b2 = 0.999 a bfloat16 would round its decay away.
  """
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
    optax.scale_by_adam(b1, b2, eps, mu_dtype=moment),
    optax.add_decayed_weights(weight_decay),
  )
