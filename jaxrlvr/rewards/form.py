"""Rewards for the format of a response, whatever it answers (`text.answer.FORMATS`)."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value
from jaxrlvr.text.answer import FORMATS


def keeps_format(answers: Answers, grade: Grade, *, name: str) -> Graded:
  """Pays 1 for a response that keeps a format, 0 for any other. name: a key of `FORMATS`."""
  keeps = FORMATS[name]
  value_PG = [list(map(keeps, responses)) for responses in answers.response_PG]
  return graded_by_value(value_PG)
