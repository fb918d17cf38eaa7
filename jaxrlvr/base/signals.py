"""One flag that says a signal has asked the run to stop; loops poll it, a second signal ends the process at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

EXIT_CODE = 128 + signal.SIGTERM
PARENT = "JAXRLVR_PARENT"  # environment variable: the process whose end stops this one too
_PDEATHSIG = 1  # of prctl(2)
_TOLD = "jaxrlvr: stopping after this step, what is done is saved; Ctrl-C or SIGTERM again ends at once\n"
_asked: list[int] = []
_quiet: list[bool] = []


class Interrupted(RuntimeError):
  """The run was asked to stop and has saved what it had (exit 143)."""


def install() -> None:
  """Takes over SIGTERM and SIGINT; call it before the slow imports."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _handle)


def be_quiet() -> None:
  """Leaves it to another process to say that the run is stopping."""
  _quiet.append(True)


def follow_parent() -> None:
  """On Linux, stops this process when the one that JAXRLVR_PARENT names, our parent, ends, however it ends.

  By a signal of its own, and a second one changes nothing: the kernel may send it for each thread of the parent."""
  parent = os.environ.get(PARENT, "")
  if not parent.isdecimal() or not sys.platform.startswith("linux"):
    return
  signal.signal(signal.SIGUSR2, _orphaned)
  ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGUSR2)
  if os.getppid() != int(parent):  # it ended before we asked
    _orphaned(signal.SIGUSR2, None)


def _orphaned(number, frame) -> None:
  if not _asked:
    _handle(number, frame)


def _handle(number, frame) -> None:
  if _asked:
    os._exit(128 + number)
  _asked.append(number)
  if not _quiet:
    try:
      os.write(2, (("\n" if os.isatty(2) else "") + _TOLD).encode())
    except OSError:  # nobody listens any more
      pass


def stop_requested() -> bool:
  return bool(_asked)


def raise_if_stop_requested(what: str = "this stage") -> None:
  """Raises Interrupted where a signal has asked this process to stop: for work that has nothing to save.

  Of several processes only within `multihost.gather`, which raises it on all."""
  if stop_requested():
    raise Interrupted(f"{what}: stopped by a signal; the same command goes on")
