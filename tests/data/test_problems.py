"""The order in which problems are drawn."""

from jaxrlvr.base.types import Problem
from jaxrlvr.data.problems import batch


def test_few_problems_are_repeated_uniformly():
  problems = [Problem(str(i), (), "", "", "arithmetic") for i in range(8)]
  first, occurrence = batch(problems, 0, 1, 32)
  ids = [p.id for p in first]
  assert all(ids.count(str(i)) == 4 for i in range(8))
  assert sorted(zip(ids, occurrence.tolist(), strict=True)) == sorted((str(i), n) for i in range(8) for n in range(4))
  many = [Problem(str(i), (), "", "", "arithmetic") for i in range(50)]
  epoch = [p.id for step in range(1, 26) for p in batch(many, 3, step, 10)[0]]
  ids = sorted(p.id for p in many)
  assert all(sorted(epoch[i : i + 50]) == ids for i in range(0, 250, 50))
  assert epoch[:50] != epoch[50:100] and [p.id for p in batch(many, 3, 7, 10)[0]] == epoch[60:70]


def test_the_order_differs_by_seed():
  many = [Problem(str(i), (), "", "", "arithmetic") for i in range(50)]
  assert [p.id for p in batch(many, 3, 1, 50)[0]] != [p.id for p in batch(many, 4, 1, 50)[0]]
