"""Reinforcement learning: GRPO and its variants from a weak or true reward, with the truth logged beside it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.analysis import reward_vs_truth
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import TrainingStopped
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.device import multihost, sharding
from jaxrlvr.device.idle import Busy
from jaxrlvr.grading.service import Service
from jaxrlvr.grading.vote import Grade
from jaxrlvr.model import row_layout
from jaxrlvr.rewards import expression, verifiable
from jaxrlvr.rewards.noise import add_noise
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.evaluate import Evaluator
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.stages.unpaid import Unpaid, shares
from jaxrlvr.stages.watch import Watch
from jaxrlvr.training import objective
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.update import TrainState, update


class UpdateBatch(NamedTuple):
  """What one update trains on."""

  batch: objective.RolloutBatch
  live: jax.Array  # its micro-batches that hold responses, the first ones


class Learner(NamedTuple):
  """What turns a graded batch into updates; the same at every step."""

  policy: build_policy.Policy
  loss_fn: object
  optimizer: object
  updates: int  # updates a step
  layout: row_layout.RowLayout  # of the rows of an update
  settings: ConfigDict

  def scoring(self) -> dict:
    """Keywords of `objective.logp`."""
    s = self.settings
    return dict(spec=self.policy.spec, temperature=s.temperature, parts=s.microbatches)

  def weigh(self, drawn: rollout.Drawn, graded: Graded) -> objective.Weights:
    """What the updates make of each response that is trained on: its weight in the loss and its advantage.

    A response that was cut off counts in no mean where `rl.mask_truncated` says so.
    """
    s = self.settings
    counted_PG = graded.scored_PG
    if s.mask_truncated:
      counted_PG = counted_PG & (drawn.stop_PG[:, : s.group_size] != STOP_LENGTH)
    return objective.weigh(
      drawn.length_PG[:, : s.group_size], graded.value_PG, counted_PG, max_tokens=s.response_tokens,
      baseline=s.baseline, scale_std=s.scale_std, reduce=s.reduce, updates=self.updates, correction=s.correction,
      noise=s.correction_noise or s.noise,
    )  # fmt: skip

  def empty(self, weights: objective.Weights) -> int:
    """How many of a step's updates no response pushes anywhere; momentum, weight decay and KL may still act in them."""
    pushes_PG = (weights.weight_PG != 0) & (weights.advantage_PG != 0)
    return sum(not pushes_PG[first :: self.updates].any() for first in range(self.updates))

  def shape(self) -> tuple[int, int]:
    """Returns (rows, slots) of an update."""
    s = self.settings
    return self.layout.rows(s.problems_per_step * s.group_size // self.updates), self.layout.slots

  def parts(
    self,
    params: Mapping[str, jax.Array],
    ref_params: Mapping[str, jax.Array],
    prompts: rollout.Prompts,
    drawn: rollout.Drawn,
    kept_PG: np.ndarray | None = None,
  ) -> list[UpdateBatch]:
    """The batch of each update with its scores; responses that are not kept (None: all are) are left out.

    Groups are dealt out to the updates in turn. With one update a step the old policy is the policy itself and needs
    no pass of its own. All that a step's batches are laid out by goes up in one transfer.
    """
    s, mesh = self.settings, self.policy.mesh
    rows, _ = self.shape()
    length_PG = drawn.length_PG[:, : s.group_size]
    kept_B = np.ones(length_PG.size, bool) if kept_PG is None or not s.pack else kept_PG.reshape(-1)
    layouts = []
    for mine in np.arange(length_PG.size).reshape(-1, self.updates, s.group_size).swapaxes(0, 1):
      placed = self.layout.place(prompts.length_P, length_PG, mine[kept_B[mine]], rows, s.microbatches, s.pack)
      layouts.append(((placed.segments_RS, placed.positions_RS), np.int32(placed.live)))
    everywhere, by_rows = sharding.named_sharding(mesh), sharding.named_sharding(mesh, "batch")
    places = (everywhere, [(by_rows, everywhere)] * len(layouts))
    problems, layouts = multihost.put(((prompts.tokens_PS, prompts.length_P), layouts), places)
    parts = []
    for (segments_RS, positions_RS), live in layouts:
      batch = objective.lay_out_batch(
        *problems, drawn.rollout, segments_RS, positions_RS,
        samples=s.votes or s.group_size, group=s.group_size, layout=self.layout,
      )  # fmt: skip
      old_logp_RS = ref_logp_RS = None
      if self.updates > 1:
        old_logp_RS = objective.logp(params, batch, live, **self.scoring())
      if ref_params is not None:
        ref_logp_RS = objective.logp(ref_params, batch, live, **self.scoring())
      parts.append(UpdateBatch(batch.replace(old_logp_RS=old_logp_RS, ref_logp_RS=ref_logp_RS), live))
    return parts

  def __call__(
    self, state: TrainState, rates, parts: list[UpdateBatch], weights: objective.Weights
  ) -> tuple[TrainState, dict]:
    """All updates of one step, at these learning rates; what the host decided goes up in one transfer."""
    (weight_PG, advantage_PG), rates = multihost.put((weights, list(rates)), sharding.named_sharding(self.policy.mesh))
    several = []
    for part, rate in zip(parts, rates, strict=True):
      batch = objective.add_weights(part.batch, weight_PG, advantage_PG)
      state, metrics = update(
        state, batch, rate, part.live,
        loss_fn=self.loss_fn, optimizer=self.optimizer, microbatches=self.settings.microbatches,
      )  # fmt: skip
      several.append(metrics)
    return state, values_of(*several)


def make_learner(
  config: ConfigDict, policy: build_policy.Policy, length_P: Sequence[int] = ()
) -> tuple[Learner, np.ndarray]:
  """(learner, learning rate of each update) for prompts of these lengths."""
  s = config.rl
  problems = s.minibatch_problems or s.problems_per_step  # of an update
  updates = s.problems_per_step // problems
  optimizer, rates = build_policy.optimizer(s.optim, s.steps * updates)
  loss_fn = objective.grpo(
    policy.spec, temperature=s.temperature, kl_beta=s.kl_beta, kl_estimator=s.kl_estimator,
    clip_low=s.clip_low, clip_high=s.clip_high, dual_clip=s.dual_clip or None, ratio=s.ratio,
    importance_cap=s.importance_cap or None,
  )  # fmt: skip
  layout = row_layout.choose(
    s.branches, length_P, prompt_tokens=s.prompt_tokens, response_tokens=s.response_tokens, group=s.group_size,
    responses=problems * s.group_size, parts=s.microbatches * sharding.size(policy.mesh, "batch"),
    attention=policy.spec.attention,
  )  # fmt: skip
  return Learner(policy, loss_fn, optimizer, updates, layout, s), rates


class RewardAndTruth(NamedTuple):
  """What was made of a step's answers: [P, samples], votes that are not trained on included."""

  paid: Graded  # behind the noise
  parts: dict[str, Graded]
  true: Graded
  label_right_P: list[float | None]  # of the label that was paid for: the vote's where there was one


def reward_and_truth(
  terms: expression.Terms,
  noise: tuple[float, float],
  answers: Answers,
  label_right: Mapping[str, float | None],
  grade: Grade,
) -> RewardAndTruth:
  """The reward with its parts, and the truth beside it, which changes nothing of the reward.

  label_right: whether the problems' own labels are right, by problem id.
  """
  grade = verifiable.grade_once(grade)
  paid, parts = expression.grade_terms(terms, answers, grade)
  true = verifiable.grade_by_truth(answers, grade)
  if any(noise):
    paid = add_noise(paid, answers, *noise)
  if paid.elections_P is None:
    return RewardAndTruth(paid, parts, true, [label_right[problem.id] for problem in answers.problems])
  won = [(i, e.winner) for i, e in enumerate(paid.elections_P) if e.winner is not None]
  return RewardAndTruth(paid, parts, true, [float(true.value_PG[at]) if true.scored_PG[at] else None for at in won])


def trained(graded: Graded, group: int) -> Graded:
  """The first `group` samples of each problem."""
  return graded._replace(
    value_PG=graded.value_PG[:, :group],
    scored_PG=graded.scored_PG[:, :group],
    cause_PG=[row[:group] for row in graded.cause_PG],
  )


def host_metrics(
  judged: RewardAndTruth, drawn: rollout.Drawn, rows: Sequence[Mapping], group: int, binary: bool
) -> dict:
  """What the host can say of a step: rewards, shadow truth, lengths, and what the sampler saw of every response."""
  paid, true = trained(judged.paid, group), trained(judged.true, group)
  value, scored = paid.value_PG, paid.scored_PG
  groups = [v[s] for v, s in zip(value, scored, strict=True) if s.any()]
  labels = [r["faithfulness"] for r in rows if r["faithfulness"] is not None]
  step_true = [r["step_true"] for r in rows if r["step_true"] is not None]
  metrics = {
    "reward": value[scored].mean() if scored.any() else np.nan,
    "reward_std": np.mean([g.std(ddof=1) if len(g) > 1 else 0.0 for g in groups]) if groups else np.nan,
    "frac_reward_zero_std": np.mean([np.ptp(g) == 0 for g in groups]) if groups else np.nan,
    "unscored": 1.0 - scored.mean(),
    "completions/mean_length": drawn.length_PG.mean(),
    "completions/clipped_ratio": (drawn.stop_PG == STOP_LENGTH).mean(),
  }
  for name, statistic in (("entropy", "entropy"), ("self_certainty", "certainty")):
    metrics[name] = np.average(drawn.answers.statistics[statistic][:, :group], weights=drawn.length_PG[:, :group])
  for name, part in judged.parts.items():
    kept = part.value_PG[:, :group][part.scored_PG[:, :group]]
    metrics |= {
      f"rewards/{name}/mean": reward_vs_truth.mean(kept),
      f"rewards/{name}/std": kept.std() if len(kept) else np.nan,
    }
  causes = Counter(c for row, s in zip(paid.cause_PG, scored, strict=True) for c in np.array(row, object)[~s])
  metrics |= {f"unscored/{cause}": n / scored.size for cause, n in causes.items()}
  metrics |= reward_vs_truth.reward_metrics(paid.value_PG, scored, true.value_PG, true.scored_PG, binary)
  metrics |= reward_vs_truth.label_metrics(judged.label_right_P, judged.paid.elections_P)
  metrics |= reward_vs_truth.cause_metrics(true.cause_PG)
  metrics |= shares(true.value_PG, true.scored_PG, true.cause_PG, drawn.stop_PG[:, :group] == STOP_LENGTH)
  if labels:
    metrics |= {"faithful": np.mean([x == 1.0 for x in labels]), "step_true": reward_vs_truth.mean(step_true)}
  return metrics


def check_sizes(config: ConfigDict, policy: build_policy.Policy) -> None:
  """Refuses batches that the mesh can't split evenly, before anything compiles."""
  s = config.rl
  problems = s.minibatch_problems or s.problems_per_step
  sharding.check_divisible(policy.mesh, "config.rl.problems_per_step", (s.problems_per_step,), ("batch",))
  part = s.problems_per_step // s.sample_parts
  name = "config.rl.problems_per_step / config.rl.sample_parts"
  sharding.check_divisible(policy.sample_mesh, name, (part,), ("batch",))
  rows = problems * s.group_size
  told = (
    f"rows of a micro-batch ({problems} problems an update x group {s.group_size} = {rows} rows in {s.microbatches})"
  )
  sharding.check_divisible(policy.mesh, told, (rows // s.microbatches,), ("batch",))


class Trainer:
  """A run of RL: what is the same at every step, and the state of the policy, which each step replaces.

  Call `open`, `restore`, `step` for each of `steps`, and `finish`, in this order.
  """

  def __init__(
    self,
    config: ConfigDict,
    run: Run,
    policy: build_policy.Policy,
    sampler: rollout.Sampler,
    service: Service,
    busy: Busy,
  ):
    self._config, self._settings = config, config.rl
    self._run, self._policy, self._sampler, self._service, self._busy = run, policy, sampler, service, busy
    self._loaded = rollout.load_problems(config, "problems", policy.tokenizer, service)
    problems = self._loaded.problems
    self._learner, self._rates = make_learner(config, policy, [len(self._loaded.ids[one.id]) for one in problems])
    self._evaluator = Evaluator(config, policy, service, problems)
    self._terms = expression.parse(config.rl.reward)

  def open(self) -> None:
    """Opens the run's directory for this config and these problems."""
    tokenizer, origin = self._policy.tokenizer.pieces(), self._policy.origin.get("digests")
    self._run.begin(
      problems=self._loaded.problems, heldout=self._evaluator.problems, tokenizer=tokenizer, origin=origin
    )

  def restore(self) -> None:
    """Takes up the run at its last checkpoint, or at step 0, which is evaluated."""
    config, s, run, problems = self._config, self._settings, self._run, self._loaded.problems
    build_policy.keep_policy(config, self._policy, run.workdir, problems)
    rollout.show_prompt(run.workdir, self._policy, problems[0])
    self._label_right = verifiable.labels_right(problems, self._service.grade)
    self._ref_params = build_policy.frozen(self._policy) if s.kl_beta else None
    self._state, meta = run.restore(build_policy.fresh_state(self._policy, self._learner.optimizer))
    self._start = meta["step"] if meta else 0
    self._progress = run.progress(s.steps, self._start)
    if meta is None:
      run.log(0, self._evaluator(self._state.params, run, 0))
    rows = multihost.first(lambda: logbook.read_jsonl(run.workdir / "metrics.jsonl"))
    before = meta["before"] if meta else self._evaluator.means
    self._watch = Watch(rows, before, s.worthwhile_gain, s.stop_when_memorising)
    self._unpaid = Unpaid(rows, config)
    logged = max((row["step"] for row in rows), default=-1)
    if meta and meta["unevaluated"] and logged < self._start:
      self._evaluate_again(meta["unevaluated"])

  def _evaluate_again(self, unevaluated: Mapping[str, float | None]) -> None:
    """Logs the last step of a run that was stopped between its save and its evaluation."""
    step, begun = self._start, time.monotonic()
    metrics = {name: math.nan if value is None else value for name, value in unevaluated.items()}
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._log(step, metrics, self._evaluator.means, begun)

  def steps(self) -> Iterator[int]:
    """Yields the steps that are left, until the run is done or the watch ends it."""
    for step in range(self._start + 1, self._settings.steps + 1):
      if self._watch.stops:
        return
      yield step

  def step(self, step: int) -> None:
    """Draws, pays and updates; then evaluates and saves where it is time for that."""
    begun = time.monotonic()
    metrics = self._train(step)
    means = None
    every = self._config.evaluate.every
    evaluates = step == self._settings.steps or (every and step % every == 0)
    if evaluates:
      metrics = self._save_and_evaluate(step, metrics)
      means = self._evaluator.means
    self._log(step, metrics, means, begun)
    self._progress(step, {"reward": metrics["reward"], "true": metrics["true_reward"], "phase": self._watch.in_words})
    if evaluates:
      self._run.flush()
      self._run.stop_if_asked()
    elif self._run.due(step, self._settings.steps):
      self._save(step, unevaluated=None)
      self._run.stop_if_asked()

  def _train(self, step: int) -> dict:
    """Returns the metrics of a step; those of its updates are still being computed.

    The device scores by the reference policy while verifiers grade, and updates while the host writes.
    """
    s, learner = self._settings, self._learner
    prompts, drawn = self._draw(step)
    parts = self._score(prompts, drawn) if s.kl_beta else None
    judged = reward_and_truth(self._terms, s.noise, drawn.answers, self._label_right, self._service.grade)
    graded = trained(judged.paid, s.group_size)
    weights = learner.weigh(drawn, graded)
    if parts is None:  # without a KL term a response without advantage has no gradient
      parts = learner.parts(self._state.params, None, prompts, drawn, weights.advantage_PG != 0)
    metrics = self._update(step, parts, weights)
    rows = write_rollouts(self._run.workdir, step, drawn, judged)
    stop_if_unscored(step, graded, s.max_unscored)
    metrics |= host_metrics(judged, drawn, rows, s.group_size, expression.is_binary(self._terms))
    return metrics | {"empty_updates": learner.empty(weights), "idle": self._busy.idle()}

  def _draw(self, step: int) -> tuple[rollout.Prompts, rollout.Drawn]:
    problems, occurrence_P = problem_lists.batch(
      self._loaded.problems, self._config.seed, step, self._settings.problems_per_step
    )
    prompts = self._sampler.prompts(problems, self._loaded, occurrence_P)
    return prompts, self._sampler(self._sampler.weights(self._state.params), prompts, step)

  def _score(self, prompts: rollout.Prompts, drawn: rollout.Drawn) -> list[UpdateBatch]:
    parts = self._learner.parts(self._state.params, self._ref_params, prompts, drawn)
    self._busy.watch([part.batch.ref_logp_RS for part in parts])
    return parts

  def _update(self, step: int, parts: list[UpdateBatch], weights: objective.Weights) -> dict[str, jax.Array]:
    updates = self._learner.updates
    rates = self._rates[(step - 1) * updates : step * updates]
    self._state, metrics = self._learner(self._state, rates, parts, weights)
    self._busy.watch(metrics)
    return metrics

  def _save(self, step: int, unevaluated: dict | None) -> None:
    """unevaluated: the metrics of a step whose evaluation comes behind this save."""
    self._run.save(step, self._state, origin=self._policy.origin, before=self._watch.before, unevaluated=unevaluated)

  def _save_and_evaluate(self, step: int, metrics: Mapping) -> dict[str, float]:
    """Returns the metrics, fetched, with those of an evaluation; a run that is stopped in it goes on with it."""
    metrics = {name: float(value) for name, value in multihost.fetch(metrics).items()}
    self._save(step, logbook.finite(metrics))
    metrics |= self._evaluator(self._state.params, self._run, step, saved=True)
    self._busy.idle()  # what evaluation leaves idle is not a step's
    return metrics

  def _log(self, step: int, metrics: dict, means: Mapping[str, float] | None, begun: float) -> None:
    """Logs metrics, to which the phase is added. means: of the evaluation of this step, by problem."""
    metrics |= self._watch(step, metrics, means)
    self._unpaid(step, metrics)
    self._run.log(step, metrics | {"step_time": time.monotonic() - begun})

  def finish(self) -> dict:
    """Returns the summary of the run."""
    self._run.flush()  # a run that went on only to evaluate its last step has its figures still waiting
    return self._run.finish(
      **self._watch.summary(),
      **self._unpaid.summary(),
      problems=len(self._loaded.problems),
      dropped=self._loaded.dropped,
      paper=self._config.paper.to_dict(),
      **self._evaluator.overlaps(),
      **final_metrics(self._run.workdir),
    )


def rl(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the policy of `config.init` on `config.problems` by the reward `config.rl.reward`."""
  with open_run(config, workdir, "rl") as run, Busy() as busy:
    policy = build_policy.load_policy(config)
    check_sizes(config, policy)
    sampler = make_sampler(config, policy, busy)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      trainer = Trainer(config, run, policy, sampler, service, busy)
      trainer.open()
      if run.finished:
        return run.summary
      trainer.restore()
      for step in trainer.steps():
        trainer.step(step)
      return trainer.finish()


def make_sampler(config: ConfigDict, policy: build_policy.Policy, busy: Busy) -> rollout.Sampler:
  """Returns what draws the responses of a step. Raises InputError where they take more memory than is free."""
  s = config.rl
  sampler = rollout.Sampler(config, policy, "rl", s.sample_parts, busy, int8=s.sample_int8)
  sampler.check_memory(
    "sampling a step", s.problems_per_step // s.sample_parts,
    "config.rl.response_tokens, config.rl.problems_per_step or config.rl.group_size (or .votes), or raise "
    "config.rl.sample_parts",
  )  # fmt: skip
  return sampler


def write_rollouts(workdir: Path, step: int, drawn: rollout.Drawn, judged: RewardAndTruth) -> list[dict]:
  """The rows of rollouts/ of this step."""
  paid = np.where(judged.paid.scored_PG, judged.paid.value_PG, np.nan).tolist()
  rows = rollout.records(drawn, step, judged.true, reward=paid)
  logbook.write_jsonl(workdir / "rollouts" / f"step_{step:06d}.jsonl", rows)
  return rows


def stop_if_unscored(step: int, graded: Graded, limit: float) -> None:
  share = 1.0 - graded.scored_PG.mean()
  if share > limit:
    causes = Counter(np.array(graded.cause_PG, object)[~graded.scored_PG])
    raise TrainingStopped(
      f"step {step}: {share:.0%} of the answers could not be graded ({dict(causes)}), over config.rl.max_unscored = "
      f"{limit}; raise config.verify limits or look at what the policy writes in rollouts/"
    )


def final_metrics(workdir: Path) -> dict:
  rows = logbook.read_jsonl(workdir / "metrics.jsonl")
  return {name: value for row in rows for name, value in row.items() if name.startswith("eval/")}
