"""The sampler against the scorer, exact probabilities, greedy golden tokens, and what a sample may depend on."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.policies import read_checkpoint
from helpers.rollouts import EOS, NO_STOPS, prompts, row_keys
from jaxrlvr.device import keys, sharding
from jaxrlvr.model.int8 import Int8, dequantise
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Lora
from jaxrlvr.model.weight_table import adapter_leaves, leaves
from jaxrlvr.sampling import Sampling, sample, threads
from jaxrlvr.sampling import decode as decoding
from jaxrlvr.sampling.decode import DecodeLoop, decode_loop
from jaxrlvr.sampling.drawing import draw
from jaxrlvr.sampling.types import STOP_EOS, STOP_LENGTH, STOP_STRING
from jaxrlvr.sampling.weights import FrozenWeights, lay_out_weights
from jaxrlvr.text.stop_strings import automaton

PLAIN_STOPS = automaton((), [b"x"] * 24)  # of the plain policy
HALVED = Sampling(group=4, max_tokens=9, eos_ids=(2, 5, 8, 11), shrink=1, blocks=3)  # several tests share its programs


def check_against_scorer(params, spec, tokens_PS, length_P, rollout, s):
  """Asserts that every recorded logp and certainty equals what the scorer computes for the same tokens."""
  rows, width = len(rollout.length_B), tokens_PS.shape[1]
  prompt = np.repeat(tokens_PS, s.group, 0)
  pad = width - np.repeat(length_P, s.group)[:, None]
  slot = np.arange(width + s.max_tokens)
  segments = ((slot >= pad) & (slot < width + np.asarray(rollout.length_B)[:, None])).astype(np.int32)
  tokens = np.concatenate([prompt, rollout.tokens_BT], 1)
  run = jax.jit(score, static_argnames=("spec", "start", "temperature"))
  mask = np.arange(s.max_tokens) < np.asarray(rollout.length_B)[:, None]
  arguments = (params, tokens, np.maximum(slot - pad, 0), segments)
  plain = run(*arguments, spec=spec, start=width)
  np.testing.assert_allclose(np.where(mask, rollout.model_logp_BT, 0), np.where(mask, plain.logp_BT, 0), atol=2e-5)
  np.testing.assert_allclose(np.where(mask, rollout.certainty_BT, 0), np.where(mask, plain.certainty_BT, 0), atol=2e-5)
  if not s.top_k and s.top_p == 1 and s.temperature:
    tempered = run(*arguments, spec=spec, start=width, temperature=s.temperature)
    np.testing.assert_allclose(np.where(mask, rollout.logp_BT, 0), np.where(mask, tempered.logp_BT, 0), atol=2e-5)
  assert np.all(np.asarray(rollout.tokens_BT)[mask] < spec.known_vocab) and rows == len(prompt)


def test_finished_rows_leave_the_batch_and_nothing_compiles_later(spec, params, compilations, monkeypatch):
  """With halving, later decode programs run on fewer rows; the first call compiles the programs for all lengths."""
  tokens, lengths = prompts([3, 6, 2, 4], high=20)
  ran, decode = [], decoding.decode

  def watched(weights, prompt, full_blocks, open_block, state, *others, **settings):
    ran.append((len(state.done_R), len(full_blocks)))
    return decode(weights, prompt, full_blocks, open_block, state, *others, **settings)

  monkeypatch.setattr(decoding, "decode", watched)
  decode_loop.cache_clear()
  sample(params, tokens, lengths, row_keys([11, 12, 13, 14], 4), PLAIN_STOPS, spec, HALVED)
  assert {(rows, n) for rows in (16, 8) for n in range(3)} <= set(ran)  # compiled in the first call
  before, walked = len(compilations), len(ran)
  for step in range(8):
    sample(params, tokens, lengths, row_keys([11, 12, 13, 14], 4, step), PLAIN_STOPS, spec, HALVED)
  assert {rows for rows, _ in ran[walked:]} == {16, 8} and len(compilations) == before


def test_sampler_equals_scorer(rich_spec, rich_params):
  tokens, lengths = prompts([3, 6, 1, 5])
  s = Sampling(group=4, max_tokens=12, eos_ids=EOS, pad_id=5, temperature=0.7, shrink=0)
  r = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, rich_spec, s)
  assert len(set(np.asarray(r.length_B).tolist())) > 3
  check_against_scorer(rich_params, rich_spec, tokens, lengths, r, s)
  assert np.all(np.asarray(r.tokens_BT)[np.arange(12) >= np.asarray(r.length_B)[:, None]] == 5)  # pad may equal eos


def test_adapters_are_sampled_as_they_are_scored(rich_spec, rich_params):
  """The base is laid out once and adapters beside it; in 8 bits only the base is rounded."""
  spec = dataclasses.replace(rich_spec, lora=Lora(3, 6.0, ("q", "v", "o", "gate", "down")))
  adapters = {}
  for name, leaf in adapter_leaves(spec).items():
    adapters[name] = 0.3 * jax.random.normal(keys.at(1, name), leaf.shape)
  frozen = FrozenWeights(rich_params)
  laid_out = frozen.laid_out(lay_out_weights(spec))
  assert frozen.laid_out(lay_out_weights(spec)) is laid_out
  weights = {**laid_out, **lay_out_weights(spec)(adapters)}
  tokens, lengths = prompts([3, 6, 1, 5])
  s = Sampling(group=4, max_tokens=12, eos_ids=EOS, pad_id=5, temperature=0.7, shrink=0)
  r = sample(weights, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, spec, s)
  check_against_scorer(rich_params | adapters, spec, tokens, lengths, r, s)
  base = sample(laid_out, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, spec, s)
  assert not np.array_equal(base.tokens_BT, r.tokens_BT)
  in_8_bits = frozen.laid_out(lay_out_weights(spec, None, ("weights",)))
  assert isinstance(in_8_bits["q"][0], Int8) and in_8_bits.keys() == rich_params.keys()
  rounded = lay_out_weights(spec, None, ("weights",))(adapters)
  np.testing.assert_array_equal(rounded["q_lora_a"][1], adapters["q_lora_a"][1])


def test_sampler_equals_scorer_with_sliding_windows(rich_spec, rich_params):
  """Responses of up to 9 tokens in 3 blocks outgrow the window; one layer of two has it, and rotates otherwise."""
  windowed = dataclasses.replace(rich_spec, window=4, sliding=(True, False), local_rope_theta=50.0)
  tokens, lengths = prompts([3, 6, 1, 5])
  s = Sampling(group=4, max_tokens=9, eos_ids=EOS, shrink=0, blocks=3)
  r = sample(rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 4), NO_STOPS, windowed, s)
  assert np.max(r.length_B) == 9
  check_against_scorer(rich_params, windowed, tokens, lengths, r, s)


def test_a_sample_depends_on_its_address_only(spec, params):
  """Other problems, their order, batch size, group size, padding width and shrinking change no sample."""
  tokens, lengths = prompts([3, 6, 2, 4], high=20)
  full = sample(params, tokens, lengths, row_keys([11, 12, 13, 14], 4), PLAIN_STOPS, spec, HALVED)
  wide = np.pad(tokens[[2, 0]], ((0, 0), (3, 0)))
  s_two = dataclasses.replace(HALVED, group=2, shrink=0, blocks=1)
  two = sample(params, wide, lengths[[2, 0]], row_keys([13, 11], 2, offset=2), PLAIN_STOPS, spec, s_two)
  for name in ("tokens_BT", "length_B", "stop_B"):
    rows = np.asarray(getattr(full, name)).reshape(4, 4, -1)[[2, 0], 2:]
    np.testing.assert_array_equal(np.asarray(getattr(two, name)).reshape(2, 2, -1), rows)
  other = sample(params, tokens, lengths, row_keys([11, 12, 13, 14], 4, step=1), PLAIN_STOPS, spec, HALVED)
  assert not np.array_equal(other.tokens_BT, full.tokens_BT)
  first = np.asarray(full.tokens_BT).reshape(4, 4, -1)
  assert len({row.tobytes() for row in first[0]}) > 1  # samples of a problem differ


def test_stops(spec, params):
  """A response ends at any EOS, at a stop string across tokens, or at the limit; the cause is recorded."""
  pieces = [bytes([97 + i % 3]) for i in range(24)]  # tokens spell a, b, c, a, ...
  s = Sampling(group=64, max_tokens=14, eos_ids=EOS, shrink=1)
  tokens, lengths = prompts([4], high=20)
  r = sample(params, tokens, lengths, row_keys([1], 64), automaton(("abb", "cc"), pieces), spec, s)
  stop, length, out = (np.asarray(x) for x in (r.stop_B, r.length_B, r.tokens_BT))
  assert {STOP_LENGTH, STOP_EOS, STOP_STRING} == set(stop.tolist())
  for row in range(64):
    response = out[row, : length[row]]
    text = "".join(chr(pieces[t][0]) for t in response)
    cut = min([text.find(p) + len(p) for p in ("abb", "cc") if p in text], default=99)
    if stop[row] == STOP_STRING:
      assert cut == length[row] and response[-1] not in EOS
    elif stop[row] == STOP_EOS:
      assert response[-1] in EOS and not set(response[:-1].tolist()) & set(EOS) and cut >= length[row]
    else:
      assert length[row] == 14 and not set(response.tolist()) & set(EOS) and cut == 99


def test_draws_follow_the_exact_distribution():
  """A chi-square test of 40,000 inverse-CDF draws against the truncated, tempered probabilities."""
  logits = np.array([2.0, -9.0, 0.5, 1.0, -1.0, 0.9, -30.0, 0.2], np.float32)
  n = 40_000
  row = row_keys(range(n), 1)
  for s, kept in (
    (Sampling(1, 1, ()), range(8)),
    (Sampling(1, 1, (), temperature=0.6), range(8)),
    (Sampling(1, 1, (), top_k=3), (0, 3, 5)),
    (Sampling(1, 1, (), top_p=0.6), (0, 3)),
    (Sampling(1, 1, (), top_k=4, top_p=0.95), (0, 2, 3, 5)),
  ):
    token, logp = jax.jit(draw, static_argnums=3)(jnp.tile(logits, (n, 1)), row, 0, s)
    scaled = logits / s.temperature
    p = np.where(np.isin(np.arange(8), list(kept)), np.exp(scaled), 0)
    p /= p.sum()
    counts = np.bincount(np.asarray(token), minlength=8)
    assert np.all(counts[p == 0] == 0)
    expected = n * p
    big = expected > 5
    assert np.sum((counts[big] - expected[big]) ** 2 / expected[big]) < 30  # 7 degrees of freedom: p < 1e-4
    np.testing.assert_allclose(logp, np.log(p[np.asarray(token)]), atol=1e-5)


def test_greedy_equals_hugging_face(golden):
  spec, params = read_checkpoint(golden / "hf_logits" / "qwen2_tied_bias")
  expected = np.load(golden / "hf_logits" / "qwen2_tied_bias" / "expected.npz")
  ids, lengths = expected["greedy/input_ids"], expected["greedy/attention_mask"].sum(1).astype(np.int32)
  expected_tokens = expected["greedy/new_tokens"]
  s = Sampling(group=2, max_tokens=expected_tokens.shape[1], eos_ids=(), temperature=0.0)
  no_stops = automaton((), [b"x"] * spec.vocab)
  r = sample(params, ids.astype(np.int32), lengths, row_keys(range(len(ids)), 2), no_stops, spec, s)
  sampled = np.asarray(r.tokens_BT).reshape(len(ids), 2, -1)
  safe = np.cumprod(expected["greedy/top2_margin"] > 1e-3, 1).astype(bool)
  for twin in range(2):
    assert np.array_equal(sampled[:, twin][safe], expected_tokens[safe])
  assert np.all(np.asarray(r.logp_BT) == 0) and safe.mean() > 0.5


def test_blocks_of_the_cache_and_halving_change_no_sample(spec, params):
  tokens, lengths = prompts([3, 6, 2, 4], high=20)
  whole = dataclasses.replace(HALVED, blocks=1, shrink=0)
  for step in range(4):
    arguments = (params, tokens, lengths, row_keys([11, 12, 13, 14], 4, step), PLAIN_STOPS, spec)
    r, in_one_block = sample(*arguments, HALVED), sample(*arguments, whole)
    np.testing.assert_array_equal(r.tokens_BT, in_one_block.tokens_BT)
    check_against_scorer(params, spec, tokens, lengths, r, HALVED)
    assert np.sum(np.asarray(r.length_B) > 2 * HALVED.block_slots) > 1  # rows that read all blocks


@pytest.mark.parametrize("int8", [("weights",), ("cache",)])
def test_eight_bits_are_near_and_their_logp_is_that_of_what_was_sampled(rich_spec, rich_params, int8):
  """Rounded weights are a policy of their own, on which the scorer agrees; a rounded cache is close to exact."""
  tokens, lengths = prompts([3, 6])
  s = Sampling(group=8, max_tokens=8, eos_ids=(), shrink=0, int8=int8)
  r = sample(rich_params, tokens, lengths, row_keys([1, 2], 8), NO_STOPS, rich_spec, s)
  laid, table = lay_out_weights(rich_spec, None, int8)(rich_params), leaves(rich_spec)

  @jax.jit
  def as_masters(laid):
    masters = {}
    for name, leaf in table.items():
      if leaf.layered:
        masters[name] = jnp.stack([dequantise(x, jnp.float32) for x in laid[name]])
      else:
        masters[name] = dequantise(laid[name], jnp.float32)
    return masters

  rounded = as_masters(laid)
  if "cache" not in int8:
    check_against_scorer(rounded, rich_spec, tokens, lengths, r, s)
  plainly = dataclasses.replace(s, int8=())
  exact = sample(rich_params, tokens, lengths, row_keys([1, 2], 8), NO_STOPS, rich_spec, plainly)
  gap = np.abs(np.asarray(r.logp_BT[:, 0] - exact.logp_BT[:, 0]))[np.asarray(r.tokens_BT == exact.tokens_BT)[:, 0]]
  assert (gap.max() > 0 or "weights" not in int8) and gap.max() < 0.1
  for name, leaf in table.items():
    off = np.abs(np.asarray(rounded[name] - rich_params[name]))
    assert off.max() <= np.abs(rich_params[name]).max() / 254 + 1e-6 and (off.max() > 0) == (
      "weights" in int8 and bool(leaf.input_axes)
    ), name


def test_bad_settings_are_refused():
  for change in (dict(group=0), dict(max_tokens=0), dict(temperature=-1), dict(top_p=0)):
    with pytest.raises(ValueError, match="top_p in"):
      Sampling(**dict(group=1, max_tokens=1, eos_ids=()) | change)


def test_automaton_finds_strings_however_they_are_cut():
  """Compares it with a plain search on random text, random strings and random tokens."""
  rng = np.random.default_rng(0)
  for _ in range(50):
    pieces = [b"", *("".join(rng.choice(list("abé"), rng.integers(1, 4))).encode() for _ in range(12))]
    strings = ["".join(rng.choice(list("abé"), rng.integers(1, 5))) for _ in range(rng.integers(1, 4))]
    table = automaton(strings, pieces)
    state, text = 0, b""
    for token in rng.integers(0, len(pieces), 20):
      state, text = table[state, token], text + pieces[token]
      assert (state == len(table) - 1) == any(s.encode() in text for s in strings)
  with pytest.raises(ValueError, match="empty string"):
    automaton(["a", ""], pieces)


def test_a_shrunken_batch_goes_on_with_its_own_prompts(rich_spec, rich_params, compilations):
  """Rows that go on for many tokens after two halvings still have the scorer's log-probabilities.

  A first call, whose rows all ended at once, compiled the programs that they need.
  """
  tokens, lengths = prompts([3, 6, 1, 5])
  s = Sampling(group=8, max_tokens=24, eos_ids=tuple(range(0, 12, 2)), pad_id=4, shrink=2)
  arguments = (rich_params, tokens, lengths, row_keys([1, 2, 3, 4], 8))
  at_once = sample(*arguments, np.full_like(NO_STOPS, len(NO_STOPS) - 1), rich_spec, s)
  before = len(compilations)
  r = sample(*arguments, NO_STOPS, rich_spec, s)
  assert np.all(np.asarray(at_once.length_B) == 1) and len(compilations) == before
  ends = np.sort(np.asarray(r.length_B))
  assert ends[-1] > ends[15] + 5 and ends[-1] > ends[23] + 3
  check_against_scorer(rich_params, rich_spec, tokens, lengths, r, s)
  assert np.all(np.asarray(r.tokens_BT)[np.arange(24) >= np.asarray(r.length_B)[:, None]] == s.pad_id)


def test_positions_streams_and_problems_draw_apart():
  """A row draws anew at each position; another stream or problem draws other tokens."""
  flat, s = jnp.zeros((64, 21)), Sampling(1, 1, ())
  row = row_keys(range(64), 1)
  at = [np.asarray(draw(flat, row, t, s)[0]) for t in (0, 1)]
  assert np.mean(at[0] == at[1]) < 0.3
  other = keys.of_samples(keys.address(0, "other", 0), np.arange(64, dtype=np.uint32), np.zeros((64, 1), np.int32))
  assert np.mean(at[0] == np.asarray(draw(flat, other, 0, s)[0])) < 0.3
  assert len({int(keys.problem_hash(f"p{i}")) for i in range(100)}) == 100


@pytest.mark.parametrize("cores,parts", [(1, 1), (2, 2), (3, 2)])
def test_a_cpu_samples_a_part_of_the_batch_on_each_core(spec, params, monkeypatch, cores, parts):
  """There are as many parts as divide the problems; samples are those of one part; one thread compiles for all."""
  ran, call = [], DecodeLoop.__call__
  compiled, compile_all = [], DecodeLoop._compile
  monkeypatch.setattr(DecodeLoop, "__call__", lambda *args: (ran.append(threading.get_ident()), call(*args))[1])
  monkeypatch.setattr(DecodeLoop, "_compile", lambda *args: (compiled.append(1), compile_all(*args)))
  monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(cores), raising=False)
  tokens, lengths = prompts([3, 6, 2, 4], high=20)
  arguments = (params, tokens, lengths, row_keys([11, 12, 13, 14], 4), automaton((), [b"x"] * 24), spec)
  s = Sampling(group=4, max_tokens=10, eos_ids=EOS, shrink=0)
  decode_loop.cache_clear()
  whole = sample(*arguments, s)  # too few rows for two threads
  assert ran == [threading.get_ident()]
  monkeypatch.setattr(threads, "_LEAST_ROWS", 4)
  split = sample(*arguments, s)
  assert len(ran) == 1 + parts and (threading.get_ident() in ran[1:]) == (parts == 1)
  assert len(compiled) == (1 if parts == 1 else 2)  # once a shape
  for name in ("tokens_BT", "length_B", "stop_B"):
    np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))
  np.testing.assert_allclose(split.model_logp_BT, whole.model_logp_BT, atol=1e-5)


def test_several_devices_share_a_batch_by_the_mesh_alone(spec, params):
  mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
  spread = jax.device_put(params, sharding.named_sharding(mesh))
  assert threads.part_count(spread, 64, 64) == 1
