"""Splits lists that are written as one text."""

from __future__ import annotations


def split_at_commas(text: str) -> list[str]:
  """Returns the words between commas, without white space around them and without empty ones.

  Commas in brackets, as in `name[a,b]`, are part of a word. Where brackets [ and ] don't match, they count as letters.
  """
  words = [""]
  depth = 0
  for letter in text:
    depth += (letter == "[") - (letter == "]")
    if depth < 0:
      break
    if letter == "," and depth == 0:
      words.append("")
    else:
      words[-1] += letter
  if depth != 0:
    words = text.split(",")
  return [word.strip() for word in words if word.strip()]
