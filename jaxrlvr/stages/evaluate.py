"""Evaluation: measures avg@k, pass@k and maj@k of a policy on held-out problems, always by the true answers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.analysis import passk
from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import eval_sets, overlap
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.grading.service import Service
from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.rewards import verifiable
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.tasks.arithmetic import problems as arithmetic

_LOG = logging.getLogger(__name__)


class Evaluator:
  """The held-out sets of a config. Calling it samples and grades all of them at a step of a run.

  `problems`: the problems of all sets. `dropped`: how many more were left out, as their prompts are too long.
  `batches`: how many batches an evaluation samples. `overlap`: how many problems of each set are trained on as well;
  None: it is unknown what was trained on. `left_out`: how many problems of each set were left out for that, where there
  are any. `means`: after an evaluation, the mean true reward of each problem by "SET/PROBLEM".
  """

  def __init__(
    self, config: ConfigDict, policy: build_policy.Policy, service: Service, training: Sequence[Problem] = ()
  ):
    """service: grades answers. training: the problems that the policy is about to be trained on. Raises InputError for
    sets that can't be read, overlap with these though config.heldout.overlap is "error", or take more memory than is
    free.
    """
    self._config, self._policy, self._service = config, policy, service
    trained = build_policy.trained_on(config, training)
    self._sets, self.left_out = held_out(config, policy, service, trained, training)
    self.overlap = None if trained is None else compare(config, self._sets, trained)
    e = config.evaluate
    self._sampler = rollout.Sampler(
      config, policy, "evaluate", group=e.samples, temperature=e.temperature, top_k=0, top_p=1.0
    )
    self.problems: list[Problem] = []
    self.dropped = 0
    for loaded in self._sets.values():
      self.problems += loaded.problems
      self.dropped += loaded.dropped
    sizes = [len(loaded.problems) for loaded in self._sets.values()]
    self._batch_size = self._sampler.batch_size(e.problems_per_batch, max(sizes))  # one shape for all sets
    self.batches = sum(-(-size // self._batch_size) for size in sizes)
    cure = "config.rl.response_tokens, config.evaluate.problems_per_batch or config.evaluate.samples"
    self._sampler.check_memory("an evaluation", self._batch_size, cure)
    self.means: dict[str, float] = {}

  def __call__(
    self, params, run: Run, step: int, progress=lambda figures=None: None, saved: bool = False
  ) -> dict[str, float]:
    """Evaluates the policy's weights `params` at a step, and returns the metrics `eval/SET/FIGURE`.

    FIGURE is avg@K, if_extracted@K and pass@k, each with its interval as FIGURE_low and FIGURE_high, and problems,
    maj@K, format, mean_length, clipped, unscored, faithful and step_true; nan where one is undefined. Sets `means`. On
    several hosts all processes must call it together. If config.heldout.domain is set there are also means of avg@k
    over the sets inside and outside of the domain, as `eval/in-domain/avg@k` and `eval/out-of-domain/avg@k`. Writes the
    responses of each set to evals/SET_STEP.jsonl. Samples have the same random keys at every step, so that the figures
    of two steps are paired. `progress` is called without arguments after each batch. Raises Interrupted after a batch
    if a signal has asked the run to stop; saved: whether a checkpoint of this step exists, from which the run goes on
    with the evaluation.
    """
    metrics, self.means = {}, {}
    run.raise_if_asked(saved)
    weights = self._sampler.weights(params)
    for name, loaded in self._sets.items():
      rows = []
      for drawn in self._sampler.sweep(weights, loaded, self._batch_size, stream=f"evaluate/{name}"):
        rows += graded(drawn, step, verifiable.with_memory(self._service.grade))
        progress()
        run.raise_if_asked(saved)
      logbook.write_jsonl(run.workdir / "evals" / f"{name}_{step:06d}.jsonl", rows)
      for figure, value in passk.evaluation_figures(rows, self._config.evaluate.pass_k).items():
        metrics[f"eval/{name}/{figure}"] = value
      for problem, mean in passk.problem_means(rows).items():
        self.means[f"{name}/{problem}"] = mean
    return metrics | domain_means(self._config, metrics)

  def overlaps(self) -> dict:
    """Returns figures for a summary: `heldout_overlap`, and `heldout_left_out` where problems were left out.

    heldout_overlap: {set: number of its problems that are trained on too}; None: unknown what was trained on.
    heldout_left_out: {set: number of problems that were left out of it, as they are trained on}.
    """
    figures: dict = {"heldout_overlap": self.overlap}
    if self.left_out:
      figures["heldout_left_out"] = self.left_out
    return figures


def domain_means(config: ConfigDict, metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns the means of avg@k over the evaluated sets inside and outside of config.heldout.domain.

  metrics: of the evaluation, `eval/SET/FIGURE`. Returns `eval/in-domain/avg@k` and `eval/out-of-domain/avg@k`; {} where
  no domain is set.
  """
  domain = eval_sets.DOMAINS.get(config.heldout.domain)
  if domain is None:
    return {}
  figure = f"avg@{config.evaluate.samples}"
  means = {}
  for group, names in (("in-domain", domain.inside), ("out-of-domain", domain.outside)):
    keys = [f"eval/{name}/{figure}" for name in names]
    values = [metrics[key] for key in keys if key in metrics]
    if values:
      means[f"eval/{group}/{figure}"] = float(np.mean(values))
  return means


