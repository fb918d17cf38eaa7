"""Checkpoints: arrays written by Orbax, with digests of each leaf and of the metadata, committed in one rename."""

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
  """Returns the digest of each leaf, by its path in the tree: dtype, shape and 64 bits of a hash of its bits.

  The same however the leaf is split over devices.
  """
  named = {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  sums = multihost.fetch(_sums(named))
  return {name: f"{x.dtype}{list(x.shape)}:{sums[name][0]:08x}{sums[name][1]:08x}" for name, x in named.items()}


def digest_of_meta(meta: Mapping) -> str:
  """Returns the SHA-256 of a checkpoint's metadata without its entry `digest`, as JSON with sorted keys."""
  without_digest = {name: value for name, value in meta.items() if name != "digest"}
  text = json.dumps(without_digest, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def check_meta(meta: object, step: int) -> None:
  """Raises StorageError where `meta` has another format or step, or differs from its own digest."""
  if not isinstance(meta, Mapping) or meta.get("format") != FORMAT:
    stated = meta.get("format") if isinstance(meta, Mapping) else type(meta).__name__
    raise StorageError(f"has format {stated!r}, this version reads {FORMAT}")
  if meta.get("digest") != digest_of_meta(meta):
    raise StorageError("meta is not what was saved (its digest differs)")
  if meta["step"] != step:
    raise StorageError(f"holds step {meta['step']}, its folder says {step}")


def check_leaves(saved: Mapping[str, str], read: Mapping[str, str], trees: tuple[str, ...]) -> None:
  """Raises StorageError where digests `read` are not exactly those that were `saved` for these trees.

  saved, read: digest by path of the leaf. trees: names of the trees that were read, such as "params".
  """
  prefixes = tuple(f"[{tree!r}]" for tree in trees)
  expected = {name for name in saved if name.startswith(prefixes)}
  if unmatched := sorted(expected ^ set(read)):
    problem = "has no digest" if unmatched[0] in read else "was saved and is not there"
    raise StorageError(f"leaf {unmatched[0]} {problem}")
  for name, digest in read.items():
    if saved[name] != digest:
      raise StorageError(f"leaf {name} is not what was saved (its digest differs)")


@jax.jit
def _sums(named: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the `_sum` of each leaf by name, in one program.

  Several programs at once, each with collectives, could meet in another order on each device.
  """
  return {name: _sum(leaf) for name, leaf in named.items()}


def _sum(x: jax.Array) -> jax.Array:
  """Returns two uint32 sums over the elements' bits, each element hashed with its index as by MurmurHash3.

  Sums of integers do not depend on their order, and so not on how the array is split.
  """
  bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
  flat_index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    flat_index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
    stride *= x.shape[axis]
  sums = []
  for salt in (0x9E3779B1, 0x85EBCA77):
    mixed = bits ^ (flat_index * np.uint32(salt) + np.uint32(salt >> 7))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    sums.append(jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32))
  return jnp.stack(sums)


@jax.jit
def _all_finite(tree) -> jax.Array:
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or its type where it has none."""
  message = str(error).strip() or type(error).__name__
  return message.splitlines()[0]


class Checkpoints:
  """Saves and restores the checkpoints of one run directory, of which the newest `keep` stay.

  Saving is asynchronous: a save that fails is raised as StorageError by the next call.
  """

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
    """Starts to save a checkpoint; all processes must call it.

    params: the weights. train: all other arrays of the training state. meta: values for JSON, such as cursor and seed.
    Raises StorageError for weights that are not finite, and where the folder holds this step already.
    """
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
    """Waits until all saves are on disk. Raises StorageError if one failed."""
    try:
      with multihost.waiting("the last save"):
        self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def _failed(self, error: BaseException) -> StorageError:
    """Returns the error for a save that failed, which says so if the disk is full."""
    if disk.is_full(error):
      full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return StorageError(disk.describe(full, self.folder, self._size))
    return StorageError(f"{self.folder}: a save failed: {_first_line(error)}; free space or change the workdir")

  def close(self) -> None:
    """Closes Orbax's manager."""
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def restore(self, params: Any, train: Any) -> tuple[Any, Any, dict] | None:
    """Returns (params, train, meta) of the newest intact checkpoint, None if there is no checkpoint.

    params, train: trees of arrays or ShapeDtypeStructs that state shapes, dtypes and shardings. Where `train` is None
    only weights are read, and None is returned in its place.
    A torn or altered checkpoint is skipped with a warning, and moved away unless opened read-only. Raises StorageError
    if no checkpoint is intact, so that a run never silently starts afresh.
    """
    steps = multihost.first(lambda: self.steps() if self.folder.is_dir() else [])
    for step in reversed(steps):
      restored, problem = None, ""
      try:
        restored = self._restore(step, params, train)
      except Exception as error:
        problem = _first_line(error)
      problem_by_process = multihost.gather(functools.partial(str, problem))
      if problems := [problem for problem in problem_by_process if problem]:  # all processes take it, or none
        _LOG.warning("%s/%d: passed over, can't be restored: %s", self.folder, step, problems[0])
        continue
      self._put_aside([newer for newer in steps if newer > step])
      return restored
    if steps:
      raise StorageError(
        f"{self.folder}: none of steps {steps} can be restored; restore one from a copy, or take another --workdir, or "
        "remove this one to start afresh"
      )
    return None

  def _put_aside(self, torn: list[int]) -> None:
    """Renames torn checkpoints, unless read-only: Orbax refuses to save steps up to the newest that it finds."""
    if torn and not self._read_only:
      multihost.first(lambda: self._rename(torn))
      self._manager.reload()

  def _rename(self, torn: Sequence[int]) -> None:
    for step in torn:
      (self.folder / str(step)).rename(self.folder.parent / f"torn-checkpoint-{step}")

  def _restore(self, step: int, params, train):
    """Reads one checkpoint as `restore` does. Raises StorageError, or an error of Orbax, where it is not intact."""
    items = {"meta": ocp.args.JsonRestore()}
    for name, tree in (("params", params), ("train", train)):
      if tree is not None:
        items[name] = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    with multihost.waiting(f"checkpoint {step}"):
      restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    meta = restored["meta"]
    check_meta(meta, step)
    trees = tuple(name for name in items if name != "meta")
    digests = leaf_digests({name: restored[name] for name in trees})
    check_leaves(meta["digests"], digests, trees)
    restored_train = restored["train"] if train is not None else None
    return restored["params"], restored_train, meta
