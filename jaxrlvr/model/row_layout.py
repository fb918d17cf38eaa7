"""Layouts: how prompts and responses are placed on the rows of a batch. No other file knows.

A layout, `Separate` or `SharedPrompt`, places texts, computes their attention, finds the hidden state that predicts
each token, and counts what attention costs. It is a small frozen value, so that jit takes it as a static argument.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.attention import WHOLE_TEXTS, computed_pairs

# (q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP) -> out_BHTh: a function of `attention.ATTENTION`
AttendRows = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


class Placed(NamedTuple):
  """Where texts (a prompt and its response) are placed on the rows of a batch."""

  segments_RS: np.ndarray  # 1 + the number of the slot's text; 0: padding
  positions_RS: np.ndarray  # position of the slot's token in its text
  live: int  # microbatches that hold a text; they come first


class AttentionPairs(NamedTuple):
  """Numbers of pairs of a query and a key, for each head and row."""

  computed: float
  needed: float  # computed pairs that are not masked


class RowLayout(Protocol):
  """What every layout does. Responses come in groups of G: response n continues prompt n // G."""

  @property
  def slots(self) -> int:
    """Number of slots of a row."""

  def rows(self, responses: int) -> int:
    """Returns how many rows have room for `responses` responses, in whole groups, however long they are."""

  def filled(self, prompt: int, response: float) -> float:
    """Returns how many slots of a row hold a token where nothing is packed.

    Each prompt has `prompt` tokens, each response `response` tokens.
    """

  def place(
    self, prompt_P: np.ndarray, length_PG: np.ndarray, numbers: Iterable[int], rows: int, parts: int, share: bool = True
  ) -> Placed:
    """Places the responses with these `numbers`, and their prompts, on `rows` rows.

    prompt_P: tokens of each prompt. length_PG: tokens of each response. parts: number of microbatches that
    `sharding.split_rows` will cut the batch into; the first are filled first. share: pack the longest response first,
    each into the first place with room for it; False: place each alone, in the order of the numbers. Raises InputError
    where the rows have too little room.
    """

  def attend(
    self, attend_rows: AttendRows, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
  ) -> jax.Array:
    """Computes attention of each token to its prompt and to the earlier tokens of its response; returns out_BHTh.

    attend_rows: the function of `attention.ATTENTION` to compute it with.
    """

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    """Returns the hidden states [B, T-start, D] that predict the tokens in slots start .. T-1.

    That is the state in the slot before, except for the first token of a response whose prompt is placed elsewhere.
    """

  def attention_pairs(self, attention: str) -> AttentionPairs:
    """Counts the pairs for a full row. attention: name of the function in `attention.ATTENTION`."""


@dataclass(frozen=True)
class Separate:
  """Places each response behind a copy of its prompt, and packs such texts one behind another on a row."""

  slots: int

  def rows(self, responses: int) -> int:
    return responses

  def filled(self, prompt: int, response: float) -> float:
    return prompt + response

  def place(
    self, prompt_P: np.ndarray, length_PG: np.ndarray, numbers: Iterable[int], rows: int, parts: int, share: bool = True
  ) -> Placed:
    length_N = (prompt_P[:, None] + length_PG).reshape(-1)
    batch = _RowsInProgress(rows, self.slots)
    for fit in _first_fit(length_N, numbers, bins=rows, size=self.slots, share=share):
      batch.put(fit.number, row=fit.bin, slot=fit.slot, position=0, tokens=length_N[fit.number])
    return batch.deal(parts)

  def attend(
    self, attend_rows: AttendRows, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
  ) -> jax.Array:
    return attend_rows(q_BHTh, k_BKTh, v_BKTh, segments_BT, segments_BT[:, :0])

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    return hidden_BTD[:, start - 1 : -1]

  def attention_pairs(self, attention: str) -> AttentionPairs:
    return AttentionPairs(computed_pairs(attention, self.slots), _triangle(self.slots))


