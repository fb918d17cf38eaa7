"""Draws a conclusion from each run's numbers, and writes the report's first paragraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxrlvr.analysis.passk import mean, paired_gain
from jaxrlvr.reporting.runs import RecordedRun
from jaxrlvr.reporting.wording import listed, percent, points

ROSE = 0.05  # a training reward counts as risen if it rose by this share of its scale
END_STEPS = 5  # the first and the last training reward are means over this many steps
STORIES = 8  # up to so many runs, the report speaks of each by name
_FORMAT_MOVED = 0.1  # a change in the share of boxed answers by this much may pass for reasoning


class Conclusion(NamedTuple):
  """A run's numbers on its first evaluated set, and what they say; None where a number is unknown.

  The interval of the gain is a 95 % bootstrap interval over problems. The rewards and true rewards are means over the
  first and the last 5 training steps; the true ones are None where they equal the rewards at every step.
  """

  arm: str  # the run's name
  set: str | None  # the evaluated set; None: the run has no evaluation
  K: int  # samples of each problem; 0 without an evaluation
  start_step: int | None  # the step of the first evaluation
  start: float | None  # avg@K there, as a share from 0 to 1
  end_step: int | None  # the step of the last evaluation; start_step where there is only one
  end: float | None  # avg@K there
  t_sat: int | None  # the step at which the training reward saturates; None: it did not, or did not rise
  notes: list[str]  # sentences on what could not be read and on how the run ended
  gain: float | None  # end - start, over paired_problems if there are any; None without two evaluations
  low: float | None  # the lower end of the gain's interval; None without paired problems
  high: float | None  # the upper end of the gain's interval; None without paired problems
  paired_problems: int  # problems that both evaluations recorded; 0: there is no interval
  reward_first: float | None  # mean training reward of the first steps
  reward_last: float | None  # mean training reward of the last steps
  true_first: float | None  # mean true reward of the first steps
  true_last: float | None  # mean true reward of the last steps
  faithful_first: float | None  # share of faithful responses at start
  faithful_last: float | None  # share of faithful responses at end
  # "unpaid", "evaluated", "unmeasured", "open", "gained", "fell", "flat", "unclear", "memorised" or "misled", the keys
  # of CONCLUSIONS; `conclude` says when each holds.
  kind: str = ""
  word: str = ""  # the kind, as the report calls it
  text: str = ""  # what it means, in plain sentences


class _PairedGain(NamedTuple):
  """A difference of two evaluations, with its 95 % interval over the problems that both recorded."""

  gain: float | None  # the later accuracy minus the earlier one, as a share; None without two evaluations
  low: float | None  # the lower end of the interval; None where per-problem records are missing
  high: float | None  # the upper end of the interval
  problems: int  # problems that both recorded; 0: there is no interval


def _paired_gain(before: Mapping[str, float], after: Mapping[str, float]) -> _PairedGain | None:
  """Returns after minus before, {problem: accuracy} each, over the problems in both; None where there is none."""
  shared = [problem for problem in before if problem in after]
  if not shared:
    return None
  gain = paired_gain([before[problem] for problem in shared], [after[problem] for problem in shared])
  return _PairedGain(gain.gain, gain.low, gain.high, len(shared))


def conclude(run: RecordedRun) -> Conclusion:
  """Returns the numbers of a run on its first evaluated set, and the conclusion drawn from them.

  The gain is the last evaluation minus the first. If both recorded their responses, it is taken over the problems that
  both recorded, and has a 95 % interval. `kind` is the first of these that holds:
    unpaid      there were training steps, and no response was paid anything but 0
    evaluated   it is a run of the stage evaluate, with figures
    unmeasured  there are not two evaluations
    open        the gain has no interval, as responses were not recorded
    gained      the interval of the gain lies above 0
    fell        it lies below 0
    flat        the training reward did not rise by 0.05 of its scale, which is 1 or, if that is larger, its own size
    unclear     the upper end of the interval is at least the rise of the training reward
    memorised   the true reward in training rose in the same sense, or equals the training reward
    misled      otherwise: the training reward rose, and the true reward did not
  """
  numbers = _numbers_of(run)
  kind = _kind(run, numbers)
  sentences = []
  if not run.cell.evaluation:
    largest_gain = percent(max(numbers.high or 0.0, 0.0))
    sentences.append(CONCLUSIONS[kind].meaning.format(most=largest_gain))
  if numbers.gain is not None:
    sentences += _cautions(run, numbers.start_step, numbers.end_step)
  return numbers._replace(kind=kind, word=CONCLUSIONS[kind].word, text=" ".join(sentences))


def _numbers_of(run: RecordedRun) -> Conclusion:
  """Returns a run's numbers on its first evaluated set; kind, word and text are still ""."""
  start, end = min(run.evals, default=None), max(run.evals, default=None)
  gain = _gain_between(run, start, end)
  rewards, true_rewards = run.series("reward"), run.series("true_reward")
  if true_rewards == rewards:
    true_rewards = {}
  reward_first, reward_last = first_and_last(rewards)
  true_first, true_last = first_and_last(true_rewards)
  faithful = run.series(f"eval/{run.set}/faithful")
  return Conclusion(
    arm=run.name,
    set=run.set,
    K=run.K,
    start_step=start,
    start=run.evals.get(start),
    end_step=end,
    end=run.evals.get(end),
    t_sat=run.t_sat,
    notes=run.notes,
    gain=gain.gain,
    low=gain.low,
    high=gain.high,
    paired_problems=gain.problems,
    reward_first=reward_first,
    reward_last=reward_last,
    true_first=true_first,
    true_last=true_last,
    faithful_first=faithful.get(start),
    faithful_last=faithful.get(end),
  )


