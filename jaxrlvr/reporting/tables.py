"""Builds the report's tables from recorded runs, as rows for the page and as CSV."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import mean, mean_draws, paired_gain, percentile_interval
from jaxrlvr.analysis.saturation import GainDraws, Time, gap_draws, large_small_gap, median_time, value_at
from jaxrlvr.base.logbook import csv_text
from jaxrlvr.reporting import conclusions
from jaxrlvr.reporting.conclusions import Conclusion
from jaxrlvr.reporting.runs import Groups, Paper, RecordedRun, series
from jaxrlvr.reporting.wording import listed, percent, points, three_digits, whole

TIMED = ("saturated", "not saturated")  # values of `Timing.state` with which t_sat and t90 mean something
Concluded = Mapping[RecordedRun, Conclusion]
TableRow = dict[str, Any]  # {column: a text, a number or a Value; None: unknown}


class Table(NamedTuple):
  """A table of the page."""

  name: str  # the name of its CSV file without the suffix, such as "saturation"
  caption: str  # what the table shows, and in which unit
  rows: list[TableRow]  # {column: cell}; a column that a row lacks is empty there
  before_charts: bool  # whether it stands before the charts on the page, rather than after them


class Value(NamedTuple):
  """A figure of the runs of a setting and arm, with what is shown beside it; None where unknown.

  str() gives it as the page shows it: "low → high" if `first` is known, "≥ bound" if only `at_least` is.
  """

  value: float | None  # the figure, such as a share from 0 to 1 or a step
  low: float | None = None  # the lower end of its 95 % interval over problems
  high: float | None = None  # the upper end; None behind a known lower end: the interval has no end
  seeds_low: float | None = None  # the lower end of its 95 % interval over seeds
  seeds_high: float | None = None  # the upper end of that interval
  first: float | None = None  # the figure at the first evaluation or the first training steps
  paper: float | None = None  # what the paper reports
  at_least: float | None = None  # a lower bound, where the value is not known because a run did not get so far
  show: Callable[[float | None], str] = percent  # writes each of these numbers as text; one of `wording`
  bound: str = "≥"  # what is written before `at_least`: "≥", or "not by" for a single run

  def __str__(self):
    if self.value is None and self.at_least is not None:
      return f"{self.bound} {self.show(self.at_least)}"
    if self.first is not None:
      return f"{self.show(self.first)} → {self.show(self.value)}"
    return self.show(self.value)

  def is_known(self) -> bool:
    """Returns whether there is a value or a lower bound."""
    return self.value is not None or self.at_least is not None

  def details(self) -> list[str]:
    """Returns the lines in small print below the value, such as ["31.0 to 38.5", "the paper 35.0"]; [] without any.

    They are the interval over problems, the interval over seeds (behind "seeds "), and what the paper reports. An
    interval whose ends are written like the value itself is left out.
    """
    lines = []
    open_ended = []
    for word, low, high in (("", self.low, self.high), ("seeds ", self.seeds_low, self.seeds_high)):
      if low is None:
        continue
      if high is None:
        open_ended.append(f"{word}{self.show(low)} or later")
      elif {self.show(low), self.show(high)} != {self.show(self.value)}:
        lines.append(f"{word}{self.show(low)} to {self.show(high)}")
    lines += open_ended
    if self.paper is not None:
      lines.append(f"the paper {self.show(self.paper)}")
    return lines


# The further columns of a Value in a CSV file: {what follows the column's name: the field of Value}.
_BESIDE = {
  " low": "low",
  " high": "high",
  " seeds low": "seeds_low",
  " seeds high": "seeds_high",
  " first": "first",
  " paper": "paper",
  " at least": "at_least",
}


def filled_columns(rows: Sequence[Mapping]) -> list[str]:
  """Returns the columns of a table in which at least one row has something, in the order in which rows first name them.

  rows: {column: cell}. None, "" and a Value of which neither the value nor a lower bound is known are nothing.
  """
  filled = set()
  for row in rows:
    filled.update(name for name, value in row.items() if _is_filled(value))
  return list(dict.fromkeys(name for row in rows for name in row if name in filled))


def _is_filled(value: Any) -> bool:
  if isinstance(value, Value):
    return value.is_known()
  return value not in (None, "")


def table_as_csv(rows: Sequence[Mapping]) -> str:
  """Returns a table as the text of a CSV file with a header; shares are numbers from 0 to 1, unknown cells are empty.

  rows: {column: cell}, where a cell is a text, a number, None (unknown) or a Value. Columns in which nothing is known
  are left out. The other numbers of Values follow in columns of their own, if a row has them: COLUMN low and COLUMN
  high (95 % interval over problems), COLUMN seeds low and COLUMN seeds high (over seeds), COLUMN first, COLUMN paper
  and COLUMN at least.
  """
  table: dict[str, list] = {}
  for name in filled_columns(rows):
    cells = [row.get(name) for row in rows]
    values = [cell if isinstance(cell, Value) else Value(cell) for cell in cells]
    table[name] = [value.value for value in values]
    for suffix, field in _BESIDE.items():
      column = [getattr(value, field) for value in values]
      if any(number is not None for number in column):
        table[name + suffix] = column
  return csv_text(table, zip(*table.values(), strict=True))


def slug(name: str) -> str:
  """Returns a name as a part of a file name: at most 40 ASCII letters, digits, "_", "-" and ".".

  Each run of other characters becomes one "-", those at both ends are dropped, and then the name is cut; "x" if nothing
  is left.
  """
  return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")[:40] or "x"


def measured_set_names(runs: Iterable[RecordedRun]) -> list[str]:
  """Returns the evaluated sets that any of the runs measured, in the order in which they first occur."""
  return list(dict.fromkeys(name for run in runs for name in run.sets))


def make_tables(groups: Groups, everything: Groups, concluded: Concluded) -> list[Table]:
  """Builds the tables of a report in the order of the page; tables without a row are left out.

  groups: the RL runs, {(setting, arm): runs}. everything: these and the runs of the stage evaluate. concluded: the
  conclusion on each run. The tables, by name:
    overview         what became of each arm in each setting; only for more than STORIES = 8 RL runs
    runs             a row for each run; for more than STORIES RL runs it is the last table
    differences      each run against the first run of the stage evaluate
    saturation       t_sat, t90, and gains until and after t_sat
    phases           the claims that runs recorded, and what became of their answers in training
    gap              the large-small gap of settings that differ in the number of problems
    evaluations-SET  the figures at the first, saturated, best and last evaluation; one table for each set
    reasoning        faithfulness and diversity of judged responses
  """
  all_runs = [run for runs in everything.values() for run in runs]
  is_many = sum(map(len, groups.values())) > conclusions.STORIES
  sets = {f"{conclusion.set}, avg@{conclusion.K}" for conclusion in concluded.values() if conclusion.set}
  which = listed(sorted(sets) or ["no set"])
  every_run = _table_of_runs(groups, everything, concluded, which, before_charts=not is_many)
  overview = Table(
    "overview",
    f"Accuracy ({which}) at the first and last evaluation, %, and what runs did.",
    _overview_rows(groups, concluded),
    before_charts=True,
  )
  tables = [overview if is_many else every_run]
  tables.append(_table_of_differences(all_runs, only_evaluations=is_many))
  tables.append(
    Table(
      "saturation",
      "Table 1. Until training saturates, and after: gains and residual in points.",
      _placed(groups, functools.partial(_saturation_rows, concluded)),
      before_charts=True,
    )
  )
  tables.append(_table_of_phases(groups, before_charts=not is_many))
  tables.append(
    Table(
      "gap",
      "Large-small gap G(n', n), in points: accuracy with n' problems minus that with n, both at n's t_sat.",
      gap_rows(groups),
      before_charts=True,
    )
  )
  for name in measured_set_names(all_runs):
    tables.append(_table_of_evaluations(everything, all_runs, name))
  reasoning = _placed(everything, _reasoning_rows)
  tables.append(
    Table("reasoning", "Judged responses, in % but for diversity and kappa.", reasoning, before_charts=False)
  )
  if is_many:
    tables.append(every_run)
  return [table for table in tables if table.rows]


def _placed(groups: Groups, rows_of: Callable[[Sequence[RecordedRun]], Iterable[Mapping]]) -> list[TableRow]:
  """Returns rows_of(runs) for the runs of each setting and arm, with these two as the first columns."""
  placed = []
  for (setting, arm), runs in groups.items():
    for row in rows_of(runs):
      placed.append({"setting": setting, "arm": arm, **row})
  return placed


def _table_of_runs(groups: Groups, everything: Groups, concluded: Concluded, which: str, before_charts: bool) -> Table:
  """Returns the table of all runs; `which`: the sets that their accuracy is on."""
  when = " at the first and last evaluation" if groups else ""
  rows = _placed(everything, functools.partial(_run_rows, concluded))
  return Table("runs", f"Every run, and its accuracy ({which}){when}, %.", rows, before_charts=before_charts)


def _table_of_differences(runs: Sequence[RecordedRun], only_evaluations: bool) -> Table:
  """Returns the table of differences from the first evaluate run, of all runs or of those of the stage evaluate."""
  if only_evaluations:
    runs = [run for run in runs if run.cell.evaluation]
  caption = (
    "Accuracy at the last evaluation, %, and its difference in points, paired over the problems that both recorded."
  )
  return Table("differences", caption, _difference_rows(runs), before_charts=True)


def _table_of_phases(groups: Groups, before_charts: bool) -> Table:
  caption = (
    "The phase that each run recorded last, its held-out gain in points, and what became of the training answers, in % "
    f"of the first → last {conclusions.END_STEPS} steps."
  )
  return Table("phases", caption, _placed(groups, _phase_rows), before_charts=before_charts)


def _table_of_evaluations(everything: Groups, all_runs: Sequence[RecordedRun], set_name: str) -> Table:
  caption = (
    f"Accuracy on {set_name}, in % but for tokens (the paper's tables 3 to 7). "
    f"Held out: {conclusions.joint_held_out_phrase(all_runs, set_name)}."
  )
  rows = _placed(everything, functools.partial(_evaluation_rows, set_name))
  return Table(f"evaluations-{slug(set_name)}", caption, rows, before_charts=False)


# Figures over the runs of a setting and arm


def _mean_value(
  figures: Iterable[float | None], draws: Sequence[np.ndarray | None] = (), show: Callable = percent
) -> Value:
  """Returns the mean of the runs' known figures, with intervals; a Value of None where none is known.

  figures: the figure of each run, None where it is unknown. draws: bootstrap draws [D] of each run's figure over the
  same problems. If they are known of as many runs as figures are, there is an interval over problems. show: writes a
  number as text. The interval over seeds redraws the runs; it needs two known figures.
  """
  known = [figure for figure in figures if figure is not None]
  if not known:
    return Value(None, show=show)
  value = Value(mean(known), show=show)
  known_draws = [drawn for drawn in draws if drawn is not None]
  if len(known_draws) == len(known):
    low, high = percentile_interval(np.mean(known_draws, 0))
    value = value._replace(low=low, high=high)
  if len(known) > 1:
    redrawn_means = mean_draws([[figure] for figure in known])[:, 0]
    low, high = percentile_interval(redrawn_means)
    value = value._replace(seeds_low=low, seeds_high=high)
  return value


def time_value(runs: Sequence[RecordedRun], times: Sequence[Time], paper: float | None = None) -> Value:
  """Returns t_sat or t90 of some runs in steps, as a Value; without a run it is a Value of None.

  runs: runs whose reward rose. times: the time of each. paper: the step that the paper reports, None if it reports
  none. For one run the value is its time, with its interval over problems. For several it is the Kaplan-Meier median,
  in which a run that did not get there counts as later; `at_least` is a lower bound if that is unknown. seeds_low and
  seeds_high are then the least and the largest time, if all runs got there.
  """
  limits = [run.timing.t_eff for run in runs]
  median = median_time([time.step for time in times], limits)
  at_least = median.at_least if median.runs and median.median is None else None
  value = Value(median.median, paper=paper, at_least=at_least, show=whole)
  if len(times) == 1:
    return value._replace(low=times[0].low, high=times[0].high, bound="not by")
  if times and all(time.step is not None for time in times):
    steps = [time.step for time in times]
    return value._replace(seeds_low=min(steps), seeds_high=max(steps))
  return value


class _Moment(NamedTuple):
  """A step of a run at which metrics are read."""

  rows: Mapping[int, Mapping]  # the run's metrics by step
  step: int  # between logged steps metrics are interpolated


def _logged_value(moments: Sequence[_Moment], metric: str, show: Callable = percent) -> Value:
  """Returns the mean of a metric over moments, one of each run; a Value of None where no run has it.

  metric: its name, such as "eval/SET/avg@K". show: writes a number as text. Between logged steps the metric is
  interpolated linearly; a run that did not log it on both sides of the step is left out. Of a single moment the
  interval is that which the run logged as METRIC_low and METRIC_high, if it did; of several there is an interval over
  seeds.
  """
  value = _mean_value([value_at(series(moment.rows, metric), moment.step) for moment in moments], show=show)
  if len(moments) != 1:
    return value
  rows, step = moments[0]
  low = series(rows, f"{metric}_low").get(step)
  high = series(rows, f"{metric}_high").get(step)
  return value._replace(low=low, high=high)


def saturation_counts(runs: Sequence[RecordedRun]) -> str:
  """Returns in words how many runs saturated and what became of the others, such as "2 of 3; no rise 1 of 3".

  The others are counted by `Timing.state`, except those that are "not saturated". Unfinished runs whose reward rose are
  counted as well: "0 of 2; not finished 1 of 2". If the reward of no run rose and all have the same state, the text is
  that state alone.
  """
  counts = Counter(run.timing.state for run in runs)
  others = []
  for state, count in counts.items():
    if state not in TIMED:
      others.append(f"{state} {count} of {len(runs)}")
  if len(counts) == 1 and others:
    return next(iter(counts))
  unfinished = sum(run.timing.state in TIMED and not run.finished for run in runs)
  if unfinished:
    others.append(f"not finished {unfinished} of {len(runs)}")
  return "; ".join([f"{counts['saturated']} of {len(runs)}", *others])


def phase_counts(runs: Sequence[RecordedRun]) -> str:
  """Returns in words how many runs recorded which phase last, such as "learning 2 of 3, not decided 1 of 3".

  Of a single run it is the phase alone; "" where no run recorded one.
  """
  claims = [claim.claim for claim in map(RecordedRun.claim, runs) if claim]
  if len(claims) == len(runs) == 1:
    return claims[0]
  return ", ".join(f"{claim} {count} of {len(runs)}" for claim, count in Counter(claims).items())


# Rows


def _overview_rows(groups: Groups, concluded: Concluded) -> list[TableRow]:
  """Returns a row for each arm: `arm`, and a column for each setting, named by it ("accuracy" for the setting "").

  groups: the RL runs, {(setting, arm): runs}. concluded: the conclusion on each of them. A cell is a text such as "20.1
  → 35.0: gained 2 of 3, unclear 1 of 3; phase: learning 3 of 3": the mean accuracy in % at the first and the last
  evaluation, and the numbers of runs by conclusion and by phase. Runs that were last evaluated at an earlier step than
  others are not in it; their number follows.
  """
  rows: dict[str, TableRow] = {}
  for (setting, arm), runs in groups.items():
    row = rows.setdefault(arm, {"arm": arm})
    row[setting or "accuracy"] = _overview_text(runs, concluded)
  return list(rows.values())


def _overview_text(runs: Sequence[RecordedRun], concluded: Concluded) -> str:
  text = "–"
  counted = [concluded[run] for run in runs if concluded[run].kind != "unmeasured" and not run.ends_earlier]
  if counted:
    start = percent(mean([conclusion.start for conclusion in counted]))
    end = percent(mean([conclusion.end for conclusion in counted]))
    words = Counter(conclusion.word.lower() for conclusion in counted)
    did = ", ".join(f"{word} {count} of {len(counted)}" for word, count in words.most_common())
    text = f"{start} → {end}: {did}"
  phases = phase_counts(runs)
  if phases:
    text += f"; phase: {phases}"
  left_out = sum(run.ends_earlier for run in runs)
  if left_out:
    text += f" ({left_out} with an earlier last evaluation not counted)"
  return text


def _run_rows(concluded: Concluded, runs: Sequence[RecordedRun]) -> Iterator[TableRow]:
  """Yields a row for each run.

  concluded: the conclusion on each of the runs. Columns: did and what it means (the conclusion), accuracy (at the first
  and the last evaluation), gain (with its interval), reward and true reward (at the first and the last training steps),
  faithful (share of faithful responses at both evaluations), t_sat, t90, paid by (the reward's name), problems (their
  number in training), seed, steps (trained so far), state (how it ended), held out (problems that are trained on), note
  (on saturation), notes (on what could not be read and how it ended), run (its name), directory.
  """
  for run in runs:
    conclusion = concluded[run]
    is_timed = run.timing.state in TIMED
    was_trained = bool(run.reward_T)
    yield {
      "did": "" if run.cell.evaluation and run.rows else conclusion.word,
      "what it means": conclusion.text,
      **_figures_of_run(run, conclusion),
      "t_sat": time_value([run], [run.timing.t_sat]) if is_timed else Value(None),
      "t90": time_value([run], [run.timing.t90]) if is_timed else Value(None),
      "paid by": run.recorded_value("rl.reward") if was_trained else "",
      "problems": run.recorded_value("summary.problems") or run.cell.n,
      "seed": run.recorded_value("seed") if run.cell.seed is None else run.cell.seed,
      "steps": None if run.cell.evaluation else run.last_step,
      "state": run.state,
      "held out": conclusions.held_out_phrase(run, run.set) if run.set else "",
      "note": run.saturation(run.set).note if was_trained else "",
      "notes": " ".join(run.notes),
      "run": run.name,
      "directory": str(run.workdir),
    }


def _figures_of_run(run: RecordedRun, conclusion: Conclusion) -> TableRow:
  """Returns the columns accuracy, gain, reward, true reward and faithful, before and after training."""
  start, faithful_first = conclusion.start, conclusion.faithful_first
  accuracy = Value(conclusion.end, first=start)
  if conclusion.start_step == conclusion.end_step:  # evaluated once, or never
    faithful_first = None
    accuracy = _logged_value([_Moment(run.rows, conclusion.end_step)], f"eval/{run.set}/avg@{run.K}")
  return {
    "accuracy": accuracy,
    "gain": _gain_of(conclusion),
    "reward": Value(conclusion.reward_last, first=conclusion.reward_first, show=three_digits),
    "true reward": Value(conclusion.true_last, first=conclusion.true_first, show=three_digits),
    "faithful": Value(conclusion.faithful_last, first=faithful_first),
  }


def _gain_of(conclusion: Conclusion) -> Value:
  return Value(conclusion.gain, conclusion.low, conclusion.high, show=points)


def _difference_rows(runs: Sequence[RecordedRun]) -> list[TableRow]:
  """Returns a row for each set and run, which compares it with the first run of the stage evaluate on that set.

  runs: all runs of the report. A set that no run of the stage evaluate measured has no row. Columns: setting, arm, set,
  step, accuracy (at the last evaluation), against (the name of the run compared with), difference (with its interval
  over the problems that both recorded), problems (their number), run.
  """
  rows = []
  for name in measured_set_names(runs):
    having = [run for run in runs if run.curve(name)]
    reference = next((run for run in having if run.cell.evaluation), None)
    if reference is None:
      continue
    rows += [_difference_row(run, reference, name) for run in having if run is not reference]
  return rows


def _difference_row(run: RecordedRun, reference: RecordedRun, set_name: str) -> TableRow:
  curve, reference_curve = run.curve(set_name), reference.curve(set_name)
  end, reference_end = max(curve), max(reference_curve)
  before = reference.problem_means(set_name, reference_end)
  after = run.problem_means(set_name, end)
  shared = [problem for problem in before if problem in after]
  difference = Value(curve[end] - reference_curve[reference_end], show=points)
  if shared:
    gain = paired_gain([before[problem] for problem in shared], [after[problem] for problem in shared])
    difference = Value(gain.gain, gain.low, gain.high, show=points)
  return {
    "setting": run.setting,
    "arm": run.arm,
    "set": set_name,
    "step": None if run.cell.evaluation else end,
    "accuracy": Value(curve[end]),
    "against": reference.name,
    "difference": difference,
    "problems": len(shared) or None,
    "run": run.name,
  }


def _phase_rows(runs: Sequence[RecordedRun]) -> Iterator[TableRow]:
  """Yields a row for each run that recorded its phase or its kinds of training answers, or was never paid.

  runs: those of a setting and arm. Columns, where they are known: phase (learning, memorising, collapsed or not
  decided), since step (from which on it was claimed), held-out gain, at step (of the evaluation that the gain is of),
  the share of each kind of training answer (right, wrong, unparseable, cut off, unscored) at the first and the last
  steps, not paid (the reason), run.
  """
  for run in runs:
    row: TableRow = {}
    claim = run.claim()
    if claim:
      row["phase"] = claim.claim
      row["since step"] = Value(claim.since, show=whole)
    if claim and claim.gain:
      row["held-out gain"] = Value(claim.gain.gain, claim.gain.low, claim.gain.high, show=points)
      row["at step"] = Value(claim.step, show=whole)
    for kind in ("right", "wrong", "unparseable", "cut_off", "unscored"):
      first, last = conclusions.first_and_last(run.series(f"answers/{kind}"))
      row[kind.replace("_", " ")] = Value(last, first=first)
    if run.unpaid:
      row["not paid"] = run.why_unpaid()
    if any(map(_is_filled, row.values())):
      row["run"] = run.name
      yield row


def _saturation_rows(concluded: Concluded, runs: Sequence[RecordedRun]) -> list[TableRow]:
  """Returns a row for each set that the runs of a setting and arm measured, or one row where they measured none.

  concluded: the conclusion on each of the runs. Columns: set, saturated (how many runs, in words), t_sat and t90 (in
  steps), gain until t_sat, residual (what the best later evaluation has above that at t_sat), gain to the end and, in
  the last row, note (on saturation, where all runs have the same) and the paper (its figure and result). Gains and the
  residual are differences of shares.
  """
  rose = [run for run in runs if run.timing.state in TIMED]
  paper = next(filter(None, map(RecordedRun.paper, runs)), None)
  t_sat = time_value(rose, [run.timing.t_sat for run in rose], paper.t_sat if paper else None)
  t90 = time_value(rose, [run.timing.t90 for run in rose])
  times = {"set": "not evaluated", "saturated": saturation_counts(runs), "t_sat": t_sat, "t90": t90}
  rows = []
  for name in measured_set_names(runs):
    having = [run for run in runs if name in run.sets]
    rows.append(times | {"set": name} | _gains_at_saturation(having, name, paper, concluded))
  if not rows:
    rows.append(times)
  notes = {run.saturation(run.set).note for run in runs}
  rows[-1]["note"] = notes.pop() if len(notes) == 1 else ""  # where seeds differ, the table of runs has their notes
  if paper:
    rows[-1]["the paper"] = f"{paper.figure} ({paper.setting}): {paper.expected}"
  return rows


def _gains_at_saturation(
  runs: Sequence[RecordedRun], set_name: str, paper: Paper | None, concluded: Concluded
) -> dict[str, Value]:
  """Returns the columns gain until t_sat, residual and gain to the end, of the runs that measured a set."""
  at_t_sat = [run.saturation(set_name) for run in runs]
  draws = [run.gain_draws(set_name) for run in runs]
  until = _mean_value([reading.gain for reading in at_t_sat], [drawn.until_t_sat for drawn in draws], points)
  residual = _mean_value([reading.residual for reading in at_t_sat], [drawn.residual for drawn in draws], points)
  if len(runs) == 1 and set_name == runs[0].set:  # the gain of the conclusion: the same interval in every table
    end = _gain_of(concluded[runs[0]])
  else:
    end = _gain_to_the_end(runs, set_name, draws)
  paper_gain = paper.gains.get(set_name) if paper else None
  return {"gain until t_sat": until._replace(paper=paper_gain), "residual": residual, "gain to the end": end}


def _gain_to_the_end(runs: Sequence[RecordedRun], set_name: str, draws: Sequence[GainDraws]) -> Value:
  """Returns the last evaluation minus the first; of several runs without those that are not compared."""
  gains, drawn_gains = [], []
  for run, drawn in zip(runs, draws, strict=True):
    curve = run.curve(set_name)
    is_compared = len(runs) == 1 or not run.ends_earlier
    gains.append(curve[max(curve)] - curve[min(curve)] if is_compared and len(curve) > 1 else None)
    drawn_gains.append(drawn.to_the_end if is_compared else None)
  return _mean_value(gains, drawn_gains, points)


class _GapPair(NamedTuple):
  """Two runs of an arm, with the same seed and reward, on more and on fewer problems."""

  large: RecordedRun
  small: RecordedRun


def gap_rows(groups: Groups) -> list[TableRow]:
  """Returns a row for each set and each two settings of an arm that differ in the number of training problems.

  groups: the RL runs, {(setting, arm): runs}. Runs are compared if they have the same seed and reward, and the cell
  says their number of problems. Columns: arm, set, between (the two settings, the larger first), n' and n (the larger
  and the smaller number of problems), pairs (number of pairs of runs that have a gap, as "1 of 2" if others have none),
  G(n', n) (a Value: mean accuracy with n' problems minus accuracy with n, both at the t_sat of the run with n).
  """
  rows = []
  for (setting, arm), small_runs in groups.items():
    for (large_setting, large_arm), large_runs in groups.items():
      pairs = _gap_pairs(large_runs, small_runs) if large_arm == arm else []
      if not pairs:
        continue
      for name in measured_set_names(small_runs):
        rows.append({"arm": arm, "set": name, "between": f"{large_setting} − {setting}", **_gap_figures(pairs, name)})
  return rows


def _gap_pairs(large_runs: Sequence[RecordedRun], small_runs: Sequence[RecordedRun]) -> list[_GapPair]:
  """Returns the pairs of a run on n' problems and one on n < n' problems with the same seed and reward."""
  pairs = []
  for small in small_runs:
    for large in large_runs:
      if small.cell.n is None or large.cell.n is None or small.cell.n >= large.cell.n:
        continue
      if small.cell.seed == large.cell.seed and small.recorded_value("rl.reward") == large.recorded_value("rl.reward"):
        pairs.append(_GapPair(large, small))
  return pairs


def _gap_figures(pairs: Sequence[_GapPair], set_name: str) -> TableRow:
  gaps, draws = [], []
  for large, small in pairs:
    gaps.append(large_small_gap(large.curve(set_name), small.curve(set_name), small.t_sat))
    draws.append(gap_draws(large.curve_draws(set_name), small.curve_draws(set_name), small.t_sat))
  # A pair has no gap where the small run did not saturate, or where one of both has no accuracy at that step.
  known = len([value for value in gaps if value is not None])
  return {
    "n'": pairs[0].large.cell.n,
    "n": pairs[0].small.cell.n,
    "pairs": known if known == len(pairs) else f"{known} of {len(pairs)}",
    "G(n', n)": _mean_value(gaps, draws, points),
  }


_HEADINGS = {"format": "boxed", "faithful": "faithful", "mean_length": "tokens", "clipped": "cut off"}
_WRITERS = {"mean_length": whole}  # how these metrics are written; all others are shares
_EVALUATED = re.compile(r"(avg|pass(?!@1$)|maj)@\d+|" + "|".join(_HEADINGS))


def _best_step(curve: Mapping[int, float]) -> int:
  return max(curve, key=curve.get)


# The evaluations that have a row, and the function that takes the step from {step: accuracy}; None: t_sat is the step.
_MOMENTS: dict[str, Callable[[Mapping[int, float]], int] | None] = {
  "first": min,
  "t_sat": None,
  "best": _best_step,
  "last": max,
}


def _evaluation_rows(set_name: str, runs: Sequence[RecordedRun]) -> Iterator[TableRow]:
  """Yields a row for the first evaluation on a set, one for the accuracy at t_sat, for the best and for the last.

  runs: those of a setting and arm. Columns: at (first, t_sat, best or last), step, runs (how many, if not all), and
  those of avg@K, pass@k (but for k = 1), maj@K, boxed (share with an answer), faithful, tokens (mean length) and cut
  off that were logged. There is no row without an evaluation on the set. Runs that were last evaluated at an earlier
  step than others count only in the first row. Runs of the stage evaluate have one row, without the first three
  columns.
  """
  having = [run for run in runs if run.curve(set_name)]
  metrics = _evaluated_metrics(having, set_name)
  has_several = any(len(run.curve(set_name)) > 1 for run in having)
  only_evaluations = all(run.cell.evaluation for run in runs)
  for name, step_of in _MOMENTS.items():
    moments = []
    for run in having:
      is_compared = name == "first" or len(having) == 1 or not run.ends_earlier
      step = step_of(run.curve(set_name)) if step_of else run.t_sat
      if is_compared and step is not None:
        moments.append(_Moment(run.rows, step))
    if not moments or not (name == "first" or has_several):
      continue
    row: TableRow = {}
    if not only_evaluations:
      row["at"] = name
      row["step"] = _mean_value([moment.step for moment in moments], show=whole)
      row["runs"] = "" if len(moments) == len(runs) else f"{len(moments)} of {len(runs)}"
    for metric in metrics:
      heading = _HEADINGS.get(metric, metric)
      row[heading] = _logged_value(moments, f"eval/{set_name}/{metric}", _WRITERS.get(metric, percent))
    yield row


def _evaluated_metrics(runs: Sequence[RecordedRun], set_name: str) -> list[str]:
  """Returns the metrics of a set that have a column: avg@K, pass@k by k, maj@K, and those of _HEADINGS."""
  prefix = f"eval/{set_name}/"
  logged = {name for run in runs for row in run.rows.values() for name in row}
  metrics = {name.removeprefix(prefix) for name in logged if name.startswith(prefix)}
  return sorted(filter(_EVALUATED.fullmatch, metrics), key=_position)


def _position(metric: str) -> tuple[int, int]:
  """Returns the sort key of an evaluated metric: its kind, then its k."""
  kind, _, k = metric.partition("@")
  return ("avg", "pass", "maj", *_HEADINGS).index(kind), int(k or 0)


class _Judged(NamedTuple):
  """A column of the table of reasoning."""

  metric: str  # the metric judge/METRIC that it shows
  show: Callable[[float | None], str] = percent  # writes it as text


_JUDGED = {
  "faithful": _Judged("F(1)/all"),
  "in part": _Judged("F(0.5)/all"),
  "not": _Judged("F(0)/all"),
  "faithful, right": _Judged("F(1)/correct"),
  "faithful, wrong": _Judged("F(1)/incorrect"),
  "not, right": _Judged("F(0)/correct"),
  "not, wrong": _Judged("F(0)/incorrect"),
  "diversity": _Judged("diversity", three_digits),
  "of right ones": _Judged("diversity/correct", three_digits),
  "faithful diversity": _Judged("faithful_diversity", three_digits),
  "labelled": _Judged("labelled/all", whole),
  "missing": _Judged("missing/all", whole),
  "kappa": _Judged("kappa", three_digits),
}


def _reasoning_rows(runs: Sequence[RecordedRun]) -> Iterator[TableRow]:
  """Yields a row for each judged step of the runs of a setting and arm; none where nothing was judged.

  Columns (some have a comma in their name):
    step, runs                                       the step, and the number of runs that were judged at it
    "faithful", "in part", "not"                     shares of the labelled responses with label 1, 0.5, 0
    "faithful, right", "not, right"                  shares of the labelled right responses with label 1, 0
    "faithful, wrong", "not, wrong"                  shares of the labelled wrong responses with label 1, 0
    "diversity", "of right ones", "faithful diversity"  diversity of strategies, from 0 to 1, over all responses, over
                                                     right ones, and over those with label 1
    "labelled", "missing"                            numbers of responses with and without a label
    "kappa"                                          agreement of two judges
  """
  steps = {step for run in runs for step in run.judged_steps}
  for step in sorted(steps):
    moments = [_Moment(run.rows, step) for run in runs if step in run.judged_steps]
    row: TableRow = {"step": step, "runs": len(moments)}
    for heading, judged in _JUDGED.items():
      row[heading] = _logged_value(moments, f"judge/{judged.metric}", judged.show)
    yield row
