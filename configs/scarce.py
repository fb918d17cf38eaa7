"""Few problems (paper, section 3.1): `scarce.py:MODEL,DOMAIN,N`, the words of study.py; N = 8 by default."""

from jaxrlvr.config import base

# At N = 8: the step at which the training reward saturates, the points of avg@16 gained until then, what else is said.
EXPECTED = {
  "qwen2.5-math-1.5b, math": (302, {"math500": 29.7, "amc": 18.7, "scp-hard": 10.5}, ""),
  "qwen2.5-1.5b, math": (
    170, {"math500": 32.1, "amc": 12.7, "scp-hard": 7.0}, "table 3 has math500 +42.6, amc +15.8"),
  "llama3.2-3b-instruct, math": (55, {"math500": 10.8, "amc": 8.8, "scp-hard": 3.9}, "scp-hard +2.0 elsewhere"),
  "qwen2.5-math-1.5b, science": (268, {"scp-hard": 14.5, "gpqa-diamond": 16.9, "math500": 25.3}, ""),
  "qwen2.5-1.5b, science": (161, {"scp-hard": 6.4, "gpqa-diamond": 13.3, "math500": 32.3}, ""),
  "llama3.2-3b-instruct, science": (61, {"scp-hard": 1.8, "gpqa-diamond": 11.9, "math500": 7.3}, ""),
  "qwen2.5-math-7b, graph": (
    150, {"quantum-lock-qwen": 8.3, "largest-island-qwen": 19.8, "math500": 21.0}, "t_sat 151 elsewhere"),
  "llama3.1-8b-instruct, graph": (29, {"quantum-lock-llama": 10.1, "largest-island-llama": 1.8, "math500": 9.1}, ""),
}  # fmt: skip


def get_config(arg=""):
  c = base("study", arg)
  c.paper.figure = "figure 1, tables 1 and 3"
  if c.problems.source.endswith("_8.parquet") and c.paper.setting in EXPECTED:
    c.paper.t_sat, gains, more = EXPECTED[c.paper.setting]
    c.paper.gains = tuple(gains.items())
    told = ", ".join(f"{name} {gain:+}" for name, gain in c.paper.gains)
    c.paper.expected = "; ".join(filter(None, (f"t_sat {c.paper.t_sat}", told, more)))
  return c
