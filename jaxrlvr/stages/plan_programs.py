"""Builds the programs of a stage for shapes in the place of arrays, and measures them with a TPU's compiler."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.device import sharding
from jaxrlvr.model import weight_table
from jaxrlvr.model.row_layout import RowLayout, Separate
from jaxrlvr.planning import collectives, flops, tpu
from jaxrlvr.planning.memory import Memory
from jaxrlvr.sampling import cache as sampler_cache
from jaxrlvr.sampling import decode as sampler
from jaxrlvr.sampling import weights as sampling_weights
from jaxrlvr.sampling.types import Batch, Sampling
from jaxrlvr.sampling.weights import FrozenWeights
from jaxrlvr.stages import build_policy, language_modelling, origins, rollout
from jaxrlvr.stages.learner import Learner, check_sizes, make_learner
from jaxrlvr.stages.run_directory import set_compile_cache
from jaxrlvr.training import objective
from jaxrlvr.training.update import update

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Program(NamedTuple):
  """A program of a stage before it is compiled. Bytes and cost are those of one call on one chip.

  lower(measured) traces the program. It takes {name: Measured} of the programs that were compiled before, and returns
  what `jax.jit(...).lower` returns; None where prefill, whose results this one takes, does not fit.
  """

  name: str  # "lay out", "prefill", "decode", "score" or "update"
  times: int  # how often a step of the run calls it
  arguments: float  # bytes of its arguments
  beside: float  # bytes of other arrays that the run keeps in memory meanwhile, such as the optimizer state in sampling
  lower: Callable[[Mapping[str, Measured]], Any]
  cost: flops.Cost  # its work, counted from shapes
  tokens: float  # number of tokens that a call, on all chips together, scores, trains on or samples
  trips: float = 1  # assumed number of turns of loops whose end depends on data


class Measured(NamedTuple):
  """What a compiled program takes. Bytes are those of one call on one chip."""

  arguments: float  # bytes of its arguments
  temporaries: float  # bytes of intermediate results and of the program's code; inf: unknown, and it does not fit
  output: float  # bytes of its results, without those that lie in donated arguments
  beside: float  # bytes of other arrays that the run keeps in memory meanwhile, as `Program.beside`
  seconds: float  # time of compilation
  refused: str  # the compiler's message if the program does not fit into memory; "": it fits
  sent: dict[str, collectives.Traffic] | None  # traffic by kind of collective; None: the program's text can't be read
  results: object = None  # tree of the shardings of its results; None: it was refused

  @property
  def total(self) -> float:
    """Bytes in a chip's memory while it runs: arguments, temporaries, output and beside."""
    return self.arguments + self.temporaries + self.output + self.beside


def _abstract(shapes, shardings):
  """Returns the tree of shapes with these shardings."""
  return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)


def _bytes(tree) -> int:
  """Returns the bytes of a tree of sharded shapes on one chip."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return total


def _sharded_alike(place, tree):
  """Returns the tree of shapes, all with the same sharding."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _rows(mesh, tree):
  """Returns the tree of shapes, all sharded by rows."""
  return _sharded_alike(sharding.named_sharding(mesh, "batch"), tree)


