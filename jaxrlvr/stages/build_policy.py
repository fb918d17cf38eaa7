"""Builds from a config what a stage works with: mesh, tokenizer, policy, its weights and the training state."""

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
POLICY = "policy.json"  # in a run directory: the shape of its policy
MODEL = "model"  # in a run directory: a Hugging Face model
TOKENIZER_FOLDER = "tokenizer"  # in a run directory: the files of a tokenizer that is not SentencePiece's
# The argument enable_thinking of the chat template (None: not passed), by config.model.think.
THINKING_SWITCH = {"template": None, "on": True, "off": False}


class Policy(NamedTuple):
  """A policy: its shape, tokenizer and weights, and the devices that they are laid out on."""

  spec: Spec
  tokenizer: Tokenizer
  params: dict  # float32 arrays by name, sharded over `mesh`
  mesh: jax.sharding.Mesh  # of training and scoring
  sample_mesh: jax.sharding.Mesh  # of sampling, over the same devices
  # Where the weights come from. Of a run: {"run", "step", "digests", "start"}, where `start` is the origin of the
  # weights that its training began with. Of a Hugging Face model: {"model": folder, "digests"}. Of fresh weights:
  # {"seed"}.
  origin: dict


def find_devices() -> list[jax.Device]:
  """Returns all devices. Raises InputError where JAX_PLATFORMS names a platform that jax doesn't find on this
  machine."""
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:  # AssertionError: no package for the platform is installed
    reason = (str(error).strip() or "nothing is installed for it").splitlines()[0]
    raise InputError(
      f"JAX_PLATFORMS = {jax.config.values['jax_platforms']!r}: jax finds no such device here ({reason}); unset "
      "JAX_PLATFORMS or set it to cpu, or install what the device needs (the extra `gpu` or `tpu`)"
    ) from error


