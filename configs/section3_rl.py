"""RL of the study (paper, section 3) on a TPU slice, at published sizes: `section3_rl.py:MODEL,TOPOLOGY[,TOKENS]`.

The study's settings hold: 64 problems a step, 8 samples each, one update. TOKENS is the most tokens of a response.
`jaxrlvr plan` checks whether the work, split as CUTS says, fits the slice (docs/plan.md lists which of these were
planned). `topology=NAME` takes a slice that is not listed; plan then says what to lower. `data=FOLDER` as in study.py.
"""

from jaxrlvr.config import base, set_value, words

# Keys that say how the work is split, by model, topology and most tokens of a response.
CUTS = {
  ("qwen2.5-math-1.5b", "v5e-8", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
  ("llama3.2-3b-instruct", "v5e-8", "2048"): {"rl.microbatches": 64, "rl.sample_parts": 4},
  ("llama3.2-3b-instruct", "v5e-16", "8192"): {"rl.microbatches": 32, "rl.sample_parts": 8},
  ("llama3.2-3b-instruct", "v6e-8", "8192"): {"rl.microbatches": 64, "rl.sample_parts": 8},
  ("qwen2.5-math-7b", "v5e-32", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
  ("qwen2.5-math-7b", "v5p-16", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
  ("llama3.1-8b-instruct", "v5e-32", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 2},
  ("llama3.1-8b-instruct", "v5p-16", "2048"): {"rl.microbatches": 16, "rl.sample_parts": 1},
}
DOMAINS = {"qwen2.5-math-7b": "graph", "llama3.1-8b-instruct": "graph"}  # of the study; math for all other models
MODELS = tuple(dict.fromkeys(model for model, _, _ in CUTS))
SLICES = tuple(dict.fromkeys(topology for _, topology, _ in CUTS))
TOKENS = tuple(dict.fromkeys(tokens for _, _, tokens in CUTS))


def get_config(arg=""):
  """Returns the config of RL on a slice; `arg`: the words above, the first of each kind by default."""
  chosen = words(arg, model=MODELS, topology=SLICES, tokens=TOKENS, data=("study-data",))
  model, topology, tokens = chosen["model"], chosen["topology"], chosen["tokens"]
  c = base("study", f"{model},{DOMAINS.get(model, 'math')},data={chosen['data']}")
  c.model.update(base("shape", model).model)
  c.rl.response_tokens = int(tokens)
  c.rl.shrink = 1
  c.plan.stage = "rl"
  c.plan.topology = topology
  for key, value in CUTS.get((model, topology, tokens), {}).items():
    set_value(c, key, value)
  c.evaluate.problems_per_batch //= c.rl.sample_parts  # as many responses at a time as RL samples
  return c
