"""Checks of a config that need no device, before anything compiles."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.analysis import prediction
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import values
from jaxrlvr.data import columns, problems
from jaxrlvr.data import eval_sets as sets
from jaxrlvr.device import masked
from jaxrlvr.judging import judges
from jaxrlvr.model.attention import ATTENTION
from jaxrlvr.model.forward import REMAT
from jaxrlvr.rewards import expression
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.answer import READINGS
from jaxrlvr.training import loss, optimizer


def check_heeded(config: ConfigDict, overridden: Iterable[str]) -> None:
  """InputError where a chain's links all set a key of their own, so that an override of it would change nothing.

  All: of the stages of which any link sets it. A link without a stage is told where links are run.
  """
  sets = [(link["stage"], link.get("set", {})) for link in config.chain if "stage" in link]
  for key in overridden:
    stages = {stage for stage, own in sets if key in own}
    if stages and all(key in own for stage, own in sets if stage in stages):
      raise InputError(
        f"config.{key}: would change nothing, for each link of {', '.join(sorted(stages))} in config.chain sets its "
        "own (the config file has them, perhaps by its argument); leave it out, or change it there"
      )


def one_of(*names) -> tuple[Callable, str]:
  return (lambda v: type(v) is type(names[0]) and v in names), f"one of {', '.join(map(str, names))}"


def at_least(low) -> tuple[Callable, str]:
  """Inside of `each` too the value must be of the type of the bound."""
  return (lambda v: type(v) is type(low) and v >= low), f"at least {low}"


def each(rule: tuple[Callable, str], empty: bool = False) -> tuple[Callable, str]:
  how_many = "any number" if empty else "one or more"
  return (lambda v: (empty or len(v) > 0) and all(rule[0](x) for x in v)), f"{how_many}, each {rule[1]}"


_POSITIVE = (lambda v: v > 0), "above 0"


_SHARE = (lambda v: 0 <= v <= 1), "from 0 to 1"


_DECAY = (lambda v: 0 <= v < 1), "from 0 to below 1"


def _is_share(x) -> bool:
  return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1


_RATES = (
  (lambda v: len(v) == 2 and all(map(_is_share, v))),
  "two rates from 0 to 1, as (0.1, 0.2)",
)


_MESH = (lambda v: v == -1 or v >= 1), "-1 or at least 1"


# What a value must be, by key; a key that starts with a dot stands for every group that has it.
RULES: dict[str, tuple[Callable, str]] = {
  "resume": one_of("auto", "required", "never", "check"),
  "seed": ((lambda v: 0 <= v < 2**32), "from 0 to 2**32 - 1"),
  "heldout.name": (
    (lambda v: re.fullmatch(r"\w[\w.-]*", v) and len(v.encode()) <= 100),  # it is part of a file's name
    "letters, digits, '_', '-' and '.', at most 100 bytes of them",
  ),
  "heldout.overlap": one_of("error", "drop", "warn"),
  "heldout.sets": each(one_of(*sets.EVAL_SETS, *sets.GENERATED), empty=True),
  "heldout.domain": one_of("", *sets.DOMAINS),
  "heldout.prompts": one_of("think", "non-think"),
  "report.runs": ((lambda v: all(isinstance(x, str) for x in v)), "strings `name=run directory`"),
  "grid.jobs": at_least(0),
  "chain": ((lambda v: all(isinstance(x, Mapping) for x in v)), "links {'name': ..., 'stage': ...}"),
  "saturation_tail": at_least(0),
  "stop_after_bad_updates": at_least(1),
  ".optim.lr": at_least(0.0),
  ".optim.schedule": one_of(*optimizer.SCHEDULES),
  ".optim.warmup": _DECAY,
  ".optim.floor": _SHARE,
  ".optim.b1": _DECAY,
  ".optim.b2": _DECAY,
  ".optim.eps": _POSITIVE,
  ".optim.moment": one_of("float32", "bfloat16"),
  ".optim.weight_decay": at_least(0.0),
  ".optim.clip_norm": at_least(0.0),
  ".steps": at_least(1),
  "sft.steps": at_least(0),
  "sft.epochs": at_least(0),
  ".rows": at_least(1),
  ".row_tokens": at_least(2),
  ".microbatches": at_least(1),
  ".levels": each(one_of(*arithmetic.LEVELS)),
  ".kinds": each(((lambda v: isinstance(v, str)), "a name")),
  ".count": at_least(0),
  ".verifier": one_of(*columns.VERIFIERS),
  ".unreadable": one_of("warn", "drop", "error"),
  "prepare.format": one_of("jsonl", "tfds"),
  "verify.mode": one_of("strict", "study"),
  ".too_long": one_of("error", "drop"),
  ".copies": one_of("drop", "keep", "error"),
  ".split": ((lambda v: re.fullmatch(r"[\w.-]*", v)), "the name of a split, such as train or test, or all"),
  **{
    f"model.{k}": at_least(1)
    for k in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp", "unroll", "vocab_chunk")
  },
  "model.vocab": at_least(0),
  "model.rope_theta": _POSITIVE,
  "model.rope_scaling": at_least(0.0),
  "model.norm_eps": _POSITIVE,
  "model.dtype": one_of("float32", "bfloat16"),
  "model.attention": one_of("auto", *ATTENTION),
  "model.remat": one_of(*REMAT),
  "mesh.sample_tensor": at_least(0),
  "rl.sample_parts": at_least(1),
  "model.stop_tokens": ((lambda v: all(isinstance(s, str) and s for s in v)), "tokens, texts that are not empty"),
  "model.think": one_of("template", "on", "off"),
  "export.dtype": one_of("float32", "bfloat16"),
  "export.shard_gib": _POSITIVE,
  **{f"mesh.{k}": _MESH for k in ("data", "fsdp", "tensor")},
  "text.vocab": at_least(320),
  "text.kinds": each(one_of(*arithmetic.KINDS)),
  "text.documents": at_least(100),
  **{f"text.{k}": _SHARE for k in ("filler", "facts", "careful", "guess_right")},
  "sft.terse": _SHARE,
  ".columns": ((lambda v: all(isinstance(x, str) for x in v)), "strings `target=column`"),
  "sft.max_tokens": at_least(0),
  ".skip_bad": at_least(0),
  "rl.problems_per_step": at_least(1),
  "rl.group_size": ((lambda v: v >= 2), "at least 2: a group of one has no spread and teaches nothing"),
  "rl.minibatch_problems": at_least(0),
  "rl.branches": at_least(-1),
  ".prompt_tokens": at_least(1),
  "rl.response_tokens": at_least(1),
  "rl.temperature": ((lambda v: v > 0), "above 0: greedy samples of a problem are all alike"),
  "rl.top_k": at_least(0),
  "rl.top_p": ((lambda v: 0 < v <= 1), "above 0, at most 1"),
  "rl.stop_strings": ((lambda v: all(isinstance(s, str) and s for s in v)), "strings that are not empty"),
  "rl.shrink": at_least(0),
  "rl.cache_blocks": at_least(0),
  "rl.sample_int8": ((lambda v: set(v) <= {"weights", "cache"}), 'some of "weights", "cache"'),
  "rl.votes": at_least(0),
  "rl.noise": _RATES,
  "rl.correction": one_of(*loss.CORRECTIONS),
  "rl.correction_noise": ((lambda v: v == () or _RATES[0](v)), f"() or {_RATES[1]}"),
  "rl.baseline": one_of(*loss.BASELINES),
  "rl.ratio": one_of(*loss.RATIOS),
  "rl.clip_low": _SHARE,
  "rl.clip_high": at_least(0.0),
  "rl.dual_clip": ((lambda v: v == 0 or v > 1), "0 (off) or above 1"),
  "rl.importance_cap": at_least(0.0),
  "rl.reduce": one_of(*masked.REDUCTIONS),
  "rl.kl_beta": at_least(0.0),
  "rl.kl_estimator": one_of(*loss.KL),
  "rl.max_unscored": _SHARE,
  "rl.worthwhile_gain": _SHARE,
  "filter.samples": at_least(2),
  "filter.low": at_least(0),
  "filter.high": at_least(0),
  "subset.count": at_least(1),
  "corrupt.samples": at_least(2),
  "corrupt.gammas": (
    (lambda v: v and all(map(_is_share, v)) and len({f"{x:.2f}" for x in v}) == len(v)),
    "shares from 0 to 1 that differ in their first two decimals, as (0.1, 0.7)",
  ),
  "corrupt.label": one_of("wrong", "majority"),
  "answer.read": one_of(*READINGS),
  "diagnose.domain": one_of("", *prediction.DOMAINS),
  "diagnose.problems": at_least(1),
  "diagnose.samples": at_least(2),
  "heldout.at_most": at_least(0),
  "evaluate.every": at_least(0),
  "evaluate.samples": at_least(1),
  "evaluate.temperature": at_least(0.0),
  "evaluate.pass_k": each(at_least(1)),
  "evaluate.problems_per_batch": at_least(1),
  "judge.name": one_of(*judges.JUDGES),
  "judge.second.name": one_of("", *judges.JUDGES),
  ".key_variable": ((lambda v: re.fullmatch(r"([A-Z_][A-Z0-9_]*)?", v)), "the name of an environment variable"),
  ".timeout_seconds": _POSITIVE,
  ".deadline_seconds": _POSITIVE,
  ".retries": at_least(0),
  ".concurrency": at_least(1),
  ".tokens": at_least(1),
  ".price_in": at_least(0.0),
  ".price_out": at_least(0.0),
  "judge.cache": ((lambda v: "://" not in v), "a local folder"),
  "judge.steps": each(at_least(0), empty=True),
  "judge.problems": at_least(1),
  "judge.samples": at_least(1),
  "judge.max_missing": _SHARE,
  "verify.workers": at_least(1),
  "verify.cpu_seconds": _POSITIVE,
  "verify.wall_seconds": _POSITIVE,
  "verify.memory_mib": at_least(64),
  "hosts.silence_seconds": at_least(2.0),
  "checkpoint.every": at_least(1),
  "checkpoint.keep": at_least(1),
  "report.samples": at_least(0),
  "plan.stage": one_of("rl", "pretrain", "cpt", "sft"),
  "plan.efficiency": ((lambda v: 0 < v <= 1), "above 0, at most 1"),
  "plan.mean_tokens": at_least(0),
}


def _rule(key: str) -> tuple[Callable, str] | None:
  suffixes = (key[i:] for i, ch in enumerate(key) if ch == ".")
  return RULES.get(key) or next((RULES[s] for s in suffixes if s in RULES), None)


class Impossible(NamedTuple):
  """Keys that can't go together. Looked at where a stage reads all of these groups."""

  groups: tuple[str, ...]
  when: Callable[[ConfigDict], bool]
  message: str  # what is wrong and the cure; `{c.rl.steps}` stands for the value of a key


