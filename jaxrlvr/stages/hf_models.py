"""The stages import, which makes a run directory of a Hugging Face model, and export, which does the reverse.

Both also take LoRA adapters as PEFT directories."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxrlvr.base import disk, logbook, object_store
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.data import hub
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import hf_weights, multimodal, peft_files, safetensors_files, weight_table
from jaxrlvr.model.lora import merge_adapters
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Spec
from jaxrlvr.stages import build_policy, origins
from jaxrlvr.stages.run_directory import open_run
from jaxrlvr.text.tokenizer import SentencePiece, Tokenizer

# Largest difference, in nats a token, between exported weights that are read again and the policy's weights rounded
# alike.
_TOLERANCE = 1e-4
_PROBE_TOKENS = 16  # tokens of each row that `_probe` scores
_BITS = {"float32": (8, 23), "bfloat16": (8, 7)}  # number of bits of exponent and mantissa
_GENERATION = "generation_config.json"
# tokenizer_config.json for a built-in policy's tokenizer.model, with which transformers' AutoTokenizer gives the same
# ids.
_BUILT_IN = {
  "tokenizer_class": "LlamaTokenizer",
  "legacy": False,
  "add_prefix_space": False,
  "add_bos_token": False,
  "bos_token": "<s>",
  "eos_token": "</s>",
  "pad_token": "<pad>",
  "unk_token": "<unk>",
  "chat_template": "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}",
}


def import_model(config: ConfigDict, workdir: str | Path) -> dict:
  """Copies a Hugging Face model into a run directory, which can then be a `config.init`.

  config.model.path names the model: a local directory, or ORG/NAME of the hub. Its files are copied as they are,
  whatever their dtype, to WORKDIR/model, the tokenizer beside it, and the adapters of config.model.adapter to
  WORKDIR/adapter; policy.json, which is written last, makes the run directory a policy. Checks every tensor for its
  name, shape and finite values. Returns the summary: `parameters` (number of weights, without those of adapters),
  `steps` (0) and `origin` (`origins.origin_of_model`). A finished run returns its summary. On several hosts all
  processes must call it together. Raises InputError for a model or adapters that can't be used, and StorageError where
  what was copied is not what was read at first.
  """
  if not (config.model.path or config.model.adapter):
    raise InputError("config.model.path is empty; name a Hugging Face directory, or ORG/NAME of the hub")
  with open_run(config, workdir, "import") as run:
    model, tokenizer = build_policy.find_model(config), build_policy.read_tokenizer(config)
    adapter = build_policy.find_adapter(config, model.spec)
    spec = build_policy.with_real_vocab(model.spec, tokenizer)
    spec = dataclasses.replace(spec, lora=adapter.lora if adapter else None)
    origin = origins.origin_of_model(model, adapter)
    run.begin(tokenizer=tokenizer.pieces(), origin=origin["digests"])
    if run.finished:
      return run.summary
    _copy_model(model, run.workdir / build_policy.MODEL_FOLDER, origin["digests"])
    if adapter is not None:
      _copy_adapter(adapter, run.workdir / build_policy.ADAPTER_FOLDER, model.spec, origin["digests"])
    build_policy.copy_tokenizer(
      config, run.workdir / build_policy.TOKENIZER_FILE, run.workdir / build_policy.TOKENIZER_FOLDER
    )
    # This file comes last, as it makes the directory a config.init.
    logbook.write_json(run.workdir / build_policy.POLICY_FILE, dataclasses.asdict(spec))
    return run.finish(steps=0, parameters=weight_table.count_weights(spec), origin=origin)


def _copy_model(model: hf_weights.Model, folder: Path, digests: Mapping[str, str]) -> None:
  """Copies the files of a Hugging Face model into a folder, and checks that all weights in them are finite.

  digests: of the model (`origins.origin_of_model`). Raises InputError for a value that is not finite, and
  StorageError where the copy has another digest.
  """
  folder.mkdir(exist_ok=True)
  safetensors_files.check_regular(model.folder / _GENERATION)
  for name in (hf_weights.CONFIG, _GENERATION, hf_weights.INDEX, *model.files):
    if (model.folder / name).is_file():
      disk.copy(model.folder / name, folder / name)
  copied = hf_weights.open_model(folder, model.spec.family)
  _check_copy(copied.tensors, model.folder, folder, digests["weights"])


def _copy_adapter(adapter: peft_files.Adapter, folder: Path, spec: Spec, digests: Mapping[str, str]) -> None:
  """Copies the files of a PEFT directory into a folder, as `_copy_model` does. spec: of the base."""
  folder.mkdir(exist_ok=True)
  for name in (peft_files.ADAPTER_CONFIG, peft_files.ADAPTER_WEIGHTS):
    disk.copy(adapter.folder / name, folder / name)
  copied = peft_files.open_adapter(folder, spec)
  _check_copy(copied.tensors, adapter.folder, folder, digests["adapter"])


def _check_copy(tensors: Mapping[str, safetensors_files.Tensor], source: epath.Path, folder: Path, digest: str) -> None:
  """Raises StorageError where copied tensors have another digest, and InputError where one is not finite."""
  if safetensors_files.digest_of_tensors(tensors) != digest:
    raise StorageError(f"{folder}: is not what {source} held at first; import it again")
  safetensors_files.check_finite(tensors.values())


def export(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes a policy as a Hugging Face directory, WORKDIR/model, and reads it again to check it.

  The policy is that of `config.init`, or of `config.model.path`. The directory holds safetensors files of at most
  export.shard_gib with the weights in export.dtype ("float32" or "bfloat16"), config.json, generation_config.json and
  the tokenizer. Adapters of the policy are merged into its weights, and also written as they are as a PEFT directory,
  WORKDIR/adapter, in float32; export.lora leaves out one of the two directories.

  Returns the summary. On random tokens, the log-probability, entropy and self-certainty of each token are compared:
  `reread` is the largest difference, in nats, between the directory read again and the policy's weights rounded to
  export.dtype, and is near 0; `difference` is that between the directory and the policy as trained, and so holds what
  rounding costs; `adapter_reread` is that between the policy as trained and its base with the adapters read again, and
  is near 0. `moved_in_training` is the share of the weights that training moved, `kept_of_training` the share of these
  that still differ after rounding, `trained_since` the place of the weights that training began with; all three are
  None for float32, and where that is unknown. Figures of a directory that is not written are None. Also `steps` (0) and
  `origin` of the weights. A finished run returns its summary. On several hosts all processes must call it together.
  Raises InputError where none of the keys is set, or the policy lacks adapters that export.lora asks for,
  and StorageError where `reread` or `adapter_reread` is above 1e-4.
  """
  if not (config.init or config.model.path or config.model.adapter):
    raise InputError("config.init is empty; name the run directory to export")
  with open_run(config, workdir, "export") as run:
    policy = build_policy.load_policy(config)
    spec = dataclasses.replace(policy.spec, dtype="float32")
    if spec.lora is None and config.export.lora == "adapter":
      raise InputError("config.export.lora = 'adapter': the policy has no adapters; take merged")
    tokenizer, mesh, origin = policy.tokenizer, policy.mesh, policy.origin
    hf_config = hf_weights.config_of(spec, config.export.dtype, _special_ids(tokenizer))
    run.begin(tokenizer=tokenizer.pieces(), origin=origin.get("digests"))
    if run.finished:
      return run.summary
    scores = _probe(policy.weights(), spec, mesh)
    adapter_reread = None
    if spec.lora is not None and config.export.lora != "merged":
      adapter_reread = _export_adapter(policy, scores, run.workdir / build_policy.ADAPTER_FOLDER)
    reread = difference = None
    movement = TrainingMovement()
    if spec.lora is None or config.export.lora != "adapter":
      params = merge_adapters(policy.weights(), spec) if spec.lora is not None else policy.params
      spec = dataclasses.replace(spec, lora=None)
      folder = run.workdir / build_policy.MODEL_FOLDER
      scores_rounded = _probe(params, spec, mesh, config.export.dtype)
      _write_model(config, params, spec, tokenizer, folder, hf_config)
      movement = movement_in_training(policy, params, config.export.dtype)
      policy = params = None  # frees the policy's weights on the devices before the copy is loaded
      copy = hf_weights.load(hf_weights.open_model(folder, spec.family), spec, mesh)
      scores_of_copy = _probe(copy, spec, mesh)
      difference = float(np.abs(scores_of_copy - scores).max())
      reread = _check_reread(folder, scores_of_copy, scores_rounded)
      logbook.write_json(run.workdir / build_policy.POLICY_FILE, dataclasses.asdict(spec))
      _print_model(folder, reread, difference, movement, config.export.dtype)
    figures = {"difference": difference, "reread": reread, "adapter_reread": adapter_reread}
    return run.finish(steps=0, **figures, **movement._asdict(), origin=origin)


