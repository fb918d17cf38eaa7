"""The programs of a stage with shapes in the place of arrays, and what a TPU's compiler says of them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import keys, sharding
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.model.row_layout import RowLayout, Separate
from jaxrlvr.planning import collectives, flops, tpu
from jaxrlvr.sampling import decode as sampler
from jaxrlvr.sampling import weights as sampling_weights
from jaxrlvr.sampling.types import Rollout
from jaxrlvr.stages import build_policy, rollout
from jaxrlvr.stages.rl import Learner, check_sizes, make_learner
from jaxrlvr.training import objective
from jaxrlvr.training.update import update

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  name: str
  times: int  # in a step of the run
  arguments: float  # bytes a chip
  beside: float  # bytes a chip that lie in memory meanwhile and are no arguments
  lower: Callable  # {program: Measured} -> lowered; None where the program that it follows does not fit
  cost: flops.Cost
  tokens: float  # it works through, or makes
  trips: float = 1  # of loops whose end depends on data


class Measured(NamedTuple):
  """A program as the compiler left it; bytes a chip."""

  arguments: float
  temporaries: float  # with the program itself
  output: float  # less what lies in donated arguments
  beside: float
  seconds: float  # of compilation
  refused: str  # what the compiler says where memory is too small
  sent: dict[str, collectives.Traffic] | None  # None: the compiled program can't be read
  results: object = None  # how they lie

  @property
  def total(self) -> float:
    return self.arguments + self.temporaries + self.output + self.beside


def _abstract(shapes, places):
  return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)


def _bytes(tree) -> int:
  """Of one chip."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _rows(mesh, tree):
  by_rows = sharding.named_sharding(mesh, "batch")
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_rows), tree)


def _cut(mesh) -> flops.Cut:
  return flops.Cut(sharding.size(mesh, "batch"), mesh.shape["tensor"], mesh.shape["fsdp"] * mesh.shape["tensor"])


def _in(mesh, function):
  def lower(done):
    with jax.set_mesh(mesh):
      return function(done)

  return lower


def abstract_policy(config: ConfigDict, where: tpu.Slice, devices: Sequence[jax.Device]) -> build_policy.Policy:
  """The policy of a config on a slice: shapes and places of its weights, and no weight."""
  model, init = build_policy.find_model(config), object_store.path(config.init) / build_policy.POLICY
  if model is None and not init.is_file() and not config.model.vocab:
    raise InputError(
      f"config.model.vocab = 0, and neither config.init = {config.init!r} nor config.model.path holds a model; name "
      "one that does, or set config.model.vocab to plan for the shape of config.model"
    )
  stated = (
    build_policy.read_recorded_spec(init) if init.is_file() else build_policy.fresh_spec(config, config.model.vocab)
  )
  spec = model.spec if model else stated
  mesh, spec = build_policy.configured_mesh(config, devices), build_policy.configured(config, spec, "tpu")
  shapes = jax.eval_shape(lambda: policy_spec.init(spec, keys.at(0, "init")))
  params = _abstract(shapes, policy_spec.shardings(spec, mesh))
  sample_mesh = build_policy.configured_sampling_mesh(config, spec, mesh, int(where.chip.hbm))
  return build_policy.Policy(spec, None, params, mesh, sample_mesh, {})


def of(
  config: ConfigDict, where: tpu.Slice, devices: Sequence[jax.Device]
) -> tuple[build_policy.Policy, list[Program]]:
  """(abstract policy, programs in the order of a step) of `config.plan.stage`."""
  policy = abstract_policy(config, where, devices)
  return policy, (rl_programs if config.plan.stage == "rl" else language_programs)(config, policy)


def language_programs(config: ConfigDict, policy: build_policy.Policy) -> list[Program]:
  """An update of `stages.language_modelling`."""
  stage, shape = config.plan.stage, (config[config.plan.stage].rows, config[config.plan.stage].row_tokens)
  s = config[stage]
  sharding.check_divisible(policy.mesh, f"config.{stage}.rows", (s.rows // s.microbatches,), ("batch",))
  fields: list[Any] = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (*[jnp.int32] * 3, jnp.float32)]
  batch, optimizer = (
    _rows(policy.mesh, objective.TextBatch(*fields)),
    build_policy.optimizer(s.optim, max(s.steps, 1))[0],
  )
  layout = Separate(s.row_tokens)
  return [_update(policy, s, layout, batch, objective.language_modelling(policy.spec), optimizer)]


def _update(
  policy, s, layout: RowLayout, batch, loss_fn, optimizer, times: int = 1, beside: float = 0, live=None, trips: int = 0
) -> Program:
  """`Program` of an update; with `live`, the shape of a number of micro-batches, `trips` of them are run."""
  trips, slots = trips or s.microbatches, layout.slots
  rows = jax.tree.leaves(batch)[0].shape[0] // s.microbatches * trips
  state = _abstract(*build_policy.state_shapes(policy, optimizer))
  rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.named_sharding(policy.mesh))
  given = dict(loss_fn=loss_fn, optimizer=optimizer, microbatches=s.microbatches)
  moment = jnp.dtype(s.optim.moment).itemsize
  cost = flops.update_cost(policy.spec, rows, layout, slots - 1, trips, moment, _cut(policy.mesh))
  lower = _in(policy.mesh, lambda _: update.lower(state, batch, rate, live, **given))
  return Program("update", times, _bytes((state, batch)), beside, lower, cost, rows * slots, trips)


