"""Paths that a user writes with a tilde lead to the home directory."""

import os
import re

import jax
import pytest

from helpers.command_line import run
from helpers.hf_directories import write_tokenizer
from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.data import hub
from jaxrlvr.stages import build_policy
from jaxrlvr.stages.diagnose import faithful_diversity_of
from jaxrlvr.stages.evaluate import chosen_sets
from jaxrlvr.stages.judge import make_judge
from jaxrlvr.stages.run_directory import set_compile_cache


def test_a_tilde_stands_for_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert object_store.path("~/x") == tmp_path / "x" and object_store.local("~/x") == str(tmp_path / "x")
  assert object_store.path("gs://b/~x").as_posix() == "gs://b/~x" and object_store.local("arithmetic") == "arithmetic"
  (tmp_path / "c.py").write_text("from jaxrlvr.config import base\n\n\ndef get_config(arg):\n  return base()\n")
  assert configs.load("~/c.py").seed == 0 and hub.model_folder("~/c.py") == str(tmp_path / "c.py")


def test_a_tilde_is_read_in_every_key_that_names_a_place(tmp_path, monkeypatch, capsys):
  """A shell leaves the tilde in `--config.init=~/x` as it is."""
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  x = str(tmp_path / "x")
  assert hub.locate("~/x")[0] == hub.locate("skywork-or1:~/x")[0] == x
  for stage, key, value, message in (
    ("evaluate", "tokenizer", "~/x", f"{x}: no such tokenizer"),
    ("import", "model.path", "~/x", f"{x}/config.json: can't be read"),
    ("import", "model.adapter", "~/x", f"{x}/adapter_config.json: can't be read"),
    ("prepare", "problems.source", "~/x", f"config.problems: {x}: "),
    ("judge", "judge.run", "~/x", f"{x}: holds no run"),
    ("report", "report.runs", "~/x", f"{x}: holds no run"),
    ("report", "report.runs", "A=~/x", f"{x}: holds no run"),
  ):
    assert run(stage, "--config=smoke", "--workdir=~/w", f"--config.{key}={value}") == 2
    assert message in capsys.readouterr().err, key
  c = configs.load("smoke", {"heldout.folder": "~/x", "heldout.sets": "math500", "judge.name": "replay"})
  c.judge.file, c.init = "~/x", "~/hf"
  write_tokenizer(tmp_path / "hf")
  for read, message in (
    (lambda: chosen_sets(c, []), f"{x}/non-think/"),
    (lambda: make_judge(c, c.judge, tmp_path), f"'{x}' is no file"),
    (lambda: faithful_diversity_of("~/x"), f"{x}/diagnosis.json"),
    (lambda: build_policy.load_policy(c), "config.init = '~/hf': is a Hugging Face directory"),
  ):
    with pytest.raises(InputError, match=re.escape(message)):
      read()
  try:
    set_compile_cache("~/x")
    assert jax.config.jax_compilation_cache_dir == x
  finally:
    set_compile_cache(os.environ["JAX_COMPILATION_CACHE_DIR"])
  assert run("grid", "--config=smoke", "--workdir=~/grid", "--config.grid.jobs=0") == 0
  assert {file.name for file in (tmp_path / "grid").iterdir()} >= {"commands.txt", "grid.json", "manifest.json"}
  assert not (tmp_path / "~").exists()
