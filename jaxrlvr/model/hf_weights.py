"""Hugging Face model directories: config.json read and written as a `Spec`, safetensors moved straight to the mesh."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from jaxrlvr.base import disk, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.model.spec import Leaf, RopeScaling, Spec, leaves

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
# Model families by `model_type`: (class that config.json names under `architectures`, switches of Spec that are on).
FAMILIES = {
  "llama": ("LlamaForCausalLM", {}),
  "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
  "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
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
# Keys of config.json: (field of Spec, type, value of an absent key; None: the key must be there).
_FIELDS = {
  "vocab_size": ("vocab", int, None),
  "hidden_size": ("width", int, None),
  "num_hidden_layers": ("layers", int, None),
  "num_attention_heads": ("heads", int, None),
  "num_key_value_heads": ("kv_heads", int, 0),  # as many as heads
  "head_dim": ("head_dim", int, 0),  # width / heads; 128 for Qwen3
  "intermediate_size": ("mlp", int, None),
  "max_position_embeddings": ("max_positions", int, 0),
  "rope_theta": ("rope_theta", float, 10_000.0),
  "rms_norm_eps": ("norm_eps", float, 1e-6),
  "tie_word_embeddings": ("tied", bool, False),
}
_LLAMA3 = {  # keys of its rope_scaling, likewise, with fields of RopeScaling
  "factor": ("factor", float, None),
  "low_freq_factor": ("low_freq_factor", float, None),
  "high_freq_factor": ("high_freq_factor", float, None),
  "original_max_position_embeddings": ("original_max_position", int, None),
}
_BLOCK = 64 << 20  # bytes of a tensor that a check holds at once
_SAMPLE = 4096  # bytes at the start, middle and end of a tensor that its digest covers


class Tensor(NamedTuple):
  """A tensor in a safetensors file, not yet read."""

  name: str
  file: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # its first byte in the file

  @property
  def row_bytes(self) -> int:
    """Bytes of one entry of the first dimension."""
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  def read(self, first: int, last: int) -> np.ndarray:
    """Reads entries first .. last - 1 of the first dimension."""
    with self.file.open("rb") as f:
      f.seek(self.start + first * self.row_bytes)
      content = f.read((last - first) * self.row_bytes)
    return np.frombuffer(content, self.dtype).reshape(last - first, *self.shape[1:])

  def blocks(self) -> Iterator[np.ndarray]:
    """Reads the whole tensor, block by block along its first dimension, at most 64 MiB at a time or one entry."""
    rows = max(1, _BLOCK // max(1, self.row_bytes))
    return (self.read(i, min(i + rows, self.shape[0])) for i in range(0, self.shape[0], rows))


class Model(NamedTuple):
  """A checked Hugging Face directory: the policy's shape, and the tensors of its weights by their names in files."""

  folder: epath.Path
  spec: Spec
  tensors: dict[str, Tensor]
  files: tuple[str, ...]  # names of its safetensors files


def stored(leaf: Leaf) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """Returns how a layer's weight is stored in files: (its shape here, its axes in the file's order, its shape there).

  Import and export both follow it. In files a linear map is [outputs, inputs], with heads and head width merged, here
  inputs come first; biases are flat there; tables and norms are the same.
  """
  shape = leaf.shape[1:] if leaf.layered else leaf.shape
  if not (leaf.layered and leaf.fan_in > 0):
    return shape, tuple(range(len(shape))), (math.prod(shape),) if leaf.layered else shape
  inputs = next(n for n in range(1, len(shape)) if math.prod(shape[:n]) == leaf.fan_in)
  order = (*range(inputs, len(shape)), *range(inputs))
  return shape, order, (math.prod(shape[inputs:]), leaf.fan_in)


def named_tensors(spec: Spec) -> Iterator[tuple[str, str, Leaf, int]]:
  """Yields (name in files, name here, leaf, number of the layer or -1) for every tensor of a policy."""
  for name, leaf in leaves(spec).items():
    for layer in range(spec.layers) if leaf.layered else (-1,):
      yield leaf.hf.format(layer), name, leaf, layer


