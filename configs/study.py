"""What all experiments of the study share (paper, section 2 and appendix B; settings of the released code).

`study.py:MODEL,DOMAIN,N[,GAMMA][,REWARD][,BASELINE][,steps=T][,data=FOLDER][,tiny]`, with the words in any order; each
may be left out (`WORDS` lists their values, the default first). The files of single experiments (scarce, noisy, proxy,
baselines) take the same words. FOLDER holds the study's files
(math/, science/, graph/, eval/); `config.init` is models/MODEL. `tiny` is the same run on a few problems, for a
built-in policy on a CPU: it shows that every path runs, and its scores mean nothing.
"""

from jaxrlvr.config import base, words
from jaxrlvr.data.eval_sets import DOMAINS, TRAIN_FILES, train_file

# Values of each word of the argument, the default first; steps, data and n may have others, as steps=100.
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
  """Returns the config of one of the study's RL runs; `arg`: words between commas, see above."""
  chosen = words(arg, **WORDS)
  model, domain, reward = chosen["model"], chosen["domain"], chosen["reward"]
  thinking = model.endswith("-thinking")
  c = base()
  c.init = f"models/{model}"
  c.model.dtype = "bfloat16"
  c.model.remat = "full"
  c.model.unroll = 1

  c.rl.steps = int(chosen["steps"])
  c.rl.problems_per_step = 64
  c.rl.group_size = 8
  c.rl.microbatches = 16
  c.rl.prompt_tokens = 2048
  c.rl.response_tokens = 8192 if thinking else 2048
  c.rl.shrink = 3
  c.rl.optim.lr = 1e-6
  c.rl.dual_clip = 3.0  # it is always on in the released code
  c.rl.reward = reward
  c.rl.baseline = chosen["baseline"]
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
  c.checkpoint.every = 25
  c.saturation_tail = 50
  set_problems(c, chosen)
  c.paper.setting = f"{model}, {domain}"
  if chosen["tiny"]:
    shrink(c)
  return c


def set_problems(c, chosen):
  """Sets the problems to train on and to evaluate on; `chosen`: the value of each of WORDS."""
  model, domain = chosen["model"], chosen["domain"]
  c.problems.source = train_file(chosen["data"], model, domain, chosen["n"], chosen["gamma"])
  c.problems.count = 0  # all
  c.problems.too_long = "drop"
  c.heldout.domain = domain
  if domain == "graph":
    c.heldout.domain = "graph-qwen" if "qwen" in model else "graph-llama"
  c.heldout.folder = f"{chosen['data']}/eval"
  c.heldout.prompts = "think" if model.endswith("-thinking") else "non-think"
  c.heldout.too_long = "drop"
  # The released training files hold some held-out prompts: scp_2048 of Llama has 38 of the 50 of scp-hard.
  c.heldout.overlap = "warn"
  c.evaluate.every = 25
  c.evaluate.samples = 16
  c.evaluate.pass_k = (4, 8, 16)
  c.evaluate.problems_per_batch = 32


def shrink(c):
  """Changes the sizes of a config so that its run takes a few minutes on a CPU."""
  c.model.dtype = "float32"
  c.model.remat = "none"
  c.mesh.fsdp = 1
  c.rl.steps = 2
  c.rl.problems_per_step = 4
  c.rl.group_size = 2
  c.rl.microbatches = 2
  c.rl.minibatch_problems = min(c.rl.minibatch_problems, 2)
  c.rl.votes = min(c.rl.votes, 4)
  c.rl.prompt_tokens = 1024
  c.rl.response_tokens = 8
  c.rl.shrink = 0
  c.problems.count = 8
  c.heldout.at_most = 4
  domain = DOMAINS[c.heldout.domain]
  c.heldout.sets = (domain.inside[0], domain.outside[0])
  c.evaluate.every = 0
  c.evaluate.samples = 2
  c.evaluate.pass_k = (2,)
  c.evaluate.problems_per_batch = 4
  c.checkpoint.every = 2
  c.saturation_tail = 0
