"""docs/names.md names keys and metrics that exist, and hints know every name that it has."""

import ast
import re
from pathlib import Path

import pytest

from jaxrlvr.config import hints
from jaxrlvr.config.rules import declared

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "names.md").read_text()
KEYS, REST = PAGE.split("### Without a counterpart")
ABSENT, REST = REST.split("### Values")
VALUES, METRICS = REST.split("## Metrics")
DECLARED = declared()


def rows(text):
  """Returns the cells of each row of the tables in a text; heads and rules are left out."""
  lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
  assert lines
  return lines


def quoted(cell):
  return re.findall(r"`([^`]+)`", cell)


KEY_ROWS = [(quoted(cells[0])[0], cells[0], [quoted(cell) for cell in cells[1:4]]) for cells in rows(KEYS)]


@pytest.mark.parametrize(("key", "cell", "peers"), KEY_ROWS, ids=[row[0] for row in KEY_ROWS])
def test_a_name_of_another_library_is_answered_with_the_key_of_its_row(key, cell, peers):
  for name in sum(peers, []):
    assert key in hints.likely_keys(list(DECLARED), name) and not hints.why_absent(name), name
  default = re.search(r"\((.*)\)$", cell)
  if default:
    present = DECLARED[key].default
    shown = default[1] if isinstance(present, str) else ast.literal_eval(default[1])
    assert present == shown and type(present) is type(shown)


def test_the_page_has_every_name_that_hints_know():
  of_key = {key: sum(peers, []) for key, _, peers in KEY_ROWS}
  assert of_key.keys() == hints.PEERS_NAMES.keys()
  for key, names in hints.PEERS_NAMES.items():
    for name in names:
      assert any(f".{shown}".endswith(f".{name}") for shown in of_key[key]), f"{key}: {name}"


def test_names_without_a_counterpart_are_answered_with_what_the_page_says():
  lines = [line.strip("| ").split(" | ") for line in ABSENT.splitlines() if line.startswith("| ")][2:]
  shown = {reason: tuple(quoted(names)) for reason, names in lines}
  assert shown == hints.ABSENT
  for reason, names in shown.items():
    for name in names:
      assert hints.hint(list(DECLARED), f"rl.{name}") == f"; {reason} (docs/names.md)"


def test_values_are_allowed():
  for cells in rows(VALUES):
    for setting in quoted(cells[0]):
      key, _, text = setting.partition("=")
      present = DECLARED[key].default
      assert DECLARED[key].rule.holds(text if isinstance(present, str) else ast.literal_eval(text)), setting


def test_metrics_are_on_the_page_of_metrics():
  on_page = set(quoted((DOCS / "metrics.md").read_text()))
  for cells in rows(METRICS):
    assert set(quoted(cells[0])) <= on_page


def test_a_name_counts_by_its_longest_part_and_in_its_own_group():
  names = list(DECLARED)
  assert hints.likely_keys(names, "actor_rollout_ref.rollout.val_kwargs.temperature") == ["evaluate.temperature"]
  assert hints.likely_keys(names, "actor_rollout_ref.rollout.temperature") == ["rl.temperature"]
  assert hints.likely_keys(names, "sft.weight_decay") == ["sft.optim.weight_decay"]
  assert hints.likely_keys(names, "heldout.train_files") == ["heldout.source"]
  assert "there is no critic" in hints.hint(names, "critic.optim.lr")
  assert hints.hint(names, "corrupt.gamma") == "; did you mean config.corrupt.gammas?"  # a slip, not verl's gamma


def test_every_common_name_is_answered_with_its_key():
  for key, names in hints.COMMON_NAMES.items():
    for name in names:
      assert hints.likely_keys(list(DECLARED), name) == [key]
