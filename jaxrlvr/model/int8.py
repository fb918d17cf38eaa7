"""Arrays in 8 bits: whole numbers times a float32 scale, for what sampling reads from memory at every token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Int8:
  value: jax.Array  # int8
  scale: jax.Array  # float32, length 1 along the axes that share it


def quantise(x: jax.Array, axes: tuple[int, ...]) -> Int8:
  """x rounded to -127..127 times a scale shared along `axes`: off by at most half a 127th of the largest there."""
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True) / 127.0
  return Int8(jnp.round(x / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8), scale)


def dequantise(x: jax.Array | Int8, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The array itself; compilers for TPU and GPU make it inside of the product that reads it."""
  return (x.value * x.scale).astype(dtype) if isinstance(x, Int8) else x
