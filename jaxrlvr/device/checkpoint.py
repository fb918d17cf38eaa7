"""Checkpoints: arrays written by Orbax, with digests of each leaf and of the metadata, committed in one rename.

A checkpoint of step N is the folder WORKDIR/checkpoints/N, with the folders params, train and meta. The metadata is
JSON: what the run passes to `Checkpoints.save`, and the keys format (a number), step, digests (`leaf_digests` of
{"params": ..., "train": ...}) and digest (`digest_of_meta`).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxrlvr.base import disk, object_store
from jaxrlvr.base.errors import StorageError
from jaxrlvr.device import multihost

_FORMAT = 3  # of the metadata
# MurmurHash3's finaliser (Appleby 2016): shifts and factors in turn, and a last shift. A salt for each of two hashes.
_MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
_LAST_SHIFT = 16
_SALTS = (0x9E3779B1, 0x85EBCA77)
_LOG = logging.getLogger(__name__)


def leaf_digests(tree: Any) -> dict[str, str]:
  """Returns the digest of each leaf of a tree of arrays by its path, such as "['params']['q']".

  A digest has dtype, shape and 64 bits of a hash of the numbers' bits, such as "float32[2, 8]:6c74f4ca8d7eaee4". It is
  the same however the leaf is split over devices. All processes must call it together; the arrays stay where they are.
  """
  leaves_with_path = jax.tree_util.tree_leaves_with_path(tree)
  arrays = {jax.tree_util.keystr(path): jnp.asarray(leaf) for path, leaf in leaves_with_path}
  sums_by_name = multihost.fetch(_sums(arrays))
  digests = {}
  for name, array in arrays.items():
    first, second = sums_by_name[name]
    digests[name] = f"{array.dtype}{list(array.shape)}:{first:08x}{second:08x}"
  return digests


def digest_of_meta(meta: Mapping) -> str:
  """Returns the SHA-256, as hex, of a checkpoint's metadata without its entry `digest`, as JSON with sorted keys."""
  without_digest = {name: value for name, value in meta.items() if name != "digest"}
  text = json.dumps(without_digest, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def check_meta(meta: object, step: int) -> None:
  """Raises StorageError where `meta` is not the metadata that was saved for this step.

  meta: what was read, whatever it is. step: what the checkpoint's folder says. The error tells which differs: format
  (also where `meta` is no dict), digest or step.
  """
  if not isinstance(meta, Mapping) or meta.get("format") != _FORMAT:
    stated = meta.get("format") if isinstance(meta, Mapping) else type(meta).__name__
    raise StorageError(f"has format {stated!r}, this version reads {_FORMAT}")
  if meta.get("digest") != digest_of_meta(meta):
    raise StorageError("meta is not what was saved (its digest differs)")
  if meta["step"] != step:
    raise StorageError(f"holds step {meta['step']}, its folder says {step}")


def check_leaves(saved: Mapping[str, str], read: Mapping[str, str], trees: tuple[str, ...]) -> None:
  """Raises StorageError, naming a leaf, where the leaves that were read are not exactly those that were saved.

  saved: `leaf_digests` in the metadata, of all trees. read: `leaf_digests` of what was read. trees: names of the trees
  that were read, ("params",) or ("params", "train"); leaves of other trees are ignored.
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
def _sums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the `_sum` of each leaf by name, in one program.

  Several programs at once, each with collectives, could meet in another order on each device.
  """
  return {name: _sum(array) for name, array in arrays.items()}


def _sum(x: jax.Array) -> jax.Array:
  """Returns uint32 [2]: two sums over the elements, each hashed with its index as by MurmurHash3, with two salts.

  Sums of integers do not depend on their order, and so not on how the array is split.
  """
  bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
  flat_index, stride = jnp.zeros(x.shape, jnp.uint32), 1
  for axis in reversed(range(x.ndim)):
    flat_index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
    stride *= x.shape[axis]
  sums = []
  for salt in _SALTS:
    mixed = bits ^ (flat_index * np.uint32(salt) + np.uint32(salt >> 7))
    for shift, factor in _MIX:
      mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    sums.append(jnp.sum(mixed ^ (mixed >> _LAST_SHIFT), dtype=jnp.uint32))
  return jnp.stack(sums)


@jax.jit
def _all_finite(tree) -> jax.Array:
  """Returns whether all numbers of all leaves are finite, as a scalar."""
  finite_by_leaf = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.stack(finite_by_leaf).all()


def _first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, or its type where it has none."""
  message = str(error).strip() or type(error).__name__
  return message.splitlines()[0]


class Restored(NamedTuple):
  """What a checkpoint holds."""

  params: Any  # the weights: a tree of arrays, sharded as the tree that was passed to `restore`
  train: Any  # all other arrays of the training state; None where only weights were asked for
  meta: dict  # what was passed to `save`, as JSON holds it, and the keys format, step, digests and digest


class Checkpoints:
  """Saves and restores the checkpoints of one run directory, WORKDIR/checkpoints/STEP.

  workdir: the run directory, local or on an object store. keep: so many of the newest checkpoints stay; older ones are
  deleted when a new one is saved. read_only: nothing is created, moved or deleted. Saving is asynchronous: where a save
  fails later on, the next call of `save`, `check` or `wait` raises StorageError. All processes must call the
  constructor, `save`, `wait` and `restore` together.
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
    """Starts to save a checkpoint, and returns when the arrays have been copied to the host: they may then be donated.

    step: number of the checkpoint, higher than all before. params: the weights, a tree of arrays. train: all other
    arrays of the training state. meta: a dict of values for JSON, such as cursor and seed. Raises StorageError where an
    array is not finite, where the folder holds this step or a later one already, and where an earlier save failed.
    """
    if not multihost.fetch(_all_finite((params, train))):
      raise StorageError(
        f"{self.folder}/{step}: not saved, a weight or moment is not finite; the last checkpoint stays"
      )
    meta = {**meta, "format": _FORMAT, "step": step, "digests": leaf_digests({"params": params, "train": train})}
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
    """Raises StorageError if a save has failed by now; waits for none."""
    try:
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failed(error) from error

  def wait(self) -> None:
    """Waits until all saves are on disk. Raises StorageError, naming the folder, if one failed."""
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
    """Ends Orbax's threads; nothing may be called afterwards. It waits for a save, but call `wait` for its errors."""
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps of all checkpoints, ascending: intact or not, with one whose save is under way; [] if none."""
    return sorted(self._manager.all_steps())

  def restore(self, params: Any, train: Any) -> Restored | None:
    """Reads the newest intact checkpoint and checks its digests; returns None if there is no checkpoint at all.

    params, train: trees like those that were saved, of arrays or ShapeDtypeStructs, which state shapes, dtypes and
    shardings of what is returned. train None: only weights are read. A torn or altered checkpoint that is newer is
    passed over with a warning, and renamed to WORKDIR/torn-checkpoint-STEP unless opened read-only. Raises StorageError
    if there are checkpoints but none is intact, so that a run never silently starts afresh.
    """
    steps = multihost.first(lambda: self.steps() if self.folder.is_dir() else [])
    for step in reversed(steps):
      restored, problem = None, ""
      try:
        restored = self._restore(step, params, train)
      except Exception as error:
        problem = _first_line(error)
      problem_by_process = multihost.gather(functools.partial(str, problem))
      problems = [problem for problem in problem_by_process if problem]
      if problems:  # all processes take the checkpoint, or none does
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
    """Renames the checkpoints of these steps to WORKDIR/torn-checkpoint-STEP."""
    for step in torn:
      (self.folder / str(step)).rename(self.folder.parent / f"torn-checkpoint-{step}")

  def _restore(self, step: int, params, train) -> Restored:
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
    return Restored(restored["params"], None if train is None else restored["train"], meta)
