"""Decides whether two formulas are equal.

Rational numbers are compared exactly. Others are evaluated with at least 200 bits, and count as equal if rounding can
explain their difference. Formulas with variables are compared at fixed points. Time and memory are bounded: a formula
whose evaluation would need too many digits raises TooLarge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

from jaxrlvr.tasks.math.formula import Formula, Number, Operation, Symbol, has, symbols

# A Fraction if the value is exact, else a real (mpf) or complex (mpc) number of mpmath, which has no types.
NumericValue: TypeAlias = Any

_MAX_BITS = 1 << 17  # of the numerator or the denominator of an exact number
_MAX_PRECISION = 40_000  # bits of an irrational number
_MAX_EXPONENT = 1 << 40  # binary exponent of an irrational number
_MAX_FACTORIAL = 5_000
_PRECISION = 200  # bits with which formulas are first evaluated
_CONFIRMING_PRECISION = 2_000  # bits with which numbers that seem equal are compared again
_ROUNDED = Fraction(2, 10**6)  # decimals whose difference is at most this share may be roundings of one number
_SCIENTIFIC_DIGITS = 3  # of two numbers in scientific notation the shorter must show as many to count as a rounding
_MAX_ANGLE_EXPONENT = 4096  # binary
_MAX_ROOT = 64  # degree of roots that are taken exactly
_RATIO_TOLERANCE = 1e-30  # share by which ratios at two points may differ by rounding
_LEAST_DEFINED = 3  # points at which a ratio must be defined
_GUARD_BITS = 60  # last bits of a result, which rounding on the way may have made wrong
_CANCELLATION_BITS = 20  # a sum that is smaller than its terms by all but so many bits is 0
_LARGE_EXTENT = 100  # binary exponent of a number on the way, from which on more precision is needed
_BITS_PER_EXPONENT = 2.2  # of further precision
_MAX_EXACT_LOGARITHM = 10_000
_MAX_BINOMIAL_FACTORS = 50  # of a binomial of a number that is no natural one
_MAX_POWER_OF_TEN = 400  # exponent of a number in scientific notation
_MAX_HYPERBOLIC = 10_000  # argument of sinh, cosh and tanh
_MAX_INEXACT_BINOMIAL = 1000  # argument of a binomial that is computed with the gamma function
_ZERO_EXPONENT = -(1 << 60)  # binary exponent that stands for 0

# Points at which formulas with variables are compared; a point has a value for each variable. The values
# have both signs, are small and large, and all differ.
_MAX_VARIABLES = 24


def _fractions(factor: int, start: int) -> tuple[Fraction, ...]:
  return tuple(Fraction(factor * (start + 7 * place), 97 + 13 * place) for place in range(_MAX_VARIABLES))


def _integers(number: int) -> tuple[Fraction, ...]:
  return tuple(Fraction(place * (5 * number + 3) % 61 - 7) for place in range(1, _MAX_VARIABLES + 1))


_POINTS = (
  _fractions(1, 31),
  _fractions(1, 173),
  _fractions(-1, 53),
  _fractions(1, 397),
  _fractions(-1, 211),
  _fractions(1, 1009),
)
# Further points, for formulas that are constant between integers.
_INTEGERS = tuple(_integers(number) for number in range(40))


class TooLarge(ValueError):
  """The evaluation would need too many digits, or the formulas have too many variables."""


class _Undefined(ValueError):
  """The formula has no value, such as 1/0."""


def equal(a: Formula, b: Formula) -> bool:
  """Returns whether two formulas have the same value, for every value of their variables.

  Formulas with variables are compared at six fixed points, those with a floor or ceiling at 40 more. Points at which
  one is undefined are passed over. Real values decide; if there are none, the formulas must agree in their complex
  values at all points. Returns False if they are defined nowhere, unless they are the same formula.
  Raises TooLarge if that needs too many digits, or there are more than 24 variables.
  """
  if a == b:
    return True
  names = sorted(symbols(a) | symbols(b))
  if len(names) > _MAX_VARIABLES:
    raise TooLarge("too many variables")
  real_agreements = complex_agreements = 0
  for point in _points_for(a, b, names):
    comparison = _compare_at(a, b, dict(zip(names, point, strict=False)))
    if comparison is None:
      continue
    if not comparison.agree:
      if comparison.is_real or not names:
        return False
    elif comparison.is_real:
      real_agreements += 1
    else:
      complex_agreements += 1
  if real_agreements:
    return real_agreements >= (2 if len(names) > 1 else 1)
  return complex_agreements == (len(_POINTS) if names else 1)


def _points_for(a: Formula, b: Formula, names: Sequence[str]) -> tuple[tuple[Fraction, ...], ...]:
  """Returns the points at which to compare two formulas; one point if they have no variables."""
  points = _POINTS
  if has(a, "floor", "ceil") or has(b, "floor", "ceil"):
    points += _INTEGERS
  return points if names else points[:1]


def proportional(a: Formula, b: Formula, positive: bool = False) -> bool:
  """Returns whether formula `a` is formula `b` times one number other than 0, for every value of their variables.

  `positive`: the number must also be positive. They are compared at six fixed points, of which three must be real and
  defined. Returns False for formulas without variables or with different ones. Raises TooLarge if the evaluation needs
  too many digits.
  """
  names = sorted(symbols(a))
  if symbols(a) != symbols(b) or not names or len(names) > _MAX_VARIABLES:
    return False
  ratio = None
  defined = 0
  for point in _POINTS:
    at_point = _ratio_at(a, b, dict(zip(names, point, strict=False)))
    if at_point is None:
      continue
    if at_point == 0 or positive and at_point < 0:
      return False
    if ratio is not None and abs(at_point - ratio) > _RATIO_TOLERANCE * abs(ratio):
      return False
    ratio = at_point
    defined += 1
  return defined >= _LEAST_DEFINED


def _ratio_at(a: Formula, b: Formula, point: Mapping[str, Fraction]) -> NumericValue | None:
  """Returns a / b at a point; None if that is undefined, or one of them is complex."""
  try:
    value_a, value_b = _Evaluation(_PRECISION).value(a, point), _Evaluation(_PRECISION).value(b, point)
    if _is_complex(value_a) or _is_complex(value_b) or value_b == 0:
      return None
    return _Evaluation(_PRECISION).operate("div", (value_a, value_b))
  except _Undefined:
    return None


class _Comparison(NamedTuple):
  """How two formulas compare at a point."""

  agree: bool
  is_real: bool  # whether both are real there


def _compare_at(a: Formula, b: Formula, point: Mapping[str, Fraction]) -> _Comparison | None:
  """Compares two formulas at a point; returns None if one of them is undefined there. Raises TooLarge."""
  try:
    return _compare_defined(a, b, point)
  except _Undefined:
    return None


def _compare_defined(a: Formula, b: Formula, point: Mapping[str, Fraction]) -> _Comparison:
  """Compares two formulas at a point with as much precision as they need. Raises Undefined, TooLarge."""

  def values(evaluation: _Evaluation) -> tuple[NumericValue, NumericValue]:
    return evaluation.value(a, point), evaluation.value(b, point)

  evaluation = _Evaluation(_PRECISION)
  value_a, value_b = values(evaluation)
  if _exact(value_a, value_b):
    return _Comparison(value_a == value_b, is_real=True)
  precision = _PRECISION
  if evaluation.extent > _LARGE_EXTENT:
    precision += int(_BITS_PER_EXPONENT * evaluation.extent)
  if precision > _MAX_PRECISION:
    raise TooLarge("too many digits")
  if precision > _PRECISION:
    evaluation = _Evaluation(precision)
    value_a, value_b = values(evaluation)
  # A number may round to another, as the tanh of 100 to 1.
  if not point and precision < _CONFIRMING_PRECISION and _close(evaluation, value_a, value_b):
    evaluation = _Evaluation(_CONFIRMING_PRECISION)
    value_a, value_b = values(evaluation)
  if _exact(value_a, value_b):
    return _Comparison(value_a == value_b, is_real=True)
  imaginary_parts = [value.imag for value in (value_a, value_b) if _is_complex(value)]
  is_real = all(evaluation.magnitude(part) <= _GUARD_BITS - evaluation.precision for part in imaginary_parts)
  return _Comparison(_close(evaluation, value_a, value_b), is_real)


def _close(evaluation: _Evaluation, a: NumericValue, b: NumericValue) -> bool:
  """Returns whether two numbers differ by no more than rounding can explain."""
  difference = abs(evaluation.subtract(a, b))
  scale = max(0, min(evaluation.largest, evaluation.precision // 2))
  return difference == 0 or evaluation.magnitude(difference) < scale - evaluation.precision + _GUARD_BITS


def _is_complex(value: NumericValue) -> bool:
  return not isinstance(value, Fraction) and type(value).__name__ == "mpc" and value.imag != 0


@functools.cache
def _context():
  from mpmath import MPContext

  return MPContext()


class _Evaluation:
  """Evaluates formulas: to a Fraction if that is exact, else to a number of `precision` bits.

  All evaluations share one context of mpmath, so only the newest may be used. `extent`: the largest binary exponent of
  a number on the way, of either sign; `largest`: the largest positive one.
  """

  def __init__(self, precision: int):
    self.mp = _context()
    self.mp.prec = self.precision = precision
    self.extent = 0
    self.largest = 0

  def magnitude(self, value: NumericValue) -> int:
    """Returns the binary exponent of a number: about log2 of its absolute value; for 0 a very negative one."""
    if isinstance(value, Fraction):
      return value.numerator.bit_length() - value.denominator.bit_length()
    return int(self.mp.mag(value)) if value else _ZERO_EXPONENT

  def value(self, tree: Formula, point: Mapping[str, Fraction]) -> NumericValue:
    """Returns the value of a formula whose variables have the values in `point`.

    It is a Fraction where every operation is exact, else a number of mpmath at this evaluation's precision. Raises
    Undefined for a variable that is missing and where an operation has no value, TooLarge where it has too many digits.
    """
    if isinstance(tree, Number):
      return tree.value
    if isinstance(tree, Symbol):
      return self._symbol(tree.name, point)
    if tree.name == "pow" and tree.arguments[0] == Symbol("e"):
      return self._note(self.exp(self.value(tree.arguments[1], point)))
    return self.operate(tree.name, [self.value(part, point) for part in tree.arguments])

  def operate(self, name: str, values: Sequence[NumericValue]) -> NumericValue:
    """Returns the result of an operation, by its name in Operation, on values; a Fraction if that is exact.

    Raises TooLarge, and Undefined for an unknown operation and for values on which it is not defined.
    """
    operation = _OPERATIONS.get(name)
    if operation is None:
      raise _Undefined(name)
    try:
      return self._note(operation(self, *values))
    except (TooLarge, _Undefined):
      raise
    except (ZeroDivisionError, TypeError, OverflowError, ValueError) as error:
      raise _Undefined(name) from error

  def subtract(self, a: NumericValue, b: NumericValue) -> NumericValue:
    """Returns a - b; 0 if that is less than the rounding of both."""
    return self._note(_add(self, a, -b))

  def _symbol(self, name: str, point: Mapping[str, Fraction]) -> NumericValue:
    """Returns the value of a variable or a constant."""
    if name in point:
      return point[name]
    if name == "pi":
      return +self.mp.pi
    if name == "e":
      return +self.mp.e
    if name == "i":
      return self.mp.mpc(0, 1)
    raise _Undefined(name)

  def _note(self, value: NumericValue) -> NumericValue:
    """Notes how large a value is and returns it, as a real number if it has no imaginary part. Raises TooLarge."""
    if isinstance(value, Fraction):
      bits = max(value.numerator.bit_length(), value.denominator.bit_length())
      if bits > _MAX_BITS:
        raise TooLarge("too many digits")
      if value:
        self._note_exponent(self.magnitude(value))
      return value
    if not self.mp.isfinite(value):
      raise _Undefined("infinite")
    if type(value).__name__ == "mpc" and value.imag == 0:
      value = value.real
    if value:
      exponent = self.magnitude(value)
      if abs(exponent) > _MAX_EXPONENT:
        raise TooLarge("too many digits")
      self._note_exponent(exponent)
    return value

  def _note_exponent(self, exponent: int) -> None:
    self.extent = max(self.extent, abs(exponent))
    self.largest = max(self.largest, exponent)

  def inexact(self, value: NumericValue) -> NumericValue:
    """Returns a Fraction as a number of `precision` bits, and any other value as it is."""
    if isinstance(value, Fraction):
      return self.mp.mpf(value.numerator) / value.denominator
    return value

  def exp(self, exponent: NumericValue) -> NumericValue:
    """Returns e to a power. Raises TooLarge where the exponent is beyond +-_MAX_EXPONENT."""
    inexact = self.inexact(exponent)
    if abs(inexact.real) > _MAX_EXPONENT:
      raise TooLarge("too many digits")
    return Fraction(1) if exponent == 0 else self.mp.exp(inexact)


# Operations: functions of an evaluation and of values. Each may raise TooLarge, Undefined, or what mpmath and Fraction
# raise where a value is undefined.


def _exact(*values) -> bool:
  """Returns whether all values are fractions."""
  return all(isinstance(value, Fraction) for value in values)


def _add(evaluation: _Evaluation, *values):
  if _exact(*values):
    return sum(values, Fraction(0))
  total, largest = evaluation.mp.mpf(0), 0
  for value in values:
    term = evaluation.inexact(value)
    total, largest = total + term, max(largest, abs(term))
  rounding = largest * evaluation.mp.mpf(2) ** (_CANCELLATION_BITS - evaluation.precision)
  return evaluation.mp.mpf(0) if abs(total) < rounding else total


def _neg(evaluation: _Evaluation, value):
  return -value


def _mul(evaluation: _Evaluation, a, b):
  if _exact(a, b):
    return a * b
  if a == 0 or b == 0:
    return Fraction(0)
  return evaluation.inexact(a) * evaluation.inexact(b)


def _div(evaluation: _Evaluation, a, b):
  if _exact(a, b):
    return a / b
  return evaluation.inexact(a) / evaluation.inexact(b)


def _pow(evaluation: _Evaluation, base, exponent):
  if _exact(exponent) and exponent.denominator == 1:
    return _integer_power(evaluation, base, exponent.numerator)
  if _exact(base) and base == 0:
    if isinstance(exponent, Fraction) and exponent > 0:
      return Fraction(0)
    raise _Undefined("0 to a power")
  if _exact(base, exponent) and base > 0:
    root = _exact_root(base, exponent.denominator)
    if root is not None:
      return _integer_power(evaluation, root, exponent.numerator)
  _check_power(evaluation, base, exponent)
  return evaluation.mp.power(evaluation.inexact(base), evaluation.inexact(exponent))


def _integer_power(evaluation: _Evaluation, base, exponent: int):
  if _exact(base):
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) in (0, 1):
      small_exponent = 2 - exponent % 2  # 1 or 2, with the same result
      return base ** (small_exponent if exponent > 0 else exponent)
    if bits * abs(exponent) > 2 * _MAX_BITS:
      raise TooLarge("too many digits")
    return base**exponent
  _check_power(evaluation, base, exponent)
  return evaluation.mp.power(base, exponent)


def _check_power(evaluation: _Evaluation, base, exponent) -> None:
  """Raises TooLarge if a power would be too large, or too small."""
  if base == 0:
    return
  bits = abs(evaluation.magnitude(base)) + 1
  if not isinstance(exponent, int):
    exponent = evaluation.inexact(exponent)
  if bits * abs(exponent) > _MAX_EXPONENT:
    raise TooLarge("too many digits")


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
  """Returns the root of a positive number if it is rational, else None."""
  if degree > _MAX_ROOT:
    return None
  parts = []
  for part in (value.numerator, value.denominator):
    root = _integer_root(part, degree)
    if root**degree != part:
      return None
    parts.append(root)
  return Fraction(*parts)


def _integer_root(value: int, degree: int) -> int:
  """Returns the largest integer that to the power of the degree is at most the value."""
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


def _root(evaluation: _Evaluation, value, degree):
  if not _exact(degree) or degree == 0 or degree.denominator != 1:
    return _pow(evaluation, value, _div(evaluation, Fraction(1), degree))
  is_odd = degree.numerator % 2 == 1
  if is_odd and not _is_complex(value) and value < 0:
    return -_root(evaluation, -value, degree)
  return _pow(evaluation, value, 1 / degree)


def _sin(evaluation: _Evaluation, angle):
  if angle == 0:
    return Fraction(0)
  _check_angle(evaluation, angle)
  return _zero_if_tiny(evaluation, evaluation.mp.sin(evaluation.inexact(angle)))


def _cos(evaluation: _Evaluation, angle):
  if angle == 0:
    return Fraction(1)
  _check_angle(evaluation, angle)
  return _zero_if_tiny(evaluation, evaluation.mp.cos(evaluation.inexact(angle)))


def _check_angle(evaluation: _Evaluation, angle) -> None:
  if evaluation.magnitude(angle) > _MAX_ANGLE_EXPONENT:
    raise TooLarge("too large an angle")


def _zero_if_tiny(evaluation: _Evaluation, value):
  """Returns 0 for a value that is 0 but for the rounding of the angle, else the value."""
  rounding = evaluation.mp.mpf(2) ** (_CANCELLATION_BITS - evaluation.precision)
  return evaluation.mp.mpf(0) if abs(value) < rounding else value


def _tan(evaluation: _Evaluation, angle):
  return _div(evaluation, _sin(evaluation, angle), _cos(evaluation, angle))


def _of_library(name: str, largest: int = _MAX_EXPONENT):
  """Returns mpmath's function of this name as an operation. Arguments of a larger size raise TooLarge."""

  def evaluate(evaluation: _Evaluation, *values):
    inexact = [evaluation.inexact(value) for value in values]
    if any(abs(value) > largest for value in inexact):
      raise TooLarge("too large an argument")
    return getattr(evaluation.mp, name)(*inexact)

  return evaluate


