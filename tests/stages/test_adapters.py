"""LoRA adapters of PEFT directories through the stages: import, what they are added to, export; refusals."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors

import jaxrlvr as jr
from helpers.command_line import run, run_smoke
from helpers.hf_directories import PADDED, SPECS, TINY, USER, write_model
from helpers.peft_directories import random_adapter, write_adapter
from helpers.policies import logits_of
from jaxrlvr.base import logbook
from jaxrlvr.config import files as configs
from jaxrlvr.data import hub
from jaxrlvr.model import hf_weights, peft_files
from jaxrlvr.model.lora import merge_adapters
from jaxrlvr.model.spec import Lora
from jaxrlvr.stages import build_policy, hf_models, origins

BASE = dataclasses.replace(SPECS["llama"], vocab=PADDED, width=16, head_dim=4)  # as `write_model` writes it
Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"
LORA = Lora(rank=3, alpha=6.0, targets=("q", "up"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """Returns (Hugging Face directory, PEFT directory of adapters for it, which names it as its base)."""
  folder = tmp_path_factory.mktemp("adapters")
  base = write_model(folder / "base")
  tensors = {name: w * 0.3 for name, w in random_adapter([Q, UP], rank=3, spec=BASE).items()}
  names = dict(target_modules=["q_proj", "up_proj"], base_model_name_or_path=str(base))
  return base, write_adapter(folder / "adapter", tensors, r=3, **names)


@pytest.fixture(scope="module")
def imported(sources, tmp_path_factory):
  """Returns the run directory that the stage import made of both."""
  workdir = tmp_path_factory.mktemp("imported") / "run"
  assert run("import", "--config=base", f"--workdir={workdir}", f"--config.model.adapter={sources[1]}") == 0
  return workdir


def load(**changes):
  return build_policy.load_policy(configs.load("smoke", {key.replace("__", "."): str(v) for key, v in changes.items()}))


def test_adapters_are_added_to_the_base_that_they_name_or_that_is_named(sources, imported):
  base, adapter = sources
  policy, plain = load(model__adapter=adapter), load(model__path=base)
  assert policy.spec == dataclasses.replace(plain.spec, lora=LORA)
  assert policy.tokenizer.render(USER) == plain.tokenizer.render(USER)
  assert set(policy.origin["digests"]) == {"weights", "config", "adapter", "adapter_config", "tokenizer"}
  by_both, by_run = load(model__path=base, model__adapter=adapter), load(init=imported)
  for other in (by_both, by_run):
    assert other.spec == policy.spec and other.origin["digests"] == policy.origin["digests"]
    for name, weight in policy.weights().items():
      np.testing.assert_array_equal(weight, other.weights()[name])
  assert by_run.origin["adapter"] == str(imported / "adapter")
  tokens = np.arange(20).reshape(1, 20)
  merged = logits_of(merge_adapters(policy.weights(), policy.spec), tokens, plain.spec)
  np.testing.assert_allclose(logits_of(policy.weights(), tokens, policy.spec), merged, atol=1e-4)
  assert np.abs(merged - logits_of(plain.params, tokens, plain.spec)).max() > 0.01


def test_the_adapters_of_a_start_are_merged(sources):
  policy, plain = load(model__adapter=sources[1]), load(model__path=sources[0])
  expected = merge_adapters(policy.weights(), policy.spec)
  place, start = build_policy.load_starting_weights(plain._replace(origin={"start": policy.origin}))
  assert place == str(sources[0]) and start.keys() == expected.keys()
  for name, weight in expected.items():
    np.testing.assert_array_equal(weight, start[name])


def test_an_imported_start_is_found_where_it_moved_to(imported, tmp_path):
  policy = load(init=imported)
  recorded = {key: value for key, value in policy.origin["digests"].items() if key != "tokenizer"}
  origin = {"model": "/gone/runs/run/model", "adapter": "/gone/runs/run/adapter", "digests": recorded}
  shutil.copytree(imported, tmp_path / "runs" / "run")
  weights = origins.read_origin(origin, policy.spec, policy.mesh, "float32", near=tmp_path / "runs" / "sft")
  for name, weight in merge_adapters(policy.weights(), policy.spec).items():
    np.testing.assert_array_equal(weight, weights[name])


def export(workdir, *options):
  code = run("export", "--config=smoke", f"--workdir={workdir}", *options)
  return code, logbook.read_json(workdir / "summary.json")


def test_adapters_are_exported_merged_and_as_they_are(sources, imported, tmp_path, capsys):
  base, adapter = sources
  code, summary = export(
    tmp_path / "out", f"--config.init={imported}", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"
  )
  assert code == 0 and max(summary["reread"], summary["adapter_reread"], summary["difference"]) < 1e-4
  assert f"PEFT directory: {tmp_path}/out/adapter (read again: within" in capsys.readouterr().out
  policy = load(init=imported)
  written = safetensors.load_file(tmp_path / "out" / "adapter" / peft_files.ADAPTER_WEIGHTS)
  for name, tensor in safetensors.load_file(adapter / peft_files.ADAPTER_WEIGHTS).items():
    np.testing.assert_array_equal(written[name], tensor, err_msg=name)
  assert peft_files.base_of(tmp_path / "out" / "adapter") == str(imported / "model")
  merged = merge_adapters(policy.weights(), policy.spec)
  for start in (load(init=tmp_path / "out"), load(model__path=tmp_path / "out" / "model")):
    assert start.spec.lora is None and start.params.keys() == merged.keys()
    for name, weight in merged.items():
      np.testing.assert_allclose(start.params[name], weight, atol=1e-6, err_msg=name)


def test_training_begins_with_the_adapters_merged(sources):
  """All weights, or fresh adapters beside the merged base; the adapters that came in are not trained further."""
  policy = load(model__adapter=sources[1])
  merged = merge_adapters(policy.weights(), policy.spec)
  for settings, part in (({}, "params"), ({"lora.rank": "2", "lora.base_dtype": "float32"}, "frozen")):
    config = configs.load("smoke", {"model.adapter": str(sources[1]), **settings})
    start = build_policy.load_policy(config, to_train=True)
    weights = start.params if part == "params" else start.frozen.weights
    assert weights.keys() == merged.keys()
    for name, weight in merged.items():
      np.testing.assert_array_equal(weights[name], weight, err_msg=name)


@pytest.mark.slow
def test_a_policy_with_adapters_samples_what_it_scores(sources):
  policy = jr.load_policy(sources[1])
  [[sample]] = policy.generate(["5*7=?"], max_tokens=6)
  [score] = policy.score([("5*7=?", sample)])
  np.testing.assert_allclose(score.token_logp, sample.token_logp, atol=1e-4)
  [of_base] = jr.load_policy(sources[0]).score([("5*7=?", sample)])
  assert np.abs(np.subtract(of_base.token_logp, score.token_logp)).max() > 0.01


@pytest.mark.slow
def test_a_run_with_lora_is_exported_for_the_base_that_it_began_with(sources, tmp_path, capsys):
  """Its frozen weights were rounded to bfloat16, so that the adapter's base is to be loaded like that."""
  options = {"model__path": sources[0], "lora__rank": 2, "sft__optim__lr": 0.01, "sft__steps": 2}
  assert run_smoke("sft", tmp_path / "sft", **options) == 0
  code, summary = export(tmp_path / "out", f"--config.init={tmp_path / 'sft'}", "--config.export.dtype=bfloat16")
  assert code == 0 and max(summary["reread"], summary["adapter_reread"]) < 1e-4 < summary["difference"]
  assert 0 < summary["kept_of_training"] < 1 and summary["trained_since"] == str(sources[0])
  assert f"its base is {sources[0]}, in bfloat16)" in capsys.readouterr().out
  assert peft_files.base_of(tmp_path / "out" / "adapter") == str(sources[0])
  policy, again = load(init=tmp_path / "sft"), load(model__adapter=tmp_path / "out" / "adapter")
  assert again.spec == dataclasses.replace(
    policy.spec, lora=dataclasses.replace(policy.spec.lora, base_dtype="float32")
  )
  for name, weight in policy.params.items():
    np.testing.assert_array_equal(again.params[name], weight, err_msg=name)


