"""docs/miniature.md agrees with the grid's tables beside it: each of its numbers that they hold is computed anew."""

import csv
import functools
import importlib.util
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxrlvr.analysis.saturation import median_time

FOLDER = Path(__file__).parents[2] / "docs" / "miniature"
PAGE = FOLDER.with_suffix(".md").read_text(encoding="utf-8")
SETTINGS = ("N = 8", "N = 512", "gamma = 0.7", "majority vote", "self-certainty")
WEAK = SETTINGS[:4]  # all but self-certainty
THINKING = ("Base + Thinking", "CPT + Thinking")
OTHER = ("Base + Non-thinking", "CPT + Non-thinking")
HALF = 0.05 + 1e-6  # the last digit's, in what the page shows
OUTSIDE = ("arithmetic-longer", "arithmetic-large")
SETS = {"": "arithmetic", "a sixth operation": "arithmetic-longer", "two digits": "arithmetic-large"}


@functools.cache
def table(name):
  with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as f:
    return list(csv.DictReader(f))


def rows(page):
  """Returns the cells of each line of the page's tables."""
  lines = [line.strip("| ") for line in page.splitlines() if line[:2] == "| "]
  return [list(map(str.strip, line.split(" | "))) for line in lines]


def told(page):
  """Returns {(set, arm, setting): (start, end, least, largest)} of the page's two tables of accuracy."""
  found, name = {}, ""
  for arm, *cells in rows(page):
    place, _, rest = arm.rpartition(": ")
    if (rest or arm) not in THINKING + OTHER or len(cells) != len(SETTINGS):
      name = ""  # a heading, or the table of claims
      continue
    name = place or name
    for setting, cell in zip(SETTINGS, cells, strict=True):
      numbers = re.fullmatch(r"([\d.]+) to ([\d.]+) \(([\d.]+), ([\d.]+)\)", cell).groups()
      found[SETS[name], rest or arm, setting] = tuple(map(float, numbers))
  return found


def in_percent(row, *names):
  return tuple(100 * float(row[name]) for name in names)


def accuracy(name, arm, setting):
  """Returns (start, end, least, largest) of three seeds, whose range is the interval over seeds."""
  at = {r["at"]: r for r in table(f"evaluations-{name}") if (r["setting"], r["arm"]) == (setting, arm)}
  return in_percent(at["first"], "avg@16") + in_percent(at["last"], "avg@16", "avg@16 seeds low", "avg@16 seeds high")


def runs(arms, setting, name="runs"):
  return [r for r in table(name) if r["arm"] in arms and r["setting"] == setting]


def test_accuracy_is_that_of_the_tables():
  diagnosis = told(PAGE)
  arms = {name: THINKING + (OTHER if name == "arithmetic" else ()) for name in SETS.values()}
  assert list(diagnosis) == [(name, arm, setting) for name in arms for arm in arms[name] for setting in SETTINGS]
  for place, numbers in diagnosis.items():
    assert numbers == pytest.approx(accuracy(*place), abs=HALF), place
  others = [
    accuracy(name, arm, setting)[1] for name in arms for arm in OTHER for setting in SETTINGS if name in OUTSIDE
  ]
  assert f"end between {min(others):.0f} and {max(others):.0f} % on both sets" in PAGE


def points(values):
  """Returns the range of values in whole points, as the claims write it: "3 to 8"."""
  return f"{min(values):.0f} to {max(values):.0f}"


