"""Runs with a reward, a verifier or a task of a user's own: from a command line, resumed elsewhere, after a change."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from helpers.command_line import QUICK, metrics, rollouts, run, run_smoke
from jaxrlvr.base import logbook, named

REWARDS = """
def picky(prompts, completions, level, **columns):
  assert set(level) == {LEVEL}
  values = [len(text) % 7 for text in completions]
  values[0] = None
  return values


def failing(completion):
  raise ValueError("as ever")
"""
TASK = """
import itertools


def problems(seed):
  for number in itertools.count(seed):
    first, second = number % 10, number // 10 % 10
    prompt = f"Start with {first}, then *7, *3, +{second}, +7, -8. Last digit?"
    yield {"prompt": prompt, "label": (first * 21 + second - 1) % 10, "digit": (first * 21 + second - 1) % 10}


def verify(answer, label, extra):
  return int(answer) == extra["digit"]


def faithfulness(text):
  return 1 if "boxed" in text else 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(named, "_folders", [])
  monkeypatch.chdir(tmp_path)
  Path("my_rewards.py").write_text(REWARDS.replace("LEVEL", "4"))
  Path("say.py").write_text(TASK)
  return tmp_path


def test_a_reward_of_ones_own_is_paid_found_again_and_watched(folder, init, tmp_path_factory, monkeypatch, caplog):
  changes = QUICK | dict(init=init, rl__reward="0.5*my_rewards.py:picky+one_box", rl__optim__warmup=0.0)
  assert run_smoke("rl", "run", **changes | dict(checkpoint__every=1)) == 0
  first, second = rollouts("run")[:2]
  assert first["rewards/picky"] is None and first["reward"] == first["rewards/one_box"]
  assert second["rewards/picky"] == len(second["text"]) % 7
  assert second["reward"] == 0.5 * second["rewards/picky"] + second["rewards/one_box"]
  logged = metrics("run")[1]
  assert logged["unscored"] == 0 and "rewards/picky/mean" in logged and "rewards/one_box/mean" in logged
  code = json.loads(Path("run/manifest.json").read_text())["code"]
  assert "rl.reward 'my_rewards.py:picky'" in code
  workdir = folder / "run"
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  same_command = ("rl", f"--config={workdir / 'config.json'}", f"--workdir={workdir}")
  assert run(*same_command, "--config.rl.steps=3") == 0 and "the code of" not in caplog.text
  monkeypatch.setattr(named, "_folders", [])  # another process, which knows what the last one has written
  (folder / "my_rewards.py").write_text(REWARDS.replace("LEVEL", "4").replace("% 7", "% 1 + 8"))
  assert run(*same_command, "--config.rl.steps=4") == 0
  assert "the code of rl.reward 'my_rewards.py:picky' is not what the run began with" in caplog.text
  (change,) = json.loads((workdir / "manifest.json").read_text())["code_changes"]
  assert change["last_step"] == 3 and list(change["code"]) == ["rl.reward 'my_rewards.py:picky'"]
  assert {row["reward"] for row in rollouts(workdir, 4)} <= {0.0, 1.0, 4.0, 5.0}


def test_a_reward_takes_columns_of_the_file_by_their_names(folder, init, capsys):
  rows = []
  for first, last in itertools.product((1, 2, 3, 4), (4, 5)):
    question = f"Start with {first}, then *7, *3, +{last}, +7, -8. Last digit?"
    rows.append({"question": question, "answer": f"By hand.\n#### {(first * 21 + last - 1) % 10}", "first": first})
  logbook.write_jsonl(Path("train.jsonl"), rows)
  logbook.write_jsonl(Path("test.jsonl"), [rows[0] | {"question": "Start with 5, then *7. Last digit?"}])
  Path("file.py").write_text(
    "def by_row(completions, first, answer):\n  assert all(text.startswith('By hand') for text in answer)\n"
    "  return [number / 10 for number in first]\n"
  )
  sources = dict(problems__source="train.jsonl", heldout__source="test.jsonl", problems__count=0)
  changes = QUICK | dict(init=init, rl__steps=1, heldout__count=1) | sources
  assert run_smoke("rl", "run", **changes, rl__reward="file.py:by_row") == 0
  for row in rollouts("run"):
    assert row["reward"] == pytest.approx(int(row["prompt"].split()[2][0]) / 10) and len(row["label"]) == 1
  Path("file.py").write_text("def by_row(completions, second):\n  return [1 for _ in second]\n")
  assert run_smoke("rl", "other", **changes, rl__reward="file.py:by_row") == 2
  assert "takes the column 'second', which problem" in capsys.readouterr().err


