"""Memory that is counted from shapes: small numbers by hand, and what compiled programs take."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrlvr.device import sharding
from jaxrlvr.model import lora, weight_table
from jaxrlvr.model.attention import scores_at_once
from jaxrlvr.model.row_layout import Separate, SharedPrompt
from jaxrlvr.model.spec import Lora, Spec
from jaxrlvr.planning import memory
from jaxrlvr.training import objective, optimizer
from jaxrlvr.training.update import init_state, update

WEIGHTS = 24 * 16 + 2 * (2 * 16 + 2 * 256 + 2 * 128 + 3 * 512) + 16  # of the fixture `spec`
ADAPTERS = 2 * 2 * (16 + 16) + 2 * 2 * (32 + 16)  # of rank 2, for q and down


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def low_rank(spec):
  return dataclasses.replace(spec, lora=Lora(2, 4.0, ("q", "down"), "bfloat16"))


def test_what_a_run_holds(spec, low_rank, mesh):
  """Of full training: weights, moments of 2 and 4 bytes, the reference model, and what saving them takes."""
  full = memory.held_of_run(spec, mesh, "bfloat16", reference=True)
  assert full == (4 * WEIGHTS, 0, 6 * WEIGHTS, 4 * WEIGHTS, 0, 2 * 10 * WEIGHTS)
  half = dataclasses.replace(spec, dtype="bfloat16")
  assert memory.held_of_run(half, mesh, "float32", reference=True).reference == 2 * WEIGHTS
  low = memory.held_of_run(low_rank, mesh, "float32", reference=True, laid_out=7)
  assert low == (4 * ADAPTERS, 2 * WEIGHTS, 8 * ADAPTERS, 0, 7, 2 * 12 * ADAPTERS)
  assert memory.held_of_run(low_rank, mesh) == (4 * ADAPTERS, 2 * WEIGHTS, 0, 0, 0, 0)
  assert memory.held_of_run(spec, mesh) == (4 * WEIGHTS, 0, 0, 0, 0, 0)


def test_devices_share_what_the_mesh_splits(spec):
  """fsdp splits all weights but the norms, data none; rows are split over both, heads and MLP over tensor."""
  norms = 2 * 2 * 16 + 16
  split = sharding.make_mesh(2, 2, 2)
  assert memory.held_of_run(spec, split, "float32").trained == 4 * ((WEIGHTS - norms) // 4 + norms)
  settings = dict(rows=8, microbatches=1, moment="float32")
  alone = memory.work_of_update(spec, sharding.make_mesh(1, 1, 1, jax.devices()[:1]), Separate(8), **settings)
  by_rows = memory.work_of_update(spec, sharding.make_mesh(2, 2, 1, jax.devices()[:4]), Separate(8), **settings)
  assert by_rows.batch == alone.batch / 4
  assert by_rows.activations == alone.activations / 4


def test_what_an_update_takes(spec, low_rank, mesh):
  """Gradients of the microbatch and of those before it; with "full" a layer stores its input alone."""
  settings = dict(rows=4, moment="float32")
  full = dataclasses.replace(spec, remat="full", attention="mapped")
  one = memory.work_of_update(full, mesh, Separate(8), microbatches=1, **settings)
  two = memory.work_of_update(full, mesh, Separate(8), microbatches=2, **settings)
  assert (one.gradients, two.gradients) == (4 * WEIGHTS, 8 * WEIGHTS)
  assert one.batch == two.batch == 32 * 4 * 8 and one.copies == 0
  layer = 0.5 * (32 * 16 - 4 * 16 + 4 * (3 * 16 + 2 * 8) + 4 * 4 + 6 * 4 * 32)  # half of what is computed again
  layer += 4 * (4 * 16 + 2 * 16 + 2 * 8 + 4 * 32)  # gradients
  assert one.activations == 4 * 8 * (2 * 4 * 16 + layer) + 2 * 4 * 4 * 4 * 8 * 8
  assert one.logits == 2 * 4 * 4 * 8 * 24 + 8 * 24 * 16 + 8 * 4 * 8 * 16
  stored = dataclasses.replace(full, remat="none")
  more = memory.work_of_update(stored, mesh, Separate(8), microbatches=1, **settings).activations - one.activations
  everything = 32 * 16 + 4 * (3 * 16 + 2 * 8) + 4 * 4 + 6 * 4 * 32
  assert more == 4 * 8 * (2 * (everything - 4 * 16) - 0.5 * (everything - 4 * 16))
  tiny = memory.work_of_update(full, mesh, Separate(2), rows=1, microbatches=1, moment="bfloat16")
  assert tiny.step > 0 and sum(tiny) - tiny.batch == (4 + 6) * WEIGHTS  # on a CPU the step copies the moments
  low = memory.work_of_update(low_rank, mesh, Separate(8), microbatches=2, **settings)
  assert (low.gradients, low.copies) == (8 * ADAPTERS, 4 * WEIGHTS / 2)  # each of two layers widens its own


def test_scores_that_are_in_memory_at_once():
  """`mapped` takes 2**23 or one row, kernels none; a shared prompt's pieces attend as rows of their own."""
  in_block = [scores_at_once("mapped", 8, 2**22), scores_at_once("mapped", 3, 2**24), scores_at_once("mapped", 3, 5)]
  assert in_block == [2**23, 2**24, 15]
  assert (scores_at_once("xla", 3, 5), scores_at_once("splash", 3, 5), scores_at_once("cudnn", 3, 5)) == (15, 0, 0)
  assert Separate(7).attended_rows(2) == (2, 49)
  assert SharedPrompt(4, 3, 5).attended_rows(2) == (6, 45) and SharedPrompt(50, 1, 2).attended_rows(2) == (2, 2500)