def _replicated(mesh, shape: tuple[int, ...], dtype):
  """Returns the shape of an array of which each chip has a copy."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named_sharding(mesh))


def _shards(mesh) -> flops.Shards:
  """Returns how the mesh splits the work and the weights."""
  return flops.Shards(
    sharding.shard_count(mesh, "batch"), mesh.shape["tensor"], mesh.shape["fsdp"] * mesh.shape["tensor"]
  )


def _in(mesh, function):
  """Returns the function so that it runs with this mesh set."""

  def lower(measured):
    with jax.set_mesh(mesh):
      return function(measured)

  return lower


def abstract_policy(config: ConfigDict, where: tpu.Slice, devices: Sequence[jax.Device]) -> build_policy.Policy:
  """Returns the policy of a config on a TPU slice, with sharded shapes in the place of its weights.

  where: the slice. devices: those of the slice, as `open_topology` returns them, or as many others. The policy has the
  shape of config.init or config.model.path, else that of config.model; its tokenizer is None. Raises InputError where
  nothing says how large its vocabulary is (config.model.vocab = 0), and where the mesh does not suit the devices.
  """
  spec, recorded = build_policy.find_shape(config), object_store.path(config.init) / build_policy.POLICY_FILE
  if spec is None and not recorded.is_file() and not config.model.vocab:
    raise InputError(
      f"config.model.vocab = 0, and neither config.init = {config.init!r} nor config.model.path holds a model; name "
      "one that does, or set config.model.vocab to plan for the shape of config.model"
    )
  if spec is None and recorded.is_file():
    spec = origins.read_recorded_spec(recorded)
  elif spec is None:
    spec = build_policy.fresh_spec(config, config.model.vocab)
  set_compile_cache(config.compile_cache)  # before the first program
  mesh = build_policy.configured_mesh(config, devices)
  text_tokens = 0 if config.plan.stage == "rl" else config[config.plan.stage].row_tokens
  spec = build_policy.with_lora(build_policy.with_compute_settings(spec, config, "tpu", text_tokens), config)
  sample_mesh = build_policy.configured_sampling_mesh(config, spec, mesh, int(where.chip.hbm))
  frozen: dict[str, Any] = {}
  if spec.lora is not None:
    places = weight_table.shardings(spec, mesh)
    for name, leaf in weight_table.leaves(spec).items():
      frozen[name] = jax.ShapeDtypeStruct(leaf.shape, spec.lora.base_dtype, sharding=places[name])
  params = build_policy.trained_shapes(spec, mesh)
  return build_policy.Policy(spec, None, params, mesh, sample_mesh, {}, FrozenWeights(frozen))


class StagePrograms(NamedTuple):
  """The programs of a step of a stage."""

  policy: build_policy.Policy  # with shapes in the place of weights, as `abstract_policy` returns it
  programs: list[Program]  # in the order in which a step calls them
  memory: Memory  # estimate of what the run takes of a chip's memory, by part


def programs_of_stage(config: ConfigDict, where: tpu.Slice, devices: Sequence[jax.Device]) -> StagePrograms:
  """Returns the programs of a step of the stage config.plan.stage on a TPU slice, none of them compiled.

  For pretrain, cpt and sft it is "update" alone; for rl they are "lay out" (weights for sampling), "prefill", "decode",
  "score" (only with a reference model or several updates a step) and "update". where, devices: as for
  `abstract_policy`. Raises InputError as that does, and where the mesh can't split the rows or batches.
  """
  policy, stage = abstract_policy(config, where, devices), config.plan.stage
  if stage == "rl":
    return _rl_programs(config, policy)
  estimate = language_modelling.memory_of_training(config[stage], policy)
  return StagePrograms(policy, _language_programs(config, policy), estimate)


def _language_programs(config: ConfigDict, policy: build_policy.Policy) -> list[Program]:
  """Returns the programs of a step of pretrain, cpt or sft (config.plan.stage): one, named "update".

  policy: with shapes in the place of weights, as `abstract_policy` returns it. Raises InputError where the mesh can't
  split the rows.
  """
  stage = config.plan.stage
  settings = config[stage]
  sharding.check_divisible(policy.mesh, f"config.{stage}.rows", (settings.rows // settings.microbatches,), ("batch",))
  ints: Any = jax.ShapeDtypeStruct((settings.rows, settings.row_tokens), jnp.int32)
  floats: Any = jax.ShapeDtypeStruct((settings.rows, settings.row_tokens), jnp.float32)
  batch = _rows(policy.mesh, objective.TextBatch(ints, ints, ints, floats))
  optimizer, _ = build_policy.make_optimizer(settings.optim, max(settings.steps, 1))
  loss_fn = objective.language_modelling(policy.spec)
  return [_update(policy, settings, Separate(settings.row_tokens), batch, loss_fn, optimizer)]


def _update(
  policy,
  settings,
  layout: RowLayout,
  batch,
  loss_fn,
  optimizer,
  times: int = 1,
  beside: float = 0,
  live=None,
  trips: int = 0,
) -> Program:
  """Returns the program of an update of a batch.

  settings: those of the stage, as config.rl. live: shape of the number of microbatches that hold tokens, of which there
  are `trips`; None: all do.
  """
  trips = trips or settings.microbatches
  slots = layout.slots
  rows = jax.tree.leaves(batch)[0].shape[0] // settings.microbatches * trips
  state, frozen = _abstract(*build_policy.state_shapes(policy, optimizer)), policy.frozen.weights
  rate = _replicated(policy.mesh, (), jnp.float32)
  moment_bytes = jnp.dtype(settings.optim.moment).itemsize

  def lower(_):
    return update.lower(
      state, batch, rate, live, frozen, loss_fn=loss_fn, optimizer=optimizer, microbatches=settings.microbatches
    )

  return Program(
    name="update",
    times=times,
    arguments=_bytes((state, batch, frozen)),
    beside=beside,
    lower=_in(policy.mesh, lower),
    cost=flops.update_cost(policy.spec, rows, layout, slots - 1, trips, moment_bytes, _shards(policy.mesh)),
    tokens=rows * slots,
    trips=trips,
  )


def _rl_programs(config: ConfigDict, policy: build_policy.Policy) -> StagePrograms:
  """Returns the programs of a step of RL: sampling, scoring by the reference model and the old policy, updates.

  policy: with shapes in the place of weights, as `abstract_policy` returns it. Raises InputError where the
  mesh can't split their batches.
  """
  settings, mesh = config.rl, policy.mesh
  check_sizes(config, policy)
  learner, _ = make_learner(config, policy)
  state_bytes = _bytes(_abstract(*build_policy.state_shapes(policy, learner.optimizer)))
  reference = {}  # with LoRA the frozen weights are the reference model
  if learner.needs_reference and policy.spec.lora is None:
    for name, leaf in policy.params.items():
      reference[name] = jax.ShapeDtypeStruct(leaf.shape, policy.spec.dtype, sharding=leaf.sharding)
  batch = _batch(config, policy, learner)
  layout = learner.layout
  live = _replicated(mesh, (), jnp.int32)
  trips = settings.microbatches
  if settings.pack:
    filled = layout.filled_slots(settings.prompt_tokens, config.plan.mean_tokens or settings.response_tokens)
    trips = math.ceil(settings.microbatches * filled / layout.slots)
  sampled = _sampled(config, policy)
  laid_out = sampled.frozen_bytes
  resident = state_bytes + _bytes((reference, policy.frozen.weights)) + laid_out
  programs = _sampling(config, policy, sampled, resident)
  programs.append(_score(policy, learner, batch, reference, live, trips, resident))
  beside = _bytes(reference) + laid_out + (learner.updates_per_step - 1) * _bytes(batch)
  programs.append(
    _update(
      policy, settings, layout, batch, learner.loss_fn, learner.optimizer, learner.updates_per_step, beside, live, trips
    )
  )
  work = rollout.work_of_sampler(
    policy, sampled.sampling, settings.problems_per_step, settings.prompt_tokens, settings.sample_parts
  )
  estimate = learner.memory([(sampled.sampling, work)])
  return StagePrograms(policy, [program for program in programs if program.times], estimate)


def _score(
  policy: build_policy.Policy, learner: Learner, batch, reference: dict, live, trips: int, resident: float
) -> Program:
  """Returns the program that scores the batch of an update by the reference model or the old policy.

  reference: shapes of the copy of the weights that is the reference model; {}: there is none. live, trips: as in
  `_update`. resident: bytes of a chip that the run holds.
  """
  settings, mesh = learner.settings, policy.mesh
  slots = learner.layout.slots
  rows = batch.tokens_RS.shape[0] // settings.microbatches * trips
  spec = policy.spec
  if learner.needs_reference:
    params = reference or policy.frozen.weights
    spec = dataclasses.replace(spec, lora=None)  # of which the work is counted
  else:
    params = policy.weights()
  unscored = dataclasses.replace(batch, ref_logp_RS=None, old_logp_RS=None)
  models = int(learner.needs_reference) + int(learner.updates_per_step > 1)
  return Program(
    name="score",
    times=models * learner.updates_per_step,
    arguments=_bytes((unscored, params)),
    beside=resident - _bytes(params),
    lower=_in(mesh, lambda _: objective.logp.lower(params, unscored, live, **learner.score_arguments())),
    cost=flops.forward_cost(spec, rows, learner.layout, slots - 1, _shards(mesh)),
    tokens=rows * slots,
    trips=trips,
  )


class _Sampled(NamedTuple):
  """The weights of sampling, as shapes, and how a step makes them."""

  sampling: Sampling
  weights: dict  # as sampling lays them out
  frozen_bytes: float  # of a chip that those take which are laid out once a run
  lay_out: jax.stages.Wrapped  # lays out the weights that training changes


def _sampled(config: ConfigDict, policy: build_policy.Policy) -> _Sampled:
  """Returns the weights that `rollout.Sampler` reads, with shapes in the place of arrays."""
  spec, mesh = policy.spec, policy.sample_mesh
  tokenizer: Any = SimpleNamespace(eos_ids=(0,), pad_id=0)  # the programs are the same whatever these ids are
  sampling = rollout.sampling_settings(config, tokenizer, int8=config.rl.sample_int8)
  lay_out = sampling_weights.lay_out_weights(spec, mesh, sampling.int8)
  places = sampling_weights.weight_shardings(spec, mesh, sampling.int8)
  if spec.lora is None:
    return _Sampled(sampling, _abstract(jax.eval_shape(lay_out, policy.params), places), 0, lay_out)
  frozen = _abstract(jax.eval_shape(lay_out, policy.frozen.weights), places)
  lay_out = sampling_weights.lay_out_weights(spec, mesh, adapters=True)
  places = sampling_weights.weight_shardings(spec, mesh, adapters=True)
  adapters = _abstract(jax.eval_shape(lay_out, policy.params), places)
  return _Sampled(sampling, {**frozen, **adapters}, _bytes(frozen), lay_out)


class _SamplerShapes(NamedTuple):
  """Shapes of what the programs of sampling take, for one part of a step's problems."""

  batch: Batch
  stops: jax.ShapeDtypeStruct  # automaton of the stop strings
  step: jax.ShapeDtypeStruct  # number of tokens decoded so far
  begun: tuple  # what prefill returns: (cache of the prompts, state)
  block: Any  # a block of the KV cache of responses


