"""Configs: keys with their defaults, rules and meanings, the files that build them, and every check.

A config file imports `base`, `words` and `set_value` from here; they are defined in `files` and `values`. Those modules
are imported when one of the names is first used, so that `jaxrlvr --help`, which needs only the names of the stages,
does not wait for ml_collections.

The module may be called: `jaxrlvr.config("demo")` is `files.from_python("demo")`, as `jr.config` is both this room and
the function of the Python door.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jaxrlvr.config.files import base as base
  from jaxrlvr.config.files import words as words
  from jaxrlvr.config.values import set_value as set_value

_HOMES = {"base": "files", "words": "files", "set_value": "values"}
__all__ = ["base", "set_value", "words"]


class _Callable(ModuleType):
  """A module that makes a config when it is called."""

  def __call__(self, *args: Any, **changes: Any):
    """Returns what `files.from_python` makes of the same arguments."""
    return importlib.import_module(f"{__name__}.files").from_python(*args, **changes)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str):
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
