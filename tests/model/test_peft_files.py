"""PEFT directories: what is read and refused, that writing undoes reading, and, when slow, parity with peft."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from helpers import family_models
from helpers.hf_directories import SPECS, TINY, tensors_of, write_weights
from helpers.peft_directories import PREFIX, random_adapter, size_of, write_adapter
from helpers.policies import logits_of
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model import hf_weights, peft_files, weight_table
from jaxrlvr.model.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from jaxrlvr.model.spec import Lora
from jaxrlvr.training.optimizer import adamw

LAYER = "model.layers.{}."
Q, K, V = (LAYER + f"self_attn.{name}_proj" for name in "qkv")
DOWN = LAYER + "mlp.down_proj"


def load(folder, spec=TINY, **sizes):
  adapter = peft_files.open_adapter(folder, spec)
  return adapter.lora, peft_files.load(adapter, spec, sharding.make_mesh(**sizes or {"data": -1}))


def change_of(tensors, module, scale):
  """Returns what the adapter adds to the weight of a module as files store it, [outputs, inputs]."""
  a, b = (tensors[f"{PREFIX}{module}.lora_{x}.weight"].astype(np.float32) for x in "AB")
  return scale * b @ a


def our_change(lora, adapters, target, layer):
  """Returns what our adapters add to a weight of a layer, [outputs, inputs]."""
  a, b = (np.asarray(adapters[name][layer]) for name in weight_table.adapter_names(target))
  return lora.scale * (a.reshape(-1, lora.rank) @ b.reshape(lora.rank, -1)).T


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_read_as_it_is_meant(tmp_path, dtype):
  tensors = random_adapter([Q, DOWN], dtype=jnp.dtype(dtype))
  lora, adapters = load(write_adapter(tmp_path, tensors), data=2, fsdp=2, tensor=2)
  assert lora == Lora(rank=2, alpha=6.0, targets=("q", "down"))
  table = weight_table.adapter_leaves(dataclasses.replace(TINY, lora=lora))
  assert {name: w.shape for name, w in adapters.items()} == {name: leaf.shape for name, leaf in table.items()}
  assert all(w.dtype == jnp.float32 for w in adapters.values())
  assert adapters["q_lora_a"].sharding.spec[1] is not None and adapters["q_lora_b"].sharding.spec[2] is not None
  wide = {name: w.astype(np.float32) for name, w in tensors.items()}
  for layer in (0, 1):
    b = wide[f"{PREFIX}{Q.format(layer)}.lora_B.weight"].reshape(TINY.heads, TINY.head_dim, 2)
    np.testing.assert_array_equal(adapters["q_lora_b"][layer], np.einsum("nhr->rnh", b))
    np.testing.assert_array_equal(adapters["down_lora_a"][layer], wide[f"{PREFIX}{DOWN.format(layer)}.lora_A.weight"].T)


ALL_LINEAR = [f"{LAYER}self_attn.{x}_proj" for x in "qkvo"] + [f"{LAYER}mlp.{x}_proj" for x in ("gate", "up", "down")]
TARGETS = {
  "ends": (dict(target_modules=["self_attn.q_proj", "down_proj", "fc1", "roj"]), [Q, DOWN]),
  "whole names": (dict(target_modules=[Q.format(1), V.format(0)]), [Q.format(1), V.format(0)]),
  "expression": (dict(target_modules=r".*\.1\.self_attn\.(q|v)_proj"), [Q.format(1), V.format(1)]),
  "all": (dict(target_modules="all-linear"), ALL_LINEAR),
  "excluded": (
    dict(target_modules="ALL-linear", exclude_modules=["self_attn.q_proj"]),
    [x for x in ALL_LINEAR if x != Q],
  ),
  "excluded expression": (
    dict(target_modules=["q_proj", "v_proj"], exclude_modules=r".*\.0\..*q_proj"),
    [Q.format(1), V],
  ),
  "named in full": (
    dict(target_modules=["q_proj", DOWN.format(1)], layers_to_transform=[0], layers_pattern=["h"]),
    [DOWN.format(1)],
  ),
  "a layer": (dict(layers_to_transform=1), [Q.format(1), DOWN.format(1)]),
  "layers": (dict(layers_to_transform=[0], layers_pattern="layers"), [Q.format(0), DOWN.format(0)]),
}


@pytest.mark.parametrize("case", TARGETS)
def test_targets_are_meant_as_peft_means_them(tmp_path, case):
  config, modules = TARGETS[case]
  adapter = peft_files.open_adapter(write_adapter(tmp_path, random_adapter(modules), **config), TINY)
  expected = {module.format(layer) for module in modules for layer in (0, 1)}
  assert {adapted.module.name for adapted in adapter.modules} == expected


PATTERNS = {
  "ranks": dict(rank_pattern={"down_proj": 3}),
  "rslora": dict(rank_pattern={"down_proj": 3}, use_rslora=True),
  "alphas": dict(rank_pattern={r"layers\.\d+\.mlp\.down_proj": 3}, alpha_pattern={"1.self_attn.q_proj": 1.5}),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_ranks_and_scales_of_modules_become_one(tmp_path, case):
  """Ranks are padded to the largest, and a scale of its own goes into b; what the adapters add to weights is kept."""
  config = PATTERNS[case]
  tensors = random_adapter([Q, (DOWN, 3)])
  lora, adapters = load(write_adapter(tmp_path, tensors, **config))
  assert lora.rank == 3 and adapters["q_lora_a"].shape[-1] == 3
  for layer in (0, 1):
    alpha_q = 1.5 if "alpha_pattern" in config and layer == 1 else 6
    root = 0.5 if config.get("use_rslora") else 1
    wanted = change_of(tensors, Q.format(layer), alpha_q / 2**root)
    np.testing.assert_allclose(our_change(lora, adapters, "q", layer), wanted, atol=1e-5)
    wanted = change_of(tensors, DOWN.format(layer), 6 / 3**root)
    np.testing.assert_allclose(our_change(lora, adapters, "down", layer), wanted, atol=1e-5)


def test_a_module_without_an_adapter_gets_one_of_zeros(tmp_path):
  tensors = random_adapter([Q.format(1), DOWN])
  lora, adapters = load(write_adapter(tmp_path, tensors, target_modules=[Q.format(1), "down_proj"]))
  assert lora == Lora(2, 6.0, ("q", "down"))
  assert not np.any(adapters["q_lora_a"][0]) and not np.any(adapters["q_lora_b"][0]) and np.all(adapters["q_lora_b"][1])


def drawn(lora, spec=TINY, **mesh):
  """Returns a spec with these adapters, and random ones."""
  spec = dataclasses.replace(spec, lora=lora)
  mesh, adapters = sharding.make_mesh(**mesh), {}
  rng = np.random.default_rng(1)
  for name, leaf in weight_table.adapter_leaves(spec).items():
    place = sharding.checked_sharding(mesh, name, leaf.shape, leaf.axes)
    adapters[name] = jax.device_put(rng.standard_normal(leaf.shape).astype(np.float32), place)
  return spec, adapters


def test_writing_is_the_inverse_of_reading(tmp_path):
  spec, adapters = drawn(Lora(rank=3, alpha=1.5, targets=("q", "v", "o", "up")), data=2, fsdp=2, tensor=2)
  peft_files.save(tmp_path, adapters, spec, "ORG/NAME", "v1")
  config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
  assert config["target_modules"] == ["q_proj", "v_proj", "o_proj", "up_proj"]
  assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 1.5, {})
  assert peft_files.base_of(tmp_path) == "ORG/NAME@v1"
  lora, reread = load(tmp_path)
  assert lora == spec.lora and reread.keys() == adapters.keys()
  for name, w in adapters.items():
    np.testing.assert_array_equal(w, reread[name], err_msg=name)
  theirs = safetensors.load_file(tmp_path / ADAPTER_WEIGHTS)
  assert theirs.keys() == random_adapter([Q, V, LAYER + "self_attn.o_proj", LAYER + "mlp.up_proj"]).keys()
  np.testing.assert_allclose(
    our_change(lora, adapters, "o", 1), change_of(theirs, LAYER.format(1) + "self_attn.o_proj", 0.5)
  )


@pytest.mark.parametrize("targets", ["q", "qv", "qkv"])
def test_fused_modules_are_written_in_blocks_and_cut_when_read(tmp_path, targets):
  """Phi-3's q, k and v are one tensor of the base, qkv_proj, with the outputs of q first."""
  fused = LAYER + "self_attn.qkv_proj"
  spec, adapters = drawn(Lora(rank=2, alpha=3.0, targets=tuple(targets)), dataclasses.replace(TINY, family="phi3"))
  peft_files.save(tmp_path, adapters, spec, "")
  config, tensors = (
    json.loads((tmp_path / ADAPTER_CONFIG).read_text()),
    safetensors.load_file(tmp_path / ADAPTER_WEIGHTS),
  )
  rank = 2 * len(targets)
  assert config["target_modules"] == ["qkv_proj"] and config["rank_pattern"] == ({"qkv_proj": rank} if rank > 2 else {})
  lora, reread = load(tmp_path, spec)
  assert lora == Lora(rank, 1.5 * rank, ("q", "k", "v"))
  for layer in (0, 1):
    changes = []
    for name, (_, outputs) in zip("qkv", map(size_of, (Q.format(0), K.format(0), V.format(0))), strict=True):
      change = np.zeros((outputs, TINY.width))
      if name in targets:
        change = our_change(spec.lora, adapters, name, layer)
      np.testing.assert_allclose(our_change(lora, reread, name, layer), change, atol=1e-5)
      changes.append(change)
    np.testing.assert_allclose(change_of(tensors, fused.format(layer), 1.5), np.concatenate(changes), atol=1e-5)