_TRAINING = "training"  # the keys of config.rl that say how RL trains; other stages sample by some of that group


_POLICY = ("model", "mesh")


_SAMPLING = (*_POLICY, "rl", "evaluate", "verify", "answer")


_LINKED = ("chain", "grid")  # stages that run other stages


# Groups of the config that a stage reads; what is wrong elsewhere does not stop it. Keys without a group are read by
# all stages, and so are `hosts` and `checkpoint`.
STAGE_GROUPS: Mapping[str, tuple[str, ...]] = {
  "tokenizer": ("text", "sft"),
  "import": _POLICY,
  "export": (*_POLICY, "export"),
  "pretrain": (*_POLICY, "text", "pretrain"),
  "cpt": (*_POLICY, "text", "cpt"),
  "sft": (*_POLICY, "text", "sft", "verify", "answer"),
  "prepare": ("problems", "prepare", "verify", "answer"),
  "filter": (*_SAMPLING, "problems", "filter"),
  "subset": ("problems", "subset"),
  "corrupt": (*_SAMPLING, "problems", "corrupt"),
  "diagnose": (*_SAMPLING, "problems", "diagnose", "judge"),
  "rl": (*_SAMPLING, _TRAINING, "problems", "heldout", "paper"),
  "evaluate": (*_SAMPLING, "problems", "heldout"),
  "judge": (*_SAMPLING, "judge"),
  "report": ("report",),
  "plan": (*_POLICY, "plan"),
  "chain": ("report",),
  "grid": ("grid", "report"),
}


