"""Memory of a run, counted from shapes: bytes on one device by part. Estimates; only a compiler knows the exact sizes.

A run holds some arrays from its beginning to its end (`Held`). Beside them lies either what an update takes
(`UpdateWork`) or what sampling takes (`SamplingWork`), so that the run needs the larger of the two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrlvr.device import sharding
from jaxrlvr.model import lora, weight_table
from jaxrlvr.model.attention import STORED_SCORES, scores_at_once
from jaxrlvr.model.row_layout import RowLayout, Separate
from jaxrlvr.model.score import piece_columns, piece_tokens
from jaxrlvr.model.spec import Leaf, Spec

_FLOAT32_BYTES = 4
_BATCH_BYTES = 8 * 4  # of a token of a batch: its id, position, segment, weight, advantage and three log-probabilities
_ROLLOUT_BYTES = 5 * 4  # of a token of a response: its id and four figures (log-probabilities, entropy, certainty)
# Shares that compilers keep in memory, fitted to `memory_analysis` of updates (tests/planning/test_estimates.py).
_RECOMPUTED = 0.5  # of what a layer computes again: the other half is fused into what reads it
_SAVED = 2  # copies of the training state that a checkpoint takes on the host: the arrays, and as they are written
_DRAWN = 4  # copies of the logits that tokens are drawn from
_COPIES = 2  # of scores and of logits: one becomes the other's exponentials or gradient


class Held(NamedTuple):
  """Bytes on a device that a run holds from its beginning to its end."""

  trained: float  # float32 weights that training changes; where nothing is trained, adapters or all weights
  frozen: float  # weights that adapters are added to
  moments: float  # both of AdamW
  reference: float  # the copy of all weights that is the reference model; with LoRA 0: frozen weights are the reference
  laid_out: float  # the copy of frozen weights for sampling, which is made once
  saved: float  # copies of weights and moments while a checkpoint is written: on a CPU, whose memory is the host's


class UpdateWork(NamedTuple):
  """Bytes on a device that an update takes beside what is held."""

  gradients: float  # the sum over microbatches, and those of one microbatch
  copies: float  # weights in the compute dtype
  activations: float  # of a microbatch: what all layers store for the backward pass, and what one layer works on
  logits: float  # of a piece of the microbatch's tokens and of the vocabulary, with hidden states
  step: float  # what AdamW's step takes above all this; 0 where it takes less
  batch: float  # all microbatches


class SamplingWork(NamedTuple):
  """Bytes on a device that sampling a batch takes beside what is held."""

  weights: float  # laid out for sampling, without those that are held
  prompts: float  # keys and values of the prompts, and what a layer works on while it computes them
  cache: float  # keys and values of the responses: the first block
  cache_growth: float  # the other blocks, which are allocated as responses grow
  logits: float  # of a step
  rollout: float  # tokens and their figures


class Memory(NamedTuple):
  """Bytes on a device, by part, that a run takes."""

  held: Held
  update: UpdateWork | None = None  # None: nothing is trained
  sampling: SamplingWork | None = None  # None: nothing is sampled

  @property
  def most(self) -> float:
    """Property: the most bytes at any time, if every response grows to the limit of tokens."""
    return sum(self.held) + max(sum(self.update or ()), sum(self.sampling or ()))

  @property
  def least(self) -> float:
    """Property: the most bytes at any time, if responses stay so short that they fill one block of the cache."""
    sampling = sum(self.sampling) - self.sampling.cache_growth if self.sampling else 0.0
    return sum(self.held) + max(sum(self.update or ()), sampling)


def _bytes_of(dtype: str) -> int:
  """Returns the bytes of a number."""
  return jnp.dtype(dtype).itemsize


def numbers_on_device(table: Mapping[str, Leaf], mesh: jax.sharding.Mesh) -> int:
  """Returns how many numbers of a table of weights a device of the mesh holds. Raises InputError as sharding does."""
  numbers = 0
  for name, leaf in table.items():
    place = sharding.checked_sharding(mesh, name, leaf.shape, leaf.axes)
    numbers += math.prod(place.shard_shape(leaf.shape))
  return numbers


def held_of_run(
  spec: Spec, mesh: jax.sharding.Mesh, moment: str = "", reference: bool = False, laid_out: float = 0.0
) -> Held:
  """Returns what a run holds, on a device of the mesh of training.

  moment: dtype of AdamW's first moment (the second is float32); "": nothing is trained. reference: whether training
  reads a reference model. laid_out: bytes of the frozen weights' copy for sampling (`frozen_for_sampling`).
  """
  trained = numbers_on_device(lora.trained_leaves(spec), mesh)
  frozen = moments = of_reference = 0.0
  if spec.lora is not None:
    frozen = numbers_on_device(weight_table.leaves(spec), mesh) * _bytes_of(spec.lora.base_dtype)
  if moment:
    moments = trained * (_bytes_of(moment) + _FLOAT32_BYTES)
  if reference and spec.lora is None:
    of_reference = trained * _bytes_of(spec.dtype)
  weights = trained * _FLOAT32_BYTES
  saved = _SAVED * (weights + moments) if moment and _is_cpu(mesh) else 0.0
  return Held(weights, frozen, moments, of_reference, laid_out, saved)


class _Share(NamedTuple):
  """What one device has of a microbatch, and of each token in a layer."""

  rows: int
  heads: float  # query heads
  queries: float  # numbers in all of these
  keys: float  # numbers in all KV heads
  mlp: float  # numbers in the MLP's hidden layer
  number: int  # bytes of a number


def _share(spec: Spec, mesh: jax.sharding.Mesh, rows: int) -> _Share:
  """Returns what a device of the mesh has of a microbatch of so many rows."""
  tensor = mesh.shape["tensor"]
  # XLA computes bfloat16 in float32 on a CPU.
  number = _FLOAT32_BYTES if _is_cpu(mesh) else _bytes_of(spec.dtype)
  return _Share(
    rows=math.ceil(rows / sharding.shard_count(mesh, "batch")),
    heads=spec.heads / tensor,
    queries=spec.heads / tensor * spec.head_dim,
    keys=max(spec.kv_heads, tensor) / tensor * spec.head_dim,
    mlp=spec.mlp / tensor,
    number=number,
  )


def _is_cpu(mesh: jax.sharding.Mesh) -> bool:
  """Returns whether the mesh's devices are CPUs."""
  return mesh.devices.flat[0].platform == "cpu"


