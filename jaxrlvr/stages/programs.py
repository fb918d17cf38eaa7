"""The programs of a stage with shapes in the place of arrays, and what a TPU's compiler says of them."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxrlvr import counts, hlo, keys, objective, shard, tpu
from jaxrlvr.policy import sample as sampler
from jaxrlvr.policy import spec as policy_spec
from jaxrlvr.policy.spec import Spec
from jaxrlvr.stages import rl, rollout, setup
from jaxrlvr.types import InputError
from jaxrlvr.update import update

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  name: str
  times: int  # in a step of the run
  arguments: float  # bytes a chip
  beside: float  # bytes a chip that lie in memory meanwhile and are no arguments
  lower: Callable  # {program: Measured} -> lowered; None where the program that it follows does not fit
  cost: counts.Cost
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
  sent: dict[str, hlo.Traffic]
  results: object = None  # how they lie

  @property
  def total(self) -> float:
    return self.arguments + self.temporaries + self.output + self.beside


def _abstract(shapes, places):
  return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)


def _bytes(tree) -> int:
  """Of one chip."""
  leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _rows(mesh, tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard.named(mesh, "batch")), tree)


def _cut(spec: Spec, mesh) -> counts.Cut:
  weights = mesh.shape["fsdp"] * mesh.shape["tensor"]
  return counts.Cut(shard.size(mesh, "batch"), shard.size(mesh, "mlp"), weights)


def _in(mesh, function):
  def lower(done):
    with jax.set_mesh(mesh):
      return function(done)

  return lower


def abstract_policy(config: ConfigDict, where: tpu.Slice, devices) -> setup.Policy:
  """The policy of a config on a slice: shapes and places of its weights, and no weight."""
  init = Path(config.init, setup.POLICY)
  if config.init and init.is_file():
    spec = setup.read_spec(init)
  elif config.model.vocab:
    spec = setup.fresh_spec(config, config.model.vocab)
  else:
    raise InputError(
      f"config.model.vocab = 0 and config.init = {config.init!r} holds no {setup.POLICY}: the number of tokens is not "
      "known; set config.model.vocab"
    )
  mesh, spec = setup.make_mesh(config, devices), setup.configured(config, spec, "tpu")
  shapes = jax.eval_shape(lambda: policy_spec.init(spec, keys.at(0, "init")))
  params = _abstract(shapes, policy_spec.shardings(spec, mesh))
  sample_mesh = setup.sampling_mesh(config, spec, mesh, int(where.chip.hbm))
  return setup.Policy(spec, None, params, mesh, sample_mesh, {})


def of(config: ConfigDict, where: tpu.Slice, devices) -> tuple[setup.Policy, list[Program]]:
  """(abstract policy, programs in the order of a step) of `config.plan.stage`."""
  policy, stage = abstract_policy(config, where, devices), config.plan.stage
  return policy, (rl_programs(config, policy) if stage == "rl" else language_programs(config, stage, policy))


def language_programs(config: ConfigDict, stage: str, policy: setup.Policy) -> list[Program]:
  s, spec, mesh = config[stage], policy.spec, policy.mesh
  shard.check(mesh, f"config.{stage}.rows", (s.rows // s.microbatches,), ("batch",))
  optimizer, _ = setup.optimizer(s.optim, s.steps)
  shape = (s.rows, s.row_tokens)
  fields = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (*[jnp.int32] * 3, jnp.float32)]
  batch = _rows(mesh, objective.TextBatch(*fields))
  loss_fn = objective.language_modelling(spec)
  return [_update(config, policy, s, batch, loss_fn, optimizer, shape, s.row_tokens - 1, 1, 0)]


def _update(config, policy, s, batch, loss_fn, optimizer, shape, scored: int, times: int, beside: float) -> Program:
  state = _abstract(*setup.state_shapes(policy, optimizer))
  rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=shard.named(policy.mesh))
  given = dict(loss_fn=loss_fn, optimizer=optimizer, microbatches=s.microbatches)
  moment = jnp.dtype(s.optim.moment).itemsize
  cost = counts.update(policy.spec, *shape, scored, s.microbatches, moment, _cut(policy.spec, policy.mesh))
  lower = _in(policy.mesh, lambda _: update.lower(state, batch, rate, **given))
  return Program("update", times, _bytes((state, batch)), beside, lower, cost, math.prod(shape))


def rl_programs(config: ConfigDict, policy: setup.Policy) -> list[Program]:
  """A step of RL: `stages.rl` with shapes in the place of arrays."""
  s, spec, mesh, sample_mesh = config.rl, policy.spec, policy.mesh, policy.sample_mesh
  rl.check_sizes(config, policy)
  learner, _ = rl.make_learner(config, policy)
  sampling = rollout.sampling(config, SimpleNamespace(eos_ids=(0,), pad_id=0))  # any ids make the same program
  problems, shards = s.problems_per_step // s.sample_parts, shard.size(sample_mesh, "batch")
  rows, mean = problems * sampling.group, config.plan.mean_tokens or s.response_tokens
  masters, state = policy.params, _abstract(*setup.state_shapes(policy, learner.optimizer))
  half = {name: jax.ShapeDtypeStruct(x.shape, spec.dtype, sharding=x.sharding) for name, x in masters.items()}
  reference = half if s.kl_beta else {}
  resident = _bytes((state, reference))
  weights = _abstract(half, policy_spec.shardings(spec, sample_mesh))
  stops = 2 + sum(map(len, s.stop_strings))
  whole = shard.named(sample_mesh)
  stops = jax.ShapeDtypeStruct((stops, spec.vocab), jnp.int32, sharding=whole)
  prompts = _rows(sample_mesh, _prompts(problems, s.prompt_tokens))
  row_keys = _rows(sample_mesh, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)))
  how = dict(spec=spec, s=sampling, shards=shards)
  asked = (weights, *prompts, row_keys, stops)
  with jax.set_mesh(sample_mesh):
    begun = jax.eval_shape(functools.partial(sampler.prefill, **how), *asked)

  def decode(done):
    if (places := done["prefill"].results) is None:
      return None
    return sampler.decode.lower(weights, *_abstract(begun, places), stops, **how)

  cut, sample_cut = _cut(spec, mesh), _cut(spec, sample_mesh)
  levels = counts.level_steps(rows // shards, s.response_tokens, mean, s.shrink)
  here = dict(prompt=s.prompt_tokens, most=s.response_tokens, levels=levels, cut=sample_cut)
  shares = [0.5**level for level in range(len(levels))]
  trips = sum(x * steps for x, (_, steps) in zip(shares, levels, strict=True)) / sum(shares)  # batches shrink by level
  rows_all, slots = s.problems_per_step * s.group_size, s.prompt_tokens + s.response_tokens
  batch = _batch(config, policy, begun[1].rollout, learner)
  minor = rows_all // learner.updates
  scores = bool(s.kl_beta) + (learner.updates > 1)
  score = counts.forward(spec, rows_all, slots, s.response_tokens, cut)
  score_weights = reference or masters
  relaid = counts.Cost(0, 0, _bytes((masters, weights)))
  scored = (batch.replace(ref_logp_BT=None, old_logp_BT=None), score_weights)
  found = [
    Program("lay out", 1, _bytes(masters), resident - _bytes(masters),
            _in(sample_mesh, lambda _: sampler.lay_out(spec, sample_mesh).lower(masters)), relaid, 0),
    Program("prefill", s.sample_parts, _bytes(asked), resident,
            _in(sample_mesh, lambda _: sampler.prefill.lower(*asked, **how)),
            counts.forward(spec, problems, s.prompt_tokens, 1, sample_cut), problems * s.prompt_tokens),
    Program("decode", s.sample_parts, 0, resident, _in(sample_mesh, decode),
            counts.decode(spec, rows, sampling.group, **here), rows * mean, trips),
    Program("score", scores, _bytes(scored), _bytes((state, reference)) - _bytes(score_weights),
            _in(mesh, lambda _: objective.logp.lower(*scored[::-1], **learner.scoring())), score, rows_all * slots),
  ]  # fmt: skip
  part = jax.eval_shape(functools.partial(rl.parts_of, updates=learner.updates, group=s.group_size), batch)[0]
  step = _update(
    config, policy, s, _rows(mesh, part), learner.loss_fn, learner.optimizer, (minor, slots), s.response_tokens,
    learner.updates, _bytes(reference) + (_bytes(batch) if learner.updates > 1 else 0),
  )  # fmt: skip
  return [p for p in (*found, step) if p.times]


def _prompts(problems: int, width: int):
  return jax.ShapeDtypeStruct((problems, width), jnp.int32), jax.ShapeDtypeStruct((problems,), jnp.int32)


def _batch(config: ConfigDict, policy: setup.Policy, part, learner: rl.Learner) -> objective.RolloutBatch:
  """Rows to train on, as `Learner.rows` makes them of all parts."""
  s = config.rl
  made = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * s.sample_parts, *x.shape[1:]), x.dtype), part)
  samples = s.votes or s.group_size
  rows = functools.partial(objective.rollout_rows, samples=samples, group=s.group_size)
  batch = jax.eval_shape(rows, *_prompts(s.problems_per_step, s.prompt_tokens), made)
  logp_BT = batch.sampler_logp_BT
  batch = batch.replace(
    ref_logp_BT=logp_BT if s.kl_beta else None, old_logp_BT=logp_BT if learner.updates > 1 else None
  )
  return _rows(policy.mesh, batch)


def compile_program(program: Program, done: dict, devices: int) -> Measured:
  """Compiles; a program that is too large for a chip's memory is a result too."""
  begun = time.monotonic()
  given = dict(arguments=program.arguments, beside=program.beside, sent={})
  try:
    lowered = program.lower(done)
    if lowered is None:
      return Measured(temporaries=math.inf, output=0, seconds=0, refused="prefill does not fit", **given)
    made = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    told = str(error).split("\n")[0]
    wanted = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of", told)
    if wanted is None:
      raise
    size, unit = wanted.groups()[:2] if wanted[1] else wanted.groups()[2:]
    wanted = float(size) * _UNITS[unit] - (0 if "temporaries" in told else program.arguments)
    seconds = time.monotonic() - begun
    return Measured(temporaries=max(wanted, 0.0), output=0, seconds=seconds, refused=told, **given)
  m = made.memory_analysis()
  return Measured(
    arguments=m.argument_size_in_bytes,
    temporaries=m.temp_size_in_bytes + m.generated_code_size_in_bytes,
    output=m.output_size_in_bytes - m.alias_size_in_bytes,
    beside=program.beside,
    seconds=time.monotonic() - begun,
    refused="",
    sent=hlo.collectives(made.as_text(), devices, program.trips),
    results=made.output_shardings,
  )


def open_topology(where: tpu.Slice):
  """The slice's devices, to compile for; they are nowhere."""
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      "libtpu is not installed: `bash launch/plan.sh ...` installs it in .venv-tpu, an environment of its own "
      "(pip install '.[tpu]'), and plans there"
    )
  from jax.experimental import topologies

  quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5e-8", "TPU_WORKER_HOSTNAMES": "localhost"}
  for name, value in (
    quiet | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  ).items():  # no TPU is held: plans may run side by side
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  cores = {"chip_config_name": "megacore"} if where.kind == "v4" else {}  # or each TensorCore is a device
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **cores).devices
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f"config.plan.topology = {where.name!r}: {str(error).splitlines()[0]}") from error
