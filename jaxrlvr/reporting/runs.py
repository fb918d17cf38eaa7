"""Recorded runs as the report reads them: cells of a grid with metrics, evaluations and judgements; gaps are told."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import Gain, problem_means, redrawn
from jaxrlvr.analysis.phase import CLAIMS
from jaxrlvr.analysis.saturation import (
  STATES,
  RedrawnCurves,
  RedrawnGains,
  Saturation,
  Timing,
  redrawn_gains,
  redrawn_rewards,
  rewards_by_problem,
  saturation,
  timing,
)
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.logbook import finite, read_json, read_jsonl
from jaxrlvr.data.eval_sets import DOMAINS

_LOG = logging.getLogger(__name__)
GRID = "grid.json"
_AVG = re.compile(r"eval/(.+)/avg@(\d+)")
_GAIN = ("heldout_gain", "heldout_gain_low", "heldout_gain_high")
_MEANS = {"in-domain": "inside", "out-of-domain": "outside"}  # of sets, as `eval/NAME/avg@K`


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of the stage rl (or evaluate) and its place: the curve `arm` in the panel `setting`; seeds of a place are
  aggregated."""

  name: str
  rl: Path
  arm: str = ""  # "": the name
  setting: str = ""
  n: int | None = None  # training problems, by which the large-small gap pairs the cells of an arm
  seed: int | None = None
  judged: Path | None = None  # directory of the stage judge
  evaluation: bool = False  # whether it is a run of the stage evaluate


def read_grid(folder: Path) -> tuple[str, list[Cell]]:
  """Returns title and cells of a grid's directory, whose grid.json names run directories relative to it."""
  try:
    found = json.loads((folder / GRID).read_text(encoding="utf-8"))
    cells = [
      Cell(str(c["name"]), folder / c["rl"], str(c["arm"]), str(c["setting"]), c.get("n"), c.get("seed"),
           folder / c["judged"] if c.get("judged") else None)
      for c in found["cells"]
    ]  # fmt: skip
    return str(found.get("title", "")), cells
  except (OSError, ValueError, TypeError, KeyError) as error:
    wanted = 'wanted {"title", "cells": [{"name", "arm", "setting", "n", "seed", "rl", "judged"}]}'
    raise InputError(f"{folder / GRID}: {type(error).__name__}: {error}; {wanted}") from error


class HeldOut(NamedTuple):
  """What a run recorded of comparing a held-out set with the problems that its policy was trained on."""

  recorded: bool  # whether its summary says anything of it
  compared: bool = False  # False where recorded: nothing was known of what the policy was trained on
  problems: int | None = None  # of the set, as it was evaluated
  shared: int = 0  # of these, problems that are trained on too
  left_out: int = 0  # problems that are trained on, and were left out of the set for that


class Paper(NamedTuple):
  """What the paper reports of an experiment."""

  expected: str
  figure: str | None
  setting: str | None
  t_sat: float | None
  gains: dict[str, float]  # until t_sat, by set


class Claim(NamedTuple):
  """The phase that a run recorded at its last step."""

  claim: str  # a key of `phase.CLAIMS`
  since: int  # the step from which on it was claimed without a break
  step: int | None  # of the evaluation that `gain` is of; None where there was none before the claim
  gain: Gain | None  # held-out, since step 0, over the problems of all sets


