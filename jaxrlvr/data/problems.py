"""Lists of problems from wherever the config says, and the order in which RL takes them."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrlvr.data import arithmetic, gym, layout, raw
from jaxrlvr.types import InputError, Problem

_LOG = logging.getLogger(__name__)

# Sources that make their problems: (seed, split, levels, count, kinds, system) -> problems.
GENERATED: Mapping[str, Callable[..., list[Problem]]] = {
  "arithmetic": lambda *asked: arithmetic.problems(*asked[:-1]),  # its prompts have no system message
  "graph": gym.graph_problems,
  "reasoning_gym": gym.problems,
}


def load(
  source: str,
  *,
  split: str,
  count: int,
  levels,
  kinds,
  seed: int,
  verifier: str,
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
) -> list[Problem]:
  """`count` problems: generated, or the first ones that `read` reads, 0: all of them. Says what it drops."""
  if source in GENERATED:
    if not count:
      raise InputError(f"{source}: makes as many problems as are asked for; set the count")
    return GENERATED[source](seed, split, levels, count, kinds, system)
  found, counts = read(source, verifier, columns, system, skip_bad)
  if len(found) < counts["rows"]:
    worth_a_look = counts["unanswered"] or counts["bad"] or counts["conflicts"]
    _LOG.log(logging.WARNING if worth_a_look else logging.INFO, "%s: %s", source, layout.told(counts))
  if len(found) < count:
    raise InputError(f"{source}: holds {len(found)} different problems, {count} were asked for; lower the count")
  if 0 < count < len(found):
    _LOG.warning("%s: the first %d of %d problems (count)", source, count, len(found))
  return found[:count] if count else found


def read(
  source: str, verifier: str = "auto", columns: Sequence[str] = (), system: str = "", skip_bad: int = 0
) -> layout.Loaded:
  """All problems of a path or a raw data set (a key of raw.RAW), and what became of each row."""
  path, place = raw.find(source)
  if place.text:
    raise InputError(f"{source}: is plain text without problems; use it for CPT")
  return layout.load(path, verifier, columns or place.columns, system, skip_bad, patterns=place.patterns)


def batch(problems: Sequence[Problem], seed: int, step: int, size: int) -> tuple[list[Problem], np.ndarray]:
  """(problems of step 1, 2, ..., how often each came before in this batch).

  The list is gone through again and again, each time in another order: fewer problems than `size` are repeated
  uniformly. A pure function of its arguments, so a resumed run needs no cursor but its step.
  """
  first = (step - 1) * size
  picked = [problems[shuffled(seed, slot, len(problems))] for slot in range(first, first + size)]
  seen: Counter[str] = Counter()
  occurrence = []
  for problem in picked:
    occurrence.append(seen[problem.id])
    seen[problem.id] += 1
  return picked, np.array(occurrence, np.int32)


def shuffled(seed: int, number: int, count: int) -> int:
  """Which of `count` things comes as number 0, 1, ... of endless epochs, each in an order of its own."""
  epoch, place = divmod(number, count)
  return _order(seed, epoch, count)[place]


@functools.lru_cache(4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
  return np.random.default_rng([seed, epoch]).permutation(count).tolist()