def configured_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh of config.mesh over these devices; None: over all devices of the run.

  Also sets where compiled programs are kept, which must be done before the first program. Raises InputError where the
  sizes don't fit the devices, or leave a process without a device.
  """
  if devices is None:
    find_devices()
  set_compile_cache(config.compile_cache)
  sizes = {name: config.mesh[name] for name in sharding.AXES}
  needed = math.prod(max(size, 1) for size in sizes.values())
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
  """Returns the mesh of sampling, whose size along `tensor` is config.mesh.sample_tensor, or is chosen if that is 0.

  memory: bytes of a device; None: unknown, as on CPU. The size that is chosen is the least one if memory is unknown,
  else the number of KV heads, with which a device reads the least weights and cache for a token; it is larger if the
  weights would otherwise take over a quarter of the device's memory. Raises InputError where no size fits.
  """
  size = config.mesh.sample_tensor
  if not size:
    return _choose_sampling_mesh(spec, mesh, memory)
  try:
    return _sampling_mesh(spec, mesh, size)
  except InputError as error:
    raise InputError(f"config.mesh.sample_tensor = {size}: {error}") from error


def _sampling_mesh(spec: Spec, mesh: jax.sharding.Mesh, size: int) -> jax.sharding.Mesh:
  """Returns the mesh of sampling with this size along `tensor`. Raises InputError where the weights can't be split
  so."""
  sample_mesh = sharding.sampling_mesh(mesh, size)
  policy_spec.shardings(spec, sample_mesh)
  return sample_mesh


def _choose_sampling_mesh(spec: Spec, mesh: jax.sharding.Mesh, memory: int | None) -> jax.sharding.Mesh:
  """Returns the mesh of sampling with the size along `tensor` that `configured_sampling_mesh` describes."""
  devices = mesh.devices.size
  weight_bytes = policy_spec.count_weights(spec) * jnp.dtype(spec.dtype).itemsize
  chosen = None
  for size in range(mesh.shape["tensor"], devices + 1):
    if devices % size:
      continue
    if chosen is not None and memory is None:
      break
    if chosen is not None and size > spec.kv_heads and weight_bytes / chosen.shape["tensor"] <= memory / 4:
      break
    try:
      chosen = _sampling_mesh(spec, mesh, size)
    except InputError:
      continue
  if chosen is None:
    raise InputError(f"config.mesh.sample_tensor: no cut of the weights fits {devices} devices; change config.mesh")
  return chosen


def fresh_spec(config: ConfigDict, vocab: int) -> Spec:
  """Returns the shape that config.model gives to fresh weights, with `vocab` rows in the embedding table."""
  m = config.model
  return Spec(
    vocab=vocab,
    width=m.width,
    layers=m.layers,
    heads=m.heads,
    kv_heads=m.kv_heads,
    head_dim=m.head_dim,
    mlp=m.mlp,
    rope_theta=m.rope_theta,
    rope_scaling=RopeScaling(factor=m.rope_scaling) if m.rope_scaling else None,
    norm_eps=m.norm_eps,
    qkv_bias=m.qkv_bias,
    qk_norm=m.qk_norm,
    tied=m.tied,
  )


def find_model(config: ConfigDict) -> hf_weights.Model | None:
  """Opens the Hugging Face directory of `config.model.path`, or of a `config.init` that `import` wrote; None: neither.

  Raises InputError where the directory holds no model that can be used.
  """
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
  """Returns the local path of the config's tokenizer: a SentencePiece file, or a folder with tokenizer.json.

  config.tokenizer names it, else config.init or config.model.path does. Raises InputError where none is named, or
  the folder that is named holds none.
  """
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
  """Returns the tokenizer of a config.

  Warns where the end token of the chat template ends no response. Raises InputError where the tokenizer can't be read,
  or takes no config.model.think or config.model.stop_tokens.
  """
  path, think = find_tokenizer(config), THINKING_SWITCH[config.model.think]
  try:
    if path.is_dir():
      tokenizer = hf_tokenizer.HuggingFace(path, think, config.model.stop_tokens)
    else:
      tokenizer = SentencePiece(path)
  except InputError as error:
    raise InputError(f"config.tokenizer: {error}") from error
  if config.model.stop_tokens and isinstance(tokenizer, SentencePiece):
    raise InputError("config.model.stop_tokens is set, but the built-in tokenizer has one end token; set it to ()")
  if isinstance(tokenizer, hf_tokenizer.HuggingFace) and tokenizer.missing_stop_token:
    _LOG.warning(
      "%s: the chat template ends an assistant's turn with %s, which ends no response here: the policy would write "
      "turns of its own making behind it; take config.model.stop_tokens=%s, or name it as eos_token in "
      "tokenizer_config.json or in eos_token_id of generation_config.json",
      path,
      tokenizer.missing_stop_token,
      tokenizer.missing_stop_token,
    )
  if think is not None:
    try:
      tokenizer.render(({"role": "user", "content": ""},), think)
    except InputError as error:
      raise InputError(f"config.model.think = {config.model.think!r}: {error}") from error
  return tokenizer


def check_rows(tokenizer: Tokenizer, spec: Spec) -> Spec:
  """Returns the spec with the tokenizer's number of tokens as `real_vocab`, its rows that are in use.

  Raises InputError where the tokenizer has more tokens than the embedding table has rows.
  """
  if tokenizer.vocab_size > spec.vocab:
    raise InputError(
      f"config.tokenizer: {tokenizer.vocab_size} tokens, but the policy has {spec.vocab} rows; use its own tokenizer"
    )
  return dataclasses.replace(spec, real_vocab=tokenizer.vocab_size)


def load_policy(config: ConfigDict) -> Policy:
  """Builds the policy of a config: tokenizer, meshes, and the weights laid out on the devices.

  On several hosts all processes must call it together. The weights are the newest of config.init, those of
  config.model.path, or fresh ones if neither is set. Raises InputError where a directory holds no policy, and
  StorageError where its checkpoints are damaged.
  """
  init = object_store.path(config.init) if config.init else None
  if init is not None:
    _check_is_run(config.init, init)
  model, tokenizer = find_model(config), read_tokenizer(config)
  mesh = configured_mesh(config)
  if model is not None:
    spec = model.spec
  elif init is not None:
    spec = read_recorded_spec(init / POLICY)
  else:
    spec = fresh_spec(config, config.model.vocab or tokenizer.vocab_size)
  device = mesh.local_devices[0]
  spec = check_rows(tokenizer, configured(config, spec, platform_of(device)))
  shardings = policy_spec.shardings(spec, mesh)
  memory_of_device = (device.memory_stats() or {}).get("bytes_limit")
  sample_mesh = configured_sampling_mesh(config, spec, mesh, memory_of_device)
  fresh_params = jax.jit(lambda: policy_spec.init(spec, keys.at(config.seed, "init")), out_shardings=shardings)
  if model is not None:
    params, origin = hf_weights.load(model, spec, mesh), origin_of(model)
  elif init is not None:
    params, origin = _load_params(init, jax.eval_shape(fresh_params), shardings)
  else:
    params, origin = fresh_params(), {"seed": config.seed}
  if isinstance(tokenizer, hf_tokenizer.HuggingFace):  # its template and end tokens are not among its pieces
    origin["digests"] = {**origin.get("digests", {}), "tokenizer": tokenizer.digest}
  return Policy(spec, tokenizer, params, mesh, sample_mesh, origin)


def _check_is_run(name: str, init: Path) -> None:
  """Raises InputError where config.init, of this name, holds no policy of a run."""
  if (init / POLICY).is_file():
    return
  hugging_face_files = (hf_weights.SINGLE, hf_weights.INDEX, hf_tokenizer.TOKENIZER)
  if any((init / file).is_file() for file in hugging_face_files):
    raise InputError(
      f"config.init = {name!r}: is a Hugging Face directory, and a run directory is wanted; name it as "
      f"config.model.path={name} (and --config.init=), or `jaxrlvr import` it first"
    )
  raise InputError(f"config.init = {name!r}: holds no {POLICY}; name the workdir of a finished training stage")


def configured(config: ConfigDict, spec: Spec, platform: str) -> Spec:
  """Returns the spec with config.model's settings of how to compute (dtype, unroll, remat, ...); its shape stays.

  platform: of the devices, such as "tpu", "gpu" or "cpu", by which attention "auto" is chosen.
  """
  m = config.model
  return dataclasses.replace(
    spec,
    dtype=m.dtype,
    unroll=min(m.unroll, spec.layers),
    vocab_chunk=m.vocab_chunk,
    remat=m.remat,
    attention=resolve(m.attention, platform, m.dtype),
  )


def origin_of(model: hf_weights.Model) -> dict:
  """Returns the `Policy.origin` of a Hugging Face model's weights: {"model": folder, "digests": of weights and
  config}."""
  config = (model.folder / "config.json").read_text()
  return {
    "model": str(model.folder),
    "digests": {"weights": hf_weights.weights_digest(model), "config": logbook.digest(config)},
  }


def keep_policy(config: ConfigDict, policy: Policy, workdir: Path, training: Sequence[Problem] = ()) -> None:
  """Writes tokenizer, shape and digests of the training prompts to a run directory, which can then be a config.init.

  The digests are those of all prompts that this policy and the policies it started from are known to be trained on;
  none are written where none are known. training: the problems that the policy is trained on; (): no problems.
  """
  keep_tokenizer(config, workdir / TOKENIZER_FILE, workdir / TOKENIZER_FOLDER)
  logbook.write_json(workdir / POLICY, dataclasses.asdict(policy.spec))
  if (trained := trained_on(config, training)) is not None:
    logbook.write_atomic(workdir / overlap.FILE, overlap.to_text(trained))


def trained_on(config: ConfigDict, training: Sequence[Problem]) -> frozenset[str] | None:
  """Returns digests of the prompts in `training` and of all that `config.init` was trained on; None: none are known.

  training: the problems that a policy is about to be trained on; (): none. Two prompts have the same digest where their
  normalised text is the same (`overlap.prompt_digests`).
  """
  file = object_store.path(config.init) / overlap.FILE if config.init else None
  before = overlap.from_text(file.read_text(), str(file)) if file is not None and file.is_file() else frozenset()
  return before | overlap.prompt_digests(training) or None


def keep_tokenizer(config: ConfigDict, file: Path, folder: Path) -> None:
  """Copies the config's tokenizer: a SentencePiece model to `file`, or the files of another one into `folder`.

  Of the two only the one that is written to comes into being. Raises InputError where the config names no tokenizer.
  """
  source = find_tokenizer(config)
  if not source.is_dir():
    disk.copy(source, file)
    return
  folder.mkdir(exist_ok=True)
  for name in hf_tokenizer.FILES:
    if (source / name).is_file():
      disk.copy(source / name, folder / name)


def read_recorded_spec(path: Path) -> Spec:
  """Returns the spec that a policy.json holds. Raises InputError where it holds none of this version."""
  try:
    fields = json.loads(path.read_text())
    fields["rope_scaling"] = fields["rope_scaling"] and RopeScaling(**fields["rope_scaling"])
    return Spec(**fields)
  except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
    raise InputError(
      f"{path}: is no policy of this version ({type(error).__name__}: {error}); take another run"
    ) from error


def _load_params(run: Path, shapes: dict, shardings: dict) -> tuple[dict, dict]:
  """Returns (weights of a finished run's last checkpoint, their `Policy.origin`).

  shapes, shardings: of each weight by its name. Raises InputError where the run has no checkpoint of its last step.
  """
  abstract = {}
  for name, leaf in shapes.items():
    abstract[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
  store = checkpoint.Checkpoints(run, read_only=True)
  restored = store.restore(abstract, None)
  store.close()
  if restored is None:
    raise InputError(f"config.init = {str(run)!r}: has no checkpoint; let that run finish first")
  params, _, meta = restored
  last_step = logbook.read_json(run / "summary.json").get("steps")
  if meta["step"] != last_step:
    raise InputError(
      f"config.init = {str(run)!r}: its last whole checkpoint is of step {meta['step']}, and "
      + ("the run is not finished" if last_step is None else f"it ended at step {last_step}")
      + "; finish it by the command that made it, with --resume=check"
    )
  origin_of_training = meta.get("origin", {})
  return params, {
    "run": str(run),
    "step": last_step,
    "digests": digests_of_params(meta),
    "start": origin_of_training,
  }


def load_start(policy: Policy) -> tuple[str, dict] | None:
  """Returns (place, weights) that the policy's training began with; the weights are float32 and sharded as the
  policy's.

  If they are gone or have changed, a warning says so and the weights before them are taken, as far back as the runs
  have recorded it. Returns None where no such weights are left.
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
  """Loads the weights of an origin. Raises InputError where they are gone, have changed, or take too much memory."""
  place = origin.get("run") or origin["model"]
  needed, free_bytes = 4 * policy_spec.count_weights(policy.spec), memory.free(policy.mesh)
  if free_bytes is not None and needed > free_bytes:
    raise InputError(f"{place}: takes {needed / 1e9:.1f} GB, {free_bytes / 1e9:.1f} GB are free; take more memory")
  recorded = {name: digest for name, digest in origin["digests"].items() if name != "tokenizer"}
  if "model" in origin:
    model = hf_weights.open_model(place)
    params, digests = None, origin_of(model)["digests"]
  else:
    leaves = policy_spec.leaves(policy.spec).items()
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in leaves}
    run = object_store.path(place)
    if not (run / POLICY).is_file():
      raise InputError(f"{place}: is gone; put it back")
    params, origin_now = _load_params(run, shapes, policy_spec.shardings(policy.spec, policy.mesh))
    digests = origin_now["digests"]
  if digests != recorded:
    raise InputError(f"{place}: has changed since; put back what it was")
  return hf_weights.load(model, policy.spec, policy.mesh) if params is None else params


