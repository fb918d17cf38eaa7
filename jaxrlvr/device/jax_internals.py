"""The only file that imports private parts of jax; a new version of jax may move them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrlvr.base.errors import InputError


class JaxInternals(NamedTuple):
  """Private parts of jax 0.10 to 0.12 that have no public counterpart.

  `distributed` has the attributes process_id (from 0), num_processes (1 before jax.distributed.initialize) and client,
  with the key-value store and the barriers of the coordination service (None before). The public jax.process_index()
  and jax.process_count() would look for devices.
  """

  distributed: Any  # the state of jax.distributed
  backends_are_initialized: Callable[[], bool]  # whether jax has looked for devices yet; jax.devices() would look


@functools.cache
def jax_internals() -> JaxInternals:
  """Returns the private parts of jax. Raises InputError, which names the version to install, if this jax lacks them."""
  try:
    from jax._src.distributed import global_state
    from jax._src.xla_bridge import backends_are_initialized

    missing = [name for name in ("process_id", "num_processes", "client") if not hasattr(global_state, name)]
    if missing:
      raise ImportError(f"global_state has no {missing[0]}")
  except ImportError as error:
    raise InputError(
      f"jax {jax.__version__} no longer has an internal that jaxrlvr needs ({error}); install one that has it "
      "(pip install 'jax>=0.10,<0.13'), or mend jax_internals in jaxrlvr/device/jax_internals.py"
    ) from error
  return JaxInternals(global_state, backends_are_initialized)
