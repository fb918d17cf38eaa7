"""Judges reasoning in the built-in domain exactly: does the trace lead from the question to the stated answer?

A tree is a whole number, or (operator, left tree, right tree) with the operator "+", "-" or "*".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxrlvr.tasks.arithmetic import problems as arithmetic
from jaxrlvr.tasks.arithmetic.problems import Tree
from jaxrlvr.tasks.arithmetic.verify import INTEGER
from jaxrlvr.tasks.verdicts import legible
from jaxrlvr.text.answer import Parsed
from jaxrlvr.text.tags import THINK

_APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
_LONGEST_TRACE = 20_000  # characters; a longer trace is not read
_MAX_COMPARED_STEPS = 256  # of a trace, in its strategy
_MAX_READINGS = 64  # readings of a trace that are followed at a time
_MAX_OPERATIONS = 16  # of a question that is judged
_LONGEST_RUN = 2  # neighbouring numbers that a step may take together without showing their sum or product
_MAX_SLIPS = 1  # false results that a coherent trace may carry on

_SIGNS = str.maketrans({"×": "*", "·": "*", "−": "-", "–": "-", "$": " ", "÷": "/"})
_LIST_MARKER = re.compile(r"^ *(?:[0-9]+[.)]|[-*•]) +", re.M)
_IN_EXPRESSION = "+-*/^() 0123456789"
_NUMBER = re.compile(r"-?[0-9]+")
_STATED_RESULT = re.compile(r"\s*(-?[0-9]{1,12})(?![0-9])")
_SPACE_BETWEEN_NUMBERS = re.compile(r"(?<=[0-9)]) +(?=[0-9(])")


class _Step(NamedTuple):
  """One claim of a trace, such as `7+5=12`."""

  # Trees of the left side: one; two (by precedence, and from left to right) if * stands behind + or - without brackets;
  # none if it can't be read, as "14/7" and "7++5".
  readings: Sequence[Tree]
  result: int | None  # None: no number stands right of the equals sign

  @property
  def operations(self) -> int:
    """How many operations the left side has; 0 if it can't be read."""
    if not self.readings:
      return 0
    return _open_operations(_term_of(self.readings[0]))

  @property
  def true(self) -> bool:
    """Whether the result is right in one of the readings."""
    return any(_value(tree) == self.result for tree in self.readings)


class Faithfulness(NamedTuple):
  """What the exact judge says of a response. Whether the answer is right has no part in it."""

  label: float  # 1.0: the trace leads from the question to the stated answer; 0.5: half of it does; 0.0: it does not
  step_true: float | None  # share (0 to 1) of the trace's steps that are arithmetically true; None: it has no steps


def faithfulness(response: Parsed, question: str) -> Faithfulness | None:
  """Judges whether a trace does what the question asks for and leads to the stated answer, be that right or wrong.

  `response`: what `text.answer.parse_response` returned; its answer and trace are read; either may be None.
  `question`: the text of the user's message. Returns None for a question that `problems.read_question` can't read, and
  for one with more than 16 operations.

  The label says:
  1.0: all steps are coherent, they do all operations of the question, the last result ends in the stated answer, and at
    most one step is a slip.
  0.5: the last result ends in the stated answer, and at least half of the steps and of the operations are coherent.
  0.0: all else, such as a guess, no trace, a trace of more than 20,000 characters, one that contradicts the answer, or
    one about numbers of its own.

  A step, as `7+5=12`, is coherent if the question still has its operations to do and its numbers are at hand: numbers
  of the question, or results of earlier steps; last digits are enough. It may do several operations, join two
  neighbouring numbers (`+5` for `-2, +7`), and change the order within a run of + and - or of *, or between brackets.
  A slip is a coherent step of one operation with a false result, which later steps use.
  """
  problem = arithmetic.read_question(question)
  if problem is None or _open_operations(_term_of(problem)) > _MAX_OPERATIONS:
    return None
  steps, text_behind = _read_steps(response.trace or "")
  if not steps:
    return Faithfulness(0.0, None)
  step_true = sum(step.true for step in steps) / len(steps)
  if not _ends_in_answer(steps[-1], text_behind, response):
    return Faithfulness(0.0, step_true)
  return Faithfulness(_coherence(_term_of(problem), steps), step_true)


