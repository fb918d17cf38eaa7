"""Models in and out: `import` makes a run directory of a Hugging Face model, `export` a Hugging Face model of a run."""

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
from jaxrlvr.text.tokenizer import SentencePiece

# How far what was exported may be, read again, from the policy with its weights rounded as in the files, nats a token.
TOLERANCE = 1e-4
_BITS = {"float32": (8, 23), "bfloat16": (8, 7)}  # of exponent and mantissa
_GENERATION = "generation_config.json"
_EMBEDDED = {  # tokenizer_config.json beside an embedded policy's tokenizer.model: AutoTokenizer then gives our ids
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
  """Checks every tensor of `config.model.path` and keeps a copy: a run directory that serves as `config.init`."""
  if not config.model.path:
    raise InputError("config.model.path is empty; name a Hugging Face directory, or ORG/NAME of the hub")
  with open_run(config, workdir, "import") as run:
    model, tokenizer = build_policy.find_model(config), build_policy.read_tokenizer(config)
    spec = build_policy.check_rows(tokenizer, model.spec)
    origin = build_policy.origin_of(model)
    run.begin(tokenizer=tokenizer.pieces(), origin=origin["digests"])
    if run.finished:
      return run.summary
    folder = run.workdir / build_policy.MODEL
    folder.mkdir(exist_ok=True)
    hf_weights.check_regular(model.folder / _GENERATION)
    for name in ("config.json", _GENERATION, hf_weights.INDEX, *model.files):
      if (model.folder / name).is_file():
        disk.copy(model.folder / name, folder / name)
    copied = hf_weights.open_model(folder)
    if hf_weights.weights_digest(copied) != origin["digests"]["weights"]:
      raise StorageError(f"{folder}: is not what {model.folder} held at first; import it again")
    hf_weights.check_finite(copied)
    build_policy.keep_tokenizer(
      config, run.workdir / build_policy.TOKENIZER_FILE, run.workdir / build_policy.TOKENIZER_FOLDER
    )
    logbook.write_json(run.workdir / build_policy.POLICY, dataclasses.asdict(spec))  # last: now it is an init
    return run.finish(steps=0, parameters=policy_spec.count_weights(spec), origin=origin)


def export(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes the policy of `config.init` to WORKDIR/model, a Hugging Face directory, and loads it again to compare."""
  if not (config.init or config.model.path):
    raise InputError("config.init is empty; name the run directory to export")
  e = config.export
  with open_run(config, workdir, "export") as run:
    policy = build_policy.load_policy(config)
    spec, tokenizer, mesh = dataclasses.replace(policy.spec, dtype="float32"), policy.tokenizer, policy.mesh
    stops = list(tokenizer.eos_ids)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops if len(stops) > 1 else stops[0]}
    told = hf_weights.config_of(spec, e.dtype, ids)
    run.begin(tokenizer=tokenizer.pieces(), origin=policy.origin.get("digests"))
    if run.finished:
      return run.summary
    folder = run.workdir / build_policy.MODEL
    folder.mkdir(exist_ok=True)
    trained, rounded = (probe(policy.params, spec, mesh, dtype) for dtype in ("float32", e.dtype))
    hf_weights.save(folder, policy.params, spec, e.dtype, int(e.shard_gib * 2**30))
    kept = kept_of_training(policy, e.dtype)
    origin, policy = policy.origin, None  # its weights leave the devices before the copy is loaded
    build_policy.keep_tokenizer(config, folder / build_policy.TOKENIZER_FILE, folder)
    if isinstance(tokenizer, SentencePiece):
      logbook.write_json(folder / "tokenizer_config.json", _EMBEDDED)
    logbook.write_json(folder / "config.json", told)
    file = folder / _GENERATION
    known = json.loads(file.read_text()) if file.is_file() else {}
    ids["pad_token_id"] = tokenizer.pad_id  # not in config.json: its embedding would not be trained any more
    logbook.write_json(file, known | {name: i for name, i in ids.items() if i is not None})
    got = probe(hf_weights.load(hf_weights.open_model(folder), spec, mesh), spec, mesh)
    difference, reread = (float(np.abs(got - want).max()) for want in (trained, rounded))
    if not reread <= TOLERANCE:
      raise StorageError(
        f"{folder}: read again, its log-probabilities differ by {reread:.2g} from what was written, over {TOLERANCE}; "
        "don't use it, and export to another disk"
      )
    logbook.write_json(run.workdir / build_policy.POLICY, dataclasses.asdict(spec))
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


def kept_of_training(policy: build_policy.Policy, dtype: str) -> dict:
  """Compares the policy with the weights that its training began with.

  Returns `moved_in_training`, the share of the weights that differ; `kept_of_training`, the share of these that still
  differ where both are rounded to `dtype`; and `trained_since`, where training began. Each is None where nothing is
  rounded or moved, or where those weights are not there.
  """
  nothing = dict.fromkeys(("moved_in_training", "kept_of_training", "trained_since"))
  if dtype == "float32" or (start := build_policy.load_start(policy)) is None:
    return nothing
  place, before = start
  counts = [multihost.fetch(_differing(w, before[name], dtype)) for name, w in policy.params.items()]
  moved, kept = (sum(int(rows.sum(dtype=np.int64)) for rows in which) for which in zip(*counts, strict=True))
  if not moved:
    return nothing
  share = moved / policy_spec.count_weights(policy.spec)
  return {"moved_in_training": share, "kept_of_training": kept / moved, "trained_since": place}


@functools.partial(jax.jit, static_argnums=2)
def _differing(one: jax.Array, other: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Returns how many elements differ, and still differ after rounding to `dtype`, for each index of the first axis."""
  rest = tuple(range(1, one.ndim))
  pairs = (one, other), [jax.lax.reduce_precision(w, *_BITS[dtype]) for w in (one, other)]
  exact, rounded = (jnp.sum(a != b, axis=rest, dtype=jnp.int32) for a, b in pairs)
  return exact, rounded


def probe(
  params: Mapping[str, jax.Array], spec: policy_spec.Spec, mesh: jax.sharding.Mesh, dtype: str = "float32"
) -> np.ndarray:
  """Log-probability, entropy and self-certainty of random tokens, which together read every logit, in float32 and
  with weights rounded to `dtype`."""

  rows = sharding.size(mesh, "batch")
  tokens_BT = np.random.default_rng(0).integers(0, spec.known_vocab, (rows, 16)).astype(np.int32)
  positions_BT, segments_BT = np.broadcast_to(np.arange(16, dtype=np.int32), tokens_BT.shape), np.ones_like(tokens_BT)
  up = multihost.put((tokens_BT, positions_BT, segments_BT), sharding.named_sharding(mesh, "batch"))
  with jax.set_mesh(mesh):
    found = _rounded_score(params, *up, spec, dtype)
  return np.stack(multihost.fetch((found.logp_BT, found.entropy_BT, found.certainty_BT)))


@functools.partial(jax.jit, static_argnames=("spec", "dtype"))
def _rounded_score(params, tokens_BT, positions_BT, segments_BT, spec: policy_spec.Spec, dtype: str):
  rounded = {name: jax.lax.reduce_precision(w, *_BITS[dtype]) for name, w in params.items()}
  return score(rounded, tokens_BT, positions_BT, segments_BT, spec)
