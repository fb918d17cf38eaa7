"""What happened in each run: one HTML page that loads nothing, its charts as PNG and SVG, its tables as CSV."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis.passk import interval, mean, paired_gain, redrawn
from jaxrlvr.analysis.phase import CLAIMS
from jaxrlvr.analysis.saturation import Time, drawn_gap, gap, median_time, value_at
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.escape import visible
from jaxrlvr.base.logbook import csv_text, finite, read_json, write_atomic
from jaxrlvr.reporting import charts as figures
from jaxrlvr.reporting import conclusions
from jaxrlvr.reporting import samples as responses
from jaxrlvr.reporting.conclusions import listed, percent, points, three_digits, whole
from jaxrlvr.reporting.runs import Cell, RecordedRun, series

CHARTS = 50  # that the page itself holds, at most
NUMBERS = "report.json"  # in the folder: what the page says, as numbers, and the names of its charts and tables
NO_RL = "no RL"  # the setting of what the stage evaluate measured
Groups = Mapping[tuple[str, str], Sequence[RecordedRun]]  # runs of the seeds, by (setting, arm)


def write(
  folder: Path, title: str, cells: Sequence[Cell], evaluations: Sequence[Cell], tail: int, samples: int
) -> Path:
  """Writes index.html (its path is returned), charts, tables and report.json.

  `evaluations`: runs of the stage evaluate; tail: of saturation, for runs that name none; samples: responses shown an
  arm and step.
  """
  for some in (cells, evaluations):
    names = [cell.name for cell in some]
    if len(set(names)) < len(names) or not (cells or evaluations):
      raise InputError(f"the report's runs are named {names}: give at least one, and each name once")
  runs = [RecordedRun(cell, tail) for cell in cells]
  place = NO_RL if runs else ""
  policies = [RecordedRun(dataclasses.replace(cell, setting=place), tail) for cell in evaluations]
  groups, everything = _grouped(runs), _grouped([*runs, *policies])
  concluded = {run: conclusions.conclude(run) for run in (*runs, *policies)}
  _mark_unlike_ends(groups, concluded)
  lead = conclusions.lead(runs, concluded) if runs else conclusions.lead_of_evaluations(policies, concluded)
  in_order = [run for some in everything.values() for run in some]
  shown, recorded, each = responses.choose_responses(in_order, samples)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  _remove_former(folder)
  charts, tables = _charts(folder, everything), _tables(groups, everything, concluded)
  for table in tables:
    write_atomic(folder / f"{table.name}.csv", _csv(table.rows))
  numbers = {"title": title, "lead": lead, "arms": [concluded[run] for run in runs],
             "evaluations": [concluded[run] for run in policies], "charts": [c["file"] for c in charts],
             "tables": [table.name for table in tables], "responses": len(shown)}  # fmt: skip
  write_atomic(folder / NUMBERS, json.dumps(finite(numbers), indent=1, allow_nan=False) + "\n")
  page = _render(
    tables, shown, charts=charts, settings=list(dict.fromkeys(chart["setting"] for chart in charts)), title=title,
    lead=lead, recorded=recorded, each=each, tail=" or ".join(sorted({str(run.tail) for run in runs})),
    rose=conclusions.ROSE, window=conclusions.END_STEPS, claims=CLAIMS, trains=bool(runs),
  )  # fmt: skip
  write_atomic(folder / "index.html", page)
  return folder / "index.html"


def _remove_former(folder: Path) -> None:
  """Deletes the charts and tables of an earlier report in the folder, as its report.json names them."""
  former = read_json(folder / NUMBERS)
  files = [f"{name}.csv" for name in former.get("tables") or ()]
  for name in former.get("charts") or ():
    files += [f"{name}.png", f"{name}.svg"]
  for file in files:
    (folder / Path(file).name).unlink(missing_ok=True)


def _grouped(runs: Sequence[RecordedRun]) -> Groups:
  """Returns the runs by place, settings in the order of first sight."""
  settings, groups = list(dict.fromkeys(run.setting for run in runs)), {}
  for run in sorted(runs, key=lambda run: settings.index(run.setting)):
    groups.setdefault((run.setting, run.arm), []).append(run)
  return groups


def _mark_unlike_ends(groups: Groups, concluded: Mapping[RecordedRun, Mapping]) -> None:
  """Marks and notes runs that were last evaluated before others of their setting: comparisons leave them out."""
  for setting in {setting for setting, _ in groups}:
    runs = [run for (other, _), some in groups.items() if other == setting for run in some if run.evals]
    last = max((max(run.evals) for run in runs), default=0)
    for run in runs:
      if max(run.evals) < last:
        run.unlike = True
        where = "others of its setting were" if setting else "others were"
        run.notes.append(f"Last evaluated at step {max(run.evals)}, while {where} at step {last}: not compared.")


# Tables

BESIDE = (
  " low",
  " high",
  " seeds low",
  " seeds high",
  " first",
  " paper",
  " at least",
)  # columns of a file beside a value's own


class Table(NamedTuple):
  name: str  # of the file
  caption: str
  rows: list[dict]  # {column: text, number or Value}
  first: bool  # shown before the charts


class Value(NamedTuple):
  """A figure over the runs of a place: 95% intervals over problems and over seeds, what it was before, the paper's."""

  value: float | None
  low: float | None = None
  high: float | None = None
  seeds_low: float | None = None
  seeds_high: float | None = None
  first: float | None = None
  paper: float | None = None
  at_least: float | None = None  # where the value is not known, for what it would measure goes on
  show: Callable = percent
  bound: str = "≥"  # how at_least is told

  def __str__(self):
    if self.value is None and self.at_least is not None:
      return f"{self.bound} {self.show(self.at_least)}"
    return (f"{self.show(self.first)} → " if self.first is not None else "") + self.show(self.value)

  def small(self) -> list[str]:
    """What else there is to say in words, but for intervals that say no more than the value."""
    pairs = (("", self.low, self.high), ("seeds ", self.seeds_low, self.seeds_high))
    told = [(word, self.show(low), self.show(high)) for word, low, high in pairs if None not in (low, high)]
    ends = [f"{word}{low} to {high}" for word, low, high in told if {low, high} != {self.show(self.value)}]
    ends += [f"{word}{self.show(low)} or later" for word, low, high in pairs if low is not None and high is None]
    return ends + ([f"the paper {self.show(self.paper)}"] if self.paper is not None else [])


