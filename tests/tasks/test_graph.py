"""The verifiers of the graph tasks against the released code, and what they pay."""

import ast
import collections
import json

import pytest

from helpers.grading import DATA, SAYS, needs_data, read, unpacked
from jaxrlvr.tasks.table import VERIFIERS


@needs_data
def test_graph_scores_are_the_released_codes_but_for_four_decisions():
  cases = json.loads((DATA / "golden" / "graph_verifier.json").read_text())["cases"]
  differ = collections.Counter()
  for case in cases:
    extra = case["extra_info"]
    if case["extra_info_form"] == "jsonstr":
      extra = json.loads(extra)
    elif case["extra_info_form"] == "loader":  # str() of every value
      structured = ("buttons", "solution_path")
      extra = {key: ast.literal_eval(value) if key in structured and value else value for key, value in extra.items()}
    label, _ = unpacked(case["ground_truth"])
    score = VERIFIERS[case["source_dataset"]].function(read(case["response"]), label, extra).score
    if score != case["score"]:
      differ[case["kind"], case["score"], score] += 1
  assert len(cases) == 142
  assert differ == {
    ("li_box_in_think_only", 1.0, 0.0): 1,  # a box in the thinking is no answer
    ("ql_box_in_think_only", 1.0, 0.0): 1,
    ("li_noisy_label_label_answer", 0.0, 1.0): 5,  # labels are unpacked
    ("li_noisy_label_verbatim_json", 1.0, 0.0): 5,
    ("ql_noisy_label_true_answer", 1.0, 0.0): 1,  # a label that does not open the lock pays no other answer
    ("li_json_string", None, 1.0): 1,  # the released code fails
    ("ql_extra_info_json_string", None, 1.0): 1,
  }


LOCK = {
  "buttons": [
    {"name": "A", "type": "add", "value": 2, "active_state": "any"},
    {"name": "B", "type": "multiply", "value": 2, "active_state": "red"},
    {"name": "C", "type": "add", "value": 2, "active_state": "red"},
  ],
  "initial_state": "red",
  "initial_value": 0,
  "target_value": 4,
}


@pytest.mark.parametrize(
  ("answer", "label", "score"),
  [
    ("A → A", "A → A", True),
    ("C → A", "A → A", True),  # opens the lock with as many presses
    ("A → C", "A → A", False),  # C is dead under green
    ("D → A", "A → A", False),
    ("A → C → C", "B → A → A", False),  # a dead press leaves the light as it is, so both C are dead
    ("A → B → A", "A → A", False),  # opens it with more
    ("A → A", "C → C", False),  # the label is wrong: it alone counts
    ("C → C", "C → C", True),
    ("7", "7", True),
    ("8", "7", False),
    ("7", "A → A", None),
    ("", "7", None),
    ("A" * 1_000_000, "A → A", None),
    ("C" + "B" * 500, "C" + "A" * 500, False),
  ],
)
def test_quantum_lock(answer, label, score):
  assert VERIFIERS["quantum_lock"].function(read(f"\\boxed{{{answer}}}"), label, LOCK) == SAYS[score]


@pytest.mark.parametrize("answer", ["16", "60", "-6", "6.", "0 1 2 3 4 5 6", "1" * 100_000, "", "{6", "{6}", "\uff16"])
def test_largest_island_pays_nothing_for_what_holds_the_label(answer):
  score = VERIFIERS["largest_island"].function
  assert (
    score(read(f"\\boxed{{{answer}}}"), "6", {}) == SAYS[False if 0 < len(answer) < 100 and answer != "{6" else None]
  )
  assert score(read(f"\\boxed{{{answer}}} \\boxed{{6}}"), "6", {}) == SAYS[True]
