"""Declarations of config keys, and the rules that their values follow. configs/base.py declares all keys.

configs/base.py writes `c.rl.steps = Key(60, at_least(1), "steps of RL")`, where `c` and `c.rl` are a `Group` each. A
rule has words that say what a value must be; they end the sentence "wanted ..." of an error, as in "wanted at least 1".
A rule that needs a table of another room imports it when a value is checked, so that the pages of `jaxrlvr STAGE
--help` import no other room.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxrlvr.base import named

if TYPE_CHECKING:
  from ml_collections import ConfigDict

_HERE = Path(__file__).resolve().parents[1]
# Where the shipped configs lie: beside the library in a clone, inside of it where it is installed.
FOLDER = next(
  (folder for folder in (_HERE.parent / "configs", _HERE / "configs") if (folder / "base.py").is_file()),
  _HERE / "configs",
)


class Rule(NamedTuple):
  """What a value must be, in addition to having the type of the key's default."""

  # Returns whether a value is allowed. Instead it may raise an InputError "reward: ...", which begins with the last
  # part of the key's name, or a TypeError, which counts as False.
  holds: Callable[[Any], bool]
  words: Callable[[], str]  # returns what a value must be, as the end of "wanted ..."; called only when it is shown
  on_page: bool = True  # whether help pages show the words; False where they say little, or need another room
  # The names of a user's own objects (`base.named`) in a value that the rule takes.
  own_names: Callable[[Any], Sequence[str]] = lambda value: ()


class Key(NamedTuple):
  """The declaration of a config key."""

  default: Any  # int, float, bool, str or tuple; values of the key must have its type
  rule: Rule
  meaning: str  # a phrase that says what the value is, with its unit and what special values stand for
  may_change: bool = False  # whether a run may be resumed with another value; else that is an InputError


class Group:
  """Holds keys and groups of keys as attributes, in the order of their declaration: `group.name = Key(...)`."""

  def __setattr__(self, name: str, member: Key | Group) -> None:
    """Declares a key or a group. Raises AttributeError for a name that is declared already."""
    if name in vars(self):
      raise AttributeError(f"{name} is declared twice")
    super().__setattr__(name, member)


def by_name(group: Group, prefix: str = "") -> dict[str, Key]:
  """Returns the keys of a group, and of the groups in it, by dotted name ("rl.optim.lr"), in the order of declaration.

  prefix: text that each name begins with, such as "rl.".
  """
  keys = {}
  for name, member in vars(group).items():
    if isinstance(member, Group):
      keys |= by_name(member, f"{prefix}{name}.")
    else:
      keys[prefix + name] = member
  return keys


def defaults(group: Group) -> ConfigDict:
  """Returns a new ConfigDict, not locked, of the default values of a group and of the groups in it."""
  from ml_collections import ConfigDict  # takes a while to load, and help pages need none

  config = ConfigDict()
  for name, member in vars(group).items():
    config[name] = defaults(member) if isinstance(member, Group) else member.default
  return config


