"""What happened in each run, as one HTML page that loads nothing, its charts as PNG, and its numbers as JSON."""

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

ROSE = 0.05  # a training reward that rose by less, as a share of its scale, is said not to have risen
WINDOW = 5  # steps whose mean is called the first and the last training reward
HEAD, TAIL = 1200, 500  # characters shown of a longer response
_AVG = re.compile(r"eval/(.+)/avg@(\d+)")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe if colour-blind
_DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 1), (9, 3))  # on, off in line widths
_MARKERS = "os^Dvp"


@dataclasses.dataclass(frozen=True)
class Arm:
  """One curve of the report: a run of the stage rl."""

  name: str
  workdir: Path


def write(
  folder: Path, title: str, arms: Sequence[Arm], evaluations: Mapping[str, Path], tail: int, samples: int
) -> Path:
  """Writes index.html, *.png and report.json; returns the page's path. tail: of saturation; samples: shown an arm."""
  if not arms:
    raise InputError("report.runs is empty, and a report needs an arm; give it 'arm name=run directory'")
  runs = [_Run.read(arm, index) for index, arm in enumerate(arms)]
  sets = list(dict.fromkeys(name for run in runs for name in run.sets))
  measures = [_measure(run, name, tail) for run in runs for name in sets or [None] if not sets or name in run.sets]
  main = {run.name: next((m for m in measures if m["arm"] == run.name), None) for run in runs}
  told = [_tell(run, main[run.name]) for run in runs]
  lead = _lead(runs, told, main)
  others = [_other(name, Path(workdir)) for name, workdir in evaluations.items()]
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  charts = _charts(folder, runs, main, sets)
  shown = [_samples(run, samples) for run in runs]
  numbers = {
    "title": title, "lead": lead, "arms": [run.facts() | tale for run, tale in zip(runs, told, strict=True)],
    "measures": measures, "evaluations": others, "charts": [c["file"] for c in charts],
    "samples": [{k: s[k] for k in ("arm", "file", "problem", "sample")} for group in shown for s in group],
  }  # fmt: skip
  write_atomic(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
  page = _render(
    title=title, lead=lead, runs=runs, told=told, measures=measures, main=main, charts=charts, shown=shown,
    others=others, many_sets=len(sets) > 1, tail=tail,
  )  # fmt: skip
  write_atomic(folder / "index.html", page)
  return folder / "index.html"


# Reading


@dataclasses.dataclass(frozen=True)
class _Run:
  name: str
  workdir: Path
  index: int
  rows: Mapping[int, Mapping]  # of metrics.jsonl, by step
  config: Mapping
  finished: bool
  notes: list[str]

  @classmethod
  def read(cls, arm: Arm, index: int) -> _Run:
    workdir, notes = Path(arm.workdir), []
    rows = {row["step"]: row for row in _rows(workdir / "metrics.jsonl", notes)}
    config, summary = _json(workdir / "config.json", notes), _json(workdir / "summary.json", notes)
    run = cls(arm.name, workdir, index, dict(sorted(rows.items())), config, bool(summary.get("finished")), notes)
    if not workdir.is_dir():
      notes.append(f"There is no directory {workdir}.")
    elif not rows:
      notes.append("Nothing was logged: metrics.jsonl is absent or empty.")
    if rows and not run.finished:
      planned = _at(config, "rl.steps")
      notes.append(f"Not finished: this is its state after step {run.last} of {planned or 'an unknown number'}.")
    return run

  @property
  def last(self) -> int:
    return max(self.rows, default=0)

  @property
  def sets(self) -> dict[str, int]:
    """Samples a problem of each evaluated set, as the names of the metrics say."""
    return _sets(name for row in self.rows.values() for name in row)

  @property
  def colour(self) -> str:
    return _COLOURS[self.index % len(_COLOURS)]

  @property
  def dash(self) -> tuple:
    return _DASHES[(self.index + self.index // len(_COLOURS)) % len(_DASHES)]

  def series(self, name: str) -> dict[int, float]:
    """{step: value} where it was logged and finite."""
    return {step: row[name] for step, row in self.rows.items() if row.get(name) is not None}

  def records(self, set_name: str, step: int) -> list[dict]:
    return _rows(self.workdir / "evals" / f"{set_name}_{step:06d}.jsonl", self.notes)

  def facts(self) -> dict:
    wanted = {"problems": "problems.count", "steps": "rl.steps", "reward": "rl.reward", "seed": "seed"}
    found = {name: _at(self.config, path) for name, path in wanted.items()}
    return {"arm": self.name, "workdir": str(self.workdir), "finished": self.finished, "notes": self.notes} | found


def _rows(path: Path, notes: list[str]) -> list[dict]:
  try:
    return read_jsonl(path)
  except (ValueError, OSError) as error:
    notes.append(f"{path.name} can't be read and was left out: {error}.")
    return []


def _json(path: Path, notes: list[str]) -> dict:
  try:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  except (ValueError, OSError) as error:
    notes.append(f"{path.name} can't be read and was left out: {error}.")
    return {}


def _at(config: Mapping, path: str):
  for name in path.split("."):
    config = config.get(name) if isinstance(config, Mapping) else None
  return config


def _sets(names: Iterable[str]) -> dict[str, int]:
  return {found[1]: int(found[2]) for found in map(_AVG.fullmatch, names) if found}


# Measuring


def _measure(run: _Run, set_name: str | None, tail: int) -> dict:
  """All numbers of one arm on one set (None: it was never evaluated); shares in 0..1, None where unknown."""
  rewards, true = run.series("reward"), run.series("true_reward")
  first, last = _ends(rewards)
  true_first, true_last = _ends(true)
  K = run.sets[set_name] if set_name is not None else 0
  evals = run.series(f"eval/{set_name}/avg@{K}")
  found = saturation([rewards.get(t) for t in range(1, max(rewards, default=0) + 1)], evals, tail)
  start, end = min(evals, default=None), max(evals, default=None)
  best = max(evals, key=evals.__getitem__, default=None)
  gain, low, high, paired = _gain(run, set_name, start, end)
  prefix = f"eval/{set_name}/"
  names = [n for row in run.rows.values() for n in row if n.startswith(prefix) and not n.endswith(("_low", "_high"))]
  change = {n.removeprefix(prefix): [run.rows[s].get(n) for s in (start, end)] for n in dict.fromkeys(names)}
  return {
    "arm": run.name, "set": set_name, "K": K, "start_step": start, "end_step": end, "best_step": best,
    "start": evals.get(start), "end": evals.get(end), "best": evals.get(best), "change": change,
    "gain": gain, "low": low, "high": high, "paired_problems": paired,
    "reward_first": first, "reward_last": last, "reward_max": found.reward_max,
    "true_first": true_first, "true_last": true_last,
    "t_sat": found.t_sat, "gain_at_t_sat": found.gain, "residual": found.residual,
    "between": found.between, "saturation_note": found.note,
  }  # fmt: skip


def _gain(run: _Run, set_name: str | None, start: int | None, end: int | None):
  """(gain, low, high, problems) from the per-problem records of both ends; without them the plain difference."""
  if start is None or start == end:
    return None, None, None, 0
  before, after = (problem_means(run.records(set_name, step)) for step in (start, end))
  both = [problem for problem in before if problem in after]
  if not both:
    ends = run.series(f"eval/{set_name}/avg@{run.sets[set_name]}")
    return ends[end] - ends[start], None, None, 0
  return *paired_gain([before[p] for p in both], [after[p] for p in both]), len(both)


def _ends(series: Mapping[int, float]) -> tuple[float | None, float | None]:
  values = list(series.values())
  width = max(1, min(WINDOW, len(values) // 2))
  return (_mean(values[:width]), _mean(values[-width:])) if values else (None, None)


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


def _other(name: str, workdir: Path) -> dict:
  """Figures of one measured policy, by set: {name, note, sets: {set: {metric: value}}}."""
  notes: list[str] = []
  summary = _json(workdir / "summary.json", notes)
  sets = {s: {"K": k} for s, k in _sets(summary).items()}
  for s, found in sets.items():
    prefix = f"eval/{s}/"
    found |= {n.removeprefix(prefix): v for n, v in summary.items() if n.startswith(prefix)}
  note = " ".join(notes) or ("" if sets else f"Not measured: {workdir / 'summary.json'} holds no evaluation.")
  return {"name": name, "workdir": str(workdir), "note": note, "sets": sets}


# Telling


VERDICTS = {  # kind: (one arm in a word, how a count of such arms goes on)
  "gained": ("Gained", "gained on held-out problems"),
  "memorised": ("Memorised", "learned the training problems but not the task"),
  "misled": ("Misled", "learned to please the reward without getting more answers right"),
  "flat": ("No change", "did not move measurably"),
  "fell": ("Fell", "got worse on held-out problems"),
  "open": ("No interval", "changed by an amount that can't be judged: per-problem records are missing"),
  "unmeasured": ("Not measured", "can't be compared: fewer than two evaluations"),
}


def _kind(m: Mapping | None) -> str:
  """Key of VERDICTS. Held-out gain counts by its interval, training reward by ROSE of its scale."""
  if m is None or m["gain"] is None:
    return "unmeasured"
  if m["low"] is None:
    return "open"
  if m["low"] > 0 or m["high"] < 0:
    return "gained" if m["low"] > 0 else "fell"
  if not _rose(m["reward_first"], m["reward_last"]):
    return "flat"
  return "memorised" if m["true_first"] is None or _rose(m["true_first"], m["true_last"]) else "misled"


def _rose(first: float | None, last: float | None) -> bool:
  return first is not None and last - first >= ROSE * max(1.0, abs(first), abs(last))


_MEANING = {
  "gained": "So what it learned carries over to problems it was not trained on.",
  "memorised": "The reward rose and held-out accuracy did not: it memorised its training problems.",
  "misled": "The reward rose and the share of truly right answers did not, in training or held out: it learned what the"
  " labels pay for.",
  "flat": "Neither the training reward nor held-out accuracy moved measurably.",
  "fell": "Training made it worse on problems it was not trained on.",
  "open": "Without per-problem records there is no interval, so this may be chance.",
  "unmeasured": "There are not two evaluations to compare, so nothing can be said about held-out problems.",
}


def _tell(run: _Run, m: Mapping | None) -> dict:
  """{kind, word, text}: what happened in one arm, in sentences made of its numbers."""
  kind, parts = _kind(m), []
  if m and m["gain"] is not None:
    interval = f"; 95 % interval {_points(m['low'])} to {_points(m['high'])}" if m["low"] is not None else ""
    problems = f" over {m['paired_problems']} problems" if m["paired_problems"] else ""
    parts.append(
      f"Held-out accuracy (avg@{m['K']} on {m['set']}{problems}) went from {_percent(m['start'])} % at step"
      f" {m['start_step']} to {_percent(m['end'])} % at step {m['end_step']} ({_points(m['gain'])} points{interval})."
    )
  if m and m["reward_first"] is not None:
    parts.append(_reward_sentence(m))
  parts.append(_MEANING[kind])
  parts += _side_effects(m["change"]) if m and m["gain"] is not None else []
  return {"kind": kind, "word": VERDICTS[kind][0], "text": " ".join(parts), "notes": run.notes}


def _reward_sentence(m: Mapping) -> str:
  told = f"Its training reward went from {_number(m['reward_first'])} to {_number(m['reward_last'])}"
  if m["true_first"] is not None and abs(m["reward_last"] - m["true_last"]) >= ROSE:
    told += f" (by the true labels from {_number(m['true_first'])} to {_number(m['true_last'])})"
  if m["t_sat"] is not None and m["reward_max"] > 0:
    told += f" and saturated at step {m['t_sat']}"
  return told + "."


def _side_effects(change: Mapping) -> list[str]:
  """Sentences on what else moved by ten points or more: faithfulness, and format, which can pass for reasoning."""
  told = []
  before, after = change.get("faithful", (None, None))
  if None not in (before, after):
    told.append(f"Traces that truly lead to their answer: {_percent(before)} % before, {_percent(after)} % after.")
  before, after = change.get("format", (None, None))
  if None not in (before, after) and abs(after - before) >= 0.1:
    told.append(
      f"Responses with a boxed answer went from {_percent(before)} % to {_percent(after)} %, so part of the change may"
      " be format rather than reasoning."
    )
  return told


def _lead(runs: Sequence[_Run], told: Sequence[Mapping], main: Mapping[str, Mapping | None]) -> str:
  """The page's first paragraph: how many arms did what, and how the best ends against the others."""
  counts = {kind: [r.name for r, t in zip(runs, told, strict=True) if t["kind"] == kind] for kind in VERDICTS}
  parts = [f"{_names(names)} {VERDICTS[kind][1]}" for kind, names in counts.items() if names]
  lead = "; ".join(parts) + "."
  unfinished = [run.name for run in runs if not run.finished]
  if unfinished:
    lead += f" {_names(unfinished)}: not finished, so read {'it' if len(unfinished) == 1 else 'them'} as they stand."
  ended = sorted((m for m in main.values() if m and m["end"] is not None), key=lambda m: -m["end"])
  by_name = {run.name: run for run in runs}
  for other in ended[1:]:
    best = ended[0]
    if other["set"] != best["set"]:
      continue
    a, b = (problem_means(by_name[m["arm"]].records(m["set"], m["end_step"])) for m in (other, best))
    both = [p for p in a if p in b]
    if both:
      gain, low, high = paired_gain([a[p] for p in both], [b[p] for p in both])
      lead += (
        f" {best['arm']} ends {_points(gain)} points against {other['arm']} on the same {len(both)} problems"
        f" (95 % interval {_points(low)} to {_points(high)})."
      )
  return lead


def _names(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}"


def _points(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
  return "–" if value is None else f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def visible(text: str) -> str:
  """The text with every character that prints nothing, moves the cursor or turns the writing direction as a sign."""
  return "".join(c if c.isprintable() or c in "\n\t" else _sign(ord(c)) for c in text)


def _sign(code: int) -> str:
  return chr(0x2400 + code) if code < 32 else f"⟨U+{code:04X}⟩"


# Sample rollouts


def _samples(run: _Run, count: int) -> list[dict]:
  """About a third each of the first evaluation, the last one and the last training step; every kind in turn."""
  places = []
  for set_name in list(run.sets)[:1]:
    steps = list(run.series(f"eval/{set_name}/avg@{run.sets[set_name]}"))
    for step in dict.fromkeys(steps[:1] + steps[-1:]):
      places.append((f"Evaluation at step {step}", run.workdir / "evals" / f"{set_name}_{step:06d}.jsonl"))
  trained = sorted((run.workdir / "rollouts").glob("step_*.jsonl"))[-1:]
  places += [(f"Training step {int(path.stem.removeprefix('step_'))}", path) for path in trained]
  chosen = []
  for left, (where, path) in zip(range(len(places), 0, -1), places, strict=True):
    quota = math.ceil((count - len(chosen)) / left)
    chosen += [_sample(run, where, path, row) for row in _pick(_rows(path, run.notes), quota)]
  return chosen


def _pick(rows: Sequence[Mapping], count: int) -> list[Mapping]:
  """`count` rows: right and wrong, faithful and not, paid and unpaid in turn; of each kind spread over the problems."""
  kinds: dict[tuple, dict] = {}
  for row in rows:
    kind = tuple(str(row.get(name)) for name in ("true_reward", "faithfulness", "reward"))
    kinds.setdefault(kind, {}).setdefault(row["problem"], row)
  queues = [list(by_problem.values()) for _, by_problem in sorted(kinds.items(), reverse=True)]
  queues = [queue[:: max(1, len(queue) // max(count, 1))] for queue in queues]
  turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
  return turns[:count]


def _sample(run: _Run, where: str, path: Path, row: Mapping) -> dict:
  text = row["text"]
  left_out = max(0, len(text) - HEAD - TAIL)
  head, rest = (text[:HEAD], text[-TAIL:]) if left_out else (text, "")
  names = ("problem", "sample", "tokens", "stop", "answer", "truth", "label", "reward", "true_reward", "faithfulness")
  found = {name: row.get(name) for name in names}
  prompt = row.get("prompt") or ""
  return found | {
    "arm": run.name, "where": where, "file": str(path.relative_to(run.workdir)), "head": head, "rest": rest,
    "left_out": left_out, "prompt": prompt[:HEAD] + (" …" if len(prompt) > HEAD else ""),
    "scored": row.get("scored", True), "cause": row.get("cause") or "",
  }  # fmt: skip


# Charts


@dataclasses.dataclass(frozen=True)
class _Chart:
  file: str
  title: str
  caption: str
  key: Callable[[_Run], str]  # name of the metric
  scale: float = 1.0
  dots: bool = False  # evaluated now and then, not every step


def _wanted(sets: Sequence[str]) -> list[_Chart]:
  charts = [
    _Chart("reward.png", "Training reward", "What the run was paid for.", lambda run: "reward"),
    _Chart("true_reward.png", "Training reward by the true labels", "The same rollouts, graded right.",
           lambda run: "true_reward"),
  ]  # fmt: skip
  for i, name in enumerate(sets):
    charts.append(_Chart(
      f"heldout{i or ''}.png", f"Accuracy on {name}, avg@K, %", "Problems outside of training; band: 95 % interval.",
      lambda run, name=name: f"eval/{name}/avg@{run.sets.get(name, 0)}", 100.0, True,
    ))  # fmt: skip
  if sets:
    charts.append(_Chart(
      "faithful.png", f"Faithful traces on {sets[0]}, %", "Responses whose trace leads to the stated answer.",
      lambda run: f"eval/{sets[0]}/faithful", 100.0, True,
    ))  # fmt: skip
  return [
    *charts,
    _Chart("length.png", "Response length, tokens", "Mean over a step's rollouts.",
           lambda run: "completions/mean_length"),
    _Chart("kl.png", "KL to the starting policy, nats", "Mean over response tokens.", lambda run: "kl"),
  ]  # fmt: skip


def _charts(folder: Path, runs: Sequence[_Run], main: Mapping, sets: Sequence[str]) -> list[dict]:
  """Draws each chart that any arm has values for: its PNG beside the page, and {file, title, caption, alt, data}."""
  made = []
  for chart in _wanted(sets):
    series = [run.series(chart.key(run)) for run in runs]
    if not any(series):
      continue
    png = _draw(chart, runs, series, [(main[run.name] or {}).get("t_sat") for run in runs])
    (folder / chart.file).write_bytes(png)
    ends = [f"{r.name}: {_number(list(s.values())[0] * chart.scale)} to {_number(list(s.values())[-1] * chart.scale)}"
            for r, s in zip(runs, series, strict=True) if s]  # fmt: skip
    alt = f"{chart.title} over steps. First to last value of " + "; ".join(ends) + "."
    data = "data:image/png;base64," + base64.b64encode(png).decode()
    made.append({"file": chart.file, "title": chart.title, "caption": chart.caption, "alt": alt, "data": data})
  return made


def _draw(chart: _Chart, runs: Sequence[_Run], series: Sequence[Mapping], saturated: Sequence[int | None]) -> bytes:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(4.2, 2.9), dpi=180, layout="constrained", facecolor="none")
  FigureCanvasAgg(figure)
  axes = figure.add_subplot(facecolor="none")
  handles, names = [], []
  for run, values, t_sat in zip(runs, series, saturated, strict=True):
    if not values:
      continue
    handles.append(_curve(axes, chart, run, values))
    names.append(_plain(run.name))
    if t_sat is not None:
      axes.axvline(t_sat, color=run.colour, lw=0.9, alpha=0.75, dashes=(1, 2.5))
  low, high = axes.get_ylim()
  axes.set_ylim(min(0.0, low) if min(min(v.values(), default=0) for v in series) < 0 else 0.0, high)
  _dress(axes, chart.title)
  legend = figure.legend(handles, names, loc="outside lower center", ncols=min(3, len(names)), frameon=False,
                         fontsize=7.5, handlelength=3.2, labelcolor="#333333")  # fmt: skip
  for text in legend.get_texts():
    text.set_parse_math(False)
  out = io.BytesIO()
  figure.savefig(out, format="png", metadata={"Software": None})
  return out.getvalue()


def _curve(axes, chart: _Chart, run: _Run, values: Mapping[int, float]):
  """One arm's line: each step thin and their running mean thick, or dots with their interval as a band."""
  steps, ys = list(values), [v * chart.scale for v in values.values()]
  style = {"color": run.colour, "lw": 1.6, "dashes": run.dash or (None, None)}
  if chart.dots:
    ends = [run.series(chart.key(run) + end) for end in ("_low", "_high")]
    held = [s for s in steps if s in ends[0] and s in ends[1]]
    if held:
      axes.fill_between(
        held, *([end[s] * chart.scale for s in held] for end in ends), color=run.colour, alpha=0.13, lw=0
      )
    return axes.plot(steps, ys, marker=_MARKERS[run.index % len(_MARKERS)], ms=3.6, **style)[0]
  half = len(ys) // 40
  if half:
    axes.plot(steps, ys, color=run.colour, lw=0.6, alpha=0.35)
  smooth = [_mean(ys[max(0, i - half) : i + half + 1]) for i in range(len(ys))]
  return axes.plot(steps, smooth, **style)[0]


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
  """A label the chart's font can draw: ASCII, short, and never hidden by matplotlib for a leading underscore."""
  name = visible(name).encode("ascii", "backslashreplace").decode()
  return (" " if name.startswith("_") else "") + (name if len(name) <= 40 else name[:37] + "...")
