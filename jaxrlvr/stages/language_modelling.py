"""The stages tokenizer, pretrain, cpt and sft. The last three train alike and differ in text and settings only."""

from __future__ import annotations

import contextlib
import functools
import logging
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
from jaxrlvr.data.problems import shuffled
from jaxrlvr.device import multihost, sharding
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.stages import build_policy
from jaxrlvr.stages.rollout import grade_in_parts, verifier_service
from jaxrlvr.stages.run_directory import Run, open_run
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
  """The documents that a stage trains on."""

  text: Callable[[int], built_in_text.Text]  # returns the document of a number, for any number from 0 on
  known: dict  # figures about the files that they come from, for manifest and summary; {}: they are built in
  tokens: list[int] | None = (
    None  # lengths of the documents of all epochs, in order; None: `steps` says how many are read
  )
  problems: Sequence[Problem] = ()  # the problems whose solutions they are


def mix(config: ConfigDict, stage: str) -> built_in_text.Mix:
  """Returns the shares of each kind of built-in text that a stage, "pretrain", "cpt" or "sft", trains on."""
  t = config.text
  if stage == "sft":
    return built_in_text.Mix(config.sft.levels, thinking=config.sft.thinking, terse=config.sft.terse)
  return built_in_text.Mix(t.levels, t.filler, t.facts, t.careful, t.guess_right, kinds=t.kinds)