def accuracy_claims(page):
  """Returns {beginning of a claim: phrases that its row holds}, computed from the page's accuracies."""
  here = told(page)
  starts = {place[:2]: start for place, (start, *_) in here.items()}
  ends = {place[1:]: end for place, (_, end, *_) in here.items() if place[0] == "arithmetic"}
  others = [ends[arm, setting] for arm in OTHER for setting in SETTINGS]
  pairs = {}  # {set: (Base + Thinking, CPT + Thinking) in each setting}
  for name in SETS.values():
    pairs[name] = [(here[name, THINKING[0], setting], here[name, THINKING[1], setting]) for setting in WEAK]
  all_pairs = [pair for pairs_of_set in pairs.values() for pair in pairs_of_set]
  overlap = [base[3] > cpt[2] for base, cpt in all_pairs]
  above = {}
  for name, pairs_of_set in pairs.items():
    above[name] = points([cpt[1] - base[1] for base, cpt in pairs_of_set])
  ahead = points([cpt[0] - base[0] for base, cpt in all_pairs])
  true = [ends[arm, "N = 512"] for arm in THINKING]
  wrong = [ends[arm, "gamma = 0.7"] for arm in THINKING]
  certain = [ends[arm, "self-certainty"] for arm in THINKING]
  lost = points(np.subtract(true, wrong))
  risen = points([ends[arm, setting] - starts["arithmetic", arm] for arm in THINKING for setting in WEAK])
  voted = max(abs(ends[arm, SETTINGS[3]] - ends[arm, SETTINGS[1]]) for arm in THINKING)
  fallen = [starts["arithmetic", arm] for arm in THINKING] + certain
  return {
    "SFT on": [f"ends at {min(others)} to {max(others)} % (chance: 10) in all five", f"gains {risen} points in four"],
    "CPT does not": [f"{OTHER[1]}: {starts['arithmetic', OTHER[1]]} to {ends[OTHER[1], 'N = 8']} % at N = 8"],
    "CPT amplifies": [
      f"by {above['arithmetic']} points in domain",
      f"by {above['arithmetic-longer']} with a sixth",
      f"by {above['arithmetic-large']} with two digits",
      f"it also starts {ahead} points higher",
      f"overlap in {sum(overlap)} of {len(overlap)} cells",
    ],
    "Majority vote": [f"ends within {math.ceil(voted)} points of where true labels"],
    "A faithful": ["{} and {} % against {} and {} % with true".format(*wrong, *true), f"a loss of {lost} points"],
    "Self-certainty": ["falls from {:.0f} and {:.0f} % to {:.0f} and {:.0f} %".format(*fallen)],
  }


def median_t_sat(arms):
  """Returns the median t_sat of the arms' six runs on 8 problems, which are cut off at step 54."""
  times = [float(run["t_sat"]) if run["t_sat"] else None for run in runs(arms, "N = 8")]
  return median_time(times, [54] * 6)


def other_claims():
  """Returns the same for claims on rewards, saturation, faithfulness, diversity and gaps, from the grid's tables."""
  memorised = [float(run["reward"]) for run in runs(OTHER[1:], "N = 8")]
  assert all(0.05 < float(run["reward first"]) < 0.15 for run in runs(OTHER[1:], "N = 8"))
  voted = [run for run in runs(OTHER, "majority vote") if float(run["reward"]) > 0.9]
  truth = [float(run["true reward"]) for run in voted]
  thinking, others = median_t_sat(THINKING), median_t_sat(OTHER)
  assert others.median is None
  judged = {row["arm"]: row for row in table("reasoning") if (row["setting"], row["step"]) == ("N = 8", "0")}
  faithful = [100 * float(judged[arm]["faithful"]) for arm in THINKING]
  diversity = [float(judged[arm]["diversity"]) for arm in THINKING]
  gaps = {
    (row["set"], row["arm"]): in_percent(row, "G(n', n)", "G(n', n) low", "G(n', n) high")
    for row in table("gap")
    if row["arm"] in THINKING
  }
  gap = {
    name: "{:+.1f} [{:.1f}, {:.1f}] and {:+.1f} [{:.1f}, {:.1f}]".format(
      *gaps[name, THINKING[0]], *gaps[name, THINKING[1]]
    )
    for name in SETS.values()
  }
  assert all(float(judged[arm][name]) == 0 for arm in OTHER for name in ("faithful", "diversity"))
  return {
    "CPT does not": [f"about 0.1 to between {min(memorised):.2f} and {max(memorised):.2f}"],
    "Majority vote": [
      f"of {len(voted)} of 6 Non-thinking runs goes to {min(float(r['reward']) for r in voted):.2f}",
      f"true reward is {min(truth):.2f} to {max(truth):.2f}",
    ],
    "The speed of": [
      f"{thinking.reached} of 6 Thinking runs saturate",
      f"a median t_sat of {thinking.median:.0f};",
      f"{others.reached} of 6, so that their median is at least {others.at_least:.0f}.",
    ],
    "Faithfulness": [
      "RL {:.0f} and {:.0f} % of Thinking's responses are faithful and none of".format(*faithful),
      "diversity is {:.2f}, {:.2f} and 0.".format(*diversity),
    ],
    "More problems": [
      f"in domain {gap['arithmetic']}",
      f"a sixth operation {gap['arithmetic-longer']}",
      f"two digits {gap['arithmetic-large']}",
    ],
  }


