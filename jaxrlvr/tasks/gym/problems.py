"""Reasoning Gym problems from a seed: the two graph tasks of the study in five levels, and any other task by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.arithmetic.problems import KINDS, LEVELS, SPLITS, split_of
from jaxrlvr.tasks.graph import GRAPH

SYSTEM = "Reason through the task step by step. Then state your final answer once, as \\boxed{answer}."


# Settings of the generators by level. The islands' are those in the study's files. A lock of difficulty d is drawn
# from 1..d; d = 1, 3, 5, 7, 9 explains how often each occurs there (2 as often as 3, 4 as 5, ..., none above 9).
_ISLAND = "min_rows max_rows min_cols max_cols min_num_islands max_num_islands min_island_size max_island_size".split()
_ISLANDS = (
  (3, 5, 3, 5, 2, 2, 3, 5),
  (5, 10, 5, 10, 2, 5, 5, 10),
  (10, 20, 10, 20, 2, 10, 5, 15),
  (20, 50, 20, 50, 2, 20, 5, 20),
  (50, 100, 50, 100, 2, 20, 5, 25),
)
SETTINGS = {
  "quantum_lock": tuple({"difficulty": 2 * level - 1} for level in LEVELS),
  "largest_island": tuple(dict(zip(_ISLAND, values, strict=True)) for values in _ISLANDS),
}
_SIZE = 1 << 20  # problems a data set can count to; it makes each when asked
_PATIENCE = 1000  # problems in a row that are of the other split or known already


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str] = (*GRAPH,), system: str = ""
) -> list[Problem]:
  """`count` different problems, kinds and levels in turn; a longer list begins with the shorter ones.

  Kinds are names of Reasoning Gym tasks; those that are not in SETTINGS take the levels of their curriculum, if they
  have one. Train and held-out never share a question, whatever the seeds.
  """
  if split not in SPLITS or not set(levels) <= set(LEVELS):
    raise InputError(f"split {split!r}, levels {tuple(levels)}: take one of {SPLITS} and some of {LEVELS}")
  streams = [_stream(seed, split, level, kind, system or SYSTEM) for level in levels for kind in kinds]
  found: dict[str, Problem] = {}
  while len(found) < count:
    for one in (next(streams[len(found) % len(streams)], None) for _ in range(_PATIENCE)):
      if one is not None and one.id not in found:
        found[one.id] = one
        break
    else:
      of = f"{split} problems of {', '.join(kinds)}, levels {tuple(levels)}"
      raise InputError(f"{of}: found only {len(found)} of {count}; ask for fewer, or for other levels")
  return list(found.values())


def graph_problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str = ""
) -> list[Problem]:
  """`problems` of the study's two graph tasks; kinds that are the embedded domain's stand for both."""
  kinds = tuple(kind for kind in kinds if kind not in KINDS) or tuple(GRAPH)
  if unknown := sorted(set(kinds) - set(GRAPH)):
    raise InputError(f"kinds: {unknown[0]!r} is no graph task; use {', '.join(GRAPH)}")
  return problems(seed, split, levels, count, kinds, system)


def _stream(seed: int, split: str, level: int, kind: str, system: str) -> Iterator[Problem | None]:
  """The task's problems, None for each that belongs to the other split."""
  digest = hashlib.blake2b(f"{seed}/{split}/{kind}/{level}".encode(), digest_size=8).digest()
  made = _data_set(kind, level, int.from_bytes(digest, "little") % (2**31 - _SIZE))  # it adds the index to its seed
  for index in range(_SIZE):
    entry = made[index]
    yield _problem(entry, kind, level, system) if split_of(entry["question"]) == split else None


def _data_set(kind: str, level: int, seed: int):
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError:
    raise InputError(f"problems of {kind}: Reasoning Gym is not installed; pip install 'jaxrlvr[gym]'") from None
  if kind not in factory.DATASETS:
    raise InputError(f"kinds: {kind!r} is no task of Reasoning Gym; use some of {', '.join(sorted(factory.DATASETS))}")
  common = {"seed": seed, "size": _SIZE}
  if kind in SETTINGS:
    return reasoning_gym.create_dataset(kind, **common, **SETTINGS[kind][level - 1])
  if not factory.has_curriculum(kind):
    return reasoning_gym.create_dataset(kind, **common)
  curriculum = factory.create_curriculum(kind)
  curriculum.set_global_level(level - 1)
  return reasoning_gym.create_dataset(kind, **vars(curriculum.generate_configuration(common)))


def _problem(entry: dict, kind: str, level: int, system: str) -> Problem:
  question, answer = entry["question"], str(entry["answer"])
  entry = json.loads(json.dumps(dict(entry), default=str))  # plain values, as a saved problem has them
  extra = entry["metadata"] if kind in GRAPH else {"source_dataset": kind, "entry": entry}
  return Problem(
    id=f"{kind}/{hashlib.sha1(question.encode()).hexdigest()[:16]}",
    messages=({"role": "system", "content": system}, {"role": "user", "content": question}),
    label=answer,
    truth=answer,
    verifier=kind if kind in GRAPH else "reasoning_gym",
    extra=extra | {"level": level, "kind": kind},
  )
