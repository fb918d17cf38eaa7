"""Grades answers to the two graph tasks exactly. Reasoning Gym's own scorers pay for substrings and prose."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

# Keys: the task. Values: keys of Problem.extra without which its verifier can't grade.
GRAPH_TASKS = {
  "largest_island": (),
  "quantum_lock": ("buttons", "initial_state", "initial_value", "target_value"),
}
_MAX_PRESSES = 64  # the study's longest solution has 15; bounds the numbers that the simulation can reach
_OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}


def largest_island(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a largest_island problem; this is the verifier of that name.

  `answer`: what was read in the response, None if nothing was. `label`: the size of the largest island in digits.
  `extra`: Problem.extra, which is not read.
  Returns RIGHT iff the answer is the label, character for character (so " 16" is not "16"), UNPARSEABLE if it is None,
  blank or over 512 characters long, and WRONG otherwise.
  """
  answer = legible(answer)
  if answer is None:
    return UNPARSEABLE
  return RIGHT if answer == label else WRONG


def quantum_lock(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a quantum_lock problem; this is the verifier of that name.

  `answer`: what was read in the response, None if nothing was. Both it and `label` name the buttons to press, such as
  `A → B → A`; only the letters A, B and C are read, in any case. `extra`: Problem.extra with the lock: buttons (a list
  of objects with name, type "add", "subtract" or "multiply", value, and active_state "red", "green" or "any"),
  initial_state ("red" or "green"), initial_value, target_value, and perhaps solution_path, a list of buttons whose
  length the label must have.
  Returns RIGHT iff the answer presses the label's buttons in their order, or as many other buttons (at most 64) that
  open the lock as well; others count only if the label opens the lock. Without `extra` only the label's buttons are
  right.
  Returns UNPARSEABLE if the answer is None, blank, over 512 characters long, or names no button although the label
  does, and WRONG otherwise.
  """
  answer, label_presses = legible(answer), _presses(label)
  if answer is None:
    return UNPARSEABLE
  if not label_presses:  # only the very text of such a label, which is wrong, matches it
    return RIGHT if answer == label else WRONG
  presses = _presses(answer)
  if not presses:
    return UNPARSEABLE
  if presses == label_presses or _is_as_good(presses, label_presses, extra or {}):
    return RIGHT
  return WRONG


def _is_as_good(presses: str, label_presses: str, lock: Mapping) -> bool:
  """Returns whether both open the lock with as many presses, as many as its solution has."""
  if len(presses) != len(label_presses) or len(presses) > _MAX_PRESSES or not lock.get("buttons"):
    return False
  solution = lock.get("solution_path") or label_presses
  if len(label_presses) != len(solution):
    return False
  return _opens(label_presses, lock) and _opens(presses, lock)


def _presses(text: str) -> str:
  """Returns the letters A, B, C of any case, also those inside words.

  The study reads answers so: `\\to` adds none, `Buttons` a B.
  """
  return "".join(letter for letter in text.upper() if letter in "ABC")


def _opens(presses: str, lock: Mapping) -> bool:
  """Returns whether the presses lead to the lock's target value.

  A press toggles the light. As in the study, a button that the light makes inactive does nothing, not even that.
  """
  value, light = int(lock["initial_value"]), lock["initial_state"]
  buttons = {button["name"]: button for button in lock["buttons"]}
  for press in presses:
    if press not in buttons:
      return False
    button = buttons[press]
    if button["active_state"] in ("any", light):
      value = _OPERATIONS[button["type"]](value, int(button["value"]))
      light = "green" if light == "red" else "red"
  return value == int(lock["target_value"])
