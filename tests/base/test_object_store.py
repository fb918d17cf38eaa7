"""Run directories and data on an object store, which is here one in memory under gs://."""

import json
import os
import sys

import fsspec
import jax
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from jaxrlvr import cli
from jaxrlvr.base import logbook, object_store
from jaxrlvr.base.errors import InputError, StorageError
from jaxrlvr.stages.run_directory import set_compile_cache


class Store(MemoryFileSystem):
  """An object store in memory: it holds whole objects by name, and a folder is a common beginning of names."""

  protocol = ("gcs", "gs")
  store, pseudo_dirs = {}, [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
  monkeypatch.setenv("EPATH_USE_TF", "false")
  fsspec.register_implementation("gcs", Store, clobber=True)
  monkeypatch.setattr(Store, "store", {})
  monkeypatch.setattr(Store, "pseudo_dirs", [""])
  Store.clear_instance_cache()
  yield "gs://bucket"
  sys.modules["fsspec.registry"]._registry.pop("gcs")


def run(*argv):
  with pytest.raises(SystemExit) as stop:
    cli.run([str(a) for a in argv])
  return stop.value.code


def test_a_stage_reads_from_a_store_and_writes_there(tmp_path, bucket, capsys, caplog):
  local = tmp_path / "made"
  assert run("prepare", "--config=smoke", f"--workdir={local}") == 0
  (epath.Path(bucket) / "data").mkdir(parents=True)
  (epath.Path(bucket) / "data" / "mine.jsonl").write_bytes((local / "problems.jsonl").read_bytes())
  argv = ("prepare", "--config=smoke", f"--config.problems.source={bucket}/data/mine.jsonl")
  argv += ("--config.problems.count=0", f"--workdir={bucket}/runs/a")
  assert run(*argv) == 0
  home = epath.Path(bucket) / "runs" / "a"
  names = {"config.json", "manifest.json", "problems.jsonl", "unreadable.jsonl", "summary.json"}
  assert {p.name for p in home.iterdir()} == names
  assert (home / "problems.jsonl").read_bytes() == (local / "problems.jsonl").read_bytes()
  assert f"{bucket}/runs/a/problems.jsonl: 4 of 4 problems" in capsys.readouterr().out
  assert run(*argv) == 0 and "already finished" in caplog.text
  assert run(*argv, "--config.seed=7") == 2 and "config.seed: 7, earlier 0" in capsys.readouterr().err
  assert run(*argv[:-1], f"--workdir={bucket}/data") == 2
  assert "holds other files (mine.jsonl" in capsys.readouterr().err
  absent = f"--config.problems.source={bucket}/absent.jsonl"
  assert run("prepare", "--config=smoke", absent, f"--workdir={bucket}/b") == 2
  assert "absent.jsonl: is not there" in capsys.readouterr().err
  assert not os.path.exists("gs:")


def test_only_what_is_new_goes_up_and_the_summary_last(tmp_path, bucket, monkeypatch):
  place = epath.Path(bucket) / "run"
  mirror = object_store.Mirror(tmp_path, place)
  (tmp_path / "rollouts").mkdir()
  for name in ("summary.json", "rollouts/1.jsonl", "zzz", "half.part"):
    (tmp_path / name).write_text(name)
  sent = []
  monkeypatch.setattr(
    Store, "open", lambda self, path, *a, _open=Store.open, **k: (sent.append(str(path)), _open(self, path, *a, **k))[1]
  )
  mirror.push()
  assert [name.rpartition("run/")[2] for name in sent] == ["rollouts/1.jsonl", "zzz", "summary.json"]
  sent.clear()
  mirror.push()
  assert sent == []
  (tmp_path / "zzz").write_text("more now")
  (tmp_path / "summary.json").unlink()
  mirror.push()
  assert len(sent) == 1 and (place / "zzz").read_text() == "more now" and not (place / "summary.json").exists()
  back = tmp_path / "back"
  object_store.pull(place, back, ("rollouts",))
  assert [p.name for p in back.iterdir()] == ["zzz"]
  (tmp_path / "zzz").write_text("and more")
  monkeypatch.setattr(Store, "open", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
  with pytest.raises(StorageError, match=r"gs://bucket/run: can't be reached \(no network\)"):
    mirror.push()


def test_a_run_of_many_steps_goes_up_now_and_then(tmp_path, bucket, monkeypatch):
  """New lines are uploaded at most once in a while; all are when a checkpoint is saved or the run ends."""
  from jaxrlvr.config import files as configs
  from jaxrlvr.device import checkpoint
  from jaxrlvr.stages import run_directory as runs

  class NoCheckpoints:  # Orbax goes to a store by itself, past the one in memory
    def __init__(self, *_): ...
    def restore(self, *_): ...
    def save(self, *_): ...

    check = wait = close = restore

  monkeypatch.setattr(checkpoint, "Checkpoints", NoCheckpoints)
  state = type("State", (), dict(params=0, opt_state=0, updates=0, skipped=0, skipped_in_a_row=0))()
  up = epath.Path(bucket) / "run" / "metrics.jsonl"

  def lines():
    return [json.loads(line)["step"] for line in up.read_text().splitlines()] if up.exists() else []

  with runs.open_run(configs.load("smoke"), f"{bucket}/run", "sft") as one:
    one.begin()
    one.restore(state)
    for step in (1, 2, 3):
      one.log(step, {"loss": 0.0})
    assert lines() == []
    monkeypatch.setattr(runs, "_PUSH_SECONDS", -1.0)
    one.log(4, {"loss": 0.0})
    assert lines() == [1, 2, 3]
    monkeypatch.setattr(runs, "_PUSH_SECONDS", 60.0)
    one.save(4, state)
    assert lines() == [1, 2, 3, 4]
  with runs.open_run(configs.load("smoke"), f"{bucket}/run", "sft") as one:
    one.begin()
    assert [row["step"] for row in logbook.read_jsonl(one.workdir / "metrics.jsonl")] == [1, 2, 3, 4]
    one.restore(state)
    one.log(1, {"loss": 0.5})
    one.flush()
    assert lines() == [1, 2, 3, 4]
  assert lines() == [1]  # without a checkpoint it began again, and ended early


def test_local_names_stay_what_they_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert (
    object_store.local("a/b") == "a/b"
    and object_store.path("a") == tmp_path / "a"
    and not object_store.is_remote(tmp_path)
  )
  with pytest.raises(InputError, match="can't be reached"):
    object_store.local("s3://no-package-here/x")


def test_compiled_programs_are_kept_where_a_folder_is_named(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    set_compile_cache("auto")
    assert jax.config.jax_compilation_cache_dir == before  # a CPU
    set_compile_cache(str(tmp_path))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    set_compile_cache("")
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
