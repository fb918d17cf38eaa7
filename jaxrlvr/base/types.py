"""Records on the host that all rooms share: a problem, and a verifier's verdict on an answer. No jax here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Problem:
  """One prompt with its answers: `label`, which rewards see and may be wrong, and `truth`, which evaluation sees."""

  id: str  # unique and stable: randomness of samples and rows of logs are addressed by it
  messages: tuple[Mapping[str, str], ...]  # turns of the chat, each {"role", "content"}
  label: str
  truth: str
  verifier: str  # a key of tasks.table.VERIFIERS
  # Further fields that the verifier or the analysis needs, such as level and kind, or also: a mapping from an answer to
  # the list of answers that are as good.
  extra: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict of a verifier on an answer. An answer that could not be graded is unscored, never 0."""

  score: float | None  # from 0 to 1; None: unscored
  # "" for an answer that was read, "unparseable" for a response without an answer (score 0); for an unscored answer
  # "timeout", "memory", "died" or "error"
  cause: str = ""
