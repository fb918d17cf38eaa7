"""A small Hugging Face model in a notebook (colab/diagnose.ipynb): `colab.py:DEVICE`, cpu, gpu or tpu (one v5e chip).

Its problems are generated (Reasoning Gym). Sized so that diagnosis and RL should end within a quarter of an hour: on
two CPU cores for 135 million weights (4 minutes were measured), on a GPU of 16 GB or a v5e chip for 500 million (an
estimate).
"""

from jaxrlvr.config import base, words


def get_config(arg=""):
  device = words(arg, device=("cpu", "gpu", "tpu"))["device"]
  c = base()
  c.mesh.fsdp = 1
  c.model.unroll = 1
  for problems in (c.problems, c.heldout):
    problems.source, problems.kinds, problems.levels = "reasoning_gym", ("basic_arithmetic", "gcd"), (1,)
    problems.too_long = "drop"
  c.rl.prompt_tokens, c.rl.optim.lr = 128, 3e-6
  c.evaluate.every, c.saturation_tail = 0, 1
  if device == "cpu":
    c.diagnose.problems, c.diagnose.samples = 8, 16
    c.rl.steps, c.rl.problems_per_step, c.rl.group_size, c.rl.response_tokens = 4, 4, 4, 96
    c.heldout.count, c.evaluate.samples, c.evaluate.pass_k = 16, 4, (1, 4)
    c.evaluate.problems_per_batch = 16
  else:
    c.model.dtype, c.model.remat = "bfloat16", "full"
    c.model.attention = "xla" if device == "gpu" else "auto"  # on whatever GPU it is
    # A T4 computes bfloat16 as float32, at 8 TFLOP/s: a step of 16 problems would take it the better part of a minute.
    c.rl.steps, c.rl.problems_per_step = (10, 8) if device == "gpu" else (20, 16)
    c.rl.group_size, c.rl.response_tokens = 8, 256
    c.rl.microbatches, c.rl.optim.moment = 32, "bfloat16"
    c.evaluate.samples, c.evaluate.pass_k = 8, (1, 8)
    c.evaluate.problems_per_batch = c.rl.problems_per_step  # the rows of a step of RL
  return c
