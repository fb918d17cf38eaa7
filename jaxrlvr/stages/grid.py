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
  command_arguments,
  is_finished,
  read_links,
  run_links,
  write_configs,
)
from jaxrlvr.stages.run_directory import open_run

COMMANDS = "commands.txt"  # in the workdir: the command line of each link
REPORT = "report"  # in the workdir: the run directory of the report on the cells


def grid(stages: Mapping[str, StageFunction], config: ConfigDict, workdir: str | Path) -> dict:
  """Runs the links of `config.chain`, `config.grid.jobs` at a time, and writes a report if links have a "cell".

  A cell says where the report shows a link of the stage rl (see `cells`). stages: the functions (config, workdir) ->
  summary of the stages by name, with "report". Writes WORKDIR/links/NAME.json and NAME.log (config and output of each
  link), WORKDIR/NAME (its run directory), commands.txt (the command line of each link, for running them elsewhere),
  grid.json (the cells), report/ and, if compile_cache is "auto", compiled/ (programs that the links share). With 0 jobs
  it runs nothing and writes only the configs, commands.txt and grid.json. Returns the summary: `links`, their number,
  and `report`, the path of the report's page, which is absent without cells or jobs.

  This process itself uses jax on the CPU alone. Finished links are not run again. When a link fails, the links that
  need it are not run and all others are; then TrainingStopped is raised, after the report, and the same command goes on
  with what is not finished. Raises Interrupted after a signal, when the running links have saved, and InputError for a
  wrong chain, a workdir on an object store or several processes.
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
  """Returns the content of grid.json: {"title": title, "cells": [...]}, with a cell for each link that has one.

  chain: the entries of `config.chain`, in which a link's "cell" is {"arm", "setting", "n"}, all optional. title: of the
  report. A cell of the result has `name` and `rl` (both the name of the link, which trains), `arm` and `setting` (the
  curve and the panel of the report that show it, texts; absent where the link names none), `n` (number of training
  problems; None: not named), `seed` (the link's own, else 0) and `judged` (name of the link that judges its run; "":
  none). What else the link's cell holds is kept.
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
  lines = [shlex.join(["jaxrlvr", *command_arguments(link, workdir)]) for link in links]
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
  failed_links = ", ".join(f"{name} (exit code {code})" for name, code in outcome.failed.items())
  unfinished = len(links) - len(outcome.done)
  return (
    f"{unfinished} of {len(links)} links are not finished; failed: {failed_links}; their logs are in "
    f"{workdir / LINKS}, the report tells of the others: {report.get('report', 'none, no link has a cell')}. The same "
    "command goes on"
  )
