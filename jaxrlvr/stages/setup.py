"""From config to the values that a stage works with: mesh, tokenizer, policy and its weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrlvr import checkpoint, hosts, keys, logbook, optim, shard
from jaxrlvr.policy import spec as policy_spec
from jaxrlvr.policy.spec import RopeScaling, Spec
from jaxrlvr.text.tokenizer import SentencePiece, Tokenizer
from jaxrlvr.types import InputError
from jaxrlvr.update import TrainState, init_state

TOKENIZER = "tokenizer.model"
POLICY = "policy.json"


class Policy(NamedTuple):
  spec: Spec
  tokenizer: Tokenizer
  params: dict
  mesh: jax.sharding.Mesh
  origin: dict  # where the weights come from: run directory and step, or the seed


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  sizes = dict(config.mesh)
  needed = 1
  for n in sizes.values():
    needed *= max(n, 1)
  devices = jax.devices()
  if jax.process_count() != hosts.count():
    raise InputError(f"this is one of {jax.process_count()} processes; start each with --distributed, see README")
  if -1 not in sizes.values():
    if needed > len(devices):
      raise InputError(
        f"config.mesh = {sizes}: needs {needed} devices, there are {len(devices)}; lower one of its sizes"
      )
    devices = devices[:needed]
    if {d.process_index for d in devices} != set(range(hosts.count())):
      raise InputError(
        f"config.mesh = {sizes}: leaves a process without any of its {needed} devices; "
        f"let them cover all {jax.device_count()}"
      )
  try:
    return shard.make_mesh(**sizes, devices=devices)
  except InputError as error:
    raise InputError(f"config.mesh: {error}") from error


def _fresh_spec(config: ConfigDict, vocab: int) -> Spec:
  m = config.model
  shape = {
    k: m[k]
    for k in (
      "width",
      "layers",
      "heads",
      "kv_heads",
      "head_dim",
      "mlp",
      "rope_theta",
      "norm_eps",
      "qkv_bias",
      "qk_norm",
      "tied",
    )
  }
  return Spec(vocab=vocab, rope_scaling=RopeScaling(factor=m.rope_scaling) if m.rope_scaling else None, **shape)


def find_tokenizer(config: ConfigDict) -> Path:
  """The SentencePiece model the config names, directly or as that of the run it starts from."""
  name = config.tokenizer or config.init
  if not name:
    raise InputError(
      "config.tokenizer is empty and so is config.init; name a tokenizer model (`jaxrlvr tokenizer` trains one)"
    )
  path = Path(name)
  return path / TOKENIZER if path.is_dir() else path


def load_policy(config: ConfigDict) -> Policy:
  """Policy of `config.init`, or a fresh one."""
  tokenizer_path = find_tokenizer(config)
  try:
    tokenizer = SentencePiece(tokenizer_path)
  except InputError as error:
    raise InputError(f"config.tokenizer: {error}") from error
  mesh = make_mesh(config)
  init = Path(config.init) if config.init else None
  if init is not None and not (init / POLICY).is_file():
    raise InputError(f"config.init = {config.init!r}: holds no {POLICY}; name the workdir of a finished training stage")
  spec = read_spec(init / POLICY) if init else _fresh_spec(config, tokenizer.vocab_size)
  spec = dataclasses.replace(
    spec, dtype=config.model.dtype, unroll=min(config.model.unroll, spec.layers), vocab_chunk=config.model.vocab_chunk
  )
  if tokenizer.vocab_size > spec.vocab:
    raise InputError(
      f"{tokenizer_path}: {tokenizer.vocab_size} tokens, but the policy has {spec.vocab} rows; use its own tokenizer"
    )
  spec = dataclasses.replace(spec, real_vocab=tokenizer.vocab_size)
  placed = policy_spec.shardings(spec, mesh)
  make = jax.jit(lambda: policy_spec.init(spec, keys.at(config.seed, "init")), out_shardings=placed)
  if init is None:
    params, origin = make(), {"seed": config.seed}
  else:
    params, origin = _load_params(init, jax.eval_shape(make), placed)
  return Policy(spec, tokenizer, params, mesh, origin)


def keep(config: ConfigDict, policy: Policy, workdir: Path) -> None:
  """Copies tokenizer and shape to `workdir`, which then stands alone as an `init`."""
  shutil.copyfile(find_tokenizer(config), workdir / TOKENIZER)
  logbook.write_json(workdir / POLICY, dataclasses.asdict(policy.spec))


def read_spec(path: Path) -> Spec:
  try:
    fields = json.loads(path.read_text())
    fields["rope_scaling"] = fields["rope_scaling"] and RopeScaling(**fields["rope_scaling"])
    return Spec(**fields)
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
      f"{path}: is no policy of this version ({type(error).__name__}: {error}); take another run"
    ) from error


def _load_params(run: Path, shapes: dict, placed: dict):
  abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed[name]) for name, x in shapes.items()}
  store = checkpoint.Checkpoints(run, read_only=True)
  found = store.restore(abstract, None)
  store.close()
  if found is None:
    raise InputError(f"config.init = {str(run)!r}: has no checkpoint; let that run finish first")
  summary = run / "summary.json"
  whole = json.loads(summary.read_text())["steps"] if summary.is_file() else None
  if found[2]["step"] != whole:
    raise InputError(
      f"config.init = {str(run)!r}: step {found[2]['step']} is all of it that loads, its end is {whole}; finish it"
    )
  return found[0], {"run": str(run), "step": whole, "digests": digests_of_params(found[2])}


def digests_of_params(meta: dict) -> dict[str, str]:
  return {name: digest for name, digest in meta["digests"].items() if name.startswith("['params']")}


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation) -> TrainState:
  """Training state at step 0, moments laid out like the weights they belong to; the policy's own weights stay."""
  rest = shard.named(policy.mesh)
  placed = policy_spec.shardings(policy.spec, policy.mesh)
  shapes = jax.eval_shape(lambda p: init_state(p, optimizer), policy.params)
  with jax.transfer_guard("allow"):  # optax builds small placeholders
    moments = optax.tree.map_params(
      optimizer, lambda _, place: place, shapes.opt_state, placed, transform_non_params=lambda _: rest
    )
  places = TrainState(placed, moments, rest, rest, rest)
  return jax.jit(lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer), out_shardings=places)(policy.params)


def optimizer(o: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, np.ndarray]:
  """(optimiser, learning rate of each update [updates]) of an `optim` group over this many updates."""
  rates = optim.rates(o.schedule, o.lr, round(o.warmup * updates), updates, o.floor)
  return optim.adamw(o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm), rates
