"""The stage plan: compiles a config's programs for a TPU slice, and says whether they fit and how long the run
takes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import values
from jaxrlvr.config.files import derive
from jaxrlvr.model import weight_table
from jaxrlvr.planning import tpu
from jaxrlvr.planning.memory import Memory
from jaxrlvr.stages import plan_programs
from jaxrlvr.stages.memory import rows_of_parts
from jaxrlvr.stages.plan_programs import Measured, Program

# Compiles programs of a config's stage and returns what all of them take, by name. Takes the config, the names of the
# programs to compile (None: all), and what the others take. Raises InputError for settings with which the mesh can't
# split the work.
Measure = Callable[[ConfigDict, Collection[str] | None, Mapping[str, Measured]], dict[str, Measured]]
_LEAST_VOCAB_CHUNK = 2048  # a smaller model.vocab_chunk is not halved
_MOST_EXCESS = 2.0**20  # `_more` takes no factor above it


class _Try(NamedTuple):
  """A setting that may make a program fit."""

  key: str  # a config key; below the group of the stage if it begins with a dot
  helps: tuple[str, ...]  # programs that take less memory with it: "lay out", "prefill", "decode", "score", "update"
  # What it lowers: "temporaries"; "rows", whatever the program holds but its weights, so the KV cache too; or
  # "arguments" with whatever lies in memory beside them.
  eases: str
  # Takes the present value and how many times too large that is which it lowers (inf: there is no room for it); returns
  # the values to try, the best first, or [].
  next: Callable[[Any, float], list]


def _more(value: int, excess: float) -> list[int]:
  """Returns the value times the power of two that `excess` calls for, then times the smaller ones, down to twice it."""
  power = max(1, math.ceil(math.log2(min(max(excess, 2.0), _MOST_EXCESS))))
  return [value * 2**n for n in range(power, 0, -1)]


def _more_remat(value: str, excess: float) -> list[str]:
  return {"none": ["dots", "full"], "dots": ["full"]}.get(value, [])


def _half_vocab_chunk(value: int, excess: float) -> list[int]:
  return [value // 2] if value > _LEAST_VOCAB_CHUNK else []


def _all_devices(value: int, excess: float) -> list[int]:
  return [-1] if value != -1 else []


def _double_or_first(value: int, excess: float) -> list[int]:
  return [2 * value] if value else [2, 4, 8]


def _double(value: int, excess: float) -> list[int]:
  return [2 * value]


def _bfloat16(value: str, excess: float) -> list[str]:
  return ["bfloat16"] if value == "float32" else []


_SAMPLING = ("lay out", "prefill", "decode")
_ALL = (*_SAMPLING, "score", "update")
# The settings to try, in the order of the speed that they cost.
_TRIES = (
  _Try(".microbatches", ("score", "update"), "temporaries", _more),
  _Try(".sample_parts", ("prefill", "decode"), "rows", _more),
  _Try("model.remat", ("update",), "temporaries", _more_remat),
  _Try("model.vocab_chunk", ("score", "update"), "temporaries", _half_vocab_chunk),
  _Try("mesh.fsdp", _ALL, "arguments", _all_devices),
  _Try("mesh.sample_tensor", _SAMPLING, "arguments", _double_or_first),
  _Try(".optim.moment", _ALL, "arguments", _bfloat16),
  _Try("mesh.tensor", _ALL, "temporaries", _double),
)


class Fitted(NamedTuple):
  """The result of `search`. It may still not fit: a program whose `refused` is not "" or whose `total` is too large."""

  config: ConfigDict  # the config as changed
  programs: dict[str, Measured]  # what the programs of that config take, by name
  changes: dict[str, object]  # {config key: value} that were changed; {}: none


def search(config: ConfigDict, stage: str, capacity: float, measure: Measure) -> Fitted:
  """Changes settings until all programs of a stage fit into `capacity` bytes a chip, or nothing is left to try.

  stage: "pretrain", "cpt", "sft" or "rl", whose keys (config.STAGE) are changed. measure(config, names, programs):
  compiles the programs of `config` whose names are in `names` (None: all), takes the others from `programs`, and
  returns what all take by name; it raises InputError for settings with which the mesh can't split the work, which are
  then not taken. The settings tried for the first program that does not fit are, the cheapest first, microbatches,
  parts of sampling, rematerialisation, the vocabulary chunk, fsdp, the sharding of sampling, the moments' dtype and
  tensor parallelism; a change is kept only if that program takes less memory with it. The result may still not fit.
  """
  programs, changes = measure(config, None, {}), {}
  untried = _tries_of_programs(config, stage, programs)
  while True:
    too_large = [name for name, program in programs.items() if program.total > capacity or program.refused]
    if not too_large:
      break
    name = too_large[0]
    eased = {entry: _eased(entry.eases, name, programs, capacity) for entry in untried[name]}
    candidates = [entry for entry in untried[name] if eased[entry].room > 0 or entry.eases == "arguments"]
    if not candidates:
      break
    entry = candidates[0]
    excess = eased[entry].bytes / eased[entry].room if eased[entry].room > 0 else math.inf
    improved = _improve(config, entry, name, excess, programs, measure)
    if improved is None:
      untried[name].remove(entry)
    else:
      config, programs = improved.config, improved.programs
      changes |= improved.changes
  return Fitted(config, programs, changes)


class _Eased(NamedTuple):
  """What a setting lowers of a program's memory. Bytes of a chip."""

  bytes: float  # that it takes; inf: unknown
  room: float  # that whatever else lies in memory leaves for it; below 0 where that alone is too large


