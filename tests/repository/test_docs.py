"""Commands, config keys and links in README and docs/ name what exists, and the site builds."""

import ast
import functools
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxrlvr.cli import HELP, parse_arguments
from jaxrlvr.config import files
from jaxrlvr.config.rules import declared

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def prose(page):
  """Returns a page's text without its blocks of code."""
  return FENCED.sub("", page.read_text())


def in_backticks(page):
  return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page):
  """Yields the words of each line of a block of shell commands, and of each command in a sentence."""
  for language, block in FENCED.findall(page.read_text()):
    if language in ("", "bash"):
      for line in block.replace("\\\n", " ").splitlines():
        yield shlex.split(line, comments=True)
  for text in in_backticks(page):
    if text.startswith(("jaxrlvr ", "bash launch/", "launch/", "python launch/", "pip install")) and " " in text:
      yield shlex.split(text.replace("[", "").replace("]", "") if text.startswith("jaxrlvr") else text)


def check_stage(words):
  """Raises an error unless these words behind `jaxrlvr` name a stage and a config that loads with these keys."""
  if {"STAGE", "--help", "--version"} & set(words):
    assert words[0] == "STAGE" or words[0] in HELP or words[0].startswith("--")
    return
  if len(words) == 1:
    assert words[0] in HELP
    return
  if not any(word.startswith("--workdir") for word in words):
    words = [*words, "--workdir=runs/x"]
  flags, overrides = parse_arguments(words)
  if "FILE" not in flags.config:
    files.load(flags.config, overrides, flags.stage)


def check_command(words):
  while words and re.match(r"[A-Z_]+=", words[0]):
    words = words[1:]
  match words:
    case ["jaxrlvr" | ".venv/bin/jaxrlvr", *rest] | ["python" | ".venv/bin/python", "-m", "jaxrlvr", *rest]:
      check_stage(rest)
    case ["bash", str(script), *rest] | [str(script), *rest] if script.startswith("launch/"):
      assert (ROOT / script).is_file()
      if script == "launch/tpu.sh" and rest and rest[0] in ("run", "babysit"):
        check_stage(rest[1:])
      elif script in ("launch/demo.sh", "launch/plan.sh"):
        stage = "chain" if script == "launch/demo.sh" else "plan"
        check_stage([stage, *(word for word in rest if word.startswith("--"))])
    case ["python" | ".venv/bin/python", str(script), *rest] if script.startswith("launch/"):
      source = (ROOT / script).read_text()
      for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        assert f'"{flag}"' in source, f"{script} has no {flag}"
    case ["pip" | ".venv/bin/pip", "install", *rest]:
      for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(rest)):
        assert set(extra.split(",")) <= EXTRAS.keys()
    case [".venv/bin/python", "-m", "pytest", *rest] | ["pytest", *rest]:
      places = [ROOT / word for word in rest if word.startswith("tests/")]
      assert all(place.exists() for place in places)
      if rest[:2] == ["-m", "slow"]:
        files = [file for place in places for file in (place.rglob("test_*.py") if place.is_dir() else [place])]
        assert any("mark.slow" in file.read_text() for file in files), f"no slow test in {rest[2:]}"


@each_page
def test_every_command_is_understood(page, tmp_path, monkeypatch):
  """A command may name a config that a Python block shows, if the block begins with the file's name."""
  for _, block in FENCED.findall(page.read_text()):
    if named := re.match(r"# (\w+\.py)\n", block):
      (tmp_path / named[1]).write_text(block)
  monkeypatch.chdir(tmp_path)
  for words in commands(page):
    try:
      check_command(words)
    except (Exception, SystemExit) as error:
      raise AssertionError(f"{page.name}: {shlex.join(words)}: {error}") from error


def test_a_command_that_is_wrong_is_noticed():
  for line in (
    "jaxrlvr rll --config=demo --workdir=x",
    "jaxrlvr rl --config=nothing --workdir=x",
    "jaxrlvr rl --config=demo --workdir=x --config.rl.stepz=3",
    "jaxrlvr rl --config=demo --workdir=x --config.rl.steps=many",
    "bash launch/nothing.sh",
    "pip install -e '.[nothing]'",
    "python launch/bench.py --nothing",
    "pytest -m slow tests/rewards",
  ):
    with pytest.raises((Exception, SystemExit)):
      check_command(shlex.split(line))


def test_no_two_commands_write_to_one_directory():
  """A directory takes one run, so that a reader who follows several pages in one checkout is never refused."""
  writers = {}
  for page in PAGES:
    for words in commands(page):
      for workdir in (word for word in words if word.startswith("--workdir=") and word != "--workdir=DIR"):
        first, other = writers.setdefault(workdir, words), shlex.join(words)
        assert first == words, f"{page.name}: {other} writes where {shlex.join(first)} does"


@each_page
def test_every_key_in_backticks_is_declared(page):
  """A key is a name such as `rl.reward` whose first word is a group of the config."""
  names = set(declared())
  groups = {name.partition(".")[0] for name in names if "." in name}
  for text in in_backticks(page):
    name = text.removeprefix("--").removeprefix("config.").partition("=")[0]
    group, dot, _ = name.partition(".")
    if (
      re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name)
      and group in groups
      and not name.endswith((".py", ".md", ".json", ".jsonl"))
    ):
      assert name in names or any(key.startswith(f"{name}.") for key in names), f"{page.name}: no key {name}"


@functools.cache
def anchors(page):
  """Returns the anchors of a page's headings, as GitHub and the site make them."""
  headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
  plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower() for heading in headings)
  return {heading.replace(" ", "-") for heading in plain}


@each_page
def test_every_link_leads_somewhere(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
    if target.startswith(("http://", "https://")):
      continue
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    assert file.exists(), f"{page.name} links to {target}"
    assert not anchor or anchor in anchors(file), f"{page.name} links to {target}: {file.name} has no such heading"


@each_page
def test_python_on_pages_compiles_and_names_what_there_is(page):
  for language, block in FENCED.findall(page.read_text()):
    if language == "python":
      for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("jaxrlvr"):
          for name in node.names:
            assert pkgutil.resolve_name(f"{node.module}:{name.name}") is not None


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_the_site_builds(tmp_path):
  """The build fails on a broken link between pages, and on a page that is in no menu."""
  if importlib.util.find_spec("material") is None:
    pytest.skip("no mkdocs-material; the test extra brings it")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
  done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "site" / "concepts" / "index.html").is_file()


def test_pictures_are_drawn_from_what_there_is_now():
  """The rooms are those of the import contract; `python launch/draw.py` redraws both pictures."""
  specification = importlib.util.spec_from_file_location("draw", ROOT / "launch" / "draw.py")
  draw = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(draw)
  for name, picture in draw.PICTURES.items():
    assert (ROOT / "docs" / name).read_text() == picture(), f"docs/{name}: run python launch/draw.py"
