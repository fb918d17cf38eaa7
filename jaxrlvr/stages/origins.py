"""Where weights come from: reads them from runs and Hugging Face directories, and finds them again by their origin.

An origin is a dict that runs record with their checkpoints. Its keys are, for a run: run (its directory), step,
digests, and start, the origin of the weights that the run's training began with; for a Hugging Face model: model (its
folder), family (only if that is a user's own: its name), adapter (only with adapters: their folder) and digests; for
fresh weights: seed. `digests` maps a name, such as that of an array, to a digest. With a tokenizer of the `tokenizers`
library it also has "tokenizer".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from jaxrlvr.base import logbook, named, object_store
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.config.files import search_beside
from jaxrlvr.device import checkpoint, multihost
from jaxrlvr.model import hf_weights, lora, peft_files, rope_config, safetensors_files, weight_table
from jaxrlvr.model.spec import Lora, Spec

POLICY_FILE = "policy.json"  # the shape of the policy, in a run directory
_ANCESTORS = 3  # folders above a run in which its base is looked for, if it is not where it was
_PARTS = 3  # last parts of the base's former path that are looked for there, at most


class StoredWeights(NamedTuple):
  """The weights of a policy as they are stored: those of a base, and the adapters of a run with LoRA."""

  spec: Spec  # the shape, with `lora` as the adapters have it
  base: dict[str, jax.Array]  # all weights by name
  adapters: dict[str, jax.Array]  # float32 by name; {}: the policy has none
  origin: dict  # of these weights


class Merged(NamedTuple):
  """All weights of a policy, with its adapters added to them, and what their dtype costs."""

  params: dict[str, jax.Array]  # by name
  rounding: float  # root of the sum of the squares by which rounding to the dtype has changed them
  change: float  # the same of what the adapters had changed; 0: there are none


def merged(weights: StoredWeights, dtype: str) -> Merged:
  """Adds the adapters of weights to their base, in float32, and returns the result in `dtype`.

  weights.base is emptied on the way, so that only one of its arrays is in memory twice. On several hosts all processes
  must call it together.
  """
  params, rounding, change = {}, [], []
  for name in weight_table.leaves(weights.spec):
    added = lora.merged_weight(name, weights.base | weights.adapters, weights.spec)
    params[name], *squares = _in_dtype(added, weights.base.pop(name), dtype)
    jax.block_until_ready(params[name])  # its source may then be freed
    rounding.append(squares[0])
    change.append(squares[1])
  sums = multihost.fetch((rounding, change))
  return Merged(params, *(math.sqrt(sum(map(float, squares))) for squares in sums))


@functools.partial(jax.jit, static_argnames="dtype")
def _in_dtype(added: jax.Array, before: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns a float32 weight in `dtype`, the sum of the squares of its rounding, and that of its change."""
  rounded = added.astype(dtype)
  rounding = jnp.sum((rounded.astype(jnp.float32) - added) ** 2)
  return rounded, rounding, jnp.sum((added - before.astype(jnp.float32)) ** 2)


def read_recorded_spec(path: Path | epath.Path) -> Spec:
  """Returns the spec that a file policy.json holds. path: of the file.

  Raises InputError where it holds no spec of this version, and OSError where there is no such file.
  """
  try:
    fields = json.loads(path.read_text())
    fields["rope_scaling"] = fields["rope_scaling"] and rope_config.from_record(fields["rope_scaling"])
    for name in ("sliding", "no_rope"):
      fields[name] = tuple(fields[name])
    if fields["lora"]:
      fields["lora"] = Lora(**fields["lora"] | {"targets": tuple(fields["lora"]["targets"])})
    spec = Spec(**fields)
  except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
    raise InputError(
      f"{path}: is no policy of this version ({type(error).__name__}: {error}); take another run"
    ) from error
  if named.is_name(spec.family):
    search_beside(path.parent / "config.json")
  return spec


def origin_of_model(model: hf_weights.Model, adapter: peft_files.Adapter | None = None) -> dict:
  """Returns where the weights of a Hugging Face model come from, and its adapters, as `Policy.origin` holds it.

  Keys: model (its folder, as text), family (only if that is a user's own: its name), adapter (only with adapters: the
  folder, as text) and digests, which has the SHA-256 digests weights and config, and with adapters also adapter and
  adapter_config.
  """
  digests = {
    "weights": safetensors_files.digest_of_tensors(model.tensors),
    "config": logbook.digest((model.folder / "config.json").read_text()),
  }
  origin: dict = {"model": str(model.folder), "digests": digests}
  if named.is_name(model.spec.family):
    origin["family"] = model.spec.family
  if adapter is not None:
    origin["adapter"] = str(adapter.folder)
    digests["adapter"] = safetensors_files.digest_of_tensors(adapter.tensors)
    digests["adapter_config"] = logbook.digest((adapter.folder / peft_files.ADAPTER_CONFIG).read_text())
  return origin