def _value(values: Iterable[float | None], drawn: Sequence = (), show: Callable = percent) -> Value:
  """Mean of what runs have; intervals from each run's redrawn figures (the same problems) and from redrawn runs."""
  known = [v for v in values if v is not None]
  if not known:
    return Value(None, show=show)
  drawn = [d for d in drawn if d is not None]
  ends = interval(np.mean(drawn, 0)) if len(drawn) == len(known) else (None, None)
  seeds = interval(redrawn([[v] for v in known])[:, 0]) if len(known) > 1 else (None, None)
  return Value(mean(known), *ends, *seeds, show=show)


def _time(runs: Sequence[RecordedRun], times: Sequence[Time], paper: float | None = None) -> Value:
  """A time of runs whose reward rose: of one with its interval, of several the median, which counts the censored."""
  limits = [run.timing.t_eff for run in runs]
  median = median_time([time.step for time in times], limits)
  at_least = median.at_least if median.runs and median.median is None else None
  value = Value(median.median, paper=paper, at_least=at_least, show=whole)
  if len(times) == 1:
    return value._replace(low=times[0].low, high=times[0].high, bound="not by")
  if times and all(time.step is not None for time in times):
    steps = [time.step for time in times]
    return value._replace(seeds_low=min(steps), seeds_high=max(steps))  # so few runs: their range
  return value


def _states(runs: Sequence[RecordedRun]) -> str:
  """How many runs saturated, and of the others with another state than the censored how many have it."""
  counts = Counter(run.timing.state for run in runs)
  unfinished = sum(run.timing.state in _TIMED and not run.finished for run in runs)
  others = [
    f"{state} {counts[state]} of {len(runs)}" for state in counts if state not in ("saturated", "not saturated")
  ]
  if len(counts) == 1 and others:
    return next(iter(counts))
  if unfinished:
    others.append(f"not finished {unfinished} of {len(runs)}")
  return "; ".join([f"{counts['saturated']} of {len(runs)}", *others])