def _everything(spec: Spec, share: _Share) -> float:
  """Returns the bytes that a layer stores of a token with remat "none", but for scores of attention."""
  table = weight_table.leaves(spec)
  norms = sum(leaf.layered and leaf.layer_shape == (spec.width,) for leaf in table.values())  # of hidden states
  of_norm = 2 * _FLOAT32_BYTES + 2 * share.number  # a number before and after, and both in float32
  attention = share.number * (3 * share.queries + 2 * share.keys) + _FLOAT32_BYTES * share.heads
  if "q_norm" in table:
    attention += of_norm * (share.queries + share.keys)
  mlp = 6 * share.number * share.mlp  # gate, up, and what becomes of them
  return norms * of_norm * spec.width + attention + mlp


def _stored(spec: Spec, share: _Share) -> float:
  """Returns the bytes that a layer stores of a token for the backward pass, but for scores of attention."""
  layer_input = share.number * spec.width
  if spec.remat == "none":
    return _everything(spec, share)
  if spec.remat == "full":
    return layer_input
  products = share.number * (spec.width + share.queries + 2 * share.keys + 2 * share.mlp)  # the last one is not read
  return layer_input + (products if spec.lora is None else 2 * products)  # with adapters there are two of each


def _activations(spec: Spec, share: _Share, layout: RowLayout) -> float:
  """Returns the bytes of a microbatch's activations: what all layers store, and what one layer works on."""
  tokens = share.rows * layout.slots
  stored, everything = _stored(spec, share), _everything(spec, share)
  gradients = share.number * (4 * spec.width + 2 * share.queries + 2 * share.keys + 4 * share.mlp)
  recomputed = (_RECOMPUTED + spec.unroll - 1) * (everything - stored)  # unrolled layers are computed again together
  layer = tokens * (recomputed + gradients) + _scores(spec, share, layout)
  stored_scores = 0.0
  if spec.attention in STORED_SCORES:  # before the softmax and after it
    pairs = layout.attention_pairs(spec.attention).computed
    stored_scores = share.rows * share.heads * pairs * (_FLOAT32_BYTES + share.number)
  if spec.remat != "none":  # of one layer alone, computed again
    return spec.layers * tokens * stored + layer + _RECOMPUTED * stored_scores
  return spec.layers * (tokens * stored + stored_scores) + layer


def _scores(spec: Spec, share: _Share, layout: RowLayout) -> float:
  """Returns the bytes of the scores that attention works on at once."""
  rows, pairs = layout.attended_rows(share.rows)
  return _COPIES * _FLOAT32_BYTES * scores_at_once(spec.attention, rows, math.ceil(share.heads * pairs))


def _logits(spec: Spec, share: _Share, layout: RowLayout, tensor: int) -> float:
  """Returns the bytes of scoring a microbatch's tokens: a piece of logits and of the head, hidden states."""
  tokens = share.rows * layout.slots
  columns = piece_columns(spec.vocab, spec.vocab_chunk, tensor)
  logits = _COPIES * _FLOAT32_BYTES * piece_tokens(tokens) * columns
  head = (_FLOAT32_BYTES + share.number) * columns * spec.width  # and its gradient
  hidden = (_FLOAT32_BYTES + share.number) * tokens * spec.width
  return logits + head + hidden