def _ln(evaluation: _Evaluation, value):
  if value == 1:
    return Fraction(0)
  if value == 0:
    raise _Undefined("ln 0")
  return evaluation.mp.log(evaluation.inexact(value))


def _log(evaluation: _Evaluation, value, base=Fraction(10)):
  if _exact(value, base) and value > 0 and base > 1:
    quotient = evaluation.mp.log(evaluation.inexact(value)) / evaluation.mp.log(evaluation.inexact(base))
    power = round(float(quotient))
    if abs(power) < _MAX_EXACT_LOGARITHM and base**power == value:
      return Fraction(power)
  return _div(evaluation, _ln(evaluation, value), _ln(evaluation, base))


def _factorial(evaluation: _Evaluation, value):
  if not _exact(value):
    raise _Undefined("the factorial of an irrational number")
  if value > _MAX_FACTORIAL:
    raise TooLarge("too large a factorial")
  if value.denominator == 1:
    if value < 0:
      raise _Undefined("the factorial of a negative number")
    return Fraction(math.factorial(value.numerator))
  return evaluation.mp.gamma(evaluation.inexact(value + 1))


def _binom(evaluation: _Evaluation, n, k):
  if _exact(n, k) and n.denominator == k.denominator == 1 and n >= 0 and k >= 0:
    if min(k, n - k) > _MAX_FACTORIAL or n > _MAX_BITS:
      raise TooLarge("too large a binomial")
    return Fraction(math.comb(n.numerator, k.numerator))
  if _exact(k) and k.denominator == 1 and 0 <= k <= _MAX_BINOMIAL_FACTORS:
    product = Fraction(1)
    for factor in range(k.numerator):
      product = _mul(evaluation, product, _div(evaluation, n - factor, Fraction(factor + 1)))
    return product
  return _of_library("binomial", _MAX_INEXACT_BINOMIAL)(evaluation, n, k)


