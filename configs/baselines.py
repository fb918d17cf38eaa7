"""Only right or only wrong answers (paper, appendix E): `baselines.py:MODEL,DOMAIN,N,BASELINE`, on Science by default.

BASELINE: mean (GRPO); zero (GRPO-POS, default: right answers only) and one (GRPO-NEG: wrong ones only), by the paper's
formula; positive and negative, the same as the released code has them: GRPO's advantages, of which those of wrong or of
right answers are 0, so that a group that is all right gets 0. The appendix has N = 8 (default) and 1024. No response is
divided by its length, whatever the baseline, so that clipping binds alike and the runs compare. The words of study.py.
"""

from jaxrlvr.config import base


def get_config(arg=""):
  c = base("study", ",".join(filter(None, ("science", "n=8", "baseline=zero", arg))))
  c.rl.reduce = "sequence-mean-token-sum"
  c.paper.figure = "appendix E"
  return c
