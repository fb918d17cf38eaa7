"""GRPO against the released code's numbers, plain REINFORCE and exact KL gradients."""

import collections
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlvr.device import masked
from jaxrlvr.training import loss, objective

group_advantage = loss.group_advantage
kl = jax.jit(loss.kl, static_argnums=2)


@functools.partial(jax.jit, static_argnames=("ratio", "reduce", "max_tokens"))
def policy_loss(logp, old, advantage, mask, *, reduce="token-mean", max_tokens=0, **settings):
  """The loss of a batch whose rows are a response each, with an advantage a row or a token."""
  advantage = advantage[:, None] if advantage.ndim == 1 else advantage
  weights = masked.token_weights(mask, reduce, max_tokens or mask.shape[1])
  return loss.policy_loss(logp, old, advantage, weights, **settings)


def test_advantages_equal_golden(golden):
  for case in json.loads((golden / "grpo_advantages.json").read_text())["cases"]:
    if case["G"] == 1:
      continue  # a group of one is a config error here
    group = np.array(case["group_index"])  # rows may be shuffled
    rows_PG = np.argsort(group, kind="stable").reshape(case["P"], case["G"])
    reward_PG = jnp.asarray(np.array(case["token_level_rewards"], np.float32).sum(1)[rows_PG])
    for scale in (True, False):
      want = case["expected_advantages"][f"norm_by_std_{str(scale).lower()}"]
      worst = case["expected_advantages"][f"norm_by_std_{str(scale).lower()}_max_f32_vs_f64"]
      want_BT, mask_BT = np.array(want, np.float32), np.array(case["response_mask"], bool)
      got_B, flat = np.zeros(len(group), np.float32), (np.ptp(np.asarray(reward_PG), axis=1) == 0)[group]
      got_B[rows_PG] = group_advantage(reward_PG, scale_std=scale)
      got_BT = np.where(mask_BT, got_B[:, None], 0.0)
      assert np.all(got_BT[flat] == 0)
      tolerance = max(1e-5, 3 * worst)  # where rounding of the mean is blown up by 1 / (std + 1e-6)
      np.testing.assert_allclose(got_BT[~flat], want_BT[~flat], rtol=1e-5, atol=tolerance, err_msg=case["name"])


def test_equal_rewards_give_exactly_zero():
  for value in (0.3, 1.0, 0.1):
    assert np.all(np.asarray(group_advantage(jnp.full((2, 8), value, jnp.float32))) == 0)


def test_unscored_rows_are_masked_not_zero():
  reward = jnp.array([[1.0, 0.0, 1.0, np.nan], [1.0, 1.0, np.nan, np.nan]])
  scored = jnp.isfinite(reward)
  got = np.asarray(group_advantage(reward, scored))
  np.testing.assert_allclose(got[0, :3], np.asarray(group_advantage(reward[:1, :3]))[0], rtol=1e-6)
  assert got[0, 3] == 0 and np.all(got[1] == 0)


def test_baselines():
  reward = jnp.array([[1.0, 0.0, 0.0, 1.0]])
  advantage = {
    b: np.asarray(group_advantage(reward, baseline=b, scale_std=False))[0] for b in ("zero", "one", "leave-one-out")
  }
  np.testing.assert_allclose(advantage["zero"], [1, 0, 0, 1])
  np.testing.assert_allclose(advantage["one"], [0, -1, -1, 0])
  np.testing.assert_allclose(advantage["leave-one-out"], [2 / 3, -2 / 3, -2 / 3, 2 / 3], rtol=1e-6)


