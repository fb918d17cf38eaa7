"""The stages as a user runs them: the whole chain, resuming after kill -9, refusals, and the study's own files."""

import errno
import fcntl
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers.command_line import run
from jaxrlvr import cli
from jaxrlvr.base import logbook, signals
from jaxrlvr.base.errors import StorageError
from jaxrlvr.device import checkpoint
from jaxrlvr.sampling.decode import decode_loop

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
  """The workdir of the smoke chain."""
  workdir = tmp_path_factory.mktemp("chain") / "run"
  assert run("chain", "--config=smoke", f"--workdir={workdir}") == 0
  return workdir


def test_chain_runs_every_stage_and_names_the_report(chain):
  summary = json.loads((chain / "summary.json").read_text())
  page = Path(summary["report"])
  assert page == chain / "report" / "index.html" and "Thinking" in page.read_text()
  assert all(json.loads((chain / link / "summary.json").read_text())["finished"] for link in summary["links"])
  assert len(summary["links"]) == 12


def test_finished_chain_is_not_run_again(chain):
  before = {p: p.stat().st_mtime_ns for p in chain.rglob("metrics.jsonl")}
  assert run("chain", "--config=smoke", f"--workdir={chain}") == 0
  assert before == {p: p.stat().st_mtime_ns for p in chain.rglob("metrics.jsonl")}


def test_every_metric_of_the_chain_is_on_the_page_of_metrics(chain):
  page = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text()))
  patterns = (
    (r"_(low|high)$", ""),
    (r"^eval/[\w-]+/", "eval/SET/"),
    (r"(avg|maj|if_extracted)@\d+$", r"\1@K"),
    (r"pass@\d+$", "pass@k"),
    (r"^rewards/.*/(mean|std)$", r"rewards/PART/\1"),
    (r"^(F\(.*\)|labelled|missing)/\w+$", r"\1/GROUP"),
    (r"^((faithful_)?diversity(/correct)?)(/\w+)$", r"\4"),
  )
  for file in chain.glob("*/metrics.jsonl"):
    for name in {name for row in logbook.read_jsonl(file) for name in row}:
      forms = [name]
      for pattern, replacement in patterns:
        forms.append(re.sub(pattern, replacement, forms[-1]))
      assert page & set(forms), f"{file.parent.name}/metrics.jsonl has {name}, which docs/metrics.md does not name"


def test_rl_writes_what_the_design_promises(chain):
  workdir = chain / "rl-thinking"
  rows = logbook.read_jsonl(workdir / "metrics.jsonl")
  assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
  assert [r["step"] for r in rows if "eval/heldout/avg@4" in r] == [0, 2, 4]
  named = {"loss", "grad_norm", "kl", "entropy", "reward", "reward_std", "true_reward", "frac_reward_zero_std"}
  named |= {"completions/mean_length", "completions/clipped_ratio", "learning_rate", "step_time", "idle", "unscored"}
  assert named | {"sampling/sampling_logp_difference/max"} <= set(rows[1])
  assert all(r["sampling/sampling_logp_difference/max"] < 1e-4 and 0 <= r["idle"] < 1 for r in rows[1:])
  ids = []
  for step in range(1, 5):
    drawn = logbook.read_jsonl(workdir / "rollouts" / f"step_{step:06d}.jsonl")
    assert len(drawn) == 32 and len({r["problem"] for r in drawn}) == 4
    ids += [(r["step"], r["problem"], r["sample"]) for r in drawn]
    assert np.isclose(np.mean([r["reward"] for r in drawn]), rows[step]["reward"])
    assert {"prompt", "text", "logp", "stop", "true_reward", "label", "truth", "faithfulness"} <= set(drawn[0])
  assert len(set(ids)) == 128
  held = logbook.read_jsonl(workdir / "evals" / "heldout_000002.jsonl")
  assert len(held) == 40 and len({(r["problem"], r["sample"]) for r in held}) == 40
  train = {r["problem"] for r in drawn}
  assert not train & {r["problem"] for r in held}
  for name in ("config.json", "manifest.json", "policy.json", "tokenizer.model"):
    assert (workdir / name).is_file()
  assert json.loads((workdir / "manifest.json").read_text())["packages"]["jax"] == jax.__version__


