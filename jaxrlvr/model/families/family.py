"""What a family of models is: how its config.json is read and written, its weights, and what a layer computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxrlvr.model import layers
from jaxrlvr.model.families.config_file import ConfigFile
from jaxrlvr.model.layers import LayerInputs
from jaxrlvr.model.spec import Leaf, Spec

# Computes one layer: (hidden states [B,T,D], the layer's weights by name, what it takes beside them, spec) -> (hidden
# states, its new entry of the cache). The weights are arrays in the compute dtype, as a row of `leaves` without the
# axis of the layers; adapters may be among them.
LayerFn = Callable[[jax.Array, Mapping[str, jax.Array], LayerInputs, Spec], tuple[jax.Array, object]]


def _same(x_BTD: jax.Array, spec: Spec) -> jax.Array:
  """Returns the embeddings as they are."""
  return x_BTD


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of models. `dataclasses.replace` makes a new one of one that is nearly the same.

  names and keys serve families whose files differ from another family's in names alone.
  """

  model_type: str  # that config.json states
  architecture: str  # the class that config.json names under `architectures`
  fields: Callable[[ConfigFile], dict[str, Any]]  # takes the keys of a config.json; returns fields of Spec by name
  config_keys: Callable[[Spec], dict[str, Any]]  # the reverse, with transformers' names of keys
  weights: Callable[[Spec], dict[str, Leaf]]  # the table of all weights of a policy
  block: LayerFn
  embed: Callable[[jax.Array, Spec], jax.Array] = _same  # what becomes of embeddings [B,T,D] before the first layer
  norm: Callable[[jax.Array, jax.Array, float], jax.Array] = layers.rms_norm  # of the last layer's output
  # Names of tensors in files that differ from those in `weights`, by the name of the weight, with {} for the layer.
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  # Keys of config.json that have another name than in transformers: {"hidden_size": "n_embd"}.
  keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def leaves(self, spec: Spec) -> dict[str, Leaf]:
    """Returns the table of a policy's weights, with the names of tensors in this family's files."""
    table = dict(self.weights(spec))
    for name, hf_name in self.names.items():
      if name in table:
        table[name] = dataclasses.replace(table[name], hf_name=hf_name)
    return table
