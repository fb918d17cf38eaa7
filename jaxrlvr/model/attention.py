"""Attention of whole rows: the table ATTENTION, one function a platform, chosen by the config key `model.attention`.

Every function of the table has the signature of `reference`:
* q_BHTh: queries of B rows, H heads, T slots, head width h.
* k_BKSh, v_BKSh: keys and values of K KV heads; K divides H. Their S = P + T slots are P slots that stand before the
  row, such as a prompt that several rows share, then the row's own T.
* segments_BT: int, the number of the text in each slot of the row, 0 for padding. The slots of a text are adjacent.
* before_BP: int, > 0 where a slot before the row holds a token, 0 where it is padding. Padding comes first. Without
  such slots it is an empty array [B,0], and S = T.
* window: static; how far back a query sees, itself included. 0: as far as there is something.
* returns out_BHTh, in the dtype of the queries. At padding it is finite and has no meaning.

Attention is causal: a query attends to the slots of its own segment up to itself, and to all slots before the row that
are not padding, whatever their segment number. Scores are scaled by 1/sqrt(h).

With a window (sliding window attention) a query at position i of its text sees a key at position j where
0 <= i - j < window. Each segment is taken to go on from the slots before the row: its first slot comes right behind
the last of them. A window that reaches over all S slots is left out, so that it compiles to the same program as none.
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
_MAX_SCORES = 2**23  # scores that `mapped` holds at once, unless one row alone has more
_SPLASH_BLOCKS = (512, 384, 256, 128)  # slots of a block of the TPU kernel; it takes the first that divides the row
_LANES = 128  # of a TPU: the kernel's slots and head width are multiples of it


def limits(window: int, slots: int) -> bool:
  """Returns whether the window (0: none) hides a key where a query and its keys lie within so many slots."""
  return 0 < window < slots


def _visible_BTS(segments_BT: jax.Array, before_BP: jax.Array, window: int) -> jax.Array:
  """Returns True where query T may attend to key S; the keys are slots -P .. T-1, with the P before the row first.

  Compares each key with one number of the query, the first slot that it sees, because compilers vectorise that.
  """
  slots, before = jnp.arange(segments_BT.shape[1]), before_BP.shape[1]
  has_window = limits(window, before + len(slots))
  changes_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
  first_BT = jax.lax.cummax(jnp.where(changes_BT, slots, 0), axis=1)
  seen_BT = jnp.maximum(first_BT, slots - window + 1) if has_window else first_BT
  keys = jnp.arange(-before, len(slots))
  # One unsigned comparison tests both ends: a key before the first seen one wraps around to a huge number.
  key_offset_BTS = (keys - seen_BT[..., None]).astype(jnp.uint32)
  query_offset_BT1 = (slots - seen_BT)[..., None].astype(jnp.uint32)
  own_segment_BTS = key_offset_BTS <= query_offset_BT1
  if not before:
    return own_segment_BTS
  real = jnp.sum(before_BP > 0, 1)[:, None, None]  # slots before the row that the query sees, [B,1,1] or [B,T,1]
  if has_window:
    left_BT1 = window - 1 - (slots - first_BT)[..., None]  # what the query's own segment leaves of the window
    real = jnp.clip(left_BT1, 0, real)
  prompt_BTS = (keys + real).astype(jnp.uint32) < real.astype(jnp.uint32)
  return own_segment_BTS | prompt_BTS


def reference(
  q_BHTh: jax.Array,
  k_BKSh: jax.Array,
  v_BKSh: jax.Array,
  segments_BT: jax.Array,
  before_BP: jax.Array,
  *,
  window: int = 0,
) -> jax.Array:
  """Returns causal attention out_BHTh, computed with plain products and a softmax over float32 scores.

  segments_BT: int, number of the text in each slot, 0 for padding; a query sees its own text up to itself.
  before_BP: int, > 0 where a slot before the row, such as of a shared prompt, holds a token; every query sees these.
  Keys and values hold those P slots first, then the row's T. window: static, keys that a query sees, itself included;
  0: all. The module's docstring says more. Holds all [B,H,T,S] scores at once; the tests compare the other functions
  with this one.
  """
  batch, _, time, head_dim = q_BHTh.shape
  q_BKgTh = q_BHTh.reshape(batch, k_BKSh.shape[1], -1, time, head_dim)
  score = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKSh, preferred_element_type=jnp.float32) * head_dim**-0.5
  visible_BTS = _visible_BTS(segments_BT, before_BP, window)
  score = jnp.where(visible_BTS[:, None, None], score, NEGATIVE)
  weight = jax.nn.softmax(score, -1).astype(v_BKSh.dtype)
  return jnp.einsum("bkgts,bksh->bkgth", weight, v_BKSh).reshape(q_BHTh.shape)


def mapped(
  q_BHTh: jax.Array,
  k_BKSh: jax.Array,
  v_BKSh: jax.Array,
  segments_BT: jax.Array,
  before_BP: jax.Array,
  *,
  window: int = 0,
) -> jax.Array:
  """Returns the same as `reference`, computed one block of rows at a time, for CPUs.

  Takes little memory: a block has at most 2**23 scores (32 MiB) or one row, and the backward pass recomputes scores
  instead of keeping them. On the mesh of `jax.set_mesh`, each device computes its own rows and heads.
  """

  def local(q_BHTh, k_BKSh, v_BKSh, *segments):
    rows, heads, time, head_dim = q_BHTh.shape
    q_BKgTh = q_BHTh.reshape(rows, k_BKSh.shape[1], -1, time, head_dim)
    block = _rows_at_once(rows, scores_of_row=heads * time * k_BKSh.shape[2])
    if block == rows:
      return _rows(q_BKgTh, k_BKSh, v_BKSh, *segments, window).reshape(q_BHTh.shape)
    arrays = (q_BKgTh, k_BKSh, v_BKSh, *segments)
    blocks = tuple(x.reshape(rows // block, block, *x.shape[1:]) for x in arrays)
    return jax.lax.map(lambda arrays: _rows(*arrays, window), blocks).reshape(q_BHTh.shape)

  return _on_mesh(local, q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP)


def _rows_at_once(rows: int, scores_of_row: int) -> int:
  """Returns the largest divisor of `rows` whose rows together have at most _MAX_SCORES scores, at least 1."""
  for block in range(rows, 1, -1):
    if rows % block == 0 and block * scores_of_row <= _MAX_SCORES:
      return block
  return 1


def _masked_scores(q_BKgTh, k_BKSh, segments_BT, before_BP, window):
  """Returns scaled scores [B,K,g,T,S], NEGATIVE where a query may not attend."""
  score = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKSh, preferred_element_type=jnp.float32)
  visible_BTS = _visible_BTS(segments_BT, before_BP, window)
  return jnp.where(visible_BTS[:, None, None], score * q_BKgTh.shape[-1] ** -0.5, NEGATIVE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _rows(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP, window):
  """Returns attention [B,K,g,T,h] of a block of rows."""
  return _rows_forward(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP, window)[0]


def _rows_forward(q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP, window):
  """Returns what `_rows` returns, and what its backward pass needs: all but the scores."""
  score = _masked_scores(q_BKgTh, k_BKSh, segments_BT, before_BP, window)
  top = jnp.max(score, -1, keepdims=True)
  weight = jnp.exp(score - top)
  total = jnp.sum(weight, -1, keepdims=True)
  mixed = jnp.einsum("bkgts,bksh->bkgth", weight.astype(v_BKSh.dtype), v_BKSh, preferred_element_type=jnp.float32)
  out = (mixed / total).astype(q_BKgTh.dtype)
  return out, (q_BKgTh, k_BKSh, v_BKSh, segments_BT, before_BP, out, top + jnp.log(total))


def _rows_backward(window, residuals, d_out):
  """Returns the gradients of q, k and v as FlashAttention does (Dao et al. 2022, appendix B), whole rows at a time."""
  q, k, v, segments_BT, before_BP, out, log_total = residuals
  weight = jnp.exp(_masked_scores(q, k, segments_BT, before_BP, window) - log_total)
  d_weight = jnp.einsum("bkgth,bksh->bkgts", d_out, v, preferred_element_type=jnp.float32)
  mean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
  d_score = (weight * (d_weight - mean) * q.shape[-1] ** -0.5).astype(q.dtype)
  d_q = jnp.einsum("bkgts,bksh->bkgth", d_score, k)
  d_k = _sum_over_queries(d_score, q)
  d_v = _sum_over_queries(weight.astype(v.dtype), d_out)
  return d_q, d_k, d_v, None, None


def _sum_over_queries(weight_BKgTS, x_BKgTh):
  """Returns sums [B,K,S,h] of weight * x over the queries of all g heads of a KV head.

  The narrow array is transposed first, and the barriers keep it so: a CPU is slow without.
  """
  x_BKnh = x_BKgTh.reshape(*x_BKgTh.shape[:2], -1, x_BKgTh.shape[-1])
  x_BKhn = jax.lax.optimization_barrier(x_BKnh.swapaxes(2, 3))
  weight_BKnS = weight_BKgTS.reshape(*weight_BKgTS.shape[:2], -1, weight_BKgTS.shape[-1])
  total_BKhS = jax.lax.optimization_barrier(jnp.einsum("bkhn,bkns->bkhs", x_BKhn, weight_BKnS))
  return total_BKhS.swapaxes(2, 3)


_rows.defvjp(_rows_forward, _rows_backward)


def _on_mesh(local, q_BHTh, k_BKSh, v_BKSh, *segments):
  """Calls `local` on each device with the device's own rows and heads; without a mesh, once with everything."""
  if jax.sharding.get_abstract_mesh().empty:
    return local(q_BHTh, k_BKSh, v_BKSh, *segments)
  query = sharding.spec("batch", "heads", None, None)
  key = sharding.spec("batch", "kv_heads", None, None)
  segment = sharding.spec("batch", None)
  in_specs = (query, key, key, *[segment] * len(segments))
  on_mesh = jax.shard_map(local, in_specs=in_specs, out_specs=query, check_vma=False)
  return on_mesh(q_BHTh, k_BKSh, v_BKSh, *segments)


