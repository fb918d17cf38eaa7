"""The policy's shape, and the one table of its weights: init, sharding and import all derive from it."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3 frequency scaling (the values of `rope_scaling` in its config.json)."""

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192


@dataclasses.dataclass(frozen=True)
class Spec:
  """A Llama/Qwen decoder. Hashable: a legal static argument of jit."""

  vocab: int  # rows of the embedding table
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp: int
  real_vocab: int = 0  # rows the tokenizer knows, 0: all; the rest is padding, never sampled or scored
  max_positions: int = 0  # the model was made for, 0: unknown; computes nothing, goes in and out with the model
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-6
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # Qwen3
  tied: bool = True  # the head is the embedding table
  dtype: str = "float32"  # of activations; master weights are float32
  attention: str = "reference"  # a name in model.attention.ATTENTION: how whole rows attend
  remat: str = "none"  # a name in model.forward.REMAT: what the backward pass finds kept of a layer
  unroll: int = 1  # layers that one step of the scan over layers runs; all of them: faster and longer to compile
  vocab_chunk: int = 8192  # columns of the head that a scoring pass holds at once

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
    return self.real_vocab or self.vocab


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One weight: its shape, logical axes, fan-in (0: ones, -1: zeros) and Hugging Face name ({} = layer)."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  fan_in: int
  hf: str

  @property
  def layered(self) -> bool:
    return self.axes[0] == "layers"

  @property
  def summed(self) -> tuple[int, ...]:
    """Axes of one layer's weight that a product with it sums over; (): it is in no product."""
    if self.axes[0] == "vocab":
      return (1,)
    return () if self.fan_in <= 0 else (0,) if self.shape[self.layered] == self.fan_in else (0, 1)


def leaves(spec: Spec) -> dict[str, Leaf]:
  """Every weight of the policy by name, in one literal table."""
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
  """Where each weight lies; an indivisible dimension is an InputError that names it."""
  return {name: sharding.place(mesh, name, leaf.shape, leaf.axes) for name, leaf in leaves(spec).items()}


def count_weights(spec: Spec) -> int:
  return sum(math.prod(leaf.shape) for leaf in leaves(spec).values())


def init(spec: Spec, key: jax.Array) -> dict[str, jax.Array]:
  """Random float32 weights, normal with variance 1/fan_in; one flat draw, because a draw a leaf compiles 14x slower."""
  flat = jax.random.normal(key, (count_weights(spec),))
  params, start = {}, 0
  for name, leaf in leaves(spec).items():
    piece = flat[start : start + math.prod(leaf.shape)].reshape(leaf.shape)
    start += math.prod(leaf.shape)
    params[name] = piece / leaf.fan_in**0.5 if leaf.fan_in > 0 else jnp.full(leaf.shape, 1.0 + leaf.fan_in, jnp.float32)
  return params
