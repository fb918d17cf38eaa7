"""Work of the policy's programs counted from shapes: FLOPs and HBM bytes of one chip (a multiply-add is two FLOPs)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from jaxrlvr.model.lora import count_adapters
from jaxrlvr.model.row_layout import AttentionPairs, RowLayout
from jaxrlvr.model.spec import Spec
from jaxrlvr.model.weight_table import count_weights

_FLOAT32_BYTES = 4
_WRITE_AND_READ = 2  # an array that is written once and read once moves its bytes twice


class Cost(NamedTuple):
  """Work of one chip in one run of a program. `bytes` is a lower bound: what HBM must at least deliver or receive."""

  flops: float  # FLOPs that are computed, with recomputation and masked-out products
  model_flops: float  # FLOPs that the mathematics needs: the numerator of MFU
  bytes: float  # HBM bytes read and written

  def plus(self, other: Cost) -> Cost:
    """Returns the cost of running both programs, one after the other."""
    return Cost(self.flops + other.flops, self.model_flops + other.model_flops, self.bytes + other.bytes)

  def repeated(self, times: float) -> Cost:
    """Returns the cost of running the program `times` times."""
    return Cost(self.flops * times, self.model_flops * times, self.bytes * times)


class Shards(NamedTuple):
  """How many shards a mesh cuts the work into; chips that share the work: batch * tensor."""

  batch: int  # shards of the rows
  tensor: int  # shards of heads, MLP and vocabulary
  weights: int  # shards of master weights and optimizer moments


def _layer_weights(spec: Spec) -> int:
  """Returns how many weights one layer has in its matrices, those of attention and MLP: two FLOPs a token each."""
  attention = spec.width * (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim
  mlp = 3 * spec.width * spec.mlp
  return attention + mlp


def _compute_bytes(spec: Spec) -> int:
  """Returns the bytes of a number in the compute dtype."""
  return 2 if spec.dtype == "bfloat16" else 4


def _activation_bytes(spec: Spec, keys: float, tensor: int) -> float:
  """Returns the HBM bytes that one token's activations move in one layer.

  Each array between two operations is written once and read once. keys: how many keys a query is scored against.
  tensor: shards of heads and MLP.
  """
  sharded_width = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim + 3 * spec.mlp
  replicated_width = 5 * spec.width
  score_bytes = 0  # the splash kernel keeps scores out of HBM
  if spec.attention != "splash":
    score_bytes = 2 * _FLOAT32_BYTES * spec.heads * keys  # scores before and after the softmax
  width_bytes = _WRITE_AND_READ * _compute_bytes(spec) * (replicated_width + sharded_width / tensor)
  return width_bytes + _WRITE_AND_READ * score_bytes / tensor


def _attention_flops_per_pair(spec: Spec) -> int:
  """Returns the forward FLOPs of one layer for a pair of query and key: a score and a weighted value in each head."""
  return 4 * spec.heads * spec.head_dim


def _mean_over_layers(spec: Spec, of_window: Callable[[int], float]) -> float:
  """Returns the mean over the layers of a figure that depends on a layer's window (0: none)."""
  return sum(of_window(spec.layer_kinds[kind].window) for kind in spec.kind_of_layer) / spec.layers


def _attention_pairs(spec: Spec, layout: RowLayout) -> AttentionPairs:
  """Returns the pairs of a query and a key of a layer, as the mean over the layers, for one head of one row."""
  return AttentionPairs(
    computed=_mean_over_layers(spec, lambda window: layout.attention_pairs(spec.attention, window).computed),
    needed=_mean_over_layers(spec, lambda window: layout.attention_pairs(spec.attention, window).needed),
  )


def forward_cost(spec: Spec, rows: int, layout: RowLayout, scored: int, shards: Shards) -> Cost:
  """Returns the cost, on one chip, of a forward pass of the policy, with its adapters if `spec.lora` has some.

  rows: rows of the batch, on all chips together. layout: says how many slots a row has and which of them attend to
  which. scored: slots of a row at which the output head computes logits; 0: the pass has no head. shards: how the mesh
  cuts the work.
  """
  slots = layout.slots
  pairs = _attention_pairs(spec, layout)
  per_pair = _attention_flops_per_pair(spec) * rows
  projections = 2 * rows * slots * (_layer_weights(spec) + count_adapters(spec) / spec.layers)
  head = 2 * spec.width * spec.vocab * rows * scored
  flops = spec.layers * (projections + per_pair * pairs.computed) + head
  model_flops = spec.layers * (projections + per_pair * pairs.needed) + head
  rows_here = rows / shards.batch
  token_bytes = _activation_bytes(spec, pairs.computed / slots, shards.tensor)
  layer_bytes = spec.layers * rows_here * slots * token_bytes
  logit_bytes = _WRITE_AND_READ * _FLOAT32_BYTES * rows_here * scored * spec.vocab / shards.tensor
  weight_bytes = _compute_bytes(spec) * (count_weights(spec) + count_adapters(spec)) / shards.tensor
  chips = shards.batch * shards.tensor
  return Cost(flops / chips, model_flops / chips, layer_bytes + logit_bytes + weight_bytes)


