"""Rotary parameters of a config.json, as transformers reads and writes them: `rope_scaling` or `rope_parameters`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.rope import SCALINGS, LongRope, RopeScaling

_ORIGINAL = "original_max_position_embeddings"  # in config.json; `original_max_position` of a scaling
_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # keys that may stand beside a scaling's own
_OF_STAGES = ("kind", "length")  # fields of scalings that no config.json states
# Fields of scalings that must be stated; others have defaults.
_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor", "short_factor", "long_factor")
KEYS_BESIDE = (_ORIGINAL, "max_position_embeddings")  # of a config.json, outside of the parameters, that `read` takes
_NO_POSITION = 2**31  # the first number that int32 does not hold
_OLD_NAME = ("linear", "dynamic", "longrope")  # written under the key `type`, which every version reads for these


def read(rope: Mapping, config: Mapping) -> RopeScaling | None:
  """Returns the scaling that rotary parameters state, None for none.

  rope: the parameters of layers of one kind. config: the values of KEYS_BESIDE, of which
  `original_max_position_embeddings` goes before that of the parameters, and `max_position_embeddings` stands for both
  where they are absent. rope_theta and partial_rotary_factor are not read.
  Raises InputError, which names no file, for an unknown scaling or parameter, and for a value of a wrong type.
  """
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind != "default" and kind not in SCALINGS:
    accepted = ", ".join(("default", *SCALINGS))
    raise _not_computed("rope_type", kind, f"one of {accepted}")
  fields = _fields(kind)
  if unknown := rope.keys() - _ALWAYS - fields.keys():
    raise _not_computed(f"rope parameter {min(unknown)}", rope[min(unknown)], "none of this name")
  if kind == "default":
    return None
  rope = {**rope, **_implied(kind, rope, config)}
  value_of = {}
  for key, field in fields.items():
    if rope.get(key) is not None or field.name in _REQUIRED:
      value_of[field.name] = _value(key, rope.get(key), field.default)
  return SCALINGS[kind](**value_of)


def _fields(kind: str) -> dict[str, dataclasses.Field]:
  """Returns the fields of a scaling that config.json may state, by their key there."""
  if kind == "default":
    return {}
  table = {}
  for field in dataclasses.fields(SCALINGS[kind]):
    if field.name not in _OF_STAGES:
      table[_ORIGINAL if field.name == "original_max_position" else field.name] = field
  return table


def _implied(kind: str, rope: Mapping, config: Mapping) -> dict:
  """Returns parameters that other keys of config.json state: the original length, and YaRN's factor."""
  implied: dict[str, Any] = {}
  original = config.get(_ORIGINAL) or rope.get(_ORIGINAL) or config.get("max_position_embeddings")
  if _ORIGINAL in _fields(kind):
    implied[_ORIGINAL] = original
  if kind == "yarn" and rope.get("factor") is None and original:
    implied["factor"] = (config.get("max_position_embeddings") or 0) / original
  if kind == "longrope" and rope.get("factor") is None:
    implied["factor"] = 0.0
  return implied


def _value(key: str, stated: Any, default: Any) -> Any:
  """Returns a stated value as the field with this default holds it. Raises InputError where its type is another."""
  if isinstance(default, tuple):
    if not isinstance(stated, list):
      raise InputError(f"{key} = {json.dumps(stated)}, wanted a list of numbers; take the model's own file")
    return tuple(_value(key, divisor, 1.0) for divisor in stated)
  value = float(stated) if isinstance(default, float) and type(stated) is int else stated
  is_number, limit = type(value) in (int, float), math.inf if isinstance(default, float) else _NO_POSITION
  if type(value) is not type(default) or is_number and not 0 <= value < limit:
    names = {bool: "true or false", int: f"a positive int below {_NO_POSITION}", float: "a positive float"}
    accepted = names[type(default)]
    raise InputError(f"{key} = {json.dumps(stated)}, wanted {accepted}; take the model's own file")
  return value


def _not_computed(key: str, value: Any, accepted: str) -> InputError:
  """Returns the error for rotary parameters with which a model is not computed here."""
  return InputError(f"{key} = {json.dumps(value)} is not computed here, wanted {accepted}; take another model")


def as_config(scaling: RopeScaling | None) -> dict[str, Any]:
  """Returns what a config.json says of a scaling, in the style that every version of transformers reads.

  That is the key `rope_scaling`, None or the parameters. For LongRoPE `original_max_position_embeddings` stands beside
  it, as in Phi-3's files, whose `rope_scaling` has room for nothing but the lists.
  """
  if scaling is None:
    return {"rope_scaling": None}
  content = as_table(scaling)
  if scaling.kind in _OLD_NAME:
    content = {"type": content.pop("rope_type"), **content}
  if not isinstance(scaling, LongRope):
    return {"rope_scaling": content}
  if not scaling.factor:
    del content["factor"]
  return {_ORIGINAL: content.pop(_ORIGINAL), "rope_scaling": content}


def as_table(scaling: RopeScaling | None) -> dict[str, Any]:
  """Returns the parameters of a scaling as one table, with `rope_type`; that of no scaling is "default"."""
  if scaling is None:
    return {"rope_type": "default"}
  content: dict[str, Any] = {"rope_type": scaling.kind}
  for key, field in _fields(scaling.kind).items():
    value = getattr(scaling, field.name)
    if field.name in (*_REQUIRED, "original_max_position") or value != field.default:
      content[key] = list(value) if isinstance(value, tuple) else value
  return content


def from_record(fields: Mapping) -> RopeScaling:
  """Returns the scaling that policy.json recorded as its fields by name, `kind` among them.

  Raises KeyError or TypeError for fields of no scaling.
  """
  values: dict[str, Any] = {}
  for name, value in fields.items():
    if name != "kind":
      values[name] = tuple(value) if isinstance(value, list) else value
  return SCALINGS[fields["kind"]](**values)
