"""Whether two formulas are equal: exactly where they are rational, else to more digits than their parts differ by.

Formulas with variables are compared at fixed points. Nothing here takes long or grows: what is too large to be
evaluated raises TooLarge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

from jaxrlvr.tasks.math.formula import Formula, Number, Operation, Symbol, has, symbols

NumericValue: TypeAlias = Any  # a Fraction, or an mpf or mpc of mpmath, which has no types

MAX_BITS = 1 << 17  # of the numerator or the denominator of an exact number
MAX_PRECISION = 40_000  # bits of an irrational one
_CONFIRMING = 2_000  # bits with which equality is looked at again
MAX_EXPONENT = 1 << 40  # binary, of an irrational number
MAX_FACTORIAL = 5_000
_ROUNDED = Fraction(2, 10**6)  # decimals this close, in relation to their size, may be two roundings of one number
_SCIENTIFIC_DIGITS = 3  # that the shorter of two numbers in scientific notation shows at least
# Where formulas with variables are compared. Of both signs, small and large, no two alike.
_POINTS = tuple(
  tuple(Fraction(a * (b + 7 * n), 97 + 13 * n) for n in range(24))
  for a, b in ((1, 31), (1, 173), (-1, 53), (1, 397), (-1, 211), (1, 1009))
)
# More points for what jumps from number to number.
_INTEGERS = tuple(tuple(Fraction(n * (5 * a + 3) % 61 - 7) for n in range(1, 25)) for a in range(40))


class TooLarge(ValueError):
  """The number has too many digits to be evaluated."""


class Undefined(ValueError):
  """The formula has no value, as 1/0."""


def equal(a: Formula, b: Formula) -> bool:
  """Returns whether two formulas have the same value, for every value of their variables. Raises TooLarge."""
  if a == b:
    return True
  names = sorted(symbols(a) | symbols(b))
  if len(names) > len(_POINTS[0]):
    raise TooLarge("too many variables")
  real = complex_ = 0
  stepped = any(has(tree, "floor", "ceil") for tree in (a, b))
  for point in (_POINTS + _INTEGERS * stepped)[: 1 if not names else None]:
    values = _values((a, b), dict(zip(names, point, strict=False)))
    if values is None:
      continue
    same, is_real = values
    if not is_real:
      complex_ += same
      if not names and not same:
        return False
      continue
    if not same:
      return False
    real += 1
  return real >= min(2, max(1, len(names))) or not real and complex_ >= 1 and _all_complex(names, complex_)


def _all_complex(names: list[str], agreeing: int) -> bool:
  return agreeing == (1 if not names else len(_POINTS))


def proportional(a: Formula, b: Formula, positive: bool = False) -> bool:
  """Returns whether a is b times a number other than 0, for every value of their variables. Raises TooLarge."""
  names = sorted(symbols(a) | symbols(b))
  if symbols(a) != symbols(b) or not names or len(names) > len(_POINTS[0]):
    return False
  ratio = None
  count = 0
  for point in _POINTS:
    env = dict(zip(names, point, strict=False))
    try:
      va, vb = Evaluation(200).value(a, env), Evaluation(200).value(b, env)
      if _is_complex(va) or _is_complex(vb) or vb == 0:
        continue
      current = _divide(va, vb, Evaluation(200))
    except Undefined:
      continue
    if current == 0 or positive and current < 0:
      return False
    if ratio is not None and abs(current - ratio) > 1e-30 * abs(ratio):
      return False
    ratio = current
    count += 1
  return count >= 3


def _values(trees: tuple[Formula, Formula], env: Mapping) -> tuple[bool, bool] | None:
  """Returns whether the two agree at a point and whether both are real there; None where one is undefined."""
  evaluation = Evaluation(200)
  try:
    a, b = (evaluation.value(tree, env) for tree in trees)
    if isinstance(a, Fraction) and isinstance(b, Fraction):
      return a == b, True
    enough = 200 + (int(2.2 * evaluation.extent) if evaluation.extent > 100 else 0)
    if enough > MAX_PRECISION:
      raise TooLarge("too many digits")
    if enough > 200:
      evaluation = Evaluation(enough)
      a, b = (evaluation.value(tree, env) for tree in trees)
    if (
      not env and enough < _CONFIRMING and _close(evaluation, a, b)
    ):  # what rounds to the other, as the tanh of 100 to 1
      evaluation = Evaluation(_CONFIRMING)
      a, b = (evaluation.value(tree, env) for tree in trees)
  except Undefined:
    return None
  if isinstance(a, Fraction) and isinstance(b, Fraction):
    return a == b, True
  parts = [value.imag for value in (a, b) if _is_complex(value)]
  return _close(evaluation, a, b), all(evaluation.magnitude(part) <= 60 - evaluation.precision for part in parts)


def _close(evaluation: Evaluation, a, b) -> bool:
  """Returns whether two numbers differ by no more than their rounding may explain."""
  gap = abs(evaluation.subtract(a, b))
  scale = max(0, min(evaluation.largest, evaluation.precision // 2))
  return gap == 0 or evaluation.magnitude(gap) < scale - evaluation.precision + 60


def _is_complex(value) -> bool:
  return not isinstance(value, Fraction) and type(value).__name__ == "mpc" and value.imag != 0


def _divide(a, b, evaluation):
  return evaluation.operate("div", (a, b))


@functools.cache
def _context():
  from mpmath import MPContext

  return MPContext()


class Evaluation:
  """Evaluates trees to a Fraction where that is exact, else to a number of so many bits."""

  def __init__(self, precision: int):
    self.mp = _context()
    self.mp.prec = self.precision = precision  # of all evaluations: one at a time is in use
    self.extent = 0  # the largest binary exponent, of either sign, of a number on the way
    self.largest = 0  # the largest

  def magnitude(self, value: NumericValue) -> int:
    """Returns the binary exponent of a number."""
    if isinstance(value, Fraction):
      return value.numerator.bit_length() - value.denominator.bit_length()
    return int(self.mp.mag(value)) if value else -(1 << 60)

  def value(self, tree: Formula, env: Mapping[str, Fraction]) -> NumericValue:
    """Returns the value of a tree where its variables have these values. Raises TooLarge, Undefined."""
    if isinstance(tree, Number):
      return tree.value
    if isinstance(tree, Symbol):
      return self._symbol(tree.name, env)
    if tree.name == "pow" and tree.arguments[0] == Symbol("e"):
      return self._note(self._exp(self.value(tree.arguments[1], env)))
    return self.operate(tree.name, [self.value(part, env) for part in tree.arguments])

  def operate(self, name: str, values: Sequence[NumericValue]) -> NumericValue:
    """Returns what an operation makes of values."""
    operation = _OPERATIONS.get(name)
    if operation is None:
      raise Undefined(name)
    try:
      return self._note(operation(self, *values))
    except (ZeroDivisionError, TypeError, OverflowError) as error:
      raise Undefined(name) from error
    except ValueError as error:
      if isinstance(error, TooLarge | Undefined):
        raise
      raise Undefined(name) from error

  def subtract(self, a: NumericValue, b: NumericValue) -> NumericValue:
    return self._note(_add(self, a, _neg(self, b)))

  def _symbol(self, name: str, env: Mapping[str, Fraction]):
    if name in env:
      return env[name]
    if name == "pi":
      return +self.mp.pi
    if name == "e":
      return +self.mp.e
    if name == "i":
      return self.mp.mpc(0, 1)
    raise Undefined(name)

  def _note(self, value):
    if isinstance(value, Fraction):
      size = max(value.numerator.bit_length(), value.denominator.bit_length())
      if size > MAX_BITS:
        raise TooLarge("too many digits")
      if value:
        exponent = self.magnitude(value)
        self.extent, self.largest = max(self.extent, abs(exponent)), max(self.largest, exponent)
      return value
    if not self.mp.isfinite(value):
      raise Undefined("infinite")
    if type(value).__name__ == "mpc" and value.imag == 0:
      value = value.real
    if value:
      exponent = self.magnitude(value)
      if abs(exponent) > MAX_EXPONENT:
        raise TooLarge("too many digits")
      self.extent, self.largest = max(self.extent, abs(exponent)), max(self.largest, exponent)
    return value

  def inexact(self, value: NumericValue) -> NumericValue:
    """Returns an exact number as one of so many bits, others as they are."""
    if isinstance(value, Fraction):
      return self.mp.mpf(value.numerator) / value.denominator
    return value

  def _exp(self, exponent):
    inexact = self.inexact(exponent)
    if abs(inexact.real) > MAX_EXPONENT:
      raise TooLarge("too many digits")
    return Fraction(1) if exponent == 0 else self.mp.exp(inexact)


def _exact(*values) -> bool:
  return all(isinstance(value, Fraction) for value in values)


def _add(evaluation: Evaluation, *values):
  if _exact(*values):
    return sum(values, Fraction(0))
  total, largest = evaluation.mp.mpf(0), 0
  for value in values:
    term = evaluation.inexact(value)
    total, largest = total + term, max(largest, abs(term))
  noise = largest * evaluation.mp.mpf(2) ** (20 - evaluation.precision)  # of a sum that is 0, its terms being rounded
  return evaluation.mp.mpf(0) if abs(total) < noise else total


def _neg(evaluation: Evaluation, value):
  return -value


def _mul(evaluation: Evaluation, a, b):
  if _exact(a, b):
    return a * b
  if a == 0 or b == 0:
    return Fraction(0)
  return evaluation.inexact(a) * evaluation.inexact(b)


def _div(evaluation: Evaluation, a, b):
  if _exact(a, b):
    return a / b
  return evaluation.inexact(a) / evaluation.inexact(b)


def _pow(evaluation: Evaluation, base, exponent):
  if _exact(exponent) and exponent.denominator == 1:
    return _integer_power(evaluation, base, exponent.numerator)
  if _exact(base) and base == 0:
    if isinstance(exponent, Fraction) and exponent > 0:
      return Fraction(0)
    raise Undefined("0 to a power")
  if _exact(base, exponent) and base > 0:
    root = _exact_root(base, exponent.denominator)
    if root is not None:
      return _integer_power(evaluation, root, exponent.numerator)
  _check_power(evaluation, base, exponent)
  return evaluation.mp.power(evaluation.inexact(base), evaluation.inexact(exponent))


def _integer_power(evaluation: Evaluation, base, exponent: int):
  if _exact(base):
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) in (0, 1):
      return base ** (exponent if exponent <= 0 else 2 - exponent % 2)
    if size * abs(exponent) > 2 * MAX_BITS:
      raise TooLarge("too many digits")
    return base**exponent
  _check_power(evaluation, base, exponent)
  return evaluation.mp.power(base, exponent)


def _check_power(evaluation: Evaluation, base, exponent) -> None:
  if base == 0:
    return
  size = abs(evaluation.magnitude(base)) + 1
  if size * abs(evaluation.inexact(exponent) if not isinstance(exponent, int) else exponent) > MAX_EXPONENT:
    raise TooLarge("too many digits")


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
  """Returns the root of a positive number where it is rational, else None."""
  if degree > 64:
    return None
  parts = []
  for part in (value.numerator, value.denominator):
    root = _integer_root(part, degree)
    if root**degree != part:
      return None
    parts.append(root)
  return Fraction(*parts)


def _integer_root(value: int, degree: int) -> int:
  """Returns the largest integer whose power of the degree is at most the value."""
  if degree == 2:
    return math.isqrt(value)
  low, high = 0, 1 << (value.bit_length() // degree + 1)
  while low < high:
    middle = (low + high + 1) // 2
    if middle**degree <= value:
      low = middle
    else:
      high = middle - 1
  return low


def _root(evaluation: Evaluation, value, degree):
  if not _exact(degree) or degree == 0 or degree.denominator != 1:
    return _pow(evaluation, value, _div(evaluation, Fraction(1), degree))
  odd = degree.numerator % 2 == 1
  real = _exact(value) or not _is_complex(value)
  if real and value < 0 and odd:
    return -_root(evaluation, -value, degree)
  return _pow(evaluation, value, 1 / degree)


def _sine_like(name: str):
  def evaluate(evaluation: Evaluation, angle):
    if angle == 0:
      return Fraction(int(name == "cos"))
    if evaluation.magnitude(angle) > 4096:
      raise TooLarge("too large an angle")
    value = getattr(evaluation.mp, name)(evaluation.inexact(angle))
    if abs(value) < evaluation.mp.mpf(2) ** (20 - evaluation.precision):
      return evaluation.mp.mpf(0)
    return value

  return evaluate


_sin, _cos = _sine_like("sin"), _sine_like("cos")


def _tan(evaluation: Evaluation, angle):
  return _div(evaluation, _sin(evaluation, angle), _cos(evaluation, angle))


def _of_library(name: str, largest: int = 1 << 40):
  """A function of the library, for arguments of fair size."""

  def evaluate(evaluation: Evaluation, *values):
    inexact = [evaluation.inexact(value) for value in values]
    if any(abs(value) > largest for value in inexact):
      raise TooLarge("too large an argument")
    return getattr(evaluation.mp, name)(*inexact)

  return evaluate


def _ln(evaluation: Evaluation, value):
  if value == 1:
    return Fraction(0)
  if value == 0:
    raise Undefined("ln 0")
  return evaluation.mp.log(evaluation.inexact(value))


def _log(evaluation: Evaluation, value, base=Fraction(10)):
  if _exact(value, base) and value > 0 and base > 1:
    power = round(float(evaluation.mp.log(evaluation.inexact(value)) / evaluation.mp.log(evaluation.inexact(base))))
    if abs(power) < 10_000 and base**power == value:
      return Fraction(power)
  return _div(evaluation, _ln(evaluation, value), _ln(evaluation, base))


def _factorial(evaluation: Evaluation, value):
  if not _exact(value):
    raise Undefined("the factorial of an irrational number")
  if value > MAX_FACTORIAL:
    raise TooLarge("too large a factorial")
  if value.denominator == 1:
    if value < 0:
      raise Undefined("the factorial of a negative number")
    return Fraction(math.factorial(value.numerator))
  return evaluation.mp.gamma(evaluation.inexact(value + 1))


def _binom(evaluation: Evaluation, n, k):
  if _exact(n, k) and n.denominator == k.denominator == 1 and n >= 0 and k >= 0:
    if min(k, n - k) > MAX_FACTORIAL or n > MAX_BITS:
      raise TooLarge("too large a binomial")
    return Fraction(math.comb(n.numerator, k.numerator))
  if _exact(k) and k.denominator == 1 and 0 <= k <= 50:
    product = Fraction(1)
    for factor in range(k.numerator):
      product = _mul(evaluation, product, _div(evaluation, n - factor, Fraction(factor + 1)))
    return product
  return _of_library("binomial", 1000)(evaluation, n, k)


def _abs(evaluation: Evaluation, value):
  return abs(value)


def _floor(evaluation: Evaluation, value):
  if _exact(value):
    return Fraction(math.floor(value))
  return Fraction(int(evaluation.mp.floor(value))) if evaluation.magnitude(value) < 200 else _too_large()


def _ceil(evaluation: Evaluation, value):
  return -_floor(evaluation, -value)


def _too_large():
  raise TooLarge("too large a number")


def _integers(function):
  def evaluate(evaluation: Evaluation, *values):
    if not _exact(*values) or any(value.denominator != 1 for value in values):
      raise Undefined("no integers")
    return Fraction(function(*(value.numerator for value in values)))

  return evaluate


def _extreme(function):
  def evaluate(evaluation: Evaluation, *values):
    return function(values, key=evaluation.inexact)

  return evaluate


_OPERATIONS = {
  "add": _add,
  "neg": _neg,
  "mul": _mul,
  "div": _div,
  "pow": _pow,
  "root": _root,
  "degree": lambda evaluation, value: _mul(evaluation, value, evaluation.mp.pi / 180),
  "percent": lambda evaluation, value: _div(evaluation, value, Fraction(100)),
  "sin": _sin,
  "cos": _cos,
  "tan": _tan,
  "cot": lambda evaluation, angle: _div(evaluation, _cos(evaluation, angle), _sin(evaluation, angle)),
  "sec": lambda evaluation, angle: _div(evaluation, Fraction(1), _cos(evaluation, angle)),
  "csc": lambda evaluation, angle: _div(evaluation, Fraction(1), _sin(evaluation, angle)),
  "arcsin": _of_library("asin"),
  "arccos": _of_library("acos"),
  "arctan": _of_library("atan"),
  "sinh": _of_library("sinh", 10_000),
  "cosh": _of_library("cosh", 10_000),
  "tanh": _of_library("tanh", 10_000),
  "exp": lambda evaluation, value: evaluation._exp(value),
  "ln": _ln,
  "log": _log,
  "lg": _log,
  "abs": _abs,
  "floor": _floor,
  "ceil": _ceil,
  "factorial": _factorial,
  "binom": _binom,
  "gcd": _integers(math.gcd),
  "lcm": _integers(math.lcm),
  "max": _extreme(max),
  "min": _extreme(min),
  "Re": lambda evaluation, value: evaluation.inexact(value).real,
  "Im": lambda evaluation, value: evaluation.inexact(value).imag,
  "arg": _of_library("arg"),
}


class Decimal:
  """A decimal as it was written: its value and the size of one in its last digit."""

  def __init__(self, value: Fraction, unit: Fraction, scientific: bool):
    self.value, self.unit, self.scientific = value, unit, scientific

  @property
  def digits(self) -> int:
    """How many significant digits it shows."""
    return len(str(abs(self.value / self.unit).numerator)) if self.value else 1


def decimal(tree: Formula) -> Decimal | None:
  """Returns a number that shows a decimal point, also times a power of ten or in percent; None for all others."""
  if isinstance(tree, Number):
    return None if tree.decimals is None else Decimal(tree.value, Fraction(1, 10**tree.decimals), False)
  if not isinstance(tree, Operation):
    return None
  if tree.name == "neg":
    inner = decimal(tree.arguments[0])
    return inner and Decimal(-inner.value, inner.unit, inner.scientific)
  if tree.name == "mul":
    inner, power = decimal(tree.arguments[0]), _power_of_ten(tree.arguments[1])
    if inner is None or power is None:
      return None
    return Decimal(inner.value * power, inner.unit * power, True)
  return None


def _power_of_ten(tree: Formula) -> Fraction | None:
  ten = Number(Fraction(10))
  if tree == ten:
    return ten.value
  if not isinstance(tree, Operation) or tree.name != "pow" or tree.arguments[0] != ten:
    return None
  exponent = tree.arguments[1]
  sign = 1
  if isinstance(exponent, Operation) and exponent.name == "neg":
    exponent, sign = exponent.arguments[0], -1
  if not isinstance(exponent, Number) or exponent.decimals is not None or exponent.value > 400:
    return None
  return ten.value ** int(sign * exponent.value)


def agree(answer: Formula, label: Formula) -> bool:
  """Returns whether an answer and a label are equal, or where the label is a decimal, roundings of one number.

  Raises TooLarge.
  """
  if equal(answer, label):
    return True
  wanted = decimal(label)
  if wanted is None or symbols(answer) or has(answer, "percent", "degree"):
    return False
  written = decimal(answer)
  if written is not None:
    return _same_rounding(written, wanted)
  value = _real_value(answer)
  if value is None or isinstance(value, Fraction) and value.denominator == 1:
    return False
  return _rounds_to(value, wanted) and abs(value - _like(value, wanted.value)) <= abs(value) * _like(value, _ROUNDED)


def _like(value, fraction: Fraction):
  return fraction if isinstance(value, Fraction) else value.context.mpf(fraction.numerator) / fraction.denominator


def _real_value(tree: Formula):
  try:
    value = Evaluation(200).value(tree, {})
  except Undefined:
    return None
  return None if _is_complex(value) else value


def _rounds_to(value, short: Decimal) -> bool:
  """Returns whether a number rounds to a decimal, half of its last digit away from 0."""
  above = abs(value) - abs(_like(value, short.value))  # both have one sign, or are less than a digit
  half = _like(value, short.unit) / 2
  return -half <= above < half and abs(value - _like(value, short.value)) <= half


def rounds(tree: Formula, approximate: Formula) -> bool:
  """Returns whether a decimal is a rounding of a number, to the digits that it shows. Raises TooLarge."""
  if equal(tree, approximate):
    return True
  short = decimal(approximate)
  value = None if symbols(tree) else _real_value(tree)
  return short is not None and value is not None and short.digits > 1 and _rounds_to(value, short)


def _same_rounding(a: Decimal, b: Decimal) -> bool:
  short, long = (a, b) if a.unit > b.unit else (b, a)
  if not _rounds_to(long.value, short):
    return False
  enough = short.scientific and long.scientific and short.digits >= _SCIENTIFIC_DIGITS
  return enough or abs(long.value - short.value) <= abs(long.value) * _ROUNDED


def real(tree: Formula) -> NumericValue:
  """Returns the value of a formula without variables; None where it has none that is real. Raises TooLarge."""
  return None if symbols(tree) else _real_value(tree)


def fraction(value: NumericValue) -> Fraction:
  """Returns a real number as a fraction, to compare it with others. Raises TooLarge."""
  if isinstance(value, Fraction):
    return value
  sign, mantissa, exponent, _ = value._mpf_
  if abs(exponent) > MAX_BITS:
    raise TooLarge("too many digits")
  return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent


def fractional(tree: Formula) -> bool:
  """Returns whether a formula is a rational number that is no integer."""
  value = real(tree)
  return isinstance(value, Fraction) and value.denominator > 1
