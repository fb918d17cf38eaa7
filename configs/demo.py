"""The built-in experiment, from nothing to a report on a laptop CPU: `bash launch/demo.sh`.

data -> tokenizer -> base -> CPT -> {Thinking, Non-thinking} SFT -> GRPO from both with N = 8 -> evaluation -> report.
It shows the study's pattern in miniature (paper, figures 1 and 6): the thinking arm generalises from 8 problems, the
non-thinking arm memorises them. `demo.py:SEED` takes another seed.
"""

from jaxrlvr.config import base


def get_config(arg=""):
  """Returns the config of the chain; `arg`: the seed, 0 by default."""
  c = base()
  c.seed = int(arg or 0)
  c.mesh.fsdp = 1  # one device: this policy is too small to be split
  c.saturation_tail = 6  # a tenth of the run, as 50 of 496 in the study
  c.report.title = "GRPO from eight problems: Thinking against Non-thinking SFT"
  judge_heldout = {"judge.set": "heldout"}
  c.chain = (
    {"name": "tokenizer", "stage": "tokenizer"},
    {"name": "base", "stage": "pretrain", "tokenizer": "tokenizer"},
    {"name": "cpt", "stage": "cpt", "init": "base"},
    {"name": "sft-thinking", "stage": "sft", "init": "cpt", "set": {"sft.thinking": True}},
    {"name": "sft-nonthinking", "stage": "sft", "init": "cpt", "set": {"sft.thinking": False}},
    {"name": "rl-thinking", "stage": "rl", "init": "sft-thinking"},
    {"name": "rl-nonthinking", "stage": "rl", "init": "sft-nonthinking", "set": {"rl.response_tokens": 12}},
    {"name": "judge-thinking", "stage": "judge", "files": {"judge.run": "rl-thinking"}, "set": judge_heldout},
    {
      "name": "judge-nonthinking",
      "stage": "judge",
      "files": {"judge.run": "rl-nonthinking"},
      "set": judge_heldout,
    },
    {"name": "eval-base", "stage": "evaluate", "init": "base"},
    {"name": "eval-cpt", "stage": "evaluate", "init": "cpt"},
    {
      "name": "report",
      "stage": "report",
      "runs": {
        "Thinking": "rl-thinking",
        "Non-thinking": "rl-nonthinking",
        "Thinking, judged": "judge-thinking",
        "Non-thinking, judged": "judge-nonthinking",
        "Base": "eval-base",
        "Base + CPT": "eval-cpt",
      },
    },
  )
  return c
