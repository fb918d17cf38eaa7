"""What comes before RL (paper, section 4): {Base, CPT} x {Thinking, Non-thinking SFT} x RL from weak supervision.

`thinking.py[:data=FOLDER][,tiny]`, run by `jaxrlvr chain`. `config.init` is the base model, models/llama3.2-3b. RL is
scarce (N = 8), majority vote, and noisy (gamma = 0.7). CPT and SFT read Nemotron-CC-Math and OpenThoughts-114k.
"""

from jaxrlvr.config import base, words

SHARED = dict(data=("study-data",), tiny=("", "tiny"))


def get_config(arg=""):
  chosen = words(arg, **SHARED)
  shared = ",".join(filter(None, (f"data={chosen['data']}", chosen["tiny"])))
  c = base("study", f"llama3.2-3b-thinking,{shared}")
  c.init = "models/llama3.2-3b"
  c.cpt.source, c.cpt.column = "nemotron-cc-math", "text"
  c.cpt.steps, c.cpt.rows, c.cpt.row_tokens, c.cpt.microbatches = 198_000, 128, 2048, 16  # 52 B tokens, one epoch
  c.cpt.optim.lr, c.cpt.optim.b2 = 2e-5, 0.999
  c.sft.source, c.sft.max_tokens = "openthoughts-114k", 8192
  # 43,500 rows, 3 epochs, 256 rows an update; packed, two of them share a row of 8192 tokens.
  c.sft.steps, c.sft.rows, c.sft.row_tokens, c.sft.microbatches = 510, 128, 8192, 64
  c.sft.optim.lr, c.sft.optim.b2, c.sft.optim.warmup = 1.5e-5, 0.999, 0.1
  if chosen["tiny"]:
    for stage in (c.cpt, c.sft):
      stage.steps, stage.rows, stage.row_tokens, stage.microbatches = 2, 4, 256, 2
    c.sft.max_tokens = 256
  c.chain = ({"name": "cpt", "stage": "cpt"}, *(link for start in ("base", "cpt") for link in arm(start, shared)))
  c.paper.figure = "figure 6, tables 4 to 7"
  c.paper.expected = "only Thinking SFT generalises from weak supervision; CPT adds to it and does not replace it"
  return c


def arm(start, shared):
  """The links of one starting point: both SFT runs, and RL from each under every weak supervision."""
  init = {"init": "cpt"} if start == "cpt" else {}
  for kind in ("thinking", "nonthinking"):
    sft = f"{start}-{kind}"
    yield {"name": sft, "stage": "sft", "set": {"sft.thinking": kind == "thinking"}, **init}
    for name, words_ in (("scarce", "8"), ("majority", "2048,majority_vote"), ("noisy", "2048,0.7")):
      changed = base("study", f"llama3.2-3b-{kind},{words_},{shared}")
      yield {"name": f"{sft}-{name}", "stage": "rl", "init": sft, "set": settings(changed)}


def settings(c):
  """What RL of one kind of model and supervision has of its own."""
  names = "reward votes minibatch_problems response_tokens".split()
  made = {f"rl.{name}": c.rl[name] for name in names} | {"problems.source": c.problems.source}
  return made | {"heldout.prompts": c.heldout.prompts}
