"""Builds from a config what a stage works with: tokenizer, meshes, weights and the training state.

`load_policy` makes the policy; `fresh_state` makes the state that training changes, and takes the policy's weights.
`write_policy_files` writes what a later stage needs beside the checkpoints to start from the run.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxrlvr.base import disk, logbook, object_store
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.base.types import Problem
from jaxrlvr.config.files import search_beside
from jaxrlvr.data import hub, overlap
from jaxrlvr.device import keys, multihost, sharding
from jaxrlvr.model import forward, hf_weights, lora, peft_files, weight_table
from jaxrlvr.model.attention import platform_of, resolve
from jaxrlvr.model.rope import Llama3
from jaxrlvr.model.spec import Lora, Spec
from jaxrlvr.sampling.weights import FrozenWeights
from jaxrlvr.stages import memory, origins
from jaxrlvr.stages.origins import POLICY_FILE
from jaxrlvr.stages.run_directory import set_compile_cache
from jaxrlvr.text import hf_tokenizer
from jaxrlvr.text.tokenizer import SentencePiece, Tokenizer
from jaxrlvr.training import optimizer as optim
from jaxrlvr.training.update import TrainState, init_state

_LOG = logging.getLogger(__name__)
Opened = TypeVar("Opened")
# Names in a run directory.
TOKENIZER_FILE = "tokenizer.model"  # a SentencePiece model
TOKENIZER_FOLDER = "tokenizer"  # the files of a tokenizer of another kind
MODEL_FOLDER = "model"  # a Hugging Face model
ADAPTER_FOLDER = "adapter"  # a PEFT directory
_FRESH_FAMILY = "llama"  # of fresh weights where config.model.family is empty
_SHARE_OF_WEIGHTS = 1 / 4  # of a device's memory that the weights of sampling may take, if they can be split further
_PARAM_BYTES = 4  # float32
# The argument enable_thinking of the chat template (None: not passed), by config.model.think.
_THINKING_SWITCH = {"template": None, "on": True, "off": False}


class Policy(NamedTuple):
  """A policy: its shape, tokenizer and weights, and the devices that they are laid out on.

  With LoRA (`spec.lora`) `params` holds the adapters alone, and `frozen` the weights that they are added to; otherwise
  `params` holds all weights and `frozen` none.
  """

  spec: Spec
  tokenizer: Tokenizer
  params: dict  # the weights that training changes: float32 arrays by name, sharded over `mesh`
  mesh: jax.sharding.Mesh  # of training and scoring
  sample_mesh: jax.sharding.Mesh  # of sampling, over the same devices
  origin: dict  # where the weights come from (`stages.origins`)
  frozen: FrozenWeights  # the others, sharded over `mesh` too

  def weights(self, params: Mapping[str, jax.Array] | None = None) -> dict[str, jax.Array]:
    """Returns all weights by name, as scoring takes them: the frozen ones, and `params` (None: the policy's own)."""
    return {**self.frozen.weights, **(self.params if params is None else params)}


def _check_devices() -> None:
  """Raises InputError where JAX_PLATFORMS names a platform that jax doesn't find on this machine."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # AssertionError: no package for the platform is installed
    reason = (str(error).strip() or "nothing is installed for it").splitlines()[0]
    raise InputError(
      f"JAX_PLATFORMS = {jax.config.values['jax_platforms']!r}: jax finds no such device here ({reason}); unset "
      "JAX_PLATFORMS or set it to cpu, or install what the device needs (the extra `gpu` or `tpu`)"
    ) from error


def configured_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """Returns the mesh of training: axes data, fsdp and tensor, of the sizes that config.mesh gives.

  devices: to build it from; None: the devices of all processes of the run. One size may be -1: it takes all devices
  that the other sizes leave. Without a -1 the mesh may be smaller: it takes the first devices. Raises InputError where
  the sizes don't fit the devices or leave a process without one, and, for devices None, where several processes (as on
  a TPU pod) were started without --distributed.
  """
  if devices is None:
    processes = jax.process_count()
    if processes != multihost.process_count():
      raise InputError(f"this is one of {processes} processes; start each with --distributed (docs/scaling.md)")
    devices = jax.devices()
  sizes = {name: config.mesh[name] for name in sharding.AXES}
  if -1 not in sizes.values():
    devices = _first_devices(sizes, devices)
  try:
    return sharding.make_mesh(**sizes, devices=devices)
  except InputError as error:
    raise InputError(f"config.mesh: {error}") from error


def _first_devices(sizes: dict[str, int], devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
  """Returns the first devices, as many as a mesh of these sizes needs.

  Raises InputError where there are too few, or a process has none of them.
  """
  needed = math.prod(max(size, 1) for size in sizes.values())
  if needed > len(devices):
    raise InputError(f"config.mesh = {sizes}: needs {needed} devices, there are {len(devices)}; lower one of its sizes")
  used = devices[:needed]
  if {device.process_index for device in used} != set(range(multihost.process_count())):
    raise InputError(
      f"config.mesh = {sizes}: leaves a process without any of its {needed} devices; "
      f"let them cover all {jax.device_count()}"
    )
  return used


def configured_sampling_mesh(
  config: ConfigDict, spec: Spec, mesh: jax.sharding.Mesh, device_bytes: int | None
) -> jax.sharding.Mesh:
  """Returns the mesh of sampling: the devices of `mesh` with another size of its axis `tensor`.

  The size is config.mesh.sample_tensor. If that is 0, one is chosen among the sizes that can split the weights: the
  least one if `device_bytes` is None; else the largest one up to the number of KV heads, with which a device reads the
  fewest bytes for a token, or a larger one if a device's weights would take over a quarter of its memory.

  device_bytes: all memory of a device, free or not; None: unknown, as on CPU. Raises InputError where no size can split
  the weights.
  """
  size = config.mesh.sample_tensor
  if not size:
    return _choose_sampling_mesh(spec, mesh, device_bytes)
  try:
    return _sampling_mesh(spec, mesh, size)
  except InputError as error:
    raise InputError(f"config.mesh.sample_tensor = {size}: {error}") from error


def _sampling_mesh(spec: Spec, mesh: jax.sharding.Mesh, size: int) -> jax.sharding.Mesh:
  """Returns the mesh of sampling with this size along `tensor`. Raises InputError where the weights can't be split
  so."""
  sample_mesh = sharding.sampling_mesh(mesh, size)
  weight_table.shardings(spec, sample_mesh)
  return sample_mesh


def _choose_sampling_mesh(spec: Spec, mesh: jax.sharding.Mesh, device_bytes: int | None) -> jax.sharding.Mesh:
  """Returns the mesh of sampling with the size along `tensor` that `configured_sampling_mesh` describes."""
  devices = mesh.devices.size
  weight_bytes = weight_table.count_weights(spec) * jnp.dtype(spec.dtype).itemsize
  chosen = None
  for size in range(mesh.shape["tensor"], devices + 1):
    if devices % size:
      continue
    if chosen is not None:
      if device_bytes is None:
        break
      weights_fit = weight_bytes / chosen.shape["tensor"] <= _SHARE_OF_WEIGHTS * device_bytes
      if size > spec.kv_heads and weights_fit:
        break
    try:
      chosen = _sampling_mesh(spec, mesh, size)
    except InputError:
      continue
  if chosen is None:
    raise InputError(f"config.mesh.sample_tensor: no cut of the weights fits {devices} devices; change config.mesh")
  return chosen


def fresh_spec(config: ConfigDict, vocab: int) -> Spec:
  """Returns the shape of fresh weights: config.model's sizes, with `vocab` rows in the embedding table.

  Raises InputError for sizes that are impossible together, and where the family's config.json has no room for them, so
  that they could not be exported. How to compute is not set (`with_compute_settings`).
  """
  m = config.model
  spec = Spec(
    vocab=vocab,
    width=m.width,
    layers=m.layers,
    heads=m.heads,
    kv_heads=m.kv_heads,
    head_dim=m.head_dim,
    mlp=m.mlp,
    rope_theta=m.rope_theta,
    rope_scaling=Llama3(factor=m.rope_scaling) if m.rope_scaling else None,
    norm_eps=m.norm_eps,
    family=m.family or _FRESH_FAMILY,
    tied=m.tied,
  )
  try:
    hf_weights.check_writable(spec)
  except InputError as error:
    raise InputError(f"config.model: fresh weights of family {spec.family} could not be exported: {error}") from error
  return spec


def find_model(config: ConfigDict) -> hf_weights.Model | None:
  """Opens the Hugging Face model that a config starts from, without reading its weights; returns None for other starts.

  It is in the directory `model_path` (a name of the hub is downloaded), else in the run directory config.init if the
  stage `import` wrote that. Raises InputError where config.model.path is a run directory or a PEFT directory, or the
  model can't be used.
  """
  return _open_model(config, hf_weights.open_model)


def find_shape(config: ConfigDict) -> Spec | None:
  """Returns the shape of the model that `find_model` opens, of whose directory config.json alone must be there."""
  return _open_model(config, lambda folder, family: hf_weights.read_spec(object_store.path(folder), family))


def _open_model(config: ConfigDict, open_folder: Callable[[str | Path, str], Opened]) -> Opened | None:
  """Returns what `open_folder` returns for the directory of `find_model` and the name of a user's own family.

  Returns None, and raises InputError, where `find_model` does.
  """
  run, path = object_store.path(config.init), model_path(config)
  if not path and not (config.init and (run / MODEL_FOLDER).is_dir()):
    return None
  if path:
    _check_is_no_run("model.path", path)
  try:
    folder = hub.model_folder(path) if path else run / MODEL_FOLDER
    files = object_store.path(folder)
    if (files / peft_files.ADAPTER_CONFIG).is_file() and not (files / "config.json").is_file():
      raise InputError(f"{path}: is a PEFT directory; name it as config.model.adapter (and --config.model.path=)")
    return open_folder(folder, config.model.family or ("" if path else _family_of_run(run)))
  except InputError as error:
    key = "init" if not path else "model.path" if config.model.path else "model.adapter"
    raise InputError(f"config.{key}: {error}") from error


def _check_is_no_run(key: str, path: str) -> None:
  """Raises InputError where a path, of the key config.model.path or config.model.adapter, is a run directory."""
  if (object_store.path(path) / POLICY_FILE).is_file():
    kind = "a Hugging Face" if key == "model.path" else "a PEFT"
    raise InputError(
      f"config.{key} = {path!r}: is a run directory, and {kind} directory is wanted; name it as config.init={path} "
      f"(and --config.{key}=)"
    )


def model_path(config: ConfigDict) -> str:
  """Returns the Hugging Face model that a config starts from, as a path or a name of the hub, "" for other starts.

  It is config.model.path, or, where that is empty, the base that the PEFT directory config.model.adapter names. Raises
  InputError where it names none, or can't be read.
  """
  if config.model.path or not config.model.adapter:
    return config.model.path
  try:
    return peft_files.base_of(_adapter_folder(config))
  except InputError as error:
    raise InputError(f"config.model.adapter: {error}") from error


def _adapter_folder(config: ConfigDict) -> str:
  """Returns the path of the PEFT directory config.model.adapter; a name of the hub is downloaded.

  Raises InputError where it is a run directory, or can't be had.
  """
  _check_is_no_run("model.adapter", config.model.adapter)
  return hub.model_folder(config.model.adapter)


def find_adapter(config: ConfigDict, spec: Spec) -> peft_files.Adapter | None:
  """Opens the adapters that the Hugging Face model of a config gets, without reading them; returns None for none.

  They are in the PEFT directory config.model.adapter, else in the run directory config.init if the stage `import`
  copied them there. spec: of the model. Raises InputError where they can't be used with it.
  """
  run = object_store.path(config.init)
  copied = run / ADAPTER_FOLDER
  try:
    if config.model.adapter:
      return peft_files.open_adapter(_adapter_folder(config), spec)
    # The stage `export` writes such a folder too, beside a model that holds the adapters already.
    if config.init and copied.is_dir() and origins.read_recorded_spec(run / POLICY_FILE).lora is not None:
      return peft_files.open_adapter(copied, spec)
  except InputError as error:
    raise InputError(f"config.{'model.adapter' if config.model.adapter else 'init'}: {error}") from error
  return None


def _family_of_run(run) -> str:
  """Returns the name of the user's own family that a run of the stage `import` was made with, "" without one."""
  name = logbook.read_json(run / "config.json").get("model", {}).get("family", "")
  if name:
    search_beside(run / "config.json")
  return name


