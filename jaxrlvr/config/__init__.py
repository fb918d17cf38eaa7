"""Configs: keys with their defaults, rules and meanings, the files that build them, and every check.

A config file imports `base`, `words` and `set_value` from here; they are defined in `files` and `values`. Those modules
are imported when one of the names is first used, so that `jaxrlvr --help`, which needs only the names of the stages,
does not wait for ml_collections.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxrlvr.config.files import base as base
  from jaxrlvr.config.files import words as words
  from jaxrlvr.config.values import set_value as set_value

_HOMES = {"base": "files", "words": "files", "set_value": "values"}
__all__ = ["base", "set_value", "words"]


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
