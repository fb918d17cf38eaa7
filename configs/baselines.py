"""Only right or only wrong answers (paper, appendix E): `baselines.py:MODEL,DOMAIN,N,BASELINE`, on Science by default.

BASELINE is mean (GRPO), zero (GRPO-POS, the default: right answers only) or one (GRPO-NEG: wrong answers only) by the
paper's formula. It is positive or negative for GRPO-POS and GRPO-NEG as the released code has them: GRPO's advantages
with those of wrong answers, or of right answers, set to 0, so that a group whose answers are all right gets 0. The
appendix has N = 8 (default) and 1024. Whatever the baseline, no loss is divided by the response's length, so that
clipping binds alike and the runs can be compared. All words of study.py are taken.
"""

from jaxrlvr.config import base


def get_config(arg=""):
  """Returns study.py's config for one baseline; `arg`: words of study.py."""
  c = base("study", ",".join(filter(None, ("science", "n=8", "baseline=zero", arg))))
  c.rl.reduce = "sequence-mean-token-sum"
  c.paper.figure = "appendix E"
  return c