def rl_programs(config: ConfigDict, policy: build_policy.Policy) -> list[Program]:
  """A step of `stages.rl`: sampling in parts, scoring by the reference and the old policy, updates."""
  s, spec, mesh = config.rl, policy.spec, policy.mesh
  whole = sharding.named_sharding(mesh)
  check_sizes(config, policy)
  learner, _ = make_learner(config, policy)
  state = _bytes(_abstract(*build_policy.state_shapes(policy, learner.optimizer)))
  half = {name: jax.ShapeDtypeStruct(x.shape, spec.dtype, sharding=x.sharding) for name, x in policy.params.items()}
  reference = half if s.kl_beta else {}
  programs, _ = _sampling(config, policy, state + _bytes(reference))
  batch = _batch(config, policy, learner)
  layout, slots = learner.layout, learner.layout.slots
  filled = layout.filled(s.prompt_tokens, config.plan.mean_tokens or s.response_tokens)
  trips = math.ceil(s.microbatches * filled / slots) if s.pack else s.microbatches
  rows, live = batch.tokens_RS.shape[0] // s.microbatches * trips, jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  read, scored = reference or policy.params, dataclasses.replace(batch, ref_logp_RS=None, old_logp_RS=None)
  programs += [
    Program(
      "score", (bool(s.kl_beta) + (learner.updates > 1)) * learner.updates, _bytes((scored, read)),
      state + _bytes(reference) - _bytes(read),
      _in(mesh, lambda _: objective.logp.lower(read, scored, live, **learner.scoring())),
      flops.forward_cost(spec, rows, layout, slots - 1, _cut(mesh)), rows * slots, trips,
    )
  ]  # fmt: skip
  beside = _bytes(reference) + (learner.updates - 1) * _bytes(batch)
  programs.append(
    _update(policy, s, layout, batch, learner.loss_fn, learner.optimizer, learner.updates, beside, live, trips)
  )
  return [p for p in programs if p.times]