def _write_model(
  config: ConfigDict,
  params: Mapping[str, jax.Array],
  spec: Spec,
  tokenizer: Tokenizer,
  folder: Path,
  hf_config: Mapping,
) -> None:
  """Writes a Hugging Face directory: weights, config.json (`hf_config`), generation_config.json and the tokenizer."""
  settings = config.export
  folder.mkdir(exist_ok=True)
  hf_weights.save(folder, params, spec, settings.dtype, int(settings.shard_gib * 2**30))
  build_policy.copy_tokenizer(config, folder / build_policy.TOKENIZER_FILE, folder)
  if isinstance(tokenizer, SentencePiece):
    logbook.write_json(folder / "tokenizer_config.json", _BUILT_IN)
  logbook.write_json(folder / hf_weights.CONFIG, hf_config)
  _write_generation_config(folder / _GENERATION, _special_ids(tokenizer), tokenizer.pad_id)


def _check_reread(folder: Path, scores_of_copy: np.ndarray, scores: np.ndarray) -> float:
  """Returns the largest difference, in nats, between what `_probe` says of a copy and of what was written.

  folder: of the copy. Raises StorageError where the difference is above 1e-4.
  """
  reread = float(np.abs(scores_of_copy - scores).max())
  if not reread <= _TOLERANCE:  # nor where it is nan
    raise StorageError(
      f"{folder}: read again, its log-probabilities differ by {reread:.2g} from what was written, over {_TOLERANCE}; "
      "don't use it, and export to another disk"
    )
  return reread


