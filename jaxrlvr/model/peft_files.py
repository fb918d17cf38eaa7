"""PEFT directories: low-rank adapters in the files of the peft library, read onto the mesh and written from it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import safetensors_files, weight_table
from jaxrlvr.model.safetensors_files import Tensor
from jaxrlvr.model.spec import Leaf, Lora, Spec, adapter_names
from jaxrlvr.model.weight_table import adapter_leaves

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every tensor's name
_ALL_LINEAR = "all-linear"  # value of target_modules: every linear map but the head
_MOST_RANK = 2**31 - 1  # that is looked for among the tensors
_MERGE = "merge the adapter into its base (peft: merge_and_unload) and take the merged model as config.model.path"
# Keys of adapter_config.json that are read here.
_READ = (
  "peft_type",
  "task_type",
  "base_model_name_or_path",
  "revision",
  "r",
  "lora_alpha",
  "rank_pattern",
  "alpha_pattern",
  "use_rslora",
  "target_modules",
  "exclude_modules",
  "layers_to_transform",
  "layers_pattern",
  "bias",
  "init_lora_weights",
)
# Keys that don't change what a finished adapter computes, whatever their values.
_WITHOUT_EFFECT = (
  "auto_mapping",
  "corda_config",  # with init_lora_weights alone
  "ensure_weight_tying",  # of embeddings and heads, which have no adapters here
  "eva_config",  # with init_lora_weights alone
  "fan_in_fan_out",  # how the base's file stores a weight
  "inference_mode",
  "loftq_config",  # with init_lora_weights alone
  "lora_dropout",  # in training with peft alone
  "lora_ga_config",  # with init_lora_weights alone
  "megatron_core",
  "peft_version",
  "qalora_group_size",  # with use_qalora alone
  "runtime_config",
  "velora_config",  # in training with peft alone
)
# Initialisations that leave the base's weights as they are; others subtract the adapter's first product from them.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


class Module(NamedTuple):
  """A linear map in one layer of the base, as transformers has it: one of our weights, or several fused to one."""

  name: str  # of the module, such as "model.layers.0.self_attn.q_proj"
  layer: int
  parts: tuple[tuple[str, Leaf], ...]  # our weights by name; their outputs lie one behind another

  @property
  def inputs(self) -> int:
    """Number of inputs."""
    _, leaf = self.parts[0]
    assert leaf.fan_in is not None
    return leaf.fan_in

  @property
  def outputs(self) -> int:
    """Number of outputs, of all parts together."""
    return sum(_outputs(leaf) for _, leaf in self.parts)


class AdaptedModule(NamedTuple):
  """A module that an adapter changes, with the tensors that do."""

  module: Module
  rank: int
  alpha: float  # the product of the tensors is multiplied by alpha / rank, also where the file says use_rslora
  a: Tensor  # lora_A.weight, [rank, inputs]
  b: Tensor  # lora_B.weight, [outputs, rank]


class Adapter(NamedTuple):
  """A checked PEFT directory, whose weights are not yet read."""

  folder: epath.Path
  lora: Lora  # as which `load` returns it; base_dtype has its default
  modules: tuple[AdaptedModule, ...]  # at least one

  @property
  def tensors(self) -> dict[str, Tensor]:
    """The tensors by their names in the file."""
    tensors = {}
    for module in self.modules:
      tensors |= {module.a.name: module.a, module.b.name: module.b}
    return tensors


def modules_of(spec: Spec) -> list[Module]:
  """Returns every module of a policy that may have adapters: kind by kind, and there layer by layer."""
  parts: dict[str, list[tuple[str, Leaf]]] = {}  # by the name in files, with {} for the layer
  for name, leaf in weight_table.leaves(spec).items():
    if leaf.layered and leaf.input_axes:
      parts.setdefault(leaf.hf_name, []).append((name, leaf))
  modules = []
  for hf_name, leaves in parts.items():
    for layer in range(spec.layers):
      modules.append(Module(_module_name(hf_name.format(layer)), layer, tuple(leaves)))
  return modules


def _module_name(tensor: str) -> str:
  """Returns the name of the module that a tensor of the base belongs to, such as "lm_head" of "lm_head.weight"."""
  return tensor.rpartition(".")[0]


def _outputs(leaf: Leaf) -> int:
  """Returns the number of outputs of a weight that a layer multiplies with."""
  return math.prod(leaf.layer_shape[len(leaf.input_axes) :])


def base_of(folder: str | os.PathLike) -> str:
  """Returns the base that a PEFT directory names: a path, or ORG/NAME of the hub, with @REVISION if the file has one.

  Raises InputError where adapter_config.json can't be read or names none.
  """
  file = epath.Path(folder) / ADAPTER_CONFIG
  config = _read_config(file)
  base, revision = config.get("base_model_name_or_path"), config.get("revision")
  if not isinstance(base, str) or not base:
    raise InputError(f"{file}: names no base (base_model_name_or_path); name it as config.model.path")
  is_local = os.path.exists(os.path.expanduser(base))
  return f"{base}@{revision}" if isinstance(revision, str) and revision and not is_local else base


def open_adapter(folder: str | os.PathLike, spec: Spec) -> Adapter:
  """Opens a PEFT directory: checks adapter_config.json, and the header of adapter_model.safetensors.

  spec: of the base. folder: local or on an object store. No weights are read. lora_dropout has no effect, because
  adapters are not trained on: training merges them first. Keys that are unknown here may be there if their value
  switches nothing on (null, false or empty). Raises InputError, naming file and key or tensor, for an adapter of
  another kind than plain LoRA, for modules that have no adapters here (embeddings, the head), and where tensors are
  missing, superfluous, misshapen or torn.
  """
  folder = epath.Path(folder)
  file = folder / ADAPTER_CONFIG
  config = _read_config(file)
  _check_config(file, config)
  targeted = _targeted(file, config, spec)
  tensors = _read_tensors(folder)
  modules = []
  for module in targeted:
    rank, alpha = _rank_and_alpha(file, config, module.name)
    a = _take(tensors, folder, f"{module.name}.lora_A.weight", (rank, module.inputs))
    b = _take(tensors, folder, f"{module.name}.lora_B.weight", (module.outputs, rank))
    modules.append(AdaptedModule(module, rank, alpha, a, b))
  if tensors:
    raise _superfluous(min(tensors.values()), spec)
  return Adapter(folder, _lora(modules), tuple(modules))


def _read_config(file: epath.Path) -> dict:
  """Returns the content of an adapter_config.json. Raises InputError where there is none."""
  return safetensors_files.read_json_object(file, "a PEFT directory, which holds one")


def _check_config(file: epath.Path, config: Mapping) -> None:
  """Raises InputError for a key of adapter_config.json that asks for what is not computed here."""
  if config.get("peft_type") != "LORA":
    raise InputError(f"{file}: peft_type = {config.get('peft_type')!r}, wanted 'LORA'; {_MERGE}")
  if config.get("task_type") not in (None, "CAUSAL_LM"):
    raise InputError(f"{file}: task_type = {config['task_type']!r}, wanted 'CAUSAL_LM'; take an adapter of that kind")
  if config.get("bias", "none") != "none":
    raise InputError(f"{file}: bias = {config['bias']!r}: biases are not trained here, wanted 'none'; {_MERGE}")
  start = config.get("init_lora_weights")
  if start not in _PLAIN_STARTS:
    raise InputError(
      f"{file}: init_lora_weights = {start!r} changes the weights of the base; save the adapter for the plain base "
      "(peft: save_pretrained with path_initial_model_for_weight_conversion)"
    )
  for key in sorted(config.keys() - set(_READ) - set(_WITHOUT_EFFECT)):
    is_off = config[key] is None or config[key] is False or config[key] in ([], {}, "")
    if not is_off:
      raise InputError(f"{file}: {key} = {config[key]!r} is not computed here; {_MERGE}")


def _targeted(file: epath.Path, config: Mapping, spec: Spec) -> list[Module]:
  """Returns the modules that an adapter_config.json says are adapted. Raises InputError for none, and for others."""
  targets = config.get("target_modules")
  for key in ("target_modules", "exclude_modules", "layers_pattern"):
    patterns = config.get(key)
    is_list = isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
    is_absent = patterns is None and key != "target_modules"
    if not (is_list or isinstance(patterns, str) or is_absent):
      raise InputError(f"{file}: {key} = {patterns!r}, wanted a list of names or a regular expression; correct it")
  modules = modules_of(spec)
  targeted = [module for module in modules if _is_targeted(file, config, module.name, module.layer)]
  if isinstance(targets, list) or targets.lower() != _ALL_LINEAR:
    names = {module.name for module in modules}
    for leaf in weight_table.leaves(spec).values():
      for layer in range(spec.layers if leaf.layered else 1):
        name = _module_name(leaf.hf_name.format(layer))
        if name not in names and _is_targeted(file, config, name, layer):
          raise InputError(f"{file}: target_modules has {name}, whose adapters are not computed here; {_MERGE}")
  if not targeted:
    raise InputError(
      f"{file}: target_modules = {targets!r} is no module of the base, which has, for example, {modules[0].name}; "
      "take the base of this adapter as config.model.path"
    )
  return targeted


def _is_targeted(file: epath.Path, config: Mapping, name: str, layer: int) -> bool:
  """Returns whether an adapter_config.json says that the module of this name and layer is adapted.

  In a list a module is named in full, or by the end of its name; a text is a regular expression of the whole name, or
  "all-linear". layers_to_transform restricts those that are named by their end.
  """
  targets = config["target_modules"]
  if _is_named(file, config.get("exclude_modules") or [], name):
    return False
  if isinstance(targets, str) and targets.lower() == _ALL_LINEAR:
    return True
  if not _is_named(file, targets, name):
    return False
  layers = config.get("layers_to_transform")
  if layers in (None, []) or isinstance(targets, str) or name in targets:
    return True
  patterns = config.get("layers_pattern") or []
  patterns = [patterns] if isinstance(patterns, str) else patterns
  is_in_pattern = not patterns or any(_matches(file, rf"(.*\.)?{p}\.{layer}\..*", name) for p in patterns)
  return is_in_pattern and layer in (layers if isinstance(layers, list) else [layers])


def _is_named(file: epath.Path, patterns: list[str] | str, name: str) -> bool:
  """Returns whether a list holds the module's name or an end of it, or a text is a regular expression of the name."""
  if isinstance(patterns, str):
    return _matches(file, patterns, name)
  return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _matches(file: epath.Path, pattern: str, name: str) -> bool:
  """Returns whether a regular expression matches a module's whole name. Raises InputError where it is none."""
  try:
    return re.fullmatch(pattern, name) is not None
  except (re.error, OverflowError) as error:
    raise InputError(f"{file}: {pattern!r} is no regular expression ({error}); correct it") from error


