"""Adapters: without b the policy is its base, their gradient is that of the weights, projected; merged or not."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import keys, sharding
from jaxrlvr.model import forward, lora, weight_table
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Lora
from jaxrlvr.training import objective, optimizer
from jaxrlvr.training.update import accumulate, init_state, update

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture(scope="module")
def lora_spec(rich_spec):
  return dataclasses.replace(rich_spec, lora=Lora(3, 6.0, TARGETS))


@pytest.fixture(scope="module")
def adapters(lora_spec):
  """Fresh adapters, and adapters whose b is not 0."""
  fresh = jax.jit(lambda: lora.init_adapters(lora_spec, keys.at(0, "lora")))()
  moved = dict(fresh)
  for name in fresh:
    if name.endswith("_b"):
      moved[name] = 0.3 * jax.random.normal(keys.at(1, name), fresh[name].shape)
  return fresh, moved


@pytest.fixture(scope="module")
def batch():
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 29, (4, 12)), jnp.int32)
  positions, segments = jnp.broadcast_to(jnp.arange(12), (4, 12)), jnp.ones((4, 12), jnp.int32)
  return objective.TextBatch(tokens, positions, segments, jnp.full((4, 12), 1 / 44))


def gradients(spec, params, frozen, batch, parts=1):
  loss_fn = objective.language_modelling(spec)
  return jax.jit(accumulate, static_argnums=(0, 3))(loss_fn, params, batch, parts, None, frozen)


def logp(spec, params, batch):
  scores = jax.jit(score, static_argnums=4)(params, batch.tokens_BT, batch.positions_BT, batch.segments_BT, spec)
  return np.asarray(scores.logp_BT)


def flat(x, inputs):
  """Returns one layer's weight as a matrix [inputs, outputs]."""
  return np.asarray(x, np.float64).reshape(len(x), inputs, -1)


def test_fresh_adapters_are_peft_s_and_leave_the_base_bit_for_bit(lora_spec, rich_spec, rich_params, adapters, batch):
  fresh, moved = adapters
  for name, leaf in weight_table.adapter_leaves(lora_spec).items():
    assert fresh[name].shape == leaf.shape and fresh[name].dtype == jnp.float32
    if name.endswith("_lora_b"):
      assert not np.any(fresh[name])
      continue
    draws = np.abs(np.asarray(fresh[name])) * leaf.fan_in**0.5
    assert draws.max() <= 1 and 0.3 < draws.mean() < 0.7
  base = logp(rich_spec, rich_params, batch)
  np.testing.assert_array_equal(logp(lora_spec, rich_params | fresh, batch), base)
  np.testing.assert_array_equal(logp(lora_spec, rich_params, batch), base)
  assert np.abs(logp(lora_spec, rich_params | moved, batch) - base).max() > 0.1


def test_the_gradient_is_that_of_the_merged_weights_projected(lora_spec, rich_spec, rich_params, adapters, batch):
  """dA = scale * dW B^T and dB = scale * A^T dW, where dW is the gradient of full training at the merged weights."""
  _, moved = adapters
  merged = lora.merge_adapters(rich_params | moved, lora_spec)
  np.testing.assert_allclose(
    logp(lora_spec, rich_params | moved, batch), logp(rich_spec, merged, batch), atol=2e-5, rtol=1e-5
  )
  full = gradients(rich_spec, merged, None, batch)
  low = gradients(lora_spec, moved, rich_params, batch)
  np.testing.assert_allclose(low.loss, full.loss, rtol=1e-5)
  assert low.gradient.keys() == moved.keys()
  for name in TARGETS:
    inputs = weight_table.leaves(rich_spec)[name].fan_in
    name_a, name_b = weight_table.adapter_names(name)
    a, b, d_w = flat(moved[name_a], inputs), flat(moved[name_b], 3), flat(full.gradient[name], inputs)
    d_a, d_b = flat(low.gradient[name_a], inputs), flat(low.gradient[name_b], 3)
    np.testing.assert_allclose(d_a, 2.0 * d_w @ b.swapaxes(1, 2), atol=1e-5, err_msg=name)
    np.testing.assert_allclose(d_b, 2.0 * a.swapaxes(1, 2) @ d_w, atol=1e-5, err_msg=name)
    assert np.abs(d_a).max() > 1e-4 and np.abs(d_b).max() > 1e-4


@pytest.fixture(scope="module")
def updates(lora_spec, rich_params, adapters, batch):
  """(compiled update of two microbatches, its state, frozen weights): of all weights, and of the adapters alone."""
  adamw = optimizer.adamw(0.9, 0.95, 1e-8, 0.1, 0.0)
  loss_fn = objective.language_modelling(lora_spec)
  programs = []
  for trained, frozen in ((rich_params | adapters[1], None), (adapters[1], rich_params)):
    state = init_state(jax.tree.map(jnp.array, trained), adamw)
    lowered = update.lower(state, batch, 1e-2, None, frozen, loss_fn=loss_fn, optimizer=adamw, microbatches=2)
    programs.append((lowered.compile(), state, frozen))
  return programs


