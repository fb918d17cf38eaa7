"""How responses stand on the rows of a batch, each behind its prompt: the one file that knows.

A layout says where texts are placed, what their tokens attend to, which hidden state predicts a token, and what that
costs. It is a small frozen value, so that compiled programs may depend on it: `Separate` or `SharedPrompt`.
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
  """Where texts stand in the rows of a batch."""

  segments_RS: np.ndarray  # 1 + the text's number, 0: padding
  positions_RS: np.ndarray  # inside the text, which begins with its prompt
  live: int  # parts of the batch that hold a text; they are the first ones


class AttentionPairs(NamedTuple):
  """Pairs of a query and a key, for each head and row."""

  computed: float
  needed: float  # of the computed ones, those that are not masked out


class RowLayout(Protocol):
  """What each layout says. Response n goes on from prompt n // G, in groups of G."""

  @property
  def slots(self) -> int:
    """Slots of a row."""

  def rows(self, responses: int) -> int:
    """Returns how many rows have room for so many responses, in whole groups, whatever their lengths."""

  def filled(self, prompt: int, response: float) -> float:
    """Returns how many slots of a row hold tokens, for prompts and responses of so many tokens, before any packing."""

  def place(
    self, prompt_P: np.ndarray, length_PG: np.ndarray, numbers: Iterable[int], rows: int, parts: int, share: bool = True
  ) -> Placed:
    """Places the responses `numbers`, of `length_PG` tokens behind prompts of `prompt_P` tokens, on `rows` rows.

    The longest come first, each in the first place with room for it; share=False: in order, each in a place of its own.
    Rows are filled part by part of the `parts` that `sharding.split_rows` makes. Raises InputError where they don't
    suffice.
    """

  def attend(
    self, attend_rows: AttendRows, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
  ) -> jax.Array:
    """Returns out_BHTh, in which a token has seen its prompt and the earlier tokens of its response."""

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    """Returns the hidden states [B, T-start, D] that predict the tokens in slots start..T-1.

    That is the state of the slot before, but for the first token of a response whose prompt stands elsewhere.
    """

  def attention_pairs(self, attention: str) -> AttentionPairs:
    """Returns what this function of `attention.ATTENTION` computes for a full row."""


