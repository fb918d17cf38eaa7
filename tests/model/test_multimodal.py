"""Models of text and images: their text model is taken, as if its files were alone in the directory."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from helpers import family_models
from helpers.policies import logits_of
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model import hf_weights
from jaxrlvr.stages import hf_models

NAMES = {  # of tensors: how they begin in a text model, before transformers 4.52, and since
  "old": {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
  "new": {"model.": "model.language_model.", "lm_head.": "lm_head."},
}
IMAGES = {
  "old": ("vision_tower.patch.weight",),
  "new": ("model.vision_tower.patch.weight", "model.multi_modal_projector.x"),
}


def wrap(folder, style="old", **keys):
  """Writes a model of text and images around ministral3 of `family_models`; returns (its folder, the text model's)."""
  text = family_models.write(folder / "text", "ministral3")
  tensors = dict.fromkeys(IMAGES[style], np.full(3, np.nan, np.float32))
  for name, tensor in safetensors.load_file(text / "model.safetensors").items():
    start = next(start for start in NAMES[style] if name.startswith(start))
    tensors[NAMES[style][start] + name.removeprefix(start)] = tensor
  (folder / "whole").mkdir()
  safetensors.save_file(tensors, folder / "whole" / "model.safetensors")
  config = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": json.loads((text / "config.json").read_text()),
    "vision_config": {"hidden_size": 8},
    "image_token_index": 10,
    "spatial_merge_size": 2,
  }
  (folder / "whole" / "config.json").write_text(json.dumps(config | keys))
  return folder / "whole", text


@pytest.mark.parametrize("style", NAMES)
def test_the_text_model_is_taken(tmp_path, caplog, style):
  whole, text = (hf_weights.open_model(folder) for folder in wrap(tmp_path, style))
  assert whole.spec == text.spec and whole.spec.family == "ministral3"
  assert "whole/config.json: is of a model of text and images, of which the text model alone is taken" in caplog.text
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params, expected = (hf_weights.load(model, model.spec, mesh) for model in (whole, text))
  assert all(np.array_equal(params[name], expected[name]) for name in expected)
  assert hf_models._name_of_base(whole.folder) == ("", "") != hf_models._name_of_base(text.folder)


def test_what_text_config_leaves_out_has_the_defaults_of_the_family(tmp_path):
  sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, sliding_window=4)
  config = dict(model_type="gemma3", text_config=sizes, boi_token_index=3, eoi_token_index=4, mm_tokens_per_image=2)
  (tmp_path / "config.json").write_text(json.dumps(config))
  spec = hf_weights.read_spec(tmp_path)
  assert (spec.family, spec.vocab, spec.heads, spec.kv_heads, spec.head_dim) == ("gemma3_text", 262208, 8, 4, 256)
  assert spec.tied
  (tmp_path / "config.json").write_text(json.dumps(config | dict(tie_word_embeddings=False)))
  assert not hf_weights.read_spec(tmp_path).tied


REFUSED = {
  "quantized": (
    dict(quantization_config={"quant_method": "fp8"}),
    'quantization_config = {"quant_method": "fp8"} is not',
  ),
  "unknown": (dict(audio_config={"a": 1}), 'audio_config = {"a": 1}: not known here'),
  "class": (dict(architectures=["Mistral3Model"]), 'architectures = ."Mistral3Model". is not computed here'),
  "no text": (dict(text_config=None), "text_config = null, wanted an object"),
  "text of another family": (dict(text_config={"model_type": "mixtral"}), 'model_type = "mixtral" is not computed'),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_by_name(tmp_path, case):
  keys, words = REFUSED[case]
  with pytest.raises(InputError, match=f"config.json: {words}"):
    hf_weights.open_model(wrap(tmp_path, **keys)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["Mistral3", "Gemma3"])
def test_logits_are_those_of_transformers(tmp_path, name, tied):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  text_config = family_models.MODELS["ministral3" if name == "Mistral3" else "gemma3"]
  vision = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4, image_size=28
  )
  config = getattr(transformers, f"{name}Config")(
    text_config=family_models.SIZES | text_config | dict(tie_word_embeddings=tied),
    vision_config=dict(model_type="pixtral" if name == "Mistral3" else "siglip_vision_model", patch_size=14, **vision),
    tie_word_embeddings=tied,
  )
  torch.manual_seed(0)
  model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.add_(torch.randn_like(weight) * 0.3)
    expected = model(torch.asarray(family_models.texts()).long()).logits.numpy()
  model.save_pretrained(tmp_path)
  opened = hf_weights.open_model(tmp_path)
  params = hf_weights.load(opened, opened.spec, sharding.make_mesh(devices=jax.devices()[:1]))
  np.testing.assert_allclose(logits_of(params, family_models.texts(), opened.spec), expected, atol=1e-4)
