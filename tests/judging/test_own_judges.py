"""Judges of a user's own: how they are called, what they may return, and what is known of their labels."""

import asyncio
from pathlib import Path

import pytest

from helpers.judging import ONE, fenced, honest
from jaxrlvr.base import named
from jaxrlvr.base.errors import InputError
from jaxrlvr.judging import judges, own
from jaxrlvr.judging.judges import Settings
from jaxrlvr.judging.rubric import Response
from jaxrlvr.tasks.arithmetic import problems as arithmetic

PROBLEM = arithmetic.problem(0, "train", 3, 0)
CAREFUL, DIRECT = (
  Response(PROBLEM.messages[-1]["content"], write(PROBLEM.extra["tree"]))
  for write in (arithmetic.careful, arithmetic.direct)
)
MORE = ONE._replace(text="Two.", answer="2")


def judge_of(tmp_path, function, concurrency=4):
  """Returns the judge of a function that is passed from Python."""
  with named.given({"mine": function}):
    return own.judge_of("given:mine", tmp_path / "cache", concurrency)


async def honest_later(prompt):
  await asyncio.sleep(0)
  return honest(prompt)


@pytest.mark.parametrize(
  "model",
  [
    lambda prompts: [honest(one) for one in prompts],
    lambda prompt, temperature=0: honest(prompt),
    lambda prompt: honest_later(prompt),
  ],
)
def test_a_function_of_prompts_judges_as_a_model_does(tmp_path, model):
  judge = judge_of(tmp_path, model)
  assert judge.faithfulness([CAREFUL, DIRECT]) == [1.0, 0.0]
  assert judge.same_strategy([(CAREFUL, DIRECT)]) == [False] and judge.counts["calls"] == 3
  again = judge_of(tmp_path, model)
  assert again.faithfulness([DIRECT, CAREFUL]) == [0.0, 1.0] and again.counts["calls"] == 0


def test_lists_hold_at_most_so_many_prompts_and_one_that_raises_is_repeated_alone(tmp_path, caplog):
  sizes = []

  def model(prompts):
    sizes.append(len(prompts))
    if any("BROKEN" in prompt for prompt in prompts):
      raise ValueError("no idea")
    return [f"VERDICT {fenced(prompt)[0]}: 1" for prompt in prompts]

  judge = judge_of(tmp_path, model, concurrency=2)
  texts = ("a", "b", "BROKEN", "c", "d")
  assert judge.faithfulness([Response("q", text) for text in texts]) == [1.0, 1.0, None, 1.0, 1.0]
  assert sizes == [2, 2, 1, 1, 1] and judge.counts["missing"] == 1
  assert "raised for 1 of 5 prompts, whose labels are missing; the first: ValueError: no idea" in caplog.text


def test_labels_of_other_code_are_not_used(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for label in ("1", "0.5", "1"):
    Path("mine.py").write_text(
      "import re\n\n\ndef model(prompt):\n  mark = re.search(r'VERDICT (\\w+): WORD', prompt)[1]\n"
      f"  return f'VERDICT {{mark}}: {label}'\n"
    )
    judge = own.judge_of("mine.py:model", tmp_path / "cache", 1)
    assert judge.faithfulness([ONE]) == [float(label)]
  assert judge.counts["cached"] == 1 and len(list((tmp_path / "cache").iterdir())) == 2


class ByHand:
  def faithfulness(self, answer, prompt):
    return 1 if answer == "2" and prompt == "What is 1+1?" else "no"

  def strategy(self, first, second, question):
    return None if question != "What is 1+1?" else len(first) == len(second)


def test_an_object_labels_itself_and_is_not_asked_what_it_does_not_know(tmp_path, caplog):
  judge = judge_of(tmp_path, ByHand)
  assert judge.faithfulness([MORE, ONE]) == [1.0, None]
  assert "returned 'no'; return 1, 0.5, 0 or None" in caplog.text
  assert judge.same_strategy([(MORE, ONE), (MORE, MORE._replace(text="2222"))]) == [False, True]
  assert judge.knows("strategy", ONE) and judge.knows("faithfulness", ONE)
  judge = judge_of(tmp_path, lambda question, response: 0.5 if question in response else None)
  assert judge.faithfulness([Response("a", "ab"), Response("b", "a")]) == [0.5, None]
  assert not judge.knows("strategy", ONE)
  assert judge_of(tmp_path, lambda text: 0.7).faithfulness([ONE]) == [None]


@pytest.mark.parametrize(
  ("thing", "words"),
  [
    (3, "judge given:mine: is int, without functions faithfulness or strategy"),
    (
      lambda first, second: True,
      r"has the parameters \(first, second\), which is no known shape; name them \(prompts\)",
    ),
    (lambda text, temperature: 1, "nothing fills its parameter 'temperature'"),
    (type("J", (), {"strategy": lambda self, first: True}), "J?.*strategy: has the parameters .first.; it takes two"),
  ],
)
def test_what_is_no_judge_is_refused(tmp_path, thing, words):
  with pytest.raises(InputError, match=words):
    judge_of(tmp_path, thing)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (lambda prompts: "VERDICT", "returned 'VERDICT' for 1 prompts; return a list of texts"),
    (lambda prompts: [], "returned 0 replies to 1 prompts"),
    (lambda prompt: 1.0, r"returned 1.0 \(float\) for a prompt; return the text"),
  ],
)
def test_wrong_replies_are_errors(tmp_path, model, words):
  with pytest.raises(InputError, match=words):
    judge_of(tmp_path, model).faithfulness([ONE])


def test_the_exact_judge_uses_the_functions_of_a_task(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  verify = "def verify(answer, label):\n  return answer == label\n\n\n"
  faithfulness = "def faithfulness(answer, question):\n  return float(answer in question)\n\n\n"
  strategy = "def strategy(a, b):\n  return a[:1] == b[:1]\n"
  Path("none.py").write_text(verify)
  Path("half.py").write_text(verify + faithfulness)
  Path("whole.py").write_text(verify + faithfulness + strategy)
  judge = judges.JUDGES["exact"](Settings())

  def labels(file):
    first, second = (Response("1+1", text, "1", f"{file}:verify") for text in ("so 1", "thus 1"))
    knows = [judge.knows(task, first) for task in ("faithfulness", "strategy")]
    return judge.faithfulness([first]), judge.same_strategy([(first, second)]), knows

  assert labels("whole.py") == ([1.0], [False], [True, True])
  assert labels("half.py") == ([1.0], [None], [True, False])
  assert labels("none.py") == ([None], [None], [True, True])  # asked, and missing
  with pytest.raises(InputError, match="gone.py: no such file"):
    labels("gone.py")