def test_a_reward_that_always_fails_stops_the_run_with_its_cause(folder, init, capsys, caplog):
  assert run_smoke("rl", "run", **QUICK, init=init, rl__reward="my_rewards.py:failing") == 3
  message = capsys.readouterr().err
  assert "100% of the responses are unscored ({'raised': 32})" in message and "mend the reward of yours" in message
  assert "raised for 32 of 32 responses" in caplog.text and "ValueError: as ever" in caplog.text


def test_a_reading_of_ones_own_reads_the_answers_and_is_watched(folder, init, caplog):
  Path("mine.py").write_text("def first_digit(text):\n  return next(c for c in text if c.isdigit())\n")
  changes = QUICK | dict(init=init, rl__steps=1, answer__read="mine.py:first_digit")
  assert run_smoke("rl", "run", **changes) == 0
  for row in rollouts("run"):
    behind_thinking = row["text"].rpartition("</think>")[2]
    digits = "" if "<think>" in behind_thinking else "".join(c for c in behind_thinking if c.isdigit())
    assert row["answer"] == (digits[0] if digits else None)
  assert any(row["answer"] for row in rollouts("run"))
  assert "answer.read 'mine.py:first_digit'" in json.loads(Path("run/manifest.json").read_text())["code"]
  Path("mine.py").write_text("def first_digit(text):\n  return text[:1]\n")
  assert run("rl", "--config=run/config.json", "--workdir=run", "--config.rl.steps=2") == 0
  assert "the code of answer.read 'mine.py:first_digit' is not what the run began with" in caplog.text


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (
      dict(rl__reward="my_rewards.py:pick"),
      "config.rl.reward: my_rewards.py:pick: there is no pick; did you mean picky?",
    ),
    (dict(rl__reward="other.py:pick"), "config.rl.reward: other.py: no such file"),
    (dict(rl__reward="say.py:verify"), "has the parameters (answer, label, extra), which is no known shape"),
    (
      dict(answer__read="say.py:verify"),
      "config.answer.read: say.py:verify: takes (answer, label, extra); it must take",
    ),
    (dict(problems__source="my_rewards.py"), "config.problems: my_rewards.py: has no function problems"),
    (dict(problems__source="say.py", problems__verifier="say.py:verify"), "config.problems.verifier has no effect"),
  ],
)
def test_what_can_not_be_found_is_told_before_anything_compiles(folder, init, capsys, changes, words):
  assert run_smoke("rl", "run", **QUICK | changes, init=init) == 2
  assert words in capsys.readouterr().err and not Path("run/metrics.jsonl").exists()


def test_a_task_in_one_file_is_trained_on_and_diagnosed(folder, init):
  task = dict(problems__source="say.py")
  assert run_smoke("rl", "run", **QUICK | dict(rl__steps=1, evaluate__every=1), init=init, **task) == 0
  row = rollouts("run")[0]
  assert row["prompt"].startswith("Start") and row["faithfulness"] in (0.0, 1.0)
  assert any(row["true_reward"] == 1 for row in rollouts("run")), "the policy boxes a digit now and then"
  heldout = {row["problem"] for row in logbook.read_jsonl(next(Path("run/evals").glob("*.jsonl")))}
  assert heldout and not heldout & {row["problem"] for row in rollouts("run")}


def test_the_judge_exact_measures_the_faithfulness_of_a_task_and_says_that_it_compares_no_strategies(
  folder, init, tmp_path_factory, monkeypatch, capsys
):
  small = dict(init=init, problems__source="say.py", diagnose__problems=4, diagnose__samples=4)
  assert run_smoke("diagnose", "diagnosis", **small) == 0
  page = Path("diagnosis/diagnosis.md").read_text()
  assert "It compared no strategies: diversity is **not measured**" in page and "| F(1)/correct | not" not in page
  judging = json.loads(Path("diagnosis/diagnosis.json").read_text())["judging"]
  assert judging["measured"] and judging["labels"] == judging["responses"] == 16
  assert run_smoke("rl", "run", **QUICK | dict(rl__steps=1), init=init, problems__source="say.py") == 0
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  monkeypatch.setattr(named, "_folders", [])
  judge = ("judge", "--config=smoke", "--workdir=judged", f"--config.judge.run={folder / 'run'}")
  assert run(*judge) == 0
  figures = metrics("judged")[0]
  recorded = [row["faithfulness"] for row in rollouts(folder / "run")]
  assert figures["F(1)/all"] == recorded.count(1.0) / len(recorded) and figures["diversity"] is None
  assert "diversity: not measured" in capsys.readouterr().out
  Path("judged/summary.json").unlink()
  (folder / "say.py").write_text(TASK.replace("return 1 if", "return 0.5 if"))
  assert run(*judge) == 2 and "tasks are not those the run began with" in capsys.readouterr().err


