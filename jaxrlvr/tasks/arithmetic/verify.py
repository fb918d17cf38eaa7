"""Grades answers in the built-in domain: an answer must be the label's integer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

INTEGER = re.compile(r"(?!.{21})[+-]?[0-9]+")  # at most 20 characters


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Returns RIGHT iff the answer is the label's integer; UNPARSEABLE if it is no integer of at most 20 characters.

  White space around the answer is ignored, and so are a plus sign and leading zeros. `extra` is not read.
  """
  answer, label = (legible(answer) or "").strip(), label.strip()
  if not INTEGER.fullmatch(answer):
    return UNPARSEABLE
  if INTEGER.fullmatch(label) and int(answer) == int(label):
    return RIGHT
  return WRONG
