"""RLVR under weak supervision, in JAX. `import jaxrlvr as jr` opens it to Python (docs/python.md).

`jr.config` makes a config, `jr.train`, `jr.evaluate`, `jr.diagnose` and `jr.plan` run a stage and return its `jr.Run`,
`jr.load_policy` reads a policy that generates and scores, and `jr.Trainer` trains step by step. Each is imported when
it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jaxrlvr.base.errors import InputError as InputError
  from jaxrlvr.config.files import from_python as config
  from jaxrlvr.door.policy import Policy as Policy
  from jaxrlvr.door.policy import load_policy as load_policy
  from jaxrlvr.door.runs import Run as Run
  from jaxrlvr.door.stages import diagnose as diagnose
  from jaxrlvr.door.stages import evaluate as evaluate
  from jaxrlvr.door.stages import plan as plan
  from jaxrlvr.door.stages import train as train
  from jaxrlvr.door.trainer import Trainer as Trainer

_HOMES = {
  "InputError": "base.errors",
  "Policy": "door.policy",
  "Run": "door.runs",
  "StorageError": "base.errors",
  "Trainer": "door.trainer",
  "TrainingStopped": "base.errors",
  "diagnose": "door.stages",
  "evaluate": "door.stages",
  "load_policy": "door.policy",
  "plan": "door.stages",
  "train": "door.stages",
}
__all__ = [*_HOMES, "config"]


def __getattr__(name: str):
  if name == "config":
    return importlib.import_module("jaxrlvr.config")  # the room of configs, which may be called
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
  return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
