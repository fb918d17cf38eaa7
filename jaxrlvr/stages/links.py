"""The links of a chain: runs that may start from earlier ones. They run in this process or side by side in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ml_collections import ConfigDict

from jaxrlvr.base import logbook, signals
from jaxrlvr.base.errors import InputError
from jaxrlvr.config.files import derive
from jaxrlvr.stages.run_directory import in_use

# Runs a stage: takes its config and its run directory, writes there, and returns its summary, the content of
# summary.json (of the stage plan: of plan.json).
StageFunction = Callable[[ConfigDict, str | Path], dict]
LINKS = "links"  # in the workdir of a grid: the config and the log of each link
_POLL_SECONDS = 0.2  # time between two checks which processes have ended


class Link(NamedTuple):
  """One run of a chain. Its run directory has its name and lies in the chain's directory."""

  name: str  # in the chain it occurs once
  stage: str  # the stage that the link runs, a key of `stages.STAGES`
  config: ConfigDict  # locked and checked for the stage; has paths of earlier links in the place of their names
  needs: frozenset[str]  # names of the links that it itself starts from, without those that these need in turn


class Outcome(NamedTuple):
  """What became of the links. A link in neither field was not run, since a link that it needs failed."""

  done: set[str]  # names of the links that are finished, whether they were run now or before
  failed: dict[str, int]  # {name: exit code} of the links that failed; minus N: signal N ended the process


class Executor(Protocol):
  """Runs links for `run_links`. An interface: `InThisProcess` and `InProcesses` implement it."""

  places: int  # how many links it runs at a time, at least 1; `run_links` starts no more

  def is_free(self, link: Link) -> bool:
    """Returns whether the link may be started now; False while another process is at work in its directory."""

  def start(self, link: Link) -> None:
    """Starts the link, or runs it to its end. May raise what its stage raises."""

  def ended(self) -> Mapping[str, int]:
    """Returns {name: exit code} of the links that have ended since the last call; {} where none has."""

  def wait(self) -> None:
    """Waits for a short time, in which links may end. `run_links` calls it between two calls of `ended`."""

  def stop(self) -> None:
    """Asks the running links to save and end, and waits until they have. `run_links` calls it before it raises."""


def read_links(
  config: ConfigDict, workdir: Path, stages: Collection[str], shared: Mapping[str, object] | None = None
) -> list[Link]:
  """Returns the links of `config.chain` in its order, with their configs checked for their stages.

  An entry of the chain has "name" and "stage", and may have "init", "tokenizer" (names of earlier links), "set" ({key:
  value}), "files" ({key: path that begins with the name of an earlier link}), "runs" ({title: link}, for a report) and
  "cell" (for a grid; not read here). A link's config is the chain's with an empty chain and with these changes, in
  which names of links become their directories in `workdir`, the chain's directory. A link with init has an empty
  model.path. stages: names of the stages that a link may have. shared: {key: value} that each link takes unless it sets
  the key itself. Nothing is written. Raises InputError where the chain is empty, a name occurs twice, a stage is
  unknown, a link starts from something that is no earlier link, or its stage refuses its config.
  """
  if not config.chain:
    raise InputError("config.chain is empty; take a config with a chain, such as configs/demo.py, or run one stage")
  links: dict[str, Link] = {}
  for entry in config.chain:
    _check_entry(entry, stages, links)
    changes = {**(shared or {}), **_changes(entry, workdir)}
    config_of_link = derive(config, changes, entry["stage"])
    links[entry["name"]] = Link(entry["name"], entry["stage"], config_of_link, links_needed(entry))
  return list(links.values())


def _check_entry(entry: object, stages: Collection[str], earlier: Collection[str]) -> None:
  """Raises InputError where an entry of `config.chain` is no link that can follow the `earlier` ones."""
  if not isinstance(entry, Mapping):
    raise InputError(f"config.chain: {entry!r} is no link; write {{'name': ..., 'stage': ...}}")
  if missing := {"name", "stage"} - set(entry):
    raise InputError(f"config.chain: link {dict(entry)} has no {min(missing)}")
  name, stage = entry["name"], entry["stage"]
  if name in earlier or stage not in stages:
    raise InputError(
      f"config.chain: link {name!r} (stage {stage!r}) is there twice or of no known stage {sorted(stages)}"
    )
  for key, place in _places(entry):
    if _link_of(place) not in earlier:
      raise InputError(
        f"config.chain: link {name!r} takes {key} from {place!r}, which is no earlier link ({sorted(earlier)})"
      )