def _abs(evaluation: _Evaluation, value):
  return abs(value)


def _floor(evaluation: _Evaluation, value):
  if _exact(value):
    return Fraction(math.floor(value))
  if evaluation.magnitude(value) >= _PRECISION:
    raise TooLarge("too large a number")
  return Fraction(int(evaluation.mp.floor(value)))


def _ceil(evaluation: _Evaluation, value):
  return -_floor(evaluation, -value)


def _of_integers(function):
  """Returns a function of integers as an operation. Other arguments raise Undefined."""

  def evaluate(evaluation: _Evaluation, *values):
    if not _exact(*values) or any(value.denominator != 1 for value in values):
      raise _Undefined("no integers")
    numbers = [value.numerator for value in values]
    return Fraction(function(*numbers))

  return evaluate


def _extreme(function):
  """Returns max or min as an operation, which leaves exact values exact."""

  def evaluate(evaluation: _Evaluation, *values):
    return function(values, key=evaluation.inexact)

  return evaluate


# Keys: Operation.name.
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
  "sinh": _of_library("sinh", _MAX_HYPERBOLIC),
  "cosh": _of_library("cosh", _MAX_HYPERBOLIC),
  "tanh": _of_library("tanh", _MAX_HYPERBOLIC),
  "exp": lambda evaluation, value: evaluation.exp(value),
  "ln": _ln,
  "log": _log,
  "lg": _log,
  "abs": _abs,
  "floor": _floor,
  "ceil": _ceil,
  "factorial": _factorial,
  "binom": _binom,
  "gcd": _of_integers(math.gcd),
  "lcm": _of_integers(math.lcm),
  "max": _extreme(max),
  "min": _extreme(min),
  "Re": lambda evaluation, value: evaluation.inexact(value).real,
  "Im": lambda evaluation, value: evaluation.inexact(value).imag,
  "arg": _of_library("arg"),
}


