"""Which rooms load without jax, and which without TensorFlow; import-linter checks the imports (launch/test.sh)."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2] / "jaxrlvr"


def test_text_data_and_verifiers_load_without_jax():
  modules = "jaxrlvr.data.problems, jaxrlvr.rewards.expression, jaxrlvr.reporting.page"
  code = f"import {modules}, sys; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT.parent).returncode == 0


def test_training_needs_no_tensorflow():
  code = (
    "import sys\nfor name in ('tensorflow', 'tensorflow_datasets', 'clu'): sys.modules[name] = None\n"
    "import jaxrlvr.stages, jaxrlvr.cli\n"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT.parent).returncode == 0


def test_no_test_module_imports_another():
  """Functions that two modules need are in tests/helpers, and fixtures in a conftest.py."""
  imports = re.compile(r"^\s*(?:from|import) (?:test_\w+|conftest)\b", re.M)
  files = sorted(Path(__file__).parents[1].rglob("*.py"))
  assert len(files) > 50
  assert [file.name for file in files if imports.search(file.read_text())] == []
