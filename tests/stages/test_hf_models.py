"""Models through the stages: import, training from them, export; refusals, and parity with transformers when slow."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from helpers import family_models, family_tokenizers
from helpers.command_line import run
from helpers.family_models import MODELS
from helpers.hf_directories import (
  ENDLESS,
  PADDED,
  SPECS,
  STYLES,
  USER,
  tensors_of,
  write_model,
  write_tokenizer,
  write_weights,
)
from helpers.policies import for_texts_of, logits_of, read_checkpoint
from helpers.rollouts import NO_STOPS, row_keys
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.data import hub
from jaxrlvr.device import checkpoint, sharding
from jaxrlvr.model import hf_weights
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Spec
from jaxrlvr.model.weight_table import count_weights
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.stages import build_policy, hf_models, origins
from jaxrlvr.stages.links import read_links
from jaxrlvr.stages.run_directory import read_config
from jaxrlvr.text.hf_tokenizer import HuggingFace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """(Hugging Face directory, run directory that the stage import made of it)."""
  base = tmp_path_factory.mktemp("models")
  source = write_model(base / "hf")
  assert run("import", "--config=base", f"--workdir={base / 'run'}", f"--config.model.path={source}") == 0
  return source, base / "run"


def test_import_stands_alone(imported, tmp_path):
  source, workdir = imported
  assert json.loads((workdir / "summary.json").read_text())["finished"]
  moved = shutil.copytree(workdir, tmp_path / "moved")
  direct = build_policy.load_policy(configs.load("smoke", {"model.path": str(source)}))
  policy = build_policy.load_policy(configs.load("smoke", {"init": str(moved)}))
  assert policy.spec == direct.spec and policy.origin["digests"] == direct.origin["digests"]
  assert policy.spec.real_vocab == policy.tokenizer.vocab_size < policy.spec.vocab == PADDED
  assert policy.tokenizer.render(USER) == HuggingFace(source).render(USER)
  for name, w in direct.params.items():
    np.testing.assert_array_equal(w, policy.params[name])
  assert run("import", "--config=base", f"--workdir={workdir}", f"--config.model.path={source}") == 0


def test_padded_rows_are_never_scored(imported):
  policy = build_policy.load_policy(configs.load("smoke", {"init": str(imported[1])}))
  known, spec = policy.spec.real_vocab, policy.spec
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, known, (2, 12)))
  positions = jnp.broadcast_to(jnp.arange(12), tokens.shape)
  scores = jax.jit(score, static_argnums=4)(policy.params, tokens, positions, jnp.ones_like(tokens), spec)
  logits = logits_of(policy.params, tokens, spec)[:, :-1]
  assert np.mean(np.argmax(logits, -1) >= known) > 0.5
  logp = jax.nn.log_softmax(logits[..., :known])
  np.testing.assert_allclose(scores.logp_BT, jnp.take_along_axis(logp, tokens[:, 1:, None], -1)[..., 0], atol=1e-5)
  np.testing.assert_allclose(scores.entropy_BT, -jnp.sum(jnp.exp(logp) * logp, -1), atol=1e-4)
  np.testing.assert_allclose(scores.certainty_BT, -jnp.mean(logp, -1) - np.log(known), atol=1e-4)


def test_a_chain_may_start_from_a_model():
  c = ConfigDict(configs.load("smoke").to_dict())
  c.model.path = "a/model"
  c.chain = ({"name": "one", "stage": "sft"}, {"name": "two", "stage": "rl", "init": "one"})
  links = [link.config for link in read_links(c, Path("/w"), ("sft", "rl"))]
  assert [(link.model.path, link.init) for link in links] == [("a/model", ""), ("", "/w/one")]


def test_another_chat_template_is_another_origin(imported, tmp_path):
  folder = shutil.copytree(imported[0], tmp_path / "m")
  (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
  one, two = (
    build_policy.load_policy(configs.load("smoke", {"model.path": str(f)})).origin for f in (imported[0], folder)
  )
  assert {name for name in one["digests"] if one["digests"][name] != two["digests"][name]} == {"tokenizer"}


def test_import_notices_other_weights(imported, tmp_path, capsys):
  source, workdir = imported
  other = shutil.copytree(source, tmp_path / "other")
  file = other / "model-00001-of-00002.safetensors"
  tensors = dict(safetensors.load_file(file))
  name = min(tensors)
  tensors[name] = tensors[name] + np.float32(1e-3)
  safetensors.save_file(tensors, file)
  assert run("import", "--config=base", f"--workdir={workdir}", f"--config.model.path={other}") == 2
  assert "origin are not those the run began with" in capsys.readouterr().err


def nan(folder):
  tensors = tensors_of(dataclasses.replace(SPECS["llama"], vocab=PADDED, width=16, head_dim=4))
  tensors["model.norm.weight"][3] = np.nan
  safetensors.save_file(tensors, folder / "model.safetensors")
  (folder / hf_weights.INDEX).unlink()


def edit(**config):
  def change(folder):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))

  return change


def pipe(folder):
  (folder / "generation_config.json").unlink()
  os.mkfifo(folder / "generation_config.json")


BAD = {
  "nan": (nan, {}, "model.norm.weight holds a value that is not finite"),
  "config": (edit(hidden_act="gelu"), {}, "config.model.path: .*config.json: hidden_act"),
  "tokenizer": (lambda f: (f / "tokenizer.json").unlink(), {}, "holds neither tokenizer.json nor tokenizer.model"),
  "rows": (lambda f: write_weights(f, SPECS["llama"], shards=2), {}, "tokens, but the policy has 24 rows"),
  "switch": (lambda f: None, {"model.think": "on"}, "config.model.think = 'on': .*no chat template that reads"),
  "pipe": (pipe, {}, "generation_config.json: is no regular file"),
  "both": (lambda f: None, {"init": "x"}, "config.init and config.model.path are both set"),
  "think": (lambda f: None, {"model.think": "yes"}, "wanted one of template, on, off"),
  "date": (lambda f: None, {"model.date": "3 February 2025"}, "wanted a date as YYYY-MM-DD, or nothing"),
  "dtype": (lambda f: None, {"model.dtype": "float16"}, "wanted one of float32, bfloat16"),
}


@pytest.mark.parametrize("case", BAD)
def test_import_refuses(imported, tmp_path, capsys, case):
  change, more, words = BAD[case]
  folder = shutil.copytree(imported[0], tmp_path / "m")
  change(folder)
  extra = [f"--config.{key}={value}" for key, value in more.items()]
  workdir = tmp_path / "run"
  assert run("import", "--config=base", f"--workdir={workdir}", f"--config.model.path={folder}", *extra) == 2
  stderr = capsys.readouterr().err
  assert re.search(words, stderr) and stderr.count("\n") == 1
  assert not (workdir / "policy.json").is_file()
  assert run("evaluate", "--config=smoke", f"--workdir={tmp_path / 'e'}", f"--config.init={workdir}") == 2
  assert "config.init = " in capsys.readouterr().err


def test_records_of_a_run_that_cannot_be_read_are_refused(tmp_path):
  shape = dataclasses.asdict(SPECS["llama"])
  for name, value in (("layers", -1), ("heads", 0), ("head_dim", 2.0), ("mlp", True), ("rope_theta", None)):
    logbook.write_json(tmp_path / "policy.json", shape | {name: value})
    with pytest.raises(
      InputError, match=rf"policy.json: is no policy of this version .*{name} = .*: wanted a positive"
    ):
      origins.read_recorded_spec(tmp_path / "policy.json")
  for name, read in (
    ("policy.json", lambda f: origins.read_recorded_spec(f / "policy.json")),
    ("config.json", read_config),
  ):
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(InputError, match=f"{name}: .*RecursionError"):
      read(tmp_path)


def test_stages_without_a_model_are_told(tmp_path, capsys):
  assert run("import", "--config=base", f"--workdir={tmp_path / 'a'}") == 2
  assert "config.model.path is empty" in capsys.readouterr().err
  assert run("export", "--config=base", f"--workdir={tmp_path / 'b'}") == 2
  assert "config.init is empty" in capsys.readouterr().err
  assert run("import", "--config=base", f"--workdir={tmp_path / 'c'}", "--config.model.path=/no/such") == 2
  assert "config.model.path: /no/such/config.json: can't be read" in capsys.readouterr().err


def test_hub_names_resolve_offline_first(monkeypatch, tmp_path):
  calls, cached = [], tmp_path / "cache"
  cached.mkdir()

  def snapshot_download(repository, repo_type, allow_patterns, local_files_only, revision=None):
    calls.append((repository, repo_type, local_files_only, revision))
    if not local_files_only:
      raise OSError("no route to the hub")
    return str(cached)

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
  (cached / "model-00001-of-00002.safetensors").touch()
  message = (
    r"^Qwen/Qwen2.5-1.5B is neither in the hub's cache nor to be fetched .*no route to the hub\); name a folder that "
    r"exists, as Qwen2.5-1.5B, which `hf download Qwen/Qwen2.5-1.5B --local-dir Qwen2.5-1.5B` makes"
  )
  with pytest.raises(InputError, match=message):
    hub.model_folder("Qwen/Qwen2.5-1.5B")  # half of it is in the cache
  (cached / "model-00002-of-00002.safetensors").touch()
  calls.clear()
  assert hub.model_folder("Qwen/Qwen2.5-1.5B@v1.0") == str(cached)
  assert calls == [("Qwen/Qwen2.5-1.5B", "model", True, "v1.0")]
  assert hub.model_folder(str(tmp_path)) == str(tmp_path) and hub.model_folder("gs://a/b") == "gs://a/b"
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(InputError, match="huggingface_hub is not installed"):
    hub.model_folder("Qwen/Qwen2.5-1.5B")


def test_export_is_read_back_and_serves_as_init(imported, tmp_path, capsys):
  out = tmp_path / "out"
  options = ("--config.export.shard_gib=0.000005", "--config.mesh.data=2", "--config.mesh.tensor=2")
  assert run("export", "--config=smoke", f"--workdir={out}", f"--config.init={imported[1]}", *options) == 0
  assert str(out / "model") in capsys.readouterr().out
  got, want = hf_weights.open_model(out / "model"), hf_weights.open_model(imported[0])
  assert got.spec == want.spec and len(got.files) > 2
  for name, tensor in want.tensors.items():
    half = tensor.read(0, tensor.shape[0]).astype(got.tensors[name].dtype)
    np.testing.assert_array_equal(got.tensors[name].read(0, tensor.shape[0]), half, err_msg=name)
  policy = build_policy.load_policy(configs.load("smoke", {"init": str(out)}))
  assert policy.tokenizer.render(USER) == HuggingFace(imported[0]).render(USER)
  assert policy.tokenizer.eos_ids == HuggingFace(imported[0]).eos_ids
  source = json.loads((imported[0] / "generation_config.json").read_text())
  tokens = {"bos_token_id": policy.tokenizer.bos_id, "pad_token_id": policy.tokenizer.pad_id}
  ends = {"eos_token_id": list(policy.tokenizer.eos_ids)}  # of which config.json names one
  assert json.loads((out / "model" / "generation_config.json").read_text()) == source | tokens | ends
  assert json.loads((out / "model" / "config.json").read_text())["pad_token_id"] is None


@pytest.mark.parametrize("listed", [[7, 5], [5], 5, None])
def test_what_a_generation_config_holds_is_exported(tmp_path, listed):
  file = tmp_path / "generation_config.json"
  sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
  entries = sampling | {"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": listed}
  file.write_text(json.dumps(entries))
  hf_models._write_generation_config(file, {"bos_token_id": None, "eos_token_id": [5, 7]}, pad_id=5)
  ends = listed if listed == [7, 5] else [5, 7]
  assert json.loads(file.read_text()) == entries | {"eos_token_id": ends}
  file.write_text("{}")
  hf_models._write_generation_config(file, {"bos_token_id": None, "eos_token_id": 5}, pad_id=6)
  assert json.loads(file.read_text()) == {"eos_token_id": 5, "pad_token_id": 6}


@pytest.fixture(scope="module")
def trained(imported, tmp_path_factory):
  """(run directory, weights before, weights after) of a training stage that changed a third of the weights a little."""
  workdir = tmp_path_factory.mktemp("trained") / "rl"
  config = configs.load("smoke", {"init": str(imported[1])})
  policy = build_policy.load_policy(config)
  rng = np.random.default_rng(1)
  before = jax.device_get(policy.params)
  grown = {name: (1 + 2e-3 * (rng.random(w.shape) < 1 / 3)).astype(np.float32) for name, w in before.items()}
  after = {name: jax.device_put(w * grown[name], w.sharding) for name, w in policy.params.items()}
  workdir.mkdir()
  saved = checkpoint.Checkpoints(workdir)
  saved.save(5, after, {"counts": jnp.zeros(1)}, {"origin": policy.origin})
  saved.close()
  build_policy.write_policy_files(config, policy, workdir)
  logbook.write_json(workdir / "summary.json", {"steps": 5})
  return workdir, before, jax.device_get(after)


def test_export_tells_how_much_of_the_training_rounding_keeps(imported, trained, tmp_path, capsys):
  workdir, before, after = trained
  options = ("--config=smoke", f"--config.init={workdir}", "--config.export.dtype=bfloat16")
  assert run("export", *options, f"--workdir={tmp_path / 'out'}") == 0
  stdout, summary = capsys.readouterr().out, json.loads((tmp_path / "out" / "summary.json").read_text())
  flat_before, flat_after = (np.concatenate(list(map(np.ravel, one.values()))) for one in (before, after))
  moved = flat_before != flat_after
  kept = np.mean(flat_before[moved].astype(jnp.bfloat16) != flat_after[moved].astype(jnp.bfloat16))
  assert 0.2 < np.mean(moved) < 0.4 and 0.1 < kept < 0.9
  assert summary["moved_in_training"] == pytest.approx(np.mean(moved))
  assert summary["kept_of_training"] == pytest.approx(kept) and summary["trained_since"] == str(imported[1] / "model")
  assert summary["reread"] < 1e-5 and 1e-4 < summary["difference"] < 1  # the probe is of the policy as trained
  assert f"{kept:.2%} of these still differ after rounding to bfloat16; to keep all of it take" in stdout
  assert "config.export.dtype=float32" in stdout and f"trained {summary['difference']:.2g} nats" in stdout
  assert capsys.readouterr().err == ""


def test_what_training_began_with_is_the_last_that_is_there_unchanged(imported, trained, caplog):
  workdir, before, after = trained
  policy = build_policy.load_policy(configs.load("smoke", {"init": str(workdir)}))
  model = policy.origin["start"]

  def start(origin):
    weights = build_policy.load_starting_weights(policy._replace(origin={"start": origin}))
    return weights and (weights[0], jax.device_get(weights[1]))

  place, params = start(policy.origin)
  assert place == str(workdir) and all(np.array_equal(params[name], after[name]) for name in after)
  assert caplog.text == ""
  for run_dir, warning in (("/nowhere", "/nowhere: is gone"), (str(workdir), "has changed since")):
    place, params = start({"run": run_dir, "digests": {}, "start": model})
    assert place == str(imported[1] / "model") and all(np.array_equal(params[name], before[name]) for name in before)
    assert warning in caplog.text
  assert start({"seed": 0}) is None and start({**model, "digests": {}}) is None
  assert hf_models.movement_in_training(policy, policy.params, "float32").kept_of_training is None


def test_export_that_differs_is_not_finished(imported, tmp_path, capsys, monkeypatch):
  plain = hf_weights.save

  def scrambled(folder, params, *rest):
    plain(folder, params | {"final_norm": params["final_norm"] * 1.1}, *rest)

  monkeypatch.setattr(hf_weights, "save", scrambled)
  assert run("export", "--config=smoke", f"--workdir={tmp_path / 'o'}", f"--config.init={imported[1]}") == 4
  assert "read again, its log-probabilities differ" in capsys.readouterr().err
  assert not (tmp_path / "o" / "summary.json").is_file() and not (tmp_path / "o" / "policy.json").is_file()


MEASURE = """
import re, sys
import jax
from jaxrlvr.device import sharding
from jaxrlvr.model import hf_weights
from jaxrlvr.model.weight_table import count_weights
from jaxrlvr.sampling import Sampling, sample
model = hf_weights.open_model(sys.argv[1])
mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
status = lambda key: int(re.search(key + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(8), out_shardings=sharding.named_sharding(mesh))())
before = status("VmRSS")
params = jax.block_until_ready(hf_weights.load(model, model.spec, mesh))
largest = max(t.row_bytes * t.shape[0] for t in model.tensors.values())
print(status("VmHWM") - before - 4 * count_weights(model.spec), largest)
"""


@pytest.mark.slow
def test_memory_stays_far_below_the_model(tmp_path):
  """Imports a bfloat16 checkpoint of 0.5 GB (of 2 with JAXRLVR_TEST_GB=2), and loads it onto 8 devices."""
  gigabytes = float(os.environ.get("JAXRLVR_TEST_GB", "0.5"))
  width = 2048 if gigabytes >= 1 else 1024
  spec = Spec(vocab=64_000, width=width, layers=1, heads=16, kv_heads=4, head_dim=width // 16, mlp=4 * width)
  layer = count_weights(dataclasses.replace(spec, layers=2)) - count_weights(spec)
  spec = dataclasses.replace(spec, layers=int((gigabytes * 5e8 - count_weights(spec)) // layer))
  source = tmp_path / "hf"
  noise = np.random.default_rng(0).integers(0, 0x4000, 1 << 24, np.uint16).view(jnp.bfloat16)  # from 0 to 2, finite
  shapes = {tensor.hf_name: tensor.shape for tensor in hf_weights.named_tensors(spec)}
  write_weights(source, spec, {name: np.resize(noise, shape) for name, shape in shapes.items()}, shards=4)
  write_tokenizer(source)
  env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  workdir = tmp_path / "run"
  command = [sys.executable, "-m", "jaxrlvr.cli", "import", f"--workdir={workdir}", f"--config.model.path={source}"]
  code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
  code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
  began = time.monotonic()
  process = subprocess.run([sys.executable, "-c", code, *command], env=env, check=True, capture_output=True, text=True)
  took, imported = time.monotonic() - began, int(process.stdout.split()[-1])
  began = time.monotonic()
  command = [sys.executable, "-c", MEASURE, workdir / "model"]
  process = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
  more, largest = map(int, process.stdout.split())
  more, largest, imported = more >> 20, largest >> 20, imported >> 20
  written = 2 * count_weights(spec) / 1e9
  print(
    f"{written:.2f} GB: import peaks at {imported} MiB ({took:.0f} s); loading peaks {more} MiB over "
    f"the arrays, the largest tensor has {largest} MiB ({time.monotonic() - began:.0f} s)"
  )
  assert imported < 1024 and more < largest + 512


@pytest.mark.parametrize(
  ("stage", "option", "file"),
  [
    ("import", "--config.model.path={0}", "model/model-0000[12]-of-00002.safetensors"),
    ("export", "--config.init={1}", "model/model.safetensors"),
  ],
)
def test_a_full_disk_is_told_in_one_line(imported, small_disk, capsys, stage, option, file):
  small = small_disk("40k")
  assert run(stage, "--config=base", f"--workdir={small / 'w'}", option.format(*imported)) == 4
  stderr = capsys.readouterr().err
  message = (
    rf"jaxrlvr: {small}/w/{file}: the disk is full \(No space .*: [\d,]+ bytes to write, 0 bytes free\); free space"
  )
  assert re.match(message, stderr) and stderr.count("\n") == 1, stderr


def their_logits(folder, tokens):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
  with torch.no_grad():
    return loaded.eval()(torch.asarray(tokens)).logits.numpy()


KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 5e5}
BY_KIND = {
  "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
  "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
}
FAMILIES = {
  "gemma3": ("Gemma3", dict(head_dim=16, num_key_value_heads=1, sliding_window=7, sliding_window_pattern=2)),
  "gemma3-untied": (
    "Gemma3",
    dict(
      head_dim=12,
      query_pre_attn_scalar=37,
      tie_word_embeddings=False,
      rope_parameters=BY_KIND,
      layer_types=["sliding_attention", "full_attention", "full_attention"],
      sliding_window=9,
    ),
  ),
  "olmo2": ("Olmo2", dict(num_key_value_heads=4)),
  "olmo2-tied": ("Olmo2", dict(tie_word_embeddings=True, head_dim=12, rope_parameters=YARN)),
  "olmo3": ("Olmo3", dict(num_hidden_layers=5, sliding_window=7, rope_scaling=YARN)),
  "olmo3-tied": (
    "Olmo3",
    dict(
      num_key_value_heads=1,
      tie_word_embeddings=True,
      rope_parameters=BY_KIND,
      layer_types=["full_attention", "sliding_attention", "full_attention"],
      sliding_window=5,
    ),
  ),
  "llama": ("Llama", dict(tie_word_embeddings=False, head_dim=8, rope_theta=5e5)),
  "llama-tied": ("Llama", dict(tie_word_embeddings=True)),
  "qwen2": ("Qwen2", dict(tie_word_embeddings=False)),
  "qwen2-tied": ("Qwen2", dict(tie_word_embeddings=True)),
  "qwen3": ("Qwen3", dict(head_dim=12, tie_word_embeddings=True)),
  "qwen3-yarn": ("Qwen3", dict(head_dim=12, tie_word_embeddings=True, rope_parameters=YARN)),
  "qwen3-window": ("Qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=9, max_window_layers=1)),
  "mistral": ("Mistral", dict(sliding_window=7, head_dim=12)),
  "mistral-null": ("Mistral", dict(sliding_window=None, tie_word_embeddings=True)),
  "ministral": ("Ministral", dict(head_dim=8, sliding_window=7, layer_types=KINDS)),
  "ministral3": ("Ministral3", dict(head_dim=8, rope_parameters=YARN | dict(llama_4_scaling_beta=0.3))),
  "phi3": ("Phi3", dict(sliding_window=11, num_key_value_heads=4)),
  "phi3-mini": (
    "Phi3",
    dict(
      tie_word_embeddings=True,
      partial_rotary_factor=0.5,
      original_max_position_embeddings=16,
      rope_scaling=dict(rope_type="longrope", short_factor=[1.0, 1.5], long_factor=[1.5, 4.0]),
    ),
  ),
  "smollm3": ("SmolLM3", dict(no_rope_layer_interval=3)),
  "smollm3-window": (
    "SmolLM3",
    dict(no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=5, tie_word_embeddings=False),
  ),
}
SCALED = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
  "rope_theta": 5e5,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", ["10KB", "1GB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_both_ways(tmp_path, family, size):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  name, options = FAMILIES[family]
  shape = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,
    pad_token_id=0,
  )
  if family == "llama":
    shape["rope_parameters"] = SCALED
  torch.manual_seed(0)
  of_model = getattr(transformers, f"{name}ForCausalLM")
  theirs = of_model(of_model.config_class(**shape | options))
  with torch.no_grad():
    for key, value in theirs.named_parameters():  # norms and biases are ones and zeros at first
      value.add_(torch.randn_like(value) * 0.1 if "norm" in key or "bias" in key else 0)
  theirs.save_pretrained(tmp_path / "in", max_shard_size=size)
  tokens = np.random.default_rng(0).integers(0, 96, (2, 40))
  want = their_logits(tmp_path / "in", tokens)
  model = hf_weights.open_model(tmp_path / "in")
  assert (len(model.files) > 1) == (size == "10KB") and model.spec.max_positions == 128
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  params = hf_weights.load(model, model.spec, mesh)
  single = jax.tree.map(jnp.asarray, jax.device_get(params))
  spec = for_texts_of(model.spec, tokens.shape[1])
  np.testing.assert_allclose(jax.jit(logits_of, static_argnums=2)(single, tokens, spec), want, atol=1e-4)
  out = tmp_path / "out"
  out.mkdir()
  (out / "config.json").write_text(json.dumps(hf_weights.config_of(model.spec, "float32", {"eos_token_id": [1, 2]})))
  hf_weights.save(out, params, model.spec, "float32", 10_000 if size == "10KB" else 1 << 30)
  np.testing.assert_array_equal(their_logits(out, tokens), want)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_greedy_samples_equal_generate(tmp_path, name):
  """The prompt exceeds the windows, and the length up to which LongRoPE takes its short list."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  spec, params = read_checkpoint(family_models.write(tmp_path, name))
  prompt, new_tokens = family_models.texts(), 24
  length = np.array([prompt.shape[1]], np.int32)
  spec = for_texts_of(spec, prompt.shape[1] + new_tokens)
  s = Sampling(group=1, max_tokens=new_tokens, eos_ids=(), temperature=0.0, blocks=3)
  sampled = np.asarray(sample(params, prompt, length, row_keys([1], 1), NO_STOPS, spec, s).tokens_BT)[0]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  tokens = torch.asarray(prompt).long()
  options = dict(max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, output_logits=True)
  output = theirs.eval().generate(
    tokens, attention_mask=torch.ones_like(tokens), return_dict_in_generate=True, **options
  )
  margins = [float(-np.diff(np.sort(logits[0].numpy())[:-3:-1])[0]) for logits in output.logits]
  safe = np.cumprod(np.array(margins) > 1e-3).astype(bool)
  assert safe.mean() > 0.5
  np.testing.assert_array_equal(sampled[safe], output.sequences[0, prompt.shape[1] :].numpy()[safe])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["chatml", "llama3"])
