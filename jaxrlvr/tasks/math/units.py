"""Units behind numbers: `m/s`, `meters per second` and `m s^{-1}` are one unit, `cm` and `m` are two."""

from __future__ import annotations

import re

Unit = tuple[tuple[str, int], ...]  # names and their powers, in order

MULTIPLIERS = {
  "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
CURRENCIES = {r"\$": "dollar", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", r"\pounds": "pound"}
PRODUCTS = frozenset("Nm Js Vs Ah Wh Ws Tm Ns As".split())  # of two of these
LETTERS = frozenset("msgNJWVACKLhFTCHl")  # that are units on their own behind a number

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
_NAMES = {}
for _line in _SPELLED.split("\n"):
  _name, _, _others = _line.partition(":")
  for _other in (_name, *_others.split()):
    _NAMES[_other] = _name
_NAMES |= {
  prefix + other: letters + short
  for prefix, letters in zip("nano micro pico milli kilo mega giga".split(), "nupmkMG", strict=True)
  for other, short in _NAMES.items()
  if short in ("m", "s", "g", "N", "J", "W", "V", "A", "C", "Hz", "Pa", "F", "T", "eV") and len(other) > 3
}  # fmt: skip
# Short forms that mean something else in capitals are looked up as they stand; all else is a word.
KNOWN = frozenset(_NAMES) | frozenset(
  "nm um ns us kN mN MJ mJ kV mV mA kHz MHz GHz MPa GPa atm bar torr keV MeV GeV kcal cal mmol amu Wb sr lm lx dB AU ly"
  " pc rpm kWh cc sq pts pt AM PM am pm".split()
)
_HEDGES = frozenset(
  "or and not maybe perhaps is are was than less most least but if when wrong right i e ie eg either neither"
  " one two three four five six seven eight nine"
  " ten no none to about approximately nor each plus minus times point via infinity undefined isn aren won can cannot"
  " half quarter third halved doubled tripled twice thrice factorial choose mod modulo root radical pi otherwise"
  " incorrect false untrue invalid unsure unknown guess probably possibly likely unlikely impossible almost nearly"
  " around above below over under between both too remainder except without negative positive wait hmm".split()
)
_EACH = re.compile(r"[A-Za-z]+(?:\.(?=$|\s))?|\^ ?\{? ?-? ?\d+ ?\}?|[/·*]|\\cdot|\\times|\\mu|\\Omega|\\circ|[²³]|(\S)")
_MAX_WORDS = 5


def read(text: str) -> Unit | None:
  """Returns the unit that a text names, () for one that says nothing; None where the text is no unit."""
  text = re.sub(r"\\frac ?\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\} ?\{", r"\1 / {", text)
  text = re.sub(r"\\frac ?\{([^{}]*(?:\{[^{}]*\})?[^{}]*)\} ?\{", r"\1 / {", text)
  text = re.sub(r"Å|\\AA(?![a-zA-Z])", " angstrom ", text)
  text = re.sub(r"\\text(?![a-zA-Z])|\\[,;:! ]|~|\\frac|[()]", " ", text)
  text = re.sub(r"\^ ?\{? ?\\circ ?\}?", " degree ", text.replace("°", " degree "))
  text = re.sub(r"[{}](?![^{}]*\d ?\})|(?<!\d)\}|\\\\", " ", text) if "^" not in text else text
  powers: dict[str, int] = {}
  last, sign, factor, count = None, 1, 1, 0
  for match in _EACH.finditer(text):
    piece = match[0]
    if match[1]:
      if piece in "{}.,":
        continue
      return None
    if piece in "/" or piece == "per":
      sign, last = -1, None
    elif piece in ("·", "*", r"\cdot", r"\times"):
      last = None
    elif piece[0] == "^" or piece in "²³":
      if last is None:
        return None
      power = {"²": 2, "³": 3}.get(piece) or int(re.sub(r"[^\d-]", "", piece))
      powers[last] += sign * (power - 1)
    elif piece in ("square", "sq", "sq.", "squared", "cubic", "cu", "cu.", "cubed"):
      power = 3 if piece.startswith("cu") else 2
      if piece.endswith("ed"):
        if last is None:
          return None
        powers[last] += sign * (power - 1)
      else:
        factor = power
    else:
      name = piece.strip("\\.")
      if name.casefold() in _HEDGES or count >= _MAX_WORDS:
        return None
      last = canonical(name)
      powers[last] = powers.get(last, 0) + sign * factor
      factor, count = 1, count + 1
  return _merged(powers)


def canonical(name: str) -> str:
  """Returns one name for all spellings of a unit, and the singular of a word."""
  for spelling in (name, name.casefold()):
    if spelling in _NAMES:
      return _NAMES[spelling]
  if name in KNOWN:
    return name
  word = name.casefold()
  return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _merged(powers: dict[str, int]) -> Unit:
  if powers.get("degree") == 1 and len(powers) == 2:
    for letter in ("C", "F", "degC", "degF"):
      if letter in powers:
        return (("deg" + letter[-1], 1),)
  return tuple(sorted((name, power) for name, power in powers.items() if power))


def same_unit(a: Unit, b: Unit) -> bool:
  """Returns whether two units are one; where both are plain words, one may say more, as `red marbles`."""
  if a == b:
    return True
  names_a, names_b = {name for name, _ in a}, {name for name, _ in b}
  plain = not any(name in KNOWN for name in names_a | names_b) and all(power == 1 for _, power in (*a, *b))
  return plain and (names_a <= names_b or names_b <= names_a)


def multiplier(unit: Unit) -> tuple[int, Unit]:
  """Returns what `million` and its like in a unit multiply the number by, and the rest of the unit."""
  factor, rest = 1, []
  for name, power in unit:
    if name in MULTIPLIERS and power == 1:
      factor *= MULTIPLIERS[name]
    else:
      rest.append((name, power))
  return factor, tuple(rest)
