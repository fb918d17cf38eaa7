"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (Abdin et al. 2024): Llama with fused tensors, LongRoPE, sliding windows."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama, mistral
from jaxrlvr.model.families.config_file import ConfigFile, decoder_fields
from jaxrlvr.model.rope import LongRope
from jaxrlvr.model.spec import Leaf, Spec

_NORM_EPS = 1e-5  # where config.json does not state rms_norm_eps
_ORIGINAL = 4096  # where it does not state original_max_position_embeddings beside the rotary parameters
_LONG_ROPE = ("longrope", "su", "yarn")  # names of LongRoPE; the last two are of old files


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of a Phi-3's config.json and returns fields of `Spec`. All layers have the window, or none has."""
  config.only("hidden_act", "silu")
  for bias in ("attention_bias", "mlp_bias", "lm_head_bias"):
    config.only(bias, False)
  for key in ("full_attn_mod", "interpolate_factor"):  # in Phi-4-mini's files
    config.only(key, 1)
  parameters = config.rope_parameters()
  kind = parameters.get("rope_type", parameters.get("type", "default"))
  if kind in _LONG_ROPE:
    # An original length among the parameters does not count here, as in transformers.
    parameters |= {"rope_type": "longrope", "original_max_position_embeddings": _ORIGINAL}
  rope = config.rope(10_000.0, parameters=parameters)
  if rope.scaling is not None and not isinstance(rope.scaling, LongRope):
    raise config.not_computed("rope_type", kind, '"longrope" or "default"')
  spec_fields = decoder_fields(config, norm_eps=_NORM_EPS, partial_rotary=True, rope=rope)
  return spec_fields | mistral.uniform_window(config, spec_fields["layers"])


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of a Phi-3's config.json."""
  return mistral.config_keys(spec) | {"partial_rotary_factor": spec.partial_rotary_factor}


def weights(spec: Spec) -> dict[str, Leaf]:
  """Returns the table of a Phi-3's weights: Llama's, of which files hold q, k, v as one tensor, and gate, up as one."""
  table = llama.weights(spec)
  for name in ("q", "k", "v"):
    table[name] = dataclasses.replace(table[name], hf_name=llama.IN_ATTENTION + "qkv_proj.weight")
  for name in ("gate", "up"):
    table[name] = dataclasses.replace(table[name], hf_name=llama.IN_MLP + "gate_up_proj.weight")
  return table


PHI3 = dataclasses.replace(
  llama.LLAMA,
  model_type="phi3",
  architecture="Phi3ForCausalLM",
  fields=fields,
  config_keys=config_keys,
  weights=weights,
)
