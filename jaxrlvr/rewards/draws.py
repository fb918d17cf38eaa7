"""Random numbers of rewards; each is a function of its address alone, so that no batch and no restart changes one."""

from __future__ import annotations

import hashlib

import numpy as np

from jaxrlvr.base.types import Problem
from jaxrlvr.rewards.types import Answers


def uniform(answers: Answers, stream: str) -> np.ndarray:
  """Returns [P,G] draws from [0, 1), each a function of (seed, stream, step, problem, sample) alone."""

  def number(problem: Problem, sample: int) -> float:
    address = f"{answers.seed}/{stream}/{answers.step}/{sample}/{problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(address, digest_size=6).digest(), "little") / 2**48

  pairs = zip(answers.problems, answers.sample_PG, strict=True)
  return np.array([[number(problem, sample) for sample in samples] for problem, samples in pairs])
