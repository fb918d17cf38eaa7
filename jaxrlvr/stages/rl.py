"""Reinforcement learning: GRPO and its variants from a weak or true reward, with the truth logged beside it."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr import hosts, logbook, objective, reward, shard
from jaxrlvr.analysis import shadow
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.policy.sample import STOP_LENGTH
from jaxrlvr.stages import rollout, setup
from jaxrlvr.stages.evaluate import Evaluator
from jaxrlvr.stages.run import open_run
from jaxrlvr.types import TrainingStopped
from jaxrlvr.update import TrainState, update


class Learner(NamedTuple):
  """What turns a graded batch into updates; the same at every step."""

  spec: object
  loss_fn: object
  optimizer: object
  updates: int  # updates a step
  settings: ConfigDict

  def scoring(self) -> dict:
    """Keywords of `objective.logp`."""
    s = self.settings
    parts = s.microbatches * self.updates
    return dict(spec=self.spec, start=s.prompt_tokens, temperature=s.temperature, parts=parts)

  def logp(self, params, batch) -> jax.Array:
    return objective.logp(params, batch, **self.scoring())

  def rows(self, params, ref_params, prompts, drawn: rollout.Drawn) -> objective.RolloutBatch:
    """What needs no reward, so that the device scores while verifiers grade. With one update a step the old policy is
    the policy itself and needs no pass of its own."""
    s = self.settings
    batch = objective.rollout_rows(*prompts, drawn.rollout, samples=s.votes or s.group_size, group=s.group_size)
    return batch.replace(
      ref_logp_BT=None if ref_params is None else self.logp(ref_params, batch),
      old_logp_BT=self.logp(params, batch) if self.updates > 1 else None,
    )

  def __call__(self, state: TrainState, rates, rows, graded) -> tuple[TrainState, dict]:
    """All updates of one step."""
    s = self.settings
    batch = objective.weigh(
      rows, *graded, baseline=s.baseline, scale_std=s.scale_std, reduce=s.reduce, updates=self.updates,
      correction=s.correction, noise=s.correction_noise or s.noise,
    )  # fmt: skip
    several = []
    parts = parts_of(batch, self.updates, s.group_size) if self.updates > 1 else [batch]
    for part, rate in zip(parts, rates, strict=True):
      state, metrics = update(
        state, part, rate, loss_fn=self.loss_fn, optimizer=self.optimizer, microbatches=s.microbatches
      )
      several.append(metrics)
    return state, several[0] if self.updates == 1 else mean_metrics(several)


@functools.partial(jax.jit, static_argnums=(1, 2))
def parts_of(batch, updates: int, group: int) -> list:
  """The batch of each update: groups dealt out in turn, as `objective.weigh` weighted them."""
  parts = shard.split_rows(batch, updates, group)
  return [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(updates)]


@jax.jit
def mean_metrics(several: list[dict]) -> dict:
  """Metrics of a step's updates in one: largest for extremes and counts, else the mean."""
  largest = ("sampling/logp_difference/max", "skipped_updates", "skipped_in_a_row")
  return {
    name: (jnp.max if name in largest else jnp.mean)(jnp.stack([m[name] for m in several])) for name in several[0]
  }


def make_learner(config: ConfigDict, policy: setup.Policy) -> tuple[Learner, np.ndarray]:
  """(learner, learning rate of each update)."""
  s = config.rl
  updates = s.problems_per_step // (s.minibatch_problems or s.problems_per_step)
  optimizer, rates = setup.optimizer(s.optim, s.steps * updates)
  loss_fn = objective.grpo(
    policy.spec, start=s.prompt_tokens, temperature=s.temperature, kl_beta=s.kl_beta, kl_estimator=s.kl_estimator,
    clip_low=s.clip_low, clip_high=s.clip_high, dual_clip=s.dual_clip or None, ratio=s.ratio,
    importance_cap=s.importance_cap or None,
  )  # fmt: skip
  return Learner(policy.spec, loss_fn, optimizer, updates, s), rates


class Judged(NamedTuple):
  """What was made of a step's answers: [P, samples], votes that are not trained on included."""

  paid: reward.Graded  # behind the noise
  parts: dict[str, reward.Graded]
  true: reward.Graded
  label_right_P: list[float | None]  # of the label that was paid for: the vote's where there was one


def judge(
  terms: reward.Terms,
  noise: tuple[float, float],
  answers: reward.Answers,
  label_right: Mapping[str, float | None],
  grade: reward.Grade,
) -> Judged:
  """The reward with its parts, and the truth beside it, which changes nothing of the reward.

  label_right: whether the problems' own labels are right, by problem id.
  """
  grade = reward.remembering(grade)
  paid, parts = reward.evaluate(terms, answers, grade)
  true = reward.truth(answers, grade)
  if any(noise):
    paid = reward.noisy(paid, answers, *noise)
  if paid.elections_P is None:
    return Judged(paid, parts, true, [label_right[problem.id] for problem in answers.problems])
  won = [(i, e.winner) for i, e in enumerate(paid.elections_P) if e.winner is not None]
  return Judged(paid, parts, true, [float(true.value_PG[at]) if true.scored_PG[at] else None for at in won])


def trained(graded: reward.Graded, group: int) -> reward.Graded:
  """The first `group` samples of each problem."""
  return graded._replace(
    value_PG=graded.value_PG[:, :group],
    scored_PG=graded.scored_PG[:, :group],
    cause_PG=[row[:group] for row in graded.cause_PG],
  )


