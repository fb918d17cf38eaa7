"""Writes hf_logits/ beside this file: `python make_hf_logits.py`, with torch and transformers installed.

Each model is tiny and random. Its logits and greedy tokens are those of transformers, in float32 with eager attention.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

VOCAB = 40
SIZES = dict(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=128,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=None,
)
PLAIN = dict(rope_type="default", rope_theta=1000.0)


def stretched(positions):
  """Returns the settings of rotary frequencies as Llama 3.1 scales them, for a model made for `positions` positions."""
  return dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=positions,
  )


MODELS = {  # name: classes, and what its config adds
  "llama_bf16": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=True, rope_parameters=stretched(8))),
  "llama_tied_rope64": (LlamaForCausalLM, LlamaConfig, dict(tie_word_embeddings=True, rope_parameters=stretched(64))),
  "qwen2_tied_bias": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=True, rope_parameters=PLAIN)),
  "qwen2_untied_sharded": (Qwen2ForCausalLM, Qwen2Config, dict(tie_word_embeddings=False, rope_parameters=PLAIN)),
  "qwen3_qknorm": (Qwen3ForCausalLM, Qwen3Config, dict(tie_word_embeddings=True, rope_parameters=PLAIN, head_dim=6)),
}


def make(name):
  """Returns a model with random weights, each kind on its own scale, so that every one of them shows in the logits."""
  model_class, config_class, more = MODELS[name]
  model = model_class(config_class(**SIZES, **more, attn_implementation="eager")).eval()
  draw = torch.Generator().manual_seed(sum(map(ord, name)))
  with torch.no_grad():
    for key, weight in model.named_parameters():
      noise = torch.randn(weight.shape, generator=draw)
      if key.endswith("norm.weight"):
        weight.copy_(1 + 0.3 * noise)
      elif key.endswith("bias"):
        weight.copy_(0.5 * noise)
      else:
        weight.copy_(noise * weight.shape[1] ** -0.5)
  return model.to(torch.bfloat16) if name.endswith("bf16") else model


def read(folder, dtype):
  """Loads the model of a folder; unlike those of a converted model, its rotary frequencies are in float32."""
  return MODELS[folder.name][0].from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def left_padded(draw, lengths, width):
  """Returns (token ids, mask, positions) of random rows that are padded on the left; all three are 0 at padding."""
  mask = np.arange(width) >= width - np.array(lengths)[:, None]
  ids = np.where(mask, draw.integers(3, VOCAB, mask.shape), 0)
  return ids.astype(np.int32), mask.astype(np.int32), np.maximum(mask.cumsum(1) - 1, 0).astype(np.int32)


@torch.no_grad()
def logits(model, ids, mask=None, positions=None):
  tensors = [None if array is None else torch.from_numpy(array).long() for array in (ids, mask, positions)]
  return model(input_ids=tensors[0], attention_mask=tensors[1], position_ids=tensors[2]).logits.float().numpy()


def greedy(model, ids, mask, count):
  """Returns (tokens, margins) of `count` greedy steps, each computed over the whole row.

  margins: by how much the largest logit exceeds the second largest.
  """
  tokens, margins = [], []
  for _ in range(count):
    last = logits(model, ids, mask, np.maximum(mask.cumsum(1) - 1, 0))[:, -1]
    second, first = np.sort(last, -1)[:, -2:].T
    tokens.append(last.argmax(-1).astype(np.int32))
    margins.append(first - second)
    ids = np.concatenate([ids, tokens[-1][:, None]], 1)
    mask = np.concatenate([mask, np.ones_like(mask[:, :1])], 1)
  return np.stack(tokens, 1), np.stack(margins, 1)


def write(folder, name):
  make(name).save_pretrained(folder / name, max_shard_size="12KB" if name.endswith("sharded") else "1GB")
  (folder / name / "generation_config.json").unlink(missing_ok=True)
  draw, expected = np.random.default_rng(0), {}
  ids = draw.integers(3, VOCAB, (3, 12)).astype(np.int32)
  if name.endswith("bf16"):
    expected["plain/logits_computed_in_bf16"] = logits(read(folder / name, torch.bfloat16), ids)
  model = read(folder / name, torch.float32)
  plain = logits(model, ids)
  logp = torch.from_numpy(plain).log_softmax(-1)[:, :-1].gather(-1, torch.from_numpy(ids[:, 1:, None]).long())
  expected |= {"plain/input_ids": ids, "plain/logits": plain, "plain/logprobs_next": logp[..., 0].numpy()}
  ids, mask, positions = left_padded(draw, [4, 12, 1], 12)
  expected |= {"leftpad/input_ids": ids, "leftpad/attention_mask": mask, "leftpad/position_ids": positions}
  expected["leftpad/logits"] = logits(model, ids, mask, positions) * mask[..., None].astype(np.float32)
  ids, mask, _ = left_padded(draw, [3, 6, 2], 6)
  tokens, margins = greedy(model, ids, mask, 16)
  expected |= {"greedy/input_ids": ids, "greedy/attention_mask": mask, "greedy/new_tokens": tokens}
  expected["greedy/top2_margin"] = margins
  np.savez_compressed(folder / name / "expected.npz", **expected)


if __name__ == "__main__":
  torch.set_num_threads(1)
  for name in MODELS:
    write(Path(__file__).with_name("hf_logits"), name)