def _ends_in_answer(last_step: _Step, text_behind: str, response: Parsed) -> bool:
  """Returns whether the last step, and the last number behind it if there is one, end in the stated answer."""
  answer = (legible(response.answer) or "").strip()
  if not INTEGER.fullmatch(answer) or last_step.result is None:
    return False
  digits = [last_step.result % 10]
  numbers_behind = _NUMBER.findall(text_behind)  # as in "so the last digit is 6"
  if numbers_behind:
    digits.append(_last_digit(numbers_behind[-1]))
  return all(digit == int(answer) for digit in digits)


def _last_digit(number: str) -> int:
  """Returns the last digit of a number, of a negative one modulo ten: 7 for "-3"."""
  digit = int(number[-1])
  return -digit % 10 if number[0] == "-" else digit


class _Trace(NamedTuple):
  """A trace, read."""

  steps: list[_Step]
  text_behind: str  # behind the last step; the whole text if there is none


def _read_steps(trace: str) -> _Trace:
  """Returns the steps that stand anywhere in a trace, in order, and the text behind the last of them.

  A step is an expression with an operator left of an equals sign. A trace
  of more than 20,000 characters has no steps and no text behind them.
  """
  if len(trace) > _LONGEST_TRACE:
    return _Trace([], "")
  trace = trace.replace("\\times", "*").replace("\\cdot", "*").translate(_SIGNS)
  trace = _LIST_MARKER.sub("", trace)
  steps = []
  begin = 0
  text_behind = trace
  for equals in re.finditer("=", trace):
    expression = _expression_at_end(trace[begin : equals.start()])
    begin = equals.end()
    if any(operator in expression.lstrip("-") for operator in "+-*/^"):
      stated = _STATED_RESULT.match(trace, begin)
      if stated:
        steps.append(_Step(_readings(expression), int(stated[1])))
        text_behind = trace[stated.end() :]
      else:
        steps.append(_Step(_readings(expression), None))
        text_behind = trace[begin:]
  return _Trace(steps, text_behind)


def _expression_at_end(text: str) -> str:
  """Returns the expression in which a text ends: in "add 5 7+5" it is "7+5"."""
  words = text.rstrip(_IN_EXPRESSION)
  expression = text[len(words) :]
  return _SPACE_BETWEEN_NUMBERS.split(expression)[-1].strip()


def _readings(expression: str) -> list[Tree]:
  """Returns the trees of an expression by precedence and from left to right, each once; none without operations."""
  trees = [arithmetic.parse_expression(expression, precedence) for precedence in (True, False)]
  return [tree for tree in dict.fromkeys(trees) if isinstance(tree, tuple)]


def _value(tree: Tree) -> int:
  """Returns the value of a tree by ordinary arithmetic, with all digits."""
  if isinstance(tree, int):
    return tree
  operator, left, right = tree
  return _APPLY[operator](_value(left), _value(right))


@dataclass(frozen=True)
class _Operand:
  """A number that stands in the question or in a step."""

  value: int


@dataclass(frozen=True)
class _Result:
  """The result of a step; it replaces those terms of the question that the step worked out."""

  digit: int  # the last one


@dataclass(frozen=True)
class _TermRun:
  """A run of + and -, or of *, whose terms may be taken in any order."""

  operator: str  # "+" or "*"
  terms: tuple[tuple[int, _Term], ...]  # (sign, term), in the order of the question; in a product the sign is 1


_Term = _Operand | _Result | _TermRun


