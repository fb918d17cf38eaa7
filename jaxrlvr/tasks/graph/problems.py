"""Generates problems of the study's two graph tasks from a seed, in five levels."""

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
  """Returns `count` different problems, as `gym.problems.problems` does, of the tasks that `kinds` names.

  Kinds of the built-in domain are ignored, as they are the default of the config; without others both tasks are used.
  Raises InputError for any other kind.
  """
  tasks = [kind for kind in kinds if kind not in KINDS]
  if not tasks:
    tasks = list(GRAPH_TASKS)
  unknown = sorted(set(tasks) - set(GRAPH_TASKS))
  if unknown:
    raise InputError(f"kinds: {unknown[0]!r} is no graph task; use {', '.join(GRAPH_TASKS)}")
  return gym.problems(seed, split, levels, count, tasks, system)
