"""Scores, samples, and updates of GRPO and SFT are equal with and without sharding; impossible meshes are refused."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.rollouts import prompts, rollout_batch, row_keys
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import checkpoint, sharding
from jaxrlvr.model import attention, forward, weight_table
from jaxrlvr.model.row_layout import SharedPrompt
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.sampling.weights import lay_out_weights
from jaxrlvr.training import objective, optimizer
from jaxrlvr.training.update import init_state, update

PROMPTS, LENGTHS = prompts([3, 6, 1, 5, 2, 4, 6, 3], high=20)
S = Sampling(group=4, max_tokens=7, eos_ids=(2,), shrink=0)
REWARD = (np.arange(32).reshape(8, 4) % 3 == 0).astype(np.float32)
ADAMW = optimizer.adamw(0.9, 0.95, 1e-8, 0.01, 1.0)
ROWS = 8, 12


def text_batch():
  draw = np.random.default_rng(0)
  tokens = draw.integers(3, 20, ROWS).astype(np.int32)
  segments = np.repeat([[1] * 5 + [2] * 6 + [0]], ROWS[0], 0).astype(np.int32)
  positions = np.repeat([[*range(5), *range(6), 0]], ROWS[0], 0).astype(np.int32)
  weights = (segments > 0) / np.float32((segments > 0).sum())
  return objective.TextBatch(tokens, positions, segments, weights.astype(np.float32))


def everything(spec, params, mesh, cut, shrink=0, layout=None):
  """Returns (scores, rollout, weights after GRPO, weights after SFT, losses) on a mesh.

  cut: the number of devices that the weights are sharded over while sampling.
  """
  placed = weight_table.shardings(spec, mesh)
  up = functools.partial(jax.device_put, device=sharding.named_sharding(mesh, "batch"))
  sampling = sharding.sampling_mesh(mesh, cut)
  settings = dict(group=4, baseline="mean", scale_std=True, reduce="token-mean")
  s = dataclasses.replace(S, shrink=shrink)
  clip = dict(temperature=1.0, kl_beta=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2)

  def state():
    return jax.jit(init_state, static_argnums=1)({k: jax.device_put(w, placed[k]) for k, w in params.items()}, ADAMW)

  with jax.set_mesh(mesh):
    text = up(text_batch())
    read = jax.jit(score, static_argnums=4)
    scores = read(state().params, text.tokens_BT, text.positions_BT, text.segments_BT, spec)
    weights = lay_out_weights(spec, sampling)(state().params)
    with jax.set_mesh(sampling):
      rows = jax.device_put((PROMPTS, LENGTHS, row_keys(range(8), 4)), sharding.named_sharding(sampling, "batch"))
      stops = np.zeros((2, spec.vocab), np.int32)
      rollout = sample(weights, *rows, stops, spec, s)
    rollout = jax.device_put(rollout, sharding.named_sharding(mesh, "batch"))
    settings |= dict(share=True, parts=2, layout=layout)
    [(grpo_batch, live)] = rollout_batch(PROMPTS, LENGTHS, rollout, REWARD, REWARD >= 0, **settings)
    grpo_batch = up(grpo_batch)
    grpo = functools.partial(update, optimizer=ADAMW, loss_fn=objective.grpo(spec, **clip))
    after_rl, rl = grpo(state(), grpo_batch, 1e-2, live, microbatches=2)
    after_sft, sft = update(state(), text, 1e-2, loss_fn=objective.language_modelling(spec), optimizer=ADAMW)
  return scores, rollout, after_rl.params, after_sft.params, (rl["loss"].compute(), sft["loss"].compute())


@pytest.fixture(scope="module")
def alone(spec, params):
  return everything(spec, params, sharding.make_mesh(devices=jax.devices()[:1]), 1)


MESHES = {  # name: sizes, pieces of the weights in sampling
  "fsdp, and tensor beyond the KV heads": (dict(data=1, fsdp=2, tensor=4), 4),
  "all three axes": (dict(data=2, fsdp=2, tensor=2), 4),
  "data": (dict(data=8), 1),
  "fsdp, sampled in two pieces": (dict(fsdp=8, data=1), 2),
}


@pytest.mark.parametrize("mesh", [pytest.param(m, marks=[pytest.mark.slow] * (i > 0)) for i, m in enumerate(MESHES)])
def test_sharded_equals_one_device(mesh, spec, params, alone):
  sizes, cut = MESHES[mesh]
  other = dataclasses.replace(spec, remat="full", attention="mapped")
  layout = SharedPrompt(PROMPTS.shape[1], 2, S.max_tokens)
  sharded = everything(other, params, sharding.make_mesh(**sizes), cut, shrink=1, layout=layout)
  for name in ("logp_BT", "entropy_BT", "certainty_BT"):
    np.testing.assert_allclose(getattr(sharded[0], name), getattr(alone[0], name), atol=2e-5, err_msg=name)
  np.testing.assert_array_equal(sharded[1].tokens_BT, alone[1].tokens_BT)
  np.testing.assert_array_equal(sharded[1].stop_B, alone[1].stop_B)
  np.testing.assert_allclose(sharded[1].logp_BT, alone[1].logp_BT, atol=2e-5)
  for ours, theirs in zip(sharded[2:4], alone[2:4], strict=True):
    for name in params:
      np.testing.assert_allclose(ours[name], theirs[name], atol=3e-5, err_msg=name)
  np.testing.assert_allclose(sharded[4], alone[4], atol=1e-6)


def test_weights_for_sampling_are_cut_and_no_kv_head_is_lost(spec, params):
  mesh = sharding.make_mesh(data=1, fsdp=8)
  weights = lay_out_weights(dataclasses.replace(spec, dtype="bfloat16"), sharding.sampling_mesh(mesh, 4))(params)
  assert all(w.dtype == jnp.bfloat16 for w in weights["q"]) and len(weights["q"]) == spec.layers
  last = {name: w[-1] if isinstance(w, tuple) else w for name, w in weights.items()}
  cut = {name: w.size // w.addressable_shards[0].data.size for name, w in last.items()}
  assert cut["q"] == cut["down"] == cut["embed"] == 4 and cut["k"] == cut["v"] == 1


def test_indivisible_sizes_are_named(rich_spec):
  mesh = sharding.make_mesh(tensor=3, devices=jax.devices()[:3])
  with pytest.raises(InputError, match=r"embed: axis 'vocab' has size 32, not divisible by 3 .*lower tensor in"):
    weight_table.shardings(rich_spec, mesh)
  spec = dataclasses.replace(rich_spec, vocab=33, heads=6, kv_heads=2)
  with pytest.raises(InputError, match=r"k: axis 'kv_heads' has size 2, not divisible by 3"):
    weight_table.shardings(spec, mesh)
  with pytest.raises(InputError, match="does not cover 8 devices"):
    sharding.make_mesh(data=3)


def grouped(dtype):
  """Returns (q, k, v), segments, output weights: two KV heads for four query heads, three segments, padding around."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, out = (jax.random.normal(key, (2, 4, 150, 6), dtype) for key in keys[:2])
  k, v = (jax.random.normal(key, (2, 2, 150, 6), dtype) for key in keys[2:])
  segments = np.zeros((2, 150), np.int32)
  segments[:, 4:60], segments[:, 60:61], segments[:, 61:140] = 1, 2, 3
  return (q, k, v), jnp.array(segments), out * (segments > 0)[:, None, :, None]