def _logged(places: Sequence[tuple[Mapping[int, Mapping], int]], metric: str, show: Callable = percent) -> Value:
  """A metric at (metrics by step, step) of each run, between two steps on the line; of one run with logged interval."""
  value = _value([value_at(series(rows, metric), step) for rows, step in places], show=show)
  if len(places) != 1:
    return value
  ((rows, step),) = places
  low, high = (series(rows, f"{metric}_{end}").get(step) for end in ("low", "high"))
  return value._replace(low=low, high=high)


def _tables(groups: Groups, everything: Groups, concluded: Mapping[RecordedRun, Mapping]) -> list[Table]:
  """Those that have a row, in the page's order. `groups`: the RL runs among `everything`."""
  many = sum(map(len, groups.values())) > conclusions.STORIES
  all_runs = [run for some in everything.values() for run in some]
  sets = listed(sorted({f"{m['set']}, avg@{m['K']}" for m in concluded.values() if m["set"]}) or ["no set"])
  when = " at the first and last evaluation" if groups else ""
  runs = Table("runs", f"Every run, and its accuracy ({sets}){when}, %.",
               _rows(everything, functools.partial(_run_rows, concluded)), first=not many)  # fmt: skip
  made = [
    Table("overview", f"Accuracy ({sets}) at the first and last evaluation, %, and what runs did.",
          _overview(groups, concluded), first=True) if many else runs,
    Table("differences", "Accuracy at the last evaluation, %, and its difference in points, paired over the problems "
          "that both recorded.",
          _difference_rows(all_runs if not many else [run for run in all_runs if run.cell.evaluation]), first=True),
    Table("saturation", "Table 1. Until training saturates, and after: gains and residual in points.",
          _rows(groups, functools.partial(_saturation_rows, concluded)), first=True),
    Table("phases", "The phase that each run recorded last, its held-out gain in points, and what became of the "
          f"training answers, in % of the first → last {conclusions.END_STEPS} steps.",
          _rows(groups, _phase_rows), first=not many),
    Table("gap", "Large-small gap G(n', n), in points: accuracy with n' problems minus that with n, both at n's t_sat.",
          _gap_rows(groups), first=True),
    *(Table(f"evaluations-{_slug(name)}",
            f"Accuracy on {name}, in % but for tokens (the paper's tables 3 to 7). "
            f"Held out: {_checked(all_runs, name)}.",
            _rows(everything, functools.partial(_evaluation_rows, name)), first=False)
      for name in _names(all_runs)),
    Table("reasoning", "Judged responses, in % but for diversity and kappa.", _rows(everything, _reasoning_rows),
          first=False),
  ]  # fmt: skip
  if many:
    made.append(runs)
  return [table for table in made if table.rows]


def _checked(runs: Sequence[RecordedRun], set_name: str) -> str:
  return conclusions.all_checked([run for run in runs if set_name in run.sets], set_name)


def _rows(groups: Groups, of: Callable[[Sequence[RecordedRun]], Iterable[Mapping]]) -> list[dict]:
  """What `of` tells of the runs of each place, behind the place's names."""
  return [{"setting": setting, "arm": arm, **row} for (setting, arm), runs in groups.items() for row in of(runs)]


def _names(runs: Iterable[RecordedRun]) -> list[str]:
  """Sets that any of the runs measured."""
  return list(dict.fromkeys(name for run in runs for name in run.sets))


def _overview(groups: Groups, concluded: Mapping[RecordedRun, Mapping]) -> list[dict]:
  """A row an arm, a column a setting."""
  rows: dict[str, dict] = {}
  for (setting, arm), runs in groups.items():
    measured = [concluded[run] for run in runs if concluded[run]["kind"] != "unmeasured" and not run.unlike]
    kinds = Counter(m["word"].lower() for m in measured)
    ends = " → ".join(percent(mean([m[end] for m in measured])) for end in ("start", "end") if measured)
    did = ", ".join(f"{word} {n} of {len(measured)}" for word, n in kinds.most_common())
    left_out = sum(run.unlike for run in runs)
    text = f"{ends}: {did}" if measured else "–"
    if phases := _phases(runs):
      text += f"; phase: {phases}"
    rows.setdefault(arm, {"arm": arm})[setting or "accuracy"] = (
      f"{text} ({left_out} with an earlier last evaluation not counted)" if left_out else text
    )
  return list(rows.values())


