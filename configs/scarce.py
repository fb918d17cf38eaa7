"""Few problems (paper, section 3.1): `scarce.py:MODEL,DOMAIN,N`, the words of study.py; N = 8 by default."""

from jaxrlvr.config import base

# At N = 8: the step at which the training reward saturates, and the points of avg@16 gained until then.
EXPECTED = {
  "qwen2.5-math-1.5b, math": "t_sat 302; MATH-500 +29.7, AMC +18.7, SCP-Hard +10.5",
  "llama3.2-3b-instruct, math": "t_sat 55; MATH-500 +10.8, AMC +8.8, SCP-Hard +3.9 (+2.0 elsewhere)",
  "qwen2.5-math-1.5b, science": "t_sat 268; SCP-Hard +14.5, GPQA +16.9, MATH-500 +25.3",
  "llama3.2-3b-instruct, science": "t_sat 61; SCP-Hard +1.8, GPQA +11.9, MATH-500 +7.3",
  "qwen2.5-math-7b, graph": "t_sat 150 (151 elsewhere); Quantum Lock +8.3, Largest Island +19.8, MATH-500 +21.0",
  "llama3.1-8b-instruct, graph": "t_sat 29; Quantum Lock +10.1, Largest Island +1.8, MATH-500 +9.1",
}


def get_config(arg=""):
  c = base("study", arg)
  c.paper.figure = "figure 1, tables 1 and 3"
  c.paper.expected = EXPECTED.get(c.paper.setting, "")
  return c
