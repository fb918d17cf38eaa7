"""What the user learns before a run begins: memory, microbatches, the longest prompt, the amount of text."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tokenizers

from helpers.command_line import QUICK, rollouts, run_smoke
from helpers.hf_directories import STYLES, USER, write_tokenizer
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.device import sharding
from jaxrlvr.judging import judges, rubric
from jaxrlvr.planning.memory import Held, Memory, SamplingWork, UpdateWork
from jaxrlvr.stages import build_policy, language_modelling, memory
from jaxrlvr.stages.rollout import transcript
from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.text.hf_tokenizer import HuggingFace

HELD = Held(trained=4e9, frozen=0, moments=8e9, reference=2e9, laid_out=0, saved=0)
UPDATE = UpdateWork(gradients=4e9, copies=0, activations=3.25e9, logits=0, step=0, batch=1e6)
SAMPLING = SamplingWork(weights=2e9, prompts=0, cache=1e9, cache_growth=9e9, logits=0, rollout=0)


def opened(finished=False):
  """Returns what the check reads of an open run."""
  return SimpleNamespace(home=Path("runs/mine"), stage="rl", finished=finished)


def test_an_estimate_in_words():
  """Parts stand in the order in which they are taken; sizes are of all devices; a part of 0.0 is left out."""
  assert memory.in_words(Memory(HELD, UPDATE, SAMPLING), 2, int(70e9)) == (
    "weights 8.0, optimizer 16.0, reference model 4.0; an update: gradients 8.0, activations of a microbatch 6.5; "
    "sampling: weights for sampling 4.0, first block of the KV cache 2.0, its other blocks 18.0; at most 52.0 GB of "
    "70.0 GB that are free"
  )
  small = Memory(Held(4e6, 0, 0, 0, 0, 0), UPDATE._replace(gradients=0, activations=0))
  assert memory.in_words(small, 1, None) == "weights 4.0; an update: tokens 1.0; at most 5.0 MB"


@pytest.mark.parametrize(
  ("free", "cures"),
  [
    (10e9, ("config.lora.rank=16", "config.rl.microbatches", "for sampling lower a key")),
    (20e9, ("for updates raise config.rl.microbatches", "for sampling lower a key")),
    (25e9, ("for sampling lower a key",)),
  ],
)
def test_more_than_is_free_is_refused_with_parts_and_keys(monkeypatch, capsys, free, cures):
  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  estimate = Memory(HELD, UPDATE, SAMPLING)
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: int(free))
  message = rf"rl takes about 26.0 GB, {free / 1e9:.1f} GB are free \(weights 4.0, optimizer 8.0"
  with pytest.raises(InputError, match=message) as error:
    memory.check_fits(estimate, mesh, opened(), "a key")
  assert all(cure in str(error.value) for cure in cures)
  assert ("microbatches" in str(error.value)) == (free < 21e9) and ("lora" in str(error.value)) == (free < 14e9)
  assert capsys.readouterr().err.startswith("mine               memory: weights 4.0")
  memory.check_fits(estimate, mesh, opened(finished=True), "a key")
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: None)
  memory.check_fits(estimate, mesh, opened(), "a key")


def test_on_an_accelerator_only_the_first_block_must_fit(monkeypatch, caplog):
  device = SimpleNamespace(platform="tpu", memory_stats=lambda: {"bytes_limit": 30 * 10**9, "bytes_in_use": 5 * 10**9})
  mesh = SimpleNamespace(local_devices=[device], devices=np.array([device]))
  memory.check_fits(Memory(HELD, UPDATE, SAMPLING), mesh, opened(), "a key")
  assert "grow long: it then takes 26.0 GB" in caplog.text
  with pytest.raises(InputError, match="takes about 27.0 GB, 25.0 GB are free"):
    memory.check_fits(Memory(HELD, UPDATE, SAMPLING._replace(cache=11e9)), mesh, opened(), "a key")


@pytest.mark.parametrize(("free", "returned"), [(35e9, [1]), (36e9, [])])
def test_a_cpu_gives_freed_memory_back_where_it_is_scarce(monkeypatch, free, returned):
  """An update's temporaries, 7.25 GB here, may lie in memory three times, twice as pieces that no program can use."""
  mesh, calls = sharding.make_mesh(1, 1, 1, jax.devices()[:1]), []
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: int(free))
  monkeypatch.setattr(memory.cpu_malloc, "return_freed_memory", lambda: calls.append(1))
  memory.check_fits(Memory(HELD, UPDATE), mesh, opened())
  assert calls == returned


def test_the_free_memory_of_a_host_is_known():
  assert 1 << 28 < memory.free_bytes(sharding.make_mesh(data=1, fsdp=8, tensor=1)) < 1 << 44


def test_a_run_tells_its_estimate_and_is_refused_before_weights_are_loaded(tmp_path, init, capsys, monkeypatch):
  """Nothing is left of the run directory; the line has what the estimator says of the opened policy."""
  changes = {"init": str(init), "sft.row_tokens": "100000000"}
  config = configs.load("smoke", changes)
  policy = build_policy.open_policy(config, 10**8, to_train=True).policy
  line = memory.in_words(language_modelling.memory_of_training(config.sft, policy), policy.mesh.size, None)
  monkeypatch.setattr(build_policy, "_read_init", None)
  assert run_smoke("sft", tmp_path / "sft", init=init, sft__row_tokens=10**8) == 2
  stderr = capsys.readouterr().err
  assert f"sft                memory: {line} of " in stderr and "activations of a microbatch" in line
  assert "config.sft.microbatches" in stderr and "config.sft.row_tokens" in stderr
  assert not (tmp_path / "sft").exists()


def test_an_evaluation_that_needs_more_than_a_step_names_its_own_keys(tmp_path, init, capsys):
  changes = QUICK | dict(evaluate__samples=100_000_000, evaluate__pass_k="(1,)")
  assert run_smoke("rl", tmp_path / "rl", init=init, **changes) == 2
  assert "config.evaluate.problems_per_batch or config.evaluate.samples" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["rl", "evaluate"])
def test_a_million_tokens_are_refused_before_anything_is_allocated(tmp_path, init, capsys, monkeypatch, stage):
  monkeypatch.setattr(build_policy, "_read_init", None)
  changes = QUICK | dict(rl__response_tokens=100_000_000)
  assert run_smoke(stage, tmp_path / stage, init=init, **changes) == 2
  stderr = capsys.readouterr().err
  assert f"the stage {stage} takes about" in stderr and "its other blocks" in stderr
  assert "config.rl.response_tokens" in stderr and ("config.rl.microbatches" in stderr) == (stage == "rl")
  assert not (tmp_path / stage).exists()


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
