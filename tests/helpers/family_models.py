"""Tiny models of the families: config.json as transformers writes it, and seeded random weights.

tests/data/golden/family_logits.json has the logits that transformers computes for each of MODELS.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from etils import epath
from safetensors import numpy as safetensors

from jaxrlvr.model import hf_weights

VOCAB, TOKENS = 24, 14
GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "family_logits.json"
ABSENT = object()  # in the place of a value in config.json: the key is left out
SIZES = dict(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=24,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)


def _plain(theta):
  return dict(rope_type="default", rope_theta=theta)


def _by_kind(full, local_theta):
  return dict(full_attention=full, sliding_attention=_plain(local_theta))


# config.json by name. Windows are shorter than the texts, and layers differ where a family's may.
MODELS = {
  "gemma3": dict(
    model_type="gemma3_text",
    num_hidden_layers=3,
    num_key_value_heads=1,
    head_dim=6,
    query_pre_attn_scalar=4,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters=_by_kind(dict(rope_type="linear", rope_theta=1000.0, factor=2.0), 100.0),
  ),
  "mistral": dict(
    model_type="mistral",
    num_hidden_layers=2,
    head_dim=6,
    sliding_window=5,
    rope_parameters=_plain(1000.0),
  ),
  "ministral": dict(
    model_type="ministral",
    num_hidden_layers=3,
    head_dim=4,
    sliding_window=4,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters=_plain(100.0),
    tie_word_embeddings=True,
  ),
  "ministral3": dict(
    model_type="ministral3",
    num_hidden_layers=2,
    head_dim=8,
    rope_parameters=dict(
      type="yarn",
      rope_theta=1000.0,
      factor=4.0,
      original_max_position_embeddings=4,
      max_position_embeddings=64,
      mscale=1.0,
      mscale_all_dim=0.5,
      llama_4_scaling_beta=0.3,
    ),
  ),
  "olmo2": dict(
    model_type="olmo2",
    num_hidden_layers=2,
    rope_parameters=_plain(1000.0),
  ),
  "olmo3": dict(
    model_type="olmo3",
    num_hidden_layers=4,
    sliding_window=5,
    layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    rope_parameters=_by_kind(
      dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=4), 500.0
    ),
    tie_word_embeddings=True,
  ),
  "phi3": dict(
    model_type="phi3",
    num_hidden_layers=2,
    num_key_value_heads=4,
    sliding_window=5,
    rope_theta=1000.0,
    original_max_position_embeddings=8,
    rope_scaling=dict(type="yarn", short_factor=[1.0, 1.5], long_factor=[1.25, 4.0]),
  ),
  "phi3-share": dict(
    model_type="phi3",
    num_hidden_layers=3,
    head_dim=8,
    rope_parameters=_plain(100.0) | dict(partial_rotary_factor=0.75),
    tie_word_embeddings=True,
  ),
  "qwen2-window": dict(
    model_type="qwen2",
    num_hidden_layers=3,
    use_sliding_window=True,
    sliding_window=4,
    max_window_layers=1,
    rope_parameters=_plain(100.0),
  ),
  "qwen3-window": dict(
    model_type="qwen3",
    num_hidden_layers=3,
    head_dim=6,
    use_sliding_window=True,
    sliding_window=3,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rope_parameters=_plain(100.0),
    tie_word_embeddings=True,
  ),
  "smollm3": dict(
    model_type="smollm3",
    num_hidden_layers=4,
    no_rope_layer_interval=2,
    use_sliding_window=True,
    sliding_window=4,
    layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    rope_parameters=_plain(100.0),
    tie_word_embeddings=False,
  ),
}


def texts():
  """Returns the token ids [1, TOKENS] of which the golden logits are."""
  return np.random.default_rng(0).integers(0, VOCAB, (1, TOKENS)).astype(np.int32)


def golden_logits(name):
  """Returns the logits [1, TOKENS, VOCAB] of one of MODELS, as transformers computes them."""
  return np.array(json.loads(GOLDEN.read_text())[name], np.float32)


def tensor(name, shape):
  """Returns the float32 weights of a tensor, which its name determines; each kind has a scale that shows in logits."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
  if "norm" in name:
    return 1 + noise * np.float32(0.3)
  if name.endswith("bias"):
    return noise * np.float32(0.5)
  return noise * np.float32(1.5 * shape[-1] ** -0.5)


def write(folder, name, **changes):
  """Writes the Hugging Face directory of one of MODELS, whose config.json has these changes; returns the folder."""
  write_config(folder, name, **changes)
  spec = hf_weights.read_spec(epath.Path(folder))
  tensors = {one.hf_name: tensor(one.hf_name, one.shape) for one in hf_weights.named_tensors(spec)}
  safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  return folder


def write_config(folder, name, **changes):
  """Writes the config.json of one of MODELS; a change to ABSENT takes a key out."""
  folder.mkdir(exist_ok=True, parents=True)
  content = SIZES | MODELS[name] | changes
  (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not ABSENT}))
