"""The study in miniature, on built-in arithmetic and CPUs: `jaxrlvr grid --config=miniature --workdir=runs/miniature`.

The cells are {Base, CPT} x {Thinking, Non-thinking SFT} x {N = 8, N = 512, gamma = 0.7, majority vote, self-certainty}.
Each is a run of 60 steps, labelled by the exact judge, for SEEDS seeds from `first` on:
`miniature.py:SEEDS[,first=SEED][,tiny]`, seeds 0, 1 and 2 by default. Policies are evaluated inside of the domain and
outside of it, on a sixth operand and on numbers of two digits, which pre-training and CPT show and SFT and RL don't.

Sizes and rates are those of configs/demo.py. One number was searched, on seed 0: the updates of pre-training. After 600
to 1,750 updates the base answers no better than chance, so that RL has nothing to select from; after 2,500 each of its
careful answers is right and CPT has nothing to add; after 2,000 it answers 23 % right inside of the domain, 17 and 19 %
outside. `tiny` shows in minutes that every path runs, and its scores mean nothing.
"""

from jaxrlvr.config import base, words

# Link that SFT starts from, sft.thinking and rl.response_tokens, by arm.
MODELS = {
  "Base + Thinking": ("base", True, 56),
  "Base + Non-thinking": ("base", False, 12),
  "CPT + Thinking": ("cpt", True, 56),
  "CPT + Non-thinking": ("cpt", False, 12),
}
MANY = 512  # number of problems where they are not scarce


def settings(corrupt):
  """Returns the RL runs of an arm by the name of their setting, each (number of problems in the report's tables, None
  where it is not compared; {key: value} that differ; {key: path that begins with the name of an earlier link}).

  corrupt: name of the link that writes wrong labels.
  """
  labels = {"problems.source": f"{corrupt}/gamma_0.70.jsonl"}
  voted = {"problems.count": MANY, "rl.reward": "majority_vote", "rl.votes": 16}
  return {
    "N = 8": (8, {"problems.count": 8}, {}),
    f"N = {MANY}": (MANY, {"problems.count": MANY}, {}),
    "gamma = 0.7": (None, {"problems.count": 0}, labels),
    "majority vote": (None, voted, {}),
    "self-certainty": (None, {"problems.count": MANY, "rl.reward": "self_certainty"}, {}),
  }


def short(name):
  """Returns an arm or a setting as part of a link's name: "N = 8" as "n-8"."""
  return "-".join(name.lower().replace("+", " ").replace("=", " ").split())


def links(seed):
  """Returns the links of all runs of a seed, each behind the links that it starts from."""
  own = {"seed": seed, "problems.seed": 100 + seed}
  runs = [
    {"name": f"tokenizer-{seed}", "stage": "tokenizer", "set": own},
    {"name": f"base-{seed}", "stage": "pretrain", "tokenizer": f"tokenizer-{seed}", "set": own},
    {"name": f"cpt-{seed}", "stage": "cpt", "init": f"base-{seed}", "set": own},
  ]
  for arm, (start, thinking, tokens) in MODELS.items():
    sft, wrong = f"{short(arm)}-{seed}", f"{short(arm)}-labels-{seed}"
    own = own | {"rl.response_tokens": tokens}
    runs.append({"name": sft, "stage": "sft", "init": f"{start}-{seed}", "set": own | {"sft.thinking": thinking}})
    runs.append({"name": wrong, "stage": "corrupt", "init": sft, "set": own | {"problems.count": MANY}})
    for setting, (n, changes, files) in settings(wrong).items():
      name = f"{short(arm)}-{short(setting)}-{seed}"
      cell = {"arm": arm, "setting": setting, "n": n}
      runs.append({"name": name, "stage": "rl", "init": sft, "set": own | changes, "files": files, "cell": cell})
      runs.append({"name": f"{name}-judged", "stage": "judge", "set": own, "files": {"judge.run": name}})
  return runs


def get_config(arg=""):
  """Returns the config of the whole grid; `arg`: the words above."""
  chosen = words(arg, seeds=("3", "1", "2", "4", "5"), first=("",), tiny=("", "tiny"))
  first = int(chosen["first"] or 0)
  c = base("smoke" if chosen["tiny"] else "demo")
  c.report.title = "When can a small policy learn to reason from weak supervision?"
  c.text.levels = (1, 2, 3, 4, 5)  # pre-training shows what is outside of RL's domain
  c.text.kinds = ("chain", "large")
  if not chosen["tiny"]:
    c.pretrain.steps = 2000  # see above
  c.heldout.domain = "arithmetic"
  c.corrupt.gammas = (0.7,)
  c.corrupt.samples = 32
  c.judge.set = "arithmetic"
  c.judge.steps = tuple(range(0, c.rl.steps + 1, c.evaluate.every))
  c.grid.jobs = 2
  runs = []
  for seed in range(first, first + int(chosen["seeds"])):
    runs += links(seed)
  c.chain = tuple(runs)
  if chosen["tiny"]:
    c.corrupt.samples = 4
    c.evaluate.samples = 2
    c.evaluate.pass_k = (1, 2)
  return c
