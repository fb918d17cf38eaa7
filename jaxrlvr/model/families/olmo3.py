"""OLMo-3 (OLMo team 2025): OLMo-2, in which three of four layers see a window alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrlvr.model import rope_config
from jaxrlvr.model.families import llama, olmo2
from jaxrlvr.model.families.config_file import (
  FULL_ATTENTION,
  SLIDING_ATTENTION,
  ConfigFile,
  local_window_fields,
  rope_of_full_layers,
  window_keys,
)
from jaxrlvr.model.spec import Spec

# Where config.json states none.
_ROPE_THETA, _WINDOW, _FULL_EVERY = 500_000.0, 4096, 4


def fields(config: ConfigFile) -> dict[str, Any]:
  """Takes the keys of an OLMo-3's config.json and returns fields of `Spec`.

  Raises InputError for a base of the frequencies that versions of transformers read differently: the first ones take
  `rope_theta` for all layers, later ones for full layers alone.
  """
  full, local = config.ropes_by_kind(_ROPE_THETA, _ROPE_THETA)
  spec_fields = olmo2.fields(config, full)
  windows = local_window_fields(config, spec_fields["layers"], local, window=_WINDOW, full_every=_FULL_EVERY)
  if windows and full.theta != _ROPE_THETA and not config.states_theta_of(SLIDING_ATTENTION):
    accepted = f"{_ROPE_THETA}, or rope_parameters with a table for {SLIDING_ATTENTION} that states its own"
    raise config.not_computed("rope_theta", full.theta, accepted)
  return spec_fields | windows


def config_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys of an OLMo-3's config.json.

  rope_parameters repeat what rope_theta and rope_scaling say, because later versions of transformers take the base of
  sliding layers from there alone.
  """
  full = rope_config.as_table(spec.rope_scaling) | {"rope_theta": spec.rope_theta}
  local = rope_config.as_table(None) | {"rope_theta": spec.local_rope_theta or spec.rope_theta}
  keys = llama.config_keys(spec) | rope_of_full_layers(spec) | window_keys(spec)
  return keys | {
    "sliding_window": spec.window or _WINDOW,  # transformers wants one even where no layer slides
    "rope_parameters": {FULL_ATTENTION: full, SLIDING_ATTENTION: local},
  }


OLMO3 = dataclasses.replace(
  olmo2.OLMO2, model_type="olmo3", architecture="Olmo3ForCausalLM", fields=fields, config_keys=config_keys
)