def test_export_writes_what_is_asked_for(sources, tmp_path):
  start = f"--config.model.adapter={sources[1]}"
  code, summary = export(tmp_path / "a", start, "--config.export.lora=adapter")
  assert code == 0 and summary["adapter_reread"] < 1e-4 and summary["reread"] is summary["difference"] is None
  assert (tmp_path / "a" / "adapter").is_dir() and not (tmp_path / "a" / "model").exists()
  assert not (tmp_path / "a" / "policy.json").exists()
  code, summary = export(tmp_path / "m", start, "--config.export.lora=merged", "--config.export.dtype=bfloat16")
  assert code == 0 and summary["adapter_reread"] is None and summary["reread"] < 1e-4 < summary["difference"]
  assert not (tmp_path / "m" / "adapter").exists()


def test_export_of_a_policy_without_adapters_writes_none(sources, tmp_path, capsys):
  code, summary = export(tmp_path / "plain", f"--config.model.path={sources[0]}")
  assert code == 0 and summary["adapter_reread"] is None and not (tmp_path / "plain" / "adapter").exists()
  assert export(tmp_path / "w", f"--config.model.path={sources[0]}", "--config.export.lora=adapter")[0] == 2
  assert "config.export.lora = 'adapter': the policy has no adapters; take merged" in capsys.readouterr().err


def test_adapters_that_differ_when_read_again_are_not_finished(sources, tmp_path, capsys, monkeypatch):
  plain = peft_files.save

  def scrambled(folder, params, *rest):
    plain(folder, params | {"q_lora_b": params["q_lora_b"] * 1.5}, *rest)

  monkeypatch.setattr(peft_files, "save", scrambled)
  assert export(tmp_path / "o", f"--config.model.adapter={sources[1]}")[0] == 4
  assert f"{tmp_path}/o/adapter: read again, its log-probabilities differ by" in capsys.readouterr().err


