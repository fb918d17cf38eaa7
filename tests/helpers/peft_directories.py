"""Small PEFT directories with random adapters, whose files the safetensors package writes."""

import json

import numpy as np
from safetensors import numpy as safetensors

from helpers.hf_directories import TINY, tensors_of
from jaxrlvr.model.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PREFIX = "base_model.model."
CONFIG = {  # as peft writes it, with keys of its newest version
  "peft_type": "LORA",
  "task_type": "CAUSAL_LM",
  "base_model_name_or_path": "ORG/NAME",
  "revision": None,
  "r": 2,
  "lora_alpha": 6,
  "target_modules": ["down_proj", "q_proj"],
  "lora_dropout": 0.05,
  "bias": "none",
  "loftq_config": {},
  "megatron_core": "megatron.core",
  "qalora_group_size": 16,
  "peft_version": "0.21.2",
  "use_dora": False,
  "unknown_switch": None,
}


def size_of(module, spec=TINY):
  """Returns (inputs, outputs) of a module, from the tensor of its weight in files."""
  outputs, inputs = tensors_of(spec)[module + ".weight"].shape
  return inputs, outputs


def random_adapter(modules, rank=2, dtype=np.float32, spec=TINY):
  """Returns tensors of adapters by their names in files; modules: names, with {} for both layers, or (name, rank)."""
  rng, tensors = np.random.default_rng(0), {}
  for entry in modules:
    name, own_rank = entry if isinstance(entry, tuple) else (entry, rank)
    for layer in (0, 1) if "{}" in name else (-1,):
      module = name.format(layer)
      inputs, outputs = size_of(module, spec)
      tensors[f"{PREFIX}{module}.lora_A.weight"] = rng.standard_normal((own_rank, inputs)).astype(dtype)
      tensors[f"{PREFIX}{module}.lora_B.weight"] = rng.standard_normal((outputs, own_rank)).astype(dtype)
  return tensors


def write_adapter(folder, tensors, **config):
  folder.mkdir(exist_ok=True, parents=True)
  safetensors.save_file(tensors, folder / ADAPTER_WEIGHTS)
  content = {key: value for key, value in (CONFIG | config).items() if value != "absent"}
  (folder / ADAPTER_CONFIG).write_text(json.dumps(content))
  return folder
