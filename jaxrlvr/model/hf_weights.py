"""Hugging Face model directories: config.json read and written as a `Spec`, safetensors moved straight to the mesh."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxrlvr.base import disk, named
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import rope_config, safetensors_files, weight_table
from jaxrlvr.model.rope import RopeScaling
from jaxrlvr.model.safetensors_files import Tensor, read_json_object
from jaxrlvr.model.spec import Leaf, Spec
from jaxrlvr.model.weight_table import leaves

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Family(NamedTuple):
  """A family of models that is computed here: one of transformers, in FAMILIES, or a user's own."""

  architecture: str  # the class that config.json names under `architectures`
  switches: Mapping[str, bool] = MappingProxyType({})  # fields of Spec that are on: qkv_bias, qk_norm
  model_type: str = ""  # that config.json states, of a user's own family
  # Names of tensors in files that differ from Llama's, by the name of the weight in `leaves`, with {} for the layer.
  names: Mapping[str, str] = MappingProxyType({})
  keys: Mapping[str, str] = MappingProxyType(
    {}
  )  # keys of config.json by transformers' name for Llama: {"hidden_size": "n_embd"}


def own_family(name: str) -> Family:
  """Returns the family that the name of a user's object stands for (`base.named`).

  Raises InputError where it can't be found, is no `Family`, or has a field that means nothing here.
  """
  family = named.load(name)
  if not isinstance(family, Family):
    raise InputError(f"{name}: is {type(family).__name__}, no Family; import it from jaxrlvr.model.hf_weights")
  if not family.model_type or family.model_type in FAMILIES:
    raise InputError(f"{name}: model_type = {family.model_type!r}; give the one of its config.json, which no other has")
  known = {"switches": _SWITCHES, "names": _ALL_LEAVES, "keys": (*_FIELDS, "rope_scaling")}
  for field, options in known.items():
    for key in sorted(set(getattr(family, field)) - set(options)):
      raise InputError(f"{name}: {field} has {key!r}; wanted some of {', '.join(options)}")
  for weight, hf_name in family.names.items():
    if ("{}" in hf_name) != _ALL_LEAVES[weight].layered:
      raise InputError(f"{name}: names has {weight} = {hf_name!r}; write {{}} for the layer where there is one a layer")
  return family


# By `model_type` of config.json.
FAMILIES = {
  "llama": Family("LlamaForCausalLM", {}),
  "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}),
  "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": True}),
}
# Keys of config.json that change the computation, with the only value that is implemented; an absent key has it too.
_ONLY = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "use_sliding_window": False,
  "use_mrope": False,
  "partial_rotary_factor": 1.0,
  "quantization_config": None,
}


class _Field(NamedTuple):
  """The field that a key of config.json states."""

  name: str  # of a field of Spec
  kind: type  # int, float or bool
  default: int | float | bool | None  # value of an absent key; None: the key must be there


# Fields of Spec by key of config.json.
_FIELDS = {
  "vocab_size": _Field("vocab", int, None),
  "hidden_size": _Field("width", int, None),
  "num_hidden_layers": _Field("layers", int, None),
  "num_attention_heads": _Field("heads", int, None),
  "num_key_value_heads": _Field("kv_heads", int, 0),  # 0: as many as heads
  "head_dim": _Field("head_dim", int, 0),  # 0: _QWEN3_HEAD_DIM for Qwen3, else width / heads
  "intermediate_size": _Field("mlp", int, None),
  "max_position_embeddings": _Field("max_positions", int, 0),
  "rope_theta": _Field("rope_theta", float, 10_000.0),
  "rms_norm_eps": _Field("norm_eps", float, 1e-6),
  "tie_word_embeddings": _Field("tied", bool, False),
}
_SWITCHES = ("qkv_bias", "qk_norm")
_ALL_LEAVES = leaves(Spec(8, 4, 1, 1, 1, 4, 4, qkv_bias=True, qk_norm=True, tied=False))  # of every weight there can be
_QWEN3_HEAD_DIM = 128  # where its config.json states none
_PLACE = "a Hugging Face model directory"  # where the JSON files are that are read here
_UNKNOWN_POSITIONS = 2048  # max_position_embeddings in an exported config.json where the policy states none


class Model(NamedTuple):
  """A checked Hugging Face directory, whose weights are not yet read."""

  folder: epath.Path
  spec: Spec  # what config.json states; dtype, attention, remat, unroll and vocab_chunk have their defaults
  tensors: dict[str, Tensor]  # one for each tensor of `named_tensors(spec)`, by its name in files
  files: tuple[str, ...]  # names in `folder` of its safetensors files, ascending
  family: Family | None = None  # a user's own; None: of transformers
  family_name: str = ""  # by which it was found


