"""Pages stay true: the rooms, stages, files, modules and functions that they name exist, and so does the version."""

import ast
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

from jaxrlvr.cli import HELP

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
FOLDERS = ("colab", "configs", "docs", "jaxrlvr", "launch", "tests")
PAGES = [
  path
  for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "colab/*.ipynb")
  for path in sorted(ROOT.glob(pattern))
]
# Rooms whose names stand in text with something in them; `config`, `model` and `text` begin keys of a config as well.
ROOMS = "|".join({path.parent.name for path in ROOT.glob("jaxrlvr/*/__init__.py")} - {"config", "model", "text"})


def test_the_drawn_rooms_are_those_of_the_files():
  drawn = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", ARCHITECTURE, re.M))
  for path in [*(ROOT / "jaxrlvr").glob("*/__init__.py"), ROOT / "jaxrlvr" / "cli.py"]:
    room = path.parent.name if path.name == "__init__.py" else path.stem
    summary = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
    assert drawn.pop(room) == summary, f"docs/architecture.md says something else of {room}"
  assert not drawn


def test_every_stage_is_told():
  assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) >= set(HELP)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_files_exist(page):
  shown = {"path.py"}  # stands for any file
  for other in PAGES:
    shown.update(re.findall(r"^# (\w+\.py)$", text_of(other), re.M))  # as the first line of a block
  for word in re.findall(r"[\w./-]+", re.sub(r"https?://\S+", "", text_of(page))):
    name = word.strip("./")
    if name in shown:
      continue
    top, slash, _ = name.partition("/")
    if name.endswith((".py", ".sh", ".ipynb", ".toml", ".cff")) or slash and top in FOLDERS:
      places = [ROOT, ROOT / "jaxrlvr", page.parent]
      assert any((place / name).exists() for place in places), f"{page.name} names {name}, which is not there"


@pytest.mark.parametrize("folder", ["docs", "jaxrlvr", "configs", "launch"])
def test_named_modules_and_functions_exist(folder):
  files = PAGES if folder == "docs" else sorted((ROOT / folder).rglob("*.py"))
  for file in files:
    text = text_of(file)
    names = set(re.findall(r"(?<![\w.])jaxrlvr(?:\.\w+)+", text))
    if file.name != "names.md":  # where `data.train_files` is a key of verl
      names |= {f"jaxrlvr.{name}" for name in re.findall(rf"`((?:{ROOMS})(?:\.\w+)+)", text)}
    for name in names:
      assert pkgutil.resolve_name(name) is not None, file


def text_of(file):
  """Returns a page's text; for a notebook the text of its cells, without the outputs."""
  if file.suffix != ".ipynb":
    return file.read_text()
  return "\n".join("".join(cell["source"]) for cell in json.loads(file.read_text())["cells"])


def test_version_and_changes_are_those_of_the_package():
  version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
  assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
  assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
