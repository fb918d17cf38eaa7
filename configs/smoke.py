"""Every stage of the demo in seconds, with a policy too small to learn: it shows only that the machinery runs."""

from jaxrlvr.config import base


def get_config(arg=""):
  """Returns the demo's config with small sizes; `arg`: the seed, 0 by default."""
  c = base("demo", arg)
  c.model.width, c.model.layers, c.model.mlp, c.model.head_dim = 16, 2, 32, 4
  c.text.documents = 600
  for stage in (c.pretrain, c.cpt, c.sft):
    stage.steps, stage.rows, stage.microbatches = 6, 4, 2
  c.rl.steps, c.rl.problems_per_step, c.rl.group_size, c.rl.microbatches = 4, 8, 4, 2
  c.rl.response_tokens, c.rl.shrink = 12, 1
  c.problems.count, c.heldout.count = 4, 10
  c.evaluate.every, c.evaluate.samples, c.evaluate.pass_k = 2, 4, (1, 4)
  c.evaluate.problems_per_batch = 8  # as many rows as a step of RL, so that the same programs sample
  c.checkpoint.every = 3
  c.saturation_tail = 1
  return c