@dataclass(frozen=True)
class Separate:
  """Each response stands behind its own prompt; such texts are packed one behind another on a row."""

  slots: int

  def rows(self, responses: int) -> int:
    return responses

  def filled(self, prompt: int, response: float) -> float:
    return prompt + response

  def place(
    self, prompt_P: np.ndarray, length_PG: np.ndarray, numbers: Iterable[int], rows: int, parts: int, share: bool = True
  ) -> Placed:
    length_N = (prompt_P[:, None] + length_PG).reshape(-1)
    filling = _Rows(rows, self.slots)
    for number, row, slot in _first_fit(length_N, numbers, rows, self.slots, share):
      filling.put(number, row, slot, 0, length_N[number])
    return filling.deal(parts)

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
  """A row begins with one prompt, at the end of `prompt` slots, and goes on in `count` pieces of `piece` slots.

  Responses to that prompt are packed one behind another in each piece. None sees another. The prompt's slots bear the
  number of the row's first response.
  """

  prompt: int
  count: int
  piece: int

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
    length_N, group = length_PG.reshape(-1), length_PG.shape[1]
    filling, first_row = _Rows(rows, self.slots), 0
    for problem, of_problem in itertools.groupby(sorted(numbers), lambda number: number // group):
      of_problem, prompt = list(of_problem), prompt_P[problem]
      pieces = 0
      for number, piece, slot in _first_fit(length_N, of_problem, len(of_problem), self.piece, share):
        row, inside = first_row + piece // self.count, piece % self.count
        filling.put(number, row, self.prompt + inside * self.piece + slot, prompt, length_N[number])
        if piece == pieces and inside == 0:
          filling.put(number, row, self.prompt - prompt, 0, prompt)
        pieces = max(pieces, piece + 1)
      first_row += -(-pieces // self.count)
    return filling.deal(parts)

  def attend(
    self, attend_rows: AttendRows, q_BHTh: jax.Array, k_BKTh: jax.Array, v_BKTh: jax.Array, segments_BT: jax.Array
  ) -> jax.Array:
    """The prompt attends to itself; then the pieces, as rows of their own, to it and to themselves."""
    before_BP = segments_BT[:, : self.prompt]
    q_BHPh, k_BKPh, v_BKPh = (x[:, :, : self.prompt] for x in (q_BHTh, k_BKTh, v_BKTh))
    first = attend_rows(q_BHPh, k_BKPh, v_BKPh, before_BP, before_BP[:, :0])
    rest = attend_rows(
      self._pieces(q_BHTh),
      self._behind_prompt(k_BKTh),
      self._behind_prompt(v_BKTh),
      segments_BT[:, self.prompt :].reshape(-1, self.piece),
      jnp.repeat(before_BP, self.count, 0),
    )
    rest = rest.reshape(-1, self.count, *rest.shape[1:]).swapaxes(1, 2)
    return jnp.concatenate([first, rest.reshape(*first.shape[:2], -1, first.shape[3])], 2)

  def _pieces(self, x: jax.Array) -> jax.Array:
    """[B, heads, T, h] as [B * count, heads, piece, h]."""
    x = x[:, :, self.prompt :].reshape(*x.shape[:2], self.count, self.piece, x.shape[3]).swapaxes(1, 2)
    return x.reshape(-1, *x.shape[2:])

  def _behind_prompt(self, x: jax.Array) -> jax.Array:
    """[B, heads, T, h] as [B * count, heads, prompt + piece, h]."""
    return jnp.concatenate([jnp.repeat(x[:, :, : self.prompt], self.count, 0), self._pieces(x)], 2)

  def previous_hidden(self, hidden_BTD: jax.Array, segments_BT: jax.Array, start: int) -> jax.Array:
    slots = jnp.arange(start, hidden_BTD.shape[1]) - self.prompt
    first_BT = (slots % self.piece == 0) | (segments_BT[:, start:] != segments_BT[:, start - 1 : -1])
    first_BT &= slots >= 0
    end_of_prompt = hidden_BTD[:, self.prompt - 1, None]
    return jnp.where(first_BT[..., None], end_of_prompt, hidden_BTD[:, start - 1 : -1])

  def attention_pairs(self, attention: str) -> AttentionPairs:
    prompt, count, piece = self.prompt, self.count, self.piece
    computed = computed_pairs(attention, prompt) + count * computed_pairs(attention, piece, before=prompt)
    return AttentionPairs(computed, _triangle(prompt) + count * (piece * prompt + _triangle(piece)))


def choose(
  branches: int, prompt_lengths: Sequence[int], *, prompt_tokens: int, response_tokens: int, group: int, responses: int,
  parts: int, attention: str,
) -> RowLayout:  # fmt: skip
  """Returns the layout that `rl.branches` asks for.

  branches: responses that share a prompt on a row; 0: none do; -1: as many as save slots with prompts of these lengths,
  none where no lengths are known. No prompt is longer than `prompt_tokens`, no response than `response_tokens`.
  responses: of an update, in groups of `group`; parts: its rows must be a multiple of it (micro-batches x shards).
  Raises InputError where so many can't share a prompt.
  """
  separate = Separate(prompt_tokens + response_tokens)
  can_share = attention not in WHOLE_TEXTS
  if branches > 0 and not can_share:
    raise InputError(f"config.rl.branches = {branches}: model.attention {attention!r} can't share a prompt; take 0")
  if branches == 0 or not can_share:
    return separate
  fits = [count for count in range(1, group + 1) if group % count == 0 and responses % (count * parts) == 0]
  prompt = min(-(-max(prompt_lengths, default=prompt_tokens) // 8) * 8, prompt_tokens)
  if branches > 0:
    if branches not in fits:
      raise InputError(
        f"config.rl.branches = {branches}: must divide config.rl.group_size = {group}, and {responses} responses of an "
        f"update / branches must be a multiple of {parts} (micro-batches x pieces of the mesh)"
      )
    return SharedPrompt(prompt, branches, response_tokens)
  if not len(prompt_lengths):
    return separate
  most = (group * (np.mean(prompt_lengths) + _SHORT * response_tokens) - prompt) / response_tokens
  saving = [count for count in fits if 1 < count <= most]
  return SharedPrompt(prompt, saving[-1], response_tokens) if saving else separate


_SHORT = 1 / 8  # of the longest response: down to such a mean, rows that share are to hold no more slots than others


def _triangle(slots: int) -> float:
  """Pairs of a query and a key that does not stand behind it."""
  return slots * (slots + 1) / 2


class _Fit(NamedTuple):
  number: int
  bin: int
  slot: int  # of the bin, where the text begins


def _first_fit(length_N, numbers: Iterable[int], bins: int, size: int, share: bool) -> Iterator[_Fit]:
  """Fits texts into bins of `size` slots: longest first in the first bin with room for it; share=False: in order, each
  in a bin of its own. Bins are opened in order."""
  left = np.full(bins, size)
  ordered = sorted(numbers, key=lambda number: (-length_N[number], number)) if share else sorted(numbers)
  for number in ordered:
    has_room = left >= length_N[number] if share else left == size
    if not np.any(has_room):
      raise _no_room(number, length_N[number], bins, size)
    first = int(np.argmax(has_room))
    yield _Fit(number, first, size - int(left[first]))
    left[first] -= length_N[number]


def _no_room(number: int, tokens: int, rows: int, slots: int) -> InputError:
  return InputError(f"text {number} of {tokens} tokens finds no room on {rows} rows of {slots}; make more rows")


class _Rows:
  """`Placed` in the making."""

  def __init__(self, rows: int, slots: int):
    self.segments_RS, self.positions_RS = np.zeros((2, rows, slots), np.int32)

  def put(self, number: int, row: int, slot: int, first: int, tokens: int) -> None:
    """Puts tokens first, first + 1, ... of a text into a row, from this slot on."""
    rows, slots = self.segments_RS.shape
    if row >= rows:
      raise _no_room(number, tokens, rows, slots)
    here = np.s_[row, slot : slot + tokens]
    self.segments_RS[here] = number + 1
    self.positions_RS[here] = np.arange(first, first + tokens)

  def deal(self, parts: int) -> Placed:
    """Deals the rows out so that those in use come to lie in the first parts."""
    rows, slots = self.segments_RS.shape
    used = int(np.sum(np.any(self.segments_RS, 1)))
    both = np.stack([self.segments_RS, self.positions_RS]).reshape(2, parts, -1, slots).swapaxes(1, 2)
    segments_RS, positions_RS = both.reshape(2, rows, slots)
    return Placed(segments_RS, positions_RS, -(-used * parts // rows))