def _print_model(folder: Path, reread: float, difference: float, movement: TrainingMovement, dtype: str) -> None:
  """Prints what the export of a Hugging Face directory was found to be."""
  print(
    f"Hugging Face directory: {folder} (read again: within {reread:.2g} nats of what was written; largest difference "
    f"from the policy as trained {difference:.2g} nats)"
  )
  if movement.kept_of_training is not None:
    cure = "" if movement.kept_of_training == 1 else "; to keep all of it take config.export.dtype=float32"
    print(
      f"Training moved {movement.moved_in_training:.2%} of the weights since {movement.trained_since}; "
      f"{movement.kept_of_training:.2%} of these still differ after rounding to {dtype}{cure}"
    )


def _export_adapter(policy: build_policy.Policy, scores: np.ndarray, folder: Path) -> float:
  """Writes a policy's adapters as a PEFT directory, reads them again and compares them by `_probe`.

  scores: what `_probe` says of the policy. Returns the largest difference in nats. Raises StorageError where it is
  above 1e-4.
  """
  folder.mkdir(exist_ok=True)
  spec = dataclasses.replace(policy.spec, dtype="float32")
  base, revision = _base_of_adapters(policy.origin)
  peft_files.save(folder, policy.weights(), spec, base, revision)
  adapters = peft_files.load(peft_files.open_adapter(folder, spec), spec, policy.mesh)
  reread = _check_reread(folder, _probe(policy.weights(adapters), spec, policy.mesh), scores)
  name = _base_in_words(policy.origin, base, spec)
  print(f"PEFT directory: {folder} (read again: within {reread:.2g} nats of what was written; {name})")
  return reread


def _base_in_words(origin: Mapping, base: str, spec: Spec) -> str:
  """Returns what to say of the base that a policy's adapters belong to.

  origin: of the policy. base: the base's name by `_base_of_adapters`. spec: of the policy, with `lora`.
  """
  if base:
    dtype = ", in bfloat16" if spec.lora is not None and spec.lora.base_dtype == "bfloat16" else ""
    return f"its base is {base}{dtype}"
  start = origin.get("start", {})
  place = (
    f"{start['model']} with {start['adapter']}" if "adapter" in start else start.get("run", start.get("model", ""))
  )
  words = "its base has no Hugging Face directory of its own: export what the training of the adapters began with"
  return f"{words}, {place}" if place else words


def _base_of_adapters(origin: Mapping) -> tuple[str, str]:
  """Returns (path or hub name, revision on the hub) of the Hugging Face directory that adapters belong to, or ("", "").

  origin: of the policy with the adapters (`Policy.origin`). They belong to none where they were trained on the weights
  of a run, on adapters that were merged first, or on the text model of a model of text and images. A base that has
  moved together with the run is named where it is.
  """
  if "model" in origin:
    return _name_of_base(object_store.path(origin["model"]))
  start = origin.get("start", {})
  if "model" in start and "adapter" not in start:
    for folder in origins.places(start["model"], near=object_store.path(origin["run"])):
      if (folder / hf_weights.CONFIG).is_file():
        return _name_of_base(folder)
  return "", ""


def _name_of_base(folder: Path | epath.Path) -> tuple[str, str]:
  """Returns `hub.name_of_folder`; ("", "") for a model of text and images, whose text model the adapters are of."""
  if multimodal.is_wrapper(safetensors_files.read_json_object(folder / hf_weights.CONFIG, "a Hugging Face directory")):
    return "", ""
  return hub.name_of_folder(str(folder))


def _special_ids(tokenizer: Tokenizer) -> dict:
  """Returns bos_token_id and eos_token_id as Hugging Face files hold them: a list where several tokens end a
  response."""
  eos_ids = list(tokenizer.eos_ids)
  return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos_ids if len(eos_ids) > 1 else eos_ids[0]}


