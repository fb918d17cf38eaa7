"""Grades the responses of an RL step by reward and truth, records them, and computes the metrics of the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrlvr.analysis import reward_vs_truth
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.grading.vote import Grade
from jaxrlvr.rewards import expression, functions, verifiable
from jaxrlvr.rewards.noise import add_noise
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import rollout
from jaxrlvr.stages.unpaid import answer_shares


class StepGrades(NamedTuple):
  """The grades of all responses of a step: P problems, each with its samples, those that only vote included.

  Each `Graded` has value_PG (float32), scored_PG (bool), cause_PG (texts) and elections_P (votes, or None).
  """

  paid: Graded  # what the responses are paid: the reward, with noise if there is any
  factors: dict[str, Graded]  # each reward that rl.reward names, by its name, without noise
  true: Graded  # the grades by the truth
  # Whether the label that rewards went by is right (1.0) or wrong (0.0), for each problem with such a label: the vote's
  # winner where the reward is a vote, else the problem's own label. None: it could not be graded.
  label_right_P: list[float | None]
  is_binary: bool  # whether the reward is always 0 or 1


def grade_step(
  terms: expression.Terms,
  noise: tuple[float, float],
  answers: Answers,
  label_right: Mapping[str, float | None],
  grade: Grade,
  calls: functions.Calls = functions.HERE,
) -> StepGrades:
  """Grades the responses of a step by the reward and by the truth, which has no influence on the reward.

  terms: the parsed reward, as `expression.parse` returns it. noise: the rates (false positives, false negatives) at
  which a reward of 0 or 1 is flipped. label_right: 1.0 or 0.0 by problem id, as to whether the problem's own label is
  right (None: unknown). grade: takes a list of jobs and returns their verdicts, as `Service.grade`; it gets no job
  twice. calls: how functions of a user's own are called.
  """
  grade = verifiable.with_memory(grade)
  paid, factors = expression.grade_terms(terms, answers, grade, calls)
  true = verifiable.grade_by_truth(answers, grade)
  if any(noise):
    paid = add_noise(paid, answers, *noise)
  if paid.elections_P is None:
    label_right_P = [label_right[problem.id] for problem in answers.problems]
  else:
    label_right_P = []
    for i, election in enumerate(paid.elections_P):
      if election.winner is not None:
        is_scored = true.scored_PG[i, election.winner]
        label_right_P.append(float(true.value_PG[i, election.winner]) if is_scored else None)
  return StepGrades(paid, factors, true, label_right_P, expression.is_binary(terms))


def with_rewards(grades: StepGrades, value_PG: np.ndarray) -> StepGrades:
  """Returns the grades with other rewards. value_PG: of all samples; one that is not finite leaves its unscored.

  Raises InputError where there is not one reward for each sample.
  """
  if np.shape(value_PG) != grades.paid.value_PG.shape:
    problems, samples = grades.paid.value_PG.shape
    raise InputError(
      f"rewards of shape {np.shape(value_PG)}: wanted one for each response, {problems} problems x {samples} samples"
    )
  value_PG = np.asarray(value_PG, np.float32)
  scored_PG = np.isfinite(value_PG)
  cause_PG = np.where(scored_PG, "", functions.ABSTAINED).tolist()
  paid = Graded(np.where(scored_PG, value_PG, np.float32(0)), scored_PG, cause_PG, grades.paid.elections_P)
  return grades._replace(paid=paid, is_binary=False)


def trained_responses(graded: Graded, group: int) -> Graded:
  """Returns the grades [P, group] of the responses that are trained on: the first `group` to each problem.

  graded: the grades of all responses, those that only vote included. The result's `elections_P` still counts all votes.
  """
  return graded._replace(
    value_PG=graded.value_PG[:, :group],
    scored_PG=graded.scored_PG[:, :group],
    cause_PG=[row[:group] for row in graded.cause_PG],
  )


def host_metrics(grades: StepGrades, drawn: rollout.Drawn, rows: Sequence[Mapping], group: int) -> dict[str, float]:
  """Returns the metrics of a step that need no device: rewards, truth, lengths and faithfulness.

  rows: the step's rows, as `write_rollouts` returned them. group: number of responses to each problem that are trained
  on; all metrics are about these, except lengths and faithfulness, which are about all samples. Shares are from 0 to 1;
  a mean of nothing is nan.

  Keys, of rewards:
    reward, reward_std           mean and standard deviation (n - 1) over responses, as TRL's
    reward_std_in_group          mean over problems of the standard deviation (n - 1) of their scored responses
    frac_reward_zero_std         share of the problems with a scored response that pay all of these alike
    unscored, unscored/CAUSE     share of responses that could not be graded, in all and by cause
    rewards/NAME/mean, /std      of each factor of the reward
  of truth:
    true_reward                  mean; of a binary reward also reward_accuracy, false_positive_rate and
                                 false_negative_rate
    label_accuracy               share of right labels
    vote/majority_ratio, /margin, /none   only if labels are voted: mean share of the votes for the winner, its mean
                                 lead over the second, share of the problems without a vote
    unparseable, timeout         shares of responses
    answers/KIND                 share of responses of each of `unpaid.ANSWER_KINDS`
  of responses:
    completions/mean_length, /min_length, /max_length         tokens of a response, its end token included
    completions/mean_terminated_length, and with min, max     the same of responses that were not cut off; 0: all were
    completions/clipped_ratio    share that was cut off
    entropy, self_certainty      nats, means over tokens
    faithful, step_true          only if a response has a label of faithfulness: share of these with label 1, and mean
                                 share of right steps
  """
  paid, true = trained_responses(grades.paid, group), trained_responses(grades.true, group)
  is_cut_off_PG = drawn.stop_PG == STOP_LENGTH
  metrics = _reward_statistics(paid)
  metrics |= _length_metrics(drawn.length_PG, is_cut_off_PG)
  for name, statistic in (("entropy", "entropy"), ("self_certainty", "certainty")):
    metrics[name] = np.average(drawn.answers.statistics[statistic][:, :group], weights=drawn.length_PG[:, :group])
  for name, graded in grades.factors.items():
    factor = trained_responses(graded, group)
    values = factor.value_PG[factor.scored_PG]
    metrics[f"rewards/{name}/mean"] = reward_vs_truth.mean(values)
    metrics[f"rewards/{name}/std"] = _std(values)
  for cause, count in _count_causes(paid).items():
    metrics[f"unscored/{cause}"] = count / paid.scored_PG.size
  metrics |= reward_vs_truth.reward_metrics(
    paid.value_PG, paid.scored_PG, true.value_PG, true.scored_PG, grades.is_binary
  )
  metrics |= reward_vs_truth.label_metrics(grades.label_right_P, grades.paid.elections_P)
  metrics |= reward_vs_truth.cause_metrics(true.cause_PG)
  metrics |= answer_shares(true.value_PG, true.scored_PG, true.cause_PG, is_cut_off_PG[:, :group])
  faithfulness = [row["faithfulness"] for row in rows if row["faithfulness"] is not None]
  if faithfulness:
    step_true = [row["step_true"] for row in rows if row["step_true"] is not None]
    metrics["faithful"] = np.mean([label == 1.0 for label in faithfulness])
    metrics["step_true"] = reward_vs_truth.mean(step_true)
  return metrics


def _reward_statistics(paid: Graded) -> dict:
  """Returns reward, reward_std, reward_std_in_group, frac_reward_zero_std and unscored, as in `host_metrics`."""
  scored_PG = paid.scored_PG
  groups = []  # the rewards of the scored responses to each problem that has any
  for value_G, scored_G in zip(paid.value_PG, scored_PG, strict=True):
    if scored_G.any():
      groups.append(value_G[scored_G])
  if not groups:
    no_rewards = dict.fromkeys(("reward", "reward_std", "reward_std_in_group", "frac_reward_zero_std"), np.nan)
    return no_rewards | {"unscored": 1.0 - scored_PG.mean()}
  rewards = paid.value_PG[scored_PG]
  return {
    "reward": rewards.mean(),
    "reward_std": _std(rewards),
    "reward_std_in_group": np.mean([_std(group) for group in groups]),
    "frac_reward_zero_std": np.mean([np.ptp(group) == 0 for group in groups]),
    "unscored": 1.0 - scored_PG.mean(),
  }


def _std(values: np.ndarray) -> float:
  """Returns the standard deviation with n - 1, as TRL's; 0 of one value, nan of none."""
  if len(values) < 2:
    return 0.0 if len(values) else np.nan
  return values.std(ddof=1)


