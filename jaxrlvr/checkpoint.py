"""Checkpoints: Orbax for the arrays, and a digest of each leaf beside them, committed in one rename."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
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
      array = np.ascontiguousarray(jax.device_get(leaf))
      state = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
      state.update(array.reshape(-1).view(np.uint8))
      found[jax.tree_util.keystr(path)] = state.hexdigest()
  return found


@jax.jit
def _all_finite(tree) -> jax.Array:
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


class Checkpoints:
  """The checkpoints of one run directory. Saving is asynchronous; a save that failed is raised at the next call."""

  def __init__(self, workdir: Path, keep: int = 2, *, read_only: bool = False):
    self.folder = Path(workdir).resolve() / "checkpoints"
    self._read_only = read_only
    options = ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep, create=not read_only, read_only=read_only
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("params", "train", "meta"))

  def save(self, step: int, params, train, meta: dict) -> None:
    """Starts to save; `train` is the rest of the array tree, `meta` plain JSON (cursor, config, seed)."""
    if not jax.device_get(_all_finite((params, train))):
      raise StorageError(
        f"{self.folder}/{step}: not saved, a weight or moment is not finite; the last checkpoint stays"
      )
    meta = {"format": FORMAT, "step": step, "digests": digests({"params": params, "train": train}), **meta}
    items = {
      "params": ocp.args.StandardSave(params),
      "train": ocp.args.StandardSave(train),
      "meta": ocp.args.JsonSave(meta),
    }
    try:
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
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error

  def _failed(self, error: BaseException) -> StorageError:
    return StorageError(f"{self.folder}: a save failed: {_first_line(error)}; free space or change the workdir")

  def close(self) -> None:
    self._manager.close()

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def restore(self, params, train):
    """(params, train, meta) of the newest whole checkpoint, None if there is none.

    `params` and `train` say shapes, dtypes and shardings (arrays or ShapeDtypeStructs); train None: only weights.
    A torn or altered checkpoint is passed over with a warning, and put aside unless opened read-only; if all are,
    StorageError: never a silent fresh start.
    """
    steps = self.steps() if self.folder.is_dir() else []
    for step in reversed(steps):
      try:
        found = self._restore(step, params, train)
      except Exception as error:
        _LOG.warning("%s/%d: passed over, can't be restored: %s", self.folder, step, _first_line(error))
        continue
      self._put_aside([s for s in steps if s > step])
      return found
    if steps:
      raise StorageError(f"{self.folder}: none of steps {steps} can be restored; move the folder away to start afresh")
    return None

  def _put_aside(self, torn: list[int]) -> None:
    """Out of Orbax's sight: it would refuse to save steps up to the newest that it sees."""
    if torn and not self._read_only:
      for step in torn:
        (self.folder / str(step)).rename(self.folder.parent / f"torn-checkpoint-{step}")
      self._manager.reload()

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
