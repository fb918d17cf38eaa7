"""Reasoning Gym problems from a seed."""

import collections
import json
import pathlib
import sys

import pyarrow.parquet
import pytest

from jaxrlvr.data import problems
from jaxrlvr.tasks.graph import problems as graph
from jaxrlvr.tasks.graph.levels import GENERATOR_SETTINGS
from jaxrlvr.tasks.graph.verify import largest_island, quantum_lock
from jaxrlvr.tasks.gym import problems as gym
from jaxrlvr.tasks.splits import LEVELS

OFFICIAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "official"


@pytest.fixture(autouse=True)
def _installed():
  pytest.importorskip("reasoning_gym")


def test_graph_problems_are_balanced_and_their_answers_right():
  generated = problems.load("graph", split="train", count=44, levels=LEVELS, kinds=("chain",), seed=5, verifier="auto")
  counts = collections.Counter((p.verifier, p.extra["level"]) for p in generated)
  assert len(counts) == 10 and set(counts.values()) == {4, 5} and len({p.id for p in generated}) == 44
  for p in generated:
    judge = {"quantum_lock": quantum_lock, "largest_island": largest_island}[p.verifier]
    assert judge(p.label, p.truth, p.extra).score == 1
    assert judge("9999", p.truth, p.extra).score == 0
    assert [turn["role"] for turn in p.messages] == ["system", "user"] and "\\boxed" in p.messages[0]["content"]
    if p.verifier == "largest_island":
      low, high = p.extra["difficulty"]["rows"]
      grid = p.extra["grid"]
      assert low <= len(grid) <= high and int(p.label) == _largest(grid)
    else:
      assert 1 <= p.extra["difficulty"]["difficulty"] <= 2 * p.extra["level"] - 1
  boxed = gym.problems(5, "train", LEVELS, 12, ("quantum_lock", "largest_island"), "Box it.")
  order = gym.problems(5, "train", LEVELS, 12, ("largest_island", "quantum_lock"))
  assert {p.id for p in order} & {p.id for p in boxed} and boxed[0].messages[0]["content"] == "Box it."
  fewer = problems.load("graph", split="train", count=12, levels=LEVELS, kinds=(), seed=5, verifier="", system="Hm.")
  assert [(p.id, p.extra) for p in fewer] == [(p.id, p.extra) for p in generated[:12]]
  assert fewer[0].messages[0]["content"] == "Hm."


def _largest(grid):
  """Returns the largest area, found by flooding each cell once."""
  land = {(r, c) for r, line in enumerate(grid) for c, cell in enumerate(line) if cell}
  best = 0
  while land:
    edge, area = [land.pop()], 0
    while edge:
      r, c = edge.pop()
      area += 1
      for place in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
        if place in land:
          land.remove(place)
          edge.append(place)
    best = max(best, area)
  return best


def test_splits_never_meet_and_seeds_differ():
  def ids(seed, split, count, levels=(1, 2)):
    return {p.id for p in graph.problems(seed, split, levels, count, ())}

  train = ids(0, "train", 300) | ids(1, "train", 300)
  held = ids(0, "heldout", 60) | ids(1, "heldout", 60)
  assert not train & held and len(held) > 100
  assert ids(0, "train", 40) != ids(1, "train", 40)
  with pytest.raises(ValueError, match="heldout problems of quantum_lock, levels .1,.: found only .* of 5000"):
    gym.problems(0, "heldout", (1,), 5000, ("quantum_lock",))


def test_other_tasks_by_name(monkeypatch):
  generated = problems.load(
    "reasoning_gym", split="train", count=10, levels=(1, 3), kinds=("chain_sum", "gcd"), seed=0, verifier="auto"
  )
  assert {p.verifier for p in generated} == {"reasoning_gym"} and len({p.extra["level"] for p in generated}) == 2
  from reasoning_gym import get_score_answer_fn

  for p in generated:
    entry = json.loads(json.dumps(p.extra))["entry"]
    assert entry["question"] == p.messages[-1]["content"] and set(entry) == {"question", "answer", "metadata"}
    assert get_score_answer_fn(p.extra["source_dataset"])(p.label, entry) == 1.0
  sums = [len(p.extra["entry"]["question"]) for p in generated if p.extra["kind"] == "chain_sum"]
  assert max(sums[::2]) < max(sums[1::2])  # level 3 has longer sums
  with pytest.raises(ValueError, match="kinds: 'chain' is no task of Reasoning Gym; use some of .*chain_sum"):
    gym.problems(0, "train", (1,), 1, ("chain",))
  with pytest.raises(ValueError, match="levels .7,."):
    graph.problems(0, "train", (7,), 1, ())
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  with pytest.raises(ValueError, match=r"pip install 'jaxrlvr\[gym\]'"):
    graph.problems(0, "train", (1,), 1, ())


@pytest.mark.skipif(not OFFICIAL.exists(), reason="needs ../shared/data/official")
def test_levels_are_those_of_the_studys_files():
  seen = collections.defaultdict(set)
  for path in OFFICIAL.rglob("*.parquet"):
    if "graph" in path.name or "island" in path.name or "lock" in path.name:
      for row in pyarrow.parquet.read_table(path, columns=["extra_info"]).to_pylist():
        extra = json.loads(row["extra_info"]) if isinstance(row["extra_info"], str) else row["extra_info"]
        seen[extra["source_dataset"]].add(json.dumps(extra["difficulty"], sort_keys=True))
  ours = gym.problems(0, "train", LEVELS, 5, ("largest_island",))
  assert seen["largest_island"] == {json.dumps(p.extra["difficulty"], sort_keys=True) for p in ours}
  locks = {json.loads(one)["difficulty"] for one in seen["quantum_lock"]}
  assert locks == set(range(1, GENERATOR_SETTINGS["quantum_lock"][-1]["difficulty"] + 1))
