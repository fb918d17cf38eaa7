"""Arrows point one way: a module imports only from its own level or below, and some rooms know no jax or no config."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jaxrlvr"
LEVELS = {
  "types": 0,
  "masked": 0,
  "keys": 0,
  "pages": 0,
  "escape": 0,
  "disk": 0,
  "manual": 0,
  "stopping": 0,
  "remote": 0,
  "busy": 1,
  "hosts": 1,
  "shard": 1,
  "policy": 1,
  "loss": 1,
  "optim": 1,
  "update": 1,
  "objective": 1,
  "tpu": 1,
  "hlo": 1,
  "counts": 1,
  "text": 1,
  "data": 1,
  "verify": 2,
  "reward": 2,
  "analysis": 2,
  "checkpoint": 3,
  "logbook": 3,
  "endpoint": 3,
  "judges": 3,
  "figures": 3,
  "results": 3,
  "responses": 3,
  "verdict": 3,
  "report": 3,
  "weights": 3,
  "config": 4,
  "stages": 4,
  "main": 5,
}
NO_JAX = (
  "text",
  "data",
  "verify",
  "analysis",
  "reward",
  "types",
  "logbook",
  "endpoint",
  "judges",
  "figures",
  "results",
  "responses",
  "verdict",
  "report",
  "stopping",
  "pages",
  "escape",
  "disk",
  "manual",
  "remote",
  "tpu",
  "hlo",
)


def rooms():
  for path in sorted(ROOT.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts != ("__init__",):
      yield parts[0], path


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_no_import_points_upward():
  for room, path in rooms():
    for line, name in imports(path):
      if name.startswith("jaxrlvr."):
        other = name.split(".")[1]
        assert LEVELS[other] <= LEVELS[room], (
          f"{path}:{line}: level {LEVELS[room]} imports {other}, level {LEVELS[other]}"
        )


def test_rooms_without_jax_and_without_config():
  for room, path in rooms():
    for line, name in imports(path):
      top = name.split(".")[0]
      assert not (room in NO_JAX and top in ("jax", "flax", "optax", "orbax")), (
        f"{path}:{line}: {room} must not import {top}"
      )
      assert not (LEVELS[room] < 4 and top == "ml_collections"), f"{path}:{line}: configs stop at the stages"


def test_text_data_and_verifiers_load_without_jax():
  code = "import jaxrlvr.data.problems, jaxrlvr.reward, jaxrlvr.report, sys; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT.parent).returncode == 0


def test_training_needs_no_tensorflow():
  code = (
    "import sys\nfor name in ('tensorflow', 'tensorflow_datasets', 'clu'): sys.modules[name] = None\n"
    "import jaxrlvr.stages, jaxrlvr.main\n"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT.parent).returncode == 0
