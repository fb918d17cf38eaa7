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
  """The defaults (configs/base.py), or another config of that folder: where an experiment's config starts."""
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
  """Config of `FILE[:ARG]` (FILE a path, or a name in configs/) with dotted `key: text` overrides, as `check`ed."""
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
  if not path.is_file():
    near = difflib.get_close_matches(path.stem, [p.stem for p in FOLDER.glob("*.py")], 1)
    hint = f"; did you mean {FOLDER / near[0]}.py?" if near else ""
    names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.py")))
    raise InputError(f"--config={path}: no such file{hint}; name a file, or a config of {FOLDER}: {names}")
  if path.suffix == ".json":
    return _recorded(path)
  module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise InputError(f"{path}: defines no get_config(arg); add one that returns a ConfigDict")
    made = module.get_config(arg)
    if not isinstance(made, ConfigDict):
      raise InputError(f"{path}: get_config returns {type(made).__name__}; return a ConfigDict")
  except InputError:
    raise
  except Exception as error:  # a config file is the user's code: whatever it raises is told with its place
    at = (
      error
      if isinstance(error, SyntaxError)
      else next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), None)
    )
    renamed = hints.renamed_in(getattr(at, "line", None) or "")
    raise InputError(f"{path}:{getattr(at, 'lineno', '?')}: {type(error).__name__}: {error}{renamed}") from error
  made.lock()
  return made


def _recorded(path: Path) -> ConfigDict:
  """The config that a run directory's config.json holds; what it does not name is as in configs/base.py."""
  try:
    given = ConfigDict({key: value for key, value in json.loads(path.read_text()).items() if key != "stage"})
  except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f"{path}: is no config of a run ({type(error).__name__}: {error})") from error
  made = base()
  for key in values.names(given):
    values.set_value(made, key, values.get(given, key))
  made.lock()
  return made


def _split(name: str) -> tuple[str, str]:
  """(file, argument) of `FILE[:ARG]`: either may hold colons; the longest beginning that is a file is the file."""
  ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if name[at] == ":")]
  for end in ends:
    if Path(name[:end]).is_file():
      return name[:end], name[end + 1 :]
  file, _, arg = name.partition(":")
  return file, arg
