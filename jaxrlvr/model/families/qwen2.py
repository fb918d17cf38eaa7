"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import ConfigFile, decoder_fields, window_keys
from jaxrlvr.model.spec import Leaf, Spec

# Where config.json does not state num_key_value_heads, sliding_window and max_window_layers.
KV_HEADS, _WINDOW, _FIRST_SLIDING = 32, 4096, 28


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Qwen2's config.json and returns fields of `Spec`."""
  config.only("hidden_act", "silu")
  config.only("use_mrope", False)
  spec_fields = decoder_fields(config, kv_heads=KV_HEADS)
  return spec_fields | window_fields(config, spec_fields["layers"])


def window_fields(config: ConfigFile, layers: int) -> dict[str, Any]:
  """Takes the keys of sliding windows and returns fields of `Spec`; {} where no layer has a window.

  Released models state a window that use_sliding_window switches off. Where layer_types is absent, the layers from
  number max_window_layers on have it.
  """
  window, first = config.window(_WINDOW), config.count("max_window_layers", _FIRST_SLIDING)
  if not config.flag("use_sliding_window", False):
    window = 0
  return config.windows(window, [window > 0 and layer >= first for layer in range(layers)])


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Qwen2's config.json; those of windows only where a layer has one."""
  keys = llama.config_keys(spec)
  if not spec.window:
    return keys
  return keys | window_keys(spec) | {"use_sliding_window": True, "max_window_layers": spec.sliding.index(True)}


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Qwen2's weights: Llama's, and q_bias [N,heads,h], k_bias and v_bias [N,kv_heads,h]."""
  n, h = spec.layers, spec.head_dim
  return llama.weights(spec) | {
    "q_bias": Leaf((n, spec.heads, h), ("layers", "heads", None), None, llama.IN_ATTENTION + "q_proj.bias"),
    "k_bias": Leaf((n, spec.kv_heads, h), ("layers", "kv_heads", None), None, llama.IN_ATTENTION + "k_proj.bias"),
    "v_bias": Leaf((n, spec.kv_heads, h), ("layers", "kv_heads", None), None, llama.IN_ATTENTION + "v_proj.bias"),
  }


QWEN2 = dataclasses.replace(
  llama.LLAMA,
  model_type="qwen2",
  architecture="Qwen2ForCausalLM",
  fields=fields,
  config_keys=config_keys,
  weights=weights,
)
