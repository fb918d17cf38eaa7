"""The reward for the format of a response, whatever the response answers."""

from __future__ import annotations

from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards.types import Answers, Graded, graded_by_value
from jaxrlvr.text.answer import FORMATS


def keeps_format(answers: Answers, grade: Grade, *, name: str) -> Graded:
  """Pays 1 for a response that keeps the format `name`, 0 for any other. Every response is scored; no job is graded.

  name: a key of `text.answer.FORMATS`; another raises KeyError.
  - think_tags: `<think>`, and `</think>` somewhere behind it.
  - one_box: exactly one `\\boxed`, whose brace closes.
  - box_last: nothing but white space behind the last box.
  - thinking_format: both tags in this order, and an answer behind them.
  - study_thinking_format: as the study's released code has it: `<think>` anywhere, and a box on one line behind the
    first `</think>`.

  grade: not called; it is there because all rewards take the same arguments.
  """
  keeps_it = FORMATS[name]
  value_PG = []
  for responses in answers.response_PG:
    value_PG.append([keeps_it(response) for response in responses])
  return graded_by_value(value_PG)