def open_model(folder: str | os.PathLike) -> Model:
  """Opens a Hugging Face directory: checks config.json and the header of every file against `spec.leaves`.

  Reads no weights, except a head that must equal the embedding table. Raises InputError, naming file and tensor or key,
  for whatever is missing, superfluous, truncated, of a wrong shape or of an unknown kind.
  """
  folder = epath.Path(folder)
  for name in (INDEX, SINGLE):
    check_regular(folder / name)
  spec = read_spec(folder)
  found = _tensors(folder)
  files = tuple(sorted({tensor.file.name for tensor in found.values()}))
  if spec.tied and "lm_head.weight" in found and "model.embed_tokens.weight" in found:
    _same(found["model.embed_tokens.weight"], found.pop("lm_head.weight"))
  expected = set()
  # Stops at the first missing tensor, however many layers config.json states.
  for name, _, leaf, _ in named_tensors(spec):
    expected.add(name)
    _check_tensor(folder, name, leaf, spec, found)
  for name in sorted(found.keys() - expected):
    if not name.endswith("rotary_emb.inv_freq"):  # a buffer in old files, which the config determines
      raise InputError(f"{found[name].file}: tensor {name} is not of this architecture; take the model's own files")
  return Model(folder, spec, {name: found[name] for name, *_ in named_tensors(spec)}, files)


def _check_tensor(folder: epath.Path, name: str, leaf: Leaf, spec: Spec, found: Mapping[str, Tensor]) -> None:
  """Raises InputError where the tensors of the folder lack this one, or it has another shape than its leaf."""
  shape = stored(leaf)[2]
  if name not in found:
    why = ""
    if leaf.layered:
      why = f" (config.json: num_hidden_layers = {spec.layers})"
    elif name == "lm_head.weight":
      why = " (tie_word_embeddings is false: the head is a tensor of its own)"
    raise InputError(f"{folder}: has no tensor {name}, wanted one of shape {list(shape)}{why}; complete the folder")
  tensor = found[name]
  if tensor.shape != shape:
    why = ", looks transposed" if tensor.shape[::-1] == shape else ""
    raise InputError(
      f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)}{why}; "
      "take config.json and weights of one model"
    )


def read_spec(folder: epath.Path) -> Spec:
  """Returns the shape that a folder's config.json (of transformers 4 or 5) states.

  Raises InputError for a file that can't be read and for a model that is not implemented here.
  """
  file = folder / "config.json"
  with _readable(file):
    return _spec(file, _json(file))


@contextlib.contextmanager
def _readable(file: epath.Path) -> Iterator[None]:
  """Raises InputError where a value in the file has another JSON type than expected, or exceeds all floats."""
  try:
    yield
  except (TypeError, AttributeError, OverflowError) as error:
    raise InputError(f"{file}: holds a value of a wrong type ({error}); take the model's own file") from error


def _spec(file: epath.Path, config: Mapping) -> Spec:
  """Returns the shape that the content of a config.json states; `file` is named in errors."""

  def refuse(key: str, value, wanted) -> InputError:
    return InputError(f"{file}: {key} = {json.dumps(value)} is not computed here, wanted {wanted}; take another model")

  family, switches = FAMILIES.get(config.get("model_type"), (None, {}))
  if family is None:
    raise refuse("model_type", config.get("model_type"), f"one of {', '.join(FAMILIES)}")
  if config.get("architectures") not in (None, [family]):
    raise refuse("architectures", config["architectures"], family)
  rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
  for key, only in _ONLY.items():
    for table in (config, rope):
      if table.get(key, only) not in (only, None):
        raise refuse(key, table[key], json.dumps(only))
  if other := set(config.get("layer_types") or ()) - {"full_attention"}:
    raise refuse("layer_types", min(other), "full_attention")
  rope_type = rope.get("rope_type", rope.get("type", "default"))
  if rope_type not in ("default", "llama3"):
    raise refuse("rope_type", rope_type, "default or llama3")
  if other := rope.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_LLAMA3}:
    raise refuse(f"rope parameter {min(other)}", rope[min(other)], "none of this name")
  theta = {key: value for key, value in rope.items() if key == "rope_theta"}
  fields = _read_fields(file, _FIELDS, {**config, **theta}) | switches
  fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
  if not fields["head_dim"]:
    fields["head_dim"] = 128 if "qk_norm" in switches else fields["width"] // fields["heads"]
  scaling = RopeScaling(**_read_fields(file, _LLAMA3, rope)) if rope_type == "llama3" else None
  try:
    return Spec(**fields, rope_scaling=scaling)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def _read_fields(file: epath.Path, table: Mapping, values: Mapping) -> dict:
  """Returns the fields that `table`, _FIELDS or _LLAMA3, reads from `values`. Raises InputError for wrong types."""
  fields = {}
  for key, (field, kind, default) in table.items():
    stated = default if values.get(key) is None else values[key]
    value = float(stated) if kind is float and type(stated) is int else stated
    is_positive = kind is bool or value is default or (type(value) is kind and 0 < value < math.inf)
    if type(value) is not kind or not is_positive:
      wanted = "true or false" if kind is bool else f"a positive {kind.__name__}"
      raise InputError(f"{file}: {key} = {json.dumps(stated)}, wanted {wanted}; take the model's own file")
    fields[field] = value
  return fields


