"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on queries, keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import FULL_ATTENTION, ConfigFile, decoder_fields
from jaxrlvr.model.spec import Leaf, Spec


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Qwen2's config.json and returns fields of `Spec`.

  Released models state a window that use_sliding_window switches off; one that is on is refused.
  """
  config.only("hidden_act", "silu")
  config.only("use_mrope", False)
  spec_fields = decoder_fields(config)
  no_window(config, spec_fields["layers"])
  return spec_fields


def no_window(config: ConfigFile, layers: int) -> None:
  """Takes the keys of sliding windows. Raises InputError where a layer has one."""
  config.only("use_sliding_window", False)
  config.by_layer("layer_types", layers, (FULL_ATTENTION,))
  config.size("sliding_window", 0)
  config.ignore("max_window_layers")


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Qwen2's weights: Llama's, and q_bias [N,heads,h], k_bias and v_bias [N,kv_heads,h]."""
  n, h = spec.layers, spec.head_dim
  return llama.weights(spec) | {
    "q_bias": Leaf((n, spec.heads, h), ("layers", "heads", None), None, llama.IN_ATTENTION + "q_proj.bias"),
    "k_bias": Leaf((n, spec.kv_heads, h), ("layers", "kv_heads", None), None, llama.IN_ATTENTION + "k_proj.bias"),
    "v_bias": Leaf((n, spec.kv_heads, h), ("layers", "kv_heads", None), None, llama.IN_ATTENTION + "v_proj.bias"),
  }


QWEN2 = dataclasses.replace(
  llama.LLAMA, model_type="qwen2", architecture="Qwen2ForCausalLM", fields=fields, weights=weights
)