def groups_of(config: ConfigDict, stage: str | None) -> frozenset[str]:
  """The groups that a stage reads, all of them where no stage (or one that is not known) is named."""
  if stage not in STAGE_GROUPS:
    return frozenset(name for name, value in config.items() if isinstance(value, ConfigDict)) | {_TRAINING}
  read = {*STAGE_GROUPS[stage], "hosts", "checkpoint"}
  if stage == "plan":  # shapes alone, and no problem or text
    read |= {*STAGE_GROUPS.get(config.plan.stage, ())} - {"problems", "heldout", "text", "verify", "answer", "paper"}
  return frozenset(read)


def _embedded_kinds(group: str) -> Callable[[ConfigDict], bool]:
  return lambda c: c[group].source == "arithmetic" and not set(c[group].kinds) <= set(arithmetic.KINDS)


def _named_sets(c: ConfigDict) -> tuple[str, ...]:
  return sets.named(c.heldout.sets, c.heldout.domain) if c.heldout.sets or c.heldout.domain else ()


# Kinds of problems: of `heeds` and `_kinds_of`.
_FILES, _RELEASED, _MADE, _ARITHMETIC = "files", "released sets", "generated", "arithmetic"


_KINDS_TOLD = {
  _FILES: "a file, a folder or a set of the hub (config.{group}.source)",
  _RELEASED: "the study's files (config.heldout.sets, .domain)",
  _MADE: "generated problems",
  _ARITHMETIC: "generated arithmetic",
}


