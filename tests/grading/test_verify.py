"""Verifiers against the released code, hostile answers, and the service's promises when things hang, grow or die."""

import ast
import collections
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem, Verdict
from jaxrlvr.data import columns
from jaxrlvr.grading.service import Job, Service
from jaxrlvr.tasks import choice, verdicts
from jaxrlvr.tasks.arithmetic import faithfulness
from jaxrlvr.tasks.gym import verify as gym
from jaxrlvr.tasks.math import verify as math
from jaxrlvr.tasks.table import VERIFIERS
from jaxrlvr.text.answer import FORMATS, parse

ROOT = pathlib.Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def job(verifier, text, label, extra=None):
  """A job on a response of this text."""
  return Job(verifier, parse(text, "boxed"), label, extra or {})


def read(text):
  """The answer of a response of this text."""
  return parse(text, "boxed").answer


# Passes the guards, as its label is one too, and hangs in Math-Verify.
TOWER = job("math", r"\boxed{\lim_{x\to 0} 9^{9^{9^9}}}", r"\lim_{x\to 0} 9^{9^{9^{9}}}+0")
GROWING = job("math", r"\boxed{\lim_{y\to 0} 2^{999999999}+x}", r"\lim_{y\to 0} x+2^{999999999}+0")
SAYS = {True: verdicts.RIGHT, False: verdicts.WRONG, None: verdicts.UNPARSEABLE}
RIGHT, WRONG = job("math", "\\boxed{x+1}", "1+x"), job("math", "\\boxed{x+2}", "1+x")

# Where strict grading and the released RULE_BASED score part, and why. Complete: any other difference is a fault.
WANTS_A_BOX = "p0013 p0076 p0119 p0130 p0202 p0235 p0250 p0273 p0316 p0341 p0361 p0389 p0466 p0468"
CAUSES = {
  "strict: only a box counts": WANTS_A_BOX,
  "strict: the brace follows \\boxed at once": "p0033",
  "strict: a box before the last </think> is no answer": "p0003 p0104 p0156 p0206 p0226 p0259 p0302 p0352 p0460 p0462",
  "strict: thinking that is opened and never closed holds no answer": "p0109 p0231 p0264 p0307 p0393 p0461",
  "ours: the last box alone, not the set of all": "p0041 p0095 p0144 p0345",
  "ours: the label's own text counts where nobody can parse it": "p0376 p0379",
  "ours: JSON lists unpacked": "p0448 p0450",
  "ours: an introduction in the box is dropped": "p0018 p0081 p0124 p0165 p0278 p0321",
  "ours: spacing is no part of an answer": "p0073",
  "ours: 3e2, ½, wide digits and a full stop are read": "p0224 p0409 p0410 p0434 p0437",
  "ours: an inequality is compared with an interval": "p0412",
  "ours: both sides of an approximation must agree": "p0029 p0060 p0086 p0192 p0375",
  "ours: a letter with the choice's text answers for the letter": "p0209",
  "ours: words need no \\\\text": "p0229",
  "ours: a percent sign may be left out": "p0290",
}


@pytest.fixture(scope="module")
def service():
  with Service(workers=2) as service:
    yield service


def unpacked(label):
  if isinstance(label, str) and label.startswith('["'):
    label = json.loads(label)
  return (label[0], {label[0]: label[1:]}) if isinstance(label, list) else (label, {})


def golden_jobs():
  cases = json.loads((DATA / "golden" / "verifier.json").read_text())["cases"]
  cases = [case for case in cases if case["scores"]["RULE_BASED"] is not None]
  labels = [unpacked(case["ground_truth"]) for case in cases]
  return cases, [
    job("math", case["response"], label, {"also": also}) for case, (label, also) in zip(cases, labels, strict=True)
  ]


def hostile_jobs(canary="/nowhere"):
  rows = [json.loads(line) for line in (DATA / "hostile" / "answers.jsonl").read_text().splitlines()]
  rows = [row for row in rows if row["scorer"] == "math_verify"]

  def text(row, key):
    return row[key] if row.get(key) is not None else "".join(part * count for part, count in row[f"{key}_segments"])

  responses = [text(row, "response").replace("{CANARY}", str(canary)) for row in rows]
  return rows, [job("math", said, text(row, "ground_truth")) for row, said in zip(rows, responses, strict=True)]


def children(parent):
  """{pid: (state, command line)} of a process's children."""
  found = {}
  for folder in pathlib.Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        if int(ppid) == parent:
          found[int(folder.name)] = (state, (folder / "cmdline").read_text())
      except OSError:
        continue
  return found


