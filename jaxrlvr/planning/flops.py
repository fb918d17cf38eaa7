"""Work of the policy's programs counted from shapes: FLOPs and HBM bytes of one chip (a multiply-add is two FLOPs)."""

from __future__ import annotations

from typing import NamedTuple

from jaxrlvr.model.row_layout import RowLayout
from jaxrlvr.model.spec import Spec, count_weights


class Cost(NamedTuple):
  """What one chip does in a run of a program. Bytes are a lower bound: what must come from HBM or go there."""

  flops: float  # that are computed, recomputation and masked-out products included
  model_flops: float  # that the mathematics needs: what MFU counts
  bytes: float

  def plus(self, other: Cost) -> Cost:
    return Cost(*(a + b for a, b in zip(self, other, strict=True)))

  def repeated(self, times: float) -> Cost:
    return Cost(*(a * times for a in self))


class Cut(NamedTuple):
  """How a mesh shares the work out."""

  batch: int  # pieces of the rows
  tensor: int  # pieces of heads, MLP and vocabulary
  weights: int  # pieces of the masters and moments


def layer_weights(spec: Spec) -> int:
  """Weights of a layer that a token is multiplied with."""
  return spec.width * (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim + 3 * spec.width * spec.mlp


def _width(spec: Spec) -> int:
  return 2 if spec.dtype == "bfloat16" else 4


def _activations(spec: Spec, seen: float, tensor: int) -> float:
  """Bytes a token that pass between the operations of a layer: each array is written once and read once.

  seen: slots that a token is compared with.
  """
  inner = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim + 3 * spec.mlp
  scores = 0 if spec.attention == "splash" else 2 * 4 * spec.heads * seen  # float32 [T, T], before and after softmax
  return 2 * _width(spec) * (5 * spec.width + inner / tensor) + 2 * scores / tensor


def forward_cost(spec: Spec, rows: int, layout: RowLayout, scored: int, cut: Cut) -> Cost:
  """Returns the cost of a pass over `rows` rows, with the head at `scored` slots of each."""
  time, pairs = layout.slots, layout.attention_pairs(spec.attention)
  attend, layer, head = 4 * spec.heads * spec.head_dim * rows, 2 * rows * time * layer_weights(spec), 2 * spec.width
  flops = spec.layers * (layer + attend * pairs.computed) + head * spec.vocab * rows * scored
  model = spec.layers * (layer + attend * pairs.needed) + head * spec.vocab * rows * scored
  here, passed = rows / cut.batch, _activations(spec, pairs.computed / time, cut.tensor)
  moved = spec.layers * here * time * passed + 8 * here * scored * spec.vocab / cut.tensor
  chips = cut.batch * cut.tensor
  return Cost(flops / chips, model / chips, moved + _width(spec) * count_weights(spec) / cut.tensor)


def update_cost(
  spec: Spec, rows: int, layout: RowLayout, scored: int, microbatches: int, moment_bytes: int, cut: Cut
) -> Cost:
  """Returns the cost of the gradient over all micro-batches, and of AdamW's step on the weights of this chip."""
  once, time = forward_cost(spec, rows, layout, 0, cut), layout.slots
  head = 2 * spec.width * spec.vocab * rows * scored / (cut.batch * cut.tensor)
  seen = rows * layout.attention_pairs(spec.attention).computed
  attend = spec.layers * 4 * spec.heads * spec.head_dim * seen / (cut.batch * cut.tensor)
  down = spec.layers * 2 * rows * time * spec.width * spec.mlp / (cut.batch * cut.tensor)  # nothing needs it again
  again = {"none": 0, "dots": attend, "full": once.flops - down}[spec.remat]
  kernel = attend / 2 if spec.attention == "splash" else 0  # its backward pass computes the scores again
  passes = 3 + (spec.remat == "full")  # over activations: forward, twice backward, again
  gathered = _width(spec) * count_weights(spec) / cut.tensor
  activations = (once.bytes - gathered) * passes + 4 * 8 * rows / cut.batch * scored * spec.vocab / cut.tensor
  # Weights and moments there and back, and the gradient.
  state = count_weights(spec) / cut.weights * (2 * (4 + moment_bytes + 4) + 4)
  gradient = 0 if microbatches == 1 else 8 * count_weights(spec) / cut.weights * microbatches
  moved = activations + gathered * (passes - 1) * microbatches + gradient + state
  return Cost(3 * once.flops + again + kernel + 4 * head, 3 * (once.model_flops + head), moved)


def level_steps(rows: int, most: int, mean: float, shrink: int) -> list[tuple[int, float]]:
  """(live rows, decode steps) of each level of the sampler's batch on a chip, for responses of `mean` tokens.

  An assumption: the share of rows alive after t tokens is (1 - t/most)^(most/mean - 1), whose mean length is `mean`.
  """
  power, begun, found = most / mean - 1, 0.0, []
  for level in range(shrink + 1):
    last = level == shrink or rows % 2 or rows < 4
    ends = most - 1 if last or not power else (most - 1) * (1 - 0.5 ** ((level + 1) / power))
    found.append((rows, ends - begun))
    if last:
      return found
    rows, begun = rows // 2, ends
  return found


def read_slots(begun: float, steps: float, slots: int) -> float:
  """Mean slots of a row's cache that `steps` decode steps after the first `begun` read: whole blocks of `slots`."""
  total, block = 0.0, int(begun // slots)
  while block * slots < begun + steps:
    total += (block + 1) * slots * (min(begun + steps, (block + 1) * slots) - max(begun, block * slots))
    block += 1
  return total / steps if steps else slots


def decode_cost(
  spec: Spec, group: int, prompt: int, slots: int, levels: list[tuple[int, float]], cut: Cut, int8: tuple[str, ...] = ()
) -> Cost:
  """All tokens but the first of a chip's responses: weights and the cache so far, in blocks of `slots` tokens, are read
  for every token. int8: as of `sampling.Sampling`."""
  total, begun = Cost(0, 0, 0), 0.0
  slot = spec.head_dim * (1 if "cache" in int8 else _width(spec)) + 4 * ("cache" in int8)
  kv = 2 * spec.layers * max(spec.kv_heads, cut.tensor) / cut.tensor * slot  # bytes a slot
  dense = 2 * (spec.layers * layer_weights(spec) + spec.vocab * spec.width) / cut.tensor
  weights = (1 if "weights" in int8 else _width(spec)) * count_weights(spec) / cut.tensor
  for level, (live, steps) in enumerate(levels):
    own = read_slots(begun, steps, slots)
    attend = 4 * spec.layers * spec.heads * spec.head_dim / cut.tensor * (prompt + own)
    prompts = live / group if level == 0 else live
    moved = weights + kv * (prompts * prompt + live * own) + live * spec.vocab / cut.tensor * 4 * 2
    step = Cost(live * (dense + attend), live * (dense + attend), moved)
    total = total.plus(step.repeated(steps))
    begun += steps
  return total
