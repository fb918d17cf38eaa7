"""Spellings of an answer that mean the same: each is rewritten to the LaTeX that `tasks.math.formula` reads."""

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
  "º": r"^\circ ",
  "˚": r"^\circ ",
  "∨": r"\lor ",
  "∧": r"\land ",
  "→": r"\to ",
  "⟨": r"\langle ",
  "⟩": r"\rangle ",
  "′": "'",
  "’": "'",
  "“": '"',
  "”": '"',
} | {letter: f"\\{name} " for letter, name in _GREEK.items()}
_SIGN = re.compile("[" + "".join(_SIGNS) + "]")
_MINUS = r"[−–‐‑‒﹣－]"
_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width signs
_INTERVAL = r"[\[\]] ?[^\[\](),;]+[,;][^\[\](),;]+[\[\]]"
_BOLD = r"\\(?:mathbf|boldsymbol|bm|hat|widehat|vec)"
_IJK = r"(?:\\[ij]math|[ijk])(?![a-zA-Z])"
_UNIT_VECTOR = rf"{_BOLD} ?(?:\{{ ?(?:{_BOLD} ?(?:\{{ ?{_IJK} ?\}}|{_IJK})|{_IJK}) ?\}}|{_IJK})"
_CODE = r"(?:USD|US ?\\?\$|EUR|GBP|INR|Rs\.?)"
_CODES = {"U": r"\$", "E": "€", "G": "£", "I": "₹", "R": "₹"}  # by their first letters
_NEXT = r"(?=[ }]*[-+$€£(\\\d])"  # something like a number follows
# What may stand in front of an answer and says nothing of it.
_HEADING = re.compile(
  r"\\text\{(?![^{}]*\b(?:not?|wrong|incorrect|false|twice|half|double|minus|if|or|step|case|part)\b)[A-Za-z ]+: ?"
  r"(?=\} ?[-+$(\\\d])", re.IGNORECASE
)  # fmt: skip
_INTRODUCTION = re.compile(
  r"(?: ?(?:(?:so|thus|hence|therefore|then)\b[,:]?(?=[ }])"
  r"|(?:the )?(?:(?:correct|final|exact|required|desired|total) )*"
  rf"(?:(?:answer|ans\.?)(?: is| are| ?[:=])?|(?:answers|results?|solutions?|values?|number|equation|total|sum)"
  rf"(?: is| are| equals| ?[:=]|{_NEXT}))"
  rf"|(?:it|this|that|there) (?:is|are|equals)\b{_NEXT}|exactly{_NEXT}|the{_NEXT}))+(?![a-z]) ?",
  re.IGNORECASE,
)
_REALS = r"[Aa]ll reals?(?: numbers?| values)?(?: of)?(?: [a-z])?"
_SPACE = r"(?: |~|\\[,;:! ]|\\quad(?![a-zA-Z]))"

