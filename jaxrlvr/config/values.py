"""Reads and sets the values of a config by their dotted names, and converts them to the types of the defaults."""

from __future__ import annotations

import ast
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import hints

_LOG = logging.getLogger(__name__)


def names(config: ConfigDict, prefix: str = "") -> list[str]:
  """Returns the dotted names of all values in a config and its groups, each behind `prefix`."""
  leaves = []
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      leaves += names(value, f"{prefix}{name}.")
    else:
      leaves.append(prefix + name)
  return leaves


def _leaf(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
  """Returns the group that holds a value, and the value's name there. Raises InputError for an unknown key."""
  node = config
  *parents, last = key.split(".")
  for part in [*parents, last]:
    if not isinstance(node, ConfigDict) or part not in node:
      raise InputError(f"config.{key}: no such key{hints.hint(names(config), key)}")
    node, parent = node[part], node
  if isinstance(node, ConfigDict):
    raise InputError(f"config.{key}: a group of keys, not a value; set one of {[f'{key}.{k}' for k in node]}")
  return parent, last


def get(config: ConfigDict, key: str) -> Any:
  """Returns the value of a dotted key. Raises InputError where there is none."""
  parent, last = _leaf(config, key)
  return parent[last]


def set_text(config: ConfigDict, key: str, text: str) -> None:
  """Sets a value from command-line text, converted to the type of the present value.

  Strings are taken as they are. Other types are read as Python literals; a tuple may also be words between commas, or a
  single entry. Raises InputError for an unknown key or a value of another type.
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
  r"""Returns the words between commas, without white space around them and without empty ones.

  For `rl.stop_strings` white space and empty words are kept, and the escapes \n, \t, \r and \\ are decoded.
  """
  if key != "rl.stop_strings":
    return tuple(word.strip() for word in text.split(",") if word.strip())
  decoded = re.sub(r"\\[ntr\\]", lambda match: _ESCAPES[match[0]], text)
  words = tuple(decoded.split(","))
  if decoded != text:
    _LOG.warning("config.%s = %s is read as %r; for other strings write a Python tuple", key, text, words)
  return words


def set_value(config: ConfigDict, key: str, value: object) -> None:
  """Sets the value of a dotted key, converted as by `typed`. Raises InputError for an unknown key or another type."""
  parent, last = _leaf(config, key)
  parent[last] = typed(key, value, parent[last])


def changed(config: ConfigDict, changes: Mapping[str, object]) -> ConfigDict:
  """Returns a locked copy of a config with `changes` ({dotted key: value}) and an empty chain.

  Raises InputError as `set_value` does.
  """
  copy = ConfigDict(config.to_dict())
  copy.chain = ()
  for key, value in changes.items():
    set_value(copy, key, value)
  copy.lock()
  return copy


def typed(key: str, value: object, like: object) -> Any:
  """Returns a value of the key in the type of `like`, converting an integer to a float and lists to tuples.

  Raises InputError that names the key for a value of another type, and for infinity and NaN.
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
