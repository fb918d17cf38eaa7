"""Problems of the study's two graph tasks from a seed, in five levels."""

from __future__ import annotations

from collections.abc import Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.arithmetic.problems import KINDS
from jaxrlvr.tasks.graph.verify import GRAPH_TASKS
from jaxrlvr.tasks.gym import problems as gym


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str = ""
) -> list[Problem]:
  """Returns `count` problems as `gym.problems` does; kinds that are the embedded domain's stand for both tasks."""
  tasks = tuple(kind for kind in kinds if kind not in KINDS) or tuple(GRAPH_TASKS)
  if unknown := sorted(set(tasks) - set(GRAPH_TASKS)):
    raise InputError(f"kinds: {unknown[0]!r} is no graph task; use {', '.join(GRAPH_TASKS)}")
  return gym.problems(seed, split, levels, count, tasks, system)
