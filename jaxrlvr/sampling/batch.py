"""Samples a batch: the function that RL and evaluation call."""

from __future__ import annotations

import jax

from jaxrlvr.device import sharding
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling import threads
from jaxrlvr.sampling.decode import decode_loop
from jaxrlvr.sampling.types import Batch, Rollout, Sampling
from jaxrlvr.sampling.weights import lay_out_weights


def sample(
  weights: dict,
  prompt_PS: jax.Array,
  prompt_length_P: jax.Array,
  keys_B: jax.Array,
  stops: jax.Array,
  spec: Spec,
  s: Sampling,
) -> Rollout:
  """Returns s.group responses to each of P prompts, in the order of the prompts.

  weights: master weights by name, or what `lay_out_weights` returned for them, which saves that work. prompt_PS: token
  ids, padded on the left. prompt_length_P: how many of the last slots hold each prompt, at least 1. keys_B: a random
  key for each response, those of a prompt together (`keys.of_samples`). stops: the table that finds stop strings,
  int32 [states, V] (`text.stop_strings.automaton`). s: the settings. A response depends on weights, settings, its
  prompt and its key alone.

  Runs on the mesh of `jax.set_mesh`, whose every process must call it; without a mesh, on the device of the weights.
  The rows of the result are sharded along "batch" (`device.sharding.RULES`); P must be a multiple of these shards. The
  first call for a shape compiles all programs that responses of any length need, at most (s.shrink + 1) * blocks to
  decode. On a single CPU device each core samples a part of the batch if each part has at least 64 responses.
  """
  if not isinstance(weights["q"], tuple):
    weights = lay_out_weights(spec, None, s.int8)(weights)
  batch = Batch(prompt_PS, prompt_length_P, keys_B)
  problems, width = prompt_PS.shape
  parts = threads.part_count(weights, problems, s.group)
  mesh = jax.sharding.get_abstract_mesh()
  shards = sharding.shards_here("batch")
  loop = decode_loop(spec, s, shards, (problems // parts, width), stops.shape, mesh)
  if parts == 1:
    return loop(weights, batch, stops)
  batches, stops = threads.split(batch, stops, parts)
  return threads.join(threads.sample_each(lambda part: loop(weights, part, stops), batches))
