"""The work that is counted from shapes equals the products in the traced programs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters import partial_eval

from jaxrlvr.model import lora, weight_table
from jaxrlvr.model.row_layout import Separate, SharedPrompt
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Lora
from jaxrlvr.planning import flops
from jaxrlvr.sampling import cache as sampler_cache
from jaxrlvr.sampling import decode as sampler
from jaxrlvr.sampling.types import Batch, Sampling
from jaxrlvr.sampling.weights import lay_out_weights
from jaxrlvr.training import objective

ONE = flops.Shards(1, 1, 1)


def multiplied(jaxpr, steps=1):
  """Returns the FLOPs of all products in a jaxpr; a scan's body counts once a step, a while loop's `steps` times."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      (contracted, _), _ = eqn.params["dimension_numbers"]
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    times = {"scan": eqn.params.get("length"), "while": steps}.get(eqn.primitive.name, 1)
    if eqn.primitive.name == "cond":  # what differs by platform, the same products in each
      total += max(multiplied(branch.jaxpr, steps) for branch in eqn.params["branches"])
      continue
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
          total += times * multiplied(inner, steps)
  return total


def text(spec, rows, time):
  ints = jax.ShapeDtypeStruct((rows, time), jnp.int32)
  return objective.TextBatch(ints, ints, ints, jax.ShapeDtypeStruct((rows, time), jnp.float32))


def test_a_scoring_pass(spec, params):
  batch = text(spec, 3, 10)
  rows = (batch.tokens_BT, batch.positions_BT, batch.segments_BT)
  jaxpr = jax.make_jaxpr(lambda *x: score(*x, spec=spec, start=4))(params, *rows).jaxpr
  assert flops.forward_cost(spec, 3, Separate(10), 6, ONE).flops == multiplied(jaxpr)
  shared = SharedPrompt(2, 2, 4)
  jaxpr = jax.make_jaxpr(lambda *x: score(*x, spec=spec, start=4, layout=shared))(params, *rows).jaxpr
  assert flops.forward_cost(spec, 3, shared, 6, ONE).flops == multiplied(jaxpr)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_an_update(spec, params, remat):
  """The backward pass of the real loss counts what it recomputes, and leaves out unused products as XLA does."""
  spec = dataclasses.replace(spec, remat=remat)
  gradient = jax.grad(lambda *x: objective.language_modelling(spec)(*x)[0])
  jaxpr = jax.make_jaxpr(gradient)(params, text(spec, 3, 10)).jaxpr
  counted = flops.update_cost(spec, 3, Separate(10), 9, 1, 4, ONE)
  assert counted.flops == multiplied(jaxpr)
  assert counted.model_flops < counted.flops


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_an_update_of_adapters(spec, params, remat):
  """No gradient of a frozen weight is counted. The traced program has that of the head, which XLA takes out."""
  adapters = Lora(2, 4.0, ("q", "k", "o", "up", "down"))
  spec = dataclasses.replace(spec, remat=remat, lora=adapters)
  trained = jax.eval_shape(lambda: lora.init_adapters(spec, jax.random.key(0)))

  def loss(adapters, frozen, batch):
    return objective.language_modelling(spec)({**frozen, **adapters}, batch)[0]

  jaxpr = jax.make_jaxpr(jax.grad(loss))(trained, params, text(spec, 3, 10)).jaxpr
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  gradient_of_head = 2 * spec.width * spec.vocab * 3 * 9
  counted = flops.update_cost(spec, 3, Separate(10), 9, 1, 4, ONE)
  assert counted.flops == multiplied(used) - gradient_of_head
  full = flops.update_cost(dataclasses.replace(spec, lora=None), 3, Separate(10), 9, 1, 4, ONE)
  assert 0.6 < counted.model_flops / full.model_flops < 0.9
  assert counted.bytes < full.bytes


