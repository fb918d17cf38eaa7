"""Choosing problems to train on: a filter by how often the model solves them, and subsets spread over difficulties."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.data.columns import Derived
from jaxrlvr.data.files import BadCell


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


def solve_counts(solved: str, samples: str, measure: str) -> Derived:
  """Returns what puts `solved` and `samples`, as `jaxrlvr filter` writes them, into the `extra` of a set's problems.

  solved: the column that says how often a problem was solved. samples: the number of samples that each problem was
  given, as text, or the column that holds it. measure: what the column `solved` holds, "solved" (how many samples were
  right), "failed" (how many were wrong) or "rate" (the share that was right, from 0 to 1). A rate becomes the nearest
  count, but one above 0 and below 1 never all or no samples. Cells may be numbers or their text. A cell that is
  missing, negative or too large is a BadCell.
  """
  is_number = samples.isdecimal()

  def compute(cells: Sequence[object]) -> Mapping[str, int]:
    drawn = int(samples) if is_number else _whole(samples, cells[1], 2, math.inf, "a whole number from 2")
    if measure == "rate":
      rate = _number(cells[0])
      if rate is None or not 0 <= rate <= 1:
        raise BadCell(solved, cells[0], "a share from 0 to 1")
      count = round(rate * drawn)
      if 0 < rate < 1:
        count = min(max(count, 1), drawn - 1)
    else:
      count = _whole(solved, cells[0], 0, drawn, f"a whole number from 0 to {drawn}")
      if measure == "failed":
        count = drawn - count
    return {"solved": count, "samples": drawn}

  return Derived((solved,) if is_number else (solved, samples), compute)


def _number(cell: object) -> float | None:
  """Returns a cell that is a number or the text of one, else None."""
  try:
    return float(cell) if isinstance(cell, (int, float, str)) and not isinstance(cell, bool) else None
  except ValueError:
    return None


def _whole(column: str, cell: object, low: float, high: float, expected: str) -> int:
  """Returns a cell that holds a whole number from `low` to `high`. Raises BadCell for another."""
  number = _number(cell)
  if number is None or not low <= number <= high or number != int(number):
    raise BadCell(column, cell, expected)
  return int(number)
