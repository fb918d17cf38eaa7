"""Lists the verifiers by name. A verifier scores in [0, 1] how far an answer agrees with a label."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.base import named
from jaxrlvr.base.types import Verdict
from jaxrlvr.tasks import choice, own
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
  strategy: takes (response, response, the user's question) and says whether both use the same strategy; it returns None
    where it can't say. None instead of a function: it is not known here.
  """

  function: Callable[[str | None, str, Mapping | None], Verdict]
  isolated: bool
  quick: Callable[[str | None, str, Mapping | None], Verdict | None] | None = None
  warm: Callable[[], None] = lambda: None
  needs: tuple[str, ...] = ()
  probe: str = "0"
  whole: bool = False
  faithfulness: Callable[[Parsed, str], Faithfulness | None] | None = None
  strategy: Callable[[Parsed, Parsed, str], bool | None] | None = None


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


def is_verifier(name: str) -> bool:
  """Returns whether a name is a key of VERIFIERS, or has the form of a name of a user's own verifier."""
  return name in VERIFIERS or named.is_name(name)


def verifier_of(mode: str, name: str) -> Verifier:
  """Returns the verifier that grades a problem.

  `mode`: "strict" (this library's rules), "study" (mathematics as the study's released code grades it) or "labels"
  (whether a mathematical label can be read at all). The modes differ in "math" alone. `name`: Problem.verifier, a key
  of VERIFIERS: math, largest_island, quantum_lock, arithmetic, choice or reasoning_gym; or the name of a user's own.
  Raises KeyError for an unknown mode or name, and InputError for a user's own that can't be imported.
  """
  if named.is_name(name):
    return _own_verifier(name, named.load(name))
  return MODES[mode].get(name) or VERIFIERS[name]


@functools.lru_cache(16)
def _own_verifier(name: str, function: Callable) -> Verifier:
  """Returns a user's own verifier. It is isolated, as nobody knows what hostile text does to it.

  function: what the name stands for now; another one, after its file was changed, makes another verifier.
  """
  scorer = own.scorer(name)
  judge = own.faithfulness_of_verifier(name)

  def judged(response: Parsed, question: str) -> Faithfulness | None:
    label_and_share = judge(response, question)
    return Faithfulness(*label_and_share) if label_and_share else None

  return Verifier(
    scorer.function,
    isolated=True,
    quick=scorer.quick,
    whole=scorer.takes_text,
    faithfulness=judged if judge else None,
    strategy=own.strategy_of_verifier(name),
  )