def _copies(spec: Spec, mesh: jax.sharding.Mesh) -> float:
  """Returns the bytes of weights in the dtypes of computation (`forward.cast`), where they are kept in another."""
  compute = _bytes_of(spec.dtype)
  copies = 0.0
  if _is_cpu(mesh) and compute < _FLOAT32_BYTES:  # for products, which a CPU computes in float32
    copies += numbers_on_device(weight_table.leaves(spec), mesh) * _FLOAT32_BYTES
  if compute < _FLOAT32_BYTES:
    copies += numbers_on_device(lora.trained_leaves(spec), mesh) * compute
  if spec.lora is not None:
    base = numbers_on_device(weight_table.leaves(spec), mesh) * compute
    if _bytes_of(spec.lora.base_dtype) > compute:
      copies += base
    elif _bytes_of(spec.lora.base_dtype) < compute:  # each layer widens its own
      copies += base / spec.layers
  return copies


def work_of_update(
  spec: Spec, mesh: jax.sharding.Mesh, layout: RowLayout, *, rows: int, microbatches: int, moment: str
) -> UpdateWork:
  """Returns what an update takes, on a device of the mesh of training.

  layout: says how many slots a row has and which of them attend to which. rows: rows of the batch, on all devices
  together. microbatches: how many these are cut into. moment: dtype of AdamW's first moment. It is at least what
  scoring the batch by a reference model takes, which has no backward pass.
  """
  share = _share(spec, mesh, math.ceil(rows / microbatches))
  trained = numbers_on_device(lora.trained_leaves(spec), mesh)
  gradients = trained * share.number  # of one microbatch, which become float32 as they are read
  step = trained * _FLOAT32_BYTES
  if microbatches > 1:
    gradients += trained * _FLOAT32_BYTES
  copies = _copies(spec, mesh)
  activations = _activations(spec, share, layout)
  logits = _logits(spec, share, layout, mesh.shape["tensor"])
  if _is_cpu(mesh):  # which steps from copies of the moments
    step += trained * (_bytes_of(moment) + _FLOAT32_BYTES)
  above = max(0.0, step - gradients - copies - activations - logits)
  batch = _BATCH_BYTES * math.ceil(rows / sharding.shard_count(mesh, "batch")) * layout.slots
  return UpdateWork(gradients, copies, activations, logits, above, batch)


def frozen_for_sampling(spec: Spec, mesh: jax.sharding.Mesh, int8: Collection[str] = ()) -> float:
  """Returns the bytes of all weights but adapters as laid out for sampling, on a device of the mesh of sampling.

  int8: what is kept in 8 bits, "weights" and "cache"; norms and biases are not.
  """
  table = weight_table.leaves(spec)
  if "weights" not in int8:
    return numbers_on_device(table, mesh) * _bytes_of(spec.dtype)
  products = {name: leaf for name, leaf in table.items() if leaf.input_axes}
  others = {name: leaf for name, leaf in table.items() if not leaf.input_axes}
  return numbers_on_device(products, mesh) + numbers_on_device(others, mesh) * _bytes_of(spec.dtype)


def work_of_sampling(
  spec: Spec,
  mesh: jax.sharding.Mesh,
  *,
  problems: int,
  prompt_tokens: int,
  group: int,
  max_tokens: int,
  block_slots: int,
  int8: Collection[str] = (),
) -> SamplingWork:
  """Returns what sampling a batch takes, on a device of the mesh of sampling.

  problems: prompts in the batch, each with `group` responses. prompt_tokens: tokens of a prompt, padding included.
  max_tokens: of a response. block_slots: tokens of a block of the responses' cache. int8: as in `frozen_for_sampling`.
  """
  share = _share(spec, mesh, problems)
  head_bytes = spec.head_dim * _bytes_of(spec.dtype)
  if "cache" in int8:
    head_bytes = spec.head_dim + _FLOAT32_BYTES  # 8 bits a number, and a float32 scale
  token_bytes = 2 * spec.layers * share.keys / spec.head_dim * head_bytes  # a key and a value
  rows = share.rows * group
  block = rows * block_slots * token_bytes
  blocks = math.ceil(max_tokens / block_slots)
  if spec.lora is None:
    weights = frozen_for_sampling(spec, mesh, int8)
  else:
    weights = numbers_on_device(weight_table.adapter_leaves(spec), mesh) * _bytes_of(spec.dtype)
  prompt_slots = share.rows * prompt_tokens
  mlp = prompt_slots * share.number * 3 * share.mlp
  attention = prompt_slots * share.number * 2 * (share.queries + share.keys)
  attention += _scores(spec, share, Separate(prompt_tokens))
  prefill = prompt_slots * share.number * 4 * spec.width + max(mlp, attention)
  return SamplingWork(
    weights=weights,
    prompts=prompt_slots * token_bytes + prefill,
    cache=block,
    cache_growth=(blocks - 1) * block,
    logits=_DRAWN * _FLOAT32_BYTES * rows * spec.vocab / mesh.shape["tensor"],
    rollout=rows * max_tokens * _ROLLOUT_BYTES,
  )
