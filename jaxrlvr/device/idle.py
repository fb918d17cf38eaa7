"""Measures how much of the time the devices are idle, from the spans between a program's dispatch and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jax


class Busy:
  """Collects spans in which programs run on the devices of this process, or wait there for earlier programs.

  A context manager. Leaving it waits for all watched programs, because Python must not end while one of the threads
  that wait for them is inside the runtime. clock: returns the time in seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock, self._lock = clock, threading.Lock()
    self._spans, self._since = [], clock()
    self._threads: list[threading.Thread] = []

  def __enter__(self) -> Busy:
    return self

  def __exit__(self, *_) -> None:
    for thread in self._threads:
      thread.join()

  def add(self, begun: float, ended: float) -> None:
    """Adds a span that is over, from `begun` to `ended`, in seconds of `clock` (time.monotonic)."""
    with self._lock:
      self._spans.append([begun, ended])

  def watch(self, result: Any) -> None:
    """Adds a span from now until all arrays of `result`, a tree, are ready; returns at once.

    result: what a program that was just dispatched returned. It must not be donated to another program before it is
    ready. A program that fails ends its span; the error is left to whoever reads the result.
    """
    span = [self._clock(), None]
    with self._lock:
      self._spans.append(span)
    thread = threading.Thread(target=self._await, args=(span, result), daemon=True)
    self._threads = [earlier for earlier in self._threads if earlier.is_alive()] + [thread]
    thread.start()

  def _await(self, span: list, result) -> None:
    try:
      jax.block_until_ready(result)
    except Exception:
      pass  # whoever reads the result of a failed program gets the error
    finally:
      with self._lock:
        span[1] = self._clock()

  def idle(self) -> float:
    """Returns the share, 0 to 1, of the time since the last call that lies in no span; 0 where no time has passed.

    The first call counts from construction. Spans that are still open count as busy until now.
    """
    with self._lock:
      now, since = self._clock(), self._since
      spans = sorted((begun, now if ended is None else ended) for begun, ended in self._spans)
      busy, covered_until = 0.0, since
      for begun, ended in spans:
        busy += max(ended - max(begun, covered_until), 0.0)
        covered_until = max(covered_until, ended)
      self._spans = [span for span in self._spans if span[1] is None]
      self._since = now
      if now <= since:
        return 0.0
      return 1.0 - busy / (now - since)
