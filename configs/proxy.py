"""No labels (paper, section 3.3): `proxy.py:MODEL,DOMAIN,REWARD`, REWARD majority_vote (default) or self_certainty.

The words of study.py; N = 1024 problems, or the 882 of Graph, and 850 steps: the paper shows these runs up to step 750
to 850, and some collapse later than the 496 steps of its other runs.
"""

from jaxrlvr.config import base

EXPECTED = {
  "majority_vote": "only Qwen2.5-Math holds; the others rise, then collapse to one answer everywhere (Qwen2.5-3B on "
                   "Science after step 500)",
  "self_certainty": "collapses everywhere",
}  # fmt: skip


def get_config(arg=""):
  size = "882" if "graph" in arg.split(",") else "1024"
  c = base("study", ",".join(filter(None, (f"n={size}", "steps=850", "reward=majority_vote", arg))))
  c.paper.figure = "figures 3 and 27, table 8 (step 846)"
  c.paper.expected = EXPECTED["self_certainty" if c.rl.reward == "self_certainty" else "majority_vote"]
  return c
