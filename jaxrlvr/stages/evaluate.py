"""Evaluation: avg@k, pass@k and maj@k of a policy on held-out problems, always against the true answers."""

from __future__ import annotations

import logging
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
  """The held-out sets of a config, ready to be sampled and graded at any step."""

  def __init__(
    self, config: ConfigDict, policy: build_policy.Policy, service: Service, training: Sequence[Problem] = ()
  ):
    """`training`: the problems that the policy is about to be trained on."""
    self._config, self._policy, self._service = config, policy, service
    trained = build_policy.trained_on(config, training)
    self._sets, left_out = held_out(config, policy, service, trained, training)
    # Of each set, how many of its problems are trained on as well; None: nothing is known of what was trained on.
    self.overlap = None if trained is None else compare(config, self._sets, trained)
    self.left_out = left_out  # problems of each set that were left out for that, where there are any
    e = config.evaluate
    sampling = dict(group=e.samples, temperature=e.temperature, top_k=0, top_p=1.0)
    self._sampler = rollout.Sampler(config, policy, "evaluate", **sampling)
    largest = max(len(one.problems) for one in self._sets.values())
    self._size = self._sampler.batch_size(e.problems_per_batch, largest)  # one shape for all sets
    cure = "config.rl.response_tokens, config.evaluate.problems_per_batch or config.evaluate.samples"
    self._sampler.check_memory("an evaluation", self._size, cure)
    self.problems = [p for one in self._sets.values() for p in one.problems]
    self.dropped = sum(one.dropped for one in self._sets.values())
    self.batches = sum(-(-len(one.problems) // self._size) for one in self._sets.values())
    self.means: dict[str, float] = {}  # of the last evaluation: mean true reward of each problem, by set/problem

  def __call__(
    self, params, run: Run, step: int, progress=lambda figures=None: None, saved: bool = False
  ) -> dict[str, float]:
    """Metrics `eval/<set>/...`, and means over the sets inside and outside of the training domain where it is known.

    The responses go to evals/<set>_<step>.jsonl. The keys of samples are the same at every step: figures are paired.
    A signal ends the evaluation behind the batch at hand; `saved`: a checkpoint of this step goes on with it.
    """
    found, self.means = {}, {}
    run.raise_if_asked(saved)
    weights = self._sampler.weights(params)
    for name in self._sets:
      rows = []
      for drawn in self._sampler.sweep(weights, self._sets[name], self._size, stream=f"evaluate/{name}"):
        rows += graded(drawn, step, verifiable.grade_once(self._service.grade))
        progress()
        run.raise_if_asked(saved)
      logbook.write_jsonl(run.workdir / "evals" / f"{name}_{step:06d}.jsonl", rows)
      found[name] = passk.evaluation_figures(rows, self._config.evaluate.pass_k)
      self.means |= {f"{name}/{problem}": value for problem, value in passk.problem_means(rows).items()}
    metrics = {f"eval/{name}/{figure}": value for name, one in found.items() for figure, value in one.items()}
    return metrics | self._domain_means(found)

  def overlaps(self) -> dict:
    """For the summary: how many problems of each set are trained on as well, and how many were left out for that."""
    return {"heldout_overlap": self.overlap} | ({"heldout_left_out": self.left_out} if self.left_out else {})

  def _domain_means(self, found: Mapping[str, Mapping]) -> dict[str, float]:
    domain, key = eval_sets.DOMAINS.get(self._config.heldout.domain), f"avg@{self._config.evaluate.samples}"
    groups = {"in-domain": domain.inside, "out-of-domain": domain.outside} if domain else {}
    means = {group: [found[name][key] for name in names if name in found] for group, names in groups.items()}
    return {f"eval/{group}/{key}": float(np.mean(values)) for group, values in means.items() if values}


def graded(drawn: rollout.Drawn, step: int, grade: Grade) -> list[dict]:
  """Rows of these responses, graded against the truth, each with the `cluster` of equal answers it belongs to."""
  true = verifiable.grade_by_truth(drawn.answers, grade)
  answers_PG = [[response.answer for response in responses] for responses in drawn.answers.response_PG]
  votes = elect(drawn.answers.problems, answers_PG, grade)
  return rollout.records(drawn, step, true, cluster=[e.cluster_G for e in votes])


def compare(
  config: ConfigDict, loaded: Mapping[str, rollout.PromptedProblems], trained: frozenset[str]
) -> dict[str, int]:
  """How many held-out problems of each set have a prompt that is trained on too: told, or an error."""
  counts = {}
  for name, one in loaded.items():
    common = overlap.common(one.problems, trained)
    counts[name] = len(common)
    if not common:
      continue
    prompt = overlap.normalised(common[0].messages)
    told = (
      f"config.heldout: set {name}: {len(common)} of {len(one.problems)} problems are trained on as well, the first "
      f"{common[0].id} ({prompt[:80]!r})"
    )
    if config.heldout.overlap == "error":
      raise InputError(
        f"{told}; take other held-out problems, or config.heldout.overlap=drop, which leaves these out, or =warn"
      )
    _LOG.warning("%s; what the policy gains on them is no sign of generalising", told)
  return counts


def held_out(
  config: ConfigDict,
  policy: build_policy.Policy,
  service: Service,
  trained: frozenset[str] | None,
  training: Sequence[Problem] = (),
) -> tuple[dict[str, rollout.PromptedProblems], dict[str, int]]:
  """(the problems of each set that `config.heldout` names, how many of each were left out by `heldout.overlap`)."""
  left_out: Counter[str] = Counter()
  loaded = {}
  for name, changes in chosen_sets(config, training).items():

    def is_left_out(problem: Problem, name: str = name) -> bool:
      known = config.heldout.overlap == "drop" and trained is not None and overlap.prompt_digest(problem) in trained
      left_out[name] += known
      return known

    loaded[name] = rollout.load_problems(config, "heldout", policy.tokenizer, service, is_left_out, **changes)
  for name, number in left_out.items():
    if number:
      _LOG.warning("config.heldout: set %s: %d problems that are trained on are left out", name, number)
  return loaded, {name: number for name, number in left_out.items() if number}


def chosen_sets(config: ConfigDict, training: Sequence[Problem]) -> dict[str, dict]:
  """What differs from `config.heldout` for each set, by name: those of sets and domain, and that of its source."""
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
  """Held-out problems where none are named: of the generator that makes the training problems, else an error.

  Without `training` the problems of `config.problems` are read, so that a policy is evaluated as RL did."""
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
  """One row a set, one column a figure, in percent but for lengths; intervals as `61.3 [58.0, 64.1]`."""
  rows: dict[str, dict[str, str]] = {}
  for key, value in metrics.items():
    _, name, figure = key.split("/", 2)
    if figure.endswith(("_low", "_high")):
      continue
    scale = 1 if figure in ("mean_length", "problems") else 100
    ends = [metrics.get(f"{key}_{end}") for end in ("low", "high")]
    interval = f" [{scale * ends[0]:.1f}, {scale * ends[1]:.1f}]" if None not in ends and value == value else ""
    told = "–" if value != value else f"{scale * value:.{0 if figure == 'problems' else 1}f}"
    rows.setdefault(name, {"set": name})[figure] = told + interval
  return list(rows.values())


def write_table(metrics: Mapping[str, float], run: Run) -> str:
  """table.csv and table.md in the run directory; returns the latter's text."""
  rows = rows_of_sets(metrics)
  columns = list(dict.fromkeys(figure for row in rows for figure in row))
  cells = [[row.get(column, "") for column in columns] for row in rows]
  logbook.write_atomic(run.workdir / "table.csv", logbook.csv_text(columns, cells))
  text = logbook.markdown(columns, cells)
  logbook.write_atomic(run.workdir / "table.md", text)
  return text


def evaluate(config: ConfigDict, workdir: str | Path) -> dict:
  """Measures the policy of `config.init` on the problems of `config.heldout`; the figures also as table.md and .csv."""
  with open_run(config, workdir, "evaluate") as run:
    policy = build_policy.load_policy(config)
    with rollout.verifier_service(config) as service, jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      evaluator = Evaluator(config, policy, service)
      inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
      run.begin(heldout=evaluator.problems, **inputs)
      if run.finished:
        return run.summary
      rollout.show_prompt(run.workdir, policy, evaluator.problems[0])
      progress = run.progress(evaluator.batches)
      done = iter(range(1, evaluator.batches + 1))
      metrics = evaluator(policy.params, run, 0, lambda: progress(next(done)))
    told = write_table(metrics, run)
    print(told, end="")
    return run.finish(steps=0, dropped=evaluator.dropped, **evaluator.overlaps(), **metrics)