@functools.cache
def declared() -> Mapping[str, Key]:
  """Returns all keys that configs/base.py declares, by dotted name ("rl.optim.lr"). It reads the file only once."""
  spec = importlib.util.spec_from_file_location("config_base", FOLDER / "base.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return by_name(module.c)


def _listed(options: tuple) -> str:
  """Returns the words of a rule for these options, as "one of a, b"; an empty string is written as ""."""
  return "one of " + ", ".join(str(option) or '""' for option in options)


def _look_up(place: str):
  """Imports and returns the object that "package.module:NAME" names."""
  module, _, name = place.partition(":")
  return getattr(importlib.import_module(module), name)


def rule(words: str, holds: Callable[[Any], bool]) -> Rule:
  """Returns a rule that allows the values for which `holds` returns True.

  words: what a value must be; they end the sentence "wanted ..." in errors and are shown on help pages.
  """
  return Rule(holds, lambda: words)


def no_rule(reason: str) -> Rule:
  """Returns a rule that allows every value of the default's type.

  reason: why no value is refused, for readers of configs/base.py; no page or error shows it.
  """
  return Rule(lambda value: True, lambda: reason, on_page=False)


def one_of(*options: str) -> Rule:
  """Returns a rule that allows only these strings, and lists them on help pages."""
  return rule(_listed(options), lambda value: value in options)


def one_of_table(*places: str, also: tuple = (), named_by: str = "") -> Rule:
  """Returns a rule that allows the keys, or entries, of tables in other rooms, and the values in `also`.

  places: the tables, each a dict or a sequence, as "package.module:NAME"; they are imported when a value is checked.
  Help pages can't look there, so the meaning of the key must list the names. named_by: a function that imports and
  checks an object of a user's own by its name (`base.named`), as "package.module:name"; "": only the tables' names.
  """

  def options() -> tuple:
    names = list(also)
    for place in places:
      names += _look_up(place)
    return tuple(names)

  def holds(value) -> bool:
    if named_by and named.is_name(value):
      _look_up(named_by)(value)
      return True
    return any(type(value) is type(option) and value == option for option in options())

  def words() -> str:
    return _listed(options()) + ("; or path.py:NAME or package.module:NAME" if named_by else "")

  def own_names(value) -> Sequence[str]:
    return (value,) if named_by and named.is_name(value) else ()

  return Rule(holds, words, on_page=False, own_names=own_names)


def parsed_by(place: str, own_names: str = "") -> Rule:
  """Returns a rule that allows the values that a function can be called with without an InputError.

  place: the function, as "package.module:name"; it is imported when a value is checked. Its errors must begin with the
  last part of the key's name, as "reward: ...". own_names: a function that returns the names of a user's own objects in
  a value; "": there are none.
  """

  def holds(value) -> bool:
    _look_up(place)(value)
    return True

  def names(value) -> Sequence[str]:
    return _look_up(own_names)(value) if own_names else ()

  return Rule(holds, lambda: f"what {place} reads", on_page=False, own_names=names)


def at_least(low: float, reason: str = "") -> Rule:
  """Returns a rule that allows numbers from `low` on, of its type: at_least(0.0) refuses the integer 1.

  reason: why no lower number is allowed; the rule's words end with it. "": they give none.
  """
  words = f"at least {low}: {reason}" if reason else f"at least {low}"
  return rule(words, lambda value: type(value) is type(low) and value >= low)


def above(low: float, reason: str = "") -> Rule:
  """Returns a rule that allows numbers above `low`. reason: why `low` is not allowed; the rule's words end with it."""
  words = f"above {low}: {reason}" if reason else f"above {low}"
  return rule(words, lambda value: value > low)


def each(item: Rule, empty: bool = False) -> Rule:
  """Returns a rule that allows tuples whose entries all follow the rule `item`. empty: allow the empty tuple too."""
  count = "any number" if empty else "one or more"
  return Rule(
    lambda value: (empty or len(value) > 0) and all(item.holds(entry) for entry in value),
    lambda: f"{count}, each {item.words()}",
    item.on_page,
    lambda value: [name for entry in value for name in item.own_names(entry)],
  )


def matching(pattern: str, words: str) -> Rule:
  """Returns a rule that allows strings which the regular expression `pattern` matches as a whole.

  words: what such a string is, as the end of "wanted ...".
  """
  return rule(words, lambda value: re.fullmatch(pattern, value) is not None)


def is_share(value: object) -> bool:
  """Returns whether a value of any type is a number from 0 to 1; True and False are none. For entries of tuples."""
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def is_text(value: object) -> bool:
  """Returns whether a value of any type is a string. For entries of tuples."""
  return isinstance(value, str)


def is_filled_text(value: object) -> bool:
  """Returns whether a value of any type is a string that is not empty. For entries of tuples."""
  return isinstance(value, str) and value != ""


def is_date_or_empty(value: str) -> bool:
  """Returns whether a string is empty or a date as YYYY-MM-DD."""
  if value == "":
    return True
  try:
    return datetime.date.fromisoformat(value).isoformat() == value
  except ValueError:
    return False


def tasks_in(source: str) -> list[str]:
  """Returns a name for the code of a user's own task that a source of problems or texts names, else []."""
  own = importlib.import_module("jaxrlvr.tasks.own")
  return [own.task(source).verify] if own.is_task(source) else []


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