def _find_tokenizer(config: ConfigDict) -> Path:
  """Returns the local path of the config's tokenizer: a SentencePiece file, or a folder with tokenizer.json.

  config.tokenizer names the file, its folder or a run directory; if it is empty, config.init or else `model_path` does.
  Files of the hub and of object stores are downloaded. Raises InputError where none of the three keys is set, or
  the named folder has no tokenizer.
  """
  name = config.tokenizer or config.init or hub.model_folder(model_path(config))
  if not name:
    raise InputError(
      "config.tokenizer is empty and so are config.init and config.model.path; name a tokenizer model (`jaxrlvr "
      "tokenizer` trains one)"
    )
  path = object_store.path(name)
  if path.name == hf_tokenizer.TOKENIZER:
    return Path(object_store.local(str(path.parent), hf_tokenizer.FILES))
  for folder in (path, path / TOKENIZER_FOLDER, path / MODEL_FOLDER):
    if (folder / hf_tokenizer.TOKENIZER).is_file():
      return Path(object_store.local(str(folder), hf_tokenizer.FILES))
    if (folder / TOKENIZER_FILE).is_file():
      return Path(object_store.local(str(folder / TOKENIZER_FILE)))
  if path.is_dir() and config.init != name:
    raise InputError(
      f"config.tokenizer: {path}: holds neither {hf_tokenizer.TOKENIZER} nor {TOKENIZER_FILE}; name a folder that does "
      "(docs/models.md tells how transformers makes one of tekken.json)"
    )
  return path / TOKENIZER_FILE if path.is_dir() else Path(object_store.local(str(path)))


