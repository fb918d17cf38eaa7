"""What a config key is declared by, and the rules that values follow. configs/base.py declares all keys.

A rule says what a value must be, in words that end the sentence "wanted ...". Rules that need a table of another room
look it up when a value is checked, so that the pages of `jaxrlvr STAGE --help` load no other room.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_HERE = Path(__file__).resolve().parents[1]
# Where the shipped configs lie: beside the library in a clone, inside of it where it is installed.
FOLDER = next(
  (folder for folder in (_HERE.parent / "configs", _HERE / "configs") if (folder / "base.py").is_file()),
  _HERE / "configs",
)


class Rule(NamedTuple):
  """What a value must be, beside having the type of the key's default.

  `holds` may also raise InputError, whose message then begins with the last part of the key's name.
  """

  holds: Callable[[Any], bool]
  words: Callable[[], str]
  on_page: bool = True  # whether help pages give the words; not where they say nothing, or are in another room


class Key(NamedTuple):
  """The declaration of a config key. A resumed run may differ from the run it goes on with where `may_change`."""

  default: Any
  rule: Rule
  meaning: str
  may_change: bool = False


class Group:
  """Keys and groups of keys, by name, in the order of their declaration. A name can be declared once."""

  def __setattr__(self, name: str, member: Key | Group) -> None:
    if name in vars(self):
      raise AttributeError(f"{name} is declared twice")
    super().__setattr__(name, member)


def by_name(group: Group, prefix: str = "") -> dict[str, Key]:
  """Returns the keys of a group by their dotted names."""
  keys = {}
  for name, member in vars(group).items():
    if isinstance(member, Group):
      keys |= by_name(member, f"{prefix}{name}.")
    else:
      keys[prefix + name] = member
  return keys


def defaults(group: Group) -> ConfigDict:
  """Returns the default values of a group."""
  from ml_collections import ConfigDict  # takes a while to load, and help pages need none

  config = ConfigDict()
  for name, member in vars(group).items():
    config[name] = defaults(member) if isinstance(member, Group) else member.default
  return config


@functools.cache
def declared() -> Mapping[str, Key]:
  """Returns all keys of a config by their dotted names, as configs/base.py declares them."""
  spec = importlib.util.spec_from_file_location("config_base", FOLDER / "base.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return by_name(module.c)


def _listed(options: tuple) -> str:
  return "one of " + ", ".join(str(option) or '""' for option in options)


def _at(place: str):
  module, _, name = place.partition(":")
  return getattr(importlib.import_module(module), name)


def rule(words: str, holds: Callable[[Any], bool]) -> Rule:
  return Rule(holds, lambda: words)


def no_rule(reason: str) -> Rule:
  """Lets every value of the default's type be; `reason` says why."""
  return Rule(lambda value: True, lambda: reason, on_page=False)


def one_of(*options: str) -> Rule:
  return rule(_listed(options), lambda value: value in options)


def one_of_table(*places: str, also: tuple = ()) -> Rule:
  """Takes `also` and the names in tables of other rooms, each as "package.module:NAME". The meaning lists them."""

  def options() -> tuple:
    return (*also, *(name for place in places for name in _at(place)))

  def holds(value) -> bool:
    return any(type(value) is type(option) and value == option for option in options())

  return Rule(holds, lambda: _listed(options()), on_page=False)


def parsed_by(place: str) -> Rule:
  """Takes what a function of another room, as "package.module:name", reads without an InputError."""

  def holds(value) -> bool:
    _at(place)(value)
    return True

  return Rule(holds, lambda: f"what {place} reads", on_page=False)


def at_least(low: float, reason: str = "") -> Rule:
  """Inside of `each` too the value must be of the type of the bound."""
  return rule(f"at least {low}" + (f": {reason}" if reason else ""), lambda v: type(v) is type(low) and v >= low)


def above(low: float, reason: str = "") -> Rule:
  return rule(f"above {low}" + (f": {reason}" if reason else ""), lambda value: value > low)


def each(item: Rule, empty: bool = False) -> Rule:
  """Applies a rule to the entries of a tuple; `empty`: there may be none."""
  count = "any number" if empty else "one or more"
  return Rule(
    lambda value: (empty or len(value) > 0) and all(item.holds(entry) for entry in value),
    lambda: f"{count}, each {item.words()}",
    item.on_page,
  )


def matching(pattern: str, words: str) -> Rule:
  """Takes texts that match the regular expression as a whole."""
  return rule(words, lambda value: re.fullmatch(pattern, value) is not None)


def is_share(value: object) -> bool:
  """Whether a value inside of a tuple is a number from 0 to 1."""
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def is_text(value: object) -> bool:
  return isinstance(value, str)


def is_filled_text(value: object) -> bool:
  return isinstance(value, str) and value != ""


SWITCH = no_rule("its type says all: True or False")
TEXT = no_rule("words of people or of models: any text will do")
PLACE = no_rule("a file, folder, set of the hub or address: what opens it says what is wrong with it")
SEED = no_rule("any whole number is a seed")
POSITIVE = above(0)
SHARE = rule("from 0 to 1", lambda value: 0 <= value <= 1)
FILLED_SHARE = rule("above 0, at most 1", lambda value: 0 < value <= 1)
DECAY = rule("from 0 to below 1", lambda value: 0 <= value < 1)
RATES = rule("two rates from 0 to 1, as (0.1, 0.2)", lambda value: len(value) == 2 and all(map(is_share, value)))
DTYPE = one_of("float32", "bfloat16")
