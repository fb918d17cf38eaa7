"""Evaluation: measures avg@k, pass@k and maj@k of a policy on held-out problems, always by the true answers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.analysis import passk
from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import eval_sets, overlap, own_sets
from jaxrlvr.data import problems as problem_lists
from jaxrlvr.grading.service import Service
from jaxrlvr.grading.vote import Grade, elect
from jaxrlvr.planning import memory
from jaxrlvr.planning.memory import Memory, SamplingWork
from jaxrlvr.rewards import verifiable
from jaxrlvr.sampling.types import Sampling
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.memory import check_fits
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.tasks.arithmetic import problems as arithmetic

_LOG = logging.getLogger(__name__)
# What makes the batches of an evaluation smaller, in words.
EVALUATION_KEYS = "config.rl.response_tokens, config.evaluate.problems_per_batch or config.evaluate.samples"
_OF_GENERATED = {"verifier": "auto", "columns": ()}  # of generated sets, whatever heldout.source has


class Evaluator:
  """The held-out sets of a config. Calling it, evaluator(params, run, step), samples and grades all of them.

  `problems`: the problems of all sets. `dropped`: how many more were left out, as their prompts are too long.
  `batches`: how many batches an evaluation samples. `overlap`: {set: number of its problems that are trained on as
  well}, with 0 for a set without such problems; None: it is unknown what was trained on. `left_out`: {set: number of
  problems that were left out of it, as they are trained on}, only of sets with such problems. `means`: {"SET/PROBLEM":
  mean true reward of the problem's graded samples} of the last evaluation, without problems of which no sample could be
  graded; {} before the first.
  """

  def __init__(
    self, config: ConfigDict, policy: build_policy.Policy, service: Service, training: Sequence[Problem] = ()
  ):
    """Reads the sets of `config.heldout` and prepares to sample them.

    service: grades answers. training: the problems that the policy is about to be trained on; (): none, and the overlap
    is that with the problems that the policy was trained on before. On several hosts all processes must make it
    together. Raises InputError for sets that can't be read, or overlap with these though config.heldout.overlap is
    "error".
    """
    self._config, self._policy, self._service = config, policy, service
    trained = build_policy.digests_of_training_prompts(config, training)
    self._sets, self.left_out = load_held_out(config, policy, service, trained, training)
    self.overlap = None if trained is None else count_overlaps(config, self._sets, trained)
    settings = config.evaluate
    self._sampler = rollout.Sampler(
      config, policy, "evaluate", group=settings.samples, temperature=settings.temperature, top_k=0, top_p=1.0
    )
    self.problems: list[Problem] = []
    self.dropped = 0
    for loaded in self._sets.values():
      self.problems += loaded.problems
      self.dropped += loaded.dropped
    sizes = [len(loaded.problems) for loaded in self._sets.values()]
    self._batch_size = self._sampler.batch_size(settings.problems_per_batch, max(sizes))  # one shape for all sets
    self.batches = sum(-(-size // self._batch_size) for size in sizes)
    self.means: dict[str, float] = {}

  @property
  def sampling(self) -> tuple[Sampling, SamplingWork]:
    """Property: the settings of sampling, and what sampling a batch takes of a device's memory."""
    return self._sampler.sampling, self._sampler.work(self._batch_size)

  def memory(self) -> Memory:
    """Returns what an evaluation alone takes of a device's memory, with the policy's weights."""
    spec, (settings, work) = self._policy.spec, self.sampling
    laid_out = 0.0
    if spec.lora is not None:
      laid_out = memory.frozen_for_sampling(spec, self._policy.sample_mesh, settings.int8)
    return Memory(memory.held_of_run(spec, self._policy.mesh, laid_out=laid_out), None, work)

  def __call__(
    self, params, run: Run, step: int, progress=lambda figures=None: None, saved: bool = False
  ) -> dict[str, float]:
    """Evaluates the policy's weights `params` at a step, and returns the metrics {"eval/SET/FIGURE": value}.

    FIGURE is avg@K, if_extracted@K and pass@k, each with its interval as FIGURE_low and FIGURE_high, and problems,
    maj@K, format, mean_length, clipped, unscored, faithful and step_true, as `passk.evaluation_figures` defines them:
    shares from 0 to 1, except problems and mean_length (tokens); nan where one is undefined. K is
    config.evaluate.samples, k each of config.evaluate.pass_k. If config.heldout.domain is set there are also
    `eval/in-domain/avg@K` and `eval/out-of-domain/avg@K` (see `domain_means`). Sets `means`, and writes the responses
    of each set to evals/SET_STEP.jsonl (columns: see `graded_rows`), the step with six digits. Samples have the same
    random keys at every step, so that the figures of two steps are paired. On several hosts all processes must call it
    together. `progress` is called without arguments after each batch. Raises Interrupted after a batch if a signal has
    asked the run to stop; saved: whether a checkpoint of this step exists, from which the run goes on with the
    evaluation.
    """
    metrics, self.means = {}, {}
    run.raise_if_asked(saved)
    weights = self._sampler.weights(params)
    for name, loaded in self._sets.items():
      rows = []
      for drawn in self._sampler.sweep(weights, loaded, self._batch_size, stream=f"evaluate/{name}"):
        rows += graded_rows(drawn, step, verifiable.with_memory(self._service.grade))
        progress()
        run.raise_if_asked(saved)
      logbook.write_jsonl(run.workdir / "evals" / f"{name}_{step:06d}.jsonl", rows)
      for figure, value in passk.evaluation_figures(rows, self._config.evaluate.pass_k).items():
        metrics[f"eval/{name}/{figure}"] = value
      for problem, mean in passk.problem_means(rows).items():
        self.means[f"{name}/{problem}"] = mean
    return metrics | domain_means(self._config, metrics)

  def overlaps(self) -> dict:
    """Returns the part of a run's summary that says which held-out problems the policy is trained on.

    Keys: heldout_overlap ({set: number of evaluated problems that are trained on too}; None: it is not known what the
    policy was trained on) and, only if config.heldout.overlap = "drop" left problems out, heldout_left_out ({set:
    number of problems that were left out because they are trained on}).
    """
    figures: dict = {"heldout_overlap": self.overlap}
    if self.left_out:
      figures["heldout_left_out"] = self.left_out
    return figures


def domain_means(config: ConfigDict, metrics: Mapping[str, float]) -> dict[str, float]:
  """Returns the means of avg@K over the evaluated sets inside and outside of config.heldout.domain.

  metrics: those of the evaluation, {"eval/SET/FIGURE": value}. Returns {"eval/in-domain/avg@K": share from 0 to 1,
  "eval/out-of-domain/avg@K": ...}, K being config.evaluate.samples, in which each evaluated set of the domain counts
  alike, whatever its number of problems. A key is absent where no set of its group was evaluated; the result is {}
  where no domain is set.
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


def graded_rows(drawn: rollout.Drawn, step: int, grade: Grade) -> list[dict]:
  """Grades responses by the truth and returns a row for each, problem by problem, as evals/ holds them.

  step: goes into each row. grade: takes a list of `Job` and returns a `Verdict` for each, in their order, as
  `Service.grade` does. A row has step, problem (id), sample, prompt, text, answer (None: it holds none), label, truth,
  tokens, stop, logp, certainty, entropy, sequence_logp, true_reward (1.0, 0.0 or a fraction; None: unscored), scored,
  cause, faithfulness, step_true (all explained at `rollout.records`), and `cluster`, the number from 0 of the cluster
  of equal answers among the responses to the problem; None: it has no answer that can be read.
  """
  true = verifiable.grade_by_truth(drawn.answers, grade)
  elections = elect(drawn.answers.problems, drawn.answer_PG, grade)
  return rollout.records(drawn, step, true, {"cluster": [election.cluster_G for election in elections]})


def count_overlaps(
  config: ConfigDict, loaded: Mapping[str, rollout.PromptedProblems], trained: frozenset[str]
) -> dict[str, int]:
  """Returns {set: number of its problems whose prompt is trained on too}, with 0 for a set without such problems.

  loaded: the held-out sets by name. trained: digests of the prompts that are trained on (`overlap.prompt_digest`).
  Warns of each set that has such problems, or raises InputError if config.heldout.overlap is "error".
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


class HeldOut(NamedTuple):
  """The held-out sets of a config, read."""

  sets: dict[str, rollout.PromptedProblems]  # the problems of each set, with their prompts, by the set's name
  left_out: dict[str, int]  # {set: number of its problems left out as they are trained on}, none of them 0


def load_held_out(
  config: ConfigDict,
  policy: build_policy.Policy,
  service: Service,
  trained: frozenset[str] | None,
  training: Sequence[Problem] = (),
) -> HeldOut:
  """Reads the sets of `config.heldout`.

  If heldout.overlap is "drop", problems whose prompt's digest is in `trained` are left out, with a warning, and do not
  count towards heldout.count. policy: its tokenizer renders the prompts. service: tells which labels can't be read.
  trained: digests of the prompts that are trained on (`overlap.prompt_digest`); None: unknown, and nothing is left out.
  training: the problems that are about to be trained on (see `chosen_sets`). Raises InputError for a set that can't be
  read or of which no problem is left.
  """
  left_out: Counter[str] = Counter()
  loaded = {}
  for name, changes in chosen_sets(config, training).items():

    def is_left_out(problem: Problem, name: str = name) -> bool:
      if config.heldout.overlap != "drop" or trained is None or overlap.prompt_digest(problem) not in trained:
        return False
      left_out[name] += 1
      return True

    loaded[name] = rollout.load_problems(config, "heldout", policy.tokenizer, service, changes, is_left_out)
  for name, count in left_out.items():
    _LOG.warning("config.heldout: set %s: %d problems that are trained on are left out", name, count)
  return HeldOut(loaded, dict(left_out))


def chosen_sets(config: ConfigDict, training: Sequence[Problem]) -> dict[str, dict]:
  """Returns the held-out sets by name, each as {key: value} in which it differs from `config.heldout`.

  Keys have no group, as in {"source": "quiz.jsonl", "count": 0}; a user's own set of heldout.sets has its
  `own_sets.OwnSet` under "entry". The sets are those that heldout.sets names or describes or, where it is empty, those
  of heldout.domain; and the set of heldout.source under heldout.name. Where none of the three is set, the only set,
  under heldout.name, has problems of the generator that makes the training problems. training: the problems that are
  about to be trained on; (): those of `config.problems`, which are then read if their source is a file. A set of
  heldout.domain that the study did not release is left out with a warning where its file is missing. Raises InputError
  for any other missing file, and where nothing says which problems are held out.
  """
  heldout = config.heldout
  if not heldout.sets and not heldout.domain:
    changes_of_only_set = {} if heldout.source else _settings_like_training(config, training)
    return {heldout.name: changes_of_only_set}
  try:
    files, absent = eval_sets.find_files(
      heldout.sets, heldout.domain, object_store.local(heldout.folder), heldout.prompts
    )
  except InputError as error:
    raise InputError(f"config.heldout: {error}") from error
  if absent:
    _LOG.warning("%s: not among the study's files and not in %s; left out", ", ".join(absent), heldout.folder)
  changes: dict[str, dict] = {}
  for name in eval_sets.set_names(heldout.sets, heldout.domain):
    if name in eval_sets.GENERATED_SETS:
      changes[name] = {"source": "arithmetic", **_OF_GENERATED, **eval_sets.GENERATED_SETS[name]}
  for name, file in files.items():
    verifier = eval_sets.EVAL_SETS[name].verifier
    changes[name] = dict(source=str(file), verifier=verifier, count=0, columns=(), split="", copies="drop")
  for name, own_set in own_sets.parse_entries(heldout.sets).items():
    changes[name] = {"source": own_set.source, **_OF_GENERATED, **own_set.settings, "entry": own_set}
  if heldout.source:
    changes[heldout.name] = {}
  return changes


def names_held_out(config: ConfigDict, training: Sequence[Problem]) -> bool:
  """Returns whether a config says which problems are held out, so that `chosen_sets` raises no error for want of them.

  It does where heldout.source, heldout.sets or heldout.domain is set, and where a generator makes the problems in
  `training` and so makes others like them.
  """
  heldout = config.heldout
  return bool(heldout.source or heldout.sets or heldout.domain) or _is_generated(config, training)


def _is_generated(config: ConfigDict, training: Sequence[Problem]) -> bool:
  """Returns whether a generator makes problems like the training problems."""
  if problem_lists.is_generated(config.problems.source):
    return True
  return bool(training) and all(problem.verifier == "arithmetic" for problem in training)


def _settings_like_training(config: ConfigDict, training: Sequence[Problem]) -> dict:
  """Returns {key: value} of `config.heldout` for held-out problems like the training problems, where none are named.

  They come from the generator that makes the training problems. training: the problems that are about to be trained on;
  (): the problems of `config.problems` are read, so that a policy is evaluated as in RL. Raises InputError where no
  generator makes such problems.
  """
  source, heldout = config.problems.source, config.heldout
  if problem_lists.is_generated(source):
    heldout_kinds_are_unset = set(heldout.kinds) <= set(arithmetic.KINDS)  # the default names a kind of arithmetic
    if source != "arithmetic" and heldout_kinds_are_unset:
      return {"source": source, "kinds": config.problems.kinds}
    return {"source": source, "kinds": heldout.kinds}
  training = training or rollout.read_problems(config, "problems")
  if _is_generated(config, training):
    return {"source": "arithmetic"}
  raise InputError(
    f"config.heldout.source is empty, and config.problems.source = {source!r} says nothing of held-out problems; set "
    f"config.heldout.source to a file, a folder or a set of the hub (the source itself with config.heldout.overlap=drop"
    f" gives those of its problems that are not trained on), or config.heldout.domain or .sets to evaluate on others"
  )


def _rows_of_sets(metrics: Mapping[str, float]) -> list[dict[str, str]]:
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


def _write_table(metrics: Mapping[str, float], run: Run) -> str:
  """Writes a table of the metrics eval/SET/FIGURE to table.csv and table.md; returns the text of table.md.

  It has a row for each set and a column for each figure, as `_rows_of_sets` writes them; the files are in the directory
  of `run`.
  """
  rows = _rows_of_sets(metrics)
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
  """Evaluates the policy of `config.init` or `config.model.path` on the held-out sets of `config.heldout`.

  Prints a table with a row for each set and writes it to table.md and table.csv (percentages with their intervals).
  Writes prompt.txt (the first prompt as the policy sees it) and the responses, evals/SET_000000.jsonl (see
  `graded_rows`). Returns the summary, which summary.json holds too: the metrics `eval/SET/FIGURE` (such as
  eval/heldout/avg@16; see `Evaluator.__call__`); `heldout_overlap`, {set: number of its problems that are trained on
  too} or None where that is unknown; `heldout_left_out`, {set: number of problems left out for that}, if there are any;
  `dropped`, the number of problems left out as their prompts are too long; and `steps` (0). A finished run returns its
  summary and does nothing; one that was stopped evaluates from the beginning. Raises InputError for a policy or a set
  that can't be read.
  """
  with open_run(config, workdir, "evaluate") as run:
    start = build_policy.open_policy(config)
    with rollout.verifier_service(config) as service:
      with jax.set_mesh(start.policy.mesh), jax.transfer_guard("disallow"):
        evaluator = Evaluator(config, start.policy, service)
      check_fits(evaluator.memory(), start.policy.mesh, run, EVALUATION_KEYS)
      policy = start.load()
      with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
        run.begin(heldout=evaluator.problems, tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"))
        if run.finished:
          return run.summary
        rollout.write_prompt(run.workdir, policy, evaluator.problems[0])
        progress = run.progress(evaluator.batches)
        batch_numbers = iter(range(1, evaluator.batches + 1))
        metrics = evaluator(policy.params, run, 0, lambda: progress(next(batch_numbers)))
    print(_write_table(metrics, run), end="")
    return run.finish(steps=0, dropped=evaluator.dropped, **evaluator.overlaps(), **metrics)