def test_decoding(rich_spec, rich_params):
  s = Sampling(group=2, max_tokens=5, eos_ids=(0,), shrink=0)
  spec, problems, width = rich_spec, 3, 4
  keys_B, stops = jax.random.split(jax.random.key(0), 6), jnp.zeros((2, spec.vocab), jnp.int32)
  prompt_PS, length_P = jnp.ones((problems, width), jnp.int32), jnp.full(problems, width)
  weights = lay_out_weights(spec)(rich_params)
  prompt, state = sampler.prefill(weights, Batch(prompt_PS, length_P, keys_B), stops, spec=spec, s=s)
  arguments = (prompt, (), sampler_cache.empty_block(prompt, 6, s.block_slots), state, jnp.int32(0))
  jaxpr = jax.make_jaxpr(lambda *x: sampler.decode(weights, *x, stops, spec=spec, s=s, until_live=0))(*arguments).jaxpr
  levels = flops.level_steps(6, 5, 5, 0)
  assert levels == [(6, 4)]
  counted = flops.decode_cost(spec, 2, width, 5, levels, ONE)
  assert counted.flops == multiplied(jaxpr, steps=4)


def test_blocks_of_the_cache_are_read_from_where_they_begin():
  assert flops.read_slots(0, 128, 32) == (32 + 64 + 96 + 128) / 4
  assert flops.read_slots(48, 32, 32) == (64 + 96) / 2
  assert flops.read_slots(0, 4, 5) == 5


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 9])
def test_blocks_before_the_window_are_not_read(window):
  for blocks in (1, 2, 4):
    read = sampler_cache._blocks_in_window([sampler_cache._Part(None)] * blocks, 0, 3, window)
    assert flops.read_slots(3 * (blocks - 1), 3, 3, window) == 3 * len(read)


def test_layers_with_a_window_need_less(spec):
  """The reference computes the pairs all the same; the kernel leaves them out."""
  windowed = dataclasses.replace(spec, window=600, sliding=(True, False))
  layout = Separate(4096)
  whole, less = (flops.forward_cost(s, 1, layout, 0, ONE) for s in (spec, windowed))
  pairs = layout.attention_pairs("reference").needed - layout.attention_pairs("reference", 600).needed
  assert less.flops == whole.flops and whole.model_flops - less.model_flops == 4 * spec.heads * spec.head_dim * pairs
  on_tpu = [flops.forward_cost(dataclasses.replace(s, attention="splash"), 1, layout, 0, ONE) for s in (spec, windowed)]
  assert on_tpu[1].flops < on_tpu[0].flops


def test_levels_of_the_batch_have_the_mean_length():
  levels = flops.level_steps(1024, 1001, 250, 9)
  assert [rows for rows, _ in levels] == [1024 // 2**n for n in range(10)]
  assert sum(steps for _, steps in levels) == pytest.approx(1000)
  lower = sum(rows / 2 * steps for rows, steps in levels) / 1024
  upper = sum(rows * steps for rows, steps in levels) / 1024
  assert lower < 250 < upper
  assert flops.level_steps(1024, 1001, 1001, 2)[0] == (1024, 1000)


def test_chips_share_the_work_and_weights_are_read_by_each(spec):
  whole = flops.update_cost(spec, 8, Separate(10), 9, 2, 4, ONE)
  shared = flops.update_cost(spec, 8, Separate(10), 9, 2, 4, flops.Shards(4, 2, 8))
  assert shared.flops == whole.flops / 8
  assert shared.bytes > whole.bytes / 8
  more = flops.update_cost(spec, 8, Separate(10), 9, 4, 4, ONE)
  # Gradient and weights, twice as often.
  assert more.bytes - whole.bytes == 2 * weight_table.count_weights(spec) * (8 + 2 * 4)
  less = flops.update_cost(spec, 8, Separate(10), 9, 2, 2, ONE)
  assert whole.bytes - less.bytes == 4 * weight_table.count_weights(spec)
