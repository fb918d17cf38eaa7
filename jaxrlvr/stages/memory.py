"""Whether what sampling allocates fits the memory that is free, told before anything is allocated."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Sampling

_LOG = logging.getLogger(__name__)
_ROLLOUT_BYTES = 5 * 4  # of a token: its number, and four figures of it
_CGROUP = Path("/sys/fs/cgroup")


def needed(spec: Spec, sampling: Sampling, problems: int, prompt_tokens: int) -> tuple[int, int]:
  """Returns bytes that sampling takes on all devices together: at once, and where every response goes to the limit.

  Counted are the cache of keys and values, the tokens with their figures, and the logits of one step; the weights are
  there already. The cache of responses grows in blocks (`Sampling.slots`), so that only its first is taken at once.
  """
  size = 1 if "cache" in sampling.int8 else np.dtype(spec.dtype).itemsize
  slot = 2 * spec.layers * spec.kv_heads * spec.head_dim * size
  rows = problems * sampling.group
  fixed = problems * prompt_tokens * slot + rows * (sampling.max_tokens * _ROLLOUT_BYTES + 4 * spec.vocab)
  blocks = -(-sampling.max_tokens // sampling.slots)
  return fixed + rows * sampling.slots * slot, fixed + rows * blocks * sampling.slots * slot


def free(mesh: jax.sharding.Mesh) -> int | None:
  """Returns bytes that are free on this process's devices of the mesh together; on CPU, of its host; None: unknown."""
  devices = mesh.local_devices
  if devices[0].platform == "cpu":
    return _free_of_host()
  stats = [device.memory_stats() or {} for device in devices]
  if not all({"bytes_limit", "bytes_in_use"} <= set(one) for one in stats):
    return None
  return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats)


def _free_of_host() -> int | None:
  """Bytes, the least of what the host and its control group have left."""
  left = []
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
    left += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    limit = (_CGROUP / "memory.max").read_text().strip()
    if limit != "max":
      used = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
      taken = int((_CGROUP / "memory.current").read_text()) - int(used.get("inactive_file", 0))
      left.append(int(limit) - taken)
  except (OSError, ValueError, IndexError):  # another system, or one without control groups
    pass
  return min(left, default=None)


def check_fits(
  what: str, cure: str, spec: Spec, sampling: Sampling, problems: int, prompt_tokens: int, mesh: jax.sharding.Mesh
) -> None:
  """InputError where a batch of so many problems can't be sampled; a warning where long responses may not fit.

  On CPU, where a process that takes too much is killed without a word, what may be needed must fit as well.
  """
  room = free(mesh)
  if room is None:
    return
  share = len(mesh.local_devices) / mesh.size  # of this process
  at_once, at_most = (share * bytes_ for bytes_ in needed(spec, sampling, problems, prompt_tokens))
  least = at_most if mesh.local_devices[0].platform == "cpu" else at_once
  told = (
    f"{what} takes up to {at_most / 1e9:.1f} GB: {problems} problems x {sampling.group} responses of up to "
    f"{sampling.max_tokens} tokens (config.rl.response_tokens), cache and figures; {room / 1e9:.1f} GB are free"
  )
  if least > room:
    raise InputError(f"{told}; lower {cure}")
  if at_most > room:
    _LOG.warning("%s; it ends here if most responses grow that long; lower %s", told, cure)
