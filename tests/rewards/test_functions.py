"""Rewards that are a user's functions: their shapes, what may go wrong in them, and where they are found."""

import asyncio
import dataclasses
import inspect

import numpy as np
import pytest

from helpers.grading import parse_row
from jaxrlvr.base import logbook, named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import EVERY, Problem
from jaxrlvr.rewards import expression, functions
from jaxrlvr.rewards.types import Answers, Graded

PROBLEMS = [
  Problem(
    name,
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": name}),
    label,
    label,
    "arithmetic",
    {"data_source": "mine", "difficulty": level},
  )
  for name, label, level in (("a", "4", 1), ("b", "6", 2))
]
TEXTS = [["\\boxed{4}", "no", "four, I think"], ["6", "\\boxed{6}", "7"]]
ANSWERS = Answers(
  PROBLEMS,
  [parse_row(row) for row in TEXTS],
  {},
  np.tile(np.arange(3), (2, 1)),
)
LENGTHS = [list(map(len, row)) for row in TEXTS]


def paid(function, text="given:it", **calls):
  with named.given({"it": function}):
    graded, _ = expression.grade_terms(expression.parse(text), ANSWERS, None, functions.Calls(**calls))
  return graded


def trl(completions, **columns):
  assert columns["prompts"] == ["a"] * 3 + ["b"] * 3
  return [len(text) for text in completions]


def trl_with_columns(prompts, completions, difficulty, ground_truth, absent=None):
  assert difficulty == [1, 1, 1, 2, 2, 2] and ground_truth == ["4"] * 3 + ["6"] * 3 and absent is None
  return [len(text) for text in completions]


def trl_single(prompt, completion, difficulty):
  assert prompt == "ab"[difficulty - 1]
  return len(completion)


def verl(data_source, solution_str, ground_truth, extra_info=None):
  assert data_source == "mine" and ground_truth == {1: "4", 2: "6"}[extra_info["difficulty"]]
  return {"score": len(solution_str), "note": "a mapping with the score"}


def verl_lists(data_sources, solution_strs, ground_truths, extra_infos):
  return np.array([len(text) for text in solution_strs])


async def trl_async(completions, **_):
  await asyncio.sleep(0)
  return [len(text) for text in completions]


async def single_async(completion):
  await asyncio.sleep(0.01 / len(completion))
  return len(completion)


def lengths_of(responses):
  return [len(response.text) for response in responses]


def own(answers, grade):
  value_PG = np.array([lengths_of(responses) for responses in answers.response_PG], np.float32)
  return Graded(value_PG, np.ones_like(value_PG, bool), [[""] * 3] * 2)


@pytest.mark.parametrize(
  "function", [trl, trl_with_columns, trl_single, verl, verl_lists, trl_async, single_async, own]
)
def test_a_function_of_every_shape_pays(function):
  graded = paid(function)
  assert graded.value_PG.tolist() == LENGTHS and graded.value_PG.dtype == np.float32
  assert graded.scored_PG.all() and not any(map(any, graded.cause_PG))


def test_messages_are_what_conversational_functions_get():
  def conversational(prompts, completions):
    assert prompts[0][0] == {"role": "system", "content": "Be brief."}
    return [len(completion[0]["content"]) for completion in completions]

  assert paid(conversational, completions="messages").value_PG.tolist() == LENGTHS
  graded = paid(lambda completions: [len(completion[0]["content"]) for completion in completions])
  assert not graded.scored_PG.any()


def test_a_hint_names_the_key_for_messages(caplog):
  paid(lambda completions: [completion[0]["content"] for completion in completions])
  assert "config.rl.completions=messages" in caplog.text


def test_numbers_of_the_expression_reach_the_function():
  def capped(completions, limit, floor=0):
    return [max(min(len(text), limit), floor) for text in completions]

  expected = np.clip(LENGTHS, 2, 5)
  assert paid(capped, "given:it(limit=5, floor=2)").value_PG.tolist() == expected.tolist()
  with pytest.raises(InputError, match="has no parameter 'cap'"):
    paid(capped, "given:it(cap=5)")


@pytest.mark.parametrize(
  ("numbers", "words"), [("limit=1, limit=2", "given twice"), ("completion=1", "'completion' takes no number")]
)
def test_numbers_without_effect_are_refused(numbers, words):
  with pytest.raises(InputError, match=words):
    paid(lambda completion, limit: limit, f"given:it({numbers})")


