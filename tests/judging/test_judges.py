"""Judges: what they are asked, what they keep, and what is known without asking."""

import pytest

from helpers.judging import HOSTILE, ONE, fenced
from jaxrlvr.base import logbook
from jaxrlvr.base.errors import StorageError
from jaxrlvr.judging import judges, rubric
from jaxrlvr.judging.judges import Settings
from jaxrlvr.judging.rubric import Response
from jaxrlvr.tasks.arithmetic import problems as arithmetic


def told(pairs):
  """Returns (complete, prompts): a complete() that answers by {part of a prompt: reply}, and the prompts it got."""
  asked = []

  def complete(prompts):
    for prompt in prompts:
      asked.append(prompt)
      yield next((reply.replace("MARK", fenced(prompt)[0]) for part, reply in pairs.items() if part in prompt), None)

  return complete, asked


def test_cache(tmp_path):
  complete, asked = told({"alpha": "VERDICT MARK: 0.5", "beta": "no idea"})
  items = [Response("q", "alpha"), Response("q", "beta"), Response("q", "gamma"), Response("q", "alpha")]

  def judge(identity="m"):
    asked.clear()
    asking = judges.from_completion(complete, identity, tmp_path)
    return asking.faithfulness(items), len(asked), asking.counts["cached"], asking.counts["missing"]

  want = [0.5, None, None, 0.5]
  assert judge() == (want, 3, 0, 2)  # equal texts are asked about once
  assert judge() == (want, 2, 1, 2)  # what gave no label is asked again
  (file,) = tmp_path.iterdir()
  whole = file.read_text()
  for torn in ("", whole[: len(whole) // 2], "[]", '{"label": 7}', '{"label": true}', '{"label": "0.5"}', "\x00"):
    file.write_text(torn)
    assert judge() == (want, 3, 0, 2) and file.read_text() == whole, torn
  file.write_text('{"label": 1}')
  assert judge()[0] == [1, None, None, 1]
  assert judge("other model") == (want, 3, 0, 2) and len(list(tmp_path.iterdir())) == 2
  (taken := tmp_path / "taken").touch()
  with pytest.raises(StorageError, match="taken: can't keep a label .*config.judge.cache"):
    judges.from_completion(complete, "m", taken).faithfulness(items)


def test_strategies_of_equal_texts_are_not_asked_about(tmp_path):
  complete, asked = told({"alpha": "VERDICT MARK: different"})
  judge = judges.from_completion(complete, "m", tmp_path)
  a, b = Response("q", "alpha"), Response("q", "beta")
  assert judge.same_strategy([(a, a), (a, b), (b, b), (a, b)]) == [True, False, True, False] and len(asked) == 1


def test_exact_judge_knows_its_domain_only():
  judge = judges.JUDGES["exact"](Settings())
  p = arithmetic.problem(0, "train", 3, 0)
  question, tree = p.messages[-1]["content"], p.extra["tree"]
  careful, direct = Response(question, arithmetic.careful(tree)), Response(question, arithmetic.direct(tree))
  assert judge.faithfulness([careful, direct, ONE]) == [1.0, 0.0, None]
  assert judge.same_strategy([(careful, careful), (careful, direct), (ONE, ONE._replace(text="2"))]) == [
    True,
    False,
    None,
  ]


def test_replay(tmp_path):
  file = tmp_path / "v.jsonl"
  other = ONE._replace(text="Two.")
  rows = [("faithfulness", (ONE,), 1), ("faithfulness", (other,), None), ("strategy", (ONE, other), False)]
  rows.append(("faithfulness", (ONE,), None))  # asked again at another step, without an answer
  logbook.write_jsonl(file, ({"key": rubric.key(task, q), "label": v} for task, q, v in rows))
  judge = judges.JUDGES["replay"](Settings(file=str(file)))
  assert judge.faithfulness([ONE, other, ONE._replace(text="3")]) == [1.0, None, None]
  assert judge.same_strategy([(ONE, other), (other, ONE)]) == [False, None]
  for text, words in ((None, "is no file"), ("{}\n", "each row has"), ("{\n", "is no file of labels")):
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(judges.InputError, match=words):
      judges.JUDGES["replay"](Settings(file=str(file)))


def test_the_hostile_are_judged_like_others(tmp_path):
  """Every odd text makes a prompt, a key and a cached label."""
  judge = judges.from_completion(lambda prompts: [f"VERDICT {fenced(p)[0]}: 0" for p in prompts], "m", tmp_path)
  items = [Response(text, other) for text in HOSTILE for other in HOSTILE]
  assert judge.faithfulness(items) == [0.0] * 25 == judge.faithfulness(items) and judge.counts["cached"] == 25
