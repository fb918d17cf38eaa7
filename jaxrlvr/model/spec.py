"""What a policy is made of: its shape (`Spec`), its adapters (`Lora`), and a row of the table of weights (`Leaf`)."""

from __future__ import annotations

import dataclasses
import math

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


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and switches of a Llama or Qwen decoder. Hashable, so that jit takes it as a static argument.

  Raises InputError, naming the field, where a size is no positive int, rope_theta or norm_eps is no positive number,
  heads is no multiple of kv_heads, head_dim or its rotated share is odd, rope_scaling can't be computed, real_vocab
  exceeds vocab, or dtype is unknown. `attention` and `remat` are not checked here. For its backward pass a layer
  stores, with remat "none", everything; with "dots" its products with weights; with "full" its input alone, and
  computes the rest again.
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
  norm_eps: float = 1e-6
  qkv_bias: bool = False  # q, k and v have biases (Qwen2)
  qk_norm: bool = False  # q and k are normed in each head (Qwen3)
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
    if self.heads % self.kv_heads:
      raise InputError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}; change one of them")
    if self.head_dim % 2:
      raise InputError(f"head_dim = {self.head_dim} is odd; RoPE rotates pairs, so take an even one")
    if not 0 < self.partial_rotary_factor <= 1 or self.rotated % 2 or not self.rotated:
      raise InputError(
        f"partial_rotary_factor = {self.partial_rotary_factor!r}: rotates {self.rotated} of head_dim = {self.head_dim} "
        "numbers; wanted a share from 0 to 1 that gives a positive even number"
      )
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


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One row of the table of weights: a weight of the whole policy, or one that every layer has, stacked.

  A weight that inputs are multiplied with has a fan_in and starts as random numbers; a norm or bias has none and
  starts as `constant`.
  """

  shape: tuple[int, ...]  # with the layers first, where the weight is layered
  axes: tuple[str | None, ...]  # logical axis of each dimension: a key of `sharding.RULES`, "layers", None: not split
  fan_in: int | None  # inputs that a product with it sums over; its first numbers have variance 1 / fan_in
  hf_name: str  # name in Hugging Face files, with {} for the number of the layer
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
