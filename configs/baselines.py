"""Only right or only wrong answers (paper, appendix E): `baselines.py:MODEL,DOMAIN,N,BASELINE`, on Science by default.

BASELINE is one of five. mean is GRPO. zero, the default, is GRPO-POS (it trains on right answers only), and one is
GRPO-NEG (on wrong answers only), both by the paper's formula. positive and negative are GRPO-POS and GRPO-NEG as the
released code has them: GRPO's advantages, set to 0 for wrong answers or for right ones, so that a group whose answers
are all right gets 0. The appendix has N = 8 (default) and 1024. Whatever the baseline, no loss is divided by the length
of the response, so that clipping acts alike and the runs can be compared. All words of study.py are taken.
"""

from jaxrlvr.config import base


def get_config(arg=""):
  """Returns study.py's config for one baseline; `arg`: words of study.py."""
  c = base("study", ",".join(filter(None, ("science", "n=8", "baseline=zero", arg))))
  c.rl.reduce = "sequence-mean-token-sum"
  c.paper.figure = "appendix E"
  return c