def test_prompts_equal_transformers(tmp_path, style):
  transformers = pytest.importorskip("transformers")
  template = STYLES[style]["config"]["chat_template"].replace("strftime_now is defined", "false")  # theirs has a clock
  write_tokenizer(tmp_path, style, chat_template=template)
  ours, theirs = HuggingFace(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
  turns = ({"role": "system", "content": "Add ½."}, *USER, {"role": "assistant", "content": "<think>\n84</think> 84"})
  for messages in (USER, turns, (*turns, *USER)):
    assert ours.render(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
  if style == "chatml":
    off = theirs.apply_chat_template(USER, add_generation_prompt=True, enable_thinking=False)["input_ids"]
    assert ours.render(USER, False) == off != ours.render(USER)
  text = "5*7=35 <think> naïve </think>"
  assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("family", "style"), [("llama", "llama3"), ("qwen3", "chatml"), *((name, "chatml") for name in MODELS)]
)
def test_grpo_from_an_imported_model_and_out_again(tmp_path, family, style):
  transformers = pytest.importorskip("transformers")
  if family in MODELS:
    write_tokenizer(tmp_path / "hf", style)
    source = family_models.write(tmp_path / "hf", family, vocab_size=PADDED)
  else:
    source = write_model(tmp_path / "hf", family, style)
  imported, trained, out = tmp_path / "run", tmp_path / "rl", tmp_path / "out"
  assert run("import", "--config=base", f"--workdir={imported}", f"--config.model.path={source}") == 0
  shutil.rmtree(source)
  options = ("--config.rl.prompt_tokens=160", "--config.rl.steps=2", "--config.rl.optim.lr=0.01")
  assert run("rl", "--config=smoke", f"--workdir={trained}", f"--config.init={imported}", *options) == 0
  rows = logbook.read_jsonl(trained / "metrics.jsonl")
  assert len(rows) == 3 and all(np.isfinite(row["loss"]) for row in rows[1:])
  assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in rows[1:])
  shutil.rmtree(imported)  # what was trained stands alone
  extra = ("--config.export.dtype=float32", "--config.mesh.fsdp=2")
  assert run("export", "--config=smoke", f"--workdir={out}", f"--config.init={trained}", *extra) == 0
  policy = build_policy.load_policy(configs.load("smoke", {"init": str(trained)}))
  # For a Qwen2, AutoTokenizer splits texts by a pattern of its own, which is not that of the tests' tokenizer.
  reader = transformers.PreTrainedTokenizerFast if "qwen2" in family else transformers.AutoTokenizer
  tokenizer = reader.from_pretrained(out / "model")
  ids = policy.tokenizer.render(USER)
  template = STYLES[style]["config"]["chat_template"]
  if "strftime_now" not in template:
    assert tokenizer.apply_chat_template(USER, add_generation_prompt=True)["input_ids"] == ids
  want = logits_of(policy.params, jnp.asarray([ids]), policy.spec)
  np.testing.assert_allclose(their_logits(out / "model", [ids]), want, atol=1e-4)
  loaded = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
  assert set(loaded.generation_config.eos_token_id) == set(policy.tokenizer.eos_ids)


