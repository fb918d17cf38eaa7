"""A policy that several modules of stages start from."""

import pytest

from helpers.command_line import run_smoke


@pytest.fixture(scope="session")
def init(tmp_path_factory):
  """A policy that has learned to box a digit, but not which one."""
  folder = tmp_path_factory.mktemp("policy")
  assert run_smoke("tokenizer", folder / "tokenizer") == 0
  settings = dict(thinking=False, steps=80, rows=8, row_tokens=64, microbatches=1, optim__lr=0.01)
  sft = {f"sft__{key}": value for key, value in settings.items()}
  assert run_smoke("sft", folder / "sft", tokenizer=folder / "tokenizer", checkpoint__every=100, **sft) == 0
  return folder / "sft"
