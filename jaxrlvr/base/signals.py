"""A flag that a signal sets to ask the run to stop. Loops poll it; a second signal ends the process at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_SIGNALLED = 128  # a process that a signal ended has this exit code + the signal's number
EXIT_CODE = _SIGNALLED + signal.SIGTERM  # 143, whatever the signal was: stopped, and what is done is saved
PARENT = "JAXRLVR_PARENT"  # name of the environment variable with the id of the process whose end stops this one
_PR_SET_PDEATHSIG = 1  # of prctl(2): the signal to send when the parent ends
_STDERR = 2
_NOTICE = "jaxrlvr: stopping after this step, what is done is saved; Ctrl-C or SIGTERM again ends at once\n"
_asked: list[int] = []  # the flag: empty, or one entry, the number of the first signal
_quiet: list[bool] = []  # empty, or True where another process prints the notice


class Interrupted(RuntimeError):
  """Raised by a stage that was asked to stop, after it has saved what it had; the command line exits with 143."""


def install() -> None:
  """Makes this process handle SIGTERM and SIGINT: the first of them sets the flag and prints a notice on stderr.

  A second one ends the process at once, with exit code 128 + its number. Call it in the main thread, before the slow
  imports.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _handle)


def be_quiet() -> None:
  """Makes this process print no notice when a signal arrives, as another process of the run prints one."""
  _quiet.append(True)


def follow_parent() -> None:
  """Makes the end of the parent process, however it ends, set the flag of this process as a signal would.

  Does nothing unless the system is Linux and the environment variable JAXRLVR_PARENT holds the parent's id; a stage
  that starts processes of other stages sets it for them. The kernel reports the end by SIGUSR2, once or once for each
  thread of the parent; only the first one counts.
  """
  parent = os.environ.get(PARENT, "")
  if not parent.isdecimal() or not sys.platform.startswith("linux"):
    return
  signal.signal(signal.SIGUSR2, _orphaned)
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR2)
  if os.getppid() != int(parent):  # it ended before we asked
    _orphaned(signal.SIGUSR2, None)


def _orphaned(number, frame) -> None:
  """Handles SIGUSR2, the end of the parent: sets the flag, unless a signal has set it already."""
  if not _asked:
    _handle(number, frame)


def _handle(number, frame) -> None:
  """Handles a signal: sets the flag and prints the notice, or ends the process if the flag is set already."""
  if _asked:
    os._exit(_SIGNALLED + number)
  _asked.append(number)
  if _quiet:
    return
  line_end = "\n" if os.isatty(_STDERR) else ""  # a terminal shows ^C on the line
  with contextlib.suppress(OSError):  # nobody reads stderr any more
    os.write(_STDERR, (line_end + _NOTICE).encode())


def stop_requested() -> bool:
  """Returns whether the flag is set: a signal, or the end of the parent, has asked this process to stop."""
  return bool(_asked)


def raise_if_stop_requested(what: str = "this stage") -> None:
  """Raises Interrupted if this process was asked to stop. what: begins the message; what is stopping.

  It is for work that has nothing to save. In a run of several processes call it only within `multihost.gather`, which
  raises the error on all of them; a process that raised it alone would leave the others waiting.
  """
  if stop_requested():
    raise Interrupted(f"{what}: stopped by a signal; the same command goes on")
