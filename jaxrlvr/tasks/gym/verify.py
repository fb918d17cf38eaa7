"""Reasoning Gym tasks that can be graded without running a model's text and without paying for what isn't right.

Read in release 0.1.25: nine of its scorers evaluate the answer as Python, others pay for parts, substrings or `nan`.
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

# One answer is right: it is compared as text, the library is not asked.
EXACT = tuple(
  """acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
  course_schedule gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle
  maze modulo_grid number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations
  simple_geometry string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal""".split()
)
# Several answers are right: the library plays them through. What it gets to see is spelled out here. (Two more such
# tasks, graph_color and rush_hour, come without any answer, so that a problem of theirs has no label.)
PLAYED = {
  "cryptarithm": r"[A-Z]=[0-9](?:, ?[A-Z]=[0-9])*",
  "jugs": r"\[[a-zA-Z\",>\s-]*\]",
  "palindrome_generation": r"[A-Za-z]+",
  "shortest_path": r"[a-z]+(?: [a-z]+)*",
  "tower_of_hanoi": r"(?:Move disk [0-9]{1,2} from Peg [0-9]{1,2} to Peg [0-9]{1,2}(?:\n|$))+",
}


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer solves extra["entry"], a row of task extra["source_dataset"].

  A label that does not solve it is right only as it stands, character for character; so is any without the entry.
  """
  settled = quick(answer, label, extra)
  if settled is not None:
    return settled
  score, entry = _scorer(extra["source_dataset"]), extra["entry"]
  solved = all(score(text, entry) == 1 for text in (label.strip(), answer.strip()))
  return RIGHT if solved else WRONG


def quick(answer: str | None, label: str, extra: Mapping | None) -> Verdict | None:
  """What `grade` will say where that needs no library, else None; InputError where the task is not one of ours."""
  task = (extra or {}).get("source_dataset")
  if task not in EXACT and task not in PLAYED:
    raise InputError(f"Reasoning Gym task {task!r} can't be graded safely; use one of {', '.join((*EXACT, *PLAYED))}")
  answer = (legible(answer, MAX_GYM_ANSWER) or "").strip()
  if answer == label.strip() and answer:
    return RIGHT
  if not answer or task in PLAYED and not re.fullmatch(PLAYED[task], answer):
    return UNPARSEABLE
  if task in PLAYED and importlib.util.find_spec("reasoning_gym") is None:
    raise InputError(f"Reasoning Gym task {task!r} needs its library; pip install 'jaxrlvr[gym]'")
  return WRONG if task in EXACT or "entry" not in extra else None


def warm() -> None:
  """Imports the library, so that forked children inherit it."""
  for task in PLAYED:
    _scorer(task)


@functools.cache
def _scorer(task: str) -> Callable[[str, Mapping], float]:
  import reasoning_gym

  return reasoning_gym.create_dataset(task, size=1, seed=0).score_answer
