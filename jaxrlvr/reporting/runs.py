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
  """A run of the stage rl or evaluate to report on, and the place where the report shows it.

  Runs with the same arm and setting should differ in their seed only: tables and charts aggregate them.
  """

  name: str  # the run's name, unique among the runs of its stage in the report
  workdir: Path  # the run directory, of the stage rl or evaluate
  arm: str = ""  # the name of the curve in charts that shows it; "": its name
  setting: str = ""  # the name of the charts' panel that shows it
  n: int | None = None  # number of training problems, by which the large-small gap pairs the cells of an arm
  seed: int | None = None  # the run's seed; None: as its config says
  judged: Path | None = None  # the run directory of the stage judge; None: the run was not judged
  evaluation: bool = False  # whether it is a run of the stage evaluate


class Grid(NamedTuple):
  """The content of a grid.json."""

  title: str  # of the report; "" where grid.json names none
  cells: list[Cell]  # the runs, in the order of grid.json


def read_grid(folder: Path) -> Grid:
  """Reads grid.json, which names the runs of a grid, from the grid's directory `folder`.

  The file holds {"title", "cells": [{"name", "arm", "setting", "n", "seed", "rl", "judged"}]}, with the meanings of the
  fields of `Cell`; rl is its `workdir`. rl and judged are directories relative to `folder`, which need not exist; n and
  seed are numbers. title, n, seed and judged may be absent. InputError where the file can't be read or a cell lacks a
  key.
  """
  try:
    recorded = json.loads((folder / GRID).read_text(encoding="utf-8"))
    cells = [_cell_of(row, folder) for row in recorded["cells"]]
    return Grid(str(recorded.get("title", "")), cells)
  except (OSError, ValueError, TypeError, KeyError) as error:
    layout = '{"title", "cells": [{"name", "arm", "setting", "n", "seed", "rl", "judged"}]}'
    raise InputError(f"{folder / GRID}: {type(error).__name__}: {error}; wanted {layout}") from error


def _cell_of(row: Mapping, folder: Path) -> Cell:
  """Returns the cell that a row of grid.json describes; `folder`: the grid's directory."""
  return Cell(
    name=str(row["name"]),
    workdir=folder / row["rl"],
    arm=str(row["arm"]),
    setting=str(row["setting"]),
    n=row.get("n"),
    seed=row.get("seed"),
    judged=folder / row["judged"] if row.get("judged") else None,
  )


class RecordedOverlap(NamedTuple):
  """How many problems of an evaluated set were trained on too, as a run's summary records it."""

  recorded: bool  # False: the run's summary says nothing about it, and the other fields mean nothing
  compared: bool = False  # False: it could not be compared, as no training problems of the policy are known
  problems: int | None = None  # problems of the set that were evaluated; None: unknown
  shared: int = 0  # evaluated problems that are trained on too
  left_out: int = 0  # problems that are trained on, and for that reason were left out of the set


class Paper(NamedTuple):
  """What the config of a run says that the paper reports of the same experiment."""

  expected: str  # the result, in a sentence
  figure: str | None  # the paper's figure or table
  setting: str | None  # the model and the data, as the paper names them
  t_sat: float | None  # the step at which training saturates; None: not reported
  gains: dict[str, float]  # {evaluated set: gain until t_sat, as a share}; {}: not reported


class Claim(NamedTuple):
  """The phase that a run recorded last: what could be claimed of it while it trained."""

  claim: str  # "learning", "memorising", "collapsed" or "not decided"
  since: int  # the first step from which on it was claimed at every step
  step: int | None  # the evaluated step that `gain` belongs to; None where there is no gain
  gain: Gain | None  # held-out accuracy minus that at step 0, over the problems of all sets


