"""Reads recorded runs for the report: metrics, evaluations and labels, with notes on whatever can't be read."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import Gain, mean_draws, problem_means
from jaxrlvr.analysis.phase import CLAIMS
from jaxrlvr.analysis.saturation import (
  STATES,
  CurveDraws,
  GainDraws,
  Saturation,
  Timing,
  gain_draws,
  reward_draws,
  rewards_by_problem,
  saturation,
  timing,
)
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.logbook import finite, read_json, read_jsonl
from jaxrlvr.data.eval_sets import DOMAINS

_LOG = logging.getLogger(__name__)
GRID = "grid.json"  # in a grid's directory: its title and cells
_AVG = re.compile(r"eval/(.+)/avg@(\d+)")
_GAIN = ("heldout_gain", "heldout_gain_low", "heldout_gain_high")
# Names of figures that are means over several sets, and whose sets these are: a field of `eval_sets.DOMAINS`.
_MEANS = {"in-domain": "inside", "out-of-domain": "outside"}


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of the stage rl or evaluate, and where the report shows it.

  Runs with the same arm and setting are seeds of one another: the report aggregates them.
  """

  name: str  # the run's name, which no other run of its stage has in the report
  rl: Path  # the run directory, of the stage rl or evaluate
  arm: str = ""  # the curve in a chart; "": the name
  setting: str = ""  # the panel of charts
  n: int | None = None  # number of training problems, by which the large-small gap pairs the cells of an arm
  seed: int | None = None  # the run's seed; None: as its config says
  judged: Path | None = None  # the run directory of the stage judge; None: the run was not judged
  evaluation: bool = False  # whether it is a run of the stage evaluate


class Grid(NamedTuple):
  """What grid.json says."""

  title: str  # of the report; "" where grid.json names none
  cells: list[Cell]  # the runs, in the order of grid.json


def read_grid(folder: Path) -> Grid:
  """Returns the title and the runs that grid.json in a grid's directory names.

  It holds {"title", "cells": [{"name", "arm", "setting", "n", "seed", "rl", "judged"}]}, where rl and judged are run
  directories relative to `folder`; title, n, seed and judged may be absent. InputError where it is absent or holds
  something else. The run directories need not exist.
  """
  try:
    recorded = json.loads((folder / GRID).read_text(encoding="utf-8"))
    cells = [_cell_of(row, folder) for row in recorded["cells"]]
    return Grid(str(recorded.get("title", "")), cells)
  except (OSError, ValueError, TypeError, KeyError) as error:
    wanted = 'wanted {"title", "cells": [{"name", "arm", "setting", "n", "seed", "rl", "judged"}]}'
    raise InputError(f"{folder / GRID}: {type(error).__name__}: {error}; {wanted}") from error


def _cell_of(row: Mapping, folder: Path) -> Cell:
  """Returns the cell that a row of grid.json describes; `folder`: the grid's directory."""
  return Cell(
    name=str(row["name"]),
    rl=folder / row["rl"],
    arm=str(row["arm"]),
    setting=str(row["setting"]),
    n=row.get("n"),
    seed=row.get("seed"),
    judged=folder / row["judged"] if row.get("judged") else None,
  )


class HeldOut(NamedTuple):
  """What a run recorded about problems that are in a held-out set and were trained on too."""

  recorded: bool  # whether the summary says anything about it
  compared: bool = False  # False, though recorded, where no training problems of the policy are known
  problems: int | None = None  # problems of the set that were evaluated; None: unknown
  shared: int = 0  # evaluated problems that are trained on too
  left_out: int = 0  # problems that are trained on, and for that reason were left out of the set


class Paper(NamedTuple):
  """What the paper reports of the experiment that a run repeats."""

  expected: str  # the result, in a sentence
  figure: str | None  # the paper's figure or table
  setting: str | None  # the model and the data, as the paper names them
  t_sat: float | None  # the step at which training saturates; None: not reported
  gains: dict[str, float]  # the gain until t_sat on each set, as a share


class Claim(NamedTuple):
  """The phase that a run recorded at its last step."""

  claim: str  # "learning", "memorising", "collapsed" or "not decided"
  since: int  # the first step from which on it was claimed at every step
  step: int | None  # the evaluated step that `gain` belongs to; None where there is no gain
  gain: Gain | None  # held-out accuracy minus that at step 0, over the problems of all sets


