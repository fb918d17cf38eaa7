"""Run directories for reading: metrics, rollouts, evaluations, the policy and the report of a run."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.config import files
from jaxrlvr.door.policy import Policy, load_policy
from jaxrlvr.stages import STAGES
from jaxrlvr.stages.build_policy import POLICY_FILE
from jaxrlvr.stages.run_directory import read_config

_PLAN = "plan.json"  # in a workdir without config.json: that of a plan
_PAGES = {"diagnose": "diagnosis.md", "plan": "plan.md", "report": "index.html", "grid": "report/index.html"}
_REPORTED = ("rl", "evaluate")  # stages of whose runs the stage report writes a page
_Key = TypeVar("_Key")


class Rows(Mapping[_Key, list[dict]]):
  """Files of rows, by step or by (set, step), each read when it is asked for. A row is a dict."""

  def __init__(self, paths: Mapping[_Key, Path]):
    self._paths = dict(paths)

  def __getitem__(self, key: _Key) -> list[dict]:
    """Returns the rows of a file. Raises KeyError where there is none."""
    return logbook.read_jsonl(self._paths[key])

  def __iter__(self) -> Iterator[_Key]:
    return iter(self._paths)

  def __len__(self) -> int:
    return len(self._paths)

  def __repr__(self) -> str:
    return f"{type(self).__name__}({list(self._paths)})"


class Run:
  """A run directory, finished or not: Run("runs/demo/rl"). Everything is read from its files when it is asked for."""

  workdir: Path  # the run directory
  stage: str  # the stage that runs there, such as "rl"

  def __init__(self, workdir: str | os.PathLike):
    """Raises InputError where the directory holds no run."""
    self.workdir = object_store.path(os.fspath(workdir))
    is_plan = (self.workdir / _PLAN).is_file()
    self.stage = "plan" if is_plan else read_config(self.workdir)["stage"]

  def __repr__(self) -> str:
    state = "finished" if self.summary else "not finished"
    return f"Run({str(self.workdir)!r}): {self.stage}, {state}"

  @property
  def config(self) -> ConfigDict:
    """Property: the config of the run. Raises InputError for a plan, which records none."""
    if self.stage == "plan":
      raise InputError(f"{self.workdir}: a plan records no config")
    return files.read(str(self.workdir / "config.json"))

  @property
  def summary(self) -> dict:
    """Property: what the stage returned, as summary.json (of a plan: plan.json) has it; {}: it is not finished."""
    return logbook.read_json(self.workdir / (_PLAN if self.stage == "plan" else "summary.json"))

  @property
  def metrics(self) -> list[dict]:
    """Property: a row {"step": step, NAME: number} for each step; nan where there is none (docs/metrics.md).

    A run that has no steps has one row, of step 0: of an evaluation eval/SET/FIGURE, of a diagnosis its figures.
    """
    rows = logbook.read_jsonl(self.workdir / "metrics.jsonl")
    if not rows:
      summary = self.summary
      figures = {name: value for name, value in summary.items() if name.startswith("eval/")}
      figures |= summary.get("figures", {})
      rows = [{"step": 0, **figures}] if figures else []
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]

  def table(self) -> Any:
    """Returns the metrics by name, each a column with a value for each row, nan where the row has none.

    It is a DataFrame if pandas is installed, else a dict of lists.
    """
    rows = self.metrics
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name, math.nan) for row in rows] for name in names}
    if importlib.util.find_spec("pandas") is None:
      return columns
    import pandas

    return pandas.DataFrame(columns)

  @property
  def rollouts(self) -> Rows[int]:
    """Property: the rows of the responses of RL by step, as run.rollouts[3][0]["text"] (docs/run-directory.md)."""
    return self._rows("rollouts", r"step_(\d+)", lambda match: int(match[1]))

  @property
  def evaluations(self) -> Rows[tuple[str, int]]:
    """Property: the rows of the responses of evaluations by (set, step)."""
    return self._rows("evals", r"(.+)_(\d+)", lambda match: (match[1], int(match[2])))

  def _rows(self, folder: str, pattern: str, key: Callable[[re.Match], Any]) -> Rows:
    """Returns the files of a folder whose stems match a pattern, by what `key` makes of the match, in its order."""
    place = self.workdir / folder
    paths = {}
    for path in place.iterdir() if place.is_dir() else ():
      match = re.fullmatch(pattern, path.stem)
      if match and path.suffix == ".jsonl":
        paths[key(match)] = path
    return Rows(dict(sorted(paths.items())))

  @functools.cached_property
  def policy(self) -> Policy:
    """Property: the policy that the run has trained or, of a stage that trains none, started from."""
    if (self.workdir / POLICY_FILE).is_file():
      return load_policy(self.workdir)
    config = self.config
    if config.model.adapter:
      return load_policy(config.model.adapter, config)
    return load_policy(config.init or config.model.path)

  def report(self) -> Path:
    """Returns the path of the page about the run.

    Stages that write a page have it in their run directory. Of a run of rl or evaluate it is index.html of the report
    that is written now, into WORKDIR-report. Raises InputError where there is no such page.
    """
    if self.stage in _REPORTED:
      config = files.derive(files.base(), {"report.runs": (str(self.workdir),)}, "report")
      config.saturation_tail = self.config.saturation_tail
      return object_store.path(STAGES["report"](config, f"{self.workdir}-report")["report"])
    page = self.workdir / _PAGES[self.stage] if self.stage in _PAGES else None
    if self.stage == "chain" and "report" in self.summary:
      page = object_store.path(self.summary["report"])
    if page is None or not page.is_file():
      raise InputError(f"{self.workdir}: there is no page about this run of the stage {self.stage}")
    return page
