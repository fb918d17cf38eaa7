"""The stages import, which makes a run directory of a Hugging Face model, and export, which does the reverse."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import disk, logbook
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import hf_weights
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.model.score import score
from jaxrlvr.stages import build_policy
from jaxrlvr.stages.run_directory import open_run
from jaxrlvr.text.tokenizer import SentencePiece, Tokenizer

# Largest difference, in nats a token, between exported weights that are read again and the policy's weights rounded
# alike.
TOLERANCE = 1e-4
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
  """Copies the Hugging Face model `config.model.path` into a run directory, which can then be a `config.init`.

  Checks every tensor for its name, shape and finite values. The summary has the number of `parameters`, `steps` (0) and
  the `origin` of the weights. Raises InputError for a model that can't be used, and StorageError where the copy
  differs.
  """
  if not config.model.path:
    raise InputError("config.model.path is empty; name a Hugging Face directory, or ORG/NAME of the hub")
  with open_run(config, workdir, "import") as run:
    model, tokenizer = build_policy.find_model(config), build_policy.read_tokenizer(config)
    spec = build_policy.with_real_vocab(model.spec, tokenizer)
    origin = build_policy.origin_of_model(model)
    run.begin(tokenizer=tokenizer.pieces(), origin=origin["digests"])
    if run.finished:
      return run.summary
    folder = run.workdir / build_policy.MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    hf_weights.check_regular(model.folder / _GENERATION)
    for name in ("config.json", _GENERATION, hf_weights.INDEX, *model.files):
      if (model.folder / name).is_file():
        disk.copy(model.folder / name, folder / name)
    copied = hf_weights.open_model(folder)
    if hf_weights.weights_digest(copied) != origin["digests"]["weights"]:
      raise StorageError(f"{folder}: is not what {model.folder} held at first; import it again")
    hf_weights.check_finite(copied)
    build_policy.copy_tokenizer(
      config, run.workdir / build_policy.TOKENIZER_FILE, run.workdir / build_policy.TOKENIZER_FOLDER
    )
    # This file comes last, as it makes the directory a config.init.
    logbook.write_json(run.workdir / build_policy.POLICY_FILE, dataclasses.asdict(spec))
    return run.finish(steps=0, parameters=policy_spec.count_weights(spec), origin=origin)


def export(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes the policy of `config.init` as a Hugging Face directory, WORKDIR/model, and reads it again to check it.

  The summary has `difference`, the largest difference in nats a token between what was read again and the policy as
  trained; `reread`, the same with the policy's weights rounded to config.export.dtype; `moved_in_training`, the share
  of the weights that training moved; `kept_of_training`, the share of these that still differ after rounding to
  config.export.dtype; `trained_since`, the place of the weights that training began with (these three are None where
  that is unknown, or the dtype is float32); `steps` (0); and the `origin` of the weights. `config.model.path` may name
  the policy instead. Raises InputError where neither is set, and StorageError where `reread` is above TOLERANCE.
  """
  if not (config.init or config.model.path):
    raise InputError("config.init is empty; name the run directory to export")
  e = config.export
  with open_run(config, workdir, "export") as run:
    policy = build_policy.load_policy(config)
    spec, tokenizer, mesh = dataclasses.replace(policy.spec, dtype="float32"), policy.tokenizer, policy.mesh
    ids = _special_ids(tokenizer)
    hf_config = hf_weights.config_of(spec, e.dtype, ids)
    run.begin(tokenizer=tokenizer.pieces(), origin=policy.origin.get("digests"))
    if run.finished:
      return run.summary
    folder = run.workdir / build_policy.MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    trained = probe(policy.params, spec, mesh)
    rounded = probe(policy.params, spec, mesh, e.dtype)
    hf_weights.save(folder, policy.params, spec, e.dtype, int(e.shard_gib * 2**30))
    kept = kept_of_training(policy, e.dtype)
    origin, policy = policy.origin, None  # frees the policy's weights on the devices before the copy is loaded
    build_policy.copy_tokenizer(config, folder / build_policy.TOKENIZER_FILE, folder)
    if isinstance(tokenizer, SentencePiece):
      logbook.write_json(folder / "tokenizer_config.json", _BUILT_IN)
    logbook.write_json(folder / "config.json", hf_config)
    _write_generation_config(folder / _GENERATION, ids, tokenizer.pad_id)
    read_again = probe(hf_weights.load(hf_weights.open_model(folder), spec, mesh), spec, mesh)
    difference = float(np.abs(read_again - trained).max())
    reread = float(np.abs(read_again - rounded).max())
    if not reread <= TOLERANCE:
      raise StorageError(
        f"{folder}: read again, its log-probabilities differ by {reread:.2g} from what was written, over {TOLERANCE}; "
        "don't use it, and export to another disk"
      )
    logbook.write_json(run.workdir / build_policy.POLICY_FILE, dataclasses.asdict(spec))
    print(
      f"Hugging Face directory: {folder} (read again: within {reread:.2g} nats of what was written; largest difference "
      f"from the policy as trained {difference:.2g} nats)"
    )
    if kept["kept_of_training"] is not None:
      cure = "" if kept["kept_of_training"] == 1 else "; to keep all of it take config.export.dtype=float32"
      print(
        f"Training moved {kept['moved_in_training']:.2%} of the weights since {kept['trained_since']}; "
        f"{kept['kept_of_training']:.2%} of these still differ after rounding to {e.dtype}{cure}"
      )
    return run.finish(steps=0, difference=difference, reread=reread, **kept, origin=origin)