def _rank_and_alpha(file: epath.Path, config: Mapping, name: str) -> tuple[int, float]:
  """Returns (rank, alpha) of a module's adapter, so that alpha / rank is its scale.

  With use_rslora the scale is lora_alpha / sqrt(rank), so alpha is lora_alpha * sqrt(rank). Raises InputError for a
  rank or alpha that is no positive number.
  """
  rank = _of_module(file, config, "rank_pattern", "r", 8, name)
  alpha = _of_module(file, config, "alpha_pattern", "lora_alpha", 8, name)
  if type(rank) is not int or not 1 <= rank <= _MOST_RANK:
    raise InputError(f"{file}: the rank of {name} is {rank!r}, wanted a positive int; correct r or rank_pattern")
  if type(alpha) not in (int, float) or not 0 < alpha <= sys.float_info.max:
    raise InputError(f"{file}: the alpha of {name} is {alpha!r}, wanted a positive number; correct it")
  if config.get("use_rslora") not in (None, False, True):
    raise InputError(f"{file}: use_rslora = {config['use_rslora']!r}, wanted true or false; correct it")
  if config.get("use_rslora"):
    alpha = alpha * math.sqrt(rank)
  return rank, float(alpha)


def _of_module(file: epath.Path, config: Mapping, pattern_key: str, key: str, default: int, name: str):
  """Returns the value of the first pattern that matches the end of a module's name, else the value of `key`."""
  patterns = config.get(pattern_key) or {}
  if not isinstance(patterns, dict):
    raise InputError(f"{file}: {pattern_key} = {patterns!r}, wanted an object of values by name; correct it")
  for pattern, value in patterns.items():
    if _matches(file, rf"(.*\.)?({pattern})", name):
      return value
  return config.get(key, default)


