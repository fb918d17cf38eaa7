"""Verifiers and tasks of a user's own: what they get, where they run, and what is told when they fail."""

import itertools

import pytest

from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Verdict
from jaxrlvr.data import corpus
from jaxrlvr.data import problems as lists
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.rewards.verifiable import labels_right
from jaxrlvr.tasks import own
from jaxrlvr.tasks.table import verifier_of
from jaxrlvr.text.answer import parse_response

TASK = """
import itertools

SHIFT = {shift}


def problems(seed):
  for number in itertools.count(seed):
    yield {{"prompt": f"What is {{number}} + 1?", "label": number + 1, "start": number}}


def verify(answer, label, extra):
  if answer == "hang":
    while True:
      pass
  if answer == "abstain":
    return None
  return int(answer) == extra["start"] + SHIFT


def faithfulness(trace, answer):
  return None if trace is None else float(answer in trace)


def corpus(seed):
  return [f"text {{seed}}", "text b"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "next_number.py").write_text(TASK.format(shift=1))
  return tmp_path


def jobs(*answers, verifier="next_number.py:verify", start=3):
  return [Job(verifier, parse_response(f"\\boxed{{{one}}}", "boxed"), "4", {"start": start}) for one in answers]


def load(count=20, split="train", **changes):
  settings = dict(split=split, count=count, levels=(1,), kinds=(), seed=5, verifier="auto") | changes
  return lists.load("next_number.py", **settings)


def test_a_task_gives_problems_that_its_verifier_grades(folder):
  problems = load()
  assert problems[0].messages == ({"role": "user", "content": problems[0].messages[0]["content"]},)
  assert {problem.verifier for problem in problems} == {"next_number.py:verify"}
  assert problems[0].extra["start"] + 1 == int(problems[0].label) == int(problems[0].truth)
  with Service(workers=1, wall_seconds=5) as service:
    assert service.unreadable_answers(problems[:3]) == []
    assert set(labels_right(problems[:3], service.grade).values()) == {1.0}


def test_splits_share_no_problem_and_longer_lists_begin_with_shorter_ones(folder):
  train, heldout = load(60), load(10, "heldout")
  assert not {one.id for one in train} & {one.id for one in heldout}
  assert load(20) == train[:20]
  assert load(2, system="Be brief.")[0].messages[0] == {"role": "system", "content": "Be brief."}


def test_verdicts_come_from_workers_that_can_be_killed(folder, caplog):
  with Service(workers=2, cpu_seconds=0.5, wall_seconds=3) as service:
    verdicts = service.grade(
      [*jobs("4", "5", "hang", "abstain", "four"), Job("next_number.py:verify", parse_response("no", "boxed"), "4")]
    )
  assert verdicts == [
    Verdict(1.0),
    Verdict(0.0),
    Verdict(None, "timeout"),
    Verdict(None, "abstained"),
    Verdict(None, "error"),
    Verdict(0.0, "unparseable"),
  ]
  assert len(caplog.records) == 1 and "raised for 1 different responses" in caplog.text
  assert "'four' against the label '4': ValueError: invalid literal for int()" in caplog.text
  assert "next_number.py:18" in caplog.text


def test_a_verifier_that_only_the_host_can_import_is_told_with_its_line(folder, monkeypatch):
  (folder / "key.py").write_text(
    "import os\n\nKEY = os.environ['KEY_OF_MINE']\n\n\ndef check(answer, label):\n  return 1\n"
  )
  monkeypatch.setenv("KEY_OF_MINE", "1")
  with Service(workers=1) as service, pytest.raises(InputError, match=r"KeyError: 'KEY_OF_MINE' \(.*key.py:3\)"):
    service.grade(jobs("4", verifier="key.py:check"))


def test_a_worker_that_is_replaced_does_not_grade_by_other_code(folder):
  with Service(workers=1, cpu_seconds=0.5, wall_seconds=3) as service:
    assert service.grade(jobs("4")) == [Verdict(1.0)]
    (folder / "next_number.py").write_text(TASK.format(shift=22))
    assert service.grade(jobs("5")) == [Verdict(0.0)]  # by the code that the worker has
    service.close()
    with pytest.raises(InputError, match="its code was changed while it was at work; restore it"):
      service.grade(jobs("6"))


def test_an_object_passed_from_python_is_sent_to_the_workers():
  offset = 1

  def check(solution_str, ground_truth, extra_info, data_source):
    return {"score": str(offset + extra_info["start"]) in solution_str and ground_truth == "4" and data_source == ""}

  with named.given({"check": check}), Service(workers=1) as service:
    verdicts = service.grade(jobs("4", "5", verifier="given:check"))
  assert [verdict.score for verdict in verdicts] == [1.0, 0.0]


def test_a_module_is_found_by_workers_in_any_folder(folder, tmp_path_factory, monkeypatch):
  (folder / "some_package").mkdir()
  (folder / "some_package" / "checks.py").write_text("def same(answer, label):\n  return answer == label\n")
  monkeypatch.syspath_prepend(folder)
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  with Service(workers=1) as service:
    assert service.grade(jobs("4", verifier="some_package.checks:same")) == [Verdict(1.0)]


def test_a_changed_file_makes_another_verifier(folder):
  before = verifier_of("strict", "next_number.py:verify")
  assert verifier_of("study", "next_number.py:verify") is before
  (folder / "next_number.py").write_text(TASK.format(shift=22))
  assert verifier_of("strict", "next_number.py:verify").function("25", "4", {"start": 3}) == Verdict(1.0)


def test_the_judge_beside_a_verifier_says_how_faithful_a_response_is(folder):
  judge = verifier_of("strict", "next_number.py:verify").faithfulness
  assert judge(parse_response("<think>3 + 1 is 4</think>\\boxed{4}", "boxed"), "?").label == 1.0
  assert judge(parse_response("<think>3 + 1</think>\\boxed{4}", "boxed"), "?").label == 0.0
  assert judge(parse_response("\\boxed{4}", "boxed"), "?") is None
  assert judge(parse_response("<think>3</think>no", "boxed"), "?") is None  # it raises TypeError


def test_a_corpus_begins_again_when_it_ends(folder):
  texts = corpus.TaskTexts("next_number.py", seed=7)
  assert [texts(number).text for number in (0, 1, 2, 3)] == ["text 7", "text b"] * 2


def test_an_endless_corpus_is_read_as_far_as_it_is_asked_for():
  class Endless:
    problems = staticmethod(lambda: [])
    verify = staticmethod(lambda answer, label: True)
    corpus = staticmethod(lambda: map(str, itertools.count()))

  with named.given({"endless": Endless}):
    assert corpus.TaskTexts("given:endless", 0)(100).text == "100"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def verify(answer, label): pass", "has no function problems"),
    ("def problems(): pass", "has no function verify"),
    (
      "def problems(): return 3\ndef verify(answer, label): pass",
      "problems() raised TypeError: 'int' object is not it",
    ),
    ("def problems(): return [3]\ndef verify(answer, label): pass", "problems() yielded 3; yield mappings"),
    ("def problems(): yield {}['a']\ndef verify(answer, label): pass", "problems() raised KeyError: 'a'"),
    (
      "def problems(): return [dict(prompt='a', label='b', when={1})]\ndef verify(answer, label): pass",
      "further entries that are no JSON",
    ),
    (
      "from jaxrlvr.base.types import Problem\n"
      "def problems(): return [Problem('a', ({'role': 'user', 'content': 'a'},), '', '', 'math', dict(when={1}))]\n"
      "def verify(answer, label): pass",
      "further entries that are no JSON",
    ),
    ("def problems(): return [dict(prompt='a', label='b')] * 9\ndef verify(answer, label): pass", "20 were asked for"),
    *(
      (f"def problems(): return [dict(prompt={prompt}, label={label})]\ndef verify(answer, label): pass", words)
      for prompt, label, words in (
        ("'a'", "None", "a label is not None"),
        ("None", "'b'", "{'prompt': None, 'label': 'b'}; a prompt is a text, or a list of messages"),
        ("['a']", "'b'", "a prompt is a text, or a list of messages"),
        ("[dict(content='a')]", "'b'", "a prompt is a text, or a list of messages"),
        ("[]", "'b'", "a prompt is a text, or a list of messages"),
      )
    ),
    (
      "def problems(): return [dict(prompt=a, label=a, id=1) for a in 'ab']\ndef verify(answer, label): pass",
      "two problems with the id '1'",
    ),
    ("def problems(): raise SystemExit(3)\ndef verify(answer, label): pass", "problems() raised SystemExit: 3"),
    ("def problems(): pass\ndef verify(guess, label): pass", "has the parameters (guess, label); name them answer"),
    ("def problems(): pass\ndef verify(answer, text): pass", "not both"),
  ],
)
def test_what_is_no_task_is_named(folder, text, words):
  (folder / "next_number.py").write_text(text)
  with pytest.raises(InputError, match="next_number.py") as error:
    load()
  assert words in str(error.value)


@pytest.mark.parametrize("result", [2, -0.5, "yes", [1]])
def test_a_verifier_that_returns_no_verdict_raises(result):
  with named.given({"it": lambda answer, label: result}), pytest.raises(TypeError, match="given:it returned"):
    own.scorer("given:it").function("4", "4", {})


def test_what_is_a_task_is_told_from_data_sets():
  for source in ("my.py", "/a/b.py", "my.py:TASK", "pack.mod:TASK", "given:task"):
    assert own.is_task(source), source
  for source in (
    "arithmetic",
    "openai/gsm8k:main",
    "scp-116k:/a",
    "tfds:gsm8k",
    "a.jsonl",
    "/a/b",
    "skywork-or1:folder/x",
  ):
    assert not own.is_task(source), source
