"""Spellings of an answer that mean the same: each is rewritten to the LaTeX that `verify.formula` reads."""

from __future__ import annotations

import re
import unicodedata

_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_PLAIN = str.maketrans(_RAISED + _LOWERED, "0123456789+-n" * 2)
_WORD = r"(?<![\\a-zA-Z])(?<!text\{)(?<!name\{)(?<!thrm\{)"  # starts a word that is neither command nor text
_GREEK = dict(
  zip(
    "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩµϵϕ",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
    " omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega mu epsilon phi".split(),
    strict=True,
  )
)
_SIGNS = {
  "∞": r"\infty ",
  "∈": r"\in ",
  "·": r"\cdot ",
  "⋅": r"\cdot ",
  "×": r"\times ",
  "÷": r"\div ",
  "±": r"\pm ",
  "∓": r"\mp ",
  "≤": r"\le ",
  "≥": r"\ge ",
  "≠": r"\ne ",
  "≈": r"\approx ",
  "≡": r"\equiv ",
  "∪": r"\cup ",
  "∩": r"\cap ",
  "∅": r"\emptyset ",
  "ℝ": r"\mathbb{R}",
  "ℤ": r"\mathbb{Z}",
  "∠": r"\angle ",
  "°": r"^\circ ",
  "⟨": r"\langle ",
  "⟩": r"\rangle ",
  "′": "'",
  "’": "'",
  "“": '"',
  "”": '"',
} | {letter: f"\\{name} " for letter, name in _GREEK.items()}
_SIGN = re.compile("[" + "".join(_SIGNS) + "]")
_MINUS = r"[−–‐‑‒﹣－]"
_SPACE = r"(?: |~|\\[,;:! ]|\\quad(?![a-zA-Z]))"

# In the order in which they are applied.
_REWRITES = tuple(
  (re.compile(pattern), new)
  for pattern, new in (
    (r"[\s~\u00a0\u2009\u202f]+", " "),
    (r"^(?:\*\*|`|\"|<answer>)(.*?)(?:\*\*|`|\"|</answer>)$", r"\1"),
    (r"[¼-¾⅐-⅞]", lambda sign: "\\frac{" + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "}{") + "}"),
    (f"[{_RAISED}]+", lambda signs: f"^{{{signs[0].translate(_PLAIN)}}}"),
    (f"[{_LOWERED}]+", lambda signs: f"_{{{signs[0].translate(_PLAIN)}}}"),
    (r"[√∛]", lambda sign: r"\sqrt[3]" if sign[0] == "∛" else r"\sqrt "),
    (_WORD + r"sqrt(?=[ ({\d])", r"\\sqrt "),
    (r"\\sqrt ?(?:\[(\d+)\])? ?(\d+|[a-z](?![a-zA-Z]))", lambda m: f"\\sqrt[{m[1] or 2}]{{{m[2]}}}"),
    (r"\\sqrt ?(?:\[(\d+)\])? ?\(([^()]+)\)", lambda m: f"\\sqrt[{m[1] or 2}]{{{m[2]}}}"),
    (_SIGN.pattern, lambda sign: _SIGNS[sign[0]]),
    (_MINUS, "-"),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z]) ?\.?", ""),
    (r"(?<!\\)(?:\\[()\[\]]|\$(?!\d)|^\$(?=[^$]*\$$))", ""),
    (r"\\(?:displaystyle|textstyle|limits|underline|bf|rm|boldsymbol|bm|mathbf|vec|mathcal|mathsf)(?![a-zA-Z])", ""),
    (r"\\(?:color|hspace|phantom) ?\{[a-zA-Z0-9. ]*\}", " "),
    (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
    (r"\\R(?:eals)?(?![a-zA-Z])|\\mathbb ?R(?![a-zA-Z])", r"\\mathbb{R}"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\neq(?![a-zA-Z])|(?<= )!=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:thickapprox|simeq|doteq)(?![a-zA-Z])", r"\\approx "),
    (r"\\(?:textbf|textit|textrm|textnormal|textsf|mbox|mathit|mathrm|operatorname\*?|emph|text)(?![a-zA-Z]) ?(?=\{)",
     r"\\text"),
    (r"^ ?(?:\\approx|\\sim)(?![a-zA-Z])", ""),
    (r"^ ?(?:\\text ?\{)? ?(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is)? ?:? ?\}? ?:?", ""),
    (r"^ ?\\text\{ ?(?:about|approximately|approx\.?|roughly) ?\}", ""),
    (r"^\\text\{( ?[-+]?\d[^{}]*)\}$", r"\1"),
    (r"\\(?:degree|textdegree)s?(?![a-zA-Z])", r"^\\circ "),
    (r"\\(?:mathrm|operatorname|text)\{(sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)\}", r"\\\1 "),
    (_WORD + r"(pi|theta|alpha|beta|arcsin|arccos|arctan|ln|log|sin|cos|tan|exp)(?![a-zA-Z])", r"\\\1 "),
    (_WORD + r"(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
    (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
    (r"\^ ?(-) ?(\d+)", r"^{-\2}"),
    (r"\^ ?(\d+)", r"^{\1}"),
    (r"(?<=\d) ?[x*] ?(?=10 ?\^)", r" \\cdot "),
    (r"(?<=\d)\\[,!; ](?=\d{3}(?!\d))", ""),
    (r"(?<=\d)(?:\{,\}|,\\!) ?(?=\d{3})", ""),
    (r"(?<=\d) (?=\d{3}(?: \d{3})*$)", ""),
    (r"^(-?\d+) (\d+) ?/ ?(\d+)(?= |$)", r"\1\\frac{\2}{\3}"),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])", r"\1 \\cdot 10^{\2}"),
    (r"\.(\d{0,9}?)(\d{1,6}?)\2+ ?(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.|…)", r".\1\\overline{\2}"),
    (r"(?<=\.)(\d{0,9})\((\d{1,9})\)", r"\1\\overline{\2}"),
    (r"^ ?\](?= ?[-+\\\w])(.*)\[ ?$", r"(\1)"),
    (r"(?:\\\\|\\[,;:! ]|(?<!\\)[.,;…]|\\[lc]?dots| )+$", ""),
    (r"^(?:\\[,;:! ]| )+", ""),
  )
)  # fmt: skip
_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\(?:overline|bar|dot)\s*\{?(\d{1,9})\}?")
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
_MARKUP = re.compile(r"\\text|[{}]|\\[,;:! ]")

