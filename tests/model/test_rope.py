"""Rotary scalings: numbers and readings as in transformers, and that what is written is read again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.model import layers, rope, rope_config
from jaxrlvr.model.families import config_file
from jaxrlvr.model.families.config_file import ConfigFile
from jaxrlvr.model.spec import Spec
from jaxrlvr.stages import build_policy

SHORT, LONG = [1.0, 1.1, 1.2, 1.3], [2.0, 3.0, 5.0, 8.0]
LISTS = dict(short_factor=SHORT, long_factor=LONG)
SPEC = Spec(vocab=8, width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp=8, rope_theta=100.0, max_positions=64)
# Rotary parameters, tokens of the longest text, then frequencies and amplitude as transformers 5.24 computes them for
# theta 100, heads of 8 and max_position_embeddings 64.
GOLDEN = {
  "llama3": (
    dict(rope_type="llama3", factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=16),
    100,
    [0.576056, 0.0395285, 0.0125, 0.00395285],
    1.0,
  ),
  "linear": (dict(type="linear", factor=4.0), 100, [0.25, 0.0790569, 0.025, 0.00790569], 1.0),
  "dynamic, short": (dict(type="dynamic", factor=2.0), 16, [1.0, 0.316228, 0.1, 0.0316228], 1.0),
  "dynamic, long": (dict(type="dynamic", factor=2.0), 100, [1.0, 0.245969, 0.0605007, 0.0148813], 1.0),
  "yarn": (
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4),
    100,
    [1.0, 0.197642, 0.025, 0.00790569],
    1.138629,
  ),
  "yarn, exact": (
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4, truncate=False)
    | dict(mscale=1.0, mscale_all_dim=0.5),
    100,
    [1.0, 0.160589, 0.025, 0.00790569],
    1.064822,
  ),
  "longrope, short": (
    dict(type="longrope", original_max_position_embeddings=16, **LISTS),
    16,
    [1.0, 0.28748, 0.0833333, 0.0243252],
    1.224745,
  ),
  "longrope, long": (
    dict(rope_type="longrope", original_max_position_embeddings=16, **LISTS),
    17,
    [0.5, 0.105409, 0.02, 0.00395285],
    1.224745,
  ),
}
FILE = dict(max_position_embeddings=64, rope_theta=100.0)  # of config.json


def read(old_style, **config):
  """Returns the scaling of a config.json whose `rope_scaling` is old_style."""
  return ConfigFile("config.json", {**FILE, "rope_scaling": old_style, **config}).rope(10_000.0).scaling


@pytest.mark.parametrize("case", GOLDEN)
def test_scalings_equal_golden_numbers(case):
  rope_parameters, tokens, frequencies, amplitude = GOLDEN[case]
  scaling = read(rope_parameters).for_texts_of(tokens)
  scaled = dataclasses.replace(SPEC, rope_scaling=scaling)
  np.testing.assert_allclose(scaling.frequencies(100.0, 8, 64), frequencies, rtol=1e-5)
  cos, sin, _ = jax.tree.map(lambda table: table[0], layers.rope_tables(3, scaled))
  angles = np.outer(np.arange(3), frequencies)
  np.testing.assert_allclose(cos, np.cos(angles) * amplitude, atol=1e-5)
  np.testing.assert_allclose(sin, np.sin(angles) * amplitude, atol=1e-5)


@pytest.mark.parametrize("case", GOLDEN)
def test_what_is_written_is_read_again(case):
  scaling = read(GOLDEN[case][0])
  config = json.loads(json.dumps(rope_config.as_config(scaling)))
  assert read(**{"old_style": None} | config) == scaling
  recorded = json.loads(json.dumps(dataclasses.asdict(scaling)))
  assert rope_config.from_record(recorded) == scaling


def test_what_other_keys_of_a_config_state():
  yarn = dict(rope_type="yarn", factor=4.0)
  assert read(yarn).original_max_position == 64
  assert read(yarn | dict(original_max_position_embeddings=16)).original_max_position == 16
  assert read(yarn | dict(original_max_position_embeddings=16), original_max_position_embeddings=8) == read(
    yarn | dict(original_max_position_embeddings=8)
  )
  assert read(dict(rope_type="yarn", factor=None, original_max_position_embeddings=16)).factor == 4.0
  assert read(dict(rope_type="yarn", factor=4.0, attention_factor=None, beta_fast=None)) == read(yarn)
  linear, dynamic = dict(type="linear", factor=2.0), dict(rope_type="dynamic", factor=3.0)
  assert read(linear, rope_parameters=dynamic) == rope.Linear(2.0)  # old goes before new, as in transformers
  assert read(None, rope_parameters=dynamic) == rope.Dynamic(3.0)
  assert read(None) is None and read({"rope_type": "default", "rope_theta": 5.0, "type": "default"}) is None
  phi3 = rope_config.as_config(read(dict(type="longrope", original_max_position_embeddings=16, **LISTS)))
  assert phi3 == {"original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope", **LISTS}}


def test_layers_of_each_kind_have_parameters_of_their_own():
  nested = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5.0},
  }
  full, sliding = config_file.FULL_ATTENTION, config_file.SLIDING_ATTENTION
  for key in ("rope_scaling", "rope_parameters"):
    config = ConfigFile("config.json", {key: nested})
    assert config.rope(100.0, full) == (1e6, rope.Linear(8.0), 1.0) and config.rope(100.0, sliding) == (5.0, None, 1.0)
  flat = ConfigFile("config.json", {"rope_scaling": nested["full_attention"]})
  assert flat.rope(100.0, full) == (1e6, rope.Linear(8.0), 1.0) and flat.rope(100.0, sliding) == (100.0, None, 1.0)


REFUSED = {
  "unknown": (
    dict(rope_type="proportional"),
    'rope_type = "proportional" is not computed here, wanted one of',
  ),
  "key": (dict(type="linear", factor=2.0, beta=1.0), "rope parameter beta = 1.0 is not computed here"),
  "key of another": (dict(type="linear", factor=2.0, beta_fast=1.0), "rope parameter beta_fast"),
  "stage": (dict(type="dynamic", factor=2.0, length=9), "rope parameter length"),
  "absent": (dict(rope_type="linear"), "factor = null, wanted a positive float"),
  "text": (dict(rope_type="linear", factor="2"), 'factor = "2", wanted a positive float'),
  "bool": (dict(rope_type="yarn", factor=2.0, truncate=1), "truncate = 1, wanted true or false"),
  "length": (
    dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=10**400),
    "original_max_position_embeddings = 10+, wanted a positive int below 2147483648",
  ),
  "list": (dict(rope_type="longrope", short_factor=1.0, long_factor=LONG), "short_factor = 1.0, wanted a list"),
}
IMPOSSIBLE = {
  "factor": (rope.Linear(0.0), {}, "linear: factor = 0.0: wanted a positive number"),
  "order": (rope.Llama3(high_freq_factor=1.0), {}, "llama3: high_freq_factor = 1.0: must be above 1.0"),
  "unknown length": (rope.Dynamic(2.0), dict(max_positions=0), "dynamic: max_positions = 0"),
  "one pair": (rope.Dynamic(2.0), dict(head_dim=2), "dynamic: 2 numbers of a head are rotated"),
  "theta": (rope.Yarn(2.0), dict(rope_theta=1.0), "yarn: rope_theta = 1.0: wanted more than 1"),
  "betas": (rope.Yarn(2.0, beta_fast=0.5), {}, "yarn: beta_fast = 0.5: must be at least beta_slow = 1.0"),
  "pairs": (rope.LongRope((1.0,), (1.0,)), {}, "longrope: short_factor has 1 numbers: wanted 4"),
  "ratio": (rope.LongRope((1.0,) * 4, (1.0,) * 4), dict(max_positions=0), "longrope: factor = 0 stands for"),
  "huge share": (None, dict(partial_rotary_factor=1e308), "partial_rotary_factor = 1e.308: wanted a share above 0 and"),
  "share": (None, dict(partial_rotary_factor=0.4), "partial_rotary_factor = 0.4: rotates 3 of head_dim = 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(case):
  rope_parameters, words = REFUSED[case]
  with pytest.raises(InputError, match=words):
    read(rope_parameters)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_scalings_are_named(case):
  scaling, changes, words = IMPOSSIBLE[case]
  with pytest.raises(InputError, match=words):
    dataclasses.replace(SPEC, rope_scaling=scaling, **changes)


def test_a_stage_rotates_all_texts_as_its_longest():
  config = configs.load("smoke", {"rl.prompt_tokens": "40", "rl.response_tokens": "60"})
  lists = (tuple(SHORT), tuple(LONG))
  for scaling in (rope.Dynamic(2.0), rope.LongRope(*lists)):
    scaled = dataclasses.replace(SPEC, rope_scaling=scaling)
    assert build_policy.with_compute_settings(scaled, config, "cpu").rope_scaling.length == 100
    assert build_policy.with_compute_settings(scaled, config, "cpu", 32).rope_scaling.length == 32
  plain = build_policy.with_compute_settings(SPEC, config, "cpu")
  assert plain.rope_scaling is None


def test_a_text_that_needs_other_angles_is_noticed():
  dynamic, long = rope.Dynamic(2.0), rope.LongRope((1.0,) * 4, (2.0,) * 4, original_max_position=16)
  for scaling, length, tokens, expected in (
    (dynamic, 100, 100, False),
    (dynamic, 100, 101, True),
    (dynamic, 10, 64, False),
    (dynamic, 10, 65, True),
    (long, 16, 16, False),
    (long, 16, 17, True),
    (long, 17, 1000, False),
    (rope.Linear(2.0), 0, 1000, False),
  ):
    computed_for = scaling.for_texts_of(length)
    assert computed_for.is_exceeded(tokens, 64) == expected
    before, after = (s.frequencies(100.0, 8, 64) for s in (computed_for, scaling.for_texts_of(tokens)))
    assert np.array_equal(before, after) == (not expected)


def test_only_a_share_of_a_head_rotates():
  x = jnp.sin(jnp.arange(48.0)).reshape(1, 2, 3, 8)
  partial = dataclasses.replace(SPEC, partial_rotary_factor=0.75)
  whole = dataclasses.replace(SPEC, head_dim=6)
  angles, angles_of_six = (
    jax.tree.map(lambda table: table[:, None], layers.rope_tables(3, s)) for s in (partial, whole)
  )
  turned = layers._rotate(x, angles)
  np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
  np.testing.assert_array_equal(turned[..., :6], layers._rotate(x[..., :6], angles_of_six))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tokens", [10, 100])
@pytest.mark.parametrize("case", GOLDEN)
def test_tables_equal_transformers(case, tokens):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
  from transformers.models.phi3 import modeling_phi3

  shape = dict(hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_theta=100.0)
  rope_parameters = GOLDEN[case][0]
  positions, hidden = torch.arange(tokens)[None], torch.zeros(1, tokens, 32)
  is_phi3 = "short_factor" in rope_parameters
  if is_phi3:
    config = transformers.Phi3Config(
      **shape, head_dim=8, rope_scaling=dict(rope_parameters), original_max_position_embeddings=16
    )
    cos, sin = modeling_phi3.Phi3RotaryEmbedding(config)(hidden, positions)
  else:
    config = transformers.LlamaConfig(**shape, head_dim=8, rope_scaling=dict(rope_parameters))
    cos, sin = LlamaRotaryEmbedding(config)(hidden, positions)
  scaling = read(rope_parameters).for_texts_of(tokens)
  tables = layers.rope_tables(tokens, dataclasses.replace(SPEC, rope_scaling=scaling))
  np.testing.assert_allclose(tables.cos[0], cos[0, :, :4], atol=2e-5)
  np.testing.assert_allclose(tables.sin[0], sin[0, :, :4], atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_rotated_share_equals_transformers():
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  from transformers.models.phi3 import modeling_phi3

  config = transformers.Phi3Config(
    hidden_size=16, num_attention_heads=2, max_position_embeddings=64, rope_theta=100.0, partial_rotary_factor=0.75
  )
  x = np.sin(np.arange(48.0)).astype(np.float32).reshape(1, 2, 3, 8)
  cos, sin = modeling_phi3.Phi3RotaryEmbedding(config)(torch.zeros(1, 3, 16), torch.arange(3)[None])
  theirs, _ = modeling_phi3.apply_rotary_pos_emb(torch.asarray(x), torch.asarray(x), cos, sin)
  partial = dataclasses.replace(SPEC, partial_rotary_factor=0.75)
  angles = jax.tree.map(lambda table: table[:, None], layers.rope_tables(3, partial))
  ours = layers._rotate(jnp.asarray(x), angles)
  np.testing.assert_allclose(ours, theirs, atol=1e-6)
