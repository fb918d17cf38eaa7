"""Policies that generate responses and score texts, from a run directory, a Hugging Face directory or the hub."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.config import files, values
from jaxrlvr.device import multihost, sharding
from jaxrlvr.model import peft_files
from jaxrlvr.model.score import score as score_tokens
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling.types import STOP_NAMES
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.text.tokenizer import continuation

# The user's message, or all messages, each {"role", "content"}.
Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
_ROWS = 64  # texts that are scored at a time, and responses that are sampled at a time, at most
_PROMPT_SLOTS = 32  # prompts are padded to a multiple of it, so that few programs are compiled
_TEXT_SLOTS = 128  # the same for texts that are scored; the TPU kernel takes multiples of it


class Sample(NamedTuple):
  """A response that a policy has generated."""

  text: str  # all of it, with its thinking
  answer: str | None  # the answer that it gives; None: none
  logp: float  # log-probability of all its tokens under the policy, in nats, whatever temperature it was sampled at
  token_logp: list[float]  # the same of each token; they sum up to `logp`
  tokens: list[int]  # ids of its tokens, with the end token if it has one
  stop: str  # why it ended: "eos" (an end token), "length" (max_tokens) or "string" (a stop string)


class Score(NamedTuple):
  """The score of a text."""

  logp: float  # log-probability of all its tokens, in nats
  token_logp: list[float]  # of each scored token
  tokens: list[int]  # ids of the scored tokens


class Policy:
  """A policy with its tokenizer. `load_policy` reads one; `Run.policy` and `Trainer.policy` have one."""

  def __init__(self, config: ConfigDict, policy: build_policy.Policy):
    """config: how it is sampled: rl.response_tokens, rl.stop_strings, answer.read and seed. policy: its weights."""
    self._config, self._policy = config, policy

  def __repr__(self) -> str:
    weights = sum(array.size for array in self._policy.weights().values())
    return f"Policy of {weights / 1e6:.2f} million weights"

  def generate(
    self,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_tokens: int | None = None,
    seed: int = 0,
  ) -> list[list[Sample]]:
    """Returns `samples` responses to each prompt, in a list for each.

    The same arguments give the same responses. temperature: 0 always takes the likeliest token. top_k, top_p: sample
    among so many tokens, or so much probability; 0 and 1.0: among all. max_tokens: of a response; None: the
    `rl.response_tokens` of the run. Raises InputError for a number out of its range, a prompt that is no text, and
    texts that need other rotary angles than those that the policy was loaded for.
    """
    if isinstance(prompts, str):
      raise InputError(f"prompts = {prompts[:80]!r}: is one text; write [prompt]")
    if not prompts:
      return []
    loaded = self._prompted(prompts)
    longest = max(map(len, loaded.ids.values()))
    config = values.changed(self._config, {"rl.prompt_tokens": _rounded(longest, _PROMPT_SLOTS), "seed": seed})
    self._check_length(longest + (config.rl.response_tokens if max_tokens is None else max_tokens))
    settings: dict[str, Any] = dict(group=samples, temperature=temperature, top_k=top_k, top_p=top_p)
    if max_tokens is not None:
      settings["max_tokens"] = max_tokens
    generated: list[list[Sample]] = []
    with jax.set_mesh(self._policy.mesh), jax.transfer_guard("disallow"):
      sampler = rollout.Sampler(config, self._policy, "generate", **settings)
      size = sampler.batch_size(max(1, _ROWS // samples), len(prompts))
      for drawn in sampler.sweep(sampler.weights(self._policy.params), loaded, size):
        generated += _samples_of(drawn)
    return generated

  def _prompted(self, prompts: Sequence[Prompt]) -> rollout.PromptedProblems:
    """Returns prompts as problems. A prompt's samples are its own, whatever else is generated beside it."""
    tokenizer = self._policy.tokenizer
    problems: list[Problem] = []
    occurrences: dict[str, int] = {}
    for prompt in prompts:
      messages = _messages(prompt)
      digest = hashlib.sha1(json.dumps(messages).encode()).hexdigest()[:16]
      occurrences[digest] = occurrences.get(digest, -1) + 1
      problems.append(Problem(f"{digest}-{occurrences[digest]}", tuple(messages), "", "", "math"))
    ids = {problem.id: tokenizer.render(problem.messages) for problem in problems}
    openings = {problem.id: tokenizer.opening(problem.messages) for problem in problems}
    return rollout.PromptedProblems(problems, ids, openings, dropped=0)

  def score(self, texts: Sequence[str | tuple[Prompt, str | Sample]]) -> list[Score]:
    """Returns the log-probabilities of texts, or of responses to prompts.

    A text is scored as pre-training reads it: behind the start token if the tokenizer has one, else from its second
    token on. A pair (prompt, response) is scored as a turn of the chat: the response's tokens, given the prompt. A
    response as text ends with the end token; a `Sample` is scored by its very tokens, which gives its `logp`. Raises
    InputError for a text that needs other rotary angles than those that the policy was loaded for.
    """
    if isinstance(texts, str):
      raise InputError(f"texts = {texts[:80]!r}: is one text; write [text]")
    parts = [self._context_and_target(text) for text in texts]
    self._check_length(max((len(context) + len(target) for context, target in parts), default=0))
    scores: list[Score] = []
    with jax.set_mesh(self._policy.mesh), jax.transfer_guard("disallow"):
      for first in range(0, len(parts), _ROWS):
        scores += self._score(parts[first : first + _ROWS])
    return scores

  def _check_length(self, tokens: int) -> None:
    """Raises InputError where a rotary scaling has other angles for texts so long (`RopeScaling.is_exceeded`)."""
    spec = self._policy.spec
    if spec.rope_scaling is not None and spec.rope_scaling.is_exceeded(tokens, spec.max_positions):
      raise InputError(
        f"a text of up to {tokens} tokens: the rotary scaling {spec.rope_scaling.kind!r} depends on the longest text, "
        "which was taken to have config.rl.prompt_tokens + config.rl.response_tokens; load the policy with a config "
        "in which they are larger"
      )

  def _context_and_target(self, text: str | tuple[Prompt, str | Sample]) -> tuple[list[int], list[int]]:
    """Returns (tokens that are given, tokens to score)."""
    tokenizer = self._policy.tokenizer
    if isinstance(text, str):
      start, ids = tokenizer.render(()), tokenizer.encode(text)
      return (start, ids) if start else (ids[:1], ids[1:])
    prompt, response = text
    messages = _messages(prompt)
    context = tokenizer.render(messages)
    if isinstance(response, Sample):
      return context, list(response.tokens)
    ids = tokenizer.encode(continuation(response, tokenizer.opening(messages)))
    return context, [*ids, tokenizer.eos_ids[0]]

  def _score(self, parts: Sequence[tuple[list[int], list[int]]]) -> list[Score]:
    """Scores a batch of (context, target) pairs."""
    policy = self._policy
    shards = sharding.shard_count(policy.mesh, "batch")
    rows = _rounded(len(parts), shards)
    slots = _rounded(max(len(context) + len(target) for context, target in parts), _TEXT_SLOTS)
    tokens_BT = np.full((rows, slots), policy.tokenizer.pad_id, np.int32)
    start_B, end_B = np.ones(rows, np.int32), np.ones(rows, np.int32)
    for row, (context, target) in enumerate(parts):
      start_B[row], end_B[row] = len(context), len(context) + len(target)
      tokens_BT[row, : end_B[row]] = [*context, *target]
    on_devices = multihost.put((tokens_BT, start_B, end_B), sharding.named_sharding(policy.mesh, "batch"))
    logp_BT = multihost.fetch(_token_logp(policy.weights(), *on_devices, policy.spec))
    scores = []
    for row, (_, target) in enumerate(parts):
      logp_T = logp_BT[row, start_B[row] - 1 : end_B[row] - 1]
      scores.append(Score(float(logp_T.sum()), logp_T.tolist(), list(target)))
    return scores


