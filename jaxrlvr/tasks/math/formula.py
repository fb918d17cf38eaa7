"""Reads formulas strictly: text to tokens, and tokens to a tree of operations.

What it does not know raises Unknown; nothing is skipped. The time is proportional to the text. Brackets that are nested
too deeply raise Unknown too.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

_MAX_DEPTH = 64  # levels of recursion; a bracket takes three

_FUNCTIONS = frozenset(
  "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp arg Re Im gcd lcm max min".split()
)
_SEVERAL_ARGUMENTS = frozenset(("gcd", "lcm", "max", "min"))
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_ACCENTS = frozenset(("hat", "bar", "overline", "tilde", "dot", "ddot", "widehat", "overrightarrow"))
GREEK = frozenset(
  "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
  " Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar nabla partial".split()
)
ALIASES = {"varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "varrho": "rho", "varsigma": "sigma"}
_SIGNS = frozenset(("+", "-", r"\pm", r"\mp"))
_FACTOR_COMMANDS = _FUNCTIONS | GREEK | _ACCENTS | set(ALIASES) | {"frac", "sqrt", "binom", "pi", "infty"}
_TIMES = frozenset(("*", r"\cdot", r"\times", r"\ast"))
_OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\lvert": r"\rvert"}
_SPACES = frozenset((r"\,", r"\;", r"\:", r"\!", r"\ ", r"\quad", r"\qquad", "~"))
# Bare letters that are a word, not a product of variables.
_WORD = re.compile(
  r"(?i:no|on|up|do|go|is|it|in|if|or|of|to|so|we|he|me|us|as|at|am|an|be|by|my)"
  r"|(?=[A-Z]?[a-z]*[eiou])[A-Z]?[a-z]{3,}|[A-Z][a-z]*[eiou][a-z]+(?<=...)|[A-Z]?[a-z]*[aeiou][a-z]*(?<=....)"
)
_MAX_PRODUCT_LETTERS = 3  # a word of so few letters is a product if the formula has numbers or signs

_TOKEN = re.compile(
  r"(?P<space>\s+)"
  r"|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
  r"|(?P<command>\\(?:[a-zA-Z]+|.))"
  r"|(?P<letters>[a-zA-Z]+)"
  r"|(?P<sign>.)",
  re.DOTALL,
)


class Unknown(ValueError):
  """The text is nothing that the reader knows."""


class FormulaToken(NamedTuple):
  """A piece of a formula.

  Kinds: "number" (digits, perhaps with a point), "command" (as `\\pi`), "letters" (neighbours, as `xy`), "text"
  (\\text{...} as a whole) and "sign" (any other character).
  """

  kind: str
  text: str  # as it is written; of the kind "text", what stands between the braces
  spaced: bool = False  # whether white space stands before it


class Number(NamedTuple):
  """A number in digits."""

  value: Fraction
  decimals: int | None = None  # digits behind the decimal point; None: it has no point


class Symbol(NamedTuple):
  """A variable or a constant."""

  name: str  # with subscript, primes and accent, as "x", "x_1", "f'", "hat{i}"; of constants pi, e, i or infinity


class Operation(NamedTuple):
  """An operation or a function of formulas.

  Names: "add", "neg", "mul", "div", "pow", "root" (arguments: radicand, degree), "abs", "floor", "ceil", "factorial",
  "binom", "percent", "degree", "pm" and "mp" (of one argument, as "neg"), and functions: "sin", "cos", "tan", "cot",
  "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log" (its second argument, if any, is the
  base), "lg", "exp", "arg", "Re", "Im", "gcd", "lcm", "max" and "min".
  """

  name: str
  arguments: tuple  # of formulas: one or two; of "add", "gcd", "lcm", "max" and "min" any number


Formula = Number | Symbol | Operation
INFINITY = Symbol("infinity")
_CONSTANTS = frozenset(("pi", "e", "i", "infinity"))


def tokens(text: str) -> list[FormulaToken]:
  """Returns the tokens of a text, without white space; \\text{...} is one token, whatever it holds.

  Raises Unknown for a \\text whose braces are missing or do not close.
  """
  items = []
  position = 0
  spaced = False
  while position < len(text):
    match = _TOKEN.match(text, position)
    kind, piece, position = match.lastgroup, match[0], match.end()
    if kind == "space" or piece in _SPACES:
      spaced = True
      continue
    if piece == r"\text":
      piece, position = _braced(text, position)
      kind = "text"
      spaced = spaced or piece != piece.lstrip()
    items.append(FormulaToken(kind, piece, spaced))
    spaced = False
  return items


def _braced(text: str, start: int) -> tuple[str, int]:
  """Returns the text inside the braces that open at `start`, and the position behind them. Raises Unknown."""
  while text.startswith(" ", start):
    start += 1
  if not text.startswith("{", start):
    raise Unknown("no brace")
  depth = 0
  for position in range(start, len(text)):
    if text[position] == "{":
      depth += 1
    elif text[position] == "}":
      depth -= 1
    if depth == 0:
      return text[start + 1 : position], position + 1
  raise Unknown("a brace that never closes")


def read(items: list[FormulaToken]) -> Formula:
  """Returns the formula that tokens spell: a Number, a Symbol or an Operation, whose arguments are formulas again.

  `items`: tokens as `tokens` returns them. Raises Unknown for tokens that are no formula, as those of `x=1` and `1,2`,
  for none at all, and for brackets that are nested more than about 20 deep.
  """
  reader = _Reader(items)
  tree = reader.sum(0)
  unread = reader.peek()
  if unread is not None:
    raise Unknown(f"{unread.text!r} is not expected here")
  return tree


def is_word(letters: str) -> bool:
  """Returns whether bare letters are a word, as `Bed` and `no`, or the name of a figure by its points, as `ABC`.

  A word is a common one of two letters, or has three or more with an e, i, o or u, or four or more with an a. Other
  letters, as `xy` and `abc`, are a product of variables. `letters`: one or more letters from A to Z, large or small.
  """
  if _WORD.fullmatch(letters):
    return True
  if len(letters) < 3 or not letters.isupper():
    return False
  if all(letter in "ABCDEFGH" for letter in letters):
    return True
  codes = sorted(ord(letter) for letter in letters)
  return codes == list(range(codes[0], codes[0] + len(codes)))  # neighbours in the alphabet, as PQR


class _Reader:
  """Reads tokens from left to right, with a method for each level of precedence.

  Each of them reads the longest formula of its level that begins at the next token, and raises Unknown if there is
  none. `depth` counts the levels of recursion.
  """

  def __init__(self, items: list[FormulaToken]):
    self._items = items
    self._next = 0  # place of the next token
    self._open_bars = 0
    self._has_only_letters = all(item.kind in ("letters", "text") for item in items)

  def peek(self, ahead: int = 0) -> FormulaToken | None:
    """Returns the next token, or the one `ahead` places behind it; None behind the last."""
    place = self._next + ahead
    return self._items[place] if place < len(self._items) else None

  def _text(self, ahead: int = 0) -> str:
    """Returns the text of a token as `peek` does; "" for \\text{...} and behind the last token."""
    token = self.peek(ahead)
    if token is None or token.kind == "text":
      return ""
    return token.text

  def _take(self) -> FormulaToken:
    """Returns the next token and moves behind it."""
    token = self.peek()
    if token is None:
      raise Unknown("the formula ends too early")
    self._next += 1
    return token

  def _take_if(self, text: str) -> bool:
    """Moves behind the next token if it has this text; returns whether it has."""
    if self._text() != text:
      return False
    self._next += 1
    return True

  def _expect(self, text: str) -> None:
    """Moves behind the next token, which must have this text."""
    if not self._take_if(text):
      raise Unknown(f"{text!r} is missing")

  def _take_first_character(self, token: FormulaToken) -> str:
    """Returns the first character of the token just taken; the other characters become the next token."""
    if len(token.text) > 1:
      self._next -= 1
      self._items = [*self._items]
      self._items[self._next] = FormulaToken(token.kind, token.text[1:])
    return token.text[0]

  def sum(self, depth: int) -> Formula:
    """Reads terms with signs between them."""
    if depth > _MAX_DEPTH:
      raise Unknown("too deep")
    terms = []
    sign = self._sign()
    while True:
      term = self._product(depth + 1)
      if sign == "-":
        term = Operation("neg", (term,))
      elif sign != "+":
        term = Operation(sign, (term,))
      terms.append(term)
      if self._text() not in _SIGNS:
        break
      sign = self._sign()
    return terms[0] if len(terms) == 1 else Operation("add", tuple(terms))

  def _sign(self) -> str:
    """Reads up to two signs, as in `3+-2`; returns "+", "-", "pm" or "mp"."""
    sign = "+"
    for _ in range(2):
      text = self._text()
      if text not in _SIGNS:
        break
      self._next += 1
      if text == "-":
        sign = {"+": "-", "-": "+"}.get(sign, sign)
      elif text != "+":
        sign = text[1:]
    return sign

  def _product(self, depth: int) -> Formula:
    """Reads factors with multiplication or division signs between them, or none."""
    product = self._power(depth + 1)
    while True:
      text = self._text()
      if text in _TIMES:
        self._next += 1
        product = Operation("mul", (product, self._signed_power(depth + 1)))
      elif text in ("/", r"\div"):
        self._next += 1
        product = Operation("div", (product, self._divisor(depth + 1)))
      elif self._starts_factor():
        product = self._joined(product, depth)
      else:
        return product

  def _divisor(self, depth: int) -> Formula:
    """Reads what a slash divides by: 1/2x is 1/(2x), but 1/2 x, with a space, is x/2."""
    divisor = self._signed_power(depth)
    while self._starts_factor() and not self.peek().spaced and self._text() not in ("(", "[", "{", r"\frac"):
      divisor = self._joined(divisor, depth)
    return divisor

  def _joined(self, product: Formula, depth: int) -> Formula:
    """Reads a factor that follows a product without a sign; a fraction behind an integer makes a mixed number."""
    previous, token = self._items[self._next - 1], self.peek()
    if token.kind == "number" and previous.text not in ("!", "j"):
      if not symbols(product) or not self._is_behind_sum():
        raise Unknown("a number behind a factor")
    factor = self._power(depth + 1)
    is_integer = isinstance(product, Number) and product.decimals is None and previous.kind == "number"
    if is_integer and token.text == r"\frac" and _is_proper_fraction(factor):
      return Operation("add", (product, factor))
    return Operation("mul", (product, factor))

  def _is_behind_sum(self) -> bool:
    """Returns whether the token before the next one closes a bracket around more than one letter or number."""
    if self._items[self._next - 1].text != ")":
      return False
    return self._items[max(0, self._next - 3)].text != "("

  def _starts_factor(self) -> bool:
    """Returns whether the next token begins a factor."""
    token = self.peek()
    if token is None:
      return False
    if token.kind in ("number", "letters", "text"):
      return True
    if token.kind == "command":
      return token.text[1:] in _FACTOR_COMMANDS or token.text in _OPENING
    if token.text == "|":
      return not self._open_bars
    return token.text in ("(", "[", "{")

  def _signed_power(self, depth: int) -> Formula:
    """Reads a factor behind a multiplication or division sign, which may have signs of its own."""
    sign = self._sign()
    factor = self._power(depth)
    if sign not in "+-":
      raise Unknown("a sign of both kinds inside a product")
    return Operation("neg", (factor,)) if sign == "-" else factor

  def _power(self, depth: int) -> Formula:
    """Reads a factor with its powers, factorials and percent signs."""
    base = self._primary(depth)
    while True:
      if self._take_if("^"):
        base = self._raised(base, depth)
      elif self._take_if("!"):
        base = Operation("factorial", (base,))
      elif self._take_if(r"\%") or self._take_if("%"):
        base = Operation("percent", (base,))
      else:
        return base

  def _raised(self, base: Formula, depth: int) -> Formula:
    """Reads what stands behind ^: a power, or the sign of degrees."""
    if self._take_if(r"\circ"):
      return Operation("degree", (base,))
    if [self._text(ahead) for ahead in range(3)] == ["{", r"\circ", "}"]:
      self._next += 3
      return Operation("degree", (base,))
    if self._text() in ("'", r"\prime"):
      raise Unknown("a prime")
    return Operation("pow", (base, self._argument(depth)))

  def _argument(self, depth: int) -> Formula:
    """Reads {...}, or the one digit, letter or command that LaTeX takes for an argument."""
    token = self._take()
    if token.text == "{" and token.kind == "sign":
      tree = self.sum(depth + 1)
      self._expect("}")
      return tree
    if token.text == "-" and token.kind == "sign":
      return Operation("neg", (self._argument(depth + 1),))
    if token.kind == "number" and "." not in token.text:
      return Number(Fraction(self._take_first_character(token)))
    if token.kind == "letters":
      return Symbol(self._take_first_character(token))
    self._next -= 1
    return self._primary(depth + 1)

  def _primary(self, depth: int) -> Formula:
    """Reads a number, letters, a command with its arguments, or a formula in brackets."""
    if depth > _MAX_DEPTH:
      raise Unknown("too deep")
    token = self._take()
    if token.kind == "number":
      return _number(token.text)
    if token.kind == "letters":
      return self._letters(token)
    if token.kind == "text":
      return self._named(token.text)
    if token.kind == "command":
      return self._command(token.text, depth)
    if token.text in ("(", "[", "{"):
      return self._bracketed(_OPENING.get(token.text, "}"), depth)
    if token.text == "|":
      return self._absolute("|", depth)
    raise Unknown(f"{token.text!r} begins no factor")

  def _bracketed(self, closing: str, depth: int) -> Formula:
    """Reads a formula and the bracket behind it; bars inside are its own."""
    bars_outside, self._open_bars = self._open_bars, 0
    tree = self.sum(depth + 1)
    self._expect(closing)
    self._open_bars = bars_outside
    return tree

  def _absolute(self, closing: str, depth: int) -> Formula:
    """Reads a formula and the bar behind it."""
    self._open_bars += 1
    tree = self.sum(depth + 1)
    self._expect(closing)
    self._open_bars -= 1
    return Operation("abs", (tree,))

  def _letters(self, token: FormulaToken) -> Formula:
    """Reads letters as a product of variables; a subscript, primes and a power belong to the last one."""
    letters = token.text
    if is_word(letters) and (self._has_only_letters or len(letters) > _MAX_PRODUCT_LETTERS):
      raise Unknown(f"{letters!r} is a word")
    factors: list[Formula] = [Symbol(letter) for letter in letters[:-1]]
    last = self._subscripted(letters[-1])
    if len(letters) == 1 and letters not in "eijkt":
      argument = self._number_argument()
      if argument is not None:
        return Symbol(f"{last.name}({argument})")
    if len(letters) > 1 and self._take_if("^"):
      factors.append(self._raised(last, 0))
    else:
      factors.append(last)
    product = factors[0]
    for factor in factors[1:]:
      product = Operation("mul", (product, factor))
    return product

  def _number_argument(self) -> str | None:
    """Reads a number in brackets right behind a letter, as in f(2) and f(-2); returns None for all else."""
    texts = [self._text(ahead) for ahead in range(4)]
    number = texts[1:3] if texts[1] == "-" else texts[1:2]
    closing = texts[1 + len(number)]
    if texts[0] != "(" or self.peek().spaced or closing != ")" or not re.fullmatch(r"[\d.]+", number[-1]):
      return None
    self._next += len(number) + 2
    return "".join(number)

  def _named(self, text: str) -> Symbol:
    """Reads a symbol set upright, as in \\mathrm{e}."""
    name = text.strip()
    if len(name) != 1 or not name.isalpha():
      raise Unknown(f"the text {text!r} inside a formula")
    return self._subscripted(name)

  def _subscripted(self, name: str) -> Symbol:
    """Reads the subscript and the primes of a symbol."""
    if self._take_if("_"):
      name = f"{name}_{self._subscript()}"
    while self._take_if("'"):
      name += "'"
    return Symbol(name)

  def _subscript(self) -> str:
    """Reads a subscript and returns its text, without white space."""
    token = self._take()
    if token.kind == "text":
      return token.text.strip()
    if token.text != "{":
      return token.text
    parts: list[str] = []
    depth = 1
    while True:
      part = self._take().text
      if part == "{":
        depth += 1
      elif part == "}":
        depth -= 1
      if depth == 0:
        return "".join(parts)
      parts.append(part.strip())

  def _command(self, command: str, depth: int) -> Formula:
    """Reads the arguments of a command."""
    name = command[1:]
    name = ALIASES.get(name, name)
    if name == "pi":
      return Symbol("pi")
    if name == "infty":
      return INFINITY
    if name in GREEK:
      return self._greek(name)
    if name in _ACCENTS:
      self._expect("{")
      return self._subscripted(f"{name}{{{self._accented()}}}")
    if name in ("frac", "binom"):
      first = self._argument(depth + 1)
      second = self._argument(depth + 1)
      return Operation("div" if name == "frac" else "binom", (first, second))
    if name == "sqrt":
      return self._root(depth)
    if command in (r"\lfloor", r"\lceil"):
      return Operation(name[1:], (self._bracketed(_OPENING[command], depth),))
    if command == r"\lvert":
      return self._absolute(r"\rvert", depth)
    if name in _FUNCTIONS:
      return self._function(name, depth)
    raise Unknown(f"the command {command}")

  def _greek(self, name: str) -> Formula:
    """Reads a Greek letter; \\Delta and the letter behind it are one symbol. Operators are not known."""
    following = self.peek()
    if following is None or following.kind != "letters" or name not in ("nabla", "partial", "Delta"):
      return self._subscripted(name)
    if name != "Delta":
      raise Unknown("an operator")
    letters = self._take()
    symbol = f"Delta {self._take_first_character(letters)}"
    return Symbol(symbol) if len(letters.text) > 1 else self._subscripted(symbol)

  def _accented(self) -> str:
    """Reads up to a closing brace and returns the text, without white space."""
    parts: list[str] = []
    while True:
      token = self._take()
      if token.text == "}":
        return "".join(parts)
      parts.append(token.text.strip())

  def _root(self, depth: int) -> Formula:
    """Reads the degree of a root, if it has one, and its argument."""
    degree: Formula = Number(Fraction(2))
    if self._take_if("["):
      degree = self.sum(depth + 1)
      self._expect("]")
    return Operation("root", (self._argument(depth + 1), degree))

  def _function(self, name: str, depth: int) -> Formula:
    """Reads a function: its base or power, then its argument, in brackets or as the factors that follow."""
    base = power = None
    for _ in range(2):
      if name == "log" and base is None and self._take_if("_"):
        base = self._argument(depth + 1)
      elif power is None and self._take_if("^"):
        power = self._argument(depth + 1)
    minus_one = Operation("neg", (Number(Fraction(1)),))
    if power == minus_one and name in _INVERSES:
      name, power = _INVERSES[name], None
    arguments = self._function_arguments(name, depth)
    if base is not None:
      arguments = (*arguments, base)
    tree = Operation(name, arguments)
    return tree if power is None else Operation("pow", (tree, power))

  def _function_arguments(self, name: str, depth: int) -> tuple[Formula, ...]:
    """Reads the arguments of a function."""
    if self._take_if("("):
      arguments = [self.sum(depth + 1)]
      while name in _SEVERAL_ARGUMENTS and self._take_if(","):
        arguments.append(self.sum(depth + 1))
      self._expect(")")
      if self._text() == "^" and name != "exp":
        raise Unknown("a power behind a function's brackets")
      return tuple(arguments)
    if self._text() == "-":
      argument = self._signed_power(depth + 1)
    else:
      argument = self._power(depth + 1)
    while self._starts_factor() and self._text()[1:] not in _FUNCTIONS and self._text() not in ("(", "["):
      argument = self._joined(argument, depth)
    is_divided = self._text() == "/" and self._text(1)[1:] not in _FUNCTIONS
    if is_divided and isinstance(argument, Symbol | Number):
      self._next += 1
      argument = Operation("div", (argument, self._power(depth + 1)))
    return (argument,)


def _number(text: str) -> Number:
  whole, point, decimals = text.partition(".")
  value = Fraction(text if whole else "0" + text)
  return Number(value, len(decimals) if point else None)


def _is_proper_fraction(tree: Formula) -> bool:
  """Returns whether a formula is a fraction of two integers below one."""
  if not isinstance(tree, Operation) or tree.name != "div":
    return False
  top, bottom = tree.arguments
  are_integers = all(isinstance(part, Number) and part.decimals is None for part in (top, bottom))
  return are_integers and top.value < bottom.value


def symbols(tree: Formula) -> set[str]:
  """Returns the names of the variables in a formula: of all symbols but pi, e, i and infinity."""
  if isinstance(tree, Symbol):
    return set() if tree.name in _CONSTANTS else {tree.name}
  if isinstance(tree, Operation):
    return set().union(*(symbols(part) for part in tree.arguments))
  return set()


def replace(tree: Formula, old: str, new: Formula) -> Formula:
  """Returns a formula with the formula `new` instead of each symbol named `old`, at any depth."""
  if isinstance(tree, Symbol):
    return new if tree.name == old else tree
  if isinstance(tree, Operation):
    return Operation(tree.name, tuple(replace(part, old, new) for part in tree.arguments))
  return tree


def has(tree: Formula, *names: str) -> bool:
  """Returns whether a formula has, at any depth, an operation of one of these names, such as "percent" or "pow"."""
  if not isinstance(tree, Operation):
    return False
  return tree.name in names or any(has(part, *names) for part in tree.arguments)


def signed(tree: Formula, upper: bool) -> Formula:
  """Returns a formula in which each \\pm and \\mp has become one of its two signs.

  `upper`: True for the upper signs, plus for \\pm and minus for \\mp; False for the lower ones, the other way round.
  """
  if not isinstance(tree, Operation):
    return tree
  arguments = tuple(signed(part, upper) for part in tree.arguments)
  if tree.name in ("pm", "mp"):
    is_plus = (tree.name == "pm") == upper
    return arguments[0] if is_plus else Operation("neg", arguments)
  return Operation(tree.name, arguments)