def test_modules_of_one_name_are_told_apart(monkeypatch):
  plain = weight_table.leaves

  def leaves(spec):
    table = plain(spec)
    return table | {
      "o": dataclasses.replace(table["o"], hf_name="h.{}.attn.out.weight"),
      "down": dataclasses.replace(table["down"], hf_name="h.{}.mlp.out.weight"),
    }

  monkeypatch.setattr(weight_table, "leaves", leaves)
  for targets, names in ((("o",), ["attn.out"]), (("o", "down"), ["out", "out"])):
    spec = dataclasses.replace(TINY, lora=Lora(2, 4.0, targets))
    assert peft_files.config_of_adapter(spec, "", "")["target_modules"] == names


def remove(name):
  return lambda folder, tensors: tensors.pop(PREFIX + name)


def put(name, array):
  return lambda folder, tensors: tensors.update({name: np.asarray(array, np.float32)})


def nan(folder, tensors):
  tensors[f"{PREFIX}{DOWN.format(1)}.lora_B.weight"][3, 1] = np.nan


A_OF_Q = Q.format(0) + ".lora_A.weight"
BAD_TENSORS = {
  "missing": (remove(A_OF_Q), rf"{ADAPTER_WEIGHTS}: has no tensor {PREFIX}{A_OF_Q}, wanted one of shape \[2, 8\]"),
  "shape": (
    put(PREFIX + A_OF_Q, np.ones((3, 8))),
    rf"{A_OF_Q} has shape \[3, 8\], wanted \[2, 8\]; take adapter_config",
  ),
  "width": (put(PREFIX + A_OF_Q, np.ones((2, 9))), r"\[2, 9\], wanted \[2, 8\].*the adapter's own base"),
  "not targeted": (
    put(PREFIX + K.format(0) + ".lora_A.weight", np.ones(1)),
    "belongs to no module of the base that adap",
  ),
  "other base": (put(PREFIX + Q.format(2) + ".lora_A.weight", np.ones(1)), "layers.2.*take the adapter's own base"),
  "embedding": (
    put(PREFIX + "model.embed_tokens.weight", np.ones(1)),
    "embed_tokens.weight is a whole weight of the base",
  ),
  "nan": (nan, f"tensor {PREFIX}{DOWN.format(1)}.lora_B.weight holds a value that is not finite; take another copy"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_named(tmp_path, case):
  change, words = BAD_TENSORS[case]
  tensors = random_adapter([Q, DOWN])
  change(tmp_path, tensors)
  with pytest.raises(InputError, match=words):
    load(write_adapter(tmp_path, tensors))


MERGE = r"merge the adapter into its base \(peft: merge_and_unload\) and take the merged model as config.model.path"
BAD_CONFIGS = {
  "kind": (dict(peft_type="IA3"), f"peft_type = 'IA3', wanted 'LORA'; {MERGE}"),
  "task": (dict(task_type="SEQ_CLS"), "task_type = 'SEQ_CLS', wanted 'CAUSAL_LM'; take an adapter of that kind"),
  "bias": (dict(bias="lora_only"), f"bias = 'lora_only': biases are not trained here, wanted 'none'; {MERGE}"),
  "dora": (dict(use_dora=True), f"use_dora = True is not computed here; {MERGE}"),
  "whole modules": (dict(modules_to_save=["lm_head"]), r"modules_to_save = \['lm_head'\] is not computed here"),
  "unknown": (dict(use_newest=3), f"use_newest = 3 is not computed here; {MERGE}"),
  "zero": (dict(use_newest=0), "use_newest = 0 is not"),
  "pissa": (
    dict(init_lora_weights="pissa_niter_4"),
    "init_lora_weights = 'pissa_niter_4' changes the weights of the b",
  ),
  "rank": (
    dict(r=2.0),
    "the rank of model.layers.0.self_attn.q_proj is 2.0, wanted a positive int; correct r or rank_p",
  ),
  "rank pattern": (dict(rank_pattern={"down_proj": 0}), "the rank of model.layers.0.mlp.down_proj is 0"),
  "patterns": (dict(rank_pattern=[3]), r"rank_pattern = \[3\], wanted an object"),
  "alpha": (dict(lora_alpha=0), "the alpha of .* is 0, wanted a positive number"),
  "targets": (dict(target_modules=None), "target_modules = None, wanted a list of names or a regular expression"),
  "targets of another": (
    dict(target_modules=["c_attn"]),
    r"\['c_attn'\] is no module of the base, which has, for example",
  ),
  "head": (
    dict(target_modules=["q_proj", "down_proj", "embed_tokens"]),
    "has model.embed_tokens, whose adapters are not",
  ),
  "norm": (
    dict(target_modules=".*layernorm"),
    "has model.layers.0.input_layernorm, whose adapters are not computed here",
  ),
  "rslora": (dict(use_rslora="no"), "use_rslora = 'no', wanted true or false"),
  "endless rank": (dict(r=10**400, use_rslora=True), "the rank of .* is 10+, wanted a positive int"),
  "endless alpha": (dict(lora_alpha=10**400), "the alpha of .* is 10+, wanted a positive number"),
  "layers": (
    dict(layers_to_transform=[0], layers_pattern=5),
    "layers_pattern = 5, wanted a list of names or a regular",
  ),
  "repetition": (dict(target_modules="q{99999999999}"), r"'q\{9+\}' is no regular expression \(the repetition"),
  "expression": (dict(target_modules="*q_proj"), r"'\*q_proj' is no regular expression \(nothing to repeat"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_what_is_not_computed_is_refused(tmp_path, case):
  config, words = BAD_CONFIGS[case]
  folder = write_adapter(tmp_path, random_adapter([Q, DOWN]), **config)
  with pytest.raises(InputError, match=rf"^{folder}/{ADAPTER_CONFIG}: .*{words}"):
    peft_files.open_adapter(folder, TINY)


def test_folders_that_are_no_adapter_are_told(tmp_path):
  with pytest.raises(InputError, match=f"{ADAPTER_CONFIG}: can't be read .*name a PEFT directory"):
    peft_files.open_adapter(tmp_path, TINY)
  folder = write_adapter(tmp_path, random_adapter([Q, DOWN]), base_model_name_or_path=None)
  with pytest.raises(InputError, match="names no base .*name it as config.model.path"):
    peft_files.base_of(folder)
  (folder / ADAPTER_WEIGHTS).unlink()
  with pytest.raises(InputError, match="holds no adapter_model.safetensors"):
    peft_files.open_adapter(folder, TINY)
  (folder / "adapter_model.bin").touch()
  with pytest.raises(InputError, match="holds only the pickle adapter_model.bin, which can run code; save the adapter"):
    peft_files.open_adapter(folder, TINY)


def their_model(base, adapter=None, trainable=False, **lora_config):
  """Returns (peft's model of a base with an adapter, torch); without `adapter` it has a new one with random b."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  peft = pytest.importorskip("peft")
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
  if adapter is not None:
    return peft.PeftModel.from_pretrained(model, adapter, is_trainable=trainable).eval(), torch
  model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora_config))
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "lora_B" in name:
        weight.normal_(0, 0.3)
  return model.eval(), torch


@pytest.fixture
def base(tmp_path):
  """Returns (folder of a base that transformers reads, its spec, its weights)."""
  spec = SPECS["qwen2"]
  tensors = {name: w * 0.3 + name.endswith("norm.weight") for name, w in tensors_of(spec).items()}
  folder = write_weights(tmp_path / "base", spec, {name: w.astype(np.float32) for name, w in tensors.items()})
  model = hf_weights.open_model(folder)
  return folder, spec, hf_weights.load(model, spec, sharding.make_mesh(devices=jax.devices()[:1]))


TOKENS = np.random.default_rng(0).integers(0, TINY.vocab, (2, 20))
THEIR_CONFIGS = {
  "plain": dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"]),
  "rslora": dict(r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True),
  "patterns": dict(
    r=3,
    lora_alpha=6,
    target_modules=["q_proj", "o_proj", "up_proj"],
    rank_pattern={"up_proj": 5, r"layers\.0\.self_attn\.q_proj": 1},
    alpha_pattern={"1.self_attn.o_proj": 2},
    layers_to_transform=[1],
    lora_dropout=0.1,
  ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", THEIR_CONFIGS)
def test_adapters_that_peft_saved_give_its_logits(tmp_path, base, case):
  folder, spec, params = base
  theirs, torch = their_model(folder, **THEIR_CONFIGS[case])
  theirs.save_pretrained(tmp_path / "adapter")
  with torch.no_grad():
    expected = theirs(torch.asarray(TOKENS)).logits.numpy()
  adapter = peft_files.open_adapter(tmp_path / "adapter", spec)
  assert peft_files.base_of(tmp_path / "adapter") == str(folder)
  adapters = peft_files.load(adapter, spec, params["embed"].sharding.mesh)
  of_base = np.asarray(logits_of(params, TOKENS, spec))
  logits = np.asarray(logits_of(params | adapters, TOKENS, dataclasses.replace(spec, lora=adapter.lora)))
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert np.abs(expected - of_base).max() > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", family_models.MODELS)
def test_adapters_of_every_family_give_the_logits_of_peft(tmp_path, family):
  """Of ours that peft reads, and of peft's that are read here; some of Phi-3's weights are one fused module there."""
  folder, tokens = family_models.write(tmp_path / "base", family), family_models.texts()
  model, mesh = hf_weights.open_model(folder), sharding.make_mesh(devices=jax.devices()[:1])
  params, logits = hf_weights.load(model, model.spec, mesh), jax.jit(logits_of, static_argnums=2)
  lora, base_spec = Lora(rank=3, alpha=1.5, targets=("q", "v", "o", "up", "down")), model.spec
  if base_spec.rope_scaling is not None:
    scaling = base_spec.rope_scaling.for_texts_of(tokens.shape[1])
    base_spec = dataclasses.replace(base_spec, rope_scaling=scaling)
  spec, adapters = drawn(lora, base_spec, devices=jax.devices()[:1])
  (tmp_path / "ours").mkdir()
  peft_files.save(tmp_path / "ours", adapters, spec, str(folder))
  theirs, torch = their_model(folder, tmp_path / "ours")
  with torch.no_grad():
    expected = theirs(torch.asarray(tokens)).logits.numpy()
  np.testing.assert_allclose(logits(params | adapters, tokens, spec), expected, atol=1e-4)
  theirs, torch = their_model(folder, r=2, lora_alpha=5, target_modules="all-linear")
  theirs.save_pretrained(tmp_path / "theirs")
  with torch.no_grad():
    expected = theirs(torch.asarray(tokens)).logits.numpy()
  lora, adapters = load(tmp_path / "theirs", base_spec)
  adapters = jax.tree.map(jnp.asarray, jax.device_get(adapters))
  spec = dataclasses.replace(base_spec, lora=lora)
  np.testing.assert_allclose(logits(params | adapters, tokens, spec), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft_reads_adapters_and_takes_the_same_step(tmp_path, base):
  """Logits, the gradients of a and b, and both after a step of AdamW equal those of peft and torch."""
  folder, spec, params = base
  spec, adapters = drawn(
    Lora(rank=3, alpha=1.5, targets=("q", "k", "o", "gate", "down")), spec, devices=jax.devices()[:1]
  )
  (tmp_path / "adapter").mkdir()
  peft_files.save(tmp_path / "adapter", adapters, spec, str(folder))
  theirs, torch = their_model(folder, tmp_path / "adapter", trainable=True)

  def loss(adapters):
    logits_BTV = logits_of(params | adapters, TOKENS, spec)
    logp_BTV = jax.nn.log_softmax(logits_BTV[:, :-1])
    return -jnp.mean(jnp.take_along_axis(logp_BTV, TOKENS[:, 1:, None], -1)), logits_BTV

  (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
  output = theirs(torch.asarray(TOKENS), labels=torch.asarray(TOKENS))
  np.testing.assert_allclose(logits, output.logits.detach().numpy(), atol=1e-4)
  output.loss.backward()
  trained = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
  optimizer = torch.optim.AdamW(trained.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
  (tmp_path / "gradient").mkdir()
  peft_files.save(tmp_path / "gradient", gradient, spec, "")
  gradients = safetensors.load_file(tmp_path / "gradient" / ADAPTER_WEIGHTS)
  assert len(gradients) == len(trained) == 20
  for name, weight in trained.items():
    ours = gradients[name.replace(".default", "")]
    np.testing.assert_allclose(ours, weight.grad.numpy(), atol=1e-4 * np.abs(ours).max(), err_msg=name)
  optimizer.step()
  transformation = adamw(0.9, 0.95, 1e-6, 0.1, 0.0)
  change, _ = transformation.update(gradient, transformation.init(adapters), adapters)
  stepped = {name: weight - 0.01 * change[name] for name, weight in adapters.items()}
  peft_files.save(tmp_path / "gradient", stepped, spec, "")
  ours = safetensors.load_file(tmp_path / "gradient" / ADAPTER_WEIGHTS)
  for name, weight in trained.items():
    np.testing.assert_allclose(ours[name.replace(".default", "")], weight.detach().numpy(), atol=2e-5, err_msg=name)
