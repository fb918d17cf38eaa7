"""No labels (paper, section 3.3): `proxy.py:MODEL,DOMAIN,REWARD`, REWARD majority_vote (default) or self_certainty.

All words of study.py are taken. N is 1024 problems, or all 882 of Graph, and runs have 850 steps: the paper shows these
runs up to step 750 to 850, and some collapse later than the 496 steps of its other runs.
"""

from jaxrlvr.config import base

EXPECTED = {
  "majority_vote": (
    "only Qwen2.5-Math holds; the others rise, then collapse to one answer everywhere (Qwen2.5-3B on Science after "
    "step 500)"
  ),
  "self_certainty": "collapses everywhere",
}


def get_config(arg=""):
  """Returns study.py's config for one reward without labels; `arg`: words of study.py."""
  size = "882" if "graph" in arg.split(",") else "1024"
  words_of_study = (f"n={size}", "steps=850", "reward=majority_vote", arg)
  c = base("study", ",".join(filter(None, words_of_study)))
  c.paper.figure = "figures 3 and 27, table 8 (step 846)"
  c.paper.expected = EXPECTED["self_certainty" if c.rl.reward == "self_certainty" else "majority_vote"]
  return c