def _sampler_shapes(config: ConfigDict, policy: build_policy.Policy, sampled: _Sampled) -> _SamplerShapes:
  """Returns the shapes of sampling's arguments beside the weights."""
  settings, spec, mesh, sampling = config.rl, policy.spec, policy.sample_mesh, sampled.sampling
  problems = settings.problems_per_step // settings.sample_parts
  tokens: Any = jax.ShapeDtypeStruct((problems, settings.prompt_tokens), jnp.int32)
  lengths: Any = jax.ShapeDtypeStruct((problems,), jnp.int32)
  row_keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), problems * sampling.group))
  batch = _rows(mesh, Batch(tokens, lengths, row_keys))
  states = 2 + sum(map(len, settings.stop_strings))
  stops = _replicated(mesh, (states, spec.vocab), jnp.int32)
  prefill = functools.partial(sampler.prefill, spec=spec, s=sampling, shards=sharding.shard_count(mesh, "batch"))
  with jax.set_mesh(mesh):
    begun = jax.eval_shape(prefill, sampled.weights, batch, stops)
    empty_block = functools.partial(sampler_cache.empty_block, rows=len(batch.keys_B), slots=sampling.block_slots)
    block = jax.eval_shape(empty_block, begun[0])
  block = _sharded_alike(sharding.named_sharding(mesh, "batch", "kv_heads", None, None), block)
  return _SamplerShapes(batch, stops, _replicated(mesh, (), jnp.int32), begun, block)


