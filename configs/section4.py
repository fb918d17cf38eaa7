"""CPT and SFT of the study (paper, section 4) on a TPU slice: `section4.py:STAGE,MODEL,TOPOLOGY[,data=FOLDER]`.

Settings are those of thinking.py; how the work is cut is for `jaxrlvr plan` to check (docs/plan.md).
"""

from jaxrlvr.config import base, words

MICROBATCHES = {
  ("cpt", "llama3.2-3b", "v5p-64"): 1,
  ("cpt", "llama3.2-3b", "v6e-64"): 1,
  ("sft", "llama3.2-3b", "v5e-16"): 8,
}
STAGES, MODELS, SLICES = (tuple(dict.fromkeys(column)) for column in zip(*MICROBATCHES, strict=True))


def get_config(arg=""):
  chosen = words(arg, stage=STAGES, model=MODELS, topology=("", *SLICES), data=("study-data",))
  stage, model = chosen["stage"], chosen["model"]
  topology = chosen["topology"] or next(place for for_, _, place in MICROBATCHES if for_ == stage)
  c = base("thinking", f"data={chosen['data']}")
  c.init, c.chain = f"models/{model}", ()
  c.model.update(base("shape", model).model)
  c[stage].microbatches = MICROBATCHES.get((stage, model, topology), c[stage].microbatches)
  c.plan.stage, c.plan.topology = stage, topology
  return c
