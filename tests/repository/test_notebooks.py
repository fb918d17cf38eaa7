"""The notebooks of colab/: what they run exists, what they install is pinned, their outputs come from a real run."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrlvr
from helpers.hf_directories import write_model
from jaxrlvr.cli import HELP
from jaxrlvr.config import files as configs
from jaxrlvr.config.rules import declared

ROOT = Path(__file__).parents[2]
COLAB = ROOT / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
IN_SHELL = [notebook for notebook in NOTEBOOKS if notebook.stem != "own_reward"]
SECONDS = 15 * 60  # after which a cell counts as hanging


def cells(notebook, kind="code"):
  return [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == kind]


def source(cell):
  return "".join(cell["source"])


def commands(notebook):
  """Yields the words of each jaxrlvr command; a name in braces becomes its value if the notebook sets a literal."""
  text = "\n".join(source(cell) for cell in cells(notebook))
  literals = dict(re.findall(r'^(\w+) = "?([^"\s]+)"?  # @param', text, re.M)) | {
    "DEVICE": "cpu",
    "CONFIG": "colab:cpu",
  }
  for line in re.findall(r"^(?:# )?!\.venv/bin/jaxrlvr (.*)$", text, re.M):
    yield shlex.split(re.sub(r"\{(\w+)\}", lambda m: literals.get(m[1], "x"), line))


@pytest.mark.parametrize("notebook", IN_SHELL, ids=lambda p: p.stem)
def test_commands_name_stages_and_keys_that_exist(notebook):
  all_commands = list(commands(notebook))
  assert len(all_commands) >= 1
  for stage, *options in all_commands:
    assert stage in HELP
    flags = dict(word[2:].split("=", 1) for word in options if word.startswith("--"))
    keys = {name.removeprefix("config."): text for name, text in flags.items() if name.startswith("config.")}
    assert "workdir" in flags and configs.load(flags.get("config", "base"), keys)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_python_names_keys_and_functions_that_exist(notebook):
  """Keys are those of a dict with dotted names; `jr.NAME` is what the Python door offers."""
  text = "\n".join(re.sub(r"(?m)^(\s*)[!%].*", r"\1pass", source(cell)) for cell in cells(notebook))
  keys, names = set(), set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Dict):
      keys |= {key.value for key in node.keys if isinstance(key, ast.Constant) and "." in str(key.value)}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jr":
      names.add(node.attr)
  assert keys <= set(declared())
  assert names and names <= set(jaxrlvr.__all__)


def test_buttons_and_addresses_are_those_of_this_repository():
  """`python launch/notebooks.py` writes the address of colab/repository.txt into the notebooks."""
  specification = importlib.util.spec_from_file_location("keep_notebooks", ROOT / "launch" / "notebooks.py")
  keeper = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(keeper)
  assert sorted(keeper.NOTEBOOKS) == [notebook.stem for notebook in NOTEBOOKS]
  for notebook in NOTEBOOKS:
    book = json.loads(notebook.read_text())
    assert keeper.addressed(notebook.stem, book) == book, f"{notebook.name}: run python launch/notebooks.py"
    assert f"/blob/main/colab/{notebook.name})" in source(book["cells"][0])
  assert keeper._shown("a 1/2\r\x1b[Ka 2/2\nb\r\n") == "a 2/2\nb\n"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_those_of_a_whole_run(notebook):
  code = cells(notebook)
  assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
  text = json.dumps([c["outputs"] for c in code])
  assert "Traceback" not in text and not any(o["output_type"] == "error" for c in code for o in c["outputs"])
  pages = [o["data"]["text/html"] for c in code for o in c["outputs"] if "text/html" in o.get("data", {})]
  assert pages and all("<svg" in "".join(page) or "<img" in "".join(page) for page in pages)
  assert notebook.stat().st_size < 2 << 20


def test_every_notebook_begins_with_the_same_pinned_install():
  first = {source(cells(notebook)[0]) for notebook in NOTEBOOKS}
  assert len(NOTEBOOKS) == 3 and len(first) == 1 and "bash launch/colab.sh" in first.pop()
  pins = dict(line.lower().replace("_", "-").split("==") for line in (COLAB / "constraints.txt").read_text().split())
  dependencies = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
  assert {re.match(r"[\w-]+", name)[0] for name in re.findall(r'"(.*?)"', dependencies)} <= pins.keys()


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_nothing_samples_more_at_a_time_than_a_step_of_rl(device):
  """The memory of one device was planned for a step of RL. On any GPU the attention is XLA's."""
  config = configs.load(f"colab:{device}")
  assert (
    config.evaluate.problems_per_batch * config.evaluate.samples <= config.rl.problems_per_step * config.rl.group_size
  )
  assert device != "gpu" or config.model.attention == "xla"


