"""Attention of whole rows, one function a platform; which one runs is a value of the config.

Each takes q_BHTh, k_BKSh, v_BKSh (K divides H), segments_BT and before_BP, S = P + T, and returns out_BHTh: a token
sees the tokens of its own segment, whose slots stand side by side, up to itself, and of the P slots before the row all
that are no padding (segment 0), which stand at their end; scores are scaled by 1/sqrt(h). What stands at padding is
finite, without meaning.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrlvr.device import sharding

NEGATIVE = -1e30  # a masked score: finite, so that a row without any key gives no NaN
_SCORES = 2**23  # that `mapped` has at once, if a row has no more
_SPLASH_BLOCK = 512  # slots of a block of the TPU kernel: those above the diagonal are left out
_LANES = 128  # of a TPU: the kernel's blocks and head width are multiples


def _seen_BTS(segments_BT: jax.Array, before_BP: jax.Array) -> jax.Array:
  """Slots -P to T-1, those before the row first.

  A comparison with one number a query, its segment's first slot, which compilers turn into vectors.
  """
  slots, prompt = jnp.arange(segments_BT.shape[1]), before_BP.shape[1]
  changes_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
  first_BT = jax.lax.cummax(jnp.where(changes_BT, slots, 0), axis=1)
  keys = jnp.arange(-prompt, len(slots))
  after_BTS = (keys - first_BT[..., None]).astype(jnp.uint32)  # before it: beyond all numbers
  own_BTS = after_BTS <= (slots - first_BT)[..., None].astype(jnp.uint32)
  if not prompt:
    return own_BTS
  real_B11 = jnp.sum(before_BP > 0, 1)[:, None, None]
  return own_BTS | ((keys + real_B11).astype(jnp.uint32) < real_B11.astype(jnp.uint32))


def reference(
  q_BHTh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, segments_BT: jax.Array, before_BP: jax.Array
) -> jax.Array:
  """Plain products in the layout [B,K,..]: what the others are compared with."""
  batch, _, time, head_dim = q_BHTh.shape
  q_BKgTh = q_BHTh.reshape(batch, k_BKSh.shape[1], -1, time, head_dim)
  score = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKSh, preferred_element_type=jnp.float32) * head_dim**-0.5
  score = jnp.where(_seen_BTS(segments_BT, before_BP)[:, None, None], score, NEGATIVE)
  weight = jax.nn.softmax(score, -1).astype(v_BKSh.dtype)
  return jnp.einsum("bkgts,bksh->bkgth", weight, v_BKSh).reshape(q_BHTh.shape)


def mapped(
  q_BHTh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, segments_BT: jax.Array, before_BP: jax.Array
) -> jax.Array:
  """Some rows after others, whose scores are made again in the backward pass: for CPUs, in little memory."""

  def local(q, k, v, *segments):
    rows, scores = len(q), math.prod(q.shape[1:3]) * k.shape[2]
    block = max(n for n in range(1, rows + 1) if n == 1 or (rows % n == 0 and n * scores <= _SCORES))
    given = (q.reshape(*k.shape[:2], -1, *q.shape[2:]), k, v, *segments)
    if block == rows:
      return _rows(*given).reshape(q.shape)
    given = [x.reshape(rows // block, block, *x.shape[1:]) for x in given]
    return jax.lax.map(lambda x: _rows(*x), tuple(given)).reshape(q.shape)

  return _on_mesh(local, q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP)


def _masked_scores(q_BKgTh, k_BKSh, segments_BT, before_BP):
  score = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKSh, preferred_element_type=jnp.float32)
  return jnp.where(_seen_BTS(segments_BT, before_BP)[:, None, None], score * q_BKgTh.shape[-1] ** -0.5, NEGATIVE)


@jax.custom_vjp
def _rows(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP):
  return _rows_forward(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP)[0]


def _rows_forward(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP):
  score = _masked_scores(q_BKgTh, k_BKSh, segments_BT, before_BP)
  top = jnp.max(score, -1, keepdims=True)
  weight = jnp.exp(score - top)
  total = jnp.sum(weight, -1, keepdims=True)
  mixed = jnp.einsum("bkgts,bksh->bkgth", weight.astype(v_BKSh.dtype), v_BKSh, preferred_element_type=jnp.float32)
  out = (mixed / total).astype(q_BKgTh.dtype)
  return out, (q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP, out, top + jnp.log(total))


def _rows_backward(kept, d_out):
  """As FlashAttention's (Dao et al. 2022, appendix B), whole rows at a time."""
  q, k, v, segments_BT, before_BP, out, log_total = kept
  wide = dict(preferred_element_type=jnp.float32)
  weight = jnp.exp(_masked_scores(q, k, segments_BT, before_BP) - log_total)
  d_weight = jnp.einsum("bkgth,bksh->bkgts", d_out, v, **wide)
  mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
  d_score = (weight * (d_weight - mean) * q.shape[-1] ** -0.5).astype(q.dtype)

  def summed(weight, x):  # over queries; a CPU is slow unless the narrow side is transposed
    x_BKhn = jax.lax.optimization_barrier(x.reshape(*x.shape[:2], -1, x.shape[-1]).swapaxes(2, 3))
    weight_BKnS = weight.reshape(*weight.shape[:2], -1, weight.shape[-1])
    return jax.lax.optimization_barrier(jnp.einsum("bkhn,bkns->bkhs", x_BKhn, weight_BKnS)).swapaxes(2, 3)

  d_q = jnp.einsum("bkgts,bksh->bkgth", d_score, k)
  return d_q, summed(d_score, q), summed(weight.astype(v.dtype), d_out), None, None