class Heeded(NamedTuple):
  """A key of `problems` and `heldout` that some kinds of problems heed."""

  by: tuple[str, ...]
  # Sizes have a value in any config: set where nothing heeds them they are refused on the command line alone.
  is_size: bool = False


_GENERATED = (_MADE, _ARITHMETIC)


HEEDED: Mapping[str, Heeded] = {
  **dict.fromkeys(("columns", "verifier", "split", "copies"), Heeded((_FILES,))),
  "skip_bad": Heeded((_FILES, _RELEASED)),
  **dict.fromkeys(("folder", "prompts"), Heeded((_RELEASED,))),
  "system": Heeded((_FILES, _RELEASED, _MADE)),
  **dict.fromkeys(("levels", "kinds", "seed"), Heeded(_GENERATED, is_size=True)),
  "count": Heeded((_FILES, *_GENERATED), is_size=True),
}


def _kinds_of(c: ConfigDict, group: str) -> set[str]:
  """The kinds of problems that a group of the config names."""
  named = _named_sets(c) if group == "heldout" else ()
  found = {_ARITHMETIC if name in sets.GENERATED else _RELEASED for name in named}
  source = c[group].source
  if not source and not named:  # it follows config.problems.source
    source = c.problems.source if c.problems.source in problems.GENERATED else "arithmetic"
  if source:
    found.add(_ARITHMETIC if source == "arithmetic" else _MADE if source in problems.GENERATED else _FILES)
  return found


