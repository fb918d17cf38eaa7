"""Few problems (paper, section 3.1): `scarce.py:MODEL,DOMAIN,N`, the words of study.py; N = 8 by default."""

from typing import NamedTuple

from jaxrlvr.config import base


class Expected(NamedTuple):
  """What the paper reports of a model and domain at N = 8."""

  t_sat: int  # step at which the training reward saturates
  gains: dict[str, float]  # points of avg@16 gained until t_sat, by held-out set
  elsewhere: str = ""  # where another place of the paper says something else


EXPECTED = {
  "qwen2.5-math-1.5b, math": Expected(302, {"math500": 29.7, "amc": 18.7, "scp-hard": 10.5}),
  "qwen2.5-1.5b, math": Expected(
    170, {"math500": 32.1, "amc": 12.7, "scp-hard": 7.0}, "table 3 has math500 +42.6, amc +15.8"
  ),
  "llama3.2-3b-instruct, math": Expected(55, {"math500": 10.8, "amc": 8.8, "scp-hard": 3.9}, "scp-hard +2.0 elsewhere"),
  "qwen2.5-math-1.5b, science": Expected(268, {"scp-hard": 14.5, "gpqa-diamond": 16.9, "math500": 25.3}),
  "qwen2.5-1.5b, science": Expected(161, {"scp-hard": 6.4, "gpqa-diamond": 13.3, "math500": 32.3}),
  "llama3.2-3b-instruct, science": Expected(61, {"scp-hard": 1.8, "gpqa-diamond": 11.9, "math500": 7.3}),
  "qwen2.5-math-7b, graph": Expected(
    150, {"quantum-lock-qwen": 8.3, "largest-island-qwen": 19.8, "math500": 21.0}, "t_sat 151 elsewhere"
  ),
  "llama3.1-8b-instruct, graph": Expected(
    29, {"quantum-lock-llama": 10.1, "largest-island-llama": 1.8, "math500": 9.1}
  ),
}


def get_config(arg=""):
  """Returns study.py's config with few problems and the paper's figures for them; `arg`: words of study.py."""
  c = base("study", arg)
  c.paper.figure = "figure 1, tables 1 and 3"
  expected = EXPECTED.get(c.paper.setting)
  if expected is not None and c.problems.source.endswith("_8.parquet"):
    c.paper.t_sat = expected.t_sat
    c.paper.gains = tuple(expected.gains.items())
    gains = ", ".join(f"{name} {gain:+}" for name, gain in expected.gains.items())
    parts = (f"t_sat {expected.t_sat}", gains, expected.elsewhere)
    c.paper.expected = "; ".join(filter(None, parts))
  return c
