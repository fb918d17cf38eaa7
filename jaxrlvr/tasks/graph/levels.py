"""Lists the settings of Reasoning Gym's generators of the two graph tasks, a row for each of the five levels."""

from __future__ import annotations


def _island(sides: tuple[int, int], islands: tuple[int, int], sizes: tuple[int, int]) -> dict[str, int]:
  """Returns settings of largest_island from (minimum, maximum): of both sides of the grid, and of its islands."""
  return {
    "min_rows": sides[0],
    "max_rows": sides[1],
    "min_cols": sides[0],
    "max_cols": sides[1],
    "min_num_islands": islands[0],
    "max_num_islands": islands[1],
    "min_island_size": sizes[0],
    "max_island_size": sizes[1],
  }


# Keys: the task. A row holds the keyword arguments of reasoning_gym.create_dataset; that of level n has index n - 1.
GENERATOR_SETTINGS: dict[str, tuple[dict[str, int], ...]] = {
  # A lock of difficulty d is drawn from 1..d. The difficulties 1, 3, 5, 7, 9 explain how often each occurs in the
  # study's files: 2 as often as 3, 4 as often as 5, and so on, and none above 9.
  "quantum_lock": (
    {"difficulty": 1},
    {"difficulty": 3},
    {"difficulty": 5},
    {"difficulty": 7},
    {"difficulty": 9},
  ),
  "largest_island": (  # as in the study's files
    _island(sides=(3, 5), islands=(2, 2), sizes=(3, 5)),
    _island(sides=(5, 10), islands=(2, 5), sizes=(5, 10)),
    _island(sides=(10, 20), islands=(2, 10), sizes=(5, 15)),
    _island(sides=(20, 50), islands=(2, 20), sizes=(5, 20)),
    _island(sides=(50, 100), islands=(2, 20), sizes=(5, 25)),
  ),
}
