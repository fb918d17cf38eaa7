"""Reads and sets the values of a config by their dotted names, and converts them to the types of the defaults."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxrlvr.base import words
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import hints

_LOG = logging.getLogger(__name__)


def names(config: ConfigDict, prefix: str = "") -> list[str]:
  """Returns the dotted names of all values in a config, those in its groups included, as "rl.optim.lr".

  Groups themselves are not in it. prefix: text that each name begins with.
  """
  leaves = []
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      leaves += names(value, f"{prefix}{name}.")
    else:
      leaves.append(prefix + name)
  return leaves


def _leaf(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  """Returns (the group that holds a value, the value's name there). Raises InputError for an unknown key or a group."""
  group, member = config, config
  parts = key.split(".")
  for part in parts:
    if not isinstance(member, ConfigDict) or part not in member:
      raise InputError(f"config.{key}: no such key{hints.hint(names(config), key)}")
    group, member = member, member[part]
  if isinstance(member, ConfigDict):
    raise InputError(f"config.{key}: a group of keys, not a value; set one of {[f'{key}.{name}' for name in member]}")
  return group, parts[-1]


def get(config: ConfigDict, key: str) -> Any:
  """Returns the value of a dotted key, as "rl.optim.lr". Raises InputError for an unknown key and for a group."""
  group, name = _leaf(config, key)
  return group[name]


def set_text(config: ConfigDict, key: str, text: str) -> None:
  """Sets the value of a dotted key, in place, from the text of a command line.

  The type of the present value decides how the text is read: a string is taken as it is, anything else as a Python
  literal ("100", "1e-6", "true", "(2, 3)"). A tuple may also be written as words between commas ("a,b"), or as its only
  entry ("3"). Raises InputError for an unknown key, another type, infinity and NaN.
  """
  present = get(config, key)
  if isinstance(present, str):
    set_value(config, key, text)
    return
  literal = {"true": "True", "false": "False"}.get(text.lower(), text)
  try:
    value = ast.literal_eval(literal)
  except (ValueError, SyntaxError, RecursionError, MemoryError):  # no literal, or one that is nested too deeply
    value = _words(key, text) if isinstance(present, tuple) else text
  if isinstance(present, tuple) and not isinstance(value, (tuple, list)):
    value = (value,)
  set_value(config, key, value)


_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r", "\\\\": "\\"}


def _words(key: str, text: str) -> tuple[str, ...]:
  r"""Returns the words between commas (`words.split_at_commas`); a comma in brackets, as in `a[b,c]`, parts no words.

  For `rl.stop_strings` white space and empty words are kept, and the escapes \n, \t, \r and \\ are decoded.
  """
  if key != "rl.stop_strings":
    return tuple(words.split_at_commas(text))
  decoded = re.sub(r"\\[ntr\\]", lambda match: _ESCAPES[match[0]], text)
  strings = tuple(decoded.split(","))
  if decoded != text:
    _LOG.warning("config.%s = %s is read as %r; for other strings write a Python tuple", key, text, strings)
  return strings


def set_value(config: ConfigDict, key: str, value: object) -> None:
  """Sets the value of a dotted key, in place; `typed` says which values can take the place of the present one.

  Raises InputError for an unknown key, a group, and a value of another type.
  """
  group, name = _leaf(config, key)
  group[name] = typed(key, value, group[name])


def changed(config: ConfigDict, changes: Mapping[str, object]) -> ConfigDict:
  """Returns a changed copy of a config, locked and unchecked (`files.derive` checks it too).

  changes: {dotted key: value}. `chain` is emptied first. Raises InputError as `set_value` does.
  """
  copy = ConfigDict(config.to_dict())
  copy.chain = ()
  for key, value in changes.items():
    set_value(copy, key, value)
  copy.lock()
  return copy


def typed(key: str, value: object, like: object) -> Any:
  """Returns the value in the type of `like`, the key's default or present value.

  An integer becomes a float where `like` is one, and a list a tuple, at any depth. Nothing else is converted: True is
  no integer. key: the name that an error message gives.
  Raises InputError for a value of another type, and for infinity and NaN.
  """
  if isinstance(like, tuple) and isinstance(value, (tuple, list)):
    return _as_tuples(key, value)
  if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not type(like):
    raise InputError(
      f"config.{key} = {value!r}: has type {type(value).__name__}, wanted {type(like).__name__} like {like!r}"
    )
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"config.{key} = {value!r}: wanted a finite number")
  return value


def _as_tuples(key: str, value):
  """Returns the value with lists replaced by tuples at any depth, as config files write them.

  Raises InputError for infinity and NaN, which JSON can't hold.
  """
  if isinstance(value, tuple | list):
    return tuple(_as_tuples(key, item) for item in value)
  if isinstance(value, Mapping):
    return {name: _as_tuples(key, item) for name, item in value.items()}
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f"config.{key}: holds {value!r}; wanted finite numbers")
  return value