def _check_heeded_by_problems(config: ConfigDict, like: ConfigDict, group: str, overridden: Iterable[str]) -> None:
  """InputError for a key of `problems` or `heldout` that none of the problems which the group names heeds."""
  kinds = _kinds_of(config, group)
  for name, heeded in HEEDED.items():
    key = f"{group}.{name}"
    if name not in config[group] or kinds & set(heeded.by):
      continue
    is_set = key in overridden if heeded.is_size else config[group][name] != like[group][name]
    if is_set:
      wanted = ", ".join(_KINDS_TOLD[kind].format(group=group) for kind in heeded.by)
      there = " and ".join(_KINDS_TOLD[kind].format(group=group) for kind in sorted(kinds))
      cure = "; config.heldout.at_most is for these" if name == "count" else ""
      raise InputError(
        f"config.{key} has no effect: it is for {wanted}, and here there is only {there}; clear it{cure}"
      )


IMPOSSIBLE: tuple[Impossible, ...] = (
  Impossible(
    ("model",),
    lambda c: c.init and c.model.path,
    "config.init and config.model.path are both set, and a policy starts from one; clear the other (--config.init=)",
  ),
  Impossible(
    ("model",),
    lambda c: c.model.heads % c.model.kv_heads != 0,
    "config.model.heads must be a multiple of config.model.kv_heads",
  ),
  Impossible(("model",), lambda c: c.model.head_dim % 2 != 0, "config.model.head_dim must be even: RoPE rotates pairs"),
  Impossible(
    ("text",),
    lambda c: c.text.filler + c.text.facts > 1,
    "config.text.filler + config.text.facts is above 1; lower one",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.minibatch_problems and c.rl.problems_per_step % c.rl.minibatch_problems != 0,
    "config.rl.problems_per_step = {c.rl.problems_per_step} must be a multiple of config.rl.minibatch_problems = "
    "{c.rl.minibatch_problems}; change one of them",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: (c.rl.minibatch_problems or c.rl.problems_per_step) * c.rl.group_size % c.rl.microbatches != 0,
    "the rows of an update, (config.rl.minibatch_problems = {c.rl.minibatch_problems} or config.rl.problems_per_step = "
    "{c.rl.problems_per_step}) * config.rl.group_size = {c.rl.group_size}, must be a multiple of "
    "config.rl.microbatches = {c.rl.microbatches}; change one of them",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.problems_per_step % c.rl.sample_parts != 0,
    "config.rl.problems_per_step = {c.rl.problems_per_step} must be a multiple of config.rl.sample_parts = "
    "{c.rl.sample_parts}; change one of them",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.votes and not expression.votes(expression.parse(c.rl.reward)),
    "config.rl.votes is set, but config.rl.reward looks at no other samples than those it pays; set it to 0",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: 0 < c.rl.votes < c.rl.group_size,
    "config.rl.votes is below config.rl.group_size: those that are trained on vote too; raise it, or 0 for no others",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.sample_int8 and not c.rl.importance_cap,
    "config.rl.sample_int8 samples from rounded numbers; set config.rl.importance_cap (2.0, say) to correct it",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: (
      (any(c.rl.noise) or c.rl.correction != "none") and not expression.is_binary(expression.parse(c.rl.reward))
    ),
    "config.rl.noise and config.rl.correction need a reward of 0 and 1; config.rl.reward is a sum or has real values",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.correction != "none" and sum(c.rl.correction_noise or c.rl.noise) >= 1,
    "config.rl.correction needs rates (false positive, false negative) that sum to less than 1: beyond, paid answers "
    "are no likelier to be right than others",
  ),
  *(
    Impossible(
      (s,),
      lambda c, s=s: c[s].rows % c[s].microbatches != 0,
      f"config.{s}.rows = {{c.{s}.rows}} must be a multiple of config.{s}.microbatches = {{c.{s}.microbatches}}; "
      "change one of them",
    )
    for s in ("pretrain", "cpt", "sft")
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.correction != "none" and not any(c.rl.correction_noise or c.rl.noise),
    "config.rl.correction assumes no noise at all; set config.rl.correction_noise, or config.rl.noise",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.correction == "none" and c.rl.correction_noise != (),
    "config.rl.correction_noise is set, but config.rl.correction = 'none' reads it not; set it to ()",
  ),
  Impossible(
    ("rl", _TRAINING),
    lambda c: c.rl.correction == "forward" and (c.rl.baseline != "mean" or not c.rl.scale_std),
    "config.rl.correction = 'forward' takes the place of baseline and scale_std; leave these at 'mean' and True",
  ),
  *(
    Impossible(
      (g,),
      _embedded_kinds(g),
      f"config.{g}.kinds of the source arithmetic: wanted each one of {', '.join(arithmetic.KINDS)}",
    )
    for g in ("problems", "heldout")
  ),
  Impossible(
    ("heldout",),
    lambda c: not c.heldout.source and _named_sets(c) and c.heldout.name != "heldout",
    "config.heldout.name is set, but it is the name of the set of config.heldout.source, which is empty; clear it, or "
    "name the source",
  ),
  Impossible(
    ("heldout",),
    lambda c: c.heldout.source and c.heldout.name in (*_named_sets(c), "in-domain", "out-of-domain"),
    "config.heldout.name is the name of another set or mean; give the set of config.heldout.source another name",
  ),
  Impossible(
    ("evaluate", "rl", _TRAINING),
    lambda c: c.rl.stop_when_memorising and not c.evaluate.every,
    "config.rl.stop_when_memorising needs evaluations to see it by; set config.evaluate.every",
  ),
  Impossible(
    ("cpt",),
    lambda c: (c.cpt.column or c.cpt.skip_bad) and not c.cpt.source,
    "config.cpt.column or .skip_bad is set, but config.cpt.source is the embedded text; clear it, or name a source",
  ),
  Impossible(
    ("sft",),
    lambda c: not c.sft.source and any(c.sft[name] for name in ("columns", "system", "skip_bad", "max_tokens")),
    "config.sft.columns, .system, .skip_bad or .max_tokens is set, but config.sft.source is the embedded prompts; "
    "clear them, or name a source",
  ),
  Impossible(
    ("verify", "answer"),
    lambda c: c.verify.mode == "study" and c.answer.read != "boxed",
    "config.verify.mode = 'study' reads whole texts as the released code does; leave config.answer.read at 'boxed'",
  ),
  Impossible(
    ("sft",),
    lambda c: (c.sft.steps == 0) == (c.sft.epochs == 0),
    "config.sft.steps and config.sft.epochs are both set, or both 0: one follows from the other; set the other to 0",
  ),
  Impossible(
    ("sft",),
    lambda c: c.sft.epochs and not c.sft.source,
    "config.sft.epochs is set, but the embedded prompts of config.sft.source have no end; set config.sft.steps",
  ),
  Impossible(
    ("filter",),
    lambda c: not c.filter.low <= c.filter.high <= c.filter.samples,
    "config.filter needs low <= high <= samples",
  ),
  Impossible(
    ("plan", "rl", _TRAINING),
    lambda c: c.plan.mean_tokens > c.rl.response_tokens,
    "config.plan.mean_tokens is above config.rl.response_tokens; lower it",
  ),
  Impossible(
    ("evaluate",),
    lambda c: c.evaluate.temperature == 0 and c.evaluate.samples > 1,
    "config.evaluate.temperature = 0 is greedy, so that all config.evaluate.samples of a problem are the same, and "
    "pass@k means nothing; take --config.evaluate.samples=1 --config.evaluate.pass_k=1, or a temperature above 0",
  ),
  Impossible(
    ("evaluate",),
    lambda c: max(c.evaluate.pass_k) > c.evaluate.samples,
    "config.evaluate.pass_k goes beyond config.evaluate.samples",
  ),
  Impossible(
    ("mesh",),
    lambda c: [c.mesh.data, c.mesh.fsdp, c.mesh.tensor].count(-1) > 1,
    "only one of config.mesh.data, .fsdp and .tensor may be -1",
  ),
)


