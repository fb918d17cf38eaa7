"""Errors with a message for the user, each of which ends the command line with an exit code of its own."""

from __future__ import annotations


class InputError(ValueError):
  """A config or input can't be used (exit 2). The message names it, its value, what is expected, and the cure."""


class StorageError(RuntimeError):
  """A file can't be written, or what was written before is missing or damaged (exit 4)."""


class TrainingStopped(RuntimeError):
  """A run stopped itself (exit 3): updates were not finite, or too many answers or labels are missing."""
