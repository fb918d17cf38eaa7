"""What all verifiers share: the three things they say of an answer, and where a response keeps one."""

from __future__ import annotations

from collections.abc import Iterable

from jaxrlvr.text.answer import final
from jaxrlvr.types import Verdict

RIGHT, WRONG, UNPARSEABLE = Verdict(1.0), Verdict(0.0), Verdict(0.0, "unparseable")
MAX_ANSWER = 512  # characters; the study's longest labels have about 100


def boxed(response: str, longest: int = MAX_ANSWER) -> str | None:
  """What the last box after the thinking holds; None where there is none, or it is blank or too long to read."""
  answer = final(response)
  return answer if answer and not answer.isspace() and len(answer) <= longest else None


def best(verdicts: Iterable[Verdict | None]) -> Verdict | None:
  """Of several readings the kindest that counts: right, else not yet known (None), else wrong, else unparseable."""
  found = set(verdicts)
  return next((verdict for verdict in (RIGHT, None, WRONG) if verdict in found), UNPARSEABLE)
