"""Wrong labels (paper, section 3.2): `noisy.py:MODEL,DOMAIN,GAMMA`, the words of study.py; gamma = 0.7 by default.

The study's own noisy files, of Math and Graph; `jaxrlvr corrupt` makes such files for Science or another model.
"""

from jaxrlvr.config import base

# How large a gamma the model stands without losing what it gains from right labels.
EXPECTED = {
  "qwen2.5-math-1.5b, math": "holds to gamma 0.7",
  "qwen2.5-math-1.5b, science": "holds to gamma 0.7",
  "qwen2.5-math-7b, graph": "degrades from gamma 0.5 on",
  "llama3.2-3b-instruct, math": "degrades from gamma 0.5 on",
  "llama3.2-3b-instruct, science": "degrades from gamma 0.5 on",
}


def get_config(arg=""):
  graph = "graph" in arg.split(",")
  size, model = ("882", "qwen2.5-math-7b") if graph else ("2048", "llama3.2-3b-instruct")  # the released ones
  c = base("study", ",".join(filter(None, (f"n={size}", "gamma=0.7", f"model={model}", arg))))
  c.paper.figure = "figure 2"
  c.paper.expected = EXPECTED.get(c.paper.setting, "")
  return c
