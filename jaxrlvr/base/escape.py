"""Makes control characters visible: one escape for everything that is printed on a terminal or written into a page."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TextIO


def visible(text: str, kept: str = "\n\t") -> str:
  """Returns the text with every unprintable character, such as U+001B, replaced by a sign, such as ⟨U+001B⟩.

  Unprintable are characters that print nothing, move the cursor or change the writing direction. Those in `kept` stay.
  """
  return "".join(c if c.isprintable() or c in kept else f"⟨U+{ord(c):04X}⟩" for c in text)


_libraries_write = [True]  # one entry: whether `VisibleStream` takes writes of threads that Python did not start


def let_libraries_write(allowed: bool) -> None:
  """Sets whether `VisibleStream` prints, or drops, what threads write that Python did not start.

  Such threads belong to libraries. After a failed save, for which one line is printed, each write that was still under
  way prints a traceback of its closed event loop.
  """
  _libraries_write[0] = allowed


_unended: list = []  # empty, or one entry: the terminal whose last line is progress without a line end


def draw_progress(terminal: TextIO, line: str, last: bool) -> None:
  """Draws a line of progress over the line before it.

  last: whether the line is ended, and stays. Otherwise the next write to a `VisibleStream` replaces it.
  """
  terminal.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
  _unended[:] = [] if last else [terminal]


class VisibleStream:
  """A text stream that makes what is written to it visible, and passes it on to the stream `below` in its encoding."""

  def __init__(self, below):
    self.below = below

  def __getattr__(self, name: str):
    return getattr(self.below, name)

  def write(self, text: str) -> int:
    """Writes `visible(text)`, over an unended line of progress if there is one; returns the length of `text`."""
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
    """Writes each of the lines as `write` does."""
    for line in lines:
      self.write(line)


def below(stream: TextIO) -> TextIO:
  """Returns the stream under a `VisibleStream`, which takes control characters; any other stream is returned itself."""
  return stream.below if isinstance(stream, VisibleStream) else stream


@contextlib.contextmanager
def streams() -> Iterator[None]:
  """Makes everything visible that the block writes to sys.stdout and sys.stderr: prints, warnings, tracebacks."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = (VisibleStream(below(stream)) for stream in before)
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before
