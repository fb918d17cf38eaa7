"""Which held-out problems were trained on: prompts are compared by their normalised text, and a run keeps digests."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem

FILE = "trained_prompts.json"  # in a run directory: digests of all prompts that its weights were trained on
_MARKS = re.compile(r"\$|\\[()\[\]]")  # where mathematics begins and ends
_AROUND_SIGNS = re.compile(r"[^\S\n]*([^\w\s])[^\S\n]*")
_WORD = re.compile(r"[^\W\d_]{2}")
# Characters whose compatibility form says something else: powers and indices, a fraction behind a number.
_RAISED, _LOWERED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+"), re.compile("[\u2080-\u209c]+")
_MIXED = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_SIGNS = str.maketrans("‐‑‒–—−⁄×“”‘’", "------/*\"\"''", _INVISIBLE)


def normalised(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the text of all turns but system messages, without what leaves a problem the same.

  That is: case, other forms of characters, white space beside signs and its amount elsewhere, where lines of words are
  broken (rows of numbers stay rows), the marks around mathematics, and punctuation at the end but for `!`.
  """
  text = "\n".join(turn["content"] for turn in messages if turn["role"] != "system")
  text = _MIXED.sub(" ", _LOWERED.sub(r"_\g<0>", _RAISED.sub(r"^\g<0>", text)))
  text = _MARKS.sub(" ", unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold())
  lines = list(filter(None, (" ".join(line.split()) for line in text.splitlines())))
  joined = "".join(lines[:1])
  for before, line in zip(lines, lines[1:], strict=False):
    are_rows = not _WORD.search(before) and not _WORD.search(line)
    joined += ("\n" if are_rows else " ") + line
  joined = _AROUND_SIGNS.sub(r"\1", joined)
  return joined.rstrip(".?:;。 ") or joined


def prompt_digest(problem: Problem) -> str:
  """Returns what stands for the problem's prompt when prompts are compared."""
  return hashlib.blake2b(normalised(problem.messages).encode(), digest_size=8).hexdigest()


def prompt_digests(problems: Iterable[Problem]) -> frozenset[str]:
  return frozenset(map(prompt_digest, problems))


def common(problems: Sequence[Problem], trained: Collection[str]) -> list[Problem]:
  """Returns the problems whose prompts are among `trained`, digests of prompts."""
  return [problem for problem in problems if prompt_digest(problem) in trained]


def to_text(trained: Collection[str]) -> str:
  """Returns the content of a run's FILE."""
  return json.dumps({"prompts": sorted(trained)})


def from_text(text: str, place: str) -> frozenset[str]:
  """Returns the digests that `to_text` wrote; `place` is named where they can't be read."""
  try:
    found = json.loads(text)["prompts"]
    if not all(isinstance(one, str) for one in found):
      raise TypeError("digests are text")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(
      f"{place}: holds no digests of prompts ({type(error).__name__}: {error}); remove it, and held-out problems are "
      "not compared with what that run was trained on"
    ) from None
  return frozenset(found)