# Families of family_tokenizers; of each the name of a model in family_models, and changes of its config.json.
ABSENT = family_models.ABSENT
FAMILIES_WITH_MODELS = {
  "olmo2": ("mistral", dict(model_type="olmo2", head_dim=ABSENT, sliding_window=ABSENT)),
  "olmo3": ("mistral", dict(model_type="olmo3", head_dim=ABSENT, rope_parameters=ABSENT)),
  "gemma3": ("mistral", dict(model_type="gemma3_text", rope_parameters=ABSENT)),
  "qwen3": ("qwen3-window", {}),
  "smollm3": ("smollm3", {}),
  "ministral": ("ministral3", {}),
  "phi3": ("phi3", {}),
  "mistral": ("mistral", {}),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES_WITH_MODELS)
def test_a_familys_tokenizer_goes_in_and_out(tmp_path, name):
  transformers = pytest.importorskip("transformers")
  source, imported, out = tmp_path / "hf", tmp_path / "run", tmp_path / "out"
  model = family_tokenizers.write_family(source, name)
  eos = model.token_to_id(family_tokenizers.FAMILIES[name].config["eos_token"])
  model_name, changes = FAMILIES_WITH_MODELS[name]
  family_models.write(source, model_name, vocab_size=512, eos_token_id=eos, **changes)
  date = ["--config.model.date=2025-02-03"] if name == "smollm3" else []
  assert run("import", "--config=base", f"--workdir={imported}", f"--config.model.path={source}", *date) == 0
  assert run("export", "--config=smoke", f"--workdir={out}", f"--config.init={imported}", *date) == 0
  assert family_tokenizers.comparison().differences(out / "model") == []
  before, after = (transformers.GenerationConfig.from_pretrained(folder) for folder in (source, out / "model"))
  for key, value in before.to_dict().items():
    if value is not None and key != "transformers_version":
      assert after.to_dict()[key] == value, key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_built_in_policy_goes_out_and_in(tmp_path):
  transformers = pytest.importorskip("transformers")
  tokenizer, trained, out = tmp_path / "tokenizer", tmp_path / "pretrain", tmp_path / "out"
  assert run("tokenizer", "--config=smoke", f"--workdir={tokenizer}") == 0
  start = f"--config.tokenizer={tokenizer}"
  assert run("pretrain", "--config=smoke", f"--workdir={trained}", start, "--config.pretrain.steps=2") == 0
  assert run("export", "--config=smoke", f"--workdir={out}", f"--config.init={trained}") == 0
  policy = build_policy.load_policy(configs.load("smoke", {"model.path": str(out / "model")}))
  theirs = transformers.AutoTokenizer.from_pretrained(out / "model")
  ids = policy.tokenizer.render(USER)
  assert theirs.apply_chat_template(USER, add_generation_prompt=True)["input_ids"] == ids
  for text in ("<think>\n5*7=35\n</think>\n\\boxed{4}", " a  b ½"):
    assert theirs.encode(text, add_special_tokens=False) == policy.tokenizer.encode(text)
  want = logits_of(policy.params, jnp.asarray([ids]), policy.spec)
  np.testing.assert_allclose(their_logits(out / "model", [ids]), want, atol=1e-4)


