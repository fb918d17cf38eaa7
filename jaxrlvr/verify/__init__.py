"""Verifiers by name: each says how far a response agrees with a label, in [0, 1]."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.data.layout import GRAPH
from jaxrlvr.types import Verdict
from jaxrlvr.verify import arithmetic, choice, graph, gym, math, study


class Verifier(NamedTuple):
  """A scoring function; whether hostile text can hurt it, so that it must run behind verify.service; two short cuts.

  `needs`: keys of Problem.extra without which it can't judge. `probe`: a label of the kind it reads.

  `quick` is safe on any text and gives the function's verdict, or None where it takes the function to know it.
  `warm` does, once and before any text is seen, what every call would do again.
  """

  function: Callable[[str, str, Mapping | None], Verdict]
  isolated: bool
  quick: Callable[[str, str, Mapping | None], Verdict | None] | None = None
  warm: Callable[[], None] = lambda: None
  needs: tuple[str, ...] = ()
  probe: str = "0"


# Keys: Problem.verifier.
VERIFIERS = {
  "math": Verifier(math.math, isolated=True, quick=math.quick, warm=math.warm),
  "largest_island": Verifier(graph.largest_island, isolated=False),
  "quantum_lock": Verifier(graph.quantum_lock, isolated=False, needs=GRAPH["quantum_lock"], probe="A"),
  "arithmetic": Verifier(arithmetic.answer, isolated=False, needs=("operations",)),
  "choice": Verifier(choice.choice, isolated=False),
  "reasoning_gym": Verifier(gym.gym, isolated=True, quick=gym.quick, warm=gym.warm, needs=("source_dataset", "entry")),
}

# Keys: mode of verify.service.Service. "labels" is for its own use: a label is read as an answer to itself, and where
# equal text would do, the parser still has to find something in it.
MODES = {
  "strict": VERIFIERS,
  "study": VERIFIERS | {"math": Verifier(study.math, isolated=True)},
  "labels": VERIFIERS | {"math": Verifier(math.readable, isolated=True, quick=math.quickly_readable)},
}