def graded(drawn: rollout.Drawn, step: int, grade: Grade) -> list[dict]:
  """Grades responses by the truth and returns a row for each, problem by problem, as evals/ holds them.

  grade: grades a list of jobs and returns their verdicts. The columns are those of `rollout.records` (step, problem,
  sample, text, answer, true_reward, scored, ...) and `cluster`, which numbers the clusters of equal answers among the
  responses to a problem; None: it has no answer that can be read.
  """
  true = verifiable.grade_by_truth(drawn.answers, grade)
  elections = elect(drawn.answers.problems, drawn.answer_PG, grade)
  return rollout.records(drawn, step, true, cluster=[election.cluster_G for election in elections])


def compare(
  config: ConfigDict, loaded: Mapping[str, rollout.PromptedProblems], trained: frozenset[str]
) -> dict[str, int]:
  """Returns how many problems of each held-out set have a prompt that is trained on too.

  loaded: the sets by name. trained: digests of the prompts that are trained on (`overlap.prompt_digest`). Warns of each
  set that has such problems, or raises InputError if config.heldout.overlap is "error".
  """
  counts = {}
  for name, held_out_set in loaded.items():
    common = overlap.common(held_out_set.problems, trained)
    counts[name] = len(common)
    if not common:
      continue
    prompt = overlap.normalised(common[0].messages)
    message = (
      f"config.heldout: set {name}: {len(common)} of {len(held_out_set.problems)} problems are trained on as well, the "
      f"first {common[0].id} ({prompt[:80]!r})"
    )
    if config.heldout.overlap == "error":
      raise InputError(
        f"{message}; take other held-out problems, or config.heldout.overlap=drop, which leaves these out, or =warn"
      )
    _LOG.warning("%s; what the policy gains on them is no sign of generalising", message)
  return counts


def held_out(
  config: ConfigDict,
  policy: build_policy.Policy,
  service: Service,
  trained: frozenset[str] | None,
  training: Sequence[Problem] = (),
) -> tuple[dict[str, rollout.PromptedProblems], dict[str, int]]:
  """Reads the sets of `config.heldout` and returns ({set: its problems}, {set: how many were left out of it}).

  If heldout.overlap is "drop", problems whose prompt's digest is in `trained` are left out, with a warning; the second
  dict has only sets with such problems. trained: digests of the prompts that are trained on; None: unknown, and nothing
  is left out. training: the problems that are about to be trained on.
  """
  left_out: Counter[str] = Counter()
  loaded = {}
  for name, changes in chosen_sets(config, training).items():

    def is_left_out(problem: Problem, name: str = name) -> bool:
      if config.heldout.overlap != "drop" or trained is None or overlap.prompt_digest(problem) not in trained:
        return False
      left_out[name] += 1
      return True

    loaded[name] = rollout.load_problems(config, "heldout", policy.tokenizer, service, is_left_out, **changes)
  for name, count in left_out.items():
    _LOG.warning("config.heldout: set %s: %d problems that are trained on are left out", name, count)
  return loaded, dict(left_out)


def chosen_sets(config: ConfigDict, training: Sequence[Problem]) -> dict[str, dict]:
  """Returns the held-out sets by name, each as {key: value} in which it differs from `config.heldout`.

  These are the sets of heldout.sets and heldout.domain, and the set of heldout.source under heldout.name. Where none of
  the three is set, the only set has problems like the training problems (`follow`). training: the problems that are
  about to be trained on; (): those of `config.problems`. Files of the study that are missing are left out with a
  warning. Raises InputError where sets can't be found.
  """
  h = config.heldout
  if not h.sets and not h.domain:
    return {h.name: {} if h.source else follow(config, training)}
  try:
    files, absent = eval_sets.find_files(h.sets, h.domain, object_store.local(h.folder), h.prompts)
  except InputError as error:
    raise InputError(f"config.heldout: {error}") from error
  if absent:
    _LOG.warning("%s: not among the study's files and not in %s; left out", ", ".join(absent), h.folder)
  generated = (name for name in eval_sets.set_names(h.sets, h.domain) if name in eval_sets.GENERATED_SETS)
  changes: dict[str, dict] = {
    name: {"source": "arithmetic", "verifier": "auto", "columns": (), **eval_sets.GENERATED_SETS[name]}
    for name in generated
  }
  for name, file in files.items():
    verifier = eval_sets.EVAL_SETS[name].verifier
    changes[name] = dict(source=str(file), verifier=verifier, count=0, columns=(), split="", copies="drop")
  return changes | ({h.name: {}} if h.source else {})


