"""Verifiers by name: each says how far an answer agrees with a label, in [0, 1]."""

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
  """A scoring function; whether hostile text can hurt it, so that it must run behind grading.service; two short cuts.

  The function takes (answer, label, extra), where the answer is what was read from a response, None where nothing was;
  `whole`: it takes the response's whole text instead. `needs`: keys of Problem.extra without which it can't judge.
  `probe`: a label of the kind it reads.

  `quick` is safe on any text and gives the function's verdict, or None where it takes the function to know it.
  `faithfulness` judges the reasoning of a response to a question exactly, for tasks where that can be done.
  `warm` does, once and before any text is seen, what every call would do again.
  """

  function: Callable[[str | None, str, Mapping | None], Verdict]
  isolated: bool
  quick: Callable[[str | None, str, Mapping | None], Verdict | None] | None = None
  warm: Callable[[], None] = lambda: None
  needs: tuple[str, ...] = ()
  probe: str = "0"
  whole: bool = False
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

# What a mode grades otherwise than VERIFIERS does. Keys: mode of grading.service.Service, then Problem.verifier.
# "labels" is for its own use: a label is read as an answer to itself, and where equal text would do, the parser still
# has to find something in it.
MODES: dict[str, dict[str, Verifier]] = {
  "strict": {},
  "study": {"math": Verifier(as_released.grade, isolated=True, whole=True)},
  "labels": {"math": Verifier(math.readable, isolated=True, quick=math.quickly_readable)},
}


def verifier_of(mode: str, name: str) -> Verifier:
  """The verifier that grades problems of this name in this mode."""
  return MODES[mode].get(name) or VERIFIERS[name]
