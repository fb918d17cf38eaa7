"""Loads the problems that a config names, generated or from files, and orders them for RL."""

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

# Sources that generate problems: (seed, split, levels, count, kinds, system) -> problems.
GENERATORS: Mapping[str, Callable[..., list[Problem]]] = {
  "arithmetic": lambda *arguments: arithmetic.problems(*arguments[:-1]),  # its prompts have no system message
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
  """Returns `count` problems: of a generator (a key of GENERATORS), or the first that `read` reads; 0: all of these.

  split, levels, kinds, seed: of generated problems. files: which split of a folder's files to read. without: True for a
  problem to leave out, which does not count. verifier, columns, system, skip_bad, copies and key say how rows become
  problems, as in `columns.load`: verifier: "auto", "math", "graph" or "choice"; columns: entries TARGET=COLUMN; system:
  a system message for prompts without one; skip_bad: how many unusable rows to leave out; copies: "drop", "keep" or
  "error"; key: the config key to name in messages. count 0: all problems of the files; an error for a generator. Logs a
  warning if it drops problems. Raises InputError where there are fewer than `count`.
  """
  if source in GENERATORS:
    if not count:
      raise InputError(f"{source}: makes as many problems as are asked for; set the count")
    generated = GENERATORS[source](seed, split, levels, count, kinds, system)
    return [problem for problem in generated if not without(problem)]
  all_problems, _ = read(source, verifier, columns, system, skip_bad, files, copies, key)
  problems = [problem for problem in all_problems if not without(problem)]
  if len(problems) < count:
    left_out = len(all_problems) - len(problems)
    others = f" but for {left_out} that are trained on" if left_out else ""
    raise InputError(
      f"{source}: holds {len(problems)} different problems{others}, {count} were asked for; lower the count, 0: all"
    )
  if 0 < count < len(problems):
    _LOG.warning("%s: the first %d of %d problems (count)", source, count, len(problems))
  return problems[:count] if count else problems


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
  """Returns all problems of a path or a data set of the hub (see `hub.locate`), and counts of what became of the rows.

  The other parameters are those of `columns.load`. Raises InputError for a data set that holds only plain text.
  """
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
  """Returns the default entries of `columns` for a source; () for a set that `prepared.save` wrote."""
  path, place = hub.locate(source)
  return place.columns or layout.default_columns(path, place.patterns)


def batch(problems: Sequence[Problem], seed: int, step: int, size: int) -> tuple[list[Problem], np.ndarray]:
  """Returns the `size` problems of step 1, 2, ..., and how often each has occurred before in this batch, int32 [size].

  Epochs follow each other, each in an order of its own; a list of fewer than `size` problems is repeated uniformly. A
  pure function of its arguments, so that a resumed run needs no cursor but its step.
  """
  first = (step - 1) * size
  chosen = [problems[shuffled(seed, number, len(problems))] for number in range(first, first + size)]
  times_seen: Counter[str] = Counter()
  occurrence = []
  for problem in chosen:
    occurrence.append(times_seen[problem.id])
    times_seen[problem.id] += 1
  return chosen, np.array(occurrence, np.int32)


def shuffled(seed: int, number: int, count: int) -> int:
  """Returns the index, below `count`, of item number 0, 1, ... of endless epochs, each in a random order of its own."""
  epoch, place = divmod(number, count)
  return _order(seed, epoch, count)[place]


@functools.lru_cache(4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
  """Returns the order of an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(count).tolist()