def test_the_base_that_an_exported_adapter_names(tmp_path):
  snapshot = tmp_path / "models--ORG--A-b.1" / "snapshots" / "0a1b"
  for folder in (snapshot, tmp_path / "runs" / "m" / "model"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")

  def base_of_run(start):
    return hf_models._base_of_adapters({"run": str(tmp_path / "runs" / "sft"), "start": start})

  model = {"model": str(tmp_path / "runs" / "m" / "model")}
  assert hf_models._base_of_adapters(model | {"adapter": "/a"}) == base_of_run(model) == (model["model"], "")
  assert base_of_run({"model": str(snapshot)}) == ("ORG/A-b.1", "0a1b")
  assert base_of_run({"model": "/gone/m/model"}) == (model["model"], "")  # moved together with the run
  for start in (model | {"adapter": "/a"}, {"run": "/s", "start": model}, {"seed": 0}, {"model": "/gone"}):
    assert base_of_run(start) == ("", "")
  words = "its base has no Hugging Face directory of its own: export what the training of the adapters began with"
  for start, place in (
    (model | {"adapter": "/a"}, f", {model['model']} with /a"),
    ({"run": "/s"}, ", /s"),
    (model, f", {model['model']}"),
    ({}, ""),
  ):
    assert hf_models._base_in_words({"start": start}, "", TINY) == words + place
  assert hub.name_of_folder("gs://b/model") == ("gs://b/model", "")


def edit(**config):
  def change(base, adapter):
    file = adapter / peft_files.ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | config))

  return change


BAD = {
  "dora": (
    edit(use_dora=True),
    {},
    "config.model.adapter: .*adapter_config.json: use_dora = True is not computed here",
  ),
  "no base": (
    edit(base_model_name_or_path=None),
    {},
    "config.model.adapter: .*names no base .*name it as config.model.pa",
  ),
  "base is gone": (edit(base_model_name_or_path="/gone"), {}, "config.model.adapter: /gone/config.json: can't be read"),
  "model": (
    lambda base, adapter: None,
    {"model.adapter": "{base}"},
    "base/adapter_config.json: can't be read .*name a PEFT",
  ),
  "swapped": (
    lambda base, adapter: None,
    {"model.path": "{adapter}", "model.adapter": ""},
    "adapter: is a PEFT directory; na",
  ),
  "run": (
    lambda base, adapter: (adapter / "policy.json").touch(),
    {},
    "is a run directory, and a PEFT directory is wanted",
  ),
  "both": (lambda base, adapter: None, {"init": "x"}, "config.init and config.model.adapter are both set"),
}


@pytest.mark.parametrize("case", BAD)
def test_import_refuses(sources, tmp_path, capsys, case):
  change, more, words = BAD[case]
  base, adapter = (shutil.copytree(source, tmp_path / source.name) for source in sources)
  edit(base_model_name_or_path=str(base))(base, adapter)
  change(base, adapter)
  options = {"model.adapter": str(adapter)} | {key: v.format(base=base, adapter=adapter) for key, v in more.items()}
  argv = [f"--config.{key}={value}" for key, value in options.items()]
  assert run("import", "--config=base", f"--workdir={tmp_path / 'run'}", *argv) == 2
  stderr = capsys.readouterr().err
  assert re.search(words, stderr) and stderr.count("\n") == 1, stderr
  assert not (tmp_path / "run" / "policy.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_merged_export_is_what_merge_and_unload_makes(sources, tmp_path):
  """With rslora, and ranks and alphas of some modules; what is written as an adapter gives peft the same logits."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  peft = pytest.importorskip("peft")
  torch.manual_seed(0)

  def base():
    return transformers.AutoModelForCausalLM.from_pretrained(sources[0], dtype=torch.float32)

  config = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules="all-linear",
    use_rslora=True,
    rank_pattern={"up_proj": 4, r"layers\.1\.self_attn\.q_proj": 1},
    alpha_pattern={"down_proj": 2},
    task_type="CAUSAL_LM",
  )
  theirs = peft.get_peft_model(base(), config)
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      if "lora_B" in name:
        weight.normal_(0, 0.1)
  theirs.save_pretrained(tmp_path / "adapter")
  out = tmp_path / "out"
  assert export(out, f"--config.model.adapter={tmp_path / 'adapter'}")[0] == 0
  tokens = torch.arange(40).reshape(2, 20)
  with torch.no_grad():
    expected = theirs.eval()(tokens).logits.numpy()
    again = peft.PeftModel.from_pretrained(base(), out / "adapter").eval()(tokens).logits.numpy()
    plain = base().eval()(tokens).logits.numpy()
  np.testing.assert_allclose(again, expected, atol=1e-4)
  assert np.abs(expected - plain).max() > 0.01
  merged = theirs.merge_and_unload().state_dict()
  ours = hf_weights.open_model(out / "model").tensors
  assert len(ours) == len(merged)
  for name, tensor in ours.items():
    np.testing.assert_allclose(tensor.read(0, tensor.shape[0]), merged[name].numpy(), atol=1e-6, err_msg=name)
