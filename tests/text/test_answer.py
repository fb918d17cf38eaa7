"""Where the answer of a response is found."""

import json
import pathlib
import time

import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.text.answer import (
  READINGS,
  after_thinking,
  boxed_response,
  last_box,
  own_reading,
  parse_response,
  thinking,
)

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "data" / "golden" / "majority_vote.json"


@pytest.mark.parametrize(
  ("text", "box"),
  [
    (r"so \boxed{7}.", "7"),
    (r"\boxed{1} and \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\text{see }\boxed{7}}", "7"),
    (r"\boxed{}", ""),
    ("\\boxed{\n7\n}", "\n7\n"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{\{1\}}", r"\{1\}"),
    (r"\boxed{1\\{2}}", r"1\\{2}"),
    (r"\boxed{6} or \boxed{7", None),
    (r"\boxed{6} or \boxed{7\}", None),
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
  "text",
  [
    "\\boxed{" * 150_000,
    "\\boxed{" + "{" * 1_000_000,
    "\\boxed{7}" + "{}" * 500_000,
    "<think>" * 150_000,
    "9" * 1_000_000,
    "1,111" * 200_000,
    "####" * 250_000,
    "-$" * 500_000,
    ".1" * 500_000,
  ],
)
def test_a_hostile_megabyte_is_read_in_linear_time(text):
  start = time.process_time()
  for reading in READINGS:
    parse_response(text, reading)
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


@pytest.mark.parametrize(
  ("text", "answers"),
  [
    ("so 5+7=12.\n#### 12", (None, "12", "12")),
    ("#### 1,234 \nor so", (None, "1,234", "1234")),
    ("#### 3\n#### \\boxed{4}", ("4", "\\boxed{4}", "4")),
    ("It costs $1,234.50.", (None, None, "1234.50")),
    ("from 3 to -5", (None, None, "-5")),
    ("a -$.5 and so on...", (None, None, "-.5")),
    ("one of (1,2,34)", (None, None, "34")),
    ("72 clips, then 24 more: 96, of course.", (None, None, "96")),
    ("It is 7\n####", (None, None, "7")),
    ("none", (None, None, None)),
    ("<think>6 #### 6 \\boxed{6}</think> #### 7 \\boxed{8} 9", ("8", "7 \\boxed{8} 9", "9")),
    ("<think>6 #### 6 \\boxed{6}", (None, None, None)),
    ("<think>5</think><think> #### 6 \\boxed{6}", (None, None, None)),
    ("#### 6 \\boxed{6} <think>", (None, None, None)),
    ("6</think> #### 7 \\boxed{7}", ("7", "7 \\boxed{7}", "7")),
  ],
)
def test_the_answer_by_each_reading(text, answers):
  assert tuple(parse_response(text, reading).answer for reading in ("boxed", "hash", "last-number")) == answers
  for reading in READINGS:
    assert parse_response(text, reading)[::2] == (text, thinking(text))


@pytest.mark.parametrize("answer", ["7", "\\frac{1}{2}", "x < 3", "{", "\\text{none}", ""])
def test_a_stated_answer_is_taken_as_it_stands(answer):
  response = boxed_response(answer)
  assert response.answer == answer and response.trace is None
  if answer != "{":
    assert parse_response(response.text, "boxed") == response


READING = """
def last_word(text):
  return text.split()[-1] if text.strip() else None


def number(text):
  return int(text)


def two(text, label):
  return text


pi = 3.14
"""


def test_a_reading_of_ones_own_gets_the_text_behind_the_thinking(tmp_path, monkeypatch, caplog):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("mine.py").write_text(READING)
  parsed = parse_response("<think>so 5</think>It is 7", "mine.py:last_word")
  assert (parsed.answer, parsed.trace) == ("7", "so 5")
  assert parse_response("<think>so 5</think> ", "mine.py:last_word").answer is None
  assert parse_response("<think>so 5", "mine.py:last_word").answer is None, "thinking that was never closed"
  assert not caplog.text
  assert [parse_response(text, "mine.py:number").answer for text in ("a", "b")] == [None, None]
  assert caplog.text.count("answer.read mine.py:number: raised ValueError") == 1 and "'a'" in caplog.text
  with pytest.raises(InputError, match=r"config\.answer\.read = 'mine\.py:number': returned 7 \(int\) for '7'; return"):
    parse_response("7", "mine.py:number")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("two", r"mine\.py:two: takes \(text, label\); it must take one text"),
    ("pi", r"mine\.py:pi: is float, no function"),
    ("last_wrd", "did you mean last_word"),
  ],
)
def test_what_can_not_read_an_answer_is_refused(tmp_path, monkeypatch, name, words):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("mine.py").write_text(READING)
  with pytest.raises(InputError, match=words):
    own_reading(f"mine.py:{name}")
