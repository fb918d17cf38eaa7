"""OLMo-2 (OLMo team 2024): Llama that norms outputs in the place of inputs, and all queries and keys of a token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jaxrlvr.model import layers
from jaxrlvr.model.families import llama
from jaxrlvr.model.families.config_file import ConfigFile, Rope, decoder_fields
from jaxrlvr.model.layers import LayerInputs
from jaxrlvr.model.spec import Leaf, Spec

_NORM_EPS = 1e-5  # where config.json states none


def fields(config: ConfigFile, rope: Rope | None = None) -> dict[str, Any]:
  """Takes the keys of an OLMo-2's config.json and returns fields of `Spec`. rope: as `decoder_fields` takes it."""
  config.only("hidden_act", "silu")
  config.only("attention_bias", False)
  return decoder_fields(config, norm_eps=_NORM_EPS, rope=rope)


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of an OLMo-2's weights.

  It is Llama's, with attn_out_norm and mlp_out_norm [N,D] in the place of attn_norm and mlp_norm, and with q_norm
  [N,heads,h] and k_norm [N,kv_heads,h].
  """
  table = llama.weights(spec)
  del table["attn_norm"], table["mlp_norm"]
  n, h = spec.layers, spec.head_dim
  q_norm, k_norm = llama.IN_ATTENTION + "q_norm.weight", llama.IN_ATTENTION + "k_norm.weight"
  return table | {
    "attn_out_norm": llama.norm(spec, llama.IN_LAYER + "post_attention_layernorm.weight"),
    "mlp_out_norm": llama.norm(spec, llama.IN_LAYER + "post_feedforward_layernorm.weight"),
    "q_norm": Leaf((n, spec.heads, h), ("layers", "heads", None), None, q_norm, constant=1.0),
    "k_norm": Leaf((n, spec.kv_heads, h), ("layers", "kv_heads", None), None, k_norm, constant=1.0),
  }


def _norm_all_heads(w: Mapping[str, jax.Array], spec: Spec) -> layers.Adjust:
  """Returns the function that norms a token's queries of all heads together, and so its keys."""
  heads_and_width = (1, 3)

  def adjust(q_BHTh, k_BKTh):
    q_BHTh = layers.wide_rms_norm(q_BHTh, w["q_norm"][:, None], spec.norm_eps, heads_and_width)
    return q_BHTh, layers.wide_rms_norm(k_BKTh, w["k_norm"][:, None], spec.norm_eps, heads_and_width)

  return adjust


def block(x_BTD: jax.Array, w: Mapping[str, jax.Array], inputs: LayerInputs, spec: Spec) -> tuple[jax.Array, object]:
  """Computes one layer, as `family.LayerFn` says: attention, then the MLP, and the norm of what each gives."""
  change_BTD, entry = layers.attention(x_BTD, w, inputs, spec, _norm_all_heads(w, spec))
  x_BTD = layers.add(x_BTD, layers.wide_rms_norm(change_BTD, w["attn_out_norm"], spec.norm_eps))
  change_BTD = layers.gated_mlp(x_BTD, w, spec)
  return layers.add(x_BTD, layers.wide_rms_norm(change_BTD, w["mlp_out_norm"], spec.norm_eps)), entry


OLMO2 = dataclasses.replace(
  llama.LLAMA,
  model_type="olmo2",
  architecture="Olmo2ForCausalLM",
  fields=fields,
  weights=weights,
  block=block,
  norm=layers.wide_rms_norm,
)
