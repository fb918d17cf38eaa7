"""The language-modelling stages: pre-training, continual pre-training and SFT differ by text and settings only."""

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
from jaxrlvr.data import corpus, embedded_text
from jaxrlvr.data.columns import counts_in_words
from jaxrlvr.data.problems import shuffled
from jaxrlvr.device import multihost, sharding
from jaxrlvr.grading.service import Job
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.stages import build_policy
from jaxrlvr.stages.rollout import in_parts, verifier_service
from jaxrlvr.stages.run_directory import open_run
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
  """What a stage trains on."""

  text: Callable[[int], embedded_text.Text]  # documents by number, without end
  known: dict  # of the files that they come from
  tokens: list[int] | None = None  # of each document of `sft.epochs` epochs, in order; None: as many as `steps` take
  problems: Sequence[Problem] = ()  # whose solutions they are


def mix(config: ConfigDict, stage: str) -> embedded_text.Mix:
  """The shares of text that a stage trains on."""
  t = config.text
  if stage == "sft":
    return embedded_text.Mix(config.sft.levels, thinking=config.sft.thinking, terse=config.sft.terse)
  return embedded_text.Mix(t.levels, t.filler, t.facts, t.careful, t.guess_right, kinds=t.kinds)


def tokenizer(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the SentencePiece tokenizer of the embedded models on a sample of all their text."""
  with open_run(config, workdir, "tokenizer") as run:
    if run.finished:
      return run.summary
    run.begin()
    progress = run.progress(1)
    made = [
      embedded_text.document_text(text(config.seed, number, mix(config, stage)))
      for stage, text in embedded_text.TEXTS.items()
      for number in range(config.text.documents // len(embedded_text.TEXTS))
    ]
    trained = train_sentencepiece(made, run.workdir / build_policy.TOKENIZER_FILE, config.text.vocab)
    progress(1, {"tokens": trained.vocab_size})
    return run.finish(vocab=trained.vocab_size)


def texts(config: ConfigDict, stage: str, tokenizer: Tokenizer) -> Texts:
  """The documents of a stage."""
  settings = config[stage]
  if stage == "sft":
    check_thinking(settings.thinking, tokenizer)
  if stage == "pretrain" or not settings.source:
    return Texts(functools.partial(_embedded, config.seed, stage, mix(config, stage)), {})
  if stage == "cpt":
    with _naming(stage):
      found = corpus.TextRows(settings.source, settings.column, config.seed, settings.skip_bad)
    return Texts(found, {"rows": len(found), "first": logbook.digest([found(0), found(1)])})
  limit = settings.max_tokens or settings.row_tokens
  with _naming(stage), verifier_service(config) as service:
    judge = functools.partial(_right, service, config.answer.read) if settings.verified else None
    problems, counts = corpus.pairs(
      settings.source,
      settings.columns,
      tokenizer,
      limit,
      settings.system,
      settings.skip_bad,
      judge,
      settings.thinking,
    )
  if counts["unclosed"] or counts["untraced"]:
    _LOG.warning(
      "config.sft.source: %s: rows are left out: unclosed, no answer behind their think tags; untraced, no trace where "
      "others have one (%s)", settings.source, counts_in_words(counts),
    )  # fmt: skip
  known = {"problems": len(problems), "digest": logbook.digest(problems), **counts}
  text = corpus.responses(problems, config.seed, settings.thinking)
  if not settings.epochs:
    return Texts(text, known, None, problems)
  sizes = [len(embedded_text.document(corpus.response(one, settings.thinking), tokenizer).ids) for one in problems]
  numbers = range(settings.epochs * len(problems))
  return Texts(text, known, [sizes[shuffled(config.seed, number, len(problems))] for number in numbers], problems)


@contextlib.contextmanager
def _naming(group: str) -> Iterator[None]:
  """Raises errors of input as those of a group of the config."""
  try:
    yield
  except InputError as error:
    raise InputError(f"config.{group}: {error}") from error


def check_thinking(thinking: bool, tokenizer: Tokenizer) -> None:
  """Refuses traces behind a prompt that has already closed its thinking: the trace would stand in a second block."""
  closed = tokenizer.decode(tokenizer.render(_PROBE)).rstrip().endswith(THINK_END)
  if thinking and closed:
    raise InputError(
      f"config.sft.thinking = True, but the chat template ends a prompt with a closed {THINK_END}; take "
      "config.model.think=on or a template that leaves the thinking to the policy, or train the other arm"
    )


def _embedded(seed: int, stage: str, shares: embedded_text.Mix, number: int) -> embedded_text.Text:
  return embedded_text.TEXTS[stage](seed, number, shares)


def _right(service, reading: str, pairs) -> list[bool]:
  """Whether each solution agrees with its problem's label, where it has one."""
  asked = [problem.label != "" for problem, _ in pairs]
  also = [{"also": problem.extra["also"]} if "also" in problem.extra else {} for problem, _ in pairs]
  jobs = [
    Job(problem.verifier, parse_response(solution, reading), problem.label, more)
    for (problem, solution), more in zip(pairs, also, strict=True)
  ]
  verdicts = iter(in_parts(service.grade, [job for job, has in zip(jobs, asked, strict=True) if has]))
  return [next(verdicts).score == 1.0 if has else True for has in asked]


def train(stage: str, config: ConfigDict, workdir: str | Path) -> dict:
  """Trains on packed rows of the stage's text, from fresh weights or those of `config.init`."""
  settings = config[stage]
  with open_run(config, workdir, stage) as run:
    policy = build_policy.load_policy(config)
    sharding.check_divisible(policy.mesh, f"config.{stage}.rows", (settings.rows // settings.microbatches,), ("batch",))
    loss_fn = objective.language_modelling(policy.spec)
    text, known, tokens, problems = texts(config, stage, policy.tokenizer)
    steps, end = settings.steps, None
    if tokens is not None:
      steps, end = -(-rows_of(tokens, settings.row_tokens) // settings.rows), len(tokens)
    optimizer, rates = build_policy.optimizer(settings.optim, steps)
    document = functools.lru_cache(2)(lambda number: embedded_text.document(text(number), policy.tokenizer))
    run.begin(
      tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"), **({"texts": known} if known else {})
    )
    if run.finished:
      return run.summary
    build_policy.keep_policy(config, policy, run.workdir, problems)
    with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      state, meta = run.restore(build_policy.fresh_state(policy, optimizer))
      start, cursor = (meta["step"], tuple(meta["cursor"])) if meta else (0, (0, 0))
      progress = run.progress(steps, start)
      for step in range(start + 1, steps + 1):
        packed, cursor = pack(document, cursor, settings.rows, settings.row_tokens, end)
        places = (sharding.named_sharding(policy.mesh, "batch"), sharding.named_sharding(policy.mesh))
        batch, rate = multihost.put((_batch(packed), rates[step - 1]), places)
        state, metrics = update(
          state, batch, rate, loss_fn=loss_fn, optimizer=optimizer, microbatches=settings.microbatches
        )
        figures = run.log(step, values_of(metrics) | {"tokens": packed.target_BT.sum()})
        progress(step, {"loss": figures["loss"]} if figures else None)
        if run.due(step, steps):
          run.save(step, state, cursor=cursor, origin=policy.origin)
          run.stop_if_asked()
      more: dict[str, object] = {"texts": known | {"skipped": getattr(text, "skipped", 0)}} if known else {}
      if end is not None:
        more["documents"] = end
      return run.finish(steps=steps, parameters=policy_spec.count_weights(policy.spec), **more)


def _batch(packed: Packed) -> objective.TextBatch:
  weights_BT = packed.target_BT / np.float32(max(int(packed.target_BT.sum()), 1))
  on_host: Any = (packed.tokens_BT, packed.positions_BT, packed.segments_BT, weights_BT.astype(np.float32))
  return objective.TextBatch(*on_host)