def check(config: ConfigDict, stage: str | None = None, overridden: Iterable[str] = ()) -> None:
  """Raises InputError, naming the key, for a wrong type, a value out of range, an impossible pair or a key without
  effect.

  Of values and pairs only those in groups that the stage reads count (STAGE_GROUPS), all where none is named.
  `overridden`: keys that were set on the command line.
  """
  from jaxrlvr.config import files  # which checks what it loads

  like, groups = files.base(), groups_of(config, stage)
  extra = set(values.names(config)) ^ set(values.names(like))
  if extra:
    raise InputError(
      f"config.{min(extra)}: {'missing' if min(extra) in values.names(like) else 'unknown'}; see configs/base.py"
    )
  for key in values.names(config):
    value = values.typed(key, values.get(config, key), values.get(like, key))
    rule = _rule(key) if _is_read(key, groups) else None
    if rule and not _holds(rule[0], value):
      near = difflib.get_close_matches(value, rule[1].replace(",", "").split(), 1) if isinstance(value, str) else []
      raise InputError(
        f"config.{key} = {repr(value)[:200]}: wanted {rule[1]}" + (f"; did you mean {near[0]!r}?" if near else "")
      )
  if _TRAINING in groups:
    try:
      expression.parse(config.rl.reward)
    except InputError as error:
      raise InputError(f"config.rl.{error}") from None
  for pair in IMPOSSIBLE:
    if groups.issuperset(pair.groups) and pair.when(config):
      raise InputError(pair.message.format(c=config))
  for group in sorted({"problems", "heldout"} & groups):
    _check_heeded_by_problems(config, like, group, overridden)
  if stage is None or stage in _LINKED:
    for link in config.chain:
      _check_entries(link)
      _check_link(link)
      files.derive(config, link.get("set", {}), link.get("stage", ""))


