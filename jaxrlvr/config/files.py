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

from jaxrlvr.base import logbook, named
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import checks, hints, values
from jaxrlvr.config.rules import FOLDER


def base(name: str = "base", arg: str = "") -> ConfigDict:
  """Returns the config that the shipped file configs/NAME.py builds, locked, for an experiment's file to start from.

  Values may be changed, keys can't be added. arg: what get_config of that file is called with; its docstring says what
  it takes. Raises InputError where there is no such file or it fails.
  """
  return _build(FOLDER / f"{name}.py", arg)


def words(arg: str, **choices: tuple[str, ...]) -> dict[str, str]:
  """Reads the argument of a config file, words between commas in any order, and returns the value of each name.

  choices: the options of each name. A name has its first option unless a word of `arg` is another of its options, or is
  `name=value`, whose value may be any text. An option that two names share belongs to the first of them; a later word
  overrules an earlier one. Raises InputError for any other word.
  Example: `words("64", domain=("math", "graph"), n=("8", "64"))` returns {"domain": "math", "n": "64"}.
  """
  chosen = {name: options[0] for name, options in choices.items()}
  name_of_option: dict[str, str] = {}
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
  """Loads the config that `--config` names, applies overrides, checks it, and returns it, locked.

  name: FILE or FILE:ARG. FILE is the path of a Python file that defines get_config(arg) or of a run's config.json, or
  the name of a file in configs/ ("demo"); a path that exists goes before a name. ARG is "" where it is left out.
  overrides: {dotted key: text}, as {"rl.steps": "100"}, read as by `values.set_text`.
  stage: the stage that the config is for; `checks.check` says what it decides (None: all keys are checked).
  Raises InputError for a file that is missing or fails, for an unknown key and for a wrong value.
  """
  config = read(name)
  for key, text in (overrides or {}).items():
    values.set_text(config, key, text)
  checks.check(config, stage, overrides or ())
  return config


def read(name: str) -> ConfigDict:
  """Returns the config that `load` loads, locked, as its file makes it: without overrides, and unchecked.

  Raises InputError for a file that is missing or fails.
  """
  file, arg = _split(os.path.expanduser(name))
  path = Path(file)
  if not path.is_file() and path.parent == Path() and (FOLDER / f"{path.stem}.py").is_file():
    path = FOLDER / f"{path.stem}.py"
  return _build(path.resolve(), arg)


def from_python(name: str = "base", changes: Mapping[str, object] | None = None, /, **others: object) -> ConfigDict:
  """Makes a config: jr.config("demo", {"rl.steps": 20}, seed=1). Returns it, locked: values may be changed.

  name: as `load` takes it: a name in configs/, the path of a config file, or of a run's config.json. changes, others:
  {dotted key: value}; values have the types of the defaults. The rules of keys are checked by what takes the config,
  when it knows the stage. Raises InputError for a file that fails, an unknown key and a value of another type.
  """
  config = read(name)
  for key, value in {**(changes or {}), **others}.items():
    values.set_value(config, key, value)
  return config


def derive(config: ConfigDict, changes: Mapping[str, object], stage: str | None = None) -> ConfigDict:
  """Returns a changed copy of a config, locked and checked for a stage; the config itself stays as it is.

  changes: {dotted key: value}, as {"rl.steps": 100}, converted as by `values.typed`. The copy has an empty `chain`, so
  that the config of a link does not hold all links. Raises InputError for an unknown key and as `checks.check` does.
  """
  derived = values.changed(config, changes)
  checks.check(derived, stage)
  return derived


def differences(config: ConfigDict, earlier: Mapping, ignore: Collection[str]) -> list[str]:
  """Returns a line "config.KEY: VALUE, earlier VALUE" for each key whose value differs, sorted by key.

  earlier: the config of the same run when it began, as nested tables {group: {key: value}}, perhaps read from JSON:
  lists and tuples with the same entries are equal. A key that one side lacks counts as None there.
  ignore: dotted names of keys that are not compared.
  """
  earlier_config = ConfigDict(earlier)
  values_now = {key: values.get(config, key) for key in values.names(config)}
  values_earlier = {key: values.get(earlier_config, key) for key in values.names(earlier_config)}
  lines = []
  for key in sorted({*values_now, *values_earlier}):
    value, earlier_value = values_now.get(key), values_earlier.get(key)
    if key not in ignore and _as_json(value) != _as_json(earlier_value):
      lines.append(f"config.{key}: {value!r}, earlier {earlier_value!r}")
  return lines


def _as_json(value):
  """Returns the value as it comes back from a JSON file: tuples at any depth become lists, keys become strings."""
  return json.loads(json.dumps(value, default=list))


def _build(path: Path, arg: str) -> ConfigDict:
  """Returns the locked config of a Python file, or of a run's config.json. Raises InputError for a file that fails."""
  if path.is_file():
    search_beside(path)
  else:
    names = sorted(file.stem for file in FOLDER.glob("*.py"))
    similar = difflib.get_close_matches(path.stem, names, 1)
    hint = f"; did you mean {FOLDER / similar[0]}.py?" if similar else ""
    raise InputError(f"--config={path}: no such file{hint}; name a file, or a config of {FOLDER}: {', '.join(names)}")
  config = _recorded(path) if path.suffix == ".json" else _executed(path, arg)
  config.lock()
  return config


def search_beside(path: Path) -> None:
  """Has the user's own files that a config names looked for beside it, and where the run that recorded it began."""
  named.search_in(path.parent)
  if path.suffix == ".json":
    folder = logbook.read_json(path.parent / "manifest.json").get("folder")
    if isinstance(folder, str):
      named.search_in(folder)


def _executed(path: Path, arg: str) -> ConfigDict:
  """Runs a config file and returns the result of its get_config(arg).

  Raises InputError, which names the line, where the file fails, and where the result is no ConfigDict.
  """
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
  """Returns the error of a config file as one line, "PATH:LINE: TYPE: MESSAGE"."""
  line_number, source_line = "?", ""
  if isinstance(error, SyntaxError):
    line_number = str(error.lineno)
  else:
    for frame in traceback.extract_tb(error.__traceback__):
      if frame.filename == str(path):
        line_number, source_line = str(frame.lineno), frame.line or ""
  return f"{path}:{line_number}: {type(error).__name__}: {error}{hints.renamed_in(source_line)}"


def _recorded(path: Path) -> ConfigDict:
  """Returns the config that a run's config.json holds; keys that it lacks have their defaults.

  Raises InputError for a file that is no such JSON, and for keys and values that configs/base.py does not know.
  """
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
