"""Rewrites the many spellings of an answer to the one LaTeX that `tasks.math.formula` reads."""

from __future__ import annotations

import re
import unicodedata

_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋ₙ"
_PLAIN = str.maketrans(_RAISED + _LOWERED, "0123456789+-n" * 2)
_WORD = r"(?<![\\a-zA-Z])(?<!text\{)(?<!name\{)(?<!thrm\{)"  # the start of a bare word, outside commands and text
_GREEK_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩµϵϕ"
_GREEK_NAMES = (
  "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
  " omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega mu epsilon phi"
).split()
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
} | {letter: f"\\{name} " for letter, name in zip(_GREEK_LETTERS, _GREEK_NAMES, strict=True)}
_SIGN = "[" + "".join(_SIGNS) + "]"
_MINUS = r"[−–‐‑‒﹣－]"
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_INTERVAL = r"[\[\]] ?[^\[\](),;]+[,;][^\[\](),;]+[\[\]]"
_BOLD = r"\\(?:mathbf|boldsymbol|bm|hat|widehat|vec)"
_IJK = r"(?:\\[ij]math|[ijk])(?![a-zA-Z])"
_UNIT_VECTOR = rf"{_BOLD} ?(?:\{{ ?(?:{_BOLD} ?(?:\{{ ?{_IJK} ?\}}|{_IJK})|{_IJK}) ?\}}|{_IJK})"
_CURRENCY_CODE = r"(?:USD|US ?\\?\$|EUR|GBP|INR|Rs\.?)"
_CURRENCY_SIGNS = {"U": r"\$", "E": "€", "G": "£", "I": "₹", "R": "₹"}  # by the first letter of the code
_BEFORE_NUMBER = r"(?=[ }]*[-+$€£(\\\d])"  # something like a number follows
# A heading or an introduction in front of an answer, which does not change what the answer says.
_HEADING = re.compile(
  r"\\text\{(?![^{}]*\b(?:not?|wrong|incorrect|false|twice|half|double|minus|if|or|step|case|part)\b)[A-Za-z ]+: ?"
  r"(?=\} ?[-+$(\\\d])",
  re.IGNORECASE,
)
_INTRODUCTION = re.compile(
  r"(?: ?(?:(?:so|thus|hence|therefore|then)\b[,:]?(?=[ }])"
  r"|(?:the )?(?:(?:correct|final|exact|required|desired|total) )*"
  rf"(?:(?:answer|ans\.?)(?: is| are| ?[:=])?|(?:answers|results?|solutions?|values?|number|equation|total|sum)"
  rf"(?: is| are| equals| ?[:=]|{_BEFORE_NUMBER}))"
  rf"|(?:it|this|that|there) (?:is|are|equals)\b{_BEFORE_NUMBER}"
  rf"|exactly{_BEFORE_NUMBER}|the{_BEFORE_NUMBER}))+(?![a-z]) ?",
  re.IGNORECASE,
)
_REALS = r"[Aa]ll reals?(?: numbers?| values)?(?: of)?(?: [a-z])?"
_SPACE = r"(?: |~|\\[,;:! ]|\\quad(?![a-zA-Z]))"

_REPEATING = re.compile(r"(\d{0,9})\.(\d{0,9})\\(?:overline|bar|dot)\s*\{?(\d{1,9})\}?")
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
_MARKUP = re.compile(r"\\text|[{}]|\\[,;:! ]")

