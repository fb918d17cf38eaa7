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
  """Returns `count` different problems of the graph tasks, in turn of each kind of the first level, of the second, ...

  `seed`: other seeds draw other problems; for one seed, a longer list begins with the shorter ones. `split`: "train" or
  "heldout", which never share a question, whatever the seeds. `levels`: at least one of the difficulties 1 to 5.
  `kinds`: some of "quantum_lock" and "largest_island"; (): both. The kinds of the built-in domain (chain, expression,
  large), which the config has by default, are ignored. `system`: text of the system message, which comes before the
  user's; "": one that asks for reasoning and an answer in \\boxed{}.
  Each problem's verifier is its kind; label and truth are Reasoning Gym's answer, such as `A → B → A` or `16`. extra
  has level, kind, and the library's difficulty, source_dataset and source_index; for a lock also buttons,
  initial_state, initial_value, target_value and solution_path, as `verify.quantum_lock` takes them; for an island also
  grid (rows of 0 and 1) and solution (an integer).
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
