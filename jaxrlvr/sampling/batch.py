"""Samples a batch: what RL and evaluation call."""

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

  weights: masters, or as `lay_out_weights` makes them, which saves that work; prompt_PS: left-padded token ids;
  prompt_length_P: how many of the last slots are real (at least 1); keys_B: one a row (`keys.rows`); stops: the
  stop-string automaton (`text.stop_strings.automaton`), int [states, V], whose last state means that one was found;
  shards: pieces that the batch is cut into on the mesh, rows are compacted inside each.

  The host chooses between programs as responses end: their number is at most (halvings + 1) * blocks of the cache, and
  the first call of a shape in this process compiles them all. On a CPU each core samples a part of the batch, if it
  has rows enough.
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