class RecordedRun:
  """A run directory as far as it can be read; a missing or broken file is left out with a note, and raises nothing.

  cell, name, arm, setting: what the report calls the run. workdir: its directory. config, summary: the contents of
  config.json and summary.json. rows: {step: metrics}, with those of a judge's run as judge/NAME. notes: sentences on
  what could not be read and on how the run ended. finished: whether it came to its end. unpaid: whether there were
  training steps and no reward but 0. state: "finished", "not finished", "not there", "ended without reward" or "stopped
  itself". last, planned: the last logged and the last planned step. tail: number of last steps in which saturation is
  not looked for. sets: {evaluated set: samples K of each problem}, the domain's own first and means last. set, K,
  evals: the first set, its K and its {step: avg@K}; None, 0 and {} without one. reward_T: the mean training reward of
  each step; None where none was logged. timing, t_sat: when the reward saturates. unlike: whether the last evaluation
  is at an earlier step than that of other runs in the setting; the report sets it. labels: {(step, problem, sample):
  faithfulness label} of the judge; None: missing. judged_set: the set whose responses the judge was given, "" for
  responses of training; judged_steps: their steps.
  """

  def __init__(self, cell: Cell, tail: int):
    """Reads a cell's directory. tail: number of last steps without saturation, unless the run's config has its own."""
    self.cell, self.name, self.arm, self.setting = cell, cell.name, cell.arm or cell.name, cell.setting
    self.workdir = cell.rl
    self.notes: list[str] = []
    self.unlike = False
    self._means: dict[tuple[str, int], dict[str, float]] = {}
    self._curve_draws: dict[str, CurveDraws] = {}
    self.config = self._json(self.workdir / "config.json")
    self.summary = self._json(self.workdir / "summary.json")
    own_tail = self.at("saturation_tail", int)
    self.tail = tail if own_tail is None else max(own_tail, 0)
    self._read_metrics()
    self._read_sets()
    rewards = self.series("reward")
    self.reward_T = [rewards.get(step) for step in range(1, max(rewards, default=0) + 1)]
    self.timing = self._timing()
    self.t_sat = self.timing.t_sat.step  # None unless the reward rose and saturated
    self._note_ending()
    self.labels: dict[tuple, float | None] = {}
    self.judged_set = ""
    self.judged_steps: tuple[int, ...] = ()
    if cell.judged:
      self._read_judged(cell.judged)

  def _read_metrics(self) -> None:
    """Sets `rows` and what follows from them: how far the run came, and how it ended."""
    self.rows = self._metrics(self.workdir)
    if not self.rows and measured_sets(self.summary):  # a run of the stage evaluate has its figures in the summary
      self.rows = {self.at("summary.steps", int) or 0: self.summary}
    self.finished = bool(self.summary.get("finished"))
    self.trained = [row for row in self.rows.values() if "reward" in row]  # metrics of training steps
    was_paid = any(row["reward"] or row.get("reward_std") for row in self.trained)
    self.unpaid = bool(self.trained) and not was_paid
    self.state = self._state()
    self.last, self.planned = max(self.rows, default=0), self.at("rl.steps", int)

  def _read_sets(self) -> None:
    """Sets `sets`, `set`, `K` and `evals` from the names of the metrics."""
    measured = measured_sets(name for row in self.rows.values() for name in row)
    domain = DOMAINS.get(self.at("heldout.domain", str))
    self._parts: dict[str, list[str]] = {}  # the measured sets that each mean is over
    for mean, side in _MEANS.items():
      self._parts[mean] = [name for name in getattr(domain, side, ()) if name in measured]
    own_sets = [name for names in self._parts.values() for name in names]
    self.sets: dict[str, int] = {}
    for name in dict.fromkeys([*own_sets, *measured]):
      is_mean_of_one = len(self._parts.get(name, ())) == 1
      if not is_mean_of_one:
        self.sets[name] = measured[name]
    self.set = next(iter(self.sets), None)
    self.K = self.sets.get(self.set, 0)
    self.evals = self.curve(self.set)

  def _note_ending(self) -> None:
    """Adds notes on a run that is absent, empty, not finished, or stopped itself."""
    if not self.workdir.is_dir():
      self.notes.append(f"There is no directory {self.workdir}.")
    elif not self.rows:
      self.notes.append("Nothing was measured: metrics.jsonl is absent or empty, and summary.json holds no figures.")
    elif not self.finished:
      self.notes.append(f"Not finished: this is its state after step {self.last} of {self.planned or 'unknown'}.")
    stopped = self.summary.get("stopped")
    if isinstance(stopped, Mapping):
      self.notes.append(f"Stopped itself at step {stopped.get('step')}: {stopped.get('why')}.")

  def _state(self) -> str:
    if not self.finished:
      return "not finished" if self.rows else "not there"
    if self.unpaid:
      return "ended without reward"
    return "stopped itself" if self.summary.get("stopped") else "finished"

  def held_out(self, set_name: str | None) -> HeldOut:
    """Returns what the run recorded about problems of an evaluated set that are trained on too.

    For a figure that is a mean over several sets, numbers of problems are summed over these. `recorded` is False where
    the run's summary says nothing about it, and where set_name is None.
    """
    if "heldout_overlap" not in self.summary or set_name is None:
      return HeldOut(recorded=False)
    shared = self.at("summary.heldout_overlap")
    names = self._parts.get(set_name) or [set_name]
    if not isinstance(shared, Mapping) or not all(type(shared.get(name)) is int for name in names):
      return HeldOut(recorded=shared is None)
    sizes = [self.series(f"eval/{name}/problems") for name in names]
    problems = sum(int(size[max(size)]) for size in sizes) if all(sizes) else None
    dropped = self.at("summary.heldout_left_out", Mapping) or {}
    left_out = sum(dropped[name] for name in names if type(dropped.get(name)) is int)
    return HeldOut(True, True, problems, sum(shared[name] for name in names), left_out)

  def why_unpaid(self) -> str:
    """Returns why no response was paid, as the finished run's summary says it; without that, for how many steps.

    Only for a run that is `unpaid`.
    """
    reason = self.summary.get("unpaid")
    if isinstance(reason, str):
      return reason
    return f"no response was paid anything in {len(self.trained)} steps"

  def claim(self) -> Claim | None:
    """Returns the phase that the run recorded last, None where it recorded none."""
    claims = []
    for step, row in self.rows.items():
      claimed = _claimed(row)
      if claimed is not None:
        claims.append((step, claimed))
    if not claims:
      return None
    since, last = claims[-1]
    for step, claimed in reversed(claims):
      if claimed != last:
        break
      since = step
    figures = [self.series(name) for name in _GAIN]
    step = max(set.intersection(*map(set, figures)), default=None)
    if step is None:
      return Claim(last, since, None, None)
    return Claim(last, since, step, Gain(*(figure[step] for figure in figures)))

  def _read_judged(self, folder: Path) -> None:
    """Reads a judge's run directory: its figures become metrics judge/NAME of the run, its labels `labels`."""
    figures = self._metrics(folder)
    if not figures:
      self.notes.append(f"Not judged yet: there are no figures in {folder / 'metrics.jsonl'}.")
    kappa = inside(self._json(folder / "summary.json"), "kappa.faithfulness.kappa")  # None unless there were two judges
    for step, row in figures.items():
      metrics = {f"judge/{name}": value for name, value in row.items()}
      metrics["judge/kappa"] = kappa
      self.rows[step] = self.rows.get(step, {}) | metrics
    name = inside(self._json(folder / "config.json"), "judge.set")
    self.judged_set = name if isinstance(name, str) else ""
    self.judged_steps = tuple(sorted(figures))
    for path in sorted((folder / "judged").glob("step_*.jsonl")):
      self.labels |= self.read(_labels_of, path, {})

  def read(self, reader: Callable, path: Path, default: Any) -> Any:
    """Returns reader(path). Where the file can't be read, logs and notes that, and returns the default.

    reader: takes the path. What it may raise is ValueError, OSError, KeyError, TypeError or AttributeError.
    """
    try:
      return reader(path)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
      note = f"{path.name} can't be read and was left out: {error}."
      if note not in self.notes:
        _LOG.warning("%s: %s", self.name, note)
        self.notes.append(note)
      return default

  def _metrics(self, folder: Path) -> dict[int, dict]:
    return self.read(_metrics_of, folder / "metrics.jsonl", {})

  def _json(self, path: Path) -> dict:
    return self.read(lambda path: finite(read_json(path)), path, {})

  def at(self, path: str, kind: type = object) -> Any:
    """Returns a value of the config by its path of keys with dots between, or of the summary behind `summary.`.

    path: such as "rl.steps" or "summary.steps". kind: the type that the value must have. None where there is none, or
    it is not of this type.
    """
    value = inside(self.config | {"summary": self.summary}, path)
    return value if isinstance(value, kind) else None

  def paper(self) -> Paper | None:
    """Returns what the paper reports of the run's experiment; None where the run's config names none."""
    return self.read(lambda path: _paper_of(self.config), self.workdir / "config.json", None)

  def series(self, name: str) -> dict[int, float]:
    """Returns {step: value} of a metric at the steps where it was logged and is a finite number.

    name: such as "reward", "eval/SET/avg@K" or "judge/F(1)/all". {} for a metric that was never logged.
    """
    return series(self.rows, name)

  def curve(self, set_name: str | None) -> dict[int, float]:
    """Returns {step: avg@K} of the set's evaluations, a share from 0 to 1; {} for None and for an unknown set."""
    return self.series(f"eval/{set_name}/avg@{self.sets.get(set_name)}")

  def saturation(self, set_name: str) -> Saturation:
    """Returns t_sat with the set's accuracy there, its gain until then, and its residual after it.

    Where the reward did not rise, or was not measured, all of these are None and `note` says why.
    """
    read_at_t_sat = saturation(self.reward_T, self.curve(set_name), self.tail)
    if self.t_sat is not None or self.timing.state == "not saturated":
      return read_at_t_sat
    reason = f"{self.timing.state}: {STATES[self.timing.state]}"
    return Saturation(None, read_at_t_sat.reward_max, note=reason)

  def _timing(self) -> Timing:
    """Returns t_sat and t90, with intervals where the rollouts of every step with a reward are recorded."""
    without_intervals = timing(self.reward_T, None, self.tail)
    if without_intervals.state not in ("saturated", "not saturated"):
      return without_intervals
    group = self.at("rl.group_size", int) or 0
    votes = self.at("rl.votes", int) or group
    recorded_T: list[dict[str, list[float]]] = []
    for step, reward in enumerate(self.reward_T, 1):
      path = self.workdir / "rollouts" / f"step_{step:06d}.jsonl"
      if not group or (reward is not None and not path.is_file()):
        return without_intervals
      rewards = {}
      if reward is not None:
        rewards = self.read(functools.partial(_rewards_of, votes=votes, group=group), path, {})
      recorded_T.append(rewards)
    return timing(self.reward_T, reward_draws(recorded_T), self.tail)

  def eval_file(self, set_name: str, step: int) -> Path:
    """Returns the path of the file with the responses of one evaluation, whether it is there or not."""
    return self.workdir / "evals" / f"{set_name}_{step:06d}.jsonl"

  def problem_means(self, set_name: str | None, step: int | None) -> dict[str, float]:
    """Returns {problem: mean true reward of its samples} of one evaluation.

    Problems without a scored sample are left out; {} where responses are not recorded, or set_name or step is None.
    """
    if set_name is None or step is None:
      return {}
    place = (set_name, step)
    if place not in self._means:
      self._means[place] = self.read(_problem_means_of, self.eval_file(set_name, step), {})
    return self._means[place]

  def curve_draws(self, set_name: str) -> CurveDraws:
    """Returns bootstrap draws of the set's curve: avg@K at each evaluated step over problems drawn with replacement.

    Of a figure that is a mean over several sets it is the mean of their curves. Only problems that all evaluations
    recorded count; `M_DS` is None where there are none.
    """
    if set_name not in self._curve_draws:
      steps = sorted(self.curve(set_name))
      curves = []
      for seed, name in enumerate(self._parts.get(set_name, (set_name,))):
        curves.append(self._draws_of_set(name, steps, seed))
      is_whole = bool(curves) and all(curve is not None for curve in curves)
      self._curve_draws[set_name] = CurveDraws(steps, np.mean(curves, 0) if is_whole else None)
    return self._curve_draws[set_name]

  def _draws_of_set(self, set_name: str, steps: Sequence[int], seed: int) -> np.ndarray | None:
    """Returns avg@K [draws, S] at the steps, over redrawn problems that all steps have; None where there are none."""
    means_S = [self.problem_means(set_name, step) for step in steps]
    if not means_S:
      return None
    shared = sorted(set.intersection(*map(set, means_S)), key=str)
    if not shared:
      return None
    means_SP = np.array([list(map(means.get, shared)) for means in means_S])
    return mean_draws(np.ascontiguousarray(means_SP.T), seed=seed)

  def gain_draws(self, set_name: str) -> GainDraws:
    """Returns bootstrap draws [D] of the gain until t_sat, of the residual after it, and of the gain to the end.

    They are taken over the set's problems drawn with replacement; each is None where it is undefined.
    """
    return gain_draws(self.curve_draws(set_name), self.t_sat, len(self.reward_T))


