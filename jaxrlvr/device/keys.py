"""Random keys by address: a key depends on what it is used for, never on what was drawn before."""

from __future__ import annotations

import hashlib
import zlib

import jax
import numpy as np


def address(seed: int, stream: str, *numbers: int) -> np.ndarray:
  """Returns the address of a draw, uint32 [2 + len(numbers)]: seed, CRC-32 of the stream's name, then the numbers.

  stream: what is drawn, such as "rollout". numbers: which draw, such as the step. Seed and numbers must lie in
  0 .. 2**32 - 1 (else OverflowError). `of_samples` takes the address.
  """
  return np.array([seed, zlib.crc32(stream.encode()), *numbers], np.uint32)


def _from_address(address: jax.Array | np.ndarray) -> jax.Array:
  """Returns the key of an `address`: its parts folded one after another into key 0."""
  key = jax.random.key(0)
  for part in address:
    key = jax.random.fold_in(key, part)
  return key


def at(seed: int, stream: str, *numbers: int) -> jax.Array:
  """Returns the key (a scalar typed key) of a draw; the parameters are those of `address`.

  Equal arguments give an equal key, in every process and after every restart.
  """
  return _from_address(address(seed, stream, *numbers))


def problem_hash(problem_id: str) -> np.uint32:
  """Returns 32 bits of a BLAKE2 hash of the problem's id, for `of_samples`; the same in every process and run."""
  return np.uint32(int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=4).digest(), "little"))


@jax.jit
def of_samples(address: jax.Array, problem_P: jax.Array, sample_PG: jax.Array) -> jax.Array:
  """Returns the keys [P*G] of G samples of each of P problems, problem by problem: one key a row of a rollout.

  address: uint32, as `address` returns it. problem_P: uint32, `problem_hash` of each problem. sample_PG: int, number of
  each sample among the samples of its problem. A key depends on the address, its own problem and its own sample alone,
  not on the order or size of the batch.
  """
  by_problem = jax.vmap(jax.random.fold_in, (None, 0))(_from_address(address), problem_P)
  by_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, 0))(by_problem, sample_PG)
  return by_sample.reshape(-1)
