"""Ministral 3 (Mistral AI 2025), its text model: Mistral with YaRN and queries that grow with their position."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model.families import llama, mistral
from jaxrlvr.model.families.config_file import ConfigFile
from jaxrlvr.model.spec import Spec

_ORIGINAL = "original_max_position_embeddings"
_BETA = "llama_4_scaling_beta"  # among the rotary parameters: `Spec.query_scaling_beta`
_NORM_EPS, _HEAD_DIM = 1e-5, 128  # where config.json does not state them
_ROPE_PARAMETERS = {  # where it states none at all
  "rope_type": "yarn",
  "rope_theta": 1_000_000.0,
  "factor": 16.0,
  _ORIGINAL: 16384,
  "mscale": 1.0,
  "mscale_all_dim": 1.0,
  _BETA: 0.1,
}


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of the config.json of a Ministral 3's text model and returns fields of `Spec`."""
  parameters = config.rope_parameters() or dict(_ROPE_PARAMETERS)
  beta = parameters.pop(_BETA, None)
  if beta is None:
    raise config.not_computed(f"rope_parameters.{_BETA}", beta, "a number from 0")
  if not beta and parameters.get("rope_type", parameters.get("type")) == "default":
    parameters.pop(_ORIGINAL, None)  # which only the growth of queries needs then
  parameters.pop("max_position_embeddings", None)  # repeats the key beside the parameters, which counts
  rope = config.rope(10_000.0, parameters=parameters)
  spec_fields = mistral.fields_of_llama(config, norm_eps=_NORM_EPS, head_dim=_HEAD_DIM, rope=rope)
  spec_fields |= mistral.uniform_window(config, spec_fields["layers"])
  return spec_fields | {"query_scaling_beta": beta}


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of the config.json of a Ministral 3's text model, whose rotary parameters are those of its files.

  transformers needs the original length among them.
  """
  keys = mistral.config_keys(spec)
  theta, scaling = keys.pop("rope_theta"), keys.pop("rope_scaling")
  parameters = {_ORIGINAL: keys["max_position_embeddings"], "rope_type": "default", **(scaling or {})}
  parameters |= {"rope_theta": theta, _BETA: spec.query_scaling_beta}
  return keys | {"rope_parameters": parameters}


MINISTRAL3 = dataclasses.replace(
  llama.LLAMA,
  model_type="ministral3",
  architecture="Ministral3ForCausalLM",
  fields=fields,
  config_keys=config_keys,
)
