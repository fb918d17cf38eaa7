"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024): pre-norm, rotary positions, GQA, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jaxrlvr.model import layers
from jaxrlvr.model.families.config_file import FULL_ATTENTION, ConfigFile, decoder_fields, decoder_keys
from jaxrlvr.model.families.family import Family
from jaxrlvr.model.layers import LayerInputs
from jaxrlvr.model.spec import Leaf, Spec

IN_LAYER = "model.layers.{}."  # begins the name of a layer's tensors in files
IN_ATTENTION, IN_MLP = IN_LAYER + "self_attn.", IN_LAYER + "mlp."


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Llama's config.json and returns fields of `Spec`."""
  config.only("hidden_act", "silu")
  config.only("attention_bias", False)
  config.only("mlp_bias", False)
  spec_fields = decoder_fields(config)
  config.by_layer("layer_types", spec_fields["layers"], (FULL_ATTENTION,))
  return spec_fields


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Llama's config.json."""
  return decoder_keys(spec) | {"hidden_act": "silu"}


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Llama's weights, with N layers, width D, MLP width F, head width h.

  embed [V,D], final_norm [D]; head [V,D] unless `spec.tied`; in each layer attn_norm and mlp_norm [N,D],
  q [N,D,heads,h], k and v [N,D,kv_heads,h], o [N,heads,h,D], gate and up [N,D,F], down [N,F,D].
  """
  n, d, f, h = spec.layers, spec.width, spec.mlp, spec.head_dim
  heads, kv = spec.heads, spec.kv_heads
  table = {
    "embed": Leaf((spec.vocab, d), ("vocab", "embed"), d, "model.embed_tokens.weight"),
    "attn_norm": norm(spec, IN_LAYER + "input_layernorm.weight"),
    "q": Leaf((n, d, heads, h), ("layers", "embed", "heads", None), d, IN_ATTENTION + "q_proj.weight"),
    "k": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, IN_ATTENTION + "k_proj.weight"),
    "v": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, IN_ATTENTION + "v_proj.weight"),
    "o": Leaf((n, heads, h, d), ("layers", "heads", None, "embed"), heads * h, IN_ATTENTION + "o_proj.weight"),
    "mlp_norm": norm(spec, IN_LAYER + "post_attention_layernorm.weight"),
    "gate": Leaf((n, d, f), ("layers", "embed", "mlp"), d, IN_MLP + "gate_proj.weight"),
    "up": Leaf((n, d, f), ("layers", "embed", "mlp"), d, IN_MLP + "up_proj.weight"),
    "down": Leaf((n, f, d), ("layers", "mlp", "embed"), f, IN_MLP + "down_proj.weight"),
    "final_norm": Leaf((d,), (None,), None, "model.norm.weight", constant=1.0),
  }
  if not spec.tied:
    table["head"] = Leaf((spec.vocab, d), ("vocab", "embed"), d, "lm_head.weight")
  return table


def norm(spec: Spec, hf_name: str, constant: float = 1.0) -> Leaf:
  """Returns the row of a norm of hidden states that each layer has, [N,D]. constant: what it starts as."""
  return Leaf((spec.layers, spec.width), ("layers", None), None, hf_name, constant)


def block(x_BTD: jax.Array, w: Mapping[str, jax.Array], inputs: LayerInputs, spec: Spec) -> tuple[jax.Array, object]:
  """Computes one layer, as `family.LayerFn` says: attention, then the MLP, each of the norm of its input."""
  y_BTD = layers.rms_norm(x_BTD, w["attn_norm"], spec.norm_eps)
  change_BTD, entry = layers.attention(y_BTD, w, inputs, spec)
  x_BTD = layers.add(x_BTD, change_BTD)
  y_BTD = layers.rms_norm(x_BTD, w["mlp_norm"], spec.norm_eps)
  return layers.add(x_BTD, layers.gated_mlp(y_BTD, w, spec)), entry


LLAMA = Family("llama", "LlamaForCausalLM", fields, config_keys, weights, block)
