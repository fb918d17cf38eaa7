"""What all experiments of the study share (paper, section 2 and appendix B; settings of the released code).

`study.py:MODEL,DOMAIN,N[,GAMMA][,REWARD][,BASELINE][,steps=T][,data=FOLDER][,tiny]`, with the words in any order; the
files of single experiments (scarce, noisy, proxy, baselines) take the same words. FOLDER holds the study's files
(math/, science/, graph/, eval/); `config.init` is models/MODEL. `tiny` is the same run on a few problems, for a
built-in policy on a CPU: it shows that every path runs, and its scores mean nothing.
"""

from jaxrlvr.config import base, words
from jaxrlvr.data.eval_sets import DOMAINS, TRAIN_FILES, train_file

WORDS = dict(
  model=tuple(dict.fromkeys(model for model, _ in TRAIN_FILES)),
  domain=("math", "science", "graph"),
  n=("8", "16", "32", "64", "128", "256", "512", "882", "1024", "2048"),
  gamma=("0.0", "0.1", "0.3", "0.5", "0.7", "0.9"),
  reward=("verifiable", "majority_vote", "self_certainty"),
  baseline=("mean", "zero", "one", "positive", "negative"),
  steps=("496",),
  tiny=("", "tiny"),
  data=("study-data",),
)


def get_config(arg=""):
  """Returns the config of one of the study's RL runs; `arg`: the words above, the first of each kind by default."""
  chosen = words(arg, **WORDS)
  model, domain, reward = chosen["model"], chosen["domain"], chosen["reward"]
  thinking = model.endswith("-thinking")
  c = base()
  c.init = f"models/{model}"
  c.model.dtype, c.model.remat, c.model.unroll = "bfloat16", "full", 1

  c.rl.steps, c.rl.problems_per_step, c.rl.group_size, c.rl.microbatches = int(chosen["steps"]), 64, 8, 16
  c.rl.prompt_tokens, c.rl.response_tokens, c.rl.shrink = 2048, 8192 if thinking else 2048, 3
  c.rl.optim.lr, c.rl.dual_clip = 1e-6, 3.0  # the dual clip is always on in the released code
  c.rl.reward, c.rl.baseline = reward, chosen["baseline"]
  if reward == "majority_vote":
    c.rl.votes = 16
    c.rl.reward = "majority_vote_thinking" if thinking else "majority_vote"
  elif thinking and reward == "verifiable":
    c.rl.reward = "verifiable*thinking_format"
  if thinking or reward == "majority_vote":
    c.rl.minibatch_problems = 32  # two updates a step
  if c.rl.baseline != "mean":
    c.rl.reduce = "sequence-mean-token-sum"  # appendix E: no 1/len
    c.rl.scale_std = c.rl.baseline in ("positive", "negative")  # the released code divides by it
  c.checkpoint.every, c.saturation_tail = 25, 50

  c.problems.source = train_file(chosen["data"], model, domain, chosen["n"], chosen["gamma"])
  c.problems.count, c.problems.too_long = 0, "drop"
  c.heldout.domain = domain + {"graph": "-qwen" if "qwen" in model else "-llama"}.get(domain, "")
  c.heldout.folder, c.heldout.prompts = f"{chosen['data']}/eval", "think" if thinking else "non-think"
  c.heldout.too_long = "drop"
  # The released training files hold some held-out prompts: scp_2048 of Llama has 38 of the 50 of scp-hard.
  c.heldout.overlap = "warn"
  c.evaluate.every, c.evaluate.samples, c.evaluate.pass_k, c.evaluate.problems_per_batch = 25, 16, (4, 8, 16), 32
  c.paper.setting = f"{model}, {domain}"
  if chosen["tiny"]:
    shrink(c)
  return c


def shrink(c):
  """Changes the sizes of a config so that its run takes a few minutes on a CPU."""
  c.model.dtype, c.model.remat, c.mesh.fsdp = "float32", "none", 1
  c.rl.steps, c.rl.problems_per_step, c.rl.group_size, c.rl.microbatches = 2, 4, 2, 2
  c.rl.minibatch_problems, c.rl.votes = min(c.rl.minibatch_problems, 2), min(c.rl.votes, 4)
  c.rl.prompt_tokens, c.rl.response_tokens, c.rl.shrink = 1024, 8, 0
  c.problems.count, c.heldout.at_most = 8, 4
  domain = DOMAINS[c.heldout.domain]
  c.heldout.sets = (domain.inside[0], domain.outside[0])
  c.evaluate.every, c.evaluate.samples, c.evaluate.pass_k, c.evaluate.problems_per_batch = 0, 2, (2,), 4
  c.checkpoint.every, c.saturation_tail = 2, 0