def attended(attend, dtype, compute_dtype=None):
  """Returns [gradients of q, k and v, output] of one attention on `grouped(dtype)`, cast to `compute_dtype` first."""
  qkv, segments, weights = grouped(dtype)
  if compute_dtype:
    qkv, weights = jax.tree.map(lambda x: x.astype(compute_dtype), (qkv, weights))

  def value(q, k, v):
    out = jnp.where((segments > 0)[:, None, :, None], attend(q, k, v, segments, segments[:, :0]), 0.0)
    return jnp.sum((out * weights).astype(compute_dtype or jnp.float32)), out

  return jax.tree.leaves(jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(*qkv))


@functools.cache
def reference(dtype):
  return attended(attention.reference, dtype)


@functools.cache
def exact(dtype):
  """Returns `attended` of the reference attention, computed in float64 from inputs rounded to `dtype`."""
  with jax.enable_x64(True):
    return jax.device_get(attended(attention.reference, dtype, jnp.float64))


OTHERS = {
  "mapped": attention.mapped,
  "xla": attention.ATTENTION["xla"],
  "splash": functools.partial(attention.splash, interpret=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_attention_equals_the_reference(name):
  for ours, theirs in zip(attended(OTHERS[name], "float32"), reference("float32"), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_bfloat16_attention_is_no_further_from_float64_than_the_reference(name):
  for ours, theirs, truth in zip(
    attended(OTHERS[name], "bfloat16"), reference("bfloat16"), exact("bfloat16"), strict=True
  ):
    ours_error, theirs_error = (np.abs(np.float64(x) - truth).max() for x in (ours, theirs))
    spacing = float(jnp.finfo(jnp.bfloat16).eps) * np.abs(truth).max()  # of bfloat16 numbers at the largest value
    assert ours_error <= max(theirs_error, spacing)


def test_rows_with_many_scores_are_mapped_one_by_one(monkeypatch):
  monkeypatch.setattr(attention, "_MAX_SCORES", 4 * 150**2)  # scores of one row of two
  qkv, segments, _ = grouped("float32")
  assert "scan" in str(jax.make_jaxpr(attention.mapped)(*qkv, segments, segments[:, :0]))
  for ours, theirs in zip(attended(attention.mapped, "float32"), reference("float32"), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_splash_works_on_the_rows_and_heads_of_each_device():
  qkv, segments, _ = grouped("float32")
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  none = segments[:, :0]
  want = attention.reference(*qkv, segments, none)
  with jax.set_mesh(mesh):
    names = ("heads", "kv_heads", "kv_heads")
    up = [jax.device_put(x, sharding.named_sharding(mesh, "batch", name)) for x, name in zip(qkv, names, strict=True)]
    got = jax.jit(OTHERS["splash"])(*up, *jax.device_put((segments, none), sharding.named_sharding(mesh, "batch")))
  real = (segments > 0)[:, None, :, None]
  np.testing.assert_allclose(jnp.where(real, got, 0), jnp.where(real, want, 0), atol=2e-5)
  assert got.sharding.spec[:2] == (("data", "fsdp"), "tensor")


def test_auto_takes_what_fits_the_platform():
  cases = {("tpu", "bfloat16"): "splash", ("gpu", "bfloat16"): "cudnn", ("gpu", "float32"): "reference"}
  assert {case: attention.resolve("auto", *case) for case in cases} == cases
  assert attention.resolve("auto", "cpu", "float32") == "mapped"
  assert attention.resolve("xla", "tpu", "float32") == "xla"


@pytest.mark.parametrize(
  "capability, name", [("7.5", "reference"), ("8.0", "cudnn"), ("12.0", "cudnn"), ("gfx90a", "reference")]
)
def test_gpus_without_a_kernel_take_another_attention(capability, name):
  """A T4, which notebooks get for free, has compute capability 7.5."""
  device = types.SimpleNamespace(platform="gpu", compute_capability=capability)
  assert attention.resolve("auto", attention.platform_of(device), "bfloat16") == name


def test_rematerialisation_changes_no_gradient(spec, params):
  batch, gradients = text_batch(), {}
  for remat in forward.REMAT:
    loss_fn = objective.language_modelling(dataclasses.replace(spec, remat=remat))
    traced = jax.jit(jax.grad(lambda p, loss_fn=loss_fn: loss_fn(p, batch)[0])).trace(params)
    gradients[remat] = str(traced.jaxpr).count("dot_general"), traced.lower().compile()(params)
  count, gradient = gradients.pop("none")
  for remat, (more, other) in gradients.items():
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6, err_msg=remat), other, gradient)
    assert more > count if remat == "full" else more >= count


def test_the_first_moment_may_be_bfloat16_and_the_second_may_not(spec, params):
  adamw = optimizer.adamw(0.9, 0.999, 1e-8, 0.0, 0.0, "bfloat16")
  state, _ = update(
    jax.jit(init_state, static_argnums=1)(jax.tree.map(jnp.copy, params), adamw),
    text_batch(),
    1e-3,
    loss_fn=objective.language_modelling(spec),
    optimizer=adamw,
  )
  adam = state.opt_state[1]
  assert {m.dtype for m in adam.mu.values()} == {jnp.dtype("bfloat16")}
  assert {m.dtype for m in (*adam.nu.values(), *state.params.values())} == {jnp.dtype("float32")}


def test_digests_are_those_of_one_device_and_come_from_one_program(spec, params):
  """Computed leaf by leaf, digests hung sooner or later on meshes that shard over fsdp and tensor."""
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  places = weight_table.shardings(spec, mesh)
  cut = {name: jax.device_put(w, places[name]) for name, w in params.items()}
  want = checkpoint.leaf_digests(params)
  assert all(checkpoint.leaf_digests(cut) == want for _ in range(40))
  assert checkpoint.leaf_digests(params | {"k": params["k"].at[0, 1, 1, 1].add(1e-6)}) != want


@pytest.mark.parametrize(
  "heads, memory, cut",
  [((8, 4), 1 << 30, 4), ((8, 2), 1 << 30, 2), ((8, 2), 6_000, 8), ((8, 2), None, 1), ((6, 2), 6_000, 2)],
)
def test_sampling_is_cut_by_kv_heads_and_by_memory(heads, memory, cut):
  """There are 8 devices and about 2,000 weights; of the divisors of 8 only 2 divides 6 heads."""
  from jaxrlvr.config import files as configs
  from jaxrlvr.stages import build_policy

  spec = Spec(vocab=24, width=16, layers=1, heads=heads[0], kv_heads=heads[1], head_dim=4, mlp=24)
  mesh = build_policy.configured_sampling_mesh(configs.base(), spec, sharding.make_mesh(data=1, fsdp=8), memory)
  assert dict(mesh.shape) == {"data": 8 // cut, "fsdp": 1, "tensor": cut}
