"""Random keys by address: a key depends on what it is used for, never on what was drawn before."""

from __future__ import annotations

import hashlib
import zlib

import jax
import numpy as np


def address(seed: int, stream: str, *numbers: int) -> np.ndarray:
  """Returns the address of a draw as uint32s: seed, CRC of the stream's name, then numbers such as the step."""
  return np.array([seed, zlib.crc32(stream.encode()), *numbers], np.uint32)


def from_address(address: jax.Array | np.ndarray) -> jax.Array:
  """Returns the key of an `address`. Inside jit, where the address is an argument, it costs no transfer."""
  key = jax.random.key(0)
  for part in address:
    key = jax.random.fold_in(key, part)
  return key


def at(seed: int, stream: str, *numbers: int) -> jax.Array:
  """Returns the key of a draw by seed, name of the stream, and numbers such as step or epoch."""
  return from_address(address(seed, stream, *numbers))


def problem_hash(problem_id: str) -> np.uint32:
  """Returns 32 bits of a hash of the problem's id, for keys; the same in every process and run."""
  return np.uint32(int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little"))


@jax.jit
def rows(address: jax.Array, problem_P: jax.Array, sample_PG: jax.Array) -> jax.Array:
  """Returns keys [P*G] of the samples, problem by problem.

  problem_P: `problem_hash` of each problem. sample_PG: number of each sample among its problem's. A key depends on its
  own problem and sample alone, not on the order or size of the batch.
  """
  by_problem = jax.vmap(jax.random.fold_in, (None, 0))(from_address(address), problem_P)
  by_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 0))(by_problem, sample_PG)
  return by_sample.reshape(-1)
