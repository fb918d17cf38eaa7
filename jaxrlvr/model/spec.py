"""The policy's shape (`Spec`), and the table of its weights (`leaves`), from which init, sharding and import derive."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3's scaling of rotary frequencies (`rope_type` = "llama3" of `rope_scaling` in config.json).

  A frequency that turns more than high_freq_factor times within the original positions stays; one that turns less than
  low_freq_factor times is divided by `factor`; between them the division sets in linearly.
  """

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192  # `original_max_position_embeddings` there


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and switches of a Llama or Qwen decoder. Hashable, so that jit takes it as a static argument.

  Raises InputError, naming the field, where a size is no positive int, rope_theta or norm_eps is no positive number,
  heads is no multiple of kv_heads, head_dim is odd, real_vocab exceeds vocab, or dtype is unknown. `attention` and
  `remat` are not checked here. For its backward pass a layer stores, with remat "none", everything; with "dots" its
  products with weights; with "full" its input alone, and computes the rest again.
  """

  vocab: int  # rows of the embedding table
  width: int  # numbers in a hidden state
  layers: int
  heads: int  # query heads
  kv_heads: int  # heads of keys and values, each shared by heads / kv_heads query heads
  head_dim: int  # numbers in a head
  mlp: int  # numbers in an MLP's hidden layer
  real_vocab: int = 0  # rows that the tokenizer knows, 0: all; the others are padding, never sampled or scored
  max_positions: int = 0  # longest text the model was trained for, 0: unknown; only imported and exported, not used
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  qkv_bias: bool = False  # q, k and v have biases (Qwen2)
  qk_norm: bool = False  # q and k are normed in each head (Qwen3)
  tied: bool = True  # the head is the embedding table
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
    if not 0 <= self.real_vocab <= self.vocab:
      raise InputError(f"real_vocab = {self.real_vocab} must lie in 0..vocab = {self.vocab}")
    if self.dtype not in ("float32", "bfloat16"):
      raise InputError(f"dtype = {self.dtype!r}: take 'float32' or 'bfloat16'")

  @property
  def known_vocab(self) -> int:
    """Number of token ids that may be sampled or scored: real_vocab, or vocab where that is 0."""
    return self.real_vocab or self.vocab


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


def leaves(spec: Spec) -> dict[str, Leaf]:
  """Returns every weight of the policy by name; from this table init, sharding, import, export and checkpoints derive.

  Weights by name, with N layers, width D, MLP width F, head width h: embed [V,D], final_norm [D]; head [V,D] unless
  `spec.tied`; in each layer attn_norm and mlp_norm [N,D], q [N,D,heads,h], k and v [N,D,kv_heads,h], o [N,heads,h,D],
  gate and up [N,D,F], down [N,F,D]; with `spec.qkv_bias` q_bias [N,heads,h], k_bias and v_bias [N,kv_heads,h]; with
  `spec.qk_norm` q_norm and k_norm [N,h].
  """
  n, d, f, h = spec.layers, spec.width, spec.mlp, spec.head_dim
  heads, kv = spec.heads, spec.kv_heads
  block, attn, mlp = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
  table = {
    "embed": Leaf((spec.vocab, d), ("vocab", "embed"), d, "model.embed_tokens.weight"),
    "attn_norm": Leaf((n, d), ("layers", None), None, block + "input_layernorm.weight", constant=1.0),
    "q": Leaf((n, d, heads, h), ("layers", "embed", "heads", None), d, attn + "q_proj.weight"),
    "k": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, attn + "k_proj.weight"),
    "v": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, attn + "v_proj.weight"),
    "o": Leaf((n, heads, h, d), ("layers", "heads", None, "embed"), heads * h, attn + "o_proj.weight"),
    "mlp_norm": Leaf((n, d), ("layers", None), None, block + "post_attention_layernorm.weight", constant=1.0),
    "gate": Leaf((n, d, f), ("layers", "embed", "mlp"), d, mlp + "gate_proj.weight"),
    "up": Leaf((n, d, f), ("layers", "embed", "mlp"), d, mlp + "up_proj.weight"),
    "down": Leaf((n, f, d), ("layers", "mlp", "embed"), f, mlp + "down_proj.weight"),
    "final_norm": Leaf((d,), (None,), None, "model.norm.weight", constant=1.0),
  }
  if spec.qkv_bias:
    table |= {
      "q_bias": Leaf((n, heads, h), ("layers", "heads", None), None, attn + "q_proj.bias"),
      "k_bias": Leaf((n, kv, h), ("layers", "kv_heads", None), None, attn + "k_proj.bias"),
      "v_bias": Leaf((n, kv, h), ("layers", "kv_heads", None), None, attn + "v_proj.bias"),
    }
  if spec.qk_norm:
    table |= {
      "q_norm": Leaf((n, h), ("layers", None), None, attn + "q_norm.weight", constant=1.0),
      "k_norm": Leaf((n, h), ("layers", None), None, attn + "k_norm.weight", constant=1.0),
    }
  if not spec.tied:
    table["head"] = Leaf((spec.vocab, d), ("vocab", "embed"), d, "lm_head.weight")
  return table


def shardings(spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.sharding.NamedSharding]:
  """Returns the sharding on the mesh of each weight, by its name in `leaves`, as `Leaf.axes` states it.

  KV heads that attention repeats (`sharding.kv_copies`) are not split: each device holds all of them. Raises
  InputError, naming weight and axis, where the mesh doesn't split a weight evenly.
  """
  sharding_of = {}
  for name, leaf in leaves(spec).items():
    sharding_of[name] = sharding.checked_sharding(mesh, name, leaf.shape, leaf.axes)
  return sharding_of


def count_weights(spec: Spec) -> int:
  """Returns how many numbers the policy's weights have in all; a tied head and the padding rows count once."""
  return sum(math.prod(leaf.shape) for leaf in leaves(spec).values())


def init(spec: Spec, key: jax.Array) -> dict[str, jax.Array]:
  """Returns fresh float32 weights, by their names in `leaves`: normal with variance 1/fan_in, norms 1, biases 0.

  Call it inside jit, with `shardings` as the shardings of the result, so that no device holds all weights. All are
  pieces of one flat draw, because a draw for each weight takes 14 times as long to compile.
  """
  flat = jax.random.normal(key, (count_weights(spec),))
  params, start = {}, 0
  for name, leaf in leaves(spec).items():
    size = math.prod(leaf.shape)
    draw = flat[start : start + size].reshape(leaf.shape)
    start += size
    if leaf.fan_in is None:
      params[name] = jnp.full(leaf.shape, leaf.constant, jnp.float32)
    else:
      params[name] = draw / leaf.fan_in**0.5
  return params
