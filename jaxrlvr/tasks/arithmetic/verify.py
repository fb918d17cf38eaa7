"""Grades answers in the built-in domain: an answer must be the label's integer."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

INTEGER = re.compile(r"(?!.{21})[+-]?[0-9]+")  # at most 20 characters


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Grades an answer to a problem of the built-in domain; this is the verifier "arithmetic".

  `answer`: what was read in the response, None if nothing was. `label`: the integer to agree with. `extra`:
  Problem.extra, which is not read.
  Returns RIGHT iff the answer is the label's integer, UNPARSEABLE if it is None or no integer of at most 20 characters,
  and WRONG otherwise, also for a label that is no integer. White space around both is ignored, and so are a plus sign
  and leading zeros. The verdicts are those of `tasks.verdicts`.
  """
  answer, label = (legible(answer) or "").strip(), label.strip()
  if not INTEGER.fullmatch(answer):
    return UNPARSEABLE
  if INTEGER.fullmatch(label) and int(answer) == int(label):
    return RIGHT
  return WRONG
