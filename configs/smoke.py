"""Every stage of the demo in seconds, with a policy too small to learn: it shows only that the machinery runs."""

from jaxrlvr.config import base


def get_config(arg=""):
  """Returns the demo's config with small sizes; `arg`: the seed, 0 by default."""
  c = base("demo", arg)
  c.model.width = 16
  c.model.layers = 2
  c.model.mlp = 32
  c.model.head_dim = 4
  c.text.documents = 600
  for stage in (c.pretrain, c.cpt, c.sft):
    stage.steps = 6
    stage.rows = 4
    stage.microbatches = 2
  c.rl.steps = 4
  c.rl.problems_per_step = 8
  c.rl.group_size = 4
  c.rl.microbatches = 2
  c.rl.response_tokens = 12
  c.rl.shrink = 1
  c.problems.count = 4
  c.heldout.count = 10
  c.evaluate.every = 2
  c.evaluate.samples = 4
  c.evaluate.pass_k = (1, 4)
  c.evaluate.problems_per_batch = 8  # as many rows as a step of RL, so that the same programs sample
  c.checkpoint.every = 3
  c.saturation_tail = 1
  return c
