"""Terms of the loss: what may be one, and that it is added as the library's own terms are."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.rollouts import EOS, NO_STOPS, prompts, rollout_batch, row_keys
from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model.score import score
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.training import objective, terms
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.update import accumulate

S = Sampling(group=4, max_tokens=8, eos_ids=EOS, shrink=0)
REWARD = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]], np.float32)
SETTINGS = dict(temperature=1.0, kl_estimator="k3")
accumulated = jax.jit(accumulate, static_argnums=(0, 3))


def k3(logp, ref_logp):
  return jnp.exp(ref_logp - logp) - (ref_logp - logp) - 1


def everything(logp, old_logp, ref_logp, sampler_logp, entropy, certainty, advantages, weights, mask):
  gap = jnp.log(1 + (old_logp - sampler_logp) ** 2) + jnp.sqrt((ref_logp - logp) ** 2 + 1) + 0.01 / entropy
  return jnp.where(mask, gap + entropy * certainty * advantages + weights, jnp.nan)


@pytest.fixture(scope="module")
def batch(rich_spec, rich_params):
  """A batch of a real rollout, one response of which is unscored, with scores of a reference policy."""
  tokens, lengths = prompts([3, 6, 1, 5])
  rollout = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, S)

  def scores(batch, live):
    other = {name: w * 1.1 for name, w in rich_params.items()}
    return {"ref_logp_RS": objective.logp(other, batch, live, rich_spec, temperature=1.0, parts=1)}

  settings = dict(group=4, baseline="mean", scale_std=True, reduce="sequence-mean-token-mean")
  scored = np.arange(16).reshape(4, 4) != 12
  return rollout_batch(tokens, lengths, rollout, REWARD, scored, scores=scores, **settings)[0][0]


def loss_of(spec, *texts, kl_beta=0.0, **functions):
  with named.given(functions):
    return objective.grpo(spec, kl_beta=kl_beta, terms=terms.parse_terms(texts), **SETTINGS)


def gradient_of(loss_fn, params, batch, parts=1):
  """Returns (gradient, loss, {metric: value}) of a batch in `parts` microbatches."""
  gradient, loss, metrics = accumulated(loss_fn, params, batch, parts)
  return gradient, loss, values_of(metrics)


def assert_same(ours, theirs, tolerance=2e-6):
  for name in theirs:
    np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, err_msg=name)


def test_a_term_that_is_the_kl_divergence_equals_kl_beta(rich_spec, rich_params, batch):
  ours = gradient_of(loss_of(rich_spec, "0.5*given:mine", mine=k3), rich_params, batch)
  theirs = gradient_of(loss_of(rich_spec, kl_beta=0.5), rich_params, batch)
  assert_same(ours[0], theirs[0])
  np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)
  np.testing.assert_allclose(ours[2]["loss/mine"], theirs[2]["kl"], atol=1e-6)
  np.testing.assert_allclose(ours[2]["kl"], theirs[2]["kl"], atol=1e-6)
  without = gradient_of(loss_of(rich_spec), rich_params, batch)
  assert max(float(jnp.abs(ours[0][name] - without[0][name]).max()) for name in without[0]) > 1e-3


def test_a_negative_weight_of_entropy_raises_it(rich_spec, rich_params, batch):
  def mean_entropy(params):
    entropy = score(params, batch.tokens_RS, batch.positions_RS, batch.segments_RS, rich_spec).entropy_BT
    return jnp.sum(jnp.where(batch.weights_RS[:, 1:] > 0, batch.weights_RS[:, 1:] * entropy, 0.0))

  want = jax.jit(jax.grad(mean_entropy))(rich_params)
  ours = gradient_of(loss_of(rich_spec, "-0.25*entropy"), rich_params, batch)
  plain = gradient_of(loss_of(rich_spec), rich_params, batch)
  assert_same({name: ours[0][name] - plain[0][name] for name in want}, {name: -0.25 * want[name] for name in want})
  assert float(ours[2]["loss/entropy"]) > 0.1


def test_microbatches_and_devices_change_nothing_and_padding_is_no_nan(rich_spec, rich_params, batch):
  loss_fn = loss_of(rich_spec, "0.5*given:mine", "-1e-2*entropy", mine=everything)
  whole = gradient_of(loss_fn, rich_params, batch)
  assert all(bool(jnp.isfinite(g).all()) for g in whole[0].values()) and float(jnp.abs(whole[0]["q"]).max()) > 0
  parts = gradient_of(loss_fn, rich_params, batch, 4)
  mesh = sharding.make_mesh(data=4, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    sharded = gradient_of(loss_fn, rich_params, jax.device_put(batch, sharding.named_sharding(mesh, "batch")))
  for other in (parts, sharded):
    assert_same(other[0], whole[0])
    np.testing.assert_allclose(other[1], whole[1], atol=2e-6)
    assert_same(other[2], whole[2], 1e-5)
  spoiled = batch.replace(ref_logp_RS=jnp.where(batch.weights_RS > 0, batch.ref_logp_RS, jnp.nan))
  assert_same(gradient_of(loss_fn, rich_params, spoiled)[0], whole[0], 0)


def test_a_term_sees_zeros_at_tokens_that_are_not_trained_on():
  before = terms.Term(1.0, "before", lambda ref_logp: jnp.roll(ref_logp, 1, 1), ("ref_logp",))
  arrays = {"ref_logp": jnp.array([[jnp.nan, -1.0, -2.0]]), "mask": jnp.array([[False, True, True]])}
  np.testing.assert_array_equal(terms.term_values((before,), arrays)[0], [[0.0, 0.0, -1.0]])


def test_no_terms_are_the_same_loss_function(rich_spec):
  assert loss_of(rich_spec) is loss_of(rich_spec)
  assert loss_of(rich_spec, "0.5*given:mine", mine=k3) is loss_of(rich_spec, "0.5*given:mine", mine=k3)
  assert loss_of(rich_spec, "0.5*given:mine", mine=k3) is not loss_of(rich_spec, "0.6*given:mine", mine=k3)


def test_texts_are_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path("my losses.py").write_text("def gap(logp, sampler_logp, scale=2):\n  return scale * (logp - sampler_logp)\n")
  read = terms.parse_terms((" -1e-3 * entropy", "my losses.py:gap"))
  assert [(term.weight, term.name, term.takes, term.metric) for term in read] == [
    (-0.001, "entropy", ("entropy",), "loss/entropy"),
    (1.0, "my losses.py:gap", ("logp", "sampler_logp"), "loss/gap"),
  ]
  assert terms.own_functions(("entropy", "2*my losses.py:gap")) == ["my losses.py:gap"]


def raises(logp):
  raise ValueError("no idea")


@pytest.mark.parametrize(
  ("text", "function", "words"),
  [
    ("0.1*entropi", None, "did you mean 'entropy'"),
    ("entropy*0.1", None, "there is no term 'entropy.0.1'"),
    ("given:mine", 3, "is int, no function"),
    ("given:mine", lambda: 1, r"has the parameters \(\); name them among logp, old_logp"),
    ("given:mine", lambda logp, beta: logp, r"has the parameters \(logp, beta\)"),
    ("given:mine", lambda logp: logp.sum(), r"returned \(\) for arrays \(2, 3\); return a value for each token"),
    ("given:mine", lambda logp: logp[:, 1:], r"returned \(2, 2\)"),
    ("given:mine", lambda logp: float(logp[0, 0]), "can't be computed and differentiated by jax"),
    ("given:mine", raises, r"ValueError: no idea \(.*test_terms.py:\d+\)"),
    ("gone.py:mine", None, "gone.py: no such file"),
  ],
)
def test_what_is_no_term_is_refused(text, function, words):
  with named.given({"mine": function}), pytest.raises(InputError, match=words):
    terms.parse_terms((text,))


def test_two_terms_of_a_name_are_refused():
  with pytest.raises(InputError, match="two terms of this name"):
    terms.parse_terms(("entropy", "2*entropy"))