def test_evaluation_samples_are_paired_over_steps(tmp_path, chain):
  """Keys are the same at every step: at step 0 two runs of the same policy sample the same responses."""
  second = tmp_path / "again"
  assert run("evaluate", "--config=smoke", f"--workdir={second}", f"--config.init={chain / 'sft-thinking'}") == 0
  compared = operator.itemgetter("problem", "sample", "text", "true_reward")
  one, two = (logbook.read_jsonl(d / "evals" / "heldout_000000.jsonl") for d in (second, chain / "rl-thinking"))
  assert list(map(compared, one)) == list(map(compared, two))


def test_a_recorded_config_runs_again_and_the_domain_has_sets_outside_of_it(tmp_path, chain):
  recorded, workdir = f"--config={chain / 'eval-base' / 'config.json'}", tmp_path / "again"
  assert run("evaluate", recorded, f"--workdir={workdir}") == 0
  of = [json.loads((folder / "config.json").read_text()) for folder in (workdir, chain / "eval-base")]
  assert of[0] == of[1]
  workdir = tmp_path / "sets"
  assert run("evaluate", recorded, f"--workdir={workdir}", "--config.heldout.domain=arithmetic") == 0
  summary = json.loads((workdir / "summary.json").read_text())
  sets = {file.name: logbook.read_jsonl(file) for file in (workdir / "evals").glob("*.jsonl")}
  assert set(sets) == {f"{name}_000000.jsonl" for name in ("arithmetic", "arithmetic-longer", "arithmetic-large")}
  assert all(r["prompt"].count(",") == 6 for r in sets["arithmetic-longer_000000.jsonl"])
  assert all(re.match(r"Start with \d\d,", r["prompt"]) for r in sets["arithmetic-large_000000.jsonl"])
  outside = [summary[f"eval/arithmetic-{name}/avg@4"] for name in ("longer", "large")]
  assert summary["eval/out-of-domain/avg@4"] == pytest.approx(np.mean(outside))
  assert summary["eval/in-domain/avg@4"] == summary["eval/arithmetic/avg@4"]


def test_more_than_one_update_a_step_and_variants(tmp_path, chain):
  """Runs the stage with minibatches, GSPO, leave-one-out, dual clip, importance sampling and stop strings at once."""
  options = (
    "minibatch_problems=4 ratio=sequence baseline=leave-one-out scale_std=False dual_clip=3.0 importance_cap=2.0"
  )
  options += " reduce=constant-length kl_estimator=k3-k2 top_k=50 top_p=0.9 stop_strings=} steps=2 shrink=0"
  extra = [f"--config.rl.{o}" for o in options.split()]
  workdir = tmp_path / "rl"
  assert run("rl", "--config=smoke", f"--workdir={workdir}", f"--config.init={chain / 'sft-nonthinking'}", *extra) == 0
  rows = logbook.read_jsonl(workdir / "metrics.jsonl")
  assert len(rows) == 3 and all(np.isfinite(r["loss"]) for r in rows[1:])
  saved = checkpoint.Checkpoints(workdir)
  assert saved.steps()[-1] == 2
  saved.close()
  drawn = logbook.read_jsonl(workdir / "rollouts" / "step_000001.jsonl")
  assert all(r["text"].count("}") == (r["stop"] == "string") for r in drawn)


def words(workdir, init, *more, steps=10):
  """Returns the command line of an RL run of the smoke size."""
  argv = ["rl", "--config=smoke", f"--workdir={workdir}", f"--config.init={init}", f"--config.rl.steps={steps}"]
  return [*argv, "--config.checkpoint.every=5", "--config.evaluate.every=5", *more]


