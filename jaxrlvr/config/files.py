"""Configs from files: loads a config file, applies overrides of the command line, and compares two configs."""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import traceback
from collections.abc import Collection, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import checks, hints, values
from jaxrlvr.config.rules import FOLDER


def base(name: str = "base", arg: str = "") -> ConfigDict:
  """Returns the config that configs/NAME.py builds from the argument `arg`, for an experiment's file to start from."""
  return _build(FOLDER / f"{name}.py", arg)


def words(arg: str, **choices: tuple[str, ...]) -> dict[str, str]:
  """Reads a config's argument, words between commas, and returns the option that is chosen for each name.

  `choices` gives the options of each name; its first option holds unless a word names another. The word `name=value`
  sets a value that need not be an option. `words("64", domain=("math", "graph"), n=("8", "64"))` returns {"domain":
  "math", "n": "64"}. Raises InputError for a word that is no option.
  """
  chosen = {name: options[0] for name, options in choices.items()}
  name_of_option = {}
  for name, options in choices.items():
    for option in options:
      name_of_option.setdefault(option, name)
  for word in filter(None, arg.split(",")):
    name, equals, value = word.partition("=")
    if not equals:
      name, value = name_of_option.get(word, ""), word
    if name not in choices:
      options = [option for option in name_of_option if option]
      similar = difflib.get_close_matches(word, options, 1)
      hint = f"did you mean {similar[0]!r}?" if similar else f"words: {options}"
      raise InputError(f"{word!r} chooses nothing; {hint}")
    chosen[name] = value
  return chosen


def load(name: str, overrides: Mapping[str, str] | None = None, stage: str | None = None) -> ConfigDict:
  """Returns the locked config of `FILE[:ARG]` with its overrides applied, checked for the stage as by `checks.check`.

  FILE is a path or a name in configs/. `overrides` holds the text of each dotted key that is set. Raises InputError for
  a file that can't be loaded and for a wrong value.
  """
  file, arg = _split(os.path.expanduser(name))
  path = Path(file)
  if not path.is_file() and path.parent == Path() and (FOLDER / f"{path.stem}.py").is_file():
    path = FOLDER / f"{path.stem}.py"
  config = _build(path.resolve(), arg)
  for key, text in (overrides or {}).items():
    values.set_text(config, key, text)
  checks.check(config, stage, overrides or ())
  return config


def derive(config: ConfigDict, changes: Mapping[str, object], stage: str | None = None) -> ConfigDict:
  """Returns a locked copy with `changes` ({dotted key: value}) and an empty chain, checked for the stage.

  Raises InputError as `checks.check` does.
  """
  derived = values.changed(config, changes)
  checks.check(derived, stage)
  return derived


def differences(a: ConfigDict, b: Mapping, ignore: Collection[str]) -> list[str]:
  """Returns a line "config.KEY: VALUE, earlier VALUE" for each leaf of `a` that differs in the earlier config `b`.

  Values are compared as JSON holds them. Keys in `ignore` are left out.
  """
  b = ConfigDict(b)
  values_of_a = {key: values.get(a, key) for key in values.names(a)}
  values_of_b = {key: values.get(b, key) for key in values.names(b)}
  lines = []
  for key in sorted({*values_of_a, *values_of_b}):
    value, earlier = values_of_a.get(key), values_of_b.get(key)
    if key not in ignore and _as_json(value) != _as_json(earlier):
      lines.append(f"config.{key}: {value!r}, earlier {earlier!r}")
  return lines


def _as_json(value):
  """Returns the value as it comes back from a JSON file: tuples at any depth become lists, keys become strings."""
  return json.loads(json.dumps(value, default=list))


def _build(path: Path, arg: str) -> ConfigDict:
  """Returns the locked config of a Python file, or of a run's config.json. Raises InputError where it can't."""
  if not path.is_file():
    names = sorted(file.stem for file in FOLDER.glob("*.py"))
    similar = difflib.get_close_matches(path.stem, names, 1)
    hint = f"; did you mean {FOLDER / similar[0]}.py?" if similar else ""
    raise InputError(f"--config={path}: no such file{hint}; name a file, or a config of {FOLDER}: {', '.join(names)}")
  config = _recorded(path) if path.suffix == ".json" else _executed(path, arg)
  config.lock()
  return config


def _executed(path: Path, arg: str) -> ConfigDict:
  """Runs a config file and returns what its get_config(arg) does. Raises InputError, with the line, where it fails."""
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise InputError(f"{path}: defines no get_config(arg); add one that returns a ConfigDict")
    config = module.get_config(arg)
  except InputError:
    raise
  except Exception as error:  # a config file is the user's code, which may raise anything
    raise InputError(_with_place(error, path)) from error
  if not isinstance(config, ConfigDict):
    raise InputError(f"{path}: get_config returns {type(config).__name__}; return a ConfigDict")
  return config


def _with_place(error: Exception, path: Path) -> str:
  """Returns one line that says which line of the config file raised what."""
  line_number, source_line = "?", ""
  if isinstance(error, SyntaxError):
    line_number = str(error.lineno)
  else:
    for frame in traceback.extract_tb(error.__traceback__):
      if frame.filename == str(path):
        line_number, source_line = str(frame.lineno), frame.line or ""
  return f"{path}:{line_number}: {type(error).__name__}: {error}{hints.renamed_in(source_line)}"


def _recorded(path: Path) -> ConfigDict:
  """Returns the config that a run's config.json holds; keys that are not there have their defaults."""
  try:
    entries = json.loads(path.read_text())
    recorded = ConfigDict({key: value for key, value in entries.items() if key != "stage"})
  except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f"{path}: is no config of a run ({type(error).__name__}: {error})") from error
  config = base()
  for key in values.names(recorded):
    values.set_value(config, key, values.get(recorded, key))
  return config


def _split(name: str) -> tuple[str, str]:
  """Splits `FILE[:ARG]` and returns (FILE, ARG). Both may hold colons: FILE is the longest prefix that is a file."""
  if Path(name).is_file():
    return name, ""
  parts = name.split(":")
  for count in range(len(parts) - 1, 0, -1):
    file = ":".join(parts[:count])
    if Path(file).is_file():
      return file, ":".join(parts[count:])
  return parts[0], ":".join(parts[1:])
