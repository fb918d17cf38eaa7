"""Know before you rent: compiles a config's programs for a TPU slice and tells memory, limits and time of the run."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import values
from jaxrlvr.config.files import derive
from jaxrlvr.model import spec as policy_spec
from jaxrlvr.planning import tpu
from jaxrlvr.stages import plan_programs
from jaxrlvr.stages.plan_programs import Measured, Program


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


_SAMPLING = ("lay out", "prefill", "decode")
_ALL = (*_SAMPLING, "score", "update")
# What to lower, in the order of what it costs in speed.
TRIES = (
  Try(".microbatches", ("score", "update"), "temporaries", _more),
  Try(".sample_parts", ("prefill", "decode"), "temporaries", _more),
  Try("model.remat", ("update",), "temporaries", lambda v, _: {"none": ["dots", "full"], "dots": ["full"]}.get(v, [])),
  Try("model.vocab_chunk", ("score", "update"), "temporaries", lambda v, _: [v // 2] if v > 2048 else []),
  Try("mesh.fsdp", _ALL, "arguments", lambda v, _: [-1] if v != -1 else []),
  Try("mesh.sample_tensor", _SAMPLING, "arguments", lambda v, _: [2 * v] if v else [2, 4, 8]),
  Try(".optim.moment", _ALL, "arguments", lambda v, _: ["bfloat16"] if v == "float32" else []),
  Try("mesh.tensor", _ALL, "temporaries", lambda v, _: [2 * v]),
)


def search(
  config: ConfigDict, stage: str, capacity: float, measure: Callable
) -> tuple[ConfigDict, dict[str, Measured], dict]:
  """(config, its programs measured, changes made) after lowering what does not fit, as far as TRIES go.

  measure(config, names or None, before): programs by name, those in `names` compiled anew; InputError for settings
  that the mesh can't split. A try is kept where the program that did not fit needs less memory with it.
  """
  made, changes = measure(config, None, {}), {}
  tries = [t._replace(key=stage + t.key if t.key.startswith(".") else t.key) for t in TRIES]
  left = {name: [t for t in tries if name in t.helps and t.key in values.names(config)] for name in made}
  while bad := next((name for name, m in made.items() if m.total > capacity or m.refused), None):
    now = made[bad]
    room = capacity - now.arguments - now.beside - now.output
    hopeful = [t for t in left[bad] if t.eases != "temporaries" or room > 0]
    if not hopeful:
      break
    better = _better(config, hopeful[0], bad, room, made, measure)
    if better is None:
      left[bad].remove(hopeful[0])
    else:
      config, made, changes[hopeful[0].key] = better
  return config, made, changes


def _better(config: ConfigDict, t: Try, bad: str, room: float, made: dict[str, Measured], measure: Callable):
  value = functools.reduce(lambda node, part: node[part], t.key.split("."), config)
  for wanted in t.next(value, made[bad].temporaries / room if room > 0 else math.inf):
    try:
      changed = derive(config, {t.key: wanted} | ({"mesh.data": 1} if t.key == "mesh.fsdp" else {}), "plan")
      found = measure(changed, t.helps, made)
    except InputError:
      continue
    if found[bad].total < made[bad].total:
      return changed, found, wanted
  return None


def rows_of_programs(listed: list[Program], made: dict[str, Measured], chip: tpu.Chip, efficiency: float) -> dict:
  """A row a program: memory as compiled, work as counted, and the time that follows from the chip's figures."""
  rows = {}
  for p in listed:
    m, network = made[p.name], made[p.name].sent
    sent = math.nan if network is None else sum(t.bytes for t in network.values())
    by_kind = None if network is None else {kind: traffic._asdict() for kind, traffic in network.items()}
    limits = {"compute": p.cost.flops / chip.flops, "memory": p.cost.bytes / chip.bandwidth, "network": sent / chip.ici}
    limits = {name: seconds for name, seconds in limits.items() if not math.isnan(seconds)}
    by = max(limits, key=limits.get)
    seconds = limits[by] / efficiency
    rows[p.name] = m._asdict() | {
      "times": p.times, "total": m.total, "flops": p.cost.flops, "model_flops": p.cost.model_flops,
      "bytes": p.cost.bytes, "sent_bytes": sent, "sent": by_kind,
      "bound_seconds": limits[by], "bound_by": by, "estimated_seconds": seconds,
      "tokens_per_second": p.tokens / seconds, "mfu": p.cost.model_flops / seconds / chip.flops,
    }  # fmt: skip
    del rows[p.name]["results"]
  return rows


COLUMNS = ("program", "a step", "arguments", "temporaries", "output", "beside", "HBM GiB", "TFLOP", "GB moved",
           "GB sent", "bound s", "by", "estimate s", "tokens/s", "MFU", "compiled in s")  # fmt: skip


def table_of_programs(rows: dict, capacity: float) -> str:
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


