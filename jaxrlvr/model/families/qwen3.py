"""Qwen3, dense (Yang et al. 2025): Llama with norms of queries and keys in each head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxrlvr.model import layers
from jaxrlvr.model.families import llama, qwen2
from jaxrlvr.model.families.config_file import ConfigFile, decoder_fields
from jaxrlvr.model.layers import LayerInputs
from jaxrlvr.model.spec import Leaf, Spec

_HEAD_DIM = 128  # where config.json states none


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Qwen3's config.json and returns fields of `Spec`."""
  config.only("hidden_act", "silu")
  config.only("attention_bias", False)
  spec_fields = decoder_fields(config, kv_heads=qwen2.KV_HEADS, head_dim=_HEAD_DIM)
  return spec_fields | qwen2.window_fields(config, spec_fields["layers"])


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Qwen3's weights: Llama's, and q_norm and k_norm [N,h]."""
  shape, axes = (spec.layers, spec.head_dim), ("layers", None)
  return llama.weights(spec) | {
    "q_norm": Leaf(shape, axes, None, llama.IN_ATTENTION + "q_norm.weight", constant=1.0),
    "k_norm": Leaf(shape, axes, None, llama.IN_ATTENTION + "k_norm.weight", constant=1.0),
  }


def norm_heads(w: Mapping[str, jax.Array], spec: Spec) -> layers.Adjust:
  """Returns the function that norms queries and keys of each head, with the layer's weights q_norm and k_norm."""

  def adjust(q_BHTh, k_BKTh):
    q_BHTh = layers.rms_norm(q_BHTh, w["q_norm"], spec.norm_eps)
    return q_BHTh, layers.rms_norm(k_BKTh, w["k_norm"], spec.norm_eps)

  return adjust


def block(x_BTD: jax.Array, w: Mapping[str, jax.Array], inputs: LayerInputs, spec: Spec) -> tuple[jax.Array, object]:
  """Computes one layer, as `family.LayerFn` says: Llama's with normed heads."""
  y_BTD = layers.rms_norm(x_BTD, w["attn_norm"], spec.norm_eps)
  change_BTD, entry = layers.attention(y_BTD, w, inputs, spec, norm_heads(w, spec))
  x_BTD = layers.add(x_BTD, change_BTD)
  y_BTD = layers.rms_norm(x_BTD, w["mlp_norm"], spec.norm_eps)
  return layers.add(x_BTD, layers.gated_mlp(y_BTD, w, spec)), entry


QWEN3 = dataclasses.replace(
  qwen2.QWEN2, model_type="qwen3", architecture="Qwen3ForCausalLM", fields=fields, weights=weights, block=block
)
