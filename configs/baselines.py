"""Only right or only wrong answers (paper, appendix E): `baselines.py:MODEL,DOMAIN,BASELINE`.

BASELINE: zero (GRPO-POS, default: right answers only), one (GRPO-NEG: wrong ones only) or mean (GRPO). The words of
study.py.
"""

from jaxrlvr.config import base


def get_config(arg=""):
  c = base("study", ",".join(filter(None, ("baseline=zero", arg))))
  c.paper.figure = "appendix E"
  return c
