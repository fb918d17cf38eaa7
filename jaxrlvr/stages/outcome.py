"""Says in a few lines what a run of RL has gained, and where to read on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxrlvr.analysis.passk import mean
from jaxrlvr.stages.run_directory import in_use

_SETS = 4  # held-out sets that get a line of their own
_STEPS = 10  # steps at each end of training over which rewards are averaged, as those of one step are noisy


def paragraph(rows: Sequence[Mapping], summary: Mapping, home: Path) -> str:
  """Returns the paragraph with which a run of RL ends, without a line end.

  Its lines: the number of steps and the phase; the accuracy on each held-out set at the first and the last evaluation;
  the gain on all held-out problems, with its interval; the true reward and the reward at both ends of training; where
  responses and figures are; and the command that makes a report, unless the run is a link of a chain or grid that is at
  work. A line without figures is left out.

  rows: those of metrics.jsonl. summary: of the run, with steps, phase and perhaps stopped. home: the run directory.
  """
  lines = [f"{home.name}: {summary['steps']} steps, {summary['phase']}"]
  if "stopped" in summary:
    lines.append(f"  ended itself at step {summary['stopped']['step']}: {summary['stopped']['why']}")
  lines += _held_out(rows)
  lines += _training(rows)
  lines.append(f"  responses: {home / 'rollouts'} and {home / 'evals'}; figures: {home / 'summary.json'}")
  if not in_use(home.parent):
    run, report = shlex.quote(str(home)), shlex.quote(f"{home}-report")
    lines.append(f"  next: jaxrlvr report {run} --workdir={report}")
  return "\n".join(lines)


def _held_out(rows: Sequence[Mapping]) -> list[str]:
  """Returns a line for each of the first sets in the metrics eval/SET/avg@K, and one for the gain on all of them."""
  evaluated = [row for row in rows if _accuracies(row)]
  if len(evaluated) < 2:
    return []
  first, last = evaluated[0], evaluated[-1]
  before = _accuracies(first)
  lines = []
  for name, accuracy in _accuracies(last).items():
    if name in before:
      _, set_name, figure = name.split("/", 2)
      lines.append(
        f"  held-out accuracy ({set_name}, {figure}): {before[name]:.1%} at step {first['step']}, {accuracy:.1%} at "
        f"step {last['step']}"
      )
  more = len(lines) - _SETS
  if more > 0:
    lines = [*lines[:_SETS], f"  and {more} more sets, in summary.json"]
  gain = last.get("heldout_gain")
  if gain is not None:
    low, high = 100 * last["heldout_gain_low"], 100 * last["heldout_gain_high"]
    lines.append(f"  gain on all held-out problems: {100 * gain:+.1f} points, 95 % interval [{low:+.1f}, {high:+.1f}]")
  return lines


def _accuracies(row: Mapping) -> dict[str, float]:
  """Returns the metrics eval/SET/avg@K of a row that have a value, without the ends of their intervals."""
  accuracies = {}
  for name, value in row.items():
    is_accuracy = name.startswith("eval/") and "/avg@" in name and not name.endswith(("_low", "_high"))
    if is_accuracy and value is not None:
      accuracies[name] = value
  return accuracies


def _training(rows: Sequence[Mapping]) -> list[str]:
  """Returns a line with the mean true reward and reward of the first and the last steps; [] without such steps."""
  trained = [row for row in rows if row.get("reward") is not None and row.get("true_reward") is not None]
  if not trained:
    return []
  steps = min(_STEPS, max(1, len(trained) // 2))
  begin, end = trained[:steps], trained[-steps:]
  true_reward, reward = _from_to("true_reward", begin, end), _from_to("reward", begin, end)
  return [f"  in training: true reward {true_reward}, reward {reward} (means of {_span(begin)} and {_span(end)})"]


def _from_to(name: str, begin: Sequence[Mapping], end: Sequence[Mapping]) -> str:
  """Returns the means of a metric over the rows of both ends of training, as "0.100 to 0.850"."""
  return f"{mean([row[name] for row in begin]):.3f} to {mean([row[name] for row in end]):.3f}"


def _span(rows: Sequence[Mapping]) -> str:
  """Returns which steps these rows are, as "steps 1 to 10" or "step 1"."""
  first, last = rows[0]["step"], rows[-1]["step"]
  return f"step {first}" if first == last else f"steps {first} to {last}"
