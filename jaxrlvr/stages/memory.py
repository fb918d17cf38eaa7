"""Checks, before anything is allocated, whether sampling fits the memory that is free."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Sampling

_LOG = logging.getLogger(__name__)
_ROLLOUT_BYTES = 5 * 4  # of a token of a response: its id and four figures (log-probabilities, entropy, certainty)
_CGROUP = Path("/sys/fs/cgroup")


def needed(spec: Spec, sampling: Sampling, problems: int, prompt_tokens: int) -> tuple[int, int]:
  """Returns the bytes that sampling a batch takes on all devices together: (at its start, at most).

  problems: number of prompts in the batch. prompt_tokens: tokens of each, with padding. The most is reached where every
  response grows to the limit: the KV cache of responses is allocated in blocks of `Sampling.slots` tokens, of which
  only the first is there at the start. Counted are the KV cache, the tokens with their figures, and the logits of one
  step, but not the weights, which are in memory already.
  """
  value_bytes = 1 if "cache" in sampling.int8 else np.dtype(spec.dtype).itemsize
  token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * value_bytes
  rows = problems * sampling.group
  prompt_cache = problems * prompt_tokens * token_bytes
  rollout = rows * sampling.max_tokens * _ROLLOUT_BYTES
  logits = rows * 4 * spec.vocab
  block = rows * sampling.slots * token_bytes
  blocks = -(-sampling.max_tokens // sampling.slots)
  without_blocks = prompt_cache + rollout + logits
  return without_blocks + block, without_blocks + blocks * block


def free(mesh: jax.sharding.Mesh) -> int | None:
  """Returns how many bytes are free on this process's devices of the mesh together, or on CPU in its host's memory.

  Returns None where that is unknown.
  """
  devices = mesh.local_devices
  if devices[0].platform == "cpu":
    return _free_of_host()
  total = 0
  for device in devices:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "bytes_in_use" not in stats:
      return None
    total += stats["bytes_limit"] - stats["bytes_in_use"]
  return total


def _free_of_host() -> int | None:
  """Returns the free bytes of the host, or of this process's control group if that has fewer; None: unknown."""
  free_bytes = []
  try:
    for line in Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        kib = line.split()[1]
        free_bytes.append(int(kib) << 10)
    limit = (_CGROUP / "memory.max").read_text().strip()
    if limit != "max":
      stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
      current = int((_CGROUP / "memory.current").read_text())
      reclaimable = int(stat.get("inactive_file", 0))
      free_bytes.append(int(limit) - (current - reclaimable))
  except (OSError, ValueError, IndexError):  # another system, or one without control groups
    pass
  return min(free_bytes, default=None)


def check_fits(
  what: str, cure: str, spec: Spec, sampling: Sampling, problems: int, prompt_tokens: int, mesh: jax.sharding.Mesh
) -> None:
  """Raises InputError where a batch of `problems` can't be sampled, and warns where it may run out of memory.

  On devices the start of sampling must fit, and a warning says if full-length responses would not. On CPU these must
  fit as well, since the system kills a process that takes too much without a message. `what` begins the message; `cure`
  names the config keys to lower. problems, prompt_tokens: number of prompts in the batch, and tokens of each. It does
  nothing where the free memory is unknown.
  """
  free_bytes = free(mesh)
  if free_bytes is None:
    return
  share_of_process = len(mesh.local_devices) / mesh.size
  start, most = needed(spec, sampling, problems, prompt_tokens)
  start, most = share_of_process * start, share_of_process * most
  must_fit = most if mesh.local_devices[0].platform == "cpu" else start
  message = (
    f"{what} takes up to {most / 1e9:.1f} GB: {problems} problems x {sampling.group} responses of up to "
    f"{sampling.max_tokens} tokens (config.rl.response_tokens), cache and figures; {free_bytes / 1e9:.1f} GB are free"
  )
  if must_fit > free_bytes:
    raise InputError(f"{message}; lower {cure}")
  if most > free_bytes:
    _LOG.warning("%s; it ends here if most responses grow that long; lower %s", message, cure)