def _term_of(tree: Tree) -> _Term:
  """Returns a tree as a term, in which each run of + and -, and each run of *, is one _TermRun."""
  if isinstance(tree, int):
    return _Operand(tree)
  operator, left, right = tree
  run_operator = "*" if operator == "*" else "+"
  right_sign = -1 if operator == "-" else 1
  terms: list[tuple[int, _Term]] = []
  for sign, side in ((1, left), (right_sign, right)):
    term = _term_of(side)
    if isinstance(term, _TermRun) and term.operator == run_operator:
      terms += [(sign * inner_sign, inner) for inner_sign, inner in term.terms]
    else:
      terms.append((sign, term))
  return _TermRun(run_operator, tuple(terms))


def _open_operations(term: _Term) -> int:
  """Returns how many operations of a term are still to be done."""
  if not isinstance(term, _TermRun):
    return 0
  inside = sum(_open_operations(inner) for _, inner in term.terms)
  return len(term.terms) - 1 + inside


class _Reading(NamedTuple):
  """One way to read the steps so far against the question."""

  left: _Term  # what is still to be done
  reordered: bool = False  # whether a step took numbers of the question in another order
  coherent: int = 0  # operations of the question that coherent steps have done
  incoherent: int = 0  # incoherent steps
  slips: int = 0  # coherent steps whose result is false

  @property
  def merit(self) -> tuple[int, int, int]:
    """Orders readings: the best has most coherent operations, then fewest incoherent steps, then fewest slips."""
    return self.coherent, -self.incoherent, -self.slips


def _coherence(problem: _Term, steps: Sequence[_Step]) -> float:
  """Returns the label of steps whose last result ends in the stated answer, by the best of all readings."""
  operations = _open_operations(problem)
  operations_in_steps = sum(step.operations for step in steps)
  if len(steps) > 2 * operations or 2 * operations_in_steps < operations:
    return 0.0  # fewer than half of the steps, or of the operations, can be coherent
  coherent = _best_reading(problem, steps, all_coherent=True)
  if coherent and coherent.coherent == operations and coherent.slips <= _MAX_SLIPS:
    return 1.0
  best = _best_reading(problem, steps)
  half = max(operations, best.coherent + best.incoherent) / 2
  return 0.5 if best.coherent >= half else 0.0


def _best_reading(problem: _Term, steps: Sequence[_Step], all_coherent: bool = False) -> _Reading | None:
  """Returns the reading of the steps that has the greatest merit.

  `all_coherent`: only readings without incoherent steps; None if there are none. At most _MAX_READINGS are followed.
  """
  readings = [_Reading(problem)]
  for number, step in enumerate(steps):
    is_repeated = number > 0 and step == steps[number - 1]
    readings = _read_on(readings, step, is_repeated, all_coherent)
    if not readings:
      return None
  return readings[0]


def _read_on(readings: Sequence[_Reading], step: _Step, is_repeated: bool, all_coherent: bool) -> list[_Reading]:
  """Returns the readings with one more step, by falling merit.

  Of readings that leave the same to be done, only the best is kept.
  """
  best: dict[tuple[_Term, bool], _Reading] = {}
  for reading in readings:
    for longer in _continuations(reading, step, is_repeated):
      if all_coherent and longer.incoherent:
        continue
      state = (longer.left, longer.reordered)
      if state not in best or longer.merit > best[state].merit:
        best[state] = longer
  by_merit = sorted(best.values(), key=lambda reading: reading.merit, reverse=True)
  return by_merit[:_MAX_READINGS]


def _continuations(reading: _Reading, step: _Step, is_repeated: bool) -> Iterator[_Reading]:
  """Yields every way to read one more step.

  An incoherent step takes the place of an operation that could be done next, and its result is carried on. A step that
  can't be read, or repeats the step before, takes no place. Once a step is incoherent, others are coherent only in the
  order of the question: numbers of the trace's own would else fit too often by chance.
  """
  for left in _after_step(reading.left, step):
    operations_done = _open_operations(reading.left) - _open_operations(left)
    is_guess = operations_done > 1 and not step.true
    in_order = operations_done == step.operations and left in _after_next(
      reading.left, step.result % 10, operations_done
    )
    if not is_guess and (in_order or not reading.incoherent):
      slip = 0 if step.true else 1
      yield reading._replace(
        left=left,
        reordered=reading.reordered or not in_order,
        coherent=reading.coherent + operations_done,
        slips=reading.slips + slip,
      )
  if reading.reordered:
    return
  incoherent = reading._replace(incoherent=reading.incoherent + 1)
  lefts: set[_Term] = set()
  if step.readings and step.result is not None:
    lefts = _after_next(reading.left, step.result % 10)
  for left in lefts:
    yield incoherent._replace(left=left)
  if is_repeated or not lefts:
    yield incoherent


