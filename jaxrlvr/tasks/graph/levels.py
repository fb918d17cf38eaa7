"""What Reasoning Gym's generators of the two graph tasks are set to at each level."""

from __future__ import annotations

from jaxrlvr.tasks.splits import LEVELS

_ISLAND_SETTINGS = (
  "min_rows",
  "max_rows",
  "min_cols",
  "max_cols",
  "min_num_islands",
  "max_num_islands",
  "min_island_size",
  "max_island_size",
)
_ISLANDS = (  # those in the study's files
  (3, 5, 3, 5, 2, 2, 3, 5),
  (5, 10, 5, 10, 2, 5, 5, 10),
  (10, 20, 10, 20, 2, 10, 5, 15),
  (20, 50, 20, 50, 2, 20, 5, 20),
  (50, 100, 50, 100, 2, 20, 5, 25),
)

# Keys: the task. One row of settings a level. A lock of difficulty d is drawn from 1..d; d = 1, 3, 5, 7, 9 explains how
# often each occurs in the study's files (2 as often as 3, 4 as 5, ..., none above 9).
GENERATOR_SETTINGS: dict[str, tuple[dict[str, int], ...]] = {
  "quantum_lock": tuple({"difficulty": 2 * level - 1} for level in LEVELS),
  "largest_island": tuple(dict(zip(_ISLAND_SETTINGS, row, strict=True)) for row in _ISLANDS),
}
