"""Measures the speed of jaxrlvr's parts beside the machine's limits and its peers; writes one JSON line for each.

  python launch/bench.py --size=S --core=0                      all parts, pinned to core 0
  python launch/bench.py --size=M --only=sample,update --rounds=9 --out=bench.jsonl
  python launch/bench.py --size=section3_rl:qwen2.5-math-1.5b,v5e-8 --device=gpu
  python launch/bench.py --grow                                 time and memory as each size is doubled

Every measurement is a process of its own that compiles, warms up, and then does its work once a round. The rounds of a
part and of its peers take turns, so that what disturbs the machine disturbs all alike. Peers that are not installed are
left out; `pip install -e ".[bench]"` installs them.

Spreads are [median, least, largest] over the rounds. `share` is the part of the roofline that was reached: the ceilings
are measured first, FLOPs and bytes are counted from shapes. `ratio` on a line "A / B" is the tokens per second of A
divided by those of B, round by round. Parts: `grouped` is an update whose groups share a prompt; `step` is a whole GRPO
iteration of the stage; `device` is that part of it that runs on the device, sampling and update, and `idle` the share
of the time that remains; `int8` is `sample` with weights and cache in 8 bits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench_works import NEEDED, OURS, OWN, PEERS, Size, model, serve

ROOT = Path(__file__).parents[1]


class Failed(Exception):
  """A worker process has ended; the message says why."""


class Worker:
  """A measurement in a process of its own, which is ready to run when the object exists.

  ready: its first message: warmup_s, compiles, compile_s, and the tokens, flops and bytes of a round. rounds: the
  message of each round: wall_s, cpu_s, recompiles, memory, and perhaps the tokens that were drawn. Raises Failed where
  the process ends.
  """

  def __init__(self, name: str, size: str, args: argparse.Namespace):
    self.name, self.rounds = name, []
    hidden = {"cpu": {"CUDA_VISIBLE_DEVICES": ""}}.get(args.device, {})
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")} | hidden
    platform = {"gpu": "cuda"}.get(args.device, args.device)
    env |= {"JAX_PLATFORMS": platform, "PYTHONPATH": f"{ROOT}:{env.get('PYTHONPATH', '')}", "HF_HUB_OFFLINE": "1"}
    self._log = tempfile.TemporaryFile("w+")
    self._process = subprocess.Popen(
      [sys.executable, __file__, f"--worker={name}", f"--size={size}", f"--core={args.core}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env=env,
      start_new_session=True,
    )
    try:
      self.ready = self._read()
    except BaseException:
      self.end()
      raise

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    if line:
      return json.loads(line)
    code = self._process.wait()
    self._log.seek(0)
    stderr = [line.strip() for line in self._log.read().splitlines() if line.strip()]
    raise Failed(f"exit code {code}: {stderr[-1][:500] if stderr else 'said nothing'}")

  def round(self) -> None:
    """Has the process do its work once, and records its message."""
    try:
      self._process.stdin.write("go\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # _read raises Failed, which says why
    self.rounds.append(self._read())

  def end(self) -> None:
    """Asks the process to tidy up, and after 5 seconds kills it with its children."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
      self._process.stdin.close()
      self._process.wait(5)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._process.stdout.close()
    self._log.close()

  def rates(self) -> list[float]:
    """Returns the tokens per second of each round; only sampled tokens count where lengths are drawn."""
    return [self._tokens(message) / message["wall_s"] for message in self.rounds]

  def _tokens(self, message: dict) -> float:
    return message.get("tokens", self.ready["tokens"])

  def line(self, limits: tuple[float, float] | None) -> dict:
    """Returns the figures of all rounds, as a line of the output.

    limits: (FLOP/s, bytes/s) that the machine reaches; None: there is no `share`.
    """
    wall = [r["wall_s"] for r in self.rounds]
    flops, traffic, last = self.ready["flops"], self.ready["bytes"], self.rounds[-1]
    figures = {"rounds": len(wall), "wall_s": _spread(wall), "cpu_s": _spread([r["cpu_s"] for r in self.rounds])}
    if self.ready["tokens"]:
      per_cpu = [self._tokens(r) / max(r["cpu_s"], 1e-9) for r in self.rounds]
      figures |= {
        "tokens": statistics.median(map(self._tokens, self.rounds)),
        "tokens_s": _spread(self.rates()),
        "tokens_cpu_s": _spread(per_cpu),
      }
    median_wall = statistics.median(wall)
    if flops:
      figures |= {"flop_s": _short(flops / median_wall), "bytes_s": _short(traffic / median_wall)}
    if flops and limits:
      flops_limit, traffic_limit = limits
      figures["share"] = _short(max(flops / flops_limit, traffic / traffic_limit) / median_wall)
    peaks = {key: _short(last[key]) for key in ("peak_mib", "device_peak_mib") if key in last}
    compiled = {key: _short(self.ready[key]) for key in ("warmup_s", "compiles", "compile_s")}
    return figures | compiled | {"recompiles": last["recompiles"]} | peaks