@dataclass(frozen=True)
class SharedPrompt:
  """Places one prompt and several responses to it on each row.

  The row begins with `prompt` slots, at the end of which the prompt is placed. Then come `count` pieces of `piece`
  slots, in each of which responses to that prompt are packed one behind another. No response attends to another. The
  segment of the prompt's slots is that of the row's first response.
  """

  prompt: int  # slots for the prompt
  count: int  # pieces of a row
  piece: int  # slots of a piece

  @property
  def slots(self) -> int:
    return self.prompt + self.count * self.piece

  def rows(self, responses: int) -> int:
    return responses // self.count

  def filled(self, prompt: int, response: float) -> float:
    return min(prompt, self.prompt) + self.count * response

  def place(
    self, prompt_P: np.ndarray, length_PG: np.ndarray, numbers: Iterable[int], rows: int, parts: int, share: bool = True
  ) -> Placed:
    length_N = length_PG.reshape(-1)
    group = length_PG.shape[1]
    batch = _RowsInProgress(rows, self.slots)
    first_row = 0  # of the current problem
    for problem, numbers_of_problem in itertools.groupby(sorted(numbers), lambda number: number // group):
      responses, prompt = list(numbers_of_problem), prompt_P[problem]
      pieces = 0  # of this problem that hold a response
      for fit in _first_fit(length_N, responses, bins=len(responses), size=self.piece, share=share):
        row_of_problem, piece_of_row = divmod(fit.bin, self.count)
        row = first_row + row_of_problem
        slot = self.prompt + piece_of_row * self.piece + fit.slot
        batch.put(fit.number, row, slot, position=prompt, tokens=length_N[fit.number])
        is_first_of_row = fit.bin == pieces and piece_of_row == 0
        if is_first_of_row:
          batch.put(fit.number, row, self.prompt - prompt, position=0, tokens=prompt)
        pieces = max(pieces, fit.bin + 1)
      first_row += -(-pieces // self.count)
    return batch.deal(parts)

  def attend(
    self, attend_rows: AttendRows, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
  ) -> jax.Array:
    """Computes the prompt's attention, then that of the pieces, as rows of their own, to it and to themselves."""
    before_BP = segments_BT[:, : self.prompt]
    q_BHPh, k_BKPh, v_BKPh = (x[:, :, : self.prompt] for x in (q_BHTh, k_BKTh, v_BKTh))
    prompt_out = attend_rows(q_BHPh, k_BKPh, v_BKPh, before_BP, before_BP[:, :0])
    piece_out = attend_rows(
      self._pieces(q_BHTh),
      self._behind_prompt(k_BKTh),
      self._behind_prompt(v_BKTh),
      segments_BT[:, self.prompt :].reshape(-1, self.piece),
      jnp.repeat(before_BP, self.count, 0),
    )
    piece_out = piece_out.reshape(-1, self.count, *piece_out.shape[1:]).swapaxes(1, 2)
    piece_out = piece_out.reshape(*prompt_out.shape[:2], -1, prompt_out.shape[3])
    return jnp.concatenate([prompt_out, piece_out], 2)

  def _pieces(self, x: jax.Array) -> jax.Array:
    """Returns the pieces of x [B, heads, T, h] as rows of their own, [B * count, heads, piece, h]."""
    x = x[:, :, self.prompt :].reshape(*x.shape[:2], self.count, self.piece, x.shape[3]).swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])

  def _behind_prompt(self, x: jax.Array) -> jax.Array:
    """Returns each piece of x [B, heads, T, h] behind its row's prompt, [B * count, heads, prompt + piece, h]."""
    prompts = jnp.repeat(x[:, :, : self.prompt], self.count, 0)
    return jnp.concatenate([prompts, self._pieces(x)], 2)

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    slots = jnp.arange(start, hidden_BTD.shape[1]) - self.prompt
    begins_response_BT = (slots % self.piece == 0) | (segments_BT[:, start:] != segments_BT[:, start - 1 : -1])
    begins_response_BT &= slots >= 0
    end_of_prompt = hidden_BTD[:, self.prompt - 1, None]
    return jnp.where(begins_response_BT[..., None], end_of_prompt, hidden_BTD[:, start - 1 : -1])

  def attention_pairs(self, attention: str) -> AttentionPairs:
    prompt, count, piece = self.prompt, self.count, self.piece
    computed = computed_pairs(attention, prompt) + count * computed_pairs(attention, piece, before=prompt)
    needed = _triangle(prompt) + count * (piece * prompt + _triangle(piece))
    return AttentionPairs(computed, needed)


# Where no number of responses a row is asked for, SharedPrompt must save slots even if responses are only this share of
# the longest on average; its pieces have room for the longest, and short responses leave them half empty.
_SHORT = 1 / 8


