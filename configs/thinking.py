"""What comes before RL (paper, section 4): five configurations x three kinds of weak supervision.

The configurations are {Base, CPT} x {Thinking, Non-thinking SFT}, and Instruct to compare with. Each is trained by RL
with 8 problems, with majority vote (1024 problems, 600 steps) and with gamma = 0.7. `jaxrlvr grid
--config=thinking[:WORDS]` runs all of it and writes the report, whose charts are those of figures 6, 7, 34 and 35.
Words: `data=FOLDER` as in study.py; `instruct=FOLDER`, the model to compare with, models/llama3.2-3b-instruct by
default; `large` adds RL with all 2048 problems, for the large-small gap; `tiny` as in study.py. `config.init` is the
base model, models/llama3.2-3b. CPT and SFT read Nemotron-CC-Math and OpenThoughts-114k. The judge is the paper's, o3;
`config.judge` names another.
"""

from jaxrlvr.config import base, words

# Values of each word of the argument, the default first.
WORDS = dict(data=("study-data",), tiny=("", "tiny"), large=("", "large"), instruct=("models/llama3.2-3b-instruct",))
# Words of study.py, and number of problems in the report's tables (None: not scarce), by setting.
SETTINGS = {
  "N = 8": ("8", 8),
  "majority vote": ("1024,majority_vote,steps=600", None),
  "gamma = 0.7": ("2048,0.7", None),
}
LARGE = {"N = 2048": ("2048", 2048)}
KEYS = ("steps", "reward", "votes", "minibatch_problems", "response_tokens")  # keys of config.rl that differ by setting


def get_config(arg=""):
  """Returns the config of the whole grid; `arg`: the words above."""
  chosen = words(arg, **WORDS)
  tiny = chosen["tiny"]
  shared = ",".join(filter(None, (f"data={chosen['data']}", tiny)))
  c = base("study", f"llama3.2-3b-thinking,{shared}")
  c.init = "models/llama3.2-3b"
  set_cpt_and_sft(c)
  c.judge.name = "http"
  c.judge.url = "https://api.openai.com/v1"
  c.judge.model = "o3"
  c.judge.key_variable = "OPENAI_API_KEY"
  c.judge.request = "{}"
  c.judge.set = "math500"
  if tiny:
    shrink(c)
  c.chain = tuple(all_links(chosen, shared))
  c.report.title = "What comes before RL, and what weak supervision then does"
  c.paper.figure = "figures 6, 7, 34 and 35, tables 4 to 7"
  c.paper.expected = "only Thinking SFT generalises from weak supervision; CPT adds to it and does not replace it"
  return c


def set_cpt_and_sft(c):
  """Sets what CPT and SFT train on, and the paper's sizes and rates."""
  c.cpt.source = "nemotron-cc-math"
  c.cpt.column = "text"
  c.cpt.steps = 198_000  # 52 B tokens, one epoch
  c.cpt.rows = 128
  c.cpt.row_tokens = 2048
  c.cpt.microbatches = 16
  c.cpt.optim.lr = 2e-5
  c.cpt.optim.b2 = 0.999
  c.sft.source = "openthoughts-114k"
  c.sft.max_tokens = 8192
  # Both arms see each of the 43,500 documents three times; how many updates that are follows from their lengths (about
  # 510 with traces, of which two share a row of 8192 tokens, so that an update has 256 of them).
  c.sft.epochs = 3
  c.sft.steps = 0
  c.sft.rows = 128
  c.sft.row_tokens = 8192
  c.sft.microbatches = 64
  c.sft.optim.lr = 1.5e-5  # the released rate; the paper tunes it in 1e-5 to 5e-5
  c.sft.optim.b2 = 0.999
  c.sft.optim.warmup = 0.1


def shrink(c):
  """Changes CPT, SFT and the judge so that the grid takes minutes on a CPU, and needs no corpus and no endpoint."""
  for stage in (c.cpt, c.sft):
    stage.steps = 2
    stage.rows = 4
    stage.row_tokens = 256
    stage.microbatches = 2
    stage.source = ""  # the built-in text: the corpora need not be there
  c.cpt.column = ""
  c.sft.epochs = 0  # the built-in text has no end
  c.sft.max_tokens = 0
  c.judge.name = "exact"
  c.judge.max_missing = 1.0  # this judge can label none of these problems


def all_links(chosen, shared):
  """Returns the links of the grid: CPT, the SFT runs of the four arms, and the RL runs of these arms and of Instruct.

  chosen: the value of each of WORDS. shared: words of study.py that all RL runs have.
  """
  settings = SETTINGS | (LARGE if chosen["large"] else {})
  links = [{"name": "cpt", "stage": "cpt"}]
  for start, title in (("base", "Base"), ("cpt", "CPT")):
    for kind, arm in (("thinking", "Thinking"), ("nonthinking", "Non-thinking")):
      sft = {"name": f"{start}-{kind}", "stage": "sft", "set": {"sft.thinking": kind == "thinking"}}
      if start == "cpt":
        sft["init"] = "cpt"
      links.append(sft)
      from_sft = {"init": sft["name"]}
      links += arm_links(f"{title} + {arm}", sft["name"], f"llama3.2-3b-{kind}", settings, shared, from_sft, {})
  # No link makes the Instruct model. The tiny version starts from the policy of config.init instead.
  init_of_instruct = {} if chosen["tiny"] else {"init": chosen["instruct"]}
  links += arm_links("Instruct", "instruct", "llama3.2-3b-instruct", settings, shared, {}, init_of_instruct)
  return links


def arm_links(arm, name, model, settings, shared, start, changes):
  """Returns two links for each setting, an RL run of the arm and the judging of it.

  `name` begins the names of the links; `model` and `shared` are words of study.py. `start` is {"init": LINK} where RL
  starts from a link of the chain; `changes` holds further {key: value} of the RL runs' configs.
  """
  links = []
  for setting, (setting_words, n) in settings.items():
    run = f"{name}-{setting.lower().replace(' = ', '-').replace(' ', '-')}"
    experiment = base("study", f"{model},{setting_words},{shared}")
    own = {f"rl.{key}": experiment.rl[key] for key in KEYS}
    own |= {"problems.source": experiment.problems.source, "heldout.prompts": experiment.heldout.prompts}
    cell = {"arm": arm, "setting": setting, "n": n}
    links.append({"name": run, "stage": "rl", "set": own | changes, "cell": cell, **start})
    links.append({"name": f"{run}-judged", "stage": "judge", "files": {"judge.run": run}})
  return links
