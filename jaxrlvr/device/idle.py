"""How much of the time the devices have work: spans from a program's dispatch to its end, seen from the host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jax


class Busy:
  """Union of the spans in which programs that were watched were at work, or waited for earlier ones.

  A context manager: on leaving it waits for the threads that still wait for a program, for Python may not end while
  one of them is inside of the runtime.
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
    """A span that is over, by the clock."""
    with self._lock:
      self._spans.append([begun, ended])

  def watch(self, result: Any) -> None:
    """A span from now until `result`, of a program just dispatched, is there; not to be donated before."""
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
      pass  # a program that failed is told where its result is read
    finally:
      with self._lock:
        span[1] = self._clock()

  def idle(self) -> float:
    """Share of the time since the last call, or since this was made, that lies in no span."""
    with self._lock:
      now, since = self._clock(), self._since
      worked, end = 0.0, since
      for begun, ended in sorted((begun, now if ended is None else ended) for begun, ended in self._spans):
        worked += max(ended - max(begun, end), 0.0)
        end = max(end, ended)
      self._spans, self._since = [span for span in self._spans if span[1] is None], now
      return 1.0 - worked / (now - since) if now > since else 0.0
