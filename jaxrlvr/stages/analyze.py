"""The report stage: pages and figures from run directories."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxrlvr import remote, report
from jaxrlvr.stages.run import open_run, read_config
from jaxrlvr.types import InputError


def analyze(config: ConfigDict, workdir: str | Path) -> dict:
  """Writes report/index.html, its figures and numbers from the runs that `config.report.runs` names; never cached."""
  arms, evaluations = [], {}
  for entry in config.report.runs:
    name, separator, folder = entry.partition("=")
    if not separator:
      raise InputError(f"config.report.runs: {entry!r} is not `name=run directory`")
    folder = remote.local(folder)
    stage = read_config(Path(folder))["stage"]
    if stage == "rl":
      arms.append(report.Arm(name, Path(folder)))
    elif stage == "evaluate":
      evaluations[name] = Path(folder)
    else:
      raise InputError(
        f"config.report.runs: {folder} is a run of stage {stage!r}; the report takes rl and evaluate runs"
      )
  if not arms:
    raise InputError("config.report.runs names no rl run; name at least one, as `Thinking=runs/demo/rl-thinking`")
  with open_run(config, workdir, "analyze") as run:
    run.summary = None  # always made anew
    run.begin()
    page = report.write(
      run.workdir / "report", config.report.title, arms, evaluations, config.saturation_tail, config.report.samples
    )
    return run.finish(report=str(run.home / page.relative_to(run.workdir)))