def test_claims_are_those_of_the_tables():
  """Without the computed phrases, no number with decimals is left in the claims."""
  says = {row[0]: row[2] for row in rows(PAGE) if len(row) == 3 and row[0] != "the paper"}
  assert len(says) == 9 + 1
  for start, phrases in [*accuracy_claims(PAGE).items(), *other_claims().items()]:
    [name] = [name for name in says if name.startswith(start)]
    for phrase in phrases:
      assert phrase in says[name], name
      says[name] = says[name].replace(phrase, "")
  assert [number for text in says.values() for number in re.findall(r"(?<![@\d])\d+\.\d+", text)] == []


def test_tables_of_the_page_are_those_that_the_script_writes():
  """The script rewrites numbers that are no longer true."""
  spec = importlib.util.spec_from_file_location("miniature", FOLDER.parents[1] / "launch" / "miniature.py")
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  assert script.with_tables(PAGE) == PAGE
  stale = re.sub(r"(?<=\| Base \+ Thinking \| )[+-][\d.]+ \[", "+1.1 [", PAGE, count=1)
  assert stale != PAGE
  stale = re.sub(r"(?<=\| Base \+ Thinking \| )[\d.]+ to [\d.]+ \(", "1.0 to 2.0 (", stale, count=1)
  assert stale != PAGE and script.with_tables(stale) == PAGE
  with pytest.raises(SystemExit, match="found 0 lines <!-- gaps -->, wanted 1"):
    script.with_tables(PAGE.replace("<!-- gaps -->", ""))
  with pytest.raises(SystemExit, match=r"nowhere: found 0 files runs\.csv, wanted 1; name the report of a grid"):
    script.find(Path("nowhere"), "runs.csv")


def test_conclusions_behind_the_claims():
  did = {}  # {(setting, arm): conclusions on the seeds}
  for setting in SETTINGS:
    for arm in THINKING + OTHER:
      did[setting, arm] = {run["did"] for run in runs([arm], setting)}
  assert all(did[setting, arm] == {"Gained"} for arm in THINKING for setting in WEAK)  # on every seed
  assert all(did["N = 8", arm] == {"Memorised"} and did["self-certainty", arm] == {"No change"} for arm in OTHER)
  assert all(did["self-certainty", arm] == {"Fell"} for arm in THINKING)
  at_end = [r for r in table("evaluations-arithmetic") if r["arm"] in OTHER and r["at"] == "last"]
  one = {r["setting"]: in_percent(r, "avg@16", "pass@16") for r in at_end if r["arm"] == OTHER[0]}
  assert one["majority vote"][0] == pytest.approx(one["majority vote"][1], abs=0.5)  # one answer to a problem


def test_the_fourth_seed_is_that_of_its_runs():
  for arm in THINKING + OTHER:
    [cells] = [row[1:] for row in rows(PAGE) if row[0] == f"{arm}: seed 3"]
    pairs = [in_percent(runs([arm], setting, "runs-seed-3")[0], "accuracy first", "accuracy") for setting in SETTINGS]
    assert cells == ["{:.1f} to {:.1f}".format(*pair) for pair in pairs]


def test_predictions_and_what_happened():
  """Checks each cell of the page's last table; every prediction about a gain was right."""
  happened = {(r["setting"], r["arm"], r["seed"]): r["did"] for name in ("runs", "runs-seed-3") for r in table(name)}
  predictions = table("predictions")
  assert len(predictions) == 4 * 4 * 4
  sure = [r for r in predictions if r["prediction"] != "can't say"]
  assert all(
    (r["prediction"] == "generalises") == (happened[r["setting"], r["arm"], r["seed"]] == "Gained") for r in sure
  )
  assert f"was foretold in {len(sure)} of {len(predictions)} cases" in PAGE
  [unsure] = {(r["arm"], r["seed"], f"{float(r['faithful correct']):.2f}") for r in predictions if r not in sure}
  assert f"Of one policy, {unsure[0]} on seed {unsure[1]}, nothing" in PAGE and f"({unsure[2]})" in PAGE
  last = {row[0]: row[1:] for row in rows(PAGE)[-4:]}
  for kind, arms in (("Thinking", THINKING), ("Non-thinking", OTHER)):
    for i, setting in enumerate(("N = 8", "gamma = 0.7", "majority vote", "self-certainty")):
      cases = [r for r in predictions if r["arm"] in arms and r["setting"] == setting]
      foretold = Counter(r["prediction"] for r in cases)
      did = Counter(happened[setting, r["arm"], r["seed"]].lower() for r in cases)
      for row, counts in (("predicted", foretold), ("runs", did)):
        assert last[f"{kind}: {row}"][i] == ", ".join(f"{n} {word}" for word, n in counts.most_common())
