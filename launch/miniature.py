"""Brings docs/miniature and the tables of docs/miniature.md up to date from runs of configs/miniature.py.

  jaxrlvr grid --config=miniature --workdir=runs/miniature
  jaxrlvr grid --config=miniature:1,first=3 --workdir=runs/miniature-3
  jaxrlvr diagnose --config=miniature --workdir=runs/diagnoses/POLICY --config.init=runs/miniature/POLICY  # each of 16
  python launch/miniature.py runs/miniature/report runs/miniature-3/report runs/diagnoses

Copies the report's tables and pictures that docs/miniature holds, writes predictions.csv from the diagnoses, and writes
the tables that follow a line `<!-- NAME -->` in docs/miniature.md. The sentences and claims are for a person to
correct: tests/repository/test_miniature.py names each number there that no longer is that of the tables.
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
  with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def accuracy(set_name: str, arm: str) -> list[str]:
  """Returns before and after in each setting: means of the seeds, and the least and largest seed."""
  cells = []
  for setting in SETTINGS:
    at = {r["at"]: r for r in read(f"evaluations-{set_name}") if (r["setting"], r["arm"]) == (setting, arm)}
    names = ("avg@16", "avg@16 seeds low", "avg@16 seeds high")
    end, least, largest = (100 * float(at["last"][name]) for name in names)
    cells.append(f"{100 * float(at['first']['avg@16']):.1f} to {end:.1f} ({least:.1f}, {largest:.1f})")
  return cells


def in_domain() -> list[list[str]]:
  return [["", *SETTINGS], *([arm, *accuracy("arithmetic", arm)] for arm in ARMS)]


def outside() -> list[list[str]]:
  rows = [["", *SETTINGS]]
  for shown in ("a sixth operation", "two digits"):
    for arm in ARMS[:2]:
      rows.append([f"{shown}: {arm}" if arm == ARMS[0] else arm, *accuracy(SETS[shown], arm)])
  return rows


def gaps() -> list[list[str]]:
  """Returns G(512, 8) on every set, in points with its interval over problems; a dash where no seed saturates."""
  rows = [["", *SETS]]
  for arm in ARMS:
    at = {row["set"]: row for row in read("gap") if row["arm"] == arm}
    cells = []
    for name in SETS.values():
      found = [at[name][f"G(n', n){end}"] for end in ("", " low", " high")]
      cells.append("{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * float(x) for x in found)) if all(found) else "–")
    rows.append([arm, *cells])
  return rows


def fourth_seed() -> list[list[str]]:
  found = {(row["setting"], row["arm"]): row for row in read("runs-seed-3")}
  rows = [["", *SETTINGS]]
  for arm in ARMS:
    ends = [[100 * float(found[setting, arm][name]) for name in ("accuracy first", "accuracy")] for setting in SETTINGS]
    rows.append([f"{arm}: seed 3", *("{:.1f} to {:.1f}".format(*pair) for pair in ends)])
  return rows


TABLES: dict[str, Callable[[], list[list[str]]]] = {
  "in domain": in_domain,
  "outside": outside,
  "gaps": gaps,
  "fourth seed": fourth_seed,
}


def markdown(rows: Sequence[Sequence[str]]) -> str:
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  lines[0] = re.sub("^\\|  \\|", "| |", lines[0])
  return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def with_tables(page: str) -> str:
  """Returns the page with each table behind its mark as the tables in docs/miniature say it."""
  for name, rows in TABLES.items():
    table = markdown(rows())
    page, count = re.subn(f"(<!-- {name} -->\n)(?:\\|.*\n)*", lambda mark, table=table: mark[1] + table, page)
    if count != 1:
      raise SystemExit(f"{PAGE}: found {count} lines <!-- {name} -->, wanted 1")
  return page


def predictions(folder: Path) -> None:
  """Writes predictions.csv from the diagnoses, a folder a policy, named as the policy is (base-thinking-0, ...)."""
  rows = []
  for path in sorted(folder.glob("*/diagnosis.json")):
    kind, seed = path.parent.name.rsplit("-", 1)
    [arm] = [arm for arm in ARMS if arm.lower().replace(" + ", "-") == kind]
    found = json.loads(path.read_text(encoding="utf-8"))
    for said in found["predictions"]:
      rows.append(
        [
          PREDICTED[said["setting"]],
          arm,
          seed,
          said["regime"],
          said["rule"],
          said["sure"],
          found["figures"]["F(1)/correct"],
        ]
      )
  if len(rows) != 4 * 4 * 4:
    raise SystemExit(f"{folder}: found {len(rows)} predictions, wanted 64: 4 settings, 4 arms, seeds 0 to 3")
  order = {setting: place for place, setting in enumerate(PREDICTED.values())}
  rows.sort(key=lambda row: (order[row[0]], ARMS.index(row[1]), row[2]))
  with (FOLDER / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
    head = ["setting", "arm", "seed", "prediction", "rule", "sure", "faithful correct"]
    csv.writer(file, lineterminator="\n").writerows([head, *rows])


def table(source: Path, target: Path) -> None:
  """Copies a table of the report; of a run's directory, which is this machine's, the last two names."""
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
  """Copies a PNG of the report, which lets the page shine through, onto white and into few colours."""
  drawn = Image.open(source).convert("RGBA")
  on_white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
  on_white.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)


def main(three_seeds: Path, seed_3: Path, diagnoses: Path) -> None:
  made_here = {"runs-seed-3.csv", "predictions.csv"}
  for file in sorted(FOLDER.iterdir()):
    if file.name not in made_here:
      [source] = three_seeds.rglob(file.name)
      (picture if file.suffix == ".png" else table)(source, file)
  [source] = seed_3.rglob("runs.csv")
  table(source, FOLDER / "runs-seed-3.csv")
  predictions(diagnoses)
  PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
  if len(sys.argv) != 4:
    raise SystemExit(__doc__)
  main(*map(Path, sys.argv[1:]))
