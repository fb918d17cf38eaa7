"""Tells, before anything is allocated, what a run takes of the devices' memory, and refuses what can't fit."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import jax

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import cpu_malloc, multihost
from jaxrlvr.planning.memory import Memory
from jaxrlvr.stages.run_directory import Run

_LOG = logging.getLogger(__name__)
_GB = 1e9
_MB = 1e6
_CGROUP = Path("/sys/fs/cgroup")
_KEPT = 2  # times the temporaries of a program that a CPU's malloc may keep in pieces: measured were 1.3
_ALWAYS = "always"
# What the parts of `planning.memory.Memory` are called, in the order in which they are told.
_HELD = {
  "trained": "weights",
  "frozen": "frozen weights",
  "moments": "optimizer",
  "reference": "reference model",
  "laid_out": "frozen weights for sampling",
  "saved": "saving a checkpoint",
}
_UPDATE = {
  "gradients": "gradients",
  "copies": "weights in the compute dtype",
  "activations": "activations of a microbatch",
  "logits": "logits of a piece",
  "step": "the optimizer's step",
  "batch": "tokens",
}
_SAMPLING = {
  "weights": "weights for sampling",
  "prompts": "prompts",
  "cache": "first block of the KV cache",
  "cache_growth": "its other blocks",
  "logits": "logits of a step",
  "rollout": "responses with their figures",
}


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


def rows_of_parts(estimate: Memory) -> list[tuple[str, str, float]]:
  """Returns a row (when, part, bytes on a device) for each part that takes memory, as tables and messages tell them.

  when: "always", "an update", or "sampling", beside which lies what is there always.
  """
  groups = ((_ALWAYS, _HELD, estimate.held), ("an update", _UPDATE, estimate.update))
  rows = []
  for when, names, parts in (*groups, ("sampling", _SAMPLING, estimate.sampling)):
    for field, name in names.items():
      size = getattr(parts, field) if parts is not None else 0
      if size:
        rows.append((when, name, size))
  return rows


def in_words(estimate: Memory, devices: int, free: int | None) -> str:
  """Returns an estimate as one line, "weights 2.1 GB, optimizer 4.2; an update: gradients 2.1, ...; at most 9.4 GB".

  Sizes are those of all `devices` of a process together, all in GB or all in MB; parts that would be 0.0 are left out.
  free: bytes that are free on these devices, which end the line; None: unknown.
  """
  most = devices * estimate.most
  unit, name = (_GB, "GB") if most >= _GB else (_MB, "MB")
  phrases: dict[str, list[str]] = {}
  for when, part, size in rows_of_parts(estimate):
    number = f"{devices * size / unit:.1f}"
    if number != "0.0":
      phrases.setdefault(when, []).append(f"{part} {number}")
  texts = [f"{when}: {', '.join(parts)}" for when, parts in phrases.items()]
  text = "; ".join([*texts, f"at most {most / unit:.1f} {name}"]).removeprefix(f"{_ALWAYS}: ")
  return text if free is None else f"{text} of {free / _GB:.1f} GB that are free"


def check_fits(estimate: Memory, mesh: jax.sharding.Mesh, run: Run, sampling_keys: str = "") -> None:
  """Prints what a run takes, on stderr, and raises InputError where it can't fit. Call it before weights are loaded.

  On accelerators the run must fit while responses are short; one that runs out of memory only if responses grow long
  gives a warning. On a CPU all must fit, since the system kills a process that takes too much without a message; where
  it fits closely, memory that is freed goes back to the system. Where the free memory is unknown nothing is compared,
  and nothing is done for a finished run.

  estimate: bytes on one device. mesh: whose devices, as far as they are this process's, must have room. run: the open
  run directory. sampling_keys: the keys that make sampling smaller, in words; "": nothing is sampled.
  """
  if run.finished:
    return
  devices = len(mesh.local_devices)
  free = free_bytes(mesh)
  words = in_words(estimate, devices, free)
  if not multihost.process_index():
    print(f"{run.home.name:<18} memory: {words}", file=sys.stderr)
  if free is None:
    return
  most, least = devices * estimate.most, devices * estimate.least
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  needed = most if on_cpu else least
  cure = _cure(estimate, free / devices, run.stage, sampling_keys)
  if needed > free:
    raise InputError(
      f"the stage {run.stage} takes about {needed / _GB:.1f} GB, {free / _GB:.1f} GB are free ({words}); {cure}"
    )
  if most > free:
    _LOG.warning(
      "the run ends here if most responses grow long: it then takes %.1f GB (%s); %s", most / _GB, words, cure
    )
  temporaries = devices * sum(estimate.update or estimate.sampling or ())
  if on_cpu and most + _KEPT * temporaries > free:
    cpu_malloc.return_freed_memory()


def _cure(estimate: Memory, free: float, stage: str, sampling_keys: str) -> str:
  """Returns in words which keys to change, by what does not fit into `free` bytes of a device."""
  held = sum(estimate.held)
  cures = []
  if held > free and estimate.update is None:
    cures.append("take more devices (config.mesh.fsdp=-1) or a smaller model")
  elif held > free:
    adapters = "lower config.lora.rank" if estimate.held.frozen else "train adapters alone (config.lora.rank=16)"
    cures.append(f"{adapters}, take config.{stage}.optim.moment=bfloat16, or more devices (config.mesh.fsdp=-1)")
  if held + sum(estimate.update or ()) > free:
    tokens = "response_tokens" if stage == "rl" else "row_tokens"
    cures.append(
      f"for updates raise config.{stage}.microbatches, take config.model.remat=full, or lower config.{stage}.{tokens} "
      "or config.model.vocab_chunk"
    )
  if estimate.sampling and held + sum(estimate.sampling) > free:
    cures.append(f"for sampling lower {sampling_keys}")
  return "; ".join(cures)