def test_none_leaves_a_response_unscored():
  graded = paid(lambda completions: [None if "I" in text else 1 for text in completions])
  assert graded.scored_PG.tolist() == [[True, True, False], [True] * 3]
  assert graded.cause_PG[0] == ["", "", "abstained"]


def test_in_a_sum_the_other_parts_are_paid_where_a_function_abstains():
  def first_only(completions):
    return [2.0 if "boxed" in text else None for text in completions]

  def not_seven(completion):
    return None if completion == "7" else 1

  with named.given({"a": first_only, "b": not_seven}):
    graded, _ = expression.grade_terms(expression.parse("given:a + 10*given:b"), ANSWERS, None)
  assert graded.value_PG.tolist() == [[12, 10, 10], [10, 12, 0]]
  assert graded.scored_PG.tolist() == [[True] * 3, [True, True, False]]
  assert graded.cause_PG == [["", "", ""], ["", "", "abstained"]]
  with named.given({"a": first_only}):  # a product with it is left out as a whole
    graded, _ = expression.grade_terms(expression.parse("given:a*one_box + one_box"), ANSWERS, None)
  assert graded.value_PG.tolist() == [[3, 0, 0], [0, 3, 0]] and graded.scored_PG.all()


def test_a_value_that_is_not_finite_is_unscored():
  graded = paid(lambda completion: float("nan") if completion == "no" else True)
  assert graded.scored_PG.tolist() == [[True, False, True], [True] * 3] and graded.cause_PG[0][1] == "error"


@pytest.mark.parametrize("value", [10**400, 1e300, -float("inf")])
def test_a_value_too_large_for_a_reward_is_unscored(value):
  assert paid(lambda completion: value).cause_PG == [["error"] * 3] * 2


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_ends_a_process_or_a_task_is_an_error_of_the_row(error, is_async, caplog):
  def failing(completion):
    if completion == "no":
      raise error
    return 1

  async def failing_later(completion):
    return failing(completion)

  assert paid(failing_later if is_async else failing).cause_PG == [["", "raised", ""], [""] * 3]
  assert type(error).__name__ in caplog.text


def test_what_a_function_does_to_its_arguments_reaches_no_problem():
  problems = [dataclasses.replace(problem, extra={"numbers": [1]}, row={"tags": ["a"]}) for problem in PROBLEMS]

  def columns(completions, numbers, **others):
    for one in (*numbers, *others["tags"]):
      one.append(2)
    return [len(one) for one in numbers]

  def single(solution_str, extra_info):
    extra_info["numbers"].append(2)
    return len(extra_info["numbers"])

  for function in (columns, single):
    with named.given({"it": function}):
      graded, _ = expression.grade_terms(expression.parse("given:it"), ANSWERS._replace(problems=problems), None)
    assert graded.value_PG.tolist() == [[2] * 3] * 2
  assert [(problem.extra, problem.row) for problem in problems] == [({"numbers": [1]}, {"tags": ["a"]})] * 2


def test_a_column_that_some_rows_lack_is_none_there_and_kept_of_the_others():
  problems = [PROBLEMS[0], dataclasses.replace(PROBLEMS[1], extra={})]

  def lists(completions, difficulty=(9,) * 6):
    assert difficulty == [1, 1, 1, None, None, None]
    return [1] * len(completions)

  def single(completion, difficulty=9):
    return difficulty

  for function, expected in ((lists, [[1] * 3] * 2), (single, [[1] * 3, [9] * 3])):
    with named.given({"it": function}):
      graded, _ = expression.grade_terms(expression.parse("given:it"), ANSWERS._replace(problems=problems), None)
    assert graded.value_PG.tolist() == expected and graded.scored_PG.all()


@pytest.mark.parametrize("is_batched", [True, False])
def test_an_error_is_told_with_its_row_and_unscores_that_row_alone(is_batched, caplog):
  def single(completion):
    return 1 / (completion != "no")

  def batched(completions):
    return [single(text) for text in completions]

  graded = paid(batched if is_batched else single)
  assert graded.scored_PG.tolist() == [[True, False, True], [True] * 3]
  assert graded.cause_PG[0][1] == "raised" and graded.value_PG[graded.scored_PG].tolist() == [1.0] * 5
  for words in ("given:it", "1 of 6", "problem a, sample 1", "ZeroDivisionError", "test_functions.py:"):
    assert words in caplog.text


@pytest.mark.parametrize("is_async", [True, False])
def test_an_async_error_is_the_rows_alone(is_async):
  async def failing(completion):
    if completion == "no":
      raise ValueError("no")
    return 1

  async def failing_lists(completions):
    return [await failing(text) for text in completions]

  graded = paid(failing if is_async else failing_lists)
  assert graded.scored_PG.tolist() == [[True, False, True], [True] * 3]


