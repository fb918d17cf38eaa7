"""Runs with LoRA: chains of stages, what their checkpoints hold, how they resume, and where their base is found."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrlvr as jr
from helpers.command_line import metrics, run, run_smoke
from helpers.hf_directories import write_model, write_weights
from jaxrlvr.config import files as configs
from jaxrlvr.model import hf_weights, lora, weight_table
from jaxrlvr.stages import build_policy, origins

ROOT = Path(__file__).parents[2]
LORA = {"lora__rank": 2, "lora__targets": "q,down"}
NAMES = {"q_lora_a", "q_lora_b", "down_lora_a", "down_lora_b"}
RL = {"rl__reward": "random", "rl__kl_beta": 0.1, "rl__optim__lr": 0.01, "evaluate__every": 0} | {
  "rl__minibatch_problems": 4
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  """Run directories base (all weights trained), sft and rl, each with LoRA and from the one before it."""
  folder = tmp_path_factory.mktemp("lora")
  assert run_smoke("tokenizer", folder / "tokenizer") == 0
  assert run_smoke("pretrain", folder / "base", tokenizer=folder / "tokenizer", pretrain__steps=2) == 0
  assert run_smoke("sft", folder / "sft", init=folder / "base", sft__optim__lr=0.01, **LORA) == 0
  assert run_smoke("rl", folder / "rl", init=folder / "sft", rl__steps=2, **LORA, **RL) == 0
  return folder


def load(to_train=False, **changes):
  """Returns the policy of the smoke config with these keys, in which `__` stands for a dot."""
  config = configs.load("smoke", {key.replace("__", "."): str(value) for key, value in changes.items()})
  return build_policy.load_policy(config, to_train=to_train)


def meta(workdir, step):
  return json.loads(next((workdir / "checkpoints" / str(step) / "meta").rglob("metadata")).read_text())


def same(one, two):
  """Asserts that two dicts of arrays are equal bit for bit."""
  assert one.keys() == two.keys()
  for name in one:
    assert one[name].dtype == two[name].dtype
    np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_checkpoints_hold_adapters_alone(chain):
  base, sft = (meta(chain / name, step)["digests"] for name, step in (("base", 2), ("sft", 6)))
  assert {name for name in sft if name.startswith("['params']")} == {f"['params']['{name}']" for name in NAMES}
  assert len(base) > 30 and len(sft) == 3 * len(NAMES) + 4  # a weight, two moments; counters
  spec = json.loads((chain / "sft" / "policy.json").read_text())
  assert spec["lora"] == {"alpha": 32.0, "base_dtype": "bfloat16", "rank": 2, "targets": ["q", "down"]}
  summary = json.loads((chain / "sft" / "summary.json").read_text())
  policy = load(init=chain / "sft")
  assert summary["parameters"] == weight_table.count_weights(policy.spec)
  assert summary["trained_parameters"] == sum(w.size for w in policy.params.values())


def test_the_base_of_a_run_is_its_start_merged_and_rounded(chain, caplog):
  """To use a run, base and adapters stay apart; to train it further, adapters are merged; frozen weights never move."""
  base, sft = load(init=chain / "base"), load(init=chain / "sft")
  assert sft.params.keys() == NAMES and np.any(sft.params["q_lora_b"])
  same(sft.frozen.weights, {name: w.astype("bfloat16") for name, w in base.params.items()})
  merged = lora.merge_adapters(sft.weights(), sft.spec)
  assert np.any(merged["q"] != sft.frozen.weights["q"]) and not np.any(merged["k"] != sft.frozen.weights["k"])

  full = load(to_train=True, init=chain / "sft")
  assert full.spec == dataclasses.replace(sft.spec, lora=None) and not full.frozen.weights
  same(full.params, merged)


def test_fresh_adapters_follow_the_seed_and_not_the_mesh(chain, caplog):
  settings = {"init": chain / "sft", "lora__base_dtype": "float32", **LORA}
  one = load(to_train=True, **settings)
  same(one.frozen.weights, load(to_train=True, init=chain / "sft").params)
  assert not np.any(one.params["q_lora_b"]) and "rounded" not in caplog.text
  mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  cut, other = load(to_train=True, **settings, **mesh), load(to_train=True, **settings, seed=1)
  same(one.params, cut.params)
  assert np.any(one.params["q_lora_a"] != other.params["q_lora_a"])
  optimizer, _ = build_policy.make_optimizer(configs.base().rl.optim, 1)
  state = build_policy.fresh_state(cut, optimizer)
  adam = state.opt_state[1]
  for name, w in state.params.items():
    assert adam.mu[name].sharding == adam.nu[name].sharding == w.sharding == cut.params[name].sharding
  assert state.params["q_lora_b"].sharding.shard_shape((2, 2, 4, 4)) == (2, 2, 2, 4)
  assert build_policy.reference_weights(one) is one.frozen.weights
  load(to_train=True, init=chain / "sft", **LORA)
  assert "rounding changes them by" in caplog.text and "% as much as the adapters did" in caplog.text


def test_rl_moves_from_its_reference_and_samples_what_it_scores(chain):
  """Each step has two updates, so that the old policy is scored too."""
  first, *_, last = metrics(chain / "rl")[1:]
  assert 1e-7 < first["kl"] < last["kl"]
  assert all(row["sampling/sampling_logp_difference/max"] < 1e-4 for row in (first, last))
  assert np.any(load(init=chain / "rl").params["q_lora_b"])


def test_evaluating_a_run_gives_the_responses_of_its_own_evaluation(chain, tmp_path, capsys):
  """A policy that is read has the same bits as the one that was trained: its base through three runs, two of LoRA."""
  assert run_smoke("evaluate", tmp_path / "evaluate", init=chain / "rl") == 0
  inside = (chain / "rl" / "evals" / "heldout_000002.jsonl").read_text().replace('"step": 2', '"step": 0')
  assert (tmp_path / "evaluate" / "evals" / "heldout_000000.jsonl").read_text() == inside
  policy = jr.load_policy(chain / "rl")
  [[sample]] = policy.generate(["1 + 1"], max_tokens=6)
  [score] = policy.score([("1 + 1", sample)])
  np.testing.assert_allclose(score.token_logp, sample.token_logp, atol=1e-4)


def test_a_run_is_exported_merged_and_as_adapters_of_its_start(chain, tmp_path, capsys):
  assert run_smoke("export", tmp_path / "rl", init=chain / "rl") == 0
  assert f"training of the adapters began with, {chain}/sft" in capsys.readouterr().out
  summary = json.loads((tmp_path / "rl" / "summary.json").read_text())
  assert max(summary["reread"], summary["adapter_reread"], summary["difference"]) < 1e-4
  assert run_smoke("export", tmp_path / "sft", init=chain / "sft", export__lora="merged") == 0
  policy, merged = load(init=chain / "rl"), load(init=tmp_path / "rl")
  same(merged.params, lora.merge_adapters(policy.weights(), policy.spec))
  again = load(model__path=tmp_path / "sft" / "model", model__adapter=tmp_path / "rl" / "adapter")
  same(again.params, policy.params)
  same({name: w.astype("bfloat16") for name, w in again.frozen.weights.items()}, policy.frozen.weights)


def test_a_longer_run_equals_an_unbroken_one_bit_for_bit(chain, tmp_path):
  shutil.copytree(chain / "rl", tmp_path / "longer")
  for name in ("longer", "whole"):
    assert run_smoke("rl", tmp_path / name, init=chain / "sft", rl__steps=3, **LORA, **RL) == 0
  longer, whole = (meta(tmp_path / name, 3)["digests"] for name in ("longer", "whole"))
  assert longer == whole and longer != meta(chain / "rl", 2)["digests"]


def test_a_base_is_found_where_it_moved_to_and_a_changed_one_is_refused(chain, tmp_path, capsys):
  moved = tmp_path / "moved"
  shutil.copytree(chain, moved / "runs")
  want = load(init=chain / "rl")
  hidden = chain.rename(tmp_path / "away")
  try:
    got = load(init=moved / "runs" / "rl")
    same(got.params, want.params)
    same(got.frozen.weights, want.frozen.weights)
    shutil.rmtree(moved / "runs" / "base")
    capsys.readouterr()
    assert run_smoke("evaluate", tmp_path / "e", init=moved / "runs" / "rl") == 2
    assert f"{chain / 'base'}: is gone; put it back" in (stderr := capsys.readouterr().err)
    assert f"config.init = {moved / 'runs' / 'rl'}: the weights under its adapters can't be read" in stderr
    shutil.copytree(hidden / "rl", moved / "runs" / "base")
    assert run_smoke("evaluate", tmp_path / "e", init=moved / "runs" / "rl") == 2
    assert "base: has changed since; put back what it was" in capsys.readouterr().err
  finally:
    hidden.rename(chain)


def test_a_model_of_the_hub_is_the_base_in_its_own_dtype(tmp_path, caplog):
  """Its weights are frozen as its files hold them; float32 ones are rounded with a warning. A run of it finds it."""
  wide, narrow = write_model(tmp_path / "wide"), tmp_path / "narrow"
  shutil.copytree(wide, narrow)
  model = hf_weights.open_model(wide)
  tensors = {name: tensor.read(0, tensor.shape[0]).astype(jnp.bfloat16) for name, tensor in model.tensors.items()}
  write_weights(narrow, model.spec, tensors, shards=1)
  (narrow / hf_weights.INDEX).unlink(missing_ok=True)
  start = {"model__path": narrow, "sft__steps": 1, "sft__row_tokens": 256, **LORA}
  frozen = load(to_train=True, **start).frozen.weights
  assert "rounded" not in caplog.text and all(w.dtype == jnp.bfloat16 for w in frozen.values())
  plain = load(model__path=narrow)
  same(frozen, {name: w.astype(jnp.bfloat16) for name, w in plain.params.items()})
  same(frozen, hf_weights.load(hf_weights.open_model(narrow), plain.spec, plain.mesh, "bfloat16"))
  load(to_train=True, model__path=wide, **LORA)
  assert "the weights to start from are rounded to bfloat16 (config.lora.base_dtype)" in caplog.text
  assert run_smoke("sft", tmp_path / "sft", **start) == 0
  same(load(init=tmp_path / "sft").frozen.weights, frozen)


@pytest.mark.parametrize("stage", ["cpt", "pretrain"])
def test_plain_text_trains_adapters_too(chain, tmp_path, stage, capsys):
  settings = {f"{stage}__steps": 2, f"{stage}__optim__lr": 0.01, **LORA}
  assert run_smoke(stage, tmp_path / "a", init=chain / "base", **settings) == 0
  assert np.any(load(init=tmp_path / "a").params["down_lora_b"])


def test_what_can_not_be_is_refused(chain, tmp_path, capsys):
  def refused(message, **changes):
    assert run_smoke("sft", tmp_path / "refused", **{"init": chain / "base"} | LORA | changes) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "refused").exists()

  fresh = {"init": "", "tokenizer": chain / "tokenizer"}
  refused("config.lora.rank is set, but config.init and config.model.path are empty: fresh weights", **fresh)
  refused("config.lora: rank of LoRA = 9: is above 8, the smaller side of k [16, 8]", lora__rank=9, lora__targets="k")
  refused(
    "config.lora: targets of LoRA: 'q_proj' is no weight that layers multiply with; take q, k", lora__targets="q_proj"
  )
  refused("config.lora.targets = ('q', 'q') names a weight twice", lora__targets="q,q")
  refused("config.lora.alpha, .targets or .base_dtype is set, but config.lora.rank = 0", lora__rank=0)


@pytest.mark.slow  # the run that becomes longer above is the same in seconds
def test_a_killed_run_equals_an_unbroken_one_bit_for_bit(chain, tmp_path):
  settings = {"init": chain / "base", "sft__steps": 12, "checkpoint__every": 1, **LORA}
  options = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
  words = ["sft", "--config=smoke", f"--workdir={tmp_path / 'broken'}", *options]
  killed = subprocess.Popen([sys.executable, "-m", "jaxrlvr.cli", *words], cwd=ROOT)
  deadline = time.monotonic() + 240
  while not (tmp_path / "broken" / "saved.json").exists() and killed.poll() is None and time.monotonic() < deadline:
    time.sleep(0.01)
  killed.send_signal(signal.SIGKILL)
  assert killed.wait() == -signal.SIGKILL
  assert run(*words, "--resume=required") == 0
  assert run_smoke("sft", tmp_path / "whole", **settings) == 0
  assert meta(tmp_path / "broken", 12)["digests"] == meta(tmp_path / "whole", 12)["digests"]


@pytest.mark.slow  # tests/model/test_lora.py has the gradient of a mesh in seconds
def test_a_mesh_trains_the_same_adapters(chain, tmp_path):
  mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  settings = {"rl__steps": 2, "rl__microbatches": 1, **LORA, **RL}
  assert run_smoke("rl", tmp_path / "cut", init=chain / "sft", **settings, **mesh) == 0
  got, want = (jax.device_get(load(init=folder).params) for folder in (tmp_path / "cut", chain / "rl"))
  for name in want:
    np.testing.assert_allclose(got[name], want[name], atol=1e-4, err_msg=name)


def test_origins_of_adapters_tell_their_base(chain):
  origin = load(init=chain / "rl").origin
  assert origin["run"] == str(chain / "rl") and origin["start"]["run"] == str(chain / "sft")
  assert origin["start"]["start"]["run"] == str(chain / "base")
  assert set(origin["digests"]) == {f"['params']['{name}']" for name in NAMES}
  assert origins.read_recorded_spec(chain / "rl" / "policy.json").lora.targets == ("q", "down")