def _special_ids(tokenizer: Tokenizer) -> dict:
  """Returns bos_token_id and eos_token_id as Hugging Face files hold them: a list where several tokens end a
  response."""
  eos_ids = list(tokenizer.eos_ids)
  return {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos_ids if len(eos_ids) > 1 else eos_ids[0]}


def _write_generation_config(file: Path, ids: Mapping, pad_id: int | None) -> None:
  """Sets the special tokens in generation_config.json, which keeps its other entries.

  The padding token is in no config.json, as transformers would then no longer train its embedding.
  """
  entries = json.loads(file.read_text()) if file.is_file() else {}
  for name, token_id in {**ids, "pad_token_id": pad_id}.items():
    if token_id is not None:
      entries[name] = token_id
  logbook.write_json(file, entries)


def kept_of_training(policy: build_policy.Policy, dtype: str) -> dict:
  """Compares the policy with the weights that its training began with, before and after rounding to `dtype`.

  Returns `moved_in_training`, the share of the weights that differ; `kept_of_training`, the share of these that still
  differ when both are rounded; and `trained_since`, the place of the earlier weights. All three are None if `dtype` is
  float32, no weight differs, or the earlier weights are gone.
  """
  unknown = dict.fromkeys(("moved_in_training", "kept_of_training", "trained_since"))
  if dtype == "float32":
    return unknown
  start = build_policy.load_starting_weights(policy)
  if start is None:
    return unknown
  place, start_params = start
  moved = kept = 0
  for name, weights in policy.params.items():
    differing, still_differing = multihost.fetch(_differing(weights, start_params[name], dtype))
    moved += int(differing.sum(dtype=np.int64))
    kept += int(still_differing.sum(dtype=np.int64))
  if not moved:
    return unknown
  share = moved / policy_spec.count_weights(policy.spec)
  return {"moved_in_training": share, "kept_of_training": kept / moved, "trained_since": place}


@functools.partial(jax.jit, static_argnums=2)
def _differing(one: jax.Array, other: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Returns (how many elements differ, how many still differ after rounding to `dtype`) by index of the first axis."""
  other_axes = tuple(range(1, one.ndim))
  rounded_one = jax.lax.reduce_precision(one, *_BITS[dtype])
  rounded_other = jax.lax.reduce_precision(other, *_BITS[dtype])
  differing = jnp.sum(one != other, axis=other_axes, dtype=jnp.int32)
  still_differing = jnp.sum(rounded_one != rounded_other, axis=other_axes, dtype=jnp.int32)
  return differing, still_differing


def probe(
  params: Mapping[str, jax.Array], spec: policy_spec.Spec, mesh: jax.sharding.Mesh, dtype: str = "float32"
) -> np.ndarray:
  """Returns log-probability, entropy and self-certainty [3, rows, tokens] of the same random tokens for any weights.

  Log-probabilities, entropies and self-certainties are in nats. They are computed in float32 with the weights rounded
  to `dtype` ("float32" or "bfloat16"), and together depend on every logit. params: weights by name, sharded over
  `mesh`. On several hosts all processes must call it together, and each gets the whole array.
  """
  rows = sharding.size(mesh, "batch")
  tokens_BT = np.random.default_rng(0).integers(0, spec.known_vocab, (rows, 16)).astype(np.int32)
  positions_BT = np.broadcast_to(np.arange(16, dtype=np.int32), tokens_BT.shape)
  segments_BT = np.ones_like(tokens_BT)
  rows_on_device = multihost.put((tokens_BT, positions_BT, segments_BT), sharding.named_sharding(mesh, "batch"))
  with jax.set_mesh(mesh):
    scores = _rounded_score(params, *rows_on_device, spec, dtype)
  return np.stack(multihost.fetch((scores.logp_BT, scores.entropy_BT, scores.certainty_BT)))


@functools.partial(jax.jit, static_argnames=("spec", "dtype"))
def _rounded_score(params, tokens_BT, positions_BT, segments_BT, spec: policy_spec.Spec, dtype: str):
  """Scores tokens with weights rounded to `dtype`."""
  rounded = {name: jax.lax.reduce_precision(w, *_BITS[dtype]) for name, w in params.items()}
  return score(rounded, tokens_BT, positions_BT, segments_BT, spec)