def _sampling(config: ConfigDict, policy: build_policy.Policy, sampled: _Sampled, resident: float) -> list[Program]:
  """Returns the programs of `rollout.Sampler`: laying out weights, prefill, and decoding with all of the KV cache.

  resident: bytes of a chip that the run holds.
  """
  settings, spec, mesh, sampling = config.rl, policy.spec, policy.sample_mesh, sampled.sampling
  shapes = _sampler_shapes(config, policy, sampled)
  problems = settings.problems_per_step // settings.sample_parts
  params_bytes = _bytes(policy.params)
  lay_out_program = Program(
    name="lay out",
    times=1,
    arguments=params_bytes,
    beside=resident - params_bytes,
    lower=_in(mesh, lambda _: sampled.lay_out.lower(policy.params)),
    cost=flops.Cost(0, 0, params_bytes + _bytes(sampled.weights) - sampled.frozen_bytes),
    tokens=0,
  )
  arguments = (sampled.weights, shapes.batch, shapes.stops)
  beside = resident - sampled.frozen_bytes
  shards = sharding.shard_count(mesh, "batch")
  prefill_program = Program(
    name="prefill",
    times=settings.sample_parts,
    arguments=_bytes(arguments),
    beside=beside,
    lower=_in(mesh, lambda _: sampler.prefill.lower(*arguments, spec=spec, s=sampling, shards=shards)),
    cost=flops.forward_cost(spec, problems, Separate(settings.prompt_tokens), 1, _shards(mesh)),
    tokens=problems * settings.prompt_tokens,
  )
  return [lay_out_program, prefill_program, _decode(config, policy, sampled, shapes, beside)]


