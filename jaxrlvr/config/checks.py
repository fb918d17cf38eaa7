"""Checks of a config that need no device, before anything compiles: each key's own rule, and what several keys say."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import links, manual, pairs, values
from jaxrlvr.config.rules import Rule, declared


def check(config: ConfigDict, stage: str | None = None, overridden: Collection[str] = ()) -> None:
  """Checks a config for a stage before anything compiles.

  Raises InputError that names the key where a key is unknown or missing, a value has the wrong type or breaks its rule,
  several values can't go together, or a key has no effect beside the others. Types are checked for all keys, everything
  else only for the keys that `stage` reads (`manual.keys_read`; None: all keys). The links of a chain are checked too,
  each for its own stage. `overridden`: keys that were set on the command line.
  """
  unexpected = set(values.names(config)) ^ set(declared())
  if unexpected:
    name = min(unexpected)
    problem = "missing" if name in declared() else "unknown"
    raise InputError(f"config.{name}: {problem}; see configs/base.py")
  keys_of_stage = manual.keys_read(stage, config)
  for name, key in declared().items():
    value = values.typed(name, values.get(config, name), key.default)
    if name in keys_of_stage:
      _check_value(name, value, key.rule)
  for pair in pairs.IMPOSSIBLE:
    if keys_of_stage.issuperset(pair.keys) and pair.when(config):
      raise InputError(pair.message.format(c=config))
  for group in ("heldout", "problems"):
    if f"{group}.source" in keys_of_stage:
      pairs.check_effects(config, group, overridden)
  if "chain" in keys_of_stage:
    for link in config.chain:
      links.check_link(link)
      check(values.changed(config, link.get("set", {})), link.get("stage", ""))


def _check_value(name: str, value, rule: Rule) -> None:
  """Raises InputError where the value of the key `name` breaks its rule, with the option it may stand for."""
  try:
    if rule.holds(value):
      return
  except TypeError:  # the entries of a tuple may have any type, also one that the rule can't compare
    pass
  except InputError as error:
    group = name[: name.rfind(".") + 1]
    raise InputError(f"config.{group}{error}") from None
  options = rule.words().replace(",", "").split()
  similar = difflib.get_close_matches(value, options, 1) if isinstance(value, str) else []
  hint = f"; did you mean {similar[0]!r}?" if similar else ""
  raise InputError(f"config.{name} = {repr(value)[:200]}: wanted {rule.words()}{hint}")