# In the order in which they are applied.
_REWRITES = tuple(
  (re.compile(pattern), new)
  for pattern, new in (
    (r"[\s~\u00a0\u2009\u202f]+", " "),
    (r"[\uff01-\uff5e]", lambda sign: sign[0].translate(_WIDE)),
    (r"\\(?:boxed|fbox) ?(?=\{)", ""),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z]) ?\.?", ""),
    (r"(?<!\\)\$((?:[^$\\]|\\.)*)\$", r"\1"),
    (r"^(?:\*\*|`|\"|<answer>)(.*?)(?:\*\*|`|\"|</answer>)$", r"\1"),
    (r"^\[ ?\"([^\"\[\]]*)\" ?\]$", r"\1"),
    (r"[¼-¾⅐-⅞]", lambda sign: "\\frac{" + unicodedata.normalize("NFKC", sign[0]).replace("⁄", "}{") + "}"),
    (f"[{_RAISED}]+", lambda signs: f"^{{{signs[0].translate(_PLAIN)}}}"),
    (f"[{_LOWERED}]+", lambda signs: f"_{{{signs[0].translate(_PLAIN)}}}"),
    (r"[√∛]", lambda sign: r"\sqrt[3]" if sign[0] == "∛" else r"\sqrt "),
    (_WORD + r"sqrt(?=[ ({\d])", r"\\sqrt "),
    (r"\\sqrt ?(?:\[(\d+)\])? ?(\d+|[a-z](?![a-zA-Z]))", lambda m: f"\\sqrt[{m[1] or 2}]{{{m[2]}}}"),
    (r"\\sqrt ?(?:\[(\d+)\])? ?\(([^()]+)\)", lambda m: f"\\sqrt[{m[1] or 2}]{{{m[2]}}}"),
    (_SIGN.pattern, lambda sign: _SIGNS[sign[0]]),
    (_MINUS, "-"),
    (r"^(?:\\(?:therefore|Rightarrow|Longrightarrow|implies|to)(?![a-zA-Z]) ?)+", ""),
    (r"(?:(?:\\[ ,;]| )?(?:\\(?:checkmark|blacksquare|square|qed)(?![a-zA-Z])|[✓✔✅]))+$", ""),
    (r"(?<!\\)(?:\\[()\[\]]|\$(?!\d)|^\$(?=[^$]*\$$))", ""),
    (_UNIT_VECTOR, lambda m: f"\\hat{{{re.findall('[ijk]', m[0].replace('hat', '').replace('math', ''))[-1]}}}"),
    (r"\\(?:Bbb|mathds)(?![a-zA-Z]) ?\{?([A-Z])\}?|(?<=\\in)[ ]?\\(?:mathbf|mathrm|text) ?\{([RZQNC])\}",
     lambda m: f"\\mathbb{{{m[1] or m[2]}}}"),
    (r"\\(?:boldsymbol|bm|mathbf|vec|overrightarrow) ?\{([A-Za-z]{1,2}(?:_\w)?)\}", r"\1"),
    (r"\\(?:(?:display|text)style|limits|underline|boldsymbol|b[fm]|rm|vec|math(?:bf|cal|sf|scr|frak))(?![a-zA-Z])",
     ""),
    (r"\^ ?\{? ?\\prime ?\}?", "'"),
    (r"\\(arcsin|arccos|arctan|sin|cos|tan|ln|log)(?=[xyt](?![a-zA-Z]))", r"\\\1 "),
    (r"\\frac ?\{ ?\\(?:mathrm|text) ?\{d\} ?", r"\\frac{d"),
    (r"\\(?:mathrm|text) ?\{d\} ?(?=[a-z]\b)", "d"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"\\vert(?![a-zA-Z])", "|"),
    (r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}",
     lambda m: f"\\{'frac' if m[2] == 'over' else 'binom'}{{{m[1]}}}{{{m[3]}}}"),
    (r"^\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)(?<!\\)\}$", r"\1"),
    (r"(?:\{\}|(?<![\w)\]}|'!]))[\^_] ?\{?(\w+)\}? ?C ?_ ?\{?(\w+)\}?", r"\\binom{\1}{\2}"),
    (r"([\[(])? ?\\begin ?\{(?:array|smallmatrix)\}(?:\{[lcr| ]*\})?(.*?)\\end ?\{(?:array|smallmatrix)\} ?(?(1)[\])])",
     r"\\begin{matrix}\2\\end{matrix}"),
    (r"([\[(]) ?(\\begin\{matrix\}(?:(?!\\begin).)*?\\end\{matrix\}) ?[\])]", r"\2"),
    (r"\\\\ ?\[[0-9.]+ ?(?:pt|em|ex|mm)\]", r"\\\\"),
    (r"^\\\{ ?(\\begin ?\{(?:matrix|cases|aligned)\})|^\\begin ?\{(?:cases|aligned)\}", r"\\begin{system}"),
    (r"^\\begin\{system\}((?:(?!\\begin|\\end).)*)\\end ?\{(?:matrix|cases|aligned)\}$", lambda m: _system(m)),
    (r"\\(?:color|hspace|phantom) ?\{[a-zA-Z0-9. ]*\}", " "),
    (r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])", r"\\frac"),
    (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\(?:varnothing|O)(?![a-zA-Z])", r"\\emptyset "),
    (r"\\R(?:eals)?(?![a-zA-Z])", r"\\mathbb{R}"),
    (r"\\mathbb ?([A-Z])(?![a-zA-Z])", r"\\mathbb{\1}"),
    (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\neq(?![a-zA-Z])|(?<= )!=", r"\\ne "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:thickapprox|simeq|doteq)(?![a-zA-Z])", r"\\approx "),
    (r"\\(?:textbf|textit|textrm|textnormal|textsf|mbox|mathit|mathrm|operatorname\*?|emph|text)(?![a-zA-Z]) ?(?=\{)",
     r"\\text"),
    (r"^ ?(?:\\approx|\\sim)(?![a-zA-Z])", ""),
    (r"\\text\{ ?(\\?%|[,;:.]) ?\}", r"\1 "),
    (r"\{:\}", ":"),
    (r"\\text\{ ?(\\[a-zA-Z]+|[A-Z][A-Za-z0-9]*_[A-Za-z0-9_{}]*) ?\}", r"\1 "),
    (r"(?<![\d.}])\\text\{ ?(-?\d+(?:\.\d+)?) ?\}(?! ?[\d.])", r"\1"),
    (r"\\&|\\text\{ ?\\?& ?\}", r"\\text{ and }"),
    (r"^.*$", lambda text: _without_introduction(text[0])),
    (rf"^\\text\{{ ?({_CODE}) ?(-?[\d.,]+) ?\}}$", lambda m: _CODES[m[1][0]] + m[2]),
    (rf"^(?:({_CODE})|\\text\{{ ?({_CODE}) ?\}})(?: |~|\\[ ,])*(?=[-\d.])", lambda m: _CODES[(m[1] or m[2])[0]]),
    (r"^(\\?\$ ?[\d.,]+|[\d.,]+(?=\\text)) ?(?:\\text\{ ?k ?\}|k)$", r"\1\\text{ thousand}"),
    (r"^(\\?\$ ?[\d.,]+) ?(?:\\text\{ ?M ?\}|M)$", r"\1\\text{ million}"),
    (r"\\text\{ ?\( ?mod (\w+) ?\) ?\}|\( ?(?:\\text\{ ?mod ?\}|\\[bp]?mod(?![a-zA-Z])|mod(?![a-zA-Z]))"
     rf"{_SPACE}*\{{?(\w+)\}}? ?\)", lambda m: f" \\pmod{{{m[1] or m[2]}}}"),
    (rf"(?:\\[bp]?mod(?![a-zA-Z])|\\text\{{ ?mod ?\}}|(?<![a-zA-Z\\{{])mod(?![a-zA-Z])){_SPACE}*\{{?(\w+)\}}?",
     r" \\pmod{\1}"),
    (r"^\( ?(\w+) ?\) ?_", r"\1_"),
    (r"(?<=\d)_ ?\{? ?\( ?(\w+) ?\) ?\}?(?=\.?$)", r"_{\1}"),
    (r"^(\d+) ?\\text\{ to \} ?(\d+)$|^(\d+) to (\d+)$", lambda m: f"{m[1] or m[3]}:{m[2] or m[4]}"),
    (rf"^(?:\\text\{{ ?)?{_REALS} (?:except|other than|but not)(?: for)? ?(?:\}} ?)?(?:[a-z] ?= ?)?"
     r"([^{}]*(?:(?:\\frac|\\sqrt|\\text)\{.*\})?[^{}]*)\}?$", lambda m: _reals_without(m[1])),
    (rf"^\\text\{{ ?{_REALS} ?\}} ?(?=[a-z] ?(?:\\ne|[<>]|\\[lg]e))", ""),
    (r"^ ?\\text\{ ?(?:about|approximately|approx\.?|roughly) ?\}", ""),
    (r"^\\text\{( ?[-+]?(?:\\?[$€£])?\d[^{}]*)\}$", r"\1"),
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
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?!\w|\.\d)", r"\1 \\cdot 10^{\2}"),
    (r"\.(\d{0,9}?)(\d{1,6}?)\2+ ?(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.|…)", r".\1\\overline{\2}"),
    (r"(?<=\.)(\d{0,9})\((\d{1,9})\)", r"\1\\overline{\2}"),
    (rf"^(?:[a-z] ?\\in ?)?{_INTERVAL}(?: ?\\cup ?{_INTERVAL})*$", lambda text: _with_round_ends(text[0])),
    (r"(?:\\\\|\\[,;:! ]|(?<!\\)[.,;…]|\\[lc]?dots| )+$", lambda end: _end(end)),
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
_NO_SOLUTION = re.compile(r"(?:there (?:is|are) |has )?no (?:real |integer |such |valid )*solutions?(?: exists?)?|none")
_PARTED = {
  word: number
  for number, words_ in enumerate(
    "half halves;third thirds;quarter quarters fourth fourths;fifth fifths;sixth sixths;seventh sevenths;"
    "eighth eighths;ninth ninths;tenth tenths".split(";"), 2
  )
  for word in words_.split()
}  # fmt: skip
_SINGULAR = frozenset(word for word in _PARTED if word == "half" or not word.endswith("s") and word != "halves")
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
  "empty set": r"\emptyset",
  "the empty set": r"\emptyset",
  "infinity": r"\infty",
  "positive infinity": r"\infty",
  "negative infinity": r"-\infty",
  "minus infinity": r"-\infty",
  "dne": r"\text{does not exist}",
  "d.n.e": r"\text{does not exist}",
  "the limit does not exist": r"\text{does not exist}",
  "half": r"\frac{1}{2}",
}


