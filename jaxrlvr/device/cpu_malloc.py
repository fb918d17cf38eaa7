"""Keeps memory that XLA frees on a CPU in the process; else the kernel zeroes its pages anew for every program.

What is kept may lie between other arrays, so that the next program's temporaries find no place there: a process that
keeps memory may take as much as all temporaries more.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX = -4, -1, -8  # of mallopt(3)
_MAPPED, _TRIM_BYTES = 65536, 128 << 10  # glibc's defaults of the first two


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
  return _set_options({_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1})


def return_freed_memory() -> bool:
  """On Linux, lets glibc's malloc give large pieces of memory back as they are freed, where it was told to keep them.

  Returns whether it could be told. What was freed before stays with the process.
  """
  return sys.platform.startswith("linux") and _set_options({_MMAP_MAX: _MAPPED, _TRIM_THRESHOLD: _TRIM_BYTES})


def _set_options(values: dict[int, int]) -> bool:
  """Sets options of glibc's malloc by their numbers; returns whether all were accepted, False for other libraries."""
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
  if mallopt is None:
    return False
  accepted = [mallopt(option, value) for option, value in values.items()]
  return all(accepted)