def _gain_between(run: RecordedRun, start: int | None, end: int | None) -> _PairedGain:
  """Returns the accuracy at step `end` minus that at step `start`, the last and the first evaluation of the run."""
  if start == end:
    return _PairedGain(None, None, None, 0)
  paired = _paired_gain(run.problem_means(run.set, start), run.problem_means(run.set, end))
  return paired or _PairedGain(run.evals[end] - run.evals[start], None, None, 0)


def first_and_last(series: Mapping[int, float]) -> tuple[float | None, float | None]:
  """Returns the means of the first and of the last 5 values of a curve; (None, None) for an empty curve.

  series: the curve, {step: value}, with ascending steps. If it has fewer than 10 values, the means are over its first
  and its last half; of a single value, both are that value.
  """
  values = list(series.values())
  if not values:
    return None, None
  width = max(1, min(END_STEPS, len(values) // 2))
  return mean(values[:width]), mean(values[-width:])


class Wording(NamedTuple):
  """The words in which the report states a kind of conclusion."""

  word: str  # how tables name the conclusion
  of_runs: str  # the predicate of a sentence whose subject is the names of runs
  meaning: str  # sentences on one run; {most} is replaced by the largest gain that is not ruled out, in points


CONCLUSIONS: dict[str, Wording] = {
  "unpaid": Wording(
    "Not paid",
    "got no reward at all",
    "No response was paid anything at any step, so there was nothing to learn from.",
  ),
  "gained": Wording(
    "Gained",
    "gained on held-out problems",
    "What it learned carries over to held-out problems.",
  ),
  "memorised": Wording(
    "Memorised",
    "learned the training problems but not the task",
    "The reward rose, and held-out accuracy by {most} points at most: it memorised its training problems.",
  ),
  "misled": Wording(
    "Misled",
    "learned to please the reward without getting more answers right",
    "The reward rose while true accuracy in training did not, and held out it rose by {most} points at most: it"
    " learned what labels pay for.",
  ),
  "flat": Wording(
    "No change",
    "did not move measurably",
    "Neither the reward nor held-out accuracy rose measurably.",
  ),
  "unclear": Wording(
    "Unclear",
    "may have gained or not",
    "The reward rose, and the interval is too wide to tell whether held-out accuracy rose with it; evaluate on more"
    " problems.",
  ),
  "fell": Wording(
    "Fell",
    "got worse on held-out problems",
    "Training made it worse on held-out problems.",
  ),
  "open": Wording(
    "No interval",
    "changed by an amount that can't be judged",
    "Per-problem records are missing, so there is no interval, and this may be chance.",
  ),
  "unmeasured": Wording(
    "Not measured",
    "can't be judged for lack of two evaluations",
    "There are not two evaluations to compare.",
  ),
  "evaluated": Wording(
    "Evaluated",
    "was evaluated without RL",
    "There is one evaluation, and nothing to compare it with.",
  ),
}


def _kind(run: RecordedRun, numbers: Conclusion) -> str:
  """Returns the key of CONCLUSIONS that holds for a run.

  A held-out gain or loss counts if its interval excludes 0, and a training reward counts as risen by `_rose`. That
  held-out accuracy did not follow the reward is only said where the interval rules out a gain as large as the reward's.
  """
  if run.unpaid:
    return "unpaid"
  if run.cell.evaluation and run.rows:
    return "evaluated"
  if numbers.gain is None:
    return "unmeasured"
  if numbers.low is None:
    return "open"
  if numbers.low > 0:
    return "gained"
  if numbers.high < 0:
    return "fell"
  if not _rose(numbers.reward_first, numbers.reward_last):
    return "flat"
  if numbers.high >= numbers.reward_last - numbers.reward_first:
    return "unclear"
  if numbers.true_first is None or _rose(numbers.true_first, numbers.true_last):
    return "memorised"
  return "misled"


def _rose(first: float | None, last: float | None) -> bool:
  """Returns whether a reward rose by ROSE of its scale, which is the larger of 1 and its own size."""
  return first is not None and last - first >= ROSE * max(1.0, abs(first), abs(last))


def _cautions(run: RecordedRun, start: int, end: int) -> list[str]:
  """Returns sentences on what else may explain a change between two evaluated steps.

  These are held-out problems that are trained on, a share of boxed answers that moved, and ungraded responses.
  """
  sentences = []
  shared = run.held_out(run.set).shared
  if shared:
    sentences.append(
      f"{shared} of its held-out problems are trained on too, so part of the change is not generalising."
    )
  formats = run.series(f"eval/{run.set}/format")
  before, after = formats.get(start), formats.get(end)
  if before is not None and after is not None and abs(after - before) >= _FORMAT_MOVED:
    sentences.append(
      f"Responses with a boxed answer went from {percent(before)}% to {percent(after)}%, so part of the change may be "
      "format rather than reasoning."
    )
  unscored = run.series(f"eval/{run.set}/unscored")
  before, after = unscored.get(start), unscored.get(end)
  if before or after:
    sentences.append(
      f"{percent(before)}% of the first and {percent(after)}% of the last responses could not be graded; they are left "
      "out, not counted as wrong."
    )
  return sentences


def lead_of_rl_runs(runs: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Conclusion]) -> str:
  """Writes the first paragraph of a report on RL runs, as plain text in sentences.

  runs: at least one. concluded: the conclusion on each of them. For up to STORIES = 8 runs it names the runs that came
  to each conclusion; by how many points the best one ends above each run on the same set that it beats, with 95 %
  intervals over the problems that both recorded; the runs that are trained on held-out problems; those that are not
  compared, as they were last evaluated at an earlier step; and those that are not finished. For more runs it gives the
  numbers of arms, settings, runs without reward and runs that are not finished.
  """
  if len(runs) > STORIES:
    return _lead_of_many(runs)
  sentences = [_sentence_of_conclusions(runs, concluded)]
  compared = [run for run in runs if not run.ends_earlier]
  best = max(compared, key=lambda run: concluded[run].end if run.evals else -1)
  above = _leads_over_others(best, compared, concluded)
  if above:
    sentences.append(f"On the same problems {best.name} ends {listed(above)}.")
  trained_on = []
  for run in runs:
    held_out = run.held_out(run.set)
    if held_out.shared:
      trained_on.append(f"{run.name} ({held_out.shared} of {held_out.problems or 'its'})")
  if trained_on:
    sentences.append(f"Trained on some of their held-out problems: {listed(trained_on)}.")
  unlike = [run.name for run in runs if run.ends_earlier]
  if unlike:
    sentences.append(f"Not compared, as last evaluated at an earlier step: {listed(unlike)}.")
  unfinished = [run.name for run in runs if not run.finished]
  if unfinished:
    sentences.append(f"Not finished yet: {listed(unfinished)}.")
  return " ".join(sentences)


def _lead_of_many(runs: Sequence[RecordedRun]) -> str:
  """Returns the first paragraph of a report on more than STORIES runs."""
  arms = _count(len({run.arm for run in runs}), "arm")
  settings = _count(len({run.setting for run in runs}), "setting")
  sentences = [f"{len(runs)} runs: {arms} under {settings}. The first table says what they did."]
  unpaid = sum(run.unpaid for run in runs)
  if unpaid:
    sentences.append(f"{unpaid} of {len(runs)} runs {CONCLUSIONS['unpaid'].of_runs}.")
  unfinished = sum(not run.finished for run in runs)
  if unfinished:
    sentences.append(f"{unfinished} of {len(runs)} runs are not there or not finished.")
  return " ".join(sentences)


def _count(number: int, word: str) -> str:
  """Returns a number with a word in the singular or the plural."""
  return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _sentence_of_conclusions(runs: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Conclusion]) -> str:
  """Returns a sentence that names the runs with each conclusion."""
  clauses = []
  for kind, wording in CONCLUSIONS.items():
    names = [run.name for run in runs if concluded[run].kind == kind]
    if names:
      clauses.append(f"{listed(names)} {wording.of_runs}")
  return "; ".join(clauses) + "."