def read_tokenizer(config: ConfigDict) -> Tokenizer:
  """Reads and returns the tokenizer that config.tokenizer names, else config.init, else config.model.path.

  config.model.think, config.model.date and config.model.stop_tokens become part of it. Warns where the chat template
  ends a turn with a token that ends no response. Raises InputError where the tokenizer can't be read, its template has
  no switch for config.model.think or states no date, or config.model.stop_tokens is set and the tokenizer can have no
  further end tokens.
  """
  path, think = _find_tokenizer(config), _THINKING_SWITCH[config.model.think]
  date = datetime.date.fromisoformat(config.model.date) if config.model.date else None
  try:
    if path.is_dir():
      tokenizer = hf_tokenizer.HuggingFace(path, think, config.model.stop_tokens, date)
    else:
      tokenizer = SentencePiece(path)
  except InputError as error:
    raise InputError(f"config.tokenizer: {error}") from error
  if config.model.stop_tokens and isinstance(tokenizer, SentencePiece):
    raise InputError("config.model.stop_tokens is set, but the built-in tokenizer has one end token; set it to ()")
  if config.model.date and isinstance(tokenizer, SentencePiece):
    raise InputError("config.model.date is set, but the built-in chat layout states no date; leave it empty")
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


def with_real_vocab(spec: Spec, tokenizer: Tokenizer) -> Spec:
  """Returns a copy of the spec whose `real_vocab` is the tokenizer's number of tokens.

  The embedding table may have more rows (`vocab`); rows from `real_vocab` on belong to no token. Raises InputError
  where it has fewer rows than the tokenizer has tokens.
  """
  if tokenizer.vocab_size > spec.vocab:
    raise InputError(
      f"config.tokenizer: {tokenizer.vocab_size} tokens, but the policy has {spec.vocab} rows; use its own tokenizer"
    )
  return dataclasses.replace(spec, real_vocab=tokenizer.vocab_size)


