"""The stages tokenizer, pretrain, cpt and sft. The last three train alike and differ in text and settings only."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr.base import logbook
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem
from jaxrlvr.data import built_in_text, corpus
from jaxrlvr.data.columns import counts_in_words
from jaxrlvr.data.problems import shuffled_index
from jaxrlvr.device import multihost, sharding
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.model import lora, weight_table
from jaxrlvr.model.row_layout import Separate
from jaxrlvr.planning import memory
from jaxrlvr.planning.memory import Memory
from jaxrlvr.stages import build_policy
from jaxrlvr.stages.memory import check_fits
from jaxrlvr.stages.rollout import grade_in_parts, verifier_service
from jaxrlvr.stages.run_directory import Run, open_run
from jaxrlvr.tasks import own
from jaxrlvr.text.answer import parse_response
from jaxrlvr.text.tags import THINK_END
from jaxrlvr.text.tokenizer import Tokenizer, train_sentencepiece
from jaxrlvr.training import objective
from jaxrlvr.training.metrics import values_of
from jaxrlvr.training.packing import Packed, pack, rows_of
from jaxrlvr.training.update import update

_LOG = logging.getLogger(__name__)
_PROBE = ({"role": "user", "content": "?"},)


class Texts(NamedTuple):
  """The documents that a stage trains on, in the order of their numbers.

  A document has `text` (plain text, or the response to a problem), `problem` (None: plain text) and `masked` (whether
  the problem's prompt is context alone, on which no loss is taken).
  """

  text: Callable[[int], built_in_text.Text]  # returns document `number`, from 0 on without an end: files repeat
  file_figures: dict  # figures about the files that they come from, see `texts`; {}: documents are built in
  lengths: list[int] | None = None  # tokens of each document to the end of the last epoch; None: there are no epochs
  problems: Sequence[Problem] = ()  # the problems whose solutions the documents are; (): they are no solutions


def mix_of(config: ConfigDict, stage: str) -> built_in_text.Mix:
  """Reads from `config.text`, or for "sft" from `config.sft`, what the built-in text of a stage consists of.

  stage: "pretrain", "cpt" or "sft". The result holds levels and kinds of problems, and shares of kinds of documents.
  """
  text = config.text
  if stage == "sft":
    return built_in_text.Mix(config.sft.levels, thinking=config.sft.thinking, terse=config.sft.terse)
  return built_in_text.Mix(text.levels, text.filler, text.facts, text.careful, text.guess_right, kinds=text.kinds)


def tokenizer(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains a SentencePiece tokenizer with text.vocab tokens for models that are trained from scratch.

  It is trained on text.documents built-in documents, a third of them from each of pre-training, CPT and SFT. Writes
  tokenizer.model, so that the run directory can be a config.tokenizer. Returns the summary, whose `vocab` is the number
  of tokens. A finished run returns its summary.
  """
  with open_run(config, workdir, "tokenizer") as run:
    if run.finished:
      return run.summary
    run.begin()
    progress = run.progress(1)
    documents = []
    documents_of_each = config.text.documents // len(built_in_text.TEXTS)
    for stage, text in built_in_text.TEXTS.items():
      mix = mix_of(config, stage)
      for number in range(documents_of_each):
        documents.append(built_in_text.document_text(text(config.seed, number, mix)))
    trained = train_sentencepiece(documents, run.workdir / build_policy.TOKENIZER_FILE, config.text.vocab)
    progress(1, {"tokens": trained.vocab_size})
    return run.finish(vocab=trained.vocab_size)


def texts(config: ConfigDict, stage: str, tokenizer: Tokenizer) -> Texts:
  """Returns the documents that a stage trains on: those of cpt.source or sft.source where it is set, else built-in
  ones.

  stage: "pretrain", "cpt" or "sft". Documents are read or made when they are asked for; the same config always gives
  the same ones. For cpt they are rows of text, for sft the solutions of problems, which are checked against their
  labels if sft.verified. tokenizer: renders problems, and counts the tokens of solutions. The result's `file_figures`
  are for cpt `rows` (their number) and `first` (digest of the first two documents), for sft `problems` (their number),
  `digest` (of them), and numbers of rows that were left out by cause, such as wrong and too_long; {} for built-in
  documents. Raises InputError for a source that can't be read or of which no row is left, and for sft as
  `check_thinking` does.
  """
  settings = config[stage]
  if stage == "sft":
    check_thinking(settings.thinking, tokenizer)
  if stage == "pretrain" or not settings.source:
    return Texts(functools.partial(_built_in, config.seed, stage, mix_of(config, stage)), {})
  if stage == "cpt" and own.is_task(settings.source):
    with _errors_name(stage):
      task_texts = corpus.TaskTexts(settings.source, config.seed)
      return Texts(task_texts, {"first": logbook.digest([task_texts(0), task_texts(1)])})
  if stage == "cpt":
    with _errors_name(stage):
      rows = corpus.TextRows(settings.source, settings.column, config.seed, settings.skip_bad)
    return Texts(rows, {"rows": len(rows), "first": logbook.digest([rows(0), rows(1)])})
  return _sft_texts(config, tokenizer)


def _sft_texts(config: ConfigDict, tokenizer: Tokenizer) -> Texts:
  """Returns the solutions of config.sft.source as documents, and warns of rows that are left out."""
  settings = config.sft
  with _errors_name("sft"), verifier_service(config) as service:
    judge = functools.partial(_agree_with_labels, service, config.answer.read) if settings.verified else None
    problems, counts = corpus.sft_problems(
      settings.source,
      settings.columns,
      tokenizer,
      settings.max_tokens or settings.row_tokens,
      settings.system,
      settings.skip_bad,
      judge,
      settings.thinking,
    )
  if counts["unclosed"] or counts["untraced"]:
    _LOG.warning(
      "config.sft.source: %s: rows are left out: unclosed, no answer behind their think tags; untraced, no trace where "
      "others have one (%s)",
      settings.source,
      counts_in_words(counts),
    )
  file_figures = {"problems": len(problems), "digest": logbook.digest(problems), **counts}
  text = corpus.responses(problems, config.seed, settings.thinking)
  if not settings.epochs:
    return Texts(text, file_figures, None, problems)
  length_of_problem = []
  for problem in problems:
    document = built_in_text.document(corpus.response(problem, settings.thinking), tokenizer)
    length_of_problem.append(len(document.ids))
  lengths = []
  for number in range(settings.epochs * len(problems)):
    lengths.append(length_of_problem[shuffled_index(config.seed, number, len(problems))])
  return Texts(text, file_figures, lengths, problems)


@contextlib.contextmanager
def _errors_name(group: str) -> Iterator[None]:
  """Puts a group of the config at the beginning of each InputError of the block."""
  try:
    yield
  except InputError as error:
    raise InputError(f"config.{group}: {error}") from error


def check_thinking(thinking: bool, tokenizer: Tokenizer) -> None:
  """Raises InputError where SFT teaches traces, but each prompt already ends with an empty block of thinking.

  Some chat templates end a prompt with `<think></think>`; a trace would then stand in a second block. thinking: whether
  SFT teaches traces (config.sft.thinking); with False nothing is raised. tokenizer: has the chat template, if any.
  """
  closed = tokenizer.decode(tokenizer.render(_PROBE)).rstrip().endswith(THINK_END)
  if thinking and closed:
    raise InputError(
      f"config.sft.thinking = True, but the chat template ends a prompt with a closed {THINK_END}; take "
      "config.model.think=on or a template that leaves the thinking to the policy, or train the other arm"
    )


def _built_in(seed: int, stage: str, mix: built_in_text.Mix, number: int) -> built_in_text.Text:
  """Returns the built-in document of a number."""
  return built_in_text.TEXTS[stage](seed, number, mix)


def _agree_with_labels(service: Service, reading: str, pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
  """Returns for each pair (problem, solution) whether the solution agrees with the label, True if there is no label.

  reading: how the answer is read from a solution (config.answer.read).
  """
  jobs = []
  for problem, solution in pairs:
    if problem.label:
      extra = {"also": problem.extra["also"]} if "also" in problem.extra else {}
      jobs.append(Job(problem.verifier, parse_response(solution, reading), problem.label, extra))
  verdicts = iter(grade_in_parts(service.grade, jobs))
  agree = []
  for problem, _ in pairs:
    agree.append(next(verdicts).score == 1.0 if problem.label else True)
  return agree


def train(stage: str, config: ConfigDict, workdir: str | Path) -> dict:
  """Trains a policy to predict the next token of the stage's documents, packed into rows of STAGE.row_tokens tokens.

  stage: "pretrain", "cpt" or "sft"; the keys of config.STAGE say how it trains. The policy is that of `config.init` or
  `config.model.path`; where both are empty, its weights are drawn afresh. Writes checkpoints/, what makes the run
  directory a config.init, and metrics.jsonl, a row for each step: step, loss and entropy (nats a token), grad_norm,
  learning_rate, skipped_updates and tokens (number trained on). A run that was stopped goes on from its last
  checkpoint; a finished one returns its summary.

  Returns the summary: `steps`, `parameters` (number of weights), `trained_parameters` (number of
  those that are trained; only with LoRA), `texts` (only if they come from files: the
  `file_figures` of `texts`, and `skipped`, the number of rows without text), and `documents` (their number, only if
  sft.epochs says how long the run is). On several hosts all processes must call it together. Raises InputError for text
  that can't be read, TrainingStopped where too many updates in a row are not finite, and Interrupted after a signal,
  with a checkpoint.
  """
  with open_run(config, workdir, stage) as run:
    return _train(stage, config, run)


def _train(stage: str, config: ConfigDict, run: Run) -> dict:
  """Does the work of `train` in an open run directory, and returns the summary."""
  settings = config[stage]
  opened = build_policy.open_policy(config, settings.row_tokens, to_train=True)
  mesh = opened.policy.mesh
  sharding.check_divisible(mesh, f"config.{stage}.rows", (settings.rows // settings.microbatches,), ("batch",))
  check_fits(memory_of_training(settings, opened.policy), mesh, run)
  policy = opened.load()
  loss_fn = objective.language_modelling(policy.spec)
  documents = texts(config, stage, policy.tokenizer)
  steps, end = settings.steps, None  # end: number of documents to read, None: as many as `steps` take
  if documents.lengths is not None:
    rows = rows_of(documents.lengths, settings.row_tokens)
    steps, end = math.ceil(rows / settings.rows), len(documents.lengths)
  optimizer, rates = build_policy.make_optimizer(settings.optim, steps)
  inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
  if documents.file_figures:
    inputs["texts"] = documents.file_figures
  run.begin(**inputs)
  if run.finished:
    return run.summary
  build_policy.write_policy_files(config, policy, run.workdir, documents.problems)
  # A document that fits no row of a batch any more is asked for again by the next batch.
  document = functools.lru_cache(2)(lambda number: built_in_text.document(documents.text(number), policy.tokenizer))
  with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
    state, meta = run.restore(build_policy.fresh_state(policy, optimizer))
    start, cursor = (meta["step"], tuple(meta["cursor"])) if meta else (0, (0, 0))
    progress = run.progress(steps, start)
    for step in range(start + 1, steps + 1):
      packed, cursor = pack(document, cursor, settings.rows, settings.row_tokens, end)
      shardings = (sharding.named_sharding(policy.mesh, "batch"), sharding.named_sharding(policy.mesh))
      batch, rate = multihost.put((_batch(packed), rates[step - 1]), shardings)
      state, metrics = update(
        state,
        batch,
        rate,
        frozen=policy.frozen.weights,
        loss_fn=loss_fn,
        optimizer=optimizer,
        microbatches=settings.microbatches,
      )
      figures = run.log(step, values_of(metrics) | {"tokens": packed.target_BT.sum()})
      progress(step, {"loss": figures["loss"]} if figures else None)
      if run.due(step, steps):
        run.save(step, state, cursor=cursor, origin=policy.origin)
        run.raise_if_asked_after_save()
    figures = {"parameters": weight_table.count_weights(policy.spec)} | _figures_of_texts(documents)
    if policy.spec.lora is not None:
      figures["trained_parameters"] = lora.count_adapters(policy.spec)
    return run.finish(steps=steps, **figures)


def memory_of_training(settings: ConfigDict, policy: build_policy.Policy) -> Memory:
  """Returns what a run of pretrain, cpt or sft takes of a device's memory, by part.

  settings: those of the stage, such as config.sft. policy: its weights are not read.
  """
  moment, layout = settings.optim.moment, Separate(settings.row_tokens)
  update_work = memory.work_of_update(
    policy.spec, policy.mesh, layout, rows=settings.rows, microbatches=settings.microbatches, moment=moment
  )
  return Memory(memory.held_of_run(policy.spec, policy.mesh, moment), update_work)


def _figures_of_texts(documents: Texts) -> dict[str, object]:
  """Returns the summary's entries about documents after training: `texts` and `documents`, as `train` says."""
  figures: dict[str, object] = {}
  if documents.file_figures:
    figures["texts"] = documents.file_figures | {"skipped": getattr(documents.text, "skipped", 0)}
  if documents.lengths is not None:
    figures["documents"] = len(documents.lengths)
  return figures


def _batch(packed: Packed) -> objective.TextBatch:
  """Returns packed rows as a batch on the host, whose loss is the mean over all target tokens."""
  weights_BT = packed.target_BT / np.float32(max(int(packed.target_BT.sum()), 1))
  on_host: Any = (packed.tokens_BT, packed.positions_BT, packed.segments_BT, weights_BT.astype(np.float32))
  return objective.TextBatch(*on_host)
