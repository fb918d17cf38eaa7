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
  """Returns `count` different problems of the graph tasks, with levels and kinds taken in turn.

  `seed`: other seeds draw other problems; for one seed, a longer list begins with the shorter ones. `split`: "train" or
  "heldout", which never share a question, whatever the seeds. `levels`: difficulties from 1 to 5. `kinds`: some of
  "quantum_lock" and "largest_island". The kinds of the built-in domain (chain, expression, large) are ignored, as they
  are the default of the config; without others both tasks are used. `system`: text of the system message; "": a
  default that asks for reasoning and an answer in \\boxed{}.
  Each problem's verifier is its kind; label and truth are both Reasoning Gym's answer; extra holds level, kind, and
  what the library says of the problem, such as the buttons of a lock.
  Raises InputError for an unknown split, level or kind, if Reasoning Gym is not installed, and if there are too few
  problems.
  """
  tasks = [kind for kind in kinds if kind not in KINDS]
  if not tasks:
    tasks = list(GRAPH_TASKS)
  unknown = sorted(set(tasks) - set(GRAPH_TASKS))
  if unknown:
    raise InputError(f"kinds: {unknown[0]!r} is no graph task; use {', '.join(GRAPH_TASKS)}")
  return gym.problems(seed, split, levels, count, tasks, system)