def _read_tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Returns the tensors of an adapter by name. Raises InputError where it has no safetensors file."""
  file = folder / ADAPTER_WEIGHTS
  safetensors_files.check_regular(file)
  if file.is_file():
    return safetensors_files.read_header(file)
  pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
  content = f"only the pickle {pickles[0]}, which can run code" if pickles else f"no {ADAPTER_WEIGHTS}"
  raise InputError(f"{folder}: holds {content}; save the adapter as safetensors (peft: save_pretrained)")


def _take(tensors: dict[str, Tensor], folder: epath.Path, name: str, shape: tuple[int, int]) -> Tensor:
  """Removes a tensor from `tensors`, and returns it. Raises InputError where it is missing or misshapen."""
  name = _PREFIX + name
  if name not in tensors:
    raise InputError(
      f"{folder / ADAPTER_WEIGHTS}: has no tensor {name}, wanted one of shape {list(shape)}, as {ADAPTER_CONFIG} "
      "targets its module; complete the file"
    )
  tensor = tensors.pop(name)
  if tensor.shape != shape:
    raise InputError(
      f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, wanted {list(shape)}; take {ADAPTER_CONFIG} of "
      "this file, and the adapter's own base as config.model.path"
    )
  return tensor


def _superfluous(tensor: Tensor, spec: Spec) -> InputError:
  """Returns the error for a tensor that belongs to no adapted module."""
  whole = {leaf.hf_name.format(0) for leaf in weight_table.leaves(spec).values() if not leaf.layered}
  if tensor.name.removeprefix(_PREFIX) in whole:
    return InputError(
      f"{tensor.file}: tensor {tensor.name} is a whole weight of the base, as peft saves one whose vocabulary was "
      f"resized; save without it (save_embedding_layers=False) if it is the base's own, else {_MERGE}"
    )
  return InputError(
    f"{tensor.file}: tensor {tensor.name} belongs to no module of the base that {ADAPTER_CONFIG} targets; take the "
    "adapter's own base as config.model.path, and both files of one adapter"
  )


def _lora(modules: Sequence[AdaptedModule]) -> Lora:
  """Returns adapters that hold all of these: of the largest rank, with the scale of the first module."""
  rank = max(module.rank for module in modules)
  targets: dict[str, None] = {}
  for module in modules:
    targets |= dict.fromkeys(name for name, _ in module.module.parts)
  return Lora(rank=rank, alpha=modules[0].alpha * rank / modules[0].rank, targets=tuple(targets))


def load(adapter: Adapter, spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """Returns the adapters of a PEFT directory by their names in `adapter_leaves`, float32, sharded as that table says.

  spec: of the base. They belong to `adapter.lora`: their rank is the largest in the directory, and where a module has a
  smaller rank, or none, the rest is 0. All have one scale, that of the directory's first module; where a module has
  another scale, its b is multiplied with the quotient. Parts of a fused module share its a, and each gets its rows of
  b. All processes must call it together, and each reads the whole file. Raises InputError for a value that is not
  finite, and where the mesh can't split an adapter.
  """
  spec = dataclasses.replace(spec, lora=adapter.lora)
  safetensors_files.check_finite(adapter.tensors.values())
  table, adapters = adapter_leaves(spec), {}
  for target in adapter.lora.targets:
    stacks = [np.zeros(table[name].shape, np.float32) for name in adapter_names(target)]
    for adapted in adapter.modules:
      if target in dict(adapted.module.parts):
        for stack, weight in zip(stacks, _read_part(adapted, target, adapter.lora), strict=True):
          stack[adapted.module.layer] = weight.reshape(stack.shape[1:])
    for name, stack in zip(adapter_names(target), stacks, strict=True):
      place = sharding.checked_sharding(mesh, name, stack.shape, table[name].axes)
      adapters[name] = multihost.put(stack, place)
  return adapters


def _read_part(adapted: AdaptedModule, target: str, lora: Lora) -> tuple[np.ndarray, np.ndarray]:
  """Reads the adapters of one weight of a module: returns a [inputs, lora.rank] and b [lora.rank, outputs], float32."""
  first = 0
  for name, leaf in adapted.module.parts:
    if name == target:
      break
    first += _outputs(leaf)
  outputs = _outputs(dict(adapted.module.parts)[target])
  a = np.zeros((adapted.module.inputs, lora.rank), np.float32)
  b = np.zeros((lora.rank, outputs), np.float32)
  a[:, : adapted.rank] = adapted.a.read(0, adapted.rank).T
  b[: adapted.rank] = adapted.b.read(first, first + outputs).T
  scale = adapted.alpha / adapted.rank
  if scale != lora.scale:
    b *= scale / lora.scale
  return a, b


def save(
  folder: str | os.PathLike, adapters: Mapping[str, jax.Array], spec: Spec, base: str, revision: str = ""
) -> None:
  """Writes a policy's adapters as a PEFT directory, in float32, into a folder that exists.

  adapters: by name, on a mesh; other weights may be among them. spec: of the policy, with `lora`. base: what
  adapter_config.json names as the base: a path, or ORG/NAME of the hub; "": none. revision: of the base on the hub; "":
  its newest.
  The tensors of weights that files of the base fuse to one are fused too: their a lie one behind another and their b
  along a diagonal, so that rank and alpha grow with the number of those that are adapted. All processes must call it
  together, and each writes to its own `folder`, over files of the same names. Raises StorageError where the disk is
  full.
  """
  folder = epath.Path(folder)
  groups = _adapted_groups(spec)
  shapes: dict[str, tuple[int, ...]] = {}
  for modules, targets in groups:
    rank = len(targets) * _lora_of(spec).rank
    for module in modules:
      shapes[f"{_PREFIX}{module.name}.lora_A.weight"] = (rank, module.inputs)
      shapes[f"{_PREFIX}{module.name}.lora_B.weight"] = (module.outputs, rank)
  safetensors_files.write(folder / ADAPTER_WEIGHTS, shapes, "float32", _stored_tensors(adapters, spec))
  logbook.write_json(folder / ADAPTER_CONFIG, config_of_adapter(spec, base, revision))


def _lora_of(spec: Spec) -> Lora:
  """Returns the adapters of a policy that has some."""
  assert spec.lora is not None
  return spec.lora


def _adapted_groups(spec: Spec) -> list[tuple[list[Module], list[str]]]:
  """Returns, for each kind of module with adapters, its modules by layer and the weights in it that are targets."""
  by_parts: dict[tuple, list[Module]] = {}
  for module in modules_of(spec):
    by_parts.setdefault(module.parts, []).append(module)
  groups = []
  for parts, modules in by_parts.items():
    targets = [name for name, _ in parts if name in _lora_of(spec).targets]
    if targets:
      groups.append((modules, targets))
  return groups


def _stored_tensors(adapters: Mapping[str, jax.Array], spec: Spec) -> Iterator[np.ndarray]:
  """Yields the tensors of an adapter as its file stores them, in the order of `save`."""
  rank = _lora_of(spec).rank
  for modules, targets in _adapted_groups(spec):
    stacks = multihost.fetch({name: adapters[name] for target in targets for name in adapter_names(target)})
    for module in modules:
      a = np.zeros((len(targets) * rank, module.inputs), np.float32)
      b = np.zeros((module.outputs, len(targets) * rank), np.float32)
      first = 0
      for name, leaf in module.parts:
        last = first + _outputs(leaf)
        if name in targets:
          columns = slice(targets.index(name) * rank, (targets.index(name) + 1) * rank)
          name_a, name_b = adapter_names(name)
          a[columns] = stacks[name_a][module.layer].reshape(-1, rank).T
          b[first:last, columns] = stacks[name_b][module.layer].reshape(rank, -1).T
        first = last
      yield a
      yield b


def config_of_adapter(spec: Spec, base: str, revision: str) -> dict:
  """Returns the content of a policy's adapter_config.json, which every version of peft reads.

  spec: of the policy, with `lora`. base, revision: as for `save`. Modules are named by the last part of their name, or,
  where a module without adapters has the same, by all of it that follows the number of the layer.
  """
  lora, groups = _lora_of(spec), _adapted_groups(spec)
  others = {module.name for module in modules_of(spec)}
  for modules, _ in groups:
    others -= {module.name for module in modules}
  target_modules, rank_pattern, alpha_pattern = [], {}, {}
  alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
  for modules, targets in groups:
    target = modules[0].name.rpartition(".")[2]
    if any(name.rpartition(".")[2] == target for name in others):
      target = modules[0].name.partition(f".{modules[0].layer}.")[2]
    target_modules.append(target)
    if len(targets) > 1:
      rank_pattern[target], alpha_pattern[target] = len(targets) * lora.rank, len(targets) * alpha
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base or None,
    "revision": revision or None,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": alpha,
    "target_modules": target_modules,
    "rank_pattern": rank_pattern,
    "alpha_pattern": alpha_pattern,
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
  }