_SMALL_WORDS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
  " eighteen nineteen"
).split()
_SMALL = {word: number for number, word in enumerate(_SMALL_WORDS)}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_TENS = {word: 10 * number for number, word in enumerate(_TENS_WORDS, start=2)}
_NO_UNIT = re.compile(r"or|halves|half|thirds?|quarters?|\w+ths?")  # a word behind a number that changes its value
_NO_SOLUTION = re.compile(r"(?:there (?:is|are) |has )?no (?:real |integer |such |valid )*solutions?(?: exists?)?|none")
_DENOMINATORS = {
  "half": 2,
  "third": 3,
  "quarter": 4,
  "fourth": 4,
  "fifth": 5,
  "sixth": 6,
  "seventh": 7,
  "eighth": 8,
  "ninth": 9,
  "tenth": 10,
}
_PLURAL_DENOMINATORS = {"halves": 2} | {word + "s": number for word, number in _DENOMINATORS.items() if word != "half"}
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
  """Returns an answer in the one LaTeX spelling that `tasks.math.formula` reads; one in that spelling stays as it is.

  So `$\\dfrac12$` becomes `\\frac12`, `1,000` becomes `1000`, `half` becomes `\\frac{1}{2}`, and the many ways to say
  that there is no solution become `\\emptyset`. Text that no rule knows stays. Safe on any text.
  """
  for pattern, replacement in _COMPILED_RULES:
    text = pattern.sub(replacement, text.strip())
  text = _REPEATING.sub(_repeating_decimal, text)
  if not re.search(r"[(\[]|\\\{|_ ?\{", text):  # in a tuple, a set or a subscript a comma may separate numbers
    text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
  phrase = bare_words(text)
  if _NO_SOLUTION.fullmatch(phrase):
    return r"\emptyset"
  return _PHRASES.get(phrase) or _number_in_words(phrase) or text


def bare_words(text: str) -> str:
  """Returns the words of a text for comparison: without LaTeX markup and a final stop, in lower case, single-spaced.

  So `\\text{Yes}.` becomes "yes". A text that ends in several stops, as `1, 2, ...`, keeps them.
  """
  text = " ".join(_MARKUP.sub(" ", text).split()).casefold()
  if text.endswith(".."):
    return text
  return text.rstrip(" .")


# Replacements of rules.


def _half_width(match: re.Match) -> str:
  return match[0].translate(_FULL_WIDTH)


def _fraction(match: re.Match) -> str:
  """Writes ½ as \\frac{1}{2}."""
  top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
  return f"\\frac{{{top}}}{{{bottom}}}"


def _superscript(match: re.Match) -> str:
  return f"^{{{match[0].translate(_PLAIN)}}}"


def _subscript(match: re.Match) -> str:
  return f"_{{{match[0].translate(_PLAIN)}}}"


def _root(match: re.Match) -> str:
  """Writes a root of group 2 with the degree of group 1, or 2."""
  return f"\\sqrt[{match[1] or 2}]{{{match[2]}}}"


def _command_of_sign(match: re.Match) -> str:
  return _SIGNS[match[0]]


def _unit_vector(match: re.Match) -> str:
  """Writes the unit vectors i, j, k in all fonts as \\hat{i}, \\hat{j}, \\hat{k}."""
  letters = match[0].replace("hat", "").replace("math", "")
  return f"\\hat{{{re.findall('[ijk]', letters)[-1]}}}"


def _number_set(match: re.Match) -> str:
  return f"\\mathbb{{{match[1] or match[2]}}}"


def _infix_command(match: re.Match) -> str:
  """Writes {1 \\over 2} as \\frac{1}{2}, and {3 \\choose 2} as a binomial."""
  command = "frac" if match[2] == "over" else "binom"
  return f"\\{command}{{{match[1]}}}{{{match[3]}}}"


def _list_of_equations(match: re.Match) -> str:
  """Writes equations in the rows of group 1 as a list; rows of another kind stay as they are."""
  lines = re.sub(r"& ?=", "=", match[1]).split(r"\\")
  rows = [line.strip(" ,;.") for line in lines]
  rows = [row for row in rows if row]
  if any(row.count("=") != 1 or "&" in row for row in rows):
    return match[0]
  return ", ".join(rows)


def _without_introduction(match: re.Match) -> str:
  """Drops a heading or an introduction in front of an answer, bare or inside of \\text{...}."""
  text = match[0]
  is_inside = text.startswith(r"\text{")
  start = len(r"\text{") if is_inside else 0
  introduction = _INTRODUCTION.match(text, start) or _HEADING.match(text)
  if not introduction:
    return text
  answer = text[introduction.end() :].strip()
  if not is_inside:
    return answer.lstrip(":= ")
  if answer.startswith("}"):
    return re.sub(r"^\}? ?[:=]? ?", "", answer)
  return r"\text{" + answer