@pytest.mark.parametrize(
  "nvidia_smi, device", [("echo GPU 0; sleep 0.2; echo GPU 1", "gpu"), ("echo failed; exit 9", "cpu")]
)
def test_what_is_installed_is_for_the_device_that_is_there(tmp_path, nvidia_smi, device):
  """Scripts play nvidia-smi and the Python that installs and, later, finds no such device."""
  shutil.copytree(ROOT / "launch", tmp_path / "launch")
  (tmp_path / "pyproject.toml").touch()
  place = tmp_path / ".venv" / "bin"
  place.mkdir(parents=True)
  env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}

  def install(python):
    for name, text in (("nvidia-smi", nvidia_smi), ("python", f'echo "$@" >>calls\n{python}')):
      (place / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
      (place / name).chmod(0o755)
    return subprocess.run(["bash", "launch/colab.sh"], cwd=tmp_path, env=env, check=False).returncode

  assert (
    install(f'[[ $1 != "-c" ]] || echo {device}') == 0 and (tmp_path / ".venv" / "device").read_text() == f"{device}\n"
  )
  extras = re.search(r"--editable \.\[(.*?)\]", (tmp_path / "calls").read_text())[1].split(",")
  assert extras == ["gym", "hub", *([device] if device == "gpu" else [])]
  assert install('[[ $1 != "-c" ]] || echo other') == 3 and not (tmp_path / ".venv" / "device").exists()


def test_the_backend_of_a_notebooks_charts_is_left_to_it(tmp_path):
  """A notebook's kernel passes MPLBACKEND to every program that it starts, even if that package is not installed."""
  pytest.importorskip("reasoning_gym")  # which imports matplotlib
  command = [sys.executable, "-m", "jaxrlvr.cli", "prepare", "--config=colab", f"--workdir={tmp_path / 'run'}"]
  subprocess.run(command, cwd=ROOT, env={**os.environ, "MPLBACKEND": "no-such-backend"}, check=True)


def execute(notebook, checkout, edit=lambda text: text):
  """Runs a notebook in a copy of the checkout as Jupyter would; returns the text of its outputs."""
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  book = nbformat.read(checkout / "colab" / notebook, as_version=4)
  for cell in book.cells:
    cell.source = edit(cell.source)
  nbclient.NotebookClient(book, timeout=SECONDS, resources={"metadata": {"path": checkout / "colab"}}).execute()
  return json.dumps([cell.get("outputs") for cell in book.cells])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
  """A copy of the files that git knows, without an environment: the notebooks' first cell makes one."""
  folder = tmp_path_factory.mktemp("notebooks") / "jaxrlvr"
  names = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
  ).stdout
  for name in filter(None, names.split("\0")):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)
  return folder


@pytest.fixture
def plain(monkeypatch):
  """Removes the settings that tests run with: one CPU and full optimisation, as users have."""
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


@pytest.mark.slow
def test_quickstart_runs(checkout, plain):
  output = execute("quickstart.ipynb", checkout)
  assert "is ready on cpu" in output and "Traceback" not in output
  for name in ("demo/report", "mine"):
    assert (checkout / "runs" / name / "index.html").is_file()


@pytest.mark.slow
def test_own_reward_runs(checkout, plain):
  def edit(text):
    return re.sub(r"^STEPS = \d+", "STEPS = 5", text, flags=re.M)

  said = execute("own_reward.ipynb", checkout, edit)
  assert "Traceback" not in said and "image/png" in said and "<svg" in said and "step 5: [" in said
  assert len((checkout / "runs" / "own" / "closeness" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_diagnose_runs_on_a_small_random_model(checkout, plain, tmp_path):
  folder = write_model(tmp_path / "small")
  ours = {"MODEL": folder, "OPTIONS": "--config.rl.prompt_tokens=400"}  # its tokens are short

  def edit(text):
    return re.sub(r'^(MODEL|OPTIONS) = "[^"]*"', lambda m: f'{m[1]} = "{ours[m[1]]}"', text, flags=re.M)

  output = execute("diagnose.ipynb", checkout, edit)
  assert "What RL will probably do" in output and "not measured" in output
  (exported,) = checkout.glob("runs/*/majority_vote-hf/model/model.safetensors")
  assert exported.stat().st_size > 1000
