"""Grades answers to Reasoning Gym tasks, without running them and without paying for answers that aren't right.

Only tasks of EXACT and PLAYED are graded, as read in release 0.1.25. Of the library's other scorers nine evaluate the
answer as Python, and others pay for parts of an answer, for substrings, or for `nan`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

MAX_GYM_ANSWER = 4096  # characters; a grid or a list of moves

# Tasks with one right answer, which is compared as text, without the library.
EXACT = tuple(
  """acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
  course_schedule gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle
  maze modulo_grid number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations
  simple_geometry string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal""".split()
)
# Tasks with several right answers, which the library plays through; it sees only answers that match these patterns.
# (Two more such tasks, graph_color and rush_hour, come without any answer, so their problems have no label.)
PLAYED = {
  "cryptarithm": r"[A-Z]=[0-9](?:, ?[A-Z]=[0-9])*",
  "jugs": r"\[[a-zA-Z\",>\s-]*\]",
  "palindrome_generation": r"[A-Za-z]+",
  "shortest_path": r"[a-z]+(?: [a-z]+)*",
  "tower_of_hanoi": r"(?:Move disk [0-9]{1,2} from Peg [0-9]{1,2} to Peg [0-9]{1,2}(?:\n|$))+",
}


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Returns RIGHT iff the answer solves the problem in `extra`.

  Its keys: source_dataset, the task; entry, the problem as the library made it. A label that does not solve the
  problem is matched by its very text alone; so is any label if there is no entry. Raises InputError as `quick` does.
  """
  settled = quick(answer, label, extra)
  if settled is not None:
    return settled
  score, entry = _scorer(extra["source_dataset"]), extra["entry"]
  label_solves = score(label.strip(), entry) == 1
  if label_solves and score(answer.strip(), entry) == 1:
    return RIGHT
  return WRONG


def quick(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """Returns the verdict of `grade` if it needs no library, else None. Safe on any text.

  Raises InputError for a task that is not in EXACT or PLAYED, and for one of PLAYED without the library.
  """
  task = (extra or {}).get("source_dataset")
  if task not in EXACT and task not in PLAYED:
    raise InputError(f"Reasoning Gym task {task!r} can't be graded safely; use one of {', '.join((*EXACT, *PLAYED))}")
  answer = (legible(answer, MAX_GYM_ANSWER) or "").strip()
  if not answer:
    return UNPARSEABLE
  if answer == label.strip():
    return RIGHT
  if task in EXACT:
    return WRONG
  if not re.fullmatch(PLAYED[task], answer):
    return UNPARSEABLE
  if importlib.util.find_spec("reasoning_gym") is None:
    raise InputError(f"Reasoning Gym task {task!r} needs its library; pip install 'jaxrlvr[gym]'")
  return WRONG if "entry" not in extra else None


def warm() -> None:
  """Imports the library and its scorers, so that forked children inherit them."""
  for task in PLAYED:
    _scorer(task)


@functools.cache
def _scorer(task: str) -> Callable[[str, Mapping], float]:
  """Returns the library's score of (answer, entry) for a task."""
  import reasoning_gym

  return reasoning_gym.create_dataset(task, size=1, seed=0).score_answer
