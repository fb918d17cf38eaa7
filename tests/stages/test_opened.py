"""Chat templates that open `<think>` themselves: responses are read as if the policy had written the tag."""

import dataclasses
import json

import numpy as np
import pytest

from helpers.command_line import run
from helpers.hf_directories import PADDED, SPECS, TURNS, USER, tensors_of, write_tokenizer, write_weights
from jaxrlvr.base import logbook
from jaxrlvr.base.types import Problem
from jaxrlvr.data import prepared
from jaxrlvr.grading.service import Service
from jaxrlvr.rewards import expression
from jaxrlvr.rewards.types import Answers
from jaxrlvr.stages.rollout import with_opening
from jaxrlvr.text.answer import FORMATS, parse_response
from jaxrlvr.text.hf_tokenizer import HuggingFace

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
  assert [parse_response(text, "boxed").answer for text in by_policy] == ["6", "4", None, "6", "4", None]
  responses = [parse_response(text, "boxed") for text in behind_template]
  assert [FORMATS["thinking_format"](one) for one in responses] == [True, True, False, True, True, False]
  shape = np.arange(len(WRITTEN))[None]
  four = Problem("a", ({"role": "user", "content": "a"},), "4", "4", "arithmetic")
  answers = Answers([four], [responses], {}, shape)
  with Service(workers=1) as service:
    voted, _ = expression.grade_terms(expression.parse("majority_vote_thinking"), answers, service.grade)
  assert voted.value_PG.tolist() == [[1, 0, 0, 1, 0, 0]]  # a tie of 6 and 4: the first


HEAD = TURNS + "{{ '<|im_start|>assistant' }}"
SAID = "<think>\n12*7=84</think>\\boxed{4}"


@pytest.fixture(scope="module")
def certain(tmp_path_factory):
  """A model in which every token determines the next: it writes one response, from wherever the prompt ends."""
  folder, spec = tmp_path_factory.mktemp("certain"), SPECS["llama"]
  spec = dataclasses.replace(spec, vocab=PADDED, width=16, head_dim=4)
  write_tokenizer(folder, chat_template=HEAD)
  tokenizer = HuggingFace(folder)
  ids = [tokenizer.render(USER)[-1], *tokenizer.encode(SAID), tokenizer.eos_ids[0]]
  assert len(ids) == len(set(ids)) <= spec.width + 1
  tensors = {name: np.zeros_like(w) + name.endswith("norm.weight") for name, w in tensors_of(spec).items()}
  tensors["model.embed_tokens.weight"][ids[:-1], np.arange(len(ids) - 1)] = 1
  tensors["lm_head.weight"][ids[1:], np.arange(len(ids) - 1)] = 10
  write_weights(folder, spec, {name: w.astype(np.float32) for name, w in tensors.items()})
  asked = {
    "Start with 12, then *7. Last digit?": "4",
    "Start with 12, then *7, +9. Last digit?": "3",
    "Start with 3, then +1. Last digit?": "4",
    "Start with 8, then -7. Last digit?": "1",
  }
  problems = [Problem(text, ({"role": "user", "content": text},), a, a, "arithmetic") for text, a in asked.items()]
  prepared.save(folder / "problems.jsonl", problems)
  return folder


def test_a_diagnosis_is_the_same_whoever_writes_the_tag(certain, tmp_path):
  options = (
    "--config.rl.prompt_tokens=128",
    "--config.rl.response_tokens=24",
    "--config.problems.count=0",
    "--config.diagnose.problems=4",
    "--config.diagnose.samples=4",
    "--config.judge.problems=4",
    f"--config.problems.source={certain / 'problems.jsonl'}",
    f"--config.model.path={certain}",
  )
  diagnoses = []
  for name, end in (("plain", ""), ("opened", "{{ '<think>\n' }}")):
    write_tokenizer(certain, chat_template=HEAD + end)
    workdir = tmp_path / name
    assert run("diagnose", "--config=smoke", f"--workdir={workdir}", *options) == 0
    rows = [row for file in (workdir / "rows").iterdir() for row in logbook.read_jsonl(file)]
    assert {one["text"] for row in rows for one in row["responses"]} == {SAID}
    diagnoses.append(json.loads((workdir / "diagnosis.json").read_text()))
  plain, opened = (one["figures"] for one in diagnoses)
  assert plain["avg@4"] == plain["vote_right"] == plain["F(1)/correct"] == 0.5
  assert {name for name in plain if plain[name] != opened[name]} == {"mean_length"}  # the tag is the prompt's
  assert diagnoses[0]["predictions"] == diagnoses[1]["predictions"]
