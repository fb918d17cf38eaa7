"""Lists of problems from wherever the config says, and the order in which RL takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.data import arithmetic, parquet
from jaxrlvr.types import InputError, Problem


def load(source: str, *, split: str, count: int, levels, kinds, seed: int, verifier: str) -> list[Problem]:
  """`count` problems of the embedded domain's split, or the first `count` of a parquet file of the study."""
  if source == "arithmetic":
    return arithmetic.problems(seed, split, levels, count, kinds)
  found = parquet.load(source, verifier)
  if len(found) < count:
    raise InputError(f"{source}: holds {len(found)} different problems, {count} were asked for; lower the count")
  return found[:count] if count else found


def batch(problems: Sequence[Problem], seed: int, step: int, size: int) -> tuple[list[Problem], np.ndarray]:
  """(problems of step 1, 2, ..., how often each came before in this batch).

  The list is gone through again and again, each time in another order: fewer problems than `size` are repeated
  uniformly. A pure function of its arguments, so a resumed run needs no cursor but its step.
  """
  first = (step - 1) * size
  picked = []
  for slot in range(first, first + size):
    epoch, place = divmod(slot, len(problems))
    if place == 0 or slot == first:
      order = np.random.default_rng([seed, epoch]).permutation(len(problems))
    picked.append(problems[order[place]])
  seen: dict[str, int] = {}
  occurrence = []
  for problem in picked:
    occurrence.append(seen.get(problem.id, 0))
    seen[problem.id] = occurrence[-1] + 1
  return picked, np.array(occurrence, np.int32)
