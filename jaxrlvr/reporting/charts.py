"""Charts as PNG and SVG: curves of arms with bands over seeds or problems, in colours and dashes that all can tell."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base.escape import visible

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe if colour-blind
_DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))  # on, off in line widths
_MARKERS = "os^Dvp"


class Line(NamedTuple):
  """One arm's curve: {step: value} of each seed, drawn as their mean with a band from the least to the largest.

  Where seeds end at different steps, the mean ends with the first; the others go on as thin lines."""

  label: str
  arm: int  # number of the arm, which gives colour, dashes and mark
  seeds: Sequence[Mapping[int, float]]
  band: Mapping[int, tuple[float, float]]  # of a single seed
  t_sat: float | None
  sparse: bool  # each value gets a mark, and none is smoothed
  faint: bool = False  # what another line of the arm is compared with: thin, and not in the legend


def style(index: int) -> tuple[str, tuple]:
  """(colour, dashes) of an arm: no two of the first 36 share both."""
  turn, place = divmod(index, len(_COLOURS))
  return _COLOURS[place], _DASHES[(place + turn) % len(_DASHES)]


def draw_chart(title: str, lines: Sequence[Line], over: str = "step") -> dict[str, bytes]:
  """{"png", "svg"} of one chart; its ground is transparent, so that a page can turn it dark. over: the axis below; but
  for steps it has powers of two."""
  figure, axes = _figure(2.9, "none")
  handles = [_curve(axes, line) for line in lines]
  low, high = axes.get_ylim()
  axes.set_ylim(low if any(y < 0 for line in lines for ys in line.seeds for y in ys.values()) else 0.0, high)
  for place, line in enumerate(line for line in lines if line.t_sat is not None):
    colour, height = style(line.arm)[0], 0.03 + 0.17 * (place % 5)  # one above the other, for they are often close
    axes.axvline(line.t_sat, color=colour, lw=0.9, alpha=0.8, dashes=(1, 2.5))
    axes.annotate(f"t_sat {line.t_sat:.0f}", (line.t_sat, height), xycoords=axes.get_xaxis_transform(), xytext=(-2, 0),
                  textcoords="offset points", rotation=90, ha="right", fontsize=6.5, color=colour)  # fmt: skip
  _dress(axes, title, over)
  if over != "step":
    axes.set_xscale("log", base=2)
    ticks = sorted({x for line in lines for ys in line.seeds for x in ys})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.minorticks_off()
  handles = [handle for handle, line in zip(handles, lines, strict=True) if not line.faint]
  labels = [_plain(line.label) for line in lines if not line.faint]
  columns = min(2, len(labels)) if max(map(len, labels)) < 26 else 1  # longer ones would not fit side by side
  legend = figure.legend(handles, labels, loc="outside lower center", fontsize=7.5, ncols=columns,
                         frameon=False, handlelength=3.2, labelcolor="#333333")  # fmt: skip
  for text in legend.get_texts():
    text.set_parse_math(False)
  png = _save(figure, "png")
  figure.set_layout_engine("none")  # the layout is made; the second file need not make it again
  return {"png": png, "svg": _save(figure, "svg")}


def _figure(height: float, ground: str):
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.2, height), dpi=160, layout="constrained", facecolor=ground)
  FigureCanvasAgg(figure)
  return figure, figure.add_subplot(facecolor=ground)


def _save(figure, form: str) -> bytes:
  from matplotlib import rc_context

  out = io.BytesIO()
  with rc_context({"svg.hashsalt": "jaxrlvr"}):  # the same figure is the same file
    figure.savefig(out, format=form, metadata={"svg": {"Date": None}, "png": {"Software": None}}[form])
  return out.getvalue()


def _curve(axes, line: Line):
  """The mean of the seeds' curves at steps that all of them have; dense ones as running means, thin what they are."""
  colour, dashes = style(line.arm)
  look = {"color": colour, "lw": 1.6, "dashes": dashes or (None, None)}
  if line.faint:
    look |= {"lw": 0.9, "alpha": 0.6}
  steps = sorted(set.intersection(*map(set, line.seeds)))
  raw = [[ys[step] for step in steps] for ys in line.seeds]
  half = 0 if line.sparse else len(steps) // 40
  curves = [[_mean(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))] for ys in raw]
  band = {step: (min(ys), max(ys)) for step, *ys in zip(steps, *curves, strict=True)} if len(raw) > 1 else line.band
  if band:
    axes.fill_between(list(band), *zip(*band.values(), strict=True), color=colour, alpha=0.13, lw=0)
  elif half:
    axes.plot(steps, raw[0], color=colour, lw=0.6, alpha=0.35)
  for ys in line.seeds:
    rest = [step for step in sorted(ys) if not steps or step >= steps[-1]]
    if len(line.seeds) > 1 and len(rest) > 1:
      axes.plot(rest, [ys[step] for step in rest], color=colour, lw=0.7, alpha=0.6)
  marks = {"marker": _MARKERS[line.arm % len(_MARKERS)], "ms": 2.4 if line.faint else 3.6} if line.sparse else {}
  return axes.plot(steps, [_mean(ys) for ys in zip(*curves, strict=True)], **look, **marks)[0]


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


def histogram(path: Path, bars: Sequence[int], title: str) -> None:
  """A bar chart of counts as PNG; the first bar stands for 0."""
  figure, axes = _figure(2.6, "white")
  axes.bar_label(axes.bar(range(len(bars)), bars, color=_COLOURS[0]), fontsize=6.5)
  _dress(axes, title, "samples that are right")
  axes.set_axisbelow(True)
  path.write_bytes(_save(figure, "png"))


def _dress(axes, title: str, below: str) -> None:
  axes.figure.suptitle(_plain(title, 60), x=0.02, ha="left", fontsize=8, fontweight="bold", color="#222222",
                       parse_math=False)  # fmt: skip
  axes.set_xlabel(below, fontsize=8, color="#555555")
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#999999")
  axes.tick_params(labelsize=7.5, colors="#555555", length=3)
  axes.yaxis.get_offset_text().set(fontsize=6.5, color="#555555")
  axes.grid(axis="y", color="#888888", alpha=0.22, lw=0.6)
  axes.locator_params(nbins=5)
  axes.margins(x=0.02)


def _plain(name: str, most: int = 40) -> str:
  """A label that the chart's font can draw: Latin and Greek, short, and not hidden for a leading underscore."""
  name = "".join(
    c if c < "\u02b0" or "Α" <= c <= "ω" else c.encode("ascii", "backslashreplace").decode()
    for c in visible(name, kept="")
  )
  return (" " if name.startswith("_") else "") + (name if len(name) <= most else name[: most - 3] + "...")