def _amount_of_money(match: re.Match) -> str:
  """Writes \\text{EUR 5} as €5."""
  return _CURRENCY_SIGNS[match[1][0]] + match[2]


def _currency_sign(match: re.Match) -> str:
  code = match[1] or match[2]
  return _CURRENCY_SIGNS[code[0]]


def _modulus(match: re.Match) -> str:
  return f" \\pmod{{{match[1] or match[2]}}}"


def _ratio(match: re.Match) -> str:
  """Writes `3 to 4` as 3:4."""
  return f"{match[1] or match[3]}:{match[2] or match[4]}"


def _reals_without(match: re.Match) -> str:
  """Writes all real numbers except the points in group 1 as a difference of sets."""
  points = re.sub(r",? ?(?:\\text\{ ?and ?\}|\band\b)", ",", match[1])
  return r"\mathbb{R}\setminus\{" + points + r"\}"


def _with_round_ends(match: re.Match) -> str:
  """Writes ]1,2[ as (1,2): each opening end that is no [, and each closing end that is no ], becomes round."""
  parts = re.split(r"([\[\]])", match[0])
  ends = parts[1::2]
  for place, end in enumerate(ends):
    if place % 2 == 0:
      ends[place] = "[" if end == "[" else "("
    else:
      ends[place] = "]" if end == "]" else ")"
  parts[1::2] = ends
  return "".join(parts)


def _without_ending(match: re.Match) -> str:
  """Drops punctuation and spaces behind an answer; dots stay, unless they stand behind decimals."""
  has_dots = re.search(r"\.\.|…|\\[lc]?dots", match[0]) is not None
  is_decimal = re.search(r"\.\d+$", match.string[: match.start()]) is not None
  if has_dots and not is_decimal:
    return match[0]
  return ""


def _repeating_decimal(match: re.Match) -> str:
  """Writes 0.1\\overline{6} as a fraction."""
  whole, fixed, period = match.groups()
  numerator = int(whole + fixed + period) - int(whole + fixed or 0)
  denominator = (10 ** len(period) - 1) * 10 ** len(fixed)
  return f"\\frac{{{numerator}}}{{{denominator}}}"


