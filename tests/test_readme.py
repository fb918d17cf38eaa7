"""The README stays true: its map, its stages, its metric names, its commands."""

import ast
import re
from pathlib import Path

from jaxrlvr.main import HELP

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_map_is_that_of_the_files():
  told = dict(re.findall(r"^\| \d \| `(\S+\.py)` \| (.*) \|$", TEXT, re.M))
  for path in (ROOT / "jaxrlvr").rglob("*.py"):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    if doc and path.parent.name != "jaxrlvr" or path.name != "__init__.py" and doc:
      name = path.relative_to(ROOT / "jaxrlvr").as_posix()
      assert told.pop(name) == doc.split("\n")[0], f"README's map of {name} is out of date"
  assert not told


def test_every_stage_is_told():
  assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) >= set(HELP)


def test_named_files_and_functions_exist():
  for path in ("launch/demo.sh", "launch/test.sh", "configs/base.py", "configs/demo.py", "docs/demo.png"):
    assert path in TEXT and (ROOT / path).is_file()
  import jaxrlvr.analysis.passk
  import jaxrlvr.loss
  import jaxrlvr.policy.sample
  import jaxrlvr.policy.score

  for name in ("loss.group_advantage", "policy.score.score", "policy.sample.sample", "analysis.passk.pass_at_k"):
    assert f"jaxrlvr.{name}" in TEXT
    place = jaxrlvr
    for part in name.split("."):
      place = getattr(place, part)
    assert callable(place)
