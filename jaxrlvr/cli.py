"""The command line: `jaxrlvr STAGE --config=FILE[:ARG] --workdir=DIR [--config.key=value ...]`."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from jaxrlvr.base import disk, escape, signals
from jaxrlvr.base.errors import InputError, StorageError, TrainingStopped
from jaxrlvr.config import manual
from jaxrlvr.device import cpu_malloc

HELP = {stage: page.does for stage, page in manual.STAGE_PAGES.items()}
_MEMORY_CURES = {  # what to change where a stage runs out of memory
  "pretrain": "raise config.pretrain.microbatches, or take config.model.remat=full",
  "cpt": "raise config.cpt.microbatches, or take config.model.remat=full",
  "sft": "raise config.sft.microbatches, or take config.model.remat=full",
  "rl": "raise config.rl.sample_parts (sampling) or config.rl.microbatches (training), or lower "
  "config.evaluate.problems_per_batch (evaluation)",
  **dict.fromkeys(("evaluate", "filter", "corrupt", "diagnose"), "lower config.evaluate.problems_per_batch"),
}
_MEMORY_CURE_OF_OTHERS = "take a machine with more, or more devices (config.mesh.fsdp)"  # the cure in all other stages
_FORMER_STAGES = {"study": "grid"}  # present name of each stage that was renamed; no help lists the former ones
_DEFAULT_CONFIG = "base"
_FLAGS = ("--config", "--workdir", "--resume", "--distributed", "--debug")
_BUG = 1
CODES = {InputError: 2, TrainingStopped: 3, StorageError: 4, signals.Interrupted: signals.EXIT_CODE}
_EXITS = """exit codes:
  0    done
  1    a bug of jaxrlvr, with its traceback
  2    bad config or input
  3    training stopped itself
  4    storage: a full disk, missing or damaged checkpoints
  5    another process of a --distributed run is gone; start all of them again
  143  stopped by a signal; what was done is saved, and the same command continues"""
_NOTES = """`jaxrlvr STAGE --help` says what a stage reads and writes, gives an example, and explains its keys.
--config.KEY=VALUE changes a key of the config, as --config.rl.steps=100; configs/base.py declares all keys.
First steps: `bash launch/demo.sh` in a checkout, or `jaxrlvr chain --config=demo --workdir=runs/demo`."""


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all flags except --config.KEY, with the text of `jaxrlvr --help`."""
  stages = [f"  {name:<10} {text}" for name, text in HELP.items()]
  parser = argparse.ArgumentParser(
    "jaxrlvr",
    usage="jaxrlvr STAGE --workdir=DIR [--config=FILE[:ARG]] [--config.KEY=VALUE ...] [flags]",
    description="Reinforcement learning with verifiable rewards under weak supervision, in JAX.",
    epilog="\n\n".join(("\n".join(("stages:", *stages)), _NOTES, _EXITS)),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"jaxrlvr {importlib.metadata.version('jaxrlvr')}")
  parser.add_argument("stage", type=_stage, metavar="STAGE", help="what to do; listed below")
  parser.add_argument(
    "--config",
    metavar="FILE[:ARG]",
    help="config file, or a name in configs/ (default: base, that is configs/base.py); FILE:ARG gives it an argument",
  )
  parser.add_argument(
    "--workdir", metavar="DIR", help="directory of this run; it is made if absent, and continued if it holds a run"
  )
  parser.add_argument("--resume", choices=("auto", "required", "never", "check"), help="short for --config.resume")
  parser.add_argument(
    "--distributed", action="store_true", help="this is one of several processes, each started with the same command"
  )
  parser.add_argument("--debug", action="store_true", help="show tracebacks, and the logs of libraries")
  return parser