def read_run(
  run: Path | epath.Path, spec: Spec, mesh: jax.sharding.Mesh, recorded: Mapping[str, str] | None = None
) -> StoredWeights:
  """Reads the weights of a finished run's last checkpoint, and the base that its adapters belong to.

  run: its directory. spec: how to compute; its `lora` is not read, as the run's policy.json tells of adapters.
  recorded: digests that the checkpoint's weights must have; None: any. Raises InputError where the run has no
  checkpoint of its last step, other weights than recorded, or its base is gone or has changed, and StorageError where
  its checkpoints are damaged.
  """
  spec = dataclasses.replace(spec, lora=read_recorded_spec(run / POLICY_FILE).lora)
  restored = _last_checkpoint(run, spec, mesh)
  start = restored.meta.get("origin", {})
  digests = _digests_of_params(restored.meta)
  if recorded is not None:
    _check_unchanged(run, digests, recorded)
  origin = {"run": str(run), "step": restored.meta["step"], "digests": digests, "start": start}
  if spec.lora is None:
    return StoredWeights(spec, restored.params, {}, origin)
  try:
    base = read_origin(start, spec, mesh, spec.lora.base_dtype, near=run)
  except InputError as error:
    raise InputError(f"{run}: the weights under its adapters can't be read: {error}") from error
  return StoredWeights(spec, base, restored.params, origin)


def _last_checkpoint(run: Path | epath.Path, spec: Spec, mesh: jax.sharding.Mesh) -> checkpoint.Restored:
  """Returns what the checkpoint of a finished run's last step holds, its weights sharded over the mesh.

  Raises InputError where there is none.
  """
  shardings = lora.trained_shardings(spec, mesh)
  abstract = {}
  for name, leaf in lora.trained_leaves(spec).items():
    abstract[name] = jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=shardings[name])
  store = checkpoint.Checkpoints(run, read_only=True)
  restored = store.restore(abstract, None)
  store.close()
  if restored is None:
    raise InputError(f"{str(run)!r}: has no checkpoint; let that run finish first")
  saved_step = restored.meta["step"]
  last_step = logbook.read_json(run / "summary.json").get("steps")
  if saved_step != last_step:
    raise InputError(
      f"{str(run)!r}: its last whole checkpoint is of step {saved_step}, and "
      + ("the run is not finished" if last_step is None else f"it ended at step {last_step}")
      + "; finish it by the command that made it, with --resume=check"
    )
  return restored


def read_origin(
  origin: Mapping, spec: Spec, mesh: jax.sharding.Mesh, dtype: str, near: Path | epath.Path | None = None
) -> dict[str, jax.Array]:
  """Reads the weights of an origin, with adapters merged in; returns them by name, in `dtype`, sharded over the mesh.

  spec: how to compute. near: a run that is stored beside the origin: where the origin is not where it was, it is looked
  for in the folders above that run, so that runs can be moved together. None: it isn't. Raises InputError where it is
  gone or has changed since it was recorded, and StorageError where its checkpoints are damaged.
  """
  recorded = {name: digest for name, digest in origin["digests"].items() if name != "tokenizer"}
  place = origin.get("run") or origin["model"]
  read, file = (_read_merged_run, POLICY_FILE) if "run" in origin else (_read_model, "config.json")
  problem: InputError | StorageError = InputError(f"{place}: is gone; put it back")
  for folder in places(place, near):
    if not (folder / file).is_file():
      continue
    try:
      return read(folder, origin, recorded, spec, mesh, dtype)
    except (InputError, StorageError) as error:
      problem = error
  raise problem


def places(place: str, near: Path | epath.Path | None) -> Iterator[Path | epath.Path]:
  """Yields where a folder that was at `place` may be: there, and below the folders above the run `near`."""
  there = object_store.path(place)
  yield there
  if near is None:
    return
  for ancestor in list(near.parents)[:_ANCESTORS]:
    for count in range(1, _PARTS + 1):
      yield ancestor.joinpath(*there.parts[-count:])


def _read_merged_run(folder, origin: Mapping, recorded: Mapping, spec: Spec, mesh: jax.sharding.Mesh, dtype: str):
  """Returns the merged weights of a run. Raises InputError where their digests are not the recorded ones."""
  return merged(read_run(folder, spec, mesh, recorded), dtype).params


def _read_model(folder, origin: Mapping, recorded: Mapping, spec: Spec, mesh: jax.sharding.Mesh, dtype: str):
  """Returns the weights of a Hugging Face model, with the adapters that the origin names merged in.

  Raises InputError where the digests are not the recorded ones.
  """
  model, adapter = hf_weights.open_model(folder, origin.get("family", "")), None
  if "adapter" in origin:
    adapter = peft_files.open_adapter(_moved_adapter(origin, folder), model.spec)
  _check_unchanged(folder, origin_of_model(model, adapter)["digests"], recorded)
  if adapter is None:
    return hf_weights.load(model, spec, mesh, dtype)
  spec = dataclasses.replace(spec, lora=adapter.lora)
  base, adapters = hf_weights.load(model, spec, mesh), peft_files.load(adapter, spec, mesh)
  return merged(StoredWeights(spec, base, adapters, {}), dtype).params


def _moved_adapter(origin: Mapping, folder: Path | epath.Path) -> Path | epath.Path:
  """Returns the folder of an origin's adapter, whose model is in `folder` now.

  It is where it was, or else beside the model, as in a run directory that the stage `import` wrote and that has moved.
  """
  there = object_store.path(origin["adapter"])
  beside = folder.parent / there.name
  return beside if beside.is_dir() and not there.is_dir() else there


def _check_unchanged(place: object, digests: Mapping[str, str], recorded: Mapping[str, str]) -> None:
  """Raises InputError where the digests of a place's weights are not the recorded ones."""
  if dict(digests) != dict(recorded):
    raise InputError(f"{place}: has changed since; put back what it was")


def _digests_of_params(meta: Mapping) -> dict[str, str]:
  """Returns the digests of the weights, by the array's name, from the meta record of a checkpoint."""
  return {name: digest for name, digest in meta["digests"].items() if name.startswith("['params']")}