def _phases(runs: Sequence[RecordedRun]) -> str:
  """How many runs recorded which phase last; "" where none did."""
  counts = Counter(claim.claim for run in runs if (claim := run.claim()))
  if sum(counts.values()) == 1 == len(runs):
    return next(iter(counts))
  return ", ".join(f"{claim} {count} of {len(runs)}" for claim, count in counts.items())


def _phase_rows(runs: Sequence[RecordedRun]) -> Iterable[dict]:
  for run in runs:
    row = {}
    if claim := run.claim():
      row = {"phase": claim.claim, "since step": Value(claim.since, show=whole)}
    if claim and claim.gain:
      row |= {"held-out gain": Value(*claim.gain, show=points), "at step": Value(claim.step, show=whole)}
    for kind in ("right", "wrong", "unparseable", "cut_off", "unscored"):
      first, last = conclusions.ends(run.series(f"answers/{kind}"))
      row[kind.replace("_", " ")] = Value(last, first=first)
    if run.unpaid:
      row["not paid"] = run.why_unpaid()
    if any(value.value is not None if isinstance(value, Value) else value for value in row.values()):
      yield row | {"run": run.name}


def _difference_rows(runs: Sequence[RecordedRun]) -> list[dict]:
  """Of each set, every run's last evaluation against that of the first run of the stage evaluate."""
  rows = []
  for name in _names(runs):
    having = [run for run in runs if run.curve(name)]
    reference = next((run for run in having if run.cell.evaluation), None)
    for run in having if reference else ():
      if run is reference:
        continue
      ends = [max(one.curve(name)) for one in (reference, run)]
      before, after = (one.problem_means(name, end) for one, end in zip((reference, run), ends, strict=True))
      both = [problem for problem in before if problem in after]
      accuracy = run.curve(name)[ends[1]]
      difference = Value(accuracy - reference.curve(name)[ends[0]], show=points)
      if both:
        difference = Value(*paired_gain([before[p] for p in both], [after[p] for p in both]), show=points)
      rows.append({"setting": run.setting, "arm": run.arm, "set": name,
                   "step": None if run.cell.evaluation else ends[1],
                   "accuracy": Value(accuracy), "against": reference.name, "difference": difference,
                   "problems": len(both) or None, "run": run.name})  # fmt: skip
  return rows


_TIMED = ("saturated", "not saturated")  # states of runs whose reward rose to where time can be told


def _run_rows(concluded: Mapping[RecordedRun, Mapping], runs: Sequence[RecordedRun]) -> Iterable[dict]:
  for run in runs:
    m = concluded[run]
    once = m["start_step"] == m["end_step"]  # evaluated
    start, faithful = (None if once else m[name] for name in ("start", "faithful_first"))
    accuracy = Value(m["end"], first=start)
    if once:
      accuracy = _logged([(run.rows, m["end_step"])], f"eval/{run.set}/avg@{run.K}")
    yield {
      "did": "" if run.cell.evaluation and run.rows else m["word"], "what it means": m["text"],
      "accuracy": accuracy, "gain": Value(m["gain"], m["low"], m["high"], show=points),
      "reward": Value(m["reward_last"], first=m["reward_first"], show=three_digits),
      "true reward": Value(m["true_last"], first=m["true_first"], show=three_digits),
      "faithful": Value(m["faithful_last"], first=faithful),
      "t_sat": _time([run], [run.timing.t_sat]) if run.timing.state in _TIMED else Value(None),
      "t90": _time([run], [run.timing.t90]) if run.timing.state in _TIMED else Value(None),
      "paid by": run.at("rl.reward") if run.reward_T else "",
      "problems": run.at("summary.problems") or run.cell.n,
      "seed": run.at("seed") if run.cell.seed is None else run.cell.seed,
      "steps": None if run.cell.evaluation else run.last, "state": run.state,
      "held out": conclusions.checked(run, run.set) if run.set else "",
      "note": run.saturation(run.set).note if run.reward_T else "", "notes": " ".join(run.notes), "run": run.name,
      "directory": str(run.workdir),
    }  # fmt: skip


