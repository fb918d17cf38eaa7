"""What a run's numbers say: a conclusion in a word, what it means, and the report's first paragraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrlvr.analysis.passk import mean, paired_gain
from jaxrlvr.reporting.runs import RecordedRun

ROSE = 0.05  # a training reward counts as risen if it rose by this share of its scale
END_STEPS = 5  # steps whose mean is called the first and the last training reward
STORIES = 8  # runs, and no more, are each told of by name


def conclude(run: RecordedRun) -> dict:
  """The numbers of a run on its first set, and what they say: kind, word, and text in plain sentences."""
  evals, start, end = run.evals, min(run.evals, default=None), max(run.evals, default=None)
  gain = (None, None, None, 0)
  if start != end:
    paired = _pair(*(run.problem_means(run.set, step) for step in (start, end)))
    gain = paired or (evals[end] - evals[start], None, None, 0)
  reward, true, faithful = map(run.series, ("reward", "true_reward", f"eval/{run.set}/faithful"))
  m = {
    "arm": run.name, "set": run.set, "K": run.K, "start_step": start, "start": evals.get(start), "end_step": end,
    "end": evals.get(end), "t_sat": run.t_sat, "notes": run.notes,
    **dict(zip(("gain", "low", "high", "paired_problems"), gain, strict=True)),
    **dict(zip(("reward_first", "reward_last"), ends(reward), strict=True)),
    **dict(zip(("true_first", "true_last"), ends(true if true != reward else {}), strict=True)),
    "faithful_first": faithful.get(start), "faithful_last": faithful.get(end),
  }  # fmt: skip
  kind = "unpaid" if run.unpaid else "evaluated" if run.cell.evaluation and run.rows else _kind(m)
  means = "" if run.cell.evaluation else CONCLUSIONS[kind].meaning.format(most=percent(max(m["high"] or 0.0, 0.0)))
  text = " ".join([means, *(_cautions(run, start, end) if m["gain"] is not None else [])]).strip()
  return m | {"kind": kind, "word": CONCLUSIONS[kind].word, "text": text}


def _pair(before: Mapping[str, float], after: Mapping[str, float]):
  """(gain, low, high, problems) over the problems that both have, None without any."""
  both = [problem for problem in before if problem in after]
  return (*paired_gain([before[p] for p in both], [after[p] for p in both]), len(both)) if both else None


def ends(series: Mapping[int, float]) -> tuple[float | None, float | None]:
  """Returns the means of the first and the last END_STEPS values, of fewer where there are not twice as many."""
  values = list(series.values())
  width = max(1, min(END_STEPS, len(values) // 2))
  return (mean(values[:width]), mean(values[-width:])) if values else (None, None)


class Conclusion(NamedTuple):
  """What a run's numbers say of it, in the words of the report."""

  word: str
  of_runs: str  # what the lead says of such runs
  meaning: str  # what it means for one; {most}: the largest held-out gain that is not ruled out, in points


CONCLUSIONS = {
  "unpaid": Conclusion(
    "Not paid",
    "got no reward at all",
    "No response was paid anything at any step, so there was nothing to learn from.",
  ),
  "gained": Conclusion(
    "Gained",
    "gained on held-out problems",
    "What it learned carries over to held-out problems.",
  ),
  "memorised": Conclusion(
    "Memorised",
    "learned the training problems but not the task",
    "The reward rose, and held-out accuracy by {most} points at most: it memorised its training problems.",
  ),
  "misled": Conclusion(
    "Misled",
    "learned to please the reward without getting more answers right",
    "The reward rose while true accuracy in training did not, and held out it rose by {most} points at most: it"
    " learned what labels pay for.",
  ),
  "flat": Conclusion(
    "No change",
    "did not move measurably",
    "Neither the reward nor held-out accuracy rose measurably.",
  ),
  "unclear": Conclusion(
    "Unclear",
    "may have gained or not",
    "The reward rose, and the interval is too wide to tell whether held-out accuracy rose with it; evaluate on more"
    " problems.",
  ),
  "fell": Conclusion(
    "Fell",
    "got worse on held-out problems",
    "Training made it worse on held-out problems.",
  ),
  "open": Conclusion(
    "No interval",
    "changed by an amount that can't be judged",
    "Per-problem records are missing, so there is no interval, and this may be chance.",
  ),
  "unmeasured": Conclusion(
    "Not measured",
    "can't be judged for lack of two evaluations",
    "There are not two evaluations to compare.",
  ),
  "evaluated": Conclusion(
    "Evaluated",
    "was evaluated without RL",
    "There is one evaluation, and nothing to compare it with.",
  ),
}


