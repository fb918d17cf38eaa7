"""Memory that XLA frees on a CPU stays with the process: else the kernel zeroes its pages anew for every program."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of mallopt(3)


def keep() -> bool:
  """Tells glibc so, if jax will run on a CPU; True where it was told.

  XLA takes room for the temporaries of a program whenever it runs and gives it back: on the CPU where it was measured,
  an eighth of an update. To be called before jax starts threads, which would bring heaps of their own.
  """
  platforms = os.environ.get("JAX_PLATFORMS")
  others = any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))
  if not sys.platform.startswith("linux") or (platforms != "cpu" if platforms else others):
    return False
  told = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
  return told is not None and all([told(_ARENA_MAX, 1), told(_MMAP_MAX, 0), told(_TRIM_THRESHOLD, -1)])
