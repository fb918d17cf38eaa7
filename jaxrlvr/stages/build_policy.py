"""From config to the values that a stage works with: mesh, tokenizer, policy and its weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrlvr.base import disk, logbook, object_store
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import hub, overlap
from jaxrlvr.device import checkpoint, keys, multihost, sharding
from jaxrlvr.model import forward, hf_weights
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.model.attention import platform_of, resolve
from jaxrlvr.model.spec import RopeScaling, Spec
from jaxrlvr.stages import memory
from jaxrlvr.stages.run_directory import set_compile_cache
from jaxrlvr.text import hf_tokenizer
from jaxrlvr.text.tokenizer import SentencePiece, Tokenizer
from jaxrlvr.training import optimizer as optim
from jaxrlvr.training.update import TrainState, init_state

_LOG = logging.getLogger(__name__)
TOKENIZER_FILE = "tokenizer.model"
POLICY = "policy.json"
MODEL = "model"  # in a run directory: a Hugging Face model
TOKENIZER_FOLDER = "tokenizer"  # in a run directory: the files of a tokenizer that is not SentencePiece's
THINKING_SWITCH = {"template": None, "on": True, "off": False}


class Policy(NamedTuple):
  spec: Spec
  tokenizer: Tokenizer
  params: dict
  mesh: jax.sharding.Mesh
  sample_mesh: jax.sharding.Mesh  # the same devices as sampling uses them
  origin: dict  # of the weights: run directory, step and `start`, the origin before; a model's folder; or the seed


def find_devices() -> list[jax.Device]:
  """Returns all devices; InputError where JAX_PLATFORMS names one that jax can't find here."""
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter where no package for the platform is installed
    reason = (str(error).strip() or "nothing is installed for it").splitlines()[0]
    raise InputError(
      f"JAX_PLATFORMS = {jax.config.values['jax_platforms']!r}: jax finds no such device here ({reason}); unset "
      "JAX_PLATFORMS or set it to cpu, or install what the device needs (the extra `gpu` or `tpu`)"
    ) from error


def configured_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """The mesh of config.mesh over these devices (default: all there are)."""
  if devices is None:
    find_devices()
  set_compile_cache(config.compile_cache)  # before the first program
  sizes = {name: config.mesh[name] for name in sharding.AXES}
  needed = math.prod(max(n, 1) for n in sizes.values())
  if devices is None and jax.process_count() != multihost.process_count():
    raise InputError(f"this is one of {jax.process_count()} processes; start each with --distributed (docs/scaling.md)")
  devices = jax.devices() if devices is None else devices
  if -1 not in sizes.values():
    if needed > len(devices):
      raise InputError(
        f"config.mesh = {sizes}: needs {needed} devices, there are {len(devices)}; lower one of its sizes"
      )
    devices = devices[:needed]
    if {d.process_index for d in devices} != set(range(multihost.process_count())):
      raise InputError(
        f"config.mesh = {sizes}: leaves a process without any of its {needed} devices; "
        f"let them cover all {jax.device_count()}"
      )
  try:
    return sharding.make_mesh(**sizes, devices=devices)
  except InputError as error:
    raise InputError(f"config.mesh: {error}") from error


def configured_sampling_mesh(
  config: ConfigDict, spec: Spec, mesh: jax.sharding.Mesh, memory: int | None
) -> jax.sharding.Mesh:
  """The mesh that sampling uses: config.mesh.sample_tensor, or where it is 0 what suits devices of `memory` bytes.

  None: unknown (a CPU), few pieces. Else as many as there are KV heads, for a device then reads least of weights and
  cache for a token; more where the weights would still take over a quarter of its memory.
  """
  wanted, devices = config.mesh.sample_tensor, mesh.devices.size
  whole = policy_spec.count_weights(spec) * jnp.dtype(spec.dtype).itemsize
  found = None
  for cut in [wanted] if wanted else [n for n in range(mesh.shape["tensor"], devices + 1) if devices % n == 0]:
    try:
      made = sharding.sampling_mesh(mesh, cut)
      policy_spec.shardings(spec, made)
    except InputError as error:
      if wanted:
        raise InputError(f"config.mesh.sample_tensor = {wanted}: {error}") from error
      continue
    if found is not None and (memory is None or (cut > spec.kv_heads and whole / found.shape["tensor"] <= memory / 4)):
      break
    found = made
  if found is None:
    raise InputError(f"config.mesh.sample_tensor: no cut of the weights fits {devices} devices; change config.mesh")
  return found


