"""Config files that list keys, as YAML or JSON: reads them into dotted keys, values and the places where they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxrlvr.base.errors import InputError

KEY_FILE_SUFFIXES = (".json", ".yaml", ".yml")  # ends of the names of such files
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT_WITHOUT_DOT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")  # 1e-6, which YAML 1.1 takes for a text


class Entry(NamedTuple):
  """A value in a file."""

  key: str  # dotted, as "rl.optim.lr": groups may be nested, or written in the key
  value: Any  # as the file has it: lists are lists
  place: str  # PATH, in YAML PATH:LINE


class _Group(list):
  """The (key, value) pairs of a JSON object, in their order: a key may stand there twice."""


def entries(path: Path) -> list[Entry]:
  """Returns the entries of a YAML or JSON file in their order. An empty YAML file has none.

  Raises InputError, with the line where it is known, for a file that can't be parsed, that is no mapping at its top
  level, or that names a key twice, and for YAML where PyYAML is not installed.
  """
  try:
    parsed = list(_of_json(path) if path.suffix == ".json" else _of_yaml(path))
  except (OSError, ValueError, TypeError, RecursionError) as error:  # json and yaml.constructor raise ValueError
    raise InputError(f"{path}: is no config file ({type(error).__name__}: {error})") from error
  places: dict[str, str] = {}
  for entry in parsed:
    if entry.key in places:
      raise InputError(f"{entry.place}: {entry.key} is there twice (before at {places[entry.key]}); remove one")
    places[entry.key] = entry.place
  return parsed


def _of_json(path: Path) -> Iterator[Entry]:
  """Yields the entries of a JSON file."""
  content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_Group)
  if not isinstance(content, _Group):
    raise ValueError("its top level is no object of keys")
  yield from _of_pairs(content, "", str(path))


def _of_pairs(pairs: _Group, prefix: str, place: str) -> Iterator[Entry]:
  """Yields the entries of a JSON object and of those in it. prefix: what each key begins with."""
  for key, value in pairs:
    if isinstance(value, _Group):
      yield from _of_pairs(value, f"{prefix}{key}.", place)
    else:
      yield Entry(prefix + key, _plain(value), place)


def _plain(value: Any) -> Any:
  """Returns a JSON value with objects as dicts."""
  if isinstance(value, _Group):
    return {key: _plain(member) for key, member in value}
  if isinstance(value, list):
    return [_plain(member) for member in value]
  return value


def _of_yaml(path: Path) -> Iterator[Entry]:
  """Yields the entries of a YAML file."""
  try:
    import yaml
  except ImportError as error:
    raise InputError(f"{path}: YAML needs PyYAML; pip install pyyaml, or write the keys as JSON") from error

  class Loader(yaml.SafeLoader):
    """Reads plain YAML, with 1e-6 as a number."""

  Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT_WITHOUT_DOT, list("-+0123456789"))

  def of_mapping(node: Any, prefix: str) -> Iterator[Entry]:
    """Yields the entries of a mapping and of those in it."""
    for key_node, value_node in node.value:
      key = prefix + str(key_node.value)
      if isinstance(value_node, yaml.MappingNode):
        yield from of_mapping(value_node, f"{key}.")
      else:
        place = f"{path}:{key_node.start_mark.line + 1}"
        yield Entry(key, loader.construct_object(value_node, deep=True), place)

  try:
    loader = Loader(path.read_text(encoding="utf-8"))
    node = loader.get_single_node()
    if node is None:
      return
    if not isinstance(node, yaml.MappingNode):
      raise ValueError("its top level is no mapping of keys")
    yield from of_mapping(node, "")
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    raise InputError(f"{place}: is no YAML ({getattr(error, 'problem', None) or error})") from error
