"""Chooses the charts of a report and collects their curves from recorded runs; `charts` draws them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.analysis.passk import mean
from jaxrlvr.analysis.saturation import median_time
from jaxrlvr.reporting import charts
from jaxrlvr.reporting.conclusions import joint_held_out_phrase
from jaxrlvr.reporting.runs import Groups, RecordedRun
from jaxrlvr.reporting.tables import TIMED, measured_set_names, slug
from jaxrlvr.reporting.wording import three_digits

EMBEDDED_CHARTS = 50  # charts that the page itself holds at most


class _Metric(NamedTuple):
  """A chart of a metric over steps. In title, metric and caption {set}, {K} and {k} stand for each evaluated set."""

  file: str
  title: str
  metric: str
  caption: str
  scale: int = 1  # what values are multiplied with


_CHARTS = (
  _Metric("reward", "Training reward", "reward", "What the run was paid for."),
  _Metric(
    "true-reward", "Training reward by the true labels", "true_reward", "The same rollouts, graded by the truth."
  ),
  _Metric("eval", "Accuracy on {set}, avg@{K}, %", "eval/{set}/avg@{K}", "Held out: {checked}.", 100),
  _Metric("passk", "pass@{k} on {set}, %", "eval/{set}/pass@{k}", "Problems that one of {k} samples solves.", 100),
  _Metric("judged-faithful", "Faithful, as judged: F(1), %", "judge/F(1)/all", "Judged responses labelled 1.", 100),
  _Metric(
    "judged-faithful-right",
    "Faithful of the right ones: F(1)/correct, %",
    "judge/F(1)/correct",
    "Right judged responses labelled 1.",
    100,
  ),
  _Metric(
    "judged-not-right",
    "Not faithful of the right ones: F(0)/correct, %",
    "judge/F(0)/correct",
    "Right judged responses labelled 0.",
    100,
  ),
  _Metric(
    "judged-not-wrong",
    "Not faithful of the wrong ones: F(0)/incorrect, %",
    "judge/F(0)/incorrect",
    "Wrong judged responses labelled 0.",
    100,
  ),
  _Metric("judged-diversity", "Diversity of strategies", "judge/diversity", "Over all judged responses."),
  _Metric(
    "judged-diversity-right", "Diversity of right responses", "judge/diversity/correct", "Over right judged responses."
  ),
  _Metric(
    "judged-faithful-diversity",
    "Faithful diversity",
    "judge/faithful_diversity",
    "Diversity of strategies over responses labelled 1.",
  ),
  _Metric("length", "Response length, tokens", "completions/mean_length", "Mean over a step's rollouts."),
  _Metric("entropy", "Entropy, nats", "entropy", "Mean over response tokens."),
  _Metric("kl", "KL to the starting policy, nats", "kl", "Mean over response tokens."),
  _Metric(
    "faithful", "Faithful traces in training, %", "faithful", "Responses whose trace leads to their answer.", 100
  ),
  _Metric(
    "eval-faithful",
    "Faithful traces on {set}, %",
    "eval/{set}/faithful",
    "Responses whose trace leads to their answer.",
    100,
  ),
)


class Drawing(NamedTuple):
  """What a chart will show, before it is drawn."""

  key: str  # the first part of its file's name, such as "reward" or "passk-by-k"
  set_name: str  # the evaluated set; "" where the metric belongs to no set
  title: str  # the title above it, without the setting
  caption: str  # a sentence that stands below it on the page
  lines: list[charts.Line]  # its curves: one for each arm, and faint ones for comparison; []: there are no values
  over: str = "step"  # the name of the horizontal axis: "step" or "samples k"


class Chart(NamedTuple):
  """A chart that was drawn, as the page shows it."""

  file: str  # the name of its PNG and SVG file without the suffix: key, set and setting, joined by "_"
  setting: str  # the setting whose runs it shows
  caption: str  # a sentence that stands below it on the page
  alt: str  # what it shows, in words
  data: str  # the PNG as a data URL for the page; "" where the page leaves it out


def write_charts(folder: Path, groups: Groups) -> list[Chart]:
  """Draws every chart that has values, for each setting, and writes it to FILE.png and FILE.svg in the folder.

  folder: must exist. groups: all runs of the report, {(setting, arm): runs}. Returns the charts setting by setting, in
  the order in which settings first occur; [] where no run has values. The page itself holds the first charts of each
  setting, EMBEDDED_CHARTS = 50 in all but at least one of each; the `data` of the others is "".
  """
  written: list[Chart] = []
  settings = list(dict.fromkeys(setting for setting, _ in groups))
  embedded_of_each = max(1, EMBEDDED_CHARTS // max(1, len(settings)))
  arms = list(dict.fromkeys(arm for _, arm in groups))
  for setting in settings:
    runs_by_arm = {arm: runs for (other, arm), runs in groups.items() if other == setting}
    for number, drawing in enumerate(drawings_of(runs_by_arm, arms)):
      title = f"{drawing.title} · {setting}" if setting else drawing.title
      file = _free_name(drawing, setting, [chart.file for chart in written])
      images = charts.draw_chart(title, drawing.lines, drawing.over)
      for suffix, content in images.items():
        (folder / f"{file}.{suffix}").write_bytes(content)
      data = ""
      if number < embedded_of_each:
        data = "data:image/png;base64," + base64.b64encode(images["png"]).decode()
      written.append(Chart(file, setting, drawing.caption, _alternative_text(title, drawing), data))
  return written


def _free_name(drawing: Drawing, setting: str, taken: Sequence[str]) -> str:
  """Returns the name of a chart's files: its key, set and setting, with a number where that name is taken."""
  parts = [slug(part) for part in (drawing.set_name, setting) if part]
  name = "_".join([drawing.key, *parts])
  return f"{name}_{len(taken)}" if name in taken else name


