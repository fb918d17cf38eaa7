"""Mathematics as the study's released code grades it (its RULE_BASED scores), for comparison with its figures.

Nothing is refused and no box is needed: Math-Verify reads the whole response, several boxes as one set, and numbers
agree to six decimals. Its clocks are off, so this runs only behind verify.service.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxrlvr.text.answer import CLOSE, OPEN
from jaxrlvr.types import Verdict
from jaxrlvr.verify.verdicts import RIGHT, UNPARSEABLE, WRONG

_CLOSED_BOX = re.compile(r"\\boxed\{[^\n]*\}")


def math(response: str, label: str, extra: Mapping | None) -> Verdict:
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


def thinks(response: str) -> bool:
  """Whether RULE_BASED_THINKING_FORMAT pays: both think tags, and after the first `</think>` a box on one line."""
  return OPEN in response and bool(_CLOSED_BOX.search(response.partition(CLOSE)[2]))
