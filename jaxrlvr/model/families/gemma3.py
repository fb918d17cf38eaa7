"""Gemma 3 (Gemma team 2025), its text model: four norms a layer, GeGLU, and windows in five of six layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrlvr.model import layers
from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import (
  ConfigFile,
  decoder_fields,
  decoder_keys,
  local_window_fields,
  rope_of_full_layers,
  window_keys,
)
from jaxrlvr.model.families.family import Family
from jaxrlvr.model.layers import LayerInputs
from jaxrlvr.model.spec import Leaf, Spec

# Where config.json states none.
_ROPE_THETA, _LOCAL_ROPE_THETA = 1_000_000.0, 10_000.0
_VOCAB, _HEADS, _KV_HEADS, _HEAD_DIM, _QUERY_PRE_ATTN_SCALAR = 262208, 8, 4, 256, 256
_WINDOW, _FULL_EVERY = 4096, 6
_ACTIVATION = "gelu_pytorch_tanh"


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Gemma-3 text model's config.json and returns fields of `Spec`."""
  config.only("hidden_activation", _ACTIVATION)
  config.only("attention_bias", False)
  config.only("attn_logit_softcapping")
  config.only("final_logit_softcapping")
  config.only("use_bidirectional_attention", False)
  config.ignore("_sliding_window_pattern")  # transformers writes it and never reads it
  full, local = config.ropes_by_kind(_ROPE_THETA, config.number("rope_local_base_freq", _LOCAL_ROPE_THETA))
  spec_fields = decoder_fields(
    config, vocab=_VOCAB, heads=_HEADS, kv_heads=_KV_HEADS, head_dim=_HEAD_DIM, rope=full, tied=True
  )
  full_every = config.size("sliding_window_pattern", _FULL_EVERY)
  windows = local_window_fields(config, spec_fields["layers"], local, window=_WINDOW, full_every=full_every)
  scalar = config.size("query_pre_attn_scalar", _QUERY_PRE_ATTN_SCALAR)
  return spec_fields | windows | {"query_pre_attn_scalar": scalar}


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Gemma-3 text model's config.json."""
  return (
    decoder_keys(spec)
    | rope_of_full_layers(spec)
    | window_keys(spec)
    | {
      "sliding_window": spec.window or _WINDOW,  # transformers wants one even where no layer slides
      "hidden_activation": _ACTIVATION,
      "query_pre_attn_scalar": spec.query_pre_attn_scalar or spec.head_dim,
      "rope_local_base_freq": spec.local_rope_theta or spec.rope_theta,
    }
  )


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Gemma-3's weights.

  It is Llama's, with attn_out_norm and mlp_out_norm [N,D] and q_norm and k_norm [N,h] beside. All norms are stored as
  what is added to 1.
  """
  n, h = spec.layers, spec.head_dim
  table = llama.weights(spec)
  table["final_norm"] = Leaf((spec.width,), (None,), None, "model.norm.weight")
  return table | {
    "attn_norm": _norm(spec, "input_layernorm"),
    "attn_out_norm": _norm(spec, "post_attention_layernorm"),
    "mlp_norm": _norm(spec, "pre_feedforward_layernorm"),
    "mlp_out_norm": _norm(spec, "post_feedforward_layernorm"),
    "q_norm": Leaf((n, h), ("layers", None), None, llama.IN_ATTENTION + "q_norm.weight"),
    "k_norm": Leaf((n, h), ("layers", None), None, llama.IN_ATTENTION + "k_norm.weight"),
  }


def _norm(spec: Spec, name: str) -> Leaf:
  """Returns the row of a norm of hidden states that each layer has; name: in files."""
  return llama.norm(spec, f"{llama.IN_LAYER}{name}.weight", constant=0.0)


def unit_offset_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """Returns (1 + scale) * x / sqrt(mean(x^2) + eps) over the last axis, computed in float32, in x's dtype."""
  return layers.wide_rms_norm(x, 1.0 + scale.astype(jnp.float32), eps)


def embed(x_BTD: jax.Array, spec: Spec) -> jax.Array:
  """Returns the embeddings times sqrt(D), which is rounded to their dtype, as the model was trained."""
  return x_BTD * jnp.asarray(math.sqrt(spec.width), x_BTD.dtype)


def _norm_heads(w: Mapping[str, jax.Array], spec: Spec) -> layers.Adjust:
  """Returns the function that norms queries and keys of each head.

  It also multiplies queries, so that scores, which attention divides by sqrt(head_dim), are divided by the square root
  of `spec.query_pre_attn_scalar` instead.
  """
  factor = math.sqrt(spec.head_dim / (spec.query_pre_attn_scalar or spec.head_dim))
  q_scale_h = (1.0 + w["q_norm"].astype(jnp.float32)) * factor

  def adjust(q_BHTh, k_BKTh):
    return layers.wide_rms_norm(q_BHTh, q_scale_h, spec.norm_eps), unit_offset_norm(k_BKTh, w["k_norm"], spec.norm_eps)

  return adjust


def _gelu(x: jax.Array) -> jax.Array:
  """Returns GELU in its approximation by tanh (Hendrycks and Gimpel 2016)."""
  return jax.nn.gelu(x, approximate=True)


def block(x_BTD: jax.Array, w: Mapping[str, jax.Array], inputs: LayerInputs, spec: Spec) -> tuple[jax.Array, object]:
  """Computes one layer, as `family.LayerFn` says: attention, then the MLP, each between two norms."""
  y_BTD = unit_offset_norm(x_BTD, w["attn_norm"], spec.norm_eps)
  change_BTD, entry = layers.attention(y_BTD, w, inputs, spec, _norm_heads(w, spec))
  x_BTD = layers.add(x_BTD, unit_offset_norm(change_BTD, w["attn_out_norm"], spec.norm_eps))
  y_BTD = unit_offset_norm(x_BTD, w["mlp_norm"], spec.norm_eps)
  change_BTD = layers.gated_mlp(y_BTD, w, spec, _gelu)
  return layers.add(x_BTD, unit_offset_norm(change_BTD, w["mlp_out_norm"], spec.norm_eps)), entry


GEMMA3_TEXT = Family("gemma3_text", "Gemma3ForCausalLM", fields, config_keys, weights, block, embed, unit_offset_norm)