@pytest.mark.parametrize(
  ("function", "words"),
  [
    (lambda completions: [1.0], ["returned 1 values for 6 responses", "problem a, sample 0"]),
    (lambda completions: 1.0, ["returned 1.0 (float) for 6 responses", "return a list"]),
    (lambda completions: "111111", ["(str)", "return a list"]),
    (lambda completions: [[1.0]] * 6, ["returned [1.0] (list) for problem a, sample 0", "return a number"]),
    (lambda completion: "1", ["returned '1' (str) for problem a, sample 0"]),
    (lambda completion: np.str_("1"), ["returned '1' (str) for problem a, sample 0"]),
    (lambda answers, grade: [1.0], ["return a Graded"]),
    (lambda answers, grade: answers.nothing, ["raised AttributeError", "test_functions.py:"]),
    (lambda texts: [1.0], ["(texts), which is no known shape", "completions"]),
    (lambda completions, completion_ids: [1.0], ["'completion_ids' is TRL's"]),
    (lambda solution_str, limit: 1.0, ["nothing fills its parameter 'limit'", "given:it(limit=1)"]),
    (3, ["is int, no function"]),
  ],
)
def test_what_is_no_reward_is_named(function, words):
  with pytest.raises(InputError, match="reward given:it") as error:
    paid(function)
  for word in words:
    assert word in str(error.value)


def test_columns_of_the_row_are_as_in_the_file_and_never_reach_the_verifier():
  row = {"answer": "2 + 2.\n#### 4", "hints": ["add"], "prompt": "not passed on", "difficulty": "of the file"}
  problems = [dataclasses.replace(problem, row=row) for problem in PROBLEMS]
  answers = ANSWERS._replace(problems=problems)

  def reward(completions, answer, hints, difficulty, ground_truth, **others):
    assert (answer[0], hints[0], difficulty, ground_truth[3]) == (row["answer"], ["add"], [1, 1, 1, 2, 2, 2], "6")
    assert "prompt" not in others and others["label"][0] == "4" and others["data_source"] == ["mine"] * 6
    return [0] * len(completions)

  def of_all(completions, **columns):
    assert columns["hints"] == [["add"]] * 6 and columns["answer"][5] == row["answer"]
    return [0] * len(completions)

  with named.given({"one": reward, "other": of_all}):
    terms = expression.parse("given:one + given:other")
    assert expression.own_columns(terms) == ("answer", "hints", "difficulty", "ground_truth", EVERY)
    assert expression.grade_terms(terms, answers, None)[0].scored_PG.all()
    assert expression.own_columns(expression.parse("verifiable + 0.5*random(0.5)")) == ()
  assert problems == PROBLEMS and logbook.digest(problems) == logbook.digest(PROBLEMS)
  with named.given({"one": lambda data_source, solution_str, ground_truth: float(data_source == "of the file")}):
    terms = expression.parse("given:one")
    assert expression.own_columns(terms) == ("data_source",)
    of_file = [dataclasses.replace(one, extra={}, row={"data_source": "of the file"}) for one in PROBLEMS]
    assert expression.grade_terms(terms, ANSWERS._replace(problems=of_file), None)[0].value_PG.all()


def test_a_missing_column_is_named_before_anything_runs():
  shape = functions.shape_of("my.py:f", lambda completions, hints: [])
  with pytest.raises(InputError, match="takes the column 'hints', which problem a lacks") as error:
    functions.check_columns("my.py:f", shape, PROBLEMS)
  assert "and the file has no column of this name; name one that it has" in str(error.value)
  assert "extra.hints=COLUMN" in str(error.value)
  functions.check_columns("my.py:f", functions.shape_of("f", lambda completions, difficulty: []), PROBLEMS)


# Where functions are found


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "limits.py").write_text("LIMIT = 4\n")
  (tmp_path / "my-rewards.py").write_text(
    "import limits\n\n\ndef brief(completions, **columns):\n  return [len(c) < limits.LIMIT for c in completions]\n\n\n"
    "brief.binary = True\n"
  )
  (tmp_path / "a b").mkdir()
  (tmp_path / "a b" / "other.py").write_text("def brief(completion):\n  return 2\n")
  return tmp_path


