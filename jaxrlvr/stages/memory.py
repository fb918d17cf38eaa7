"""Checks, before anything is allocated, whether sampling fits the memory that is free."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import Sampling

_LOG = logging.getLogger(__name__)
_ROLLOUT_BYTES = 5 * 4  # of a token of a response: its id and four figures (log-probabilities, entropy, certainty)
_LOGIT_BYTES = 4  # float32
_GB = 1e9
_CGROUP = Path("/sys/fs/cgroup")


class SamplingBytes(NamedTuple):
  """Bytes that sampling a batch takes on all devices together, beside the weights, which are in memory already."""

  start: int  # with the first block of the responses' KV cache
  most: int  # with all of its blocks: every response grows to the limit of tokens


def sampling_bytes(spec: Spec, sampling: Sampling, problems: int, prompt_tokens: int) -> SamplingBytes:
  """Returns the bytes that sampling a batch takes: the KV cache, the tokens with their figures, the logits of a step.

  problems: number of prompts in the batch. prompt_tokens: tokens of each prompt, with padding. The KV cache of
  responses grows by blocks of `Sampling.block_slots` tokens.
  """
  value_bytes = 1 if "cache" in sampling.int8 else np.dtype(spec.dtype).itemsize
  token_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * value_bytes  # a key and a value
  rows = problems * sampling.group
  prompt_cache = problems * prompt_tokens * token_bytes
  rollout = rows * sampling.max_tokens * _ROLLOUT_BYTES
  logits = rows * spec.vocab * _LOGIT_BYTES
  block = rows * sampling.block_slots * token_bytes
  blocks = -(-sampling.max_tokens // sampling.block_slots)
  without_blocks = prompt_cache + rollout + logits
  return SamplingBytes(start=without_blocks + block, most=without_blocks + blocks * block)


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
  """Returns how many bytes are free on this process's devices of the mesh together.

  On CPU it is the smaller of what the system can give without swapping and what the process's control group has left.
  None: unknown, as soon as one device does not tell.
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
  limits = []
  try:
    for line in Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        kib = line.split()[1]
        limits.append(int(kib) << 10)
    limit = (_CGROUP / "memory.max").read_text().strip()
    if limit != "max":
      stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
      current = int((_CGROUP / "memory.current").read_text())
      reclaimable = int(stat.get("inactive_file", 0))
      limits.append(int(limit) - (current - reclaimable))
  except (OSError, ValueError, IndexError):  # another system, or one without control groups
    pass
  return min(limits, default=None)


def check_fits(
  sampling: Sampling,
  problems: int,
  prompt_tokens: int,
  *,
  spec: Spec,
  mesh: jax.sharding.Mesh,
  activity: str,
  keys_to_lower: str,
) -> None:
  """Compares what sampling a batch takes with the free memory, and raises InputError where it does not fit.

  On accelerators the start must fit; a batch that runs out of memory only if responses grow long gives a warning. On
  CPU the most must fit, since the system kills a process that takes too much without a message. Does nothing where the
  free memory is unknown.

  sampling, problems, prompt_tokens, spec: as in `sampling_bytes`. mesh: of sampling; each process compares its share
  with its own devices. activity: subject of the message, as "an evaluation". keys_to_lower: the config keys that make a
  batch smaller, which end the message.
  """
  free = free_bytes(mesh)
  if free is None:
    return
  share_of_process = len(mesh.local_devices) / mesh.size
  total = sampling_bytes(spec, sampling, problems, prompt_tokens)
  start, most = share_of_process * total.start, share_of_process * total.most
  message = (
    f"{activity} takes up to {most / _GB:.1f} GB: {problems} problems x {sampling.group} responses of up to "
    f"{sampling.max_tokens} tokens (config.rl.response_tokens), cache and figures; {free / _GB:.1f} GB are free"
  )
  must_fit = most if mesh.local_devices[0].platform == "cpu" else start
  if must_fit > free:
    raise InputError(f"{message}; lower {keys_to_lower}")
  if most > free:
    _LOG.warning("%s; it ends here if most responses grow that long; lower %s", message, keys_to_lower)
