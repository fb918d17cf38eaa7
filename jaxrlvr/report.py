"""What happened in each run: one HTML page that loads nothing, its charts as PNG and SVG, its tables as CSV."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrlvr import figures
from jaxrlvr.analysis.passk import interval, mean, paired_gain, redrawn
from jaxrlvr.analysis.saturation import drawn_gap, gap, value_at
from jaxrlvr.figures import visible
from jaxrlvr.logbook import read_jsonl, write_atomic
from jaxrlvr.results import Cell, Run, series
from jaxrlvr.types import InputError

ROSE = 0.05  # a training reward counts as risen if it rose by this share of its scale
WINDOW = 5  # steps whose mean is called the first and the last training reward
STORIES = 8  # runs, and no more, are each told in sentences
HEAD, TAIL = 1200, 500  # characters shown of a longer response
EMBEDDED = 1_500_000, 40  # characters of responses, and charts, that the page itself holds at most
Groups = Mapping[tuple[str, str], Sequence[Run]]  # runs of the seeds, by (setting, arm)


def write(
  folder: Path, title: str, cells: Sequence[Cell], evaluations: Mapping[str, Path], tail: int, samples: int
) -> Path:
  """Writes index.html (its path is returned), charts, tables and report.json.

  `evaluations`: runs of the stage evaluate by name; tail: of saturation, for runs that name none; samples: responses
  shown an arm and step.
  """
  names = [cell.name for cell in cells]
  if not cells or len(set(names)) < len(names):
    raise InputError(f"the report's runs are named {names}: give at least one rl run, and each name once")
  runs = [Run(cell, tail) for cell in cells]
  groups: dict[tuple[str, str], list[Run]] = {}
  for run in sorted(runs, key=lambda run: list(dict.fromkeys(r.setting for r in runs)).index(run.setting)):
    groups.setdefault((run.setting, run.arm), []).append(run)
  told = [_tell(run) for run in runs]
  lead = _lead(runs, told)
  shown, recorded, each = _responses(groups, samples)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for former in (path for form in ("png", "svg", "csv") for path in folder.glob(f"*.{form}")):
    former.unlink()  # of a report on other runs
  policies = [Run(Cell(name, workdir), tail) for name, workdir in evaluations.items()]
  charts, tables = _charts(folder, groups), _tables(groups, told, policies)
  for name, _, rows in tables:
    write_atomic(folder / f"{name}.csv", _csv(rows))
  numbers = {"title": title, "lead": lead, "arms": told, "charts": [c["file"] for c in charts],
             "tables": [name for name, *_ in tables], "responses": len(shown)}  # fmt: skip
  write_atomic(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
  page = _render(
    list(zip(runs, told, strict=True)) if len(runs) <= STORIES else [], charts, tables, shown, title=title, lead=lead,
    tail=" or ".join(sorted({str(run.tail) for run in runs})), recorded=recorded, each=each, rose=ROSE,
    settings=list(dict.fromkeys(run.setting for run in runs)),
  )  # fmt: skip
  write_atomic(folder / "index.html", page)
  return folder / "index.html"


# Telling one run


def _tell(run: Run) -> dict:
  """The numbers of a run on its first set, and what they say: kind, word, and text in plain sentences."""
  evals, start, end = run.evals, min(run.evals, default=None), max(run.evals, default=None)
  gain = (None, None, None, 0)
  if start != end:
    paired = _pair(*(run.problem_means(run.set, step) for step in (start, end)))
    gain = paired or (evals[end] - evals[start], None, None, 0)
  m = {
    "arm": run.name, "set": run.set, "K": run.K, "start_step": start, "start": evals.get(start), "end_step": end,
    "end": evals.get(end), "t_sat": run.t_sat, "notes": run.notes,
    **dict(zip(("gain", "low", "high", "paired_problems"), gain, strict=True)),
    **dict(zip(("reward_first", "reward_last"), _ends(run.series("reward")), strict=True)),
    **dict(zip(("true_first", "true_last"), _ends(run.series("true_reward")), strict=True)),
  }  # fmt: skip
  kind = _kind(m)
  parts = [_held_out_sentence(m)] if m["gain"] is not None else []
  parts += [_reward_sentence(m)] if m["reward_first"] is not None else []
  parts += [VERDICTS[kind][2], *(_side_effects(run, start, end) if m["gain"] is not None else [])]
  return m | {"kind": kind, "word": VERDICTS[kind][0], "text": " ".join(parts)}


def _pair(before: Mapping[str, float], after: Mapping[str, float]):
  """(gain, low, high, problems) over the problems that both have, None without any."""
  both = [problem for problem in before if problem in after]
  return (*paired_gain([before[p] for p in both], [after[p] for p in both]), len(both)) if both else None


def _ends(series: Mapping[int, float]) -> tuple[float | None, float | None]:
  values = list(series.values())
  width = max(1, min(WINDOW, len(values) // 2))
  return (mean(values[:width]), mean(values[-width:])) if values else (None, None)


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
  if m["t_sat"] is not None:
    told += f" and saturated at step {m['t_sat']}"
  return told + "."


def _side_effects(run: Run, start: int, end: int) -> list[str]:
  """Sentences on faithfulness, on a format that moved by ten points (it can pass for reasoning), on ungraded rows."""
  ends = {name: [run.rows[step].get(f"eval/{run.set}/{name}") for step in (start, end)]
          for name in ("faithful", "format", "unscored")}  # fmt: skip
  both = {name: values for name, values in ends.items() if None not in values}
  told = []
  if "faithful" in both:
    told.append("Traces that lead to their answer: {}% before, {}% after.".format(*map(_percent, both["faithful"])))
  if "format" in both and abs(both["format"][1] - both["format"][0]) >= 0.1:
    told.append("Responses with a boxed answer went from {}% to {}%, so part of the change may be format rather than"
                " reasoning.".format(*map(_percent, both["format"])))  # fmt: skip
  if any(both.get("unscored", ())):
    told.append("{}% of the first and {}% of the last responses could not be graded; they are left out, not counted"
                " as wrong.".format(*map(_percent, both["unscored"])))  # fmt: skip
  return told


def _lead(runs: Sequence[Run], told: Sequence[Mapping]) -> str:
  """The page's first paragraph: which runs did what and, of a few, how far the best ends above the others."""
  absent = [run.name for run in runs if not run.finished]
  if len(runs) > STORIES:
    arms, settings = (len({getattr(run, name) for run in runs}) for name in ("arm", "setting"))
    lead = f"{len(runs)} runs: {arms} arms under {settings} settings. The first table says what they did."
    return lead + (f" {len(absent)} of {len(runs)} runs are not there or not finished." if absent else "")
  named = {kind: [m["arm"] for m in told if m["kind"] == kind] for kind in VERDICTS}
  lead = "; ".join(f"{_list(names)} {VERDICTS[kind][1]}" for kind, names in named.items() if names) + "."
  best = max(zip(runs, told, strict=True), key=lambda pair: -1 if pair[1]["end"] is None else pair[1]["end"])
  best_P, above = best[0].problem_means(best[0].set, best[1]["end_step"]), []
  for run, m in zip(runs, told, strict=True):
    same = run is not best[0] and run.set == best[0].set
    if paired := _pair(run.problem_means(run.set, m["end_step"]), best_P) if same else None:
      ends = f"95% interval {_points(paired[1])} to {_points(paired[2])}"
      above.append(f"{_percent(paired[0])} points above {run.name} ({ends})")
  lead += f" On the same problems {best[0].name} ends {_list(above)}." if above else ""
  return lead + (f" Not finished yet: {_list(absent)}." if absent else "")


