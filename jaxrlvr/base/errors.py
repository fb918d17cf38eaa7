"""Errors with a message for the user, each of which ends the command line with an exit code of its own."""

from __future__ import annotations


class InputError(ValueError):
  """Raised for a config or an input that can't be used; the command line ends with exit code 2.

  The message names the input, its value, what is expected, and the cure.
  """


class StorageError(RuntimeError):
  """Raised for a file that can't be written, and for files of a run that are missing or damaged (exit code 4)."""


class TrainingStopped(RuntimeError):
  """Raised by a stage that stops itself, as going on would teach or measure nothing; exit code 3.

  Causes: loss or gradient was not finite `config.stop_after_bad_updates` times in a row, too many answers could not be
  graded, too many labels of a judge are missing, or a link of a grid failed. What is done stays on disk, and the same
  command goes on. The message names the cause and, where there is one, the config key of the limit.
  """