class _Decimal(NamedTuple):
  """A decimal as it is written."""

  value: Fraction
  unit: Fraction  # the value of a one in its last digit: 1/100 for 1.50
  scientific: bool  # whether a power of ten stands behind it

  @property
  def digits(self) -> int:
    """How many significant digits it shows: 3 for 1.50."""
    if not self.value:
      return 1
    return len(str(abs(self.value / self.unit).numerator))


def has_decimal_point(tree: Formula) -> bool:
  """Returns whether a formula is a number with a decimal point, perhaps negative or times a power of ten."""
  return _decimal(tree) is not None


def _decimal(tree: Formula) -> _Decimal | None:
  """Returns a number with a decimal point, perhaps negative or times a power of ten; None for all other formulas."""
  if isinstance(tree, Number):
    if tree.decimals is None:
      return None
    return _Decimal(tree.value, unit=Fraction(1, 10**tree.decimals), scientific=False)
  if not isinstance(tree, Operation):
    return None
  if tree.name == "neg":
    positive = _decimal(tree.arguments[0])
    return positive._replace(value=-positive.value) if positive else None
  if tree.name == "mul":
    mantissa, power = _decimal(tree.arguments[0]), _power_of_ten(tree.arguments[1])
    if mantissa is None or power is None:
      return None
    return _Decimal(mantissa.value * power, mantissa.unit * power, scientific=True)
  return None


