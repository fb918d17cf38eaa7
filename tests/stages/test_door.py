"""The Python door: stages as functions, runs for reading, policies that generate and score, a loop of one's own."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrlvr as jr
from helpers.command_line import QUICK, run_smoke
from helpers.hf_directories import write_model
from jaxrlvr.base import named
from jaxrlvr.door import own_code
from jaxrlvr.rewards import expression

TIMES = ("step_time", "idle")  # metrics that no two runs have in common


def quick(init, **changes):
  """Returns the smoke config with small sizes. `__` in a key stands for a dot."""
  keys = QUICK | dict(init=str(init), rl__shrink=0, rl__optim__warmup=0.0) | changes
  return jr.config("smoke", {key.replace("__", "."): value for key, value in keys.items()})


def odd_length(completions, **columns):
  return [len(text) % 2 for text in completions]


def without_times(run):
  return [{name: value for name, value in row.items() if name not in TIMES} for row in run.metrics]


@pytest.fixture(scope="module")
def trained(init, tmp_path_factory):
  """A finished run of three steps, evaluated at the second and the third."""
  return jr.train(quick(init, rl__steps=3, evaluate__every=2), tmp_path_factory.mktemp("door") / "rl")


def test_a_run_of_the_door_is_that_of_the_command_line(trained, init, tmp_path):
  assert run_smoke("rl", tmp_path / "rl", init=init, **QUICK | dict(rl__steps=3, evaluate__every=2)) == 0
  by_command = jr.Run(tmp_path / "rl")
  np.testing.assert_equal(without_times(trained), without_times(by_command))
  assert trained.rollouts == by_command.rollouts and trained.evaluations == by_command.evaluations


def test_a_run_is_read_from_its_directory(trained):
  assert (trained.stage, trained.config.rl.steps, trained.summary["steps"]) == ("rl", 3, 3)
  assert [row["step"] for row in trained.metrics] == [0, 1, 2, 3]
  table = trained.table()
  assert (
    list(table["step"]) == [0, 1, 2, 3]
    and np.isnan(table["loss"][0])
    and table["loss"][3] == trained.metrics[3]["loss"]
  )
  assert list(trained.rollouts) == [1, 2, 3] and len(trained.rollouts[2]) == 32
  assert list(trained.evaluations) == [("heldout", 0), ("heldout", 2), ("heldout", 3)]
  assert trained.evaluations["heldout", 3][0]["step"] == 3
  assert repr(trained) == f"Run({str(trained.workdir)!r}): rl, finished"
  page = trained.report()
  assert page == trained.workdir.with_name("rl-report") / "index.html" and "<svg" in page.read_text()


def test_the_table_is_a_data_frame_where_pandas_is_installed(trained, tmp_path, monkeypatch):
  (tmp_path / "pandas.py").write_text("class DataFrame(dict):\n  pass\n")
  monkeypatch.delitem(sys.modules, "pandas", raising=False)
  monkeypatch.syspath_prepend(tmp_path)
  assert type(trained.table()).__name__ == "DataFrame" and list(trained.table()["step"]) == [0, 1, 2, 3]
  monkeypatch.delitem(sys.modules, "pandas")


def test_a_finished_run_is_returned_and_an_absent_one_refused(trained, init, tmp_path):
  changed = (trained.workdir / "summary.json").stat().st_mtime_ns
  again = jr.train(quick(init, rl__steps=3, evaluate__every=2), trained.workdir)
  assert again.summary == trained.summary and (trained.workdir / "summary.json").stat().st_mtime_ns == changed
  with pytest.raises(jr.InputError, match="holds no run"):
    jr.Run(tmp_path)
  with pytest.raises(jr.InputError, match="holds a run of stage 'rl', not 'evaluate'"):
    jr.evaluate(quick(init), trained.workdir)


def test_a_loop_of_ones_own_is_that_of_training(trained, init, tmp_path):
  """The first loop is left after a step, the second goes on behind it."""
  config = quick(init, rl__steps=3, evaluate__every=2)
  with jr.Trainer(config, tmp_path / "rl") as trainer:
    for _ in trainer:
      responses = trainer.sample()
      grades = trainer.grade(responses)
      reward = trainer.update(grades)["reward"]
      assert reward == pytest.approx(np.nanmean(grades.rewards))
      break
  assert responses.step == 1 and not trainer.run.summary
  assert [row["text"] for row in trained.rollouts[1]] == sum(responses.texts, [])
  assert len(responses.prompts) == len(responses.answers) == 8 and responses.lengths.shape == (8, 4)
  with jr.Trainer(config, tmp_path / "rl") as trainer:
    steps = []
    for step in trainer:
      steps.append(step)
      trainer.update(trainer.grade(trainer.sample()))
    assert steps == [2, 3] and list(trainer) == []
  np.testing.assert_equal(without_times(trainer.run), without_times(trained))
  assert trainer.run.rollouts == trained.rollouts and trainer.run.summary == trained.summary


def test_a_loop_may_pay_what_it_likes_and_use_the_policy(init, tmp_path):
  with jr.Trainer(quick(init), tmp_path / "rl") as trainer:
    for _ in trainer:
      responses = trainer.sample()
      paid = responses.lengths / 10
      paid[0, 0] = np.nan
      answers = trainer.policy.generate(responses.prompts[:1], max_tokens=4)
      assert len(answers[0]) == 1 and len(answers[0][0].tokens) <= 4
      graded = trainer.grade(responses)
      with pytest.raises(jr.InputError, match="8 problems x 4 samples"):
        graded.with_rewards(paid[0])
      figures = trainer.update(graded.with_rewards(paid))
      assert figures["reward"] == pytest.approx(np.nanmean(paid))
      assert figures["unscored/abstained"] == 1 / 32 and "false_positive_rate" not in figures
      with pytest.raises(jr.InputError, match="once a step"):
        trainer.update(graded)
  first, second = trainer.run.rollouts[1][:2]
  assert first["reward"] is None and second["reward"] == pytest.approx(second["tokens"] / 10)
  with pytest.raises(jr.InputError, match="is not open"):
    trainer.sample()


def test_a_reward_may_compute_with_jax(init, tmp_path):
  @jax.jit
  def tenth(lengths):
    return lengths / 10

  def batched(completions):
    return tenth(jnp.asarray([len(text) for text in completions], jnp.float32))

  def single(completion):
    return jnp.float32(len(completion)) / 10

  run = jr.train(
    quick(init, rl__steps=1, rl__reward="batched + single"),
    tmp_path / "rl",
    reward=dict(batched=batched, single=single),
  )
  for row in run.rollouts[1]:
    assert row["reward"] == pytest.approx(len(row["text"]) / 5, abs=1e-5)


def test_two_trainers_at_once_pay_by_their_own_functions(init, tmp_path):
  first = jr.Trainer(quick(init), tmp_path / "first", reward=lambda completions: [0.25] * len(completions))
  second = jr.Trainer(quick(init), tmp_path / "second", reward=lambda completions: [0.75] * len(completions))
  with second:
    with first:
      for _ in zip(first, second, strict=True):
        grades = [trainer.grade(trainer.sample()) for trainer in (first, second)]
        assert [set(one.rewards.flat) for one in grades] == [{0.25}, {0.75}]
        first.update(grades[0])
        break
    assert set(second.grade(second.sample()).rewards.flat) == {0.75}
  assert {row["reward"] for row in first.run.rollouts[1]} == {0.25}


def test_a_step_without_an_update_is_refused(init, tmp_path):
  with pytest.raises(jr.InputError, match="step 1 ends without trainer.update"):
    with jr.Trainer(quick(init), tmp_path / "rl") as trainer:
      for _ in trainer:
        trainer.sample()


def test_the_sampler_and_the_scorer_agree(trained):
  policy = trained.policy
  prompts = ["1 + 1?", [{"role": "user", "content": "Start with 3."}], "1 + 1?"]
  generated = policy.generate(prompts, samples=3, max_tokens=8, seed=5)
  assert [len(samples) for samples in generated] == [3, 3, 3] and generated[0] != generated[2]
  pairs = [(prompt, sample) for prompt, samples in zip(prompts, generated, strict=True) for sample in samples]
  for (_, sample), score in zip(pairs, policy.score(pairs), strict=True):
    assert score.tokens == sample.tokens and len(sample.tokens) <= 8
    np.testing.assert_allclose(score.token_logp, sample.token_logp, atol=1e-4)
    assert score.logp == pytest.approx(sample.logp, abs=1e-3)

  def tokens(**settings):
    return [sample.tokens for sample in policy.generate(prompts[:1], max_tokens=8, **settings)[0]]

  assert tokens(samples=3, seed=5) == [sample.tokens for sample in generated[0]], "whatever stands beside it"
  assert tokens(samples=3, seed=6) != tokens(samples=3, seed=5)
  assert tokens(samples=2, temperature=0)[0] == tokens(samples=2, temperature=0, seed=1)[1]


def test_texts_are_scored(trained):
  text, pair = trained.policy.score(["1 + 1 = 2", ("1 + 1?", "2")])
  assert len(text.tokens) == len(text.token_logp) and text.logp == pytest.approx(sum(text.token_logp), abs=1e-3)
  assert all(logp < 0 for logp in pair.token_logp) and pair.tokens[-1] == 2 != text.tokens[-1], "it ends with </s>"
  for wrong in ("1 + 1", [[{"role": "user"}]]):
    with pytest.raises(jr.InputError, match="is one text|wanted a text"):
      trained.policy.generate(wrong)


def test_a_lambda_is_paid_and_a_change_of_it_is_told(init, tmp_path, caplog):
  def limited(limit):
    return lambda completions: [float(len(text) > limit) for text in completions]

  def steps(count, reward=None):
    return jr.train(quick(init, rl__steps=count, rl__reward="0.5*long + one_box"), tmp_path / "rl", reward=reward)

  run = steps(1, {"long": limited(5)})
  assert run.config.rl.reward == "0.5*given:long + one_box" and "rewards/long/mean" in run.metrics[1]
  row = run.rollouts[1][0]
  assert row["reward"] == 0.5 * (len(row["text"]) > 5) + row["text"].count("\\boxed")
  steps(2, {"long": limited(5)})
  assert "the code of" not in caplog.text
  steps(3, {"long": limited(6)})
  assert "the code of rl.reward 'given:long' is not what the run began with" in caplog.text
  with pytest.raises(jr.InputError, match="given:long: is an object that was passed from Python; pass it again"):
    jr.train(jr.config(str(tmp_path / "rl" / "config.json"), {"rl.steps": 4}), tmp_path / "rl")


def test_a_function_that_can_be_imported_is_named_by_its_module(init, tmp_path):
  run = jr.train(quick(init, rl__steps=1), tmp_path / "rl", reward=odd_length)
  assert run.config.rl.reward == f"{__name__}:odd_length"
  row = run.rollouts[1][0]
  assert row["reward"] == len(row["text"]) % 2
  with own_code.configured(quick(init, rl__reward="verifiable - 1e-1*odd_length"), "rl", odd_length) as config:
    assert config.rl.reward == f"verifiable - 1e-1*{__name__}:odd_length"


def test_a_word_of_the_reward_that_nobody_passed_is_refused(init):
  config = quick(init, rl__reward="verifiable + 0.1*brev")
  with pytest.raises(jr.InputError, match="names 'brev', which is neither a reward of the table nor passed"):
    with own_code.configured(config, "rl", {"brevv": odd_length}):
      pass


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (dict(reward=3), "reward is int, no function"),
    (dict(reward={"one_box": odd_length}), "is a reward of the table"),
    (dict(reward={"a": odd_length, "b": odd_length}), "does not name it; write how all are combined, as a [+] b"),
    (dict(reward=lambda x: 1), r"given:reward: has the parameters \(x\), which is no known shape"),
    (dict(verifier=lambda answer, label: True), "verifier=verifier: has no effect"),
    (dict(verifier="math"), "verifier is str, no function"),
    (dict(reward=[odd_length]), 'pass a function, or several as {"name": function}'),
  ],
)
def test_a_function_that_does_not_fit_is_refused(init, arguments, words):
  with pytest.raises(jr.InputError, match=words), own_code.configured(quick(init), "rl", **arguments):
    pass


def test_a_grid_is_refused_what_only_this_process_knows(init):
  with pytest.raises(jr.InputError, match="long: was passed from Python, which a grid's processes don't know"):
    with own_code.configured(quick(init), "grid", {"long": lambda completions: [1.0] * len(completions)}):
      pass


def test_a_config_of_another_type_and_an_unread_reward_are_refused(init):
  with pytest.raises(jr.InputError, match="make one, as jr.config"), own_code.configured("smoke", "rl"):
    pass
  with (
    pytest.raises(jr.InputError, match="reads no config.rl.reward"),
    own_code.configured(quick(init), "sft", odd_length),
  ):
    pass
  with pytest.raises(jr.InputError, match="stage='rll'"):
    jr.train(quick(init), "unused", stage="rll")


def test_a_verifier_that_was_passed_grades_in_worker_processes_and_under_an_event_loop(init, tmp_path):
  lines = [{"prompt": f"Digit {n}?", "label": str(n)} for n in range(8)]
  for name in ("train", "test"):
    (tmp_path / f"{name}.jsonl").write_text(
      "".join(json.dumps(line | {"prompt": line["prompt"] + name}) + "\n" for line in lines)
    )
  allowed = {"3", "7"}
  sources = dict(problems__source=str(tmp_path / "train.jsonl"), heldout__source=str(tmp_path / "test.jsonl"))
  config = quick(init, rl__steps=1, problems__count=0, **sources | dict(heldout__count=0))

  async def train():
    return jr.train(config, tmp_path / "rl", verifier=lambda answer, label: answer in allowed)

  run = asyncio.run(train())
  assert run.config.problems.verifier == run.config.heldout.verifier == "given:verifier"
  graded = [row for row in run.rollouts[1] if row["answer"]]
  assert graded and all(row["true_reward"] == float(row["answer"] in allowed) for row in graded)
  evaluated = jr.evaluate(
    quick(run.workdir, **sources | dict(heldout__count=0)), tmp_path / "eval", verifier=lambda answer, label: True
  )
  assert evaluated.metrics[0]["eval/heldout/avg@4"] == evaluated.metrics[0]["eval/heldout/format"]
  assert list(evaluated.evaluations) == [("heldout", 0)]


def test_a_model_of_hugging_faces_form_generates_and_scores(tmp_path):
  policy = jr.load_policy(write_model(tmp_path / "model"))
  (sample,) = policy.generate(["2 + 2?"], max_tokens=6, temperature=0.5)[0]
  (score,) = policy.score([("2 + 2?", sample)])
  np.testing.assert_allclose(score.token_logp, sample.token_logp, atol=1e-4)
  assert len(policy.score(["2 + 2 = 4"])[0].tokens) >= 3
  with pytest.raises(jr.InputError, match="no-such-place"):
    jr.load_policy(tmp_path / "no-such-place")


def test_texts_that_need_other_angles_are_refused_with_the_cure(tmp_path):
  """The model has 64 positions, and the default config allows texts of 48 + 56 tokens."""
  folder = write_model(tmp_path / "model")
  content = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(content | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
  policy = jr.load_policy(folder)
  long = "2 + 2 " * 100
  for read in (
    lambda: policy.generate([long]),
    lambda: policy.score([long]),
    lambda: policy.generate(["2"], max_tokens=104),
  ):
    with pytest.raises(jr.InputError, match="scaling 'dynamic' depends on the longest text.* load the policy with a"):
      read()
  assert policy.score(["2 + 2 = 4"])


def test_a_diagnosis_and_a_plan_are_runs_with_a_page(init, tmp_path):
  run = jr.diagnose(quick(init, diagnose__problems=4, diagnose__samples=4), tmp_path / "diagnosis")
  assert run.report() == run.workdir / "diagnosis.md" and run.metrics[0]["usable"] == run.summary["figures"]["usable"]
  assert len(run.policy.generate(["1 + 1?"], max_tokens=3)[0]) == 1, "by the policy that it diagnoses"
  (tmp_path / "plan").mkdir()
  for name, text in (("plan.json", '{"fits": true}'), ("plan.md", "# Plan")):
    (tmp_path / "plan" / name).write_text(text)
  plan = jr.Run(tmp_path / "plan")
  assert (plan.stage, plan.summary, plan.metrics) == ("plan", {"fits": True}, [])
  assert plan.report().read_text() == "# Plan"
  with pytest.raises(jr.InputError, match="a plan records no config"):
    plan.config  # noqa: B018
  with pytest.raises(jr.InputError, match="no page about this run of the stage sft"):
    jr.Run(init).report()


def test_words_of_an_expression_are_replaced_by_names():
  names = {"brief": "given:brief", "e1": "a.b:e1"}
  for text, expected, used in (
    ("0.5*brief + 1e1*e1", "0.5*given:brief + 1e1*a.b:e1", {"brief", "e1"}),
    ("brief(limit=2)*my.py:brief", "given:brief(limit=2)*my.py:brief", {"brief"}),
    ("given:brief - x.brief", "given:brief - x.brief", {"brief"}),
    ("one_box(brief=1)*briefer", "one_box(brief=1)*briefer", set()),
  ):
    assert expression.with_own_names(text, names) == (expected, used)


def test_the_code_behind_a_given_function_is_what_it_calls_and_keeps():
  def sources(function):
    with named.given({"f": function}):
      return named.sources("given:f")

  space: dict = {}
  exec("def helper(x):\n  return x + 1\n\ndef paid(completions):\n  return [helper(1) for _ in completions]", space)
  before = sources(space["paid"])
  assert before == sources(space["paid"])
  exec("def helper(x):\n  return x + 2", space)
  assert sources(space["paid"]) != before


def test_importing_the_door_loads_nothing_heavy():
  code = (
    "import sys, jaxrlvr as jr; jr.config, jr.train, jr.evaluate\n"
    "sys.exit(bool({'jax', 'ml_collections', 'numpy'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
  assert set(jr.__all__) <= set(dir(jr)) and callable(jr.config)
  with pytest.raises(AttributeError, match="it has .*train"):
    jr.fit  # noqa: B018


def test_the_page_on_python_runs(init, tmp_path, monkeypatch, capsys):
  """Its blocks are run one after another, with the sizes of the smoke config."""
  page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
  code = "\n".join(re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S))
  for shown, small in (
    ('"demo"', '"smoke"'),
    ("runs/demo/sft-thinking", str(init)),
    ('"rl.steps": 20', '"rl.steps": 2'),
  ):
    assert shown in code
    code = code.replace(shown, small)
  monkeypatch.chdir(tmp_path)
  space: dict = {"__name__": "__main__"}
  exec(code, space)
  assert space["run"].config.rl.reward == "verifiable + 0.1*given:brevity"
  assert len(space["rewards"]) == 2 and len(space["texts"]) == 32 and space["page"].is_file()
  assert space["scores"][2].logp == pytest.approx(space["samples"][0].logp, abs=1e-3)
  by_hand = jr.Run("runs/by-hand")
  np.testing.assert_equal(without_times(by_hand), without_times(space["run"]))
  assert f"2 {by_hand.metrics[2]['reward']}" in capsys.readouterr().out