class Start(NamedTuple):
  """A policy before its weights are loaded."""

  policy: Policy  # with shapes in the place of `params`; `frozen` is empty
  # Loads the weights; returns the policy with them, and fills `frozen`, which both share. On several hosts all
  # processes must call it together.
  load: Callable[[], Policy]


def load_policy(config: ConfigDict, text_tokens: int = 0, *, to_train: bool = False) -> Policy:
  """Builds the policy of a config: `open_policy`, and its weights on the devices. Raises what that and `load` do."""
  return open_policy(config, text_tokens, to_train=to_train).load()


def open_policy(config: ConfigDict, text_tokens: int = 0, *, to_train: bool = False) -> Start:
  """Builds the policy of a config but for its weights: reads the tokenizer and its shape, and makes the meshes.

  The weights that `Start.load` lays out are those of config.model.path if it is set, else those of the last checkpoint
  of the finished run config.init, else fresh ones, drawn by config.seed. Adapters, of config.model.adapter or of a run
  with LoRA, stay beside their base. text_tokens: as in `with_compute_settings`. to_train: whether the policy is to be
  trained, as config.lora says: adapters are then merged into their base, and the policy gets fresh ones, or none.

  Also sets the folder of compiled programs (config.compile_cache), which holds for the process. Raises InputError where
  a directory holds no policy, the mesh does not fit or config.lora does not suit the policy. `load` raises InputError
  where the run is not finished or a base is gone, and StorageError where checkpoints are damaged.
  """
  init = object_store.path(config.init) if config.init else None
  if init is not None:
    _check_is_run(config.init, init)
  model, tokenizer = find_model(config), read_tokenizer(config)
  adapter = find_adapter(config, model.spec) if model is not None else None
  _check_devices()
  set_compile_cache(config.compile_cache)  # before the first program
  mesh = configured_mesh(config)
  if model is not None:
    spec = dataclasses.replace(model.spec, lora=adapter.lora if adapter else None)
  elif init is not None:
    spec = origins.read_recorded_spec(init / POLICY_FILE)
  else:
    spec = fresh_spec(config, config.model.vocab or tokenizer.vocab_size)
  device = mesh.local_devices[0]
  spec = with_real_vocab(with_compute_settings(spec, config, platform_of(device), text_tokens), tokenizer)
  trained_spec = with_lora(spec, config) if to_train else spec
  weight_table.shardings(spec, mesh)  # raises InputError where the mesh does not fit
  device_bytes = (device.memory_stats() or {}).get("bytes_limit")
  sample_mesh = configured_sampling_mesh(config, spec, mesh, device_bytes)
  policy = Policy(trained_spec, tokenizer, trained_shapes(trained_spec, mesh), mesh, sample_mesh, {}, FrozenWeights({}))

  def load() -> Policy:
    if model is not None:
      weights = _load_model(model, adapter, spec, trained_spec, mesh)
    elif init is not None:
      weights = _read_init(init, spec, mesh)
    else:
      weights = _fresh_weights(config, trained_spec, mesh)
    origin = weights.origin
    if isinstance(tokenizer, hf_tokenizer.HuggingFace):  # its template and end tokens are not among its pieces
      origin["digests"] = {**origin.get("digests", {}), "tokenizer": tokenizer.digest}
    if to_train:
      params, policy.frozen.weights = _start_of_training(config, weights, trained_spec, mesh)
    else:
      params, policy.frozen.weights = (weights.adapters, weights.base) if weights.adapters else (weights.base, {})
    return policy._replace(params=params, origin=origin)

  return Start(policy, load)


