"""Templates that open `<think>` themselves: what is read of a response is as if the policy had written the tag."""

import itertools

import numpy as np
import pytest
from test_hf import START, TURNS, make
from test_models import model, run
from test_reward import problem

from jaxrlvr import logbook, reward
from jaxrlvr.stages.rollout import with_opening
from jaxrlvr.text.answer import FORMATS, OPEN, parse
from jaxrlvr.verify.service import Service

WRITTEN = [
  "7+5=12\n2*3=6\n</think>\n\\boxed{6}",
  "\nso\n</think>\n\\boxed{4}",
  "so \\boxed{6}",
  "</think>\\boxed{6}",
  "a</think>b</think>\\boxed{4}",
  "",
]


@pytest.mark.parametrize("opening", ["<think>", "<think>\n", "<think>\nOkay, "])
def test_a_tag_of_the_template_is_read_as_one_of_the_policy(opening):
  behind_template = [with_opening(text, opening) for text in WRITTEN]
  by_policy = [with_opening(opening + text, "") for text in WRITTEN]
  doubled = [with_opening(opening + text, opening) for text in WRITTEN]
  assert behind_template == by_policy == doubled
  assert [parse(text, "boxed").answer for text in by_policy] == ["6", "4", None, "6", "4", None]
  responses = [parse(text, "boxed") for text in behind_template]
  assert [FORMATS["thinking_format"](one) for one in responses] == [True, True, False, True, True, False]
  shape = np.arange(len(WRITTEN))[None]
  given = reward.Answers([problem("a", "4")], [responses], {}, shape)
  with Service(workers=1) as service:
    voted, _ = reward.evaluate(reward.parse("majority_vote_thinking"), given, service.grade)
  assert voted.value_PG.tolist() == [[1, 0, 0, 1, 0, 0]]  # a tie of 6 and 4: the first


def test_an_evaluation_behind_such_a_template(tmp_path):
  source = model(tmp_path / "hf", style="chatml")
  options = ("--config.rl.prompt_tokens=128", "--config.rl.response_tokens=8", "--config.evaluate.samples=2",
             "--config.evaluate.pass_k=1,", "--config.heldout.count=8")  # fmt: skip
  texts = {}
  for name, template in (("plain", TURNS + START), ("opened", TURNS + START + "{{ '<think>\n' }}")):
    make(source, "chatml", chat_template=template)
    workdir = tmp_path / name
    assert run("evaluate", "--config=smoke", f"--workdir={workdir}", f"--config.model.path={source}", *options) == 0
    rows = logbook.read_jsonl(workdir / "evals" / "heldout_000000.jsonl")
    texts[name] = [row["text"] for row in rows]
  assert not any(text.startswith(OPEN) for text in texts["plain"])
  assert all(text.startswith("<think>\n") and text.count(OPEN) == 1 for text in texts["opened"])
  assert len(set(itertools.chain(*texts.values()))) > 16  # they go on in different ways
