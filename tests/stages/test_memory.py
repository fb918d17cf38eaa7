"""What the user learns before a run begins: memory, microbatches, the longest prompt, the amount of text."""

import dataclasses
import logging

import numpy as np
import pytest
import tokenizers

from helpers.command_line import QUICK, rollouts, run_smoke
from helpers.hf_directories import STYLES, USER, write_tokenizer
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.device import sharding
from jaxrlvr.judging import judges, rubric
from jaxrlvr.sampling.types import Sampling
from jaxrlvr.stages import memory
from jaxrlvr.stages.rollout import transcript
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.hf_tokenizer import HuggingFace

S = Sampling(group=4, max_tokens=256, eos_ids=(1,))


def test_what_sampling_takes_is_counted(spec):
  """A response token takes 16 keys and values in each of 2 layers, in float32, and five figures; prompts add to it."""
  slot = 2 * 2 * 2 * 4 * 4
  fixed = 3 * 8 * slot + 12 * (256 * 20 + 4 * 24)
  assert memory.sampling_bytes(spec, S, problems=3, prompt_tokens=8) == (
    fixed + 12 * 64 * slot,
    fixed + 12 * 256 * slot,
  )
  half = dataclasses.replace(spec, dtype="bfloat16")
  assert memory.sampling_bytes(half, S, 3, 8).most - fixed == 12 * 256 * slot // 2 - 3 * 8 * slot // 2


def test_more_than_is_free_is_refused_with_the_numbers(spec, caplog):
  mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
  free = memory.free_bytes(mesh)
  assert 1 << 28 < free < 1 << 44
  words = dict(activity="sampling", keys_to_lower="a key")
  memory.check_fits(S, 3, 8, spec=spec, mesh=mesh, **words)
  assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
  long = dataclasses.replace(S, max_tokens=10**9)
  with pytest.raises(
    InputError, match=r"sampling takes up to [\d.]+ GB: 3 problems x 4 responses.*GB are free; lower a"
  ):
    memory.check_fits(long, 3, 8, spec=spec, mesh=mesh, **words)


def test_a_million_tokens_are_refused_before_anything_is_allocated(tmp_path, init, capsys):
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK | dict(rl__response_tokens=100_000_000)) == 2
  stderr = capsys.readouterr().err
  assert "up to 100000000 tokens (config.rl.response_tokens)" in stderr and "config.rl.sample_parts" in stderr
  assert not (tmp_path / "rl" / "manifest.json").exists()


@pytest.mark.parametrize(
  ("keys", "numbers"),
  [
    ({"rl.group_size": "2", "rl.problems_per_step": "32", "rl.microbatches": "3"}, ("= 32)", "= 2,", "= 3;")),
    ({"rl.problems_per_step": "9", "rl.sample_parts": "2", "rl.microbatches": "1"}, ("= 9 ", "= 2;")),
    ({"rl.problems_per_step": "9", "rl.minibatch_problems": "4"}, ("= 9 ", "= 4;")),
    ({"sft.rows": "9", "sft.microbatches": "2"}, ("= 9 ", "= 2;")),
  ],
)
def test_sizes_that_do_not_divide_are_told_with_their_numbers(keys, numbers):
  with pytest.raises(InputError) as error:
    configs.load("base", keys)
  assert all(number in str(error.value) for number in numbers)


def test_the_longest_prompt_is_named_with_what_fits_all(tmp_path, init, capsys):
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK, rl__prompt_tokens=4) == 2
  stderr = capsys.readouterr().err
  tokens = int(stderr.partition("config.rl.prompt_tokens=")[2].partition(" ")[0])
  assert f"has {tokens} tokens" in stderr and tokens > 4
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK, rl__prompt_tokens=tokens - 1) == 2
  assert f"has {tokens} tokens" in capsys.readouterr().err
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK, rl__prompt_tokens=tokens, heldout__source="/nowhere") == 2
  assert "config.heldout: /nowhere" in capsys.readouterr().err  # which is read behind the problems


def test_the_prompt_is_recorded_as_the_model_sees_it(tmp_path, init):
  file = tmp_path / "problems.jsonl"
  file.write_text('{"q": "1+1?", "a": "2"}\n{"q": "2+2?", "a": "4"}\n')
  columns = "prompt=q,label=a"
  more = dict(problems__source=file, problems__columns=columns, problems__system="Be brief.", problems__count=0)
  more |= dict(rl__steps=1, rl__response_tokens=4, heldout__source="arithmetic")
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK | more) == 0
  assert (tmp_path / "rl" / "prompt.txt").read_text() == "<s><|system|>Be brief.<|user|>1+1?<|assistant|>"
  assert {row["prompt"] for row in rollouts(tmp_path / "rl")} == {
    "[system]\nBe brief.\n\n[user]\n1+1?",
    "[system]\nBe brief.\n\n[user]\n2+2?",
  }


@pytest.mark.parametrize("style", STYLES)
def test_the_rendered_text_becomes_the_prompts_tokens(tmp_path, style):
  write_tokenizer(tmp_path, style)
  ours = HuggingFace(tmp_path)
  text = ours.prompt_text(USER)
  assert "What is 12*7?" in text
  tokens = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
  assert tokens.encode(text, add_special_tokens=False).ids == ours.render(USER)


def test_the_exact_judge_reads_the_question_of_a_recorded_prompt():
  problem = arithmetic.problem(0, "train", 2, 0)
  text = arithmetic.careful(problem.extra["tree"])
  prompts = [transcript(problem.messages), transcript(({"role": "system", "content": "Think."}, *problem.messages))]
  assert prompts[1].startswith("[system]\nThink.\n\n[user]\n") and prompts[1].endswith(prompts[0])
  exact = judges.JUDGES["exact"](judges.Settings())
  assert exact.faithfulness([rubric.Response(prompt, text) for prompt in prompts]) == [1.0, 1.0]
  assert np.isfinite(exact.faithfulness([rubric.Response(prompts[1], "\\boxed{3}")])[0])