def _places(entry: Mapping) -> list[tuple[str, str]]:
  """Returns a pair (config key, link or path in a link's directory) for each thing that the link starts from."""
  places = [(key, entry[key]) for key in ("init", "tokenizer") if entry.get(key)]
  places += entry.get("files", {}).items()
  places += [("a run", place) for place in entry.get("runs", {}).values()]
  return places


def _link_of(place: str) -> str:
  """Returns the link that a place is, or whose directory it lies in."""
  return place.split("/")[0]


def links_needed(entry: Mapping) -> frozenset[str]:
  """Returns the names of the links that an entry of `config.chain` starts from.

  These are the links that its "init", "tokenizer", "files" and "runs" name, or in whose directories their paths lie.
  Whether there are such links is not checked.
  """
  return frozenset(_link_of(place) for _, place in _places(entry))


def _changes(entry: Mapping, workdir: Path) -> dict[str, object]:
  """Returns {key: value} in which the link's config differs from the chain's; places become paths below `workdir`."""
  changes = dict(entry.get("set", {}))
  if entry.get("init"):
    changes |= {"init": str(workdir / entry["init"]), "model.path": "", "model.adapter": ""}
  if entry.get("tokenizer"):
    changes["tokenizer"] = str(workdir / entry["tokenizer"])
  for key, place in entry.get("files", {}).items():
    changes[key] = str(workdir / place)
  if "runs" in entry:
    changes["report.runs"] = tuple(f"{title}={workdir / place}" for title, place in entry["runs"].items())
  return changes


def is_finished(link: Link, workdir: Path) -> bool:
  """Returns whether the link's directory, WORKDIR/NAME, holds a finished run whose config equals the link's.

  False where there is no run, or one that is not finished or has another config.
  """
  summary = logbook.read_json(workdir / link.name / "summary.json")
  recorded = logbook.read_json(workdir / link.name / "config.json")
  recorded.pop("stage", None)
  return bool(summary.get("finished")) and recorded == json.loads(json.dumps(link.config.to_dict()))


def run_links(
  links: Sequence[Link],
  executor: Executor,
  raise_if_asked: Callable[[], None],
  done: Iterable[str] = (),
  show: Callable[[int], None] = lambda count: None,
) -> Outcome:
  """Starts each link as soon as the links that it needs are done and a place is free, until none runs or can start.

  links: those of a chain, in its order, which decides where several may start. executor: starts them. raise_if_asked:
  takes nothing and is called before links are started; it raises an error to end the chain, as `Run.raise_if_asked`
  does after a signal. done: names of links that are not run, as they are finished. show: takes the number of links that
  are done, with those in `done`; it is called whenever that number grows. Returns which links are done and which
  failed: when a link fails, the links that need it are not run, and all others are. An error that `raise_if_asked` or
  the executor raises stops the running links and is raised again.
  """
  outcome = Outcome(set(done), {})
  running: set[str] = set()
  try:
    while True:
      done_before = len(outcome.done)
      _collect_ended(executor, running, outcome)
      if len(outcome.done) > done_before:
        show(len(outcome.done))
      begun = outcome.done | outcome.failed.keys() | running
      ready = [link for link in links if link.name not in begun and link.needs <= outcome.done]
      if not ready and not running:
        return outcome
      raise_if_asked()
      free = [link for link in ready if executor.is_free(link)]
      for link in free[: executor.places - len(running)]:
        running.add(link.name)
        executor.start(link)
      executor.wait()
  except BaseException:
    executor.stop()
    raise


def _collect_ended(executor: Executor, running: set[str], outcome: Outcome) -> None:
  """Moves the links that have ended from `running` to the outcome."""
  for name, code in executor.ended().items():
    running.remove(name)
    if code:
      outcome.failed[name] = code
    else:
      outcome.done.add(name)