def test_no_gradient_of_a_frozen_weight_is_computed(updates):
  counts = []
  for program, _, _ in updates:
    products = re.findall(r"= \w+\[([\d,]*)\]\S* dot\(", program.as_text())
    counts.append(collections.Counter(products))
  every, low = counts
  # Of a layer: q, gate and up [16,24], k and v [16,6], o and down [24,16]; and a piece of the head, [8,16].
  assert every - low == {"16,24": 3, "16,6": 2, "24,16": 2, "8,16": 1} and not low - every


def test_a_step_is_that_of_training_everything_and_the_base_stays(updates, rich_params, adapters, batch):
  """AdamW sees the adapters alone: without clipping, their step is that of an update which trains all weights."""
  full, low = (program(state, batch, 1e-2, None, frozen)[0].params for program, state, frozen in updates)
  assert low.keys() == adapters[1].keys()
  for name in low:
    np.testing.assert_array_equal(low[name], full[name], err_msg=name)
    assert np.any(low[name] != adapters[1][name])
  assert not any(w.is_deleted() for w in rich_params.values())


def test_sharded_is_unsharded(lora_spec, rich_params, adapters, batch):
  """Adapters that are drawn, differentiated by and merged on a mesh of every axis are those of one device."""
  spec = dataclasses.replace(lora_spec, heads=4, kv_heads=2, head_dim=6)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  places = weight_table.shardings(spec, mesh) | lora.trained_shardings(spec, mesh)
  base = weight_table.init(spec, keys.at(5, "init"))
  one = lora.init_adapters(spec, keys.at(0, "lora"))
  drawn = jax.jit(
    lambda: lora.init_adapters(spec, keys.at(0, "lora")), out_shardings=lora.trained_shardings(spec, mesh)
  )()
  assert drawn["q_lora_b"].sharding.shard_shape(drawn["q_lora_b"].shape) == (2, 3, 2, 6)
  for name in one:
    np.testing.assert_array_equal(drawn[name], one[name])
  one |= {name: jnp.full(w.shape, 0.3) for name, w in one.items() if name.endswith("_b")}
  cut = {name: jax.device_put(w, places[name]) for name, w in (base | one).items()}
  frozen, trained = ({name: cut[name] for name in names} for names in (base, one))
  want = gradients(spec, one, base, batch)
  rows = jax.device_put(batch, sharding.named_sharding(mesh, "batch"))
  with jax.set_mesh(mesh):
    got = gradients(spec, trained, frozen, rows)
  for name in one:
    np.testing.assert_allclose(got.gradient[name], want.gradient[name], atol=2e-6, err_msg=name)
  merged, merged_cut = lora.merge_adapters(base | one, spec), lora.merge_adapters(cut, spec)
  for name in base:
    np.testing.assert_allclose(merged_cut[name], merged[name], atol=1e-6)
    assert merged_cut[name].sharding == places[name]


def test_a_base_in_bfloat16_is_computed_as_its_rounded_values(lora_spec, rich_spec, rich_params, adapters, batch):
  """Products widen the weights one by one; merging adds to the rounded weights in float32."""
  narrow = {name: w.astype(jnp.bfloat16) for name, w in rich_params.items()}
  rounded = {name: w.astype(jnp.float32) for name, w in narrow.items()}
  moved = adapters[1]
  assert all(w.dtype == jnp.bfloat16 for w in forward.cast(narrow, lora_spec).values())
  np.testing.assert_array_equal(logp(lora_spec, narrow | moved, batch), logp(lora_spec, rounded | moved, batch))
  got, want = (gradients(lora_spec, moved, base, batch).gradient for base in (narrow, rounded))
  for name in moved:
    np.testing.assert_array_equal(got[name], want[name])
  merged = lora.merge_adapters(narrow | moved, lora_spec)
  for name, w in lora.merge_adapters(rounded | moved, lora_spec).items():
    assert merged[name].dtype == jnp.float32
    np.testing.assert_array_equal(merged[name], w)


def test_targets_and_ranks_that_do_not_fit_are_named(rich_spec):
  with pytest.raises(InputError, match=r"'q_norm' is no weight that layers multiply with; take q, k, v, o, gate, up"):
    weight_table.adapter_leaves(dataclasses.replace(rich_spec, lora=Lora(2, 4.0, ("q_norm",))))
  lora.check_rank(dataclasses.replace(rich_spec, lora=Lora(6, 4.0, ("k",))))
  with pytest.raises(InputError, match=r"rank of LoRA = 7: is above 6, the smaller side of k \[16, 6\]; lower it"):
    lora.check_rank(dataclasses.replace(rich_spec, lora=Lora(7, 4.0, ("q", "k"))))
