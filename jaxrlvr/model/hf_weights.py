"""Hugging Face model directories: config.json read and written as a `Spec`, safetensors moved straight to the mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxrlvr.base import disk
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import families, multimodal, safetensors_files, weight_table
from jaxrlvr.model.families.config_file import ConfigFile
from jaxrlvr.model.safetensors_files import Tensor, read_json_object
from jaxrlvr.model.spec import Leaf, Spec
from jaxrlvr.model.weight_table import leaves

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"

_PLACE = "a Hugging Face model directory"  # where the JSON files are that are read here


class Model(NamedTuple):
  """A checked Hugging Face directory, whose weights are not yet read."""

  folder: epath.Path
  spec: Spec  # what config.json states; dtype, attention, remat, unroll and vocab_chunk have their defaults
  tensors: dict[str, Tensor]  # one for each tensor of `named_tensors(spec)`, by its name in files
  files: tuple[str, ...]  # names in `folder` of its safetensors files, ascending


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


class Part(NamedTuple):
  """A weight, or one layer of it, as rows of a tensor in files."""

  name: str  # of the weight in `weight_table.leaves`
  leaf: Leaf  # row of that weight there
  first_row: int  # of the tensor in files, from which on its rows are this weight's


class NamedTensor(NamedTuple):
  """A tensor that the files of a policy must hold: rows of one weight, or of several, one behind another."""

  hf_name: str  # name of the tensor in files
  parts: tuple[Part, ...]
  layer: int  # number of the layer, from 0; -1 for weights that are not layered
  shape: tuple[int, ...]  # in files


def named_tensors(spec: Spec) -> Iterator[NamedTensor]:
  """Yields every tensor that files of this policy hold, in the order of `leaves`, and there layer by layer.

  Weights whose leaves have the same name in files are parts of one tensor.
  """
  names_by_tensor: dict[str, list[str]] = {}
  table = leaves(spec)
  for name, leaf in table.items():
    names_by_tensor.setdefault(leaf.hf_name, []).append(name)
  for hf_name, names in names_by_tensor.items():
    parts, rows = [], 0
    for name in names:
      parts.append(Part(name, table[name], rows))
      first_axis, *other_axes = storage(table[name]).file_shape
      rows += first_axis
    for layer in range(spec.layers) if table[names[0]].layered else (-1,):
      yield NamedTensor(hf_name.format(layer), tuple(parts), layer, (rows, *other_axes))


def open_model(folder: str | os.PathLike, family_name: str = "") -> Model:
  """Opens a Hugging Face directory: checks config.json, and the headers of its safetensors files against `leaves`.

  family_name: names a user's own family that the model may be of, beside FAMILIES; "": there is none. Of a model of
  text and images the text model alone is taken.
  folder: local or on an object store. The files are those that model.safetensors.index.json names, or
  model.safetensors alone. No weights are read, unless a tied model's files hold a head: it must equal the embedding
  table. Raises InputError, naming file and tensor or key, where a file or tensor is missing or superfluous, truncated,
  of another shape or dtype, or the model is of a family or has a switch that is not computed here.
  """
  folder = epath.Path(folder)
  for name in (INDEX, SINGLE):
    safetensors_files.check_regular(folder / name)
  content = _read_config(folder)
  spec = _spec_of(folder / CONFIG, content, family_name)
  tensors = _tensors(folder)
  files = tuple(sorted({tensor.file.name for tensor in tensors.values()}))
  if multimodal.is_wrapper(content):
    tensors = multimodal.text_tensors(tensors)
  table, head = leaves(spec)["embed"].hf_name, leaves(dataclasses.replace(spec, tied=False))["head"].hf_name
  if spec.tied and head in tensors and table in tensors:
    _same(tensors[table], tensors.pop(head))
  expected = []
  # Stops at the first missing tensor, however many layers config.json states.
  for tensor in named_tensors(spec):
    expected.append(tensor.hf_name)
    _check_tensor(folder, tensor, spec, tensors)
  for name in sorted(tensors.keys() - set(expected)):
    if not name.endswith("rotary_emb.inv_freq"):  # a buffer in old files, which the config determines
      raise InputError(f"{tensors[name].file}: tensor {name} is not of this architecture; take the model's own files")
  return Model(folder, spec, {name: tensors[name] for name in expected}, files)


def _check_tensor(folder: epath.Path, wanted: NamedTensor, spec: Spec, tensors: Mapping[str, Tensor]) -> None:
  """Raises InputError where the tensors of the folder lack this one, or it has another shape than its leaves."""
  name, shape = wanted.hf_name, wanted.shape
  if name not in tensors:
    why = ""
    if wanted.layer >= 0:
      why = f" (config.json: num_hidden_layers = {spec.layers})"
    elif wanted.parts[0].name == "head":
      why = " (tie_word_embeddings is false: the head is a tensor of its own)"
    raise InputError(f"{folder}: has no tensor {name}, wanted one of shape {list(shape)}{why}; complete the folder")
  tensor = tensors[name]
  if tensor.shape != shape:
    why = ", looks transposed" if tensor.shape[::-1] == shape else ""
    raise InputError(
      f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)}{why}; "
      "take config.json and weights of one model"
    )


def read_spec(folder: epath.Path, family_name: str = "") -> Spec:
  """Returns the policy's shape that a folder's config.json (of transformers 4 or 5) states.

  family_name: as in `open_model`. Of a model of text and images it is the shape of the text model, and a warning says
  so. Raises InputError for a file that can't be read, for a model that is not computed here, and for keys that are not
  known here.
  """
  return _spec_of(folder / CONFIG, _read_config(folder), family_name)


def _read_config(folder: epath.Path) -> dict:
  """Returns the content of a folder's config.json. Raises InputError where it can't be read."""
  return read_json_object(folder / CONFIG, _PLACE)


def _spec_of(file: epath.Path, content: dict, family_name: str) -> Spec:
  """Returns what `read_spec` does, from the content of the file."""
  if multimodal.is_wrapper(content):
    content = multimodal.text_config(file, content)
  name = _family_of(file, content.get("model_type"), family_name)
  family = families.family_of(name)
  with _readable(file):
    config = ConfigFile(file, content, family.keys)
    if content.get("architectures") not in (None, [family.architecture]):
      raise config.not_computed("architectures", content["architectures"], family.architecture)
    fields = family.fields(config)
    config.finish()
  try:
    return Spec(**fields, family=name)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def _family_of(file: epath.Path, model_type: object, family_name: str) -> str:
  """Returns the name of the family of a model with this model_type: family_name, or one of FAMILIES.

  Raises InputError where the model is of none of them.
  """
  if family_name and families.family_of(family_name).model_type == model_type:
    return family_name
  if isinstance(model_type, str) and model_type in families.FAMILIES and family_name not in families.FAMILIES:
    return model_type
  accepted = f"one of {', '.join(families.FAMILIES)}, or a family of your own (config.model.family)"
  if family_name:
    accepted = f"{families.family_of(family_name).model_type!r} of config.model.family = {family_name}"
  raise InputError(
    f"{file}: model_type = {json.dumps(model_type)} is not computed here, wanted {accepted}; take another model"
  )


@contextlib.contextmanager
def _readable(file: epath.Path) -> Iterator[None]:
  """Raises InputError where a value in the file has another JSON type than expected, or exceeds all floats."""
  try:
    yield
  except (TypeError, AttributeError, OverflowError) as error:
    raise InputError(f"{file}: holds a value of a wrong type ({error}); take the model's own file") from error


def config_of(spec: Spec, dtype: str, ids: Mapping) -> dict:
  """Returns the content of a policy's config.json, in the style that every version of transformers reads.

  Its keys are architectures, model_type, those of the policy's family (`Family.config_keys`), torch_dtype, pad_token_id
  (None), and the keys of `ids`. dtype: dtype of the weight files, such as "bfloat16". ids: ids of special tokens by
  key, such as {"eos_token_id": 2}.
  """
  family = families.family_of(spec.family)
  content = {
    "architectures": [family.architecture],
    "model_type": family.model_type,
    **family.config_keys(spec),
    "torch_dtype": dtype,
    "pad_token_id": None,  # or transformers would take the default of the family, which may be beyond the vocabulary
    **ids,
  }
  return {family.keys.get(key, key): value for key, value in content.items()}


def check_writable(spec: Spec) -> None:
  """Raises InputError where a policy of this shape could be written, but its config.json would not be read again."""
  family = families.family_of(spec.family)
  config = ConfigFile("its config.json", config_of(spec, "float32", {}), family.keys)
  family.fields(config)
  config.finish()


def load(model: Model, spec: Spec, mesh: jax.sharding.Mesh, dtype: str = "float32") -> dict[str, jax.Array]:
  """Returns the weights by their names in `leaves`, in `dtype`, with the shardings of `weight_table.shardings`.

  spec: model.spec, or one that differs from it only in fields that change no weight's shape, such as dtype or remat.
  All processes must call it together: each reads only the rows that its own devices hold, tensor by tensor, so that a
  host holds at most one tensor at a time. Raises InputError for a weight that is not finite, or can't be split.
  """
  shardings = weight_table.shardings(spec, mesh)
  stacks = {name: leaf for name, leaf in leaves(spec).items() if leaf.layered}
  params = jax.jit(
    lambda: {name: jnp.zeros(leaf.shape, dtype) for name, leaf in stacks.items()},
    out_shardings={name: shardings[name] for name in stacks},
  )()
  for named_tensor in named_tensors(spec):
    tensor = model.tensors[named_tensor.hf_name]
    for part in named_tensor.parts:
      name = part.name
      one_layer = _on_mesh(tensor, part, mesh)
      if part.leaf.layered:
        params[name], is_finite = _fill(params[name], one_layer, named_tensor.layer)
      else:
        params[name], is_finite = _cast(one_layer, dtype)
      # Waits for all devices: a slow one would keep its pieces of several tensors alive.
      jax.block_until_ready(params[name])
      if not multihost.fetch(is_finite):
        raise safetensors_files.not_finite(tensor)
  return {name: params[name] for name in leaves(spec)}


def _on_mesh(tensor: Tensor, part: Part, mesh: jax.sharding.Mesh) -> jax.Array:
  """Returns one layer's weight in the file's dtype, sharded as in its stack; rows that devices share are read once."""
  shape, order, file_shape = storage(part.leaf)
  first_axis, *other_axes = order
  entries = shape[first_axis]
  rows_of_entry = file_shape[0] // entries  # rows of the file's tensor that an entry of the first axis takes
  blocks = {}  # what has been read, with the axes in the file's order, by first and last entry

  def piece(index: Sequence[slice]) -> np.ndarray:
    """Returns a device's piece of the weight, of which `index` has the slice along each axis."""
    first, last, _ = index[first_axis].indices(entries)
    if (first, last) not in blocks:
      rows = tensor.read(part.first_row + first * rows_of_entry, part.first_row + last * rows_of_entry)
      lengths = [shape[axis] for axis in other_axes]
      blocks[first, last] = rows.reshape(last - first, *lengths)
    other_slices = [index[axis] for axis in other_axes]
    piece_as_in_file = blocks[first, last][(slice(None), *other_slices)]
    return piece_as_in_file.transpose(np.argsort(order))

  place = sharding.checked_sharding(mesh, tensor.name, shape, part.leaf.layer_axes)
  return jax.make_array_from_callback(shape, place, piece, tensor.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(stack: jax.Array, one_layer: jax.Array, layer: int) -> tuple[jax.Array, jax.Array]:
  """Returns the stack with this layer's weight in its place, and whether that weight is finite."""
  filled = jax.lax.dynamic_update_index_in_dim(stack, one_layer.astype(stack.dtype), layer, 0)
  return filled, jnp.isfinite(one_layer).all()


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(weight: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
  """Returns the weight in `dtype`, and whether it is finite."""
  return weight.astype(dtype), jnp.isfinite(weight).all()


def save(
  folder: str | os.PathLike,
  params: Mapping[str, jax.Array],
  spec: Spec,
  dtype: str,
  shard_bytes: int,
) -> None:
  """Writes the weights as safetensors files into a folder that exists; config.json is not written.

  params: the weights by name, on a mesh. dtype: of the files, "float32", "bfloat16" or "float16". shard_bytes: no file
  holds more bytes of weights, unless a single tensor has more. One file is model.safetensors; several are
  model-00001-of-0000N.safetensors with model.safetensors.index.json. All processes must call it together and each
  writes to its own `folder`, over files of the same names. Each tensor is gathered and written before the next, so that
  a host holds one at a time. Raises StorageError where the disk is full.
  """
  folder = epath.Path(folder)
  shards = _cut_into_shards(spec, dtype, shard_bytes)
  place = params["embed"].sharding
  assert isinstance(place, jax.sharding.NamedSharding)
  gather = jax.jit(_as_stored, static_argnames=("leaf", "dtype"), out_shardings=sharding.named_sharding(place.mesh))
  weight_map = {}
  for number, tensors in enumerate(shards, 1):
    name_of_file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    shapes = {tensor.hf_name: tensor.shape for tensor in tensors}
    # The parts of a tensor follow each other in the file.
    parts = ((part, tensor.layer) for tensor in tensors for part in tensor.parts)
    arrays = (multihost.fetch(gather(params[part.name], layer, leaf=part.leaf, dtype=dtype)) for part, layer in parts)
    safetensors_files.write(folder / name_of_file, shapes, dtype, arrays)
    weight_map |= dict.fromkeys(shapes, name_of_file)
  if len(shards) > 1:
    total_size = sum(_size(tensors, dtype) for tensors in shards)
    text = json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=1)
    with disk.writing(folder / INDEX, len(text)):
      (folder / INDEX).write_text(text)


def _cut_into_shards(spec: Spec, dtype: str, shard_bytes: int) -> list[list[NamedTensor]]:
  """Returns the tensors of `named_tensors` in lists, one for each file."""
  shards: list[list[NamedTensor]] = [[]]
  for tensor in named_tensors(spec):
    is_full = _size([*shards[-1], tensor], dtype) > shard_bytes
    if shards[-1] and is_full:
      shards.append([])
    shards[-1].append(tensor)
  return shards


def _size(tensors: Sequence[NamedTensor], dtype: str) -> int:
  """Returns the bytes of these tensors."""
  return sum(safetensors_files.tensor_bytes(tensor.shape, dtype) for tensor in tensors)


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
