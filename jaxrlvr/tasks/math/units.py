"""Reads units behind numbers: `m/s`, `meters per second` and `m s^{-1}` are one unit, `cm` and `m` are two."""

from __future__ import annotations

import re

Unit = tuple[tuple[str, int], ...]  # pairs (name, power), sorted: (("m", 1), ("s", -1)) is m/s; () is no unit

_MULTIPLIERS = {
  "hundred": 100,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
  "dozen": 12,
}
CURRENCIES = {r"\$": "dollar", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", r"\pounds": "pound"}
PRODUCTS = frozenset("Nm Js Vs Ah Wh Ws Tm Ns As".split())  # of two units, written without a sign
LETTERS = frozenset("msgNJWVACKLhFTCHl")  # that are a unit when they stand alone behind a number

# A line a unit: its name, then other spellings.
_SPELLED = """
m: meter meters metre metres mtr
cm: centimeter centimeters centimetre centimetres cms
mm: millimeter millimeters millimetre millimetres
km: kilometer kilometers kilometre kilometres kms
in: inch inches
ft: foot feet
yd: yard yards
mi: mile miles
s: second seconds sec secs
ms: millisecond milliseconds
min: minute minutes mins
h: hour hours hr hrs
day: days d
week: weeks
month: months
year: years yr yrs
g: gram grams gm
kg: kilogram kilograms kgs
mg: milligram milligrams
lb: lbs pounds-weight
oz: ounce ounces
L: liter liters litre litres l
mL: milliliter milliliters millilitre ml
N: newton newtons
J: joule joules
kJ: kilojoule kilojoules
W: watt watts
kW: kilowatt kilowatts
V: volt volts
A: ampere amperes amp amps
C: coulomb coulombs
K: kelvin kelvins
Hz: hertz
Pa: pascal pascals
kPa: kilopascal kilopascals
F: farad farads
T: tesla teslas
ohm: ohms Omega
mol: mole moles mols
rad: radian radians
degree: degrees deg
degC: celsius
degF: fahrenheit
dollar: dollars USD usd bucks
cent: cents
euro: euros EUR
pound: pounds GBP
rupee: rupees Rs
percent: percents pct
mph: mph
angstrom: angstroms
eV: eV electronvolt electronvolts
unit: units
"""
_PREFIXES = {"nano": "n", "micro": "u", "pico": "p", "milli": "m", "kilo": "k", "mega": "M", "giga": "G"}
_PREFIXED = frozenset(("m", "s", "g", "N", "J", "W", "V", "A", "C", "Hz", "Pa", "F", "T", "eV"))


def _names() -> dict[str, str]:
  """Returns the name of each unit by its spellings, with prefixes before the spellings that are words."""
  names = {}
  for line in _SPELLED.split("\n"):
    name, _, others = line.partition(":")
    for spelling in (name, *others.split()):
      names[spelling] = name
  prefixed = {}
  for prefix, letter in _PREFIXES.items():
    for spelling, name in names.items():
      if name in _PREFIXED and len(spelling) > 3:
        prefixed[prefix + spelling] = letter + name
  return names | prefixed


_NAMES = _names()
# Units. Short forms are looked up as they stand, as many mean something else in capitals.
KNOWN = frozenset(_NAMES) | frozenset(
  "nm um ns us kN mN MJ mJ kV mV mA kHz MHz GHz MPa GPa atm bar torr keV MeV GeV kcal cal mmol amu Wb sr lm lx dB AU ly"
  " pc rpm kWh cc sq pts pt AM PM am pm".split()
)
# Words that make a text no unit: they could change what the number says.
_NO_UNITS = frozenset(
  "or and not maybe perhaps is are was than less most least but if when wrong right i e ie eg either neither"
  " one two three four five six seven eight nine"
  " ten no none to about approximately nor each plus minus times point via infinity undefined isn aren won can cannot"
  " half quarter third halved doubled tripled twice thrice factorial choose mod modulo root radical pi otherwise"
  " incorrect false untrue invalid unsure unknown guess probably possibly likely unlikely impossible almost nearly"
  " around above below over under between both too remainder except without negative positive wait hmm".split()
)
_SQUARE_BEFORE = frozenset(("square", "sq", "sq."))
_CUBIC_BEFORE = frozenset(("cubic", "cu", "cu."))
_POWERS_BEHIND = {"²": 2, "³": 3, "squared": 2, "cubed": 3}
# A word, a power, a sign, or in group 1 any other character.
_PIECE = re.compile(
  r"[A-Za-z]+(?:\.(?=$|\s))?|\^ ?\{? ?-? ?\d+ ?\}?|[/·*]|\\cdot|\\times|\\mu|\\Omega|\\circ|[²³]|(\S)"
)
_MAX_NAMES = 5  # in a unit


def read(text: str) -> Unit | None:
  """Returns the unit that a text names, as sorted pairs (name, power): (("m", 1), ("s", -1)) for `m/s`.

  `text`: what stands behind a number, plain or in LaTeX. Any word may be a unit, as in `3 apples`: its name is then the
  singular, "apple". Returns () for a text without words, and None for a text that can't be a unit: one with other
  characters, with a word that is never a unit (such as `or` and `two`), or with more than five names.
  """
  powers: dict[str, int] = {}
  names = 0
  last = None  # the name that a power behind it would belong to
  sign = 1  # of powers; -1 behind a slash
  power = 1  # of the next name
  for match in _PIECE.finditer(_without_markup(text)):
    piece, other_character = match[0], match[1]
    if other_character:
      if piece not in "{}.,":
        return None
    elif piece in ("/", "per"):
      sign, last = -1, None
    elif piece in ("·", "*", r"\cdot", r"\times"):
      last = None
    elif piece[0] == "^" or piece in _POWERS_BEHIND:
      if last is None:
        return None
      powers[last] += sign * (_power_behind(piece) - 1)
    elif piece in _SQUARE_BEFORE:
      power = 2
    elif piece in _CUBIC_BEFORE:
      power = 3
    else:
      name = piece.strip("\\.")
      if name.casefold() in _NO_UNITS or names >= _MAX_NAMES:
        return None
      last = _canonical(name)
      powers[last] = powers.get(last, 0) + sign * power
      power = 1
      names += 1
  return _unit(powers)


def _without_markup(text: str) -> str:
  """Returns the text of a unit without LaTeX that only sets it, with fractions as quotients."""
  for _ in range(2):  # fractions inside fractions
    text = re.sub(r"\\frac ?\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\} ?\{", r"\1 / {", text)
  text = re.sub(r"Å|\\AA(?![a-zA-Z])", " angstrom ", text)
  text = re.sub(r"\\text(?![a-zA-Z])|\\[,;:! ]|~|\\frac|[()]", " ", text)
  text = text.replace("°", " degree ")
  text = re.sub(r"\^ ?\{? ?\\circ ?\}?", " degree ", text)
  if "^" not in text:
    text = re.sub(r"[{}](?![^{}]*\d ?\})|(?<!\d)\}|\\\\", " ", text)
  return text


def _power_behind(piece: str) -> int:
  """Returns the power of `²`, `squared`, `^2` or `^{-1}`."""
  if piece in _POWERS_BEHIND:
    return _POWERS_BEHIND[piece]
  return int(re.sub(r"[^\d-]", "", piece))


def _canonical(name: str) -> str:
  """Returns the name of a unit by any of its spellings, "m" for "metres"; of other words the singular in lower case."""
  for spelling in (name, name.casefold()):
    if spelling in _NAMES:
      return _NAMES[spelling]
  if name in KNOWN:
    return name
  word = name.casefold()
  is_plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
  return word[:-1] if is_plural else word


def _unit(powers: dict[str, int]) -> Unit:
  """Returns the unit of names with these powers; degrees with a letter are degrees Celsius or Fahrenheit."""
  if powers.get("degree") == 1 and len(powers) == 2:
    for letter in ("C", "F", "degC", "degF"):
      if letter in powers:
        return (("deg" + letter[-1], 1),)
  return tuple(sorted((name, power) for name, power in powers.items() if power))


def same_unit(a: Unit, b: Unit) -> bool:
  """Returns whether two units, which `read` returned, are the same.

  Of two that are words and no known units, one may have more words, as `red marbles` and `marbles`; () is the same as
  any of these, but not as `m`.
  """
  if a == b:
    return True
  names_a, names_b = {name for name, _ in a}, {name for name, _ in b}
  all_plain = all(name not in KNOWN and power == 1 for name, power in (*a, *b))
  return all_plain and (names_a <= names_b or names_b <= names_a)


def multiplier(unit: Unit) -> tuple[int, Unit]:
  """Splits off the words of a unit that multiply: hundred, thousand, million, billion, trillion, dozen.

  Returns (the product of their numbers, the unit without them): (10**6, (("dollar", 1),)) for `million dollars`, and
  (1, unit) without such words.
  """
  factor = 1
  others = []
  for name, power in unit:
    if name in _MULTIPLIERS and power == 1:
      factor *= _MULTIPLIERS[name]
    else:
      others.append((name, power))
  return factor, tuple(others)
