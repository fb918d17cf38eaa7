"""The language-modelling stages: pre-training, continual pre-training and SFT differ by text and settings only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxrlvr import hosts, logbook, objective, shard
from jaxrlvr.data import corpus, embedded
from jaxrlvr.data.pack import Packed, pack
from jaxrlvr.policy import spec as policy_spec
from jaxrlvr.stages import setup
from jaxrlvr.stages.rollout import verifier_service
from jaxrlvr.stages.run import open_run
from jaxrlvr.text.answer import parse
from jaxrlvr.text.tokenizer import Tokenizer, train_sentencepiece
from jaxrlvr.update import update
from jaxrlvr.verify.service import Job


def mix(config: ConfigDict, stage: str) -> embedded.Mix:
  """The shares of text that a stage trains on."""
  t = config.text
  if stage == "sft":
    return embedded.Mix(config.sft.levels, thinking=config.sft.thinking, terse=config.sft.terse)
  return embedded.Mix(t.levels, t.filler, t.facts, t.careful, t.guess_right, kinds=t.kinds)


def tokenizer(config: ConfigDict, workdir: str | Path) -> dict:
  """Trains the SentencePiece tokenizer of the embedded models on a sample of all their text."""
  with open_run(config, workdir, "tokenizer") as run:
    if run.finished:
      return run.summary
    run.begin()
    progress = run.progress(1)
    made = [
      embedded.plain(text(config.seed, number, mix(config, stage)))
      for stage, text in embedded.TEXTS.items()
      for number in range(config.text.documents // len(embedded.TEXTS))
    ]
    trained = train_sentencepiece(made, run.workdir / setup.TOKENIZER, config.text.vocab)
    progress(1, {"tokens": trained.vocab_size})
    return run.finish(vocab=trained.vocab_size)


def texts(config: ConfigDict, stage: str, tokenizer: Tokenizer) -> tuple[Callable[[int], embedded.Text], dict]:
  """(the stage's documents by number, what is known of the files that they come from)."""
  settings = config[stage]
  if stage == "pretrain" or not settings.source:
    return functools.partial(_embedded, config.seed, stage, mix(config, stage)), {}
  if stage == "cpt":
    found = corpus.TextRows(settings.source, settings.column, config.seed, settings.skip_bad)
    return found, {"rows": len(found), "first": logbook.digest([found(0), found(1)])}
  limit = settings.max_tokens or settings.row_tokens
  with verifier_service(config) as service:
    judge = functools.partial(_right, service, config.answer.read) if settings.verified else None
    found = corpus.pairs(settings.source, settings.columns, tokenizer, limit, settings.system, settings.skip_bad, judge)
  known = {"problems": len(found.problems), "digest": logbook.digest(found.problems), **found.counts}
  return corpus.responses(found.problems, config.seed, settings.thinking), known


def _embedded(seed: int, stage: str, shares: embedded.Mix, number: int) -> embedded.Text:
  return embedded.TEXTS[stage](seed, number, shares)


def _right(service, reading: str, pairs) -> list[bool]:
  """Whether each solution agrees with its problem's label, where it has one."""
  asked = [problem.label != "" for problem, _ in pairs]
  also = [{"also": problem.extra["also"]} if "also" in problem.extra else {} for problem, _ in pairs]
  jobs = [
    Job(problem.verifier, parse(solution, reading), problem.label, more)
    for (problem, solution), more in zip(pairs, also, strict=True)
  ]
  verdicts = iter(service.grade([job for job, has in zip(jobs, asked, strict=True) if has]))
  return [next(verdicts).score == 1.0 if has else True for has in asked]


def train(stage: str, config: ConfigDict, workdir: str | Path) -> dict:
  """Trains on packed rows of the stage's text, from fresh weights or those of `config.init`."""
  settings = config[stage]
  with open_run(config, workdir, stage) as run:
    policy = setup.load_policy(config)
    shard.check(policy.mesh, f"config.{stage}.rows", (settings.rows // settings.microbatches,), ("batch",))
    optimizer, rates = setup.optimizer(settings.optim, settings.steps)
    loss_fn = objective.language_modelling(policy.spec)
    text, known = texts(config, stage, policy.tokenizer)
    document = functools.lru_cache(2)(lambda number: embedded.document(text(number), policy.tokenizer))
    run.begin(
      tokenizer=policy.tokenizer.pieces(), origin=policy.origin.get("digests"), **({"texts": known} if known else {})
    )
    if run.finished:
      return run.summary
    setup.keep(config, policy, run.workdir)
    with jax.set_mesh(policy.mesh), jax.transfer_guard("disallow"):
      state, meta = run.restore(setup.fresh_state(policy, optimizer))
      start, cursor = (meta["step"], tuple(meta["cursor"])) if meta else (0, (0, 0))
      progress = run.progress(settings.steps, start)
      for step in range(start + 1, settings.steps + 1):
        packed, cursor = pack(document, cursor, settings.rows, settings.row_tokens)
        places = (shard.named(policy.mesh, "batch"), shard.named(policy.mesh))
        batch, rate = hosts.put((_batch(packed), rates[step - 1]), places)
        state, metrics = update(
          state, batch, rate, loss_fn=loss_fn, optimizer=optimizer, microbatches=settings.microbatches
        )
        figures = run.log(step, metrics | {"tokens": packed.target_BT.sum(), "learning_rate": rates[step - 1]})
        progress(step, {"loss": figures["loss"]} if figures else None)
        if run.due(step, settings.steps):
          run.save(step, state, cursor=cursor, origin=policy.origin)
          run.stop_if_asked()
      more = {"texts": known | {"skipped": getattr(text, "skipped", 0)}} if known else {}
      return run.finish(steps=settings.steps, parameters=policy_spec.count(policy.spec), **more)


def _batch(packed: Packed) -> objective.TextBatch:
  weights_BT = packed.target_BT / np.float32(max(packed.target_BT.sum(), 1))
  return objective.TextBatch(packed.tokens_BT, packed.positions_BT, packed.segments_BT, weights_BT.astype(np.float32))
