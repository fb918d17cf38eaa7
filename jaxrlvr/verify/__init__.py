"""Verifiers by name: each says how far a response agrees with a label, in [0, 1]."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrlvr.verify import arithmetic, graph, math


class Verifier(NamedTuple):
  """A scoring function; whether hostile text can hurt it, so that it must run behind verify.service; a short cut.

  `quick` is safe on any text and gives the function's score, or None where it takes the function to know it.
  """

  function: Callable[[str, str, Mapping | None], float]
  isolated: bool
  quick: Callable[[str, str, Mapping | None], float | None] | None = None


VERIFIERS = {
  "math": Verifier(math.math, isolated=True, quick=math.quick),
  "largest_island": Verifier(graph.largest_island, isolated=False),
  "quantum_lock": Verifier(graph.quantum_lock, isolated=False),
  "arithmetic": Verifier(arithmetic.answer, isolated=False),
}
