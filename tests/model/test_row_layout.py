"""Where responses stand on rows, and the layout that a config's number of branches gives."""

import numpy as np
import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.model.row_layout import Separate, SharedPrompt, choose


def test_placing_responses():
  lengths = np.random.default_rng(0).integers(1, 12, 40)
  prompts = np.minimum(lengths.reshape(10, 4).min(1) - 1, 2)
  numbers = np.flatnonzero(np.arange(40) % 5)

  def place(numbers, rows, parts, share=True):
    return Separate(12).place(prompts, lengths.reshape(10, 4) - prompts[:, None], numbers, rows, parts, share)

  placed, placed_in_reverse = place(numbers, 40, 5), place(numbers[::-1], 40, 5)
  np.testing.assert_array_equal(placed.segments_RS, placed_in_reverse.segments_RS)
  numbers_found, counted = np.unique(placed.segments_RS, return_counts=True)
  np.testing.assert_array_equal(numbers_found[1:] - 1, numbers)
  np.testing.assert_array_equal(counted[1:], lengths[numbers])
  for number in numbers:
    here = placed.segments_RS == number + 1
    assert np.sum(here.any(1)) == 1
    np.testing.assert_array_equal(placed.positions_RS[here], np.arange(lengths[number]))
    assert np.ptp(np.flatnonzero(here.any(0))) == lengths[number] - 1
  full = (placed.segments_RS > 0).any(1).reshape(8, 5).sum(0)  # rows of each micro-batch, as split_rows deals them
  assert placed.live == np.sum(full > 0) and np.all(np.diff(full) <= 0) and full.sum() <= 1.2 * counted[1:].sum() / 12
  alone = place(numbers, 40, 5, share=False)
  assert np.all([len(set(row) - {0}) <= 1 for row in alone.segments_RS]) and alone.live == 4
  assert place([], 40, 5).live == 0
  with pytest.raises(InputError, match="finds no room on 2 rows of 12"):
    place(numbers, 2, 1)


def test_placing_responses_behind_their_prompts():
  layout, prompts = SharedPrompt(5, 2, 4), np.array([3, 1, 5, 2])
  lengths = np.array([4, 2, 1, 4, 4, 4, 4, 4, 1, 1, 1, 1, 3, 2, 4, 1])
  numbers = [n for n in range(16) if n != 7]

  def place(rows, parts, share=True):
    return layout.place(prompts, lengths.reshape(4, 4), numbers, rows, parts, share)

  assert layout.slots == 13 and layout.rows(16) == 8
  placed = place(8, 4)
  on_rows = {frozenset(row) - {0} for row in placed.segments_RS.tolist() if any(row)}
  expected = [{1, 4}, {2, 3}, {5, 6}, {7}, {9, 10, 11, 12}, {15, 13, 16}, {14}]
  assert on_rows == set(map(frozenset, expected)) and placed.live == 4
  for segments, positions in zip(placed.segments_RS, placed.positions_RS, strict=True):
    held = [n for n in dict.fromkeys(segments[5:]) if n]
    if not held:
      continue
    prompt = prompts[(held[0] - 1) // 4]
    assert segments[:5].tolist() == [0] * (5 - prompt) + [held[0]] * prompt
    assert positions[5 - prompt : 5].tolist() == list(range(prompt))
    for number in held:
      [slots] = np.nonzero(segments[5:] == number)
      assert np.ptp(slots) + 1 == len(slots) == lengths[number - 1] and len(set(slots // 4)) == 1
      assert positions[5 + slots].tolist() == list(range(prompt, prompt + len(slots)))
  alone = place(8, 4, share=False)
  assert sum(len(set(row[at : at + 4]) - {0}) for row in alone.segments_RS.tolist() for at in (5, 9)) == 15
  with pytest.raises(InputError, match="finds no room on 2 rows of 13"):
    place(2, 1)


def chosen(branches, prompt_lengths, attention="mapped", parts=8):
  return choose(
    branches,
    prompt_lengths,
    prompt_tokens=64,
    response_tokens=128,
    group=8,
    responses=64,
    parts=parts,
    attention=attention,
  )


@pytest.mark.parametrize(
  "branches, prompt_lengths, attention, layout",
  [
    (-1, [64] * 4, "mapped", SharedPrompt(64, 4, 128)),  # a quarter of the slots
    (-1, [12] * 4, "mapped", Separate(192)),  # so short that a row of short responses would stand empty
    (-1, [20] * 7 + [61], "mapped", SharedPrompt(64, 2, 128)),
    (-1, [], "mapped", Separate(192)),
    (-1, [64] * 4, "splash", Separate(192)),
    (0, [64] * 4, "mapped", Separate(192)),
    (8, [3] * 4, "mapped", SharedPrompt(8, 8, 128)),
    (1, [], "mapped", SharedPrompt(64, 1, 128)),
  ],
)
def test_rows_share_a_prompt_where_that_saves_slots(branches, prompt_lengths, attention, layout):
  assert chosen(branches, prompt_lengths, attention) == layout


@pytest.mark.parametrize(
  "branches, attention, parts, message",
  [
    (4, "splash", 8, "'splash' can't share a prompt; take 0"),
    (3, "mapped", 8, "must divide config.rl.group_size = 8"),
    (8, "mapped", 16, "64 responses .* multiple of 16 "),
  ],
)
def test_a_number_of_branches_that_does_not_fit_is_refused(branches, attention, parts, message):
  with pytest.raises(InputError, match=message):
    chosen(branches, [64], attention, parts)