def _power_of_ten(tree: Formula) -> Fraction | None:
  """Returns the value of 10, or of 10 to an integer from -400 to 400; None for all other formulas."""
  ten = Number(Fraction(10))
  if tree == ten:
    return ten.value
  if not isinstance(tree, Operation) or tree.name != "pow" or tree.arguments[0] != ten:
    return None
  exponent = tree.arguments[1]
  sign = 1
  if isinstance(exponent, Operation) and exponent.name == "neg":
    exponent, sign = exponent.arguments[0], -1
  if not isinstance(exponent, Number) or exponent.decimals is not None or exponent.value > _MAX_POWER_OF_TEN:
    return None
  return ten.value ** int(sign * exponent.value)


def agree(answer: Formula, label: Formula) -> bool:
  """Returns whether an answer's formula equals a label's, or may be a rounding of the same number.

  Rounding counts only if the label is a number with a decimal point. An answer without one must then round to the
  label; of two numbers with one, one must be a rounding of the other. They must also differ by at most 2e-6 of their
  size, or both be in scientific notation with at least three digits. Any other label wants an exact answer.
  Raises TooLarge if the evaluation needs too many digits.
  """
  if equal(answer, label):
    return True
  label_decimal = _decimal(label)
  if label_decimal is None or symbols(answer) or has(answer, "percent", "degree"):
    return False
  answer_decimal = _decimal(answer)
  if answer_decimal is not None:
    return _same_rounding(answer_decimal, label_decimal)
  value = _real_value(answer)
  if value is None or isinstance(value, Fraction) and value.denominator == 1:
    return False
  if not _rounds_to(value, label_decimal):
    return False
  difference = abs(value - _converted(label_decimal.value, value))
  return difference <= abs(value) * _converted(_ROUNDED, value)


