"""README and docs/architecture.md stay true: stages, commands, functions, rooms."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

from jaxrlvr.cli import HELP

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_drawn_rooms_are_those_of_the_files():
  drawn = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", ARCHITECTURE, re.M))
  for path in [*(ROOT / "jaxrlvr").glob("*/__init__.py"), ROOT / "jaxrlvr" / "cli.py"]:
    room = path.parent.name if path.name == "__init__.py" else path.stem
    summary = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
    assert drawn.pop(room) == summary, f"docs/architecture.md says something else of {room}"
  assert not drawn


def test_every_stage_is_told():
  assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) >= set(HELP)


def test_named_files_and_functions_exist():
  for path in ("launch/demo.sh", "launch/test.sh", "configs/base.py", "configs/demo.py", "docs/demo.png"):
    assert path in TEXT and (ROOT / path).is_file()
  names = "training.loss.group_advantage model.score.score sampling.sample grading.Service analysis.passk.pass_at_k"
  for name in names.split():
    assert f"jaxrlvr.{name}" in TEXT
    module, _, function = f"jaxrlvr.{name}".rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


def test_version_and_changes_are_those_of_the_package():
  version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
