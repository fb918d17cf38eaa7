"""Mathematics against the released code, the forms that models write, and hostile answers."""

import collections
import json
import pathlib
import random
import re
import time

import pytest

from helpers.grading import SAYS, golden_jobs, hostile_jobs, job, needs_data, read
from jaxrlvr.grading.service import Service
from jaxrlvr.tasks import verdicts
from jaxrlvr.tasks.math import verify as math
from jaxrlvr.text.answer import FORMATS, parse_response

ROOT = pathlib.Path(__file__).parents[2]
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


@needs_data
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_math_differs_from_the_released_code_only_for_known_causes(service, step):
  cases, jobs = golden_jobs()
  assert len(cases) == 496
  scores = [verdict.score for verdict in service.grade(jobs[::step])]
  released = {case["id"]: case["scores"]["RULE_BASED"] for case in cases[::step]}
  differ = {key for (key, theirs), score in zip(released.items(), scores, strict=True) if score != theirs}
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
    ("C", "(C) 3", True),
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
)
def test_math(answer, label, score):
  assert math.grade(read(f"\\boxed{{1}} so \\boxed{{{answer}}}"), label, {"also": {"2": ["5", "4"]}}) == SAYS[score]


CASES = [json.loads(line) for line in pathlib.Path(__file__).with_name("answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def forms():
  """Returns (answer, label, whether it is right) in the forms that models write, with near misses."""
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
  verdicts_of_rows = service.grade([job("math", f"\\boxed{{{answer}}}", label) for answer, label, _ in rows])
  meant = {"right": verdicts.RIGHT, "wrong": verdicts.WRONG, "unparseable": verdicts.UNPARSEABLE}
  assert [row for row, verdict in zip(rows, verdicts_of_rows, strict=True) if verdict != meant[row[2]]] == []
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
  assert math.grade("|x|+|y|+|z|+|w|+|v|", "|y|+|x|+|z|+|w|+|v|", None) == verdicts.RIGHT


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
  "7": (
    "7.",
    "7,",
    r"7\\",
    r"\underline{7}",
    r"\boldsymbol{7}",
    r"{\bf 7}",
    "**7**",
    "`7`",
    "<answer>7</answer>",
    "seven",
    r"\text{seven}",
    "Answer: 7",
    r"\text{The answer is }7",
    r"\,7\,",
    "x = 7",
    "+7",
    "7.0",
    r"\(7\)",
    "$7$",
    r"\hspace{1cm}7",
  ),
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
}


@pytest.mark.parametrize("label", RESPELLED)
def test_other_spellings_of_an_answer_are_read(label):
  refused = [text for text in RESPELLED[label] if math.grade(read(f"\\boxed{{{text}}}"), label, None) != verdicts.RIGHT]
  assert not refused
  others = [other for other in ("11", "x+1", "(1,3)", r"\frac{2}{7}", r"\text{no}") if other != label]
  paid = [
    text for text in RESPELLED[label] for other in others if math.grade(read(f"\\boxed{{{text}}}"), other, None).score
  ]
  assert not paid


@pytest.mark.parametrize(
  ("answer", "label"),
  [
    ("[1,2]", "(1,2)"),
    (r"-\infty", r"\infty"),
    (r"\ln 2", r"\log 2"),
    ("1, 234", "1,234"),
    ("2/3", "0.667"),
    ("x²", "2x"),
    ("1/0", "0"),
    ("2 1/2", "1"),
    ("pie", r"\pi e"),
    ("0.33", r"\frac13"),
    ("7..8", "7.8"),
  ],
)
def test_what_only_looks_alike_is_not_paid(answer, label):
  assert math.grade(read(f"\\boxed{{{answer}}}"), label, None).score == 0


def test_numbers_need_no_worker():
  for answer, label in (
    ("7", "8"),
    (r"\frac{2}{4}", "1/2"),
    ("-0.50", r"-\frac12"),
    ("( x + 1 , y )", r"\left(x+1,\,y\right)"),
  ):
    assert math.quick(read(f"\\boxed{{{answer}}}"), label, None)
  assert math.quick(read(r"\boxed{0.4999999}"), "0.5", None) is None  # rounding is the parser's business


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
      thinking = FORMATS["study_thinking_format"](parse_response(case["response"], "boxed")) and score
      assert thinking == case["scores"]["RULE_BASED_THINKING_FORMAT"], case["id"]


@needs_data
def test_the_studys_thinking_format():
  cases, _ = golden_jobs()
  assert {
    case["id"]
    for case in cases
    if FORMATS["study_thinking_format"](parse_response(case["response"], "boxed")) != case["format"]["thinking"]
  } == set()
