"""Prompts, their random keys, and the batch that a rollout makes for an update."""

import numpy as np

from jaxrlvr.device import keys
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.text.stop_strings import automaton
from jaxrlvr.training import objective

EOS = (2, 5)
NO_STOPS = automaton((), [b"x"] * 32)


def prompts(lengths, width=6, seed=0, high=21):
  rng = np.random.default_rng(seed)
  tokens = np.zeros((len(lengths), width), np.int32)
  for row, n in enumerate(lengths):
    tokens[row, width - n :] = rng.integers(6, high, n)
  return tokens, np.array(lengths, np.int32)


def row_keys(problems, group, step=0, offset=0):
  index = np.broadcast_to(np.arange(group, dtype=np.int32) + offset, (len(problems), group))
  return keys.of_samples(keys.address(0, "test", step), np.array(problems, np.uint32), index)


def rollout_batch(
  prompts,
  lengths,
  rollout,
  rewards,
  scored,
  *,
  group,
  share=False,
  skip=False,
  parts=1,
  updates=1,
  scores=None,
  layout=None,
  **how,
):
  """Returns (batch, its live parts) of each update.

  share: packs the responses. skip: leaves out responses without advantage. layout: of the rows; None: each response
  behind its own prompt.
  """
  length_PG = np.asarray(rollout.length_B).reshape(-1, group)
  layout = layout or Separate(prompts.shape[1] + rollout.tokens_BT.shape[1])
  how = dict(max_tokens=rollout.tokens_BT.shape[1], updates=updates) | how
  weight_PG, advantage_PG = objective.weigh(length_PG, rewards, scored, **how)
  batches = []
  for update_of in range(updates):
    mine = np.arange(length_PG.size).reshape(-1, updates, group)[:, update_of].reshape(-1)
    kept = mine[np.asarray(advantage_PG).reshape(-1)[mine] != 0] if skip else mine
    placed = layout.place(lengths, length_PG, kept, layout.rows(len(mine)), parts, share)
    where = placed.segments_RS, placed.positions_RS
    batch = objective.lay_out_batch(prompts, lengths, rollout, *where, samples=group, group=group, layout=layout)
    batch = batch.replace(**(scores or (lambda *_: {}))(batch, placed.live))
    batches.append((objective.add_weights(batch, weight_PG, advantage_PG), np.int32(placed.live)))
  return batches