class RecordedRun:
  """A cell's run directory (or a run of the stage evaluate) as far as it can be read; `notes` says what couldn't."""

  def __init__(self, cell: Cell, tail: int):
    self.cell, self.name, self.arm, self.setting = cell, cell.name, cell.arm or cell.name, cell.setting
    self.workdir = cell.rl
    self.notes, self._means, self._redrawn = [], {}, {}
    self.config, self.summary = (self._json(self.workdir / f"{name}.json") for name in ("config", "summary"))
    self.tail = tail if (own := self.at("saturation_tail", int)) is None else max(own, 0)
    measured = {self.at("summary.steps", int) or 0: self.summary} if measured_sets(self.summary) else {}
    self.rows = self._metrics(self.workdir) or measured
    self.finished = bool(self.summary.get("finished"))
    self.trained = [row for row in self.rows.values() if "reward" in row]  # metrics of training steps
    # Whether there are training steps, and at none of them any response was paid something but 0.
    self.unpaid = bool(self.trained) and not any(row["reward"] or row.get("reward_std") for row in self.trained)
    self.state = self._state()
    self.last, self.planned = max(self.rows, default=0), self.at("rl.steps", int)
    measured, domain = measured_sets(name for row in self.rows.values() for name in row), self.at("heldout.domain", str)
    known = {mean: getattr(DOMAINS.get(domain), side, ()) for mean, side in _MEANS.items()}
    self._parts = {mean: [name for name in sets if name in measured] for mean, sets in known.items()}
    in_order = dict.fromkeys((*itertools.chain(*self._parts.values()), *measured))  # the domain's own first, means last
    self.sets = {name: measured[name] for name in in_order if len(self._parts.get(name, ())) != 1}  # 1: no mean at all
    self.set = next(iter(self.sets), None)  # what its story is told of
    self.K = self.sets.get(self.set, 0)
    self.evals = self.curve(self.set)
    rewards = self.series("reward")
    self.reward_T = [rewards.get(t) for t in range(1, max(rewards, default=0) + 1)]
    self.timing = self._timing()
    self.t_sat = self.timing.t_sat.step  # None unless the reward rose, and saturated
    self.unlike = False  # whether its last evaluation is of an earlier step than that of others of its setting
    if not self.workdir.is_dir():
      self.notes.append(f"There is no directory {self.workdir}.")
    elif not self.rows:
      self.notes.append("Nothing was measured: metrics.jsonl is absent or empty, and summary.json holds no figures.")
    elif not self.finished:
      self.notes.append(f"Not finished: this is its state after step {self.last} of {self.planned or 'unknown'}.")
    if isinstance(stopped := self.summary.get("stopped"), Mapping):
      self.notes.append(f"Stopped itself at step {stopped.get('step')}: {stopped.get('why')}.")
    self.labels: dict[tuple, float | None] = {}  # of (step, problem, sample), by the judge
    self.judged_set = ""
    self.judged_steps: tuple[int, ...] = ()
    if cell.judged:
      self._read_judged(cell.judged)

  def _state(self) -> str:
    if not self.finished:
      return "not finished" if self.rows else "not there"
    if self.unpaid:
      return "ended without reward"
    return "stopped itself" if self.summary.get("stopped") else "finished"

  def held_out(self, set_name: str | None) -> HeldOut:
    """What was recorded of the set; of a mean of sets, of all of them together."""
    counts, left_out = self.at("summary.heldout_overlap"), self.at("summary.heldout_left_out")
    if "heldout_overlap" not in self.summary or set_name is None:
      return HeldOut(recorded=False)
    names = self._parts.get(set_name) or [set_name]
    if not isinstance(counts, Mapping) or not all(type(counts.get(name)) is int for name in names):
      return HeldOut(recorded=counts is None)
    sizes = [self.series(f"eval/{name}/problems") for name in names]
    problems = sum(int(size[max(size)]) for size in sizes) if all(sizes) else None
    dropped = left_out if isinstance(left_out, Mapping) else {}
    taken = [dropped[name] for name in names if type(dropped.get(name)) is int]
    return HeldOut(True, True, problems, sum(counts[name] for name in names), sum(taken))

  def why_unpaid(self) -> str:
    """Why no response was paid anything, as the finished run says it; else only for how many steps."""
    why = self.summary.get("unpaid")
    return why if isinstance(why, str) else f"no response was paid anything in {len(self.trained)} steps"

  def claim(self) -> Claim | None:
    """Returns the phase that the run recorded last, None where it recorded none."""
    rows = [(step, _claimed(row)) for step, row in self.rows.items()]
    rows = [(step, claimed) for step, claimed in rows if claimed is not None]
    if not rows:
      return None
    since, last = rows[-1]
    for step, claimed in reversed(rows):
      if claimed != last:
        break
      since = step
    ends = {name: self.series(name) for name in _GAIN}
    steps = set.intersection(*map(set, ends.values()))
    step = max(steps, default=None)
    gain = None if step is None else Gain(*(ends[name][step] for name in _GAIN))
    return Claim(last, since, step, gain)

  def _read_judged(self, folder: Path) -> None:
    """Figures of judged steps become metrics `judge/...` of the run."""
    figures = self._metrics(folder)
    if not figures:
      self.notes.append(f"Not judged yet: there are no figures in {folder / 'metrics.jsonl'}.")
    kappa = inside(self._json(folder / "summary.json"), "kappa.faithfulness.kappa")  # of two judges, if there were two
    for step, row in figures.items():
      row = row | {"kappa": kappa}
      self.rows[step] = self.rows.get(step, {}) | {f"judge/{name}": value for name, value in row.items()}
    name = inside(self._json(folder / "config.json"), "judge.set")
    self.judged_set = name if isinstance(name, str) else ""
    self.judged_steps = tuple(sorted(figures))

    def labels(path):
      return {(row["step"], row["problem"], row["sample"]): row["faithfulness"] for row in read_jsonl(path)}

    for path in sorted((folder / "judged").glob("step_*.jsonl")):
      self.labels |= self.read(labels, path, {})

  def read(self, how: Callable, path: Path, otherwise: Any) -> Any:
    """What `how` reads from the file; where it can't, a note and `otherwise`."""
    try:
      return how(path)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
      told = f"{path.name} can't be read and was left out: {error}."
      if told not in self.notes:
        _LOG.warning("%s: %s", self.name, told)
        self.notes.append(told)
      return otherwise

  def _metrics(self, folder: Path) -> dict[int, dict]:
    def rows(path):
      found = {operator.index(row["step"]): finite(row) for row in read_jsonl(path)}
      return dict(sorted(found.items()))

    return self.read(rows, folder / "metrics.jsonl", {})

  def _json(self, path: Path) -> dict:
    return self.read(lambda path: finite(read_json(path)), path, {})

  def at(self, path: str, kind: type = object) -> Any:
    """A value of the run's config, or behind `summary.`, None where it isn't there or of another kind."""
    value = inside(self.config | {"summary": self.summary}, path)
    return value if isinstance(value, kind) else None

  def paper(self) -> Paper | None:
    """What the paper reports of the run's experiment, None where its config names none."""

    def read(path):
      found = self.config.get("paper") or {}
      gains = {str(name): float(gain) / 100 for name, gain in found.get("gains") or ()}
      t_sat, told = found.get("t_sat") or None, found.get("expected")
      if not isinstance(t_sat, int | float | None):
        raise TypeError(f"paper.t_sat is {t_sat!r}, no step")
      return Paper(told, found.get("figure"), found.get("setting"), t_sat, gains) if told else None

    return self.read(read, self.workdir / "config.json", None)

  def series(self, name: str) -> dict[int, float]:
    """{step: value} where it was logged and finite."""
    return series(self.rows, name)

  def curve(self, set_name: str | None) -> dict[int, float]:
    """avg@K at each evaluation of the set."""
    return self.series(f"eval/{set_name}/avg@{self.sets.get(set_name)}")

  def saturation(self, set_name: str) -> Saturation:
    """Returns what evaluation says at t_sat; where the reward did not rise, or too few were logged, only why not."""
    found = saturation(self.reward_T, self.curve(set_name), self.tail)
    if self.t_sat is not None or self.timing.state == "not saturated":
      return found
    return Saturation(None, found.reward_max, note=f"{self.timing.state}: {STATES[self.timing.state]}")

  def _timing(self) -> Timing:
    """t_sat and t90, with intervals where each step's rollouts are recorded."""
    found = timing(self.reward_T, None, self.tail)
    if found.state not in ("saturated", "not saturated"):
      return found
    group = self.at("rl.group_size", int) or 0
    recorded_T = []
    for step, reward in enumerate(self.reward_T, 1):
      path = self.workdir / "rollouts" / f"step_{step:06d}.jsonl"
      if not group or (reward is not None and not path.is_file()):
        return found
      read = functools.partial(self._rewards, votes=self.at("rl.votes", int) or group, group=group)
      recorded_T.append(self.read(read, path, {}) if reward is not None else {})
    return timing(self.reward_T, redrawn_rewards(recorded_T), self.tail)

  @staticmethod
  def _rewards(path: Path, votes: int, group: int) -> dict[str, list[float]]:
    return rewards_by_problem(read_jsonl(path), votes, group)

  def eval_file(self, set_name: str, step: int) -> Path:
    return self.workdir / "evals" / f"{set_name}_{step:06d}.jsonl"

  def problem_means(self, set_name: str | None, step: int | None) -> dict[str, float]:
    """avg@K of each problem at one evaluation; {} without records."""
    if None in (set_name, step):
      return {}
    if (set_name, step) not in self._means:
      read = self.read(lambda path: problem_means(read_jsonl(path)), self.eval_file(set_name, step), {})
      self._means[set_name, step] = read
    return self._means[set_name, step]

  def redrawn(self, set_name: str) -> RedrawnCurves:
    """Returns the curve of avg@K over problems drawn with replacement; of a mean of sets, the mean of their curves."""
    if set_name not in self._redrawn:
      steps, curves = sorted(self.curve(set_name)), []
      for seed, name in enumerate(self._parts.get(set_name, (set_name,))):
        means = [self.problem_means(name, step) for step in steps]
        shared = sorted(set.intersection(*map(set, means)), key=str) if means else []
        curves.append(redrawn([[m[p] for m in means] for p in shared], seed=seed) if shared else None)
      whole = curves and all(curve is not None for curve in curves)
      self._redrawn[set_name] = RedrawnCurves(steps, np.mean(curves, 0) if whole else None)
    return self._redrawn[set_name]

  def redrawn_gains(self, set_name: str) -> RedrawnGains:
    """Returns the run's gains on the set over problems drawn with replacement."""
    return redrawn_gains(self.redrawn(set_name), self.t_sat, len(self.reward_T))


def inside(value: object, path: str) -> Any:
  """The value at a path of keys with dots between, None where it isn't there."""
  for name in path.split("."):
    value = value.get(name) if isinstance(value, Mapping) else None
  return value


def series(rows: Mapping[int, Mapping], name: str) -> dict[int, float]:
  """{step: value} of the steps that have a number."""
  return {step: row[name] for step, row in rows.items() if isinstance(row.get(name), (int, float))}


def _claimed(row: Mapping) -> str | None:
  """The claim of a step's metrics (`stages/watch.py` writes 1 for it and 0 for the others); None without any."""
  flags = {claim: row.get(claim) for claim in CLAIMS if isinstance(row.get(claim), (int, float))}
  return next((claim for claim, flag in flags.items() if flag), "not decided") if flags else None


def measured_sets(names: Iterable[str]) -> dict[str, int]:
  """Evaluated sets and their samples a problem, as the names of metrics tell them; means of sets are the last."""
  found = {match[1]: int(match[2]) for match in map(_AVG.fullmatch, names) if match}
  return dict(sorted(found.items(), key=lambda item: item[0] in _MEANS))
