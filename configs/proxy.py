"""No labels (paper, section 3.3): `proxy.py:MODEL,DOMAIN,REWARD`, REWARD majority_vote (default) or self_certainty.

The words of study.py; the 2048 problems of the model, or the most there are.
"""

from jaxrlvr.config import base

EXPECTED = {
  "majority_vote": "only Qwen2.5-Math holds; the others rise, then collapse to one answer everywhere",
  "self_certainty": "collapses everywhere",
}


def get_config(arg=""):
  size = "882" if "graph" in arg.split(",") else "2048"
  c = base("study", ",".join(filter(None, (f"n={size}", "reward=majority_vote", arg))))
  c.paper.figure = "figure 3"
  c.paper.expected = EXPECTED["self_certainty" if c.rl.reward == "self_certainty" else "majority_vote"]
  return c
