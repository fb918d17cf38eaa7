"""Writes a report: one HTML page that loads nothing, its charts as PNG and SVG, and its tables as CSV."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrlvr.analysis.phase import CLAIMS
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.escape import visible
from jaxrlvr.base.logbook import finite, read_json, write_atomic
from jaxrlvr.reporting import charts, conclusions
from jaxrlvr.reporting.curves import Chart, write_charts
from jaxrlvr.reporting.runs import Cell, RecordedRun, group_runs, mark_earlier_ends
from jaxrlvr.reporting.samples import choose_responses
from jaxrlvr.reporting.tables import Table, filled_columns, make_tables, table_as_csv

_NUMBERS = "report.json"  # in the folder: what the page says, as numbers, and the names of its charts and tables
_NO_RL = "no RL"  # the setting under which runs of the stage evaluate stand beside RL runs


def write_report(
  folder: Path, title: str, cells: Sequence[Cell], evaluations: Sequence[Cell], tail: int, samples: int
) -> Path:
  """Writes a report into a folder: index.html, charts as PNG and SVG, tables as CSV, and report.json.

  folder: is created if necessary; an earlier report in it is replaced. title: the page's title. cells: the RL runs to
  report on. evaluations: the runs of the stage evaluate to report on; if there are RL runs too, they are shown in the
  setting "no RL". tail: number of last steps in which saturation is not looked for, in runs whose config names none.
  samples: most responses to show of a run, step and set. Returns the path of index.html. What can't be read of a run is
  left out with a note on the page. InputError where there is no run, or two runs of one stage have the same name.

  report.json holds title; lead (the first paragraph); arms and evaluations (a list each with the fields of `Conclusion`
  for every RL run and for every run of the stage evaluate); charts (names of the PNG and SVG files without suffix);
  tables (names of the CSV files without suffix); responses (number of responses on the page).
  """
  _check_names(cells, evaluations)
  runs = [RecordedRun(cell, tail) for cell in cells]
  setting = _NO_RL if runs else ""
  policies = [RecordedRun(dataclasses.replace(cell, setting=setting), tail) for cell in evaluations]
  groups, everything = group_runs(runs), group_runs([*runs, *policies])
  concluded = {run: conclusions.conclude(run) for run in [*runs, *policies]}
  mark_earlier_ends(groups)
  lead = _first_paragraph(runs, policies, concluded)
  in_order = [run for runs_of_group in everything.values() for run in runs_of_group]
  shown = choose_responses(in_order, samples)

  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  _remove_former(folder)
  drawn = write_charts(folder, everything)
  tables = make_tables(groups, everything, concluded)
  for table in tables:
    write_atomic(folder / f"{table.name}.csv", table_as_csv(table.rows))
  numbers = {
    "title": title,
    "lead": lead,
    "arms": [concluded[run]._asdict() for run in runs],
    "evaluations": [concluded[run]._asdict() for run in policies],
    "charts": [chart.file for chart in drawn],
    "tables": [table.name for table in tables],
    "responses": len(shown.responses),
  }
  write_atomic(folder / _NUMBERS, json.dumps(finite(numbers), indent=1, allow_nan=False) + "\n")
  texts = {
    "title": title,
    "lead": lead,
    "recorded": shown.recorded,
    "each": shown.most_of_a_step,
    "tail": " or ".join(sorted({str(run.tail) for run in runs})),
    "trains": bool(runs),
  }
  write_atomic(folder / "index.html", _render(tables, drawn, shown.responses, texts))
  return folder / "index.html"


def _first_paragraph(
  runs: Sequence[RecordedRun],
  policies: Sequence[RecordedRun],
  concluded: Mapping[RecordedRun, conclusions.Conclusion],
) -> str:
  """Returns the first paragraph: on the RL runs if there are any, otherwise on the evaluated policies."""
  if runs:
    return conclusions.lead_of_rl_runs(runs, concluded)
  return conclusions.lead_of_evaluations(policies, concluded)


def _check_names(cells: Sequence[Cell], evaluations: Sequence[Cell]) -> None:
  """Raises InputError where there is no run, or two runs of the same stage have the same name."""
  for of_stage in (cells, evaluations):
    names = [cell.name for cell in of_stage]
    if len(set(names)) < len(names) or not (cells or evaluations):
      raise InputError(f"the report's runs are named {names}: give at least one, and each name once")


def _remove_former(folder: Path) -> None:
  """Deletes the charts and tables of an earlier report in the folder, as its report.json names them."""
  former = read_json(folder / _NUMBERS)
  files = [f"{name}.csv" for name in former.get("tables") or ()]
  for name in former.get("charts") or ():
    files += [f"{name}.png", f"{name}.svg"]
  for file in files:
    (folder / Path(file).name).unlink(missing_ok=True)


def _render(
  tables: Sequence[Table], drawn: Sequence[Chart], responses: Sequence[Mapping], texts: Mapping[str, Any]
) -> str:
  """Returns the page: page.html filled in, with page.css and page.js inside it.

  texts: what page.html shows besides, by the names that it has there. Text from runs can't become markup: all values
  are escaped, and characters that print nothing are replaced by signs.
  """
  import jinja2
  from markupsafe import Markup

  here = Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(here),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    finalize=_with_visible_characters,
  )
  environment.filters |= {"text": _cell_text, "columns": filled_columns}
  script = (here / "page.js").read_text(encoding="utf-8")
  css = (here / "page.css").read_text(encoding="utf-8")
  script_digest = hashlib.sha256(script.encode()).digest()
  data = json.dumps(responses, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")
  arms = dict.fromkeys(row["arm"] for table in tables for row in table.rows)
  return environment.get_template("page.html").render(
    tables=tables,
    charts=drawn,
    settings=list(dict.fromkeys(chart.setting for chart in drawn)),
    looks={arm: charts.arm_style(index) for index, arm in enumerate(arms)},
    shown=len(responses),
    responses=Markup(data),
    css=Markup(css),
    script=Markup(script),
    hash=base64.b64encode(script_digest).decode(),
    rose=conclusions.ROSE,
    window=conclusions.END_STEPS,
    claims=CLAIMS,
    **texts,
  )


def _with_visible_characters(value: Any) -> Any:
  """Replaces characters that print nothing in a text; leaves Markup, which is the template's own, and other values."""
  return visible(value) if type(value) is str else value


def _cell_text(value: Any) -> str:
  """Returns the text of a table's cell: "–" for what is unknown."""
  return "–" if value is None else str(value)
