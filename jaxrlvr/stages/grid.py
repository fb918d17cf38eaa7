"""The grid stage: a set of runs, the links of a chain, side by side in processes of their own, and one report."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store, signals
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.config.files import derive
from jaxrlvr.device import multihost
from jaxrlvr.reporting.runs import GRID
from jaxrlvr.stages.chain import Stage, needs, plan
from jaxrlvr.stages.run_directory import in_use, open_run

LINKS = "links"  # in the workdir: the config and the log of each link
_SECONDS = 0.2  # between two looks at what ended


def cells(links: Sequence[Mapping], title: str) -> dict:
  """What grid.json holds: each rl link with a cell, beside it the judge link that takes its run."""
  judged = {link["files"]["judge.run"]: link["name"] for link in links if "judge.run" in link.get("files", {})}
  rows = []
  for link in links:
    if "cell" in link:
      where = {"rl": link["name"], "judged": judged.get(link["name"], "")}
      seed = link.get("set", {}).get("seed", 0)
      rows.append({"name": link["name"], "n": None, "seed": seed} | dict(link["cell"]) | where)
  return {"title": title, "cells": rows}


def command(stage: str, name: str, workdir: Path) -> list[str]:
  """The command line of a link; may be run anywhere where the links that it starts from lie."""
  return [stage, f"--config={workdir / LINKS / name}.json", f"--workdir={workdir / name}"]


class _Links:
  """Links as processes, each started once those that it needs are finished."""

  def __init__(self, config: ConfigDict, workdir: Path, stages: Mapping[str, Stage]):
    self._workdir, self._jobs = workdir, config.grid.jobs
    kept = {} if config.compile_cache != "auto" else {"compile_cache": str(workdir / "compiled")}
    named = {stage: name for name, stage in stages.items()}
    self._stage, self._config = {}, {}
    for name, stage, derived in plan(config, workdir, stages):
      self._stage[name], self._config[name] = named[stage], derive(derived, kept, named[stage]).to_dict()
    self._needs = {link["name"]: needs(link) for link in config.chain}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    self._free = [cores[i :: self._jobs] for i in range(self._jobs)]
    self._running: dict[str, tuple[subprocess.Popen, list[int]]] = {}
    self._told: set[str] = set()  # links of which was said that they are waited for
    self.failed: dict[str, int] = {}
    self.done = {name for name in self._stage if self._finished(name)}

  def write(self) -> None:
    for name, config in self._config.items():
      logbook.write_json(self._workdir / LINKS / f"{name}.json", config)
    lines = [shlex.join(["jaxrlvr", *command(stage, name, self._workdir)]) for name, stage in self._stage.items()]
    logbook.write_atomic(self._workdir / "commands.txt", "\n".join(lines) + "\n")

  def _finished(self, name: str) -> bool:
    summary, config = (logbook.read_json(self._workdir / name / f"{file}.json") for file in ("summary", "config"))
    config.pop("stage", None)
    return bool(summary.get("finished")) and config == json.loads(json.dumps(self._config[name]))

  def left(self) -> bool:
    """Whether a link runs or may still be started."""
    return bool(self._running) or any(self._ready())

  def _ready(self):
    begun = self.done | set(self.failed) | set(self._running)
    return (name for name in self._stage if name not in begun and self._needs[name] <= self.done)

  def _in_use(self, name: str) -> bool:
    """Whether another process is at work in the link's directory, as of a grid that was killed: it is waited for."""
    busy = in_use(self._workdir / name)
    if busy and name not in self._told:
      self._told.add(name)
      print(f"{name}: in use by another process; waiting for it to end", file=sys.stderr)
    return busy

  def turn(self) -> None:
    """Takes note of what ended, and starts what there is room for."""
    for name, (process, cores) in list(self._running.items()):
      if (code := process.poll()) is not None:
        del self._running[name]
        self._free.append(cores)
        if code:
          self.failed[name] = code
          print(f"{name}: exit code {code}, see {self._log(name)}", file=sys.stderr)
        else:
          self.done.add(name)
    for name in [name for name in self._ready() if not self._in_use(name)][: len(self._free)]:
      words = [sys.executable, "-m", "jaxrlvr.cli", *command(self._stage[name], name, self._workdir)]
      with self._log(name).open("ab") as log:
        environment = os.environ | {signals.PARENT: str(os.getpid())}  # it ends when we do, however that is
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
      cores = self._free.pop(0)
      if cores:
        os.sched_setaffinity(process.pid, cores)
      self._running[name] = process, cores

  def _log(self, name: str) -> Path:
    return self._workdir / LINKS / f"{name}.log"

  def stop(self) -> None:
    """Asks what runs to save and end, and waits for it."""
    for process, _ in self._running.values():
      process.terminate()
    for process, _ in self._running.values():
      process.wait()


def grid(stages: Mapping[str, Stage]) -> Stage:
  """The stage that runs the links of `config.chain`, `config.grid.jobs` at once, and reports on its cells if any.

  A link that is finished is not run again, one that failed is told and what needs it left out: the same command goes
  on. Each link is also a line of commands.txt, for one job a cell elsewhere.
  """

  def run_grid(config: ConfigDict, workdir: str | Path) -> dict:
    if object_store.is_remote(workdir) or multihost.count() > 1:
      raise InputError("a grid runs its links from one process and a local folder; run the lines of its commands.txt")
    jax.config.update("jax_platforms", "cpu")  # devices are for the links
    workdir = object_store.path(workdir).resolve()
    links = _Links(config, workdir, stages)
    with open_run(config, workdir, "grid") as run:
      run.summary = None  # its links say themselves what is finished
      run.begin()
      links.write()
      logbook.write_json(workdir / GRID, cells(config.chain, config.report.title))
      if not config.grid.jobs:
        print(f"{workdir / 'commands.txt'}: a line for each of {len(config.chain)} links, in an order that works")
        return run.finish(links=len(config.chain))
      total, told = len(config.chain), len(links.done)
      progress = run.progress(total, told)
      try:
        while links.left():
          links.turn()
          if len(links.done) > told:
            told = len(links.done)
            progress(told)
          run.raise_if_asked()
          time.sleep(_SECONDS)
      except BaseException:
        links.stop()
        raise
      made = {}
      if any("cell" in link for link in config.chain):
        made = stages["report"](derive(config, {"report.runs": (str(workdir),)}, "report"), workdir / "report")
      if len(links.done) < total:
        raise TrainingStopped(
          f"{total - len(links.done)} of {total} links are not finished; failed: "
          f"{', '.join(f'{name} (exit code {code})' for name, code in links.failed.items())}; their logs are in "
          f"{workdir / LINKS}, the report tells of the others: {made.get('report', 'none, no link has a cell')}. The "
          "same command goes on"
        )
      return run.finish(links=total, **{k: v for k, v in made.items() if k == "report"})

  return run_grid