def _write_generation_config(file: Path, ids: Mapping, pad_id: int | None) -> None:
  """Adds to generation_config.json the special tokens that it lacks; what it holds stays, such as the temperature.

  ids: `_special_ids`. The padding token is in no config.json, as transformers would then no longer train its embedding.
  """
  entries = json.loads(file.read_text()) if file.is_file() else {}
  for name, token_id in (("bos_token_id", ids["bos_token_id"]), ("pad_token_id", pad_id)):
    if entries.get(name) is None and token_id is not None:
      entries[name] = token_id
  if _as_set(entries.get("eos_token_id")) != _as_set(ids["eos_token_id"]):
    entries["eos_token_id"] = ids["eos_token_id"]
  logbook.write_json(file, entries)


def _as_set(token_ids: int | list[int] | None) -> set[int]:
  """Returns the ids that an entry of a Hugging Face file names: none, one or several."""
  if token_ids is None:
    return set()
  return set(token_ids) if isinstance(token_ids, list) else {token_ids}


class TrainingMovement(NamedTuple):
  """How many weights training moved, and how many of these moves survive rounding; all None where that is unknown."""

  moved_in_training: float | None = None  # share of all weights that differ from those that training began with
  kept_of_training: float | None = None  # share of these that still differ when both are rounded
  trained_since: str | None = None  # run directory or model directory of the weights that training began with


def movement_in_training(policy: build_policy.Policy, params: Mapping[str, jax.Array], dtype: str) -> TrainingMovement:
  """Compares a policy with the weights that its training began with, before and after rounding to `dtype`.

  params: all weights of the policy by name, with its adapters merged in. dtype: "float32" or "bfloat16". All fields are
  None if it is float32, which rounds nothing, if no weight differs, or if the earlier weights are unknown or gone, of
  which a warning tells. On several hosts all processes must call it together.
  """
  if dtype == "float32":
    return TrainingMovement()
  start = build_policy.load_starting_weights(policy)
  if start is None:
    return TrainingMovement()
  place, start_params = start
  moved = kept = 0
  for name, weights in params.items():
    differing, still_differing = multihost.fetch(_differing(weights, start_params[name], dtype))
    moved += int(differing.sum(dtype=np.int64))
    kept += int(still_differing.sum(dtype=np.int64))
  if not moved:
    return TrainingMovement()
  return TrainingMovement(moved / weight_table.count_weights(policy.spec), kept / moved, place)


@functools.partial(jax.jit, static_argnums=2)
def _differing(one: jax.Array, other: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Returns (how many elements differ, how many still differ after rounding to `dtype`) by index of the first axis."""
  other_axes = tuple(range(1, one.ndim))
  rounded_one = jax.lax.reduce_precision(one, *_BITS[dtype])
  rounded_other = jax.lax.reduce_precision(other, *_BITS[dtype])
  differing = jnp.sum(one != other, axis=other_axes, dtype=jnp.int32)
  still_differing = jnp.sum(rounded_one != rounded_other, axis=other_axes, dtype=jnp.int32)
  return differing, still_differing


def _probe(params: Mapping[str, jax.Array], spec: Spec, mesh: jax.sharding.Mesh, dtype: str = "float32") -> np.ndarray:
  """Scores random tokens, which depend on vocabulary and mesh alone, so that two sets of weights can be compared.

  Returns [3, rows, tokens]: log-probability, entropy and self-certainty of each token in nats. They are computed in
  float32 with the weights rounded to `dtype` ("float32" or "bfloat16"), and together depend on every logit. params:
  weights by name, sharded over `mesh`. On several hosts all processes must call it together, and each gets the whole
  array.
  """
  rows = sharding.shard_count(mesh, "batch")
  tokens_BT = np.random.default_rng(0).integers(0, spec.known_vocab, (rows, _PROBE_TOKENS)).astype(np.int32)
  positions_BT = np.broadcast_to(np.arange(_PROBE_TOKENS, dtype=np.int32), tokens_BT.shape)
  segments_BT = np.ones_like(tokens_BT)
  rows_on_device = multihost.put((tokens_BT, positions_BT, segments_BT), sharding.named_sharding(mesh, "batch"))
  with jax.set_mesh(mesh):
    scores = _rounded_score(params, *rows_on_device, spec, dtype)
  return np.stack(multihost.fetch((scores.logp_BT, scores.entropy_BT, scores.certainty_BT)))


@functools.partial(jax.jit, static_argnames=("spec", "dtype"))
def _rounded_score(params, tokens_BT, positions_BT, segments_BT, spec: Spec, dtype: str):
  """Scores tokens with weights rounded to `dtype`."""
  rounded = {name: jax.lax.reduce_precision(w.astype(jnp.float32), *_BITS[dtype]) for name, w in params.items()}
  return score(rounded, tokens_BT, positions_BT, segments_BT, spec)
