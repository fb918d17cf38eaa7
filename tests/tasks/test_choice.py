"""Multiple choice: one letter in any of its spellings is an answer, and nothing else is."""

import time

import pytest

from helpers.grading import read
from jaxrlvr.tasks import choice, verdicts


@pytest.mark.parametrize(
  "answer",
  [
    "C",
    "c",
    "(C)",
    "[C]",
    "C)",
    "C.",
    "C:",
    r"\text{C}",
    r"\textbf{(C)}",
    r"\mathrm{C}",
    r"\text{(C) }",
    "**C**",
    "$C$",
    "C) 10^-4 eV",
    r"\textbf{(C)}\ 10^{-4}",
    "(C) 5 A",
    "C. a cat",
    "Option C",
    "choice (C)",
    "Answer: C",
    "The answer is option C.",
    r"\left(C\right)",
  ],
)
def test_choice_reads_one_letter(answer):
  for label in ("C", "(C)", "c)"):
    assert choice.grade(read(f"\\boxed{{A}} no, \\boxed{{{answer}}}"), label, None) == verdicts.RIGHT
  assert choice.grade(read(f"\\boxed{{{answer}}}"), "B", None) == verdicts.WRONG


@pytest.mark.parametrize(
  "answer",
  [
    "A or C",
    "(A) or (C)",
    "C) or A)",
    "(C) and (D)",
    "AC",
    "A C",
    "A, C",
    "C/D",
    "C+D",
    "(A)(C)",
    "C)D)",
    "C) x, D) y",
    "A: B",
    "(C) B",
    "not C",
    "Cat",
    "C cat",
    "C_2",
    "C. A. B. D.",
    "C.x",
    "E.g.",
    "3",
    "option",
    "",
    "\u212a",
    "\u0421",
    "Ç",
    "(C",
    "C" * 600,
  ],
)
def test_choice_reads_nothing_but_one_letter(answer):
  for label in "ABCDK":
    assert choice.grade(read(f"\\boxed{{{answer}}}"), label, None) == verdicts.UNPARSEABLE


def test_choice_is_quick_on_any_text():
  start = time.monotonic()
  for text in ("(" * 512, "A) " * 170, " " * 512, "answer " * 73, "\\text{" * 85, "the " * 128):
    choice.letter(text)
  assert time.monotonic() - start < 0.5
