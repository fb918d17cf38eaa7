"""What a config.json of OLMo-2, OLMo-3 or Gemma 3 says, in the style of each version of transformers, and refusals."""

import json

import pytest
from etils import epath

from jaxrlvr.base.errors import InputError
from jaxrlvr.model import hf_weights
from jaxrlvr.model.rope import Linear, Yarn
from jaxrlvr.model.spec import Spec

SIZES = dict(
  vocab_size=24,
  hidden_size=8,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=16,
  max_position_embeddings=64,
)
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def read(folder, model_type, **keys):
  """Returns the Spec that a config.json with these keys states."""
  (folder / "config.json").write_text(json.dumps(SIZES | keys | {"model_type": model_type}))
  return hf_weights.read_spec(epath.Path(folder))


def tables(full, local):
  return {FULL: {"rope_type": "default"} | full, SLIDING: {"rope_type": "default"} | local}


def spec_of(family, **fields):
  return Spec(24, 8, 4, 4, 2, fields.pop("head_dim", 2), 16, max_positions=64, family=family, **fields)


OLMO2 = spec_of("olmo2", norm_eps=1e-5, tied=False)
OLMO3 = spec_of(
  "olmo3",
  norm_eps=1e-5,
  tied=False,
  rope_theta=5e5,
  window=4096,
  sliding=(True, True, True, False),
  local_rope_theta=5e5,
)
GEMMA3 = spec_of(
  "gemma3_text",
  head_dim=256,
  rope_theta=1e6,
  window=4096,
  sliding=(True, True, True, True),
  local_rope_theta=1e4,
  query_pre_attn_scalar=256,
)


def changed(spec, **fields):
  return dict(spec.__dict__) | fields


STATED = {
  "olmo2": ("olmo2", {}, changed(OLMO2)),
  "olmo2 of version 4": (
    "olmo2",
    dict(rope_theta=5e5, rms_norm_eps=1e-6),
    changed(OLMO2, rope_theta=5e5, norm_eps=1e-6),
  ),
  "olmo3": ("olmo3", {}, changed(OLMO3)),
  "olmo3 of version 4": (
    "olmo3",
    dict(rope_theta=500_000, rope_scaling=YARN, sliding_window=5, layer_types=[FULL, SLIDING] * 2),
    changed(OLMO3, window=5, sliding=(False, True) * 2, rope_scaling=Yarn(4.0, 16)),
  ),
  "olmo3 of version 5": (
    "olmo3",
    dict(rope_parameters=tables(YARN | {"rope_theta": 1e6}, {"rope_theta": 1e5})),
    changed(OLMO3, rope_theta=1e6, local_rope_theta=1e5, rope_scaling=Yarn(4.0, 16)),
  ),
  "olmo3 that never slides": (
    "olmo3",
    dict(layer_types=[FULL] * 4, sliding_window=None, rope_theta=1e4),
    changed(OLMO3, window=0, sliding=(), local_rope_theta=0.0, rope_theta=1e4),
  ),
  "gemma3": ("gemma3_text", {}, changed(GEMMA3)),
  "gemma3 of version 4": (
    "gemma3_text",
    dict(
      head_dim=6,
      rope_theta=5e5,
      rope_local_base_freq=2e4,
      rope_scaling=LINEAR,
      sliding_window=7,
      sliding_window_pattern=3,
      query_pre_attn_scalar=5,
      attn_logit_softcapping=None,
      final_logit_softcapping=None,
      hidden_activation="gelu_pytorch_tanh",
    ),
    changed(
      GEMMA3,
      head_dim=6,
      rope_theta=5e5,
      local_rope_theta=2e4,
      rope_scaling=Linear(8.0),
      window=7,
      sliding=(True, True, False, True),
      query_pre_attn_scalar=5,
    ),
  ),
  "gemma3 of version 5": (
    "gemma3_text",
    dict(
      rope_parameters=tables(LINEAR, {"rope_theta": 3e3}),
      layer_types=[SLIDING, FULL] * 2,
      _sliding_window_pattern=6,
      use_bidirectional_attention=False,
      tie_word_embeddings=False,
    ),
    changed(GEMMA3, local_rope_theta=3e3, rope_scaling=Linear(8.0), sliding=(True, False) * 2, tied=False),
  ),
}


@pytest.mark.parametrize("case", STATED)
def test_a_config_is_read_and_written_again(tmp_path, case):
  family, keys, fields = STATED[case]
  spec = read(tmp_path, family, **keys)
  assert spec == Spec(**fields)
  written = hf_weights.config_of(spec, "float32", {})
  assert read(tmp_path, **written) == spec
  # transformers 4 reads the first three alone, and 5 takes no "type" where layers are of two kinds.
  scaling = written["rope_scaling"]
  assert written["rope_theta"] == spec.rope_theta and (scaling is None) == (spec.rope_scaling is None)
  assert family == "olmo2" or scaling is None or scaling["rope_type"] == spec.rope_scaling.kind


REFUSED = {
  "act": ("olmo2", dict(hidden_act="gelu"), 'hidden_act = "gelu"'),
  "bias": ("olmo3", dict(attention_bias=True), "attention_bias = true"),
  "windows of olmo2": ("olmo2", dict(sliding_window=4), "sliding_window = 4 is not known here"),
  "a base that versions read differently": (
    "olmo3",
    dict(rope_theta=1e4),
    r"rope_theta = 10000.0 .* wanted 500000.0, or",
  ),
  "one table": ("olmo3", dict(rope_parameters={"rope_theta": 5e5}), "rope_parameters = .*wanted a table for full_att"),
  "tables in rope_scaling": ("gemma3_text", dict(rope_scaling=tables({}, {})), "rope_scaling = .* parameters of full"),
  "type": ("gemma3_text", dict(rope_scaling={"type": "linear", "factor": 2.0}), '"rope_type": "linear" in it'),
  "scaled windows": (
    "olmo3",
    dict(rope_parameters=tables({}, LINEAR)),
    "sliding_attention = .*wanted rope_theta alone",
  ),
  "no window": (
    "gemma3_text",
    dict(sliding_window=None),
    "full_attention, as the file has no window",
  ),
  "kind": ("olmo3", dict(layer_types=[FULL, "chunked_attention"] * 2), 'layer_types = "chunked_attention"'),
  "scores": ("gemma3_text", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0 is not computed here"),
  "logits": ("gemma3_text", dict(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0 is not computed here"),
  "both ways": ("gemma3_text", dict(use_bidirectional_attention=True), "use_bidirectional_attention = true"),
  "exact gelu": ("gemma3_text", dict(hidden_activation="gelu"), 'hidden_activation = "gelu"'),
  "scalar": ("gemma3_text", dict(query_pre_attn_scalar=256.5), "query_pre_attn_scalar = 256.5, wanted a positive int"),
  "images": (
    "gemma3",
    {},
    'model_type = "gemma3" is not computed here.*docs/models.md says how to save its text model',
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused(tmp_path, case):
  family, keys, words = REFUSED[case]
  with pytest.raises(InputError, match=words) as error:
    read(tmp_path, family, **keys)
  assert str(error.value).startswith(str(tmp_path / "config.json")) and "\n" not in str(error.value)