def _eased(eases: str, name: str, programs: Mapping[str, Measured], capacity: float) -> _Eased:
  """Returns what a setting lowers of the program `name`. eases: as in `_Try`, "arguments" as "temporaries"."""
  program = programs[name]
  if eases == "rows":
    weights = programs["lay out"].output
    rows = program.arguments + program.temporaries + program.output - weights
    return _Eased(rows, capacity - program.beside - weights)
  return _Eased(program.temporaries, capacity - program.arguments - program.beside - program.output)


def _tries_of_programs(config: ConfigDict, stage: str, programs: Collection[str]) -> dict[str, list[_Try]]:
  """Returns what can be tried for each program, with keys by their full names."""
  keys = values.names(config)
  tries = {name: [] for name in programs}
  for entry in _TRIES:
    if entry.key.startswith("."):
      entry = entry._replace(key=stage + entry.key)
    if entry.key not in keys:
      continue
    for name in programs:
      if name in entry.helps:
        tries[name].append(entry)
  return tries


def _improve(
  config: ConfigDict, entry: _Try, name: str, excess: float, programs: Mapping[str, Measured], measure: Measure
) -> Fitted | None:
  """Returns the config with the first value of a setting with which a program takes less memory; None: there is
  none."""
  for value in entry.next(values.get(config, entry.key), excess):
    changes = {entry.key: value}
    if entry.key == "mesh.fsdp":
      changes["mesh.data"] = 1
    try:
      changed = derive(config, changes, "plan")
      measured = measure(changed, entry.helps, programs)
    except InputError:
      continue
    if measured[name].total < programs[name].total:
      return Fitted(changed, measured, {entry.key: value})
  return None