# Runs by (setting, arm): the runs of one place are seeds of one another.
Groups = Mapping[tuple[str, str], Sequence[RecordedRun]]


def group_runs(runs: Sequence[RecordedRun]) -> Groups:
  """Returns {(setting, arm): runs}, where the runs of one key are seeds of one another.

  Settings keep the order in which they first occur, and so do arms in a setting and runs in an arm.
  """
  settings = list(dict.fromkeys(run.setting for run in runs))
  groups: dict[tuple[str, str], list[RecordedRun]] = {}
  for run in sorted(runs, key=lambda run: settings.index(run.setting)):
    groups.setdefault((run.setting, run.arm), []).append(run)
  return groups


def mark_unlike_ends(groups: Groups) -> None:
  """Sets `unlike` to True on runs whose last evaluation is at an earlier step than that of others in their setting.

  Each of these runs gets a note that says so. Runs without an evaluation stay as they are.
  """
  by_setting: dict[str, list[RecordedRun]] = {}
  for (setting, _), runs in groups.items():
    by_setting.setdefault(setting, []).extend(run for run in runs if run.evals)
  for setting, runs in by_setting.items():
    last = max((max(run.evals) for run in runs), default=0)
    others = "others of its setting were" if setting else "others were"
    for run in runs:
      if max(run.evals) < last:
        run.unlike = True
        run.notes.append(f"Last evaluated at step {max(run.evals)}, while {others} at step {last}: not compared.")


