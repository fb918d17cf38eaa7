"""Rewards: every row of the table on invented answers, votes, expressions, noise, corrections, and the true reward."""

import json
import math

import numpy as np
import pytest

from helpers.grading import parse_row
from jaxrlvr.analysis import reward_vs_truth
from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.grading.vote import elect
from jaxrlvr.rewards import expression as reward
from jaxrlvr.rewards.draws import uniform
from jaxrlvr.rewards.noise import add_noise
from jaxrlvr.rewards.table import REWARDS
from jaxrlvr.rewards.types import Answers
from jaxrlvr.rewards.verifiable import labels_right, with_memory
from jaxrlvr.text.answer import boxed_response
from jaxrlvr.training import loss

THINK = "<think>\nso\n</think>\n"
TEXTS = [
  [f"{THINK}\\boxed{{4}}", "\\boxed{4}", "\\boxed{5}", "no idea"],
  [f"{THINK}\\boxed{{7}} or so", "<think>\\boxed{6}</think>", f"{THINK}\\boxed{{7}}", "\\boxed{1} \\boxed{6}"],
]
STATISTICS = {
  "certainty": np.array([[1.0, 2.0, 3.0, 4.0], [0.5, 0.25, 0.0, np.nan]]),
  "entropy": np.array([[0.5, 0.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]),
  "sequence_logp": -np.arange(8.0).reshape(2, 4),
}


def problem(name, label, truth=None, verifier="arithmetic", **extra):
  return Problem(name, ({"role": "user", "content": name},), label, truth or label, verifier, extra)


PROBLEMS = [problem("a", "4"), problem("b", "6", "7")]


def answers(problems=PROBLEMS, texts=TEXTS, statistics=STATISTICS, **more):
  samples = np.tile(np.arange(len(texts[0])), (len(texts), 1))
  responses = [parse_row(row) for row in texts]
  return Answers(problems, responses, statistics, samples, **more)


def paid(expression, given=None, grade=None):
  given = given or answers()
  with Service(workers=1) as service:
    return reward.grade_terms(reward.parse(expression), given, with_memory(grade or service.grade))


@pytest.mark.parametrize(
  ("expression", "value"),
  [
    ("verifiable", [[1, 1, 0, 0], [0, 0, 0, 1]]),
    ("inverse", [[0, 0, 1, 0], [1, 0, 1, 0]]),  # no answer, no pay
    ("majority_vote", [[1, 1, 0, 0], [1, 0, 1, 0]]),
    ("majority_vote_thinking", [[1, 0, 0, 0], [1, 0, 1, 0]]),
    ("wrong_label", [[0, 0, 1, 0], [0, 0, 0, 1]]),
    ("think_tags", [[1, 0, 0, 0], [1, 1, 1, 0]]),
    ("one_box", [[1, 1, 1, 0], [1, 1, 1, 0]]),
    ("box_last", [[1, 1, 1, 0], [0, 0, 1, 1]]),
    ("thinking_format", [[1, 0, 0, 0], [1, 0, 1, 0]]),
    ("study_thinking_format", [[1, 0, 0, 0], [1, 0, 1, 0]]),
    ("verifiable*thinking_format", [[1, 0, 0, 0], [0, 0, 0, 0]]),
    ("self_certainty", [[1, 2, 3, 4], [0.5, 0.25, 0, np.nan]]),
    ("token_entropy", [[-0.5, 0, -2, -1], [-1, -1, -1, -1]]),
    ("sequence_entropy", [[0, -1, -2, -3], [-4, -5, -6, -7]]),
    ("random(1)", [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ("random(0)", [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ("random(rate=1)", [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ("0.75*verifiable + 0.25*one_box", [[1, 1, 0.25, 0], [0.25, 0.25, 0.25, 0.75]]),
    ("one_box - 2*(verifiable + think_tags)", [[-3, -1, 1, 0], [-1, -1, -1, -2]]),
    ("-verifiable*0.5", [[-0.5, -0.5, 0, 0], [0, 0, 0, -0.5]]),
  ],
)
def test_rewards(expression, value):
  graded, parts = paid(expression)
  value = np.array(value, np.float32)
  np.testing.assert_array_equal(graded.scored_PG, np.isfinite(value))
  np.testing.assert_allclose(graded.value_PG, np.nan_to_num(value))
  assert graded.value_PG.dtype == np.float32
  assert set(parts) == set(reward.titles(reward.parse(expression)).values())


def test_every_row_of_the_table_pays_something_finite():
  for name, row in REWARDS.items():
    graded, _ = paid(name)
    assert np.isfinite(graded.value_PG).all() and graded.value_PG.any(), name
    if row.binary:
      assert set(graded.value_PG.ravel()) <= {0.0, 1.0}, name
    assert reward.is_binary(reward.parse(name)) is row.binary


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("verifable", "did you mean 'verifiable'"),
    ("best", "use verifiable"),
    ("my.py:brief(3)", "name the numbers of my.py:brief, as my.py:brief(limit=3)"),
    ("verifiable +", "can't be read"),
    ("verifiable/2", "verifiable / 2"),
    ("1.0", "a number alone"),
    ("verifiable + 0.1", "a number alone"),
    ("verifiable*True", "True"),
    ("random(2)", "RATE in [0, 1]"),
    ("one_box(0.5)", "one_box takes no numbers"),
    ("random(0.1, 0.2)", "RATE in [0, 1]"),
    ("random(odds=0.1)", "RATE in [0, 1]"),
    ("random(one_box)", "not understood"),
    ("__import__('os').system('true')", "not understood"),
    ("", "can't be read"),
    ("1e999*verifiable", "1e309"),
  ],
)
def test_expressions_that_mean_nothing_are_named(text, words):
  with pytest.raises(InputError, match="reward") as error:
    reward.parse(text)
  assert words in str(error.value)


def test_sums_and_reals_are_not_binary():
  for text in ("2*verifiable", "verifiable + one_box", "self_certainty*verifiable"):
    assert not reward.is_binary(reward.parse(text))
  assert reward.is_binary(reward.parse("verifiable*random(0.2)"))
  assert reward.needs_votes(reward.parse("one_box + 0.1*majority_vote")) and not reward.needs_votes(
    reward.parse("one_box")
  )


# Three outcomes


def test_what_nobody_could_grade_is_unscored_in_every_reward_that_asks():
  def grade(jobs):
    return [
      Verdict(None, "timeout") if "5" in job.response.text else Verdict(float("4" in job.response.text)) for job in jobs
    ]

  for expression in ("verifiable", "inverse", "0.5*verifiable + 0.5*one_box", "verifiable*think_tags"):
    graded, _ = paid(expression, grade=grade)
    assert graded.scored_PG.tolist() == [[True, True, False, True], [True] * 4], expression
    assert graded.cause_PG[0] == ["", "", "timeout", ""] and graded.value_PG[0, 2] == 0


def test_what_is_unscored_is_no_wrong_answer():
  def grade(jobs):
    return [
      Verdict(None, "timeout") if "5" in job.response.text else Verdict(float("4" in job.response.text)) for job in jobs
    ]

  graded, _ = paid(
    "wrong_label", answers([problem("a", "4")], [["\\boxed{5}", "\\boxed{5}", "\\boxed{6}", "\\boxed{4}"]]), grade
  )
  assert graded.value_PG.tolist() == [[0, 0, 1, 0]]


def test_a_wrong_label_pays_nobody_whose_truth_is_unknown():
  def grade(jobs):
    return [
      Verdict(None, "timeout") if job.response.answer == "5" else Verdict(float(job.response.answer == job.label))
      for job in jobs
    ]

  texts = [["\\boxed{6}", "\\boxed{5}", "\\boxed{6}", "\\boxed{4}"], ["\\boxed{5}"] * 4]
  graded, _ = paid("wrong_label", answers([problem("a", "4"), problem("b", "4")], texts), grade)
  assert graded.scored_PG.tolist() == [[True, False, True, True], [False] * 4]
  assert graded.cause_PG == [["", "timeout", "", ""], ["timeout"] * 4]
  assert graded.value_PG.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_inverse_pays_an_answer_only():
  texts = [
    "\\boxed{5}",
    "\\boxed{4}",
    "none",
    "\\boxed{}",
    "\\boxed{so}",
    "<think> \\boxed{5}",
    "\\boxed{" + "5" * 600 + "}",
  ]
  graded, _ = paid("inverse", answers([problem("a", "4")], [texts]))
  assert graded.value_PG.tolist() == [[1, 0, 0, 0, 0, 0, 0]] and graded.scored_PG.all()


def test_a_verdict_is_remembered_for_its_problem_alone():
  """Two problems have the same label and the same answers; only the verifier's input of one tells them apart."""
  asked = []

  def grade(jobs):
    asked.extend(jobs)
    return [Verdict(float(job.extra["n"])) for job in jobs]

  problems = [problem("a", "4", n=1), problem("b", "4", n=0)]
  graded, _ = paid("verifiable*verifiable", answers(problems, [["x", "x"], ["x", "y"]]), grade)
  assert graded.value_PG.tolist() == [[1, 1], [0, 0]] and len(asked) == 3


def test_votes_that_nobody_could_compare_are_unscored():
  def grade(jobs):
    return [Verdict(None, "died") if "5" in (job.response.answer, job.label) else Verdict(0.0) for job in jobs]

  (election,) = elect([problem("a", "4")], [["4", "5", "4", "6", None]], grade)
  assert election.cluster_G == [0, 1, 0, 2, None]
  assert election.cause_G == ["", "died", "", "", ""]
  (election,) = elect([problem("a", "4")], [["4", "5", "5", "6"]], grade)  # the doubtful one wins
  assert election.cause_G == ["died", "", "", "died"]


# Votes


def test_an_election():
  same = {("2", "1"), ("3", "2"), ("8", "1"), ("8", "9")}  # 2 equals 1, 3 equals 2 but not 1, and 8 equals two leaders

  def grade(jobs):
    assert all(set(job.extra) == {"other"} for job in jobs)  # voters see nothing of the truth
    return [Verdict(float((job.response.answer, job.label) in same)) for job in jobs]

  p = problem("a", "4", also={"1": ["9"]}, solution_path=["A"], other=1)
  (election,) = elect([p], [["1", " 2 ", "3", "9", "3", "", None, " "]], grade)
  assert election.cluster_G == [0, 0, 1, 2, 1, None, None, None]
  assert (election.winner, election.ratio, election.margin) == (0, 0.25, 0.0)  # a tie: the first seen
  (both,) = elect([p], [["1", "9", "8"]], grade)
  assert both.cluster_G == [0, 1, 0]  # the first that it equals
  (nobody,) = elect([p], [[None, ""]], grade)
  assert (nobody.winner, nobody.ratio, nobody.cluster_G) == (None, 0.0, [None, None])


def test_what_a_verifier_can_not_read_does_not_vote():
  garbage = {
    "math": ["\\frac{", "9" * 5000, "." * 20_000, "7"],
    "quantum_lock": ["none of them, nowhere", "???", "A"],
    "choice": ["I do not know", "???", "C"],
    "arithmetic": ["a lot", "\uff17", "7"],
  }
  with Service(workers=1) as service:
    for verifier, answers in garbage.items():
      (election,) = elect([problem("a", "", "-", verifier)], [[*answers[:-1] * 3, answers[-1]]], service.grade)
      assert election.cluster_G == [None] * (3 * len(answers) - 3) + [0], verifier


LOCK = {
  "buttons": [{"name": n, "type": "add", "value": 1, "active_state": "any"} for n in "ABC"],
  "initial_state": "red",
  "initial_value": 0,
  "target_value": 2,
  "solution_path": ["A", "A"],
}


def test_right_answers_that_differ_are_not_pooled():
  """Every press adds one, so any two open the lock; voters can't know that, as it takes a verifier."""
  with Service(workers=1) as service:
    lock = problem("a", "A → A", verifier="quantum_lock", **LOCK)
    (election,) = elect([lock], [["A → B", "C → A", "A → A", "B", "B"]], service.grade)
    assert election.cluster_G == [0, 1, 2, 3, 3] and election.winner == 3
    assert service.grade([Job("quantum_lock", boxed_response("C → B"), "A → A", LOCK)])[0].score == 1
    played = problem(
      "b",
      "aba",
      verifier="reasoning_gym",
      source_dataset="palindrome_generation",
      entry={"question": "aab", "answer": "aba", "metadata": {"letters": ["a", "a", "b"]}},
    )
    (election,) = elect([played], [["aba", "baab", "aba"]], service.grade)
    assert election.cluster_G == [0, 1, 0]


def test_each_problem_has_its_own_election():
  with Service(workers=1) as service:
    elections = elect([problem("a", "1"), problem("b", "2")], [["3", "4", "4"], ["4", "3", "3"]], service.grade)
  assert [e.winner for e in elections] == [1, 1]
  assert [e.cluster_G for e in elections] == [[0, 1, 1], [0, 1, 1]]


# Cases in which the released code pays otherwise, and why; everything else is equal.
VOTES_DIFFER = {
  "units_text": "its label is SymPy text that nobody matches",
  "poly_forms": "its label is SymPy text that nobody matches",
  "equation_forms": "its label is SymPy text that nobody matches",
  "trig": "its label is SymPy text that nobody matches",
  "inf": "its label is SymPy text that nobody matches",
  "none_literal": "its label is SymPy text that nobody matches",
  "list_forms": "equal answers are one cluster",
  "scientific": "1.2e-3 is read",
  "approx": "\\approx is read",
  "power_forms": "2**10 is read",
  "thinking_box_inside_only": "a box in the thinking is no answer",
  "thinking_unclosed": "where the thinking never ends there is no answer",
}


def test_majority_votes_of_the_released_code(whole_golden):
  cases = json.loads((whole_golden / "majority_vote.json").read_text())["cases"]
  voted = answers([problem(c["name"], "", verifier="math") for c in cases], [c["responses"] for c in cases])
  graded, _ = paid("majority_vote", voted)
  differ = {
    c["name"] for c, value in zip(cases, graded.value_PG, strict=True) if list(value) != c["rewards_MAJORITY_VOTE"]
  }
  assert differ == set(VOTES_DIFFER)
  for case, election, value in zip(cases, graded.elections_P, graded.value_PG, strict=True):
    assert value.sum() == round(election.ratio * 16)  # everybody who voted for the label is paid
    if case["majority_answer"] == "None" and case["name"] != "none_literal":
      assert election.winner is None and not value.any()


# Randomness that is addressed


def many(order=slice(None), step=3, seed=1):
  names = [f"p{i}" for i in range(200)][order]
  return answers([problem(name, "1") for name in names], [["x"] * 40 for _ in names], {}, step=step, seed=seed)


def test_random_rewards_and_noise_belong_to_the_sample():
  value = paid("random(0.3)", many())[0].value_PG
  assert abs(value.mean() - 0.3) < 0.015
  np.testing.assert_array_equal(value, paid("random(0.3)", many())[0].value_PG)
  np.testing.assert_array_equal(value[::-1], paid("random(0.3)", many(slice(None, None, -1)))[0].value_PG)
  for other in (many(step=4), many(seed=2)):
    assert (value != paid("random(0.3)", other)[0].value_PG).mean() > 0.2
  noisy = add_noise(paid("random(0.3)", many())[0], many(), 0.0, 0.0)
  np.testing.assert_array_equal(value, noisy.value_PG)
  assert abs(np.corrcoef(value.ravel(), uniform(many(), "noise").ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(("fp", "fn"), [(0.2, 0.0), (0.0, 0.4), (0.1, 0.3), (1.0, 1.0)])
def test_noise_has_the_rates_asked_for(fp, fn):
  clean = paid("random(0.5)", many())[0]
  noisy = add_noise(clean, many(), fp, fn)
  right = clean.value_PG == 1
  assert abs((noisy.value_PG[~right] == 1).mean() - fp) < 0.02
  assert abs((noisy.value_PG[right] == 0).mean() - fn) < 0.02


# Corrections


def test_corrections_differ_from_the_uncorrected_and_mean_what_they_say():
  """At rates 0.1 and 0.3, over all noisy versions of a group, weighted by their probability."""
  fp, fn, truth = 0.1, 0.3, np.array([1, 1, 0, 0, 0, 0])
  noisy = np.array(np.meshgrid(*[[0.0, 1.0]] * 6)).reshape(6, -1).T
  chance = np.where(truth, np.where(noisy, 1 - fn, fn), np.where(noisy, fp, 1 - fp)).prod(1)
  scored = np.ones(noisy.shape, bool)

  def advantage(kind, **settings):
    settings = {"baseline": "mean", "scale_std": True} | settings
    return np.asarray(loss.CORRECTIONS[kind](noisy, scored, fp, fn, **settings))

  def mean(x):
    return chance @ x

  plain = advantage("none")
  np.testing.assert_allclose(plain, loss.group_advantage(noisy, scored), atol=1e-6)
  for kind in ("backward", "forward"):
    assert (np.abs(advantage(kind) - plain) > 0.05).any(1).mean() > 0.9, kind
  np.testing.assert_allclose(mean(advantage("forward")), np.where(truth, 0, -(1 - fp - fn)), atol=1e-6)
  unscaled = mean(advantage("backward", scale_std=False))
  np.testing.assert_allclose(unscaled, truth - truth.mean(), atol=1e-5)  # that of the clean reward
  np.testing.assert_allclose(mean(advantage("backward", baseline="zero", scale_std=False)), truth, atol=1e-5)
  assert np.abs(mean(advantage("backward")) - mean(plain)).max() > 0.05
  clean = np.asarray(loss.CORRECTIONS["backward"](noisy, scored, 0.0, 0.0, baseline="mean", scale_std=True))
  np.testing.assert_allclose(clean, plain, atol=1e-5)


def test_backward_correction_in_numbers():
  """Clean rewards are 1.5 and -1/6 with mean 2/3, so a clean group of four has the std sqrt(2/3 * 1/3 * 4/3)."""
  value, scored = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), np.ones((2, 4), bool)
  corrected = np.asarray(loss.CORRECTIONS["backward"](value, scored, 0.1, 0.3, baseline="mean", scale_std=True))
  std = math.sqrt(2 / 3 * 1 / 3 * 4 / 3)
  np.testing.assert_allclose(corrected[0], np.array([5, 5, -5, -5]) / 6 / std, rtol=1e-4)
  std = math.sqrt(7 / 8 * 1 / 8 * 4 / 3)  # 3 of 4 paid: an estimated mean of 13/12, kept at 7/8
  np.testing.assert_allclose(corrected[1], (np.array([1.5, 1.5, 1.5, -1 / 6]) - 13 / 12) / std, rtol=1e-4)


def test_corrections_leave_out_the_unscored():
  value, scored = np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([[True, True, False, True]])
  for kind in loss.CORRECTIONS:
    full = loss.CORRECTIONS[kind](value, scored, 0.1, 0.1, baseline="mean", scale_std=True)
    few = loss.CORRECTIONS[kind](value[:, [0, 1, 3]], scored[:, [0, 1, 3]], 0.1, 0.1, baseline="mean", scale_std=True)
    assert full[0, 2] == 0
    np.testing.assert_allclose(full[:, [0, 1, 3]], few, atol=1e-6)


# Shadow truth


def test_shadow_truth_counts_what_the_reward_gets_wrong():
  value, true = np.array([[1, 1, 0, 1], [0, 0, 0, 1]]), np.array([[1, 0, 1, 0], [1, 0, 1, 0]])
  scored, known = np.ones((2, 4), bool), np.ones((2, 4), bool)
  scored[1, 3] = known[1, 2] = False
  figures = reward_vs_truth.reward_metrics(value, scored, true, known, True)
  assert figures == pytest.approx(
    {"true_reward": 3 / 7, "reward_accuracy": 2 / 6, "false_positive_rate": 2 / 3, "false_negative_rate": 2 / 3}
  )
  assert set(reward_vs_truth.reward_metrics(value, scored, true, known, False)) == {"true_reward"}
  assert reward_vs_truth.cause_metrics([["unparseable", ""], ["timeout", ""]]) == {"unparseable": 0.25, "timeout": 0.25}
  assert reward_vs_truth.label_metrics([1.0, None, 0.0], None) == {"label_accuracy": 0.5}
  assert math.isnan(reward_vs_truth.label_metrics([], None)["label_accuracy"])


def test_label_accuracy_is_by_the_verifier():
  problems = [problem("a", "+4", "4"), problem("b", "3", "4"), problem("c", "1/2", "0.5", "math")]
  with Service(workers=1) as service:
    assert labels_right(problems, service.grade) == {"a": 1.0, "b": 0.0, "c": 1.0}