def start(argv):
  """Starts the command line in a process of its own, with the devices of this one."""
  return subprocess.Popen([sys.executable, "-m", "jaxrlvr.cli", *argv], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def outcome(workdir, last):
  """Returns (metrics, texts by file, digests) of a run of `last` steps, which must not depend on interruptions."""
  metrics = logbook.read_jsonl(workdir / "metrics.jsonl")
  for row in metrics:
    for name in ("step_time", "idle"):
      row.pop(name, None)
  texts = {
    p.relative_to(workdir).as_posix(): p.read_text() for d in ("rollouts", "evals") for p in (workdir / d).iterdir()
  }
  meta = json.loads(next((workdir / "checkpoints" / str(last)).rglob("metadata")).read_text())
  return metrics, texts, meta["digests"]


def test_killed_and_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path, chain, caplog):
  init, last = chain / "sft-thinking", 30
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  killed = start(words(broken, init, steps=last))
  deadline = time.monotonic() + 240

  def saved():
    return [int(p.name) for p in broken.glob("checkpoints/*") if p.name.isdigit()]

  def unsaved():  # steps that will have to be made again
    return len(logbook.read_jsonl(broken / "metrics.jsonl")) - 1 - max(saved(), default=last)

  while unsaved() < 2 and time.monotonic() < deadline and killed.poll() is None:
    time.sleep(0.005)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert not (broken / "summary.json").exists() and saved()
  (broken / "rollouts" / f"step_{max(saved()) + 2:06d}.jsonl.part").write_text('{"half')
  resumed = max(saved())
  assert run(*words(broken, init, "--resume=required", steps=last)) == 0
  assert f"goes on from step {resumed}" in caplog.text
  assert run(*words(whole, init, steps=last)) == 0
  for part in (broken / "rollouts").glob("*.part"):
    part.unlink()
  one, two = outcome(whole, last), outcome(broken, last)
  assert one[0] == two[0] and len(one[0]) == last + 1
  assert one[1] == two[1] and one[2] == two[2]