def _converted(fraction: Fraction, value: NumericValue) -> NumericValue:
  """Returns a fraction as a number of the type of `value`, to compare the two."""
  if isinstance(value, Fraction):
    return fraction
  return value.context.mpf(fraction.numerator) / fraction.denominator


def _real_value(tree: Formula) -> NumericValue | None:
  """Returns the value of a formula without variables; None if it has no value or a complex one."""
  try:
    value = _Evaluation(_PRECISION).value(tree, {})
  except _Undefined:
    return None
  return None if _is_complex(value) else value


def _rounds_to(value: NumericValue, short: _Decimal) -> bool:
  """Returns whether a number rounds to a decimal; a half of its last digit is rounded away from 0."""
  short_value = _converted(short.value, value)
  half_digit = _converted(short.unit, value) / 2
  excess = abs(value) - abs(short_value)
  return -half_digit <= excess < half_digit and abs(value - short_value) <= half_digit


def rounds(tree: Formula, approximate: Formula) -> bool:
  """Returns whether the formula `tree` equals the formula `approximate`, or rounds to it.

  It can only round to a number with a decimal point and at least two significant digits, and only if it is real and
  without variables. Raises TooLarge if the evaluation needs too many digits.
  """
  if equal(tree, approximate):
    return True
  short = _decimal(approximate)
  value = None if symbols(tree) else _real_value(tree)
  if short is None or value is None or short.digits <= 1:
    return False
  return _rounds_to(value, short)