def respell(text: str) -> str:
  """Returns the text in the spelling that `tasks.math.formula` reads; one that it already has stays as it is."""
  for pattern, new in _REWRITES:
    text = pattern.sub(new, text.strip())
  text = _REPEATING.sub(_repeating, text)
  if not re.search(r"[(\[]|\\\{|_ ?\{", text):
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
  phrase = bare_words(text)
  if _NO_SOLUTION.fullmatch(phrase):
    return r"\emptyset"
  return _PHRASES.get(phrase) or _number_in_words(phrase) or text


def bare_words(text: str) -> str:
  """Returns the text without markup, in lower case, with single spaces, to compare what is written in words."""
  text = " ".join(_MARKUP.sub(" ", text).split()).casefold()
  return text if text.endswith("..") else text.rstrip(" .")


def _without_introduction(text: str) -> str:
  """Drops what stands in front of an answer and says nothing of it, inside of \\text{...} or bare."""
  inside = text.startswith(r"\text{")
  start = len(r"\text{") if inside else 0
  match = _INTRODUCTION.match(text, start) or _HEADING.match(text)
  if not match:
    return text
  rest = text[match.end() :].strip()
  if inside and not rest.startswith("}"):
    return r"\text{" + rest
  return re.sub(r"^\}? ?[:=]? ?", "", rest) if inside else rest.lstrip(":= ")