def fresh_spec(config: ConfigDict, vocab: int) -> Spec:
  """The shape that config.model gives to fresh weights."""
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


def find_model(config: ConfigDict) -> hf_weights.Model | None:
  """The checked Hugging Face directory of `config.model.path`, or that of an imported `config.init`; None: neither."""
  run = object_store.path(config.init)
  if not config.model.path and not (config.init and (run / MODEL).is_dir()):
    return None
  if config.model.path and (object_store.path(config.model.path) / POLICY).is_file():
    raise InputError(
      f"config.model.path = {config.model.path!r}: is a run directory, and a Hugging Face directory is wanted; name it "
      f"as config.init={config.model.path} (and --config.model.path=)"
    )
  try:
    return hf_weights.open_model(hub.model(config.model.path) if config.model.path else run / MODEL)
  except InputError as error:
    raise InputError(f"config.{'model.path' if config.model.path else 'init'}: {error}") from error


def find_tokenizer(config: ConfigDict) -> Path:
  """What the config names, directly or with its policy: a SentencePiece file, or a folder with tokenizer.json."""
  name = config.tokenizer or config.init or (config.model.path and hub.model(config.model.path))
  if not name:
    raise InputError(
      "config.tokenizer is empty and so are config.init and config.model.path; name a tokenizer model (`jaxrlvr "
      "tokenizer` trains one)"
    )
  path = object_store.path(name)
  if path.name == hf_tokenizer.TOKENIZER:
    return Path(object_store.local(str(path.parent), hf_tokenizer.FILES))
  for folder in (path, path / TOKENIZER_FOLDER, path / MODEL):
    if (folder / hf_tokenizer.TOKENIZER).is_file():
      return Path(object_store.local(str(folder), hf_tokenizer.FILES))
    if (folder / TOKENIZER_FILE).is_file():
      return Path(object_store.local(str(folder / TOKENIZER_FILE)))
  if path.is_dir() and config.init != name:
    raise InputError(
      f"config.tokenizer: {path}: holds neither {hf_tokenizer.TOKENIZER} nor {TOKENIZER_FILE}; name a folder that does"
    )
  return path / TOKENIZER_FILE if path.is_dir() else Path(object_store.local(str(path)))


def read_tokenizer(config: ConfigDict) -> Tokenizer:
  path, think = find_tokenizer(config), THINKING_SWITCH[config.model.think]
  try:
    if path.is_dir():
      tokenizer = hf_tokenizer.HuggingFace(path, think, config.model.stop_tokens)
    else:
      tokenizer = SentencePiece(path)
  except InputError as error:
    raise InputError(f"config.tokenizer: {error}") from error
  if config.model.stop_tokens and isinstance(tokenizer, SentencePiece):
    raise InputError("config.model.stop_tokens is set, but the embedded tokenizer has one end token; set it to ()")
  if isinstance(tokenizer, hf_tokenizer.HuggingFace) and (token := tokenizer.unstopped):
    _LOG.warning(
      "%s: the chat template ends an assistant's turn with %s, which ends no response here: the policy would write "
      "turns of its own making behind it; take config.model.stop_tokens=%s, or name it as eos_token in "
      "tokenizer_config.json or in eos_token_id of generation_config.json", path, token, token,
    )  # fmt: skip
  if think is not None:
    try:
      tokenizer.render(({"role": "user", "content": ""},), think)
    except InputError as error:
      raise InputError(f"config.model.think = {config.model.think!r}: {error}") from error
  return tokenizer


def check_rows(tokenizer: Tokenizer, spec: Spec) -> Spec:
  """The shape with the rows that the tokenizer knows; InputError where it knows more than there are."""
  if tokenizer.vocab_size > spec.vocab:
    raise InputError(
      f"config.tokenizer: {tokenizer.vocab_size} tokens, but the policy has {spec.vocab} rows; use its own tokenizer"
    )
  return dataclasses.replace(spec, real_vocab=tokenizer.vocab_size)


