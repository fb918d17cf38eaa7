"""Brings docs/miniature and the tables of docs/miniature.md up to date from runs of configs/miniature.py.

  jaxrlvr grid --config=miniature --workdir=runs/miniature
  jaxrlvr grid --config=miniature:1,first=3 --workdir=runs/miniature-3
  jaxrlvr diagnose --config=miniature --workdir=runs/diagnoses/POLICY --config.init=runs/miniature/POLICY  # each of 16
  python launch/miniature.py runs/miniature/report runs/miniature-3/report runs/diagnoses

Copies those tables and pictures of the report that docs/miniature holds, writes predictions.csv from the diagnoses, and
rewrites the table below each line `<!-- NAME -->` in docs/miniature.md. A person corrects the sentences and claims:
tests/repository/test_miniature.py names each of their numbers that no longer agrees with the tables.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "miniature"
PAGE = FOLDER.with_suffix(".md")
SETTINGS = ("N = 8", "N = 512", "gamma = 0.7", "majority vote", "self-certainty")
ARMS = ("Base + Thinking", "CPT + Thinking", "Base + Non-thinking", "CPT + Non-thinking")
SETS = {  # on the page: in the tables
  "in domain": "arithmetic",
  "a sixth operation": "arithmetic-longer",
  "two digits": "arithmetic-large",
  "outside, both": "out-of-domain",
}
PREDICTED = {"scarce": "N = 8", "noisy": "gamma = 0.7", "vote": "majority vote", "certainty": "self-certainty"}


def read(name: str) -> list[dict[str, str]]:
  """Returns the rows of a table in docs/miniature."""
  with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def accuracy(set_name: str, arm: str) -> list[str]:
  """Returns a cell for each setting: mean accuracy of the seeds before and after, and the interval over seeds, in %."""
  cells = []
  for setting in SETTINGS:
    at = {r["at"]: r for r in read(f"evaluations-{set_name}") if (r["setting"], r["arm"]) == (setting, arm)}
    names = ("avg@16", "avg@16 seeds low", "avg@16 seeds high")
    end, least, largest = (100 * float(at["last"][name]) for name in names)
    cells.append(f"{100 * float(at['first']['avg@16']):.1f} to {end:.1f} ({least:.1f}, {largest:.1f})")
  return cells


def in_domain() -> list[list[str]]:
  """Returns the table of accuracy in domain: a row for each arm."""
  return [["", *SETTINGS], *([arm, *accuracy("arithmetic", arm)] for arm in ARMS)]


def outside() -> list[list[str]]:
  """Returns the table of accuracy on longer and larger problems: a row for each set and Thinking arm."""
  rows = [["", *SETTINGS]]
  for shown in ("a sixth operation", "two digits"):
    for arm in ARMS[:2]:
      rows.append([f"{shown}: {arm}" if arm == ARMS[0] else arm, *accuracy(SETS[shown], arm)])
  return rows


def gaps() -> list[list[str]]:
  """Returns the table of G(512, 8) in points, with its interval over problems; a dash where no seed saturates."""
  rows = [["", *SETS]]
  for arm in ARMS:
    at = {row["set"]: row for row in read("gap") if row["arm"] == arm}
    cells = []
    for name in SETS.values():
      figures = [at[name][f"G(n', n){end}"] for end in ("", " low", " high")]
      cell = "–"
      if all(figures):
        cell = "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * float(figure) for figure in figures))
      cells.append(cell)
    rows.append([arm, *cells])
  return rows


def fourth_seed() -> list[list[str]]:
  """Returns the table of accuracy before and after of seed 3, which has the same rows as `in_domain`."""
  runs = {(row["setting"], row["arm"]): row for row in read("runs-seed-3")}
  rows = [["", *SETTINGS]]
  for arm in ARMS:
    cells = []
    for setting in SETTINGS:
      run = runs[setting, arm]
      cells.append(f"{100 * float(run['accuracy first']):.1f} to {100 * float(run['accuracy']):.1f}")
    rows.append([f"{arm}: seed 3", *cells])
  return rows


TABLES: dict[str, Callable[[], list[list[str]]]] = {
  "in domain": in_domain,
  "outside": outside,
  "gaps": gaps,
  "fourth seed": fourth_seed,
}


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """Returns rows of cells, headings first, as a table in Markdown."""
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines[0] = re.sub("^\\|  \\|", "| |", lines[0])
  return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def with_tables(page: str) -> str:
  """Returns the page with each table below its mark rewritten; SystemExit where a mark does not occur exactly once."""
  for name, rows in TABLES.items():
    table = markdown(rows())
    page, count = re.subn(f"(<!-- {name} -->\n)(?:\\|.*\n)*", lambda mark, table=table: mark[1] + table, page)
    if count != 1:
      raise SystemExit(f"{PAGE}: found {count} lines <!-- {name} -->, wanted 1")
  return page


def predictions(folder: Path) -> None:
  """Writes predictions.csv from diagnoses.

  folder: holds the run directory of each diagnosis, named as its policy: ARM-SEED, such as base-thinking-0.
  """
  rows = []
  for path in sorted(folder.glob("*/diagnosis.json")):
    kind, seed = path.parent.name.rsplit("-", 1)
    [arm] = [arm for arm in ARMS if arm.lower().replace(" + ", "-") == kind]
    diagnosis = json.loads(path.read_text(encoding="utf-8"))
    faithful = diagnosis["figures"]["F(1)/correct"]
    for predicted in diagnosis["predictions"]:
      setting = PREDICTED[predicted["setting"]]
      rows.append([setting, arm, seed, predicted["regime"], predicted["rule"], predicted["sure"], faithful])
  if len(rows) != 4 * 4 * 4:
    raise SystemExit(f"{folder}: found {len(rows)} predictions, wanted 64: 4 settings, 4 arms, seeds 0 to 3")
  order = {setting: place for place, setting in enumerate(PREDICTED.values())}
  rows.sort(key=lambda row: (order[row[0]], ARMS.index(row[1]), row[2]))
  with (FOLDER / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
    head = ["setting", "arm", "seed", "prediction", "rule", "sure", "faithful correct"]
    csv.writer(file, lineterminator="\n").writerows([head, *rows])


def table(source: Path, target: Path) -> None:
  """Copies a table of the report; directories keep only their last two names, as the others are this machine's."""
  with source.open(newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    if "directory" in row:
      row["directory"] = "/".join(Path(row["directory"]).parts[-2:])
  with target.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def picture(source: Path, target: Path) -> None:
  """Copies a PNG of the report, whose background is transparent, onto white and with few colours."""
  drawn = Image.open(source).convert("RGBA")
  on_white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
  on_white.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def find(report: Path, name: str) -> Path:
  """Returns the path of a file in the folder of a report; ends the script unless one file there has that name."""
  paths = list(report.rglob(name))
  if len(paths) != 1:
    raise SystemExit(f"{report}: found {len(paths)} files {name}, wanted 1; name the report of a grid that is finished")
  return paths[0]


def main(three_seeds: Path, seed_3: Path, diagnoses: Path) -> None:
  """Copies tables and pictures, writes the predictions, and rewrites the page.

  three_seeds, seed_3: folders of the two grids' reports. diagnoses: the folder of the diagnoses.
  """
  others = {"runs-seed-3.csv", "predictions.csv"}  # are not copied from the report on three seeds
  for file in sorted(FOLDER.iterdir()):
    if file.name in others:
      continue
    copy = picture if file.suffix == ".png" else table
    copy(find(three_seeds, file.name), file)
  table(find(seed_3, "runs.csv"), FOLDER / "runs-seed-3.csv")
  predictions(diagnoses)
  PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
  if len(sys.argv) != 4:
    raise SystemExit(__doc__)
  main(*map(Path, sys.argv[1:]))