# (pattern, replacement), in the order in which they are applied.
_RULES = (
  # White space, full-width signs, boxes, sizes of brackets, and formatting around the whole answer.
  (r"[\s~\u00a0\u2009\u202f]+", " "),
  (r"[\uff01-\uff5e]", _half_width),
  (r"\\(?:boxed|fbox) ?(?=\{)", ""),
  (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z]) ?\.?", ""),
  (r"(?<!\\)\$((?:[^$\\]|\\.)*)\$", r"\1"),
  (r"^(?:\*\*|`|\"|<answer>)(.*?)(?:\*\*|`|\"|</answer>)$", r"\1"),
  (r"^\[ ?\"([^\"\[\]]*)\" ?\]$", r"\1"),
  # Fractions, powers, subscripts, roots and other signs of Unicode; roots with all kinds of arguments.
  (r"[¼-¾⅐-⅞]", _fraction),
  (f"[{_RAISED}]+", _superscript),
  (f"[{_LOWERED}]+", _subscript),
  (r"∛", r"\\sqrt[3]"),
  (r"√", r"\\sqrt "),
  (_WORD + r"sqrt(?=[ ({\d])", r"\\sqrt "),
  (r"\\sqrt ?(?:\[(\d+)\])? ?(\d+|[a-z](?![a-zA-Z]))", _root),
  (r"\\sqrt ?(?:\[(\d+)\])? ?\(([^()]+)\)", _root),
  (_SIGN, _command_of_sign),
  (_MINUS, "-"),
  # Signs before and behind the answer, dollars and brackets around formulas.
  (r"^(?:\\(?:therefore|Rightarrow|Longrightarrow|implies|to)(?![a-zA-Z]) ?)+", ""),
  (r"(?:(?:\\[ ,;]| )?(?:\\(?:checkmark|blacksquare|square|qed)(?![a-zA-Z])|[✓✔✅]))+$", ""),
  (r"(?<!\\)(?:\\[()\[\]]|\$(?!\d)|^\$(?=[^$]*\$$))", ""),
  # Vectors, fonts, primes and upright letters.
  (_UNIT_VECTOR, _unit_vector),
  (r"\\(?:Bbb|mathds)(?![a-zA-Z]) ?\{?([A-Z])\}?|(?<=\\in)[ ]?\\(?:mathbf|mathrm|text) ?\{([RZQNC])\}", _number_set),
  (r"\\(?:boldsymbol|bm|mathbf|vec|overrightarrow) ?\{([A-Za-z]{1,2}(?:_\w)?)\}", r"\1"),
  (r"\\(?:(?:display|text)style|limits|underline|boldsymbol|b[fm]|rm|vec|math(?:bf|cal|sf|scr|frak))(?![a-zA-Z])", ""),
  (r"\^ ?\{? ?\\prime ?\}?", "'"),
  (r"\\(arcsin|arccos|arctan|sin|cos|tan|ln|log)(?=[xyt](?![a-zA-Z]))", r"\\\1 "),
  (r"\\frac ?\{ ?\\(?:mathrm|text) ?\{d\} ?", r"\\frac{d"),
  (r"\\(?:mathrm|text) ?\{d\} ?(?=[a-z]\b)", "d"),
  # Other names of brackets, fractions and binomials; braces around the whole answer.
  (r"\\lbrace(?![a-zA-Z])", r"\\{"),
  (r"\\rbrace(?![a-zA-Z])", r"\\}"),
  (r"\\vert(?![a-zA-Z])", "|"),
  (r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}", _infix_command),
  (r"^\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)(?<!\\)\}$", r"\1"),
  (r"(?:\{\}|(?<![\w)\]}|'!]))[\^_] ?\{?(\w+)\}? ?C ?_ ?\{?(\w+)\}?", r"\\binom{\1}{\2}"),
  # Matrices, systems of equations, colours and spaces.
  (
    r"([\[(])? ?\\begin ?\{(?:array|smallmatrix)\}(?:\{[lcr| ]*\})?(.*?)\\end ?\{(?:array|smallmatrix)\} ?(?(1)[\])])",
    r"\\begin{matrix}\2\\end{matrix}",
  ),
  (r"([\[(]) ?(\\begin\{matrix\}(?:(?!\\begin).)*?\\end\{matrix\}) ?[\])]", r"\2"),
  (r"\\\\ ?\[[0-9.]+ ?(?:pt|em|ex|mm)\]", r"\\\\"),
  (r"^\\\{ ?(\\begin ?\{(?:matrix|cases|aligned)\})|^\\begin ?\{(?:cases|aligned)\}", r"\\begin{system}"),
  (r"^\\begin\{system\}((?:(?!\\begin|\\end).)*)\\end ?\{(?:matrix|cases|aligned)\}$", _list_of_equations),
  (r"\\(?:color|hspace|phantom) ?\{[a-zA-Z0-9. ]*\}", " "),
  # Commands and signs with several names.
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
  # Text: one command for all, numbers and signs out of it, introductions dropped.
  (
    r"\\(?:textbf|textit|textrm|textnormal|textsf|mbox|mathit|mathrm|operatorname\*?|emph|text)(?![a-zA-Z]) ?(?=\{)",
    r"\\text",
  ),
  (r"^ ?(?:\\approx|\\sim)(?![a-zA-Z])", ""),
  (r"\\text\{ ?(\\?%|[,;:.]) ?\}", r"\1 "),
  (r"\{:\}", ":"),
  (r"\\text\{ ?(\\[a-zA-Z]+|[A-Z][A-Za-z0-9]*_[A-Za-z0-9_{}]*) ?\}", r"\1 "),
  (r"(?<![\d.}])\\text\{ ?(-?\d+(?:\.\d+)?) ?\}(?! ?[\d.])", r"\1"),
  (r"\\&|\\text\{ ?\\?& ?\}", r"\\text{ and }"),
  (r"^.*$", _without_introduction),
  # Currencies, remainders, bases, ratios, and all real numbers but some.
  (rf"^\\text\{{ ?({_CURRENCY_CODE}) ?(-?[\d.,]+) ?\}}$", _amount_of_money),
  (rf"^(?:({_CURRENCY_CODE})|\\text\{{ ?({_CURRENCY_CODE}) ?\}})(?: |~|\\[ ,])*(?=[-\d.])", _currency_sign),
  (r"^(\\?\$ ?[\d.,]+|[\d.,]+(?=\\text)) ?(?:\\text\{ ?k ?\}|k)$", r"\1\\text{ thousand}"),
  (r"^(\\?\$ ?[\d.,]+) ?(?:\\text\{ ?M ?\}|M)$", r"\1\\text{ million}"),
  (
    r"\\text\{ ?\( ?mod (\w+) ?\) ?\}|\( ?(?:\\text\{ ?mod ?\}|\\[bp]?mod(?![a-zA-Z])|mod(?![a-zA-Z]))"
    rf"{_SPACE}*\{{?(\w+)\}}? ?\)",
    _modulus,
  ),
  (
    rf"(?:\\[bp]?mod(?![a-zA-Z])|\\text\{{ ?mod ?\}}|(?<![a-zA-Z\\{{])mod(?![a-zA-Z])){_SPACE}*\{{?(\w+)\}}?",
    r" \\pmod{\1}",
  ),
  (r"^\( ?(\w+) ?\) ?_", r"\1_"),
  (r"(?<=\d)_ ?\{? ?\( ?(\w+) ?\) ?\}?(?=\.?$)", r"_{\1}"),
  (r"^(\d+) ?\\text\{ to \} ?(\d+)$|^(\d+) to (\d+)$", _ratio),
  (
    rf"^(?:\\text\{{ ?)?{_REALS} (?:except|other than|but not)(?: for)? ?(?:\}} ?)?(?:[a-z] ?= ?)?"
    r"([^{}]*(?:(?:\\frac|\\sqrt|\\text)\{.*\})?[^{}]*)\}?$",
    _reals_without,
  ),
  (rf"^\\text\{{ ?{_REALS} ?\}} ?(?=[a-z] ?(?:\\ne|[<>]|\\[lg]e))", ""),
  (r"^ ?\\text\{ ?(?:about|approximately|approx\.?|roughly) ?\}", ""),
  (r"^\\text\{( ?[-+]?(?:\\?[$€£])?\d[^{}]*)\}$", r"\1"),
  # Degrees, functions and constants without a backslash, powers.
  (r"\\(?:degree|textdegree)s?(?![a-zA-Z])", r"^\\circ "),
  (r"\\(?:mathrm|operatorname|text)\{(sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)\}", r"\\\1 "),
  (_WORD + r"(pi|theta|alpha|beta|arcsin|arccos|arctan|ln|log|sin|cos|tan|exp)(?![a-zA-Z])", r"\\\1 "),
  (_WORD + r"(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
  (r"(?<=[\w)}])\*\*(?=[\w({-])", "^"),
  (r"\^ ?(-) ?(\d+)", r"^{-\2}"),
  (r"\^ ?(\d+)", r"^{\1}"),
  # Numbers: powers of ten, separators of thousands, mixed numbers, repeating decimals.
  (r"(?<=\d) ?[x*] ?(?=10 ?\^)", r" \\cdot "),
  (r"(?<=\d)\\[,!; ](?=\d{3}(?!\d))", ""),
  (r"(?<=\d)(?:\{,\}|,\\!) ?(?=\d{3})", ""),
  (r"(?<=\d) (?=\d{3}(?: \d{3})*$)", ""),
  (r"^(-?\d+) (\d+) ?/ ?(\d+)(?= |$)", r"\1\\frac{\2}{\3}"),
  (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?!\w|\.\d)", r"\1 \\cdot 10^{\2}"),
  (r"\.(\d{0,9}?)(\d{1,6}?)\2+ ?(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.|…)", r".\1\\overline{\2}"),
  (r"(?<=\.)(\d{0,9})\((\d{1,9})\)", r"\1\\overline{\2}"),
  # Open intervals as ]1,2[; what stands at both ends.
  (rf"^(?:[a-z] ?\\in ?)?{_INTERVAL}(?: ?\\cup ?{_INTERVAL})*$", _with_round_ends),
  (r"(?:\\\\|\\[,;:! ]|(?<!\\)[.,;…]|\\[lc]?dots| )+$", _without_ending),
  (r"^(?:\\[,;:! ]| )+", ""),
)
_COMPILED_RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in _RULES)


