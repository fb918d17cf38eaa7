"""Reinforcement learning: GRPO and its variants from a weak or true reward, with the truth logged beside it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
from jaxrlvr.grading.vote import Grade
from jaxrlvr.model import row_layout
from jaxrlvr.rewards import expression, verifiable
from jaxrlvr.rewards.noise import add_noise
from jaxrlvr.rewards.types import Answers, Graded
from jaxrlvr.sampling.types import STOP_LENGTH
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.evaluate import Evaluator
from jaxrlvr.stages.run_directory import open_run
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
    s, mesh, made = self.settings, self.policy.mesh, []
    rows, _ = self.shape()
    length_PG = drawn.length_PG[:, : s.group_size]
    kept_B = np.ones(length_PG.size, bool) if kept_PG is None or not s.pack else kept_PG.reshape(-1)
    layouts = []
    for mine in np.arange(length_PG.size).reshape(-1, self.updates, s.group_size).swapaxes(0, 1):
      placed = self.layout.place(prompts.length_P, length_PG, mine[kept_B[mine]], rows, s.microbatches, s.pack)
      layouts.append(((placed.segments_RS, placed.positions_RS), np.int32(placed.live)))
    everywhere, by_rows = sharding.named(mesh), sharding.named(mesh, "batch")
    places = (everywhere, [(by_rows, everywhere)] * len(layouts))
    problems, layouts = multihost.put(((prompts.tokens_PS, prompts.length_P), layouts), places)
    of = dict(samples=s.votes or s.group_size, group=s.group_size, layout=self.layout)
    for where, live in layouts:
      batch = objective.lay_out(*problems, drawn.rollout, *where, **of)
      old, ref = (
        None if who is None else objective.logp(who, batch, live, **self.scoring())
        for who in (params if self.updates > 1 else None, ref_params)
      )
      made.append(UpdateBatch(batch.replace(old_logp_RS=old, ref_logp_RS=ref), live))
    return made

  def __call__(
    self, state: TrainState, rates, parts: list[UpdateBatch], weights: objective.Weights
  ) -> tuple[TrainState, dict]:
    """All updates of one step, at these learning rates; what the host decided goes up in one transfer."""
    (weight_PG, advantage_PG), rates = multihost.put((weights, list(rates)), sharding.named(self.policy.mesh))
    several, how = [], dict(loss_fn=self.loss_fn, optimizer=self.optimizer, microbatches=self.settings.microbatches)
    for part, rate in zip(parts, rates, strict=True):
      state, metrics = update(state, objective.grade(part.batch, weight_PG, advantage_PG), rate, part.live, **how)
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
  paid, parts = expression.evaluate(terms, answers, grade)
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
  sharding.check(policy.mesh, "config.rl.problems_per_step", (s.problems_per_step,), ("batch",))
  part = s.problems_per_step // s.sample_parts
  sharding.check(policy.sample_mesh, "config.rl.problems_per_step / config.rl.sample_parts", (part,), ("batch",))
  rows = problems * s.group_size
  told = (
    f"rows of a micro-batch ({problems} problems an update x group {s.group_size} = {rows} rows in {s.microbatches})"
  )
  sharding.check(policy.mesh, told, (rows // s.microbatches,), ("batch",))


def rl(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the policy of `config.init` on `config.problems` by the reward `config.rl.reward`."""
  s = config.rl
  with open_run(config, workdir, "rl") as run, Busy() as busy:
    policy = build_policy.load_policy(config)
    check_sizes(config, policy)
    sampler = rollout.Sampler(config, policy, "rl", s.sample_parts, busy, int8=s.sample_int8)
    sampler.check_memory(
      "sampling a step", s.problems_per_step // s.sample_parts,
      "config.rl.response_tokens, config.rl.problems_per_step or config.rl.group_size (or .votes), or raise "
      "config.rl.sample_parts",
    )  # fmt: skip
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      loaded = rollout.load_problems(config, "problems", policy.tokenizer, service)
      problems = loaded.problems
      learner, rates = make_learner(config, policy, [len(loaded.ids[problem.id]) for problem in problems])
      evaluator = Evaluator(config, policy, service, problems)
      inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
      run.begin(problems=problems, heldout=evaluator.problems, **inputs)
      if run.finished:
        return run.summary
      build_policy.keep_policy(config, policy, run.workdir, problems)
      rollout.show_prompt(run.workdir, policy, problems[0])
      label_right = verifiable.labels_right(problems, service.grade)
      ref_params = build_policy.frozen(policy) if s.kl_beta else None
      terms = expression.parse(s.reward)
      state, meta = run.restore(build_policy.fresh_state(policy, learner.optimizer))
      start = meta["step"] if meta else 0
      progress = run.progress(s.steps, start)
      if meta is None:
        run.log(0, evaluator(state.params, run, 0))
      rows = multihost.first(lambda: logbook.read_jsonl(run.workdir / "metrics.jsonl"))
      before = meta["before"] if meta else evaluator.means
      watch, unpaid = Watch(rows, before, s.worthwhile_gain, s.stop_when_memorising), Unpaid(rows, config)
      logged = max((row["step"] for row in rows), default=-1)
      if meta and meta["unevaluated"] and logged < start:  # it was stopped between the save and the figures
        begun = time.monotonic()
        metrics = {name: math.nan if value is None else value for name, value in meta["unevaluated"].items()}
        metrics |= evaluator(state.params, run, start, saved=True)
        metrics |= watch(start, metrics, evaluator.means)
        unpaid(start, metrics)
        run.log(start, metrics | {"step_time": time.monotonic() - begun})
      for step in range(start + 1, s.steps + 1):
        if watch.stops:
          break
        begun = time.monotonic()
        batch, occurrence_P = problem_lists.batch(problems, config.seed, step, s.problems_per_step)
        prompts = sampler.prompts(batch, loaded, occurrence_P)
        drawn = sampler(sampler.weights(state.params), prompts, step)
        given = (state.params, ref_params, prompts, drawn)
        parts = None if ref_params is None else learner.parts(*given)  # the device scores while verifiers grade
        busy.watch([part.batch.ref_logp_RS for part in parts or ()])
        judged = reward_and_truth(terms, s.noise, drawn.answers, label_right, service.grade)
        graded = trained(judged.paid, s.group_size)
        weights = learner.weigh(drawn, graded)
        if parts is None:  # without a KL term a response without advantage has no gradient
          parts = learner.parts(*given, weights.advantage_PG != 0)
        step_rates = rates[(step - 1) * learner.updates : step * learner.updates]
        state, metrics = learner(state, step_rates, parts, weights)
        busy.watch(metrics)  # while the device updates, the host writes, and prepares the next step
        told = write_rollouts(run.workdir, step, drawn, judged)
        stop_if_unscored(step, graded, s.max_unscored)
        metrics |= host_metrics(judged, drawn, told, s.group_size, expression.is_binary(terms))
        metrics |= {"empty_updates": learner.empty(weights), "idle": busy.idle()}
        evaluated = step == s.steps or (config.evaluate.every and step % config.evaluate.every == 0)
        if evaluated:
          metrics = {name: float(value) for name, value in multihost.fetch(metrics).items()}
          run.save(step, state, origin=policy.origin, before=watch.before, unevaluated=logbook.finite(metrics))
          metrics |= evaluator(state.params, run, step, saved=True)
          busy.idle()  # what evaluation leaves idle is not a step's
        metrics |= watch(step, metrics, evaluator.means if evaluated else None)
        unpaid(step, metrics)
        run.log(step, metrics | {"step_time": time.monotonic() - begun})
        progress(step, {"reward": metrics["reward"], "true": metrics["true_reward"], "phase": watch.told})
        if evaluated:
          run.flush()
          run.stop_if_asked()
        elif run.due(step, s.steps):
          run.save(step, state, origin=policy.origin, before=watch.before, unevaluated=None)
          run.stop_if_asked()
      run.flush()  # a run that went on only to evaluate its last step has its figures still waiting
      told = dict(problems=len(problems), dropped=loaded.dropped, paper=config.paper.to_dict())
      told |= evaluator.overlaps()
      return run.finish(**watch.summary(), **unpaid.summary(), **told, **final_metrics(run.workdir))


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
