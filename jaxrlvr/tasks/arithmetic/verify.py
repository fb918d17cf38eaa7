"""Verifier of the embedded domain: is the answer the label's integer?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG, legible

INTEGER = re.compile(r"(?!.{21})[+-]?[0-9]+")


def grade(answer: str | None, label: str, extra: Mapping | None) -> Verdict:
  """Right iff the answer is the label's integer (at most 20 characters)."""
  said, label = (legible(answer) or "").strip(), label.strip()
  if not INTEGER.fullmatch(said):
    return UNPARSEABLE
  return RIGHT if INTEGER.fullmatch(label) and int(said) == int(label) else WRONG