def _short(x: float) -> float:
  return float(f"{x:.4g}") if isinstance(x, float) else x


def _spread(values: Sequence[float]) -> list[float]:
  return [_short(f(values)) for f in (statistics.median, min, max)]


class Bench:
  """Runs workers, writes the lines, and collects the table that is printed last."""

  def __init__(self, args: argparse.Namespace, total: int):
    self.args, self.limits, self.table = args, None, []
    self._total, self._done, self._begun = total, 0, time.monotonic()

  def write(self, line: dict) -> None:
    """Prints a line as JSON, and appends it to the file of --out."""
    line = {key: line[key] for key in ("name",) if key in line} | {"device": self.args.device} | line
    print(json.dumps(line), flush=True)
    if self.args.out:
      with open(self.args.out, "a") as file:
        file.write(json.dumps(line) + "\n")

  def _progress(self, event: str, steps: int = 1) -> None:
    """Prints an event to stderr, with the time that is left after these steps: a warm-up or a round is a step."""
    self._done += steps
    spent = time.monotonic() - self._begun
    left = spent / self._done * (self._total - self._done)
    print(f"[{self._done}/{self._total}, {spent:.0f} s, {left:.0f} s to go] {event}", file=sys.stderr, flush=True)

  def measure(self, names: Sequence[str], size: str) -> list[Worker]:
    """Runs workers in turns; returns those that finished all rounds. A failure is written as a line with its reason."""
    workers, rounds = [], self.args.rounds
    try:
      for name in names:
        with self._failures_written(name, size, rounds + 1):
          workers.append(Worker(name, size, self.args))
          self._progress(f"{name}: ready after {workers[-1].ready['warmup_s']:.1f} s")
      for number in range(1, rounds + 1):
        for worker in list(workers):
          with self._failures_written(worker.name, size, rounds - number + 1) as failures:
            worker.round()
            self._progress(f"{worker.name}: round {number} in {worker.rounds[-1]['wall_s']:.2f} s")
          if failures:
            workers.remove(worker)
            worker.end()
      return workers
    finally:
      for worker in workers:
        worker.end()

  @contextlib.contextmanager
  def _failures_written(self, name: str, size: str, steps_left: int):
    """Writes a line where the block raises Failed. Yields a list, which then holds the error."""
    failures = []
    try:
      yield failures
    except Failed as error:
      failures.append(error)
      self.write({"name": name, "size": size, "failed": str(error)})
      self._progress(f"{name}: failed, {error}", steps_left)

  def ceilings(self, size: str) -> None:
    """Measures what the machine can do, sets `limits`, and writes a line."""
    flags = {"xla_flags": os.environ["XLA_FLAGS"]} if "XLA_FLAGS" in os.environ else {}
    for worker in self.measure(["ceilings"], size):
      gflops = {}
      for shape in worker.rounds[0]["matmul_gflops"]:
        gflops[shape] = _spread([r["matmul_gflops"][shape] for r in worker.rounds])
      read = _spread([r["read_gb_s"] for r in worker.rounds])
      most_gflops = max(median for median, _, _ in gflops.values())
      self.limits = most_gflops * 1e9, read[0] * 1e9
      self.write({"name": "ceilings", "size": size, "matmul_gflops": gflops, "read_gb_s": read} | flags)
      self.table.append(f"\nat most {most_gflops:.0f} GFLOP/s and {read[0]:.1f} GB/s\n")

  def work(self, name: str, peers: Sequence[str], size: str) -> None:
    """Measures a part of jaxrlvr with its peers; writes a line for each, and one for each ratio of ours to a peer."""
    workers = self.measure([name, *(f"{name}/{peer}" for peer in peers)], size)
    for worker in workers:
      line = worker.line(self.limits)
      self.write({"name": worker.name, "size": size} | line)
      share = f"{line['share']:.0%}" if "share" in line else ""
      cells = (
        *line["tokens_s"],
        line["tokens_cpu_s"][0],
        line["warmup_s"],
        line.get("device_peak_mib", line["peak_mib"]),
      )
      self._row(worker.name, "{:.0f} ({:.0f} to {:.0f})".format(*cells), *(f"{x:.0f}" for x in cells[3:]), share)
    ours = next((worker for worker in workers if worker.name == name), None)
    for peer in workers if ours else ():
      if peer is not ours:
        ratio = _spread([a / b for a, b in zip(ours.rates(), peer.rates(), strict=True)])
        line = {"name": f"{name} / {peer.name.partition('/')[2]}", "size": size, "ratio": ratio}
        if peer.name == "step/device":
          walls = zip(ours.rounds, peer.rounds, strict=True)
          line |= {"idle": _short(1 - ratio[0]), "host_s": _spread([a["wall_s"] - b["wall_s"] for a, b in walls])}
        self.write(line)
        self._row(line["name"], "x {} ({} to {})".format(*ratio), "", "", "", "")

  def _row(self, *cells: str) -> None:
    if not any(row.startswith("| --") for row in self.table):
      self.table += ["| | tokens/s | a CPU second | warm-up s | peak MiB | share |", "| --- |" + " --- |" * 5]
    self.table.append(f"| {' | '.join(cells)} |")


