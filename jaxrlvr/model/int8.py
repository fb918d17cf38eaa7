"""Arrays in 8 bits, whole numbers times a float32 scale: the weights and cache that decoding reads at every token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

_MAX = 127.0  # the largest whole number of an Int8


@struct.dataclass
class Int8:
  """An array in 8 bits: it stands for value * scale. A pytree of two arrays, with the same number of axes."""

  value: jax.Array  # int8, -127 .. 127
  scale: jax.Array  # float32; has length 1 along the axes that share a scale


def quantise(x: jax.Array, axes: tuple[int, ...]) -> Int8:
  """Returns x rounded to whole numbers -127 .. 127 times a float32 scale that is shared along `axes`.

  The scale is max(|x|) / 127, with the maximum taken along `axes`; the error is at most half of it. Where x is all
  zeros, value and scale are zero. x must be finite.
  """
  largest = jnp.max(jnp.abs(x.astype(jnp.float32)), axes, keepdims=True)
  scale = largest / _MAX
  divisor = jnp.where(scale > 0, scale, 1.0)
  return Int8(jnp.round(x / divisor).astype(jnp.int8), scale)


def dequantise(x: jax.Array | Int8, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Returns value * scale of an Int8 as an array of `dtype`; any other array is returned unchanged, in its own dtype.

  Compilers for TPU and GPU multiply inside the product that reads the result, so that memory is read in 8 bits.
  """
  if isinstance(x, Int8):
    return (x.value * x.scale).astype(dtype)
  return x
