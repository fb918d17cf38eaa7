"""What all verifiers share: the three things they say of an answer, and which answers they read at all."""

from __future__ import annotations

from collections.abc import Iterable

from jaxrlvr.base.types import Verdict

RIGHT, WRONG, UNPARSEABLE = Verdict(1.0), Verdict(0.0), Verdict(0.0, "unparseable")
MAX_ANSWER = 512  # characters; the study's longest labels have about 100


def legible(answer: str | None, longest: int = MAX_ANSWER) -> str | None:
  """The answer itself; None where there is none, or it is blank or too long to read."""
  return answer if answer and not answer.isspace() and len(answer) <= longest else None


def best(verdicts: Iterable[Verdict | None]) -> Verdict | None:
  """Of several readings the kindest that counts: right, else not yet known (None), else wrong, else unparseable."""
  found = set(verdicts)
  return next((verdict for verdict in (RIGHT, None, WRONG) if verdict in found), UNPARSEABLE)