class Storage(NamedTuple):
  """How files store one layer's weight: transposed to `order`, then reshaped to `file_shape`."""

  shape: tuple[int, ...]  # of the weight in memory: `Leaf.layer_shape`
  order: tuple[int, ...]  # axes of `shape` in the order of the file
  file_shape: tuple[int, ...]  # of the tensor in the file


def storage(leaf: Leaf) -> Storage:
  """Returns how files store one layer's weight of this leaf; import and export both follow it.

  In files a linear map is [outputs, inputs], with heads and head width merged to one axis, where here inputs come first
  and heads have an axis of their own. Biases are flat in files. Norms, embedding table and head are stored as they are
  here.
  """
  shape = leaf.layer_shape
  axes = tuple(range(len(shape)))
  if not leaf.layered:
    return Storage(shape, axes, shape)
  if leaf.fan_in is None:
    return Storage(shape, axes, (math.prod(shape),))
  inputs = len(leaf.input_axes)
  order = axes[inputs:] + axes[:inputs]
  return Storage(shape, order, (math.prod(shape[inputs:]), leaf.fan_in))


class NamedTensor(NamedTuple):
  """A tensor that the files of a policy must hold."""

  hf_name: str  # name of the tensor in files
  name: str  # name in `leaves` of the weight that the tensor is, or is one layer of
  leaf: Leaf  # row of that weight in `leaves`
  layer: int  # number of the layer, from 0; -1 for a weight that is not layered


def named_tensors(spec: Spec, family: Family | None = None) -> Iterator[NamedTensor]:
  """Yields every tensor that files of this policy hold: weight by weight as in `leaves`, and there layer by layer.

  family: a user's own, which may name tensors otherwise; None: they have transformers' names.
  """
  names = family.names if family else {}
  for name, leaf in leaves(spec).items():
    hf_name = names.get(name, leaf.hf_name)
    for layer in range(spec.layers) if leaf.layered else (-1,):
      yield NamedTensor(hf_name.format(layer), name, leaf, layer)


def open_model(folder: str | os.PathLike, family_name: str = "") -> Model:
  """Opens a Hugging Face directory: checks config.json, and the headers of its safetensors files against `leaves`.

  family_name: names a user's own family that the model may be of, beside FAMILIES; "": there is none.
  folder: local or on an object store. The files are those that model.safetensors.index.json names, or
  model.safetensors alone. No weights are read, unless a tied model's files hold a head: it must equal the embedding
  table. Raises InputError, naming file and tensor or key, where a file or tensor is missing or superfluous, truncated,
  of another shape or dtype, or the model is of a family or has a switch that is not computed here.
  """
  folder = epath.Path(folder)
  for name in (INDEX, SINGLE):
    safetensors_files.check_regular(folder / name)
  model_type = read_json_object(folder / "config.json", _PLACE).get("model_type")
  family = own_family(family_name) if family_name else None
  if family and family.model_type != model_type:
    family = None
  spec = _read_spec(folder, family)
  tensors = _tensors(folder)
  files = tuple(sorted({tensor.file.name for tensor in tensors.values()}))
  names = family.names if family else {}
  table, head = (names.get(name, _ALL_LEAVES[name].hf_name) for name in ("embed", "head"))
  if spec.tied and head in tensors and table in tensors:
    _same(tensors[table], tensors.pop(head))
  expected = []
  # Stops at the first missing tensor, however many layers config.json states.
  for tensor in named_tensors(spec, family):
    expected.append(tensor.hf_name)
    _check_tensor(folder, tensor, spec, tensors)
  for name in sorted(tensors.keys() - set(expected)):
    if not name.endswith("rotary_emb.inv_freq"):  # a buffer in old files, which the config determines
      raise InputError(f"{tensors[name].file}: tensor {name} is not of this architecture; take the model's own files")
  return Model(folder, spec, {name: tensors[name] for name in expected}, files, family, family_name)


def _check_tensor(folder: epath.Path, wanted: NamedTensor, spec: Spec, tensors: Mapping[str, Tensor]) -> None:
  """Raises InputError where the tensors of the folder lack this one, or it has another shape than its leaf."""
  name, leaf = wanted.hf_name, wanted.leaf
  shape = storage(leaf).file_shape
  if name not in tensors:
    why = ""
    if leaf.layered:
      why = f" (config.json: num_hidden_layers = {spec.layers})"
    elif wanted.name == "head":
      why = " (tie_word_embeddings is false: the head is a tensor of its own)"
    raise InputError(f"{folder}: has no tensor {name}, wanted one of shape {list(shape)}{why}; complete the folder")
  tensor = tensors[name]
  if tensor.shape != shape:
    why = ", looks transposed" if tensor.shape[::-1] == shape else ""
    raise InputError(
      f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)}{why}; "
      "take config.json and weights of one model"
    )


