"""Makes control characters visible: one escape for everything that is printed on a terminal or written into a page."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


def visible(text: str, kept: str = "\n\t") -> str:
  """Returns the text with every unprintable character, such as U+001B, replaced by a sign, such as ⟨U+001B⟩.

  Unprintable are characters that print nothing, move the cursor or change the writing direction, the carriage return
  among them, and halves of surrogate pairs. kept: characters that stay although they are unprintable.
  """
  return "".join(c if c.isprintable() or c in kept else f"⟨U+{ord(c):04X}⟩" for c in text)


# Libraries that log what the errors of this one say in a line: the command line and the Python door silence them.
NOISY = ("absl", "orbax", "asyncio")
_libraries_write = [True]  # one entry: whether `VisibleStream` prints writes of threads that Python did not start


def let_libraries_write(allowed: bool) -> None:
  """Sets whether every `VisibleStream` prints text from the threads of libraries written in C++ (at first it does).

  allowed: False drops that text. It is noise: after a save that failed, which the command line reports in one line,
  each such thread prints a traceback of its closed event loop. Threads that Python started always print.
  """
  _libraries_write[0] = allowed


_unended: list = []  # empty, or one entry: the terminal whose last line is progress without a line end


def draw_progress(terminal: TextIO, line: str, last: bool) -> None:
  """Draws a line of progress on a terminal, over the line of progress that was drawn there before.

  terminal: a stream that takes control characters (see `unwrapped`); it is not flushed. line: text without a line end.
  last: whether this line stays, with a line end. Otherwise the next call draws over it, and the next text that is
  written to any `VisibleStream` first clears it.
  """
  terminal.write(f"\r\x1b[K{line}")
  if last:
    terminal.write("\n")
    _unended.clear()
  else:
    _unended[:] = [terminal]


class VisibleStream:
  """A text stream that makes unprintable characters visible (see `visible`) and writes the text to the stream `below`.

  `below`: the text stream under it. Characters that its encoding lacks are written as escapes, such as \\xe9. All other
  attributes and methods, such as `flush` and `isatty`, are those of `below`.
  """

  def __init__(self, below: TextIO):
    self.below = below

  def __getattr__(self, name: str) -> Any:
    return getattr(self.below, name)

  def write(self, text: str) -> int:
    """Writes `visible(text)`, and first clears a line of progress that has no line end. Returns len(text).

    Text from a library's own thread is dropped after `let_libraries_write(False)`.
    """
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


def unwrapped(stream: TextIO) -> TextIO:
  """Returns the stream under a `VisibleStream`, which takes control characters; any other stream is returned itself."""
  return stream.below if isinstance(stream, VisibleStream) else stream


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
  """Replaces sys.stdout and sys.stderr by a `VisibleStream` each for the `with` block, and restores them at its end.

  So prints, warnings and tracebacks show unprintable characters as signs. Such blocks may be nested.
  """
  output, errors = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = VisibleStream(unwrapped(output)), VisibleStream(unwrapped(errors))
  try:
    yield
  finally:
    sys.stdout, sys.stderr = output, errors
