"""One flag that says a signal has asked the run to stop; loops poll it, a second signal ends the process at once."""

from __future__ import annotations

import os
import signal

EXIT_CODE = 128 + signal.SIGTERM
_asked: list[int] = []


class Interrupted(RuntimeError):
  """The run was asked to stop and has saved what it had (exit 143)."""


def install() -> None:
  """Takes over SIGTERM and SIGINT; call it before the slow imports."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _handle)


def _handle(number, frame) -> None:
  if _asked:
    os._exit(128 + number)
  _asked.append(number)


def asked() -> bool:
  return bool(_asked)