def _saturation_rows(concluded: Mapping[RecordedRun, Mapping], runs: Sequence[RecordedRun]) -> list[dict]:
  rose = [run for run in runs if run.timing.state in _TIMED]
  paper = next((paper for run in runs if (paper := run.paper())), None)
  place = {"set": "not evaluated", "saturated": _states(runs),
           "t_sat": _time(rose, [run.timing.t_sat for run in rose], paper and paper.t_sat),
           "t90": _time(rose, [run.timing.t90 for run in rose])}  # fmt: skip
  notes = {run.saturation(run.set).note for run in runs}
  says = {"note": notes.pop() if len(notes) == 1 else ""}  # where seeds differ, the table of runs tells them
  if paper:
    says["the paper"] = f"{paper.figure} ({paper.setting}): {paper.expected}"
  rows = []
  for name in _names(runs):
    having = [run for run in runs if name in run.sets]
    found, drawn = [run.saturation(name) for run in having], [run.redrawn_gains(name) for run in having]
    ends = [c[max(c)] - c[min(c)] if len(c) > 1 else None for c in (run.curve(name) for run in having)]
    if len(having) > 1:
      ends = [None if run.unlike else end for run, end in zip(having, ends, strict=True)]
      drawn = [(*d[:2], None if run.unlike else d[2]) for run, d in zip(having, drawn, strict=True)]
    until, residual, end = (
      _value(values, [d[i] for d in drawn], points)
      for i, values in enumerate(([one.gain for one in found], [one.residual for one in found], ends))
    )
    until = until._replace(paper=paper and paper.gains.get(name))
    if len(having) == 1 and name == having[0].set:  # the story's gain: one interval, the same in every table
      m = concluded[having[0]]
      end = Value(m["gain"], m["low"], m["high"], show=points)
    rows.append(place | {"set": name, "gain until t_sat": until, "residual": residual, "gain to the end": end})
  rows = rows or [place]
  rows[-1] |= says
  return rows


def _gap_rows(groups: Groups) -> list[dict]:
  """Of cells of one arm, seed and reward that differ in n."""
  rows = []
  for ((setting, arm), small), ((other, same), large) in itertools.product(groups.items(), repeat=2):
    pairs = [
      (b, a) for a in small for b in large
      if same == arm and None not in (a.cell.n, b.cell.n) and a.cell.n < b.cell.n and a.cell.seed == b.cell.seed
      and a.at("rl.reward") == b.at("rl.reward")
    ]  # fmt: skip
    for name in _names(small) if pairs else ():
      found = [gap(b.curve(name), a.curve(name), a.t_sat) for b, a in pairs]
      value = _value(found, [drawn_gap(b.redrawn(name), a.redrawn(name), a.t_sat) for b, a in pairs], points)
      read = sum(g is not None for g in found)  # the others' small run did not saturate, or was not evaluated there
      rows.append({"arm": arm, "set": name, "between": f"{other} − {setting}", "n'": pairs[0][0].cell.n,
                   "n": pairs[0][1].cell.n, "pairs": read if read == len(pairs) else f"{read} of {len(pairs)}",
                   "G(n', n)": value})  # fmt: skip
  return rows


_HEADINGS = {"format": "boxed", "faithful": "faithful", "mean_length": "tokens", "clipped": "cut off"}
_WRITTEN = {"mean_length": whole}  # all else is a share
_EVALUATED = re.compile(r"(avg|pass(?!@1$)|maj)@\d+|" + "|".join(_HEADINGS))
_MOMENTS: dict[str, Callable | None] = {
  "first": min,
  "t_sat": None,
  "best": lambda curve: max(curve, key=curve.get),
  "last": max,
}


