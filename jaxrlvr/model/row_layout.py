"""Layouts: how prompts and responses are placed on the rows of a batch. No other file knows.

A layout, `Separate` or `SharedPrompt`, places texts, computes their attention, finds the hidden state that predicts
each token, and counts what attention costs. It is a small frozen value, so that jit takes it as a static argument.

A batch has P problems with G responses each; response number n = problem * G + sample. Its text is the prompt of its
problem, then the response. A row has S slots (T in arrays on the device), each for one token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.attention import WHOLE_TEXTS, computed_pairs, limits

# (q_BHTh, k_BKSh, v_BKSh, segments_BT, before_BP, *, window=0) -> out_BHTh: a function of `attention.ATTENTION`
AttendRows = Callable[..., jax.Array]


class Placed(NamedTuple):
  """Where texts are placed on the R rows of a batch: what each slot holds, as int32 arrays of the host."""

  segments_RS: np.ndarray  # 1 + the number of the response whose text the slot's token is of; 0: padding
  positions_RS: np.ndarray  # position of the slot's token in prompt + response, from 0; 0 at padding
  live: int  # how many microbatches hold a text; these come first


class AttentionPairs(NamedTuple):
  """How many pairs of a query and a key attention has for one head of one row without padding."""

  computed: float  # pairs that the attention function computes, with masked ones
  needed: float  # pairs where the query may attend to the key


class AttendedRows(NamedTuple):
  """The rows of the largest call of an attention function."""

  rows: int
  pairs: int  # pairs of a query and a key in each row, masked ones included


class RowLayout(Protocol):
  """What every layout does: `Separate` and `SharedPrompt` have these methods."""

  @property
  def slots(self) -> int:
    """How many slots a row has."""

  def rows(self, responses: int) -> int:
    """Returns how many rows are enough for this many responses (whole groups of G), even if all are of full length."""

  def filled_slots(self, prompt: int, response: float) -> float:
    """Returns how many slots of a row hold a token where responses are not packed: `place` with pack=False.

    prompt, response: tokens of each prompt and of each response.
    """

  def place(
    self,
    prompt_length_P: np.ndarray,
    length_PG: np.ndarray,
    numbers: Iterable[int],
    rows: int,
    parts: int,
    pack: bool = True,
  ) -> Placed:
    """Places the responses with these numbers, and the prompts that they continue, on `rows` rows.

    prompt_length_P, length_PG: tokens of each prompt and of each response, without padding. numbers: the responses to
    place, each as problem * G + sample; the others are left out, and none at all is fine. parts: number of
    microbatches into which `sharding.split_rows` will cut the rows; texts fill the first microbatches. pack: responses
    share rows or pieces, the longest first, each in the first place with room; False: each has a place of its own, in
    the order of their numbers. Raises InputError, naming a response, where the rows have too little room.
    """

  def attend(
    self,
    attend_rows: AttendRows,
    q_BHTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    segments_BT: jax.Array,
    window: int = 0,
  ) -> jax.Array:
    """Returns attention out_BHTh of each token to its prompt and to its response up to itself.

    attend_rows: the function of `attention.ATTENTION` to compute it with. q_BHTh, k_BKTh, v_BKTh: queries, keys and
    values of whole rows; T must be `slots`. segments_BT: `Placed.segments_RS` of these rows. window: static; a token
    sees only so many tokens of its prompt and response, itself the last; 0: all. Padding gets finite numbers without
    meaning.
    """

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    """Returns the hidden states [B, T-start, D] that predict the tokens in slots start .. T-1; start is at least 1.

    That is the state in the slot before. For the first token of a response whose prompt is placed elsewhere on the row
    it is the state of the prompt's last token. segments_BT: `Placed.segments_RS` of these rows.
    """

  def attention_pairs(self, attention: str, window: int = 0) -> AttentionPairs:
    """Returns the pairs, computed and needed, of a row without padding.

    attention: a name in `ATTENTION`. window: of the tokens, as in `attend`.
    """

  def attended_rows(self, rows: int) -> AttendedRows:
    """Returns the rows that an attention function is called with, for so many rows of the layout."""


@dataclass(frozen=True)
class Separate:
  """Places each response behind a copy of its prompt. Packed, several such texts stand one behind another on a row."""

  slots: int  # of a row: the longest prompt and the longest response together

  def rows(self, responses: int) -> int:
    """Returns `responses`: each has a row of its own."""
    return responses

  def filled_slots(self, prompt: int, response: float) -> float:
    """Returns prompt + response, in tokens: a row holds one of each."""
    return prompt + response

  def place(
    self,
    prompt_length_P: np.ndarray,
    length_PG: np.ndarray,
    numbers: Iterable[int],
    rows: int,
    parts: int,
    pack: bool = True,
  ) -> Placed:
    """Places these responses on rows, each behind a copy of its prompt.

    prompt_length_P, length_PG: tokens of each prompt and response. numbers: the responses to place, each as problem * G
    + sample. rows: how many rows there are. parts: how many microbatches they will be cut into. pack: a row may hold
    several texts, the longest first; False: one each, in the order of the numbers. Raises InputError where the rows
    have too little room.
    """
    length_N = (prompt_length_P[:, None] + length_PG).reshape(-1)
    batch = _RowsInProgress(rows, self.slots)
    for fit in _first_fit(length_N, numbers, bins=rows, size=self.slots, pack=pack):
      batch.put(fit.number, row=fit.bin, slot=fit.slot, position=0, tokens=length_N[fit.number])
    return batch.deal(parts)

  def attend(
    self,
    attend_rows: AttendRows,
    q_BHTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    segments_BT: jax.Array,
    window: int = 0,
  ) -> jax.Array:
    """Returns causal attention out_BHTh inside each segment, computed with attend_rows, a function of `ATTENTION`.

    segments_BT: 1 + number of the response whose text is in the slot; 0: padding, where the output means nothing.
    window: static; a token sees only so many tokens of its text, itself the last; 0: all.
    """
    nothing_before = segments_BT[:, :0]
    return attend_rows(q_BHTh, k_BKTh, v_BKTh, segments_BT, nothing_before, window=window)

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    """Returns the hidden states [B, T-start, D] of slots start-1 .. T-2, each of which predicts the next slot."""
    return hidden_BTD[:, start - 1 : -1]

  def attention_pairs(self, attention: str, window: int = 0) -> AttentionPairs:
    """Returns the pairs, computed and needed, of one text that fills the row.

    attention: a name in `ATTENTION`. window: of the tokens, as in `attend`.
    """
    computed = computed_pairs(attention, self.slots, window=window)
    return AttentionPairs(computed, _pairs_in_window(self.slots, window))

  def attended_rows(self, rows: int) -> AttendedRows:
    """Returns the rows that an attention function is called with: the rows themselves."""
    return AttendedRows(rows, self.slots**2)


@dataclass(frozen=True)
class SharedPrompt:
  """Places one prompt and several responses to it on each row.

  The row begins with `prompt_slots` slots, at the end of which the prompt is placed, behind padding. Then come `pieces`
  pieces of `piece_slots` slots. Each piece holds one response to that prompt; packed, several, one behind another. No
  response attends to another. In `Placed` the prompt's slots have the segment number of the first response on the row.
  """

  prompt_slots: int  # slots for the prompt
  pieces: int  # pieces of a row; a divisor of G
  piece_slots: int  # slots of a piece: the longest response

  @property
  def slots(self) -> int:
    """How many slots a row has: those of the prompt and of all pieces."""
    return self.prompt_slots + self.pieces * self.piece_slots

  def rows(self, responses: int) -> int:
    """Returns responses // pieces: each response has a piece of its own. `pieces` must divide G."""
    return responses // self.pieces

  def filled_slots(self, prompt: int, response: float) -> float:
    """Returns min(prompt, prompt_slots) + pieces * response, in tokens: a row holds a prompt and `pieces` responses."""
    return min(prompt, self.prompt_slots) + self.pieces * response

  def place(
    self,
    prompt_length_P: np.ndarray,
    length_PG: np.ndarray,
    numbers: Iterable[int],
    rows: int,
    parts: int,
    pack: bool = True,
  ) -> Placed:
    """Places these responses in pieces of rows, each of which begins with the prompt that they continue.

    prompt_length_P, length_PG: tokens of each prompt and response. numbers: the responses to place, each as problem * G
    + sample. rows: how many rows there are. parts: how many microbatches they will be cut into. pack: a piece may hold
    several responses, the longest first; False: one each, in the order of the numbers. Raises InputError where the
    rows have too little room, or a response is longer than a piece.
    """
    length_N = length_PG.reshape(-1)
    group = length_PG.shape[1]
    batch = _RowsInProgress(rows, self.slots)
    first_row = 0  # of the current problem
    for problem, numbers_of_problem in itertools.groupby(sorted(numbers), lambda number: number // group):
      responses = list(numbers_of_problem)
      prompt_length = prompt_length_P[problem]
      used_pieces = 0  # of this problem
      for fit in _first_fit(length_N, responses, bins=len(responses), size=self.piece_slots, pack=pack):
        row_of_problem, piece_of_row = divmod(fit.bin, self.pieces)
        row = first_row + row_of_problem
        slot = self.prompt_slots + piece_of_row * self.piece_slots + fit.slot
        batch.put(fit.number, row, slot, position=prompt_length, tokens=length_N[fit.number])
        is_first_of_row = fit.bin == used_pieces and piece_of_row == 0
        if is_first_of_row:
          batch.put(fit.number, row, self.prompt_slots - prompt_length, position=0, tokens=prompt_length)
        used_pieces = max(used_pieces, fit.bin + 1)
      first_row += math.ceil(used_pieces / self.pieces)
    return batch.deal(parts)

  def attend(
    self,
    attend_rows: AttendRows,
    q_BHTh: jax.Array,
    k_BKTh: jax.Array,
    v_BKTh: jax.Array,
    segments_BT: jax.Array,
    window: int = 0,
  ) -> jax.Array:
    """Returns attention out_BHTh of each token to its prompt and to its response up to itself.

    Computes the prompt's attention to itself, then the attention of the pieces, as rows of their own, to the prompt
    before them and to themselves. attend_rows: a function of `ATTENTION` to do both with. segments_BT: 1 + number of
    the response whose text is in the slot; 0: padding, where the output means nothing. window: static; a token sees
    only so many tokens of its prompt and response, itself the last; 0: all.
    """
    before_BP = segments_BT[:, : self.prompt_slots]
    q_BHPh, k_BKPh, v_BKPh = (x[:, :, : self.prompt_slots] for x in (q_BHTh, k_BKTh, v_BKTh))
    prompt_out_BHPh = attend_rows(q_BHPh, k_BKPh, v_BKPh, before_BP, before_BP[:, :0], window=window)
    piece_out = attend_rows(
      self._pieces(q_BHTh),
      self._behind_prompt(k_BKTh),
      self._behind_prompt(v_BKTh),
      segments_BT[:, self.prompt_slots :].reshape(-1, self.piece_slots),
      jnp.repeat(before_BP, self.pieces, 0),
      window=window,
    )  # [B * pieces, H, piece_slots, h]
    piece_out = piece_out.reshape(-1, self.pieces, *piece_out.shape[1:]).swapaxes(1, 2)
    piece_out = piece_out.reshape(*prompt_out_BHPh.shape[:2], -1, prompt_out_BHPh.shape[3])
    return jnp.concatenate([prompt_out_BHPh, piece_out], 2)

  def _pieces(self, x: jax.Array) -> jax.Array:
    """Returns the pieces of x [B, heads, T, h] as rows of their own, [B * pieces, heads, piece_slots, h]."""
    rows, heads, _, head_dim = x.shape
    x = x[:, :, self.prompt_slots :].reshape(rows, heads, self.pieces, self.piece_slots, head_dim)
    return x.swapaxes(1, 2).reshape(-1, heads, self.piece_slots, head_dim)

  def _behind_prompt(self, x: jax.Array) -> jax.Array:
    """Returns each piece of x [B, heads, T, h] behind its row's prompt: [B * pieces, heads, their slots, h]."""
    prompts = jnp.repeat(x[:, :, : self.prompt_slots], self.pieces, 0)
    return jnp.concatenate([prompts, self._pieces(x)], 2)

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    """Returns the hidden states [B, T-start, D] that predict the tokens in slots start .. T-1; start is at least 1.

    That is the state of the prompt's last token where a response begins, else the state in the slot before.
    """
    slots = jnp.arange(start, hidden_BTD.shape[1]) - self.prompt_slots
    begins_piece_T = slots % self.piece_slots == 0
    begins_segment_BT = segments_BT[:, start:] != segments_BT[:, start - 1 : -1]
    begins_response_BT = begins_piece_T | begins_segment_BT
    begins_response_BT &= slots >= 0
    end_of_prompt_B1D = hidden_BTD[:, self.prompt_slots - 1, None]
    return jnp.where(begins_response_BT[..., None], end_of_prompt_B1D, hidden_BTD[:, start - 1 : -1])

  def attention_pairs(self, attention: str, window: int = 0) -> AttentionPairs:
    """Returns the pairs, computed and needed, of a row without padding.

    attention: a name in `ATTENTION`. window: of the tokens, as in `attend`.
    """
    prompt, pieces, piece = self.prompt_slots, self.pieces, self.piece_slots
    computed = computed_pairs(attention, prompt, window=window)
    computed += pieces * computed_pairs(attention, piece, before=prompt, window=window)
    of_prompt = _pairs_in_window(prompt, window)
    of_piece = _pairs_in_window(prompt + piece, window) - of_prompt  # as of a text that goes on from the prompt
    return AttentionPairs(computed, of_prompt + pieces * of_piece)

  def attended_rows(self, rows: int) -> AttendedRows:
    """Returns the rows of the larger of two calls: all pieces behind their prompts, or the prompts."""
    pieces = AttendedRows(rows * self.pieces, self.piece_slots * (self.prompt_slots + self.piece_slots))
    prompts = AttendedRows(rows, self.prompt_slots**2)
    return max(pieces, prompts, key=lambda call: call.rows * call.pairs)


# Where the number of pieces is left open, SharedPrompt must save slots even if a response has on average only this
# share of the longest one's tokens: its pieces have room for the longest, and short responses leave them half empty.
_SHORT = 1 / 8
_PROMPT_MULTIPLE = 8  # the number of slots for a shared prompt is a multiple of it


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
  """Returns the layout, `Separate` or `SharedPrompt`, that a value of the config key `rl.branches` asks for.

  branches: pieces of a row with a shared prompt; 0: `Separate`; -1: the most pieces that save slots with prompts of
  these lengths, or `Separate` where none save any, no lengths are known, or the attention function can't share prompts.
  prompt_lengths: tokens of each prompt of the run; empty if unknown. prompt_tokens, response_tokens: slots for the
  longest prompt and response. group: G, responses to a problem. responses: responses of an update, a multiple of G.
  parts: microbatches x shards of the batch; it must divide the number of rows. attention: a name in `ATTENTION`.
  Raises InputError where `branches` is positive but doesn't divide G, gives no multiple of `parts` as the number of
  rows, or is asked of an attention function that can't share prompts (`WHOLE_TEXTS`).
  """
  separate = Separate(prompt_tokens + response_tokens)
  can_share = attention not in WHOLE_TEXTS
  if branches > 0 and not can_share:
    raise InputError(f"config.rl.branches = {branches}: model.attention {attention!r} can't share a prompt; take 0")
  if branches == 0 or not can_share:
    return separate
  divisors = [pieces for pieces in range(1, group + 1) if group % pieces == 0]
  possible = [pieces for pieces in divisors if responses % (pieces * parts) == 0]
  longest_prompt = max(prompt_lengths, default=prompt_tokens)
  rounded_up = math.ceil(longest_prompt / _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
  prompt_slots = min(rounded_up, prompt_tokens)
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
  saving = [pieces for pieces in possible if 1 < pieces <= most_pieces]
  if not saving:
    return separate
  return SharedPrompt(prompt_slots, saving[-1], response_tokens)


def _pairs_in_window(slots: int, window: int) -> float:
  """Returns the pairs of a query and a key at most window - 1 slots before it (window 0: any), among `slots` slots."""
  reach = window if limits(window, slots) else slots
  return reach * (reach + 1) / 2 + (slots - reach) * reach


class _Fit(NamedTuple):
  """The place of a text in a bin."""

  number: int  # of the text
  bin: int
  slot: int  # of the bin, where the text begins


def _first_fit(length_N, numbers: Iterable[int], bins: int, size: int, pack: bool) -> Iterator[_Fit]:
  """Yields a place for each text of `numbers`, of length_N[number] tokens, in `bins` bins of `size` slots.

  pack: the longest text comes first, each goes into the first bin with room for it; False: texts come in order, each
  has a bin of its own. Bins are opened in order. Raises InputError where no bin has room.
  """
  free = np.full(bins, size)
  ordered = sorted(numbers)
  if pack:
    ordered.sort(key=lambda number: -length_N[number])
  for number in ordered:
    has_room = free >= length_N[number] if pack else free == size
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
    rows_of_part = rows // parts

    def dealt(x_RS):
      return x_RS.reshape(parts, rows_of_part, slots).swapaxes(0, 1).reshape(rows, slots)

    live = math.ceil(rows_in_use / rows_of_part)
    return Placed(dealt(self.segments_RS), dealt(self.positions_RS), live)
