"""What ends a run with an exit code of its own, and a message for its user."""

from __future__ import annotations


class InputError(ValueError):
  """A config or input that can't be used (exit 2): the message names it, what was found, what was wanted, the cure."""


class StorageError(RuntimeError):
  """What was to be written or read back is not there or not whole (exit 4)."""


class TrainingStopped(RuntimeError):
  """A run stopped itself: non-finite updates, or too many answers that nobody could grade (exit 3)."""
