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
  """A function that scores answers, with what its callers must know to use it safely and fast.

  function: takes (answer, label, Problem.extra) and returns the Verdict. answer: what was read in the response, None if
    nothing was. label: the text to agree with.
  isolated: whether hostile text can make `function` hang or grow, so that it must run in the worker processes of
    grading.service.
  quick: takes the same as `function` and returns its Verdict if it can be known at once, else None: `function` must
    run. Safe on any text, in any process. None instead of a function: only `function` can tell.
  warm: imports and caches what every call needs; called once, before any text is graded.
  needs: keys of Problem.extra without which it can't grade.
  probe: a label that it can read; an answer is graded against it to find out whether the answer can be read.
  whole: whether `function` takes the whole text of the response instead of the answer.
  faithfulness: takes (response, the user's question) and judges exactly whether the reasoning leads to the answer; it
    returns None for a question that it can't read. None instead of a function: there is no such judge.
  """

  function: Callable[[str | None, str, Mapping | None], Verdict]
  isolated: bool
  quick: Callable[[str | None, str, Mapping | None], Verdict | None] | None = None
  warm: Callable[[], None] = lambda: None
  needs: tuple[str, ...] = ()
  probe: str = "0"
  whole: bool = False
  faithfulness: Callable[[Parsed, str], Faithfulness | None] | None = None


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
  (whether a mathematical label can be read at all). The modes differ in "math" alone. `name`: Problem.verifier, a key
  of VERIFIERS: math, largest_island, quantum_lock, arithmetic, choice or reasoning_gym.
  Raises KeyError for an unknown mode or name.
  """
  return MODES[mode].get(name) or VERIFIERS[name]
