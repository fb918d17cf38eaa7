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
MEMORY_CURES = {  # what to change where a stage runs out of it
  **{
    stage: f"raise config.{stage}.microbatches, or take config.model.remat=full" for stage in ("pretrain", "cpt", "sft")
  },
  "rl": "raise config.rl.sample_parts (sampling) or config.rl.microbatches (training), or lower "
  "config.evaluate.problems_per_batch (evaluation)",
  **dict.fromkeys(("evaluate", "filter", "corrupt", "diagnose"), "lower config.evaluate.problems_per_batch"),
}
FORMER_STAGES = {"study": "grid"}  # names that stages had: what they are called now
FLAGS = ("--config", "--workdir", "--resume", "--distributed", "--debug")
MEMORY_OF_OTHERS = "take a machine with more, or more devices (config.mesh.fsdp)"
BUG = 1
CODES = {InputError: 2, TrainingStopped: 3, StorageError: 4, signals.Interrupted: signals.EXIT_CODE}
EXITS = """exit codes:
  0    done
  1    a bug of jaxrlvr, with its traceback
  2    bad config or input
  3    training stopped itself
  4    storage: a full disk, missing or damaged checkpoints
  5    another process of a --distributed run is gone; start all of them again
  143  stopped by a signal; what was done is saved, and the same command continues"""
