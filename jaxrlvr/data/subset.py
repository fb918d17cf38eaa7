"""Which problems to train on: a filter by how often the model solves them, and subsets spread over that difficulty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.errors import InputError


def bins(solve_counts: Sequence[int], samples: int = 16) -> dict[int, np.ndarray]:
  """Indices of the problems solved 1, 2, ..., samples - 1 times; those solved never or always are in none."""
  counts = np.asarray(solve_counts)
  wrong = np.flatnonzero((counts < 0) | (counts > samples) | (counts != np.round(counts)))
  if len(wrong):
    found = f"problem {wrong[0]} is solved {counts[wrong[0]]} times"
    raise InputError(f"{found}, wanted a whole number from 0 to {samples}; give the number of samples that were drawn")
  return {count: np.flatnonzero(counts == count) for count in range(1, samples)}


def round_robin(solve_counts: Sequence[int], seed: int, count: int, samples: int = 16) -> list[int]:
  """Up to `count` indices: bin after bin in turn, from each a random problem not yet taken (paper, appendix B.2).

  For one seed there is one order: a smaller subset is the beginning of a larger one.
  """
  turns = []
  for number, members in bins(solve_counts, samples).items():
    order = np.random.default_rng([seed, number]).permutation(members)
    turns += [(turn, number, int(index)) for turn, index in enumerate(order)]
  return [index for _, _, index in sorted(turns)[:count]]