def digests_of_params(meta: dict) -> dict[str, str]:
  """Returns the digests of the weights alone from the record `meta` of a checkpoint, by the array's name."""
  return {name: digest for name, digest in meta["digests"].items() if name.startswith("['params']")}


def frozen(policy: Policy) -> dict:
  """Returns a copy of the policy's weights by name, in the compute dtype, in which a forward pass reads them.

  The copy stays as it is when training changes or donates the policy's own arrays.
  """
  copy = jax.jit(lambda p: jax.tree.map(jnp.copy, forward.cast(p, policy.spec)))
  return copy(policy.params)


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the training state at step 0: the policy's weights, the optimizer's moments (0) and counts of updates (0).

  Its weights are the policy's own arrays, which are donated to it: `policy.params` must not be used after that.
  """
  _, places = state_shapes(policy, optimizer)
  return jax.jit(lambda p: init_state(p, optimizer), out_shardings=places, donate_argnums=0)(policy.params)


def state_shapes(policy: Policy, optimizer: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
  """Returns (shapes, shardings) of the training state, as two trees of its structure.

  Moments of the optimizer are sharded like their weights, counts are replicated. Nothing is computed.
  """
  replicated: Any = sharding.named_sharding(policy.mesh)
  of_params: Any = policy_spec.shardings(policy.spec, policy.mesh)
  shapes = jax.eval_shape(lambda params: init_state(params, optimizer), policy.params)
  with jax.transfer_guard("allow"):  # optax builds small placeholders
    of_optimizer = optax.tree.map_params(
      optimizer, lambda _, place: place, shapes.opt_state, of_params, transform_non_params=lambda _: replicated
    )
  return shapes, TrainState(of_params, of_optimizer, replicated, replicated, replicated)


def optimizer(o: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, np.ndarray]:
  """Returns (AdamW with clipped gradients, learning rate of each update [updates]) for a stage's group `optim`.

  o: the group, such as config.rl.optim. updates: number of updates in the whole run, by which the schedule is laid out.
  """
  rates = optim.rates(o.schedule, o.lr, round(o.warmup * updates), updates, o.floor)
  return optim.adamw(o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm, o.moment), rates