def test_sigterm_saves_and_exits_143(tmp_path, chain):
  process = start(words(tmp_path / "rl", chain / "sft-thinking", "--config.checkpoint.every=1000", steps=100000))
  deadline = time.monotonic() + 240
  while len(logbook.read_jsonl(tmp_path / "rl" / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  stderr = process.communicate()[1]
  assert process.returncode == signals.EXIT_CODE == 143 and "checkpoint saved" in stderr
  steps = [r["step"] for r in logbook.read_jsonl(tmp_path / "rl" / "metrics.jsonl")]
  saved = [int(p.name) for p in (tmp_path / "rl" / "checkpoints").iterdir() if p.name.isdigit()]
  evaluating = max(saved) % 5 == 0 and max(saved) == steps[-1] + 1  # its row waits for the figures
  assert max(saved) == steps[-1] or evaluating


def test_a_signal_during_an_evaluation_is_obeyed_at_once_and_the_evaluation_is_made_again(tmp_path, chain):
  """The signal comes at step 0, where nothing is saved yet, and at a step that is saved before it is evaluated."""
  long = ("--config.heldout.count=200", "--config.evaluate.problems_per_batch=8", "--config.checkpoint.every=1000")
  broken, whole = tmp_path / "broken", tmp_path / "whole"
  for signs_of_it, last_row, words_told in (
    (("manifest.json", "policy.json"), -1, "stopped by a signal;"),
    (("evals/heldout_000000.jsonl", "checkpoints/5/_CHECKPOINT_METADATA"), 4, "checkpoint saved"),
  ):
    process = start(words(broken, chain / "sft-thinking", *long, steps=6))
    deadline = time.monotonic() + 240
    while not all((broken / sign).exists() for sign in signs_of_it) and time.monotonic() < deadline:
      time.sleep(0.01)
    signalled = time.monotonic()
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate()[1]
    assert process.returncode == 143 and words_told in stderr, stderr
    assert time.monotonic() - signalled < 20  # most of it is compiling, at step 0
    assert [row["step"] for row in logbook.read_jsonl(broken / "metrics.jsonl")] == list(range(last_row + 1))
    assert not (broken / "evals" / f"heldout_{last_row + 1:06d}.jsonl").exists()
  assert run(*words(broken, chain / "sft-thinking", *long, "--resume=required", steps=6)) == 0
  assert run(*words(whole, chain / "sft-thinking", *long, steps=6)) == 0
  one, two = outcome(whole, 6), outcome(broken, 6)
  assert one == two and len(one[0]) == 7
  assert [row["step"] for row in one[0] if "eval/heldout/avg@4" in row] == [0, 5, 6]


def test_a_run_killed_between_its_last_save_and_its_figures_ends_with_them(tmp_path, chain):
  whole, broken = chain / "rl-thinking", tmp_path / "rl"
  shutil.copytree(whole, broken)
  (broken / "summary.json").unlink()
  (broken / "evals" / "heldout_000004.jsonl").unlink()
  rows = logbook.read_jsonl(whole / "metrics.jsonl")[:-1]
  rows[0]["eval/heldout/mean_length"] = rows[2]["eval/heldout/mean_length"] = -1.0  # other figures than the last
  logbook.write_jsonl(broken / "metrics.jsonl", rows)
  assert run("rl", f"--config={whole / 'config.json'}", f"--workdir={broken}", "--resume=required") == 0
  one, two = outcome(whole, 4), outcome(broken, 4)
  assert one[0][-1] == two[0][-1] and one[1:] == two[1:]
  assert logbook.read_json(broken / "summary.json") == logbook.read_json(whole / "summary.json")


def test_used_workdirs_are_never_overwritten(tmp_path, chain, capsys):
  def refused(*argv):
    assert run(*argv) == 2
    return capsys.readouterr().err

  rl = ("rl", "--config=smoke", f"--config.init={chain / 'sft-thinking'}")
  used = f"--workdir={chain / 'rl-thinking'}"
  assert "resume = 'never'" in refused(*rl, used, "--resume=never")
  message = refused(*rl, used, "--config.rl.optim.lr=0.5")
  assert "config.rl.optim.lr: 0.5, earlier 0.0001" in message
  assert "stage 'rl', not 'sft'" in refused("sft", "--config=smoke", used)
  assert "holds no run" in refused(*rl, f"--workdir={tmp_path / 'new'}", "--resume=required")
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "thesis.txt").write_text("mine")
  assert "holds other files (thesis.txt" in refused(*rl, f"--workdir={tmp_path / 'other'}")
  assert "can't be written" in refused(*rl, f"--workdir={tmp_path / 'other' / 'thesis.txt'}")
  assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
  with open(chain / "rl-thinking" / ".lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert "in use by process" in refused(*rl, used)


def test_where_there_are_no_locks_the_run_goes_on(tmp_path, monkeypatch, caplog):
  def none(*_):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, "flock", none)
  assert run("prepare", "--config=smoke", f"--workdir={tmp_path / 'run'}") == 0
  assert "can't be locked there (Operation not supported)" in caplog.text


def test_bad_input_is_refused_before_compile(tmp_path, chain, capsys):
  base = ("rl", "--config=smoke", f"--workdir={tmp_path / 'w'}")
  init = f"--config.init={chain / 'sft-thinking'}"
  for extra, words in (
    ([], "config.tokenizer is empty"),
    (["--config.init=/nowhere"], "config.init = '/nowhere': holds no policy.json"),
    ([f"--config.init={chain / 'tokenizer'}"], "holds no policy.json"),
    ([init, "--config.rl.prompt_tokens=4"], "raise it, or take config.problems.too_long=drop"),
    ([init, "--config.rl.prompt_tokens=4", "--config.problems.too_long=drop"], "none of 4 problems is left"),
    ([init, "--config.problems.source=absent.parquet"], "absent.parquet"),
    ([init, "--config.mesh.tensor=3"], "axis 'vocab' has size 512, not divisible by 3"),
    ([init, "--config.mesh.data=16"], "needs 16 devices, there are 8"),
    ([init, "--config.mesh.data=3", "--config.mesh.tensor=2"], "has size 8, not divisible by 3"),
    ([init, "--config.report.title=x", "--config.rl.stepz=3"], "did you mean config.rl.steps?"),
  ):
    assert run(*base, *extra) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1, message


def test_torn_or_altered_checkpoints_are_passed_over(tmp_path, chain, caplog):
  import shutil

  store = tmp_path / "cpt"
  shutil.copytree(chain / "cpt", store)
  steps = sorted(int(p.name) for p in (store / "checkpoints").iterdir())
  assert steps == [3, 6]
  saved = checkpoint.Checkpoints(store)
  shapes = {n: jax.ShapeDtypeStruct(np.shape(x), np.float32) for n, x in read_params(saved).items()}
  assert saved.restore(shapes, None)[2]["step"] == 6
  saved.close()
  largest = max(
    (p for p in (store / "checkpoints" / "6" / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(data)
  saved = checkpoint.Checkpoints(store)
  assert saved.restore(shapes, None)[2]["step"] == 3
  assert re.search(r"checkpoints/6: passed over", caplog.text)
  saved.close()
  for folder in (store / "checkpoints").iterdir():
    for file in folder.rglob("*"):
      if file.is_file() and "params" in file.parts:
        file.write_bytes(b"")
  saved = checkpoint.Checkpoints(store)
  with pytest.raises(StorageError, match="none of steps"):
    saved.restore(shapes, None)
  saved.close()


def read_params(saved):
  import orbax.checkpoint as ocp

  args = ocp.args.Composite(params=ocp.args.StandardRestore())
  return saved._manager.restore(saved.steps()[-1], args=args)["params"]


def test_help_lists_the_stages(capsys):
  assert run("--help") == 0
  text = capsys.readouterr().out
  from jaxrlvr.stages import STAGES

  assert set(cli.HELP) == set(STAGES) and all(f"  {name} " in text for name in STAGES)
  assert run("rl") == 2 and run("fly", "--workdir=x") == 2
  for stage, word, hint in (
    ("rl", "--lr=3", "; did you mean --config.rl.optim.lr=3?"),
    ("rl", "--use_vllm=1", "; the policy itself samples: there is no engine or server to choose (docs/names.md)"),
    ("sft", "--lr=3", "; did you mean --config.sft.optim.lr=3?"),
    ("rl", "--rl.steps=3", "; did you mean --config.rl.steps=3?"),
    ("rl", "--conifg.rl.steps=3", "; did you mean --config.rl.steps=3?"),
    ("rl", "rl.stepz=3", "; did you mean --config.rl.steps=3?"),
    ("sft", "--steps", "; did you mean --config.sft.steps?"),
    ("prepare", "--source=a.jsonl", "; did you mean --config.problems.source=a.jsonl?"),
    ("rl", "--workdr=x", "; did you mean --workdir=x?"),
    ("rl", "--xyzzy=4", ""),
    ("rl", "-", ""),
  ):
    assert run(stage, "--workdir=x", word) == 2
    assert f"unknown argument {word!r}{hint}; flags are --config, --workdir" in capsys.readouterr().err


def test_a_finished_run_goes_on_where_more_steps_are_asked_for(tmp_path, chain):
  """It ends as if all steps had been asked for at once."""
  init, more = f"--config.init={chain / 'sft-nonthinking'}", "--config.rl.steps=3"
  base = ("rl", "--config=smoke", init, "--config.evaluate.every=0", "--config.checkpoint.every=50")
  assert run(*base, f"--workdir={tmp_path / 'a'}", "--config.rl.steps=1") == 0
  assert run(*base, f"--workdir={tmp_path / 'a'}", more) == 0
  assert run(*base, f"--workdir={tmp_path / 'b'}", more) == 0
  text = [(tmp_path / name / "rollouts" / "step_000003.jsonl").read_text() for name in "ab"]
  assert text[0] == text[1]
  assert json.loads((tmp_path / "a" / "summary.json").read_text())["steps"] == 3


def test_saving_goes_on_behind_a_torn_checkpoint(tmp_path, chain):
  """The torn checkpoint is set aside; steps that are trained again are saved again, with the same result."""
  workdir = tmp_path / "base"
  argv = ("pretrain", "--config=smoke", f"--workdir={workdir}", f"--config.tokenizer={chain / 'tokenizer'}")
  assert run(*argv) == 0
  whole = checkpoint.Checkpoints(workdir, read_only=True)
  want = checkpoint.leaf_digests(read_params(whole))
  for file in (workdir / "checkpoints" / "6" / "params").rglob("*"):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:10])
  (workdir / "summary.json").unlink()
  assert (
    run("cpt", "--config=smoke", f"--workdir={tmp_path / 'cpt'}", f"--config.init={workdir}") == 2
  )  # never step 3 unsaid
  assert run(*argv) == 0
  assert (workdir / "torn-checkpoint-6").is_dir()
  again = checkpoint.Checkpoints(workdir, read_only=True)
  assert again.steps() == [3, 6] and checkpoint.leaf_digests(read_params(again)) == want


def test_a_chain_can_be_moved_and_a_stale_evaluation_is_refused(tmp_path, chain, capsys):
  import shutil

  moved = tmp_path / "moved here"
  shutil.copytree(chain, moved)
  assert run("chain", "--config=smoke", f"--workdir={moved}") == 0
  init = moved / "sft-thinking"
  argv = ("evaluate", "--config=smoke", f"--workdir={tmp_path / 'e'}", f"--config.init={init}")
  assert run(*argv) == 0
  shutil.rmtree(init)
  shutil.copytree(chain / "sft-nonthinking", init)
  capsys.readouterr()
  assert run(*argv) == 2 and "origin are not those the run began with" in capsys.readouterr().err


def test_moments_lie_like_their_weights_and_the_update_compiles_once(chain):
  from jaxrlvr.config import files as configs
  from jaxrlvr.stages import build_policy

  c = configs.load("smoke", {"init": str(chain / "cpt"), "mesh.data": "2", "mesh.fsdp": "2", "mesh.tensor": "2"})
  policy = build_policy.load_policy(c)
  optimizer, _ = build_policy.make_optimizer(c.sft.optim, 3)
  state = build_policy.fresh_state(policy, optimizer)
  adam = state.opt_state[1]
  for name, w in state.params.items():
    assert adam.mu[name].sharding == adam.nu[name].sharding == w.sharding == policy.params[name].sharding, name
  assert len({s.device for s in state.params["q"].addressable_shards}) == 8
  assert state.params["q"].addressable_shards[0].data.size * 4 == state.params["q"].size


def test_nothing_is_compiled_after_the_first_steps(tmp_path, chain):
  """From step 3 on no prompt or response needs a new program. Step 2 is the first whose metrics are fetched."""
  seen = []

  def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      seen.append(len(logbook.read_jsonl(tmp_path / "rl" / "metrics.jsonl")))

  jax.clear_caches()  # a program that is found on disk is told as well
  decode_loop.cache_clear()
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    options = ["--config.rl.steps=8", "--config.checkpoint.every=1", "--config.evaluate.every=4"]
    options += ["--config.problems.levels=(1,2,3,4)", "--config.problems.count=20"]
    init = f"--config.init={chain / 'sft-thinking'}"
    assert run("rl", "--config=smoke", f"--workdir={tmp_path / 'rl'}", init, *options) == 0
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert len(seen) > 10 and max(seen) < 3, seen