@pytest.mark.slow  # tests/training/test_terms.py has the identities in seconds
def test_a_term_of_the_loss_equals_the_kl_term_finds_a_reference_and_compiles_once(folder, init):
  Path("my_losses.py").write_text(
    "import jax.numpy as jnp\n\n\ndef k3(logp, ref_logp):\n  d = ref_logp - logp\n"
    "  return jnp.exp(d) - jnp.array([1.0]) - d\n"
  )
  seen = []

  def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      seen.append(len(metrics("term")))

  changes = dict(init=init, rl__steps=5, evaluate__every=0, heldout__count=8, rl__optim__lr=0.01, rl__pack=True)
  changes |= dict(rl__minibatch_problems=4, checkpoint__every=1)
  jax.clear_caches()  # a program that is found on disk is told as well
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    assert run_smoke("rl", "term", **changes, rl__kl_beta=0, rl__loss_terms="2*my_losses.py:k3") == 0
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert len(seen) > 10 and max(seen) < 3, seen
  assert run_smoke("rl", "kl", **changes, rl__kl_beta=2.0) == 0
  for ours, theirs in zip(metrics("term")[1:], metrics("kl")[1:], strict=True):
    for name in ("loss", "grad_norm", "kl"):
      assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
    assert ours["loss/k3"] == pytest.approx(theirs["kl"], abs=1e-5)
  assert ours["kl"] > 0
  assert "rl.loss_terms 'my_losses.py:k3'" in json.loads(Path("term/manifest.json").read_text())["code"]


@pytest.mark.slow  # tests/training/test_terms.py has the identities in seconds
def test_a_bonus_for_entropy_is_paid_where_no_response_is_better_than_others(folder, init):
  Path("same.py").write_text("def same(completion):\n  return 1\n")
  changes = dict(init=init, rl__steps=2, evaluate__every=0, heldout__count=8, rl__reward="same.py:same", rl__kl_beta=0)
  changes |= dict(rl__pack=True)
  assert (
    run_smoke("rl", "without", **changes) == 0 and run_smoke("rl", "bonus", **changes, rl__loss_terms="-1*entropy") == 0
  )
  assert metrics("without")[1]["grad_norm"] == 0 and metrics("bonus")[1]["grad_norm"] > 0.01
  assert metrics("bonus")[1]["loss"] == pytest.approx(-metrics("bonus")[1]["loss/entropy"], abs=1e-5)


@pytest.mark.slow
def test_a_grid_with_a_reward_of_ones_own_is_killed_and_goes_on(folder, init):
  Path("grid.py").write_text(
    "from jaxrlvr.config import base\n\n\ndef get_config(arg=''):\n  c = base('smoke')\n  c.grid.jobs = 2\n"
    f"  c.init, c.evaluate.every, c.rl.steps, c.checkpoint.every = {str(init)!r}, 0, 12, 1\n"
    "  c.rl.reward = 'my_rewards.py:picky'\n"
    "  c.chain = tuple({'name': n, 'stage': 'rl', 'set': {'seed': s}} for s, n in enumerate('ab'))\n  return c\n"
  )
  command = [sys.executable, "-m", "jaxrlvr.cli", "grid", "--config=grid.py", "--workdir=runs"]
  process = subprocess.Popen(command)
  deadline = time.monotonic() + 240
  while len(metrics("runs/a")) < 3 and time.monotonic() < deadline and process.poll() is None:
    time.sleep(0.1)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert len(metrics("runs/a")) >= 3
  assert subprocess.run(command).returncode == 0
  assert [row["step"] for row in metrics("runs/a")] == list(range(13))
