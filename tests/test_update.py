"""One update: micro-batches, devices, GRPO on policy, and what happens when something is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sample import EOS, NO_STOPS, prompts, row_keys

from jaxrlvr import masked, objective, optim, shard
from jaxrlvr.loss import policy_loss
from jaxrlvr.policy.sample import Sampling, sample
from jaxrlvr.policy.score import score
from jaxrlvr.update import accumulate, init_state, update

S = Sampling(group=4, max_tokens=8, eos_ids=EOS, shrink=1)
REWARD = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]], np.float32)


def rollout_batch(prompts, lengths, rollout, rewards, scored, *, group, **how):
  rows = objective.rollout_rows(prompts, lengths, rollout, samples=group, group=group)
  return objective.weigh(rows, rewards, scored, **how)


@pytest.fixture(scope="module")
def batch(rich_spec, rich_params):
  """Rows of a real rollout, one row unscored, with a reference policy."""
  tokens, lengths = prompts([3, 6, 1, 5])
  rollout = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, S)
  scored = np.ones((4, 4), bool)
  scored[3, 0] = False
  made = rollout_batch(
    tokens,
    lengths,
    rollout,
    REWARD,
    scored,
    group=4,
    baseline="mean",
    scale_std=True,
    reduce="token-mean",
    updates=1,
  )
  reference = {name: w * 1.1 for name, w in rich_params.items()}
  ref = objective.logp(reference, made, rich_spec, start=6, temperature=1.0, parts=1)
  return made.replace(ref_logp_BT=ref)


@pytest.fixture(scope="module")
def loss_fn(rich_spec):
  return objective.grpo(
    rich_spec, start=6, temperature=1.0, kl_beta=0.05, kl_estimator="k3", clip_low=0.2, clip_high=0.2
  )


def gradient_of(loss_fn, params, batch, parts):
  return jax.jit(accumulate, static_argnums=(0, 3))(loss_fn, params, batch, parts)


def test_microbatches_never_change_the_gradient(loss_fn, rich_params, batch):
  whole, loss, metrics = gradient_of(loss_fn, rich_params, batch, 1)
  for parts in (2, 8):
    gradient, part_loss, part_metrics = gradient_of(loss_fn, rich_params, batch, parts)
    np.testing.assert_allclose(part_loss, loss, atol=1e-6)
    for name in whole:
      np.testing.assert_allclose(gradient[name], whole[name], atol=2e-6, err_msg=name)
    for name in metrics:
      np.testing.assert_allclose(part_metrics[name], metrics[name], atol=1e-5, err_msg=name)


def test_on_policy_step_is_reinforce_plus_kl(rich_spec, rich_params, batch):
  """The gradient of an on-policy step is that of -A * log p, nothing of clipping is left."""
  clipped = objective.grpo(
    rich_spec, start=6, temperature=1.0, kl_beta=0.0, kl_estimator="k3", clip_low=0.2, clip_high=0.2, dual_clip=3.0
  )
  got, _, metrics = gradient_of(clipped, rich_params, batch, 1)

  def reinforce(params):
    rows = (batch.tokens_BS, batch.positions_BS, batch.segments_BS)
    logp_BT = score(params, *rows, rich_spec, start=6).logp_BT
    weights_BT = masked.token_weights(batch.mask_BT, "token-mean", 8)
    return -jnp.sum(jnp.where(batch.mask_BT, weights_BT * batch.advantage_B[:, None] * logp_BT, 0.0))

  want = jax.jit(jax.grad(reinforce))(rich_params)
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-6, err_msg=name)
  assert metrics["clip_ratio/low"] == 0 and metrics["max/sampling/logp_difference/max"] < 1e-4
  assert max(float(jnp.abs(g).max()) for g in want.values()) > 1e-2


def test_a_group_without_spread_and_an_unscored_row_teach_nothing(loss_fn, rich_params, batch):
  np.testing.assert_array_equal(np.asarray(batch.advantage_B)[4:8], 0)
  assert batch.advantage_B[12] == 0 and not np.any(np.asarray(batch.mask_BT)[12])
  spoiled = batch.replace(
    tokens_BS=batch.tokens_BS.at[12, -1].set(3), ref_logp_BT=batch.ref_logp_BT.at[12].set(jnp.nan)
  )
  one, two = (gradient_of(loss_fn, rich_params, b, 1)[0] for b in (batch, spoiled))
  for name in one:
    np.testing.assert_array_equal(one[name], two[name])


def test_a_non_finite_update_is_skipped_and_counted(spec, params):
  adamw = optim.adamw(0.9, 0.95, 1e-8, 0.01, 1.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)

  def loss_fn(params, batch):
    return jnp.sum(params["q"] ** 2) * jnp.sum(batch), {}

  poison, fine = jnp.array([jnp.nan]), jnp.array([1.0])
  state, metrics = update(state, poison, 1e-2, loss_fn=loss_fn, optimizer=adamw)
  assert metrics["skipped_in_a_row"] == 1 and metrics["skipped_updates"] == 1
  for name in params:
    np.testing.assert_array_equal(state.params[name], params[name])
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  state, metrics = update(state, fine, 1e-2, loss_fn=loss_fn, optimizer=adamw)
  assert metrics["skipped_in_a_row"] == 0 and metrics["skipped_updates"] == 1 and state.updates == 2
  assert np.any(state.params["q"] != params["q"])


def test_minibatches_are_whole_groups(rich_params, rich_spec):
  """Two updates a step take alternate problems, each weighted by its own tokens."""
  tokens, lengths = prompts([3, 6, 1, 5])
  rollout = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, S)
  how = dict(group=4, baseline="mean", scale_std=True, reduce="token-mean", updates=2)
  made = rollout_batch(tokens, lengths, rollout, REWARD, REWARD >= 0, **how)
  parts = shard.split_rows(made.replace(old_logp_BT=made.sampler_logp_BT, ref_logp_BT=made.sampler_logp_BT), 2, 4)
  weights, mask = np.asarray(parts.weights_BT), np.asarray(parts.mask_BT)
  np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)
  np.testing.assert_allclose(weights[0][mask[0]], 1 / mask[0].sum(), rtol=1e-6)
  np.testing.assert_array_equal(parts.tokens_BS[1], made.tokens_BS.reshape(4, 4, -1)[1::2].reshape(8, -1))
  np.testing.assert_array_equal(shard.join_rows(parts, 4).tokens_BS, made.tokens_BS)


def test_the_first_samples_are_trained_on(rich_params, rich_spec):
  tokens, lengths = prompts([3, 6, 1, 5])
  rollout = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, S)
  every = objective.rollout_rows(tokens, lengths, rollout, samples=4, group=4)
  first = objective.rollout_rows(tokens, lengths, rollout, samples=4, group=2)
  for name in ("tokens_BS", "positions_BS", "segments_BS", "mask_BT", "sampler_logp_BT"):
    wanted = np.asarray(getattr(every, name)).reshape(4, 4, -1)[:, :2].reshape(8, -1)
    np.testing.assert_array_equal(getattr(first, name), wanted, err_msg=name)
  assert len({tuple(row) for row in np.asarray(every.tokens_BS)}) == 16


def test_schedules_and_adamw():
  for name, at in (("constant", (0.5, 1, 1)), ("cosine", (0.5, 1, 0.16)), ("linear", (0.5, 1, 0.19))):
    rates = optim.rates(name, 1.0, 2, 12, 0.1)
    assert len(rates) == 12
    np.testing.assert_allclose(rates[[1, 2, 11]], at, atol=0.05, err_msg=name)
  import optax

  ours, theirs = optim.adamw(0.9, 0.95, 1e-8, 0.1, 0.0), optax.adamw(0.01, 0.9, 0.95, weight_decay=0.1)
  w, g = jnp.array([0.5, -2.0]), jnp.array([0.3, 0.1])
  change, _ = ours.update(g, ours.init(w), w)
  np.testing.assert_allclose(-0.01 * change, theirs.update(g, theirs.init(w), w)[0], rtol=1e-6)


@pytest.mark.parametrize(
  "name,value,loss_fn",
  [
    ("loss", np.nan, lambda p, b: (jnp.sum(p["q"] ** 2) + jnp.sum(b), {})),  # the gradient is finite
    ("gradient", 0.0, lambda p, b: (jnp.sum(jnp.sqrt(jnp.abs(p["q"]) * jnp.sum(b))), {})),  # the loss is 0
  ],
)
def test_loss_or_gradient_alone_skips_an_update(spec, params, name, value, loss_fn):
  adamw = optim.adamw(0.9, 0.95, 1e-8, 0.01, 1.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)
  state, metrics = update(state, jnp.array([value], jnp.float32), 1e-2, loss_fn=loss_fn, optimizer=adamw)
  assert metrics["skipped_in_a_row"] == 1
  np.testing.assert_array_equal(state.params["q"], params["q"])


def test_a_step_goes_down_by_the_rate(params):
  adamw = optim.adamw(0.9, 0.95, 1e-8, 0.1, 0.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)
  state, _ = update(state, jnp.ones(1), 3e-3, loss_fn=lambda p, b: (jnp.sum(p["q"] ** 2) * b[0], {}), optimizer=adamw)
  q = np.asarray(params["q"])
  np.testing.assert_allclose(q - state.params["q"], 3e-3 * (np.sign(q) + 0.1 * q), atol=1e-5)


def test_every_setting_of_grpo_reaches_the_arithmetic(rich_spec, rich_params, batch):
  how = dict(clip_low=0.01, clip_high=0.02, ratio="sequence", importance_cap=1.1)
  fn = objective.grpo(rich_spec, start=6, temperature=0.7, kl_beta=0.5, kl_estimator="k1", **how)
  away = batch.replace(old_logp_BT=batch.ref_logp_BT)
  value, metrics = jax.jit(fn)(rich_params, away)
  rows = (batch.tokens_BS, batch.positions_BS, batch.segments_BS)
  here = jax.jit(score, static_argnames=("spec", "start", "temperature"))(
    rich_params, *rows, spec=rich_spec, start=6, temperature=0.7
  )
  logp, mask, weights = here.logp_BT, batch.mask_BT, batch.weights_BT
  surrogate, _ = policy_loss(
    logp, away.old_logp_BT, batch.advantage_B, mask, weights_BT=weights, sampler_logp_BT=batch.sampler_logp_BT, **how
  )
  kl = jnp.sum(jnp.where(mask, weights * (logp - batch.ref_logp_BT), 0.0))
  np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)
  np.testing.assert_allclose(value, surrogate + 0.5 * kl, rtol=1e-5)
  np.testing.assert_allclose(metrics["entropy"], jnp.sum(weights * here.entropy_BT), rtol=1e-5)
  parts = objective.logp(rich_params, batch, rich_spec, start=6, temperature=0.7, parts=2)
  np.testing.assert_allclose(np.where(mask, parts, 0), np.where(mask, logp, 0), atol=1e-5)


def test_rollout_batch_masks_exactly_the_response(rich_spec, rich_params):
  tokens, lengths = prompts([3, 6, 1, 5])
  rollout = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, S)
  scored = np.ones((4, 4), bool)
  scored[3, 0] = False
  made = rollout_batch(
    tokens,
    lengths,
    rollout,
    REWARD,
    scored,
    group=4,
    baseline="zero",
    scale_std=False,
    reduce="sequence-mean-token-sum",
    updates=1,
  )
  length = np.where(scored.reshape(-1), rollout.length_B, 0)
  assert len(set(length.tolist())) > 3
  np.testing.assert_array_equal(made.mask_BT.sum(1), length)
  np.testing.assert_array_equal(made.advantage_B, np.where(scored, REWARD, 0).reshape(-1))
  np.testing.assert_allclose(made.weights_BT, made.mask_BT / 15, rtol=1e-6)


def test_language_modelling_is_the_mean_of_its_targets(rich_spec, rich_params):
  tokens = jnp.arange(12).reshape(2, 6) % 29
  positions, segments = jnp.broadcast_to(jnp.arange(6), (2, 6)), jnp.ones((2, 6), jnp.int32)
  target = jnp.array([[0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0]], bool)
  loss, _ = objective.language_modelling(rich_spec)(
    rich_params, objective.TextBatch(tokens, positions, segments, target / target.sum())
  )
  logp = score(rich_params, tokens, positions, segments, rich_spec).logp_BT
  np.testing.assert_allclose(loss, -np.asarray(logp)[np.asarray(target[:, 1:])].mean(), rtol=1e-5)


def test_rates_and_clip():
  for name in ("constant", "cosine", "linear"):
    assert np.isclose(optim.rates(name, 1.0, 2, 12, 0.1)[0], 0)
  assert np.isclose(optim.rates("linear", 1.0, 0, 11, 0.1)[-1], 1 - 0.9 * 10 / 11, atol=1e-3)
  w, g = jnp.zeros(2), jnp.array([3.0, 4.0])
  clipped = optim.adamw(0.9, 0.95, 1.0, 0.0, 1.0)  # eps 1: Adam keeps the scale
  np.testing.assert_allclose(
    clipped.update(g, clipped.init(w), w)[0], np.array([0.6, 0.8]) / (1 + np.array([0.6, 0.8])), rtol=1e-5
  )
