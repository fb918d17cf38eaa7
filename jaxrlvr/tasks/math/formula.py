"""A strict reader of formulas: tokens, and trees of operations. What it does not know is an error, never skipped.

It takes time in proportion to the text and goes at most MAX_DEPTH levels deep.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MAX_DEPTH = 64  # operations inside operations; a bracket takes about four

FUNCTIONS = frozenset(
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
_TIMES = frozenset(("*", r"\cdot", r"\times", r"\ast"))
_OPENING = {"(": ")", "[": "]", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\lvert": r"\rvert"}
_SPACES = frozenset((r"\,", r"\;", r"\:", r"\!", r"\ ", r"\quad", r"\qquad", "~"))
# A run of bare letters that is a word and no product: letters are compared in their order.
_WORD = re.compile(
  r"(?i:no|on|up|do|go|is|it|in|if|or|of|to|so|we|he|me|us|as|at|am|an|be|by|my)"
  r"|(?=[A-Z]?[a-z]*[eiou])[A-Z]?[a-z]{3,}|[A-Z][a-z]*[eiou][a-z]+(?<=...)|[A-Z]?[a-z]*[aeiou][a-z]*(?<=....)"
)
_SHORT = 3  # letters in a row that are a product wherever there are numbers or signs too

_TOKEN = re.compile(
  r"(?P<space>\s+)"
  r"|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
  r"|(?P<command>\\(?:[a-zA-Z]+|.))"
  r"|(?P<letters>[a-zA-Z]+)"
  r"|(?P<sign>.)",
  re.DOTALL,
)


class Unknown(ValueError):
  """The text is no formula that this reader knows."""


class FormulaToken(NamedTuple):
  """A piece of text: a number, a command, letters, a sign, or the contents of \\text{...}."""

  kind: str
  text: str
  spaced: bool = False  # white space before it


class Number(NamedTuple):
  """A literal number; `decimals` is how many digits it shows behind the point, None for an integer."""

  value: Fraction
  decimals: int | None = None


class Symbol(NamedTuple):
  """A variable or a constant (`pi`, `e`, `i`), its subscript and accents in the name."""

  name: str


class Operation(NamedTuple):
  """An operation or function by name on trees."""

  name: str
  arguments: tuple


Formula = Number | Symbol | Operation
INFINITY = Symbol("infinity")


def tokens(text: str) -> list[FormulaToken]:
  """Returns the tokens of a text; \\text{...} is one of them, whatever it holds. Raises Unknown."""
  found, position, spaced = [], 0, False
  while position < len(text):
    match = _TOKEN.match(text, position)
    kind, piece, position = match.lastgroup, match[0], match.end()
    if kind == "space" or piece in _SPACES:
      spaced = True
      continue
    if piece == r"\text":
      content, position = _braced(text, position)
      found.append(FormulaToken("text", content, spaced or content != content.lstrip()))
    else:
      found.append(FormulaToken(kind, piece, spaced))
    spaced = False
  return found


def _braced(text: str, start: int) -> tuple[str, int]:
  while text.startswith(" ", start):
    start += 1
  if not text.startswith("{", start):
    raise Unknown("no brace")
  depth = 0
  for position in range(start, len(text)):
    depth += (text[position] == "{") - (text[position] == "}")
    if depth == 0:
      return text[start + 1 : position], position + 1
  raise Unknown("a brace that never closes")


def read(items: list[FormulaToken]) -> Formula:
  """Returns the tree of a formula without relations or commas at its top. Raises Unknown."""
  reader = _Reader(items)
  tree = reader.sum(0)
  if reader.peek() is not None:
    raise Unknown(f"{reader.peek().text!r} is not expected here")
  return tree


def is_word(letters: str) -> bool:
  """Returns whether a run of bare letters is a word, or names of points in a row, and no product."""
  if _WORD.fullmatch(letters):
    return True
  if len(letters) < 3 or not letters.isupper():
    return False
  codes = sorted(map(ord, letters))
  return codes == list(range(codes[0], codes[0] + len(codes))) or all(letter in "ABCDEFGH" for letter in letters)


class _Reader:
  def __init__(self, items: list[FormulaToken]):
    self._items = items
    self._next = 0
    self._bars = 0  # bars that are open
    self._plain = all(item.kind in ("letters", "text") for item in items)

  def peek(self, ahead: int = 0) -> FormulaToken | None:
    place = self._next + ahead
    return self._items[place] if place < len(self._items) else None

  def _text(self, ahead: int = 0) -> str:
    token = self.peek(ahead)
    return "" if token is None or token.kind == "text" else token.text

  def _take(self) -> FormulaToken:
    token = self.peek()
    if token is None:
      raise Unknown("the formula ends too early")
    self._next += 1
    return token

  def _expect(self, text: str) -> None:
    if self._text() != text:
      raise Unknown(f"{text!r} is missing")
    self._next += 1

  def sum(self, depth: int) -> Formula:
    if depth > MAX_DEPTH:
      raise Unknown("too deep")
    terms = []
    sign = self._sign()
    while True:
      term = self._product(depth + 1)
      terms.append(term if sign == "+" else Operation({"-": "neg"}.get(sign, sign), (term,)))
      if self._text() not in ("+", "-", r"\pm", r"\mp"):
        break
      sign = self._sign()
    return terms[0] if len(terms) == 1 else Operation("add", tuple(terms))

  def _sign(self) -> str:
    """Reads at most two signs in a row, as in `3+-2`."""
    sign = "+"
    for _ in range(2):
      text = self._text()
      if text not in ("+", "-", r"\pm", r"\mp"):
        break
      self._next += 1
      if text == "-":
        sign = "-" if sign == "+" else "+" if sign == "-" else sign
      elif text != "+":
        sign = text[1:]
    return sign

  def _product(self, depth: int) -> Formula:
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
    """Reads what a slash divides by: 1/2x is 1/(2x), and 1/2 x, with a space, is x/2."""
    divisor = self._signed_power(depth)
    while self._starts_factor() and not self.peek().spaced and self._text() not in ("(", "[", "{", r"\frac"):
      divisor = self._joined(divisor, depth)
    return divisor

  def _joined(self, product: Formula, depth: int) -> Formula:
    """Reads a factor that follows without a sign; a fraction behind an integer makes a mixed number."""
    before, token = self._items[self._next - 1], self.peek()
    if token.kind == "number" and before.text not in ("!", "j") and not (symbols(product) and self._behind_terms()):
      raise Unknown("a number behind a factor")
    factor = self._power(depth + 1)
    whole = isinstance(product, Number) and product.decimals is None and before.kind == "number"
    if whole and token.text == r"\frac" and _is_proper(factor):
      return Operation("add", (product, factor))
    return Operation("mul", (product, factor))

  def _behind_terms(self) -> bool:
    """Returns whether a bracket closes before here that holds more than one letter or number, as (a) does not."""
    return self._items[self._next - 1].text == ")" and self._items[max(0, self._next - 3)].text != "("

  def _starts_factor(self) -> bool:
    token = self.peek()
    if token is None:
      return False
    if token.kind in ("number", "letters", "text"):
      return True
    if token.kind == "command":
      name = token.text[1:]
      known = name in FUNCTIONS or name in GREEK or name in ALIASES or name in _ACCENTS
      return known or name in ("frac", "sqrt", "binom", "pi", "infty") or token.text in _OPENING
    return token.text in ("(", "[", "{") or token.text == "|" and not self._bars

  def _signed_power(self, depth: int) -> Formula:
    sign = self._sign()
    factor = self._power(depth)
    if sign not in "+-":
      raise Unknown("a sign of both kinds inside a product")
    return Operation("neg", (factor,)) if sign == "-" else factor

  def _power(self, depth: int) -> Formula:
    base = self._primary(depth)
    while True:
      text = self._text()
      if text == "^":
        self._next += 1
        base = self._raised(base, depth)
      elif text == "!":
        self._next += 1
        base = Operation("factorial", (base,))
      elif text in (r"\%", "%"):
        self._next += 1
        base = Operation("percent", (base,))
      else:
        return base

  def _raised(self, base: Formula, depth: int) -> Formula:
    if self._text() == r"\circ" or self._text() == "{" and self._text(1) == r"\circ" and self._text(2) == "}":
      self._next += 1 if self._text() == r"\circ" else 3
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
      first, rest = token.text[0], token.text[1:]
      if rest:
        self._next -= 1
        self._items = [*self._items]
        self._items[self._next] = FormulaToken("number", rest)
      return Number(Fraction(first))
    if token.kind == "letters":
      first, rest = token.text[0], token.text[1:]
      if rest:
        self._next -= 1
        self._items = [*self._items]
        self._items[self._next] = FormulaToken("letters", rest)
      return _symbol(first)
    self._next -= 1
    return self._primary(depth + 1)

  def _primary(self, depth: int) -> Formula:
    if depth > MAX_DEPTH:
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
    bars, self._bars = self._bars, 0
    tree = self.sum(depth + 1)
    self._expect(closing)
    self._bars = bars
    return tree

  def _absolute(self, closing: str, depth: int) -> Formula:
    self._bars += 1
    tree = self.sum(depth + 1)
    self._expect(closing)
    self._bars -= 1
    return Operation("abs", (tree,))

  def _letters(self, token: FormulaToken) -> Formula:
    letters = token.text
    if is_word(letters) and (self._plain or len(letters) > _SHORT):
      raise Unknown(f"{letters!r} is a word")
    factors = [_symbol(letter) for letter in letters[:-1]]
    factors.append(self._subscripted(letters[-1]))
    if len(letters) == 1 and letters not in "eijkt" and (called := self._call()) is not None:
      return Symbol(f"{factors[0].name}({called})")
    tree = factors[0]
    for factor in factors[1:]:
      tree = Operation("mul", (tree, factor))
    if self._text() == "^" and len(factors) > 1:  # the power is the last letter's
      raised = self._power_of(factors[-1])
      tree = factors[0]
      for factor in (*factors[1:-1], raised):
        tree = Operation("mul", (tree, factor))
    return tree

  def _call(self) -> str | None:
    """Reads a number in brackets right behind a letter, as in f(2); None for all else."""
    texts = [self._text(ahead) for ahead in range(4)]
    size = 4 if texts[1] == "-" else 3
    inside = texts[size - 2]
    if texts[0] != "(" or self.peek().spaced or texts[size - 1] != ")" or not re.fullmatch(r"[\d.]+", inside):
      return None
    self._next += size
    return texts[1] + inside if size == 4 else inside

  def _power_of(self, base: Formula) -> Formula:
    self._next += 1
    return self._raised(base, 0)

  def _named(self, text: str) -> Formula:
    """Reads a symbol set upright, as in \\mathrm{e}."""
    name = text.strip()
    if len(name) != 1 or not name.isalpha():
      raise Unknown(f"the text {text!r} inside a formula")
    return self._subscripted(name)

  def _subscripted(self, name: str) -> Formula:
    if self._text() == "_":
      self._next += 1
      name = f"{name}_{self._subscript()}"
    primes = 0
    while self._text() == "'":
      self._next += 1
      primes += 1
    return _symbol(name + "'" * primes)

  def _subscript(self) -> str:
    token = self._take()
    if token.kind == "text":
      return token.text.strip()
    if token.text != "{":
      return token.text
    parts, depth = [], 1
    while depth:
      token = self._take()
      depth += (token.text == "{") - (token.text == "}")
      parts.append(token.text.strip())
    return "".join(parts[:-1])

  def _command(self, command: str, depth: int) -> Formula:
    name = command[1:]
    name = ALIASES.get(name, name)
    if name in ("pi", "infty"):
      return Symbol("pi") if name == "pi" else INFINITY
    if name in GREEK:
      following = self.peek()
      if name in ("nabla", "partial", "Delta") and following is not None and following.kind == "letters":
        if name != "Delta":
          raise Unknown("an operator")
        return self._difference(following)
      return self._subscripted(name)
    if name in _ACCENTS:
      self._expect("{")
      content = self._subscript_content()
      return self._subscripted(f"{name}{{{content}}}")
    if name == "frac":
      top = self._argument(depth + 1)
      return Operation("div", (top, self._argument(depth + 1)))
    if name == "binom":
      top = self._argument(depth + 1)
      return Operation("binom", (top, self._argument(depth + 1)))
    if name == "sqrt":
      return self._root(depth)
    if command in (r"\lfloor", r"\lceil"):
      return Operation(name[1:], (self._bracketed(_OPENING[command], depth),))
    if command == r"\lvert":
      return self._absolute(r"\rvert", depth)
    if name in FUNCTIONS:
      return self._function(name, depth)
    raise Unknown(f"the command {command}")

  def _difference(self, letters: FormulaToken) -> Formula:
    """Reads \\Delta with the letter behind it as one symbol, and the others as factors."""
    first, rest = letters.text[0], letters.text[1:]
    self._items = [*self._items]
    if rest:
      self._items[self._next] = FormulaToken("letters", rest)
    else:
      self._next += 1
    return self._subscripted(f"Delta {first}") if not rest else _symbol(f"Delta {first}")

  def _subscript_content(self) -> str:
    parts = []
    while (token := self._take()).text != "}":
      parts.append(token.text.strip())
    return "".join(parts)

  def _root(self, depth: int) -> Formula:
    degree = Number(Fraction(2))
    if self._text() == "[":
      self._next += 1
      degree = self.sum(depth + 1)
      self._expect("]")
    return Operation("root", (self._argument(depth + 1), degree))

  def _function(self, name: str, depth: int) -> Formula:
    """Reads a function: its base or power, then its argument, in brackets or as the factors that follow."""
    base, power = None, None
    for _ in range(2):
      if self._text() == "_" and name == "log" and base is None:
        self._next += 1
        base = self._argument(depth + 1)
      elif self._text() == "^" and power is None:
        self._next += 1
        power = self._argument(depth + 1)
    if power == Operation("neg", (Number(Fraction(1)),)) and name in _INVERSES:
      name, power = _INVERSES[name], None
    arguments = self._arguments(name, depth)
    if base is not None:
      arguments = (*arguments, base)
    tree = Operation(name, arguments)
    return tree if power is None else Operation("pow", (tree, power))

  def _arguments(self, name: str, depth: int) -> tuple:
    if self._text() == "(":
      self._next += 1
      arguments = [self.sum(depth + 1)]
      while self._text() == "," and name in _SEVERAL_ARGUMENTS:
        self._next += 1
        arguments.append(self.sum(depth + 1))
      self._expect(")")
      if self._text() == "^" and name != "exp":
        raise Unknown("a power behind a function's brackets")
      return tuple(arguments)
    argument = self._power(depth + 1) if self._text() != "-" else self._signed_power(depth + 1)
    while self._starts_factor() and self._text()[1:] not in FUNCTIONS and self._text() not in ("(", "["):
      argument = self._joined(argument, depth)
    if self._text() == "/" and isinstance(argument, Symbol | Number) and self._text(1)[1:] not in FUNCTIONS:
      self._next += 1
      argument = Operation("div", (argument, self._power(depth + 1)))
    return (argument,)


def _number(text: str) -> Number:
  whole, point, decimals = text.partition(".")
  return Number(Fraction(text if whole else "0" + text), len(decimals) if point else None)


def _symbol(name: str) -> Formula:
  return Symbol({"I": "I"}.get(name, name))


def _is_proper(tree: Formula) -> bool:
  """Returns whether a tree is a fraction of two integers below one."""
  if not isinstance(tree, Operation) or tree.name != "div":
    return False
  top, bottom = tree.arguments
  integers = all(isinstance(part, Number) and part.decimals is None for part in (top, bottom))
  return integers and top.value < bottom.value


def symbols(tree: Formula) -> set[str]:
  """Returns the names of the variables in a tree; constants are none."""
  if isinstance(tree, Symbol):
    return set() if tree.name in ("pi", "e", "i", "infinity") else {tree.name}
  if isinstance(tree, Operation):
    return set().union(*map(symbols, tree.arguments))
  return set()


def replace(tree: Formula, old: str, new: Formula) -> Formula:
  """Returns the tree with another in the place of a variable."""
  if isinstance(tree, Symbol):
    return new if tree.name == old else tree
  if isinstance(tree, Operation):
    return Operation(tree.name, tuple(replace(part, old, new) for part in tree.arguments))
  return tree


def has(tree: Formula, *names: str) -> bool:
  """Returns whether an operation of one of these names occurs in the tree."""
  if not isinstance(tree, Operation):
    return False
  return tree.name in names or any(has(part, *names) for part in tree.arguments)


def signed(tree: Formula, upper: bool) -> Formula:
  """Returns the tree with every \\pm read as plus and every \\mp as minus, or with `upper` False the other way."""
  if not isinstance(tree, Operation):
    return tree
  arguments = tuple(signed(part, upper) for part in tree.arguments)
  if tree.name in ("pm", "mp"):
    plus = (tree.name == "pm") == upper
    return arguments[0] if plus else Operation("neg", arguments)
  return Operation(tree.name, arguments)