def test_positive_and_negative_are_grpo_without_the_rows_of_one_reward():
  """As in the released code, rewards are normalised first; then rows with reward 0 (positive) or 1 (negative) get 0."""
  reward = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0.5]], np.float32)
  scored = np.ones(reward.shape, bool)
  scored[3, 1] = False
  whole = group_advantage(reward, scored)
  positive = group_advantage(reward, scored, baseline="positive")
  negative = group_advantage(reward, scored, baseline="negative")
  np.testing.assert_array_equal(positive, np.where(reward == 0, 0, whole))
  np.testing.assert_array_equal(negative, np.where(reward == 1, 0, whole))
  np.testing.assert_allclose(positive[0], [0.75 / (0.5 + 1e-6), 0, 0, 0])  # mean 1/4, sample std 1/2
  assert not positive[1:3].any() and not negative[1:3].any()  # groups that are all right or all wrong teach nothing
  for kept, baseline in ((reward > 0.5, "positive"), (reward < 0.5, "negative")):
    corrected = loss.CORRECTIONS["backward"](reward[:3], scored[:3], 0.1, 0.1, baseline=baseline, scale_std=True)
    both = loss.CORRECTIONS["backward"](reward[:3], scored[:3], 0.1, 0.1, baseline="mean", scale_std=True)
    np.testing.assert_array_equal(corrected, np.where(kept[:3], both, 0))


def test_advantages_and_weights_are_made_on_the_host(compilations):
  reward, scored = np.array([[1, 0, 0, 1], [0, 1, 1, 1]], np.float32), np.ones((2, 4), bool)
  scored[1, 0] = False
  length = np.array([[3, 1, 2, 2], [9, 4, 2, 2]])
  with jax.transfer_guard("disallow"):
    on_host = {
      reduce: objective.weigh(length, reward, scored, max_tokens=8, baseline="mean", scale_std=True, reduce=reduce)
      for reduce in masked.REDUCTIONS
    }
    two = objective.weigh(
      length, reward, scored, max_tokens=8, baseline="mean", scale_std=True, reduce="token-mean", updates=2
    )
  assert not compilations
  for reduce, weights in on_host.items():
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in weights)
    mask = np.arange(9) < np.where(scored, length, 0).reshape(-1, 1)
    mask = mask[scored.reshape(-1)]
    want = np.asarray(masked.token_weights(jnp.asarray(mask), reduce, 8)).max(1)
    np.testing.assert_allclose(weights.weight_PG[scored], want, rtol=1e-6)
    assert weights.weight_PG[1, 0] == weights.advantage_PG[1, 0] == 0
  np.testing.assert_allclose(two.weight_PG, np.where(scored, [[1 / 8], [1 / 8]], 0), rtol=1e-6)  # 8 tokens in each


MODES = {
  "token-mean": "token-mean",
  "seq-mean-token-sum": "sequence-mean-token-sum",
  "seq-mean-token-mean": "sequence-mean-token-mean",
}


def test_policy_loss_and_gradient_equal_golden(golden):
  compared = 0
  for case in json.loads((golden / "policy_loss.json").read_text())["cases"]:
    arrays = {k: jnp.asarray(case[k], jnp.float32) for k in ("old_log_prob", "log_prob", "ref_log_prob", "advantages")}
    mask = jnp.asarray(case["response_mask"]) > 0
    for result in case["results"]:
      clip = result["clip"]
      low, high = (clip.get(f"cliprange_{side}", clip["cliprange"]) for side in ("low", "high"))
      settings = dict(clip_low=low, clip_high=high, dual_clip=clip.get("clip_ratio_c", 3.0))
      mode = result["loss_agg_mode"]
      settings["reduce"] = MODES.get(mode, "sequence-mean-token-sum")
      per_row = mask.shape[0] if mode == "seq-mean-token-sum-norm" else None
      if np.any(~np.asarray(mask).any(1)) and mode == "seq-mean-token-mean":
        continue  # the released code gives nan for a row without tokens

      def total(logp, arrays=arrays, mask=mask, settings=settings, per_row=per_row):
        value, metrics = policy_loss(logp, arrays["old_log_prob"], arrays["advantages"], mask, **settings)
        return (value * per_row / mask.shape[1] if per_row else value), metrics

      (value, metrics), gradient = jax.value_and_grad(total, has_aux=True)(arrays["log_prob"])
      metrics = {name: metric.compute() for name, metric in metrics.items()}
      np.testing.assert_allclose(value, float(result["pg_loss"]), rtol=2e-5, atol=2e-6)
      np.testing.assert_allclose(gradient, np.array(result["grad_log_prob"], np.float32), rtol=2e-5, atol=2e-6)
      np.testing.assert_allclose(metrics["clip_ratio/region_mean"], float(result["pg_clipfrac"]), atol=1e-5)
      np.testing.assert_allclose(metrics["clip_ratio/dual"], float(result["pg_clipfrac_lower"]), atol=1e-5)
      np.testing.assert_allclose(metrics["ppo_kl"], float(result["ppo_kl"]), rtol=1e-4, atol=1e-5)
      compared += 1
  assert compared >= 20


