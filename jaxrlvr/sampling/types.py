"""What sampling takes (`Sampling`, `Batch`) and returns (`Rollout`)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
from flax import struct

from jaxrlvr.base.errors import InputError

STOP_LENGTH, STOP_EOS, STOP_STRING = 0, 1, 2
STOP_NAMES = ("length", "eos", "string")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of sampling; hashable, so that jit takes them as a static argument. Raises InputError if impossible."""

  group: int  # samples a problem
  max_tokens: int  # response tokens at most
  eos_ids: tuple[int, ...]
  pad_id: int = 0  # fills the slots behind a response; never read as a token
  temperature: float = 1.0  # 0: greedy
  top_k: int = 0  # sample among the k likeliest tokens and their ties; 0: among all
  top_p: float = 1.0  # of these, among the smallest set with at least this probability; 1: all
  shrink: int = 2  # how many times the batch is halved as rows finish, 0: never
  blocks: int = 0  # pieces of the cache of responses, allocated and read only once they are reached; 0: by max_tokens
  int8: tuple[str, ...] = ()  # what is held in 8 bits: "weights", "cache"

  def __post_init__(self):
    if self.group < 1 or self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise InputError(f"{self}: group and max_tokens from 1, temperature and top_k from 0, top_p in (0, 1]")
    if self.blocks < 0 or not set(self.int8) <= {"weights", "cache"}:
      raise InputError(f"{self}: blocks from 0, int8 of 'weights' and 'cache'")

  @property
  def slots(self) -> int:
    """Number of tokens that a block of the cache holds."""
    return -(-self.max_tokens // (self.blocks or min(4, -(-self.max_tokens // 64))))


class Batch(NamedTuple):
  """P prompts, left-padded to one width, and a key of randomness for each of the P * G responses."""

  prompt_PS: jax.Array
  prompt_length_P: jax.Array  # how many of the last slots hold the prompt
  keys_B: jax.Array


@struct.dataclass
class Rollout:
  """B = P * G responses, problem-major. Slots from length_B on hold pad_id and zeros."""

  tokens_BT: jax.Array
  length_B: jax.Array  # tokens of the response, the stopping one included
  stop_B: jax.Array  # STOP_LENGTH, STOP_EOS or STOP_STRING
  logp_BT: jax.Array  # log-probability under the distribution sampled from (temperature, top-k, top-p)
  model_logp_BT: jax.Array  # log-probability under the model itself (temperature 1)
  certainty_BT: jax.Array  # KL(U || p) of the model itself, nats
  entropy_BT: jax.Array  # H(p) of the model itself, nats
