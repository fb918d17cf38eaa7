"""Wrong labels (paper, section 3.2): `noisy.py:MODEL,DOMAIN,GAMMA`, the words of study.py; gamma = 0.7 by default.

It reads the study's own noisy files, which there are for Math and Graph; `jaxrlvr corrupt` makes such files for Science
or another model.
"""

from jaxrlvr.config import base

# What the paper found: up to which gamma a model keeps what it gains from right labels.
EXPECTED = {
  "qwen2.5-math-1.5b, math": "holds to gamma 0.7",
  "qwen2.5-math-1.5b, science": "holds to gamma 0.7",
  "qwen2.5-math-7b, graph": "degrades from gamma 0.5 on",
  "llama3.2-3b-instruct, math": "degrades from gamma 0.5 on",
  "llama3.2-3b-instruct, science": "degrades from gamma 0.5 on",
}


def get_config(arg=""):
  """Returns study.py's config with wrong labels; `arg`: words of study.py."""
  size, model = "2048", "llama3.2-3b-instruct"  # the default is a pair for which the study released a noisy file
  if "graph" in arg.split(","):
    size, model = "882", "qwen2.5-math-7b"
  words_of_study = (f"n={size}", "gamma=0.7", f"model={model}", arg)
  c = base("study", ",".join(filter(None, words_of_study)))
  c.paper.figure = "figure 2"
  c.paper.expected = EXPECTED.get(c.paper.setting, "")
  return c
