"""One update: microbatches, devices, on-policy GRPO, and values that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.rollouts import EOS, NO_STOPS, prompts, rollout_batch, row_keys
from jaxrlvr.device import masked
from jaxrlvr.model.row_layout import Separate, SharedPrompt
from jaxrlvr.model.score import score
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.training import objective, optimizer
from jaxrlvr.training.loss import policy_loss
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.update import accumulate, init_state, update

S = Sampling(group=4, max_tokens=8, eos_ids=EOS, shrink=0)
REWARD = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]], np.float32)


@pytest.fixture(scope="module")
def drawn(rich_spec, rich_params):
  """(prompts, their lengths, rollout of four responses to each)."""
  tokens, lengths = prompts([3, 6, 1, 5])
  return tokens, lengths, sample(rich_params, tokens, lengths, row_keys([5, 6, 7, 8], 4), NO_STOPS, rich_spec, S)


SCORED = np.arange(16).reshape(4, 4) != 12
PLAIN = dict(group=4, baseline="mean", scale_std=True, reduce="token-mean")


def reference(spec, params, parts, *fields):
  """Returns a function that scores a batch with another policy, for each of these fields."""

  def scores(batch, live):
    other = {name: w * 1.1 for name, w in params.items()}
    return {f: objective.logp(other, batch, live, spec, temperature=1.0, parts=parts) for f in fields}

  return scores


@pytest.fixture(scope="module")
def batch(rich_spec, rich_params, drawn):
  """A batch of a real rollout: one response a row, one of them unscored, with scores of a reference policy."""
  settings = PLAIN | dict(scores=reference(rich_spec, rich_params, 1, "ref_logp_RS"))
  return rollout_batch(*drawn, REWARD, SCORED, **settings)[0][0]


@pytest.fixture(scope="module")
def loss_fn(rich_spec):
  settings = dict(clip_low=0.2, clip_high=0.2, dual_clip=3.0)
  return objective.grpo(rich_spec, temperature=1.0, kl_beta=0.05, kl_estimator="k3", **settings)


accumulated = jax.jit(accumulate, static_argnums=(0, 3))


def gradient_of(loss_fn, params, batch, parts, live=None):
  """Returns (gradient, loss, {metric: value}) of a batch in `parts` microbatches."""
  gradient, loss, metrics = accumulated(loss_fn, params, batch, parts, live)
  return gradient, loss, values_of(metrics)


def test_microbatches_never_change_the_gradient(loss_fn, rich_params, batch):
  whole, loss, metrics = gradient_of(loss_fn, rich_params, batch, 1)
  for parts in (4,):
    gradient, part_loss, part_metrics = gradient_of(loss_fn, rich_params, batch, parts)
    np.testing.assert_allclose(part_loss, loss, atol=1e-6)
    for name in whole:
      np.testing.assert_allclose(gradient[name], whole[name], atol=2e-6, err_msg=name)
    for name in metrics:
      np.testing.assert_allclose(part_metrics[name], metrics[name], atol=1e-5, err_msg=name)


def test_on_policy_step_is_reinforce_plus_kl(loss_fn, rich_spec, rich_params, batch):
  """The gradient of an on-policy step is that of -A * log p and of k3: clipping leaves no trace."""
  got, _, metrics = gradient_of(loss_fn, rich_params, batch, 1)

  def reinforce(params):
    logp = score(params, batch.tokens_RS, batch.positions_RS, batch.segments_RS, rich_spec).logp_BT
    mask, advantage, ref = batch.weights_RS[:, 1:] > 0, batch.advantage_RS[:, 1:], batch.ref_logp_RS[:, 1:]
    k3 = jnp.exp(ref - logp) - (ref - logp) - 1
    return -jnp.sum(jnp.where(mask, masked.token_weights(mask, "token-mean", 8) * (advantage * logp - 0.05 * k3), 0.0))

  want = jax.jit(jax.grad(reinforce))(rich_params)
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-6, err_msg=name)
  assert metrics["clip_ratio/low_mean"] == 0 and metrics["sampling/sampling_logp_difference/max"] < 1e-4
  assert max(float(jnp.abs(g).max()) for g in want.values()) > 1e-2


def test_a_group_without_spread_and_an_unscored_row_teach_nothing(loss_fn, rich_params, batch):
  np.testing.assert_array_equal(np.asarray(batch.advantage_RS)[4:8], 0)
  assert not np.any(batch.advantage_RS[12]) and not np.any(batch.weights_RS[12])
  spoiled = batch.replace(tokens_RS=batch.tokens_RS.at[12, 7].set(3), ref_logp_RS=batch.ref_logp_RS.at[12].set(jnp.nan))
  one, two = (gradient_of(loss_fn, rich_params, b, 1)[0] for b in (batch, spoiled))
  for name in one:
    np.testing.assert_array_equal(one[name], two[name])


# Settings of the loss, settings of the weights, updates a step. With KL there is an old policy too.
PACKED = {
  "token mean": (dict(kl_beta=0.0), {}, 1),
  "constant length, KL": (dict(kl_beta=0.5, clip_high=0.05), dict(reduce="constant-length"), 1),
  "GSPO, two updates": (
    dict(kl_beta=0.0, ratio="sequence", clip_low=1e-3, importance_cap=1.1),
    dict(reduce="sequence-mean-token-mean"),
    2,
  ),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_have_the_gradient_of_single_ones(name, rich_spec, rich_params, drawn):
  """Rows without weight are left out where possible; rows whose responses share a prompt have the same gradient too."""
  settings, changes, updates = PACKED[name]
  fn = objective.grpo(rich_spec, temperature=1.0, kl_estimator="k3", **settings)
  fields = ("ref_logp_RS", "old_logp_RS") if settings["kl_beta"] else ("old_logp_RS",) * (updates > 1)
  parts = 8 // updates

  def gradients(**layout):
    scores = reference(rich_spec, rich_params, parts, *fields)
    batches = rollout_batch(
      *drawn, REWARD, SCORED, **PLAIN | changes, updates=updates, parts=parts, scores=scores, **layout
    )
    return [(batch, live, gradient_of(fn, rich_params, batch, parts, live)) for batch, live in batches]

  kept = dict(share=True, skip=not settings["kl_beta"])
  packed, single = gradients(**kept), gradients()
  assert min(live for _, live, _ in packed) < parts == min(live for _, live, _ in single)
  branched = gradients(**kept, layout=SharedPrompt(7, 2, 14))  # pieces with room for more than one response
  pieces = [piece for batch, *_ in branched for piece in batch.segments_RS[:, 7:].reshape(-1, 14).tolist()]
  assert {0, 1, 2} <= {len(set(piece) - {0}) for piece in pieces}
  compared = [*zip(packed, single, strict=True), *zip(branched, single, strict=True)]
  for (*_, (got, loss, metrics)), (*_, (want, want_loss, want_metrics)) in compared:
    np.testing.assert_allclose(loss, want_loss, atol=1e-6)
    for leaf in want:
      np.testing.assert_allclose(got[leaf], want[leaf], atol=2e-6, err_msg=leaf)
    for metric in ("clip_ratio/low_mean", "clip_ratio/high_mean"):
      np.testing.assert_allclose(metrics[metric], want_metrics[metric], atol=1e-6)
    assert max(float(jnp.abs(g).max()) for g in want.values()) > 1e-3


def test_a_step_without_any_advantage_still_steps(rich_spec, rich_params, drawn):
  """No row is computed and the gradient is 0, but weight decay and moments change as they do when all rows are."""
  adamw = optimizer.adamw(0.9, 0.95, 1e-8, 0.1, 1.0)
  fn = objective.grpo(rich_spec, temperature=1.0, kl_beta=0.0, kl_estimator="k3")
  ends = []
  for layout in (dict(), dict(share=True, skip=True)):
    [(batch, live)] = rollout_batch(*drawn, REWARD * 0 + 1, SCORED, **PLAIN, parts=4, **layout)
    state = init_state(jax.tree.map(jnp.array, rich_params), adamw)
    state, metrics = update(state, batch, 1e-2, live, loss_fn=fn, optimizer=adamw, microbatches=4)
    metrics = values_of(metrics)
    assert live == (0 if layout else 4) and metrics["grad_norm"] == metrics["loss"] == metrics["skipped_updates"] == 0
    ends.append(state)
  jax.tree.map(np.testing.assert_array_equal, *ends)
  assert np.any(ends[0].params["q"] != rich_params["q"])


def test_other_lengths_compile_nothing(rich_spec, rich_params, drawn):
  fn = objective.grpo(rich_spec, temperature=1.0, kl_beta=0.0, kl_estimator="k3")
  adamw, before, lives = optimizer.adamw(0.9, 0.95, 1e-8, 0.1, 1.0), None, set()
  state = init_state(jax.tree.map(jnp.array, rich_params), adamw)
  for longest in (8, 8, 3, 1):
    tokens, lengths, rollout = drawn
    rollout = rollout.replace(length_B=np.minimum(rollout.length_B, longest))
    [(batch, live)] = rollout_batch(tokens, lengths, rollout, REWARD, SCORED, **PLAIN, parts=4, share=True, skip=True)
    state, _ = update(state, batch, 1e-2, live, loss_fn=fn, optimizer=adamw, microbatches=4)
    objective.logp(rich_params, batch, live, rich_spec, temperature=1.0, parts=4)
    lives.add(int(live))
    sizes = update._cache_size(), objective.logp._cache_size(), objective.lay_out_batch._cache_size()
    assert len(lives) == 1 or sizes == before
    before = sizes
  assert len(lives) > 1


def test_a_non_finite_update_is_skipped_and_counted(spec, params):
  adamw = optimizer.adamw(0.9, 0.95, 1e-8, 0.01, 1.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)

  def loss_fn(params, batch):
    return jnp.sum(params["q"] ** 2) * jnp.sum(batch), {}

  poison, fine = jnp.array([jnp.nan]), jnp.array([1.0])
  state, metrics = update(state, poison, 1e-2, loss_fn=loss_fn, optimizer=adamw)
  metrics = values_of(metrics)
  assert metrics["skipped_in_a_row"] == 1 and metrics["skipped_updates"] == 1
  for name in params:
    np.testing.assert_array_equal(state.params[name], params[name])
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  state, metrics = update(state, fine, 1e-2, loss_fn=loss_fn, optimizer=adamw)
  metrics = values_of(metrics)
  assert metrics["skipped_in_a_row"] == 0 and metrics["skipped_updates"] == 1 and state.updates == 2
  assert np.any(state.params["q"] != params["q"])


def test_minibatches_are_whole_groups(drawn):
  """The two updates of a step take alternate problems, each weighted by its own tokens."""
  whole = rollout_batch(*drawn, REWARD, REWARD >= 0, **PLAIN)[0][0]
  for part, (batch, _) in enumerate(rollout_batch(*drawn, REWARD, REWARD >= 0, **PLAIN, updates=2)):
    weights = np.asarray(batch.weights_RS)
    np.testing.assert_allclose(weights[weights > 0], 1 / np.sum(weights > 0), rtol=1e-6)
    np.testing.assert_array_equal(
      sorted(batch.tokens_RS.tolist()), sorted(whole.tokens_RS.reshape(4, 4, -1)[part::2].reshape(8, -1).tolist())
    )


def test_the_first_samples_are_trained_on(drawn):
  tokens, lengths, rollout = drawn
  layout, length_PG = Separate(tokens.shape[1] + S.max_tokens), np.asarray(rollout.length_B).reshape(4, 4)
  batches = {}
  for group in (4, 2):
    placed = layout.place(lengths, length_PG[:, :group], range(4 * group), 4 * group, 1, False)
    where = placed.segments_RS, placed.positions_RS
    rows = objective.lay_out_batch(*drawn, *where, samples=4, group=group, layout=layout)
    order = np.argsort(np.asarray(rows.segments_RS)[:, 0])
    batches[group] = jax.tree.map(lambda x, order=order: np.asarray(x)[order], rows)
  for name in ("tokens_RS", "positions_RS", "weights_RS", "sampler_logp_RS"):
    expected = getattr(batches[4], name).reshape(4, 4, -1)[:, :2].reshape(8, -1)
    np.testing.assert_array_equal(getattr(batches[2], name), expected, err_msg=name)
  assert len({tuple(row) for row in batches[4].tokens_RS}) == 16


def test_schedules_and_adamw():
  for name, at in (("constant", (0.5, 1, 1)), ("cosine", (0.5, 1, 0.16)), ("linear", (0.5, 1, 0.19))):
    rates = optimizer.rates(name, 1.0, 2, 12, 0.1)
    assert len(rates) == 12
    np.testing.assert_allclose(rates[[1, 2, 11]], at, atol=0.05, err_msg=name)
  import optax

  ours, theirs = optimizer.adamw(0.9, 0.95, 1e-8, 0.1, 0.0), optax.adamw(0.01, 0.9, 0.95, weight_decay=0.1)
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
  adamw = optimizer.adamw(0.9, 0.95, 1e-8, 0.01, 1.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)
  state, metrics = update(state, jnp.array([value], jnp.float32), 1e-2, loss_fn=loss_fn, optimizer=adamw)
  metrics = values_of(metrics)
  assert metrics["skipped_in_a_row"] == 1
  np.testing.assert_array_equal(state.params["q"], params["q"])


def test_a_step_goes_down_by_the_rate(params):
  adamw = optimizer.adamw(0.9, 0.95, 1e-8, 0.1, 0.0)
  state = init_state(jax.tree.map(jnp.array, params), adamw)
  state, _ = update(state, jnp.ones(1), 3e-3, loss_fn=lambda p, b: (jnp.sum(p["q"] ** 2) * b[0], {}), optimizer=adamw)
  q = np.asarray(params["q"])
  np.testing.assert_allclose(q - state.params["q"], 3e-3 * (np.sign(q) + 0.1 * q), atol=1e-5)


def test_a_misspelt_setting_of_grpo_is_refused_where_the_loss_is_made(rich_spec):
  with pytest.raises(TypeError, match="cliplow"):
    objective.grpo(rich_spec, temperature=1.0, kl_beta=0.0, kl_estimator="k3", cliplow=0.2)


def test_every_setting_of_grpo_reaches_the_arithmetic(rich_spec, rich_params, batch):
  settings = dict(clip_low=0.01, clip_high=0.02, ratio="sequence", importance_cap=1.1)
  fn = objective.grpo(rich_spec, temperature=0.7, kl_beta=0.5, kl_estimator="k1", **settings)
  value, metrics = jax.jit(fn)(rich_params, batch.replace(old_logp_RS=batch.ref_logp_RS))
  here = objective.logp(rich_params, batch, 1, rich_spec, temperature=0.7, parts=1)
  mask, weights, ref = batch.weights_RS > 0, batch.weights_RS, batch.ref_logp_RS
  surrogate, _ = policy_loss(here, ref, batch.advantage_RS, weights, sampler_logp_BT=batch.sampler_logp_RS, **settings)
  kl = jnp.sum(jnp.where(mask, weights * (here - ref), 0.0))
  np.testing.assert_allclose(metrics["kl"].compute(), kl, rtol=1e-5)
  np.testing.assert_allclose(value, surrogate + 0.5 * kl, rtol=1e-5)
  parts = objective.logp(rich_params, batch, 2, rich_spec, temperature=0.7, parts=2)
  np.testing.assert_allclose(np.where(mask, parts, 0), np.where(mask, here, 0), atol=1e-5)


def test_rollout_batch_weighs_exactly_the_response(drawn):
  settings = PLAIN | dict(baseline="zero", scale_std=False, reduce="sequence-mean-token-sum")
  [(batch, _)] = rollout_batch(*drawn, REWARD, SCORED, **settings)
  number_R = np.asarray(batch.segments_RS)[:, 0] - 1
  length = np.where(SCORED.reshape(-1), drawn[2].length_B, 0)[number_R]
  assert len(set(length.tolist())) > 3
  mask = np.asarray(batch.weights_RS) > 0
  np.testing.assert_array_equal(mask.sum(1), length)
  np.testing.assert_array_equal(np.max(batch.advantage_RS, 1), np.where(SCORED, REWARD, 0).reshape(-1)[number_R])
  np.testing.assert_allclose(batch.weights_RS, mask / 15, rtol=1e-6)
  prompt, response = drawn[1][number_R // 4], np.asarray(drawn[2].tokens_BT)[number_R]
  for row, begin, n in zip(range(16), prompt, length, strict=True):
    if n:
      np.testing.assert_array_equal(np.flatnonzero(mask[row]), np.arange(begin, begin + n))
      np.testing.assert_array_equal(batch.tokens_RS[row, begin : begin + n], response[row, :n])
      np.testing.assert_array_equal(batch.tokens_RS[row, :begin], drawn[0][number_R[row] // 4, 6 - begin :])


def test_language_modelling_is_the_mean_of_its_targets(rich_spec, rich_params):
  tokens = jnp.arange(12).reshape(2, 6) % 29
  positions, segments = jnp.broadcast_to(jnp.arange(6), (2, 6)), jnp.ones((2, 6), jnp.int32)
  target = jnp.array([[0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0]], bool)
  loss, _ = jax.jit(objective.language_modelling(rich_spec))(
    rich_params, objective.TextBatch(tokens, positions, segments, target / target.sum())
  )
  logp = jax.jit(score, static_argnums=4)(rich_params, tokens, positions, segments, rich_spec).logp_BT
  np.testing.assert_allclose(loss, -np.asarray(logp)[np.asarray(target[:, 1:])].mean(), rtol=1e-5)


def test_rates_and_clip():
  for name in ("constant", "cosine", "linear"):
    assert np.isclose(optimizer.rates(name, 1.0, 2, 12, 0.1)[0], 0)
  assert np.isclose(optimizer.rates("linear", 1.0, 0, 11, 0.1)[-1], 1 - 0.9 * 10 / 11, atol=1e-3)
  w, g = jnp.zeros(2), jnp.array([3.0, 4.0])
  clipped = optimizer.adamw(0.9, 0.95, 1.0, 0.0, 1.0)  # eps 1: Adam keeps the scale
  np.testing.assert_allclose(
    clipped.update(g, clipped.init(w), w)[0], np.array([0.6, 0.8]) / (1 + np.array([0.6, 0.8])), rtol=1e-5
  )