# Numbers in words.


def _number_in_words(phrase: str) -> str | None:
  """Returns a phrase that begins with a number in words with digits in its place, and what follows as \\text{...}.

  Returns None for any other phrase, and for one whose other words change the number. `two and a half` gives
  `2\\frac{1}{2}`, `three apples` gives `3\\text{ apples}`.
  """
  if phrase.startswith("-"):
    return None
  words = phrase.replace("-", " ").split()
  if len(words) > 1 and words[0] in ("negative", "minus"):
    return _negative_number(words[1:])
  if len(words) > 3 and words[-1] == "half" and words[-3:-1] in (["and", "a"], ["and", "one"]):
    return _number_and_a_half(words[:-3])
  if words[:2] == ["a", "half"]:
    used, value = 1, 1
  else:
    used, value = _count(words)
  if value is None:
    return None
  behind = " ".join(words[used:])
  denominators = _DENOMINATORS if value == 1 else _PLURAL_DENOMINATORS
  if behind in denominators:
    return f"\\frac{{{value}}}{{{denominators[behind]}}}"
  if not behind:
    return str(value)
  if not behind.isalpha() or _NO_UNIT.fullmatch(behind):
    return None
  return f"{value}\\text{{ {behind}}}"


def _negative_number(words: list[str]) -> str | None:
  """Returns minus the number that the words are, which may be written in digits if it stands alone; else None."""
  number = _number_in_words(" ".join(words)) or ""
  if not number and len(words) == 1:
    number = words[0]
  if number[:1].isdigit() or number.startswith("\\frac"):
    return f"-{number}"
  return None