_rows.defvjp(_rows_forward, _rows_backward)


def _on_mesh(local, q_BHTh, k_BKSh, v_BKSh, *segments):
  """Each device works on its own rows and heads."""
  if jax.sharding.get_abstract_mesh().empty:
    return local(q_BHTh, k_BKSh, v_BKSh, *segments)
  q, kv = (sharding.spec("batch", axis, None, None) for axis in ("heads", "kv_heads"))
  rows = [sharding.spec("batch", None)] * len(segments)
  on_mesh = jax.shard_map(local, in_specs=(q, kv, kv, *rows), out_specs=q, check_vma=False)
  return on_mesh(q_BHTh, k_BKSh, v_BKSh, *segments)


def _library(q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP, implementation: Literal["xla", "cudnn"]):
  """`jax.nn.dot_product_attention`, which wants [B,T,heads,h]."""
  q, k, v = (x.swapaxes(1, 2) for x in (q_BHTh, k_BKSh, v_BKSh))
  mask = _seen_BTS(segments_BT, before_BP)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation).swapaxes(1, 2)


def splash(
  q_BHTh: jax.Array,
  k_BKTh: jax.Array,
  v_BKTh: jax.Array,
  segments_BT: jax.Array,
  before_BP: jax.Array,
  *,
  interpret: bool = False,
) -> jax.Array:
  """The Pallas kernel for TPUs (splash attention): no [T,T] array, blocks above the diagonal are left out.

  Widths are padded to the kernel's blocks. On a mesh each device works on its own rows and heads. No slots before the
  row: the kernel knows equal segments only (`WHOLE_TEXTS`).
  """
  assert not before_BP.shape[1]
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  time, head_dim = q_BHTh.shape[2:]
  wide = -(-time // _LANES) * _LANES
  block = next(n for n in (512, 384, 256, _LANES) if wide % n == 0)
  sizes = kernels.BlockSizes(
    block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
    block_kv_dkv_compute=block, use_fused_bwd_kernel=True,
  )  # fmt: skip

  def local(q, k, v, segments):
    more = ((0, 0), (0, 0), (0, wide - time), (0, -head_dim % _LANES))
    q, k, v = (jnp.pad(x, more) for x in (q * head_dim**-0.5, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, wide - time)))
    q = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
    mask = kernels.MultiHeadMask([kernels.CausalMask((wide, wide))] * q.shape[2])
    kernel = kernels.make_splash_mqa_single_device(mask, block_sizes=sizes, interpret=interpret)
    heads = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids), (0, 0, 0, None))  # KV heads
    out = jax.vmap(heads)(q, k, v, kernels.SegmentIds(segments, segments))
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :, :time, :head_dim]

  return _on_mesh(local, q_BHTh, k_BKTh, v_BKTh, segments_BT)


# How whole rows attend. Keys: values of `model.attention` but for "auto".
ATTENTION: dict[str, Callable] = {
  "reference": reference,
  "mapped": mapped,
  "xla": functools.partial(_library, implementation="xla"),
  "cudnn": functools.partial(_library, implementation="cudnn"),
  "splash": splash,
}
WHOLE_TEXTS = ("splash",)  # those that can't have slots before the row


def computed_pairs(name: str, time: int, before: int = 0) -> float:
  """Returns how many pairs of a query and a key a function of `ATTENTION` computes, for each head and row: of `time`
  slots, with `before` slots before it."""
  if name == "splash":
    return time * (time + min(_SPLASH_BLOCK, time)) / 2
  return time * (before + time)


# What "auto" takes, by platform and dtype of activations.
AUTO = {
  ("cpu", "float32"): "mapped",
  ("gpu", "bfloat16"): "cudnn",
  ("tpu", "float32"): "splash",
  ("tpu", "bfloat16"): "splash",
}
_CUDNN = (8, 0)  # least compute capability with a kernel for attention: Ampere


def platform_of(device: jax.Device) -> str:
  """A device's platform as `AUTO` knows it; GPUs that have no kernel of cuDNN are `older gpu`."""
  if device.platform != "gpu":
    return device.platform
  capability = getattr(device, "compute_capability", "")  # "7.5"; AMD's are names
  new = re.fullmatch(r"\d+\.\d+", capability) and tuple(map(int, capability.split("."))) >= _CUDNN
  return "gpu" if new else "older gpu"


def resolve(name: str, platform: str, dtype: str) -> str:
  """The function's name where `name` is "auto", else `name`."""
  return AUTO.get((platform, dtype), "reference") if name == "auto" else name
