"""Records on the host that all rooms share: a problem, and a verifier's verdict on an answer. No jax here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

EVERY = "*"  # as the name of a column that is kept in `Problem.row`: all of them


@dataclasses.dataclass(frozen=True)
class Problem:
  """One prompt with its answers: `label`, which rewards see and may be wrong, and `truth`, which evaluation sees.

  `extra` holds further fields, by name, that verifiers, text or analysis need. All are optional:
    level, kind: difficulty and kind of a generated problem; operations, tree: its arithmetic
    source_dataset: the task of a graph problem or of Reasoning Gym; other keys hold what that task's verifier needs
    data_source, and any extra.NAME of `columns`: cells of the file's row
    trace, solution: texts that SFT trains on
    also: answers that are as good: a mapping from a label or truth to the list of its equals
    solved, samples: in how many of so many samples the model solved it (stage filter)
    relabelled: True where the model's own answer replaced the label (stage corrupt)
  """

  id: str  # unique and stable: randomness of samples and rows of logs are addressed by it
  messages: tuple[Mapping[str, str], ...]  # turns of the chat, each {"role", "content"}; the last one is no assistant's
  label: str  # "" where a file has none
  truth: str  # equals label where nothing else is known
  verifier: str  # a key of tasks.table.VERIFIERS, such as math, choice or arithmetic, or the name of a user's own
  extra: Mapping = dataclasses.field(default_factory=dict)
  # Cells of the file's row that a reward asks for, by column, as they stand there. Verifiers and votes never see them,
  # as they may tell the answer. They are no part of what the problem is: of equality, digests and prepared sets.
  row: Mapping = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The verdict of a verifier on an answer. An answer that could not be graded is unscored (score None), never 0.

  `cause`: "" for an answer that was read, right or wrong; "unparseable" for a response without an answer, whose score
  is 0; for an unscored answer "timeout", "memory", "died" (the worker process) or "error" (the verifier raised).
  """

  score: float | None  # from 0, wrong, to 1, right; None: unscored
  cause: str = ""