NOTES = """`jaxrlvr STAGE --help` says what a stage reads and writes, gives an example, and explains its keys.
--config.KEY=VALUE changes a key of the config, as --config.rl.steps=100; configs/base.py declares all keys.
First steps: `bash launch/demo.sh` in a checkout, or `jaxrlvr chain --config=demo --workdir=runs/demo`."""


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all flags but those of config keys, with the general help."""
  stages = [f"  {name:<10} {text}" for name, text in HELP.items()]
  parser = argparse.ArgumentParser(
    "jaxrlvr",
    description="Reinforcement learning with verifiable rewards under weak supervision, in JAX.",
    epilog="\n\n".join(("\n".join(("stages:", *stages)), NOTES, EXITS)),
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"jaxrlvr {importlib.metadata.version('jaxrlvr')}")
  parser.add_argument("stage", choices=[*HELP, *FORMER_STAGES], metavar="STAGE", help="what to do; listed below")
  parser.add_argument(
    "--config",
    default="base",
    help="config file, or a name in configs/ (default: base, that is configs/base.py); FILE:ARG gives it an argument",
  )
  parser.add_argument(
    "--workdir", required=True, help="directory of this run; it is made if absent, and continued if it holds a run"
  )
  parser.add_argument("--resume", choices=("auto", "required", "never", "check"), help="short for --config.resume")
  parser.add_argument(
    "--distributed", action="store_true", help="this is one of several processes, each started with the same command"
  )
  parser.add_argument("--debug", action="store_true", help="show tracebacks, and the logs of libraries")
  return parser


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """Returns the flags, and the text of each config key that is overridden; argparse exits with 2 on a bad flag."""
  parser = _parser()
  words = [FORMER_STAGES.get(word, word) for word in argv]
  named = next((word for word in words if word in manual.STAGE_PAGES), None)
  if named and {"-h", "--help"} & set(argv):
    print(manual.page(named), end="")
    raise SystemExit(0)
  flags, rest = parser.parse_known_args(argv)
  if flags.stage in FORMER_STAGES:
    current = FORMER_STAGES[flags.stage]
    print(f"jaxrlvr: the stage {flags.stage} is called {current} now, and does the same", file=sys.stderr)
    flags.stage = current
  overrides = {"resume": flags.resume} if flags.resume else {}
  rest, runs = list(rest), []
  while rest:
    word = rest.pop(0)
    name, equals, value = word.partition("=")
    if flags.stage == "report" and not word.startswith("-"):
      runs.append(word)
      continue
    if not name.startswith("--config."):
      parser.error(
        f"unknown argument {word!r}{_meant(word, flags.stage)}; flags are {', '.join(FLAGS)}, --config.KEY=VALUE"
      )
    if not equals:
      if not rest:
        parser.error(f"{word}: no value; write {word}=VALUE")
      value = rest.pop(0)
    overrides[name.removeprefix("--config.")] = value
  if runs:
    overrides["report.runs"] = repr(tuple(runs))
  return flags, overrides


def _meant(word: str, stage: str) -> str:
  """Returns what to write for an argument that is no flag: a flag, or a key of the config, first one of this stage."""
  from jaxrlvr.config import hints
  from jaxrlvr.config.keys import declared

  name, equals, value = word.partition("=")
  name = name.lstrip("-")
  if not name:
    return ""
  if flag := difflib.get_close_matches(f"--{name}", FLAGS, 1, 0.8):
    return f"; did you mean {flag[0]}{equals}{value}?"
  first, _, rest = name.partition(".")
  key = rest if rest and difflib.get_close_matches(first.lower(), ["config"], 1, 0.7) else name
  names = list(declared())
  own = [one for one in manual.keys_of(stage) if one.endswith(f".{key}")]
  there = [one for one in (key, f"{stage}.{key}", *own) if one in names]
  likely = there[:1] or hints.meant(names, key if "." in key else f"{stage}.{key}")
  return f"; did you mean --config.{likely[0]}{equals}{value}?" if likely else ""


def execute(flags: argparse.Namespace, overrides: dict[str, str]) -> dict:
  """Loads the config and runs the stage; jax and the stages are imported only here, behind the signal handler."""
  from jaxrlvr.config import files, links

  config = files.load(flags.config, overrides, flags.stage)
  if flags.stage in ("chain", "grid"):
    links.check_heeded(config, overrides)
  if flags.distributed:
    from jaxrlvr.device import multihost

    multihost.initialise(config.hosts.deadline_seconds, config.hosts.silence_seconds)
  from jaxrlvr.stages import STAGES

  if not flags.distributed:
    signals.raise_if_stop_requested()  # during imports, which take seconds
  return STAGES[flags.stage](config, flags.workdir)


def run(argv: Sequence[str] | None = None) -> None:
  """Entry point of the console script; always ends with one of the documented codes.

  `argv` None: the words of this process, which is then ours to end, whatever threads of libraries are still at work.
  With words given it raises SystemExit, and what only a bug can raise.
  """
  signals.install()
  signals.follow_parent()
  cpu_malloc.keep()
  with escape.streams():
    if argv is not None:
      raise SystemExit(_command(argv))
    try:
      code = _command(sys.argv[1:])
    except SystemExit as end:  # of argparse
      code = end.code if isinstance(end.code, int) else 0
    except BaseException:
      traceback.print_exc()
      code = BUG
    _end_process(code)


def _end_process(code: int) -> None:
  """Ends the process with this code. Python's own end would wait for threads of libraries that compile, write or wait,
  and some of them abort when they come back to an interpreter that is gone."""
  logging.shutdown()
  if (object_store := sys.modules.get("jaxrlvr.base.object_store")) is not None:
    object_store.forget()
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):  # whoever read it is gone, or its disk is full
      code = code or CODES[StorageError]
  os._exit(code)


def _command(words: Sequence[str]) -> int:
  """Does what the words of a command line say, and returns the exit code."""
  flags, overrides = parse_arguments(words)
  logging.basicConfig(level=logging.DEBUG if flags.debug else logging.WARNING, format="%(levelname)s %(message)s")
  for noisy in ("absl", "orbax", "asyncio"):  # what goes wrong is told in one line of our own
    logging.getLogger(noisy).setLevel(logging.DEBUG if flags.debug else logging.CRITICAL)
  escape.let_libraries_write(flags.debug)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ["MPLBACKEND"] = "agg"  # a notebook's kernel hands on its own, which may not be installed here
  code, told = attempt(flags, overrides)
  if flags.distributed:
    from jaxrlvr.device import multihost

    multihost.leave(code, told)
  return code


def attempt(flags: argparse.Namespace, overrides: dict[str, str]) -> tuple[int, str]:
  """(exit code, what was told of it); raises what only a bug can raise."""
  try:
    summary = execute(flags, overrides)
  except Exception as error:
    code, told = explain(error, flags)
    if flags.distributed and code in (BUG, CODES[StorageError]):
      from jaxrlvr.device import multihost

      multihost.await_verdict()
    if flags.debug or code == BUG:
      if not flags.distributed and code == BUG:
        raise  # with its traceback
      traceback.print_exc()
    print(f"jaxrlvr: {told}", file=sys.stderr)
    return code, told
  print(f"report: {summary['report']}" if "report" in summary else f"done: {flags.workdir}")
  return 0, ""


def explain(error: Exception, flags: argparse.Namespace) -> tuple[int, str]:
  """(exit code, what to tell of this error of a stage)."""
  told = str(error)
  if isinstance(error, OSError) and not isinstance(error, StorageError):
    place = error.filename2 or error.filename or flags.workdir
    return CODES[StorageError], disk.describe(error, place) if disk.is_full(error) else told
  for kind, code in CODES.items():
    if isinstance(error, kind):
      return code, told
  if disk.is_full(error):
    return CODES[StorageError], f"{flags.workdir}: the disk is full ({_first_line(told)}); free space there"
  if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in told):
    cure = MEMORY_CURES.get(flags.stage, MEMORY_OF_OTHERS)
    return CODES[TrainingStopped], f"out of memory ({_first_line(told) or 'MemoryError'}); {cure}"
  return BUG, told


def _first_line(text: str) -> str:
  return text.strip().split("\n")[0]


if __name__ == "__main__":
  run()