def host_metrics(judged: Judged, drawn: rollout.Drawn, rows, group: int, binary: bool) -> dict:
  """What the host can say of a step: rewards, shadow truth, lengths."""
  paid, true = trained(judged.paid, group), trained(judged.true, group)
  value, scored = paid.value_PG, paid.scored_PG
  groups = [v[s] for v, s in zip(value, scored, strict=True) if s.any()]
  labels = [r["faithfulness"] for r in rows if r["faithfulness"] is not None]
  metrics = {
    "reward": value[scored].mean() if scored.any() else np.nan,
    "reward_std": np.mean([g.std(ddof=1) if len(g) > 1 else 0.0 for g in groups]) if groups else np.nan,
    "frac_reward_zero_std": np.mean([np.ptp(g) == 0 for g in groups]) if groups else np.nan,
    "unscored": 1.0 - scored.mean(),
    "completions/mean_length": drawn.length_PG.mean(),
    "completions/clipped_ratio": (drawn.stop_PG == STOP_LENGTH).mean(),
  }
  for name, part in judged.parts.items():
    kept = part.value_PG[:, :group][part.scored_PG[:, :group]]
    metrics |= {f"rewards/{name}/mean": shadow.mean(kept), f"rewards/{name}/std": kept.std() if len(kept) else np.nan}
  causes = Counter(c for row, s in zip(paid.cause_PG, scored, strict=True) for c in np.array(row, object)[~s])
  metrics |= {f"unscored/{cause}": n / scored.size for cause, n in causes.items()}
  metrics |= shadow.truth(paid.value_PG, scored, true.value_PG, true.scored_PG, binary)
  metrics |= shadow.labels(judged.label_right_P, judged.paid.elections_P)
  metrics |= shadow.causes(true.cause_PG)
  return metrics | ({"faithful": np.mean([x == 1.0 for x in labels])} if labels else {})


def check_sizes(config: ConfigDict, policy: setup.Policy) -> None:
  """Refuses batches that the mesh can't split evenly, before anything compiles."""
  s = config.rl
  problems = s.minibatch_problems or s.problems_per_step
  shard.check(policy.mesh, "config.rl.problems_per_step", (s.problems_per_step,), ("batch",))
  part = s.problems_per_step // s.sample_parts
  shard.check(policy.sample_mesh, "config.rl.problems_per_step / config.rl.sample_parts", (part,), ("batch",))
  shard.check(policy.mesh, "rows of a micro-batch", (problems * s.group_size // s.microbatches,), ("batch",))


def rl(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the policy of `config.init` on `config.problems` by the reward `config.rl.reward`."""
  s = config.rl
  with open_run(config, workdir, "rl") as run:
    policy = setup.load_policy(config)
    check_sizes(config, policy)
    learner, rates = make_learner(config, policy)
    sampler = rollout.Sampler(config, policy, "rl", s.sample_parts, int8=s.sample_int8)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      problems, ids, dropped = rollout.load_problems(config, "problems", policy.tokenizer, service)
      evaluator = Evaluator(config, policy, service)
      inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
      run.begin(problems=problems, heldout=evaluator.problems, **inputs)
      if run.finished:
        return run.summary
      setup.keep(config, policy, run.workdir)
      label_right = reward.labels_right(problems, service.grade)
      ref_params = setup.frozen(policy) if s.kl_beta else None
      terms = reward.parse(s.reward)
      state, meta = run.restore(setup.fresh_state(policy, learner.optimizer))
      start = meta["step"] if meta else 0
      progress = run.progress(s.steps, start)
      if meta is None:
        run.log(0, evaluator(state.params, run, 0))
      for step in range(start + 1, s.steps + 1):
        begun = time.monotonic()
        batch, occurrence_P = problem_lists.batch(problems, config.seed, step, s.problems_per_step)
        prompts = sampler.prompts(batch, ids, occurrence_P)
        drawn = sampler(sampler.weights(state.params), prompts, step)
        on_device = hosts.put((prompts.tokens_PS, prompts.length_P), shard.named(policy.mesh, "batch"))
        rows = learner.rows(state.params, ref_params, on_device, drawn)
        judged = judge(terms, s.noise, drawn.answers, label_right, service.grade)
        paid = np.where(judged.paid.scored_PG, judged.paid.value_PG, np.nan).tolist()
        told = rollout.records(drawn, step, judged.true, reward=paid)
        logbook.write_jsonl(run.workdir / "rollouts" / f"step_{step:06d}.jsonl", told)
        graded = trained(judged.paid, s.group_size)
        stop_if_unscored(step, graded, s.max_unscored)
        up = hosts.put((graded.value_PG, graded.scored_PG), shard.named(policy.mesh, "batch"))
        step_rates = rates[(step - 1) * learner.updates : step * learner.updates]
        rates_up = hosts.put(list(step_rates), shard.named(policy.mesh))
        state, metrics = learner(state, rates_up, rows, up)
        metrics |= host_metrics(judged, drawn, told, s.group_size, reward.is_binary(terms))
        metrics |= {"learning_rate": step_rates[-1]}
        if step == s.steps or (config.evaluate.every and step % config.evaluate.every == 0):
          metrics |= evaluator(state.params, run, step)
        run.log(step, metrics | {"step_time": time.monotonic() - begun})
        progress(step, {"reward": metrics["reward"], "true": metrics["true_reward"]})
        if run.due(step, s.steps):
          run.save(step, state, origin=policy.origin)
          run.stop_if_asked()
      told = dict(problems=len(problems), dropped=dropped, paper=config.paper.to_dict())
      return run.finish(steps=s.steps, **told, **final_metrics(run.workdir))


def stop_if_unscored(step: int, graded: reward.Graded, limit: float) -> None:
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
