"""The optimiser: AdamW behind a clip by global norm, with a schedule from a literal table."""

from __future__ import annotations

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


def schedule(name: str, peak: float, warmup: int, steps: int, floor: float) -> optax.Schedule:
  """Learning rate at each update: warm-up over `warmup` updates to `peak`, then as named, down to floor * peak."""
  return SCHEDULES[name](peak, warmup, steps, floor)


def adamw(learning_rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: float, clip_norm: float):
  """AdamW on float32 masters, every weight decayed (as in the study's trainer), gradients clipped by global norm."""
  return optax.chain(
    optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
    optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay),
  )
