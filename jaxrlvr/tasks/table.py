"""Lists the verifiers by name. A verifier scores in [0, 1] how far an answer agrees with a label."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks import choice
from jaxrlvr.tasks.arithmetic import verify as arithmetic
from jaxrlvr.tasks.arithmetic.faithfulness import Faithfulness, faithfulness
from jaxrlvr.tasks.graph import verify as graph
from jaxrlvr.tasks.gym import verify as gym
from jaxrlvr.tasks.math import as_released
from jaxrlvr.tasks.math import verify as math
from jaxrlvr.text.answer import Parsed


class Verifier(NamedTuple):
  """A scoring function, with what its callers must know to use it safely and fast."""

  # Takes (answer, label, Problem.extra) and returns the verdict. The answer is what was read in a response, None if
  # nothing was; with `whole` it is the text of the response. The label is the text to agree with.
  function: Callable[[str | None, str, Mapping | None], Verdict]
  # Whether hostile text can make it hang or grow, so that it must run in the worker processes of grading.service.
  isolated: bool
  # Takes the same as `function` and returns its verdict if that can be known cheaply, else None: `function` must run.
  # Safe on any text, in any process. None in its place: only `function` can tell.
  quick: Callable[[str | None, str, Mapping | None], Verdict | None] | None = None
  # Imports and caches what every call needs. Called once, before any text is graded.
  warm: Callable[[], None] = lambda: None
  # Keys of Problem.extra without which it can't grade.
  needs: tuple[str, ...] = ()
  # A label that it can read.
  probe: str = "0"
  # Whether `function` takes the whole text of the response in the place of the answer.
  whole: bool = False
  # Takes (response, question) and judges exactly whether its reasoning leads to its answer: returns label (0, 0.5 or 1)
  # and step_true (share of true steps), or None for a question that it can't read. None in its place: no such judge.
  faithfulness: Callable[[Parsed, str], Faithfulness] | None = None


# Keys: Problem.verifier.
VERIFIERS = {
  "math": Verifier(math.grade, isolated=True, quick=math.quick, warm=math.warm),
  "largest_island": Verifier(graph.largest_island, isolated=False),
  "quantum_lock": Verifier(graph.quantum_lock, isolated=False, needs=graph.GRAPH_TASKS["quantum_lock"], probe="A"),
  "arithmetic": Verifier(arithmetic.grade, isolated=False, faithfulness=faithfulness),
  "choice": Verifier(choice.grade, isolated=False),
  "reasoning_gym": Verifier(
    gym.grade, isolated=True, quick=gym.quick, warm=gym.warm, needs=("source_dataset", "entry")
  ),
}

# Verifiers that a mode uses in the place of those in VERIFIERS. Keys: the mode, then Problem.verifier.
# "strict" and "study" are the modes of grading.service.Service. "labels" checks whether labels can be read: each is
# graded as an answer to itself, but its equal text alone does not make it right.
MODES: dict[str, dict[str, Verifier]] = {
  "strict": {},
  "study": {"math": Verifier(as_released.grade, isolated=True, whole=True)},
  "labels": {"math": Verifier(math.readable, isolated=True, quick=math.quickly_readable)},
}


def verifier_of(mode: str, name: str) -> Verifier:
  """Returns the verifier that grades a problem.

  `mode`: "strict" (this library's rules), "study" (mathematics as the study's released code grades it) or "labels"
  (whether a label can be read at all). `name`: the problem's `Problem.verifier`, a key of VERIFIERS: math,
  largest_island, quantum_lock, arithmetic, choice or reasoning_gym. Raises KeyError for an unknown mode or name.
  """
  return MODES[mode].get(name) or VERIFIERS[name]