def _metrics_of(path: Path) -> dict[int, dict]:
  """Reads a metrics.jsonl as {step: metrics}, steps ascending; what is not finite becomes None."""
  rows = {operator.index(row["step"]): finite(row) for row in read_jsonl(path)}
  return dict(sorted(rows.items()))


def _labels_of(path: Path) -> dict[tuple, float | None]:
  """Reads the labels in a file of judged responses, by (step, problem, sample)."""
  return {(row["step"], row["problem"], row["sample"]): row["faithfulness"] for row in read_jsonl(path)}


def _rewards_of(path: Path, votes: int, group: int) -> dict[str, list[float]]:
  """Reads the rewards of one step from a file of rollouts/; see `rewards_by_problem`."""
  return rewards_by_problem(read_jsonl(path), votes, group)


def _problem_means_of(path: Path) -> dict[str, float]:
  """Reads the mean true reward of each problem from a file of evals/."""
  return problem_means(read_jsonl(path))


def _paper_of(config: Mapping) -> Paper | None:
  """Returns `config.paper`, None where it says nothing. TypeError where a value has the wrong type."""
  recorded = config.get("paper") or {}
  gains = {str(name): float(gain) / 100 for name, gain in recorded.get("gains") or ()}
  t_sat = recorded.get("t_sat") or None
  if not isinstance(t_sat, int | float | None):
    raise TypeError(f"paper.t_sat is {t_sat!r}, no step")
  expected = recorded.get("expected")
  if not expected:
    return None
  return Paper(expected, recorded.get("figure"), recorded.get("setting"), t_sat, gains)