def _with_round_ends(text: str) -> str:
  """Writes ]1,2[ as (1,2)."""
  ends = iter("".join(re.findall(r"[\[\]]", text)))
  signs = [
    ("[" if sign == "[" else "(") if n % 2 == 0 else ("]" if sign == "]" else ")") for n, sign in enumerate(ends)
  ]
  rest = iter(signs)
  return re.sub(r"[\[\]]", lambda _: next(rest), text)


def _reals_without(points: str) -> str:
  """Writes all real numbers but some as a difference of sets."""
  return r"\mathbb{R}\setminus\{" + re.sub(r",? ?(?:\\text\{ ?and ?\}|\band\b)", ",", points) + r"\}"


def _system(match: re.Match) -> str:
  """Writes equations one below the other as a list; other cases stay as they are."""
  rows = [row.strip(" ,;.") for row in re.sub(r"& ?=", "=", match[1]).split(r"\\")]
  plain = all(row.count("=") == 1 and "&" not in row for row in rows if row)
  return ", ".join(row for row in rows if row) if plain else match[0]


def _end(match: re.Match) -> str:
  """Drops what says nothing behind an answer; dots that go on with something other than decimals stay."""
  dots = re.search(r"\.\.|…|\\[lc]?dots", match[0])
  return match[0] if dots and not re.search(r"\.\d+$", match.string[: match.start()]) else ""


def _repeating(match: re.Match) -> str:
  """Writes 0.1\\overline{6} as the fraction that it is."""
  whole, fixed, period = match.groups()
  numerator = int(whole + fixed + period) - int(whole + fixed or 0)
  return f"\\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _number_in_words(phrase: str) -> str | None:
  """Returns the digits of a phrase that begins as a number in words, with what follows it as text; else None.

  `1.5 million` begins with digits and needs the word behind them.
  """
  parts = phrase.replace("-", " ").split() if phrase[:1] != "-" else []
  if len(parts) > 1 and parts[0] in ("negative", "minus"):
    number = _number_in_words(" ".join(parts[1:])) or (parts[1] if len(parts) == 2 else "")
    return f"-{number}" if number[:1].isdigit() or number.startswith("\\frac") else None
  if parts[-3:-1] in (["and", "a"], ["and", "one"]) and parts[-1] == "half" and len(parts) > 3:
    whole = _number_in_words(" ".join(parts[:-3])) or parts[0]
    return f"{whole}\\frac{{1}}{{2}}" if whole.isdigit() and (len(parts) == 4 or not parts[0].isdigit()) else None
  count, value = (1, 1) if parts[:1] == ["a"] and parts[1:2] == ["half"] else _count(parts)
  if value is None:
    return None
  rest = " ".join(parts[count:])
  if rest in _PARTED and (value == 1) == (rest in _SINGULAR):
    return f"\\frac{{{value}}}{{{_PARTED[rest]}}}"
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
