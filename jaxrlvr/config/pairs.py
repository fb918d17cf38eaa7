"""Checks of several keys together: values that can't go together, and keys that have no effect beside others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import values
from jaxrlvr.config.rules import declared
from jaxrlvr.data import eval_sets, own_sets, problems
from jaxrlvr.rewards import expression
from jaxrlvr.tasks.arithmetic import problems as arithmetic


class _Impossible(NamedTuple):
  """A combination of values that is refused. It is checked only for stages that read all of its keys."""

  keys: tuple[str, ...]
  when: Callable[[ConfigDict], object]  # true where a config has the combination
  message: str  # says what is wrong and the cure; `{c.rl.steps}` stands for the value of a key


def _has_unknown_kinds(group: str) -> Callable[[ConfigDict], bool]:
  """Returns the check whether a group names a kind of problem that built-in arithmetic lacks."""
  return lambda c: c[group].source == "arithmetic" and not set(c[group].kinds) <= set(arithmetic.KINDS)


def _has_uneven_rows(stage: str) -> Callable[[ConfigDict], bool]:
  """Returns the check whether a stage's rows can't be split evenly into microbatches."""
  return lambda c: c[stage].rows % c[stage].microbatches != 0


def _named_sets(c: ConfigDict) -> tuple[str, ...]:
  """Returns the names of the evaluation sets that heldout.sets and heldout.domain choose."""
  if not c.heldout.sets and not c.heldout.domain:
    return ()
  return eval_sets.set_names(c.heldout.sets, c.heldout.domain)


def _is_changed(c: ConfigDict, key: str) -> bool:
  """Returns whether a key, as "lora.alpha", has another value than its default."""
  return values.get(c, key) != declared()[key].default


_IMPOSSIBLE: tuple[_Impossible, ...] = (
  _Impossible(
    ("init", "model.path"),
    lambda c: c.init and c.model.path,
    "config.init and config.model.path are both set, and a policy starts from one; clear the other (--config.init=)",
  ),
  _Impossible(
    ("init", "model.adapter"),
    lambda c: c.init and c.model.adapter,
    "config.init and config.model.adapter are both set, and adapters are for a model; clear one (--config.init=)",
  ),
  _Impossible(
    ("model.heads", "model.kv_heads"),
    lambda c: c.model.heads % c.model.kv_heads != 0,
    "config.model.heads must be a multiple of config.model.kv_heads",
  ),
  _Impossible(
    ("lora.rank", "lora.alpha", "lora.targets", "lora.base_dtype"),
    lambda c: not c.lora.rank and any(_is_changed(c, f"lora.{name}") for name in ("alpha", "targets", "base_dtype")),
    "config.lora.alpha, .targets or .base_dtype is set, but config.lora.rank = 0 trains all weights; set a rank (16, "
    "say), or clear them",
  ),
  _Impossible(
    ("lora.targets",),
    lambda c: len(set(c.lora.targets)) < len(c.lora.targets),
    "config.lora.targets = {c.lora.targets} names a weight twice; name it once",
  ),
  _Impossible(
    ("text.filler", "text.facts"),
    lambda c: c.text.filler + c.text.facts > 1,
    "config.text.filler + config.text.facts is above 1; lower one",
  ),
  _Impossible(
    ("rl.minibatch_problems", "rl.problems_per_step"),
    lambda c: c.rl.minibatch_problems and c.rl.problems_per_step % c.rl.minibatch_problems != 0,
    "config.rl.problems_per_step = {c.rl.problems_per_step} must be a multiple of config.rl.minibatch_problems = "
    "{c.rl.minibatch_problems}; change one of them",
  ),
  _Impossible(
    ("rl.minibatch_problems", "rl.problems_per_step", "rl.group_size", "rl.microbatches"),
    lambda c: (c.rl.minibatch_problems or c.rl.problems_per_step) * c.rl.group_size % c.rl.microbatches != 0,
    "the rows of an update, (config.rl.minibatch_problems = {c.rl.minibatch_problems} or config.rl.problems_per_step = "
    "{c.rl.problems_per_step}) * config.rl.group_size = {c.rl.group_size}, must be a multiple of "
    "config.rl.microbatches = {c.rl.microbatches}; change one of them",
  ),
  _Impossible(
    ("rl.problems_per_step", "rl.sample_parts"),
    lambda c: c.rl.problems_per_step % c.rl.sample_parts != 0,
    "config.rl.problems_per_step = {c.rl.problems_per_step} must be a multiple of config.rl.sample_parts = "
    "{c.rl.sample_parts}; change one of them",
  ),
  _Impossible(
    ("rl.votes", "rl.reward"),
    lambda c: c.rl.votes and not expression.needs_votes(expression.parse(c.rl.reward)),
    "config.rl.votes is set, but config.rl.reward pays each response without a vote; set it to 0",
  ),
  _Impossible(
    ("rl.votes", "rl.group_size"),
    lambda c: 0 < c.rl.votes < c.rl.group_size,
    "config.rl.votes is below config.rl.group_size, but responses that are trained on vote too; raise it, or take 0, "
    "so that only these vote",
  ),
  _Impossible(
    ("rl.sample_int8", "rl.importance_cap"),
    lambda c: c.rl.sample_int8 and not c.rl.importance_cap,
    "config.rl.sample_int8 makes the sampler's log-probabilities inexact; set config.rl.importance_cap (2.0, say) to "
    "correct for it",
  ),
  _Impossible(
    ("rl.noise", "rl.correction", "rl.reward"),
    lambda c: (
      (any(c.rl.noise) or c.rl.correction != "none") and not expression.is_binary(expression.parse(c.rl.reward))
    ),
    "config.rl.noise and config.rl.correction need a reward of 0 and 1; config.rl.reward is a sum or has real values "
    "(a function of your own pays 0 and 1 if it has the attribute binary = True)",
  ),
  _Impossible(
    ("rl.noise", "rl.correction", "rl.correction_noise"),
    lambda c: c.rl.correction != "none" and sum(c.rl.correction_noise or c.rl.noise) >= 1,
    "config.rl.correction needs rates (false positive, false negative) that sum to less than 1: beyond, paid answers "
    "are no likelier to be right than others",
  ),
  *(
    _Impossible(
      (f"{stage}.rows", f"{stage}.microbatches"),
      _has_uneven_rows(stage),
      f"config.{stage}.rows = {{c.{stage}.rows}} must be a multiple of config.{stage}.microbatches = "
      f"{{c.{stage}.microbatches}}; change one of them",
    )
    for stage in ("pretrain", "cpt", "sft")
  ),
  _Impossible(
    ("rl.noise", "rl.correction", "rl.correction_noise"),
    lambda c: c.rl.correction != "none" and not any(c.rl.correction_noise or c.rl.noise),
    "config.rl.correction assumes no noise at all; set config.rl.correction_noise, or config.rl.noise",
  ),
  _Impossible(
    ("rl.correction", "rl.correction_noise"),
    lambda c: c.rl.correction == "none" and c.rl.correction_noise != (),
    "config.rl.correction_noise is set, but config.rl.correction = 'none' does not read it; set it to ()",
  ),
  _Impossible(
    ("rl.correction", "rl.baseline", "rl.scale_std"),
    lambda c: c.rl.correction == "forward" and (c.rl.baseline != "mean" or not c.rl.scale_std),
    "config.rl.correction = 'forward' takes the place of baseline and scale_std; leave these at 'mean' and True",
  ),
  *(
    _Impossible(
      (f"{group}.source", f"{group}.kinds"),
      _has_unknown_kinds(group),
      f"config.{group}.kinds of the source arithmetic: wanted each one of {', '.join(arithmetic.KINDS)}",
    )
    for group in ("problems", "heldout")
  ),
  _Impossible(
    ("heldout.name", "heldout.source", "heldout.sets", "heldout.domain"),
    lambda c: not c.heldout.source and _named_sets(c) != () and c.heldout.name != declared()["heldout.name"].default,
    "config.heldout.name is set, but it is the name of the set of config.heldout.source, which is empty; clear it, or "
    "name the source",
  ),
  _Impossible(
    ("heldout.name", "heldout.source", "heldout.sets", "heldout.domain"),
    lambda c: c.heldout.source and c.heldout.name in (*_named_sets(c), "in-domain", "out-of-domain"),
    "config.heldout.name is the name of another set or mean; give the set of config.heldout.source another name",
  ),
  _Impossible(
    ("rl.stop_when_memorising", "evaluate.every"),
    lambda c: c.rl.stop_when_memorising and not c.evaluate.every,
    "config.rl.stop_when_memorising needs evaluations to see it by; set config.evaluate.every",
  ),
  _Impossible(
    ("cpt.source", "cpt.column", "cpt.skip_bad"),
    lambda c: (c.cpt.column or c.cpt.skip_bad) and not c.cpt.source,
    "config.cpt.column or .skip_bad is set, but config.cpt.source is the built-in text; clear it, or name a source",
  ),
  _Impossible(
    ("sft.source", "sft.columns", "sft.system", "sft.skip_bad", "sft.max_tokens"),
    lambda c: not c.sft.source and any(c.sft[name] for name in ("columns", "system", "skip_bad", "max_tokens")),
    "config.sft.columns, .system, .skip_bad or .max_tokens is set, but config.sft.source is the built-in prompts; "
    "clear them, or name a source",
  ),
  _Impossible(
    ("verify.mode", "answer.read"),
    lambda c: c.verify.mode == "study" and c.answer.read != "boxed",
    "config.verify.mode = 'study' reads whole texts as the released code does; leave config.answer.read at 'boxed'",
  ),
  _Impossible(
    ("sft.steps", "sft.epochs"),
    lambda c: (c.sft.steps == 0) == (c.sft.epochs == 0),
    "config.sft.steps and config.sft.epochs are both set, or both 0: one follows from the other; set the other to 0",
  ),
  _Impossible(
    ("sft.source", "sft.epochs"),
    lambda c: c.sft.epochs and not c.sft.source,
    "config.sft.epochs is set, but the built-in prompts of config.sft.source have no end; set config.sft.steps",
  ),
  _Impossible(
    ("filter.low", "filter.high", "filter.samples"),
    lambda c: not c.filter.low <= c.filter.high <= c.filter.samples,
    "config.filter needs low <= high <= samples",
  ),
  _Impossible(
    ("subset.solved", "subset.samples"),
    lambda c: bool(c.subset.solved) != bool(c.subset.samples),
    "config.subset.solved and config.subset.samples go together: the column that says how often a problem was solved, "
    "and out of how many samples (a number, as 16, or a column); set both, or neither",
  ),
  _Impossible(
    ("subset.solved", "subset.measure"),
    lambda c: c.subset.measure != "solved" and not c.subset.solved,
    "config.subset.measure is set, but it is what config.subset.solved holds, which is empty; name the column",
  ),
  _Impossible(
    ("plan.mean_tokens", "rl.response_tokens"),
    lambda c: c.plan.mean_tokens > c.rl.response_tokens,
    "config.plan.mean_tokens is above config.rl.response_tokens; lower it",
  ),
  _Impossible(
    ("evaluate.temperature", "evaluate.samples"),
    lambda c: c.evaluate.temperature == 0 and c.evaluate.samples > 1,
    "config.evaluate.temperature = 0 is greedy, so that all config.evaluate.samples of a problem are the same, and "
    "pass@k means nothing; take --config.evaluate.samples=1 --config.evaluate.pass_k=1, or a temperature above 0",
  ),
  _Impossible(
    ("evaluate.pass_k", "evaluate.samples"),
    lambda c: max(c.evaluate.pass_k) > c.evaluate.samples,
    "config.evaluate.pass_k = {c.evaluate.pass_k} goes beyond config.evaluate.samples = {c.evaluate.samples}; leave "
    "out the larger k, or raise the samples",
  ),
  _Impossible(
    ("mesh.data", "mesh.fsdp", "mesh.tensor"),
    lambda c: [c.mesh.data, c.mesh.fsdp, c.mesh.tensor].count(-1) > 1,
    "only one of config.mesh.data, .fsdp and .tensor may be -1",
  ),
)


def check_combinations(config: ConfigDict, keys: Collection[str]) -> None:
  """Raises InputError, with the cure, where the values of several keys can't go together.

  keys: dotted names of the keys that the stage reads; combinations with other keys are not looked at.
  """
  for combination in _IMPOSSIBLE:
    if set(keys).issuperset(combination.keys) and combination.when(config):
      raise InputError(combination.message.format(c=config))


# Kinds of problems by where they come from. Arithmetic is generated too, but takes no system message.
_FILES, _RELEASED, _OTHER_GENERATED, _ARITHMETIC = "files", "released sets", "generated", "arithmetic"
# Entries of heldout.sets: sets of files, and generated sets with a value of their own for the key that is looked at.
_OWN_FILES, _OWN_VALUE = "own sets of files", "own value"
_GENERATED = (_OTHER_GENERATED, _ARITHMETIC)
_IN_WORDS = {
  _FILES: "a file, a folder or a set of the hub (config.{group}.source)",
  _RELEASED: "the study's files (config.heldout.sets, .domain)",
  _OWN_FILES: "a set of your own (config.heldout.sets)",
  _OWN_VALUE: "a generated set with its own value (config.heldout.sets)",
  _OTHER_GENERATED: "generated problems",
  _ARITHMETIC: "generated arithmetic",
}


# How an entry of heldout.sets sets a key for its set of files.
_IN_ENTRY = {
  "columns": "prompt=A,label=B",
  "verifier": "verifier=V",
  "split": "split=S",
  "copies": "copies=keep",
  "count": "count=N",
}


class _LimitedKey(NamedTuple):
  """A key of `problems` and `heldout` that has an effect for some kinds of problems only."""

  kinds: tuple[str, ...]  # of the kinds above, those for which it has an effect
  # Whether the key is a size, which every config file sets. Where it has no effect it is refused only on the command
  # line; other keys are refused whenever they differ from their default.
  is_size: bool = False


_LIMITED_KEYS: Mapping[str, _LimitedKey] = {
  "columns": _LimitedKey((_FILES,)),
  "verifier": _LimitedKey((_FILES,)),
  "split": _LimitedKey((_FILES,)),
  "copies": _LimitedKey((_FILES,)),
  "skip_bad": _LimitedKey((_FILES, _RELEASED, _OWN_FILES)),
  "folder": _LimitedKey((_RELEASED,)),
  "prompts": _LimitedKey((_RELEASED,)),
  "system": _LimitedKey((_FILES, _RELEASED, _OWN_FILES, _OTHER_GENERATED)),
  "levels": _LimitedKey(_GENERATED, is_size=True),
  "kinds": _LimitedKey(_GENERATED, is_size=True),
  "seed": _LimitedKey(_GENERATED, is_size=True),
  "count": _LimitedKey((_FILES, *_GENERATED), is_size=True),
}


def _kinds_of(c: ConfigDict, group: str, key: str) -> set[str]:
  """Returns the kinds of problems that the group `problems` or `heldout` of a config names.

  key: the key of the group that is looked at.
  """
  set_names = _named_sets(c) if group == "heldout" else ()
  kinds = set()
  for name in set_names:
    if name in eval_sets.GENERATED_SETS:
      kinds.add(_ARITHMETIC)
    elif name in eval_sets.EVAL_SETS:
      kinds.add(_RELEASED)
  for own_set in own_sets.parse_entries(c.heldout.sets if set_names else ()).values():
    if not own_set.is_generated:
      kinds.add(_OWN_FILES)
    elif key in own_set.settings:
      kinds.add(_OWN_VALUE)
    else:
      kinds.add(_ARITHMETIC if own_set.source == "arithmetic" else _OTHER_GENERATED)
  source = c[group].source
  if not source and not set_names:  # held-out problems then come from the generator of the training problems
    source = c.problems.source if problems.is_generated(c.problems.source) else "arithmetic"
  if source == "arithmetic":
    kinds.add(_ARITHMETIC)
  elif source and problems.is_generated(source):
    kinds.add(_OTHER_GENERATED)
  elif source:
    kinds.add(_FILES)
  return kinds


def check_effects(config: ConfigDict, group: str, overridden: Collection[str]) -> None:
  """Raises InputError for a key that is set although it does nothing to problems of the kind that the config names.

  group: "problems" or "heldout". Columns, for example, are read from files and not from generated problems. A key is
  set if it differs from its default. Sizes (levels, kinds, seed, count), which shipped configs set for any kind of
  problems, are refused only on the command line.
  overridden: dotted names of the keys that were set on the command line.
  """
  for name, limited in _LIMITED_KEYS.items():
    key = f"{group}.{name}"
    kinds = _kinds_of(config, group, name)
    if name not in config[group] or kinds & set(limited.kinds):
      continue
    if limited.is_size:
      is_set = key in overridden
    else:
      is_set = config[group][name] != declared()[key].default
    if is_set:
      needed = ", ".join(_IN_WORDS[kind].format(group=group) for kind in limited.kinds)
      present = " and ".join(_IN_WORDS[kind].format(group=group) for kind in sorted(kinds))
      cure = ""
      if _OWN_FILES in kinds and name in _IN_ENTRY:
        cure = f", or write it into the set's entry, as mine=path.jsonl[{_IN_ENTRY[name]}]"
      elif name == "count":
        cure = "; config.heldout.at_most is for these"
      raise InputError(
        f"config.{key} has no effect: it is for {needed}, and here there is only {present}; clear it{cure}"
      )