def _same_rounding(a: _Decimal, b: _Decimal) -> bool:
  """Returns whether one decimal is a rounding of the other, and they differ by little or are long enough."""
  short, long = (a, b) if a.unit > b.unit else (b, a)
  if not _rounds_to(long.value, short):
    return False
  if short.scientific and long.scientific and short.digits >= _SCIENTIFIC_DIGITS:
    return True
  return abs(long.value - short.value) <= abs(long.value) * _ROUNDED


def real(tree: Formula) -> NumericValue | None:
  """Returns the value of a formula: a Fraction if that is exact, else a real number of mpmath.

  Returns None if it has variables, no value, or a complex value. Raises TooLarge if it needs too many digits.
  """
  return None if symbols(tree) else _real_value(tree)


def fraction(value: NumericValue) -> Fraction:
  """Returns a number that `real` returned as a Fraction, to compare it with others.

  Raises TooLarge if that would have too many digits.
  """
  if isinstance(value, Fraction):
    return value
  sign, mantissa, exponent, _ = value._mpf_
  if abs(exponent) > _MAX_BITS:
    raise TooLarge("too many digits")
  return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent


def fractional(tree: Formula) -> bool:
  """Returns whether a formula is a rational number that is no integer, as 3/4; False if it has variables.

  Raises TooLarge if the evaluation needs too many digits.
  """
  value = real(tree)
  return isinstance(value, Fraction) and value.denominator > 1
