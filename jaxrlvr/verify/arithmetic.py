"""Exact judge of the embedded domain: is the answer right, and does the trace really lead to it?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.text.answer import OPEN, Parsed
from jaxrlvr.types import Verdict
from jaxrlvr.verify.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

_INTEGER = re.compile(r"(?!.{21})[+-]?[0-9]+")
_STEP = re.compile(r"([0-9]{1,6})([+*-])([0-9]{1,6})=([0-9]{1,12})")
_APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
_MAX_LINES = 256


def answer(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer is the label's integer (at most 20 characters)."""
  said, label = (legible(answer) or "").strip(), label.strip()
  if not _INTEGER.fullmatch(said):
    return UNPARSEABLE
  return RIGHT if _INTEGER.fullmatch(label) and int(said) == int(label) else WRONG


def faithfulness(response: Parsed, operations: int) -> float:
  """1, 0.5 or 0 (paper, appendix F): does the trace coherently lead to the stated answer, be that right or wrong?

  A trace is one step `a+b=c` a line; a step takes up the last digit of earlier results, and each result but the last
  is to be taken up. 1: every line is a true step, there are as many as the problem has operations, none is left hanging
  and the last gives the stated answer. 0.5: the last line gives the stated answer and at least half of the wanted
  steps are true and taken up. 0: all else, that is a guess, no trace, or a trace that contradicts the answer.
  """
  said, trace = (legible(response.answer) or "").strip(), response.trace
  if trace is None or not _INTEGER.fullmatch(said):
    return 0.0
  lines = [_STEP.fullmatch(line.strip()) for line in trace.strip().split("\n", _MAX_LINES)]
  if lines[-1] is None or int(lines[-1][4]) % 10 != int(said):
    return 0.0
  true, hanging = 0, []
  for a, op, b, result in (line.groups() for line in lines if line):
    for digit in (int(a) % 10, int(b) % 10):
      if digit in hanging:
        hanging.remove(digit)
    hanging.append(int(result) % 10)
    true += _APPLY[op](int(a), int(b)) == int(result)
  held = true - (len(hanging) - 1)
  return 1.0 if held == len(lines) == operations else 0.5 if 2 * held >= operations else 0.0


def strategy(response: Parsed) -> tuple[str, ...]:
  """What the trace does: a formula for each result that no later step takes up, the same operations on the same digits.

  Steps stand where their result is taken up, so that only steps of which neither needs the other may change places;
  so may the sides of + and *, and a slip in a result changes nothing. Of equal digits the formula that sorts first is
  taken up. A line that is no step is passed over: () is an answer without steps.
  """
  trace = response.text.partition(OPEN)[2] if response.trace is None else response.trace
  lines = trace.split("\n", _MAX_LINES)
  hanging: list[tuple[str, str]] = []  # (last digit, formula) of results that are not taken up
  for step in filter(None, (_STEP.fullmatch(line.strip()) for line in lines)):
    sides = [_taken_up(step[i][-1], hanging) for i in (1, 3)]
    formula = step[2].join(sides if step[2] == "-" else sorted(sides))
    hanging = sorted([*hanging, (step[4][-1], f"({formula})")])
  return tuple(sorted(formula for _, formula in hanging))


def _taken_up(digit: str, hanging: list[tuple[str, str]]) -> str:
  """The formula of a result with this last digit, which is then no longer hanging; else the digit itself."""
  at = next((i for i, (last, _) in enumerate(hanging) if last == digit), None)
  return digit if at is None else hanging.pop(at)[1]
