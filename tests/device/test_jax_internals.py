"""One function names jax's private modules, and what it says of them is true in the jax that is installed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jaxlib import _jax

from jaxrlvr.base.errors import InputError
from jaxrlvr.device import jax_internals as module
from jaxrlvr.device.jax_internals import jax_internals

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"\bjax\._src\b|from jax import _src")
CURE = f"jax {jax.__version__} moved what jaxrlvr takes from its private modules: mend {module.__file__}"


def test_private_modules_of_jax_are_named_in_one_function():
  uses = set()
  for room in ("jaxrlvr", "configs", "launch", "tests"):
    for file in sorted((ROOT / room).rglob("*.py")):
      text = file.read_text(encoding="utf-8")
      if file == Path(__file__) or not PRIVATE.search(text):
        continue
      functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
      for number, line in enumerate(text.splitlines(), 1):
        if PRIVATE.search(line):
          inside = [one.name for one in functions if one.lineno <= number <= one.end_lineno]
          uses.add((str(file.relative_to(ROOT)), *inside))
  assert uses == {("jaxrlvr/device/jax_internals.py", "jax_internals")}


def test_this_jax_has_what_is_taken_from_it():
  distributed = jax_internals().distributed
  assert (distributed.process_id, distributed.num_processes, distributed.client) == (0, 1, None), CURE
  used = ("key_value_set_bytes", "key_value_dir_get_bytes", "key_value_delete", "wait_at_barrier")
  assert not set(used) - set(dir(_jax.DistributedRuntimeClient)), CURE
  script = (
    "import jax; from jaxrlvr.device.jax_internals import jax_internals as taken\n"
    "before = taken().backends_are_initialized(); jax.devices(); print(before, taken().backends_are_initialized())"
  )
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
  assert done.stdout == "False True\n", CURE


@pytest.mark.parametrize(
  "place, name", [("xla_bridge", "backends_are_initialized"), ("distributed", "global_state"), ("distributed", "")]
)
def test_a_jax_that_moved_them_is_named_with_the_cure(monkeypatch, place, name):
  private = sys.modules[f"jax._src.{place}"]
  if name:
    monkeypatch.delattr(private, name)
  else:
    monkeypatch.setattr(private, "global_state", object())
  jax_internals.cache_clear()
  try:
    with pytest.raises(InputError, match=f"^jax {re.escape(jax.__version__)} no longer has .*{name}.*; install one"):
      jax_internals()
  finally:
    monkeypatch.undo()
    jax_internals.cache_clear()
  assert jax_internals().distributed.num_processes == 1