def inside(value: object, path: str) -> Any:
  """Returns the value at a path of keys, such as "rl.steps", in nested mappings; None where there is none."""
  for name in path.split("."):
    value = value.get(name) if isinstance(value, Mapping) else None
  return value


def series(rows: Mapping[int, Mapping], name: str) -> dict[int, float]:
  """Returns {step: value} of the metric `name` from {step: metrics}, in the order of `rows`.

  Steps at which it is absent, or no number, are left out; {} where there is no other.
  """
  return {step: row[name] for step, row in rows.items() if isinstance(row.get(name), (int, float))}


def _claimed(row: Mapping) -> str | None:
  """Returns the claim in a step's metrics, where `stages/watch.py` writes 1 for it and 0 for the others; else None."""
  flags = {claim: row[claim] for claim in CLAIMS if isinstance(row.get(claim), (int, float))}
  if not flags:
    return None
  return next((claim for claim, flag in flags.items() if flag), "not decided")


def measured_sets(names: Iterable[str]) -> dict[str, int]:
  """Returns {evaluated set: samples K of each problem}, as names of metrics eval/SET/avg@K say it.

  Other names are passed over. Figures that are means over several sets come last.
  """
  matches = [match for match in map(_AVG.fullmatch, names) if match]
  sets = {match[1]: int(match[2]) for match in matches}
  return dict(sorted(sets.items(), key=lambda item: item[0] in _MEANS))
