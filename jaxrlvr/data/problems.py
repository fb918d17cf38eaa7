"""Lists of problems from wherever the config says, and the order in which RL takes them."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import columns as layout
from jaxrlvr.data import files as rows
from jaxrlvr.data import hub
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.graph import problems as graph
from jaxrlvr.tasks.gym import problems as gym

_LOG = logging.getLogger(__name__)

# Sources that make their problems: (seed, split, levels, count, kinds, system) -> problems.
GENERATORS: Mapping[str, Callable[..., list[Problem]]] = {
  "arithmetic": lambda *asked: arithmetic.problems(*asked[:-1]),  # its prompts have no system message
  "graph": graph.problems,
  "reasoning_gym": gym.problems,
}


def load(
  source: str,
  *,
  split: str,
  count: int,
  levels: Sequence[int],
  kinds: Sequence[str],
  seed: int,
  verifier: str,
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
  files: rows.Split | None = None,
  copies: str = "drop",
  key: str = "columns",
  without: Callable[[Problem], bool] = lambda problem: False,
) -> list[Problem]:
  """`count` problems: generated, or the first ones that `read` reads, 0: all of them. Says what it drops.

  `split` is that of generated problems, `files` that of a folder's files. Problems that are to be left out
  (`without`) are not counted.
  """
  if source in GENERATORS:
    if not count:
      raise InputError(f"{source}: makes as many problems as are asked for; set the count")
    made = GENERATORS[source](seed, split, levels, count, kinds, system)
    return [problem for problem in made if not without(problem)]
  found, _ = read(source, verifier, columns, system, skip_bad, files, copies, key)
  left = [problem for problem in found if not without(problem)]
  if len(left) < count:
    others = f" but for {len(found) - len(left)} that are trained on" if len(left) < len(found) else ""
    raise InputError(
      f"{source}: holds {len(left)} different problems{others}, {count} were asked for; lower the count, 0: all"
    )
  if 0 < count < len(left):
    _LOG.warning("%s: the first %d of %d problems (count)", source, count, len(left))
  return left[:count] if count else left


def read(
  source: str,
  verifier: str = "auto",
  columns: Sequence[str] = (),
  system: str = "",
  skip_bad: int = 0,
  split: rows.Split | None = None,
  copies: str = "drop",
  key: str = "columns",
) -> layout.ProblemsAndCounts:
  """All problems of a path or a data set of the hub (see `hub.locate`), and what became of each row."""
  path, place = hub.locate(source)
  if place.text:
    raise InputError(f"{source}: is plain text without problems; use it for CPT")
  return layout.load(
    path,
    verifier,
    columns or place.columns,
    system,
    skip_bad,
    patterns=place.patterns,
    split=split,
    copies=copies,
    key=key,
  )


def columns_of(source: str) -> Sequence[str]:
  """The entries of `columns` by which a source is read where none are given; (): a set that `prepared.save` wrote."""
  path, place = hub.locate(source)
  return place.columns or layout.default_columns(path, place.patterns)


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