def _decode(
  config: ConfigDict, policy: build_policy.Policy, sampled: _Sampled, shapes: _SamplerShapes, beside: float
) -> Program:
  """Returns the program that decodes a part's responses with all of the KV cache, and so takes the most memory."""
  settings, spec, mesh, sampling = config.rl, policy.spec, policy.sample_mesh, sampled.sampling
  shards = sharding.shard_count(mesh, "batch")
  rows = settings.problems_per_step // settings.sample_parts * sampling.group
  mean_tokens = config.plan.mean_tokens or settings.response_tokens
  # The batch shrinks as rows finish: (rows a shard, decode steps with so many), the largest first.
  levels = flops.level_steps(rows // shards, settings.response_tokens, mean_tokens, settings.shrink)
  largest, _ = levels[0]
  shares = [live_rows / largest for live_rows, _ in levels]
  # Steps with the whole batch that send as much as all steps do.
  trips = sum(share * steps for share, (_, steps) in zip(shares, levels, strict=True)) / sum(shares)
  full_blocks = (shapes.block,) * (-(-settings.response_tokens // sampling.block_slots) - 1)

  def lower(measured):
    shardings = measured["prefill"].results
    if not shardings:
      return None
    prompt, state = _abstract(shapes.begun, shardings)
    until_live = largest // 2 if len(levels) > 1 else 0
    return sampler.decode.lower(
      sampled.weights,
      prompt,
      full_blocks,
      shapes.block,
      state,
      shapes.step,
      shapes.stops,
      spec=spec,
      s=sampling,
      shards=shards,
      until_live=until_live,
    )

  arguments = (sampled.weights, shapes.stops, shapes.step, full_blocks, shapes.block, _rows(mesh, shapes.begun))
  return Program(
    name="decode",
    times=settings.sample_parts,
    arguments=_bytes(arguments),
    beside=beside,
    lower=_in(mesh, lower),
    cost=flops.decode_cost(
      spec, sampling.group, settings.prompt_tokens, sampling.block_slots, levels, _shards(mesh), sampling.int8
    ),
    tokens=rows * mean_tokens,
    trips=trips,
  )


def _batch(config: ConfigDict, policy: build_policy.Policy, learner: Learner) -> objective.RolloutBatch:
  """Returns the shapes of an update's batch, as `Learner.make_batches` returns it."""
  ints: Any = jax.ShapeDtypeStruct(learner.batch_shape(), jnp.int32)
  floats: Any = jax.ShapeDtypeStruct(learner.batch_shape(), jnp.float32)
  batch = objective.RolloutBatch(
    tokens_RS=ints,
    positions_RS=ints,
    segments_RS=ints,
    weights_RS=floats,
    advantage_RS=floats,
    sampler_logp_RS=floats,
    old_logp_RS=floats if learner.updates_per_step > 1 else None,
    ref_logp_RS=floats if learner.needs_reference else None,
    layout=learner.layout,
  )
  return _rows(policy.mesh, batch)


def compile_program(program: Program, done: Mapping[str, Measured], devices: int) -> Measured:
  """Compiles a program and measures what it takes, also where it does not fit into a chip's memory.

  done: what the programs that were compiled before take, by name, among them prefill if this is decode; it is not
  changed. devices: number of devices that the program runs on, from which the traffic of collectives follows. A program
  that does not fit has the compiler's message in `refused`, the temporaries that this names, and no output. Raises
  other errors of the compiler (JaxRuntimeError).
  """
  begun = time.monotonic()
  try:
    lowered = program.lower(done)
    if lowered is None:
      return _refused(program, "prefill does not fit", math.inf, 0)
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    message = str(error).split("\n")[0]
    temporaries = _refused_temporaries(message, program.arguments)
    if temporaries is None:
      raise
    return _refused(program, message, temporaries, time.monotonic() - begun)
  memory = compiled.memory_analysis()
  return Measured(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
    output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    beside=program.beside,
    seconds=time.monotonic() - begun,
    refused="",
    sent=_sent(compiled, devices, program.trips),
    results=compiled.output_shardings,
  )


def _refused(program: Program, message: str, temporaries: float, seconds: float) -> Measured:
  """Returns the measurement of a program that does not fit into memory."""
  return Measured(program.arguments, temporaries, 0, program.beside, seconds, message, sent={})


def _refused_temporaries(message: str, arguments: float) -> float | None:
  """Returns the bytes of temporaries that a compiler's message says are needed; None: it is not about memory.

  arguments: bytes of the program's arguments, which some of the messages count too.
  """
  needed = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM|Used ([\d.]+)([KMGT]?) of", message)
  if needed is None:
    return None
  size, unit = (needed[1], needed[2]) if needed[1] else (needed[3], needed[4])
  needed_bytes = float(size) * _UNITS[unit]
  if "temporaries" not in message:
    needed_bytes -= arguments
  return max(needed_bytes, 0.0)


def _sent(compiled, devices: int, trips: float) -> dict[str, collectives.Traffic] | None:
  """Returns what a compiled program sends between chips, by kind of collective; None: its text can't be read."""
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # jaxlib reads not all that a newer libtpu writes (seen on v5p)
    return None
  return collectives.count_traffic(text, devices, trips)


def open_topology(where: tpu.Slice) -> Sequence[jax.Device]:
  """Returns the devices of a TPU slice to compile for; none of them needs to exist.

  Sets jax_platforms to "cpu" and libtpu's environment variables for this process, so that neither looks for a TPU; call
  it before jax has begun to use devices. Raises InputError where libtpu is not installed or does not know the topology.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      "libtpu is not installed: `bash launch/plan.sh ...` installs it in .venv-tpu, an environment of its own "
      "(pip install '.[tpu]'), and plans there"
    )
  from jax.experimental import topologies

  # libtpu then looks for no TPU, and several processes may plan at once.
  environment = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  for name, value in environment.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  options: dict[str, object] = {}
  if where.kind == "v4":
    options["chip_config_name"] = "megacore"  # else each TensorCore is a device
  if where.chips == 1:
    options["chips_per_host_bounds"] = (1, 1, 1)  # the default is 2x2x1
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **options).devices
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f"config.plan.topology = {where.name!r}: {str(error).splitlines()[0]}") from error
