"""docs/miniature.md says what the study's tables beside it say: each number that they hold is worked out again."""

import csv
import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "miniature"
PAGE = FOLDER.with_suffix(".md").read_text(encoding="utf-8")
SETTINGS = ("N = 8", "N = 512", "gamma = 0.7", "majority vote", "self-certainty")
WEAK = SETTINGS[:4]  # all but self-certainty
THINKING, OTHER = (tuple(f"{base} + {sft}" for base in ("Base", "CPT")) for sft in ("Thinking", "Non-thinking"))
HALF = 0.05 + 1e-6  # the last digit's, in what the page shows
SETS = {"": "arithmetic", "a sixth operation": "arithmetic-longer", "two digits": "arithmetic-large"}


@functools.cache
def table(name):
  with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as f:
    return list(csv.DictReader(f))


def rows(page):
  """Cells of the lines of the page's tables."""
  return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in page.splitlines() if line[:2] == "| "]


def told(page):
  """{(set, arm, setting): (start, end, least, largest)} of the page's two tables of accuracy."""
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


def gains(name, arm, setting):
  """(mean, least, largest) of three seeds' gains to the end, in points: their range is the interval over seeds."""
  row = next(r for r in table("saturation") if (r["setting"], r["arm"], r["set"]) == (setting, arm, name))
  return tuple(100 * float(row[f"gain to the end{end}"]) for end in ("", " seeds low", " seeds high"))


def overview(arm, setting):
  """(start, end, what the runs did) in domain."""
  row = next(r for r in table("overview") if r["arm"] == arm)
  start, end, did = re.fullmatch(r"([\d.]+) → ([\d.]+): (.*)", row[setting]).groups()
  return float(start), float(end), did


def check_accuracy(page):
  found = told(page)
  arms = {name: THINKING + (OTHER if name == "arithmetic" else ()) for name in SETS.values()}
  assert list(found) == [(name, arm, setting) for name in arms for arm in arms[name] for setting in SETTINGS]
  for (name, arm, setting), (start, end, *_) in found.items():
    assert end - start == pytest.approx(gains(name, arm, setting)[0], abs=2 * HALF), (name, arm, setting)
    if name == "arithmetic":
      assert (start, end) == overview(arm, setting)[:2]
  for name, arm in dict.fromkeys((name, arm) for name, arm, _ in found):
    check_seeds(arm, [(found[name, arm, setting], gains(name, arm, setting)) for setting in SETTINGS])


def check_seeds(arm, cells):
  """Some three starts, the same in every setting, lead by the recorded gains to the ends that the page tells."""
  start = np.mean([end - gain for (_, end, *_), (gain, *_) in cells])
  possible = None
  for (*_, least, largest), (gain, lowest, highest) in cells:
    ends = (least, 3 * (start + gain) - least - largest, largest)
    assert least <= ends[1] + 4 * HALF and ends[1] <= largest + 4 * HALF
    orders = itertools.permutations((lowest, 3 * gain - lowest - highest, highest))
    starts = [np.sort(np.subtract(ends, order)) for order in orders]
    possible = [one for one in possible or starts if any(abs(one - other).max() < 4 * HALF for other in starts)]
    assert possible, f"{arm}: no three seeds end at {least} and {largest}"


def test_accuracy_is_that_of_the_tables():
  check_accuracy(PAGE)


def test_another_accuracy_would_be_seen():
  """Each number of the two tables half a point off, but where another order of the seeds explains it as well."""
  cells = list(re.finditer(r"(?<=\| )[\d.]+ to [\d.]+ \([\d.]+, [\d.]+\)", PAGE))
  places = [(cell.start() + m.start(), m[0]) for cell in cells for m in re.finditer(r"[\d.]+", cell[0])]
  assert len(places) == 4 * (4 + 4) * len(SETTINGS)
  missed = []
  for (start, was), change in itertools.product(places, (-0.5, 0.5)):
    try:
      check_accuracy(f"{PAGE[:start]}{float(was) + change:.1f}{PAGE[start + len(was) :]}")
      missed.append((was, change, PAGE[start - 40 : start]))
    except AssertionError:
      continue
  assert len(missed) <= len(places) / 25, missed


def points(values):
  """The least and the largest in whole points, as the claims tell a range."""
  return f"{min(values):.0f} to {max(values):.0f}"


