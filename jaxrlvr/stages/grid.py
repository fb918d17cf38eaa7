"""The stage grid: runs the links of a chain side by side in processes of their own, and reports on their cells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError, TrainingStopped
from jaxrlvr.config.files import derive
from jaxrlvr.device import multihost
from jaxrlvr.reporting.runs import GRID
from jaxrlvr.stages.links import (
  LINKS,
  InProcesses,
  Link,
  Outcome,
  StageFunction,
  command,
  is_finished,
  read_links,
  run_links,
  write_configs,
)
from jaxrlvr.stages.run_directory import open_run

COMMANDS = "commands.txt"  # in the workdir: the command line of each link
REPORT = "report"  # in the workdir: the run directory of the report on the cells


def grid(stages: Mapping[str, StageFunction], config: ConfigDict, workdir: str | Path) -> dict:
  """Runs the links of `config.chain`, `config.grid.jobs` at a time, and writes a report if links have cells.

  stages: the functions (config, workdir) -> summary of the stages by name, with "report". Finished links are not run
  again. When a link fails, the links that need it are not run, and the same command later goes on with these. Writes
  the command line of each link to COMMANDS, for running them elsewhere; with 0 jobs that is all it does. The summary
  has the number of `links`, and the path of the `report`. Raises TrainingStopped, after the report, where a link is not
  finished; InputError for a workdir on an object store or several processes.
  """
  if object_store.is_remote(workdir) or multihost.process_count() > 1:
    raise InputError(f"a grid runs its links from one process and a local folder; run the lines of its {COMMANDS}")
  jax.config.update("jax_platforms", "cpu")  # devices are for the links
  workdir = object_store.path(workdir).resolve()
  shared = {"compile_cache": str(workdir / "compiled")} if config.compile_cache == "auto" else {}
  links = read_links(config, workdir, stages, shared)
  _check_report_is_free(config.chain)
  done = {link.name for link in links if is_finished(link, workdir)}
  with open_run(config, workdir, "grid") as run:
    run.summary = None  # a finished grid is run again, as each link decides itself whether it is finished
    run.begin()
    write_configs(links, workdir)
    _write_commands(links, workdir)
    logbook.write_json(workdir / GRID, cells(config.chain, config.report.title))
    if not config.grid.jobs:
      print(f"{workdir / COMMANDS}: a line for each of {len(links)} links, in an order that works")
      return run.finish(links=len(links))
    executor = InProcesses(workdir, config.grid.jobs)
    progress = run.progress(len(links), len(done))
    outcome = run_links(links, executor, run.raise_if_asked, done, progress)
    report = _report(stages["report"], config, workdir)
    if len(outcome.done) < len(links):
      raise TrainingStopped(_unfinished(links, outcome, workdir, report))
    return run.finish(links=len(links), **report)


def cells(chain: Sequence[Mapping], title: str) -> dict:
  """Returns the content of grid.json: {"title", "cells"}, with a cell for each rl link that has one.

  chain: the entries of `config.chain`. title: of the report. A cell has `name`, `arm` and `setting` (where the report
  shows it), `n` (number of training problems; None: not named), `seed`, and the names of the link `rl` that trains and
  of the link `judged` that judges its run ("": none).
  """
  judge_of_run = {}
  for link in chain:
    if "judge.run" in link.get("files", {}):
      judge_of_run[link["files"]["judge.run"]] = link["name"]
  rows = []
  for link in chain:
    if "cell" in link:
      name = link["name"]
      row = {"name": name, "n": None, "seed": link.get("set", {}).get("seed", 0)}
      row |= link["cell"]
      row |= {"rl": name, "judged": judge_of_run.get(name, "")}
      rows.append(row)
  return {"title": title, "cells": rows}


def _check_report_is_free(chain: Sequence[Mapping]) -> None:
  """Raises InputError where links have cells and one of them has the name of the folder of the grid's own report."""
  has_cells = any("cell" in link for link in chain)
  if has_cells and any(link["name"] == REPORT for link in chain):
    raise InputError(
      f"config.chain: link name {REPORT!r}: the grid writes the report on its cells there; choose another name"
    )


def _write_commands(links: Sequence[Link], workdir: Path) -> None:
  """Writes the command line of each link to COMMANDS, in the order of the chain."""
  lines = [shlex.join(["jaxrlvr", *command(link, workdir)]) for link in links]
  logbook.write_atomic(workdir / COMMANDS, "\n".join(lines) + "\n")


def _report(report: StageFunction, config: ConfigDict, workdir: Path) -> dict[str, str]:
  """Writes the report on the grid's cells and returns {"report": path of its page}; {} where no link has a cell."""
  if not any("cell" in link for link in config.chain):
    return {}
  report_config = derive(config, {"report.runs": (str(workdir),)}, "report")
  summary = report(report_config, workdir / REPORT)
  return {"report": summary["report"]}


def _unfinished(links: Sequence[Link], outcome: Outcome, workdir: Path, report: Mapping[str, str]) -> str:
  """Returns the message that says which links failed, and where their logs and the report are."""
  failed = ", ".join(f"{name} (exit code {code})" for name, code in outcome.failed.items())
  return (
    f"{len(links) - len(outcome.done)} of {len(links)} links are not finished; failed: {failed}; their logs are in "
    f"{workdir / LINKS}, the report tells of the others: {report.get('report', 'none, no link has a cell')}. The same "
    "command goes on"
  )
