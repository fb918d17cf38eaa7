"""Samples a batch: the function that RL and evaluation call."""

from __future__ import annotations

import jax

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
  *,
  shards: int = 1,
) -> Rollout:
  """Returns G responses to each prompt, a pure function of weights, prompt and row key.

  weights: master weights, or what `lay_out_weights` returned for them, which saves that work. prompt_PS: left-padded
  token ids. prompt_length_P: how many of the last slots hold the prompt, at least 1. keys_B: a random key for each
  response (`keys.rows`). stops: the stop-string automaton (`text.stop_strings.automaton`), int [states, V], whose last
  state means that a stop string was found. shards: of the batch on the mesh; live rows are compacted in each shard.

  The host chooses the next program as responses end. There are at most (halvings + 1) * blocks of the cache programs,
  and the first call of a shape in this process compiles them all. On a CPU each core samples a part of the batch, if
  the parts have enough rows.
  """
  if not isinstance(weights["q"], tuple):
    weights = lay_out_weights(spec, None, s.int8)(weights)
  batch = Batch(prompt_PS, prompt_length_P, keys_B)
  problems, width = prompt_PS.shape
  parts = threads.count(weights, problems, s.group)
  mesh = jax.sharding.get_abstract_mesh()
  loop = decode_loop(spec, s, shards, (problems // parts, width), stops.shape, mesh)
  if parts == 1:
    return loop(weights, batch, stops)
  batches, stops = threads.split(batch, stops, parts)
  return threads.join(threads.sample_each(lambda part: loop(weights, part, stops), batches))
