"""Choosing problems to train on: a filter by how often the model solves them, and subsets spread over difficulties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrlvr.base.errors import InputError


def bins(solve_counts: Sequence[int], samples: int = 16) -> dict[int, np.ndarray]:
  """Returns problems by how often the model solves them: {n: indices of the problems solved n times, an int array}.

  The keys are 1, 2, ..., samples - 1; problems solved never or always are in no bin, and a bin may be empty.
  solve_counts: for each problem, how many of its `samples` samples were right. Raises InputError for a count that is no
  whole number from 0 to `samples`.
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
  """Returns the indices of `count` problems, spread over difficulties (paper, appendix B.2), in the order of choice.

  Takes in turn from each bin of `bins`, in which problems are solved equally often, a random problem that is not taken
  yet; an empty bin is passed over. Returns fewer where the bins hold fewer: problems solved never or always are not
  chosen. The order depends on counts and seed alone, so that a smaller subset is the beginning of a larger one.
  solve_counts, samples and errors are those of `bins`.
  """
  turns = []
  for number, members in bins(solve_counts, samples).items():
    order = np.random.default_rng([seed, number]).permutation(members)
    turns += [(turn, number, int(index)) for turn, index in enumerate(order)]
  return [index for _, _, index in sorted(turns)[:count]]
