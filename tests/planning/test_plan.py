"""Planning for TPU slices: names, collectives in compiled text, the search for settings that fit, a plan end to end."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.model import hf_weights, lora, weight_table
from jaxrlvr.model.spec import Spec
from jaxrlvr.planning import collectives, flops, tpu
from jaxrlvr.stages import STAGES, plan_programs
from jaxrlvr.stages.learner import check_sizes
from jaxrlvr.stages.plan import (
  memory_by_part,
  rows_of_programs,
  search,
  table_of_memory,
  table_of_programs,
  whether_it_fits,
)
from jaxrlvr.stages.plan_programs import Measured, Program, compile_program

ROOT = Path(__file__).parents[2]


def test_slices_by_their_names():
  for name, topology, chips in (
    ("v5e-8", "v5e:2x4", 8),
    ("v5litepod-16", "v5e:4x4", 16),
    ("v6e-64", "v6e:8x8", 64),
    ("v5p-16", "v5p:2x2x2", 8),
    ("v5p-64", "v5p:2x4x4", 32),
    ("v4-32", "v4:2x2x4", 16),
    ("v5e:4x8", "v5e:4x8", 32),
  ):
    tpu_slice = tpu.find_slice(name)
    assert (tpu_slice.name, tpu_slice.topology, tpu_slice.chips) == (name, topology, chips)
  assert tpu.smallest_with("v5p", 9) == "v5p-32" and tpu.smallest_with("v5e", 257) == ""


@pytest.mark.parametrize(
  "name,words",
  [
    ("v5e-12", "wanted a name as v5e-1, v5e-4, v5e-8"),
    ("v6-8", "v6e-8"),
    ("v5p:2x4", "v5p chips lie in 3 dimensions"),
    ("v5e:2x", "no TPU slice"),
    ("a100", "wanted a name as v4-8"),
  ],
)
def test_an_unknown_slice_is_told_with_near_names(name, words):
  with pytest.raises(InputError, match=words):
    tpu.find_slice(name)


def test_collectives_of_a_compiled_program():
  """Each collective in five steps of a scan sends as many bytes as the arithmetic of its kind says."""
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  def body(x, _):
    def local(x):  # [4, 8] float32 on each of 8 devices
      whole = jax.lax.all_gather(x, "b")  # [4, 4, 8]
      x = x + jax.lax.psum_scatter(whole, "b")
      x = x + jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])
      return x + jax.lax.all_to_all(x, "b", 0, 0) + jax.lax.psum(x, "a")

    return jax.shard_map(local, mesh=mesh, in_specs=P("a", "b"), out_specs=P("a", "b"))(x), None

  def program(x):
    return jax.lax.scan(body, x, None, length=5)[0]

  x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=NamedSharding(mesh, P("a", "b")))
  text = jax.jit(program).lower(x).compile().as_text()
  block = 4 * 8 * 4
  assert collectives.count_traffic(text, 8) == {
    "all-gather": (5, 5 * 3 * block),
    "reduce-scatter": (5, 5 * 3 * block),
    "collective-permute": (5, 5 * block),
    "all-to-all": (5, 5 * 3 / 4 * block),
    "all-reduce": (5, 5 * block),
  }


def test_a_loop_that_depends_on_data_runs_as_often_as_one_says():
  mesh = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))

  def program(x):
    def local(x):
      def go_on(carry):
        return (carry[0] < 100) & (carry[1][0] > 0)

      return jax.lax.while_loop(go_on, lambda c: (c[0] + 1, jax.lax.psum(c[1], "a") / 9), (0, x))[1]

    return jax.shard_map(local, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False)(x)

  x = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=NamedSharding(mesh, P("a")))
  text = jax.jit(program).lower(x).compile().as_text()
  sent = collectives.count_traffic(text, 8, unknown_trips=7)["all-reduce"]
  assert sent.times == 7 and sent.bytes == pytest.approx(7 * 2 * 7 / 8 * 8)


TPU_TEXT = """
%cond (p: (s32[], bf16[8])) -> pred[] {
  %c = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%g, %c), direction=LT
}