def test_files_modules_and_quoted_paths_are_combined(folder, monkeypatch):
  monkeypatch.syspath_prepend(folder)
  (folder / "package_of_mine").mkdir()
  (folder / "package_of_mine" / "style.py").write_text("def plain(completion):\n  return '\\\\' not in completion\n")
  text = "my-rewards.py:brief - 0.5*package_of_mine.style:plain + 'a b/other.py:brief'*random(1)"
  graded, parts = expression.grade_terms(expression.parse(text), ANSWERS, None)
  brief = np.array(LENGTHS) < 4
  plain = np.array(["\\" not in text for row in TEXTS for text in row]).reshape(2, 3)
  np.testing.assert_allclose(graded.value_PG, brief - 0.5 * plain + 2)
  assert list(parts) == ["my-rewards.brief", "plain", "other.brief", "random(1.0)"]


@pytest.mark.parametrize(("one", "other"), [("x/my.py", "y/my.py"), ("x.my", "y.my"), ("x.my", "x.our")])
def test_functions_of_one_name_have_titles_of_their_own(folder, monkeypatch, one, other):
  monkeypatch.syspath_prepend(folder)
  for file in ("x/my.py", "y/my.py", "x/our.py"):
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("def brief(completion):\n  return 2\n")
  titles = expression.titles(expression.parse(f"{one}:brief + {other}:brief + {one}:brief"))
  expected = {"x/my.py": "x.my.brief", "y/my.py": "y.my.brief", "x.my": "x.my.brief", "y.my": "y.my.brief"}
  assert list(titles.values()) == (["my.brief", "our.brief"] if other == "x.our" else [expected[one], expected[other]])


def test_attributes_say_that_a_function_is_binary(folder):
  assert expression.is_binary(expression.parse("my-rewards.py:brief*verifiable"))
  assert not expression.is_binary(expression.parse("'a b/other.py:brief'"))


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("none.py:brief", "no such file"),
    ("my-rewards.py:bref", "did you mean brief?"),
    ("no_such_package_here:brief", "can't be imported: ModuleNotFoundError"),
    ("given:brief", "was passed from Python"),
  ],
)
def test_names_that_lead_nowhere_say_so(folder, text, words):
  with pytest.raises(InputError, match=words):
    expression.parse(text)


def test_a_file_that_fails_is_told_with_its_line(folder):
  (folder / "bad.py").write_text("x = 1\nx / 0\n")
  with pytest.raises(InputError, match=r"bad.py can't be run: ZeroDivisionError: division by zero \(.*bad.py:2\)"):
    expression.parse("bad.py:f")


def test_a_changed_file_is_run_again_and_its_sources_differ(folder):
  before = named.sources("my-rewards.py:brief")
  assert named.load("my-rewards.py:brief") is named.load("my-rewards.py:brief")
  (folder / "limits.py").write_text("LIMIT = 2 + 3\n")
  assert named.sources("my-rewards.py:brief") != before
  assert named.load("my-rewards.py:brief")(["four", "12345"]) == [True, False]
  (folder / "my-rewards.py").write_text("def brief(completion):\n  return 1\n")
  assert list(inspect.signature(named.load("my-rewards.py:brief")).parameters) == ["completion"]


def test_a_run_keeps_the_code_that_it_began_with(folder):
  def brief():
    return named.load("my-rewards.py:brief")

  first, second = named.held(), named.held()
  with first:
    before = brief()
    (folder / "my-rewards.py").write_text("def brief(completion):\n  return 1\n")
    assert brief() is before
    second.__enter__()
    after = brief()
    assert after is not before
    (folder / "my-rewards.py").unlink()
  assert brief() is after
  second.__exit__(None, None, None)
  with pytest.raises(InputError, match="no such file"):
    brief()


def test_files_in_two_folders_import_what_lies_beside_them(folder):
  for name in "ab":
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "limits.py").write_text(f"NAME = '{name}'\n")
    (folder / name / "mine.py").write_text("import limits\n\n\ndef who(completion):\n  return limits.NAME\n")
  assert [named.load(f"{name}/mine.py:who")("") for name in "aba"] == ["a", "b", "a"]
  (folder / "a" / "limits.py").write_text("NAME = 'other'\n")
  assert [named.load(f"{name}/mine.py:who")("") for name in "ba"] == ["b", "other"]
  assert named.load("my-rewards.py:brief")(["abc", "four"]) == [True, False]


def test_a_file_is_found_in_the_folders_to_search(folder, tmp_path_factory, monkeypatch):
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  monkeypatch.setattr(named, "_folders", [])
  with pytest.raises(InputError, match="no such file"):
    named.load("my-rewards.py:brief")
  named.search_in(folder)
  assert named.absolute("my-rewards.py:brief") == f"{folder}/my-rewards.py:brief"
