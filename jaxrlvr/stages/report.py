"""The report stage: writes a page, charts and tables on runs and grids into its run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.reporting import page, runs
from jaxrlvr.reporting.runs import Cell
from jaxrlvr.stages.run_directory import open_run, read_config

_REPORTED_STAGES = ("rl", "evaluate", "judge")  # stages whose runs a report takes


def report(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes a report on the runs of `config.report.runs` into `workdir`: index.html, charts, tables and report.json.

  Charts are PNG and SVG, tables CSV. Returns the summary, whose `report` is the path of index.html. A report is
  written anew each time the stage runs, also where an earlier one is finished. On several hosts all processes must call
  it, and the first one writes. Raises InputError where no run of the stages rl or evaluate is named, or a named
  directory can't be reported on (see `cells_of`).
  """
  reported = cells_of(config.report.runs)
  if not reported.trained and not reported.evaluated:
    raise InputError(
      "config.report.runs names no rl or evaluate run and no grid; name at least one, as `jaxrlvr report RUN ...`"
    )
  with open_run(config, workdir, "report") as run:
    run.summary = None  # an earlier report in this directory is replaced
    run.begin()
    file = page.write_report(
      run.workdir,
      config.report.title or reported.title or "RLVR under weak supervision",
      reported.trained,
      reported.evaluated,
      tail=config.saturation_tail,
      samples=config.report.samples,
    )
    return run.finish(report=str(run.home / file.name))


class Reported(NamedTuple):
  """The runs that a report is on.

  A `Cell` has `rl` (the run directory, of either stage), `name`, `arm` and `setting` (where the report shows it), and
  `judged`, the run directory of the stage judge (None: the run was not judged).
  """

  title: str  # the titles of the named grids, with commas between; "": no grid is named, or none has a title
  trained: list[Cell]  # runs of the stage rl, named or as cells of grids; may be empty
  evaluated: list[Cell]  # runs of the stage evaluate; may be empty


def cells_of(entries: Sequence[str]) -> Reported:
  """Finds the runs that entries of `config.report.runs` name, in their order.

  entries: NAME=PLACE, or PLACE alone (see `named_places`); a place is the run directory of the stage rl, evaluate or
  judge, finished or not, or the directory of a grid, which stands for its cells; it may be on an object store. A place
  that is named twice counts once. A run of the stage judge is no cell of its own: it becomes `judged` of the cell whose
  run it judged. Raises InputError for a directory that holds no such run or grid, and for a judge's run that judged
  none of the other runs, or one that another has judged. For the directory of a chain the message says which of its
  links to name.
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
        + _runs_to_name(entry.place, folder, config)
      )
  for judged, folder in judge_runs:
    _join_judgement(cells, judged, folder)
  trained = [cell for cell in cells.values() if not cell.evaluation]
  evaluated = [cell for cell in cells.values() if cell.evaluation]
  return Reported(", ".join(filter(None, titles)), trained, evaluated)


def _runs_to_name(place: str, folder: Path, config: Mapping) -> str:
  """Returns the end of an error message about the directory of a chain: its links that a report takes; "" for others.

  place: the chain's directory as the user names it. folder: the same on this machine. config: its config.json.
  """
  if config["stage"] != "chain":
    return ""
  links = []
  for link in config.get("chain", ()):
    if link["stage"] in _REPORTED_STAGES and (folder / link["name"] / "config.json").is_file():
      links.append(f"{place.rstrip('/')}/{link['name']}")
  return f"; name its links: {' '.join(links)}" if links else "; none of its links is such a run yet"


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
  """An entry of `config.report.runs`."""

  name: str  # what the report calls the run
  place: str  # the directory of the run or grid, as the entry writes it


def named_places(entries: Sequence[str]) -> list[NamedPlace]:
  """Splits entries `NAME=PLACE`, or `PLACE` alone, into names and places, in their order.

  A place without a name is named after the last part of its path, or by the whole place where two places end alike. An
  entry that is an existing folder is a place, even with a "=" in it. Whether a place holds a run is not checked.
  """
  split_entries = []
  for entry in entries:
    is_place = Path(entry).is_dir() or "=" not in entry
    split_entries.append(("", entry) if is_place else entry.split("=", 1))
  folders = [Path(place).resolve().name for _, place in split_entries]
  named = []
  for (name, place), folder in zip(split_entries, folders, strict=True):
    if not name:
      name = folder if folders.count(folder) == 1 else place
    named.append(NamedPlace(name, place))
  return named
