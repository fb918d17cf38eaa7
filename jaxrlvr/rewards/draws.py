"""Random numbers of rewards. Each depends on its address alone, so that neither the batch nor a restart changes it."""

from __future__ import annotations

import hashlib

import numpy as np

from jaxrlvr.rewards.types import Answers

_DRAW_BYTES = 6  # 48 bits, which a float64 holds exactly


def uniform(answers: Answers, stream: str) -> np.ndarray:
  """Returns one uniform draw from [0, 1) for each response, float64 [P,G].

  A draw depends only on `answers.seed`, `answers.step`, the problem's id, the response's number in `answers.sample_PG`,
  and `stream`. The same five give the same draw, in any batch and in any run.
  stream: any text that names what the draws are for. Draws of different streams are independent.
  """
  draw_PG = []
  for problem, samples in zip(answers.problems, answers.sample_PG, strict=True):
    addresses = [f"{answers.seed}/{stream}/{answers.step}/{sample}/{problem.id}" for sample in samples]
    draw_PG.append([_uniform_at(address) for address in addresses])
  return np.array(draw_PG)


def _uniform_at(address: str) -> float:
  """Returns the number in [0, 1) that belongs to an address: the first 48 bits of its BLAKE2b hash."""
  digest = hashlib.blake2b(address.encode(), digest_size=_DRAW_BYTES).digest()
  return int.from_bytes(digest, "little") / 256**_DRAW_BYTES
