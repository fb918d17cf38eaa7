"""RL of the study (paper, section 3) on a TPU slice, at published sizes: `section3_rl.py:MODEL,TOPOLOGY[,TOKENS]`.

Words of study.py after these two or three, as DOMAIN, N and data=FOLDER; settings of the study hold (64 problems, 8 samples). What is set
here, how the work is cut, was found by `jaxrlvr plan` (README); other slices start from the nearest.
"""

from jaxrlvr.config import base, words

# (model, topology, response tokens) -> what cuts the work so that it fits.
FITS = {
  ("qwen2.5-math-1.5b", "v5e-8", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
  ("llama3.2-3b-instruct", "v5e-8", "2048"): {"rl.microbatches": 32, "rl.sample_parts": 2},
  ("llama3.2-3b-instruct", "v5e-16", "8192"): {"rl.microbatches": 32, "rl.sample_parts": 4},
  ("llama3.2-3b-instruct", "v6e-8", "8192"): {"rl.microbatches": 64, "rl.sample_parts": 2},
  ("qwen2.5-math-7b", "v5e-32", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 2},
  ("qwen2.5-math-7b", "v5p-16", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
  ("llama3.1-8b-instruct", "v5e-32", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 2},
  ("llama3.1-8b-instruct", "v5p-16", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
}
WORDS = {name: tuple(dict.fromkeys(key[i] for key in FITS)) for i, name in enumerate(("model", "topology", "tokens"))}


def get_config(arg=""):
  chosen = words(arg, **WORDS)
  model, topology, tokens = (chosen[name] for name in WORDS)
  domain = "graph" if model in ("qwen2.5-math-7b", "llama3.1-8b-instruct") else "math"
  c = base("study", f"{model},{domain}")
  c.model.update(base("shape", model).model)
  c.rl.response_tokens = int(tokens)
  c.plan.stage, c.plan.topology = "rl", topology
  for key, value in FITS.get((model, topology, tokens), {}).items():
    group, name = key.split(".")
    c[group][name] = value
  return c
