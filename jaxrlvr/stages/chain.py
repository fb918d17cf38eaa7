"""A config that chains stages: each link is a run of its own below the workdir, finished links are not run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.config.files import derive
from jaxrlvr.stages.run_directory import open_run

Stage = Callable[[ConfigDict, str | Path], dict]


def plan(config: ConfigDict, workdir: Path, stages: Mapping[str, Stage]) -> list[tuple[str, Stage, ConfigDict]]:
  """(name, stage, config) of each link, with names of earlier links turned into their directories; all checked."""
  if not config.chain:
    raise InputError("config.chain is empty; take a config with a chain, such as configs/demo.py, or run one stage")
  made, seen = [], set()
  for link in config.chain:
    if not isinstance(link, Mapping):
      raise InputError(f"config.chain: {link!r} is no link; write {{'name': ..., 'stage': ...}}")
    if missing := {"name", "stage"} - set(link):
      raise InputError(f"config.chain: link {dict(link)} has no {min(missing)}")
    name, stage = link["name"], link["stage"]
    if name in seen or stage not in stages:
      raise InputError(
        f"config.chain: link {name!r} (stage {stage!r}) is there twice or of no known stage {sorted(stages)}"
      )
    if (init := link.get("init", "")) and init not in seen:
      raise InputError(f"config.chain: link {name!r} starts from {init!r}, which is no earlier link ({sorted(seen)})")
    changes = dict(link.get("set", {}))
    if init:
      changes |= {"init": str(workdir / init), "model.path": ""}
    if "tokenizer" in link:
      changes["tokenizer"] = str(workdir / link["tokenizer"])
    for key, file in link.get("files", {}).items():
      if file.split("/")[0] not in seen:
        raise InputError(f"config.chain: link {name!r} takes {key} from {file!r}, of no earlier link ({sorted(seen)})")
      changes[key] = str(workdir / file)
    if "runs" in link:
      changes["report.runs"] = tuple(f"{title}={workdir / folder}" for title, folder in link["runs"].items())
    made.append((name, stages[stage], derive(config, changes, stage)))
    seen.add(name)
  return made


def needs(link: Mapping) -> set[str]:
  """Names of the links that this one starts from."""
  named = (link.get("init"), link.get("tokenizer"), *(file.split("/")[0] for file in link.get("files", {}).values()))
  return {name for name in (*named, *link.get("runs", {}).values()) if name}


def chain(stages: Mapping[str, Stage]) -> Stage:
  """The stage that runs the links of `config.chain` in order."""

  def run_chain(config: ConfigDict, workdir: str | Path) -> dict:
    workdir = object_store.path(workdir)
    links = plan(config, workdir, stages)
    with open_run(config, workdir, "chain") as run:
      run.summary = None  # its links say themselves what is finished
      run.begin()
      for name, stage, derived in links:
        run.raise_if_asked()
        summary = stage(derived, workdir / name)
      return run.finish(links=[link[0] for link in links], **{k: v for k, v in summary.items() if k == "report"})

  return run_chain