def _library(
  q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP, *, window: int = 0, implementation: Literal["xla", "cudnn"]
):
  """Calls `jax.nn.dot_product_attention`, whose layout is [B,T,heads,h]."""
  q, k, v = (x.swapaxes(1, 2) for x in (q_BHTh, k_BKSh, v_BKSh))
  mask = _visible_BTS(segments_BT, before_BP, window)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation).swapaxes(1, 2)


def splash(
  q_BHTh: jax.Array,
  k_BKTh: jax.Array,
  v_BKTh: jax.Array,
  segments_BT: jax.Array,
  before_BP: jax.Array,
  *,
  window: int = 0,
  interpret: bool = False,
) -> jax.Array:
  """Returns the same as `reference` where before_BP is [B,0], computed with jax's Pallas kernel for TPUs.

  The kernel (splash attention) never holds a [T,T] array, and leaves out blocks above the diagonal and before the
  window. Slots and head width are padded to its blocks. It can only compare segments, so it raises AssertionError where
  there are slots before the row. interpret: emulates the kernel on a machine without a TPU, slowly.
  """
  assert not before_BP.shape[1]
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  time, head_dim = q_BHTh.shape[2:]
  padded = math.ceil(time / _LANES) * _LANES  # slots
  block = next(size for size in _SPLASH_BLOCKS if padded % size == 0)
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  mask_of_head: kernels.Mask = kernels.CausalMask((padded, padded))
  if limits(window, time):
    mask_of_head = kernels.LocalMask((padded, padded), window_size=(window - 1, 0), offset=0)

  def local(q, k, v, segments):
    padding = ((0, 0), (0, 0), (0, padded - time), (0, -head_dim % _LANES))
    q, k, v = (jnp.pad(x, padding) for x in (q * head_dim**-0.5, k, v))
    segments = jnp.pad(segments, ((0, 0), (0, padded - time)))
    q = q.reshape(q.shape[0], k.shape[1], -1, *q.shape[2:])
    mask = kernels.MultiHeadMask([mask_of_head] * q.shape[2])
    kernel = kernels.make_splash_mqa_single_device(mask, block_sizes=sizes, interpret=interpret)
    over_kv_heads = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, segment_ids=ids), (0, 0, 0, None))
    over_rows = jax.vmap(over_kv_heads)
    out = over_rows(q, k, v, kernels.SegmentIds(segments, segments))
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :, :time, :head_dim]

  return _on_mesh(local, q_BHTh, k_BKTh, v_BKTh, segments_BT)


