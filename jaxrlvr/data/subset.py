"""Choosing problems to train on: a filter by how often the model solves them, and subsets spread over difficulties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.errors import InputError


def bins(solve_counts: Sequence[int], samples: int = 16) -> dict[int, np.ndarray]:
  """Returns the indices of the problems solved n times, an integer array for each n in 1, 2, ..., samples - 1, by n.

  Problems solved never or always are in no bin. solve_counts: how many of `samples` samples solve each problem. Raises
  InputError for a count that is no whole number from 0 to `samples`.
  """
  counts = np.asarray(solve_counts)
  impossible = np.flatnonzero((counts < 0) | (counts > samples) | (counts != np.round(counts)))
  if len(impossible):
    first = impossible[0]
    raise InputError(
      f"problem {first} is solved {counts[first]} times, wanted a whole number from 0 to {samples}; give the number of "
      "samples that were drawn"
    )
  return {count: np.flatnonzero(counts == count) for count in range(1, samples)}


def round_robin(solve_counts: Sequence[int], seed: int, count: int, samples: int = 16) -> list[int]:
  """Returns the indices of up to `count` problems, spread over the `bins` (paper, appendix B.2).

  Takes a random new problem from each bin in turn. The order depends on the seed alone, so a smaller subset is the
  beginning of a larger one.
  """
  turns = []
  for number, members in bins(solve_counts, samples).items():
    order = np.random.default_rng([seed, number]).permutation(members)
    turns += [(turn, number, int(index)) for turn, index in enumerate(order)]
  return [index for _, _, index in sorted(turns)[:count]]