def _length_metrics(length_PG: np.ndarray, is_cut_off_PG: np.ndarray) -> dict:
  """Returns completions/..., numbers of tokens of all responses, and of those that ended themselves (0: none did)."""
  metrics = {"completions/clipped_ratio": is_cut_off_PG.mean()}
  ended = length_PG[~is_cut_off_PG]
  for name, lengths in (("length", length_PG), ("terminated_length", ended if len(ended) else np.zeros(1))):
    for figure in ("mean", "min", "max"):
      metrics[f"completions/{figure}_{name}"] = getattr(lengths, figure)()
  return metrics


def _count_causes(graded: Graded) -> Counter[str]:
  """Returns how many responses are unscored, by cause."""
  cause_PG = np.array(graded.cause_PG, object)
  return Counter(cause_PG[~graded.scored_PG])


def write_rollouts(workdir: Path, step: int, drawn: rollout.Drawn, grades: StepGrades) -> list[dict]:
  """Writes WORKDIR/rollouts/step_STEP.jsonl and returns its rows, one for each response, problem by problem.

  A row has the keys of `rollout.records` (step, problem, sample, text, answer, true_reward, ...) and reward, what the
  response was paid: nan, in the file null, where it is unscored. Where the reward has several factors, the row also has
  rewards/NAME, the value of each, in the same way. A file of the same step is replaced.
  """
  columns = {"reward": _values_or_nan(grades.paid)}
  if len(grades.factors) > 1:
    columns |= {f"rewards/{name}": _values_or_nan(graded) for name, graded in grades.factors.items()}
  rows = rollout.records(drawn, step, grades.true, columns)
  logbook.write_jsonl(workdir / "rollouts" / f"step_{step:06d}.jsonl", rows)
  return rows


def _values_or_nan(graded: Graded) -> list[list[float]]:
  """Returns the value of each response; nan where it is unscored."""
  return np.where(graded.scored_PG, graded.value_PG, np.nan).tolist()


def stop_if_unscored(step: int, graded: Graded, limit: float) -> None:
  """Raises TrainingStopped where the share of unscored responses is larger than `limit` (config.rl.max_unscored).

  The message counts the causes. graded: what the responses that are trained on were paid.
  """
  share = 1.0 - graded.scored_PG.mean()
  if share > limit:
    causes = dict(_count_causes(graded))
    raise TrainingStopped(
      f"step {step}: {share:.0%} of the responses are unscored ({causes}), over config.rl.max_unscored = {limit}; "
      f"{_cure_of_unscored(causes)}"
    )


def _cure_of_unscored(causes: Mapping[str, int]) -> str:
  """Returns what to change where too many responses are unscored. causes: number of responses by cause."""
  if functions.RAISED in causes:
    return "mend the reward of yours that raised errors; a warning above names the first of them"
  if functions.ABSTAINED in causes:
    return "a reward or verifier of yours returned None for them; raise config.rl.max_unscored if that is meant"
  return "raise config.verify limits or look at what the policy writes in rollouts/"
