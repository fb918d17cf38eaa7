"""Checks of a config that need no device, before anything compiles: of each key alone, and of several keys together."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import links, manual, pairs, values
from jaxrlvr.config.rules import Rule, declared


def check(config: ConfigDict, stage: str | None = None, overridden: Collection[str] = ()) -> None:
  """Raises InputError, which names the key and the cure, for the first mistake in a config.

  A mistake is a key that configs/base.py does not declare or that is missing, a value of the wrong type or against its
  key's rule, values that can't go together, and a key that has no effect beside the others. Types are checked for all
  keys, everything else only for keys that the stage reads.

  stage: a name such as "rl"; None, or a name that is no stage, checks all keys. For the stages `chain` and `grid` the
  config of each link in `config.chain` is checked too, for the stage of that link.
  overridden: dotted names of the keys that were set on the command line, such as "rl.steps". Some keys without effect
  are mistakes only there (`pairs.check_effects`).
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
  pairs.check_combinations(config, keys_of_stage)
  for group in ("heldout", "problems"):
    if f"{group}.source" in keys_of_stage:
      pairs.check_effects(config, group, overridden)
  if "chain" in keys_of_stage:
    for link in config.chain:
      links.check_link(link)
      check(values.changed(config, link.get("set", {})), link.get("stage", ""))


def _check_value(name: str, value, rule: Rule) -> None:
  """Raises InputError where the value of the key `name` breaks its rule; the message names a similar option, if any."""
  try:
    if rule.holds(value):
      return
  except TypeError:  # the entries of a tuple may have any type, also one that the rule can't compare
    pass
  except InputError as error:
    group, _, last_part = name.rpartition(".")
    if str(error).startswith(last_part):
      raise InputError(f"config.{group + '.' if group else ''}{error}") from None
    raise InputError(f"config.{name}: {error}") from None
  options = rule.words().replace(",", "").split()
  similar = difflib.get_close_matches(value, options, 1) if isinstance(value, str) else []
  hint = f"; did you mean {similar[0]!r}?" if similar else ""
  raise InputError(f"config.{name} = {repr(value)[:200]}: wanted {rule.words()}{hint}")
