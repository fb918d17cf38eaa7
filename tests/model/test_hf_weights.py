"""Hugging Face directories: what is read, what is refused and with which words, and that writing undoes reading."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from helpers.hf_directories import SPECS, TINY, tensors_of, write_weights
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import keys, sharding
from jaxrlvr.model import hf_weights, safetensors_files, weight_table

ALL = dict(data=2, fsdp=2, tensor=2)


def load(folder, sizes=ALL):
  model = hf_weights.open_model(folder)
  return model, hf_weights.load(model, model.spec, sharding.make_mesh(**sizes))


@pytest.mark.parametrize(
  ("family", "dtype"), [("llama", "bfloat16"), ("llama-tied", "float16"), ("qwen2", "float32"), ("qwen3", "bfloat16")]
)
def test_every_weight_lies_where_einsum_wants_it(tmp_path, family, dtype):
  """Heads and widths are checked by their definition, read from several files, on a mesh that shards every axis."""
  spec = SPECS[family]
  tensors = tensors_of(spec, dtype=jnp.dtype(dtype))
  model, params = load(write_weights(tmp_path, spec, tensors, shards=3))
  assert model.spec == spec and all(w.dtype == jnp.float32 for w in params.values())
  wide = {name: w.astype(np.float32) for name, w in tensors.items()}
  for i in range(spec.layers):
    attn = f"model.layers.{i}.self_attn."
    by_head = wide[attn + "k_proj.weight"].reshape(spec.kv_heads, spec.head_dim, spec.width)
    np.testing.assert_array_equal(params["k"][i], np.einsum("khd->dkh", by_head))
    by_head = wide[attn + "o_proj.weight"].reshape(spec.width, spec.heads, spec.head_dim)
    np.testing.assert_array_equal(params["o"][i], np.einsum("dnh->nhd", by_head))
    np.testing.assert_array_equal(params["down"][i], wide[f"model.layers.{i}.mlp.down_proj.weight"].T)
    if spec.family == "qwen2":
      np.testing.assert_array_equal(params["v_bias"][i], wide[attn + "v_proj.bias"].reshape(spec.kv_heads, -1))
  np.testing.assert_array_equal(
    params["head" if not spec.tied else "embed"],
    wide["lm_head.weight" if not spec.tied else "model.embed_tokens.weight"],
  )
  placed = weight_table.shardings(spec, sharding.make_mesh(**ALL))
  assert all(params[name].sharding == placed[name] for name in params)


@pytest.mark.parametrize(("family", "shard_bytes"), [("llama", 1), ("qwen2", 3000), ("qwen3", 1 << 30)])
def test_writing_is_the_inverse_of_reading(tmp_path, family, shard_bytes):
  spec, mesh = SPECS[family], sharding.make_mesh(**ALL)
  placed = weight_table.shardings(spec, mesh)
  params = jax.jit(lambda: weight_table.init(spec, keys.at(1, "init")), out_shardings=placed)()
  (tmp_path / "config.json").write_text(json.dumps(hf_weights.config_of(spec, "float32", {})))
  hf_weights.save(tmp_path, params, spec, "float32", shard_bytes)
  model, reread = load(tmp_path)
  assert model.spec == spec and params.keys() == reread.keys()
  for name in params:
    np.testing.assert_array_equal(params[name], reread[name], err_msg=name)
  theirs = {}
  for file in tmp_path.glob("*.safetensors"):
    theirs |= safetensors.load_file(file)
  assert theirs.keys() == tensors_of(spec).keys()
  assert len(list(tmp_path.glob("*.safetensors"))) == {1: len(theirs), 1 << 30: 1}.get(shard_bytes, len(model.files))
  largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
  assert shard_bytes != 3000 or 1 < len(model.files) < len(theirs) and largest < 3000 + 4096


def test_rows_that_devices_share_are_read_once(tmp_path, monkeypatch):
  model = hf_weights.open_model(write_weights(tmp_path, TINY))
  read, plain = [], safetensors_files.Tensor.read
  monkeypatch.setattr(
    safetensors_files.Tensor, "read", lambda self, *rows: (read.append((self.name, *rows)), plain(self, *rows))[1]
  )
  hf_weights.load(model, model.spec, sharding.make_mesh(data=2, fsdp=4))
  assert len(read) == len(set(read))
  rows = dict.fromkeys(model.tensors, 0)
  for name, first, last in read:
    rows[name] += last - first
  assert rows == {name: tensor.shape[0] for name, tensor in model.tensors.items()}


def test_old_and_new_configs_and_defaults(tmp_path):
  old = dict(rope_theta=5e5, rope_scaling={"type": "default"}, partial_rotary_factor=1.0, sliding_window=32)
  new = dict(rope_theta="absent", rope_scaling="absent", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
  for i, config in enumerate((old, new)):
    read_spec = hf_weights.open_model(write_weights(tmp_path / str(i), SPECS["qwen2"], **config)).spec
    assert read_spec == dataclasses.replace(SPECS["qwen2"], rope_theta=5e5)
  scaled = {
    "rope_type": "llama3",
    "factor": 32,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 16,
    "rope_theta": 500_000,
  }
  read_spec = hf_weights.open_model(
    write_weights(tmp_path / "2", SPECS["llama"], rope_theta="absent", rope_scaling="absent", rope_parameters=scaled)
  )
  assert read_spec.spec == SPECS["llama"]
  plain = dataclasses.replace(TINY, tied=False, head_dim=2)
  absent = dict.fromkeys(("tie_word_embeddings", "head_dim", "rope_theta", "architectures"), "absent")
  assert hf_weights.open_model(write_weights(tmp_path / "3", plain, **absent)).spec == plain


def test_a_tied_head_and_old_buffers_may_be_there(tmp_path):
  tensors = tensors_of(TINY)
  more = {
    "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
  }
  model, params = load(write_weights(tmp_path, TINY, tensors | more))
  assert "head" not in params and set(model.tensors) == set(tensors)
  shards = sorted(tensors | more)
  apart = {name: name == "lm_head.weight" for name in shards}  # a shard of its own
  for part, file in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    safetensors.save_file({n: w for n, w in (tensors | more).items() if apart[n] == part}, tmp_path / file)
  index = {name: f"model-0000{1 + apart[name]}-of-00002.safetensors" for name in shards}
  (tmp_path / hf_weights.INDEX).write_text(json.dumps({"weight_map": index}))
  assert len(hf_weights.open_model(tmp_path).files) == 2
  (tmp_path / hf_weights.INDEX).unlink()
  more["lm_head.weight"][23, 7] += 1
  with pytest.raises(InputError, match="lm_head.weight differs from model.embed_tokens.weight"):
    hf_weights.open_model(write_weights(tmp_path, TINY, tensors | more))


DOWN = "model.layers.1.mlp.down_proj.weight"
CONFIGS = {
  "proportional": (dict(rope_scaling={"rope_type": "proportional"}), 'rope_type = "proportional" is not computed here'),
  "yarn": (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0, "beta": 1}), "rope parameter beta = 1 is not"),
  "dynamic": (dict(rope_scaling={"type": "dynamic", "factor": 0.0}), "dynamic: factor = 0.0: wanted a positive number"),
  "rope key": (dict(rope_scaling={"rope_type": "default", "beta": 2.0}), "rope parameter beta"),
  "factor": (dict(rope_scaling={"rope_type": "llama3"}), "factor = null, wanted a positive float"),
  "rotary": (dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
  "rotary in rope": (dict(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
  "window": (dict(use_sliding_window=True), "use_sliding_window = true"),
  "layers": (dict(layer_types=["full_attention", "sliding_attention"]), 'layer_types = "sliding_attention"'),
  "bias": (dict(attention_bias=True), "attention_bias = true is not computed here, wanted false"),
  "mlp bias": (dict(mlp_bias=True), "mlp_bias = true"),
  "act": (dict(hidden_act="gelu"), 'hidden_act = "gelu".*wanted "silu"'),
  "unknown": (dict(gate=True, sinks=2), "gate = true, sinks = 2: not known here, and may change.*config.model.family"),
  "quantized": (dict(quantization_config={"bits": 4}), "quantization_config"),
  "another": (dict(model_type="mixtral"), 'model_type = "mixtral" is not computed here, wanted one of gemma3.*qwen3'),
  "moe": (dict(model_type="qwen3_moe"), "qwen3_moe"),
  "class": (dict(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
  "type": (dict(hidden_size="64"), 'hidden_size = "64", wanted a positive int'),
  "absent": (dict(num_hidden_layers="absent"), "num_hidden_layers = null"),
  "zero": (dict(num_attention_heads=0), "num_attention_heads = 0, wanted a positive int"),
  "bool": (dict(tie_word_embeddings="no"), 'tie_word_embeddings = "no", wanted true or false'),
  "infinite": (dict(rms_norm_eps=float("inf")), "rms_norm_eps = Infinity, wanted a positive float"),
  "rope text": (dict(rope_parameters="x"), 'rope_parameters = "x", wanted an object'),
  "layer number": (dict(layer_types=5), "layer_types = 5, wanted a list with an entry for each of the 2 layers"),
  "model list": (dict(model_type=["llama"]), 'model_type = ."llama". is not computed here'),
  "beyond floats": (dict(rope_theta=10**400), "config.json: holds a value of a wrong type"),
  "huge": (dict(hidden_size=10**9), r"has shape \[24, 8\], wanted \[24, 1000000000\]"),
  "long": (dict(num_hidden_layers=10**4), r"has no tensor model.layers.2.*num_hidden_layers = 10000\)"),
  "endless": (dict(num_hidden_layers=10**9), "num_hidden_layers = 1000000000, wanted a positive int up to 10000"),
  "endless windows": (
    dict(model_type="qwen2", architectures=None, num_hidden_layers=10**9),
    "num_hidden_layers = 1000000000, wanted a positive int up to 10000",
  ),
  "beyond int32": (dict(head_dim=10**400), "head_dim = 10+, wanted a positive int up to 2147483647"),
  "heads": (dict(num_key_value_heads=3), "config.json: heads = 4 is not a multiple of kv_heads = 3"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_not_computed_are_refused(tmp_path, case):
  config, words = CONFIGS[case]
  write_weights(tmp_path, TINY, **config)
  with pytest.raises(InputError, match=words) as error:
    hf_weights.open_model(tmp_path)
  assert "config.json" in str(error.value) and "\n" not in str(error.value)


def drop(name):
  return lambda folder, t: write_weights(folder, TINY, {k: v for k, v in t.items() if k != name})


def cut(folder, t):
  write_weights(folder, TINY)
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-5])


def pickled(folder, t):
  write_weights(folder, TINY)
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unlisted(folder, t):
  write_weights(folder, TINY, shards=2)
  index = json.loads((folder / hf_weights.INDEX).read_text())
  index["weight_map"].pop(DOWN)
  (folder / hf_weights.INDEX).write_text(json.dumps(index))


def listed_elsewhere(folder, t):
  write_weights(folder, TINY, shards=2)
  index = json.loads((folder / hf_weights.INDEX).read_text())
  index["weight_map"]["more.weight"] = "model-00001-of-00002.safetensors"
  (folder / hf_weights.INDEX).write_text(json.dumps(index))


def outside(folder, t):
  write_weights(folder, TINY)
  (folder / "model.safetensors").rename(folder.parent / "out.safetensors")
  (folder / hf_weights.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(t, "../out.safetensors")}))


def no_shard(folder, t):
  write_weights(folder, TINY, shards=2)
  (folder / "model-00002-of-00002.safetensors").unlink()


def garbage(folder, t):
  write_weights(folder, TINY)
  (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")


def not_finite(value):
  return lambda folder, t: (t[DOWN].__setitem__((3, 2), value), write_weights(folder, TINY, t))


def pipe(name, shards=1):
  def make(folder, t):
    write_weights(folder, TINY, shards=shards)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

  return make


FILES = {
  "deep": (
    lambda f, t: write_weights(f, TINY).joinpath("config.json").write_text("[" * 100_000),
    "config.json: can't be read",
  ),
  "pipe for config": (pipe("config.json"), "m/config.json: is no regular file"),
  "pipe for weights": (pipe("model.safetensors"), "m/model.safetensors: is no regular file"),
  "pipe for index": (pipe(hf_weights.INDEX), "m/model.safetensors.index.json: is no regular file"),
  "pipe for shard": (pipe("model-00002-of-00002.safetensors", 2), "m/model-00002.*: is no regular file"),
  "missing": (drop(DOWN), rf"has no tensor {DOWN}, wanted one of shape \[8, 16\]"),
  "no head": (
    lambda f, t: write_weights(f, dataclasses.replace(TINY, tied=False), t),
    r"has no tensor lm_head.weight, wanted one of shape \[24, 8\] \(tie_word_embeddings is false",
  ),
  "extra": (
    lambda f, t: write_weights(f, TINY, t | {"model.x": t[DOWN]}),
    "model.safetensors: tensor model.x is not of",
  ),
  "an untied head's": (lambda f, t: write_weights(f, TINY, t | {"lm_head.bias": t[DOWN]}), "lm_head.bias is not of"),
  "transposed": (
    lambda f, t: write_weights(f, TINY, t | {DOWN: t[DOWN].T.copy()}),
    rf"model.safetensors: tensor {DOWN} has shape \[16, 8\], wanted \[8, 16\], looks transposed",
  ),
  "misshapen": (
    lambda f, t: write_weights(f, TINY, t | {DOWN: t[DOWN][:, 1:].copy()}),
    r"\[8, 15\], wanted \[8, 16\];",
  ),
  "rows": (
    lambda f, t: write_weights(f, TINY, t, vocab_size=25),
    r"embed_tokens.weight has shape \[24, 8\], wanted \[25, 8\]",
  ),
  "dtype": (
    lambda f, t: write_weights(f, TINY, t | {DOWN: t[DOWN].astype(np.int8)}),
    f"{DOWN} has dtype I8, wanted one of F32",
  ),
  "truncated": (cut, "model.safetensors: has .* truncated"),
  "garbage": (garbage, "model.safetensors: is no whole safetensors file"),
  "pickle": (pickled, r"holds only pickle files \(pytorch_model.bin\), which can run code"),
  "nothing": (
    lambda f, t: write_weights(f, TINY).joinpath("model.safetensors").unlink(),
    "holds neither model.safetensors",
  ),
  "no shard": (no_shard, "names the shard model-00002-of-00002.safetensors, which is not in the folder"),
  "index lists more": (listed_elsewhere, "model-00001-of-00002.safetensors: .* lists its tensor more.weight"),
  "index lists less": (unlisted, f"does not list its tensor {DOWN}"),
  "path in index": (outside, "names the shard ../out.safetensors"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_the_model_are_refused(tmp_path, case):
  make, words = FILES[case]
  make(tmp_path / "m", tensors_of(TINY))
  with pytest.raises(InputError, match=words) as error:
    hf_weights.open_model(tmp_path / "m")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(tmp_path, value):
  not_finite(value)(tmp_path, tensors_of(TINY))
  tensors = hf_weights.open_model(tmp_path).tensors.values()
  for read in (lambda: load(tmp_path), lambda: safetensors_files.check_finite(tensors)):
    with pytest.raises(InputError, match=f"tensor {DOWN} holds a value that is not finite"):
      read()


def test_no_directory_is_told(tmp_path):
  with pytest.raises(InputError, match="config.json: can't be read.*name a Hugging Face"):
    hf_weights.open_model(tmp_path / "absent")


def digest(folder):
  return safetensors_files.digest_of_tensors(hf_weights.open_model(folder).tensors)


def test_digest_tells_weights_not_files(tmp_path):
  one = digest(write_weights(tmp_path / "1", TINY))
  assert one == digest(write_weights(tmp_path / "2", TINY, shards=3))
  tensors = tensors_of(TINY)
  tensors["model.norm.weight"][5] += 1e-3
  assert one != digest(write_weights(tmp_path / "3", TINY, tensors))
