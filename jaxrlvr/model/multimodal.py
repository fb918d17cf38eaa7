"""Models of text and images, of whose Hugging Face directories the text model alone is taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from etils import epath

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.families.config_file import ConfigFile

_LOG = logging.getLogger(__name__)


class _Wrapper(NamedTuple):
  """A model of text and images."""

  architecture: str  # the class that config.json names under `architectures`
  text_type: str  # model_type of its text model where text_config does not state it


_WRAPPERS = {  # by model_type
  "gemma3": _Wrapper("Gemma3ForConditionalGeneration", "gemma3_text"),
  "mistral3": _Wrapper("Mistral3ForConditionalGeneration", "mistral"),
}
# Keys beside text_config that concern images alone.
_OF_IMAGES = """
  vision_config image_token_index image_token_id boi_token_index boi_token_id eoi_token_index eoi_token_id
  mm_tokens_per_image multimodal_projector_bias projector_hidden_act spatial_merge_size vision_feature_layer
""".split()
# How names of the text model's tensors begin, before and since transformers 4.52, and how they do in its own files.
_TEXT = {
  "language_model.model.": "model.",
  "language_model.lm_head.": "lm_head.",
  "model.language_model.": "model.",
  "lm_head.": "lm_head.",
}
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")

_T = TypeVar("_T")


def is_wrapper(config: Mapping[str, Any]) -> bool:
  """Returns whether the content of a config.json is that of a model of text and images which is known here."""
  model_type = config.get("model_type")
  return isinstance(model_type, str) and model_type in _WRAPPERS


def text_config(file: epath.Path, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the content of the config.json that the text model of a model of text and images would have.

  file: named in errors. config: its content, of which `is_wrapper` holds. That is text_config, with the
  tie_word_embeddings of the whole model if it states it. Raises InputError for a key that is not known, or has a value
  that is not computed.
  """
  wrapper, keys = _WRAPPERS[config["model_type"]], ConfigFile(file, config)
  if config.get("architectures") not in (None, [wrapper.architecture]):
    raise keys.not_computed("architectures", config["architectures"], wrapper.architecture)
  text = config.get("text_config")
  if not isinstance(text, Mapping):
    raise InputError(f"{file}: text_config = {json.dumps(text)}, wanted an object; take the model's own file")
  for key in ("text_config", "tie_word_embeddings", *_OF_IMAGES):
    keys.ignore(key)
  keys.finish()
  _LOG.warning("%s: is of a model of text and images, of which the text model alone is taken", file)
  content = {"model_type": wrapper.text_type, **text}
  if config.get("tie_word_embeddings") is not None:
    content["tie_word_embeddings"] = config["tie_word_embeddings"]
  return content


def text_tensors(tensors: Mapping[str, _T]) -> dict[str, _T]:
  """Returns the tensors of the text model by the names in its own files.

  tensors: anything by the names of tensors of a model of text and images. Those that are neither of the text model nor
  of the part for images keep their names.
  """
  renamed = {}
  for name, tensor in tensors.items():
    if name.startswith(_IMAGES):
      continue
    start = next((start for start in _TEXT if name.startswith(start)), "")
    renamed[_TEXT.get(start, "") + name.removeprefix(start)] = tensor
  return renamed
