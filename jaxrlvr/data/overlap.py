"""Finds held-out problems that were trained on: compares digests of their normalised prompts, which a run keeps."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from jaxrlvr.base.errors import InputError
from jaxrlvr.base.types import Problem

FILE = "trained_prompts.json"  # in a run directory: digests of all prompts that its weights were trained on
_MARKS = re.compile(r"\$|\\[()\[\]]")  # marks around mathematics
_AROUND_SIGNS = re.compile(r"[^\S\n]*([^\w\s])[^\S\n]*")
_WORD = re.compile(r"[^\W\d_]{2}")
# Characters whose compatibility form has another meaning: powers, indices, and a fraction behind a number.
_RAISED, _LOWERED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207f]+"), re.compile("[\u2080-\u209c]+")
_MIXED = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_SIGNS = str.maketrans("‐‑‒–—−⁄×“”‘’", "------/*\"\"''", _INVISIBLE)


def normalised(messages: Sequence[Mapping[str, str]]) -> str:
  """Returns the text of a prompt, without system messages, in a form that is the same for two spellings of a problem.

  messages: chat messages, each with `role` and `content`. The form has no capitals, no compatibility characters (½
  becomes 1/2), no space around signs or at the ends, one space for other white space, no marks around mathematics
  ($, \\(, \\[) and none of . ? : ; at the end, unless the text has nothing else. Line breaks become spaces, except
  between two lines without a word (two letters), such as rows of numbers. "" where there is no text.
  """
  text = "\n".join(turn["content"] for turn in messages if turn["role"] != "system")
  text = _RAISED.sub(r"^\g<0>", text)
  text = _LOWERED.sub(r"_\g<0>", text)
  text = _MIXED.sub(" ", text)
  text = unicodedata.normalize("NFKC", text).translate(_SIGNS).casefold()
  text = _MARKS.sub(" ", text)
  single_spaced = (" ".join(line.split()) for line in text.splitlines())
  lines = [line for line in single_spaced if line]
  joined = "".join(lines[:1])
  for before, line in zip(lines, lines[1:], strict=False):
    are_rows = not _WORD.search(before) and not _WORD.search(line)
    joined += ("\n" if are_rows else " ") + line
  joined = _AROUND_SIGNS.sub(r"\1", joined)
  return joined.rstrip(".?:;。 ") or joined


def prompt_digest(problem: Problem) -> str:
  """Returns the digest of a problem's `normalised` prompt: 16 hexadecimal digits, equal for equal prompts."""
  return hashlib.blake2b(normalised(problem.messages).encode(), digest_size=8).hexdigest()


def prompt_digests(problems: Iterable[Problem]) -> frozenset[str]:
  """Returns the set of the digests (see `prompt_digest`) of all prompts."""
  return frozenset(map(prompt_digest, problems))


def common(problems: Sequence[Problem], trained_digests: Collection[str]) -> list[Problem]:
  """Returns, in their order, the problems whose prompt has one of the digests of the prompts that were trained on."""
  return [problem for problem in problems if prompt_digest(problem) in trained_digests]


def to_text(digests: Collection[str]) -> str:
  """Returns digests of prompts as JSON text, {"prompts": [digest, ...]}, for the file trained_prompts.json of a run."""
  return json.dumps({"prompts": sorted(digests)})


def from_text(text: str, place: str) -> frozenset[str]:
  """Returns the digests of prompts in a text that `to_text` wrote.

  place: the path of the file, for messages. Raises InputError for any other text.
  """
  try:
    digests = json.loads(text)["prompts"]
    if not all(isinstance(digest, str) for digest in digests):
      raise TypeError("digests are text")
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise InputError(
      f"{place}: holds no digests of prompts ({type(error).__name__}: {error}); remove it, and held-out problems are "
      "not compared with what that run was trained on"
    ) from None
  return frozenset(digests)