def _leads_over_others(
  best: RecordedRun, compared: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Conclusion]
) -> list[str]:
  """Returns by how many points the best run ends above each other run on the same set, in words with intervals."""
  best_means = best.problem_means(best.set, concluded[best].end_step)
  leads = []
  for run in compared:
    if run is best or run.set != best.set:
      continue
    gain = _paired_gain(run.problem_means(run.set, concluded[run].end_step), best_means)
    if gain and gain.gain > 0:
      ends_of_interval = f"{points(gain.low)} to {points(gain.high)}"
      leads.append(f"{percent(gain.gain)} points above {run.name} (95% interval {ends_of_interval})")
  return leads


def lead_of_evaluations(policies: Sequence[RecordedRun], concluded: Mapping[RecordedRun, Conclusion]) -> str:
  """Writes the first paragraph of a report without RL runs: for each set the most accurate policies, the best first.

  policies: the runs of the stage evaluate. concluded: the conclusion on each of them. A policy is ranked on its first
  evaluated set. Of each set up to STORIES = 8 policies are named, with their accuracy in %. Policies without an
  evaluation are named at the end. "" without a policy.
  """
  measured = [run for run in policies if concluded[run].end is not None]
  by_set: dict[str, list[RecordedRun]] = {}
  for run in measured:
    by_set.setdefault(f"{run.set}, avg@{run.K}", []).append(run)
  sentences = []
  for name, runs in by_set.items():
    ranked = sorted(runs, key=lambda run: -concluded[run].end)
    accuracies = ", ".join(f"{run.name} {percent(concluded[run].end)}%" for run in ranked[:STORIES])
    more = f" and {len(ranked) - STORIES} more below" if len(ranked) > STORIES else ""
    sentences.append(f"Right answers of {name}: {accuracies}{more}.")
  unmeasured = [run.name for run in policies if run not in measured]
  if unmeasured:
    sentences.append(f"Not measured: {listed(unmeasured)}.")
  return " ".join(sentences)


