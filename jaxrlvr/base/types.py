"""Host-side records that cross rooms: problems in, graded rollouts out. No jax here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Problem:
  """One prompt with the answer that rewards see (`label`, maybe wrong) and the one evaluation sees (`truth`)."""

  id: str  # unique and stable: the sampler's randomness and every log line are addressed by it
  messages: tuple[Mapping[str, str], ...]  # chat turns, each {"role", "content"}
  label: str
  truth: str
  verifier: str  # a key of verify.VERIFIERS
  extra: Mapping = dataclasses.field(default_factory=dict)  # whatever the verifier or the analysis needs


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a verifier said: score in [0, 1], or None with the cause where it could not say (unscored, never 0)."""

  score: float | None
  cause: str = (
    ""  # "" where an answer was read; "unparseable" (score 0); unscored: "timeout", "memory", "died", "error"
  )