def _sampling(config: ConfigDict, policy: build_policy.Policy, resident: float) -> tuple[list[Program], Rollout]:
  """(programs of `rollout.Sampler`, shapes of what they draw in one part); decode is the one with all its cache."""
  s, spec, mesh = config.rl, policy.spec, policy.sample_mesh
  tokenizer: Any = SimpleNamespace(eos_ids=(0,), pad_id=0)  # any ids make the same program
  sampling = rollout.sampling(config, tokenizer, int8=s.sample_int8)
  problems, shards = s.problems_per_step // s.sample_parts, sharding.size(mesh, "batch")
  rows, mean = problems * sampling.group, config.plan.mean_tokens or s.response_tokens
  lay_out = sampling_weights.lay_out_weights(spec, mesh, sampling.int8)
  weights = _abstract(jax.eval_shape(lay_out, policy.params), sampling_weights.places(spec, mesh, sampling.int8))
  stops = (2 + sum(map(len, s.stop_strings)), spec.vocab)
  stops, t = (jax.ShapeDtypeStruct(n, jnp.int32, sharding=sharding.named_sharding(mesh)) for n in (stops, ()))
  row_keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  asked = (weights, *_rows(mesh, (*_prompts(problems, s.prompt_tokens), row_keys)), stops)
  how = dict(spec=spec, s=sampling, shards=shards)
  with jax.set_mesh(mesh):
    begun = jax.eval_shape(functools.partial(sampler.prefill, **how), *asked)
    live = jax.eval_shape(functools.partial(sampler.empty_block, s=sampling), *begun)
  place = sharding.named_sharding(mesh, "batch", "kv_heads", None, None)
  live = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), live)
  blocks = (live,) * (-(-s.response_tokens // sampling.slots) - 1)
  levels = flops.level_steps(rows // shards, s.response_tokens, mean, s.shrink)

  def decode(done):
    if not (found := done["prefill"].results):
      return None
    prompt, state = _abstract(begun, found)
    enough = levels[0][0] // 2 if len(levels) > 1 else 0
    return sampler.decode.lower(weights, prompt, blocks, live, state, t, stops, **how, enough=enough)

  sizes = [live / levels[0][0] for live, _ in levels]
  trips = sum(n * steps for n, (_, steps) in zip(sizes, levels, strict=True)) / sum(sizes)  # as what is sent shrinks
  masters = _bytes(policy.params)
  work = (
    flops.Cost(0, 0, masters + _bytes(weights)),
    flops.forward_cost(spec, problems, Separate(s.prompt_tokens), 1, _cut(mesh)),
    flops.decode_cost(spec, sampling.group, s.prompt_tokens, sampling.slots, levels, _cut(mesh), sampling.int8),
  )
  prefill = functools.partial(sampler.prefill.lower, *asked, **how)
  return [
    Program("lay out", 1, masters, resident - masters, _in(mesh, lambda _: lay_out.lower(policy.params)), work[0], 0),
    Program("prefill", s.sample_parts, _bytes(asked), resident, _in(mesh, lambda _: prefill()), work[1],
            problems * s.prompt_tokens),
    Program("decode", s.sample_parts, _bytes((weights, stops, t, blocks, live, _rows(mesh, begun))), resident,
            _in(mesh, decode), work[2], rows * mean, trips),
  ], begun[1].rollout  # fmt: skip


def _prompts(problems: int, width: int):
  return jax.ShapeDtypeStruct((problems, width), jnp.int32), jax.ShapeDtypeStruct((problems,), jnp.int32)


def _batch(config: ConfigDict, policy: build_policy.Policy, learner: Learner) -> objective.RolloutBatch:
  """The rows of an update, as `Learner.parts` makes them."""
  ints: Any = jax.ShapeDtypeStruct(learner.shape(), jnp.int32)
  floats: Any = jax.ShapeDtypeStruct(learner.shape(), jnp.float32)
  batch = objective.RolloutBatch(
    tokens_RS=ints,
    positions_RS=ints,
    segments_RS=ints,
    weights_RS=floats,
    advantage_RS=floats,
    sampler_logp_RS=floats,
    old_logp_RS=floats if learner.updates > 1 else None,
    ref_logp_RS=floats if config.rl.kl_beta else None,
    layout=learner.layout,
  )
  return _rows(policy.mesh, batch)


def compile_program(program: Program, done: dict, devices: int) -> Measured:
  """Compiles; a program that is too large for a chip's memory is a result too."""
  begun = time.monotonic()

  def refuse(why: str, temporaries: float, seconds: float) -> Measured:
    return Measured(program.arguments, temporaries, 0, program.beside, seconds, why, sent={})

  try:
    lowered = program.lower(done)
    if lowered is None:
      return refuse("prefill does not fit", math.inf, 0)
    made = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    told = str(error).split("\n")[0]
    wanted = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of", told)
    if wanted is None:
      raise
    size, unit = wanted.groups()[:2] if wanted[1] else wanted.groups()[2:]
    asked = float(size) * _UNITS[unit] - (0 if "temporaries" in told else program.arguments)
    return refuse(told, max(asked, 0.0), time.monotonic() - begun)
  m = made.memory_analysis()
  return Measured(
    arguments=m.argument_size_in_bytes,
    temporaries=m.temp_size_in_bytes + m.generated_code_size_in_bytes,
    output=m.output_size_in_bytes - m.alias_size_in_bytes,
    beside=program.beside,
    seconds=time.monotonic() - begun,
    refused="",
    sent=_sent(made, devices, program.trips),
    results=made.output_shardings,
  )


def _sent(made, devices: int, trips: float) -> dict[str, collectives.Traffic] | None:
  try:
    text = made.as_text()
  except jax.errors.JaxRuntimeError:  # jaxlib reads not all that a newer libtpu writes (seen on v5p)
    return None
  return collectives.collectives(text, devices, trips)


def open_topology(where: tpu.Slice) -> Sequence[jax.Device]:
  """The slice's devices, to compile for; they are nowhere."""
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      "libtpu is not installed: `bash launch/plan.sh ...` installs it in .venv-tpu, an environment of its own "
      "(pip install '.[tpu]'), and plans there"
    )
  from jax.experimental import topologies

  quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5e-8", "TPU_WORKER_HOSTNAMES": "localhost"}
  beside = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # no TPU is held: several may plan at once
  for name, value in (quiet | beside).items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  more: dict[str, object] = (
    {"chip_config_name": "megacore"} if where.kind == "v4" else {}
  )  # or each TensorCore is a device
  if where.chips == 1:
    more["chips_per_host_bounds"] = (1, 1, 1)  # 2x2x1 by default
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **more).devices
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f"config.plan.topology = {where.name!r}: {str(error).splitlines()[0]}") from error
