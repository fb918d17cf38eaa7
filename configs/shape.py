"""Published shapes of models, from their config.json: `shape.py:MODEL` is the default config with a model's shape.

`init` is models/MODEL; planning needs no file there. A model that was fine-tuned has the shape of the model that it was
tuned from, so that a suffix may follow the name (llama3.2-3b-instruct).
"""

from jaxrlvr.config import base, words

LLAMA = dict(vocab=128256, rope_theta=500_000.0, norm_eps=1e-5, head_dim=128)
QWEN2 = dict(vocab=151936, rope_theta=1e6, norm_eps=1e-6, head_dim=128, family="qwen2")
QWEN3 = dict(vocab=151936, rope_theta=1e6, norm_eps=1e-6, head_dim=128, family="qwen3")
MISTRAL = dict(vocab=131072, norm_eps=1e-5, head_dim=128, family="mistral", tied=False)
PHI4 = dict(vocab=100352, rope_theta=250_000.0, norm_eps=1e-5, head_dim=128, family="phi3", tied=False)
OLMO2 = dict(vocab=100352, rope_theta=500_000.0, norm_eps=1e-6, head_dim=128, family="olmo2", tied=False)


def size(family, width, layers, heads, kv_heads, mlp, **exceptions):
  """Returns the keys of config.model for a shape: its family's, these sizes, and `exceptions` from the family's."""
  return family | dict(width=width, layers=layers, heads=heads, kv_heads=kv_heads, mlp=mlp) | exceptions


SHAPES = {
  "llama3.2-1b": size(LLAMA, 2048, 16, 32, 8, 8192, head_dim=64, rope_scaling=32.0),
  "llama3.2-3b": size(LLAMA, 3072, 28, 24, 8, 8192, rope_scaling=32.0),
  "llama3.1-8b": size(LLAMA, 4096, 32, 32, 8, 14336, rope_scaling=8.0, tied=False),
  "qwen2.5-0.5b": size(QWEN2, 896, 24, 14, 2, 4864, head_dim=64),
  "qwen2.5-1.5b": size(QWEN2, 1536, 28, 12, 2, 8960),
  "qwen2.5-7b": size(QWEN2, 3584, 28, 28, 4, 18944, vocab=152064, tied=False),
  "qwen2.5-math-1.5b": size(QWEN2, 1536, 28, 12, 2, 8960, rope_theta=10_000.0),
  "qwen2.5-math-7b": size(QWEN2, 3584, 28, 28, 4, 18944, vocab=152064, tied=False, rope_theta=10_000.0),
  "qwen3-0.6b": size(QWEN3, 1024, 28, 16, 8, 3072),
  "qwen3-1.7b": size(QWEN3, 2048, 28, 16, 8, 6144),
  "qwen3-4b": size(QWEN3, 2560, 36, 32, 8, 9728),
  "qwen3-8b": size(QWEN3, 4096, 36, 32, 8, 12288, tied=False),
  "mistral-7b-v0.3": size(MISTRAL, 4096, 32, 32, 8, 14336, vocab=32768, rope_theta=1e6),
  "mistral-nemo-12b": size(MISTRAL, 5120, 40, 32, 8, 14336, rope_theta=1e6),
  "mistral-small-24b": size(MISTRAL, 5120, 40, 32, 8, 32768, rope_theta=1e8),
  "phi4-14b": size(PHI4, 5120, 40, 40, 10, 17920),
  "olmo2-1b": size(OLMO2, 2048, 16, 16, 16, 8192),
  "olmo2-7b": size(OLMO2, 4096, 32, 32, 32, 11008),
  "olmo2-13b": size(OLMO2, 5120, 40, 40, 40, 13824),
  "olmo2-32b": size(OLMO2, 5120, 64, 40, 8, 27648),
}
SUFFIXES = ("", "-instruct", "-thinking", "-nonthinking")


def get_config(arg=""):
  """Returns the default config with a model's shape; `arg`: the model, llama3.2-1b by default."""
  models = tuple(name + suffix for name in SHAPES for suffix in SUFFIXES)
  model = words(arg, model=models)["model"]
  c = base()
  c.init = f"models/{model}"
  c.model.dtype = "bfloat16"
  c.model.remat = "full"
  c.model.unroll = 1
  c.model.update(next(shape for name, shape in SHAPES.items() if model.startswith(name)))
  return c
