"""Addressed randomness: a key is a function of what it is for, never of what was drawn before."""

from __future__ import annotations

import hashlib
import zlib

import jax
import numpy as np


def address(seed: int, stream: str, *numbers: int) -> np.ndarray:
  """What one draw is for, as uint32s: seed, stream name, then numbers such as the step."""
  return np.array([seed, zlib.crc32(stream.encode()), *numbers], np.uint32)


def from_address(address: jax.Array | np.ndarray) -> jax.Array:
  """The key of an address; inside of jit it costs no transfer."""
  key = jax.random.key(0)
  for part in address:
    key = jax.random.fold_in(key, part)
  return key


def at(seed: int, stream: str, *numbers: int) -> jax.Array:
  """Key of one draw: (seed, stream name, then numbers such as step or epoch)."""
  return from_address(address(seed, stream, *numbers))


def problem_hash(problem_id: str) -> np.uint32:
  """32 bits that stand for a problem in keys; the same in every process and run."""
  return np.uint32(int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little"))


@jax.jit
def rows(address: jax.Array, problem_P: jax.Array, sample_PG: jax.Array) -> jax.Array:
  """Keys [P*G], one a (problem hash, sample index): order and size of the batch change none of them."""
  by_problem = jax.vmap(jax.random.fold_in, (None, 0))(from_address(address), problem_P)
  by_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 0))(by_problem, sample_PG)
  return by_sample.reshape(-1)