def _read_spec(folder: epath.Path, family: Family | None) -> Spec:
  """Returns the policy's shape that a folder's config.json (of transformers 4 or 5) states.

  Raises InputError for a file that can't be read and for a model that is not implemented here.
  """
  file = folder / "config.json"
  with _readable(file):
    return _spec(file, read_json_object(file, _PLACE), family)


@contextlib.contextmanager
def _readable(file: epath.Path) -> Iterator[None]:
  """Raises InputError where a value in the file has another JSON type than expected, or exceeds all floats."""
  try:
    yield
  except (TypeError, AttributeError, OverflowError) as error:
    raise InputError(f"{file}: holds a value of a wrong type ({error}); take the model's own file") from error


def _spec(file: epath.Path, config: Mapping, own: Family | None) -> Spec:
  """Returns the shape that the content of a config.json states; `file` is named in errors. own: a user's own family."""
  family = own or FAMILIES.get(config.get("model_type"))
  if family is None:
    accepted = f"one of {', '.join(FAMILIES)}, or a family of your own (config.model.family)"
    raise _not_computed(file, "model_type", config.get("model_type"), accepted)
  config = {**config, **{key: config[theirs] for key, theirs in family.keys.items() if theirs in config}}
  if config.get("architectures") not in (None, [family.architecture]):
    raise _not_computed(file, "architectures", config["architectures"], family.architecture)
  rope = rope_config.parameters(config)
  for key, only in _ONLY.items():
    for table in (config, rope):
      if table.get(key, only) not in (only, None):
        raise _not_computed(file, key, table[key], json.dumps(only))
  if other_layers := set(config.get("layer_types") or ()) - {"full_attention"}:
    raise _not_computed(file, "layer_types", min(other_layers), "full_attention")
  scaling = _rope_scaling(file, rope, config)
  if "rope_theta" in rope:
    config = {**config, "rope_theta": rope["rope_theta"]}
  fields = {**_read_fields(file, _FIELDS, config), **family.switches}
  fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
  if not fields["head_dim"]:
    is_qwen3 = "qk_norm" in family.switches
    fields["head_dim"] = _QWEN3_HEAD_DIM if is_qwen3 else fields["width"] // fields["heads"]
  try:
    return Spec(**fields, rope_scaling=scaling)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def _not_computed(file: epath.Path, key: str, value, accepted: str) -> InputError:
  """Returns the error for a value in config.json with which a model is not computed here."""
  return InputError(f"{file}: {key} = {json.dumps(value)} is not computed here, wanted {accepted}; take another model")


def _rope_scaling(file: epath.Path, rope: Mapping, config: Mapping) -> RopeScaling | None:
  """Returns the scaling that the rotary parameters in config.json state. Raises InputError for others."""
  try:
    return rope_config.read(rope, config)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def _read_fields(file: epath.Path, fields: Mapping[str, _Field], values: Mapping) -> dict:
  """Returns the values of these fields (_FIELDS) by name, read from `values` by key.

  Raises InputError for a value of a wrong type, and for a number that is not positive.
  """
  value_of = {}
  for key, field in fields.items():
    stated = field.default if values.get(key) is None else values[key]
    value = stated
    if field.kind is float and type(stated) is int:
      value = float(stated)
    is_valid = type(value) is field.kind
    if is_valid and field.kind is not bool and value is not field.default:
      is_valid = 0 < value < math.inf
    if not is_valid:
      accepted = "true or false" if field.kind is bool else f"a positive {field.kind.__name__}"
      raise InputError(f"{file}: {key} = {json.dumps(stated)}, wanted {accepted}; take the model's own file")
    value_of[field.name] = value
  return value_of