# Functions with the signature of `reference`, by name: the values of `model.attention` besides "auto".
ATTENTION: dict[str, Callable] = {
  "reference": reference,
  "mapped": mapped,
  "xla": functools.partial(_library, implementation="xla"),
  "cudnn": functools.partial(_library, implementation="cudnn"),
  "splash": splash,
}
STORED_SCORES = ("reference", "xla")  # names of functions that store all scores for the backward pass
_WITHOUT_SCORES = ("splash", "cudnn")  # names of kernels that never write scores to memory
WHOLE_TEXTS = ("splash",)  # names in ATTENTION of functions that can't attend to slots before the row


def computed_pairs(name: str, time: int, before: int = 0, window: int = 0) -> float:
  """Returns how many pairs of a query and a key the attention function of this name computes for one head of a row.

  time: T, slots of the row. before: P, slots before the row. window: keys that a query sees; 0: all. The number is
  T * (P + T), masked pairs included. For "splash", which leaves out blocks above the diagonal, it is about half of
  T * T, and with a window, before which blocks are left out too, about T times the window.
  """
  if name != "splash":
    return time * (before + time)
  block = min(_SPLASH_BLOCKS[0], time)
  reach = time  # slots in the blocks that a query of the last block is compared with
  if limits(window, time):
    reach = min(time, block + math.ceil((window - 1) / block) * block)
  return reach * (time - (reach - block) / 2)  # without a window half of the square, and of the blocks on the diagonal


