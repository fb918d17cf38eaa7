"""The forward pass against Hugging Face's logits, causality, isolation of segments, and scoring without [B,T,V]."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.policies import logits_of, read_checkpoint
from jaxrlvr.model import forward as fwd
from jaxrlvr.model import score as score_module
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.model.score import score, token_stats
from jaxrlvr.model.spec import Spec
from jaxrlvr.model.weight_table import count_weights, init


@pytest.mark.parametrize(
  "model", ["llama_bf16", "llama_tied_rope64", "qwen2_tied_bias", "qwen2_untied_sharded", "qwen3_qknorm"]
)
def test_logits_equal_hugging_face(golden, model):
  spec, params = read_checkpoint(golden / "hf_logits" / model)
  expected = np.load(golden / "hf_logits" / model / "expected.npz")
  plain, mask = expected["plain/input_ids"], expected["leftpad/attention_mask"]
  (rows, width), more = plain.shape, plain.shape[1] - mask.shape[1]

  def below(of_plain, of_padded):  # one batch of both, the shorter rows padded on the left
    return np.concatenate([of_plain, np.pad(of_padded, ((0, 0), (more, 0)))])

  tokens = below(plain, expected["leftpad/input_ids"])
  segments = below(np.ones_like(plain), mask)
  positions = below(np.broadcast_to(np.arange(width), plain.shape), expected["leftpad/position_ids"])

  def logits_and_logp(params, tokens, segments, positions):
    logits = logits_of(params, tokens, spec, segments, positions)
    return logits, score(params, tokens, positions, segments, spec).logp_BT

  logits, logp = jax.jit(logits_and_logp)(params, tokens, segments, positions)
  np.testing.assert_allclose(logits[:rows], expected["plain/logits"], atol=1e-4)
  np.testing.assert_allclose(logp[:rows], expected["plain/logprobs_next"], atol=1e-4)
  real = mask[..., None] > 0
  np.testing.assert_allclose(logits[rows:, more:] * real, expected["leftpad/logits"] * real, atol=1e-4)
  if "long/input_ids" in expected:
    long = jax.jit(logits_of, static_argnums=2)(params, expected["long/input_ids"], spec)
    np.testing.assert_allclose(long[:, -8:], expected["long/logits_last8"], atol=1e-4)


def test_no_token_sees_a_later_one(rich_spec, rich_params):
  tokens = jnp.arange(10)[None] % 29

  def loss_at_4(embed_extra):
    weights = fwd.cast(rich_params, rich_spec)
    ones = jnp.ones((1, 10), jnp.int32)

    def shifted(q, k, v, entry, window):
      return fwd.causal(ones, rich_spec, Separate(10))(q, k + embed_extra, v + embed_extra, entry, window)

    hidden, _ = fwd.forward(weights, tokens, jnp.arange(10)[None], shifted, None, rich_spec)
    return hidden[0, 4].sum()

  gradient = jax.jit(jax.grad(loss_at_4))(jnp.zeros((1, 1, 10, 6)))
  assert np.all(np.asarray(gradient)[0, 0, 5:] == 0) and np.all(np.abs(np.asarray(gradient)[0, 0, :5]).sum(-1) > 0)


def test_segments_and_padding_are_isolated(rich_spec, rich_params):
  """A packed document has exactly the scores that it has alone, whatever its neighbours and the padding hold."""
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 29, 5), rng.integers(0, 29, 4)
  run = jax.jit(score, static_argnums=4)

  def packed(filler):
    tokens = jnp.asarray(np.concatenate([a, b, filler]))[None]
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    positions = jnp.asarray([[*range(5), *range(4), 0, 0, 0]])
    return run(rich_params, tokens, positions, segments, rich_spec).logp_BT[0]

  one, two = packed([0, 0, 0]), packed([7, 8, 9])
  np.testing.assert_array_equal(one[:8], two[:8])
  alone = run(rich_params, jnp.asarray(b)[None], jnp.arange(4)[None], jnp.ones((1, 4), jnp.int32), rich_spec).logp_BT[0]
  np.testing.assert_allclose(one[5:8], alone, atol=1e-5)


@pytest.mark.parametrize("chunk", [8, 13, 64])
def test_chunked_statistics_and_gradients_equal_plain_ones(chunk):
  keys = jax.random.split(jax.random.key(0), 3)
  hidden, head = jax.random.normal(keys[0], (3, 5, 8)), jax.random.normal(keys[1], (40, 8))
  target = jax.random.randint(keys[2], (3, 5), 0, 37)
  known, scale = 37, 1 / 0.7

  def plain(hidden, head):
    logp = jax.nn.log_softmax((hidden @ head.T * scale)[..., :known])
    chosen = jnp.take_along_axis(logp, target[..., None], -1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logp) * logp, -1), -jnp.mean(logp, -1) - jnp.log(known)

  def ours(hidden, head):
    return token_stats(hidden, head, target, jnp.ones(target.shape, bool), known, chunk, scale)

  def mixed(fn):
    return lambda h, w: sum(jnp.sum(jnp.sin(jnp.arange(15.0).reshape(3, 5) + i) * x) for i, x in enumerate(fn(h, w)))

  for got, want in zip(jax.jit(ours)(hidden, head), jax.jit(plain)(hidden, head), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  grads = [jax.jit(jax.grad(mixed(fn), (0, 1)))(hidden, head) for fn in (ours, plain)]
  for got, want in zip(*grads, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pieces,wanted", [(1, 11), (4, 11), (4, 0), (4, 30)])
def test_unwanted_tokens_cost_no_logits_and_change_nothing(monkeypatch, pieces, wanted):
  """Statistics and gradients are those of the wanted tokens, however the tokens are split into pieces."""
  monkeypatch.setattr(score_module, "_MIN_TOKENS", 30 // pieces)
  keys = jax.random.split(jax.random.key(1), 4)
  hidden, head = jax.random.normal(keys[0], (3, 10, 8)), jax.random.normal(keys[1], (20, 8))
  target = jax.random.randint(keys[2], (3, 10), 0, 20)
  mask = jnp.zeros(30, bool).at[jax.random.permutation(keys[3], 30)[:wanted]].set(True).reshape(3, 10)
  factor = jnp.cos(jnp.arange(30.0)).reshape(3, 10)

  def total(hidden, head, how):
    stats = token_stats(hidden, head, target, how, 20, 7, 1.0)
    return sum(jnp.sum(jnp.where(mask, factor * (i + 1) * x, 0.0)) for i, x in enumerate(stats)), stats

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  (got, stats), grads = run(hidden.at[0, 0].set(jnp.where(mask[0, 0], hidden[0, 0], jnp.inf)), head, mask)
  monkeypatch.setattr(score_module, "_MIN_TOKENS", 30)
  (want, _), expected = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(hidden, head, jnp.ones((3, 10), bool))
  monkeypatch.setattr(score_module, "_MIN_TOKENS", 30 // pieces)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  for x, y in zip(grads, expected, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  assert all(np.all(np.asarray(x)[~np.asarray(mask)] == 0) for x in stats)
  order = score_module._order(mask)
  assert int(order.live) == -(-wanted // (-(-30 // pieces)))


def test_no_array_over_batch_time_and_vocabulary(rich_spec, rich_params):
  """Neither the forward nor the backward pass of scoring holds all logits at once."""
  tokens = jnp.zeros((2, 9), jnp.int32)
  ones = jnp.ones((2, 9), jnp.int32)

  def loss(params):
    return score(params, tokens, ones, ones, rich_spec).logp_BT.sum()

  text = str(jax.make_jaxpr(jax.value_and_grad(loss))(rich_params))
  assert "f32[1,16,8]" in text  # one chunk of the head for the 2 * 8 tokens of a shard
  for tokens in ("2,8", "16", "2,9", "18"):
    assert f"{tokens},29]" not in text and f"{tokens},32]" not in text


stats = jax.jit(token_stats, static_argnums=(4, 5, 6))


def test_self_certainty_equals_golden(golden):
  data = np.load(golden / "self_certainty.npz")
  cases = sorted({name.rsplit("/", 1)[0] for name in data.files if name.endswith("/logits")})
  assert cases
  for case in cases:
    logits = data[f"{case}/logits"]
    vocab = logits.shape[-1]
    target = np.zeros(logits.shape[:-1], np.int32)
    got = stats(logits, np.eye(vocab), target, np.ones(target.shape, bool), vocab, 16, 1.0)[2]
    want = data[f"{case}/paper_kl_uniform_float64"]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=case)


def test_entropy_and_logp_equal_golden(golden):
  data = np.load(golden / "kl_penalty.npz")
  cases = sorted({name.split("/")[1] for name in data.files if name.startswith("logits/")})
  for case in cases:
    at = f"logits/{case}/"
    logits, temperature = data[at + "logits"], float(data[at + "temperature"])
    vocab = logits.shape[-1]
    target = data[at + "labels"]
    every = np.ones(target.shape, bool)
    logp, entropy, _ = stats(logits, np.eye(vocab), target, every, vocab, 7, 1 / temperature)
    np.testing.assert_allclose(logp, data[at + "logprobs_float64"], rtol=1e-5, atol=2e-5, err_msg=case)
    np.testing.assert_allclose(entropy, data[at + "entropy_float64"], rtol=1e-5, atol=2e-5, err_msg=case)


def test_bfloat16_stays_near_float32(golden):
  spec, params = read_checkpoint(golden / "hf_logits" / "llama_bf16")
  expected = np.load(golden / "hf_logits" / "llama_bf16" / "expected.npz")
  half = dataclasses.replace(spec, dtype="bfloat16")
  got = np.asarray(jax.jit(logits_of, static_argnums=2)(params, expected["plain/input_ids"], half), np.float32)
  theirs = np.abs(expected["plain/logits_computed_in_bf16"] - expected["plain/logits"]).max()
  assert np.abs(got - expected["plain/logits"]).max() <= 2 * theirs


def test_init_scale_and_count(spec, params):
  assert sum(w.size for w in params.values()) == count_weights(spec)
  assert np.isclose(params["embed"].std() * spec.width**0.5, 1, atol=0.15)
  assert np.all(params["final_norm"] == 1)
  same_params = init(spec, jax.random.key(0))
  assert not np.allclose(same_params["q"], params["q"])


def test_impossible_shapes_are_named():
  good = dict(vocab=8, width=8, layers=1, heads=4, kv_heads=2, head_dim=2, mlp=8)
  for change, word in (
    (dict(kv_heads=3), "kv_heads"),
    (dict(head_dim=3), "head_dim"),
    (dict(real_vocab=9), "real_vocab"),
    (dict(query_pre_attn_scalar=-1), "query_pre_attn_scalar = -1: wanted a positive int, or 0"),
  ):
    with pytest.raises(ValueError, match=word):
      Spec(**good | change)
