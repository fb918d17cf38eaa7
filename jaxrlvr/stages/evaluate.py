"""Evaluation: avg@k, pass@k and maj@k of a policy on held-out problems, always against the true answers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr import logbook, reward, shard, stopping
from jaxrlvr.analysis import passk
from jaxrlvr.logbook import Progress
from jaxrlvr.stages import rollout, setup
from jaxrlvr.stages.run import Run, open_run
from jaxrlvr.verify.service import Service


class Evaluator:
  """The held-out problems of a config, ready to be sampled and graded at any step."""

  def __init__(self, config: ConfigDict, policy: setup.Policy, service: Service):
    self._config, self._policy, self._service = config, policy, service
    self.name = config.heldout.name
    self.problems, self._ids, self.dropped = rollout.load_problems(config, "heldout", policy.tokenizer)
    e = config.evaluate
    how = rollout.sampling(config, policy.tokenizer, group=e.samples, temperature=e.temperature, top_k=0, top_p=1.0)
    self._sampler = rollout.Sampler(policy, config.seed, f"evaluate/{self.name}", how, config.rl.stop_strings)

  def __call__(self, params, run: Run, step: int) -> dict[str, float]:
    """Metrics `eval/<set>/...`; the responses go to evals/<set>_<step>.jsonl. The same keys at every step: paired."""
    c, made = self._config, []
    shards = shard.size(self._policy.mesh, "batch")
    size = min(c.evaluate.problems_per_batch, len(self.problems))
    size = -(-size // shards) * shards
    for start in range(0, len(self.problems), size):
      if run.stage == "evaluate":  # RL saves when its step is done
        stopping.raise_if_asked(str(run.workdir))
      chunk = self.problems[start : start + size]
      filled = chunk + [chunk[-1]] * (size - len(chunk))  # the last batch keeps its shape; what fills it is dropped
      occurrence_P = np.maximum(np.arange(size) - len(chunk) + 1, 0).astype(np.int32)
      prompts = rollout.make_prompts(filled, self._ids, occurrence_P, c.rl.prompt_tokens, self._policy.tokenizer.pad_id)
      drawn, _ = self._sampler(params, prompts, 0)
      kept = drawn.answers._replace(problems=chunk, text_PG=drawn.answers.text_PG[: len(chunk)])
      true = reward.truth(kept, self._service.grade)
      made += rollout.records(drawn._replace(answers=kept), step, true, set=[[self.name] * c.evaluate.samples] * size)
    logbook.write_jsonl(run.workdir / "evals" / f"{self.name}_{step:06d}.jsonl", made)
    return {f"eval/{self.name}/{name}": value for name, value in passk.summarise(made, c.evaluate.pass_k).items()}


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
  """Measures the policy of `config.init` on the problems of `config.heldout`."""
  with open_run(config, workdir, "evaluate") as run:
    policy = setup.load_policy(config)
    progress = Progress(Path(workdir).name, 1)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      evaluator = Evaluator(config, policy, service)
      inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
      run.begin(heldout=evaluator.problems, **inputs)
      if run.finished:
        return run.summary
      metrics = evaluator(policy.params, run, 0)
    progress(1, {k: v for k, v in metrics.items() if k.endswith((f"avg@{config.evaluate.samples}", "format"))})
    return run.finish(steps=0, dropped=evaluator.dropped, **metrics)
