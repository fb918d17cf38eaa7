"""Grades answers to Reasoning Gym tasks, without running them and without paying for answers that aren't right.

Only tasks of EXACT, which have one right answer, and of PLAYED, which have several, are graded. The lists were made by
reading the scorers of release 0.1.25: of the others, nine evaluate the answer as Python, and some pay for parts of an
answer, for substrings, or for `nan`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

_MAX_ANSWER = 4096  # characters; a grid or a list of moves

# Tasks with one right answer, which is compared as text, without the library.
EXACT = tuple(
  """acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes
  course_schedule gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle
  maze modulo_grid number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations
  simple_geometry string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal""".split()
)
# Tasks with several right answers, which the library plays through, with the pattern that an answer must match before
# the library sees it.
# (Two more such tasks, graph_color and rush_hour, come without any answer, so their problems have no label.)
PLAYED = {
  "cryptarithm": r"[A-Z]=[0-9](?:, ?[A-Z]=[0-9])*",
  "jugs": r"\[[a-zA-Z\",>\s-]*\]",
  "palindrome_generation": r"[A-Za-z]+",
  "shortest_path": r"[a-z]+(?: [a-z]+)*",
  "tower_of_hanoi": r"(?:Move disk [0-9]{1,2} from Peg [0-9]{1,2} to Peg [0-9]{1,2}(?:\n|$))+",
}


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a Reasoning Gym problem; this is the verifier "reasoning_gym".

  `answer`: what was read in the response, None if nothing was. `label`: the answer to agree with. `extra`:
  Problem.extra with source_dataset (the task) and entry (the library's question, answer and metadata).
  Returns RIGHT iff the answer has the label's text or, for a task of PLAYED, solves the problem in entry. If the label
  does not solve the problem, or there is no entry, only the label's text is right. White space around both is ignored.
  Returns UNPARSEABLE if the answer is None, blank, over 4096 characters long, or has not the form of an answer to its
  task of PLAYED, and WRONG otherwise.
  Raises InputError for a task that is neither in EXACT nor in PLAYED, and if a task of PLAYED must be played through
  but the library is not installed. May run long on hostile text, so it must run in a worker process (grading.service).
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
  """Returns the verdict of `grade`, which takes the same arguments, if it needs no library, else None.

  None is returned only for tasks of PLAYED, for an answer of the right form that must be played through. Safe on any
  text. Raises InputError for a task that is neither in EXACT nor in PLAYED, and if an answer must be played through but
  the library is not installed.
  """
  task = (extra or {}).get("source_dataset")
  if task not in EXACT and task not in PLAYED:
    raise InputError(f"Reasoning Gym task {task!r} can't be graded safely; use one of {', '.join((*EXACT, *PLAYED))}")
  answer = (legible(answer, _MAX_ANSWER) or "").strip()
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
  """Imports Reasoning Gym and creates the scorers of all tasks of PLAYED, so that forked children inherit them.

  Raises ImportError if the library is not installed.
  """
  for task in PLAYED:
    _scorer(task)


@functools.cache
def _scorer(task: str) -> Callable[[str, Mapping], float]:
  """Returns the library's score of (answer, entry) for a task."""
  import reasoning_gym

  return reasoning_gym.create_dataset(task, size=1, seed=0).score_answer
