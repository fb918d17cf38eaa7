"""What sampling takes (`Sampling`, `Batch`) and returns (`Rollout`)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
from flax import struct

from jaxrlvr.base.errors import InputError

# Why a response ended, as `Rollout.stop_B` says it: at max_tokens, with an end token, or with a stop string. A response
# whose last token is both an end token and the end of a stop string counts as STOP_EOS.
STOP_LENGTH, STOP_EOS, STOP_STRING = 0, 1, 2
STOP_NAMES = ("length", "eos", "string")  # by these numbers

_MOST_BLOCKS = 4  # that `blocks` = 0 stands for
_LEAST_BLOCK_SLOTS = 64  # of a block, if `blocks` is 0 and the response is so long


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings of sampling; hashable, so that jit takes them as a static argument.

  Raises InputError for a number out of its range and for unknown names in int8.
  """

  group: int  # G, the responses to each prompt; from 1
  max_tokens: int  # of a response, with its end token; from 1
  eos_ids: tuple[int, ...]  # end tokens: a response ends with the first of them; (): none
  pad_id: int = 0  # the token in the slots behind a response; may be an end token, for it is never read
  temperature: float = 1.0  # from 0; 0: the likeliest token is always taken
  top_k: int = 0  # sample among the k likeliest tokens and their ties; 0: among all
  top_p: float = 1.0  # of these, among the smallest set with at least this probability; in (0, 1], 1: all
  shrink: int = 2  # how many times, at most, the batch is halved as responses end; 0: never
  blocks: int = 0  # of the KV cache of responses, each allocated once a response reaches it; 0: 1 to 4, by max_tokens
  int8: tuple[str, ...] = ()  # what is held in 8 bits, of "weights" and "cache"

  def __post_init__(self):
    if self.group < 1 or self.max_tokens < 1 or self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
      raise InputError(f"{self}: group and max_tokens from 1, temperature and top_k from 0, top_p in (0, 1]")
    if self.blocks < 0 or not set(self.int8) <= {"weights", "cache"}:
      raise InputError(f"{self}: blocks from 0, int8 of 'weights' and 'cache'")

  @property
  def block_slots(self) -> int:
    """Number of tokens in a block: the KV cache of a response is cut into blocks of so many tokens."""
    blocks = self.blocks or min(_MOST_BLOCKS, math.ceil(self.max_tokens / _LEAST_BLOCK_SLOTS))
    return math.ceil(self.max_tokens / blocks)


class Batch(NamedTuple):
  """P prompts, padded on the left to S slots, and a random key for each of their P * G responses."""

  prompt_PS: jax.Array  # int32 token ids; what stands in the slots of the padding does not matter
  prompt_length_P: jax.Array  # int32, from 1 to S: how many of the last slots hold the prompt
  keys_B: jax.Array  # typed keys of jax.random, problem-major: the G keys of a prompt stand together


@struct.dataclass
class Rollout:
  """B = P * G responses, problem-major: the G responses to a prompt stand together.

  T is max_tokens. Behind a response's length_B tokens, tokens_BT holds pad_id and the other [B,T] arrays hold 0.
  """

  tokens_BT: jax.Array  # int32
  length_B: jax.Array  # int32: tokens of the response, from 1, with its end token
  stop_B: jax.Array  # int32: why it ended, 0 STOP_LENGTH, 1 STOP_EOS (an end token), 2 STOP_STRING
  logp_BT: jax.Array  # log-probability in nats under the distribution sampled from (temperature, top-k, top-p)
  model_logp_BT: jax.Array  # log-probability in nats under the model itself (temperature 1)
  certainty_BT: jax.Array  # KL(uniform || model) over the next token, nats, from 0: more is surer
  entropy_BT: jax.Array  # entropy of the model's distribution of the next token, nats
