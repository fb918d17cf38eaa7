"""Mathematics as the study's released code grades it (its RULE_BASED scores), for comparison with its figures.

Nothing is refused and no box is needed: Math-Verify reads the whole response, several boxes as one set, and numbers
agree to six decimals. Its clocks are off, so this runs only behind grading.service.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG


def grade(response: str, label: str, extra: Mapping | None) -> Verdict:
  """Right iff what Math-Verify finds in the response equals the label or one of the label's `extra["also"]`."""
  from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

  latex = LatexExtractionConfig()
  found = parse(response, [ExprExtractionConfig(), latex], parsing_timeout=None)
  if not found:
    return UNPARSEABLE
  for text in (label, *(extra or {}).get("also", {}).get(label, ())):
    if verify(parse(f"\\boxed{{{text}}}", [latex], parsing_timeout=None), found, timeout_seconds=None):
      return RIGHT
  return WRONG
