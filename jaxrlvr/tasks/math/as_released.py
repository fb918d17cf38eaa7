"""Grades mathematics as the study's released code does (its RULE_BASED scores), for comparison with its figures.

No answer is refused and no box is needed: Math-Verify reads the whole response, takes several boxes as one set, and
compares numbers to six decimals. Its time limits are switched off, so this must run behind grading.service.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks.verdicts import RIGHT, UNPARSEABLE, WRONG


def grade(response: str, label: str, extra: Mapping | None) -> Verdict:
  """Grades a response in mathematics; this is the verifier "math" in the mode "study".

  `response`: the whole text of the response, not only its answer. `label`: the answer to agree with. `extra`:
  Problem.extra or None; only its key "also" is read, {a label: [answers that are as good]}.
  Returns RIGHT iff Math-Verify's reading of the response equals the label or one of these, UNPARSEABLE if it reads
  nothing in the response, and WRONG otherwise. Must run in a worker process (grading.service).
  """
  from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

  latex = LatexExtractionConfig()
  answer = parse(response, [ExprExtractionConfig(), latex], parsing_timeout=None)
  if not answer:
    return UNPARSEABLE
  alternatives = (extra or {}).get("also", {}).get(label, ())
  for text in (label, *alternatives):
    accepted = parse(f"\\boxed{{{text}}}", [latex], parsing_timeout=None)
    if verify(accepted, answer, timeout_seconds=None):
      return RIGHT
  return WRONG
