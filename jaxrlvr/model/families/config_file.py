"""Reads the config.json of a Hugging Face model key by key, so that no key is ignored that changes the computation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrlvr.base.errors import InputError
from jaxrlvr.model import rope_config
from jaxrlvr.model.rope import RopeScaling
from jaxrlvr.model.spec import Spec

# Keys that change nothing of what is computed here: names and versions, training and generation (what generation reads
# is in generation_config.json), special tokens (read by `text.hf_tokenizer`), and outputs of transformers' classes.
_WITHOUT_EFFECT = frozenset(
  """
  model_type architectures auto_map _name_or_path transformers_version torch_dtype dtype transformers.js_config
  unsloth_fixed unsloth_version use_cache cache_implementation attn_implementation _attn_implementation
  _attn_implementation_autoset _attn_implementation_internal _experts_implementation pretraining_tp
  initializer_range attention_dropout attn_pdrop resid_pdrop embd_pdrop hidden_dropout
  bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
  tokenizer_class prefix id2label label2id num_labels task_specific_params problem_type finetuning_task
  output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript use_bfloat16
  tf_legacy_loss chunk_size_feed_forward
  max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
  typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
  num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  """.split()
)
# Keys of all models that are read nowhere else, with the only values that are computed here.
_ONLY: Mapping[str, tuple] = {
  "quantization_config": (),
  "pruned_heads": ({},),
  "is_encoder_decoder": (False,),
  "is_decoder": (False, True),
  "add_cross_attention": (False,),
  "cross_attention_hidden_size": (),
  "tie_encoder_decoder": (False,),
}
_ROPE_KEYS = ("rope_scaling", "rope_parameters")  # of transformers 4, of 5
FULL_ATTENTION, SLIDING_ATTENTION = (
  "full_attention",
  "sliding_attention",
)  # kinds of layers in `layer_types` and in rope_parameters
_UNKNOWN_POSITIONS = 2048  # max_position_embeddings in an exported config.json where the policy states none
# Largest sizes that are taken. Other ones would fill the memory before a tensor that is missing could tell of them.
_MOST, _MOST_LAYERS = 2**31 - 1, 10_000


class Rope(NamedTuple):
  """Rotary parameters that a config.json states for layers of one kind."""

  theta: float
  scaling: RopeScaling | None
  share: float  # of a head that rotates: `Spec.partial_rotary_factor`


class ConfigFile:
  """A config.json, of which a family's reader takes the keys that it knows.

  Each method takes one key and returns its value. It raises InputError, naming file, key and value, where that is not
  what is computed here. `finish` refuses what nobody has taken. A key whose value is null counts as absent (but see
  `is_null`).
  """

  def __init__(self, file: object, content: Mapping[str, Any], keys: Mapping[str, str] | None = None):
    """file: named in errors. content: of the file. keys: {transformers' key for Llama: the key in this file}."""
    self._file = file
    self._name_in_file = dict(keys or {})
    self._content = {key: value for key, value in content.items() if value is not None}
    self._nulls = set(content) - set(self._content)
    self._taken: set[str] = set()

  def _take(self, key: str, default: Any) -> Any:
    """Returns the value of a key, by transformers' name for Llama; the default where it is absent."""
    self._taken.add(key)
    return self._content.get(self._name_in_file.get(key, key), default)

  def is_null(self, key: str) -> bool:
    """Returns whether the file states null for a key, which for some keys means another thing than to leave it out."""
    return self._name_in_file.get(key, key) in self._nulls

  def _wrong(self, key: str, value: Any, accepted: str) -> InputError:
    """Returns the error for a value of a wrong type or size."""
    name = self._name_in_file.get(key, key)
    return InputError(f"{self._file}: {name} = {json.dumps(value)}, wanted {accepted}; take the model's own file")

  def not_computed(self, key: str, value: Any, accepted: str) -> InputError:
    """Returns the error for a value with which a model is not computed here. accepted: which values are, in words."""
    return InputError(
      f"{self._file}: {key} = {json.dumps(value)} is not computed here, wanted {accepted}; take another model"
    )

  def size(self, key: str, default: int | None = None, null: int | None = None, most: int = _MOST) -> int:
    """Returns a positive int, at most `most`.

    default: where the key is absent, which may be 0; None: the key must be there. null: where the file states null;
    None: the same as where it is absent.
    """
    value = self._take(key, None)
    if self.is_null(key) and null is not None:
      return null
    if value is None and default is not None:
      return default
    if type(value) is not int or not 1 <= value <= most:
      raise self._wrong(key, value, f"a positive int up to {most}")
    return value

  def count(self, key: str, default: int) -> int:
    """Returns an int from 0; the default where the key is absent."""
    value = self._take(key, default)
    if type(value) is not int or value < 0:
      raise self._wrong(key, value, "an int from 0")
    return value

  def number(self, key: str, default: float) -> float:
    """Returns a positive number as a float; the default where the key is absent."""
    return self._number(key, self._take(key, default))

  def _number(self, key: str, value: Any) -> float:
    """Returns a value as a float. Raises InputError where it is no positive number."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self._wrong(key, value, "a positive float")
    return float(value)

  def flag(self, key: str, default: bool) -> bool:
    """Returns a bool; the default where the key is absent."""
    value = self._take(key, default)
    if type(value) is not bool:
      raise self._wrong(key, value, "true or false")
    return value

  def only(self, key: str, *accepted: Any) -> None:
    """Raises InputError where the key is there with a value that is not among those that are computed here."""
    value = self._take(key, None)
    if value is not None and not any(value == one and type(value) is type(one) for one in accepted):
      words = " or ".join(json.dumps(one) for one in accepted) or "none of this name"
      raise self.not_computed(key, value, words)

  def ignore(self, key: str) -> None:
    """Takes a key that changes nothing in this family, whatever its value."""
    self._take(key, None)

  def by_layer(self, key: str, layers: int, names: Sequence[Any]) -> list | None:
    """Returns a list with an entry, one of `names`, for each layer; None where the key is absent."""
    value = self._take(key, None)
    if value is None:
      return None
    if not isinstance(value, list) or len(value) != layers:
      raise self._wrong(key, value, f"a list with an entry for each of the {layers} layers")
    for entry in value:
      if entry not in names:
        raise self.not_computed(key, entry, " or ".join(map(str, names)))
    return value

  def window(self, default: int = 0) -> int:
    """Returns sliding_window: `default` where it is absent, and 0, which stands for none, where it is null."""
    return self.size("sliding_window", default, null=0)

  def windows(self, window: int, sliding: Sequence[bool]) -> dict[str, Any]:
    """Returns the fields `window` and `sliding` of `Spec`; {} where no layer has a window.

    window: tokens that a query of a sliding layer sees; 0: no layer may slide. Which layers slide is read from
    layer_types. sliding: whether each layer does where that is absent.
    """
    kinds = self.by_layer("layer_types", len(sliding), (FULL_ATTENTION, SLIDING_ATTENTION))
    if kinds is not None:
      sliding = [kind == SLIDING_ATTENTION for kind in kinds]
    if not any(sliding):
      return {}
    if not window:
      raise self.not_computed("layer_types", SLIDING_ATTENTION, f"{FULL_ATTENTION}, as the file has no window")
    return {"window": window, "sliding": tuple(sliding)}

  def rope_parameters(self, kind: str = FULL_ATTENTION) -> dict[str, Any]:
    """Returns the parameters in rope_scaling (or else rope_parameters) of layers of a kind; {} where there are none.

    kind: FULL_ATTENTION or SLIDING_ATTENTION. There may be a table for each kind. Those of sliding layers are read from
    such a table alone.
    """
    tables = [self._rope_table(key, kind) for key in _ROPE_KEYS]
    return dict(next(filter(None, tables), {}))  # the first that is not empty, as transformers does

  def rope(self, default_theta: float, kind: str = FULL_ATTENTION, parameters: Mapping[str, Any] | None = None) -> Rope:
    """Returns the rotary parameters of layers of a kind, FULL_ATTENTION or SLIDING_ATTENTION.

    They are read from `parameters`, and rope_theta and partial_rotary_factor also from the file. default_theta: where
    neither has it. parameters: as `rope_parameters` returns them, which does it where they are None.
    """
    if parameters is None:
      parameters = self.rope_parameters(kind)
    theta = self._take("rope_theta", default_theta) if kind == FULL_ATTENTION else default_theta
    theta = self._number("rope_theta", parameters.get("rope_theta") or theta)
    share = self._take("partial_rotary_factor", 1.0) if kind == FULL_ATTENTION else 1.0
    share = self._number("partial_rotary_factor", parameters.get("partial_rotary_factor") or share)
    beside = {key: self._take(key, None) for key in rope_config.KEYS_BESIDE}
    try:
      scaling = rope_config.read(parameters, beside)
    except InputError as error:
      raise InputError(f"{self._file}: {error}") from None
    return Rope(theta, scaling, share)

  def _rope_table(self, key: str, kind: str) -> dict[str, Any]:
    """Returns the rotary parameters of layers of a kind that a key states; {} where it states none."""
    table = self._take(key, {})
    if not isinstance(table, dict):
      raise self._wrong(key, table, "an object")
    kinds = {FULL_ATTENTION, SLIDING_ATTENTION}
    if not kinds & set(table):
      return table if kind == FULL_ATTENTION else {}
    if unknown := sorted(set(table) - kinds):
      raise self.not_computed(f"{key}.{unknown[0]}", table[unknown[0]], f"{FULL_ATTENTION} or {SLIDING_ATTENTION}")
    return table.get(kind) or {}

  def ropes_by_kind(self, theta: float, local_theta: float) -> tuple[Rope, Rope]:
    """Returns the rotary parameters of full layers and of sliding ones, in a family whose kinds have their own.

    Those of full layers are rope_scaling and rope_theta, or a table in rope_parameters, and those of sliding layers are
    in such a table alone. theta, local_theta: where the file states none. Raises InputError where versions of
    transformers would differ.
    """
    scaling, parameters = (self._content.get(key, {}) for key in _ROPE_KEYS)
    full = self._rope_table("rope_parameters", FULL_ATTENTION) | self._rope_table("rope_scaling", FULL_ATTENTION)
    local = self._rope_table("rope_parameters", SLIDING_ATTENTION)
    kinds = {FULL_ATTENTION, SLIDING_ATTENTION}
    if kinds & set(scaling):
      raise self.not_computed("rope_scaling", scaling, "parameters of full layers, and tables in rope_parameters")
    if scaling.get("type", "default") != "default" and "rope_type" not in scaling:
      raise self.not_computed("rope_scaling", scaling, f'"rope_type": "{scaling["type"]}" in it')
    if parameters and not kinds & set(parameters):
      raise self.not_computed("rope_parameters", parameters, f"a table for {' and for '.join(sorted(kinds))}")
    return self.rope(theta, parameters=full), self.rope(local_theta, SLIDING_ATTENTION, local)

  def states_theta_of(self, kind: str) -> bool:
    """Returns whether rope_parameters have a table for layers of a kind that states rope_theta."""
    return self._rope_table("rope_parameters", kind).get("rope_theta") is not None

  def finish(self) -> None:
    """Raises InputError for the keys that nobody has taken and that may change the computation."""
    for key, accepted in _ONLY.items():
      self.only(key, *accepted)
    for key in sorted(set(self._name_in_file) - self._taken):
      raise InputError(f"{self._file}: the family's keys has {key!r}, which its reader does not take; leave it out")
    names = {self._name_in_file.get(key, key) for key in self._taken}
    unknown = sorted(set(self._content) - names - _WITHOUT_EFFECT)
    if unknown:
      listed = ", ".join(f"{key} = {json.dumps(self._content[key])[:100]}" for key in unknown)
      raise InputError(
        f"{self._file}: {listed}: not known here, and may change what is computed; take out of a copy of the file what "
        "changes nothing, or write a family of your own that computes it (config.model.family, docs/extending.md)"
      )


def decoder_fields(
  config: ConfigFile,
  *,
  rope_theta: float = 10_000.0,
  norm_eps: float = 1e-6,
  tied: bool = False,
  vocab: int | None = None,
  heads: int | None = None,
  kv_heads: int = 0,
  head_dim: int = 0,
  partial_rotary: bool = False,
  rope: Rope | None = None,
) -> dict[str, Any]:
  """Takes the keys that all decoders have, and returns them as fields of `Spec` by name.

  These are sizes, norm_eps, tied, rope_theta, rope_scaling and partial_rotary_factor. rope_theta, norm_eps, tied,
  vocab, heads, kv_heads, head_dim: where the file states none. vocab, heads None: the file must state them. kv_heads 0
  stands for as many as heads, head_dim 0 for hidden_size / heads, and so does null in the file. partial_rotary: whether
  a model of the family may rotate a share of each head. rope: its rotary parameters; None: as `ConfigFile.rope` reads
  them.
  """
  width, heads = config.size("hidden_size"), config.size("num_attention_heads", heads)
  plain_head_dim = max(width // heads, 1)
  if rope is None:
    rope = config.rope(rope_theta)
  if rope.share != 1 and not partial_rotary:
    raise config.not_computed("partial_rotary_factor", rope.share, "1.0")
  return {
    "vocab": config.size("vocab_size", vocab),
    "width": width,
    "layers": config.size("num_hidden_layers", most=_MOST_LAYERS),
    "heads": heads,
    "kv_heads": config.size("num_key_value_heads", kv_heads or heads, null=heads),
    "head_dim": config.size("head_dim", head_dim or plain_head_dim, null=plain_head_dim),
    "mlp": config.size("intermediate_size"),
    "max_positions": config.size("max_position_embeddings", 0),
    "rope_theta": rope.theta,
    "rope_scaling": rope.scaling,
    "partial_rotary_factor": rope.share,
    "norm_eps": config.number("rms_norm_eps", norm_eps),
    "tied": config.flag("tie_word_embeddings", tied),
  }


def decoder_keys(spec: Spec) -> dict[str, Any]:
  """Returns what `decoder_fields` reads, in the style that every version of transformers reads."""
  return {
    "vocab_size": spec.vocab,
    "hidden_size": spec.width,
    "num_hidden_layers": spec.layers,
    "num_attention_heads": spec.heads,
    "num_key_value_heads": spec.kv_heads,
    "head_dim": spec.head_dim,
    "intermediate_size": spec.mlp,
    "max_position_embeddings": spec.max_positions or _UNKNOWN_POSITIONS,
    "rope_theta": spec.rope_theta,
    **rope_config.as_config(spec.rope_scaling),
    "rms_norm_eps": spec.norm_eps,
    "tie_word_embeddings": spec.tied,
  }


def window_keys(spec: Spec) -> dict[str, Any]:
  """Returns the keys sliding_window, null where no layer has a window, and layer_types."""
  sliding = spec.sliding or (False,) * spec.layers
  kinds = [SLIDING_ATTENTION if slides else FULL_ATTENTION for slides in sliding]
  return {"sliding_window": spec.window or None, "layer_types": kinds}


def local_window_fields(config: ConfigFile, layers: int, rope: Rope, *, window: int, full_every: int) -> dict[str, Any]:
  """Takes the keys of windows of a family whose sliding layers have rotary parameters of their own, `rope`.

  Returns the fields window, sliding and local_rope_theta of `Spec`; {} where no layer slides. window, full_every: where
  the file states none; each full_every-th layer is full.
  """
  if rope.scaling is not None or rope.share != 1:
    raise config.not_computed("rope_parameters.sliding_attention", str(rope), "rope_theta alone")
  windows = config.windows(config.window(window), [(layer + 1) % full_every > 0 for layer in range(layers)])
  return windows and windows | {"local_rope_theta": rope.theta}


def rope_of_full_layers(spec: Spec) -> dict[str, Any]:
  """Returns rope_scaling as a family writes it whose sliding layers have rotary parameters of their own."""
  return {"rope_scaling": rope_config.as_table(spec.rope_scaling) if spec.rope_scaling else None}