def rows_of_programs(
  programs: Sequence[Program], measured: Mapping[str, Measured], chip: tpu.Chip, efficiency: float
) -> dict[str, dict]:
  """Returns a row for each program by name: memory as compiled, work as counted from shapes, and estimated times.

  programs: those of a step. measured: what each takes, by name. chip: on which they run. efficiency: the share of the
  bound's speed, above 0 and at most 1, that they are assumed to reach. All figures are those of one call on one chip;
  memory and traffic are in bytes. Keys of a row:
    arguments, temporaries, output, beside, total (their sum), seconds, refused: as in `Measured`
    times: calls in a step
    flops, model_flops (without recomputation and masked-out products), bytes (moved to and from HBM)
    sent ({kind of collective: {"times", "bytes"}}; None: unknown), sent_bytes (of all kinds; nan: unknown)
    bound_seconds: the longest of the times that arithmetic, HBM traffic and collectives take at the chip's full speed
    bound_by: which of these it is, "compute", "memory" or "network"
    estimated_seconds (bound_seconds / efficiency), tokens_per_second (of all chips)
    mfu: share of the chip's peak FLOP/s that model_flops take in estimated_seconds
  """
  rows = {}
  for program in programs:
    compiled = measured[program.name]
    if compiled.sent is None:
      sent, sent_bytes = None, math.nan
    else:
      sent = {kind: {"count": traffic.times, "bytes": traffic.bytes} for kind, traffic in compiled.sent.items()}
      sent_bytes = sum(traffic.bytes for traffic in compiled.sent.values())
    bounds = {"compute": program.cost.flops / chip.flops, "memory": program.cost.bytes / chip.bandwidth}
    if not math.isnan(sent_bytes):
      bounds["network"] = sent_bytes / chip.ici
    bound_by = max(bounds, key=bounds.get)
    seconds = bounds[bound_by] / efficiency
    row = compiled._asdict()
    del row["results"]
    rows[program.name] = row | {
      "times": program.times,
      "total": compiled.total,
      "flops": program.cost.flops,
      "model_flops": program.cost.model_flops,
      "bytes": program.cost.bytes,
      "sent_bytes": sent_bytes,
      "sent": sent,
      "bound_seconds": bounds[bound_by],
      "bound_by": bound_by,
      "estimated_seconds": seconds,
      "tokens_per_second": program.tokens / seconds,
      "mfu": program.cost.model_flops / seconds / chip.flops,
    }
  return rows


_COLUMNS = (
  "program",
  "a step",
  "arguments",
  "temporaries",
  "output",
  "beside",
  "HBM GiB",
  "TFLOP",
  "GB moved",
  "GB sent",
  "bound s",
  "by",
  "estimate s",
  "tokens/s",
  "MFU",
  "compiled in s",
)


def table_of_programs(rows: Mapping[str, Mapping], capacity: float) -> str:
  """Returns the rows of `rows_of_programs` as a Markdown table without a line end.

  rows: by the program's name, which is the first column. Memory is in GiB, traffic in GB, work in TFLOP, times in
  seconds. A program that takes more than `capacity`, the HBM bytes of a chip, is marked "does not fit".
  """
  lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
  for name, row in rows.items():
    lines.append("| " + " | ".join(_cells(name, row, capacity)) + " |")
  return "\n".join(lines)


def _cells(name: str, row: Mapping, capacity: float) -> list[str]:
  """Returns the cells of _COLUMNS for one program."""
  total = f"{row['total'] / tpu.GIB:.2f} of {capacity / tpu.GIB:.2f}"
  if not _fits(row, capacity):
    total += " **does not fit**"
  return [
    name,
    str(row["times"]),
    f"{row['arguments'] / tpu.GIB:.2f}",
    f"{row['temporaries'] / tpu.GIB:.2f}",
    f"{row['output'] / tpu.GIB:.2f}",
    f"{row['beside'] / tpu.GIB:.2f}",
    total,
    f"{row['flops'] / 1e12:.4g}",
    f"{row['bytes'] / 1e9:.4g}",
    f"{row['sent_bytes'] / 1e9:.4g}",
    f"{row['bound_seconds']:.3g}",
    row["bound_by"],
    f"{row['estimated_seconds']:.3g}",
    f"{row['tokens_per_second']:,.0f}",
    f"{row['mfu']:.1%}",
    f"{row['seconds']:.0f}",
  ]


def _fits(row: Mapping, capacity: float) -> bool:
  """Returns whether the program of a row fits into `capacity` bytes a chip."""
  return row["total"] <= capacity and not row["refused"]


