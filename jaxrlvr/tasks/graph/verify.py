"""Exact scorers of the two graph tasks; they take the place of Reasoning Gym's, which pay for substrings and prose."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

# Keys: the task. Keys of Problem.extra without which its verifier can't judge.
GRAPH_TASKS = {
  "largest_island": (),
  "quantum_lock": ("buttons", "initial_state", "initial_value", "target_value"),
}
MAX_PRESSES = 64  # the study's longest solution has 15; bounds the numbers that the simulation can reach
_OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}


def largest_island(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer is the label, character for character."""
  answer = legible(answer)
  return UNPARSEABLE if answer is None else RIGHT if answer == label else WRONG


def quantum_lock(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer's presses are the label's, or, for a label that opens the lock, as many and open it too."""
  answer, wanted = legible(answer), _presses(label)
  if answer is None or wanted and not _presses(answer):
    return UNPARSEABLE
  if not wanted:  # a wrong label that names no button can only be repeated
    return RIGHT if answer == label else WRONG
  return RIGHT if _same_or_as_good(_presses(answer), wanted, extra or {}) else WRONG


def _same_or_as_good(ours: str, wanted: str, lock: Mapping) -> bool:
  if ours == wanted:
    return True
  if len(ours) != len(wanted) or len(ours) > MAX_PRESSES or not lock.get("buttons"):
    return False
  genuine = len(wanted) == len(lock.get("solution_path") or wanted) and _opens(wanted, lock)
  return genuine and _opens(ours, lock)


def _presses(text: str) -> str:
  """The letters A, B, C of any case, also those inside words: the study's reading (`\\to` adds none, `Buttons` a B)."""
  return "".join(letter for letter in text.upper() if letter in "ABC")


def _opens(presses: str, lock: Mapping) -> bool:
  """Whether the presses lead to the target; one that is dead under the light does not toggle it (as in the study)."""
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
