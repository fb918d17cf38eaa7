"""Evaluation sets of a user's own: entries NAME=SOURCE[SETTING,...] of `heldout.sets`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.words import split_at_commas
from jaxrlvr.data import columns as layout
from jaxrlvr.data import problems
from jaxrlvr.data.eval_sets import EVAL_SETS, GENERATED_SETS
from jaxrlvr.tasks import own
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.splits import LEVELS

_EXAMPLE = "mine=path.jsonl[prompt=question,label=answer]"
_NAMES_OF_MEANS = ("in-domain", "out-of-domain")  # in metrics, beside the names of sets
_NAME_BYTES = 100  # at most, as a set's name is part of a file's


class OwnSet(NamedTuple):
  """An evaluation set of a user's own."""

  name: str
  source: str  # of its problems, as `problems.load` takes it
  is_generated: bool  # whether its problems are generated, else they are read from files
  # Values of keys of the config's group `heldout` for this set. Of a set of files all that differ between sets are
  # there, of a generated one those that its entry names.
  settings: Mapping[str, Any]
  template: str  # all entries of `heldout.sets`, between commas, with `{}` in the place of this set's columns


class _Setting(NamedTuple):
  """A setting KEY=VALUE of an entry, other than a column."""

  is_for_files: bool
  is_for_generated: bool
  read: Callable[[str], Any]  # returns the value; raises ValueError, or InputError with a message of its own
  words: str  # what it must be, as the end of "wanted ..."


def _whole_number(text: str) -> int:
  """Returns the number. Raises ValueError for one below 0."""
  number = int(text)
  if number < 0:
    raise ValueError
  return number


def _one_of(*options: str) -> Callable[[str], str]:
  """Returns a function that returns one of these texts, and raises ValueError for another."""

  def read(text: str) -> str:
    if text not in options:
      raise ValueError
    return text

  return read


def _verifier(text: str) -> str:
  """Returns the name of a verifier. Raises InputError for a user's own that can't be imported."""
  if named.is_name(text):
    own.scorer(text)
    return text
  return _one_of(*layout.VERIFIER_CHOICES)(text)


def _split(text: str) -> str:
  """Returns the name of a split."""
  if not re.fullmatch(r"[\w.-]+", text):
    raise ValueError
  return text


def _levels(text: str) -> tuple[int, ...]:
  """Returns levels, written as 4|5."""
  levels = tuple(int(level) for level in text.split("|"))
  if not set(levels) <= set(LEVELS):
    raise ValueError
  return levels


def _kinds(text: str) -> tuple[str, ...]:
  """Returns kinds of problems, written as chain|large."""
  kinds = tuple(kind.strip() for kind in text.split("|"))
  if not all(kinds):
    raise ValueError
  return kinds


_SETTINGS: Mapping[str, _Setting] = {
  "verifier": _Setting(
    True, False, _verifier, f"{', '.join(layout.VERIFIER_CHOICES)}, or a function of yours as my_verifier.py:check"
  ),
  "split": _Setting(True, False, _split, "the name of a split, such as train or test, or all"),
  "copies": _Setting(True, False, _one_of("drop", "keep", "error"), "drop, keep or error"),
  "count": _Setting(True, True, _whole_number, "a whole number, 0 for all problems of files"),
  "levels": _Setting(False, True, _levels, f"levels among {', '.join(map(str, LEVELS))}, as 4|5"),
  "kinds": _Setting(False, True, _kinds, "kinds of problems, as chain|large"),
  "seed": _Setting(False, True, int, "a whole number"),
}
# What a set of files has where its entry says nothing else: heldout's own values are those of heldout.source.
_OF_FILES: Mapping[str, Any] = {"verifier": "auto", "columns": (), "split": "", "count": 0, "copies": "drop"}


def parse_entries(sets: Sequence[str]) -> dict[str, OwnSet]:
  """Returns the sets of a user's own among the entries of `heldout.sets`, by name, in their order.

  An entry is the name of a known set (a key of EVAL_SETS or GENERATED_SETS), which is passed over, or one of
    NAME=SOURCE
    NAME=SOURCE[SETTING,SETTING,...]
  NAME: letters, digits, '_', '-' and '.'. SOURCE: as `problems.load` takes it. A SETTING of files is TARGET=COLUMN or
  COLUMN==VALUE (see `columns.load`), verifier=NAME, split=NAME, count=NUMBER (of the first ones; 0, the default: all)
  or copies=drop|keep|error; one of generated problems is count=NUMBER, levels=4|5, kinds=chain|large or seed=NUMBER.

  Raises InputError "sets: ...", with the entry and the cure, for anything else, for a name that is there twice, and for
  a verifier or a task that can't be imported. Whether files exist is not looked at.
  """
  by_name: dict[str, OwnSet] = {}
  for place, entry in enumerate(sets):
    if not isinstance(entry, str):
      raise InputError(f"sets: {entry!r}: wanted the name of a set, or one of your own as {_EXAMPLE}")
    if entry in EVAL_SETS or entry in GENERATED_SETS:
      continue
    try:
      own_set = _own_set(entry)
      if own_set.name in by_name:
        raise InputError(f"{own_set.name} is the name of another entry; give each a name of its own")
    except InputError as error:
      raise InputError(f"sets: {entry!r}: {error}") from error
    template = ",".join([*sets[:place], own_set.template, *sets[place + 1 :]])
    by_name[own_set.name] = own_set._replace(template=template)
  return by_name