# TRL's name of a loss: our reduction, and whether it counts a response without tokens as ours does.
TRL_LOSSES = {
  "grpo": "sequence-mean-token-mean",
  "bnpo": "token-mean",
  "dapo": "token-mean",
  "dr_grpo": "constant-length",
}


def test_loss_and_gradient_equal_trl(golden):
  """Cases with clamped ratios or empty responses are left out: TRL clamps none, and counts an empty one as loss 0."""
  inputs = {case["name"]: case for case in json.loads((golden / "policy_loss.json").read_text())["cases"]}
  compared = collections.Counter()
  for trl in json.loads((golden / "trl_crosscheck.json").read_text())["cases"]:
    if trl["case"] in ("extreme_ratios", "empty_mask_row"):
      continue
    case = inputs[trl["case"]]
    fields = ("old_log_prob", "log_prob", "ref_log_prob", "advantages")
    old, logp, ref, advantage = (jnp.asarray(case[name], jnp.float32) for name in fields)
    mask = jnp.asarray(case["response_mask"]) > 0
    for result in trl["results"]:
      if result["delta"] is not None:  # TRL's bound on the ratio is not the study's dual clip
        continue
      reduce = TRL_LOSSES[result["loss_type"]]

      def total(logp, result=result, reduce=reduce, case=(old, ref, advantage, mask)):
        old, ref, advantage, mask = case
        clip = dict(clip_low=result["epsilon_low"], clip_high=result["epsilon_high"])
        value, _ = policy_loss(logp, old, advantage, mask, reduce=reduce, **clip)
        weights = masked.token_weights(mask, reduce, mask.shape[1])
        return value + result["beta"] * jnp.sum(jnp.where(mask, weights * kl(logp, ref, "k3"), 0.0))

      value, gradient = jax.value_and_grad(total)(logp)
      at = f"{trl['case']} {result['loss_type']}"
      np.testing.assert_allclose(value, result["loss"], rtol=2e-5, atol=2e-6, err_msg=at)
      if "grad_log_prob" in result:
        np.testing.assert_allclose(gradient, result["grad_log_prob"], rtol=2e-5, atol=2e-6, err_msg=at)
        compared[result["loss_type"]] += 1
  assert compared.keys() == TRL_LOSSES.keys()


def test_unscaled_advantages_equal_trl(golden):
  for case in json.loads((golden / "trl_crosscheck.json").read_text())["advantages"]:
    advantage = group_advantage(np.array(case["rewards_PG"], np.float32), scale_std=False)
    if len(case["rewards_PG"][0]) > 1:
      np.testing.assert_allclose(advantage, case["advantages_PG_scale_none"], rtol=1e-5, atol=1e-6)


def test_kl_equals_golden(golden):
  data = np.load(golden / "kl_penalty.npz")
  for case in sorted({n.split("/")[1] for n in data.files if n.startswith("kl/")}):
    at = f"kl/{case}/"
    logp, ref = jnp.asarray(data[at + "log_prob"]), jnp.asarray(data[at + "ref_log_prob"])
    for ours, theirs in (("k1", "kl"), ("k2", "mse"), ("k3", "low_var_kl")):
      np.testing.assert_allclose(kl(logp, ref, ours), data[at + theirs], rtol=1e-5, atol=2e-6, err_msg=f"{case} {ours}")
      gradient = jax.grad(lambda x, ref=ref, ours=ours: kl(x, ref, ours).sum())(logp)
      np.testing.assert_allclose(gradient, data[at + theirs + "_grad"], rtol=1e-5, atol=2e-6, err_msg=f"{case} {ours}")


