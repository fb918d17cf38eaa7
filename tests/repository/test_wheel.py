"""The wheel holds what a user needs, and works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("jaxrlvr", "configs", "tests", "launch", "docs", "README.md", "LICENSE", "pyproject.toml", "setup.py")
GENERATED = shutil.ignore_patterns("__pycache__", "*.egg-info")
LOAD_DEMO = """
import jaxrlvr
from jaxrlvr.config import files
print(jaxrlvr.__file__)
print(files.load("demo", {}, "chain").seed)
"""


def pip(*words):
  subprocess.run([sys.executable, "-m", "pip", *words, "--no-deps", "--no-index", "--quiet"], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """Builds the wheel from a copy of the sources, as setuptools writes beside them."""
  folder = tmp_path_factory.mktemp("wheel")
  checkout = folder / "checkout"
  checkout.mkdir()
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, checkout / name, ignore=GENERATED)
    else:
      shutil.copy(ROOT / name, checkout)
  pip("wheel", str(checkout), f"--wheel-dir={folder}", "--no-build-isolation")
  (built,) = folder.glob("*.whl")
  return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """Returns the folder that the wheel is installed in."""
  folder = tmp_path_factory.mktemp("installed")
  pip("install", str(wheel), f"--target={folder}")
  return folder


@pytest.fixture
def python(installed, tmp_path):
  """Returns a function that runs Python with the installed wheel, away from the checkout, and returns its output."""

  def run(*words):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

  return run


def test_it_holds_the_package_and_the_configs_and_nothing_else(wheel):
  package = [path for path in (ROOT / "jaxrlvr").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
  expected = {str(path.relative_to(ROOT)) for path in package}
  expected |= {f"jaxrlvr/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
  assert names == expected
  assert {"jaxrlvr/py.typed", "jaxrlvr/reporting/page.html"} < names


def test_it_names_its_license(wheel):
  files = zipfile.ZipFile(wheel)
  (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
  assert "\nLicense-Expression: Apache-2.0\n" in files.read(metadata).decode()
  (license_file,) = (name for name in files.namelist() if name.endswith("/LICENSE"))
  assert files.read(license_file).decode() == (ROOT / "LICENSE").read_text()


def test_the_command_line_works(python):
  assert python("-m", "jaxrlvr", "--version").startswith("jaxrlvr 0.")
  assert "rl.reward" in python("-m", "jaxrlvr", "rl", "--help")


def test_configs_are_loaded_from_it(python, installed):
  assert python("-c", LOAD_DEMO).split() == [str(installed / "jaxrlvr" / "__init__.py"), "0"]
