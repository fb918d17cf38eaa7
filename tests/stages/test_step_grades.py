"""Metrics of a step that carry TRL's names mean what TRL's mean, from responses made by hand."""

import numpy as np
import pytest

from helpers.command_line import QUICK, metrics, rollouts, run_smoke
from jaxrlvr.rewards.types import graded_by_value
from jaxrlvr.stages import step_grades


def test_standard_deviations_are_over_the_batch_and_inside_of_groups():
  paid = graded_by_value([[0, 1, np.nan, 1], [1, 1, 1, np.nan], [np.nan] * 4])
  figures = step_grades._reward_statistics(paid)
  assert figures["reward"] == pytest.approx(5 / 6)
  assert figures["reward_std"] == pytest.approx(np.std([0, 1, 1, 1, 1, 1], ddof=1))
  assert figures["reward_std_in_group"] == pytest.approx(np.mean([np.std([0, 1, 1], ddof=1), 0.0]))
  assert figures["frac_reward_zero_std"] == 0.5 and figures["unscored"] == 0.5


def test_lengths_are_told_of_all_responses_and_of_those_that_ended_themselves():
  figures = step_grades._length_metrics(np.array([[5, 12], [3, 12]]), np.array([[False, True], [False, True]]))
  assert [figures[f"completions/{name}_length"] for name in ("mean", "min", "max")] == [8, 3, 12]
  assert [figures[f"completions/{name}_terminated_length"] for name in ("mean", "min", "max")] == [4, 3, 5]
  none_ended = step_grades._length_metrics(np.array([[12]]), np.array([[True]]))
  assert none_ended["completions/max_terminated_length"] == 0 and none_ended["completions/clipped_ratio"] == 1


def test_num_tokens_goes_on_in_a_resumed_run(init, tmp_path):
  changes = QUICK | dict(init=init, checkpoint__every=1, rl__optim__warmup=0.0)
  assert run_smoke("rl", tmp_path / "run", **changes) == 0
  assert run_smoke("rl", tmp_path / "run", **changes | dict(rl__steps=3)) == 0
  counts = [row["num_tokens"] for row in metrics(tmp_path / "run")[1:]]
  per_step = np.diff([0, *counts])
  responses = [sum(row["tokens"] for row in rollouts(tmp_path / "run", step)) for step in (1, 2, 3)]
  prompts = per_step - responses
  assert len(counts) == 3 and (prompts > 0).all() and (prompts % 4 == 0).all()  # each prompt counts for 4 responses
