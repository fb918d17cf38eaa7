"""Checkpoints: Orbax for the arrays, and digests of each leaf and of the rest beside them, committed in one rename."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrlvr.base import disk, object_store
from jaxrlvr.base.errors import StorageError
from jaxrlvr.device import multihost

FORMAT = 3
_LOG = logging.getLogger(__name__)


def leaf_digests(tree: Any) -> dict[str, str]:
  """Digest of the bits, shape and dtype of each leaf: 64 bits, the same however the leaf is cut over devices."""
  named = {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  sums = multihost.fetch(_sums(named))
  return {name: f"{x.dtype}{list(x.shape)}:{sums[name][0]:08x}{sums[name][1]:08x}" for name, x in named.items()}


def digest_of_meta(meta: Mapping) -> str:
  """Digest of all of a checkpoint's meta but of the entry `digest` itself: of its JSON with sorted keys."""
  rest = {name: value for name, value in meta.items() if name != "digest"}
  return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_meta(meta: object, step: int) -> None:
  """Raises StorageError where a checkpoint's meta is not what was saved at this step."""
  if not isinstance(meta, Mapping) or meta.get("format") != FORMAT:
    stated = meta.get("format") if isinstance(meta, Mapping) else type(meta).__name__
    raise StorageError(f"has format {stated!r}, this version reads {FORMAT}")
  if meta.get("digest") != digest_of_meta(meta):
    raise StorageError("meta is not what was saved (its digest differs)")
  if meta["step"] != step:
    raise StorageError(f"holds step {meta['step']}, its folder says {step}")


def check_leaves(saved: Mapping[str, str], read: Mapping[str, str], trees: tuple[str, ...]) -> None:
  """Raises StorageError where the digests of the leaves read of these trees are not exactly those that were saved."""
  wanted = {name for name in saved if name.startswith(tuple(f"[{tree!r}]" for tree in trees))}
  if odd := sorted(wanted ^ set(read)):
    raise StorageError(f"leaf {odd[0]} " + ("has no digest" if odd[0] in read else "was saved and is not there"))
  for name, digest in read.items():
    if saved[name] != digest:
      raise StorageError(f"leaf {name} is not what was saved (its digest differs)")


@jax.jit
def _sums(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """One program for all leaves: several at once, each with collectives, may meet in another order on each device."""
  return {name: _sum(leaf) for name, leaf in named.items()}


def _sum(x: jax.Array) -> jax.Array:
  """Two sums over the elements' bits, each mixed (as by MurmurHash3) with its place; integers, so in any order."""
  bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
  place, step = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(step % 2**32)
    step *= x.shape[axis]
  found = []
  for salt in (0x9E3779B1, 0x85EBCA77):
    h = bits ^ (place * np.uint32(salt) + np.uint32(salt >> 7))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      h = (h ^ (h >> shift)) * np.uint32(factor)
    found.append(jnp.sum(h ^ (h >> 16), dtype=jnp.uint32))
  return jnp.stack(found)


@jax.jit
def _all_finite(tree) -> jax.Array:
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


class Checkpoints:
  """The checkpoints of one run directory. Saving is asynchronous; a save that failed is raised at the next call."""

  def __init__(self, workdir: str | Path, keep: int = 2, *, read_only: bool = False):
    self.folder = object_store.path(workdir) / "checkpoints"
    self._read_only = read_only
    self._size: int | None = None  # bytes of the last save
    options = ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep, create=not read_only, read_only=read_only
    )
    with multihost.waiting("the checkpoints"):
      self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("params", "train", "meta"))

  def save(self, step: int, params: Any, train: Any, meta: dict) -> None:
    """Starts to save, on all processes; `train` is the rest of the array tree, `meta` plain JSON (cursor, seed)."""
    if not multihost.fetch(_all_finite((params, train))):
      raise StorageError(
        f"{self.folder}/{step}: not saved, a weight or moment is not finite; the last checkpoint stays"
      )
    meta = {**meta, "format": FORMAT, "step": step, "digests": leaf_digests({"params": params, "train": train})}
    meta = json.loads(json.dumps(meta))  # as it is read back
    meta["digest"] = digest_of_meta(meta)
    self._size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, train)))
    items = {
      "params": ocp.args.StandardSave(params),
      "train": ocp.args.StandardSave(train),
      "meta": ocp.args.JsonSave(meta),
    }
    try:
      with multihost.waiting(f"checkpoint {step}"):
        saved = self._manager.save(step, args=ocp.args.Composite(**items))
    except Exception as error:
      raise self._failed(error) from error
    if not saved:
      raise StorageError(
        f"{self.folder}/{step}: was refused, the folder holds steps {self.steps()}; use an own workdir"
      )

  def check(self) -> None:
    """Raises StorageError if a save under way has failed by now."""
    try:
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(error) from error

  def wait(self) -> None:
    """Returns when all saves are on disk."""
    try:
      with multihost.waiting("the last save"):
        self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def _failed(self, error: BaseException) -> StorageError:
    if disk.is_full(error):
      full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return StorageError(disk.describe(full, self.folder, self._size))
    return StorageError(f"{self.folder}: a save failed: {_first_line(error)}; free space or change the workdir")

  def close(self) -> None:
    self._manager.close()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def restore(self, params: Any, train: Any) -> tuple[Any, Any, dict] | None:
    """(params, train, meta) of the newest whole checkpoint, None if there is none.

    `params` and `train` say shapes, dtypes and shardings (arrays or ShapeDtypeStructs); train None: only weights.
    A torn or altered checkpoint is passed over with a warning, and put aside unless opened read-only; if all are,
    StorageError: never a silent fresh start.
    """
    steps = multihost.first(lambda: self.steps() if self.folder.is_dir() else [])
    for step in reversed(steps):
      found, problem = None, ""
      try:
        found = self._restore(step, params, train)
      except Exception as error:
        problem = _first_line(error)
      if problems := list(filter(None, multihost.gather(functools.partial(str, problem)))):  # all take it or none
        _LOG.warning("%s/%d: passed over, can't be restored: %s", self.folder, step, problems[0])
        continue
      self._put_aside([s for s in steps if s > step])
      return found
    if steps:
      raise StorageError(
        f"{self.folder}: none of steps {steps} can be restored; restore one from a copy, or take another --workdir, or "
        "remove this one to start afresh"
      )
    return None

  def _put_aside(self, torn: list[int]) -> None:
    """Out of Orbax's sight: it would refuse to save steps up to the newest that it sees."""
    if torn and not self._read_only:
      multihost.first(lambda: self._rename(torn))
      self._manager.reload()

  def _rename(self, torn: Sequence[int]) -> None:
    for step in torn:
      (self.folder / str(step)).rename(self.folder.parent / f"torn-checkpoint-{step}")

  def _restore(self, step: int, params, train):
    wanted = {"meta": ocp.args.JsonRestore()}
    for name, tree in (("params", params), ("train", train)):
      if tree is not None:
        wanted[name] = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    with multihost.waiting(f"checkpoint {step}"):
      got = self._manager.restore(step, args=ocp.args.Composite(**wanted))
    meta = got["meta"]
    check_meta(meta, step)
    trees = tuple(name for name in wanted if name != "meta")
    check_leaves(meta["digests"], leaf_digests({name: got[name] for name in trees}), trees)
    return got["params"], got["train"] if train is not None else None, meta