def drawings_of(runs_by_arm: Mapping[str, Sequence[RecordedRun]], arms: Sequence[str]) -> Iterator[Drawing]:
  """Yields the charts of one setting that have values: metrics over steps, and pass@k over k for each evaluated set.

  runs_by_arm: {arm: its runs, which differ in their seed} in this setting. arms: all arms of the report; the place of
  an arm in this list gives its colour. Runs of the stage evaluate are only in charts over k. The true reward has a
  chart only if it differs from the reward in some run.
  """
  runs = [run for runs_of_arm in runs_by_arm.values() for run in runs_of_arm]
  has_other_truth = any(run.series("true_reward") != run.series("reward") for run in runs)
  trained = {}
  for arm, runs_of_arm in runs_by_arm.items():
    if not all(run.cell.evaluation for run in runs_of_arm):
      trained[arm] = runs_of_arm
  for metric in _CHARTS:
    if metric.metric == "true_reward" and not has_other_truth:
      continue
    for set_name in measured_set_names(runs) if "{set}" in metric.metric else [""]:
      drawing = _drawing_over_steps(metric, set_name, trained, runs, arms)
      if drawing.lines:
        yield drawing
      if metric.file == "passk":
        drawing = _drawing_over_k(set_name, runs_by_arm, runs, arms, bool(trained))
        if drawing.lines:
          yield drawing


def _drawing_over_steps(
  metric: _Metric,
  set_name: str,
  trained: Mapping[str, Sequence[RecordedRun]],
  runs: Sequence[RecordedRun],
  arms: Sequence[str],
) -> Drawing:
  """Returns a metric over the steps of the trained arms; without lines where there are no values."""
  k = max(_measured_k(runs, set_name), default=0)
  lines = []
  for arm, runs_of_arm in trained.items():
    line = _line_over_steps(metric, arms.index(arm), arm, runs_of_arm, set_name, k)
    if line:
      lines.append(line)
  words = {
    "set": set_name,
    "K": next((run.sets[set_name] for run in runs if set_name in run.sets), 0),
    "k": k,
    "checked": joint_held_out_phrase(runs, set_name) if set_name else "",
  }
  return Drawing(metric.file, set_name, metric.title.format(**words), metric.caption.format(**words), lines)


def _line_over_steps(
  metric: _Metric, index: int, arm: str, runs: Sequence[RecordedRun], set_name: str, k: int
) -> charts.Line | None:
  """Returns the arm's curve over its seeds, None where no run has values. index: the arm's number."""
  having, curves = [], []
  for run in runs:
    curve = _scaled_series(run, _metric_name(metric, run, set_name, k), metric.scale)
    if curve:
      having.append(run)
      curves.append(curve)
  if not curves:
    return None
  first_name = _metric_name(metric, having[0], set_name, k)
  low = _scaled_series(having[0], f"{first_name}_low", metric.scale)
  high = _scaled_series(having[0], f"{first_name}_high", metric.scale)
  band = {step: (low[step], high[step]) for step in curves[0] if step in low and step in high}
  rose = [run for run in having if run.timing.state in TIMED]
  t_sat = median_time([run.t_sat for run in rose], [run.timing.t_eff for run in rose]).median
  is_sparse = metric.metric.startswith(("eval/", "judge/"))
  return charts.Line(arm, index, curves, band, t_sat, is_sparse)


