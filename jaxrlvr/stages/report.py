"""The report stage: writes a page, charts and tables on runs and grids into its run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.reporting import page, runs
from jaxrlvr.reporting.runs import Cell
from jaxrlvr.stages.run_directory import open_run, read_config


def report(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes index.html, charts and tables on the runs of `config.report.runs` into `workdir`.

  Returns the summary, whose `report` is the page's path. A report is written anew each time it is asked for. InputError
  where no run of the stages rl or evaluate is named, or a named directory can't be reported on.
  """
  reported = cells_of(config.report.runs)
  if not reported.trained and not reported.evaluated:
    raise InputError(
      "config.report.runs names no rl or evaluate run and no grid; name at least one, as `jaxrlvr report RUN ...`"
    )
  with open_run(config, workdir, "report") as run:
    run.summary = None  # an earlier report in this directory is replaced
    run.begin()
    file = page.write(
      run.workdir,
      config.report.title or reported.title or "RLVR under weak supervision",
      reported.trained,
      reported.evaluated,
      tail=config.saturation_tail,
      samples=config.report.samples,
    )
    return run.finish(report=str(run.home / file.name))


class Reported(NamedTuple):
  """The runs that a report is on."""

  title: str  # the titles of the grids among them, with commas between; "": there is no grid
  trained: list[Cell]  # runs of the stage rl, and the cells of grids
  evaluated: list[Cell]  # runs of the stage evaluate


def cells_of(entries: Sequence[str]) -> Reported:
  """Reads which runs `config.report.runs` names: directories of rl, evaluate or judge, and of grids.

  entries: NAME=PLACE, or PLACE alone. A run of the stage judge joins the run that it judged. InputError for a directory
  that holds no such run or grid, and for a judge's run that judged none of the others, or one that another has judged.
  """
  titles, judge_runs = [], []
  cells: dict[str, Cell] = {}  # by the path of the run, or of the grid with the cell's name behind it
  for entry in named_places(entries):
    folder = Path(object_store.local(entry.place))
    if (folder / runs.GRID).is_file():
      grid = runs.read_grid(folder)
      titles.append(grid.title)
      cells |= {f"{entry.place}/{cell.name}": cell for cell in grid.cells}
      continue
    config = read_config(folder)
    stage = config["stage"]
    if stage in ("rl", "evaluate"):
      cells[entry.place] = Cell(entry.name, folder, entry.name, evaluation=stage == "evaluate")
    elif stage == "judge":
      judge_runs.append((config["judge"]["run"], folder))
    else:
      raise InputError(
        f"{entry.place}: a run of stage {stage!r}; the report takes rl, evaluate and judge runs and grids"
      )
  for judged, folder in judge_runs:
    _join_judgement(cells, judged, folder)
  trained = [cell for cell in cells.values() if not cell.evaluation]
  evaluated = [cell for cell in cells.values() if cell.evaluation]
  return Reported(", ".join(filter(None, titles)), trained, evaluated)


def _join_judgement(cells: dict[str, Cell], judged: str, folder: Path) -> None:
  """Gives the cell of the run `judged` the judge's run directory `folder`."""
  places = [place for place in cells if object_store.path(place) == object_store.path(judged)]
  if not places:  # both runs may have been moved together since
    places = [place for place in cells if Path(place).name == Path(judged).name]
  if len(places) != 1 or cells[places[0]].judged:
    times = "judged twice" if places else "not"
    raise InputError(f"{folder}: judges {judged}, which is {times} among the report's runs")
  cells[places[0]] = dataclasses.replace(cells[places[0]], judged=folder)


class NamedPlace(NamedTuple):
  """A run or grid that a report is asked for."""

  name: str  # what the report calls it
  place: str  # its directory


def named_places(entries: Sequence[str]) -> list[NamedPlace]:
  """Splits entries `NAME=PLACE`, or `PLACE` alone, into names and places.

  A place without a name is named after its folder, or by the whole place where two folders have the same name. An entry
  that is an existing folder is a place, even with a "=" in it.
  """
  split = [("", entry) if Path(entry).is_dir() or "=" not in entry else entry.split("=", 1) for entry in entries]
  folders = [Path(place).resolve().name for _, place in split]
  named = []
  for (name, place), folder in zip(split, folders, strict=True):
    if not name:
      name = folder if folders.count(folder) == 1 else place
    named.append(NamedPlace(name, place))
  return named
