"""The families of models that are computed here, one module each, and a user's own families by name."""

from __future__ import annotations

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.model.families import gemma3, llama, ministral3, mistral, olmo2, olmo3, phi3, qwen2, qwen3, smollm3
from jaxrlvr.model.families.family import Family
from jaxrlvr.model.spec import Spec

# By `model_type` of config.json.
FAMILIES = {
  family.model_type: family
  for family in (
    gemma3.GEMMA3_TEXT,
    llama.LLAMA,
    mistral.MISTRAL,
    mistral.MINISTRAL,
    ministral3.MINISTRAL3,
    olmo2.OLMO2,
    olmo3.OLMO3,
    phi3.PHI3,
    qwen2.QWEN2,
    qwen3.QWEN3,
    smollm3.SMOLLM3,
  )
}


def family_of(name: str) -> Family:
  """Returns the family of this name: a name in FAMILIES, or a user's own object by name (`base.named`).

  Raises InputError where it can't be found, or is none.
  """
  return FAMILIES[name] if name in FAMILIES else own_family(name)


def own_family(name: str) -> Family:
  """Returns the family that the name of a user's object stands for (`base.named`).

  Raises InputError where it can't be found, is no `Family`, has the model_type of one of FAMILIES, or names a tensor of
  a weight that it does not have.
  """
  if not named.is_name(name):
    raise InputError(f"family {name!r}: wanted one of {', '.join(FAMILIES)}, or path.py:NAME of your own")
  family = named.load(name)
  if not isinstance(family, Family):
    raise InputError(f"{name}: is {type(family).__name__}, no Family; import it from jaxrlvr.model.families")
  if not family.model_type or family.model_type in FAMILIES:
    raise InputError(f"{name}: model_type = {family.model_type!r}; give the one of its config.json, which no other has")
  table = family.weights(Spec(8, 4, 1, 1, 1, 4, 4, tied=False))
  for weight, hf_name in family.names.items():
    if weight not in table:
      raise InputError(f"{name}: names has {weight!r}; wanted some of {', '.join(table)}")
    if ("{}" in hf_name) != table[weight].layered:
      raise InputError(f"{name}: names has {weight} = {hf_name!r}; write {{}} for the layer where there is one a layer")
  return family
