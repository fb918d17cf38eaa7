"""Checkpoints: Orbax for the arrays, and a digest of each leaf beside them, committed in one rename."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxrlvr.types import StorageError

FORMAT = 1
_LOG = logging.getLogger(__name__)


def digests(tree) -> dict[str, str]:
  """Digest of the bytes, shape and dtype of each leaf that this process holds whole."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if getattr(leaf, "is_fully_addressable", True):
      array = np.asarray(jax.device_get(leaf))
      head = f"{array.dtype}{array.shape}".encode()
      found[jax.tree_util.keystr(path)] = hashlib.blake2b(head + array.tobytes(), digest_size=16).hexdigest()
  return found


class Checkpoints:
  """The checkpoints of one run directory. Saving is asynchronous; a save that failed is raised at the next call."""

  def __init__(self, workdir: Path, keep: int = 2):
    self.folder = Path(workdir).resolve() / "checkpoints"
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("params", "train", "meta"))

  def save(self, step: int, params, train, meta: dict) -> None:
    """Starts to save; `train` is the rest of the array tree, `meta` plain JSON (cursor, config, seed)."""
    tree = {"params": params, "train": train}
    for name, leaf in params.items():
      if not bool(jax.device_get(jax.numpy.isfinite(leaf).all())):
        raise StorageError(f"{self.folder}/{step}: not saved, weights {name} are not finite; the last checkpoint stays")
    meta = {"format": FORMAT, "step": step, "digests": digests(tree), **meta}
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(params), train=ocp.args.StandardSave(train), meta=ocp.args.JsonSave(meta)
        ),
      )
    except Exception as error:
      raise StorageError(
        f"{self.folder}/{step}: could not be saved: {error}; free space or change the workdir"
      ) from error

  def wait(self) -> None:
    """Returns when all saves are on disk."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise StorageError(f"{self.folder}: the last save failed: {error}; free space or change the workdir") from error

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def restore(self, params, train):
    """(params, train, meta) of the newest whole checkpoint, None if there is none.

    `params` and `train` say shapes, dtypes and shardings (arrays or ShapeDtypeStructs); train None: only weights.
    A torn or altered checkpoint is passed over with a warning; if all are, StorageError: never a silent fresh start.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        return self._restore(step, params, train)
      except Exception as error:
        _LOG.warning("%s/%d: passed over, can't be restored: %s", self.folder, step, error)
    if steps:
      raise StorageError(f"{self.folder}: none of steps {steps} can be restored; move the folder away to start afresh")
    return None

  def _restore(self, step: int, params, train):
    wanted = {"meta": ocp.args.JsonRestore()}
    for name, tree in (("params", params), ("train", train)):
      if tree is not None:
        wanted[name] = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
    got = self._manager.restore(step, args=ocp.args.Composite(**wanted))
    meta = got["meta"]
    if meta.get("format") != FORMAT:
      raise StorageError(f"has format {meta.get('format')}, this version reads {FORMAT}")
    found = digests({name: got[name] for name in wanted if name != "meta"})
    for name, digest in found.items():
      if meta["digests"].get(name, digest) != digest:
        raise StorageError(f"leaf {name} is not what was saved (its digest differs)")
    return got["params"], got["train"] if train is not None else None, meta
