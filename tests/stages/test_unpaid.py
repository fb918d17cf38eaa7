"""A run without reward: the kinds of its answers, the one warning that names them, and its summary."""

import json

import numpy as np
import pytest

from helpers.command_line import QUICK, metrics, run_smoke
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files as configs
from jaxrlvr.stages.unpaid import ANSWER_KINDS, STEPS, Unpaid, answer_shares

CURES = {
  "cut_off": "config.rl.response_tokens",
  "unparseable": "config.answer.read",
  "wrong": "jaxrlvr filter",
  "unscored": "config.verify.cpu_seconds",
  "right": "config.rl.reward",
}


def row(kind, reward=0.0, std=0.0):
  return {"reward": reward, "reward_std": std} | {f"answers/{k}": float(k == kind) for k in ANSWER_KINDS}


def test_each_answer_is_of_one_kind():
  true = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
  scored = np.array([[True, True, True, True], [True, True, False, False]])
  cause = [["", "", "unparseable", "unparseable"], ["", "", "timeout", "died"]]
  cut = np.array([[False, True, True, False], [True, False, True, False]])
  assert answer_shares(true, scored, cause, cut) == {
    "answers/right": 2 / 8,
    "answers/cut_off": 2 / 8,
    "answers/unparseable": 1 / 8,
    "answers/wrong": 1 / 8,
    "answers/unscored": 2 / 8,
  }


@pytest.mark.parametrize("kind", ANSWER_KINDS)
def test_one_warning_names_the_shares_and_the_key(kind, caplog):
  config = configs.load("base", {})
  unpaid = Unpaid([{"step": 0}], config)
  for step in range(1, 3 * STEPS):
    unpaid.observe(step, row(kind, float("nan") if kind == "unscored" else 0.0))
    assert len(caplog.messages) == (step >= STEPS)
  assert CURES[kind] in caplog.text and f"100% {kind.replace('_', ' ')}" in caplog.text
  assert CURES[kind] in unpaid.summary()["unpaid"]
  caplog.clear()
  resumed = Unpaid([row(kind)] * STEPS, config)
  resumed.observe(STEPS + 1, row(kind))
  assert not caplog.messages  # it was told before


def test_a_run_that_is_paid_is_not_warned_of(caplog):
  unpaid = Unpaid([], configs.load("base", {}))
  for step in range(1, 20):
    unpaid.observe(step, row("wrong", -0.5) if step % 2 else row("wrong", 0.0, 0.1))
  assert not caplog.messages and unpaid.summary() == {}


def test_a_run_of_cut_responses_says_so(tmp_path, init, caplog):
  """No answer is boxed within two tokens; if such responses are masked, updates have nothing to do."""
  more = dict(rl__response_tokens=2, rl__mask_truncated=True, rl__reward="random", rl__kl_beta=0.0)
  assert run_smoke("rl", tmp_path / "masked", init=init, **QUICK, **more) == 0
  last = metrics(tmp_path / "masked")[-1]
  assert last["completions/clipped_ratio"] == 1 and last["reward_std"] > 0
  assert last["grad_norm"] == 0 and last["empty_updates"] == 1 and last["learning_rate"] == pytest.approx(1e-4)
  assert "unpaid" not in json.loads((tmp_path / "masked" / "summary.json").read_text())
  caplog.clear()
  more |= dict(rl__reward="verifiable", rl__mask_truncated=False)
  assert run_smoke("rl", tmp_path / "cut", init=init, **QUICK, **more) == 0
  assert metrics(tmp_path / "cut")[-1]["answers/cut_off"] == 1
  assert (
    "raise config.rl.response_tokens (now 2)" in json.loads((tmp_path / "cut" / "summary.json").read_text())["unpaid"]
  )
  assert sum("no response was paid anything" in message for message in caplog.messages) == 2  # once, and at the end


def test_a_greedy_evaluation_takes_one_sample():
  with pytest.raises(InputError, match="is greedy.*evaluate.samples=1"):
    configs.load("base", {"evaluate.temperature": "0"})
  configs.load("base", {"evaluate.temperature": "0", "evaluate.samples": "1", "evaluate.pass_k": "1,"})
