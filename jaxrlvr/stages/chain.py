"""The stage chain: runs the links of a chain one after another in this process, except those that are finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.stages.links import InThisProcess, StageFunction, read_links, run_links
from jaxrlvr.stages.run_directory import open_run


def chain(stages: Mapping[str, StageFunction], config: ConfigDict, workdir: str | Path) -> dict:
  """Runs the links of `config.chain` in order and returns the summary.

  stages: the functions (config, workdir) -> summary of the stages that links may have, by name. Finished links are not
  run again. The summary has the names of the `links`, and the path of the last link's `report` if it wrote one. An
  error of a link ends the chain.
  """
  workdir = object_store.path(workdir)
  links = read_links(config, workdir, stages)
  executor = InThisProcess(workdir, stages)
  with open_run(config, workdir, "chain") as run:
    run.summary = None  # a finished chain is run again, as each link decides itself whether it is finished
    run.begin()
    run_links(links, executor, run.raise_if_asked)
    last = executor.summaries[links[-1].name]
    report = {"report": last["report"]} if "report" in last else {}
    return run.finish(links=[link.name for link in links], **report)
