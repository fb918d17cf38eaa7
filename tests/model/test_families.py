"""Families of models: logits as transformers computes them, files out and in, and what config.json may say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors import numpy as safetensors

from helpers import family_models
from helpers.family_models import ABSENT, MODELS, TOKENS, golden_logits
from helpers.policies import for_texts_of, logits_of
from helpers.rollouts import NO_STOPS, row_keys
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.device import sharding
from jaxrlvr.model import families, hf_weights, weight_table
from jaxrlvr.model.rope import Linear, LongRope, Yarn
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.stages import build_policy

MESH = dict(data=2, fsdp=2, tensor=2)
PROMPT = 6  # tokens of a text that are the prompt of the sampler
LOGITS = jax.jit(logits_of, static_argnums=2)


def read_spec(folder, name, **changes):
  family_models.write_config(folder, name, **changes)
  return hf_weights.read_spec(epath.Path(folder))


def load(folder, mesh):
  """Returns (spec, weights) of a folder, for texts of TOKENS tokens."""
  model = hf_weights.open_model(folder)
  spec = for_texts_of(model.spec, TOKENS)
  return spec, hf_weights.load(model, spec, mesh)


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
  """(name, its folder, its spec, its weights on one device)."""
  folder = family_models.write(tmp_path_factory.mktemp("models") / request.param, request.param)
  return request.param, folder, *load(folder, sharding.make_mesh(devices=jax.devices()[:1]))


def test_logits_are_those_of_transformers(model):
  name, _, spec, params = model
  np.testing.assert_allclose(LOGITS(params, family_models.texts(), spec), golden_logits(name), atol=3e-5)


def test_sharded_logits_are_those_of_transformers(model):
  name, folder, spec, _ = model
  mesh = sharding.make_mesh(**MESH)
  _, params = load(folder, mesh)
  assert {name: w.sharding for name, w in params.items()} == weight_table.shardings(spec, mesh)
  with jax.set_mesh(mesh):
    logits = jax.device_get(LOGITS(params, jnp.tile(family_models.texts(), (4, 1)), spec))
  np.testing.assert_allclose(logits, np.tile(golden_logits(name), (4, 1, 1)), atol=3e-5)


def test_sampler_equals_the_forward_pass_over_whole_texts(model):
  _, _, spec, params = model
  prompt = family_models.texts()[:, :PROMPT]
  s = Sampling(group=1, max_tokens=TOKENS - PROMPT, eos_ids=(), shrink=0, blocks=1)
  r = sample(params, prompt, np.array([PROMPT], np.int32), row_keys([1], 1), NO_STOPS, spec, s)
  logp = jax.nn.log_softmax(LOGITS(params, np.concatenate([prompt, r.tokens_BT], 1), spec)[:, PROMPT - 1 : -1])
  of_sampled = np.take_along_axis(np.asarray(logp), np.asarray(r.tokens_BT)[..., None], -1)[..., 0]
  np.testing.assert_allclose(r.logp_BT, of_sampled, atol=2e-5)


def test_files_that_are_written_are_those_that_were_read(model, tmp_path):
  """Tensors are the same bit for bit, from shards of a mesh too, and config.json is read as the same policy."""
  _, folder, spec, _ = model
  _, params = load(folder, sharding.make_mesh(**MESH))
  (tmp_path / "config.json").write_text(json.dumps(hf_weights.config_of(spec, "float32", {})))
  hf_weights.save(tmp_path, params, spec, "float32", 1 << 30)
  assert hf_weights.open_model(tmp_path).spec == hf_weights.open_model(folder).spec
  read, written = (safetensors.load_file(place / "model.safetensors") for place in (folder, tmp_path))
  assert read.keys() == written.keys()
  assert all(np.array_equal(read[name], written[name]) for name in read)


SHORT, LONG = [1.0, 1.5], [1.25, 4.0]
LONG_ROPE = LongRope(tuple(SHORT), tuple(LONG), 4096)
LISTS = dict(short_factor=SHORT, long_factor=LONG)
YARN = dict(
  rope_type="yarn", rope_theta=1e6, factor=16.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.1
)
FOURFOLD = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)


def by_kind(full, local):
  return {"full_attention": {"rope_type": "default"} | full, "sliding_attention": {"rope_type": "default"} | local}


# What a config.json says beside that of a model: (name of the model, changes, fields of Spec).
READ = {
  "window absent": ("mistral", dict(sliding_window=ABSENT), dict(window=4096, sliding=(True, True))),
  "window null": ("mistral", dict(sliding_window=None), dict(window=0, sliding=())),
  "all slide": ("mistral", dict(layer_types=["sliding_attention"] * 2), dict(window=5, sliding=(True, True))),
  "old style": (
    "mistral",
    dict(rope_parameters=ABSENT, rope_theta=5e5, rope_scaling=None, attention_bias=False, head_dim=None),
    dict(rope_theta=5e5, rope_scaling=None, head_dim=4),
  ),
  "kv heads null": ("mistral", dict(num_key_value_heads=None, num_attention_heads=2), dict(kv_heads=2)),
  "kv heads absent": ("mistral", dict(num_key_value_heads=ABSENT, num_attention_heads=16), dict(kv_heads=8)),
  "of Llama": ("mistral", dict(rope_parameters=ABSENT, head_dim=ABSENT), dict(rope_theta=1e4, head_dim=4, tied=False)),
  "ministral": ("ministral", dict(layer_types=ABSENT), dict(window=4, sliding=(True,) * 3)),
  "ministral null": ("ministral", dict(layer_types=ABSENT, sliding_window=None), dict(window=0, sliding=())),
  "ministral full": ("ministral", dict(layer_types=["full_attention"] * 3), dict(window=0, sliding=())),
  "ministral3": (
    "ministral3",
    dict(rope_parameters=ABSENT, head_dim=ABSENT, num_key_value_heads=ABSENT, num_attention_heads=8),
    dict(
      head_dim=128,
      kv_heads=8,
      norm_eps=1e-5,
      rope_theta=1e6,
      rope_scaling=Yarn(16.0, 16384, mscale=1.0, mscale_all_dim=1.0),
      query_scaling_beta=0.1,
      window=0,
    ),
  ),
  "ministral3 window": ("ministral3", dict(sliding_window=6, head_dim=None), dict(window=6, head_dim=4)),
  "olmo2": (
    "olmo2",
    dict(rope_parameters=ABSENT, num_key_value_heads=ABSENT),
    dict(rope_theta=1e4, kv_heads=4, norm_eps=1e-5, tied=False),
  ),
  "olmo2 of transformers 4": (
    "olmo2",
    dict(rope_parameters=ABSENT, rope_theta=5e5, rope_scaling=None, rms_norm_eps=1e-6),
    dict(rope_theta=5e5, rope_scaling=None, norm_eps=1e-6),
  ),
  "olmo3": (
    "olmo3",
    dict(rope_parameters=ABSENT, layer_types=ABSENT, sliding_window=ABSENT),
    dict(rope_theta=5e5, local_rope_theta=5e5, window=4096, sliding=(True, True, True, False), norm_eps=1e-5),
  ),
  "olmo3 of transformers 4": (
    "olmo3",
    dict(rope_parameters=ABSENT, rope_theta=500_000, rope_scaling=FOURFOLD),
    dict(rope_theta=5e5, local_rope_theta=5e5, rope_scaling=Yarn(4.0, 16)),
  ),
  "olmo3 of transformers 5": (
    "olmo3",
    dict(rope_parameters=by_kind(FOURFOLD | {"rope_theta": 1e6}, {"rope_theta": 1e5})),
    dict(rope_theta=1e6, local_rope_theta=1e5, rope_scaling=Yarn(4.0, 16)),
  ),
  "olmo3 of both": (
    "olmo3",
    dict(rope_scaling=FOURFOLD, rope_parameters=by_kind({"rope_theta": 1e6}, {"rope_theta": 1e5})),
    dict(rope_theta=1e6, local_rope_theta=1e5, rope_scaling=Yarn(4.0, 16)),
  ),
  "olmo3 full": (
    "olmo3",
    dict(layer_types=["full_attention"] * 4, sliding_window=None, rope_parameters=ABSENT, rope_theta=1e4),
    dict(rope_theta=1e4, local_rope_theta=0.0, window=0, sliding=()),
  ),
  "gemma3": (
    "gemma3",
    dict(
      num_hidden_layers=7,
      num_attention_heads=8,
      **dict.fromkeys(("rope_parameters", "layer_types", "sliding_window", "head_dim", "num_key_value_heads"), ABSENT),
      query_pre_attn_scalar=ABSENT,
    ),
    dict(
      rope_theta=1e6,
      local_rope_theta=1e4,
      window=4096,
      sliding=(True, True, True, True, True, False, True),
      head_dim=256,
      kv_heads=4,
      query_pre_attn_scalar=256,
      norm_eps=1e-6,
      tied=True,
    ),
  ),
  "gemma3 of transformers 4": (
    "gemma3",
    dict(
      rope_parameters=ABSENT,
      rope_theta=5e5,
      rope_local_base_freq=2e4,
      rope_scaling={"rope_type": "linear", "factor": 8.0},
      layer_types=ABSENT,
      sliding_window_pattern=2,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
      hidden_activation="gelu_pytorch_tanh",
    ),
    dict(rope_theta=5e5, local_rope_theta=2e4, rope_scaling=Linear(8.0), window=4, sliding=(True, False, True)),
  ),
  "gemma3 of transformers 5": (
    "gemma3",
    dict(
      rope_parameters=by_kind({"rope_type": "linear", "factor": 8.0}, {"rope_theta": 3e3}),
      _sliding_window_pattern=6,
      use_bidirectional_attention=False,
      tie_word_embeddings=False,
    ),
    dict(rope_theta=1e6, local_rope_theta=3e3, rope_scaling=Linear(8.0), tied=False),
  ),
  "gemma3 full": (
    "gemma3",
    dict(layer_types=["full_attention"] * 3, sliding_window=None),
    dict(window=0, sliding=(), local_rope_theta=0.0, rope_theta=1000.0),
  ),
  "phi3": ("phi3", dict(sliding_window=ABSENT, rms_norm_eps=ABSENT), dict(window=0, norm_eps=1e-5, tied=False)),
  "su": (
    "phi3",
    dict(rope_scaling=dict(type="su", **LISTS), original_max_position_embeddings=ABSENT),
    dict(rope_scaling=LONG_ROPE),
  ),
  "original": (
    "phi3",
    dict(
      rope_scaling=dict(type="longrope", original_max_position_embeddings=16, **LISTS),
      original_max_position_embeddings=ABSENT,
    ),
    dict(rope_scaling=LONG_ROPE),
  ),
  "own code": (
    "phi3",
    dict(
      rope_scaling=None,
      auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
      embd_pdrop=0.0,
      resid_pdrop=0.0,
      attention_bias=False,
    ),
    dict(rope_scaling=None),
  ),
  "phi4 mini": (
    "phi3",
    dict(
      partial_rotary_factor=0.5,
      rope_scaling=dict(type="longrope", short_factor=[1.0], long_factor=[2.0]),
      full_attn_mod=1,
      interpolate_factor=1,
      lm_head_bias=False,
      mlp_bias=False,
      sliding_window=262144,
    ),
    dict(partial_rotary_factor=0.5, window=262144),
  ),
  "share": ("phi3-share", {}, dict(partial_rotary_factor=0.75, rope_theta=100.0)),
  "off": ("qwen2-window", dict(use_sliding_window=False), dict(window=0, sliding=())),
  "qwen2 absent": (
    "qwen2-window",
    dict(sliding_window=ABSENT, max_window_layers=0),
    dict(window=4096, sliding=(True,) * 3),
  ),
  "qwen2 28 layers": ("qwen2-window", dict(max_window_layers=ABSENT), dict(window=0, sliding=())),
  "qwen2 null": ("qwen2-window", dict(sliding_window=None), dict(window=0, sliding=())),
  "qwen2 kv heads": (
    "qwen2-window",
    dict(num_key_value_heads=ABSENT, num_attention_heads=64, head_dim=2),
    dict(kv_heads=32),
  ),
  "qwen2 types": (
    "qwen2-window",
    dict(layer_types=["sliding_attention", "full_attention", "full_attention"]),
    dict(window=4, sliding=(True, False, False)),
  ),
  "smollm3": (
    "smollm3",
    dict(no_rope_layer_interval=ABSENT, layer_types=ABSENT, tie_word_embeddings=ABSENT, rope_parameters=ABSENT),
    dict(no_rope=(False, False, False, True), window=4, sliding=(False, False, False, True), tied=True, rope_theta=2e6),
  ),
  "smollm3 off": ("smollm3", dict(use_sliding_window=False, layer_types=ABSENT), dict(window=0, sliding=())),
  "smollm3 list": (
    "smollm3",
    dict(no_rope_layers=[0, 1, 1, 0], layer_types=ABSENT, sliding_window=ABSENT, num_key_value_heads=ABSENT),
    dict(no_rope=(True, False, False, True), window=0, sliding=(), kv_heads=4),
  ),
  "smollm3 all": ("smollm3", dict(no_rope_layers=[1, 1, 1, 1], max_window_layers=28), dict(no_rope=())),
}


@pytest.mark.parametrize("case", READ)
def test_what_a_config_says_is_read_and_written(case, tmp_path):
  name, changes, expected = READ[case]
  spec = read_spec(tmp_path / "in", name, **changes)
  assert {field: getattr(spec, field) for field in expected} == expected
  (tmp_path / "config.json").write_text(json.dumps(hf_weights.config_of(spec, "float32", {})))
  assert hf_weights.read_spec(epath.Path(tmp_path)) == spec


@pytest.mark.parametrize("name", ["olmo3", "gemma3"])
def test_configs_of_two_kinds_of_layers_suit_every_version(name, tmp_path):
  """Transformers 4 reads rotary parameters outside of rope_parameters; 5 reads no "type" there, and wants a window."""
  full = dict(rope_type="linear", factor=2.0, rope_theta=1000.0)
  spec = read_spec(tmp_path, name, rope_parameters=by_kind(full, {"rope_theta": 10.0}))
  content = hf_weights.config_of(spec, "float32", {})
  assert (content["rope_theta"], content["rope_scaling"]) == (1000.0, {"rope_type": "linear", "factor": 2.0})
  local = content.get("rope_local_base_freq") or content["rope_parameters"]["sliding_attention"]["rope_theta"]
  assert local == spec.local_rope_theta == 10.0
  content = hf_weights.config_of(dataclasses.replace(spec, window=0, sliding=()), "float32", {})
  assert content["sliding_window"] == 4096 and set(content["layer_types"]) == {"full_attention"}


def test_fresh_norms_change_nothing(tmp_path):
  """A fresh norm multiplies with 1, which Gemma stores as 0."""
  for name in MODELS:
    spec = read_spec(tmp_path / name, name)
    norms = {leaf.constant for leaf in weight_table.leaves(spec).values() if "norm" in leaf.hf_name}
    assert norms == ({0.0} if name == "gemma3" else {1.0}), name


REFUSED = {
  "mixed": ("mistral", dict(layer_types=["sliding_attention", "full_attention"]), 'layer_types = "full_attention" is'),
  "no window": ("ministral", dict(sliding_window=None), 'layer_types = "sliding_attention" is not .* no window'),
  "chunked": ("ministral", dict(layer_types=["chunked_attention"] * 3), 'layer_types = "chunked_attention"'),
  "bias": ("mistral", dict(attention_bias=True), "attention_bias = true is not computed here, wanted false"),
  "activation": ("ministral", dict(hidden_act="gelu"), 'hidden_act = "gelu"'),
  "window 0": ("mistral", dict(sliding_window=0), "sliding_window = 0, wanted a positive int"),
  "share": ("mistral", dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
  "beta": (
    "ministral3",
    dict(rope_parameters={k: v for k, v in YARN.items() if k != "llama_4_scaling_beta"}),
    "rope_parameters.llama_4_scaling_beta = null is not computed here, wanted a number from 0",
  ),
  "beta text": ("ministral3", dict(rope_parameters=YARN | dict(llama_4_scaling_beta="1")), "query_scaling_beta = '1'"),
  "beta without a length": (
    "ministral3",
    dict(rope_parameters=dict(rope_type="default", llama_4_scaling_beta=0.1)),
    "query_scaling_beta = 0.1: wanted 0, as no rotary scaling states the original length",
  ),
  "olmo2 activation": ("olmo2", dict(hidden_act="gelu"), 'hidden_act = "gelu"'),
  "olmo2 windows": ("olmo2", dict(sliding_window=4), "sliding_window = 4: not known here"),
  "olmo3 bias": ("olmo3", dict(attention_bias=True), "attention_bias = true"),
  "olmo3 base that versions read differently": (
    "olmo3",
    dict(rope_parameters=ABSENT, rope_theta=1e4),
    "rope_theta = 10000.0 is not computed here, wanted 500000.0, or rope_parameters with a table",
  ),
  "olmo3 one table": (
    "olmo3",
    dict(rope_parameters={"rope_theta": 5e5}),
    "rope_parameters = .*wanted a table for full_",
  ),
  "olmo3 scaled windows": (
    "olmo3",
    dict(rope_parameters=by_kind({}, {"rope_type": "linear", "factor": 2.0})),
    "rope_parameters.sliding_attention = .*wanted rope_theta alone",
  ),
  "olmo3 chunked": ("olmo3", dict(layer_types=["chunked_attention"] * 4), 'layer_types = "chunked_attention"'),
  "gemma3 tables": ("gemma3", dict(rope_scaling=by_kind({}, {})), "rope_scaling = .* parameters of full layers"),
  "gemma3 type": (
    "gemma3",
    dict(rope_scaling={"type": "linear", "factor": 2.0}),
    '.* wanted "rope_type": "linear" in it',
  ),
  "gemma3 no window": ("gemma3", dict(sliding_window=None), 'layer_types = "sliding_attention" is not .* no window'),
  "gemma3 scores": ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0 is not computed here"),
  "gemma3 logits": (
    "gemma3",
    dict(final_logit_softcapping=30.0),
    "final_logit_softcapping = 30.0 is not computed here",
  ),
  "gemma3 both ways": ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention = true"),
  "gemma3 activation": ("gemma3", dict(hidden_activation="gelu"), 'hidden_activation = "gelu"'),
  "gemma3 scalar": ("gemma3", dict(query_pre_attn_scalar=4.5), "query_pre_attn_scalar = 4.5, wanted a positive int"),
  "linear": ("phi3", dict(rope_scaling=dict(type="linear", factor=2.0)), 'rope_type = "linear" is not .*"longrope"'),
  "lists": (
    "phi3",
    dict(rope_scaling=dict(type="su") | LISTS | dict(long_factor=[1.0])),
    "longrope: long_factor has",
  ),
  "head bias": ("phi3", dict(lm_head_bias=True), "lm_head_bias = true"),
  "attention mod": ("phi3", dict(full_attn_mod=2), "full_attn_mod = 2 is not computed here, wanted 1"),
  "phi3 types": ("phi3", dict(layer_types=["full_attention"] * 2), 'layer_types = "full_attention"'),
  "types without windows": (
    "qwen2-window",
    dict(use_sliding_window=False, layer_types=["sliding_attention"] * 3),
    'layer_types = "sliding_attention" is not computed here, wanted full_attention, as the file has no window',
  ),
  "max_window_layers": ("qwen2-window", dict(max_window_layers=-1), "max_window_layers = -1, wanted an int from 0"),
  "mrope": ("qwen2-window", dict(use_mrope=True), "use_mrope = true"),
  "no_rope_layers": ("smollm3", dict(no_rope_layers=[1, 0]), "no_rope_layers = .* an entry for each of the 4 layers"),
  "interval": ("smollm3", dict(no_rope_layer_interval=0), "no_rope_layer_interval = 0, wanted a positive int"),
  "mlp bias": ("smollm3", dict(mlp_bias=True), "mlp_bias = true"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(case, tmp_path):
  name, changes, words = REFUSED[case]
  with pytest.raises(InputError, match=f"config.json: {words}"):
    read_spec(tmp_path, name, **changes)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_fresh_weights_can_be_exported_or_are_refused(family):
  """Phi-3's config.json has no room for Llama 3's rotary scaling; every other family's has."""
  plain, scaled = (configs.load("smoke", {"model.family": family, "model.rope_scaling": s}) for s in ("0", "8"))
  assert build_policy.fresh_spec(plain, 64).family == family
  if family != "phi3":
    assert build_policy.fresh_spec(scaled, 64).rope_scaling is not None
    return
  with pytest.raises(InputError, match='family phi3 could not be exported: .*"llama3" is not computed'):
    build_policy.fresh_spec(scaled, 64)