def tokenizer(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the SentencePiece tokenizer of the built-in models on documents of all built-in texts, equally many of each.

  Writes tokenizer.model. The summary has `vocab`, its number of tokens.
  """
  with open_run(config, workdir, "tokenizer") as run:
    if run.finished:
      return run.summary
    run.begin()
    progress = run.progress(1)
    documents = []
    documents_of_each = config.text.documents // len(built_in_text.TEXTS)
    for stage, text in built_in_text.TEXTS.items():
      shares = mix(config, stage)
      for number in range(documents_of_each):
        documents.append(built_in_text.document_text(text(config.seed, number, shares)))
    trained = train_sentencepiece(documents, run.workdir / build_policy.TOKENIZER_FILE, config.text.vocab)
    progress(1, {"tokens": trained.vocab_size})
    return run.finish(vocab=trained.vocab_size)


def texts(config: ConfigDict, stage: str, tokenizer: Tokenizer) -> Texts:
  """Returns the documents that a stage, "pretrain", "cpt" or "sft", trains on: those of its `source`, or built-in ones.

  Documents have numbers from 0 on and are made when they are asked for; the same config always gives the same ones.
  tokenizer: renders problems, and counts the tokens of solutions. Raises InputError for a source that can't be read,
  and for a chat template that leaves no place for thinking.
  """
  settings = config[stage]
  if stage == "sft":
    check_thinking(settings.thinking, tokenizer)
  if stage == "pretrain" or not settings.source:
    return Texts(functools.partial(_built_in, config.seed, stage, mix(config, stage)), {})
  if stage == "cpt":
    with _errors_name(stage):
      rows = corpus.TextRows(settings.source, settings.column, config.seed, settings.skip_bad)
    return Texts(rows, {"rows": len(rows), "first": logbook.digest([rows(0), rows(1)])})
  return _sft_texts(config, tokenizer)


def _sft_texts(config: ConfigDict, tokenizer: Tokenizer) -> Texts:
  """Returns the solutions of config.sft.source as documents, and warns of rows that are left out."""
  s = config.sft
  with _errors_name("sft"), verifier_service(config) as service:
    judge = functools.partial(_agree_with_labels, service, config.answer.read) if s.verified else None
    problems, counts = corpus.pairs(
      s.source, s.columns, tokenizer, s.max_tokens or s.row_tokens, s.system, s.skip_bad, judge, s.thinking
    )
  if counts["unclosed"] or counts["untraced"]:
    _LOG.warning(
      "config.sft.source: %s: rows are left out: unclosed, no answer behind their think tags; untraced, no trace where "
      "others have one (%s)",
      s.source,
      counts_in_words(counts),
    )
  known = {"problems": len(problems), "digest": logbook.digest(problems), **counts}
  text = corpus.responses(problems, config.seed, s.thinking)
  if not s.epochs:
    return Texts(text, known, None, problems)
  tokens_of_problem = []
  for problem in problems:
    document = built_in_text.document(corpus.response(problem, s.thinking), tokenizer)
    tokens_of_problem.append(len(document.ids))
  tokens = []
  for number in range(s.epochs * len(problems)):
    tokens.append(tokens_of_problem[shuffled(config.seed, number, len(problems))])
  return Texts(text, known, tokens, problems)


@contextlib.contextmanager
def _errors_name(group: str) -> Iterator[None]:
  """Puts a group of the config at the beginning of each InputError of the block."""
  try:
    yield
  except InputError as error:
    raise InputError(f"config.{group}: {error}") from error


def check_thinking(thinking: bool, tokenizer: Tokenizer) -> None:
  """Raises InputError where SFT is to teach traces, but the chat template ends a prompt with thinking that is closed.

  The trace would stand in a second block of thinking.
  """
  closed = tokenizer.decode(tokenizer.render(_PROBE)).rstrip().endswith(THINK_END)
  if thinking and closed:
    raise InputError(
      f"config.sft.thinking = True, but the chat template ends a prompt with a closed {THINK_END}; take "
      "config.model.think=on or a template that leaves the thinking to the policy, or train the other arm"
    )


def _built_in(seed: int, stage: str, shares: built_in_text.Mix, number: int) -> built_in_text.Text:
  """Returns the built-in document of a number."""
  return built_in_text.TEXTS[stage](seed, number, shares)


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
  """Trains a policy on packed rows of the stage's text: fresh weights, or those of `config.init`.

  The stage is "pretrain", "cpt" or "sft". Writes metrics.jsonl and checkpoints. The summary has the number of `steps`
  and of `parameters`, figures about the `texts` if they come from files, and the number of `documents` if epochs say
  how long SFT is. Raises TrainingStopped where too many updates in a row are not finite.
  """
  with open_run(config, workdir, stage) as run:
    return _train(stage, config, run)


def _train(stage: str, config: ConfigDict, run: Run) -> dict:
  """Does the work of `train` in an open run directory, and returns the summary."""
  settings = config[stage]
  policy = build_policy.load_policy(config)
  sharding.check_divisible(policy.mesh, f"config.{stage}.rows", (settings.rows // settings.microbatches,), ("batch",))
  loss_fn = objective.language_modelling(policy.spec)
  documents = texts(config, stage, policy.tokenizer)
  steps, end = settings.steps, None
  if documents.tokens is not None:
    rows = rows_of(documents.tokens, settings.row_tokens)
    steps, end = -(-rows // settings.rows), len(documents.tokens)
  optimizer, rates = build_policy.make_optimizer(settings.optim, steps)
  inputs = {"tokenizer": policy.tokenizer.pieces(), "origin": policy.origin.get("digests")}
  if documents.known:
    inputs["texts"] = documents.known
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
        state, batch, rate, loss_fn=loss_fn, optimizer=optimizer, microbatches=settings.microbatches
      )
      figures = run.log(step, values_of(metrics) | {"tokens": packed.target_BT.sum()})
      progress(step, {"loss": figures["loss"]} if figures else None)
      if run.due(step, steps):
        run.save(step, state, cursor=cursor, origin=policy.origin)
        run.raise_if_asked_after_save()
    figures_of_texts: dict[str, object] = {}
    if documents.known:
      figures_of_texts["texts"] = documents.known | {"skipped": getattr(documents.text, "skipped", 0)}
    if end is not None:
      figures_of_texts["documents"] = end
    return run.finish(steps=steps, parameters=policy_spec.count_weights(policy.spec), **figures_of_texts)


def _batch(packed: Packed) -> objective.TextBatch:
  """Returns packed rows as a batch on the host, whose loss is the mean over all target tokens."""
  weights_BT = packed.target_BT / np.float32(max(int(packed.target_BT.sum()), 1))
  on_host: Any = (packed.tokens_BT, packed.positions_BT, packed.segments_BT, weights_BT.astype(np.float32))
  return objective.TextBatch(*on_host)