def test_kl_gradients_over_a_categorical():
  """In expectation k1 as a loss has no gradient, k2 (and k3-k2) has that of the reverse KL, and k3 another one."""
  logits, ref = jnp.array([0.3, -1.0, 0.8, 0.1]), jnp.array([0.0, 0.5, -0.2, 0.4])

  def expected(estimator):
    def value(x):
      logp = jax.nn.log_softmax(x)
      return jnp.sum(jax.lax.stop_gradient(jnp.exp(logp)) * kl(logp, jax.nn.log_softmax(ref), estimator))

    return value, jax.grad(value)(logits)

  def true(x):
    logp = jax.nn.log_softmax(x)
    return jnp.sum(jnp.exp(logp) * (logp - jax.nn.log_softmax(ref)))

  want = jax.grad(true)(logits)
  np.testing.assert_allclose(expected("k1")[1], 0, atol=1e-6)
  np.testing.assert_allclose(expected("k2")[1], want, atol=1e-6)
  np.testing.assert_allclose(expected("k3-k2")[1], want, atol=1e-6)
  assert np.abs(expected("k3")[1] - want).max() > 1e-2
  np.testing.assert_allclose(expected("k3-k2")[0](logits), expected("k3")[0](logits), rtol=1e-6)
  np.testing.assert_allclose(expected("k3")[0](logits), true(logits), rtol=1e-5)


@pytest.mark.parametrize("reduce", list(masked.REDUCTIONS))
def test_on_policy_gradient_is_reinforce(reduce):
  keys = jax.random.split(jax.random.key(1), 2)
  logp, advantage = -jax.random.uniform(keys[0], (4, 6)), jax.random.normal(keys[1], (4,))
  mask = jnp.arange(6) < jnp.array([6, 3, 1, 5])[:, None]
  weights = masked.token_weights(mask, reduce, 9)
  got = jax.grad(lambda x: policy_loss(x, logp, advantage, mask, reduce=reduce, max_tokens=9, dual_clip=3.0)[0])(logp)
  want = jax.grad(lambda x: -jnp.sum(weights * advantage[:, None] * x))(logp)
  np.testing.assert_allclose(got, want, atol=1e-7)
  by_hand = {
    "token-mean": 1 / 15,
    "sequence-mean-token-mean": 1 / (3 * 4),
    "sequence-mean-token-sum": 1 / 4,
    "constant-length": 1 / (4 * 9),
  }
  assert np.isclose(weights[1, 0], by_hand[reduce])


