"""Functions that were passed as reward= or verifier=: gives them names, and writes these into a copy of the config."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from jaxrlvr.base import escape, named
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import checks, manual
from jaxrlvr.data import problems
from jaxrlvr.rewards import expression
from jaxrlvr.rewards.table import REWARDS

# A function, or functions by the name that `rl.reward` calls each; None: none.
OwnRewards: TypeAlias = Callable[..., Any] | Mapping[str, Callable[..., Any]] | None
OwnVerifier: TypeAlias = Callable[..., Any] | None


@contextlib.contextmanager
def configured(
  config: ConfigDict, stage: str, reward: OwnRewards = None, verifier: OwnVerifier = None
) -> Iterator[ConfigDict]:
  """Yields a locked copy of a config that names these functions, checked for a stage; the names are known meanwhile.

  A function that can be imported is named package.module:NAME, any other given:NAME. reward: takes the place of
  `rl.reward`, or of its name in that expression. verifier: is set as `problems.verifier` and `heldout.verifier`, where
  these problems come from files. Raises InputError for a wrong config, and for a function that has no effect.
  """
  if not isinstance(config, ConfigDict):
    raise InputError(f"config is {type(config).__name__}; make one, as jr.config('demo')")
  copy = ConfigDict(config.to_dict())
  own: dict[str, Any] = {}
  if reward is not None:
    own |= _name_rewards(copy, stage, reward)
  if verifier is not None:
    own |= _name_verifier(copy, stage, verifier, own)
  copy.lock()
  if own and stage == "grid":
    raise InputError(
      f"{next(iter(own))}: was passed from Python, which a grid's processes don't know; write it into a file, and name "
      "it as path.py:NAME"
    )
  _quiet_libraries()
  with named.given(own):
    checks.check(copy, stage)
    yield copy


def _quiet_libraries() -> None:
  """Keeps libraries from logging what the errors of this one say in a line, unless the user has set their levels."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  for name in escape.NOISY:
    if logging.getLogger(name).level == logging.NOTSET:
      logging.getLogger(name).setLevel(logging.CRITICAL)


def _name_rewards(config: ConfigDict, stage: str, reward: OwnRewards) -> dict[str, Any]:
  """Writes the names of rewards into config.rl.reward; returns those functions that need to be given, by name."""
  _check_is_read(stage, config, "rl.reward", "reward")
  if isinstance(reward, Mapping):
    functions = {name: _checked(f"reward[{name!r}]", function) for name, function in reward.items()}
  else:
    functions = {_own_name(reward, "reward"): _checked("reward", reward)}
  for name in functions:
    if name in REWARDS or not name.isidentifier():
      problem = "is a reward of the table" if name in REWARDS else "is no word"
      raise InputError(f"reward {name!r}: {problem}; pass yours under another name, as reward={{'mine': function}}")
  names = {name: named.name_of(function, name) for name, function in functions.items()}
  text, used = expression.with_own_names(config.rl.reward, names)
  strangers = expression.unknown_words(config.rl.reward)
  if strangers and not set(strangers) <= set(names):
    raise InputError(
      f"config.rl.reward = {config.rl.reward!r} names {strangers[0]!r}, which is neither a reward of the table nor "
      f"passed as reward= ({', '.join(names)}); give it under that name, or correct the expression"
    )
  if not used and len(names) == 1:
    (text,) = names.values()
  elif len(used) < len(names):
    unused = next(name for name in names if name not in used)
    raise InputError(
      f"reward {unused!r}: config.rl.reward = {config.rl.reward!r} does not name it; write how all are combined, as "
      f"{' + '.join(names)}"
    )
  config.rl.reward = text
  return {name: function for name, function in functions.items() if _is_given(names[name])}


def _name_verifier(config: ConfigDict, stage: str, verifier: Callable, rewards: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the name of a verifier into the groups of problems from files; returns the function if it must be given.

  rewards: functions that are given already, by name.
  """
  name = _own_name(_checked("verifier", verifier), "verifier")
  if rewards.get(name, verifier) is not verifier:
    raise InputError(f"reward and verifier are two functions of one name, {name}; rename one")
  text = named.name_of(verifier, name)
  keys_read = manual.keys_read(stage, config)
  groups = []
  for group in ("problems", "heldout"):
    source = config[group].source
    if f"{group}.verifier" in keys_read and source and not problems.is_generated(source):
      groups.append(group)
  if not groups:
    raise InputError(
      f"verifier={name}: has no effect: the stage {stage} grades no problems of a file here; name a file as "
      "config.problems.source or config.heldout.source"
    )
  for group in groups:
    config[group].verifier = text
  return {name: verifier} if _is_given(text) else {}


def _check_is_read(stage: str, config: ConfigDict, key: str, argument: str) -> None:
  """Raises InputError where a stage does not read the key that an argument sets. A chain's links read all keys."""
  if key not in manual.keys_read(stage, config) and stage not in ("chain", "grid"):
    raise InputError(f"{argument}=: has no effect, as the stage {stage} reads no config.{key}; leave it out")


def _checked(argument: str, function: Any) -> Callable[..., Any]:
  """Returns the function. Raises InputError where it is none."""
  if not callable(function):
    several = ', or several as {"name": function}' if isinstance(function, (list, tuple)) else ""
    raise InputError(f"{argument} is {type(function).__name__}, no function; pass a function{several}")
  return function


def _own_name(function: Any, default: str) -> str:
  """Returns a function's own name; `default` where it has none, as a lambda or a partial function."""
  name = getattr(function, "__name__", "")
  return name if name.isidentifier() else default


def _is_given(name: str) -> bool:
  """Returns whether a name stands for an object that must be passed from Python."""
  return named.place_of(name).module == named.GIVEN