def scores_at_once(name: str, rows: int, scores_of_row: int) -> int:
  """Returns how many scores of a query and a key the attention function of this name has in memory at once.

  rows: rows that a device computes. scores_of_row: those of all heads on the device. "splash" and "cudnn" have none.
  """
  if name in _WITHOUT_SCORES:
    return 0
  return scores_of_row * (_rows_at_once(rows, scores_of_row) if name == "mapped" else rows)


# What "auto" stands for, by platform and dtype of activations; "reference" for all other pairs.
_AUTO = {
  ("cpu", "float32"): "mapped",
  ("gpu", "bfloat16"): "cudnn",
  ("tpu", "float32"): "splash",
  ("tpu", "bfloat16"): "splash",
}
_CUDNN = (8, 0)  # lowest compute capability for which cuDNN has an attention kernel: Ampere


def platform_of(device: jax.Device) -> str:
  """Returns "cpu", "tpu", "gpu", or "older gpu" for a GPU that cuDNN has no attention kernel for.

  That is an Nvidia GPU before Ampere (compute capability 8.0), or one of another maker.
  """
  if device.platform != "gpu":
    return device.platform
  capability = getattr(device, "compute_capability", "")  # such as "7.5"; AMD's are names
  if not re.fullmatch(r"\d+\.\d+", capability):
    return "older gpu"
  major, minor = capability.split(".")
  return "gpu" if (int(major), int(minor)) >= _CUDNN else "older gpu"


def resolve(name: str, platform: str, dtype: str) -> str:
  """Returns the name in `ATTENTION` that a value of `model.attention` stands for.

  "auto" stands for "mapped" on cpu with float32, "cudnn" on gpu with bfloat16, "splash" on tpu, and "reference" for
  every other pair of platform (`platform_of`) and dtype of activations ("float32" or "bfloat16"). Any other name is
  returned unchanged and unchecked.
  """
  if name != "auto":
    return name
  return _AUTO.get((platform, dtype), "reference")
