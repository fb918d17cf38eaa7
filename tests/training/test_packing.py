"""Documents packed into rows."""

import random

import numpy as np

from jaxrlvr.training.packing import Document, pack


def test_packing_keeps_documents_whole_and_resumes_anywhere():
  draw = random.Random(0)
  lengths = [draw.randint(1, 30) for _ in range(400)]

  def document(n):
    return Document([100 * n + i + 1 for i in range(lengths[n])], prompt=min(2, lengths[n]))

  cursor, seen = (0, 0), {}
  for _ in range(6):
    same_rows = pack(document, cursor, 4, 16)
    packed, cursor = pack(document, cursor, 4, 16)
    assert all(np.array_equal(a, b) for a, b in zip(same_rows[0], packed, strict=True))
    for row in range(4):
      for segment in range(1, packed.segments_BT[row].max() + 1):
        here = packed.segments_BT[row] == segment
        ids, positions = packed.tokens_BT[row, here], packed.positions_BT[row, here]
        number = (ids[0] - 1) // 100
        seen.setdefault(number, []).extend(ids.tolist())
        np.testing.assert_array_equal(positions, np.arange(len(ids)))
        want = [(i > 0) and ((token - 1) % 100 >= 2) for i, token in enumerate(ids)]
        np.testing.assert_array_equal(packed.target_BT[row, here], want)
        if lengths[number] <= 16:
          assert len(ids) == lengths[number]  # cut only if longer than a row
    assert not packed.target_BT[packed.segments_BT == 0].any()
  assert sorted(seen) == list(range(max(seen) + 1))
  assert all(ids == document(n).ids for n, ids in seen.items() if n < max(seen))