def plan(config: ConfigDict, workdir: str | Path) -> dict:
  """Plans the stage config.plan.stage on the TPU slice config.plan.topology, without a TPU.

  Compiles all programs of a step, anew at each call, and changes settings where they do not fit. Writes plan.md, prints
  it, and writes plan.json, whose content it returns. Keys: stage; slice (name, kind and grid); chips (their number);
  capacity (HBM bytes of a chip); parameters (number of weights); attention (the kernel); mesh and sample_mesh ({axis:
  size}); changes ({config key: value} that were made so that it fits); efficiency; mean_tokens (assumed, of a
  response); step_seconds, hours and chip_hours (estimated); steps (0, as hours and chip_hours then, where sft.epochs
  says how long the run is); programs ({name: row of `rows_of_programs`}); memory (estimated bytes of a chip by part, as
  of `memory_by_part`); fits (whether it fits with the changes).

  Raises InputError before it compiles for an unknown slice, a config that can't be planned, a workdir on an object
  store, and where libtpu is not installed. Raises InputError after both files are written where the run does not fit as
  configured; the message has the settings with which it does.
  """
  if object_store.is_remote(workdir):
    raise InputError(
      f"--workdir={workdir}: a plan is two small files for the machine it is made on; name a local folder"
    )
  workdir = object_store.path(workdir)
  try:
    where = tpu.find_slice(config.plan.topology)
  except InputError as error:
    raise InputError(f"config.plan.topology: {error}") from error
  devices = plan_programs.open_topology(where)

  def measure(config, names, before):
    return _compile(config, where, devices, names, before)

  fitted = search(config, config.plan.stage, where.chip.hbm, measure)
  content = _content(config, fitted, where, devices)
  page = _page(config, content, where)
  workdir.mkdir(parents=True, exist_ok=True)
  logbook.write_json(workdir / "plan.json", content)
  (workdir / "plan.md").write_text(page + "\n")
  print(page)
  if not content["fits"] or content["changes"]:
    raise InputError(whether_it_fits(content, where))
  return content


def _compile(
  config: ConfigDict,
  where: tpu.Slice,
  devices: Sequence[jax.Device],
  names: Collection[str] | None,
  before: Mapping[str, Measured],
) -> dict[str, Measured]:
  """Compiles the programs of a config for a slice, as `Measure` says, and prints what each takes."""
  compiled: dict[str, Measured] = {}

  def compile_in_turn(programs: Sequence[Program]) -> None:
    for program in programs:
      if names is not None and program.name not in names:
        compiled[program.name] = before[program.name]._replace(beside=program.beside)
        continue
      measured = plan_programs.compile_program(program, compiled, len(devices))
      compiled[program.name] = measured
      gib = measured.total / tpu.GIB
      print(f"{program.name}: {gib:.2f} GiB a chip, compiled in {measured.seconds:.0f} s", flush=True)

  programs = plan_programs.programs_of_stage(config, where, devices).programs
  sampling = [program for program in programs if program.name in _SAMPLING]  # in turn: decode needs prefill's results
  others = [program for program in programs if program.name not in _SAMPLING]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    list(pool.map(compile_in_turn, (sampling, others)))
  return {program.name: compiled[program.name] for program in programs}


def memory_by_part(estimate: Memory) -> dict[str, dict[str, float]]:
  """Returns the bytes of each part of an estimate, {when: {part: bytes}}, as `memory.rows_of_parts` names them, and
  the most bytes at one time, under "together"."""
  parts: dict[str, dict[str, float]] = {}
  for when, part, size in rows_of_parts(estimate):
    parts.setdefault(when, {})[part] = size
  return parts | {"together": {"at most": estimate.most}}


def table_of_memory(parts: Mapping[str, Mapping[str, float]]) -> str:
  """Returns what `memory_by_part` returned as a Markdown table without a line end, in GiB."""
  rows = []
  for when, sizes in parts.items():
    rows += [[when, part, f"{size / tpu.GIB:.2f}"] for part, size in sizes.items()]
  return logbook.markdown(("when", "what takes memory", "GiB"), rows).rstrip("\n")