def trained_shapes(spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """Returns the shape of each weight that is trained, float32 and sharded over the mesh, by name."""
  shapes = {}
  for name, place in lora.trained_shardings(spec, mesh).items():
    shape = lora.trained_leaves(spec)[name].shape
    shapes[name] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
  return shapes


def _load_model(
  model: hf_weights.Model, adapter: peft_files.Adapter | None, spec: Spec, trained_spec: Spec, mesh: jax.sharding.Mesh
) -> origins.StoredWeights:
  """Loads the weights of a Hugging Face model, and its adapters.

  Without adapters of their own, frozen weights (`trained_spec.lora`) are loaded in their dtype, so that there is no
  wider copy; a warning says where that rounds them.
  """
  origin = origins.origin_of_model(model, adapter)
  if adapter is not None:
    return origins.StoredWeights(spec, hf_weights.load(model, spec, mesh), peft_files.load(adapter, spec, mesh), origin)
  dtype = trained_spec.lora.base_dtype if trained_spec.lora else "float32"
  in_files = {tensor.dtype for tensor in model.tensors.values()}
  if dtype != "float32" and in_files != {jnp.dtype(dtype)}:
    _warn_of_rounding(dtype)
  return origins.StoredWeights(spec, hf_weights.load(model, spec, mesh, dtype), {}, origin)


def _read_init(init: Path, spec: Spec, mesh: jax.sharding.Mesh) -> origins.StoredWeights:
  """Reads the weights of the run config.init. Raises InputError, which begins with the key, where that can't be."""
  try:
    return origins.read_run(init, spec, mesh)
  except InputError as error:
    raise InputError(f"config.init = {error}") from error


def _fresh_weights(config: ConfigDict, spec: Spec, mesh: jax.sharding.Mesh) -> origins.StoredWeights:
  """Draws fresh weights by config.seed. Raises InputError where they are to be the base of adapters."""
  if spec.lora is not None:
    raise InputError(
      "config.lora.rank is set, but config.init and config.model.path are empty: fresh weights would learn nothing, as "
      "they are frozen; name a policy to start from, or take config.lora.rank=0"
    )
  draw = jax.jit(
    lambda: weight_table.init(spec, keys.at(config.seed, "init")), out_shardings=weight_table.shardings(spec, mesh)
  )
  return origins.StoredWeights(spec, draw(), {}, {"seed": config.seed})


def with_lora(spec: Spec, config: ConfigDict) -> Spec:
  """Returns a copy of the spec with the adapters that config.lora asks for; without adapters where its rank is 0.

  Raises InputError where the policy lacks a target, or one is smaller than the rank.
  """
  c = config.lora
  if not c.rank:
    return dataclasses.replace(spec, lora=None)
  try:
    spec = dataclasses.replace(spec, lora=Lora(c.rank, c.alpha, tuple(c.targets), c.base_dtype))
    weight_table.adapter_leaves(spec)
    lora.check_rank(spec)
  except InputError as error:
    raise InputError(f"config.lora: {error}") from error
  return spec


def _start_of_training(
  config: ConfigDict, weights: origins.StoredWeights, spec: Spec, mesh: jax.sharding.Mesh
) -> tuple[dict, dict]:
  """Returns (weights to train, frozen weights), each by name.

  weights: those to start from, which are used up. spec: with the adapters of the run that is about to begin. Warns
  where frozen weights lose digits.
  """
  if spec.lora is None:
    return (origins.merged(weights, "float32").params if weights.adapters else weights.base), {}
  dtype = spec.lora.base_dtype
  base = origins.merged(weights, dtype)
  if base.rounding:
    _warn_of_rounding(dtype, base.change, base.rounding)
  draw = jax.jit(
    lambda: lora.init_adapters(spec, keys.at(config.seed, "lora")), out_shardings=lora.trained_shardings(spec, mesh)
  )
  return draw(), base.params


def _warn_of_rounding(dtype: str, change: float = 0.0, rounding: float = 0.0) -> None:
  """Warns that the weights to start from are rounded to `dtype`.

  change: of the adapters that are merged into them, as `origins.Merged` has it; 0: none are. rounding: that of
  rounding.
  """
  cure = "take config.lora.base_dtype=float32 to keep all digits"
  if not change:
    _LOG.warning("the weights to start from are rounded to %s (config.lora.base_dtype); %s", dtype, cure)
    return
  _LOG.warning(
    "adapters of the policy to start from are merged into its weights, which are then rounded to %s "
    "(config.lora.base_dtype): rounding changes them by %.2g%% as much as the adapters did (root mean square); %s",
    dtype,
    100 * rounding / change,
    cure,
  )


def _check_is_run(name: str, init: Path) -> None:
  """Raises InputError where config.init, of this name, holds no policy of a run."""
  if (init / POLICY_FILE).is_file():
    return
  hugging_face_files = (hf_weights.SINGLE, hf_weights.INDEX, hf_tokenizer.TOKENIZER)
  if any((init / file).is_file() for file in hugging_face_files):
    raise InputError(
      f"config.init = {name!r}: is a Hugging Face directory, and a run directory is wanted; name it as "
      f"config.model.path={name} (and --config.init=), or `jaxrlvr import` it first"
    )
  raise InputError(f"config.init = {name!r}: holds no {POLICY_FILE}; name the workdir of a finished training stage")


def with_compute_settings(spec: Spec, config: ConfigDict, platform: str, text_tokens: int = 0) -> Spec:
  """Returns a copy of the spec that is computed as config.model says; the shape of its weights stays.

  The keys are dtype, unroll, vocab_chunk, remat and attention. platform: "tpu", "gpu" or "cpu", by which an attention
  is chosen where the key is "auto". text_tokens: tokens of the longest text that the stage computes, by which all its
  texts are rotated where rope_scaling depends on length; 0: config.rl.prompt_tokens + config.rl.response_tokens.
  """
  m = config.model
  scaling = spec.rope_scaling
  if scaling is not None:
    scaling = scaling.for_texts_of(text_tokens or config.rl.prompt_tokens + config.rl.response_tokens)
  return dataclasses.replace(
    spec,
    dtype=m.dtype,
    unroll=min(m.unroll, spec.layers),
    vocab_chunk=m.vocab_chunk,
    remat=m.remat,
    attention=resolve(m.attention, platform, m.dtype),
    rope_scaling=scaling,
  )


def write_policy_files(config: ConfigDict, policy: Policy, workdir: Path, training: Sequence[Problem] = ()) -> None:
  """Writes what a later stage needs, beside a checkpoint, to take the run directory as its config.init.

  The files are the tokenizer (tokenizer.model or tokenizer/), policy.json (the shape) and trained_prompts.json: digests
  of the prompts that the policy is known to be trained on, by this run or those before it. Without such prompts the
  last file is not written. training: the problems that this run trains on; (): it trains on none. Raises StorageError
  where a file can't be written.
  """
  copy_tokenizer(config, workdir / TOKENIZER_FILE, workdir / TOKENIZER_FOLDER)
  logbook.write_json(workdir / POLICY_FILE, dataclasses.asdict(policy.spec))
  digests = digests_of_training_prompts(config, training)
  if digests is not None:
    logbook.write_atomic(workdir / overlap.FILE, overlap.to_text(digests))


def digests_of_training_prompts(config: ConfigDict, training: Sequence[Problem]) -> frozenset[str] | None:
  """Returns digests of the prompts in `training` and of those that the run config.init has recorded as trained on.

  training: the problems that a policy is about to be trained on; (): none. Prompts whose normalised text is the same
  have the same digest (`overlap.prompt_digest`). Returns None, never an empty set, where no prompts are known: the
  policy may still have been trained on some, as a Hugging Face model has. Raises InputError where the run's record is
  damaged.
  """
  digests = overlap.prompt_digests(training)
  if config.init:
    file = object_store.path(config.init) / overlap.FILE
    if file.is_file():
      digests |= overlap.from_text(file.read_text(), str(file))
  return digests or None


def copy_tokenizer(config: ConfigDict, file: Path, folder: Path) -> None:
  """Copies the files of the config's tokenizer, unchanged, so that a run does not depend on where they were.

  A SentencePiece model becomes `file`; the files of another tokenizer (tokenizer.json, ...) go into `folder`, which is
  made if it is absent. The path that is not used is not touched. Raises InputError where the config names no tokenizer.
  """
  source = _find_tokenizer(config)
  if not source.is_dir():
    disk.copy(source, file)
    return
  folder.mkdir(exist_ok=True)
  for name in hf_tokenizer.FILES:
    if (source / name).is_file():
      disk.copy(source / name, folder / name)


def load_starting_weights(policy: Policy) -> tuple[str, dict] | None:
  """Loads the weights that the training of the policy's run began with, to compare the policy with them.

  Returns (the directory that they are from, the weights by name), float32 and sharded as the policy's. The origin of
  each run names the one before it (key start). Where that is gone, has changed since or takes more memory than is free,
  a warning says so and the one before it is tried. Of a policy with adapters they are its frozen weights, in their own
  dtype. Returns None where none can be loaded, as for training from fresh weights. On several hosts all processes must
  call it together.
  """
  start = policy.origin.get("start", {})
  if policy.frozen.weights:  # of a run, or of a PEFT directory, whose origin has no start
    base = start or policy.origin
    return base.get("run") or base["model"], policy.frozen.weights
  while "run" in start or "model" in start:
    place = start.get("run") or start["model"]
    try:
      _check_room(place, policy)
      return place, origins.read_origin(start, policy.spec, policy.mesh, "float32")
    except (InputError, StorageError) as error:
      _LOG.warning("weights that training began with can't be compared: %s", error)
    start = start.get("start", {})
  return None


def _check_room(place: str, policy: Policy) -> None:
  """Raises InputError where the weights of a place take more memory than is free."""
  needed = _PARAM_BYTES * weight_table.count_weights(policy.spec)
  free = memory.free_bytes(policy.mesh)
  if free is not None and needed > free:
    raise InputError(f"{place}: takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; take more memory")


def reference_weights(policy: Policy) -> dict:
  """Returns the weights of a reference model, by name, which stay as they are when training changes the policy.

  They are the frozen weights of a policy with adapters; else a copy of all weights in the compute dtype, which are
  sharded as the policy's.
  """
  if policy.frozen.weights:
    return policy.frozen.weights
  copy = jax.jit(lambda p: jax.tree.map(jnp.copy, forward.cast(p, policy.spec)))
  return copy(policy.params)


def fresh_state(policy: Policy, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the training state before the first update: the weights that are trained, moments of 0 and counts of 0.

  optimizer: as `make_optimizer` returned it. The policy's arrays are donated: `policy.params` must not be used
  afterwards.
  """
  _, shardings = state_shapes(policy, optimizer)
  init = jax.jit(lambda params: init_state(params, optimizer), out_shardings=shardings, donate_argnums=0)
  return init(policy.params)


def state_shapes(policy: Policy, optimizer: optax.GradientTransformation) -> tuple[TrainState, TrainState]:
  """Returns (shapes, shardings) of the training state, without computing anything.

  Both are trees of its structure: the first has a jax.ShapeDtypeStruct for each array, the second a sharding. Moments
  are sharded like their weights, counts are replicated.
  """
  replicated: Any = sharding.named_sharding(policy.mesh)
  of_params: Any = lora.trained_shardings(policy.spec, policy.mesh)
  shapes = jax.eval_shape(lambda params: init_state(params, optimizer), policy.params)
  with jax.transfer_guard("allow"):  # optax builds small placeholders
    of_optimizer = optax.tree.map_params(
      optimizer, lambda _, place: place, shapes.opt_state, of_params, transform_non_params=lambda _: replicated
    )
  return shapes, TrainState(of_params, of_optimizer, replicated, replicated, replicated)


def make_optimizer(settings: ConfigDict, updates: int) -> tuple[optax.GradientTransformation, np.ndarray]:
  """Returns (AdamW that clips the gradient's global norm first, learning rate of each update as an array [updates]).

  The optimizer scales by no rate: `training.update.update` multiplies its result with the rate of the update.

  settings: the group `optim` of a stage, such as config.rl.optim; b1, b2, eps, weight_decay, clip_norm and moment (the
  dtype of the first moment) set the optimizer, and lr, schedule, warmup (share of all updates) and floor set the rates.
  updates: number of updates in the whole run.
  """
  o = settings
  warmup_updates = round(o.warmup * updates)
  rates = optim.rates(o.schedule, o.lr, warmup_updates, updates, o.floor)
  return optim.adamw(o.b1, o.b2, o.eps, o.weight_decay, o.clip_norm, o.moment), rates
