"""Where the answer of a response is found."""

import json
import pathlib
import time

import pytest

from jaxrlvr.text.answer import after_thinking, last_box, thinking

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "data" / "golden" / "majority_vote.json"


@pytest.mark.parametrize(
  ("text", "box"),
  [
    (r"so \boxed{7}.", "7"),
    (r"\boxed{1} and \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\text{see }\boxed{7}}", "7"),
    (r"\boxed{}", ""),
    ("\\boxed{\n7\n}", "\n7\n"),
    (r"\boxed{6} or \boxed{7", None),
    (r"\boxed{6} or \boxed 7", None),
    (r"\boxed {7}", None),
    (r"\fbox{7}", None),
    (r"\BOXED{7}", None),
    ("7", None),
    ("", None),
    ("{", None),
  ],
)
def test_last_box(text, box):
  assert last_box(text) == box


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/data/golden")
def test_last_box_is_the_released_codes():
  cases = [
    pair
    for case in json.loads(GOLDEN.read_text())["cases"]
    for pair in zip(case["responses"], case["extracted"], strict=True)
  ]
  assert len(cases) > 300
  assert [last_box(text) for text, _ in cases] == [box for _, box in cases]


@pytest.mark.parametrize(
  "text", ["\\boxed{" * 150_000, "\\boxed{" + "{" * 1_000_000, "\\boxed{7}" + "{}" * 500_000, "<think>" * 150_000]
)
def test_a_hostile_megabyte_is_read_in_linear_time(text):
  start = time.process_time()
  last_box(text), after_thinking(text), thinking(text)
  assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
  ("text", "inside", "after"),
  [
    ("<think>a</think>b", "a", "b"),
    ("x<think>a</think>b</think>c", "a</think>b", "c"),
    ("<think>a</think>b<think>c", "a", "b<think>c"),
    ("a</think>b", None, "b"),
    ("</think><think>a", None, "<think>a"),
    ("<think>a", None, "<think>a"),
    ("a", None, "a"),
    ("<think></think>", "", ""),
  ],
)
def test_thinking(text, inside, after):
  assert thinking(text) == inside
  assert after_thinking(text) == after
