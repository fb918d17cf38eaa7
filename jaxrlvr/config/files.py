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
from jaxrlvr.config import checks, hints, key_files, values
from jaxrlvr.config.rules import FOLDER

_BASE = "base"  # the entry of a file of keys that names the config which it starts from


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

  name: FILE or FILE:ARG. FILE is the path of a Python file that defines get_config(arg), of a YAML or JSON file that
  lists keys, or of a run's config.json, or the name of a file in configs/ ("demo"); a path that exists goes before a
  name. ARG is "" where it is left out.
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
  return _build(_in_folder(path).resolve(), arg)


def _in_folder(path: Path) -> Path:
  """Returns the path of the shipped config that a bare name means, as "demo" or "demo.py"; else the path itself."""
  is_name = not path.is_file() and path.parent == Path() and path.suffix not in key_files.KEY_FILE_SUFFIXES
  shipped = FOLDER / f"{path.stem}.py"
  return shipped if is_name and shipped.is_file() else path


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


def _build(path: Path, arg: str, above: tuple[Path, ...] = ()) -> ConfigDict:
  """Returns the locked config of a Python, YAML or JSON file. Raises InputError for a file that fails.

  above: files of keys that start from this one.
  """
  if path.is_file():
    search_beside(path)
  else:
    names = sorted(file.stem for file in FOLDER.glob("*.py"))
    similar = difflib.get_close_matches(path.stem, names, 1)
    hint = f"; did you mean {FOLDER / similar[0]}.py?" if similar else ""
    raise InputError(f"--config={path}: no such file{hint}; name a file, or a config of {FOLDER}: {', '.join(names)}")
  config = _listed(path, arg, above) if path.suffix in key_files.KEY_FILE_SUFFIXES else _executed(path, arg)
  config.lock()
  return config


def search_beside(path: Path) -> None:
  """Has the user's own files that a config names looked for beside it, and where the run that recorded it began."""
  named.search_in(path.parent)
  if path.suffix == ".json":
    manifest = logbook.read_json(path.parent / "manifest.json")
    for folder in (manifest.get("folder"), *manifest.get("earlier_folders", ())):
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


def _listed(path: Path, arg: str, above: tuple[Path, ...]) -> ConfigDict:
  """Returns the config of a file that lists keys, such as a run's config.json; keys that it lacks have their defaults.

  They have the values of another config where the file has an entry `base`: FILE or FILE:ARG, as `load` takes it; the
  path of a file is looked for beside this one too. An entry `stage` of a JSON file, as runs write it, is left out.
  above: files that start from this one. Raises InputError, with the place, for a file that can't be parsed, and for
  keys and values that configs/base.py does not know.
  """
  if arg:
    raise InputError(f"--config={path}:{arg}: takes no argument; write it in the file, as base: demo:{arg}")
  entries = {entry.key: entry for entry in key_files.entries(path)}
  if path.suffix == ".json":
    entries.pop("stage", None)
  config = base()
  if _BASE in entries:
    entry = entries.pop(_BASE)
    config = _base_of(path, entry, (*above, path))
  for entry in entries.values():
    try:
      values.set_value(config, entry.key, entry.value)
    except InputError as error:
      raise InputError(f"{entry.place}: {error}{_cure(config, entry)}") from None
  return config


def _base_of(path: Path, entry: key_files.Entry, above: tuple[Path, ...]) -> ConfigDict:
  """Returns the config that a file of keys starts from.

  entry: its entry `base`. above: this file, and those that start from it. Raises InputError where the config can't be
  read, or is one of these files.
  """
  if not isinstance(entry.value, str):
    raise InputError(f"{entry.place}: base = {entry.value!r}: wanted the name of a config, as base: demo")
  file, arg = _split(os.path.expanduser(entry.value))
  beside = path.parent / file
  start = _in_folder(beside if beside.is_file() else Path(file)).resolve()
  if start in above:
    raise InputError(f"{entry.place}: base = {entry.value!r}: starts from itself; name another config")
  return _build(start, arg, above)


def _cure(config: ConfigDict, entry: key_files.Entry) -> str:
  """Returns the end of an error message about a value of another type, where the way it is written is the cause."""
  try:
    present = values.get(config, entry.key)
  except InputError:
    return ""  # no such key
  if isinstance(present, tuple) and not isinstance(entry.value, list):
    return "; write a list, with [ and ]"
  if isinstance(present, str) and not isinstance(entry.value, list):
    return "; put it in quotes"
  return ""


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
