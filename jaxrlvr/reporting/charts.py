"""Draws charts as PNG and SVG, in colours and dashes that can be told apart without seeing colour."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.escape import visible

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of Okabe and Ito, for the colour-blind
_DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))  # lengths on and off, in line widths
_MARKERS = "os^Dvp"
_DARK, _SOFT, _PALE = "#222222", "#555555", "#888888"
_LEGEND_TEXT, _AXIS_LINE = "#333333", "#999999"


class Line(NamedTuple):
  """One curve of a chart: the mean over the seeds of an arm at the steps that all seeds have, with a band.

  The band of several seeds reaches from the least to the largest value; `band` is read only for a single seed. Where
  seeds end at different steps, the mean ends with the first of them, and thin lines continue the others to their ends.
  """

  label: str  # its name in the legend
  arm: int  # the arm's number from 0, which gives colour, dashes and mark
  seeds: Sequence[Mapping[int, float]]  # {step: value} of each seed, at least one with a value; finite values
  band: Mapping[int, tuple[float, float]]  # {step: (low, high)}, shaded behind a single seed; {}: none
  t_sat: float | None  # the step at which a dotted vertical line stands; None: no such line
  sparse: bool  # True: each value gets a mark; False: the curve is a running mean over a 20th of its steps
  faint: bool = False  # True: a thin line that the legend leaves out, for comparison with another line of the arm


def arm_style(index: int) -> tuple[str, tuple]:
  """Returns (colour, dashes) in which the page and all charts show one arm.

  index: the arm's number from 0; the first 36 arms all look different. The colour is "#RRGGBB". The dashes are lengths
  on and off in turn, as multiples of the line's width; () is a solid line.
  """
  turn, place = divmod(index, len(_COLOURS))
  return _COLOURS[place], _DASHES[(place + turn) % len(_DASHES)]


def draw_chart(title: str, lines: Sequence[Line], over: str = "step") -> dict[str, bytes]:
  """Draws lines over steps, or over another quantity, and returns the chart as {"png": bytes, "svg": bytes}.

  title: the title above the chart, cut to 60 characters. lines: in the order of the legend; at least one is not faint,
  and each has at least one seed with values. over: the title of the horizontal axis. "step" gives a linear axis. Any
  other, such as "samples k", gives a logarithmic axis with base 2 and a tick at each value, which must be above 0; the
  keys of seeds and bands are then values of that quantity. The vertical axis starts at 0 unless a value is negative.
  The background is transparent. The same arguments always give the same bytes. ValueError where no line could be in the
  legend.
  """
  figure, axes = _new_figure(2.9, "none")
  handles = [_draw_line(axes, line) for line in lines]
  _set_lower_limit(axes, lines)
  _mark_t_sat(axes, lines)
  _dress(axes, title, over)
  if over != "step":
    axes.set_xscale("log", base=2)
    ticks = sorted({x for line in lines for curve in line.seeds for x in curve})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()
  _add_legend(figure, lines, handles)
  png = _save(figure, "png")
  figure.set_layout_engine("none")  # the SVG takes the layout that was computed for the PNG
  return {"png": png, "svg": _save(figure, "svg")}


def _set_lower_limit(axes, lines: Sequence[Line]) -> None:
  """Lets the vertical axis begin at 0, unless a value is negative."""
  low, high = axes.get_ylim()
  has_negative = any(y < 0 for line in lines for curve in line.seeds for y in curve.values())
  axes.set_ylim(low if has_negative else 0.0, high)


def _mark_t_sat(axes, lines: Sequence[Line]) -> None:
  """Draws a dotted vertical line with a label at the t_sat of each line that has one."""
  marked = [line for line in lines if line.t_sat is not None]
  for place, line in enumerate(marked):
    colour, _ = arm_style(line.arm)
    height = 0.03 + 0.17 * (place % 5)  # labels stand one above the other, as the steps are often close
    axes.axvline(line.t_sat, color=colour, lw=0.9, alpha=0.8, dashes=(1, 2.5))
    axes.annotate(
      f"t_sat {line.t_sat:.0f}",
      (line.t_sat, height),
      xycoords=axes.get_xaxis_transform(),
      xytext=(-2, 0),
      textcoords="offset points",
      rotation=90,
      ha="right",
      fontsize=6.5,
      color=colour,
    )


def _add_legend(figure, lines: Sequence[Line], handles: Sequence) -> None:
  """Adds a legend of the lines that are not faint below the chart."""
  shown_handles = [handle for handle, line in zip(handles, lines, strict=True) if not line.faint]
  labels = [_plain(line.label) for line in lines if not line.faint]
  fit_side_by_side = max(map(len, labels)) < 26
  legend = figure.legend(
    shown_handles,
    labels,
    loc="outside lower center",
    fontsize=7.5,
    ncols=min(2, len(labels)) if fit_side_by_side else 1,
    frameon=False,
    handlelength=3.2,
    labelcolor=_LEGEND_TEXT,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)


def _new_figure(height: float, background: str):
  """Returns a new matplotlib figure, of a height in inches, and its axes."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.2, height), dpi=160, layout="constrained", facecolor=background)
  FigureCanvasAgg(figure)
  return figure, figure.add_subplot(facecolor=background)