def _metric_name(metric: _Metric, run: RecordedRun, set_name: str, k: int) -> str:
  """Returns the name under which a run logged a metric of a set."""
  return metric.metric.format(set=set_name, K=run.sets.get(set_name), k=k)


def _scaled_series(run: RecordedRun, name: str, scale: int) -> dict[int, float]:
  """Returns {step: value * scale} of a logged metric."""
  return {step: value * scale for step, value in run.series(name).items()}


def _measured_k(runs: Sequence[RecordedRun], set_name: str) -> list[int]:
  """Returns every k of which pass@k was measured on the set, ascending."""
  prefix = f"eval/{set_name}/pass@"
  names = {name for run in runs for row in run.rows.values() for name in row if name.startswith(prefix)}
  suffixes = [name.removeprefix(prefix) for name in names]
  return sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())


def _drawing_over_k(
  set_name: str,
  runs_by_arm: Mapping[str, Sequence[RecordedRun]],
  runs: Sequence[RecordedRun],
  arms: Sequence[str],
  is_trained: bool,
) -> Drawing:
  """Returns pass@k over k on a set; without lines where fewer than two k were measured."""
  lines: list[charts.Line] = []
  if len(_measured_k(runs, set_name)) > 1:
    for arm, runs_of_arm in runs_by_arm.items():
      lines += _lines_over_k(arms.index(arm), arm, runs_of_arm, set_name)
  caption = "At the last evaluation; the faint lines are at the first."
  if not is_trained:
    caption = f"Held out: {joint_held_out_phrase(runs, set_name)}."
  return Drawing("passk-by-k", set_name, f"pass@k on {set_name}, %", caption, lines, "samples k")


def _lines_over_k(index: int, arm: str, runs: Sequence[RecordedRun], set_name: str) -> list[charts.Line]:
  """Returns pass@k over k at the last evaluation of an arm's runs and, as a faint line, at the first.

  There is no faint line where all runs were evaluated once. A single run has a band, the interval that it logged.
  """
  having = [run for run in runs if run.curve(set_name)]
  compared = [run for run in having if len(having) == 1 or not run.ends_earlier]
  if not compared:
    return []
  lines = []
  at_last = [_pass_at_k(run.rows[max(run.curve(set_name))], set_name) for run in compared]
  at_last = [curve for curve in at_last if curve]
  if at_last:
    band = {}
    if len(compared) == 1:
      last_row = compared[0].rows[max(compared[0].curve(set_name))]
      low, high = _pass_at_k(last_row, set_name, "_low"), _pass_at_k(last_row, set_name, "_high")
      band = {k: (low[k], high[k]) for k in at_last[0] if k in low and k in high}
    lines.append(charts.Line(arm, index, at_last, band, None, sparse=True))
  at_first = [_pass_at_k(run.rows[min(run.curve(set_name))], set_name) for run in having]
  at_first = [curve for curve in at_first if curve]
  if at_first and any(len(run.curve(set_name)) > 1 for run in having):
    lines.append(charts.Line(arm, index, at_first, {}, None, sparse=True, faint=True))
  return lines


def _pass_at_k(row: Mapping, set_name: str, suffix: str = "") -> dict[int, float]:
  """Returns {k: pass@k in %} of one evaluation's metrics, k ascending; suffix: "_low" or "_high" for an end."""
  pattern = re.compile(rf"eval/{re.escape(set_name)}/pass@(\d+){suffix}")
  curve = {}
  for name, value in row.items():
    match = pattern.fullmatch(name)
    if match and isinstance(value, (int, float)):
      curve[int(match[1])] = 100 * value
  return dict(sorted(curve.items()))


def _alternative_text(title: str, drawing: Drawing) -> str:
  """Returns a chart in words: the first and the last value of each line."""
  parts = []
  for line in drawing.lines:
    first = mean([curve[min(curve)] for curve in line.seeds])
    last = mean([curve[max(curve)] for curve in line.seeds])
    label = f"{line.label} before" if line.faint else line.label
    parts.append(f"{label}: first {three_digits(first)}, last {three_digits(last)}")
  axis = "steps" if drawing.over == "step" else drawing.over
  return f"{title}, over {axis}. " + "; ".join(parts) + "."