def test_what_sampling_takes(spec, low_rank, mesh):
  """A token has 16 keys and values in each of 2 layers, in float32; a response's also has an id and four figures."""
  slot = 2 * 2 * 2 * 4 * 4
  sizes = dict(problems=3, prompt_tokens=8, group=4, max_tokens=256, block_slots=64)
  sampled = memory.work_of_sampling(spec, mesh, **sizes)
  assert (sampled.cache, sampled.cache_growth) == (12 * 64 * slot, 12 * 192 * slot)
  assert (sampled.weights, sampled.rollout) == (4 * WEIGHTS, 12 * 256 * 20)
  assert sampled.logits == 4 * 4 * 12 * 24
  attention = (
    24 * 4 * 2 * (16 + 8) + 2 * 4 * 3 * 4 * 8 * 8
  )  # q, k, v, output and scores: more than the MLP's 24 * 4 * 96
  assert sampled.prompts == 24 * (slot + 4 * 4 * 16) + attention
  small = memory.work_of_sampling(spec, mesh, **sizes, int8=("weights", "cache"))
  norms = 2 * 2 * 16 + 16
  assert small.weights == WEIGHTS - norms + 4 * norms and small.cache == 12 * 64 * slot * 8 / 16
  assert memory.work_of_sampling(low_rank, mesh, **sizes).weights == 4 * ADAPTERS


def test_a_run_takes_the_larger_of_update_and_sampling():
  held = memory.Held(1, 2, 3, 4, 5, 6)
  update, sampling = memory.UpdateWork(*[10.0] * 6), memory.SamplingWork(1.0, 1.0, 1.0, 100.0, 1.0, 1.0)
  assert (memory.Memory(held, update, sampling).most, memory.Memory(held, update, sampling).least) == (126, 81)
  assert memory.Memory(held, None, sampling).least == 26 and memory.Memory(held).most == 21


SHAPES = {
  "deep": dict(vocab=512, width=256, layers=12, heads=8, kv_heads=2, head_dim=32, mlp=768),
  "wide": dict(vocab=8192, width=384, layers=2, heads=6, kv_heads=6, head_dim=64, mlp=768, vocab_chunk=2048),
  "untied": dict(vocab=4096, width=256, layers=4, heads=4, kv_heads=2, head_dim=128, mlp=512, tied=False),
}


def shapes_of(table, place, dtype) -> Any:
  return {name: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place[name]) for name, leaf in table.items()}