class RecordedRun:
  """A run directory as far as it can be read; for a missing or broken file there is a note, and nothing is raised.

  RecordedRun(cell, tail) reads the directory of the cell, and that of its judge if there is one. tail: number of last
  steps in which saturation is not looked for, unless the run's config has a `saturation_tail`. Methods read files of
  responses when they need them.
  """

  cell: Cell
  name: str  # the cell's name
  arm: str  # the cell's arm, or its name if it has none
  setting: str  # the cell's setting
  workdir: Path  # the run directory
  config: dict  # the content of config.json; {}: it can't be read
  summary: dict  # the content of summary.json; {}: it is absent or can't be read
  rows: dict[int, dict]  # {step: metrics}, with those of the judge's run as judge/NAME; None: not finite
  notes: list[str]  # sentences on what could not be read and on how the run ended
  finished: bool  # whether the run came to its end
  unpaid: bool  # whether there were training steps, and no response was paid anything but 0
  state: str  # "finished", "not finished", "not there", "ended without reward" or "stopped itself"
  last_step: int  # the last logged step; 0: none
  planned_steps: int | None  # the number of training steps in the config; None: unknown
  tail: int  # number of last steps in which saturation is not looked for: the config's, else the argument
  sets: dict[str, int]  # {evaluated set: samples K of each problem}, the domain's own first and means last
  set: str | None  # the first of the sets; None: there is no evaluation
  K: int  # its K; 0: there is no evaluation
  evals: dict[int, float]  # its {step: avg@K}
  reward_T: list[float | None]  # the mean training reward of each step from 1; None where none was logged
  timing: Timing  # when the reward saturates
  t_sat: int | None  # the step at which it does; None unless it rose and saturated
  ends_earlier: bool  # whether other runs of its setting have a later last evaluation (`mark_earlier_ends` sets it)
  labels: dict[tuple, float | None]  # {(step, problem, sample): faithfulness label of the judge; None: missing}
  judged_set: str  # the set whose responses were judged; "": responses of training, or none
  judged_steps: tuple[int, ...]  # the steps whose responses were judged, ascending

  def __init__(self, cell: Cell, tail: int):
    """Reads a cell's directory. tail: number of last steps without saturation, unless the run's config has its own."""
    self.cell = cell
    self.name, self.arm, self.setting = cell.name, cell.arm or cell.name, cell.setting
    self.workdir = cell.workdir
    self.notes = []
    self.ends_earlier = False
    self._means: dict[tuple[str, int], dict[str, float]] = {}
    self._curve_draws: dict[str, CurveDraws] = {}
    self.config = self._json(self.workdir / "config.json")
    self.summary = self._json(self.workdir / "summary.json")
    own_tail = self.recorded_value("saturation_tail", int)
    self.tail = tail if own_tail is None else max(own_tail, 0)
    self._read_metrics()
    self._read_sets()
    rewards = self.series("reward")
    self.reward_T = [rewards.get(step) for step in range(1, max(rewards, default=0) + 1)]
    self.timing = self._timing()
    self.t_sat = self.timing.t_sat.step  # None unless the reward rose and saturated
    self._note_ending()
    self.labels = {}
    self.judged_set = ""
    self.judged_steps = ()
    if cell.judged:
      self._read_judged(cell.judged)

  def _read_metrics(self) -> None:
    """Sets `rows` and what follows from them: how far the run came, and how it ended."""
    self.rows = self._metrics(self.workdir)
    if not self.rows and _measured_sets(self.summary):  # a run of the stage evaluate has its figures in the summary
      self.rows = {self.recorded_value("summary.steps", int) or 0: self.summary}
    self.finished = bool(self.summary.get("finished"))
    self._training_rows = [row for row in self.rows.values() if "reward" in row]  # metrics of training steps
    was_paid = any(row["reward"] or row.get("reward_std") for row in self._training_rows)
    self.unpaid = bool(self._training_rows) and not was_paid
    self.state = self._state()
    self.last_step, self.planned_steps = max(self.rows, default=0), self.recorded_value("rl.steps", int)

  def _read_sets(self) -> None:
    """Sets `sets`, `set`, `K` and `evals` from the names of the metrics."""
    measured = _measured_sets(name for row in self.rows.values() for name in row)
    domain = DOMAINS.get(self.recorded_value("heldout.domain", str))
    self._parts: dict[str, list[str]] = {}  # the measured sets that each mean is over
    for mean, side in _MEANS.items():
      self._parts[mean] = [name for name in getattr(domain, side, ()) if name in measured]
    own_sets = [name for names in self._parts.values() for name in names]
    self.sets = {}
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
      self.notes.append(
        f"Not finished: this is its state after step {self.last_step} of {self.planned_steps or 'unknown'}."
      )
    stopped = self.summary.get("stopped")
    if isinstance(stopped, Mapping):
      self.notes.append(f"Stopped itself at step {stopped.get('step')}: {stopped.get('why')}.")

  def _state(self) -> str:
    if not self.finished:
      return "not finished" if self.rows else "not there"
    if self.unpaid:
      return "ended without reward"
    return "stopped itself" if self.summary.get("stopped") else "finished"

  def held_out(self, set_name: str | None) -> RecordedOverlap:
    """Returns how many problems of an evaluated set are trained on too, as the run's summary records it.

    set_name: an evaluated set, or the name of a mean over several sets, whose numbers are then added. For None, and for
    a run that recorded nothing about the set, `recorded` is False.
    """
    if "heldout_overlap" not in self.summary or set_name is None:
      return RecordedOverlap(recorded=False)
    shared = self.recorded_value("summary.heldout_overlap")
    names = self._parts.get(set_name) or [set_name]
    if not isinstance(shared, Mapping) or not all(type(shared.get(name)) is int for name in names):
      return RecordedOverlap(recorded=shared is None)
    sizes = [self.series(f"eval/{name}/problems") for name in names]
    problems = sum(int(size[max(size)]) for size in sizes) if all(sizes) else None
    dropped = self.recorded_value("summary.heldout_left_out", Mapping) or {}
    left_out = sum(dropped[name] for name in names if type(dropped.get(name)) is int)
    return RecordedOverlap(True, True, problems, sum(shared[name] for name in names), left_out)

  def why_unpaid(self) -> str:
    """Returns a phrase that says why no response was paid; call it only if the run is `unpaid`.

    It is the reason in the summary of a finished run, otherwise "no response was paid anything in N steps".
    """
    reason = self.summary.get("unpaid")
    if isinstance(reason, str):
      return reason
    return f"no response was paid anything in {len(self._training_rows)} steps"

  def claim(self) -> Claim | None:
    """Returns the phase that the run recorded last, and since when; None if it recorded none."""
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
    kappa = value_at_path(
      self._json(folder / "summary.json"), "kappa.faithfulness.kappa"
    )  # None unless there were two judges
    for step, row in figures.items():
      metrics = {f"judge/{name}": value for name, value in row.items()}
      metrics["judge/kappa"] = kappa
      self.rows[step] = self.rows.get(step, {}) | metrics
    name = value_at_path(self._json(folder / "config.json"), "judge.set")
    self.judged_set = name if isinstance(name, str) else ""
    self.judged_steps = tuple(sorted(figures))
    for path in sorted((folder / "judged").glob("step_*.jsonl")):
      self.labels |= self.read_or_note(_labels_of, path, {})

  def read_or_note(self, reader: Callable, path: Path, default: Any) -> Any:
    """Returns reader(path) or, where that fails, `default`; the failure is logged and becomes a note of the run.

    reader: takes the path. ValueError, OSError, KeyError, TypeError and AttributeError are failures of reading; others
    are raised.
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
    return self.read_or_note(_metrics_of, folder / "metrics.jsonl", {})

  def _json(self, path: Path) -> dict:
    return self.read_or_note(lambda path: finite(read_json(path)), path, {})

  def recorded_value(self, path: str, kind: type = object) -> Any:
    """Returns a value of the run's config, or of its summary if the path starts with "summary."; None if it is absent.

    path: keys with dots between, such as "rl.steps" or "summary.steps". kind: the type that the value must have; None
    is returned for a value of another type.
    """
    value = value_at_path(self.config | {"summary": self.summary}, path)
    return value if isinstance(value, kind) else None

  def paper(self) -> Paper | None:
    """Returns what the paper reports of the run's experiment; None where the run's config says nothing about it."""
    return self.read_or_note(lambda path: _paper_of(self.config), self.workdir / "config.json", None)

  def series(self, name: str) -> dict[int, float]:
    """Returns {step: value} of a metric, without the steps at which it was not logged or not finite.

    name: such as "reward", "eval/SET/avg@K" or "judge/F(1)/all". {} for a metric that was never logged.
    """
    return series(self.rows, name)

  def curve(self, set_name: str | None) -> dict[int, float]:
    """Returns {step: avg@K} of the set's evaluations, a share from 0 to 1; {} for None and for an unknown set."""
    return self.series(f"eval/{set_name}/avg@{self.sets.get(set_name)}")

  def saturation(self, set_name: str) -> Saturation:
    """Returns t_sat with the accuracy on a set there, the gain until then, and the residual after it.

    Where the reward did not rise, or was not measured, t_sat and these figures are None and `note` says why. They are
    also None for a set that the run did not evaluate.
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
    group = self.recorded_value("rl.group_size", int) or 0
    votes = self.recorded_value("rl.votes", int) or group
    recorded_T: list[dict[str, list[float]]] = []
    for step, reward in enumerate(self.reward_T, 1):
      path = self.workdir / "rollouts" / f"step_{step:06d}.jsonl"
      if not group or (reward is not None and not path.is_file()):
        return without_intervals
      rewards = {}
      if reward is not None:
        rewards = self.read_or_note(functools.partial(_rewards_of, votes=votes, group=group), path, {})
      recorded_T.append(rewards)
    return timing(self.reward_T, reward_draws(recorded_T), self.tail)

  def eval_file(self, set_name: str, step: int) -> Path:
    """Returns WORKDIR/evals/SET_STEP.jsonl, the file of one evaluation's responses, whether it exists or not."""
    return self.workdir / "evals" / f"{set_name}_{step:06d}.jsonl"

  def problem_means(self, set_name: str | None, step: int | None) -> dict[str, float]:
    """Returns {problem id: mean true reward of its scored samples} of one evaluation.

    Problems without a scored sample are left out. {} where the responses were not recorded or can't be read, and where
    set_name or step is None.
    """
    if set_name is None or step is None:
      return {}
    place = (set_name, step)
    if place not in self._means:
      self._means[place] = self.read_or_note(_problem_means_of, self.eval_file(set_name, step), {})
    return self._means[place]

  def curve_draws(self, set_name: str) -> CurveDraws:
    """Returns bootstrap draws of avg@K on a set: steps (S evaluated ones, ascending) and M_DS, avg@K in D draws [D,S].

    In each draw all steps have the same problems. set_name: an evaluated set, or the name of a mean over several sets:
    then each set's problems are drawn, and the curves averaged. Problems that some evaluation did not record are left
    out. M_DS is None where no problem is left of a set, and for a name that was not evaluated. The draws are seeded:
    two runs with the same problems have paired draws.
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
    """Returns bootstrap draws [D] of the accuracy on a set gained until t_sat, after it, and to the end.

    Each field is None where it is undefined, such as until_t_sat for a run without t_sat.
    """
    return gain_draws(self.curve_draws(set_name), self.t_sat, len(self.reward_T))


# Runs by (setting, arm): the runs of one place are seeds of one another.
Groups = Mapping[tuple[str, str], Sequence[RecordedRun]]


def group_runs(runs: Sequence[RecordedRun]) -> Groups:
  """Groups runs by setting and arm: returns {(setting, arm): runs}, where runs of a group differ in their seed only.

  Settings keep the order in which they first occur, and so do arms in a setting and runs in an arm.
  """
  settings = list(dict.fromkeys(run.setting for run in runs))
  groups: dict[tuple[str, str], list[RecordedRun]] = {}
  for run in sorted(runs, key=lambda run: settings.index(run.setting)):
    groups.setdefault((run.setting, run.arm), []).append(run)
  return groups


def mark_earlier_ends(groups: Groups) -> None:
  """Marks the runs whose last evaluation is at an earlier step than that of another run in their setting.

  groups: {(setting, arm): runs}. Sets `ends_earlier` of such a run to True and adds a note to it. Runs without an
  evaluation stay as they are.
  """
  by_setting: dict[str, list[RecordedRun]] = {}
  for (setting, _), runs in groups.items():
    by_setting.setdefault(setting, []).extend(run for run in runs if run.evals)
  for setting, runs in by_setting.items():
    last = max((max(run.evals) for run in runs), default=0)
    others = "others of its setting were" if setting else "others were"
    for run in runs:
      if max(run.evals) < last:
        run.ends_earlier = True
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


def value_at_path(value: object, path: str) -> Any:
  """Returns the value at a path of keys in nested mappings; None where a key is absent or leads to no mapping.

  value: the outermost mapping. path: keys with dots between, such as "rl.steps".
  """
  for name in path.split("."):
    value = value.get(name) if isinstance(value, Mapping) else None
  return value


def series(rows: Mapping[int, Mapping], name: str) -> dict[int, float]:
  """Returns {step: value} of one metric, in the order of `rows`; steps at which it is absent or no number are left out.

  rows: {step: metrics}. name: the metric's key in these.
  """
  return {step: row[name] for step, row in rows.items() if isinstance(row.get(name), (int, float))}


def _claimed(row: Mapping) -> str | None:
  """Returns the claim in a step's metrics, where `stages/watch.py` writes 1 for it and 0 for the others; else None."""
  flags = {claim: row[claim] for claim in CLAIMS if isinstance(row.get(claim), (int, float))}
  if not flags:
    return None
  return next((claim for claim, flag in flags.items() if flag), "not decided")


def _measured_sets(names: Iterable[str]) -> dict[str, int]:
  """Returns {evaluated set: samples K of each problem}, read from the metrics named eval/SET/avg@K among `names`.

  Figures that are means over several sets come last.
  """
  matches = [match for match in map(_AVG.fullmatch, names) if match]
  sets = {match[1]: int(match[2]) for match in matches}
  return dict(sorted(sets.items(), key=lambda item: item[0] in _MEANS))