def servers(parent):
  return {pid for pid, (_, command) in children(parent).items() if "jaxrlvr.grading.worker" in command}


@pytest.fixture
def own_servers():
  """A function that gives the worker processes started during the test, ended ones that nobody reaped included."""
  before = set(children(os.getpid()))
  return lambda: set(children(os.getpid())) - before


def cpu_of_reaped(pid):
  """CPU seconds of a process's children that ended and were waited for."""
  fields = (pathlib.Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
  return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def wait_for(condition, seconds=5.0):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  return condition()


# The graph tasks


@needs_data
def test_graph_scores_are_the_released_codes_but_for_four_decisions():
  cases = json.loads((DATA / "golden" / "graph_verifier.json").read_text())["cases"]
  differ = collections.Counter()
  for case in cases:
    extra = case["extra_info"]
    if case["extra_info_form"] == "jsonstr":
      extra = json.loads(extra)
    elif case["extra_info_form"] == "loader":  # str() of every value
      structured = ("buttons", "solution_path")
      extra = {key: ast.literal_eval(value) if key in structured and value else value for key, value in extra.items()}
    label, _ = unpacked(case["ground_truth"])
    score = VERIFIERS[case["source_dataset"]].function(read(case["response"]), label, extra).score
    if score != case["score"]:
      differ[case["kind"], case["score"], score] += 1
  assert len(cases) == 142
  assert differ == {
    ("li_box_in_think_only", 1.0, 0.0): 1,  # a box in the thinking is no answer
    ("ql_box_in_think_only", 1.0, 0.0): 1,
    ("li_noisy_label_label_answer", 0.0, 1.0): 5,  # labels are unpacked
    ("li_noisy_label_verbatim_json", 1.0, 0.0): 5,
    ("ql_noisy_label_true_answer", 1.0, 0.0): 1,  # a label that does not open the lock pays no other answer
    ("li_json_string", None, 1.0): 1,  # the released code fails
    ("ql_extra_info_json_string", None, 1.0): 1,
  }


LOCK = {
  "buttons": [
    {"name": "A", "type": "add", "value": 2, "active_state": "any"},
    {"name": "B", "type": "multiply", "value": 2, "active_state": "red"},
    {"name": "C", "type": "add", "value": 2, "active_state": "red"},
  ],
  "initial_state": "red",
  "initial_value": 0,
  "target_value": 4,
}


@pytest.mark.parametrize(
  ("answer", "label", "score"),
  [
    ("A → A", "A → A", True),
    ("C → A", "A → A", True),  # opens the lock with as many presses
    ("A → C", "A → A", False),  # C is dead under green
    ("D → A", "A → A", False),
    ("A → C → C", "B → A → A", False),  # a dead press leaves the light as it is, so both C are dead
    ("A → B → A", "A → A", False),  # opens it with more
    ("A → A", "C → C", False),  # the label is wrong: it alone counts
    ("C → C", "C → C", True),
    ("7", "7", True),
    ("8", "7", False),
    ("7", "A → A", None),
    ("", "7", None),
    ("A" * 1_000_000, "A → A", None),
    ("C" + "B" * 500, "C" + "A" * 500, False),
  ],
)
def test_quantum_lock(answer, label, score):
  assert VERIFIERS["quantum_lock"].function(read(f"\\boxed{{{answer}}}"), label, LOCK) == SAYS[score]


@pytest.mark.parametrize("answer", ["16", "60", "-6", "6.", "0 1 2 3 4 5 6", "1" * 100_000, "", "{6", "{6}", "\uff16"])
def test_largest_island_pays_nothing_for_what_holds_the_label(answer):
  score = VERIFIERS["largest_island"].function
  assert (
    score(read(f"\\boxed{{{answer}}}"), "6", {}) == SAYS[False if 0 < len(answer) < 100 and answer != "{6" else None]
  )
  assert score(read(f"\\boxed{{{answer}}} \\boxed{{6}}"), "6", {}) == SAYS[True]


@pytest.mark.parametrize(
  ("response", "score"),
  [("\\boxed{7}", True), ("\\boxed{ +07 }", True), ("\\boxed{-7}", False), ("7", None), ("\\boxed{\uff17}", None),
   ("\\boxed{7.0}", None), ("\\boxed{" + "0" * 20 + "7}", None), ("\\boxed{7}</think>", None)],
)  # fmt: skip
def test_arithmetic(response, score):
  assert faithfulness.answer(read(response), "7", {}) == SAYS[score]


# Strict grading of mathematics


@needs_data
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_math_differs_from_the_released_code_only_for_known_causes(service, step):
  cases, jobs = golden_jobs()
  assert len(cases) == 496
  scores = [verdict.score for verdict in service.grade(jobs[::step])]
  released = {case["id"]: case["scores"]["RULE_BASED"] for case in cases[::step]}
  differ = {key for (key, wanted), score in zip(released.items(), scores, strict=True) if score != wanted}
  assert differ == set(" ".join(CAUSES.values()).split()) & set(released)


@needs_data
def test_hostile_answers_are_never_paid(service, tmp_path):
  rows, jobs = hostile_jobs(tmp_path / "canary")
  start = time.monotonic()
  verdicts = service.grade(jobs)
  assert time.monotonic() - start < 60
  assert not list(tmp_path.iterdir())  # nothing was run
  by = collections.defaultdict(list)
  for row, verdict in zip(rows, verdicts, strict=True):
    by[row["right_score"]].append((row["id"], verdict.score))
    if row["kind"] == "should_accept":
      by["accept"].append(verdict.score)
  assert not [key for key, score in by[0.0] if score == 1.0]
  assert len(by[0.0]) > 100
  unscored = [key for keys in (by[0.0], by[1.0], by[None]) for key, score in keys if score is None]
  assert len(unscored) <= 3, unscored
  assert (sum(by["accept"]), len(by["accept"])) == (41, 48)  # the others have no box


@pytest.mark.parametrize(
  ("answer", "label", "score"),
  [
    (r"\frac{2}{4}", "0.5", True),
    (r"0.1\overline{6}", r"\frac16", True),
    (r"1\,000\,000", "10^6", True),
    ("twelve", "12", True),
    ("(C) 3", "C", True),
    ("(C) 3", "3", True),
    ("C", '(C) 3', True),
    ("(D)", "(C) 3", False),
    ("B. 12", "B", True),
    ("B: the red one", "B", True),
    ("Option B", "(B)", True),
    ("Option C", "B", False),
    ("B or C", "B", False),
    ("evil", "live", False),
    (r"1.2 \times 10^{-20}", r"6.63 \times 10^{-34}", False),
    ("0.0000001", "0.0000004", False),
    (r"6.63e-34", r"6.63 \times 10^{-34}", True),
    ("0.333333", r"\frac13", False),  # an exact label wants an exact answer
    ("(B) 3", "(A) 3", False),
    ("(A) 4", "(A) 3", False),
    ("(A) 3.0", "(A) 3", True),
    (r"7 \text{ or } 8", "7", False),
    (r"\frac27 \approx 0.29", r"\frac27", True),
    (r"7\mod 8", "7", False),
    (r"7 \text{ (or maybe 8)}", "7", False),
    ("(1,2)", r"\{1,2\}", False),
    (r"7\hspace{1cm}8", "78", False),
    ("7", "9" * 600, None),
    (r"7\ 8", "78", False),
    (r"7\,8", "78", False),
    ("7 8", "78", False),
    ("1=7", "7", False),
    ("x=7", "7", True),
    ("10_2", "10", False),
    ("10_2", "10_2", True),
    (r"\pi+10^{-25}", r"\pi", False),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", True),
    (r"\int_0^1 2x dx", "1", None),
    (r"((((((((7))))))))", "7", True),
    (r"(((((((((7)))))))))", "7", None),
    (r"e^{x^2}", r"e^{x^2}+0", True),
    (r"e^{x^2}", "7", False),
    ("7\ud800", "7", None),
    ("7 " + " " * 512, "7", None),
    (r"\frac", "7", None),
    ("3", "2", False),
    ("4", "2", True),
    (" ", " ", None),
    ("", "", None),
  ],
)  # fmt: skip
def test_math(answer, label, score):
  assert math.math(read(f"\\boxed{{1}} so \\boxed{{{answer}}}"), label, {"also": {"2": ["5", "4"]}}) == SAYS[score]


CASES = [json.loads(line) for line in (ROOT / "tests" / "data" / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def forms():
  """(answer, label, whether it is right) in the forms that models write, with near misses."""
  return [
    (answer, row["label"], kind == "right") for row in CASES for kind in ("right", "wrong") for answer in row[kind]
  ]


def test_of_the_forms_that_models_write_right_ones_are_paid_and_no_wrong_one(service, forms):
  jobs = [job("math", f"\\boxed{{{answer}}}", label) for answer, label, _ in forms]
  scores = [verdict.score for verdict in service.grade(jobs)]
  assert [form for form, score in zip(forms, scores, strict=True) if score != form[2]] == []
  assert sum(right for *_, right in forms) > 300
  assert sum(not right for *_, right in forms) > 200


def test_the_page_of_decisions_is_true(service):
  row = re.compile(r"\| [^|]+ \| `(.+)` \| `(.+)` \| (right|wrong|unparseable) \|")
  rows = [
    match.groups() for match in map(row.fullmatch, (ROOT / "docs" / "verifiers.md").read_text().splitlines()) if match
  ]
  said = service.grade([job("math", f"\\boxed{{{answer}}}", label) for answer, label, _ in rows])
  meant = {"right": verdicts.RIGHT, "wrong": verdicts.WRONG, "unparseable": verdicts.UNPARSEABLE}
  assert [row for row, verdict in zip(rows, said, strict=True) if verdict != meant[row[2]]] == []
  assert len(rows) > 50


@needs_data
def test_a_verdict_does_not_depend_on_the_order_of_the_batch(service, forms):
  jobs = [job("math", f"\\boxed{{{answer}}}", label) for answer, label, _ in forms[::2]] + hostile_jobs()[1]
  forward = service.grade(jobs)
  assert service.grade(jobs[::-1]) == forward[::-1]
  order = list(range(len(jobs)))
  random.Random(0).shuffle(order)
  assert service.grade([jobs[place] for place in order]) == [forward[place] for place in order]


def test_nested_bars_are_refused_before_they_are_parsed():
  for bar in ("|", r"\|", r"\lvert ", r"\left|"):
    assert math.quick(bar * 30 + "7" + bar * 30, "7", None) == verdicts.UNPARSEABLE
  assert math.math("|x|+|y|+|z|+|w|+|v|", "|y|+|x|+|z|+|w|+|v|", None) == verdicts.RIGHT


@pytest.mark.parametrize("label", ["15 marbles", r"15\text{ marbles}", "5 cm", "10 m/s", r"\$5", "3t"])
def test_labels_with_units_can_be_read(label):
  assert math.readable(None, label, None) == verdicts.RIGHT


RESPELLED = {  # label: other ways to write it
  r"\frac{1}{3}": (r"0.\overline{3}", r"0.\bar{3}", "⅓", "1/3", r"\dfrac13", "0.333...", r"\left(\frac{1}{3}\right)"),
  r"\frac{3}{4}": ("¾", "0.75", r"\tfrac34", r"\frac 34", r"\color{red}{\frac34}", r"\displaystyle\frac34"),
  r"\frac52": (r"2\frac12", "2½", "2 1/2", "2.5", r"2\tfrac{1}{2}"),
  r"[3,\infty)": (r"x \ge 3", "x≥3", r"3\le x", r"[3,∞)", r"x\in[3,\infty)"),
  "(1,2)": ("1<x<2", r"\left(1,2\right)", r"\langle 1,2 \rangle", "⟨1,2⟩", r"\big(1,2\big)", "(1;2)"),
  "1000000": (r"1\,000\,000", "1,000,000", "1{,}000{,}000", "10^6", "10⁶", "1e6", r"1\;000\;000", "1 000 000"),
  r"\sqrt{2}": ("√2", "√(2)", "√{2}", "sqrt(2)", "1*sqrt(2)", "sqrt2", "2^{1/2}", r"\sqrt2"),
  r"\infty": ("∞", r"+\infty"),
  "10^{30}": ("1e30", "1E30", "10³⁰"),
  "0.0015": ("1.5e-3", "1.5*10^-3", "1.5 x 10^{-3}", "1.5 × 10⁻³", r"1.5\cdot10^{-3}"),
  "7": ("7.", "7,", r"7\\", r"\underline{7}", r"\boldsymbol{7}", r"{\bf 7}", "**7**", "`7`", "<answer>7</answer>",
        "seven", r"\text{seven}", "Answer: 7", r"\text{The answer is }7", r"\,7\,", "x = 7", "+7", "7.0", r"\(7\)",
        "$7$", r"\hspace{1cm}7"),
  "15": ("fifteen", r"\text{Fifteen}"),
  "5": (r"\$5", "5 dollars", r"5\text{ cm}", "5 cm", r"5~\mathrm{kg}", r"\$5.00"),
  r"50\%": ("50%", "50 percent", "50"),
  "-5": ("−5", "–5"),
  "6": ("2·3", "2×3", "2⋅3", "2*3"),
  r"2\pi": ("2π", "2pi", "2*pi", r"\frac{4pi}{2}"),
  "x^2": ("x²", "x*x", "x**2"),
  "90": ("90°", r"90^\circ", r"90^{\circ}", "90 degrees"),
  "3.14": ("≈3.14", "~3.14", r"\sim 3.14", r"\approx 3.14", "3.14..."),
  r"\emptyset": ("∅", r"\varnothing", r"\text{no solution}", "No solutions"),
  r"\ln 2": ("ln 2", "ln(2)", r"\ln(2)"),
  r"\log_2 3": ("log_2 3", "log₂ 3"),
  r"\pm 2": ("±2", "2,-2", r"x=-2 \text{ or } x=2"),
}  # fmt: skip


@pytest.mark.parametrize("label", RESPELLED)
def test_other_spellings_of_an_answer_are_read(label):
  refused = [text for text in RESPELLED[label] if math.math(read(f"\\boxed{{{text}}}"), label, None) != verdicts.RIGHT]
  assert not refused
  others = [other for other in ("11", "x+1", "(1,3)", r"\frac{2}{7}", r"\text{no}") if other != label]
  paid = [
    text for text in RESPELLED[label] for other in others if math.math(read(f"\\boxed{{{text}}}"), other, None).score
  ]
  assert not paid


@pytest.mark.parametrize(
  ("answer", "label"),
  [("[1,2]", "(1,2)"), (r"-\infty", r"\infty"), (r"\ln 2", r"\log 2"), ("1, 234", "1,234"), ("2/3", "0.667"),
   ("x²", "2x"), ("1/0", "0"), ("2 1/2", "1"), ("pie", r"\pi e"), ("0.33", r"\frac13"), ("7..8", "7.8")],
)  # fmt: skip
def test_what_only_looks_alike_is_not_paid(answer, label):
  assert math.math(read(f"\\boxed{{{answer}}}"), label, None).score == 0


def test_numbers_need_no_worker():
  for answer, label in (
    ("7", "8"),
    (r"\frac{2}{4}", "1/2"),
    ("-0.50", r"-\frac12"),
    ("( x + 1 , y )", r"\left(x+1,\,y\right)"),
  ):
    assert math.quick(read(f"\\boxed{{{answer}}}"), label, None)
  assert math.quick(read(r"\boxed{0.4999999}"), "0.5", None) is None  # rounding is the parser's business


# The study's reading of mathematics

JSON_LISTS = "p0376 p0379 p0448 p0450".split()  # that ours unpacks
SLOW = "p0469 p0470 p0474 p0475 p0476 p0477 p0479 p0482 p0495".split()  # unscored, but where a CPU is fast enough


@needs_data
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_study_mode_is_the_released_code_but_for_known_causes(step):
  cases, jobs = golden_jobs()
  with Service(workers=2, mode="study") as service:
    scores = [verdict.score for verdict in service.grade(jobs[::step])]
  plain = {
    case["id"] for case, score in zip(cases[::step], scores, strict=True) if score != case["scores"]["RULE_BASED"]
  }
  here = {case["id"] for case in cases[::step]}
  assert plain - set(SLOW) == here & set(JSON_LISTS)
  assert all(
    score is None for case, score in zip(cases[::step], scores, strict=True) if case["id"] in plain & set(SLOW)
  )
  for case, score in zip(cases[::step], scores, strict=True):
    if case["id"] not in plain and case["scores"]["RULE_BASED_THINKING_FORMAT"] is not None:
      thinking = FORMATS["study_thinking_format"](parse(case["response"], "boxed")) and score
      assert thinking == case["scores"]["RULE_BASED_THINKING_FORMAT"], case["id"]


@needs_data
def test_the_studys_thinking_format():
  cases, _ = golden_jobs()
  assert {
    case["id"]
    for case in cases
    if FORMATS["study_thinking_format"](parse(case["response"], "boxed")) != case["format"]["thinking"]
  } == set()


def test_an_unknown_mode_names_the_choices():
  with pytest.raises(ValueError, match="mode 'lax' is unknown; use one of strict, study"):
    Service(mode="lax")


# Multiple choice


@pytest.mark.parametrize(
  "answer",
  ["C", "c", "(C)", "[C]", "C)", "C.", "C:", r"\text{C}", r"\textbf{(C)}", r"\mathrm{C}", r"\text{(C) }", "**C**",
   "$C$", "C) 10^-4 eV", r"\textbf{(C)}\ 10^{-4}", "(C) 5 A", "C. a cat", "Option C", "choice (C)", "Answer: C",
   "The answer is option C.", r"\left(C\right)"],
)  # fmt: skip
def test_choice_reads_one_letter(answer):
  for label in ("C", "(C)", "c)"):
    assert choice.choice(read(f"\\boxed{{A}} no, \\boxed{{{answer}}}"), label, None) == verdicts.RIGHT
  assert choice.choice(read(f"\\boxed{{{answer}}}"), "B", None) == verdicts.WRONG


@pytest.mark.parametrize(
  "answer",
  ["A or C", "(A) or (C)", "C) or A)", "(C) and (D)", "AC", "A C", "A, C", "C/D", "C+D", "(A)(C)", "C)D)", "C) x, D) y",
   "A: B", "(C) B", "not C", "Cat", "C cat", "C_2", "C. A. B. D.", "C.x", "E.g.", "3", "option", "", "\u212a", "\u0421",
   "Ç", "(C", "C" * 600],
)  # fmt: skip
def test_choice_reads_nothing_but_one_letter(answer):
  for label in "ABCDK":
    assert choice.choice(read(f"\\boxed{{{answer}}}"), label, None) == verdicts.UNPARSEABLE


def test_choice_is_quick_on_any_text():
  start = time.monotonic()
  for text in ("(" * 512, "A) " * 170, " " * 512, "answer " * 73, "\\text{" * 85, "the " * 128):
    choice.letter(text)
  assert time.monotonic() - start < 0.5


# Reasoning Gym


def gym_entries(seed=1, size=3):
  reasoning_gym = pytest.importorskip("reasoning_gym")
  for task in (*gym.EXACT, *gym.PLAYED):
    for entry in reasoning_gym.create_dataset(task, size=size, seed=seed):
      yield task, json.loads(json.dumps(entry, default=str))


def damaged(answer):
  return answer.replace(*("1", "3") if "1" in answer else ("e", "q")) if {"1", "e"} & set(answer) else answer + "7"


def test_each_allowed_gym_task_pays_the_oracle_and_not_a_damaged_answer(service):
  rows = [(task, entry, {"source_dataset": task, "entry": entry}) for task, entry in gym_entries()]
  jobs = [
    job("reasoning_gym", f"\\boxed{{ {text} }}", entry["answer"], extra)
    for _, entry, extra in rows
    for text in (entry["answer"], damaged(entry["answer"]), "nan", "not " + entry["answer"], entry["answer"] * 2)
  ]
  scores = [verdict.score for verdict in service.grade(jobs)]
  assert [task for n, (task, _, _) in enumerate(rows) if scores[5 * n] != 1] == []
  assert {task for n, (task, _, _) in enumerate(rows) if any(scores[5 * n + 1 : 5 * n + 5])} == set()
  assert None not in scores


def test_gym_pays_other_solutions_and_no_noisy_label_but_itself(service):
  pytest.importorskip("reasoning_gym")
  puzzle = {"jug_capacities": [3, 5], "target": 3}
  extra = {"source_dataset": "jugs", "entry": {"question": "", "answer": '["fill A"]', "metadata": {"puzzle": puzzle}}}
  other = '\\boxed{["fill B", "pour B->A"]}'
  noisy = '["fill B"]'
  pairs = [(other, '["fill A"]'), (other, noisy), (f"\\boxed{{{noisy}}}", noisy), ("\\boxed{exit()}", noisy)]
  assert service.grade([job("reasoning_gym", said, label, extra) for said, label in pairs]) == [
    SAYS[True],
    SAYS[False],
    SAYS[True],
    SAYS[None],
  ]


@needs_data
def test_hostile_gym_answers_are_never_paid(service, tmp_path):
  reasoning_gym = pytest.importorskip("reasoning_gym")
  rows = [json.loads(line) for line in (DATA / "hostile" / "answers.jsonl").read_text().splitlines()]
  rows = [row for row in rows if row["scorer"] == "reasoning_gym"]
  tested = 0
  for row in rows:
    task = row["ground_truth"]["dataset"]
    said = row.get("response") or "".join(part * count for part, count in row.get("response_segments") or ())
    if task not in (*gym.EXACT, *gym.PLAYED) or not isinstance(said, str):
      continue
    made = reasoning_gym.create_dataset(task, size=row["ground_truth"]["index"] + 1, seed=row["ground_truth"]["seed"])
    entry = json.loads(json.dumps(made[row["ground_truth"]["index"]], default=str))
    said = said.replace("{CANARY}", str(tmp_path / "canary")).replace("@ORACLE@", entry["answer"])
    extra = {"source_dataset": task, "entry": entry}
    (verdict,) = service.grade([job("reasoning_gym", f"\\boxed{{{said}}}", entry["answer"], extra)])
    tested += 1
    assert verdict.score is not None and not (row["right_score"] == 0 and verdict.score), row["id"]
  assert tested > 30
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["n_queens", "countdown", "complex_arithmetic", "nothing", None])
def test_a_gym_task_off_the_list_is_refused_by_name(service, task):
  with pytest.raises(InputError, match=f"{task!r} can't be graded safely; use one of acre, .*jugs"):
    service.grade([job("reasoning_gym", "\\boxed{7}", "7", {"source_dataset": task, "entry": {}})])


# Labels that nobody could match


def test_labels_that_the_verifier_cannot_read_are_named(service):
  def problem(label, verifier="math", truth=None, **extra):
    return Problem(f"{verifier}{label}", (), label, truth or label, verifier, extra)

  fine = [problem(label) for label in ("7", r"\frac12", "x^2+1", "(1,2]", r"\text{Evelyn}", "3.5", r"50\%", "(C) 3")]
  fine += [problem("5", "largest_island"), problem("A → B", "quantum_lock"), problem("(C)", "choice")]
  fine += [problem("7", "arithmetic"), problem("2", "reasoning_gym", source_dataset="gcd", entry={"answer": "2"})]
  lost = [problem(r"\frac"), problem(""), problem(r"2\serac{angle}{"), problem("7\0"), problem("x+1", truth=r"\sqrt{")]
  lost += [problem("7", also={"7": [r"\frac{1"]}), problem("Cat", "choice"), problem("seven", "arithmetic")]
  found = service.unreadable(fine + lost)
  assert [named for named, _ in found] == lost
  assert all(named.verifier in reason and "can't read" in reason for named, reason in found)


@pytest.mark.slow
def test_share_of_the_official_labels_that_can_be_read(service, official, capsys):
  """Prints the table of the report; every label is accepted against itself, and nearly all are read."""
  print_row = "{:58} {:>5} {:>8} {:>10}  {}".format
  lines, answers, lost = [], 0, 0
  for path in sorted(official.rglob("*.parquet")):
    problems = columns.load(path).problems
    texts = [(problem, text) for problem in problems for text in dict.fromkeys((problem.label, problem.truth))]
    itself = [job(problem.verifier, f"\\boxed{{{text}}}", text, problem.extra) for problem, text in texts]
    accepted = sum(verdict.score == 1 for verdict in service.grade(itself))
    unreadable = service.unreadable(problems)
    answers, lost = answers + len(texts), lost + len(unreadable)
    shares = (f"{share / len(texts):.2%}" for share in (accepted, len(unreadable)))
    lines.append(
      print_row(str(path.relative_to(official)), len(texts), *shares, "; ".join(r for _, r in unreadable[:3]))
    )
  with capsys.disabled():
    print("", print_row("file", "n", "itself", "unreadable", "first of them"), *lines, sep="\n")
  assert lost < 0.01 * answers


# The service


def test_the_host_imports_neither_jax_nor_sympy():
  dear = {"jax", "sympy", "math_verify", "ml_collections"}
  code = f"import sys, jaxrlvr.grading.service; print({dear} & set(sys.modules))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == "set()\n"


def test_a_hang_is_cut_and_its_batch_unharmed(own_servers):
  with Service(workers=2, cpu_seconds=1.0) as service:
    service.grade([RIGHT, WRONG])  # servers take their time to start
    start = time.monotonic()
    verdicts = service.grade([RIGHT, TOWER, WRONG, TOWER, RIGHT] * 10)
    hung = Verdict(None, "timeout")
    assert verdicts == [Verdict(1.0), hung, Verdict(0.0), hung, Verdict(1.0)] * 10
    assert time.monotonic() - start < 10  # equal jobs run once
    for pid in own_servers():
      assert len(children(pid)) <= 1
      assert "jax" not in (pathlib.Path("/proc") / str(pid) / "maps").read_text().replace(str(ROOT), "")
    assert len(own_servers()) == 2
  assert not own_servers()


def test_fractions_of_a_cpu_second_count_and_each_job_has_its_own(own_servers):
  """A limit in whole seconds, or over all that a child did, would say otherwise; a child hands over after its share."""
  with Service(workers=1, cpu_seconds=0.4) as short:
    short.grade([RIGHT])
    (server,) = own_servers()
    before = cpu_of_reaped(server)
    assert short.grade([TOWER]) == [Verdict(None, "timeout")]
    assert 0.25 < cpu_of_reaped(server) - before < 0.95  # in ticks of the kernel
    many = [job("math", f"\\boxed{{x+{n}+y}}", f"y+{n}+x") for n in range(300)]
    assert short.grade(many) == [Verdict(1.0)] * 300


def test_the_wall_limit_counts_from_the_start_of_the_job():
  slow = [Job("math", TOWER.response, TOWER.label + " " * spaces) for spaces in range(3)]
  with Service(workers=1, cpu_seconds=30.0, wall_seconds=0.5) as service:
    assert service.grade([*slow, RIGHT]) == [Verdict(None, "timeout")] * 3 + [Verdict(1.0)]


def test_memory_is_bounded():
  with Service(workers=1, memory_bytes=1 << 26, cpu_seconds=10.0) as service:
    assert service.grade([GROWING, RIGHT]) == [Verdict(None, "memory"), Verdict(1.0)]


@pytest.mark.parametrize("of_server", [False, True], ids=["its child", "the server"])
def test_a_killed_server_or_child_costs_no_verdict(own_servers, of_server):
  """Its job is done again, once, and is cut off where it must be."""
  with Service(workers=1, cpu_seconds=1.0) as service:
    assert service.grade([RIGHT]) == [Verdict(1.0)]
    (server,) = own_servers()
    (child,) = children(server)
    threading.Timer(0.3, os.kill, (server if of_server else child, signal.SIGKILL)).start()
    assert service.grade([TOWER, RIGHT, WRONG]) == [Verdict(None, "timeout"), Verdict(1.0), Verdict(0.0)]
    (idle,) = own_servers()
    assert (idle != server) == of_server
    os.kill(idle, signal.SIGKILL)  # between two batches
    assert wait_for(lambda: children(os.getpid())[idle][0] == "Z")
    threading.Timer(0.1, lambda: os.kill(min(own_servers()), signal.SIGKILL)).start()  # and its successor, as it starts
    assert service.grade([RIGHT]) == [Verdict(1.0)]
  assert not own_servers()


def test_the_others_go_on_while_a_dead_server_is_replaced(own_servers):
  many = [job("math", f"\\boxed{{x+{n}+y}}", f"y+{n}+x") for n in range(50)]
  with Service(workers=2) as service:
    assert wait_for(lambda: service.grade(many) and all(server.ready for server in service._servers), 60)
    victim = min(own_servers())
    os.kill(victim, signal.SIGSTOP)  # it takes a job and says nothing
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    verdicts = service.grade(many)
    assert verdicts == [Verdict(1.0)] * len(many)
    assert any(not server.ready for server in service._servers)  # the batch has not waited for the successor
    assert service.grade(many) == [Verdict(1.0)] * len(many)


def test_servers_and_their_children_end_with_a_killed_host():
  code = (
    "from jaxrlvr.grading.service import *\n"
    "with Service(workers=1, cpu_seconds=60, wall_seconds=60) as service:\n"
    f"  service.grade([{RIGHT!r}]); print(flush=True); service.grade([{TOWER!r}])"
  )
  with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as host:
    host.stdout.readline()
    (server,) = servers(host.pid)
    assert wait_for(lambda: children(server))
    (child,) = children(server)
    host.kill()
  for pid in (server, child):
    assert wait_for(lambda pid=pid: not (pathlib.Path("/proc") / str(pid) / "exe").exists())


def test_odd_text_passes_through(service):
  box = "\\boxed{0.5}"
  texts = [f"\ud800 {box}", f"\0{box}", "\u202e" * 1_000_000 + box, box + "x" * 9000, ""]
  scores = [verdict.score for verdict in service.grade([job("math", text, "\\frac12") for text in texts])]
  assert scores == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_in_process_and_isolated_jobs_keep_their_order(service):
  island = job("largest_island", "\\boxed{6}", "6")
  assert service.grade([island, WRONG, RIGHT, island]) == [Verdict(score) for score in (1.0, 0.0, 1.0, 1.0)]
  assert service.grade([]) == []


def test_faults_of_ours_are_not_scores(service):
  broken = job("quantum_lock", "\\boxed{A}", "B", {"buttons": [{}]})
  assert service.grade([broken, RIGHT]) == [Verdict(None, "error"), Verdict(1.0)]
  with pytest.raises(ValueError, match="'maths' is unknown; use one of math, "):
    service.grade([job("maths", "", "")])


@pytest.mark.slow
@needs_data
def test_scores_do_not_depend_on_workers_or_load(service):
  _, golden = golden_jobs()
  _, hostile = hostile_jobs()
  quiet = service.grade(golden + hostile)
  busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
  try:
    with Service(workers=4, wall_seconds=60.0) as many:
      assert many.grade(golden + hostile) == quiet
  finally:
    for process in busy:
      process.kill()
      process.wait()