def _evaluation_rows(name: str, runs: Sequence[RecordedRun]) -> Iterable[dict]:
  """First, t_sat, best and last evaluation on one set."""
  curves, prefix = [(run, curve) for run in runs if (curve := run.curve(name))], f"eval/{name}/"
  keys = {key.removeprefix(prefix) for run, _ in curves for row in run.rows.values() for key in row if prefix in key}
  metrics = sorted(filter(_EVALUATED.fullmatch, keys), key=_order)
  for at, of in _MOMENTS.items():
    compared = [(run, curve) for run, curve in curves if at == "first" or len(curves) == 1 or not run.unlike]
    places = [(run.rows, of(curve) if of else run.t_sat) for run, curve in compared]
    places = [place for place in places if place[1] is not None]
    if places and (at == "first" or any(len(curve) > 1 for _, curve in curves)):
      row = {_HEADINGS.get(metric, metric): _logged(places, prefix + metric, _WRITTEN.get(metric, percent))
             for metric in metrics}  # fmt: skip
      moment = {"at": at, "step": _value([step for _, step in places], show=whole),
                "runs": "" if len(places) == len(runs) else f"{len(places)} of {len(runs)}"}  # fmt: skip
      yield ({} if all(run.cell.evaluation for run in runs) else moment) | row


def _order(metric: str) -> tuple:
  """avg@K, pass@k by k, maj@K, then the rest."""
  kind, _, k = metric.partition("@")
  return (("avg", "pass", "maj", *_HEADINGS).index(kind), int(k or 0))


_JUDGED = {  # heading: metric of a judged step, how it is written
  "faithful": ("F(1)/all", percent), "in part": ("F(0.5)/all", percent), "not": ("F(0)/all", percent),
  "faithful, right": ("F(1)/correct", percent), "faithful, wrong": ("F(1)/incorrect", percent),
  "not, right": ("F(0)/correct", percent), "not, wrong": ("F(0)/incorrect", percent),
  "diversity": ("diversity", three_digits), "of right ones": ("diversity/correct", three_digits),
  "faithful diversity": ("faithful_diversity", three_digits),
  "labelled": ("labelled/all", whole), "missing": ("missing/all", whole), "kappa": ("kappa", three_digits),
}  # fmt: skip


def _reasoning_rows(runs: Sequence[RecordedRun]) -> Iterable[dict]:
  for step in sorted({step for run in runs for step in run.judged_steps}):
    places = [(run.rows, step) for run in runs if step in run.judged_steps]
    figures = {name: _logged(places, f"judge/{metric}", show) for name, (metric, show) in _JUDGED.items()}
    yield {"step": step, "runs": len(places)} | figures


def _columns(rows: Sequence[Mapping]) -> list[str]:
  """Columns in which any row says something."""
  said = {
    name
    for row in rows
    for name, v in row.items()
    if (v.value is not None or v.at_least is not None if isinstance(v, Value) else v not in (None, ""))
  }
  return list(dict.fromkeys(name for row in rows for name in row if name in said))


def _csv(rows: Sequence[Mapping]) -> str:
  """Shares in 0..1, what belongs to a value in columns of its own; an empty field is an unknown value."""
  table = {}
  for name in _columns(rows):
    values = [v if isinstance(v, Value) else Value(v) for v in (row.get(name) for row in rows)]
    for i, end in enumerate(("", *BESIDE)):
      column = [value[i] for value in values]
      if not i or any(x is not None for x in column):
        table[name + end] = column
  return csv_text(table, zip(*table.values(), strict=True))


def _slug(name: str) -> str:
  return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")[:40] or "x"


# Charts