def accuracy_claims(page):
  """{start of a claim: what its row says}, worked out from the accuracies that check_accuracy has found true."""
  here = told(page)
  starts = {place[:2]: start for place, (start, *_) in here.items()}
  ends = {place[1:]: end for place, (_, end, *_) in here.items() if place[0] == "arithmetic"}
  others = [ends[arm, setting] for arm in OTHER for setting in SETTINGS]
  pairs = {name: [[here[name, arm, setting] for arm in THINKING] for setting in WEAK] for name in SETS.values()}
  assert all(base[3] > cpt[2] for some in pairs.values() for base, cpt in some)  # the ranges overlap
  above = {name: points([cpt[1] - base[1] for base, cpt in some]) for name, some in pairs.items()}
  ahead = points([cpt[0] - base[0] for some in pairs.values() for base, cpt in some])
  true, wrong, certain = ([ends[arm, setting] for arm in THINKING] for setting in (SETTINGS[1], *SETTINGS[2::2]))
  lost = points(np.subtract(true, wrong))
  risen = points([gains("arithmetic", arm, setting)[0] for arm in THINKING for setting in WEAK])
  fallen = [starts["arithmetic", arm] for arm in THINKING] + certain
  return {
    "SFT on": [f"ends at {min(others)} to {max(others)} % (chance: 10) in all five", f"gains {risen} points in four"],
    "CPT does not": [f"{OTHER[1]}: {starts['arithmetic', OTHER[1]]} to {ends[OTHER[1], 'N = 8']} % at N = 8"],
    "CPT amplifies": [f"by {above['arithmetic']} points in domain", f"by {above['arithmetic-longer']} with a sixth",
                      f"by {above['arithmetic-large']} with two digits", f"it also starts {ahead} points higher"],
    "A faithful": ["{} and {} % against {} and {} % with true".format(*wrong, *true), f"a loss of {lost} points"],
    "Self-certainty": ["falls from {:.0f} and {:.0f} % to {:.0f} and {:.0f} %".format(*fallen)],
  }  # fmt: skip


def other_claims():
  """The same of saturation, faithfulness and diversity, and gaps."""
  at_8 = {row["arm"]: row for row in table("saturation") if (row["setting"], row["set"]) == ("N = 8", "arithmetic")}
  t_sats = [float(at_8[arm]["t_sat"]) for arm in THINKING]
  judged = {row["arm"]: row for row in table("reasoning") if (row["setting"], row["step"]) == ("N = 8", "0")}
  faithful = [100 * float(judged[arm]["faithful"]) for arm in THINKING]
  diversity = [float(judged[arm]["diversity"]) for arm in THINKING]
  gap = {row["arm"]: [100 * float(row[f"G(n', n){end}"]) for end in ("", " low", " high")] for row in table("gap")
         if row["set"] == "arithmetic" and row["arm"] in THINKING}  # fmt: skip
  assert [at_8[arm]["saturated"] for arm in OTHER] == ["0 of 3", "1 of 3"]
  assert all(float(judged[arm][name]) == 0 for arm in OTHER for name in ("faithful", "diversity"))
  return {
    "The speed of": ["t_sat of Thinking is {:.0f} and {:.0f} of 60 steps".format(*t_sats), "five of its six runs"],
    "Faithfulness": ["RL {:.0f} and {:.0f} % of Thinking's responses are faithful and none of".format(*faithful),
                     "diversity is {:.2f}, {:.2f} and 0.".format(*diversity)],
    "More problems": ["{:+.1f} points [{:.1f}, {:.1f}] over problems for Base +".format(*gap[THINKING[0]]),
                      "{:+.1f} [{:.1f}, {:.1f}] for CPT +".format(*gap[THINKING[1]])],
  }  # fmt: skip


def test_claims_are_those_of_the_tables():
  """And what no table beside the page holds is little: rewards of the runs."""
  says = {row[0]: row[2] for row in rows(PAGE)[-9:]}
  for start, phrases in (accuracy_claims(PAGE) | other_claims()).items():
    [name] = [name for name in says if name.startswith(start)]
    for phrase in phrases:
      assert phrase in says[name], name
      says[name] = says[name].replace(phrase, "")
  left = [number for text in says.values() for number in re.findall(r"(?<![@\d])\d+\.\d+", text)]
  assert left == ["0.1", "0.38", "0.53", "1.00", "0.07", "0.13"]


def test_verdicts_behind_the_claims():
  assert all(gains("arithmetic", arm, setting)[1] > 0 for arm in THINKING for setting in WEAK)  # on every seed
  assert {overview(arm, "N = 8")[2] for arm in OTHER} == {"memorised 3 of 3"}
  assert {overview(arm, "majority vote")[2] for arm in OTHER} == {"misled 3 of 3"}
  assert all(abs(np.subtract(*(overview(arm, s)[1] for s in ("majority vote", "N = 512")))) < 1 for arm in THINKING)