_SMALL = {
  word: number
  for number, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen".split()
  )
}
_TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_PARTS = re.compile(r"or|halves|half|thirds?|quarters?|\w+ths?")  # of a number, so no unit behind one
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PHRASES = {
  "all real numbers": r"\mathbb{R}",
  "all reals": r"\mathbb{R}",
  "all real": r"\mathbb{R}",
  "all real values": r"\mathbb{R}",
  "all real x": r"\mathbb{R}",
  "any real number": r"\mathbb{R}",
  "the real numbers": r"\mathbb{R}",
  "real numbers": r"\mathbb{R}",
  "no solution": r"\emptyset",
  "no solutions": r"\emptyset",
  "no real solution": r"\emptyset",
  "no real solutions": r"\emptyset",
  "empty set": r"\emptyset",
  "the empty set": r"\emptyset",
  "infinity": r"\infty",
  "positive infinity": r"\infty",
  "negative infinity": r"-\infty",
  "minus infinity": r"-\infty",
  "dne": r"\text{does not exist}",
  "d.n.e": r"\text{does not exist}",
  "the limit does not exist": r"\text{does not exist}",
  "one half": r"\frac{1}{2}",
  "a half": r"\frac{1}{2}",
  "half": r"\frac{1}{2}",
  "one third": r"\frac{1}{3}",
  "two thirds": r"\frac{2}{3}",
  "one quarter": r"\frac{1}{4}",
  "one fourth": r"\frac{1}{4}",
  "three quarters": r"\frac{3}{4}",
  "three fourths": r"\frac{3}{4}",
}


def respell(text: str) -> str:
  """Returns the text in the spelling that `verify.formula` reads; one that it already has stays as it is."""
  for pattern, new in _REWRITES:
    text = pattern.sub(new, text.strip())
  text = _REPEATING.sub(_repeating, text)
  if not re.search(r"[(\[{]", text):
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
  phrase = words(text)
  if phrase in _PHRASES:
    return _PHRASES[phrase]
  return _number_in_words(phrase) or text


def words(text: str) -> str:
  """Returns the text without markup, in lower case, with single spaces, to compare what is written in words."""
  return " ".join(_MARKUP.sub(" ", text).split()).casefold().rstrip(" .")


def _repeating(match: re.Match) -> str:
  """Writes 0.1\\overline{6} as the fraction that it is."""
  whole, fixed, period = match.groups()
  numerator = int(whole + fixed + period) - int(whole + fixed or 0)
  return f"\\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _number_in_words(phrase: str) -> str | None:
  """Returns the digits of a phrase that begins as a number in words, with what follows it as text; else None.

  `1.5 million` begins with digits and needs the word behind them.
  """
  parts = phrase.replace("-", " ").split()
  count, value = _count(parts)
  if value is None:
    return None
  rest = " ".join(parts[count:])
  if rest and (not rest.isalpha() or _PARTS.fullmatch(rest)):
    return None
  return f"{value}\\text{{ {rest}}}" if rest else str(value)


def _count(parts: list[str]) -> tuple[int, int | None]:
  """Returns how many of the words make up a number, and the number; None where the first word is no number."""
  if not parts or parts[0] not in _SMALL and parts[0] not in _TENS:
    return 0, None
  total = group = used = 0
  for used, word in enumerate(parts):
    if word in _SMALL:
      group += _SMALL[word]
    elif word in _TENS:
      group += _TENS[word]
    elif word == "hundred":
      group *= 100
    elif word in _POWERS:
      total, group = total + group * _POWERS[word], 0
    elif word != "and" or used + 1 == len(parts) or parts[used + 1] not in _SMALL | _TENS:
      return used, total + group
  return used + 1, total + group