def config_of(spec: Spec, dtype: str, ids: Mapping) -> dict:
  """Returns a policy's config.json, in the style that every version of transformers reads.

  dtype: that of the weight files. ids: ids of special tokens, by their keys in config.json. Raises InputError where no
  family of transformers has the policy's switches.
  """
  switches = {name: True for name in ("qkv_bias", "qk_norm") if getattr(spec, name)}
  kind = next((kind for kind, (_, on) in FAMILIES.items() if on == switches), None)
  if kind is None:
    raise InputError(f"a policy with {' and '.join(switches)} is of no family that transformers knows; switch one off")
  scaling = spec.rope_scaling and {key: getattr(spec.rope_scaling, field) for key, (field, _, _) in _LLAMA3.items()}
  return {
    "architectures": [FAMILIES[kind][0]],
    "model_type": kind,
    **{key: getattr(spec, field) for key, (field, _, _) in _FIELDS.items()},
    "max_position_embeddings": spec.max_positions or 2048,
    "rope_scaling": scaling and scaling | {"rope_type": "llama3"},
    "hidden_act": "silu",
    "torch_dtype": dtype,
    **ids,
  }


def load(model: Model, spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Loads the weights as float32 onto the mesh, tensor by tensor; returns them by name.

  Each process reads only the rows that its own devices hold, and its host holds at most one tensor at a time. `spec`
  may differ from the model's in fields that change no weight. Raises InputError for a weight that is not finite.
  """
  placed = policy_spec.shardings(spec, mesh)
  stacks = {name: leaf for name, leaf in leaves(spec).items() if leaf.layered}
  params = jax.jit(
    lambda: {name: jnp.zeros(leaf.shape) for name, leaf in stacks.items()},
    out_shardings={name: placed[name] for name in stacks},
  )()
  for hf, name, leaf, layer in named_tensors(spec):
    one = _on_mesh(model.tensors[hf], leaf, mesh)
    params[name], finite = _fill(params[name], one, layer) if leaf.layered else _widen(one)
    jax.block_until_ready(
      params[name]
    )  # wait for all devices: a slow one would keep its pieces of several tensors alive
    if not multihost.fetch(finite):
      raise InputError(f"{model.tensors[hf].file}: tensor {hf} holds a value that is not finite; take another copy")
  return {name: params[name] for name in leaves(spec)}


def _on_mesh(tensor: Tensor, leaf: Leaf, mesh: jax.sharding.Mesh) -> jax.Array:
  """Returns a layer's weight in the file's dtype, sharded as in its stack; rows that devices share are read once."""
  shape, order, there = stored(leaf)
  rows = there[0] // shape[order[0]]  # in the file, of one entry of the first axis there
  blocks = {}

  def piece(index: Sequence[slice]) -> np.ndarray:
    first, last, _ = index[order[0]].indices(shape[order[0]])
    if (first, last) not in blocks:
      read = tensor.read(first * rows, last * rows)
      blocks[first, last] = read.reshape(last - first, *(shape[axis] for axis in order[1:]))
    cut = blocks[first, last][(slice(None), *(index[axis] for axis in order[1:]))]
    return cut.transpose(np.argsort(order))

  place = sharding.place(mesh, tensor.name, shape, leaf.axes[1:] if leaf.layered else leaf.axes)
  return jax.make_array_from_callback(shape, place, piece, tensor.dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(stack: jax.Array, one: jax.Array, layer: int) -> tuple[jax.Array, jax.Array]:
  return jax.lax.dynamic_update_index_in_dim(stack, one.astype(stack.dtype), layer, 0), jnp.isfinite(one).all()


@jax.jit
def _widen(one: jax.Array) -> tuple[jax.Array, jax.Array]:
  return one.astype(jnp.float32), jnp.isfinite(one).all()


def check_finite(model: Model) -> None:
  """Raises InputError for the first tensor that holds a NaN or an infinity; reads every byte, a block at a time."""
  for name, tensor in model.tensors.items():
    if not all(np.isfinite(block.astype(np.float32)).all() for block in tensor.blocks()):
      raise InputError(f"{tensor.file}: tensor {name} holds a value that is not finite; take another copy")


def weights_digest(model: Model) -> str:
  """Returns a SHA-256 that identifies the weights, however they are divided among files.

  It covers name, dtype, shape and three samples of 4 KiB of each tensor: enough to tell weights apart after a short
  training run, but no check of every byte.
  """
  state = hashlib.sha256()
  for name, tensor in sorted(model.tensors.items()):
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    state.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
    with tensor.file.open("rb") as f:
      for at in (0, size // 2, max(0, size - _SAMPLE)):
        f.seek(tensor.start + at)
        state.update(f.read(min(_SAMPLE, size - at)))
  return state.hexdigest()


def save(folder: str | os.PathLike, params: Mapping[str, jax.Array], spec: Spec, dtype: str, shard_bytes: int) -> None:
  """Writes the weights to the folder, in `dtype`, as safetensors files of at most `shard_bytes` or one tensor each.

  Several files get an index. Each tensor is gathered to every device and written before the next, so that the host
  holds one at a time.
  """
  folder = epath.Path(folder)
  code = next(code for code, known in DTYPES.items() if known == jnp.dtype(dtype))
  shards = _cut_into_shards(spec, dtype, shard_bytes)
  place = params["embed"].sharding
  assert isinstance(place, jax.sharding.NamedSharding)
  gather = jax.jit(_as_stored, static_argnames=("leaf", "dtype"), out_shardings=sharding.named_sharding(place.mesh))
  weight_map = {}
  for number, entries in enumerate(shards, 1):
    file = folder / (SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
      hf, _, leaf, _ = entry
      start, end = end, end + _size([entry], dtype)
      header[hf] = {"dtype": code, "shape": stored(leaf)[2], "data_offsets": (start, end)}
      weight_map[hf] = file.name
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with disk.writing(file, 8 + len(text) + end), file.open("wb") as f:
      f.write(len(text).to_bytes(8, "little") + text)
      for _, name, leaf, layer in entries:
        tensor = multihost.fetch(gather(params[name], layer, leaf=leaf, dtype=dtype))
        f.write(np.ascontiguousarray(tensor).view(np.uint8))
  if len(shards) > 1:
    total_size = sum(_size(entries, dtype) for entries in shards)
    text = json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}, indent=1)
    with disk.writing(folder / INDEX, len(text)):
      (folder / INDEX).write_text(text)


def _cut_into_shards(spec: Spec, dtype: str, shard_bytes: int) -> list[list[tuple]]:
  """Returns the entries of `named_tensors` in lists, one for each file."""
  shards: list[list[tuple]] = [[]]
  for entry in named_tensors(spec):
    if shards[-1] and _size(shards[-1], dtype) + _size([entry], dtype) > shard_bytes:
      shards.append([])
    shards[-1].append(entry)
  return shards


def _as_stored(weight: jax.Array, layer: int, leaf: Leaf, dtype: str) -> jax.Array:
  """Returns one tensor of a weight as files store it."""
  _, order, there = stored(leaf)
  one = jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False) if leaf.layered else weight
  return one.transpose(order).reshape(there).astype(dtype)


def _size(entries: Sequence[tuple], dtype: str) -> int:
  """Returns the bytes of these entries of `named_tensors`."""
  numbers = sum(math.prod(stored(leaf)[2]) for _, _, leaf, _ in entries)
  return numbers * jnp.dtype(dtype).itemsize


def check_regular(file: epath.Path) -> None:
  """Raises InputError where a local path is there and is no regular file."""
  if not object_store.is_remote(file) and os.path.exists(file) and not os.path.isfile(file):
    raise InputError(f"{file}: is no regular file (a pipe, a device or a folder); take the model's own file")


def _json(file: epath.Path) -> dict:
  """Reads a JSON object. Raises InputError where the file holds none."""
  check_regular(file)
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{file}: can't be read ({type(error).__name__}); name a Hugging Face model directory") from error
  if not isinstance(content, dict):
    raise InputError(f"{file}: holds a {type(content).__name__}, wanted an object; take the model's own file")
  return content


def _tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Returns every tensor of the folder by name, from the headers of the files in its index, or of its only file."""
  if (folder / INDEX).is_file():
    with _readable(folder / INDEX):
      return _shards(folder, _json(folder / INDEX).get("weight_map", {}))
  if (folder / SINGLE).is_file():
    return _header(folder / SINGLE)
  pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
  what = f"only pickle files ({min(pickles)}), which can run code" if pickles else f"neither {SINGLE} nor {INDEX}"
  raise InputError(f"{folder}: holds {what}; save the model as safetensors (transformers: save_pretrained)")


def _shards(folder: epath.Path, index: Mapping[str, str]) -> dict[str, Tensor]:
  """Returns the tensors of all files in an index (file by tensor). Raises InputError where file and index differ."""
  by_name = {}
  for name in sorted(set(index.values())):
    if "/" in name or not (folder / name).is_file():
      raise InputError(f"{folder / INDEX}: names the shard {name}, which is not in the folder; fetch it")
    check_regular(folder / name)
    tensors = _header(folder / name)
    listed = {tensor for tensor, file in index.items() if file == name}
    for tensor in sorted(listed ^ tensors.keys()):
      where = "lists" if tensor in listed else "does not list"
      raise InputError(f"{folder / name}: {INDEX} {where} its tensor {tensor}, unlike the file; fetch both again")
    by_name |= tensors
  return by_name


def _header(file: epath.Path) -> dict[str, Tensor]:
  """Returns the tensors of a safetensors file by name. Raises InputError for a torn file and unknown dtypes."""
  size = file.stat().length
  with file.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    text = f.read(length) if 8 + length <= size else b""
  try:
    header = json.loads(text)
    header.pop("__metadata__", None)
    by_name, position = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
      shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
      if entry["dtype"] not in DTYPES:
        raise InputError(
          f"{file}: tensor {name} has dtype {entry['dtype']}, wanted one of {', '.join(DTYPES)}; cast it"
        )
      by_name[name] = Tensor(name, file, DTYPES[entry["dtype"]], shape, position)
      size_of_tensor = math.prod(shape) * by_name[name].dtype.itemsize
      if 8 + length + start != position or end - start != size_of_tensor:
        raise ValueError(f"the bytes of tensor {name} are not where they should be")
      position += end - start
  except InputError:
    raise
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise InputError(f"{file}: is no whole safetensors file ({error}); fetch it again") from error
  if position != size:
    raise InputError(
      f"{file}: has {size} bytes, its header tells of {position}: it is truncated or torn; fetch it again"
    )
  return by_name


def _same(embed: Tensor, head: Tensor) -> None:
  """Raises InputError where a tied model's file holds a head that differs from the embedding table."""
  is_equal = embed.shape == head.shape and embed.dtype == head.dtype
  if is_equal:
    is_equal = all(np.array_equal(a, b) for a, b in zip(embed.blocks(), head.blocks(), strict=True))
  if not is_equal:
    raise InputError(
      f"{head.file}: lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true; "
      "set it to false if the head is the model's"
    )