def held_out_phrase(run: RecordedRun, set_name: str | None) -> str:
  """Returns which problems of an evaluated set the policy was trained on, as a phrase to follow "Held out: ".

  Such as "3 of its 40 problems trained on too (2 shared with the training problems left out)" or "none of its 40
  problems is trained on". If the run did not record it (or set_name is None), or no training problems of the policy are
  known, the phrase says so.
  """
  held_out = run.held_out(set_name)
  if not held_out.recorded:
    return f"not recorded {'whether' if run.finished else 'yet whether'} any of its problems is trained on"
  if not held_out.compared:
    return "not compared with training problems: none of the policy are on record"
  problems = "its problems" if held_out.problems is None else f"its {held_out.problems} problems"
  phrase = f"none of {problems} is trained on"
  if held_out.shared:
    phrase = f"{held_out.shared} of {problems} trained on too"
  if held_out.left_out:
    phrase += f" ({held_out.left_out} shared with the training problems left out)"
  return phrase


def joint_held_out_phrase(runs: Sequence[RecordedRun], set_name: str) -> str:
  """Returns `held_out_phrase` for all runs that measured a set: one phrase if they agree, else each with its count.

  Such as "none of its 40 problems is trained on (2 of 3 runs); 3 of its 40 problems trained on too (1 of 3 runs)". Runs
  that did not measure the set do not count; "" if none measured it.
  """
  measured = [run for run in runs if set_name in run.sets]
  counts = Counter(held_out_phrase(run, set_name) for run in measured)
  if len(counts) == 1:
    return next(iter(counts))
  return "; ".join(f"{phrase} ({count} of {len(measured)} runs)" for phrase, count in counts.items())
