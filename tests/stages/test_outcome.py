"""The paragraph that ends a run of RL."""

from pathlib import Path

from helpers.command_line import QUICK, run_smoke
from jaxrlvr.config import files as configs
from jaxrlvr.stages import outcome
from jaxrlvr.stages import run_directory as runs

GAIN = {"heldout_gain": 0.3, "heldout_gain_low": 0.25, "heldout_gain_high": 0.35}


def row(step, reward, true_reward, **metrics):
  return {"step": step, "reward": reward, "true_reward": true_reward, **metrics}


def evaluated(name, accuracy):
  return {f"eval/{name}/avg@4": accuracy, f"eval/{name}/avg@4_low": accuracy - 0.1, f"eval/{name}/pass@2": 1.0}


def test_it_says_what_was_gained_where_and_what_comes_next():
  rows = [{"step": 0, **evaluated("heldout", 0.125)}]
  rows += [row(step, 0.1 * step, 0.05 * step) for step in range(1, 4)]
  rows += [row(4, None, None), row(5, 1.0, 0.5, **evaluated("heldout", 0.425), **GAIN)]
  summary = {"steps": 5, "phase": "learning"}
  assert outcome.paragraph(rows, summary, Path("runs/my run")).split("\n") == [
    "my run: 5 steps, learning",
    "  held-out accuracy (heldout, avg@4): 12.5% at step 0, 42.5% at step 5",
    "  gain on all held-out problems: +30.0 points, 95 % interval [+25.0, +35.0]",
    "  in training: true reward 0.075 to 0.325, reward 0.150 to 0.650 (means of steps 1 to 2 and steps 3 to 5)",
    "  responses: runs/my run/rollouts and runs/my run/evals; figures: runs/my run/summary.json",
    "  next: jaxrlvr report 'runs/my run' --workdir='runs/my run-report'",
  ]


def test_lines_without_figures_are_left_out_and_sets_are_counted():
  summary = {"steps": 1, "phase": "memorising", "stopped": {"step": 1, "why": "memorising: ..."}}
  lines = outcome.paragraph([row(1, None, None)], summary, Path("w")).split("\n")
  assert lines[1] == "  ended itself at step 1: memorising: ..." and [line.split(":")[0] for line in lines[2:]] == [
    "  responses",
    "  next",
  ]
  many = {}
  for number in range(6):
    many |= evaluated(f"set{number}", 0.5)
  lines = outcome.paragraph([{"step": 0, **many}, {"step": 1, **many}], summary, Path("w")).split("\n")
  assert [line for line in lines if "set3" in line] and "  and 2 more sets, in summary.json" in lines
  assert not [line for line in lines if "set4" in line]


def test_a_link_of_a_chain_at_work_names_no_next_command(tmp_path):
  summary = {"steps": 1, "phase": "learning"}
  with runs.open_run(configs.base(), tmp_path / "chain", "chain"):
    assert "next:" not in outcome.paragraph([], summary, tmp_path / "chain" / "rl")
  assert "next:" in outcome.paragraph([], summary, tmp_path / "chain" / "rl")


def test_a_run_ends_with_it(tmp_path, init, capsys):
  assert run_smoke("rl", tmp_path / "w", init=init, **QUICK) == 0
  lines = capsys.readouterr().out.split("\n")
  assert lines[0].startswith("w: 2 steps, ") and "at step 0, " in lines[1] and lines[1].endswith("at step 2")
  assert lines[-2] == f"done: {tmp_path / 'w'}" and lines[-3].endswith(f"--workdir={tmp_path / 'w'}-report")
  assert run_smoke("rl", tmp_path / "w", init=init, **QUICK) == 0
  assert capsys.readouterr().out == f"done: {tmp_path / 'w'}\n"  # a finished run is not trained again