# ---- growth ----

SMALL = Size(model(512, 128, 2, 4, 4, 384), 8, 4, 32, 32, 32, 32, 4)
WIDER = ("width", "heads", "kv_heads", "mlp")
# What is grown -> the small size with `times` as much of it.
GROWN = {
  "batch": lambda s, times: s._replace(problems=s.problems * times, rows=s.rows * times, micro=s.micro * times),
  "response": lambda s, times: s._replace(response=s.response * times),
  "width": lambda s, times: s._replace(model=s.model | {key: s.model[key] * times for key in WIDER}),
  "vocabulary": lambda s, times: s._replace(model=s.model | {"vocab": s.model["vocab"] * times}),
  "group": lambda s, times: s._replace(group=s.group * times),
}
TIMES = (1, 2, 4, 8)


def grow(bench: Bench, works: Sequence[str]) -> None:
  """Measures time and memory as each size doubles and the others stay; writes the exponent and where memory ends."""
  bench.table += ["| | doubled | wall s | exponent | peak MiB | memory ends at |", "| --- |" + " --- |" * 5]
  for work, what in _growths(works):
    points = []
    for times in TIMES:
      for worker in bench.measure([work], json.dumps(GROWN[what](SMALL, times)._asdict())):
        last = worker.rounds[-1]
        wall, peak = (
          statistics.median(r["wall_s"] for r in worker.rounds),
          last.get("device_peak_mib", last["peak_mib"]),
        )
        points.append((times, wall, peak, last["memory_mib"]))
        bench.write({"name": f"{work} by {what}", "times": times, "wall_s": _short(wall), "peak_mib": _short(peak)})
    if len(points) > 1:
      times, walls, peaks, memory = zip(*points, strict=True)
      exponent = _slope([math.log(t) for t in times], [math.log(w) for w in walls])
      a_time = _slope(times, peaks)
      ends = times[-1] + (memory[0] - peaks[-1]) / a_time if a_time > 0 else math.inf
      fit = dict(exponent=_short(exponent), mib_a_time=_short(a_time), ends_at_times=_short(ends))
      bench.write({"name": f"{work} by {what}", "fit": fit})
      cells = (
        work,
        what,
        ", ".join(f"{w:.3g}" for w in walls),
        f"{exponent:.2f}",
        f"{peaks[-1]:.0f}",
        f"{ends:.0f} times",
      )
      bench.table.append(f"| {' | '.join(cells)} |")


def _growths(works: Sequence[str]) -> list[tuple[str, str]]:
  return [(work, what) for work in works for what in GROWN if (work, what) != ("update", "group")]  # there a batch


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
  return statistics.linear_regression(x, y).slope


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  p.add_argument("--size", default="S", help="XS, S, M, or CONFIG:ARG with the sizes of its model and of rl")
  p.add_argument(
    "--only", default="", help=f"parts to measure, of {', '.join(OURS)}; default: all; ceilings are always measured"
  )
  p.add_argument("--rounds", type=int, default=5, help="how often each work is done after its warm-up")
  p.add_argument("--core", type=int, default=-1, help="the core that all processes are pinned to; -1: any")
  p.add_argument("--device", default="cpu", choices=("cpu", "gpu", "tpu"))
  p.add_argument("--peers", default="auto", choices=("auto", "none"), help="auto: peers that are installed")
  p.add_argument("--out", help="the file to which lines are appended")
  p.add_argument("--grow", action="store_true", help="measure instead how sample and update (or --only) grow with size")
  p.add_argument("--worker", help=argparse.SUPPRESS)
  args = p.parse_args()
  if args.core >= 0:
    os.sched_setaffinity(0, {args.core})
  if args.worker:
    return serve(args.worker, args.size)
  works = args.only.split(",") if args.only else ["sample", "update"] if args.grow else list(OURS)
  if unknown := [name for name in works if name not in OURS]:
    p.error(f"--only: there is no {unknown[0]!r}; take of {', '.join(OURS)}")
  available = {peer for peer, module in NEEDED.items() if importlib.util.find_spec(module)}
  if args.peers == "none" or args.device == "tpu":
    available &= OWN
  plan = {}
  for name in works:
    if name != "ceilings":
      plan[name] = [peer for peer, work in PEERS if work == name and peer in available]
  units = len(_growths(works)) * len(TIMES) if args.grow else 1 + sum(1 + len(peers) for peers in plan.values())
  bench = Bench(args, units * (args.rounds + 1))
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  try:
    if args.grow:
      grow(bench, works)
    else:
      bench.ceilings(args.size)
      for name, peers in plan.items():
        bench.work(name, peers, args.size)
  except KeyboardInterrupt:
    sys.exit(130)
  finally:
    print("\n".join(bench.table), file=sys.stderr)


if __name__ == "__main__":
  main()
