"""Random numbers of rewards, each a function of its address alone: neither the batch nor a restart changes one."""

from __future__ import annotations

import hashlib

import numpy as np

from jaxrlvr.base.types import Problem
from jaxrlvr.rewards.types import Answers


def uniform(answers: Answers, stream: str) -> np.ndarray:
  """Returns draws [P,G] from [0, 1), each a function of seed, `stream`, step, problem and sample alone.

  stream: a name, different for draws that must be independent.
  """

  def number(problem: Problem, sample: int) -> float:
    address = f"{answers.seed}/{stream}/{answers.step}/{sample}/{problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(address, digest_size=6).digest(), "little") / 2**48

  draws = []
  for problem, samples in zip(answers.problems, answers.sample_PG, strict=True):
    draws.append([number(problem, sample) for sample in samples])
  return np.array(draws)
