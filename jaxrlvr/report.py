"""What happened in each run: one HTML page that loads nothing, its charts as PNG, and its numbers as JSON."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jaxrlvr.analysis.passk import paired_gain, problem_means
from jaxrlvr.analysis.saturation import saturation
from jaxrlvr.logbook import read_jsonl, write_atomic
from jaxrlvr.types import InputError

ROSE = 0.05  # a training reward counts as risen if it rose by this share of its scale
WINDOW = 5  # steps whose mean is called the first and the last training reward
HEAD, TAIL = 1200, 500  # characters shown of a longer response
_AVG = re.compile(r"eval/(?!(?:in|out-of)-domain/)(.+)/avg@(\d+)")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One curve of the report: a run of the stage rl."""

  name: str
  workdir: Path


def write(
  folder: Path, title: str, arms: Sequence[Arm], evaluations: Mapping[str, Path], tail: int, samples: int
) -> Path:
  """Writes index.html (its path is returned), *.png and report.json; tail: of saturation, samples: shown an arm."""
  names = [arm.name for arm in arms]
  if not arms or len(set(names)) < len(names):
    raise InputError(f"report.runs names the arms {names}: give at least one, each once, as 'arm name=run directory'")
  runs = [_Run(arm.name, Path(arm.workdir), index) for index, arm in enumerate(arms)]
  told = [_tell(run, _measure(run, tail)) for run in runs]
  lead, others = _lead(runs, told), [_other(name, Path(workdir)) for name, workdir in evaluations.items()]
  shown = [_samples(run, samples) for run in runs]
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  charts = _charts(folder, runs, told)
  origin = ("arm", "file", "problem", "sample")
  numbers = {"title": title, "lead": lead, "arms": told, "evaluations": others, "charts": [c["file"] for c in charts]}
  numbers["samples"] = [{name: s[name] for name in origin} for group in shown for s in group]
  write_atomic(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
  page = _render(runs, told, others, charts, shown, title=title, lead=lead, tail=tail)
  write_atomic(folder / "index.html", page)
  return folder / "index.html"


# Reading


class _Run:
  """A run directory as far as it can be read; `notes` says what couldn't."""

  def __init__(self, name: str, workdir: Path, index: int):
    self.name, self.workdir, self.index, self.notes = name, workdir, index, []
    rows = sorted(_read(read_jsonl, workdir / "metrics.jsonl", self.notes, []), key=lambda row: row["step"])
    self.rows = {row["step"]: _finite(row) for row in rows}
    self.config = _read(_json, workdir / "config.json", self.notes, {})
    self.summary = _read(_json, workdir / "summary.json", self.notes, {})
    self.finished = bool(self.summary.get("finished"))
    self.last, self.planned = max(self.rows, default=0), self.at("rl.steps")
    sets = _sets(name for row in self.rows.values() for name in row)
    self.set, self.K = next(iter(sets.items()), (None, 0))
    self.evals = self.series(f"eval/{self.set}/avg@{self.K}")
    if not workdir.is_dir():
      self.notes.append(f"There is no directory {workdir}.")
    elif not rows:
      self.notes.append("Nothing was logged: metrics.jsonl is absent or empty.")
    elif not self.finished:
      self.notes.append(f"Not finished: this is its state after step {self.last} of {self.planned or 'unknown'}.")
    if len(sets) > 1:
      self.notes.append(f"This page shows {self.set} and leaves out {_list(list(sets)[1:])}.")
    if self.at("paper.expected"):
      self.notes.append("The paper, {figure} ({setting}): {expected}.".format(**self.at("paper")))

  def at(self, path: str):
    """A value of the run's config, None where it isn't there."""
    value = self.config | {"summary": self.summary}
    for name in path.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    return value

  def series(self, name: str) -> dict[int, float]:
    """{step: value} where it was logged and finite."""
    return {step: row[name] for step, row in self.rows.items() if row.get(name) is not None}

  def eval_file(self, step: int) -> Path:
    return self.workdir / "evals" / f"{self.set}_{step:06d}.jsonl"

  def problem_means(self, step: int | None) -> dict[str, float]:
    return {} if step is None else problem_means(_read(read_jsonl, self.eval_file(step), self.notes, []))


def _read(how: Callable, path: Path, notes: list[str], otherwise):
  try:
    return how(path)
  except (ValueError, OSError) as error:
    notes.append(f"{path.name} can't be read and was left out: {error}.")
    return otherwise


def _json(path: Path) -> dict:
  return _finite(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _finite(row: Mapping) -> dict:
  return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _sets(names: Iterable[str]) -> dict[str, int]:
  """Evaluated sets and their samples a problem, as the names of metrics tell them."""
  return {found[1]: int(found[2]) for found in map(_AVG.fullmatch, names) if found}


def _figures(row: Mapping, set_name: str) -> dict:
  prefix = f"eval/{set_name}/"
  return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def _other(name: str, workdir: Path) -> dict:
  """Figures of one measured policy: {name, note, sets: {set: {"K", metric: value}}}."""
  notes: list[str] = []
  summary = _read(_json, workdir / "summary.json", notes, {})
  sets = {s: {"K": K} | _figures(summary, s) for s, K in _sets(summary).items()}
  if not sets and not notes:
    notes.append(f"Not measured: there is no evaluation in {workdir / 'summary.json'}.")
  return {"name": name, "workdir": str(workdir), "note": " ".join(notes), "sets": sets}


# Measuring


def _measure(run: _Run, tail: int) -> dict:
  """All numbers of one arm; shares in 0..1, None where unknown."""
  rewards, true, evals = run.series("reward"), run.series("true_reward"), run.evals
  found = saturation([rewards.get(t) for t in range(1, max(rewards, default=0) + 1)], evals, tail)
  start, end = min(evals, default=None), max(evals, default=None)
  best = max(evals, key=evals.__getitem__, default=None)
  figures = [_figures(run.rows[step], run.set) if step is not None else {} for step in (start, end)]
  return {
    "arm": run.name, "workdir": str(run.workdir), "finished": run.finished, "step": run.last, "set": run.set,
    "K": run.K, "start_step": start, "start": evals.get(start), "best_step": best, "best": evals.get(best),
    "end_step": end, "end": evals.get(end), "figures_start": figures[0], "figures_end": figures[1],
    **dict(zip(("gain", "low", "high", "paired_problems"), _gain(run, start, end), strict=True)),
    **dict(zip(("reward_first", "reward_last"), _ends(rewards), strict=True)),
    **dict(zip(("true_first", "true_last"), _ends(true), strict=True)),
    "t_sat": found.t_sat, "reward_max": found.reward_max, "gain_at_t_sat": found.gain, "residual": found.residual,
    "read_between": found.between, "saturation_note": found.note,
  }  # fmt: skip


def _gain(run: _Run, start: int | None, end: int | None):
  """(gain, low, high, problems) paired by problem; the plain difference where an end has no records."""
  if start == end:
    return None, None, None, 0
  paired = _pair(run.problem_means(start), run.problem_means(end))
  return paired or (run.evals[end] - run.evals[start], None, None, 0)


def _pair(before: Mapping[str, float], after: Mapping[str, float]):
  """(gain, low, high, problems) over the problems that both have, None without any."""
  both = [problem for problem in before if problem in after]
  return (*paired_gain([before[p] for p in both], [after[p] for p in both]), len(both)) if both else None


def _ends(series: Mapping[int, float]) -> tuple[float | None, float | None]:
  values = list(series.values())
  width = max(1, min(WINDOW, len(values) // 2))
  return (_mean(values[:width]), _mean(values[-width:])) if values else (None, None)


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


# Telling

VERDICTS = {  # kind: (in a word, what the lead says of such arms, what it means for one arm)
  "gained": ("Gained", "gained on held-out problems", "What it learned carries over to problems it never trained on."),
  "memorised": ("Memorised", "learned the training problems but not the task",
                "The reward rose while held-out accuracy did not: it memorised its training problems."),
  "misled": ("Misled", "learned to please the reward without getting more answers right",
             "The reward rose while true accuracy did not, in training or held out: it learned what labels pay for."),
  "flat": ("No change", "did not move measurably", "Neither the reward nor held-out accuracy rose measurably."),
  "unclear": ("Unclear", "may have gained or not", "The reward rose, and the interval is too wide to tell whether"
              " held-out accuracy rose with it; evaluate on more problems."),
  "fell": ("Fell", "got worse on held-out problems", "Training made it worse on problems it never trained on."),
  "open": ("No interval", "changed by an amount that can't be judged",
           "Per-problem records are missing, so there is no interval, and this may be chance."),
  "unmeasured": ("Not measured", "can't be judged for lack of two evaluations",
                 "There are not two evaluations to compare."),
}  # fmt: skip


def _kind(m: Mapping) -> str:
  """Key of VERDICTS: a held-out gain counts by its interval, training reward by ROSE.

  Only an interval that rules out a gain as large as the reward's can say that held-out accuracy did not follow it.
  """
  if m["gain"] is None:
    return "unmeasured"
  if m["low"] is None:
    return "open"
  if m["low"] > 0 or m["high"] < 0:
    return "gained" if m["low"] > 0 else "fell"
  if not _rose(m["reward_first"], m["reward_last"]):
    return "flat"
  if m["high"] >= m["reward_last"] - m["reward_first"]:
    return "unclear"
  return "memorised" if m["true_first"] is None or _rose(m["true_first"], m["true_last"]) else "misled"


def _rose(first: float | None, last: float | None) -> bool:
  return first is not None and last - first >= ROSE * max(1.0, abs(first), abs(last))


def _tell(run: _Run, m: dict) -> dict:
  """The numbers with what they say: kind, word, and text in plain sentences."""
  kind = _kind(m)
  parts = [_held_out_sentence(m)] if m["gain"] is not None else []
  parts += [_reward_sentence(m)] if m["reward_first"] is not None else []
  parts += [VERDICTS[kind][2], *_side_effects(m)]
  return m | {"kind": kind, "word": VERDICTS[kind][0], "text": " ".join(parts), "notes": run.notes}


def _held_out_sentence(m: Mapping) -> str:
  interval = f"; 95% interval {_points(m['low'])} to {_points(m['high'])}" if m["low"] is not None else ""
  problems = f" over {m['paired_problems']} problems" if m["paired_problems"] else ""
  return (
    f"Accuracy on {m['set']} (avg@{m['K']}{problems}) went from {_percent(m['start'])}% at step {m['start_step']} to"
    f" {_percent(m['end'])}% at step {m['end_step']}: {_points(m['gain'])} points{interval}."
  )


def _reward_sentence(m: Mapping) -> str:
  told = f"Its training reward went from {_number(m['reward_first'])} to {_number(m['reward_last'])}"
  if m["true_first"] is not None and abs(m["reward_last"] - m["true_last"]) >= ROSE:
    told += f" (by the true labels from {_number(m['true_first'])} to {_number(m['true_last'])})"
  if m["t_sat"] is not None and m["reward_max"] > 0:
    told += f" and saturated at step {m['t_sat']}"
  return told + "."


def _side_effects(m: Mapping) -> list[str]:
  """Sentences on faithfulness, on a format that moved by ten points (it can pass for reasoning), on ungraded rows."""
  told = []
  first, last = (m["figures_start"], m["figures_end"]) if m["gain"] is not None else ({}, {})
  both = {name: (first[name], last[name]) for name in first if None not in (first[name], last.get(name))}
  if "faithful" in both:
    told.append("Traces that lead to their answer: {}% before, {}% after.".format(*map(_percent, both["faithful"])))
  if "format" in both and abs(both["format"][1] - both["format"][0]) >= 0.1:
    told.append(
      "Responses with a boxed answer went from {}% to {}%, so part of the change may be format rather than"
      " reasoning.".format(*map(_percent, both["format"]))
    )
  if any(both.get("unscored", ())):
    told.append("{}% of the first and {}% of the last responses could not be graded; they are left out, not counted"
                " as wrong.".format(*map(_percent, both["unscored"])))  # fmt: skip
  return told


def _lead(runs: Sequence[_Run], told: Sequence[Mapping]) -> str:
  """The page's first paragraph: which arms did what, and how far the best ends above the others."""
  named = {kind: [m["arm"] for m in told if m["kind"] == kind] for kind in VERDICTS}
  lead = "; ".join(f"{_list(names)} {VERDICTS[kind][1]}" for kind, names in named.items() if names) + "."
  best = max(zip(runs, told, strict=True), key=lambda pair: -1 if pair[1]["end"] is None else pair[1]["end"])
  best_P, above = best[0].problem_means(best[1]["end_step"]), []
  for run, m in zip(runs, told, strict=True):
    paired = _pair(run.problem_means(m["end_step"]), best_P) if run is not best[0] and run.set == best[0].set else None
    if paired:
      interval = f"95% interval {_points(paired[1])} to {_points(paired[2])}"
      above.append(f"{_percent(paired[0])} points above {run.name} ({interval})")
  lead += f" On the same problems {best[0].name} ends {_list(above)}." if above else ""
  unfinished = [run.name for run in runs if not run.finished]
  return lead + (f" Not finished yet: {_list(unfinished)}." if unfinished else "")


def _list(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def _points(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
  return "–" if value is None else f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def _whole(value: float | None) -> str:
  return "–" if value is None else f"{value:.0f}"


def visible(text: str) -> str:
  """The text with a sign for every character that prints nothing, moves the cursor or turns the writing direction."""
  return "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)


# Sample responses


def _samples(run: _Run, count: int) -> list[dict]:
  """About a third each of the first evaluation, the last one and the last training step."""
  steps = list(dict.fromkeys([*list(run.evals)[:1], *list(run.evals)[-1:]]))
  places = [(f"Evaluation at step {step}", run.eval_file(step)) for step in steps]
  trained = sorted((run.workdir / "rollouts").glob("step_*.jsonl"))[-1:]
  places += [(f"Training at step {path.stem.removeprefix('step_').lstrip('0')}", path) for path in trained]
  chosen: list[dict] = []
  for left, (where, path) in zip(range(len(places), 0, -1), places, strict=True):
    rows = _pick(_read(read_jsonl, path, run.notes, []), math.ceil((count - len(chosen)) / left))
    chosen += [_sample(run, where, path, row) for row in rows]
  return chosen


def _pick(rows: Sequence[Mapping], count: int) -> list[Mapping]:
  """`count` rows: right and wrong, faithful and not, paid and unpaid in turn; those of a kind from many problems."""
  kinds: dict[tuple, dict] = {}
  for row in rows:
    kind = tuple(str(row.get(name)) for name in ("true_reward", "faithfulness", "reward"))
    kinds.setdefault(kind, {}).setdefault(row["problem"], row)
  alike = {score: sorted((kind for kind in kinds if kind[0] == score), reverse=True) for score, *_ in kinds}
  order = sorted(sorted(kinds, reverse=True), key=lambda kind: alike[kind[0]].index(kind))  # right and wrong alternate
  queues = [list(kinds[kind].values()) for kind in order]
  queues = [queue[:: max(1, len(queue) // max(count, 1))] for queue in queues]
  turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
  return turns[:count]


def _sample(run: _Run, where: str, path: Path, row: Mapping) -> dict:
  names = ("problem", "sample", "tokens", "stop", "answer", "truth", "label", "reward", "true_reward", "faithfulness",
           "scored", "cause")  # fmt: skip
  text, prompt = row["text"], row.get("prompt") or row["problem"]
  left_out = max(0, len(text) - HEAD - TAIL)
  return {name: row.get(name) for name in names} | {
    "arm": run.name, "where": where, "file": str(path.relative_to(run.workdir)), "left_out": left_out,
    "head": text[:HEAD] if left_out else text, "rest": text[-TAIL:] if left_out else "",
    "prompt": prompt[:HEAD] + (" …" if len(prompt) > HEAD else ""),
  }  # fmt: skip


# Charts

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe if colour-blind
_DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))  # on, off in line widths
_MARKERS = "os^Dvp"
_CHARTS = (  # file, title, metric, caption; {set} and {K} are the run's; shares of an evaluation are drawn in %
  ("reward.png", "Training reward", "reward", "What the run was paid for."),
  ("true_reward.png", "Training reward by the true labels", "true_reward", "The same rollouts, graded by the truth."),
  ("heldout.png", "Accuracy on {set}, avg@{K}, %", "eval/{set}/avg@{K}", "Never trained on. Band: 95% interval."),
  ("length.png", "Response length, tokens", "completions/mean_length", "Mean over a step's rollouts."),
  ("kl.png", "KL to the starting policy, nats", "kl", "Mean over response tokens."),
  ("faithful.png", "Faithful traces on {set}, %", "eval/{set}/faithful", "Responses whose trace leads to the answer."),
)


def _style(run: _Run) -> tuple[str, tuple]:
  """(colour, dashes) of an arm: no two of the first 36 share both."""
  turn, place = divmod(run.index, len(_COLOURS))
  return _COLOURS[place], _DASHES[(place + turn) % len(_DASHES)]


def _charts(folder: Path, runs: Sequence[_Run], told: Sequence[Mapping]) -> list[dict]:
  """Draws each chart that any arm has values for: PNG in the folder, and {file, caption, alt, data} for the page."""
  made = []
  for file, title, metric, caption in _CHARTS:
    scale = 100.0 if metric.startswith("eval/") else 1.0
    lines = []
    for run, m in zip(runs, told, strict=True):
      name = metric.format(set=run.set, K=run.K)
      lines += [(run, m, name, run.series(name))] if run.series(name) else []
    if not lines:
      continue
    title = title.format(set=lines[0][0].set, K=lines[0][0].K)
    png = _draw(title, lines, scale)
    (folder / file).write_bytes(png)
    ends = [(run.name, [_number(y * scale) for y in values.values()]) for run, _, _, values in lines]
    alt = f"{title}, over steps. " + "; ".join(f"{name}: first {ys[0]}, last {ys[-1]}" for name, ys in ends) + "."
    data = "data:image/png;base64," + base64.b64encode(png).decode()
    made.append({"file": file, "caption": caption, "alt": alt, "data": data})
  return made


def _draw(title: str, lines: Sequence[tuple], scale: float) -> bytes:
  """PNG of one chart; its ground is transparent, so that the page can turn it dark."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.2, 2.9), dpi=180, layout="constrained", facecolor="none")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot(facecolor="none")
  handles = [_curve(axes, run, name, values, scale) for run, _, name, values in lines]
  low, high = axes.get_ylim()
  axes.set_ylim(low if any(v < 0 for *_, values in lines for v in values.values()) else 0.0, high)
  for run, m, *_ in lines:
    if m["t_sat"] is not None:
      axes.axvline(m["t_sat"], color=_style(run)[0], lw=0.9, alpha=0.8, dashes=(1, 2.5))
      axes.text(m["t_sat"], 0.02, f" t_sat {m['t_sat']}", transform=axes.get_xaxis_transform(), rotation=90,
                ha="right", va="bottom", fontsize=6.5, color=_style(run)[0])  # fmt: skip
  _dress(axes, title)
  legend = figure.legend(handles, [_plain(run.name) for run, *_ in lines], loc="outside lower center", fontsize=7.5,
                         ncols=min(3, len(lines)), frameon=False, handlelength=3.2, labelcolor="#333333")  # fmt: skip
  for text in legend.get_texts():
    text.set_parse_math(False)
  out = io.BytesIO()
  figure.savefig(out, format="png", metadata={"Software": None})
  return out.getvalue()


def _curve(axes, run: _Run, name: str, values: Mapping[int, float], scale: float):
  """One arm's line: evaluations as marks with their interval as a band; steps thin, and thick their running mean."""
  colour, dashes = _style(run)
  steps, ys = list(values), [v * scale for v in values.values()]
  style = {"color": colour, "lw": 1.6, "dashes": dashes or (None, None)}
  if name.startswith("eval/"):
    low, high = run.series(f"{name}_low"), run.series(f"{name}_high")
    band = [(step, low[step] * scale, high[step] * scale) for step in steps if step in low and step in high]
    if band:
      axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.13, lw=0)
    return axes.plot(steps, ys, marker=_MARKERS[run.index % len(_MARKERS)], ms=3.6, **style)[0]
  half = len(ys) // 40
  if half:
    axes.plot(steps, ys, color=colour, lw=0.6, alpha=0.35)
  smooth = [_mean(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]
  return axes.plot(steps, smooth, **style)[0]


def histogram(path: Path, bars: Sequence[int], title: str) -> None:
  """A bar chart of counts as PNG; the first bar stands for 0."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.2, 2.6), dpi=180, layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.bar_label(axes.bar(range(len(bars)), bars, color=_COLOURS[0]), fontsize=6.5)
  _dress(axes, title)
  axes.set_xlabel("samples that are right", fontsize=7.5)
  axes.set_axisbelow(True)
  figure.savefig(path, metadata={"Software": None})


def _dress(axes, title: str) -> None:
  axes.set_title(_plain(title), loc="left", fontsize=9, fontweight="bold", color="#222222", parse_math=False)
  axes.set_xlabel("step", fontsize=8, color="#555555")
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color("#999999")
  axes.tick_params(labelsize=7.5, colors="#555555", length=3)
  axes.grid(axis="y", color="#888888", alpha=0.22, lw=0.6)
  axes.locator_params(nbins=5)
  axes.margins(x=0.02)


def _plain(name: str) -> str:
  """A label that the chart's font can draw: ASCII, short, and not hidden by matplotlib for a leading underscore."""
  name = visible(name).encode("ascii", "backslashreplace").decode()
  return (" " if name.startswith("_") else "") + (name if len(name) <= 40 else name[:37] + "...")


# The page


def _arrow(show: Callable, first, last) -> str:
  return "–" if first is None and last is None else f"{show(first)} → {show(last)}"


def _gain_row(m: Mapping) -> dict[str, str]:
  """Cells of one arm in the table of gains, by heading."""
  interval = f" ({_points(m['low'])} to {_points(m['high'])})" if m["low"] is not None else ""
  between = f" ({'–'.join(map(str, sorted(set(m['read_between']))))})" if m["gain_at_t_sat"] is not None else ""
  return {
    "training reward": _arrow(_number, m["reward_first"], m["reward_last"]),
    "by true labels": _arrow(_number, m["true_first"], m["true_last"]),
    "start": _percent(m["start"]),
    "best (step)": f"{_percent(m['best'])} ({m['best_step']})" if m["best"] is not None else "–",
    "end": _percent(m["end"]),
    "gain (95% interval)": _points(m["gain"]) + interval,
    "t_sat": "–" if m["t_sat"] is None else str(m["t_sat"]),
    "gain at t_sat (steps)": _points(m["gain_at_t_sat"]) + between,
    "residual": _points(m["residual"]),
  }


_HEADINGS = {"format": "boxed answer", "faithful": "faithful trace", "mean_length": "tokens", "clipped": "cut off"}


def _figure_cells(figures: Sequence[Mapping]) -> dict[str, str]:
  """Cells of an evaluation (or of the first and the last) by heading: pass@k by k, but for 1 = avg@K, then the rest."""
  names = [name for name in figures[-1] if re.fullmatch(r"(pass|maj)@[0-9]+|" + "|".join(_HEADINGS), name)]
  ks = sorted((name for name in names if name.startswith("pass@")), key=lambda name: int(name[5:]))
  names = [name for name in ks if name != "pass@1"] + [name for name in names if name not in ks]
  cells = {}
  for name in names:
    told = [(_whole if name == "mean_length" else _percent)(one.get(name)) for one in figures]
    cells[_HEADINGS.get(name, name)] = " → ".join(told)
  return cells


def _other_rows(other: Mapping) -> list[tuple[str, dict[str, str]]]:
  """One row a set: avg@K with its interval, and the rest."""
  rows = []
  for name, found in other["sets"].items():
    avg = f"avg@{found['K']}"
    ends = [found.get(f"{avg}_{end}") for end in ("low", "high")]
    interval = " ({} to {})".format(*map(_percent, ends)) if None not in ends else ""
    rows.append((other["name"], {"set": name, avg: _percent(found[avg]) + interval} | _figure_cells([found])))
  return rows


def _bars(told: Sequence[Mapping]) -> dict[str, dict[str, float]]:
  """Where each arm's zero, gain and interval lie on one scale for all, in percent of the bar's width."""
  known = [m for m in told if m["low"] is not None]
  low, high = min([0.0, *(m["low"] for m in known)]), max([1e-9, *(m["high"] for m in known)])

  def at(x: float) -> float:
    return round(4 + 92 * (x - low) / (high - low), 2)

  spots = {"zero": lambda m: 0, "left": lambda m: m["low"], "right": lambda m: m["high"], "dot": lambda m: m["gain"]}
  return {m["arm"]: {spot: at(of(m)) for spot, of in spots.items()} for m in known}


def _render(runs: Sequence[_Run], told: Sequence[Mapping], others: Sequence[Mapping], charts, shown, **texts) -> str:
  import jinja2

  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup: that is the template's own
  )  # fmt: skip
  env.filters |= {"points": _points, "number": _number}
  quality = [(m["arm"], _figure_cells([m["figures_start"], m["figures_end"]])) for m in told if m["figures_end"]]
  return env.get_template("report.html").render(
    arms=list(zip(runs, told, shown, strict=True)), charts=charts, bars=_bars(told), others=others,
    styles={run.name: (colour, [2 * d for d in dashes]) for run in runs for colour, dashes in [_style(run)]},
    gains=[(m["arm"], _gain_row(m)) for m in told], quality=quality,
    policies=[row for other in others for row in _other_rows(other)], window=WINDOW, rose=ROSE, **texts,
  )  # fmt: skip