def _kind(m: Mapping) -> str:
  """Key of CONCLUSIONS: a held-out gain counts by its interval, training reward by ROSE.

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


def _cautions(run: RecordedRun, start: int, end: int) -> list[str]:
  """Sentences on a format that moved by ten points (it can pass for reasoning), and on ungraded responses."""
  before, after = (run.series(f"eval/{run.set}/format").get(step) for step in (start, end))
  told = []
  if shared := run.held_out(run.set).shared:
    told.append(f"{shared} of its held-out problems are trained on too, so part of the change is not generalising.")
  if None not in (before, after) and abs(after - before) >= 0.1:
    told.append(f"Responses with a boxed answer went from {percent(before)}% to {percent(after)}%, so part of the"
                " change may be format rather than reasoning.")  # fmt: skip
  ungraded = [run.series(f"eval/{run.set}/unscored").get(step) for step in (start, end)]
  if any(ungraded):
    told.append("{}% of the first and {}% of the last responses could not be graded; they are left out, not counted"
                " as wrong.".format(*map(percent, ungraded)))  # fmt: skip
  return told


def lead(runs: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Mapping]) -> str:
  """The page's first paragraph: which runs did what and, of a few, how far the best ends above the others."""
  absent = [run.name for run in runs if not run.finished]
  if len(runs) > STORIES:
    arms, settings = (len({getattr(run, name) for run in runs}) for name in ("arm", "setting"))
    many = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in ((arms, "arm"), (settings, "setting"))]
    text = f"{len(runs)} runs: {many[0]} under {many[1]}. The first table says what they did."
    unpaid = sum(run.unpaid for run in runs)
    text += f" {unpaid} of {len(runs)} runs {CONCLUSIONS['unpaid'].of_runs}." if unpaid else ""
    return text + (f" {len(absent)} of {len(runs)} runs are not there or not finished." if absent else "")
  named = {kind: [run.name for run in runs if concluded[run]["kind"] == kind] for kind in CONCLUSIONS}
  text = "; ".join(f"{listed(names)} {CONCLUSIONS[kind].of_runs}" for kind, names in named.items() if names) + "."
  ends_P = {run: run.problem_means(run.set, concluded[run]["end_step"]) for run in runs}
  compared = [run for run in runs if not run.unlike]
  best = max(compared, key=lambda run: -1 if run.evals == {} else concluded[run]["end"])
  pairs = {run.name: _pair(ends_P[run], ends_P[best]) for run in compared if run is not best and run.set == best.set}
  above = [f"{percent(pair[0])} points above {name} (95% interval {points(pair[1])} to {points(pair[2])})"
           for name, pair in pairs.items() if pair and pair[0] > 0]  # fmt: skip
  text += f" On the same problems {best.name} ends {listed(above)}." if above else ""
  shared = [(run.name, run.held_out(run.set)) for run in runs]
  trained_on = [f"{name} ({found.shared} of {found.problems or 'its'})" for name, found in shared if found.shared]
  text += f" Trained on some of their held-out problems: {listed(trained_on)}." if trained_on else ""
  unlike = [run.name for run in runs if run.unlike]
  text += f" Not compared, as last evaluated at an earlier step: {listed(unlike)}." if unlike else ""
  return text + (f" Not finished yet: {listed(absent)}." if absent else "")


def lead_of_evaluations(policies: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Mapping]) -> str:
  """The first paragraph of a page without RL runs: accuracy on each policy's first set, and what is missing."""
  measured = [run for run in policies if concluded[run]["end"] is not None]
  by_set: dict[str, list[RecordedRun]] = {}
  for run in measured:
    by_set.setdefault(f"{run.set}, avg@{run.K}", []).append(run)
  sentences = []
  for name, runs in by_set.items():
    ranked = sorted(runs, key=lambda run: -concluded[run]["end"])
    some = [f"{run.name} {percent(concluded[run]['end'])}%" for run in ranked[:STORIES]]
    more = f" and {len(ranked) - STORIES} more below" if len(ranked) > STORIES else ""
    sentences.append(f"Right answers of {name}: {', '.join(some)}{more}.")
  absent = [run.name for run in policies if run not in measured]
  if absent:
    sentences.append(f"Not measured: {listed(absent)}.")
  return " ".join(sentences)


def checked(run: RecordedRun, set_name: str | None) -> str:
  """Whether problems of the set are trained on, as far as the run recorded it: for captions and behind "held out:"."""
  found = run.held_out(set_name)
  if not found.recorded:
    return f"not recorded {'whether' if run.finished else 'yet whether'} any of its problems is trained on"
  if not found.compared:
    return "not compared with training problems: none of the policy are on record"
  of = "its problems" if found.problems is None else f"its {found.problems} problems"
  told = f"{found.shared} of {of} trained on too" if found.shared else f"none of {of} is trained on"
  if found.left_out:
    told += f" ({found.left_out} shared with the training problems left out)"
  return told


def all_checked(runs: Sequence[RecordedRun], set_name: str) -> str:
  """What `checked` says of these runs: once where they agree, else with counts of runs."""
  counts = Counter(checked(run, set_name) for run in runs)
  if len(counts) == 1:
    return next(iter(counts))
  return "; ".join(f"{told} ({count} of {len(runs)} runs)" for told, count in counts.items())


def listed(names: Sequence[str]) -> str:
  return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def percent(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def points(value: float | None) -> str:
  return "–" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def three_digits(value: float | None) -> str:
  return "–" if value is None else f"{value:.3g}" if abs(value) >= 1 else f"{value:.2f}"


def whole(value: float | None) -> str:
  return "–" if value is None else f"{value:.0f}"