%start (p: bf16[8]) -> bf16[64] {
  %all-gather.1 = bf16[64]{0:T(8,128)} all-gather(%p), channel_id=5, replica_groups=mesh['x'=2,'y'=8] {'y'}, backend_config={"async_collective_fusion_config":{}}
}

%done (p: bf16[8]) -> bf16[64] {
  %all-gather.2 = bf16[64]{0:T(8,128)} all-gather(%p), channel_id=5, replica_groups=mesh['x'=2,'y'=8] {'y'}, backend_config={"async_collective_fusion_config":{}}
}

%all-reduce-scatter.3 (p: f32[64]) -> f32[8] {
  %all-reduce.1 = f32[64]{0} all-reduce(%p), channel_id=6, replica_groups=[2,8]<=[16], to_apply=%add
}

%body (p: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %f.1 = bf16[64] fusion(%p), kind=kCustom, calls=%start
  %f.2 = bf16[64] fusion(%p), kind=kCustom, calls=%done
  %f.3 = f32[8] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
  %cp = (bf16[8]{0:S(1)}, bf16[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=1, source_target_pairs={{0,1}}
  %cpd = bf16[8] collective-permute-done(%cp)
}

ENTRY %main (a: bf16[8]) -> bf16[8] {
  %w = (s32[], bf16[8]) while(%t), condition=%cond, body=%body
}
"""  # noqa: E501


def test_what_only_tpu_programs_hold():
  """Trip counts stand in the condition; a collective is shared by fusions or fused with its slice; some start early."""
  assert collectives.count_traffic(TPU_TEXT, 16) == {
    "all-gather": (28, 28 * 7 / 8 * 128),
    "reduce-scatter": (28, 28 * 7 * 32),
    "collective-permute": (28, 28 * 16),
  }


def measured(arguments=1.0, temporaries=1.0, refused="", beside=0.0, output=0.0):
  return Measured(arguments, temporaries, output, beside, 0.0, refused, {})


def searched(capacity, sizes, **settings):
  """Returns the result of search() with arithmetic in the place of a compiler, and the list of what it compiled."""
  config, log = configs.derive(configs.base(), {"rl.microbatches": 4, **settings}), []

  def measure(config, names, before):
    log.append(sorted(names) if names else "all")
    return {name: make(config) if names is None or name in names else before[name] for name, make in sizes.items()}

  return *search(config, "rl", capacity, measure), log


def test_what_fits_is_left_alone():
  _, _, changes, log = searched(10, {"update": lambda c: measured(4, 5)})
  assert changes == {} and log == ["all"]


def test_more_microbatches_in_one_jump():
  """Temporaries of 40 and room for 6: it takes eight times the microbatches without trying two and four times."""
  sizes = {"decode": lambda c: measured(1, 1), "update": lambda c: measured(4, 160 / c.rl.microbatches)}
  config, programs, changes, log = searched(10, sizes)
  assert changes == {"rl.microbatches": 32} == {"rl.microbatches": config.rl.microbatches}
  assert log == ["all", ["score", "update"]] and programs["update"].total == 9


def test_no_microbatch_is_tried_where_arguments_alone_are_too_large():
  sizes = {"update": lambda c: measured(12 if c.rl.optim.moment == "float32" else 8, 2)}
  _, _, changes, log = searched(11, sizes)
  assert changes == {"rl.optim.moment": "bfloat16"} and len(log) == 2


def test_sampling_is_parted_where_the_cache_among_the_arguments_is_too_large():
  """Weights of 3 leave room for 6 of the rows' 44: that takes eight parts, not all that the problems allow."""
  sizes = {
    "lay out": lambda c: measured(2, 1, output=3),
    "decode": lambda c: measured(3 + 40 / c.rl.sample_parts, 4 / c.rl.sample_parts, beside=1),
  }
  _, programs, changes, log = searched(10, sizes)
  assert changes == {"rl.sample_parts": 8} and programs["decode"].total == 9.5
  assert log == ["all", ["decode", "prefill"]]


def test_sampling_is_not_parted_where_weights_alone_are_too_large():
  sizes = {
    "lay out": lambda c: measured(0.5, 0, output=9),
    "decode": lambda c: measured(9 + 40 / c.rl.sample_parts, beside=1),
  }
  _, _, changes, _ = searched(10, sizes)
  assert changes == {}


def test_a_smaller_step_where_the_jump_is_impossible_then_the_next_setting():
  """256 rows allow at most 256 microbatches; as that is still too large, it changes remat next."""
  need = {"none": 4, "dots": 2, "full": 1}
  sizes = {"update": lambda c: measured(1, need[c.model.remat] * 1024 / c.rl.microbatches)}
  _, programs, changes, _ = searched(6, sizes)
  assert changes == {"rl.microbatches": 256, "model.remat": "full"} and programs["update"].total == 5


def test_a_try_that_does_not_help_is_not_kept_and_hopeless_ends():
  _, programs, changes, _ = searched(
    10, {"lay out": lambda c: measured(output=4), "decode": lambda c: measured(4, 100)}
  )
  assert changes == {} and programs["decode"].total == 104
  plan = {"fits": False, "changes": changes, "programs": {"decode": {"total": 104.0}}}
  slice_ = tpu.find_slice("v5e-8")
  plan["programs"]["decode"]["total"] = 6 * slice_.chip.hbm
  assert "estimate: 48 chips, v5e-64" in whether_it_fits(plan, slice_)


def test_the_compilers_refusal_is_a_result():
  message = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (25.50G) exceeds available HBM (15.75G). HLO module: jit_update."
  )

  def lower(done):
    raise jax.errors.JaxRuntimeError(message)

  cost = flops.Cost(1, 1, 1)
  compiled = compile_program(Program("update", 1, 3.0, 2.0, lower, cost, 1), {}, 8)
  assert compiled.temporaries == 25.5 * 2**30 and compiled.refused == message and compiled.arguments == 3
  row = rows_of_programs([Program("update", 1, 3.0, 2.0, lower, cost, 1)], {"update": compiled}, tpu.CHIPS["v5e"], 0.5)
  assert "does not fit" in table_of_programs(row, tpu.CHIPS["v5e"].hbm)


def test_the_bound_is_the_slowest_of_three():
  chip = tpu.Chip(flops=10, bandwidth=5, ici=2, hbm=100, cores=1, dimensions=2)
  made = measured()._replace(sent={"all-gather": collectives.Traffic(1, 8)})
  program = Program("score", 1, 0, 0, None, flops.Cost(30, 20, 10), 80)
  row = rows_of_programs([program], {"score": made}, chip, 0.5)["score"]
  assert (row["bound_by"], row["bound_seconds"], row["estimated_seconds"]) == ("network", 4, 8)
  assert (row["tokens_per_second"], row["mfu"]) == (10, 20 / 8 / 10)
  row = rows_of_programs([program], {"score": made._replace(sent=None)}, chip, 0.5)["score"]
  assert row["bound_by"] == "compute" and "| nan |" in table_of_programs({"score": row}, 100)


def test_without_libtpu_the_cure_is_named(tmp_path):
  if importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is here")
  with pytest.raises(InputError, match=r"libtpu is not installed: `bash launch/plan\.sh"):
    STAGES["plan"](configs.base(), tmp_path)
  with pytest.raises(InputError, match=r"config\.plan\.topology: 'v5e-9'"):
    STAGES["plan"](configs.load("base", {"plan.topology": "v5e-9"}), tmp_path)


def test_programs_of_a_step_without_a_tpu():
  """On fake devices, arguments have the bytes that shapes say, and decode takes what prefill returns."""
  changes = {"rl.shrink": 0, "model.attention": "reference", "model.vocab": 64, "mesh.fsdp": -1, "model.layers": 1}
  config = configs.derive(configs.load("smoke"), changes | {"rl.sample_parts": 1, "rl.microbatches": 2})
  policy, listed, _ = plan_programs.programs_of_stage(config, tpu.find_slice("v5e-8"), jax.devices())
  assert [(p.name, p.times) for p in listed] == [(n, 1) for n in ("lay out", "prefill", "decode", "score", "update")]
  rows = 8 * config.rl.group_size
  assert listed[-1].tokens == rows * (config.rl.prompt_tokens + config.rl.response_tokens)
  half = plan_programs._bytes(policy.params)  # the reference, in the compute dtype: float32 here
  assert [p.beside - listed[1].beside for p in listed] == [-half, 0, 0, -half, half - listed[1].beside]
  compiled_programs = {}
  for program in listed[:4]:
    compiled_programs[program.name] = m = compile_program(program, compiled_programs, 8)
    if program.name != "decode":  # K and V may be cut along heads too
      unread = program.arguments if program.name == "score" else 0  # it reads no reward: dropped when lowered
      assert m.arguments <= program.arguments <= m.arguments + unread, program.name
  assert listed[-1].lower(compiled_programs).out_info is not None


@pytest.mark.parametrize("name", ["", "llama3.2-3b-instruct,v6e-8,8192", "llama3.1-8b-instruct,v5p-16"])
def test_presets_are_cut_evenly(name):
  config = configs.load(f"section3_rl:{name}")
  policy = plan_programs.abstract_policy(config, tpu.find_slice(config.plan.topology), jax.devices())
  check_sizes(config, policy)
  assert (config.rl.problems_per_step, config.rl.group_size, config.rl.minibatch_problems) == (64, 8, 0)


def test_a_policy_of_unknown_vocabulary_is_refused():
  with pytest.raises(InputError, match=r"set config\.model\.vocab to plan"):
    plan_programs.abstract_policy(configs.load("demo"), tpu.find_slice("v5e-8"), jax.devices())


def test_adapters_take_less_by_what_is_counted(tmp_path):
  """With LoRA moments, gradients and checkpoints are of adapters alone, and there is no copy as reference model."""
  sizes = {"model.vocab": 64, "model.layers": 1, "model.attention": "reference", "mesh.fsdp": 1, "rl.shrink": 0}
  sizes |= {"rl.sample_parts": 1, "rl.microbatches": 2}
  one = tpu.find_slice("v5e-1"), jax.devices()[:1]
  configured = configs.derive(configs.load("smoke"), sizes)
  full = plan_programs.programs_of_stage(configured, *one)
  low = plan_programs.programs_of_stage(
    configs.derive(configured, {"lora.rank": 2, "lora.base_dtype": "bfloat16"}), *one
  )
  weights, adapters = weight_table.count_weights(full.policy.spec), lora.count_adapters(low.policy.spec)
  assert full.memory.held == (4 * weights, 0, 8 * weights, 4 * weights, 0, 24 * weights)  # float32 is computed here
  assert low.memory.held == (4 * adapters, 2 * weights, 8 * adapters, 0, 4 * weights, 24 * adapters)
  assert full.memory.update.gradients - low.memory.update.gradients == 8 * (weights - adapters)
  assert low.memory.sampling.weights == 4 * adapters
  by_name = [{program.name: program for program in plan.programs} for plan in (full, low)]
  less = by_name[0]["update"].arguments - by_name[1]["update"].arguments
  assert less == 12 * (weights - adapters) - 2 * weights
  assert [programs["update"].beside for programs in by_name] == [4 * weights, 4 * weights]  # reference; laid out
  assert by_name[1]["score"].cost.flops == by_name[0]["score"].cost.flops  # the base is the reference model
  assert by_name[1]["update"].cost.flops < by_name[0]["update"].cost.flops
  measured_programs = {}
  for name, program in by_name[1].items():
    measured_programs[name] = compiled = compile_program(program, measured_programs, 1)
    assert not compiled.refused and compiled.arguments <= program.arguments + 8, name  # and two numbers
  words = table_of_memory(memory_by_part(low.memory))
  assert "| always | frozen weights | 0.00 |" in words and "reference model" not in words
  assert words.endswith(f"| together | at most | {low.memory.most / 2**30:.2f} |")


def test_a_model_is_planned_from_its_config_alone(tmp_path):
  spec = Spec(64, 16, 4, 4, 2, 6, 24, family="gemma3_text", window=5, sliding=(True, True, False, True), tied=True)
  (tmp_path / "config.json").write_text(json.dumps(hf_weights.config_of(spec, "bfloat16", {})))
  config = configs.load("demo", {"model.path": str(tmp_path), "mesh.tensor": "2"})
  policy = plan_programs.abstract_policy(config, tpu.find_slice("v5e-8"), jax.devices())
  assert (policy.spec.window, policy.spec.sliding) == (5, spec.sliding) and policy.spec.family == spec.family
  assert policy.params["attn_out_norm"].shape == (4, 16)


PUBLISHED = {
  "llama3.2-1b": 1.236,
  "llama3.2-3b-instruct": 3.213,
  "llama3.1-8b": 8.030,
  "qwen2.5-0.5b": 0.494,
  "qwen2.5-math-1.5b": 1.544,
  "qwen2.5-math-7b": 7.616,
  "qwen3-0.6b": 0.596,
  "qwen3-1.7b": 1.721,
  "qwen3-4b": 4.022,
  "qwen3-8b": 8.191,
  "olmo2-1b": 1.485,
  "olmo2-7b": 7.299,
  "olmo2-13b": 13.716,
  "olmo2-32b-instruct": 32.234,
}


def test_published_shapes_have_the_published_number_of_weights():
  from jaxrlvr.model import weight_table
  from jaxrlvr.stages import build_policy

  for name, billions in PUBLISHED.items():
    config = configs.load(f"shape:{name}")
    spec = build_policy.fresh_spec(config, config.model.vocab)
    assert weight_table.count_weights(spec) == pytest.approx(billions * 1e9, abs=1e6), name


def run_plan(tmp_path, *words):
  """Runs `jaxrlvr plan` in an environment with libtpu: that which launch/plan.sh makes, or this one."""
  apart = ROOT / ".venv-tpu" / "bin" / "python"
  if not apart.is_file() and not importlib.util.find_spec("libtpu"):
    pytest.skip("needs libtpu, which has an environment of its own: launch/plan.sh makes it")
  python = str(apart) if apart.is_file() else sys.executable
  command = [python, "-m", "jaxrlvr.cli", "plan", f"--workdir={tmp_path}", *words]
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.mark.slow
def test_a_small_policy_end_to_end(tmp_path):
  process = run_plan(
    tmp_path,
    "--config=smoke",
    "--config.plan.topology=v5e:2x2",
    "--config.model.vocab=512",
    "--config.mesh.fsdp=-1",
    "--config.rl.shrink=0",
    "--config.model.attention=reference",
  )
  assert process.returncode == 0, process.stderr
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert plan["fits"] and plan["chips"] == 4 and plan["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
  assert sorted(plan["programs"]) == ["decode", "lay out", "prefill", "score", "update"]
  for row in plan["programs"].values():
    assert 0 < row["total"] < plan["capacity"] and row["estimated_seconds"] > 0
  assert plan["programs"]["update"]["sent_bytes"] > 0
  state = 3 * 4 * plan["parameters"] / 4  # weights and two moments on four chips
  assert plan["programs"]["update"]["arguments"] >= state
  assert "nothing here was run" in (tmp_path / "plan.md").read_text()
  assert math.isclose(plan["hours"], plan["step_seconds"] * 4 / 3600)


@pytest.mark.slow
def test_a_slice_of_one_chip(tmp_path):
  """Colab lends such a slice, v5e-1."""
  process = run_plan(
    tmp_path, "--config=smoke", "--config.plan.topology=v5e-1", "--config.model.vocab=512", "--config.plan.stage=sft"
  )
  assert process.returncode == 0 and json.loads((tmp_path / "plan.json").read_text())["chips"] == 1, process.stderr


@pytest.mark.slow
def test_a_config_that_cannot_fit(tmp_path):
  process = run_plan(
    tmp_path,
    "--config=shape:llama3.1-8b",
    "--config.plan.topology=v5e:1x1",
    "--config.plan.stage=sft",
    "--config.sft.rows=1",
    "--config.model.layers=8",
    "--config.sft.optim.moment=bfloat16",
  )
  assert process.returncode == 2 and "does not fit v5e:1x1" in process.stderr and "chips, v5e-" in process.stderr
  plan = json.loads((tmp_path / "plan.json").read_text())
  assert not plan["fits"] and "RESOURCE_EXHAUSTED" in plan["programs"]["update"]["refused"]
  assert "does not fit" in process.stdout
