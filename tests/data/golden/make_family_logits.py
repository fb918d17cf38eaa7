"""Writes family_logits.json beside this file: `PYTHONPATH=tests python tests/data/golden/make_family_logits.py`.

torch and transformers must be installed. Names behind the command make these models alone. Logits are those of
transformers in float32 with eager attention, for the models and texts of tests/helpers/family_models.py.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from helpers import family_models


@torch.no_grad()
def logits(name):
  """Returns the logits [B][T][V] of one of the models, to five decimals."""
  with tempfile.TemporaryDirectory() as folder:
    family_models.write(Path(folder), name)
    model, report = AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
  assert not any(report.values()), report
  return np.round(model.eval()(torch.from_numpy(family_models.texts()).long()).logits.double().numpy(), 5).tolist()


if __name__ == "__main__":
  torch.set_num_threads(1)
  golden = json.loads(family_models.GOLDEN.read_text()) if family_models.GOLDEN.is_file() else {}
  golden |= {name: logits(name) for name in sys.argv[1:] or family_models.MODELS}
  lines = [f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in family_models.MODELS]
  family_models.GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
