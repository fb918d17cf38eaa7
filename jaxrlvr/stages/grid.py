"""The grid stage: the links of a chain side by side in processes of their own, and one report of their cells."""

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
  """Runs the links of `config.chain`, `config.grid.jobs` at once, and reports on their cells if they have any.

  A link that is finished is not run again; one that failed is told, and those that need it are left out: the same
  command goes on. Each link is also a line of COMMANDS, for one job a cell elsewhere; without jobs that is all.
  TrainingStopped, behind the report, where a link is not finished.
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
    run.summary = None  # its links say themselves what is finished
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
  """Returns what grid.json holds: each rl link with a cell, beside it the judge link that takes its run."""
  judged = {link["files"]["judge.run"]: link["name"] for link in chain if "judge.run" in link.get("files", {})}
  rows = []
  for link in chain:
    if "cell" in link:
      where = {"rl": link["name"], "judged": judged.get(link["name"], "")}
      seed = link.get("set", {}).get("seed", 0)
      rows.append({"name": link["name"], "n": None, "seed": seed} | dict(link["cell"]) | where)
  return {"title": title, "cells": rows}


def _check_report_is_free(chain: Sequence[Mapping]) -> None:
  """Raises InputError where a link would write into the directory of the grid's own report, which cells bring about."""
  has_cells = any("cell" in link for link in chain)
  if has_cells and any(link["name"] == REPORT for link in chain):
    raise InputError(
      f"config.chain: link name {REPORT!r}: the grid writes the report on its cells there; choose another name"
    )


def _write_commands(links: Sequence[Link], workdir: Path) -> None:
  lines = [shlex.join(["jaxrlvr", *command(link, workdir)]) for link in links]
  logbook.write_atomic(workdir / COMMANDS, "\n".join(lines) + "\n")


def _report(report: StageFunction, config: ConfigDict, workdir: Path) -> dict[str, str]:
  """Returns {"report": its page} of the grid's cells, {} where no link has a cell."""
  if not any("cell" in link for link in config.chain):
    return {}
  summary = report(derive(config, {"report.runs": (str(workdir),)}, "report"), workdir / REPORT)
  return {"report": summary["report"]}


def _unfinished(links: Sequence[Link], outcome: Outcome, workdir: Path, report: Mapping[str, str]) -> str:
  failed = ", ".join(f"{name} (exit code {code})" for name, code in outcome.failed.items())
  return (
    f"{len(links) - len(outcome.done)} of {len(links)} links are not finished; failed: {failed}; their logs are in "
    f"{workdir / LINKS}, the report tells of the others: {report.get('report', 'none, no link has a cell')}. The same "
    "command goes on"
  )
