"""Mistral (Jiang et al. 2023) and Ministral: Llama with sliding windows, which all layers of a Mistral have or none."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import (
  FULL_ATTENTION,
  SLIDING_ATTENTION,
  ConfigFile,
  decoder_fields,
  window_keys,
)
from jaxrlvr.model.spec import Spec

# Where config.json does not state sliding_window, in which null means that there is none, and num_key_value_heads.
_WINDOW, _KV_HEADS = 4096, 8


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Mistral's config.json and returns fields of `Spec`."""
  spec_fields = fields_of_llama(config)
  return spec_fields | uniform_window(config, spec_fields["layers"], _WINDOW)


def fields_of_llama(config: ConfigFile, **defaults: Any) -> dict[str, Any]:
  """Takes the keys that a Llama has too, and returns fields of `Spec`. defaults: as `decoder_fields` takes them."""
  config.only("hidden_act", "silu")
  config.only("attention_bias", False)
  config.only("mlp_bias", False)
  return decoder_fields(config, kv_heads=_KV_HEADS, **defaults)


def uniform_window(config: ConfigFile, layers: int, default: int = 0) -> dict[str, Any]:
  """Takes the keys of a window that all layers have or none, and returns fields of `Spec`; {} without a window.

  layer_types may only say what sliding_window says. default: the window where the latter is absent; 0: none.
  """
  window = config.window(default)
  config.by_layer("layer_types", layers, (SLIDING_ATTENTION if window else FULL_ATTENTION,))
  return config.windows(window, [window > 0] * layers)


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Mistral's config.json."""
  return llama.config_keys(spec) | {"sliding_window": spec.window or None}


def ministral_fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Ministral's config.json and returns fields of `Spec`. Its layers may be of both kinds."""
  spec_fields = fields_of_llama(config)
  window = config.window(_WINDOW)
  return spec_fields | config.windows(window, [window > 0] * spec_fields["layers"])


def ministral_config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Ministral's config.json, with a window even if no layer has one: transformers needs it."""
  return llama.config_keys(spec) | window_keys(spec) | {"sliding_window": spec.window or _WINDOW}


MISTRAL = dataclasses.replace(
  llama.LLAMA, model_type="mistral", architecture="MistralForCausalLM", fields=fields, config_keys=config_keys
)
MINISTRAL = dataclasses.replace(
  llama.LLAMA,
  model_type="ministral",
  architecture="MinistralForCausalLM",
  fields=ministral_fields,
  config_keys=ministral_config_keys,
)