def load_policy(path: str | os.PathLike, config: ConfigDict | None = None) -> Policy:
  """Reads a policy: that of a finished run, of a Hugging Face or PEFT directory, or of a name of the hub.

  config: how it is computed and sampled (the groups model, mesh, rl and answer); None: that of the run or, for a model,
  the default. Its model.path is the base of a PEFT directory; "": the one that the directory names. Raises
  InputError where there is no policy, and StorageError for damaged checkpoints.
  """
  name = os.fspath(path)
  folder = object_store.path(name)
  is_run = (folder / build_policy.POLICY_FILE).is_file()
  if config is None:
    config = files.read(str(folder / "config.json")) if is_run else files.base()
  start = {"init": "", "model.adapter": "", "model.path": "", "tokenizer": ""}
  if is_run:
    start["init"] = name
  elif (folder / peft_files.ADAPTER_CONFIG).is_file():
    start |= {"model.adapter": name, "model.path": config.model.path}
  else:
    start["model.path"] = name
  changed = values.changed(config, start)
  return Policy(changed, build_policy.load_policy(changed))


def _messages(prompt: Prompt) -> list[dict[str, str]]:
  """Returns a prompt as messages. Raises InputError where it is neither a text nor messages."""
  if isinstance(prompt, str):
    return [{"role": "user", "content": prompt}]
  messages = [dict(message) for message in prompt if isinstance(message, Mapping)]
  if not messages or len(messages) < len(prompt) or any({"role", "content"} - set(message) for message in messages):
    raise InputError(f"prompt {repr(prompt)[:80]}: wanted a text, or messages of the keys role and content")
  return messages


def _samples_of(drawn: rollout.Drawn) -> list[list[Sample]]:
  """Returns the samples of a batch, without those of problems that only fill it up."""
  tokens_BT, logp_BT = multihost.fetch((drawn.rollout.tokens_BT, drawn.rollout.model_logp_BT))
  generated = []
  for p, responses in enumerate(drawn.answers.response_PG):
    samples = []
    for g, response in enumerate(responses):
      row, length = p * len(responses) + g, drawn.length_PG[p, g]
      logp_T = logp_BT[row, :length]
      stop = STOP_NAMES[drawn.stop_PG[p, g]]
      tokens = tokens_BT[row, :length].tolist()
      samples.append(Sample(response.text, response.answer, float(logp_T.sum()), logp_T.tolist(), tokens, stop))
    generated.append(samples)
  return generated


def _rounded(number: int, multiple: int) -> int:
  """Returns the least multiple that is not below a number."""
  return -(-number // multiple) * multiple


@functools.partial(jax.jit, static_argnames=("spec",))
def _token_logp(params: Any, tokens_BT: jax.Array, start_B: jax.Array, end_B: jax.Array, spec: Spec) -> jax.Array:
  """Returns the log-probability [B,T-1] of the tokens in slots 1 to T-1, 0 outside of start_B to end_B."""
  slot_T = jnp.arange(tokens_BT.shape[1])
  position_BT = jnp.broadcast_to(slot_T, tokens_BT.shape)
  is_text_BT = position_BT < end_B[:, None]
  is_scored_BT = is_text_BT & (position_BT >= start_B[:, None])
  return score_tokens(
    params, tokens_BT, position_BT, is_text_BT.astype(jnp.int32), spec, scored_BT=is_scored_BT
  ).logp_BT
