"""The code and the commands of docs/extending.md work as they stand there, at a small size."""

import json
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from helpers.command_line import metrics, rollouts, run
from jaxrlvr.base import named
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.model import hf_weights, weight_table
from jaxrlvr.model.score import score
from jaxrlvr.model.spec import Spec
from jaxrlvr.sampling import Sampling, sample
from jaxrlvr.text.answer import parse_response

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)  # (language, text) pairs
SMALL = (
  "--config.rl.steps=1",
  "--config.evaluate.every=0",
  "--config.heldout.count=4",
  "--config.cpt.steps=2",
  "--config.diagnose.problems=4",
  "--config.diagnose.samples=4",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Returns a folder with the files that the page shows, in which the test runs."""
  monkeypatch.setattr(named, "_folders", [])
  monkeypatch.chdir(tmp_path)
  for _, text in BLOCKS:
    name = re.match(r"# (\w+\.py)\n", text)
    if name:
      Path(name[1]).write_text(text)
  for name, first in (("problems.jsonl", 1), ("heldout.jsonl", 5)):
    questions = [f"Start with {number}, then *7, *3, +9, +7, -8. Last digit?" for number in range(first, first + 4)]
    Path(name).write_text("".join(json.dumps({"question": one, "answer": "9"}) + "\n" for one in questions))
  return tmp_path


def follow(init, *changes):
  """Runs the page's commands with these changes, from the policy `init` where they name one of the demo."""
  lines = "".join(text for language, text in BLOCKS if not language).splitlines()
  for line in lines:
    words = [word.replace("runs/demo/sft-thinking", str(init)) for word in shlex.split(line)[1:]]
    if words[0] != "report":
      of_stage = [
        change for change in (*SMALL, *changes) if f".{words[0]}." in change or words[0] in ("rl", "diagnose")
      ]
      words = [word.replace("--config=demo", "--config=smoke") for word in words] + of_stage
    yield words, run(*words)


def test_the_commands_of_the_page_work(folder, init, capsys):
  for words, code in follow(init):
    assert code == 0, (words, capsys.readouterr().err)
  assert "rewards/brevity(limit=60.0)/mean" in metrics("runs/brief")[1]
  assert "rewards/ends_well/mean" in metrics("runs/brief")[1]
  logged = metrics("runs/calm")[1]
  assert all(logged[f"loss/{name}"] > 0 for name in ("entropy", "drift")) and logged["loss/calm"] is not None
  assert rollouts("runs/countdown")[0]["prompt"].startswith("Make ")
  assert json.loads(Path("runs/countdown-diagnosis/diagnosis.json").read_text())["domain"] == "other"
  evaluated = json.loads(Path("runs/evaluation/summary.json").read_text())
  problems = {name: evaluated[f"eval/{name}/problems"] for name in ("arithmetic", "quiz", "countdown")}
  assert problems == {"arithmetic": 10, "quiz": 4, "countdown": 8}
  assert "F(1)/all" in metrics("runs/countdown-judged")[0] and metrics("runs/countdown-judged")[0]["labelled/all"] > 0
  kappa = json.loads(Path("runs/countdown-judged-twice/summary.json").read_text())["kappa"]
  assert kappa["faithfulness"]["both"] > 0 and kappa["strategy"]["both"] > 0
  assert "countdown" in Path("runs/countdown-report/index.html").read_text()


def test_the_task_of_the_page_grades(folder):
  def job(answer):
    return Job("countdown.py:verify", parse_response(f"\\boxed{{{answer}}}", "boxed"), "10", {"numbers": [1, 2, 3, 4]})

  with Service(workers=1) as service:
    verdicts = service.grade([job(text) for text in ("1+2+3+4", "4*3-2*1", "9+1", "2*(1+4)", "1+2+3+", "4+3+2+1")])
  assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_the_family_of_the_page_scores_as_it_samples(folder):
  spec = Spec(16, 8, 2, 2, 1, 4, 12, family="my_family.py:TOY")
  table = weight_table.leaves(spec)
  assert table["q"].hf_name.format(3) == "h.3.attn.query.weight" and "mlp_norm" not in table
  params = weight_table.init(spec, jax.random.key(0))
  tokens, lengths = np.array([[3, 5, 7]]), np.array([3])
  settings = Sampling(group=2, max_tokens=3, eos_ids=(1,))
  keys_B = jax.random.split(jax.random.key(1), 2)
  no_stops = np.zeros((2, 16), np.int32)
  drawn = sample(params, tokens, lengths, keys_B, no_stops, spec, settings)
  text = np.concatenate([np.repeat(tokens, 2, 0), drawn.tokens_BT], 1)
  scored = score(params, text, np.tile(np.arange(6), (2, 1)), np.ones((2, 6), int), spec, start=3)
  is_drawn = np.arange(3) < np.asarray(drawn.length_B)[:, None]
  np.testing.assert_allclose(np.where(is_drawn, scored.logp_BT, 0), np.where(is_drawn, drawn.logp_BT, 0), atol=1e-5)
  written = hf_weights.config_of(spec, "float32", {})
  assert written["parallel_residual"] is True and written["n_embd"] == 8