def choose(
  branches: int,
  prompt_lengths: Sequence[int],
  *,
  prompt_tokens: int,
  response_tokens: int,
  group: int,
  responses: int,
  parts: int,
  attention: str,
) -> RowLayout:
  """Returns the layout that the config key `rl.branches` asks for.

  branches: pieces of a row with a shared prompt (`SharedPrompt.count`); 0: `Separate`; -1: the most pieces that save
  slots with prompts of these lengths, and `Separate` where none do or no lengths are known.
  prompt_tokens, response_tokens: the longest prompt and response. responses: number of responses of an update, in
  groups of `group`. parts: the number of rows must be a multiple of it (microbatches x shards of the batch).
  attention: a name in `attention.ATTENTION`.
  Raises InputError where `branches` is positive and responses can't share a prompt so.
  """
  separate = Separate(prompt_tokens + response_tokens)
  can_share = attention not in WHOLE_TEXTS
  if branches > 0 and not can_share:
    raise InputError(f"config.rl.branches = {branches}: model.attention {attention!r} can't share a prompt; take 0")
  if branches == 0 or not can_share:
    return separate
  possible = [count for count in range(1, group + 1) if group % count == 0 and responses % (count * parts) == 0]
  longest_prompt = max(prompt_lengths, default=prompt_tokens)
  prompt_slots = min(-(-longest_prompt // 8) * 8, prompt_tokens)  # a multiple of 8
  if branches > 0:
    if branches not in possible:
      raise InputError(
        f"config.rl.branches = {branches}: must divide config.rl.group_size = {group}, and {responses} responses of an "
        f"update / branches must be a multiple of {parts} (micro-batches x pieces of the mesh)"
      )
    return SharedPrompt(prompt_slots, branches, response_tokens)
  if not len(prompt_lengths):
    return separate
  slots_of_separate_group = group * (np.mean(prompt_lengths) + _SHORT * response_tokens)
  most_pieces = (slots_of_separate_group - prompt_slots) / response_tokens
  saving = [count for count in possible if 1 < count <= most_pieces]
  if not saving:
    return separate
  return SharedPrompt(prompt_slots, saving[-1], response_tokens)


def _triangle(slots: int) -> float:
  """Returns the number of pairs of a query and a key at or before it, among `slots` slots."""
  return slots * (slots + 1) / 2


class _Fit(NamedTuple):
  """The place of a text in a bin."""

  number: int  # of the text
  bin: int
  slot: int  # of the bin, where the text begins


def _first_fit(length_N, numbers: Iterable[int], bins: int, size: int, share: bool) -> Iterator[_Fit]:
  """Yields a place for each text of `numbers`, of length_N[number] tokens, in `bins` bins of `size` slots.

  share: the longest text comes first, each goes into the first bin with room for it; False: texts come in order, each
  has a bin of its own. Bins are opened in order. Raises InputError where no bin has room.
  """
  free = np.full(bins, size)
  ordered = sorted(numbers)
  if share:
    ordered.sort(key=lambda number: -length_N[number])
  for number in ordered:
    has_room = free >= length_N[number] if share else free == size
    if not np.any(has_room):
      raise _no_room(number, length_N[number], bins, size)
    first = int(np.argmax(has_room))
    yield _Fit(number, first, size - int(free[first]))
    free[first] -= length_N[number]


def _no_room(number: int, tokens: int, rows: int, slots: int) -> InputError:
  """Returns the error for a text that fits on no row."""
  return InputError(f"text {number} of {tokens} tokens finds no room on {rows} rows of {slots}; make more rows")


class _RowsInProgress:
  """Rows of a batch while texts are put on them, in the order in which they are filled."""

  def __init__(self, rows: int, slots: int):
    self.segments_RS, self.positions_RS = np.zeros((2, rows, slots), np.int32)

  def put(self, number: int, row: int, slot: int, position: int, tokens: int) -> None:
    """Puts `tokens` tokens of text `number`, from this position of the text on, into a row from this slot on.

    Raises InputError where there is no such row.
    """
    rows, slots = self.segments_RS.shape
    if row >= rows:
      raise _no_room(number, tokens, rows, slots)
    self.segments_RS[row, slot : slot + tokens] = number + 1
    self.positions_RS[row, slot : slot + tokens] = np.arange(position, position + tokens)

  def deal(self, parts: int) -> Placed:
    """Returns the rows in an order such that `sharding.split_rows` puts the rows in use into the first of its parts."""
    rows, slots = self.segments_RS.shape
    rows_in_use = int(np.sum(np.any(self.segments_RS, 1)))
    both = np.stack([self.segments_RS, self.positions_RS])
    dealt = both.reshape(2, parts, -1, slots).swapaxes(1, 2)
    segments_RS, positions_RS = dealt.reshape(2, rows, slots)
    return Placed(segments_RS, positions_RS, live=-(-rows_in_use * parts // rows))