def follow(config: ConfigDict, training: Sequence[Problem]) -> dict:
  """Returns {key: value} of `config.heldout` for held-out problems like the training problems, where none are named.

  They come from the generator that makes the training problems. training: the problems that are about to be trained on;
  (): the problems of `config.problems` are read, so that a policy is evaluated as in RL. Raises InputError where no
  generator makes such problems.
  """
  source, h = config.problems.source, config.heldout
  if source in problem_lists.GENERATORS:
    kinds = config.problems.kinds if source != "arithmetic" and set(h.kinds) <= set(arithmetic.KINDS) else h.kinds
    return {"source": source, "kinds": kinds}
  training = training or rollout.read_problems(config, "problems")
  if all(problem.verifier == "arithmetic" for problem in training):
    return {"source": "arithmetic"}
  raise InputError(
    f"config.heldout.source is empty, and config.problems.source = {source!r} says nothing of held-out problems; set "
    f"config.heldout.source to a file, a folder or a set of the hub (the source itself with config.heldout.overlap=drop"
    f" gives those of its problems that are not trained on), or config.heldout.domain or .sets to evaluate on others"
  )


def rows_of_sets(metrics: Mapping[str, float]) -> list[dict[str, str]]:
  """Returns a row for each set of the metrics `eval/SET/FIGURE`: its name under `set`, and each figure as text.

  Figures are in percent with one decimal, except mean_length (tokens) and problems (their number); nan is "–". An
  interval follows in brackets, as "61.3 [58.0, 64.1]".
  """
  rows: dict[str, dict[str, str]] = {}
  for key, value in metrics.items():
    _, name, figure = key.split("/", 2)
    if figure.endswith(("_low", "_high")):
      continue
    row = rows.setdefault(name, {"set": name})
    row[figure] = _figure_text(figure, value, metrics.get(f"{key}_low"), metrics.get(f"{key}_high"))
  return list(rows.values())


def _figure_text(figure: str, value: float, low: float | None, high: float | None) -> str:
  """Returns a figure as a table's cell, with its interval where it has one; "–" for nan."""
  if math.isnan(value):
    return "–"
  if figure == "problems":
    return f"{value:.0f}"
  scale = 1 if figure == "mean_length" else 100
  text = f"{scale * value:.1f}"
  if low is not None and high is not None:
    text += f" [{scale * low:.1f}, {scale * high:.1f}]"
  return text


def write_table(metrics: Mapping[str, float], run: Run) -> str:
  """Writes a table of the metrics eval/SET/FIGURE to table.csv and table.md; returns the text of table.md.

  It has a row for each set and a column for each figure, as `rows_of_sets` writes them; the files are in the directory
  of `run`.
  """
  rows = rows_of_sets(metrics)
  columns: list[str] = []
  for row in rows:
    columns += [column for column in row if column not in columns]
  cells = []
  for row in rows:
    cells.append([row.get(column, "") for column in columns])
  logbook.write_atomic(run.workdir / "table.csv", logbook.csv_text(columns, cells))
  text = logbook.markdown(columns, cells)
  logbook.write_atomic(run.workdir / "table.md", text)
  return text


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
  """Evaluates the policy of `config.init` on the held-out sets of `config.heldout`.

  Writes table.md, table.csv and the responses (evals/). The summary has the metrics `eval/SET/FIGURE` (such as
  eval/heldout/avg@16); `heldout_overlap`, {set: number of its problems that are trained on too} or None where that is
  unknown; `heldout_left_out`, {set: number of problems left out for that}, if there are any; `dropped`, the number of
  problems left out as their prompts are too long; and `steps` (0).
  """
  with open_run(config, workdir, "evaluate") as run:
    policy = build_policy.load_policy(config)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      evaluator = Evaluator(config, policy, service)
      run.begin(heldout=evaluator.problems, tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"))
      if run.finished:
        return run.summary
      rollout.show_prompt(run.workdir, policy, evaluator.problems[0])
      progress = run.progress(evaluator.batches)
      done = iter(range(1, evaluator.batches + 1))
      metrics = evaluator(policy.params, run, 0, lambda: progress(next(done)))
    print(write_table(metrics, run), end="")
    return run.finish(steps=0, dropped=evaluator.dropped, **evaluator.overlaps(), **metrics)