_CHARTS = (  # file, title, metric, caption, scale; {set} and {K} are those of each evaluated set
  ("reward", "Training reward", "reward", "What the run was paid for.", 1),
  ("true-reward", "Training reward by the true labels", "true_reward", "The same rollouts, graded by the truth.", 1),
  ("eval", "Accuracy on {set}, avg@{K}, %", "eval/{set}/avg@{K}", "Held out: {checked}.", 100),
  ("passk", "pass@{k} on {set}, %", "eval/{set}/pass@{k}", "Problems that one of {k} samples solves.", 100),
  ("judged-faithful", "Faithful, as judged: F(1), %", "judge/F(1)/all", "Judged responses labelled 1.", 100),
  ("judged-faithful-right", "Faithful of the right ones: F(1)/correct, %", "judge/F(1)/correct",
   "Right judged responses labelled 1.", 100),
  ("judged-not-right", "Not faithful of the right ones: F(0)/correct, %", "judge/F(0)/correct",
   "Right judged responses labelled 0.", 100),
  ("judged-not-wrong", "Not faithful of the wrong ones: F(0)/incorrect, %", "judge/F(0)/incorrect",
   "Wrong judged responses labelled 0.", 100),
  ("judged-diversity", "Diversity of strategies", "judge/diversity", "As judged.", 1),
  ("judged-diversity-right", "Diversity of right responses", "judge/diversity/correct", "As judged.", 1),
  ("judged-faithful-diversity", "Faithful diversity", "judge/faithful_diversity", "Of those labelled 1.", 1),
  ("length", "Response length, tokens", "completions/mean_length", "Mean over a step's rollouts.", 1),
  ("entropy", "Entropy, nats", "entropy", "Mean over response tokens.", 1),
  ("kl", "KL to the starting policy, nats", "kl", "Mean over response tokens.", 1),
  ("faithful", "Faithful traces in training, %", "faithful", "Responses whose trace leads to the answer.", 100),
  ("eval-faithful", "Faithful traces on {set}, %", "eval/{set}/faithful", "Trace leads to the answer.", 100),
)  # fmt: skip


class _Drawing(NamedTuple):
  """One chart before it is drawn."""

  key: str
  set_name: str
  title: str
  caption: str
  lines: list[figures.Line]
  over: str = "step"