class InThisProcess:
  """The executor that runs one link after another in this process; on several hosts each process has one.

  `summaries`: {name: summary} of the links that were run. An error of a stage is raised by `start` and so ends the
  chain; no link has an exit code other than 0.
  """

  places = 1

  def __init__(self, workdir: Path, stages: Mapping[str, StageFunction]):
    """workdir: the chain's directory, in which each link has a run directory of its name. stages: the functions
    (config, workdir) -> summary by the names of their stages."""
    self.summaries: dict[str, dict] = {}
    self._workdir, self._stages = workdir, stages
    self._ended: dict[str, int] = {}

  def is_free(self, link: Link) -> bool:
    """Returns True: the stage itself raises an error if its directory is in use."""
    return True

  def start(self, link: Link) -> None:
    """Runs the link to its end and keeps its summary. Raises what the stage raises."""
    self.summaries[link.name] = self._stages[link.stage](link.config, self._workdir / link.name)
    self._ended[link.name] = 0

  def ended(self) -> Mapping[str, int]:
    """Returns exit code 0 for each link that was run since the last call, by name."""
    ended, self._ended = self._ended, {}
    return ended

  def wait(self) -> None:
    """Does nothing: a link that was started has ended."""

  def stop(self) -> None:
    """Does nothing: no link runs beside this."""


def command_arguments(link: Link, workdir: Path) -> list[str]:
  """Returns the arguments of `jaxrlvr`, without that word, that run the link where WORKDIR has the links it needs.

  They are [STAGE, "--config=WORKDIR/links/NAME.json", "--workdir=WORKDIR/NAME"]. `write_configs` writes that config.
  """
  return [link.stage, f"--config={workdir / LINKS / link.name}.json", f"--workdir={workdir / link.name}"]


class InProcesses:
  """The executor that runs links side by side, each in a process of its own.

  A process runs `jaxrlvr` with the link's `command_arguments`, on its share of this process's CPU cores, appends what
  it prints to WORKDIR/links/NAME.log, and ends when this process does. A link whose directory is in use waits: a
  process of a grid that was killed may still be at work there. When a link fails, a line on stderr says so.
  """

  def __init__(self, workdir: Path, places: int):
    """workdir: the chain's directory, a local one, for whose links `write_configs` has written configs. places: how
    many links run at a time, at least 1."""
    self.places = places
    self._workdir = workdir
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    self._free_cores = [cores[place::places] for place in range(places)]  # one list of cores for each free place
    self._running: dict[str, tuple[subprocess.Popen, list[int]]] = {}
    self._waited_for: set[str] = set()

  def is_free(self, link: Link) -> bool:
    """Returns whether no other process holds the link's directory; the first time one does, says so on stderr."""
    busy = in_use(self._workdir / link.name)
    if busy and link.name not in self._waited_for:
      self._waited_for.add(link.name)
      print(f"{link.name}: in use by another process; waiting for it to end", file=sys.stderr)
    return not busy

  def start(self, link: Link) -> None:
    """Starts a process that runs the link on the cores of a free place."""
    arguments = [sys.executable, "-m", "jaxrlvr.cli", *command_arguments(link, self._workdir)]
    environment = os.environ | {signals.PARENT: str(os.getpid())}  # the process then ends when this one does
    with self._log(link.name).open("ab") as log:
      process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
    cores = self._free_cores.pop(0)
    if cores:
      os.sched_setaffinity(process.pid, cores)
    self._running[link.name] = process, cores

  def ended(self) -> Mapping[str, int]:
    """Returns {name: exit code} of the processes that have ended since the last call, and frees their cores.

    An exit code is minus N where signal N ended the process.
    """
    ended = {}
    for name, (process, cores) in list(self._running.items()):
      code = process.poll()
      if code is None:
        continue
      del self._running[name]
      self._free_cores.append(cores)
      ended[name] = code
      if code:
        print(f"{name}: exit code {code}, see {self._log(name)}", file=sys.stderr)
    return ended

  def wait(self) -> None:
    """Sleeps for 0.2 seconds, after which it is time to check again which processes have ended."""
    time.sleep(_POLL_SECONDS)

  def stop(self) -> None:
    """Sends SIGTERM to the running processes and waits until they have saved and ended."""
    for process, _ in self._running.values():
      process.terminate()
    for process, _ in self._running.values():
      process.wait()

  def _log(self, name: str) -> Path:
    return self._workdir / LINKS / f"{name}.log"


def write_configs(links: Iterable[Link], workdir: Path) -> None:
  """Writes the config of each link to WORKDIR/links/NAME.json, where the link's command line reads it.

  Makes the folder; files of an earlier call are replaced.
  """
  for link in links:
    logbook.write_json(workdir / LINKS / f"{link.name}.json", link.config.to_dict())
