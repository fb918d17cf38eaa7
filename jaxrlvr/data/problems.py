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
from jaxrlvr.tasks import own
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.graph import problems as graph
from jaxrlvr.tasks.gym import problems as gym

_LOG = logging.getLogger(__name__)


def _arithmetic_problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str
) -> list[Problem]:
  """Returns generated arithmetic problems, whose prompts have no system message."""
  return arithmetic.problems(seed, split, levels, count, kinds)


# Sources that generate problems. Their functions take (seed, split, levels, count, kinds, system).
GENERATORS: Mapping[str, Callable[..., list[Problem]]] = {
  "arithmetic": _arithmetic_problems,
  "graph": graph.problems,
  "reasoning_gym": gym.problems,
}


def is_generated(source: str) -> bool:
  """Returns whether problems of a source are generated: it is a key of GENERATORS, or names a task of a user's own."""
  return source in GENERATORS or own.is_task(source)


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
  file_split: rows.Split | None = None,
  copies: str = "drop",
  columns_key: str = "columns",
  keep: Sequence[str] = (),
  derived: layout.Derived | None = None,
  leave_out: Callable[[Problem], bool] = lambda problem: False,
) -> list[Problem]:
  """Returns the problems of a source: generated ones, or those of files in their order.

  source: a generator ("arithmetic", "graph" or "reasoning_gym"), a task of a user's own (`tasks.own.is_task`), or a
    path or a data set of the hub (`hub.locate`).
  count: how many: the first ones of files; 0: all of them, which a generator refuses.
  leave_out: takes a problem and returns whether it is left out. Files then give later problems instead, and a generator
    fewer.
  For generated problems: split ("train" or "heldout", which share no problem), levels (from 1 to 5, taken in turn),
  kinds (of the generator) and seed. For files: file_split (which split of a folder's files is read), verifier, columns,
  system, skip_bad, copies, columns_key, keep and derived, all as in `columns.load`.
  Warns if it leaves out problems over `count`. Raises InputError where files hold fewer than `count`, and whatever the
  generator or `columns.load` refuses.
  """
  if is_generated(source):
    if not count:
      raise InputError(f"{source}: makes as many problems as are asked for; set the count")
    if source in GENERATORS:
      generated = GENERATORS[source](seed, split, levels, count, kinds, system)
    else:
      generated = own.problems(source, seed, split, levels, count, kinds, system)
    return [problem for problem in generated if not leave_out(problem)]
  all_problems = read(
    source,
    verifier=verifier,
    columns=columns,
    system=system,
    skip_bad=skip_bad,
    split=file_split,
    copies=copies,
    columns_key=columns_key,
    keep=keep,
    derived=derived,
  ).problems
  problems = [problem for problem in all_problems if not leave_out(problem)]
  if len(problems) < count:
    left_out = len(all_problems) - len(problems)
    exception = f" but for {left_out} that are trained on" if left_out else ""
    raise InputError(
      f"{source}: holds {len(problems)} different problems{exception}, {count} were asked for; lower the count, 0: all"
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
  columns_key: str = "columns",
  keep: Sequence[str] = (),
  derived: layout.Derived | None = None,
) -> layout.ProblemsAndCounts:
  """Returns all problems of a path or a data set of the hub (`hub.locate`), and counts of what became of its rows.

  verifier: "auto", "math", "graph" or "choice". columns: entries TARGET=COLUMN; (): those of a data set that
  `hub.locate` knows, else by the first row. system: a system message for prompts without one. skip_bad: how many bad
  rows may be left out. split: which split of a folder's files is read. copies: what happens to a row with the prompt
  of an earlier one: "drop", "keep" or "error". columns_key: the config key of `columns`, for messages. keep: columns
  that go to `Problem.row`. derived: entries of `extra` that are computed from cells. See `columns.load`, which reads
  the rows and raises InputError; so does a data set that holds only plain text.
  """
  path, data_set = hub.locate(source)
  if data_set.text_column:
    raise InputError(f"{source}: is plain text without problems; use it for CPT")
  return layout.load(
    path,
    verifier,
    columns or data_set.columns,
    system,
    skip_bad,
    patterns=data_set.patterns,
    split=hub.split_to_read(source, data_set, split),
    copies=copies,
    columns_key=columns_key,
    keep=keep,
    derived=derived,
  )


def columns_of(source: str) -> Sequence[str]:
  """Returns the entries of `columns`, such as `label=answer`, with which `read` reads a source if it is given none.

  Returns () for a set that `prepared.save` wrote, and where no column has a known name.
  """
  path, data_set = hub.locate(source)
  return data_set.columns or layout.default_columns(path, data_set.patterns)


def batch(problems: Sequence[Problem], seed: int, step: int, size: int) -> tuple[list[Problem], np.ndarray]:
  """Returns the `size` problems of a training step, and an occurrence number for each, int32 [size].

  problems: at least one. step: from 1 on. Epochs over `problems` follow each other, each in a random order of its own,
  so that a list of fewer than `size` problems is repeated. The occurrence number counts the problems with the
  same id that stand earlier in this batch: 0 for the first, 1, 2, ... for its repetitions, which so can get random
  samples of their own. A pure function of its arguments.
  """
  first = (step - 1) * size
  chosen = [problems[shuffled_index(seed, number, len(problems))] for number in range(first, first + size)]
  times_seen: Counter[str] = Counter()
  occurrence = []
  for problem in chosen:
    occurrence.append(times_seen[problem.id])
    times_seen[problem.id] += 1
  return chosen, np.array(occurrence, np.int32)


def shuffled_index(seed: int, number: int, count: int) -> int:
  """Returns which of `count` items, from 0, comes at place `number`, from 0, of endless epochs over the items.

  Each epoch has every item once, in a random order of its own: a pure function of the arguments.
  """
  epoch, position = divmod(number, count)
  return _order(seed, epoch, count)[position]


@functools.lru_cache(4)
def _order(seed: int, epoch: int, count: int) -> list[int]:
  """Returns the indices of `count` items in the order of an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(count).tolist()
