"""What a policy is made of: its shape (`Spec`), its adapters (`Lora`), and a row of the table of weights (`Leaf`)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.rope import RopeScaling


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adapters of some weights (Hu et al. 2021), which are trained while all other weights are frozen.

  A layer multiplies its inputs x with a weight w that is a target as x @ w + alpha / rank * (x @ a) @ b. Raises
  InputError where the rank is no positive int, alpha no positive number, targets are missing or not distinct, or
  base_dtype is unknown.
  """

  rank: int  # columns of a, rows of b
  alpha: float  # the product of the adapters is multiplied by alpha / rank
  targets: tuple[str, ...]  # names in the table of weights (`weight_table.leaves`), of weights that each layer has
  base_dtype: str = "float32"  # in which the frozen weights are kept, "float32" or "bfloat16"

  def __post_init__(self):
    if type(self.rank) is not int or self.rank < 1:
      raise InputError(f"rank of LoRA = {self.rank!r}: wanted a positive int")
    if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
      raise InputError(f"alpha of LoRA = {self.alpha!r}: wanted a positive number")
    if not self.targets or len(set(self.targets)) < len(self.targets):
      raise InputError(f"targets of LoRA = {self.targets!r}: wanted at least one weight, each once")
    if self.base_dtype not in ("float32", "bfloat16"):
      raise InputError(f"base_dtype of LoRA = {self.base_dtype!r}: take 'float32' or 'bfloat16'")

  @property
  def scale(self) -> float:
    """What the product of the adapters is multiplied by: alpha / rank."""
    return self.alpha / self.rank


