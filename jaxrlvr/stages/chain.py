"""The stage chain: runs the links of a chain one after another in this process, except those that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.stages.links import InThisProcess, StageFunction, read_links, run_links
from jaxrlvr.stages.run_directory import open_run


def chain(stages: Mapping[str, StageFunction], config: ConfigDict, workdir: str | Path) -> dict:
  """Runs the links of `config.chain` one after another, each in the run directory WORKDIR/NAME, and returns a summary.

  stages: the functions (config, workdir) -> summary of the stages that links may have, by name. workdir: gets
  config.json, manifest.json and summary.json of the chain itself, and the links' directories. The summary has `links`,
  the list of their names, and `report`, the path of the last link's report, only if it wrote one. A chain that is
  finished or was stopped is run again: its finished links do nothing, others go on. On several hosts all processes must
  call it together. Raises InputError for a wrong chain before anything is written (see `links.read_links`); the error
  of a link, or Interrupted after a signal, ends the chain.
  """
  workdir = object_store.path(workdir)
  links = read_links(config, workdir, stages)
  executor = InThisProcess(workdir, stages)
  with open_run(config, workdir, "chain") as run:
    run.summary = None  # a finished chain is run again, as each link decides itself whether it is finished
    run.begin()
    run_links(links, executor, run.raise_if_asked)
    summary_of_last = executor.summaries[links[-1].name]
    figures = {"links": [link.name for link in links]}
    if "report" in summary_of_last:
      figures["report"] = summary_of_last["report"]
    return run.finish(**figures)