def update_cost(
  spec: Spec, rows: int, layout: RowLayout, scored: int, microbatches: int, moment_bytes: int, shards: Shards
) -> Cost:
  """Returns the cost of one training step on one chip: gradients of all microbatches, then AdamW's step.

  rows: rows of the whole batch, on all chips together. layout: says how many slots a row has and which of them attend
  to which. scored: slots of a row that the loss looks at. microbatches: how many the batch is cut into. moment_bytes:
  bytes of a number of AdamW's first moment, 4 or 2; the second is float32. shards: how the mesh cuts the work.
  What the backward pass computes again follows from spec.remat and spec.attention. With `spec.lora` no gradient of a
  frozen weight is computed.
  """
  chips = shards.batch * shards.tensor
  layers = forward_cost(spec, rows, layout, 0, shards)  # a forward pass without the head
  head = 2 * spec.width * spec.vocab * rows * scored / chips
  frozen = 0.0  # gradients of frozen weights, which are left out
  if spec.lora is not None:
    frozen = 2 * rows * layout.slots * spec.layers * _layer_weights(spec) / chips + head
  flops = 3 * layers.flops  # forward, gradients of inputs and of weights
  flops += _recomputed_flops(spec, rows, layout, shards)
  flops += 4 * head  # the scorer computes the logits again in the backward pass
  flops -= frozen
  model_flops = 3 * (layers.model_flops + head) - frozen
  moved = _update_bytes(spec, rows, layers.bytes, scored, microbatches, moment_bytes, shards)
  return Cost(flops, model_flops, moved)


def _recomputed_flops(spec: Spec, rows: int, layout: RowLayout, shards: Shards) -> float:
  """Returns the FLOPs, on one chip, that the backward pass of all layers spends on computing values again."""
  chips = shards.batch * shards.tensor
  pairs = rows * _attention_pairs(spec, layout).computed
  attention = spec.layers * _attention_flops_per_pair(spec) * pairs / chips
  # Of a layer computed again the MLP's last product is left out: no gradient needs its result.
  last_inputs = spec.mlp
  if spec.lora is not None and "down" in spec.lora.targets:
    last_inputs += spec.lora.rank  # and that of its second adapter
  last_product = spec.layers * 2 * rows * layout.slots * spec.width * last_inputs / chips
  recomputed = {
    "none": 0,
    "dots": attention,
    "full": forward_cost(spec, rows, layout, 0, shards).flops - last_product,
  }[spec.remat]
  if spec.attention == "splash":
    recomputed += attention / 2  # the kernel's backward pass computes the scores again
  return recomputed


def _update_bytes(
  spec: Spec, rows: int, forward_bytes: float, scored: int, microbatches: int, moment_bytes: int, shards: Shards
) -> float:
  """Returns the HBM bytes of one training step on one chip. forward_bytes: HBM bytes of a forward pass without head."""
  passes = 3  # over activations: forward, and twice in the backward pass
  if spec.remat == "full":
    passes += 1  # the layers again
  adapters = count_adapters(spec)
  trained = count_weights(spec) if spec.lora is None else adapters
  gathered = _compute_bytes(spec) * (count_weights(spec) + adapters) / shards.tensor  # in the compute dtype
  logit_passes = 4 * _WRITE_AND_READ * _FLOAT32_BYTES  # logits, logits again, and their gradient for two products
  logit_bytes = logit_passes * rows / shards.batch * scored * spec.vocab / shards.tensor
  activation_bytes = (forward_bytes - gathered) * passes + logit_bytes
  # Trained weights and both moments are read and written, the gradient is read.
  state = 2 * (_FLOAT32_BYTES + moment_bytes + _FLOAT32_BYTES) + _FLOAT32_BYTES
  state_bytes = trained / shards.weights * state
  gradient_bytes = 0
  if microbatches > 1:  # the sum of gradients is read and written for each microbatch
    gradient_bytes = _WRITE_AND_READ * _FLOAT32_BYTES * trained / shards.weights * microbatches
  return activation_bytes + gathered * (passes - 1) * microbatches + gradient_bytes + state_bytes


