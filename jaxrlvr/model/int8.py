"""Arrays in 8 bits, whole numbers times a float32 scale: the weights and cache that decoding reads at every token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Int8:
  """An array in 8 bits: value * scale."""

  value: jax.Array  # int8
  scale: jax.Array  # float32; has length 1 along the axes that share a scale


def quantise(x: jax.Array, axes: tuple[int, ...]) -> Int8:
  """Rounds x to whole numbers -127..127 times a scale that is shared along `axes`.

  The error is at most max(|x|) / 254, the maximum taken along `axes`.
  """
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True) / 127.0
  return Int8(jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), scale)


def dequantise(x: jax.Array | Int8, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Returns an Int8 as an array of `dtype`, and any other array unchanged.

  Compilers for TPU and GPU do this inside the product that reads it.
  """
  if isinstance(x, Int8):
    return (x.value * x.scale).astype(dtype)
  return x
