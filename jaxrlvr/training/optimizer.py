"""The optimiser: AdamW behind a clip by global norm, and learning rates from a literal table of schedules."""

from __future__ import annotations

import functools

import numpy as np
import optax


def _constant(peak, warmup, steps, floor):
  return optax.schedules.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def _cosine(peak, warmup, steps, floor):
  return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, max(steps, warmup + 1), floor * peak)


def _linear(peak, warmup, steps, floor):
  down = optax.linear_schedule(peak, floor * peak, max(steps - warmup, 1))
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), down], [warmup]) if warmup else down


# Learning rate over updates, after a linear warm-up. Keys: value of `optim.schedule`.
SCHEDULES = {"constant": _constant, "cosine": _cosine, "linear": _linear}


def rates(name: str, peak: float, warmup: int, steps: int, floor: float) -> np.ndarray:
  """float32 learning rate of each of `steps` updates: warm-up to `peak`, then as named, down to floor * peak."""
  schedule = SCHEDULES[name](peak, warmup, steps, floor)
  return np.array(np.broadcast_to(schedule(np.arange(steps)), (steps,)), np.float32)


@functools.lru_cache
def adamw(
  b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float, moment: str = "float32"
) -> optax.GradientTransformation:
  """AdamW's step before it is scaled by the learning rate; every weight decays, as in the study's trainer.

  Gradients are clipped by global norm (0: not). The rate is an argument of `update`, so one program serves all rates.
  moment: dtype of the first moment. The second stays float32: with b2 = 0.999 a bfloat16 would round its decay away.
  """
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
    optax.scale_by_adam(b1, b2, eps, mu_dtype=moment),
    optax.add_decayed_weights(weight_decay),
  )