class Level(NamedTuple):
  """A part of sampling in which the batch of a chip has one size."""

  rows: int  # of the batch
  steps: float  # expected number of decode steps with that batch


def level_steps(rows: int, max_tokens: int, mean_tokens: float, shrink: int) -> list[Level]:
  """Estimates how long the sampler decodes with each size of its batch; returns the sizes in order, largest first.

  The sampler begins with `rows` rows on a chip and halves them, as responses end, at most `shrink` times; an odd number
  and fewer than 4 rows are not halved. Responses have at most `max_tokens` tokens and `mean_tokens` (above 0) in the
  mean. With max and mean for these, the share of rows that are still sampled after t tokens is taken to be
  (1 - t / max)^(max / mean - 1), which has that mean. The first token takes no decode step, so that all steps together
  are max_tokens - 1.
  """
  power = max_tokens / mean_tokens - 1
  levels: list[Level] = []
  begin = 0.0
  for level in range(shrink + 1):
    is_last = level == shrink or rows % 2 or rows < 4
    if is_last or not power:
      end = max_tokens - 1
    else:
      end = (max_tokens - 1) * (1 - 0.5 ** ((level + 1) / power))
    levels.append(Level(rows, end - begin))
    if is_last:
      break
    rows, begin = rows // 2, end
  return levels


def read_slots(begin: float, steps: float, block_slots: int, window: int = 0) -> float:
  """Returns how many cache slots of its own response a row reads in a decode step, as the mean over some steps.

  The steps are number begin up to begin + steps. Step t reads all blocks of `block_slots` slots up to that of slot t,
  without those that lie before the window (0: none) of all slots of its block. Without any step the result is one
  block.
  """
  if not steps:
    return block_slots
  end = begin + steps
  total = 0.0
  block = int(begin // block_slots)
  while block * block_slots < end:
    block_end = (block + 1) * block_slots
    steps_in_block = min(end, block_end) - max(begin, block * block_slots)
    blocks_before = min(block, (window + block_slots - 2) // block_slots) if window else block
    total += (blocks_before + 1) * block_slots * steps_in_block
    block += 1
  return total / steps


def decode_cost(
  spec: Spec,
  group: int,
  prompt_slots: int,
  block_slots: int,
  levels: Sequence[Level],
  shards: Shards,
  int8: Collection[str] = (),
) -> Cost:
  """Returns the cost, on one chip, of decoding all tokens of its responses but the first, which prefill samples.

  group: responses to a prompt; they share its cache until the batch is first halved. prompt_slots: slots of a prompt,
  padding included. block_slots: slots of a block of the responses' cache, which is read in whole blocks. levels: the
  decode steps with each size of the batch, from `level_steps`. int8: what is kept in 8 bits, "weights" and "cache".
  """
  head_bytes = spec.head_dim * _compute_bytes(spec)  # of one head of K or V in a slot
  if "cache" in int8:
    head_bytes = spec.head_dim + _FLOAT32_BYTES  # 8 bits a number, and a float32 scale
  kv_heads = max(spec.kv_heads, shards.tensor) / shards.tensor
  slot_bytes = 2 * spec.layers * kv_heads * head_bytes  # K and V of all layers
  products = spec.layers * _layer_weights(spec) + count_adapters(spec) + spec.vocab * spec.width
  product_flops = 2 * products / shards.tensor
  number_bytes = 1 if "weights" in int8 else _compute_bytes(spec)
  weight_bytes = number_bytes * count_weights(spec) / shards.tensor
  weight_bytes += _compute_bytes(spec) * count_adapters(spec) / shards.tensor
  total = Cost(0, 0, 0)
  begin = 0.0
  for level, (live, steps) in enumerate(levels):
    own_slots = _mean_over_layers(spec, functools.partial(read_slots, begin, steps, block_slots))
    attention_flops = spec.layers * _attention_flops_per_pair(spec) / shards.tensor * (prompt_slots + own_slots)
    prompts = live / group if level == 0 else live
    cache_bytes = slot_bytes * (prompts * prompt_slots + live * own_slots)
    logit_bytes = live * spec.vocab / shards.tensor * _FLOAT32_BYTES * _WRITE_AND_READ
    flops = live * (product_flops + attention_flops)
    step = Cost(flops, flops, weight_bytes + cache_bytes + logit_bytes)
    total = total.plus(step.repeated(steps))
    begin += steps
  return total
