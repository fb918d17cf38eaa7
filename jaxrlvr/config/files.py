"""Configs from files: what a file builds, what the command line changes, how two configs differ."""

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
from jaxrlvr.config.keys import FOLDER


def base(name: str = "base", arg: str = "") -> ConfigDict:
  """Returns the defaults (configs/base.py), or another config of that folder, for an experiment's to start from."""
  return _build(FOLDER / f"{name}.py", arg)


def words(arg: str, **choices: tuple[str, ...]) -> dict[str, str]:
  """Returns what the words of a config's argument choose: `words("64,math", domain=("math", "graph"), n=("8", "64"))`.

  A choice that no word makes is the first of its options; `name=value` sets one to something that is not listed.
  """
  chosen = {name: options[0] for name, options in choices.items()}
  for word in filter(None, arg.split(",")):
    name, equals, value = word.partition("=")
    if not equals:
      name, value = next((n for n, options in choices.items() if word in options), ""), word
    if name not in choices:
      listed = [option for options in choices.values() for option in options if option]
      near = difflib.get_close_matches(word, listed, 1)
      raise InputError(f"{word!r} chooses nothing; " + (f"did you mean {near[0]!r}?" if near else f"words: {listed}"))
    chosen[name] = value
  return chosen


def load(name: str, overrides: Mapping[str, str] | None = None, stage: str | None = None) -> ConfigDict:
  """Returns the config of `FILE[:ARG]` (FILE a path, or a name in configs/) with dotted `key: text` overrides, checked
  for the stage."""
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
  """Returns a locked copy with some leaves changed and no chain of its own, checked as `check` does for the stage."""
  derived = values.changed(config, changes)
  checks.check(derived, stage)
  return derived


def differences(a: ConfigDict, b: Mapping, ignore: Collection[str]) -> list[str]:
  """Returns `key: here x, earlier y` for each leaf that differs, but for those of `ignore`."""
  here, there = ({key: values.get(c, key) for key in values.names(c)} for c in (a, ConfigDict(b)))
  return [
    f"config.{key}: {here.get(key)!r}, earlier {there.get(key)!r}"
    for key in sorted({*here, *there})
    if key not in ignore and _as_json(here.get(key)) != _as_json(there.get(key))
  ]


def _as_json(value):
  """Returns the value as it comes back from a JSON file: tuples at any depth are lists, all keys are strings."""
  return json.loads(json.dumps(value, default=list))


def _build(path: Path, arg: str) -> ConfigDict:
  """Returns the locked config that a file builds, or that a run recorded; InputError where there is none."""
  if not path.is_file():
    names = sorted(file.stem for file in FOLDER.glob("*.py"))
    near = difflib.get_close_matches(path.stem, names, 1)
    hint = f"; did you mean {FOLDER / near[0]}.py?" if near else ""
    raise InputError(f"--config={path}: no such file{hint}; name a file, or a config of {FOLDER}: {', '.join(names)}")
  config = _recorded(path) if path.suffix == ".json" else _executed(path, arg)
  config.lock()
  return config


def _executed(path: Path, arg: str) -> ConfigDict:
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise InputError(f"{path}: defines no get_config(arg); add one that returns a ConfigDict")
    config = module.get_config(arg)
  except InputError:
    raise
  except Exception as error:  # a config file is the user's code: whatever it raises is told with its place
    raise InputError(_with_place(error, path)) from error
  if not isinstance(config, ConfigDict):
    raise InputError(f"{path}: get_config returns {type(config).__name__}; return a ConfigDict")
  return config


def _with_place(error: Exception, path: Path) -> str:
  """Returns an error of a config file in one line, with the line of the file that raised it."""
  frames = traceback.extract_tb(error.__traceback__)
  inside = [frame for frame in frames if frame.filename == str(path)]
  place = error if isinstance(error, SyntaxError) else (inside or [None])[-1]
  renamed = hints.renamed_in(getattr(place, "line", None) or "")
  return f"{path}:{getattr(place, 'lineno', '?')}: {type(error).__name__}: {error}{renamed}"


def _recorded(path: Path) -> ConfigDict:
  """Returns the config that a run directory's config.json holds; what it does not name is as in configs/base.py."""
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
  """Returns file and argument of `FILE[:ARG]`. Either may hold colons: the longest beginning that is a file is it."""
  ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if name[at] == ":")]
  for end in ends:
    if Path(name[:end]).is_file():
      return name[:end], name[end + 1 :]
  file, _, arg = name.partition(":")
  return file, arg
