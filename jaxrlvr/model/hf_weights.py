"""Hugging Face directories in and out: config.json to a Spec and back, safetensors straight onto the mesh and back."""

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
# Families by model_type: the class that config.json names, and what it switches on.
FAMILIES = {
  "llama": ("LlamaForCausalLM", {}),
  "qwen2": ("Qwen2ForCausalLM", {"qkv_bias": True}),
  "qwen3": ("Qwen3ForCausalLM", {"qk_norm": True}),
}
# Keys of config.json that would change the computation; only these values are read, which an absent key has too.
_ONLY = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "use_sliding_window": False,
  "use_mrope": False,
  "partial_rotary_factor": 1.0,
  "quantization_config": None,
}
# Keys of config.json: (field of Spec, type, what an absent key means; None: it must be there).
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
_LLAMA3 = {  # the same of rope_scaling and RopeScaling
  "factor": ("factor", float, None),
  "low_freq_factor": ("low_freq_factor", float, None),
  "high_freq_factor": ("high_freq_factor", float, None),
  "original_max_position_embeddings": ("original_max_position", int, None),
}
_BLOCK = 64 << 20  # bytes of a tensor that a check holds at once
_SAMPLE = 4096  # bytes at the start, middle and end of a tensor that its digest covers


class Tensor(NamedTuple):
  """A tensor in a safetensors file; nothing of it is read yet."""

  name: str
  file: epath.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # its first byte in the file

  @property
  def row_bytes(self) -> int:
    return math.prod(self.shape[1:]) * self.dtype.itemsize

  def read(self, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` (not included) of the first dimension."""
    with self.file.open("rb") as f:
      f.seek(self.start + first * self.row_bytes)
      found = f.read((last - first) * self.row_bytes)
    return np.frombuffer(found, self.dtype).reshape(last - first, *self.shape[1:])

  def blocks(self) -> Iterator[np.ndarray]:
    """All rows in order, at most 64 MiB of them at a time (a longer row is one block)."""
    rows = max(1, _BLOCK // max(1, self.row_bytes))
    return (self.read(i, min(i + rows, self.shape[0])) for i in range(0, self.shape[0], rows))


class Model(NamedTuple):
  """A checked Hugging Face directory: its shape, and where each tensor of the leaf table lies."""

  folder: epath.Path
  spec: Spec
  tensors: dict[str, Tensor]
  files: tuple[str, ...]  # names of its safetensors files


def stored(leaf: Leaf) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """How a layer's weight lies in a file: (shape here, its axes in the order of the file, shape there).

  The one rule for both directions: a linear map is [outputs, inputs] there and inputs before outputs here, with heads
  and head width merged there; biases are flat there; tables and norms are the same.
  """
  shape = leaf.shape[1:] if leaf.layered else leaf.shape
  if not (leaf.layered and leaf.fan_in > 0):
    return shape, tuple(range(len(shape))), (math.prod(shape),) if leaf.layered else shape
  inputs = next(n for n in range(1, len(shape)) if math.prod(shape[:n]) == leaf.fan_in)
  order = (*range(inputs, len(shape)), *range(inputs))
  return shape, order, (math.prod(shape[inputs:]), leaf.fan_in)


def named_tensors(spec: Spec) -> Iterator[tuple[str, str, Leaf, int]]:
  """(name in files, name here, leaf, layer or -1) of every tensor of a policy."""
  for name, leaf in leaves(spec).items():
    for layer in range(spec.layers) if leaf.layered else (-1,):
      yield leaf.hf.format(layer), name, leaf, layer


def open_model(folder: str | os.PathLike) -> Model:
  """Checks config.json and the header of every file against the leaf table, both ways; reads no weight but a tied head.

  InputError, naming file and tensor or key, for what is missing, extra, misshapen, truncated or of an unknown kind.
  """
  folder = epath.Path(folder)
  for name in (INDEX, SINGLE):
    check_regular(folder / name)
  spec = read_spec(folder)
  found = _tensors(folder)
  files = tuple(sorted({tensor.file.name for tensor in found.values()}))
  if spec.tied and "lm_head.weight" in found and "model.embed_tokens.weight" in found:
    _same(found["model.embed_tokens.weight"], found.pop("lm_head.weight"))
  wanted = set()
  for name, _, leaf, _ in named_tensors(
    spec
  ):  # ends at the first that is missing, whatever number of layers config.json states
    wanted.add(name)
    shape = stored(leaf)[2]
    if name not in found:
      why = " (tie_word_embeddings is false: the head is a tensor of its own)" if name == "lm_head.weight" else ""
      if leaf.layered:
        why = f" (config.json: num_hidden_layers = {spec.layers})"
      raise InputError(f"{folder}: has no tensor {name}, wanted one of shape {list(shape)}{why}; complete the folder")
    tensor = found[name]
    if tensor.shape != shape:
      why = ", looks transposed" if tensor.shape[::-1] == shape else ""
      raise InputError(
        f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)}{why}; "
        "take config.json and weights of one model"
      )
  for name in sorted(found.keys() - wanted):
    if not name.endswith("rotary_emb.inv_freq"):  # a buffer in old files, which the config determines
      raise InputError(f"{found[name].file}: tensor {name} is not of this architecture; take the model's own files")
  return Model(folder, spec, {name: found[name] for name, *_ in named_tensors(spec)}, files)


def read_spec(folder: epath.Path) -> Spec:
  """The shape that a config.json (of transformers 4 or 5) states; InputError for what isn't computed here."""
  file = folder / "config.json"
  with _readable(file):
    return _spec(file, _json(file))


@contextlib.contextmanager
def _readable(file: epath.Path) -> Iterator[None]:
  """A value of another JSON type than is read there, or an integer beyond all floats, as our own error."""
  try:
    yield
  except (TypeError, AttributeError, OverflowError) as error:
    raise InputError(f"{file}: holds a value of a wrong type ({error}); take the model's own file") from error


def _spec(file: epath.Path, c: Mapping) -> Spec:
  def take(table: Mapping, where: Mapping) -> dict:
    made = {}
    for key, (field, kind, absent) in table.items():
      found = absent if where.get(key) is None else where[key]
      value = float(found) if kind is float and type(found) is int else found
      if type(value) is not kind or (value is not absent and kind is not bool and not 0 < value < math.inf):
        wanted = "true or false" if kind is bool else f"a positive {kind.__name__}"
        raise InputError(f"{file}: {key} = {json.dumps(found)}, wanted {wanted}; take the model's own file")
      made[field] = value
    return made

  def refuse(key: str, value, wanted) -> InputError:
    return InputError(f"{file}: {key} = {json.dumps(value)} is not computed here, wanted {wanted}; take another model")

  family, switches = FAMILIES.get(c.get("model_type"), (None, {}))
  if family is None:
    raise refuse("model_type", c.get("model_type"), f"one of {', '.join(FAMILIES)}")
  if c.get("architectures") not in (None, [family]):
    raise refuse("architectures", c["architectures"], family)
  rope = (c.get("rope_scaling") or {}) | (c.get("rope_parameters") or {})
  for key, only in _ONLY.items():
    for where in (c, rope):
      if where.get(key, only) not in (only, None):
        raise refuse(key, where[key], json.dumps(only))
  if other := set(c.get("layer_types") or ()) - {"full_attention"}:
    raise refuse("layer_types", min(other), "full_attention")
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "llama3"):
    raise refuse("rope_type", kind, "default or llama3")
  if other := rope.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_LLAMA3}:
    raise refuse(f"rope parameter {min(other)}", rope[min(other)], "none of this name")
  theta = {key: value for key, value in rope.items() if key == "rope_theta"}
  fields = take(_FIELDS, {**c, **theta}) | switches
  fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
  fields["head_dim"] = fields["head_dim"] or (128 if "qk_norm" in switches else fields["width"] // fields["heads"])
  scaling = RopeScaling(**take(_LLAMA3, rope)) if kind == "llama3" else None
  try:
    return Spec(**fields, rope_scaling=scaling)
  except InputError as error:
    raise InputError(f"{file}: {error}") from None


def config_of(spec: Spec, dtype: str, ids: Mapping) -> dict:
  """The config.json of a policy, in the style that every version of transformers reads; `ids` of special tokens."""
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
  """Float32 weights on the mesh, tensor by tensor; each process reads only the rows that its own devices hold.

  The host holds no more than one tensor at a time. `spec` may differ from the model's in what has no weights. A weight
  that is not finite is an InputError.
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
    jax.block_until_ready(params[name])  # all devices: one that lags would keep its pieces of several tensors alive
    if not multihost.fetch(finite):
      raise InputError(f"{model.tensors[hf].file}: tensor {hf} holds a value that is not finite; take another copy")
  return {name: params[name] for name in leaves(spec)}


def _on_mesh(tensor: Tensor, leaf: Leaf, mesh: jax.sharding.Mesh) -> jax.Array:
  """A layer's weight in the file's dtype, laid out as in its stack; rows that several devices share are read once."""
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
  """InputError for the first tensor that holds a NaN or an infinity; reads every byte, a block at a time."""
  for name, tensor in model.tensors.items():
    if not all(np.isfinite(block.astype(np.float32)).all() for block in tensor.blocks()):
      raise InputError(f"{tensor.file}: tensor {name} holds a value that is not finite; take another copy")


def weights_digest(model: Model) -> str:
  """Stands for the weights, however they are cut into files: name, kind, shape and 3 * 4 KiB of each tensor.

  That tells other weights, also those of a short training run; it is no check of every byte.
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
  """Writes safetensors of at most `shard_bytes` (or one tensor) each, and their index where there are several.

  Each tensor is made whole on every device, in the file's dtype, and written before the next: the host holds one.
  """
  folder, code = epath.Path(folder), next(code for code, known in DTYPES.items() if known == jnp.dtype(dtype))
  shards = [[]]
  for entry in named_tensors(spec):
    if shards[-1] and _size(shards[-1], dtype) + _size([entry], dtype) > shard_bytes:
      shards.append([])
    shards[-1].append(entry)
  place = params["embed"].sharding
  assert isinstance(place, jax.sharding.NamedSharding)
  take = jax.jit(_taken, static_argnames=("leaf", "dtype"), out_shardings=sharding.named_sharding(place.mesh))
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
        f.write(np.ascontiguousarray(multihost.fetch(take(params[name], layer, leaf=leaf, dtype=dtype))).view(np.uint8))
  if len(shards) > 1:
    told = {"metadata": {"total_size": sum(_size(entries, dtype) for entries in shards)}, "weight_map": weight_map}
    text = json.dumps(told, indent=1)
    with disk.writing(folder / INDEX, len(text)):
      (folder / INDEX).write_text(text)


def _taken(weight: jax.Array, layer: int, leaf: Leaf, dtype: str) -> jax.Array:
  _, order, there = stored(leaf)
  one = jax.lax.dynamic_index_in_dim(weight, layer, keepdims=False) if leaf.layered else weight
  return one.transpose(order).reshape(there).astype(dtype)


def _size(entries: Sequence[tuple], dtype: str) -> int:
  return sum(math.prod(stored(leaf)[2]) for _, _, leaf, _ in entries) * jnp.dtype(dtype).itemsize


def check_regular(file: epath.Path) -> None:
  """InputError where a pipe, a device or a folder stands in the place of a local file."""
  if not object_store.is_remote(file) and os.path.exists(file) and not os.path.isfile(file):
    raise InputError(f"{file}: is no regular file (a pipe, a device or a folder); take the model's own file")


def _json(file: epath.Path) -> dict:
  check_regular(file)
  try:
    found = json.loads(file.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f"{file}: can't be read ({type(error).__name__}); name a Hugging Face model directory") from error
  if not isinstance(found, dict):
    raise InputError(f"{file}: holds a {type(found).__name__}, wanted an object; take the model's own file")
  return found


def _tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Every tensor of the folder by name, from the headers of the files that its index, or its only file, names."""
  if (folder / INDEX).is_file():
    with _readable(folder / INDEX):
      return _shards(folder, _json(folder / INDEX).get("weight_map", {}))
  if (folder / SINGLE).is_file():
    return _header(folder / SINGLE)
  pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
  what = f"only pickle files ({min(pickles)}), which can run code" if pickles else f"neither {SINGLE} nor {INDEX}"
  raise InputError(f"{folder}: holds {what}; save the model as safetensors (transformers: save_pretrained)")


def _shards(folder: epath.Path, index: Mapping[str, str]) -> dict[str, Tensor]:
  found = {}
  for name in sorted(set(index.values())):
    if "/" in name or not (folder / name).is_file():
      raise InputError(f"{folder / INDEX}: names the shard {name}, which is not in the folder; fetch it")
    check_regular(folder / name)
    tensors, listed = _header(folder / name), {tensor for tensor, file in index.items() if file == name}
    for tensor in sorted(listed ^ tensors.keys()):
      where = "lists" if tensor in listed else "does not list"
      raise InputError(f"{folder / name}: {INDEX} {where} its tensor {tensor}, unlike the file; fetch both again")
    found |= tensors
  return found


def _header(file: epath.Path) -> dict[str, Tensor]:
  size = file.stat().length
  with file.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    text = f.read(length) if 8 + length <= size else b""
  try:
    header = json.loads(text)
    header.pop("__metadata__", None)
    found, at = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
      shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
      if entry["dtype"] not in DTYPES:
        raise InputError(
          f"{file}: tensor {name} has dtype {entry['dtype']}, wanted one of {', '.join(DTYPES)}; cast it"
        )
      found[name] = Tensor(name, file, DTYPES[entry["dtype"]], shape, at)
      if 8 + length + start != at or end - start != math.prod(shape) * found[name].dtype.itemsize:
        raise ValueError(f"the bytes of tensor {name} are not where they should be")
      at += end - start
  except InputError:
    raise
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise InputError(f"{file}: is no whole safetensors file ({error}); fetch it again") from error
  if at != size:
    raise InputError(f"{file}: has {size} bytes, its header tells of {at}: it is truncated or torn; fetch it again")
  return found


def _same(embed: Tensor, head: Tensor) -> None:
  """A tied model may hold its head once more, if it is the embedding."""
  same = embed.shape == head.shape and embed.dtype == head.dtype
  if not same or not all(np.array_equal(a, b) for a, b in zip(embed.blocks(), head.blocks(), strict=True)):
    raise InputError(
      f"{head.file}: lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true; "
      "set it to false if the head is the model's"
    )