_SAMPLED = "prompt_tokens response_tokens temperature top_k top_p stop_strings shrink cache_blocks".split()


def _is_read(key: str, groups: frozenset[str]) -> bool:
  """Whether a stage that reads these groups reads the key."""
  group, _, name = key.partition(".")
  return not name or (group in groups and (group != "rl" or _TRAINING in groups or name in _SAMPLED))


# What each entry of a link may be.
_LINK: Mapping[str, type] = {
  "name": object,  # see _check_link
  **dict.fromkeys(("stage", "init", "tokenizer"), str),
  **dict.fromkeys(("set", "files", "runs", "cell"), Mapping),
}


def _check_entries(link: Mapping) -> None:
  for entry, value in link.items():
    if entry not in _LINK:
      raise InputError(f"config.chain: link {repr(dict(link))[:200]} has {entry!r}; a link has {', '.join(_LINK)}")
    if not isinstance(value, _LINK[entry]):
      wanted = "a text" if _LINK[entry] is str else "a table {key: value}"
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry} = {repr(value)[:200]}: wanted {wanted}")
    if entry in ("files", "runs") and not all(isinstance(path, str) for path in value.values()):
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry}: wanted paths, each a text")


# What a chain or a grid itself writes beside the directories of its links.
_OWN_NAMES = ("links", "compiled")


def _check_link(link: Mapping) -> None:
  """InputError where a link of a chain would write outside of a directory of its own below the chain's."""
  if "name" not in link:
    return  # told where links are run
  name = link["name"]
  plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= 100
  if not plain:
    raise InputError(
      f"config.chain: link name {name!r}: wanted letters, digits, '_', '-' and '.', at most 100 bytes of them: it "
      "names its directory"
    )
  if name in _OWN_NAMES or name.endswith((".json", ".txt")):
    raise InputError(f"config.chain: link name {name!r}: is a name that the chain uses itself; choose another")
  named = [link.get("init"), link.get("tokenizer")]
  for group in ("files", "runs"):
    named += dict(link.get(group, {})).values()
  for place in named:
    if place and (not isinstance(place, str) or ".." in place.split("/") or place.startswith("/")):
      raise InputError(f"config.chain: link {name!r}: names {place!r}; wanted a path below an earlier link")


def _holds(rule: Callable, value) -> bool:
  try:
    return bool(rule(value))
  except TypeError:
    return False
