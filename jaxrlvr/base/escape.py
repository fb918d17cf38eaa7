"""Control characters as visible signs: one escape for all that is told on a terminal or written into a page."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TextIO


def visible(text: str, kept: str = "\n\t") -> str:
  """Returns the text with a sign for every character that prints nothing, moves the cursor or turns the writing
  direction, but for those of `kept`."""
  return "".join(c if c.isprintable() or c in kept else f"⟨U+{ord(c):04X}⟩" for c in text)


_libraries_write = [True]


def let_libraries_write(allowed: bool) -> None:
  """Says whether `VisibleStream` takes what threads write that Python did not start.

  These are a library's own: after a save that failed, which is told in one line, each write that was still under way
  prints a traceback of its closed event loop."""
  _libraries_write[0] = allowed


_unended: list = []  # the terminal that shows a line of progress which no line end has followed yet


def draw_progress(terminal: TextIO, line: str, last: bool) -> None:
  """Draws a line over the one before; unless it is the last, what a `VisibleStream` takes next stands in its place."""
  terminal.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
  _unended[:] = [] if last else [terminal]


class VisibleStream:
  """A text stream that escapes what is written to it, by `visible` and for the encoding of the stream below."""

  def __init__(self, below):
    self.below = below

  def __getattr__(self, name: str):
    return getattr(self.below, name)

  def write(self, text: str) -> int:
    if not _libraries_write[0] and isinstance(threading.current_thread(), threading._DummyThread):
      return len(text)
    if _unended:
      terminal = _unended.pop()
      terminal.write("\r\x1b[K")
      terminal.flush()
    encoding = getattr(self.below, "encoding", None) or "utf-8"
    self.below.write(visible(text).encode(encoding, "backslashreplace").decode(encoding))
    return len(text)

  def writelines(self, lines: Iterable[str]) -> None:
    for line in lines:
      self.write(line)


def below(stream: TextIO) -> TextIO:
  """Returns the stream that takes control characters, for what moves the cursor on purpose."""
  return stream.below if isinstance(stream, VisibleStream) else stream


@contextlib.contextmanager
def streams() -> Iterator[None]:
  """Escapes all that is written to sys.stdout and sys.stderr meanwhile: prints, warnings, errors, tracebacks."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = (VisibleStream(below(stream)) for stream in before)
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before