def _number_and_a_half(words: list[str]) -> str | None:
  """Returns a mixed number with a half; its whole part is in words, or one word in digits. None for all else."""
  whole = _number_in_words(" ".join(words)) or words[0]
  is_digits_and_more = len(words) > 1 and words[0].isdigit()
  if not whole.isdigit() or is_digits_and_more:
    return None
  return f"{whole}\\frac{{1}}{{2}}"


def _count(words: list[str]) -> tuple[int, int | None]:
  """Returns how many words make up the number at the start, and the number; (0, None) if there is none."""
  if not words or words[0] not in _SMALL and words[0] not in _TENS:
    return 0, None
  total = 0  # of the thousands, millions, ... so far
  group = 0  # the number below a thousand that is being read
  for place, word in enumerate(words):
    if word in _SMALL:
      group += _SMALL[word]
    elif word in _TENS:
      group += _TENS[word]
    elif word == "hundred":
      group *= 100
    elif word in _POWERS:
      total += group * _POWERS[word]
      group = 0
    elif not _joins_numbers(words, place):
      return place, total + group
  return len(words), total + group


def _joins_numbers(words: list[str], place: int) -> bool:
  """Returns whether the word is an `and` with more of the number behind it."""
  if words[place] != "and" or place + 1 == len(words):
    return False
  return words[place + 1] in _SMALL or words[place + 1] in _TENS