def load_policy(config: ConfigDict) -> Policy:
  """Policy of `config.init` or `config.model.path`, or a fresh one."""
  init = object_store.path(config.init) if config.init else None
  if init is not None and not (init / POLICY).is_file():
    if any((init / name).is_file() for name in (hf_weights.SINGLE, hf_weights.INDEX, hf_tokenizer.TOKENIZER)):
      raise InputError(
        f"config.init = {config.init!r}: is a Hugging Face directory, and a run directory is wanted; name it as "
        f"config.model.path={config.init} (and --config.init=), or `jaxrlvr import` it first"
      )
    raise InputError(f"config.init = {config.init!r}: holds no {POLICY}; name the workdir of a finished training stage")
  model, tokenizer = find_model(config), read_tokenizer(config)
  mesh = configured_mesh(config)
  stated = read_recorded_spec(init / POLICY) if init else fresh_spec(config, config.model.vocab or tokenizer.vocab_size)
  device = mesh.local_devices[0]
  spec = check_rows(tokenizer, configured(config, model.spec if model else stated, platform_of(device)))
  placed = policy_spec.shardings(spec, mesh)
  memory = (device.memory_stats() or {}).get("bytes_limit")
  sample_mesh = configured_sampling_mesh(config, spec, mesh, memory)
  make = jax.jit(lambda: policy_spec.init(spec, keys.at(config.seed, "init")), out_shardings=placed)
  if model is not None:
    params, origin = hf_weights.load(model, spec, mesh), origin_of(model)
  elif init is None:
    params, origin = make(), {"seed": config.seed}
  else:
    params, origin = _load_params(init, jax.eval_shape(make), placed)
  if isinstance(tokenizer, hf_tokenizer.HuggingFace):  # its template and end tokens are not among its pieces
    origin["digests"] = {**origin.get("digests", {}), "tokenizer": tokenizer.digest}
  return Policy(spec, tokenizer, params, mesh, sample_mesh, origin)


def configured(config: ConfigDict, spec: Spec, platform: str) -> Spec:
  """The spec with what a config says of how to compute, whatever the weights."""
  m = config.model
  how = dict(dtype=m.dtype, unroll=min(m.unroll, spec.layers), vocab_chunk=m.vocab_chunk, remat=m.remat)
  return dataclasses.replace(spec, **how, attention=resolve(m.attention, platform, m.dtype))


def origin_of(model: hf_weights.Model) -> dict:
  config = (model.folder / "config.json").read_text()
  return {
    "model": str(model.folder),
    "digests": {"weights": hf_weights.weights_digest(model), "config": logbook.digest(config)},
  }


def keep_policy(config: ConfigDict, policy: Policy, workdir: Path, training: Sequence[Problem] = ()) -> None:
  """Copies tokenizer and shape to `workdir`, which then stands alone as an `init`, and tells what it is trained on."""
  keep_tokenizer(config, workdir / TOKENIZER_FILE, workdir / TOKENIZER_FOLDER)
  logbook.write_json(workdir / POLICY, dataclasses.asdict(policy.spec))
  if (trained := trained_on(config, training)) is not None:
    logbook.write_atomic(workdir / overlap.FILE, overlap.to_text(trained))


def trained_on(config: ConfigDict, training: Sequence[Problem]) -> frozenset[str] | None:
  """Digests of the prompts of `training` and of those that `config.init` was trained on; None: none are known."""
  file = object_store.path(config.init) / overlap.FILE if config.init else None
  before = overlap.from_text(file.read_text(), str(file)) if file is not None and file.is_file() else frozenset()
  return before | overlap.prompt_digests(training) or None


def keep_tokenizer(config: ConfigDict, file: Path, folder: Path) -> None:
  """Copies a SentencePiece model to `file`, or the files of another tokenizer into `folder`."""
  source = find_tokenizer(config)
  if not source.is_dir():
    disk.copy(source, file)
    return
  folder.mkdir(exist_ok=True)
  for name in hf_tokenizer.FILES:
    if (source / name).is_file():
      disk.copy(source / name, folder / name)