def plan(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes plan.json and plan.md; InputError, with the cure, where the run does not fit as configured."""
  if object_store.is_remote(workdir):
    raise InputError(
      f"--workdir={workdir}: a plan is two small files for the machine it is made on; name a local folder"
    )
  p, stage, workdir = config.plan, config.plan.stage, object_store.path(workdir)
  try:
    where = tpu.find_slice(p.topology)
  except InputError as error:
    raise InputError(f"config.plan.topology: {error}") from error
  devices = plan_programs.open_topology(where)

  def measure(config, names, before):
    made = {}

    def compile_lane(lane: list[Program]) -> None:
      for program in lane:
        if names is None or program.name in names:
          made[program.name] = m = plan_programs.compile_program(program, made, len(devices))
          print(f"{program.name}: {m.total / tpu.GIB:.2f} GiB a chip, compiled in {m.seconds:.0f} s", flush=True)
        else:
          made[program.name] = before[program.name]._replace(beside=program.beside)

    listed = plan_programs.of(config, where, devices)[1]
    sampling = [program for program in listed if program.name in _SAMPLING]  # decode goes on from prefill
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      list(pool.map(compile_lane, (sampling, [program for program in listed if program not in sampling])))
    return {program.name: made[program.name] for program in listed}

  fitted, made, changes = search(config, stage, where.chip.hbm, measure)
  policy, listed = plan_programs.of(fitted, where, devices)
  rows = rows_of_programs(listed, made, where.chip, p.efficiency)
  step = sum(r["times"] * r["estimated_seconds"] for r in rows.values())
  steps = config[stage].steps  # 0: sft.epochs, and how many that are the documents would tell
  hours = step * steps / 3600
  told = {
    "stage": stage, "slice": dataclasses.asdict(where), "chips": where.chips, "capacity": where.chip.hbm,
    "parameters": policy_spec.count_weights(policy.spec), "attention": policy.spec.attention,
    "mesh": dict(policy.mesh.shape),
    "sample_mesh": dict(policy.sample_mesh.shape), "changes": changes, "efficiency": p.efficiency,
    "mean_tokens": p.mean_tokens or config.rl.response_tokens, "step_seconds": step, "steps": steps,
    "hours": hours, "chip_hours": hours * where.chips, "programs": rows,
    "fits": all(r["total"] <= where.chip.hbm and not r["refused"] for r in rows.values()),
  }  # fmt: skip
  text = plan_page(config, told, where)
  workdir.mkdir(parents=True, exist_ok=True)
  logbook.write_json(workdir / "plan.json", told)
  (workdir / "plan.md").write_text(text + "\n")
  print(text)
  if not told["fits"] or changes:
    raise InputError(whether_it_fits(told, where))
  return told


def whether_it_fits(told: dict, where: tpu.Slice) -> str:
  """Whether it fits, with which settings, and if not how many chips it may need: one line."""
  cure = " ".join(f"--config.{key}={value}" for key, value in told["changes"].items())
  if told["fits"]:
    return f"fits {where.name}" + (f" with {cure}" if cure else "")
  worst = max(r["total"] for r in told["programs"].values() if math.isfinite(r["total"]))
  chips = max(math.ceil(where.chips * worst / where.chip.hbm), where.chips + 1)
  larger = tpu.larger(where.kind, chips) or "no slice has so many"
  return f"does not fit {where.name}, not even with {cure or 'other settings'}; estimate: {chips} chips, {larger}"


def plan_page(config: ConfigDict, told: dict, where: tpu.Slice) -> str:
  """plan.md."""
  chip, rl = where.chip, told["stage"] == "rl"
  length = f"responses of {told['mean_tokens']} of {config.rl.response_tokens} tokens in the mean; " if rl else ""
  rows = config.evaluate.problems_per_batch * config.evaluate.samples
  part = config.rl.problems_per_step * (config.rl.votes or config.rl.group_size) // config.rl.sample_parts
  more = f"""
**Evaluation samples {rows} responses at a time, a part of RL {part}:** it needs more memory than this plan tells,
unless config.evaluate.problems_per_batch is at most {max(part // config.evaluate.samples, 1)}.
"""
  run = f"{told['steps']} steps {told['hours']:.4g} h, {told['chip_hours']:.4g} chip-hours"
  if not told["steps"]:
    run = "the run unknown: its steps follow from config.sft.epochs and the documents"
  return f"""# {told["stage"]} on {where.name}: {whether_it_fits(told, where)}

{told["parameters"]:,} weights on {where.chips} {where.kind} chips ({where.topology}), mesh
{told["mesh"]}, sampling {told["sample_mesh"] if rl else "none"}, attention {told["attention"]}.

{table_of_programs(told["programs"], told["capacity"])}
{more if rl and rows > part else ""}
Memory (GiB a chip) is what libtpu's compiler allots; *beside* is what the run holds in memory meanwhile. FLOPs and
bytes moved to and from HBM are counted from shapes, bytes sent are those of the compiled collectives (nan: they can't
be read, and the network is left out); all of one chip.

**Estimates, nothing here was run:** a step {told["step_seconds"]:.4g} s, {run}.
Assumed: {length}programs reach {told["efficiency"]:.0%} (plan.efficiency) of what
{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of HBM and {chip.ici / 1e9:.0f} GB/s between chips
allow. Not counted: evaluation, checkpoints, input, grading, compilation."""