def test_a_turns_end_that_ends_no_response_is_told_with_the_cure(tmp_path, caplog):
  write_tokenizer(tmp_path, chat_template=ENDLESS)
  build_policy.read_tokenizer(configs.load("smoke", {"tokenizer": str(tmp_path)}))
  assert f"{tmp_path}: the chat template ends an assistant's turn with <|im_start|>, which ends no" in caplog.text
  assert "take config.model.stop_tokens=<|im_start|>, or name it as eos_token" in caplog.text
  caplog.clear()
  build_policy.read_tokenizer(configs.load("smoke", {"tokenizer": str(tmp_path), "model.stop_tokens": "<|im_start|>"}))
  assert caplog.text == ""


def test_the_day_that_a_template_states_is_named_in_the_config(tmp_path, tokenizer):
  write_tokenizer(tmp_path, "llama3")
  dated = build_policy.read_tokenizer(configs.load("smoke", {"tokenizer": str(tmp_path), "model.date": "2025-02-03"}))
  assert "Today Date: 03 Feb 2025<" in dated.prompt_text(USER)
  built_in = tmp_path / "tokenizer.model"
  built_in.write_bytes(tokenizer._model.serialized_model_proto())
  with pytest.raises(InputError, match="config.model.date is set, but the built-in chat layout states no date"):
    build_policy.read_tokenizer(configs.load("smoke", {"tokenizer": str(built_in), "model.date": "2025-02-03"}))


def test_init_and_model_path_name_each_other(tmp_path):
  write_tokenizer(tmp_path / "hf")
  with pytest.raises(InputError, match="config.init = .*is a Hugging Face directory.*config.model.path="):
    build_policy.load_policy(configs.load("smoke", {"init": str(tmp_path / "hf")}))
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "policy.json").write_text("{}")
  with pytest.raises(InputError, match="config.model.path = .*is a run directory.*config.init="):
    build_policy.find_model(configs.load("smoke", {"model.path": str(tmp_path / "run")}))