def names_of_code(sets: Sequence[str]) -> list[str]:
  """Returns the names (`base.named`) of a user's own verifiers and tasks in the entries of `heldout.sets`."""
  names = []
  for own_set in parse_entries(sets).values():
    if own.is_task(own_set.source):
      names.append(own.task(own_set.source).verify)
    verifier = own_set.settings.get("verifier", "")
    if named.is_name(verifier):
      names.append(verifier)
  return names


def _own_set(entry: str) -> OwnSet:
  """Returns the set that an entry NAME=SOURCE[SETTING,...] describes, with a template of this entry only.

  Raises InputError for an entry that describes none.
  """
  name, equals, rest = entry.partition("=")
  name = name.strip()
  if not equals:
    known = (*EVAL_SETS, *GENERATED_SETS)
    similar = difflib.get_close_matches(entry, known, 1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise InputError(f"wanted one of {', '.join(known)}, or a set of your own as {_EXAMPLE}{hint}")
  _check_name(name)
  source, texts = _source_and_settings(rest.strip())
  if not source:
    raise InputError(f"has no source; write {name}=path.jsonl")
  is_generated = problems.is_generated(source)
  if own.is_task(source):
    own.task(source)
  columns = []
  values: dict[str, Any] = {}
  for text in texts:
    key, _, value = text.partition("=")
    key = key.strip()
    is_column = value.startswith("=") or key not in _SETTINGS  # COLUMN==VALUE, or TARGET=COLUMN
    if is_column:
      columns.append(text)
    elif key in values:
      raise InputError(f"{key} is there twice; write it once")
    else:
      values[key] = _value(key, value.strip(), source, is_generated)
  _check_columns(columns, source, is_generated)
  others = [text for text in texts if text not in columns]
  template = f"{name}={source}[{','.join(['{}', *others])}]"
  if not is_generated:
    values = {**_OF_FILES, **values, "columns": tuple(columns)}
  return OwnSet(name, source, is_generated, values, template)


def _check_name(name: str) -> None:
  """Raises InputError for the name of a known set or mean, and for one that can't be part of a file's name."""
  if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > _NAME_BYTES:
    raise InputError(
      f"the name {name!r}: wanted letters, digits, '_', '-' and '.', at most {_NAME_BYTES} bytes of them; write it as "
      f"{_EXAMPLE}"
    )
  if name in EVAL_SETS or name in GENERATED_SETS or name in _NAMES_OF_MEANS:
    raise InputError(f"{name} is the name of a known set or mean; choose another name for yours")


def _source_and_settings(text: str) -> tuple[str, list[str]]:
  """Returns the source of SOURCE[SETTING,...], and its settings. Raises InputError for brackets that don't match."""
  if not text.endswith("]"):
    if "[" in text:
      raise InputError("the bracket is not closed at the end; write NAME=SOURCE[SETTING,...]")
    return text, []
  depth = 0
  for start in reversed(range(len(text))):
    depth += (text[start] == "]") - (text[start] == "[")
    if depth == 0:
      return text[:start].strip(), split_at_commas(text[start + 1 : -1])
  raise InputError("the bracket is not opened; write NAME=SOURCE[SETTING,...]")


def _value(key: str, text: str, source: str, is_generated: bool) -> Any:
  """Returns the value of a setting. Raises InputError for a wrong one, and for one that has no effect on the source."""
  setting = _SETTINGS[key]
  is_allowed = setting.is_for_generated if is_generated else setting.is_for_files
  if not is_allowed:
    present, other = ("generated", "files") if is_generated else ("not generated", "generated problems")
    raise InputError(f"{key} has no effect: it is for {other}, and {source} is {present}; leave it out")
  try:
    value = setting.read(text)
  except InputError:
    raise
  except ValueError:
    raise InputError(f"{key}={text}: wanted {setting.words}") from None
  if key == "count" and is_generated and not value:
    raise InputError(f"count=0: {source} makes as many problems as are asked for; take a number above 0")
  if key == "kinds" and source == "arithmetic" and not set(value) <= set(arithmetic.KINDS):
    raise InputError(f"kinds={text}: wanted kinds of arithmetic, {', '.join(arithmetic.KINDS)}")
  return value


def _check_columns(columns: Sequence[str], source: str, is_generated: bool) -> None:
  """Raises InputError for entries of `columns` that can't be parsed, or that are not read."""
  if columns and is_generated:
    settings = [key for key, setting in _SETTINGS.items() if setting.is_for_generated]
    raise InputError(f"{columns[0]} has no effect: {source} is generated, and has only {', '.join(settings)}")
  if columns:
    try:
      layout.check_entries(columns)
    except InputError as error:
      settings = [key for key, setting in _SETTINGS.items() if setting.is_for_files]
      raise InputError(f"{error}; other settings are {', '.join(settings)}") from None
