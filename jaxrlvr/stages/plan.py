"""Know before you rent: compiles a config's programs for a TPU slice and tells memory, limits and time of the run."""

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

from jaxrlvr import config as configs
from jaxrlvr import counts, hlo, keys, logbook, objective, shard, tpu
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
  lower: Callable  # {program: how its results lie} -> lowered; None where a program that it follows does not fit
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
    if "prefill" not in done:
      return None
    return sampler.decode.lower(weights, *_abstract(begun, done["prefill"]), stops, **how)

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


class Try(NamedTuple):
  """A setting that may make a program fit."""

  key: str  # below the stage's group where it begins with a dot
  helps: tuple[str, ...]  # programs that it changes for the better
  eases: str  # "temporaries", or "arguments" and what lies beside them too
  next: Callable  # (value, how many times too large the temporaries are) -> values to try, the most wanted first


def _more(value: int, excess: float) -> list[int]:
  """Value times the power of two that the excess calls for; less where this is not possible."""
  power = max(1, math.ceil(math.log2(min(max(excess, 2.0), 2.0**20))))
  return [value * 2**n for n in range(power, 0, -1)]


_ALL = ("lay out", "prefill", "decode", "score", "update")
# What to lower, in the order of what it costs in speed.
TRIES = (
  Try(".microbatches", ("score", "update"), "temporaries", _more),
  Try(".sample_parts", ("prefill", "decode"), "temporaries", _more),
  Try("model.remat", ("update",), "temporaries", lambda v, _: {"none": ["dots", "full"], "dots": ["full"]}.get(v, [])),
  Try("model.vocab_chunk", ("score", "update"), "temporaries", lambda v, _: [v // 2] if v > 2048 else []),
  Try("mesh.fsdp", _ALL, "arguments", lambda v, _: [-1] if v != -1 else []),
  Try("mesh.sample_tensor", ("lay out", "prefill", "decode"), "arguments", lambda v, _: [2 * v] if v else [2, 4, 8]),
  Try(".optim.moment", _ALL, "arguments", lambda v, _: ["bfloat16"] if v == "float32" else []),
  Try("mesh.tensor", _ALL, "temporaries", lambda v, _: [2 * v]),
)


def search(config: ConfigDict, stage: str, capacity: float, measure: Callable, tries=TRIES):
  """(config, its programs measured, changes made) after lowering what does not fit, as far as `tries` go.

  measure(config, names or None, before): programs by name, those in `names` compiled anew; InputError for settings
  that the mesh can't split. A try is kept where the program that did not fit needs less memory with it.
  """
  made, changes, spent = measure(config, None, {}), {}, set()
  while bad := next((name for name, m in made.items() if m.total > capacity or m.refused), None):
    for i, t in enumerate(tries):
      now, room = made[bad], capacity - made[bad].arguments - made[bad].beside - made[bad].output
      key = f"{stage}{t.key}" if t.key.startswith(".") else t.key
      hopeless = t.eases == "temporaries" and room <= 0
      if bad not in t.helps or (i, bad) in spent or hopeless or key not in configs.keys(config):
        continue
      better = _better(config, key, t, now, room, measure, made, bad)
      if better is None:
        spent.add((i, bad))
        continue
      config, made, changes[key] = better
      break
    else:
      return config, made, changes
  return config, made, changes


def _better(config, key: str, t: Try, now: Measured, room: float, measure: Callable, made: dict, bad: str):
  value = functools.reduce(lambda node, part: node[part], key.split("."), config)
  for wanted in t.next(value, now.temporaries / room if room > 0 else math.inf):
    try:
      changed = configs.derive(config, {key: wanted} | ({"mesh.data": 1} if key == "mesh.fsdp" else {}))
      found = measure(changed, t.helps, made)
    except InputError:
      continue
    if found[bad].total < now.total or (math.isinf(now.total) and not found[bad].refused):
      return changed, found, wanted
  return None


def report(programs: list[Program], made: dict[str, Measured], chip: tpu.Chip, chips: int, efficiency: float) -> dict:
  """A row a program: memory as compiled, work as counted, and the time that follows from the chip's figures."""
  rows = {}
  for p in programs:
    m, sent = made[p.name], sum(t.bytes for t in made[p.name].sent.values())
    limits = {"compute": p.cost.flops / chip.flops, "memory": p.cost.bytes / chip.bandwidth, "network": sent / chip.ici}
    by = max(limits, key=limits.get)
    seconds = limits[by] / efficiency
    rows[p.name] = m._asdict() | {
      "times": p.times, "total": m.total, "flops": p.cost.flops, "model_flops": p.cost.model_flops,
      "bytes": p.cost.bytes, "sent_bytes": sent, "sent": {k: t._asdict() for k, t in m.sent.items()},
      "bound_seconds": limits[by], "bound_by": by, "estimated_seconds": seconds,
      "tokens_per_second": p.tokens / seconds, "mfu": p.cost.model_flops / seconds / chip.flops,
    }  # fmt: skip
    del rows[p.name]["results"]
  return rows


COLUMNS = ("program", "a step", "arguments", "temporaries", "output", "beside", "HBM GiB", "TFLOP", "GB moved",
           "GB sent", "bound s", "by", "estimate s", "tokens/s", "MFU", "compiled in s")  # fmt: skip


def table(rows: dict, capacity: float) -> str:
  lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
  for name, r in rows.items():
    memory = [f"{r[k] / tpu.GIB:.2f}" for k in ("arguments", "temporaries", "output", "beside")]
    fits = "" if r["total"] <= capacity and not r["refused"] else " **does not fit**"
    work = [f"{r['flops'] / 1e12:.4g}", f"{r['bytes'] / 1e9:.4g}", f"{r['sent_bytes'] / 1e9:.4g}"]
    times = [f"{r['bound_seconds']:.3g}", r["bound_by"], f"{r['estimated_seconds']:.3g}"]
    more = [f"{r['tokens_per_second']:,.0f}", f"{r['mfu']:.1%}", f"{r['seconds']:.0f}"]
    total = f"{r['total'] / tpu.GIB:.2f} of {capacity / tpu.GIB:.2f}{fits}"
    lines.append("| " + " | ".join([name, str(r["times"]), *memory, total, *work, *times, *more]) + " |")
  return "\n".join(lines)


def open_topology(where: tpu.Slice):
  """The slice's devices, to compile for; they are nowhere."""
  if importlib.util.find_spec("libtpu") is None:
    raise InputError(
      "libtpu is not installed: `bash launch/plan.sh ...` installs it in .venv-tpu, an environment of its own "
      "(pip install '.[tpu]'), and plans there"
    )
  from jax.experimental import topologies

  quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5e-8", "TPU_WORKER_HOSTNAMES": "localhost"}
  for name, value in quiet.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  cores = {"chip_config_name": "megacore"} if where.kind == "v4" else {}  # or each TensorCore is a device
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **cores).devices
  except jax.errors.JaxRuntimeError as error:
    raise InputError(f"config.plan.topology = {where.name!r}: {str(error).splitlines()[0]}") from error


def plan(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes plan.json and plan.md; InputError, with the cure, where the run does not fit as configured."""
  p, stage, workdir = config.plan, config.plan.stage, Path(workdir)
  try:
    where = tpu.find(p.topology)
  except InputError as error:
    raise InputError(f"config.plan.topology: {error}") from error
  devices = open_topology(where)

  def programs(config):
    policy = abstract_policy(config, where, devices)
    return rl_programs(config, policy) if stage == "rl" else language_programs(config, stage, policy)

  def measure(config, names, before):
    made = {}
    for program in programs(config):
      if names is None or program.name in names:
        done = {name: m.results for name, m in made.items() if m.results is not None}
        made[program.name] = compile_program(program, done, len(devices))
        print(f"{program.name}: compiled in {made[program.name].seconds:.0f} s, "
              f"{made[program.name].total / tpu.GIB:.2f} GiB a chip", flush=True)  # fmt: skip
      else:
        made[program.name] = before[program.name]._replace(beside=program.beside)
    return made

  fitted, made, changes = search(config, stage, where.chip.hbm, measure)
  rows = report(programs(fitted), made, where.chip, where.chips, p.efficiency)
  fits = all(r["total"] <= where.chip.hbm and not r["refused"] for r in rows.values())
  step = sum(r["times"] * r["estimated_seconds"] for r in rows.values())
  hours = step * config[stage].steps / 3600
  policy = abstract_policy(fitted, where, devices)
  told = {
    "stage": stage, "topology": where.topology, "chips": where.chips, "parameters": policy_spec.count(policy.spec),
    "attention": policy.spec.attention, "mesh": dict(policy.mesh.shape), "sample_mesh": dict(policy.sample_mesh.shape),
    "capacity": where.chip.hbm, "fits": fits, "changes": changes, "efficiency": p.efficiency,
    "mean_tokens": p.mean_tokens, "step_seconds": step, "steps": config[stage].steps, "hours": hours,
    "chip_hours": hours * where.chips, "programs": rows,
  }  # fmt: skip
  text = describe(config, told, where)
  workdir.mkdir(parents=True, exist_ok=True)
  logbook.write_json(workdir / "plan.json", told)
  (workdir / "plan.md").write_text(text + "\n")
  print(text)
  if not fits or changes:
    raise InputError(verdict(told, where))
  return told


def verdict(told: dict, where: tpu.Slice) -> str:
  cure = " ".join(f"--config.{key}={value}" for key, value in told["changes"].items())
  if told["fits"]:
    return f"fits {where.name} with {cure}" if cure else f"fits {where.name}"
  worst = max(r["total"] for r in told["programs"].values() if math.isfinite(r["total"]))
  chips = math.ceil(where.chips * worst / where.chip.hbm)
  larger = tpu.larger(where.kind, max(chips, where.chips + 1)) or "no slice"
  tried = f" with {cure}" if cure else ""
  return f"does not fit {where.name}, not even{tried or ' with other settings'}; estimate: {chips} chips, {larger}"


def describe(config: ConfigDict, told: dict, where: tpu.Slice) -> str:
  """plan.md."""
  stage, chip = told["stage"], where.chip
  most = config.rl.response_tokens
  lengths = f" Responses have {told['mean_tokens'] or most} of {most} tokens in the mean;" if stage == "rl" else ""
  work = "evaluation, checkpoints, " + ("grading, " if stage == "rl" else "") + "input and compilation are not counted"
  return f"""# {stage} on {where.name}: {verdict(told, where)}

{told["parameters"] / 1e9:.2f} billion weights on {where.chips} {where.kind} chips ({where.topology}), mesh \
{told["mesh"]}, sampling {told["sample_mesh"]}, attention {told["attention"]}.

{table(told["programs"], told["capacity"])}

Memory (GiB a chip) is what libtpu's compiler allots; *beside* is what else the run holds in memory meanwhile. FLOPs and
bytes moved (HBM) are counted from shapes, bytes sent are those of the compiled program's collectives; all of one chip.

**Estimates, nothing here was run:** a step {told["step_seconds"]:.1f} s, {told["steps"]} steps {told["hours"]:.1f} h, \
{told["chip_hours"]:.0f} chip-hours. Assumed: programs reach {told["efficiency"]:.0%} of their bound (plan.efficiency) at
{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s HBM and {chip.ici / 1e9:.0f} GB/s interconnect;\
{lengths} {work}."""
