"""CPT of the study (paper, section 4) on a TPU slice: `section4_cpt.py:MODEL,TOPOLOGY[,data=FOLDER]`.

Settings are those of thinking.py; how the work is cut is for `jaxrlvr plan` to check (README).
"""

from jaxrlvr.config import base, words

MICROBATCHES = {("llama3.2-3b", "v5p-64"): 1, ("llama3.2-3b", "v6e-64"): 1}
MODELS, SLICES = (tuple(dict.fromkeys(column)) for column in zip(*MICROBATCHES, strict=True))


def get_config(arg=""):
  chosen = words(arg, model=MODELS, topology=SLICES, data=("study-data",))
  model, topology = chosen["model"], chosen["topology"]
  c = base("thinking", f"data={chosen['data']}")
  c.init, c.chain = f"models/{model}", ()
  c.model.update(base("shape", model).model)
  c.cpt.microbatches = MICROBATCHES.get((model, topology), c.cpt.microbatches)
  c.plan.stage, c.plan.topology = "cpt", topology
  return c
