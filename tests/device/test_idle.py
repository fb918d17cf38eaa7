"""What the host tells XLA's allocator, and how long it leaves the devices idle."""

import subprocess
import sys
import threading

import jax.numpy as jnp
import pytest

from jaxrlvr.device.idle import Busy

_FAULTS = """
import resource
from jaxrlvr.device import cpu_malloc
assert cpu_malloc.keep_freed_memory() is {told}
{then}
import jax, jax.numpy as jnp
work = jax.jit(lambda x: ((x @ x.T) @ x).sum())  # 64 MiB of temporaries, which malloc maps and unmaps if not told
x = jnp.ones((4096, 8))
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  work(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(12)))  # which of the pieces that malloc keeps it takes is chance
"""


class Clock:
  now = 10.0

  def __call__(self):
    return self.now


def test_idle_is_what_lies_in_no_span():
  clock = Clock()
  busy = Busy(clock)
  busy.add(9.0, 12.0)  # begun before the window
  busy.add(11.0, 13.0)  # overlaps
  clock.now = 20.0
  assert busy.idle() == pytest.approx(0.7)
  assert busy.idle() == 0.0  # no time has passed
  clock.now = 24.0
  assert busy.idle() == 1.0


def test_a_program_counts_from_dispatch_to_its_end(monkeypatch):
  clock, done, waiting = Clock(), threading.Event(), threading.Event()

  def wait(result):
    waiting.set()
    assert done.wait(10) and result == "metrics"

  monkeypatch.setattr("jax.block_until_ready", wait)
  busy = Busy(clock)
  clock.now = 12.0
  busy.watch("metrics")
  clock.now = 14.0
  assert waiting.wait(10) and busy.idle() == pytest.approx(0.5)  # still at work
  clock.now = 15.0
  (span,) = busy._spans
  done.set()
  while span[1] is None:
    pass
  clock.now = 18.0
  assert busy.idle() == pytest.approx(0.75) and not busy._spans


def test_real_arrays_are_waited_for():
  busy = Busy()
  busy.watch([jnp.ones(3) + 1, None])
  assert 0.0 <= busy.idle() <= 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
@pytest.mark.parametrize(
  ("platforms", "told", "then", "stay"),
  [
    ("cpu", True, "", True),
    ("cpu", True, "assert cpu_malloc.return_freed_memory()", False),
    ("tpu,cpu", False, "", False),
  ],
)
def test_freed_pages_stay_on_a_cpu(platforms, told, then, stay):
  """On a CPU a second run of a program faults in no page of its temporaries, until memory is to be given back.

  Beside an accelerator nothing changes.
  """
  code = _FAULTS.format(told=told, then=then)
  code = code.replace("import jax,", 'import os; os.environ["JAX_PLATFORMS"] = "cpu"; import jax,')
  env = {"PATH": "/usr/bin", "JAX_PLATFORMS": platforms}
  process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
  assert process.returncode == 0, process.stderr
  assert (int(process.stdout) < 1000) is stay