def programs(spec, mesh, layout, rows, microbatches):
  """Returns the compiled update of GRPO with a reference model, and the compiled scoring by that model."""
  base = shapes_of(weight_table.leaves(spec), weight_table.shardings(spec, mesh), jnp.float32)
  frozen, place = None, weight_table.shardings(spec, mesh)
  params = base
  if spec.lora is not None:
    frozen = shapes_of(weight_table.leaves(spec), place, spec.lora.base_dtype)
    place = lora.trained_shardings(spec, mesh)
    params = shapes_of(lora.trained_leaves(spec), place, jnp.float32)
  adamw = optimizer.adamw(0.9, 0.99, 1e-8, 0.0, 1.0)
  replicated = sharding.named_sharding(mesh)
  abstract = jax.eval_shape(lambda params: init_state(params, adamw), params)
  moments = optax.tree.map_params(
    adamw, lambda _, where: where, abstract.opt_state, place, transform_non_params=lambda _: replicated
  )
  places = type(abstract)(place, moments, replicated, replicated, replicated)
  state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), abstract, places)
  by_rows = sharding.named_sharding(mesh, "batch")
  ints = jax.ShapeDtypeStruct((rows, layout.slots), jnp.int32, sharding=by_rows)
  floats = jax.ShapeDtypeStruct((rows, layout.slots), jnp.float32, sharding=by_rows)
  batch = objective.RolloutBatch(ints, ints, ints, floats, floats, floats, None, floats, layout)
  live = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
  rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
  loss_fn = objective.grpo(spec, temperature=1.0, kl_beta=0.1, kl_estimator="k3")
  settings = dict(loss_fn=loss_fn, optimizer=adamw, microbatches=microbatches)
  with jax.set_mesh(mesh):
    updating = update.lower(state, batch, rate, live, frozen, **settings)
    scoring = objective.logp.lower(frozen or base, batch, live, spec, temperature=1.0, parts=microbatches)
    return updating.compile(), scoring.compile()


def compiled_bytes(program) -> int:
  """Returns the bytes of arguments, temporaries, and results that lie in no donated argument."""
  sizes = program.memory_analysis()
  results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + results


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(
  ("shape", "changes", "rank", "layout", "rows", "microbatches", "axes"),
  [
    ("deep", {}, 0, Separate(256), 8, 1, (1, 1, 1)),
    ("deep", {}, 16, Separate(256), 16, 4, (1, 1, 1)),
    ("deep", {"unroll": 3}, 0, Separate(256), 16, 4, (1, 1, 1)),
    ("wide", {}, 0, Separate(256), 8, 2, (1, 1, 1)),
    ("wide", {"attention": "reference", "dtype": "bfloat16"}, 16, Separate(256), 8, 2, (1, 1, 1)),
    ("untied", {"attention": "reference"}, 0, Separate(256), 8, 2, (1, 1, 1)),
    ("untied", {}, 0, SharedPrompt(64, 8, 64), 8, 2, (1, 1, 1)),
    ("untied", {}, 0, Separate(256), 32, 2, (2, 2, 2)),
  ],
)
def test_estimates_agree_with_compiled_programs(shape, changes, rank, layout, rows, microbatches, axes, remat):
  """The compiled update takes from 1 / 1.3 to 1 / 0.85 of the estimate; scoring never takes more than the estimate."""
  targets = ("q", "k", "v", "o", "gate", "up", "down")
  adapters = Lora(rank, 2.0 * rank, targets, changes.get("dtype", "float32")) if rank else None
  spec = Spec(**SHAPES[shape] | dict(attention="mapped") | changes, remat=remat, lora=adapters)
  mesh = sharding.make_mesh(*axes, devices=jax.devices()[: int(np.prod(axes))])
  held = memory.held_of_run(spec, mesh, "float32")
  settings = dict(rows=rows, microbatches=microbatches, moment="float32")
  estimate = memory.Memory(held._replace(saved=0), memory.work_of_update(spec, mesh, layout, **settings)).most
  updating, scoring = map(compiled_bytes, programs(spec, mesh, layout, rows, microbatches))
  assert 0.85 < estimate / updating < 1.3, f"{estimate / updating:.2f} of {updating / 1e6:.0f} MB"
  assert scoring < estimate
