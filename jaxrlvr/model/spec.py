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
  """Llama-3's scaling of rotary frequencies; the fields are those of `rope_scaling` in its config.json."""

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192


@dataclasses.dataclass(frozen=True)
class Spec:
  """Shape and switches of a Llama or Qwen decoder. Hashable, so that jit takes it as a static argument.

  Raises InputError, naming the field, for values that can't be computed with.
  """

  vocab: int  # rows of the embedding table
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  real_vocab: int = 0  # rows that the tokenizer knows, 0: all; the others are padding, never sampled or scored
  max_positions: int = 0  # longest text the model was trained for, 0: unknown; only imported and exported, not used
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # Qwen3
  tied: bool = True  # the head is the embedding table
  dtype: str = "float32"  # of activations; master weights are float32
  attention: str = "reference"  # a name in model.attention.ATTENTION: how whole rows attend
  remat: str = "none"  # a name in model.forward.REMAT: what a layer stores for its backward pass
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
    """Number of token ids that may be sampled or scored."""
    return self.real_vocab or self.vocab


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One weight of the policy, of all layers together."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]  # logical axes, keys of `sharding.RULES`; "layers" comes first
  fan_in: int  # inputs that a product with it sums over; 0: starts as ones, -1: starts as zeros
  hf: str  # name in Hugging Face files, with {} for the layer

  @property
  def layered(self) -> bool:
    """Whether it stacks one weight a layer along its first axis."""
    return self.axes[0] == "layers"

  @property
  def summed(self) -> tuple[int, ...]:
    """Axes of one layer's weight that a product with it sums over; () for norms and biases."""
    if self.axes[0] == "vocab":
      return (1,)
    if self.fan_in <= 0:
      return ()
    shape = self.shape[1:] if self.layered else self.shape
    return (0,) if shape[0] == self.fan_in else (0, 1)


def leaves(spec: Spec) -> dict[str, Leaf]:
  """Returns every weight of the policy by name; this table is the only place that states them."""
  n, d, f, h = spec.layers, spec.width, spec.mlp, spec.head_dim
  heads, kv = spec.heads, spec.kv_heads
  block, attn, mlp = "model.layers.{}.", "model.layers.{}.self_attn.", "model.layers.{}.mlp."
  table = {
    "embed": Leaf((spec.vocab, d), ("vocab", "embed"), d, "model.embed_tokens.weight"),
    "attn_norm": Leaf((n, d), ("layers", None), 0, block + "input_layernorm.weight"),
    "q": Leaf((n, d, heads, h), ("layers", "embed", "heads", None), d, attn + "q_proj.weight"),
    "k": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, attn + "k_proj.weight"),
    "v": Leaf((n, d, kv, h), ("layers", "embed", "kv_heads", None), d, attn + "v_proj.weight"),
    "o": Leaf((n, heads, h, d), ("layers", "heads", None, "embed"), heads * h, attn + "o_proj.weight"),
    "mlp_norm": Leaf((n, d), ("layers", None), 0, block + "post_attention_layernorm.weight"),
    "gate": Leaf((n, d, f), ("layers", "embed", "mlp"), d, mlp + "gate_proj.weight"),
    "up": Leaf((n, d, f), ("layers", "embed", "mlp"), d, mlp + "up_proj.weight"),
    "down": Leaf((n, f, d), ("layers", "mlp", "embed"), f, mlp + "down_proj.weight"),
    "final_norm": Leaf((d,), (None,), 0, "model.norm.weight"),
  }
  if spec.qkv_bias:
    table |= {
      "q_bias": Leaf((n, heads, h), ("layers", "heads", None), -1, attn + "q_proj.bias"),
      "k_bias": Leaf((n, kv, h), ("layers", "kv_heads", None), -1, attn + "k_proj.bias"),
      "v_bias": Leaf((n, kv, h), ("layers", "kv_heads", None), -1, attn + "v_proj.bias"),
    }
  if spec.qk_norm:
    table |= {
      "q_norm": Leaf((n, h), ("layers", None), 0, attn + "q_norm.weight"),
      "k_norm": Leaf((n, h), ("layers", None), 0, attn + "k_norm.weight"),
    }
  if not spec.tied:
    table["head"] = Leaf((spec.vocab, d), ("vocab", "embed"), d, "lm_head.weight")
  return table


def shardings(spec: Spec, mesh: jax.sharding.Mesh) -> dict[str, jax.sharding.NamedSharding]:
  """Returns the sharding of each weight by name. Raises InputError, naming weight and axis, if one can't be split."""
  return {name: sharding.place(mesh, name, leaf.shape, leaf.axes) for name, leaf in leaves(spec).items()}


def count_weights(spec: Spec) -> int:
  """Returns how many numbers the policy's weights have in all."""
  return sum(math.prod(leaf.shape) for leaf in leaves(spec).values())


def init(spec: Spec, key: jax.Array) -> dict[str, jax.Array]:
  """Returns random float32 weights by name: normal with variance 1/fan_in, norms ones and biases zeros.

  All are pieces of one flat draw, because a draw for each weight takes 14 times as long to compile.
  """
  flat = jax.random.normal(key, (count_weights(spec),))
  params, start = {}, 0
  for name, leaf in leaves(spec).items():
    size = math.prod(leaf.shape)
    draw = flat[start : start + size].reshape(leaf.shape)
    start += size
    if leaf.fan_in > 0:
      params[name] = draw / leaf.fan_in**0.5
    else:
      params[name] = jnp.full(leaf.shape, 1.0 + leaf.fan_in, jnp.float32)
  return params