def config_of(spec: Spec, dtype: str, ids: Mapping, own: Family | None = None) -> dict:
  """Returns the content of a policy's config.json, in the style that every version of transformers reads.

  own: a user's family that the policy is written as; None: one of transformers'.

  Its keys are architectures, model_type, the sizes and switches of `spec` under transformers' names, those of
  `rope_config.as_config`, hidden_act, torch_dtype, and the keys of `ids`. dtype: dtype of the weight files, such as
  "bfloat16". ids: ids of special tokens by key, such as {"eos_token_id": 2}. Raises InputError where no family of
  transformers has the policy's switches.
  """
  switches = {name: True for name in _SWITCHES if getattr(spec, name)}
  families = {own.model_type: own} if own else FAMILIES
  model_types = [model_type for model_type, family in families.items() if family.switches == switches]
  if own and not model_types:
    raise InputError(f"config.model.family: has the switches {dict(own.switches)}, the policy {switches}; correct it")
  if not model_types:
    raise InputError(f"a policy with {' and '.join(switches)} is of no family that transformers knows; switch one off")
  family = families[model_types[0]]
  content = {
    "architectures": [family.architecture],
    "model_type": model_types[0],
    **{key: getattr(spec, field.name) for key, field in _FIELDS.items()},
    "max_position_embeddings": spec.max_positions or _UNKNOWN_POSITIONS,
    **rope_config.as_config(spec.rope_scaling),
    "hidden_act": "silu",
    "torch_dtype": dtype,
    **ids,
  }
  return {family.keys.get(key, key): value for key, value in content.items()}


