"""Generates problems of any Reasoning Gym task from a seed, in five levels."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Container, Iterator, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.graph.levels import GENERATOR_SETTINGS
from jaxrlvr.tasks.graph.verify import GRAPH_TASKS
from jaxrlvr.tasks.splits import LEVELS, SPLITS, split_of_text

_SYSTEM = "Reason through the task step by step. Then state your final answer once, as \\boxed{answer}."
_DATA_SET_SIZE = 1 << 20  # a data set of the library makes each problem when it is read
_MAX_MISSES = 1000  # problems in a row that are of the other split or known, before the search is given up


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str = ""
) -> list[Problem]:
  """Returns `count` different problems of Reasoning Gym, in turn of each task of the first level, of the second, ...

  `seed`: other seeds draw other problems; for one seed, a longer list begins with the shorter ones. `split`: "train" or
  "heldout", which never share a question, whatever the seeds. `levels`: at least one of the difficulties 1 to 5; if the
  library has no curriculum of a task, all are equally hard. `kinds`: names of at least one of the library's tasks, such
  as "gcd". `system`: text of the system message, which comes before the user's; "": one that asks for reasoning and an
  answer in \\boxed{}.
  Label and truth are the library's answer. extra has level, kind (the task), and for the tasks quantum_lock and
  largest_island, whose verifier has the task's name, the library's metadata. Other tasks have the verifier
  "reasoning_gym", and extra has source_dataset (the task) and entry: the library's question, answer and metadata.
  Raises InputError for an unknown split, level or kind, if Reasoning Gym is not installed, and if there are too few
  problems.
  """
  if split not in SPLITS or not set(levels) <= set(LEVELS):
    raise InputError(f"split {split!r}, levels {tuple(levels)}: take one of {SPLITS} and some of {LEVELS}")
  streams = []
  for level in levels:
    for kind in kinds:
      streams.append(_stream(seed, split, level, kind, system or _SYSTEM))
  by_id: dict[str, Problem] = {}
  while len(by_id) < count:
    stream = streams[len(by_id) % len(streams)]
    problem = _next_new(stream, by_id)
    if problem is None:
      searched = f"{split} problems of {', '.join(kinds)}, levels {tuple(levels)}"
      raise InputError(f"{searched}: found only {len(by_id)} of {count}; ask for fewer, or for other levels")
    by_id[problem.id] = problem
  return list(by_id.values())


def _next_new(stream: Iterator[Problem | None], known: Container[str]) -> Problem | None:
  """Returns the next problem of a stream whose id is not known; None after _MAX_MISSES, or at the stream's end."""
  for problem in itertools.islice(stream, _MAX_MISSES):
    if problem is not None and problem.id not in known:
      return problem
  return None


def _stream(seed: int, split: str, level: int, kind: str, system: str) -> Iterator[Problem | None]:
  """Yields the problems of a task; None for each that belongs to the other split."""
  digest = hashlib.blake2b(f"{seed}/{split}/{kind}/{level}".encode(), digest_size=8).digest()
  largest_seed = 2**31 - _DATA_SET_SIZE  # the library adds a problem's place to the seed
  entries = _data_set(kind, level, int.from_bytes(digest, "little") % largest_seed)
  for place in range(_DATA_SET_SIZE):
    entry = entries[place]
    if split_of_text(entry["question"]) == split:
      yield _problem(entry, kind, level, system)
    else:
      yield None


def _data_set(kind: str, level: int, seed: int):
  """Returns the library's data set of a task on a level. Raises InputError without the library or such a task."""
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError:
    raise InputError(f"problems of {kind}: Reasoning Gym is not installed; pip install 'jaxrlvr[gym]'") from None
  if kind not in factory.DATASETS:
    raise InputError(f"kinds: {kind!r} is no task of Reasoning Gym; use some of {', '.join(sorted(factory.DATASETS))}")
  common = {"seed": seed, "size": _DATA_SET_SIZE}
  if kind in GENERATOR_SETTINGS:
    return reasoning_gym.create_dataset(kind, **common, **GENERATOR_SETTINGS[kind][level - 1])
  if not factory.has_curriculum(kind):
    return reasoning_gym.create_dataset(kind, **common)
  curriculum = factory.create_curriculum(kind)
  curriculum.set_global_level(level - 1)
  return reasoning_gym.create_dataset(kind, **vars(curriculum.generate_configuration(common)))


def _problem(entry: dict, kind: str, level: int, system: str) -> Problem:
  """Returns an entry of the library as a problem."""
  question, answer = entry["question"], str(entry["answer"])
  entry = json.loads(json.dumps(dict(entry), default=str))  # plain values, as a saved problem has them
  if kind in GRAPH_TASKS:
    verifier, extra = kind, entry["metadata"]
  else:
    verifier, extra = "reasoning_gym", {"source_dataset": kind, "entry": entry}
  return Problem(
    id=f"{kind}/{hashlib.sha1(question.encode()).hexdigest()[:16]}",
    messages=({"role": "system", "content": system}, {"role": "user", "content": question}),
    label=answer,
    truth=answer,
    verifier=verifier,
    extra=extra | {"level": level, "kind": kind},
  )
