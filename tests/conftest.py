"""Runs the tests on a CPU with 8 fake devices and little optimisation, as tests spend their time compiling.

A program is compiled once in a session: pytest's processes, and those that tests start, share a folder of compiled
programs.
"""

import os
import shutil
import subprocess
import tempfile
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA's newer emitters of fusions take twice as long to compile. From jax 0.11 on there are no others, and no such flag.
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false" if metadata.version("jax").startswith("0.10.") else "",
  ]
)

from pathlib import Path

import jax
import pytest

from helpers.serving import Server
from jaxrlvr.data import built_in_text
from jaxrlvr.device import keys
from jaxrlvr.grading.service import Service
from jaxrlvr.model import weight_table
from jaxrlvr.model.rope import Llama3
from jaxrlvr.model.spec import Spec
from jaxrlvr.text.tokenizer import train_sentencepiece

SHARED = Path(__file__).parents[2] / "shared" / "data"
GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_configure(config):
  """Names the folder of compiled programs: that of JAX_COMPILATION_CACHE_DIR, or a new one."""
  folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # pytest's other processes get it from the first
  config.own_programs = None if folder else tempfile.mkdtemp(prefix="jaxrlvr-tests-")
  for name, value in {
    "jax_compilation_cache_dir": folder or config.own_programs,
    "jax_compilation_cache_max_size": 1 << 30,  # a limit, so that JAX locks the folder for each access
    "jax_persistent_cache_min_compile_time_secs": 0.1,
    "jax_persistent_cache_min_entry_size_bytes": 0,
  }.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)


# The longest modules, so that workers end together.
FIRST = (
  "stages",
  "grid",
  "weak",
  "multihost",
  "lora_runs",
  "resume",
  "report",
  "exit",
  "sample",
  "update",
  "math",
  "sharding",
)


def pytest_collection_modifyitems(items):
  order = [f"test_{name}" for name in FIRST]
  items.sort(key=lambda item: order.index(item.module.__name__) if item.module.__name__ in order else len(order))


def pytest_unconfigure(config):
  if config.own_programs:
    shutil.rmtree(config.own_programs)


def _shared(name):
  """Returns a folder of data that is in no clone; skips the test where it is not beside this checkout."""
  folder = SHARED / name
  if not folder.is_dir():
    pytest.skip(f"needs ../shared/data/{name}")
  return folder


@pytest.fixture(scope="session")
def whole_golden():
  """The folder of all golden data, with texts of data sets."""
  return _shared("golden")


@pytest.fixture(scope="session", params=["shipped", "whole"])
def golden(request):
  """The folder of golden numbers: first that in this repository, then that of all golden data."""
  return GOLDEN if request.param == "shipped" else _shared("golden")


@pytest.fixture(scope="session")
def official():
  """The folder of the study's data files."""
  return _shared("official")


@pytest.fixture(scope="session")
def spec():
  """The simplest toy policy."""
  return Spec(vocab=24, real_vocab=21, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=32)


@pytest.fixture(scope="session")
def params(spec):
  return jax.jit(lambda: weight_table.init(spec, keys.at(3, "init")))()


@pytest.fixture(scope="session")
def rich_spec():
  """A toy policy that uses every feature in which Llama and Qwen differ."""
  return Spec(
    vocab=32,
    real_vocab=29,
    width=16,
    layers=2,
    heads=4,
    kv_heads=1,
    head_dim=6,
    mlp=24,
    rope_scaling=Llama3(original_max_position=16),
    family="helpers.families:RICH",
    tied=False,
    vocab_chunk=8,
  )


@pytest.fixture(scope="session")
def rich_params(rich_spec):
  params = jax.jit(lambda: weight_table.init(rich_spec, keys.at(5, "init")))()
  return {name: w + 0.1 if name.endswith(("bias", "norm")) else w for name, w in params.items()}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
  """A SentencePiece tokenizer, trained on a little of each built-in text."""
  mix = built_in_text.Mix((1, 4), 0.2, 0.3)
  texts = [built_in_text.document_text(write(0, n, mix)) for write in built_in_text.TEXTS.values() for n in range(300)]
  return train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer") / "t.model", 400)


@pytest.fixture(scope="module")
def service():
  with Service(workers=2) as service:
    yield service


@pytest.fixture
def compilations():
  """A list to which each compilation of this process adds its seconds."""
  seconds = []

  def told(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      seconds.append(duration)

  jax.monitoring.register_event_duration_secs_listener(told)
  yield seconds
  jax.monitoring.unregister_event_duration_listener(told)


@pytest.fixture
def serve():
  """A function that starts a `helpers.serving.Server` for a play; all servers end with the test."""
  servers = []

  def start(play):
    servers.append(Server(play))
    return servers[-1]

  yield start
  for server in servers:
    server.close()


@pytest.fixture
def small_disk(tmp_path):
  """A function that mounts a file system of a size such as "700k" for the test; it skips where that is forbidden."""
  mounted = []

  def mount(size):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
      pytest.skip("no file system can be mounted here")
    mounted.append(folder)
    return folder

  yield mount
  for folder in mounted:
    subprocess.run(["umount", folder], check=True)
