"""CPT and SFT of the study (paper, section 4) on a TPU slice: `section4.py:STAGE,MODEL,TOPOLOGY[,data=FOLDER]`.

Settings are those of thinking.py, except for the microbatches, with which the work fits the slice (docs/plan.md).
"""

from jaxrlvr.config import base, words

# Microbatches by stage, model and topology.
MICROBATCHES = {
  ("cpt", "llama3.2-3b", "v5p-64"): 1,
  ("cpt", "llama3.2-3b", "v6e-64"): 1,
  ("sft", "llama3.2-3b", "v5e-16"): 8,
}
STAGES = tuple(dict.fromkeys(stage for stage, _, _ in MICROBATCHES))
MODELS = tuple(dict.fromkeys(model for _, model, _ in MICROBATCHES))
SLICES = tuple(dict.fromkeys(topology for _, _, topology in MICROBATCHES))


def get_config(arg=""):
  """Returns the config of CPT or SFT on a slice; `arg`: the words above, of which STAGE is cpt by default."""
  chosen = words(arg, stage=STAGES, model=MODELS, topology=("", *SLICES), data=("study-data",))
  stage, model = chosen["stage"], chosen["model"]
  topologies_of_stage = [topology for listed, _, topology in MICROBATCHES if listed == stage]
  topology = chosen["topology"] or topologies_of_stage[0]
  c = base("thinking", f"data={chosen['data']}")
  c.init = f"models/{model}"
  c.chain = ()
  c.model.update(base("shape", model).model)
  c[stage].microbatches = MICROBATCHES.get((stage, model, topology), c[stage].microbatches)
  c.plan.stage = stage
  c.plan.topology = topology
  return c
