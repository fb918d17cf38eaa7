"""The report stage: a page, charts and tables from run directories and grids."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.reporting import page, runs
from jaxrlvr.reporting.runs import Cell
from jaxrlvr.stages.run_directory import open_run, read_config


def report(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes index.html, charts and tables on the runs of `config.report.runs` into `workdir`.

  Returns the summary, whose `report` is the page's path. A report is written anew each time it is asked for.
  """
  title, cells, evaluations = cells_of(config.report.runs)
  if not cells and not evaluations:
    raise InputError(
      "config.report.runs names no rl or evaluate run and no grid; name at least one, as `jaxrlvr report RUN ...`"
    )
  with open_run(config, workdir, "report") as run:
    run.summary = None  # always made anew
    run.begin()
    made = page.write(
      run.workdir, config.report.title or title or "RLVR under weak supervision", cells, evaluations,
      config.saturation_tail, config.report.samples,
    )  # fmt: skip
    return run.finish(report=str(run.home / made.relative_to(run.workdir)))


def cells_of(entries: Sequence[str]) -> tuple[str, list[Cell], list[Cell]]:
  """(title of the grids, cells, cells of evaluate runs) of rl, evaluate and judge runs and grids."""
  titles, cells, judges = [], {}, []
  for name, place in named_places(entries):
    folder = Path(object_store.local(place))
    if (folder / runs.GRID).is_file():
      title, found = runs.read_grid(folder)
      titles.append(title)
      cells |= {f"{place}/{cell.name}": cell for cell in found}
      continue
    stage = (found := read_config(folder))["stage"]
    if stage in ("rl", "evaluate"):
      cells[place] = Cell(name, folder, name, evaluation=stage == "evaluate")
    elif stage == "judge":
      judges.append((found["judge"]["run"], folder))
    else:
      raise InputError(f"{place}: a run of stage {stage!r}; the report takes rl, evaluate and judge runs and grids")
  for of, folder in judges:
    same = [place for place in cells if object_store.path(place) == object_store.path(of)]
    same = same or [place for place in cells if Path(place).name == Path(of).name]  # moved together since
    if len(same) != 1 or cells[same[0]].judged:
      raise InputError(f"{folder}: judges {of}, which is {'judged twice' if same else 'not'} among the report's runs")
    cells[same[0]] = dataclasses.replace(cells[same[0]], judged=folder)
  trained = [cell for cell in cells.values() if not cell.evaluation]
  evaluated = [cell for cell in cells.values() if cell.evaluation]
  return ", ".join(filter(None, titles)), trained, evaluated


def named_places(entries: Sequence[str]) -> Iterator[tuple[str, str]]:
  """(name, place) of `name=place` or of a place alone: then the folder's name, or the place where two are alike."""
  split = [("", entry) if Path(entry).is_dir() or "=" not in entry else entry.split("=", 1) for entry in entries]
  folders = [Path(place).resolve().name for _, place in split]
  for (name, place), folder in zip(split, folders, strict=True):
    yield name or (folder if folders.count(folder) == 1 else place), place