def _stage(word: str) -> str:
  """Returns the stage that a word of the command line names, under its present name; says on stderr if that is new.

  Raises ArgumentTypeError, which lists the stages, for any other word.
  """
  if word in HELP:
    return word
  if word in _FORMER_STAGES:
    present = _FORMER_STAGES[word]
    print(f"jaxrlvr: the stage {word} is called {present} now, and does the same", file=sys.stderr)
    return present
  similar = difflib.get_close_matches(word, HELP, 1)
  hint = f"did you mean {similar[0]}? " if similar else ""
  raise argparse.ArgumentTypeError(f"there is no stage {word!r}; {hint}The stages are {', '.join(HELP)}")


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """Reads a command line, the words after `jaxrlvr`, and returns (flags, overrides).

  flags has the attributes stage, config ("base" if there is none), workdir, resume (None if there is none), distributed
  and debug. overrides is {dotted key: text} of all --config.KEY=VALUE, with "resume" from --resume, and "report.runs"
  from the runs that the stage report is given.
  Ends the process, by SystemExit, with 0 after a help page or the version, and with 2 after an error on stderr.
  """
  parser = _parser()
  present_words = [_FORMER_STAGES.get(word, word) for word in argv]
  stages = [word for word in present_words if word in HELP]
  if stages and {"-h", "--help"} & set(argv):
    print(manual.page(stages[0]), end="")
    raise SystemExit(0)
  flags, unparsed = parser.parse_known_args(argv)
  overrides = {"resume": flags.resume} if flags.resume else {}
  overrides |= _overrides(parser, flags.stage, unparsed)
  if flags.workdir is None:
    parser.error(
      f"no --workdir; say where the run shall be written, as --workdir=runs/{flags.stage}; `jaxrlvr {flags.stage} "
      "--help` gives an example and explains the keys"
    )
  if flags.config is None:
    flags.config = _DEFAULT_CONFIG
    if not overrides:
      print(
        f"jaxrlvr: no --config and no --config.KEY=VALUE, so this is the built-in default, configs/base.py; `jaxrlvr "
        f"{flags.stage} --help` explains its keys",
        file=sys.stderr,
      )
  return flags, overrides


def _overrides(parser: argparse.ArgumentParser, stage: str, words: Sequence[str]) -> dict[str, str]:
  """Returns the text of each config key that the words `--config.KEY=VALUE` or `--config.KEY VALUE` override.

  For the stage report, words without a dash are its runs, which override report.runs. Ends the process with 2, and a
  hint, on any other word.
  """
  overrides: dict[str, str] = {}
  runs = []
  remaining = list(words)
  while remaining:
    word = remaining.pop(0)
    name, equals, value = word.partition("=")
    if stage == "report" and not word.startswith("-"):
      runs.append(word)
      continue
    if not name.startswith("--config."):
      parser.error(f"unknown argument {word!r}{_hint(word, stage)}; flags are {', '.join(_FLAGS)}, --config.KEY=VALUE")
    if not equals:
      if not remaining:
        parser.error(f"{word}: no value; write {word}=VALUE")
      value = remaining.pop(0)
    overrides[name.removeprefix("--config.")] = value
  if runs:
    overrides["report.runs"] = repr(tuple(runs))
  return overrides


def _hint(word: str, stage: str) -> str:
  """Returns the end of an error message about an unknown argument: the flag or the config key that may be meant.

  A key of this stage is named before keys of other stages. Of a setting of another library without a counterpart it
  says what is done instead.
  """
  from jaxrlvr.config import hints
  from jaxrlvr.config.rules import declared

  name, equals, value = word.partition("=")
  name = name.lstrip("-")
  if not name:
    return ""
  similar_flags = difflib.get_close_matches(f"--{name}", _FLAGS, 1, 0.8)
  if similar_flags:
    return f"; did you mean {similar_flags[0]}{equals}{value}?"
  key = name
  first_part, _, other_parts = name.partition(".")
  if other_parts and difflib.get_close_matches(first_part.lower(), ["config"], 1, 0.7):
    key = other_parts
  names = list(declared())
  keys_of_stage = [candidate for candidate in manual.keys_of(stage) if candidate.endswith(f".{key}")]
  candidates = [candidate for candidate in (key, f"{stage}.{key}", *keys_of_stage) if candidate in names]
  if not candidates:
    reason = hints.why_absent(key)
    if reason:
      return f"; {reason} (docs/names.md)"
    candidates = hints.likely_keys(names, key if "." in key else f"{stage}.{key}")
  return f"; did you mean --config.{candidates[0]}{equals}{value}?" if candidates else ""


def _execute(flags: argparse.Namespace, overrides: dict[str, str]) -> dict:
  """Loads the config, runs the stage, and returns its summary, the table that summary.json holds.

  jax and the stages are imported only here, when signals are handled already. All processes of a --distributed run call
  it. Raises InputError for a wrong config, and whatever the stage raises.
  """
  from jaxrlvr.config import files, links

  config = files.load(flags.config, overrides, flags.stage)
  if flags.stage in ("chain", "grid"):
    links.check_overrides(config, overrides)
  if flags.distributed:
    from jaxrlvr.device import multihost

    multihost.initialise(config.hosts.deadline_seconds, config.hosts.silence_seconds)
  from jaxrlvr.stages import STAGES

  if not flags.distributed:
    signals.raise_if_stop_requested()  # during imports, which take seconds
  return STAGES[flags.stage](config, flags.workdir)