def _save(figure, form: str) -> bytes:
  """Returns a figure as the bytes of a "png" or "svg" file; the same figure always gives the same bytes."""
  from matplotlib import rc_context

  metadata = {"svg": {"Date": None}, "png": {"Software": None}}
  file = io.BytesIO()
  with rc_context({"svg.hashsalt": "jaxrlvr"}):
    figure.savefig(file, format=form, metadata=metadata[form])
  return file.getvalue()


def _draw_line(axes, line: Line):
  """Draws the mean of the seeds at the steps that all of them have, with a band; returns the mean's handle.

  A line that is not sparse is a running mean; of a single seed without a band the values themselves are drawn thin.
  """
  colour, dashes = arm_style(line.arm)
  steps = sorted(set.intersection(*map(set, line.seeds)))
  values = [_values_at(curve, steps) for curve in line.seeds]
  half_window = 0 if line.sparse else len(steps) // 40
  smoothed = [_running_mean(curve, half_window) for curve in values]
  band = line.band
  if len(line.seeds) > 1:
    band = {step: (min(ys), max(ys)) for step, *ys in zip(steps, *smoothed, strict=True)}
  if band:
    low, high = zip(*band.values(), strict=True)
    axes.fill_between(list(band), low, high, color=colour, alpha=0.13, lw=0)
  elif half_window:
    axes.plot(steps, values[0], color=colour, lw=0.6, alpha=0.35)
  _draw_longer_seeds(axes, line, steps)
  look = {"color": colour, "lw": 1.6, "dashes": dashes or (None, None)}
  if line.faint:
    look |= {"lw": 0.9, "alpha": 0.6}
  if line.sparse:
    look |= {"marker": _MARKERS[line.arm % len(_MARKERS)], "ms": 2.4 if line.faint else 3.6}
  (handle,) = axes.plot(steps, [_mean(ys) for ys in zip(*smoothed, strict=True)], **look)
  return handle


def _values_at(curve: Mapping[int, float], steps: Sequence[int]) -> list[float]:
  return [curve[step] for step in steps]


def _draw_longer_seeds(axes, line: Line, steps: Sequence[int]) -> None:
  """Draws as thin lines what seeds have behind the last of the common `steps`; all of it where there is none."""
  if len(line.seeds) < 2:
    return
  colour, _ = arm_style(line.arm)
  for curve in line.seeds:
    later = [step for step in sorted(curve) if not steps or step >= steps[-1]]
    if len(later) > 1:
      axes.plot(later, [curve[step] for step in later], color=colour, lw=0.7, alpha=0.6)


def _running_mean(values: Sequence[float], half_window: int) -> list[float]:
  """Returns at each place the mean over the values up to `half_window` places before and behind."""
  means = []
  for place in range(len(values)):
    means.append(_mean(values[max(0, place - half_window) : place + half_window + 1]))
  return means


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


def write_histogram(path: Path, bars: Sequence[int], title: str) -> None:
  """Writes a bar chart of how often problems are solved to `path` as PNG, replacing a file that is there.

  bars: bars[n] is the number of problems with n right samples, from n = 0. title: the title above the chart, cut to 60
  characters.
  """
  figure, axes = _new_figure(2.6, "white")
  axes.bar_label(axes.bar(range(len(bars)), bars, color=_COLOURS[0]), fontsize=6.5)
  _dress(axes, title, "samples that are right")
  axes.set_axisbelow(True)
  path.write_bytes(_save(figure, "png"))


def _dress(axes, title: str, below: str) -> None:
  """Gives a chart its title, the name of its horizontal axis, and the look that all charts share."""
  axes.figure.suptitle(
    _plain(title, 60), x=0.02, ha="left", fontsize=8, fontweight="bold", color=_DARK, parse_math=False
  )
  axes.set_xlabel(below, fontsize=8, color=_SOFT)
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(_AXIS_LINE)
  axes.tick_params(labelsize=7.5, colors=_SOFT, length=3)
  axes.yaxis.get_offset_text().set(fontsize=6.5, color=_SOFT)
  axes.grid(axis="y", color=_PALE, alpha=0.22, lw=0.6)
  axes.locator_params(nbins=5)
  axes.margins(x=0.02)


def _plain(name: str, most: int = 40) -> str:
  """Returns a label of at most so many characters that the chart's font can draw: Latin and Greek, others as codes.

  A space before a leading underscore keeps matplotlib from hiding the label.
  """
  drawable = ""
  for char in visible(name, kept=""):
    is_in_font = char < "\u02b0" or "Α" <= char <= "ω"
    drawable += char if is_in_font else char.encode("ascii", "backslashreplace").decode()
  if len(drawable) > most:
    drawable = drawable[: most - 3] + "..."
  return " " + drawable if drawable.startswith("_") else drawable