def load(model: Model, spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Returns the weights by their names in `leaves`, as float32 arrays with the shardings of `model.spec.shardings`.

  spec: model.spec, or one that differs from it only in fields that change no weight's shape, such as dtype or remat.
  All processes must call it together: each reads only the rows that its own devices hold, tensor by tensor, so that a
  host holds at most one tensor at a time. Raises InputError for a weight that is not finite, or can't be split.
  """
  shardings = weight_table.shardings(spec, mesh)
  stacks = {name: leaf for name, leaf in leaves(spec).items() if leaf.layered}
  params = jax.jit(
    lambda: {name: jnp.zeros(leaf.shape) for name, leaf in stacks.items()},
    out_shardings={name: shardings[name] for name in stacks},
  )()
  for hf_name, name, leaf, layer in named_tensors(spec, model.family):
    tensor = model.tensors[hf_name]
    one_layer = _on_mesh(tensor, leaf, mesh)
    if leaf.layered:
      params[name], is_finite = _fill(params[name], one_layer, layer)
    else:
      params[name], is_finite = _widen(one_layer)
    # Waits for all devices: a slow one would keep its pieces of several tensors alive.
    jax.block_until_ready(params[name])
    if not multihost.fetch(is_finite):
      raise safetensors_files.not_finite(tensor)
  return {name: params[name] for name in leaves(spec)}


def _on_mesh(tensor: Tensor, leaf: Leaf, mesh: jax.sharding.Mesh) -> jax.Array:
  """Returns one layer's weight in the file's dtype, sharded as in its stack; rows that devices share are read once."""
  shape, order, file_shape = storage(leaf)
  first_axis, *other_axes = order
  entries = shape[first_axis]
  rows_of_entry = file_shape[0] // entries  # rows of the file's tensor that an entry of the first axis takes
  blocks = {}  # what has been read, with the axes in the file's order, by first and last entry

  def piece(index: Sequence[slice]) -> np.ndarray:
    """Returns a device's piece of the weight, of which `index` has the slice along each axis."""
    first, last, _ = index[first_axis].indices(entries)
    if (first, last) not in blocks:
      rows = tensor.read(first * rows_of_entry, last * rows_of_entry)
      lengths = [shape[axis] for axis in other_axes]
      blocks[first, last] = rows.reshape(last - first, *lengths)
    other_slices = [index[axis] for axis in other_axes]
    piece_as_in_file = blocks[first, last][(slice(None), *other_slices)]
    return piece_as_in_file.transpose(np.argsort(order))

  place = sharding.checked_sharding(mesh, tensor.name, shape, leaf.layer_axes)
  return jax.make_array_from_callback(shape, place, piece, tensor.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(stack: jax.Array, one_layer: jax.Array, layer: int) -> tuple[jax.Array, jax.Array]:
  """Returns the stack with this layer's weight in its place, and whether that weight is finite."""
  filled = jax.lax.dynamic_update_index_in_dim(stack, one_layer.astype(stack.dtype), layer, 0)
  return filled, jnp.isfinite(one_layer).all()


@jax.jit
def _widen(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the weight in float32, and whether it is finite."""
  return weight.astype(jnp.float32), jnp.isfinite(weight).all()


def save(
  folder: str | os.PathLike,
  params: Mapping[str, jax.Array],
  spec: Spec,
  dtype: str,
  shard_bytes: int,
  family: Family | None = None,
) -> None:
  """Writes the weights as safetensors files into a folder that exists; config.json is not written.

  family: a user's own, which names the tensors; None: they get transformers' names.

  params: the weights by name, on a mesh. dtype: of the files, "float32", "bfloat16" or "float16". shard_bytes: no file
  holds more bytes of weights, unless a single tensor has more. One file is model.safetensors; several are
  model-00001-of-0000N.safetensors with model.safetensors.index.json. All processes must call it together and each
  writes to its own `folder`, over files of the same names. Each tensor is gathered and written before the next, so that
  a host holds one at a time. Raises StorageError where the disk is full.
  """
  folder = epath.Path(folder)
  shards = _cut_into_shards(spec, dtype, shard_bytes, family)
  place = params["embed"].sharding
  assert isinstance(place, jax.sharding.NamedSharding)
  gather = jax.jit(_as_stored, static_argnames=("leaf", "dtype"), out_shardings=sharding.named_sharding(place.mesh))
  weight_map = {}
  for number, tensors in enumerate(shards, 1):
    name_of_file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    shapes = {tensor.hf_name: storage(tensor.leaf).file_shape for tensor in tensors}
    arrays = (multihost.fetch(gather(params[name], layer, leaf=leaf, dtype=dtype)) for _, name, leaf, layer in tensors)
    safetensors_files.write(folder / name_of_file, shapes, dtype, arrays)
    weight_map |= dict.fromkeys(shapes, name_of_file)
  if len(shards) > 1:
    total_size = sum(_size(tensors, dtype) for tensors in shards)
    text = json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=1)
    with disk.writing(folder / INDEX, len(text)):
      (folder / INDEX).write_text(text)


def _cut_into_shards(spec: Spec, dtype: str, shard_bytes: int, family: Family | None) -> list[list[NamedTensor]]:
  """Returns the tensors of `named_tensors` in lists, one for each file."""
  shards: list[list[NamedTensor]] = [[]]
  for tensor in named_tensors(spec, family):
    is_full = _size([*shards[-1], tensor], dtype) > shard_bytes
    if shards[-1] and is_full:
      shards.append([])
    shards[-1].append(tensor)
  return shards


def _size(tensors: Sequence[NamedTensor], dtype: str) -> int:
  """Returns the bytes of these tensors."""
  return sum(safetensors_files.tensor_bytes(storage(tensor.leaf).file_shape, dtype) for tensor in tensors)


def _as_stored(weight: jax.Array, layer: int, leaf: Leaf, dtype: str) -> jax.Array:
  """Returns one tensor of a weight as files store it."""
  one_layer = jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False) if leaf.layered else weight
  _, order, file_shape = storage(leaf)
  return one_layer.transpose(order).reshape(file_shape).astype(dtype)


def _tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Returns every tensor of the folder by name, from the headers of the files in its index, or of its only file.

  Raises InputError where the folder has no safetensors file, or files and index differ.
  """
  if (folder / INDEX).is_file():
    with _readable(folder / INDEX):
      return _shards(folder, read_json_object(folder / INDEX, _PLACE).get("weight_map", {}))
  if (folder / SINGLE).is_file():
    return safetensors_files.read_header(folder / SINGLE)
  pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
  content = f"only pickle files ({min(pickles)}), which can run code" if pickles else f"neither {SINGLE} nor {INDEX}"
  raise InputError(f"{folder}: holds {content}; save the model as safetensors (transformers: save_pretrained)")


def _shards(folder: epath.Path, index: Mapping[str, str]) -> dict[str, Tensor]:
  """Returns the tensors of all files in an index (file by tensor). Raises InputError where file and index differ."""
  by_name = {}
  for name in sorted(set(index.values())):
    if "/" in name or not (folder / name).is_file():
      raise InputError(f"{folder / INDEX}: names the shard {name}, which is not in the folder; fetch it")
    safetensors_files.check_regular(folder / name)
    tensors = safetensors_files.read_header(folder / name)
    listed = {tensor for tensor, file in index.items() if file == name}
    for tensor in sorted(listed ^ tensors.keys()):
      where = "lists" if tensor in listed else "does not list"
      raise InputError(f"{folder / name}: {INDEX} {where} its tensor {tensor}, unlike the file; fetch both again")
    by_name |= tensors
  return by_name


def _same(embed: Tensor, head: Tensor) -> None:
  """Raises InputError where a tied model's file holds a head that differs from the embedding table."""
  is_equal = embed.shape == head.shape and embed.dtype == head.dtype
  if is_equal:
    pairs_of_blocks = zip(embed.blocks(), head.blocks(), strict=True)
    is_equal = all(np.array_equal(one, other) for one, other in pairs_of_blocks)
  if not is_equal:
    raise InputError(
      f"{head.file}: lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true; "
      "set it to false if the head is the model's"
    )
