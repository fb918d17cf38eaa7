"""Problems of any Reasoning Gym task from a seed, in five levels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.tasks.graph.levels import GENERATOR_SETTINGS
from jaxrlvr.tasks.graph.verify import GRAPH_TASKS
from jaxrlvr.tasks.splits import LEVELS, SPLITS, split_of_text

SYSTEM = "Reason through the task step by step. Then state your final answer once, as \\boxed{answer}."
_SIZE = 1 << 20  # problems a data set can count to; it makes each when asked
_PATIENCE = 1000  # problems in a row that are of the other split or known already


def problems(
  seed: int, split: str, levels: Sequence[int], count: int, kinds: Sequence[str], system: str = ""
) -> list[Problem]:
  """`count` different problems, kinds and levels in turn; a longer list begins with the shorter ones.

  Kinds are names of Reasoning Gym tasks; those that are not in GENERATOR_SETTINGS take the levels of their
  curriculum, if they have one. Train and held-out never share a question, whatever the seeds.
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


def _stream(seed: int, split: str, level: int, kind: str, system: str) -> Iterator[Problem | None]:
  """The task's problems, None for each that belongs to the other split."""
  digest = hashlib.blake2b(f"{seed}/{split}/{kind}/{level}".encode(), digest_size=8).digest()
  made = _data_set(kind, level, int.from_bytes(digest, "little") % (2**31 - _SIZE))  # it adds the index to its seed
  for index in range(_SIZE):
    entry = made[index]
    yield _problem(entry, kind, level, system) if split_of_text(entry["question"]) == split else None


def _data_set(kind: str, level: int, seed: int):
  try:
    import reasoning_gym
    from reasoning_gym import factory
  except ImportError:
    raise InputError(f"problems of {kind}: Reasoning Gym is not installed; pip install 'jaxrlvr[gym]'") from None
  if kind not in factory.DATASETS:
    raise InputError(f"kinds: {kind!r} is no task of Reasoning Gym; use some of {', '.join(sorted(factory.DATASETS))}")
  common = {"seed": seed, "size": _SIZE}
  if kind in GENERATOR_SETTINGS:
    return reasoning_gym.create_dataset(kind, **common, **GENERATOR_SETTINGS[kind][level - 1])
  if not factory.has_curriculum(kind):
    return reasoning_gym.create_dataset(kind, **common)
  curriculum = factory.create_curriculum(kind)
  curriculum.set_global_level(level - 1)
  return reasoning_gym.create_dataset(kind, **vars(curriculum.generate_configuration(common)))


def _problem(entry: dict, kind: str, level: int, system: str) -> Problem:
  question, answer = entry["question"], str(entry["answer"])
  entry = json.loads(json.dumps(dict(entry), default=str))  # plain values, as a saved problem has them
  extra = entry["metadata"] if kind in GRAPH_TASKS else {"source_dataset": kind, "entry": entry}
  return Problem(
    id=f"{kind}/{hashlib.sha1(question.encode()).hexdigest()[:16]}",
    messages=({"role": "system", "content": system}, {"role": "user", "content": question}),
    label=answer,
    truth=answer,
    verifier=kind if kind in GRAPH_TASKS else "reasoning_gym",
    extra=extra | {"level": level, "kind": kind},
  )
