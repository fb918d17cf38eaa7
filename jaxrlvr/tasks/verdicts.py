"""Defines what all verifiers share: the three verdicts on an answer, and the limit on its length.

RIGHT has score 1, WRONG has score 0, and UNPARSEABLE, for a response without an answer that can be read, has score 0
and cause "unparseable".
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxrlvr.base.types import Verdict

RIGHT, WRONG, UNPARSEABLE = Verdict(1.0), Verdict(0.0), Verdict(0.0, "unparseable")
MAX_ANSWER = 512  # characters; the study's longest labels have about 100


def legible(answer: str | None, longest: int = MAX_ANSWER) -> str | None:
  """Returns the answer, unchanged; None if it is None, empty, blank, or longer than `longest` characters.

  A verifier calls it first: a very long answer could make a parser hang.
  """
  if not answer or answer.isspace() or len(answer) > longest:
    return None
  return answer


def best(verdicts: Iterable[Verdict | None]) -> Verdict | None:
  """Returns the best of the verdicts on several readings of one answer.

  Each is RIGHT, WRONG, UNPARSEABLE, or None for one that is not known yet. From best to worst: RIGHT, None, WRONG,
  UNPARSEABLE; so None means that an unknown one could still be RIGHT. Without verdicts it is UNPARSEABLE.
  """
  present = set(verdicts)
  for verdict in (RIGHT, None, WRONG):
    if verdict in present:
      return verdict
  return UNPARSEABLE