def read_recorded_spec(path: Path) -> Spec:
  try:
    fields = json.loads(path.read_text())
    fields["rope_scaling"] = fields["rope_scaling"] and RopeScaling(**fields["rope_scaling"])
    return Spec(**fields)
  except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
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
  whole = logbook.read_json(run / "summary.json").get("steps")
  if found[2]["step"] != whole:
    raise InputError(
      f"config.init = {str(run)!r}: its last whole checkpoint is of step {found[2]['step']}, its end is {whole}; "
      "finish it by the command that made it, with --resume=check"
    )
  start = found[2].get("origin", {})  # of what this run's training began with
  return found[0], {"run": str(run), "step": whole, "digests": digests_of_params(found[2]), "start": start}


def load_start(policy: Policy) -> tuple[str, dict] | None:
  """Returns the place and the weights that the policy's training began with, float32 and laid out as the policy's.

  Where they are gone or changed, that is told and those before them are taken, as far back as the runs have recorded
  it; None where there are none.
  """
  start = policy.origin.get("start", {})
  while "run" in start or "model" in start:
    try:
      return start.get("run") or start["model"], _load_again(start, policy)
    except (InputError, StorageError) as error:
      _LOG.warning("weights that training began with can't be compared: %s", error)
    start = start.get("start", {})
  return None


def _load_again(origin: dict, policy: Policy) -> dict:
  """Returns the weights of this origin; InputError where they are not there as they were."""
  place = origin.get("run") or origin["model"]
  needed, room = 4 * policy_spec.count_weights(policy.spec), memory.free(policy.mesh)
  if room is not None and needed > room:
    raise InputError(f"{place}: takes {needed / 1e9:.1f} GB, {room / 1e9:.1f} GB are free; take more memory")
  known = {name: digest for name, digest in origin["digests"].items() if name != "tokenizer"}
  if "model" in origin:
    model = hf_weights.open_model(place)
    params, found = None, origin_of(model)["digests"]
  else:
    leaves = policy_spec.leaves(policy.spec).items()
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in leaves}
    run = object_store.path(place)
    if not (run / POLICY).is_file():
      raise InputError(f"{place}: is gone; put it back")
    params, kept = _load_params(run, shapes, policy_spec.shardings(policy.spec, policy.mesh))
    found = kept["digests"]
  if found != known:
    raise InputError(f"{place}: has changed since; put back what it was")
  return hf_weights.load(model, policy.spec, policy.mesh) if params is None else params


def digests_of_params(meta: dict) -> dict[str, str]:
  return {name: digest for name, digest in meta["digests"].items() if name.startswith("['params']")}


def frozen(policy: Policy) -> dict:
  """A copy of the policy's weights in the compute dtype, which is all that a forward pass reads of them."""
  copy = jax.jit(lambda p: jax.tree.map(jnp.copy, forward.cast(p, policy.spec)))
  return copy(policy.params)


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation) -> TrainState:
  """Training state at step 0; it takes the policy's own weights."""
  _, places = state_shapes(policy, optimizer)
  return jax.jit(lambda p: init_state(p, optimizer), out_shardings=places, donate_argnums=0)(policy.params)


def state_shapes(policy: Policy, optimizer: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
  """(shapes, shardings) of the training state; moments are laid out like the weights they belong to."""
  rest: Any = sharding.named_sharding(policy.mesh)
  placed: Any = policy_spec.shardings(policy.spec, policy.mesh)
  shapes = jax.eval_shape(lambda p: init_state(p, optimizer), policy.params)
  with jax.transfer_guard("allow"):  # optax builds small placeholders
    moments = optax.tree.map_params(
      optimizer, lambda _, place: place, shapes.opt_state, placed, transform_non_params=lambda _: rest
    )
  return shapes, TrainState(placed, moments, rest, rest, rest)


def optimizer(o: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, np.ndarray]:
  """(optimiser, learning rate of each update [updates]) of an `optim` group over this many updates."""
  rates = optim.rates(o.schedule, o.lr, round(o.warmup * updates), updates, o.floor)
  return optim.adamw(o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm, o.moment), rates