def _list(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def _points(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _number(value: float | None) -> str:
  return "–" if value is None else f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def _step(value: float | None) -> str:
  return "–" if value is None else f"{value:.0f}"


# Tables


class Value(NamedTuple):
  """A figure over the runs of a place with 95% intervals, over problems and over seeds; `show` writes it."""

  value: float | None
  low: float | None = None
  high: float | None = None
  seeds_low: float | None = None
  seeds_high: float | None = None
  show: Callable = _percent

  def small(self) -> list[str]:
    """The intervals in words, but for those that say no more than the value."""
    told = []
    for word, ends in (("", (self.low, self.high)), ("seeds ", (self.seeds_low, self.seeds_high))):
      low, high = map(self.show, ends)
      told += [f"{word}{low} to {high}"] if None not in ends and (low, high) != 2 * (self.show(self.value),) else []
    return told


def _value(values: Iterable[float | None], drawn: Sequence = (), show: Callable = _percent) -> Value:
  """Mean of what runs have; intervals from each run's redrawn figures (the same problems) and from redrawn runs."""
  known = [v for v in values if v is not None]
  if not known:
    return Value(None, show=show)
  drawn = [d for d in drawn if d is not None]
  ends = interval(np.mean(drawn, 0)) if len(drawn) == len(known) else (None, None)
  seeds = interval(redrawn([[v] for v in known])[:, 0]) if len(known) > 1 else (None, None)
  return Value(mean(known), *ends, *seeds, show)


def _logged(places: Sequence[tuple[Mapping[int, Mapping], int]], metric: str, show: Callable = _percent) -> Value:
  """A metric at (metrics by step, step) of each run, between two steps on the line; of one run with logged interval."""
  value = _value([value_at(series(rows, metric), step) for rows, step in places], show=show)
  told = places[0][0].get(places[0][1], {}) if len(places) == 1 else {}
  return value._replace(low=told.get(f"{metric}_low"), high=told.get(f"{metric}_high"))


def _tables(groups: Groups, told: Sequence[Mapping], policies: Sequence[Run]) -> list[tuple[str, str, list]]:
  """(file name, caption, rows {column: text, number or Value}) of each table that has a row."""
  sets = _names(run for some in (*groups.values(), policies) for run in some)
  first = sorted({m["set"] for m in told if m["set"]}) or ["no set"]
  made = [
    ("overview", f"At a glance: accuracy on {_list(first)} at the first and last evaluation, %, and what runs did.",
     _overview(groups, {m["arm"]: m for m in told}) if len(told) > STORIES else []),
    ("saturation", "Table 1. Until training saturates, and after: gains and residual in points.", _table_1(groups)),
    ("gap", "Large-small gap G(n', n), in points: accuracy with n' problems minus that with n, both at n's t_sat.",
     _gap_rows(groups)),
    *(
      (f"evaluations-{_slug(name)}", f"Accuracy on {name}, in % but for tokens (the paper's tables 3 to 7).",
       _evaluation_rows(name, groups, policies))
      for name in sets
    ),
    ("reasoning", "Judged responses, in % but for diversity and kappa.", _reasoning_rows(groups)),
    ("runs", "Every run.", _run_rows(groups, {m["arm"]: m for m in told}, policies)),
  ]  # fmt: skip
  return [one for one in made if one[2]]


def _names(runs: Iterable) -> list[str]:
  """Sets that any of the runs measured."""
  return list(dict.fromkeys(name for run in runs for name in run.sets))


def _overview(groups: Groups, told: Mapping[str, Mapping]) -> list[dict]:
  """A row an arm, a column a setting."""
  rows: dict[str, dict] = {}
  for (setting, arm), runs in groups.items():
    measured = [m for m in (told[run.name] for run in runs) if m["kind"] != "unmeasured"]
    kinds = Counter(VERDICTS[m["kind"]][0].lower() for m in measured)
    ends = " → ".join(_percent(mean([m[end] for m in measured])) for end in ("start", "end") if measured)
    did = ", ".join(f"{word} {n} of {len(measured)}" for word, n in kinds.most_common())
    rows.setdefault(arm, {"arm": arm})[setting or "accuracy"] = f"{ends}: {did}" if measured else "–"
  return list(rows.values())


def _table_1(groups: Groups) -> list[dict]:
  rows = []
  for (setting, arm), runs in groups.items():
    saturated = [run.t_sat for run in runs if run.t_sat is not None]
    place = {"setting": setting, "arm": arm, "set": "not evaluated", "saturated": f"{len(saturated)} of {len(runs)}",
             "t_sat": _value(saturated, show=_step)}  # fmt: skip
    paper = next((p for run in runs if (p := run.at("paper")) and p.get("expected")), None)
    says = {"the paper": f"{paper.get('figure')} ({paper.get('setting')}): {paper['expected']}"} if paper else {}
    note = "; ".join(dict.fromkeys(one.note for run in runs if (one := run.saturation(run.set)).note))
    for name in _names(runs):
      having = [run for run in runs if name in run.sets]
      found, drawn = [run.saturation(name) for run in having], [run.phases(name) for run in having]
      whole = [c[max(c)] - c[min(c)] if len(c) > 1 else None for c in (run.curve(name) for run in having)]
      gains = {"gain until t_sat": [one.gain for one in found], "residual": [one.residual for one in found],
               "gain to the end": whole}  # fmt: skip
      rows.append(place | {"set": name} | {
        column: _value(values, [d[i] for d in drawn], _points) for i, (column, values) in enumerate(gains.items())
      } | {"note": note, **says})  # fmt: skip
      note, says = "", {}  # once is enough
    rows += [] if _names(runs) else [place]
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
      value = _value(found, [drawn_gap(b.redrawn(name), a.redrawn(name), a.t_sat) for b, a in pairs], _points)
      rows.append({"arm": arm, "set": name, "between": f"{other} − {setting}", "n'": pairs[0][0].cell.n,
                   "n": pairs[0][1].cell.n, "pairs": len(pairs), "G(n', n)": value})  # fmt: skip
  return rows


_HEADINGS = {"format": "boxed", "faithful": "faithful", "mean_length": "tokens", "clipped": "cut off"}
_EVALUATED = re.compile(r"(avg|pass(?!@1$)|maj)@\d+|" + "|".join(_HEADINGS))
_MOMENTS = {"first": min, "t_sat": None, "best": lambda curve: max(curve, key=curve.get), "last": max}


def _evaluation_rows(name: str, groups: Groups, policies: Sequence[Run]) -> list[dict]:
  """First, t_sat, best and last evaluation of each place on one set, and what the stage evaluate measured."""
  found = []
  for (setting, arm), runs in groups.items():
    curves = [(run, curve) for run in runs if (curve := run.curve(name))]
    for at, of in _MOMENTS.items():
      places = [(run.rows, of(curve) if of else run.t_sat) for run, curve in curves]
      found.append(({"setting": setting, "arm": arm, "at": at}, [p for p in places if p[1] is not None]))
  found += [({"arm": policy.name, "at": "no RL"}, [(policy.rows, 0)]) for policy in policies if name in policy.sets]
  prefix, rows = f"eval/{name}/", []
  for place, places in found:
    place |= {"step": _value([step for _, step in places], show=_step)}
    keys = {key for metrics, _ in places for row in metrics.values() for key in row if key.startswith(prefix)}
    for metric in sorted(filter(_EVALUATED.fullmatch, (key.removeprefix(prefix) for key in keys)), key=_order):
      show = _step if metric == "mean_length" else _percent
      place[_HEADINGS.get(metric, metric)] = _logged(places, prefix + metric, show)
    rows += [place] if places else []
  return rows


def _order(metric: str) -> tuple:
  """avg@K, pass@k by k, maj@K, then the rest."""
  kind, _, k = metric.partition("@")
  return (("avg", "pass", "maj", *_HEADINGS).index(kind), int(k or 0))


_JUDGED = {  # heading: metric of a judged step, how it is written
  "faithful": ("F(1)/all", _percent), "in part": ("F(0.5)/all", _percent), "not": ("F(0)/all", _percent),
  "faithful, right": ("F(1)/correct", _percent), "faithful, wrong": ("F(1)/incorrect", _percent),
  "diversity": ("diversity", _number), "faithful diversity": ("faithful_diversity", _number),
  "labelled": ("labelled/all", _step), "missing": ("missing/all", _step), "kappa": ("kappa", _number),
}  # fmt: skip


def _reasoning_rows(groups: Groups) -> list[dict]:
  rows = []
  for (setting, arm), runs in groups.items():
    for step in sorted({step for run in runs for step in run.judged_steps}):
      places = [(run.rows, step) for run in runs if step in run.judged_steps]
      row = {"setting": setting, "arm": arm, "step": step, "runs": len(places)}
      rows.append(row | {name: _logged(places, f"judge/{metric}", show) for name, (metric, show) in _JUDGED.items()})
  return rows


def _run_rows(groups: Groups, told: Mapping[str, Mapping], policies: Sequence[Run]) -> list[dict]:
  rows = []
  for run in (run for runs in groups.values() for run in runs):
    ends = {f"{name} {end}": Value(told[run.name][f"{key}_{end}"], show=_number)
            for name, key in (("reward", "reward"), ("true reward", "true")) for end in ("first", "last")}  # fmt: skip
    rows.append({
      "run": run.name, "setting": run.setting, "arm": run.arm, "n": run.cell.n, "seed": run.cell.seed,
      "state": run.state, "steps": run.last, "t_sat": Value(run.t_sat, show=_step), **ends,
      "directory": str(run.workdir), "notes": " ".join(run.notes),
    })  # fmt: skip
  return rows + [{"run": p.name, "directory": str(p.workdir), "notes": " ".join(p.notes)} for p in policies]


def _columns(rows: Sequence[Mapping]) -> list[str]:
  """Columns in which any row says something."""
  said = {name for row in rows for name, v in row.items() if (v.value if isinstance(v, Value) else v) not in (None, "")}
  return list(dict.fromkeys(name for row in rows for name in row if name in said))


def _csv(rows: Sequence[Mapping]) -> str:
  """Shares in 0..1, ends of intervals in columns of their own; an empty field is an unknown value."""
  table = {}
  for name in _columns(rows):
    for i, end in enumerate(("", " low", " high", " seeds low", " seeds high")):
      column = [row[name][i] if isinstance(row.get(name), Value) else None if i else row.get(name) for row in rows]
      if not i or any(x is not None for x in column):
        table[name + end] = column
  out = io.StringIO()
  csv.writer(out, lineterminator="\n").writerows([table, *zip(*table.values(), strict=True)])
  return out.getvalue()


def _slug(name: str) -> str:
  return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")[:40] or "x"


# Responses

_FIELDS = "problem sample tokens stop answer truth label reward true_reward scored cause".split()


def _responses(groups: Groups, samples: int) -> tuple[list[dict], int, int]:
  """(responses shown, how many are recorded there, shown at most of a run and step): as many as fit into the page."""
  places, recorded = [], 0
  for run in (run for runs in groups.values() for run in runs):
    for where, step, path in _places(run):
      some, count = run.read(functools.partial(_place, run, where, step, samples), path, ([], 0))
      places.append(some)
      recorded += count
  each, lengths = samples, [[len(json.dumps(one)) for one in some] for some in places]
  while each > 1 and sum(sum(some[:each]) for some in lengths) > EMBEDDED[0]:
    each -= 1
  return [one for some in places for one in some[:each]], recorded, each


def _place(run: Run, where: str, step: int, samples: int, path: Path) -> tuple[list[dict], int]:
  """(responses of a file that are worth showing, how many it has)."""
  rows = read_jsonl(path)
  for row in rows if where == (run.judged_set or "training") else ():
    label = run.labels.get((step, row["problem"], row["sample"]))
    row["faithfulness"] = row.get("faithfulness") if label is None else label
  return [_response(run, where, step, row) for row in _pick(rows, samples)], len(rows)


def _places(run: Run) -> list[tuple[str, int, Path]]:
  """(set or "training", step, file): evaluations at first and last, training at first, t_sat and last, judged steps."""
  files = (run.workdir / "rollouts").glob("step_*.jsonl")
  trained = {int(path.stem[5:]): path for path in files if path.stem[5:].isdigit()}
  steps = [s for s in {min(trained, default=0), max(trained, default=0), run.t_sat} if s in trained]
  found = {("training", step) for step in steps} | {(run.set, s) for s in (*list(run.evals)[:1], *list(run.evals)[-1:])}
  found |= {(run.judged_set or "training", step) for step in run.judged_steps}
  files = [(w, s, trained.get(s) if w == "training" else run.eval_file(w, s)) for w, s in sorted(found)]
  return [place for place in files if place[2] is not None]


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


def _response(run: Run, where: str, step: int, row: Mapping) -> dict:
  """What the page shows of a recorded response, with nothing in it that moves a cursor or turns the writing."""
  text, prompt = row["text"], row.get("prompt") or row["problem"]
  left_out = max(0, len(text) - HEAD - TAIL)
  made = {name: row.get(name) for name in _FIELDS} | {
    "run": run.name, "setting": run.setting, "arm": run.arm, "where": where, "step": step, "left_out": left_out,
    "faithful": row.get("faithfulness"), "prompt": prompt[:HEAD] + (" …" if len(prompt) > HEAD else ""),
    "head": text[:HEAD] if left_out else text, "rest": text[-TAIL:] if left_out else "",
  }  # fmt: skip
  return {name: visible(value) if isinstance(value, str) else value for name, value in made.items()}


# Charts

_CHARTS = (  # file, title, metric, caption, scale; {set} and {K} are those of each evaluated set
  ("reward", "Training reward", "reward", "What the run was paid for.", 1),
  ("true-reward", "Training reward by the true labels", "true_reward", "The same rollouts, graded by the truth.", 1),
  ("eval", "Accuracy on {set}, avg@{K}, %", "eval/{set}/avg@{K}", "Never trained on.", 100),
  ("length", "Response length, tokens", "completions/mean_length", "Mean over a step's rollouts.", 1),
  ("kl", "KL to the starting policy, nats", "kl", "Mean over response tokens.", 1),
  ("faithful", "Faithful traces in training, %", "faithful", "Responses whose trace leads to the answer.", 100),
  ("eval-faithful", "Faithful traces on {set}, %", "eval/{set}/faithful", "Trace leads to the answer.", 100),
  ("judged-faithful", "Faithful, as judged: F(1), %", "judge/F(1)/all", "Judged responses labelled 1.", 100),
  ("judged-diversity", "Diversity of strategies", "judge/diversity", "As judged.", 1),
  ("judged-faithful-diversity", "Faithful diversity", "judge/faithful_diversity", "Of those labelled 1.", 1),
)


def _charts(folder: Path, groups: Groups) -> list[dict]:
  """Draws each metric for each setting that has values: PNG and SVG in the folder, {file, ...} for the page."""
  made: list[dict] = []
  arms = list(dict.fromkeys(arm for _, arm in groups))
  for setting in dict.fromkeys(setting for setting, _ in groups):
    shown = {arm: runs for (other, arm), runs in groups.items() if other == setting}
    runs = [run for some in shown.values() for run in some]
    misled = any(run.series("true_reward") != run.series("reward") for run in runs)
    for key, title, metric, caption, scale in _CHARTS:
      for name in _names(runs) if "{set}" in metric else [""]:
        found = (_line(arms.index(arm), arm, some, metric, name, scale) for arm, some in shown.items())
        lines = [line for line in found if line and (misled or metric != "true_reward")]
        if not lines:
          continue
        K = next((run.sets[name] for run in runs if name in run.sets), 0)
        told = title.format(set=name, K=K) + (f" · {setting}" if setting else "")
        file = "_".join([key, *(_slug(part) for part in (name, setting) if part)])
        file += f"_{len(made)}" if file in (one["file"] for one in made) else ""
        drawn = figures.draw(told, lines)
        for form, content in drawn.items():
          (folder / f"{file}.{form}").write_bytes(content)
        data = "data:image/png;base64," + base64.b64encode(drawn["png"]).decode()
        made.append({"file": file, "setting": setting, "caption": caption, "alt": _alt(told, lines),
                     "data": data if len(made) < EMBEDDED[1] else ""})  # fmt: skip
  return made


def _line(index: int, arm: str, runs: Sequence[Run], metric: str, set_name: str, scale: float) -> figures.Line | None:
  """The arm's curve over its seeds, None where no run has values."""
  names = [(run, metric.format(set=set_name, K=run.sets.get(set_name))) for run in runs]
  having = [(run, name) for run, name in names if run.series(name)]
  if not having:
    return None
  seeds = [{step: y * scale for step, y in run.series(name).items()} for run, name in having]
  low, high = (having[0][0].series(f"{having[0][1]}_{end}") for end in ("low", "high"))
  band = {step: (low[step] * scale, high[step] * scale) for step in seeds[0] if step in low and step in high}
  saturated = [run.t_sat for run, _ in having if run.t_sat is not None]
  sparse = metric.startswith(("eval/", "judge/"))
  return figures.Line(arm, index, seeds, band, mean(saturated) if saturated else None, sparse)


def _alt(title: str, lines: Sequence[figures.Line]) -> str:
  ends = []
  for line in lines:
    first, last = (mean([ys[of(ys)] for ys in line.seeds]) for of in (min, max))
    ends.append(f"{line.label}: first {_number(first)}, last {_number(last)}")
  return f"{title}, over steps. " + "; ".join(ends) + "."


# The page


def _render(stories: Sequence[tuple[Run, Mapping]], charts, tables, shown, **texts) -> str:
  import jinja2
  from markupsafe import Markup

  here = Path(__file__).parent
  env = jinja2.Environment(
    loader=jinja2.FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup: that is the template's own
  )  # fmt: skip
  arms = dict.fromkeys(row["arm"] for _, _, rows in tables for row in rows if "arm" in row)
  script, css = ((here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
  env.filters |= {
    "main": lambda v: v.show(v.value) if isinstance(v, Value) else "–" if v in (None, "") else str(v),
    "small": lambda v: v.small() if isinstance(v, Value) else [],
  }  # fmt: skip
  data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
  return env.get_template("report.html").render(
    stories=stories, charts=charts, tables=[(*table, _columns(table[2])) for table in tables],
    looks={arm: figures.style(index) for index, arm in enumerate(arms)}, script=Markup(script), css=Markup(css),
    hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(), responses=Markup(data),
    shown=len(shown), **texts,
  )  # fmt: skip
