"""Rewards for the form of a response alone (`text.answer.FORMATS`)."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value
from jaxrlvr.text.answer import FORMATS


def keeps_format(answers: Answers, grade: Grade, *, name: str) -> Graded:
  """Pays 1 for a response of the format of this name."""
  keeps = FORMATS[name]
  return graded_by_value([[keeps(response) for response in responses] for responses in answers.response_PG])