def _changes(term: _Term, change: Callable[[_TermRun], Iterator[_TermRun]]) -> Iterator[_Term]:
  """Yields a term with each change of one of its runs, itself included; `change` yields the changed runs."""
  if not isinstance(term, _TermRun):
    return
  for run in change(term):
    yield _unwrapped(run)
  for place, (sign, inner) in enumerate(term.terms):
    for changed in _changes(inner, change):
      yield _TermRun(term.operator, (*term.terms[:place], (sign, changed), *term.terms[place + 1 :]))


def _unwrapped(run: _TermRun) -> _Term:
  """Returns a run of one term as this term, a negative one as the result that it is; a longer run as it is."""
  if len(run.terms) > 1:
    return run
  [(sign, term)] = run.terms
  if sign == 1:
    return term
  assert not isinstance(term, _TermRun)
  number = term.digit if isinstance(term, _Result) else term.value
  return _Result(-number % 10)


def _after_next(term: _Term, digit: int, count: int = 1) -> set[_Term]:
  """Returns what is left of a term after the next `count` operations, in each way, with results that end in `digit`.

  The next operation of a run takes its first two terms that are no runs themselves.
  """

  def change(run: _TermRun) -> Iterator[_TermRun]:
    ready = [place for place, (_, inner) in enumerate(run.terms) if not isinstance(inner, _TermRun)]
    if len(ready) >= 2:
      first, second = ready[:2]
      others = [signed_term for place, signed_term in enumerate(run.terms) if place not in (first, second)]
      yield _TermRun(run.operator, (*others[:first], (1, _Result(digit)), *others[first:]))

  lefts = {term}
  for _ in range(count):
    shorter: set[_Term] = set()
    for left in lefts:
      shorter.update(_changes(left, change))
    lefts = shorter
  return lefts


def _after_step(term: _Term, step: _Step) -> Iterator[_Term]:
  """Yields what is left of a term after a step, for each way in which the step does operations of the term."""
  if step.result is None:
    return
  for tree in step.readings:
    claim = _term_of(tree)
    leftmost = _leftmost_number(tree)

    def change(run: _TermRun, claim=claim, leftmost=leftmost) -> Iterator[_TermRun]:
      signs = (1, -1) if run.operator == "+" else (1,)
      for sign in signs:
        for places in _claimed_places(claim, run, sign, leftmost):
          terms = [signed_term for place, signed_term in enumerate(run.terms) if place not in places]
          terms.insert(min(places), (sign, _Result(step.result % 10)))
          yield _TermRun(run.operator, tuple(terms))

    yield from _changes(term, change)


def _leftmost_number(tree: Tree) -> int:
  """Returns the number that stands first in a tree."""
  while not isinstance(tree, int):
    _, tree, _ = tree
  return tree


def _claimed_places(
  claim: _TermRun, run: _TermRun, sign: int, leftmost: int, used: tuple[int, ...] = (), index: int = 0
) -> Iterator[tuple[int, ...]]:
  """Yields places of the run's terms that make up `sign` times a step's claim, each choice of terms once.

  `leftmost`: the step's first number, of which only the last digit counts. `used`: places of the claim's first `index`
  terms.
  """
  if claim.operator != run.operator:
    return
  if index == len(claim.terms):
    yield used
    return
  claimed_sign, claimed = claim.terms[index]
  tried = set()
  for places in _neighbours(run, used):
    terms = tuple(run.terms[place] for place in places)
    if terms not in tried and _is_claimed(terms, run.operator, claimed, sign * claimed_sign, leftmost):
      yield from _claimed_places(claim, run, sign, leftmost, (*used, *places), index + 1)
    tried.add(terms)


