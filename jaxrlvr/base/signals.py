"""A flag that a signal sets to ask the run to stop. Loops poll it; a second signal ends the process at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

EXIT_CODE = 128 + signal.SIGTERM
PARENT = "JAXRLVR_PARENT"  # environment variable with the id of the process whose end stops this process too
_PDEATHSIG = 1  # of prctl(2)
_NOTICE = "jaxrlvr: stopping after this step, what is done is saved; Ctrl-C or SIGTERM again ends at once\n"
_asked: list[int] = []  # the first signal that was received
_quiet: list[bool] = []  # filled where another process prints the notice


class Interrupted(RuntimeError):
  """The run was asked to stop and has saved what it had (exit 143)."""


def install() -> None:
  """Handles SIGTERM and SIGINT from now on: the first sets the flag, the second ends the process. Call it before the
  slow imports."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _handle)


def be_quiet() -> None:
  """Makes this process print nothing when a signal arrives: another process of the run says that it is stopping."""
  _quiet.append(True)


def follow_parent() -> None:
  """Sets the flag of this process when its parent ends, however it ends. Does nothing on systems other than Linux.

  It does so only if JAXRLVR_PARENT holds the parent's id. The kernel sends SIGUSR2 for it, perhaps once for each thread
  of the parent, so that further ones change nothing.
  """
  parent = os.environ.get(PARENT, "")
  if not parent.isdecimal() or not sys.platform.startswith("linux"):
    return
  signal.signal(signal.SIGUSR2, _orphaned)
  ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGUSR2)
  if os.getppid() != int(parent):  # it ended before we asked
    _orphaned(signal.SIGUSR2, None)


def _orphaned(number, frame) -> None:
  """Handles SIGUSR2: sets the flag, unless a signal has set it already."""
  if not _asked:
    _handle(number, frame)


def _handle(number, frame) -> None:
  """Handles a signal: sets the flag and prints the notice, or ends the process if the flag is set already."""
  if _asked:
    os._exit(128 + number)
  _asked.append(number)
  if not _quiet:
    try:
      os.write(2, (("\n" if os.isatty(2) else "") + _NOTICE).encode())
    except OSError:  # nobody listens any more
      pass


def stop_requested() -> bool:
  """Returns whether a signal has asked this process to stop."""
  return bool(_asked)


def raise_if_stop_requested(what: str = "this stage") -> None:
  """Raises Interrupted, whose message begins with `what`, where a signal has asked this process to stop.

  It is for work that has nothing to save. In a run of several processes call it only within `multihost.gather`, which
  raises the error on all of them.
  """
  if stop_requested():
    raise Interrupted(f"{what}: stopped by a signal; the same command goes on")
