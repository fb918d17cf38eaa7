"""Sliding windows: every attention function, layout and decode step sees the same keys, and nothing beyond them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlvr.model import attention
from jaxrlvr.model.row_layout import Separate, SharedPrompt
from jaxrlvr.model.score import score
from jaxrlvr.sampling import Sampling
from jaxrlvr.sampling import cache as caches

TIME, BEFORE = 13, 6  # slots of a row, slots before it
PROMPTS = (4, 6)  # tokens in the slots before each row
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]])
BEFORE_BP = np.array([[0] * (BEFORE - prompt) + [1] * prompt for prompt in PROMPTS])


def draw(*shapes):
  """Returns a random array for each shape."""
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def rows(before):
  """Returns (queries, keys, values), segments and slots before the rows; before: whether there are any."""
  slots = TIME + BEFORE * before
  before_BP = jnp.asarray(BEFORE_BP[:, : BEFORE * before])
  return draw((2, 4, TIME, 6), (2, 2, slots, 6), (2, 2, slots, 6)), jnp.asarray(SEGMENTS), before_BP


def sees(row, query, key, before, window):
  """Says, slot by slot, whether a query of a row sees a key; keys before the row have negative numbers."""
  segment = SEGMENTS[row]
  if key >= 0:
    return segment[key] == segment[query] and 0 <= query - key < window
  start = query
  while start > 0 and segment[start - 1] == segment[query]:
    start -= 1
  is_token = key >= -PROMPTS[row]
  return before and is_token and query - start - key < window


def visible(before, window):
  """Returns `sees` of all slots, [B,T,S]."""
  keys = range(-BEFORE * before, TIME)
  return np.array([[[sees(row, t, key, before, window) for key in keys] for t in range(TIME)] for row in range(2)])


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_a_query_sees_its_window_and_gradients_beyond_it_are_0(before, window):
  (q, k, v), segments, before_BP = rows(before)
  real = SEGMENTS > 0

  def of_each_query(k, v):
    out = attention.reference(q, k, v, segments, before_BP, window=window)
    return jnp.sum(out, (1, 3))

  d_k, d_v = jax.jit(jax.jacobian(of_each_query, (0, 1)))(k, v)  # [B,T,B,K,S,h]
  for gradient in (d_k, d_v):
    of_row = np.abs(np.asarray(gradient)).sum((3, 5))[np.arange(2), :, np.arange(2)]
    is_alone = visible(before, window).sum(2, keepdims=True) == 1  # a softmax over one key moves with no key
    expected = visible(before, window) & (True if gradient is d_v else ~is_alone)
    np.testing.assert_array_equal((of_row > 0)[real], expected[real])


@pytest.mark.parametrize("window", [1, 3, 9])
def test_the_reference_equals_a_softmax_over_the_window(window):
  (q, k, v), segments, before_BP = rows(True)
  out = attention.reference(q, k, v, segments, before_BP, window=window)
  for row, query, head in ((0, 0, 0), (0, 6, 1), (0, 8, 2), (1, 2, 3), (1, 12, 0)):
    keys = np.flatnonzero(visible(True, window)[row, query])
    score = np.asarray(k)[row, head // 2, keys] @ np.asarray(q)[row, head, query] / 6**0.5
    weight = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(out[row, head, query], weight @ np.asarray(v)[row, head // 2, keys], atol=1e-5)


OTHERS = {
  "mapped": attention.mapped,
  "xla": attention.ATTENTION["xla"],
  "splash": functools.partial(attention.splash, interpret=True),
}


def attended(attend, arrays, window):
  """Returns [gradients of q, k and v, output] of an attention function on these rows; padding counts as 0."""
  (q, k, v), segments, before_BP = arrays
  real = (segments > 0)[:, None, :, None]

  def value(q, k, v):
    out = jnp.where(real, attend(q, k, v, segments, before_BP, window=window), 0.0)
    return jnp.sum(jnp.sin(jnp.arange(out.size)).reshape(out.shape) * out), out

  return jax.tree.leaves(jax.jit(jax.grad(value, (0, 1, 2), has_aux=True))(q, k, v))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ["mapped", "xla"])
def test_windows_equal_those_of_the_reference(name, before):
  expected = attended(attention.reference, rows(before), 4)
  for ours, theirs in zip(attended(OTHERS[name], rows(before), 4), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_rows_that_are_mapped_one_by_one_have_the_window(monkeypatch):
  monkeypatch.setattr(attention, "_MAX_SCORES", 1)
  expected = attended(attention.reference, rows(True), 4)
  for ours, theirs in zip(attended(attention.mapped, rows(True), 4), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_kernel_leaves_out_blocks_before_the_window(monkeypatch):
  monkeypatch.setattr(attention, "_SPLASH_BLOCKS", (128,))
  time, window = 300, 100
  q, k, v = draw((1, 2, time, 8), (1, 1, time, 8), (1, 1, time, 8))
  segments = jnp.asarray([[1] * 270 + [2] * 20 + [0] * 10])
  arrays = (q, k, v), segments, segments[:, :0]
  expected = attended(attention.reference, arrays, window)
  for ours, theirs in zip(attended(OTHERS["splash"], arrays, window), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=3e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_a_window_over_all_slots_is_none(name):
  before = name != "splash"
  (q, k, v), segments, before_BP = rows(before)

  def program(window):
    attend = functools.partial(OTHERS[name], window=window)
    return jax.jit(attend).lower(q, k, v, segments, before_BP).as_text()

  assert program(TIME + BEFORE * before) == program(0) != program(TIME + BEFORE * before - 1)


@pytest.mark.parametrize("window", [0, 2, 5, 9])
def test_pairs_are_counted(window):
  def count(slots):
    distance = np.arange(slots)[:, None] - np.arange(slots)
    return np.sum((distance >= 0) & (distance < (window or slots)))

  assert Separate(11).attention_pairs("mapped", window) == (121, count(11))
  shared = SharedPrompt(4, 3, 5).attention_pairs("mapped", window)
  assert shared == (4 * 4 + 3 * 5 * 9, count(4) + 3 * (count(9) - count(4)))


@pytest.mark.parametrize("time, window", [(4096, 0), (4096, 1), (4096, 2), (4096, 513), (4096, 1500), (1024, 1000)])
def test_blocks_of_the_kernel_are_counted(time, window):
  block = 512
  numbers = range(time // block)
  pairs = 0
  for query in numbers:
    for key in numbers:
      nearest, farthest = (query - key - 1) * block + 1, (query - key + 1) * block - 1  # distances
      pairs += block**2 * (farthest >= 0 and nearest < (window or time))
  assert attention.computed_pairs("splash", time, window=window) == pairs
  assert attention.computed_pairs("splash", 700, window=699) == attention.computed_pairs("splash", 700)


LENGTHS = np.array([[5, 3, 2], [4, 1, 5]])  # tokens of responses
PROMPT_LENGTHS = np.array([3, 4])


def placed(layout, pack):
  return layout.place(PROMPT_LENGTHS, LENGTHS, range(6), layout.rows(6) if not pack else 4, parts=1, pack=pack)


def by_text(layout, pack, window):
  """Returns the attention of each token on the rows of a layout, and the gradients of what responses attend to.

  The tokens of a problem's prompt have the same queries, keys and values in each of its texts.
  """
  rows = placed(layout, pack)
  text, position = rows.segments_RS - 1, rows.positions_RS
  problem = np.maximum(text, 0) // 3
  in_prompt = position < PROMPT_LENGTHS[problem]
  index = np.where(in_prompt, 60 + problem * 9, np.maximum(text, 0) * 9) + position

  def attend(table):
    q, k, v = (table[i][:, index].swapaxes(0, 1) for i in range(3))
    return layout.attend(attention.reference, q, k, v, jnp.asarray(rows.segments_RS), window)

  (table,) = draw((3, 2, 80, 4))
  real = text >= 0
  weight = np.sin(index) * (real & ~in_prompt)
  out, pull = jax.vjp(jax.jit(attend), table)
  (gradient,) = pull(jnp.broadcast_to(weight[:, None, :, None], out.shape))
  outputs = np.zeros((80, 2, 4))
  outputs[index[real]] = np.asarray(out).swapaxes(1, 2)[real]
  return outputs, gradient


@pytest.mark.parametrize("window", [1, 4, 6])
def test_packed_rows_and_shared_prompts_have_the_window_of_separate_rows(window):
  outputs, gradient = by_text(Separate(9), False, window)
  for layout, pack in ((Separate(18), True), (SharedPrompt(5, 3, 5), False), (SharedPrompt(4, 2, 6), True)):
    other_outputs, other_gradient = by_text(layout, pack, window)
    np.testing.assert_allclose(other_outputs, outputs, atol=1e-5)
    np.testing.assert_allclose(other_gradient, gradient, atol=1e-5)


def scored_by_text(layout, pack, spec, params):
  """Returns (log-probability of each response token, gradients of their weighted sum) on the rows of a layout."""
  rows = placed(layout, pack)
  text, position = rows.segments_RS - 1, rows.positions_RS
  problem = np.maximum(text, 0) // 3
  in_prompt = position < PROMPT_LENGTHS[problem]
  index = np.where(in_prompt, 60 + problem * 9, np.maximum(text, 0) * 9) + position
  tokens = jnp.asarray(index * 7 % spec.known_vocab)
  is_response = ((text >= 0) & ~in_prompt)[:, 1:]

  def total(params):
    logp = score(params, tokens, jnp.asarray(position), jnp.asarray(rows.segments_RS), spec, layout=layout).logp_BT
    return jnp.sum(jnp.where(is_response, jnp.sin(index[:, 1:]) * logp, 0.0)), logp

  gradient, logp = jax.jit(jax.grad(total, has_aux=True))(params)
  logp_of_token = np.zeros(80)
  logp_of_token[index[:, 1:][is_response]] = logp[is_response]
  return logp_of_token, gradient


def test_shared_prompts_train_a_policy_with_windows_as_separate_rows_do(spec, params):
  """One of the two layers has the window, and a rotary base of its own."""
  windowed = dataclasses.replace(spec, window=3, sliding=(True, False), local_rope_theta=50.0)
  logp, gradient = scored_by_text(Separate(9), False, windowed, params)
  shared_logp, shared_gradient = scored_by_text(SharedPrompt(4, 2, 6), True, windowed, params)
  np.testing.assert_allclose(shared_logp, logp, atol=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), shared_gradient, gradient)
  plain_logp, _ = scored_by_text(Separate(9), False, dataclasses.replace(windowed, window=0), params)
  assert np.abs(plain_logp - logp).max() > 1e-3


def test_layers_whose_window_reaches_over_the_row_take_no_branch(spec, params):
  rows = jnp.ones((1, 8), jnp.int32)

  def program(**changes):
    changed = dataclasses.replace(spec, **changes)
    return jax.jit(lambda params: score(params, rows, rows, rows, changed)).lower(params).as_text()

  def branches(text):
    return text.count("stablehlo.case")

  plain = program()
  assert program(window=8, sliding=(True, True)) == plain
  assert branches(program(window=8, sliding=(True, False))) == branches(plain)
  assert branches(program(window=7, sliding=(True, False))) > branches(plain)


@pytest.mark.parametrize("window", [1, 2, 4, 6, 11])
def test_a_decode_step_sees_the_window_of_the_whole_row(window):
  """Prompts of 3 and 5 tokens on 5 slots, two rows each; blocks of 3 slots, in which tokens 0, 3, 7 and 8 are new."""
  s = Sampling(group=2, max_tokens=9, eos_ids=(), blocks=3)
  prompt_slots, slots = 5, 14
  q, k, v = draw((4, 4, slots, 6), (4, 2, slots, 6), (4, 2, slots, 6))
  k, v = (x.at[1::2, :, :prompt_slots].set(x[::2, :, :prompt_slots]) for x in (k, v))
  mask_PS = jnp.asarray([[False] * 2 + [True] * 3, [True] * 5])
  segments = jnp.concatenate([jnp.repeat(mask_PS, 2, 0), jnp.ones((4, 9), bool)], 1).astype(jnp.int32)
  expected = attention.reference(q, k, v, segments, segments[:, :0], window=window)

  def cached(rows, first, last):
    return caches._slots(k[rows, :, first:last], v[rows, :, first:last], s)

  prompt = caches.PromptCache((cached(slice(None, None, 2), 0, prompt_slots),), mask_PS)
  every = slice(None)
  for t in (0, 3, 7, 8):
    full, slot = divmod(t, 3)
    firsts = [prompt_slots + 3 * block for block in range(full + 1)]
    blocks = [(cached(every, first, first + 3),) for first in firsts]
    attend = caches.decode_attend(prompt, tuple(blocks[:full]), jnp.int32(slot), s)
    new = slice(prompt_slots + t, prompt_slots + t + 1)
    out, _ = attend(q[:, :, new], k[:, :, new], v[:, :, new], (0, blocks[full][0]), window)
    np.testing.assert_allclose(out, expected[:, :, new], atol=1e-5)


@pytest.mark.parametrize("window, parts, hidden", [(0, 4, 0), (14, 4, 0), (13, 4, 1), (6, 4, 2), (4, 3, 2), (1, 2, 2)])
def test_blocks_before_the_window_are_not_read(window, parts, hidden):
  """Of a prompt of 5 slots and 3 blocks of 3, counts which are read, and which of these need a mask for the window."""
  s = Sampling(group=1, max_tokens=9, eos_ids=(), blocks=3)
  k, v, q = draw((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 1, 4))
  block = (caches._slots(k, v, s),)
  prompt = caches.PromptCache((caches._slots(*draw((1, 1, 5, 4), (1, 1, 5, 4)), s),), jnp.ones((1, 5), bool))

  def step(q, slot):
    return caches.decode_attend(prompt, (block, block), slot, s)(q, q, q, (0, block[0]), window)[0]

  text = str(jax.make_jaxpr(step)(q, jnp.int32(0)))
  assert text.count("exp ") == parts and text.count(" ge ") == hidden