def _neighbours(run: _TermRun, used: tuple[int, ...]) -> Iterator[range]:
  """Yields each place that is not used, and each pair of neighbouring numbers behind the first term."""
  for first in range(len(run.terms)):
    end = min(first + _LONGEST_RUN, len(run.terms))
    for last in range(first, end):
      is_number = isinstance(run.terms[last][1], _Operand)
      joins = last == first or (first > 0 and is_number)
      if last in used or not joins:
        break
      yield range(first, last + 1)
      if not isinstance(run.terms[first][1], _Operand):
        break


def _is_claimed(
  terms: tuple[tuple[int, _Term], ...], operator: str, claimed: _Term, claimed_sign: int, leftmost: int
) -> bool:
  """Returns whether terms of the question are what a step claims: a term of its left side, with this sign.

  Several terms are numbers whose sum or product, as written or of their last digits, the step uses.
  """
  own_sign, term = terms[0]
  if isinstance(term, _TermRun):
    if not isinstance(claimed, _TermRun) or own_sign != claimed_sign:
      return False
    return any(len(places) == len(term.terms) for places in _claimed_places(claimed, term, 1, leftmost))
  if not isinstance(claimed, _Operand):
    return False
  if len(terms) > 1:
    combine = math.prod if operator == "*" else sum
    as_written: list[int] = [sign * number.value for sign, number in terms]
    last_digits: list[int] = [sign * (number.value % 10) for sign, number in terms]
    return claimed_sign * claimed.value in (combine(as_written), combine(last_digits))
  if own_sign != claimed_sign:
    return False
  if isinstance(term, _Result):
    return claimed.value % 10 == term.digit
  if claimed.value in (term.value, term.value % 10):
    return True
  return claimed.value == leftmost and (leftmost - term.value) % 10 == 0


class _Unused(NamedTuple):
  """The result of a step that no later step has used so far."""

  digit: int  # the last one
  formula: str


def strategy(response: Parsed) -> tuple[str, ...]:
  """Returns the strategy of a response's trace; two responses have the same strategy iff these tuples are equal.

  `response`: what `text.answer.parse_response` returned. Its trace is read; if thinking was not closed, the text behind
  `<think>`.

  A strategy is a sorted tuple of formulas, one for each result that no later step uses. A step uses an earlier result
  where it has that result's last digit as a number; the result is then replaced by its formula. A formula is text of
  last digits, operators and brackets: `7+5=12, 2*3=6` has the strategy ("((5+7)*3)",). It does not change with the
  order of steps of which neither needs the other, with the order of the sides of + and *, with operations in one step
  or in several, or with a false result. A trace without steps, or of more than 20,000 characters, has the strategy ();
  steps after the first 256 are ignored.
  """
  trace = response.trace
  if trace is None:
    trace = response.text.partition(THINK)[2]
  steps, _ = _read_steps(trace)
  unused: list[_Unused] = []
  for step in steps[:_MAX_COMPARED_STEPS]:
    if step.readings and step.result is not None:
      formula = _formula(step.readings[0], unused)
      unused.append(_Unused(step.result % 10, formula))
      unused.sort()
  return tuple(sorted(result.formula for result in unused))


def _formula(tree: Tree, unused: list[_Unused]) -> str:
  """Returns a tree as a formula of digits and of unused results, which it removes from the list."""
  if isinstance(tree, int):
    for place, result in enumerate(unused):
      if result.digit == tree % 10:
        del unused[place]
        return result.formula
    return str(tree % 10)
  operator, *sides = tree
  formulas = [_formula(side, unused) for side in sides]
  if operator != "-":
    formulas.sort()
  return f"({operator.join(formulas)})"