def _charts(folder: Path, groups: Groups) -> list[dict]:
  """Draws each metric for each setting that has values: PNG and SVG in the folder, {file, ...} for the page."""
  made: list[dict] = []
  most = max(1, CHARTS // len({setting for setting, _ in groups}))  # the first of each setting, where there are more
  arms = list(dict.fromkeys(arm for _, arm in groups))
  for setting in dict.fromkeys(setting for setting, _ in groups):
    shown = {arm: runs for (other, arm), runs in groups.items() if other == setting}
    for drawing in _drawings(shown, arms):
      told = drawing.title + (f" · {setting}" if setting else "")
      file = "_".join([drawing.key, *(_slug(part) for part in (drawing.set_name, setting) if part)])
      file += f"_{len(made)}" if file in (one["file"] for one in made) else ""
      drawn = figures.draw_chart(told, drawing.lines, drawing.over)
      for form, content in drawn.items():
        (folder / f"{file}.{form}").write_bytes(content)
      data = "data:image/png;base64," + base64.b64encode(drawn["png"]).decode()
      made.append({"file": file, "setting": setting, "caption": drawing.caption,
                   "alt": _alt(told, drawing.lines, drawing.over),
                   "data": data if sum(one["setting"] == setting for one in made) < most else ""})  # fmt: skip
  return made


def _drawings(shown: Mapping[str, Sequence[RecordedRun]], arms: Sequence[str]) -> Iterable[_Drawing]:
  """The charts of a setting that have values, from the runs of its arms."""
  runs = [run for some in shown.values() for run in some]
  misled = any(run.series("true_reward") != run.series("reward") for run in runs)
  trained = {arm: some for arm, some in shown.items() if not all(run.cell.evaluation for run in some)}
  for key, title, metric, caption, scale in _CHARTS:
    if metric == "true_reward" and not misled:
      continue
    for name in _names(runs) if "{set}" in metric else [""]:
      K = next((run.sets[name] for run in runs if name in run.sets), 0)
      k = max(_passed(runs, name), default=0)
      found = (_line(arms.index(arm), arm, some, metric, name, k, scale) for arm, some in trained.items())
      if lines := [line for line in found if line]:
        told = {"set": name, "K": K, "k": k, "checked": _checked(runs, name) if name else ""}
        yield _Drawing(key, name, title.format(**told), caption.format(**told), lines)
      if key == "passk" and len(_passed(runs, name)) > 1:
        lines = [line for arm, some in shown.items() for line in _lines_of_passk(arms.index(arm), arm, some, name)]
        caption_k = "At the last evaluation; faint: at the first." if trained else f"Held out: {_checked(runs, name)}."
        if lines:
          yield _Drawing("passk-by-k", name, f"pass@k on {name}, %", caption_k, lines, "samples k")


def _passed(runs: Sequence[RecordedRun], set_name: str) -> list[int]:
  """Every k of which pass@k was measured on the set."""
  prefix = f"eval/{set_name}/pass@"
  names = {name for run in runs for row in run.rows.values() for name in row if name.startswith(prefix)}
  return sorted(int(name.removeprefix(prefix)) for name in names if name.removeprefix(prefix).isdecimal())


def _lines_of_passk(index: int, arm: str, runs: Sequence[RecordedRun], set_name: str) -> list[figures.Line]:
  """pass@k over k at the last evaluation of the arm's runs, and faint at the first where that is another one."""
  having = [run for run in runs if run.curve(set_name)]
  compared = [run for run in having if len(having) == 1 or not run.unlike]
  lines = []
  for of in (max, min) if compared else ():
    if of is min and all(len(run.curve(set_name)) == 1 for run in having):
      continue
    some = compared if of is max else having
    points_R = [_pass_at(run.rows[of(run.curve(set_name))], set_name) for run in some]
    points_R = [points for points in points_R if points]
    if points_R:
      band = {}
      if len(some) == 1 and of is max:
        ends = [_pass_at(some[0].rows[max(some[0].curve(set_name))], set_name, end) for end in ("_low", "_high")]
        band = {k: (ends[0][k], ends[1][k]) for k in points_R[0] if k in ends[0] and k in ends[1]}
      lines.append(figures.Line(arm, index, points_R, band, None, sparse=True, faint=of is min))
  return lines


def _pass_at(row: Mapping, set_name: str, end: str = "") -> dict[int, float]:
  """{k: pass@k in %} of one evaluation's metrics."""
  found = {}
  for name, value in row.items():
    match = re.fullmatch(rf"eval/{re.escape(set_name)}/pass@(\d+){end}", name)
    if match and isinstance(value, (int, float)):
      found[int(match[1])] = 100 * value
  return dict(sorted(found.items()))


def _line(
  index: int, arm: str, runs: Sequence[RecordedRun], metric: str, set_name: str, k: int, scale: float
) -> figures.Line | None:
  """The arm's curve over its seeds, None where no run has values."""
  names = [(run, metric.format(set=set_name, K=run.sets.get(set_name), k=k)) for run in runs]
  having = [(run, name) for run, name in names if run.series(name)]
  if not having:
    return None
  seeds = [{step: y * scale for step, y in run.series(name).items()} for run, name in having]
  low, high = (having[0][0].series(f"{having[0][1]}_{end}") for end in ("low", "high"))
  band = {step: (low[step] * scale, high[step] * scale) for step in seeds[0] if step in low and step in high}
  rose = [run for run, _ in having if run.timing.state in _TIMED]
  t_sat = median_time([run.t_sat for run in rose], [run.timing.t_eff for run in rose]).median
  sparse = metric.startswith(("eval/", "judge/"))
  return figures.Line(arm, index, seeds, band, t_sat, sparse)


def _alt(title: str, lines: Sequence[figures.Line], over: str) -> str:
  ends = []
  for line in lines:
    first, last = (mean([ys[of(ys)] for ys in line.seeds]) for of in (min, max))
    label = line.label + (" before" if line.faint else "")
    ends.append(f"{label}: first {three_digits(first)}, last {three_digits(last)}")
  return f"{title}, over {'steps' if over == 'step' else over}. " + "; ".join(ends) + "."


# The page


def _render(tables: Sequence[Table], shown: Sequence[Mapping], **texts) -> str:
  import jinja2
  from markupsafe import Markup

  here = Path(__file__).parent
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup: that is the template's own
  )  # fmt: skip
  arms = dict.fromkeys(row["arm"] for table in tables for row in table.rows)
  script, css = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
  env.filters |= {"text": lambda v: "–" if v is None else str(v), "columns": _columns}
  data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
  return env.get_template("page.html").render(
    tables=tables, looks={arm: figures.style(index) for index, arm in enumerate(arms)}, script=Markup(script),
    css=Markup(css), hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(), shown=len(shown),
    responses=Markup(data), **texts,
  )  # fmt: skip
