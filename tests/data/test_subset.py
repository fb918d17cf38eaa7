"""Subsets by difficulty, against the study's released subsets and golden cases."""

import json

import numpy as np
import pyarrow.parquet
import pytest

from jaxrlvr.data.subset import bins, round_robin


def test_golden_cases(golden):
  for case in json.loads((golden / "difficulty_filter.json").read_text())["cases"]:
    counts = case["solve_counts"]
    counted = bins(counts)
    kept = sorted(int(i) for members in counted.values() for i in members)
    assert len(kept) == case["n_kept"] and case["kept_indices"] in (None, kept), case["name"]
    assert {str(number): len(members) for number, members in counted.items()} == case["bin_sizes"], case["name"]
    whole = round_robin(counts, 3, len(counts))
    assert sorted(whole) == kept
    for expected in case["expected"]:
      picked = round_robin(counts, 3, expected["N"])
      assert len(picked) == expected["selected"] and picked == whole[: len(picked)]
      sequence = [counts[i] for i in picked]
      assert {str(number): sequence.count(number) for number in counted} == expected["per_bin"], case["name"]
      if expected.get("bin_sequence") is not None:
        assert sequence == expected["bin_sequence"], case["name"]


def test_released_subsets_have_these_bins(whole_golden, official):
  """Each subset that the study released has, bin by bin, as many problems as ours of its 2048 problems."""
  spread = 0
  for released in json.loads((whole_golden / "difficulty_filter.json").read_text())["released_files"]:
    path = official / released["file"]
    counts = _solve_counts(path)
    assert {str(n): len(members) for n, members in bins(counts).items()} == released["per_bin"], path
    assert len(counts) == released["unique_prompts"]
    if released.get("round_robin_on_2048_file_gives_same_counts"):
      whole = _solve_counts(path.with_name(path.stem.rpartition("_")[0] + "_2048.parquet"))
      picked = [whole[i] for i in round_robin(whole, 0, len(counts))]
      assert sorted(picked) == sorted(counts), path
      spread += 1
  assert spread == 7


def _solve_counts(path):
  """Returns solve@16 of each prompt of a file, measured with the model that the file was made for."""
  model = {"llama-3b": "Llama-3.2-3B-Instruct", "qwen-math-1.5b": "Qwen2.5-Math-1.5B"}[path.parent.name]
  table = pyarrow.parquet.read_table(path, columns=["prompt", "difficulty"]).to_pylist()
  return list({json.dumps(row["prompt"]): int(row["difficulty"][model] or 0) for row in table}.values())


def test_order_is_one_and_random_inside_a_bin():
  counts = np.random.default_rng(0).integers(0, 5, 200)
  whole = round_robin(counts, 1, 200, samples=4)
  assert set(counts[whole]) == {1, 2, 3} and len(set(whole)) == len(whole) == int(((counts > 0) & (counts < 4)).sum())
  assert round_robin(counts, 1, 8, samples=4) == whole[:8] != round_robin(counts, 2, 8, samples=4)
  first = [i for i in whole if counts[i] == 2]
  assert first != sorted(first)
  with pytest.raises(ValueError, match="problem 2 is solved 17 times, wanted a whole number from 0 to 16"):
    round_robin([0, 16, 17], 0, 1)
