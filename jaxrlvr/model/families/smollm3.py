"""SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer does not rotate."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import ConfigFile, decoder_fields, window_keys
from jaxrlvr.model.spec import Spec

# Where config.json does not state them. _INTERVAL: every how many layers one does not rotate.
_ROPE_THETA, _KV_HEADS, _INTERVAL = 2_000_000.0, 4, 4


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a SmolLM3's config.json and returns fields of `Spec`.

  no_rope_layers has 1 for a layer that rotates and 0 for one that does not, in spite of its name. Where layer_types is
  absent, use_sliding_window gives a window to the layers that do not rotate.
  """
  config.only("hidden_act", "silu")
  config.only("attention_bias", False)
  config.only("mlp_bias", False)
  config.ignore("max_window_layers")
  spec_fields = decoder_fields(config, rope_theta=_ROPE_THETA, tied=True, kv_heads=_KV_HEADS)
  layers, interval = spec_fields["layers"], config.size("no_rope_layer_interval", _INTERVAL)
  no_rope = tuple((layer + 1) % interval == 0 for layer in range(layers))
  rotates = config.by_layer("no_rope_layers", layers, (0, 1))
  if rotates is not None:
    no_rope = tuple(not rotates_here for rotates_here in rotates)
  window = config.window()
  if not config.flag("use_sliding_window", False):
    window = 0
  spec_fields |= config.windows(window, [window > 0 and unrotated for unrotated in no_rope])
  return spec_fields | {"no_rope": no_rope if any(no_rope) else ()}


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a SmolLM3's config.json."""
  no_rope = spec.no_rope or (False,) * spec.layers
  return (
    llama.config_keys(spec)
    | window_keys(spec)
    | {
      "use_sliding_window": spec.window > 0,
      "no_rope_layers": [int(not unrotated) for unrotated in no_rope],
    }
  )


SMOLLM3 = dataclasses.replace(
  llama.LLAMA, model_type="smollm3", architecture="SmolLM3ForCausalLM", fields=fields, config_keys=config_keys
)