def test_sequence_ratio_and_importance_cap():
  old = jnp.zeros((1, 3))
  logp = jnp.array([[0.3, 0.0, -0.6]])
  mask = jnp.ones((1, 3), bool)
  value, _ = policy_loss(logp, old, jnp.ones(1), mask, ratio="sequence", clip_low=0.9, clip_high=0.9)
  np.testing.assert_allclose(value, -np.exp(-0.1), rtol=1e-6)
  gradient = jax.grad(
    lambda x: policy_loss(x, old, jnp.ones(1), mask, ratio="sequence", clip_low=0.9, clip_high=0.9)[0]
  )(logp)
  np.testing.assert_allclose(gradient, -np.exp(-0.1) / 3 * np.ones((1, 3)), rtol=1e-6)
  sampler = jnp.array([[-2.0, 0.0, 1.0]])
  value, _ = policy_loss(old, old, jnp.ones(1), mask, sampler_logp_BT=sampler, importance_cap=2.0)
  np.testing.assert_allclose(value, -(2.0 + 1.0 + np.exp(-1.0)) / 3, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_values_outside_the_mask_never_matter(bad):
  mask = jnp.array([[True, False]])
  logp, old = jnp.array([[-0.5, bad]]), jnp.array([[-0.4, -bad]])

  def value(x):
    return policy_loss(x, old, jnp.ones(1), mask, sampler_logp_BT=old, importance_cap=2.0, dual_clip=3.0)[0]

  assert np.isfinite(value(logp)) and np.all(np.isfinite(np.asarray(jax.grad(value)(logp))))


def test_constant_baselines_learn_from_flat_groups():
  flat = jnp.ones((1, 4))
  np.testing.assert_array_equal(group_advantage(flat, baseline="zero", scale_std=False), flat)
  np.testing.assert_array_equal(group_advantage(0 * flat, baseline="one", scale_std=False), -flat)


def test_leave_one_out_without_the_unscored():
  reward = jnp.array([[1.0, 0.0, 1.0, np.nan]])
  settings = dict(baseline="leave-one-out", scale_std=False)
  got = np.asarray(group_advantage(reward, jnp.isfinite(reward), **settings))
  np.testing.assert_allclose(got[:, :3], group_advantage(reward[:, :3], **settings), rtol=1e-6)
  assert got[0, 3] == 0


def test_sequence_ratio_details():
  old, logp = jnp.zeros((1, 3)), jnp.array([[0.3, 0.0, -0.6]])
  settings = dict(ratio="sequence", clip_low=0.9, clip_high=0.9)
  advantage, mask = jnp.array([[1.0, 2.0, 3.0]]), jnp.ones((1, 3), bool)
  gradient = jax.grad(lambda x: policy_loss(x, old, advantage, mask, **settings)[0])(logp)
  np.testing.assert_allclose(gradient, -np.exp(-0.1) / 3 * advantage, rtol=1e-6)


def test_sequence_ratio_mask():
  old, logp = jnp.zeros((1, 3)), jnp.array([[0.3, 0.0, -0.6]])
  settings = dict(ratio="sequence", clip_low=0.9, clip_high=0.9)
  value, _ = policy_loss(logp, old, jnp.ones(1), jnp.array([[True, True, False]]), **settings)
  np.testing.assert_allclose(value, -np.exp(0.15), rtol=1e-6)


def test_sequence_ratio_of_packed_rows():
  """Two responses share a row, and a part of the second is masked: each has its own mean."""
  segments, mask = jnp.array([[0, 4, 4, 2, 2, 2]]), jnp.array([[False, True, True, False, True, True]])
  x = jnp.array([[9.0, 1.0, 2.0, jnp.nan, 5.0, 7.0]])
  np.testing.assert_allclose(masked.segment_mean(x, mask, segments), [[0, 1.5, 1.5, 6, 6, 6]])


def test_clip_metrics_tell_low_from_high():
  logp, advantage = jnp.array([[1.0, -1.0, -1.0, -1.0]]), jnp.array([[1.0, -1.0, -1.0, 1.0]])
  metrics = policy_loss(logp, jnp.zeros((1, 4)), advantage, jnp.ones((1, 4), bool))[1]
  values = {name: metric.compute() for name, metric in metrics.items()}
  assert values["clip_ratio/high_mean"] == 0.25 and values["clip_ratio/low_mean"] == 0.5
  assert values["clip_ratio/region_mean"] == 0.75


@pytest.mark.parametrize("reduce", list(masked.REDUCTIONS))
def test_unscored_rows_weigh_nothing(reduce):
  mask = jnp.array([[True, True, False], [True, False, False], [False] * 3])
  kept = jnp.array([True, True, False])
  weights = mask * masked.response_weights(jnp.array([2, 1, 3]), kept, reduce, 9)[:, None]
  np.testing.assert_allclose(weights[:2], masked.token_weights(mask[:2], reduce, 9), rtol=1e-6)
  assert not np.any(weights[2])


def test_empty_masks_give_zero():
  x, none = jnp.array([[jnp.nan, 1.0]]), jnp.zeros((1, 2), bool)
  assert masked.mean(x, none) == 0 and masked.std(x, none, 1) == 0 and masked.spread(x, none, 1) == 0