def run(argv: Sequence[str] | None = None) -> None:
  """Runs a command line and ends with its exit code; the console script `jaxrlvr` calls it.

  argv: the words after `jaxrlvr`. With a list it always raises: SystemExit with the code, or, if the error is a bug of
  jaxrlvr, that error. None takes the words of this process and ends the process, without waiting for threads that
  libraries left.
  Exit codes: 0 done, 1 a bug, 2 bad config or input, 3 training stopped itself, 4 storage, 5 another process of a
  --distributed run is gone, 143 stopped by a signal.
  """
  signals.install()
  signals.follow_parent()
  cpu_malloc.keep_freed_memory()
  with escape.visible_output():
    if argv is not None:
      raise SystemExit(_command(argv))
    try:
      code = _command(sys.argv[1:])
    except SystemExit as end:  # argparse raises it
      code = end.code if isinstance(end.code, int) else 0
    except BaseException:
      traceback.print_exc()
      code = _BUG
    _end_process(code)


def _end_process(code: int) -> None:
  """Ends the process with this code, or with the code of StorageError if its output can't be flushed.

  It skips Python's own clean-up, which would wait for threads of libraries that compile, write or wait; some of them
  abort when they return to an interpreter that is gone.
  """
  logging.shutdown()
  if (object_store := sys.modules.get("jaxrlvr.base.object_store")) is not None:
    object_store.forget()
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):  # the reader of a pipe is gone, or a disk is full
      code = code or CODES[StorageError]
  os._exit(code)


def _command(words: Sequence[str]) -> int:
  """Sets up logging, runs a command line, and returns its exit code."""
  flags, overrides = parse_arguments(words)
  logging.basicConfig(level=logging.DEBUG if flags.debug else logging.WARNING, format="%(levelname)s %(message)s")
  for noisy in escape.NOISY:
    logging.getLogger(noisy).setLevel(logging.DEBUG if flags.debug else logging.CRITICAL)
  escape.let_libraries_write(flags.debug)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ["MPLBACKEND"] = "agg"  # a notebook passes on its own backend, which may not be installed here
  code, message = _run_stage(flags, overrides)
  if flags.distributed:
    from jaxrlvr.device import multihost

    multihost.leave(code, message)
  return code


def _run_stage(flags: argparse.Namespace, overrides: dict[str, str]) -> tuple[int, str]:
  """Runs a stage and returns (exit code, error message); the message is "" if the code is 0.

  Prints on stdout where the result is, or the error on stderr. An error that only a bug can cause is raised again, but
  not in a --distributed run, whose processes end together.
  """
  try:
    summary = _execute(flags, overrides)
  except Exception as error:
    code, message = _explain(error, flags)
    if flags.distributed and code in (_BUG, CODES[StorageError]):
      from jaxrlvr.device import multihost

      multihost.give_watch_time()
    if flags.debug or code == _BUG:
      if not flags.distributed and code == _BUG:
        raise  # with its traceback
      traceback.print_exc()
    print(f"jaxrlvr: {message}", file=sys.stderr)
    return code, message
  print(f"report: {summary['report']}" if "report" in summary else f"done: {flags.workdir}")
  return 0, ""


def _explain(error: Exception, flags: argparse.Namespace) -> tuple[int, str]:
  """Returns (exit code, message) for an error of a stage. Where the disk or the memory is full the message says so, and
  names the cure."""
  message = str(error)
  if isinstance(error, OSError) and not isinstance(error, StorageError):
    if disk.is_full(error):
      message = disk.describe(error, error.filename2 or error.filename or flags.workdir)
    return CODES[StorageError], message
  for kind, code in CODES.items():
    if isinstance(error, kind):
      return code, message
  if disk.is_full(error):
    return CODES[StorageError], f"{flags.workdir}: the disk is full ({_first_line(message)}); free space there"
  if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in message):
    cure = _MEMORY_CURES.get(flags.stage, _MEMORY_CURE_OF_OTHERS)
    return CODES[TrainingStopped], f"out of memory ({_first_line(message) or 'MemoryError'}); {cure}"
  return _BUG, message


def _first_line(text: str) -> str:
  """Returns the first line of a text that is not empty."""
  return text.strip().split("\n")[0]


if __name__ == "__main__":
  run()
