"""Checks of a config that need no device, before anything compiles: each key's own rule, and what several keys say."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import links, manual, pairs, values
from jaxrlvr.config.keys import Rule, declared


def check(config: ConfigDict, stage: str | None = None, overridden: Collection[str] = ()) -> None:
  """Raises InputError, naming the key, for a wrong type, a value out of range, an impossible pair or a key without
  effect.

  Types are checked of all keys; the rest only of keys that the stage reads (`manual.keys_read`), or of all where none
  is named. `overridden`: keys that were set on the command line.
  """
  extra = set(values.names(config)) ^ set(declared())
  if extra:
    raise InputError(
      f"config.{min(extra)}: {'missing' if min(extra) in declared() else 'unknown'}; see configs/base.py"
    )
  read = manual.keys_read(stage, config)
  for name, key in declared().items():
    value = values.typed(name, values.get(config, name), key.default)
    if name in read:
      _check_value(name, value, key.rule)
  for pair in pairs.IMPOSSIBLE:
    if read.issuperset(pair.keys) and pair.when(config):
      raise InputError(pair.message.format(c=config))
  for group in ("heldout", "problems"):
    if f"{group}.source" in read:
      pairs.check_effects(config, group, overridden)
  if "chain" in read:
    for link in config.chain:
      links.check_link(link)
      check(values.changed(config, link.get("set", {})), link.get("stage", ""))


def _check_value(name: str, value, rule: Rule) -> None:
  try:
    if rule.holds(value):
      return
  except TypeError:  # of entries of a tuple, which may have any type
    pass
  except InputError as error:
    group = name[: name.rfind(".") + 1]
    raise InputError(f"config.{group}{error}") from None
  options = rule.words().replace(",", "").split()
  near = difflib.get_close_matches(value, options, 1) if isinstance(value, str) else []
  hint = f"; did you mean {near[0]!r}?" if near else ""
  raise InputError(f"config.{name} = {repr(value)[:200]}: wanted {rule.words()}{hint}")