class LayerKind(NamedTuple):
  """In what a layer may differ from other layers of its policy."""

  window: int  # tokens that a query sees, itself included; 0: all
  rotary: str  # "full": rotates by rope_theta and rope_scaling; "local": by local_rope_theta; "none": not at all


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and switches of a decoder. Hashable, so that jit takes it as a static argument.

  Raises InputError, naming the field, where a size is no positive int, rope_theta or norm_eps is no positive number,
  heads is no multiple of kv_heads, head_dim or its rotated share is odd, rope_scaling can't be computed, real_vocab
  exceeds vocab, dtype is unknown, or `sliding` or `no_rope` has not one entry a layer. `family`, `attention` and
  `remat` are not checked here.

  For its backward pass a layer stores, with remat "none", everything; with "dots" its products with weights; with
  "full" its input alone, and computes the rest again.
  """

  vocab: int  # rows of the embedding table
  width: int  # numbers in a hidden state
  layers: int
  heads: int  # query heads
  kv_heads: int  # heads of keys and values, each shared by heads / kv_heads query heads
  head_dim: int  # numbers in a head
  mlp: int  # numbers in an MLP's hidden layer
  real_vocab: int = 0  # rows that the tokenizer knows, 0: all; the others are padding, never sampled or scored
  max_positions: int = 0  # longest text the model was trained for, 0: unknown; only some rotary scalings use it
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  partial_rotary_factor: float = 1.0  # share of a head that rotates: its first numbers, `rotated` of them
  query_scaling_beta: float = 0.0  # beta of `layers.query_scale`, which lets queries grow with their position; 0: none
  norm_eps: float = 1e-6
  family: str = "llama"  # what a layer computes: a name in `families.FAMILIES`, or of a user's own family
  window: int = 0  # tokens that a query of a sliding layer sees, itself included; 0: all
  sliding: tuple[bool, ...] = ()  # which layers have the window; (): none
  local_rope_theta: float = 0.0  # rotary base of sliding layers, whose frequencies are not scaled; 0: as other layers
  query_pre_attn_scalar: int = 0  # products of q and k are divided by its square root; 0: by that of head_dim
  no_rope: tuple[bool, ...] = ()  # which layers do not rotate q and k; (): all rotate
  tied: bool = True  # the head is the embedding table
  lora: Lora | None = None  # adapters that the policy may have; None: none
  dtype: str = "float32"  # of activations, "float32" or "bfloat16"; master weights are float32
  attention: str = "reference"  # how whole rows attend: "reference", "mapped", "xla", "cudnn" or "splash"
  remat: str = "none"  # what a layer stores for its backward pass: "none", "dots" or "full", see above
  unroll: int = 1  # layers in one step of the scan over layers; more run faster and compile longer
  vocab_chunk: int = 8192  # columns of the head whose logits a scoring pass holds at once

  def __post_init__(self):
    for name in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
      size = getattr(self, name)
      if type(size) is not int or size < 1:
        raise InputError(f"{name} = {size!r}: wanted a positive int")
    for name in ("rope_theta", "norm_eps"):
      value = getattr(self, name)
      if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} = {value!r}: wanted a positive number")
    beta = self.query_scaling_beta
    if not isinstance(beta, int | float) or not 0 <= beta < math.inf:
      raise InputError(f"query_scaling_beta = {beta!r}: wanted a number from 0")
    if type(self.query_pre_attn_scalar) is not int or self.query_pre_attn_scalar < 0:
      raise InputError(f"query_pre_attn_scalar = {self.query_pre_attn_scalar!r}: wanted a positive int, or 0")
    for name in ("sliding", "no_rope"):
      by_layer = getattr(self, name)
      if by_layer and len(by_layer) != self.layers:
        raise InputError(f"{name} has {len(by_layer)} entries: wanted one for each of the {self.layers} layers")
    if self.heads % self.kv_heads:
      raise InputError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}; change one of them")
    if self.head_dim % 2:
      raise InputError(f"head_dim = {self.head_dim} is odd; RoPE rotates pairs, so take an even one")
    if not 0 < self.partial_rotary_factor <= 1:
      raise InputError(f"partial_rotary_factor = {self.partial_rotary_factor!r}: wanted a share above 0 and up to 1")
    if self.rotated % 2 or not self.rotated:
      raise InputError(
        f"partial_rotary_factor = {self.partial_rotary_factor!r}: rotates {self.rotated} of head_dim = {self.head_dim} "
        "numbers; wanted a share that gives a positive even number"
      )
    if beta and not self.original_positions:
      raise InputError(f"query_scaling_beta = {beta!r}: wanted 0, as no rotary scaling states the original length")
    if self.rope_scaling is not None:
      self.rope_scaling.check(self.rope_theta, self.rotated, self.max_positions)
    if not 0 <= self.real_vocab <= self.vocab:
      raise InputError(f"real_vocab = {self.real_vocab} must lie in 0..vocab = {self.vocab}")
    if self.dtype not in ("float32", "bfloat16"):
      raise InputError(f"dtype = {self.dtype!r}: take 'float32' or 'bfloat16'")

  @property
  def known_vocab(self) -> int:
    """Number of token ids that may be sampled or scored: real_vocab, or vocab where that is 0."""
    return self.real_vocab or self.vocab

  @property
  def rotated(self) -> int:
    """How many numbers of a head RoPE rotates, the first ones: head_dim * partial_rotary_factor, rounded down."""
    return int(self.head_dim * self.partial_rotary_factor)

  @property
  def original_positions(self) -> int:
    """Tokens of the longest text before rotary frequencies were scaled; 0 where no scaling states it."""
    return getattr(self.rope_scaling, "original_max_position", 0)

  def _kind(self, layer: int) -> LayerKind:
    """Returns the kind of a layer, by its number from 0."""
    slides = bool(self.window and self.sliding and self.sliding[layer])
    if self.no_rope and self.no_rope[layer]:
      rotary = "none"
    else:
      rotary = "local" if slides and self.local_rope_theta else "full"
    return LayerKind(self.window if slides else 0, rotary)

  @property
  def layer_kinds(self) -> tuple[LayerKind, ...]:
    """The different kinds of the policy's layers, in the order in which they occur first."""
    return tuple(dict.fromkeys(map(self._kind, range(self.layers))))

  @property
  def kind_of_layer(self) -> tuple[int, ...]:
    """For each layer, the index of its kind in `layer_kinds`."""
    kinds = self.layer_kinds
    return tuple(kinds.index(self._kind(layer)) for layer in range(self.layers))


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One row of the table of weights: a weight of the whole policy, or one that every layer has, stacked.

  A weight that inputs are multiplied with has a fan_in and starts as random numbers; a norm or bias has none and
  starts as `constant`.
  """

  shape: tuple[int, ...]  # with the layers first, where the weight is layered
  axes: tuple[str | None, ...]  # logical axis of each dimension: a key of `sharding.RULES`, "layers", None: not split
  fan_in: int | None  # inputs that a product with it sums over; its first numbers have variance 1 / fan_in
  # Name in Hugging Face files, with {} for the number of the layer. Weights of one name are rows of one tensor there,
  # one behind another in the order of the table.
  hf_name: str
  constant: float = 0.0  # what a weight without fan_in starts as

  @property
  def layered(self) -> bool:
    """Whether it stacks the weights of all layers along its first axis."""
    return self.axes[0] == "layers"

  @property
  def layer_shape(self) -> tuple[int, ...]:
    """Shape of one layer's weight; of the whole weight where it is not layered."""
    return self.shape[1:] if self.layered else self.shape

  @property
  def layer_axes(self) -> tuple[str | None, ...]:
    """Logical axes of one layer's weight; of the whole weight where it is not layered."""
    return self.axes[1:] if self.layered else self.axes

  @property
  def input_axes(self) -> tuple[int, ...]:
    """Axes (of `layer_shape`) of the inputs, which a product with the weight sums over; () for norms and biases."""
    if self.fan_in is None:
      return ()
    if self.axes[0] == "vocab":
      return (1,)
    return (0,) if self.layer_shape[0] == self.fan_in else (0, 1)


def adapter_names(name: str) -> tuple[str, str]:
  """Returns the names of the two adapters, a and b of `Lora`, of the weight of this name."""
  return f"{name}_lora_a", f"{name}_lora_b"
