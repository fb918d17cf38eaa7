"""Keeps memory that XLA frees on a CPU in the process; else the kernel zeroes its pages anew for every program."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of mallopt(3)


def keep_freed_memory() -> bool:
  """On Linux, if jax will run on a CPU, sets glibc's malloc to keep freed memory. Returns whether it did.

  False where nothing was changed: with another platform in JAX_PLATFORMS (if that is empty, with a package for TPUs or
  GPUs installed), or another C library. XLA allocates the temporaries of a program whenever it runs, and frees them:
  measured on one CPU, that took an eighth of an update. Call it before jax starts threads, which would otherwise get
  heaps of their own; jax itself is not imported.
  """
  platforms = os.environ.get("JAX_PLATFORMS")
  if platforms:
    runs_on_cpu = platforms == "cpu"
  else:
    runs_on_cpu = not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
  if not runs_on_cpu or not sys.platform.startswith("linux"):
    return False
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
  if mallopt is None:
    return False
  accepted = [mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)]
  return all(accepted)