def _content(config: ConfigDict, fitted: Fitted, where: tpu.Slice, devices: Sequence[jax.Device]) -> dict:
  """Returns the content of plan.json.

  Beside what was planned it has the `changes` that make it fit, a row for each of the `programs`, `step_seconds`,
  `hours` and `chip_hours` of the run (0 where config.sft.epochs says how long it is), and whether it `fits`.
  """
  stage = config.plan.stage
  policy, programs, estimate = plan_programs.programs_of_stage(fitted.config, where, devices)
  rows = rows_of_programs(programs, fitted.programs, where.chip, config.plan.efficiency)
  step_seconds = sum(row["times"] * row["estimated_seconds"] for row in rows.values())
  steps = config[stage].steps
  hours = step_seconds * steps / 3600
  return {
    "stage": stage,
    "slice": dataclasses.asdict(where),
    "chips": where.chips,
    "capacity": where.chip.hbm,
    "parameters": weight_table.count_weights(policy.spec),
    "attention": policy.spec.attention,
    "mesh": dict(policy.mesh.shape),
    "sample_mesh": dict(policy.sample_mesh.shape),
    "changes": fitted.changes,
    "efficiency": config.plan.efficiency,
    "mean_tokens": config.plan.mean_tokens or config.rl.response_tokens,
    "step_seconds": step_seconds,
    "steps": steps,
    "hours": hours,
    "chip_hours": hours * where.chips,
    "programs": rows,
    "memory": memory_by_part(estimate),
    "fits": all(_fits(row, where.chip.hbm) for row in rows.values()),
  }


def whether_it_fits(content: Mapping, where: tpu.Slice) -> str:
  """Returns one line that says whether a run fits its slice, with which changes, and if not which slice might hold it.

  Such as "fits v5e-8 with --config.rl.microbatches=4", or "does not fit v5e-1, not even with ...; estimate: 4 chips,
  v5e-4". content: that of plan.json, of which changes, fits and programs are read. where: the slice.
  """
  changes = " ".join(f"--config.{key}={value}" for key, value in content["changes"].items())
  if content["fits"]:
    return f"fits {where.name} with {changes}" if changes else f"fits {where.name}"
  totals = [row["total"] for row in content["programs"].values()]
  largest = max(total for total in totals if math.isfinite(total))
  chips = max(math.ceil(where.chips * largest / where.chip.hbm), where.chips + 1)
  larger = tpu.smallest_with(where.kind, chips) or "no slice has so many"
  return f"does not fit {where.name}, not even with {changes or 'other settings'}; estimate: {chips} chips, {larger}"


def _page(config: ConfigDict, content: Mapping, where: tpu.Slice) -> str:
  """Returns the text of plan.md, in Markdown: whether it fits, a table of the programs, and the estimated times.

  config: the config as planned for. content: what plan.json holds. where: the slice.
  """
  chip, is_rl = where.chip, content["stage"] == "rl"
  evaluated = config.evaluate.problems_per_batch * config.evaluate.samples
  sampled = config.rl.problems_per_step * (config.rl.votes or config.rl.group_size) // config.rl.sample_parts
  evaluation = ""
  if is_rl and evaluated > sampled:
    evaluation = f"""
**Evaluation samples {evaluated} responses at a time, a part of RL {sampled}:** it needs more memory than this plan says
unless config.evaluate.problems_per_batch is at most {max(sampled // config.evaluate.samples, 1)}.
"""
  run = f"{content['steps']} steps {content['hours']:.4g} h, {content['chip_hours']:.4g} chip-hours"
  if not content["steps"]:
    run = "the run unknown: its steps follow from config.sft.epochs and the documents"
  length = ""
  if is_rl:
    length = f"responses of {content['mean_tokens']} of {config.rl.response_tokens} tokens in the mean; "
  return f"""# {content["stage"]} on {where.name}: {whether_it_fits(content, where)}

{content["parameters"]:,} weights on {where.chips} {where.kind} chips ({where.topology}), mesh
{content["mesh"]}, sampling {content["sample_mesh"] if is_rl else "none"}, attention {content["attention"]}.

{table_of_programs(content["programs"], content["capacity"])}
{evaluation}
Memory (GiB a chip) is what libtpu's compiler allots; *beside* is what the run holds in memory meanwhile. FLOPs and
bytes moved to and from HBM are counted from shapes, bytes sent are those of the compiled collectives (nan: they can't
be read, and the network is left out); all of one chip.

Where it goes, estimated from shapes; beside what is there always lies either an update or sampling:

{table_of_memory(content["memory"])}

**Estimates, nothing here was run:** a step {content["step_seconds"]:.4g} s, {run}.
Assumed: {length}programs reach {content["efficiency"]:.0%} (plan.efficiency) of what
{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of HBM and {chip.ici / 1e9:.0f} GB/s between chips
allow. Not counted: evaluation, checkpoints, input, grading, compilation."""
