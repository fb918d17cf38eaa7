"""A family of models of a user's own: a Llama whose files name tensors and keys otherwise."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors

from helpers.command_line import run
from helpers.hf_directories import write_model
from jaxrlvr.base import named
from jaxrlvr.config import files as configs
from jaxrlvr.stages import build_policy

FAMILY = """
import dataclasses

from jaxrlvr.model.families import llama

TOY = dataclasses.replace(
  llama.LLAMA,
  model_type="toy",
  architecture="ToyForCausalLM",
  names={"embed": "wte.weight", "q": "h.{}.attn.query.weight", "final_norm": "ln_f.weight", "head": "out.weight"},
  keys={"hidden_size": "n_embd", "num_hidden_layers": "n_layer"},
)
"""


def renamed(name):
  name = name.replace("model.embed_tokens.weight", "wte.weight").replace("model.norm.weight", "ln_f.weight")
  if name.endswith("q_proj.weight"):
    return f"h.{name.split('.')[2]}.attn.query.weight"
  return name.replace("lm_head.weight", "out.weight")


def tensors_in(folder):
  tensors = {}
  for file in Path(folder).glob("*.safetensors"):
    tensors |= safetensors.load_file(file)
  return tensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Returns a folder with a Llama in `plain`, the same as `toy` of a family of one's own, and my_family.py."""
  monkeypatch.setattr(named, "_folders", [])
  monkeypatch.chdir(tmp_path)
  for name in ("plain", "toy"):
    write_model(tmp_path / name, "llama", shards=1)
  file = tmp_path / "toy" / "config.json"
  content = json.loads(file.read_text()) | {"model_type": "toy", "architectures": ["ToyForCausalLM"]}
  content |= {"n_embd": content.pop("hidden_size"), "n_layer": content.pop("num_hidden_layers")}
  file.write_text(json.dumps(content))
  tensors = {renamed(name): tensor for name, tensor in tensors_in(tmp_path / "plain").items()}
  safetensors.save_file(tensors, tmp_path / "toy" / "model.safetensors")
  Path("my_family.py").write_text(FAMILY)
  return tmp_path


def test_a_model_is_imported_and_exported_in_its_own_form(folder, tmp_path_factory, monkeypatch, capsys):
  assert run("import", "--config=base", "--workdir=run", "--config.model.path=toy") == 2
  assert "or a family of your own (config.model.family)" in capsys.readouterr().err
  own = "--config.model.family=my_family.py:TOY"
  assert run("import", "--config=base", "--workdir=run", "--config.model.path=toy", own) == 0
  assert run("import", "--config=base", "--workdir=plain-run", "--config.model.path=plain") == 0
  assert "model.family 'my_family.py:TOY'" in json.loads(Path("run/manifest.json").read_text())["code"]
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  monkeypatch.setattr(named, "_folders", [])
  ours, plain = (
    build_policy.load_policy(configs.load("base", {"init": str(folder / name)})) for name in ("run", "plain-run")
  )
  assert ours.spec == dataclasses.replace(plain.spec, family="my_family.py:TOY")
  for name in plain.params:
    np.testing.assert_array_equal(ours.params[name], plain.params[name])
  monkeypatch.chdir(folder)
  precise = "--config.export.dtype=float32"
  assert run("export", "--config=base", "--workdir=out", "--config.init=run", precise) == 0
  assert run("export", "--config=base", "--workdir=llama", "--config.init=plain-run", precise) == 0
  for written, source in (("out", "toy"), ("llama", "plain")):
    theirs, exported = tensors_in(source), tensors_in(f"{written}/model")
    assert theirs.keys() == exported.keys()
    for name in theirs:
      np.testing.assert_array_equal(exported[name], theirs[name])
  content = json.loads(Path("out/model/config.json").read_text())
  assert content["model_type"] == "toy" and content["n_embd"] == 16 and "hidden_size" not in content
  assert json.loads(Path("llama/model/config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (("TOY = dataclasses.replace(\n  llama.LLAMA,", "TOY = dict("), "is dict, no Family"),
    (('model_type="toy"', 'model_type="llama"'), "model_type = 'llama'; give the one of its config.json"),
    (('"embed": "wte', '"table": "wte'), "names has 'table'; wanted some of embed"),
    (("h.{}.attn", "h.attn"), "names has q = 'h.attn.query.weight'; write {} for the layer"),
    (('"hidden_size": "n', '"width": "d", "hidden_size": "n'), "keys has 'width', which its reader does not take"),
  ],
)
def test_what_is_no_family_is_refused(folder, capsys, change, words):
  Path("my_family.py").write_text(FAMILY.replace(*change))
  command = ("import", "--config=base", "--workdir=run", "--config.model.path=toy")
  assert run(*command, "--config.model.family=my_family.py:TOY") == 2
  assert words in capsys.readouterr().err
