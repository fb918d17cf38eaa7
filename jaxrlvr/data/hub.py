"""The Hugging Face hub: data sets, among them the study's raw ones with their columns, and models, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.data import columns as layout
from jaxrlvr.data import files as rows


class Raw(NamedTuple):
  """Where a raw data set is found, and how its columns are read."""

  repository: str  # data set on the hub, "" for a path
  patterns: tuple[str, ...] = ()  # files to read; (): all
  columns: tuple[str, ...] = ()  # entries for `columns.load`; (): not known
  text: str = ""  # column of plain text, for a set without problems


RAW = {
  "skywork-or1": Raw("Skywork/Skywork-OR1-RL-Data", ("data/math-*.parquet",), layout.STUDY_COLUMNS),
  # The first version has matched_solution, a later one extracted_solution; both are worked solutions.
  "scp-116k": Raw(
    "EricLu/SCP-116K",
    ("*.parquet", "*.jsonl"),
    ("prompt=problem", "boxed=matched_solution|extracted_solution|solution?", "extra.domain=domain?"),
  ),
  "openthoughts-114k": Raw(
    "open-thoughts/OpenThoughts-114k",
    ("metadata/*.parquet",),
    (
      "domain==math",
      "prompt=problem",
      "boxed=ground_truth_solution?",
      "trace=deepseek_reasoning",
      "solution=deepseek_solution",
      "extra.data_source=source?",
    ),
  ),
  "nemotron-cc-math": Raw("nvidia/Nemotron-CC-Math-v1", ("4plus/*.parquet",), text="text"),
}


_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?(?::([\w.-]+))?")  # ORG/NAME[@REVISION][:CONFIG]
_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv")
_NO_CONFIGS = ("data", "train", "test", "validation")  # folders of a data set that are not configs


def locate(source: str) -> tuple[str, Raw]:
  """Returns the local path of a data set and its description, which is empty for sets that are not in RAW.

  source: `NAME`, a key of RAW, is taken from the hub's cache, else downloaded; `NAME:COPY` names a local copy of it.
  `ORG/NAME`, `ORG/NAME@REVISION` and `ORG/NAME:CONFIG` name sets of the hub, unless such a path exists. Anything else
  is a path. Raises InputError for a set that can't be downloaded, and for a config that is missing or ambiguous.
  """
  name, _, copy = source.partition(":")
  if name not in RAW:
    match = _HUB.fullmatch(source)
    if match and not Path(source).exists() and Path(source).suffix not in rows.SUFFIXES:
      return _hub(*match.groups()), Raw("")
    return object_store.local(source), Raw("")
  entry = RAW[name]
  cure = f"take {name}:FOLDER with a local copy of {entry.repository}"
  path = object_store.local(copy) or _snapshot(name, cure, entry.patterns, entry.repository, repo_type="dataset")
  return path, entry


def _hub(repository: str, revision: str | None, config: str | None) -> str:
  """Returns the folder of a data set of the hub, or of its config. Raises InputError where it must be named."""
  cure = "name a file or a folder that exists"
  place = {"repo_type": "dataset"} | ({"revision": revision} if revision else {})
  folder = Path(_snapshot(repository, cure, _FILES, repository, **place))
  data = [file.relative_to(folder) for file in rows.files(folder, split=rows.Split(rows.ALL))]
  configs = sorted({file.parts[0] for file in data if len(file.parts) > 1} - set(_NO_CONFIGS))
  if config and config not in configs:
    raise InputError(f"{repository}:{config}: it has the configs {', '.join(configs) or 'none'}; name one of these")
  if not config and len(configs) > 1:
    raise InputError(f"{repository}: has the configs {', '.join(configs)}; name one, as {repository}:{configs[0]}")
  return str(folder / config if config else folder)


def model(name: str) -> str:
  """Returns the folder of a model.

  name: `ORG/NAME` or `ORG/NAME@REVISION` is taken from the hub's cache, else downloaded, unless such a path exists;
  anything else is a path, which is returned. Raises InputError for a model that can't be downloaded.
  """
  name = object_store.local(name) if name.startswith("~") else name
  if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
    return name
  repository, _, revision = name.partition("@")
  place = {"repo_type": "model"} | ({"revision": revision} if revision else {})
  patterns = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
  return _snapshot(name, "name a folder that exists", patterns, repository, **place)


def _snapshot(name: str, cure: str, patterns: tuple[str, ...], repository: str, **place) -> str:
  """Returns the folder of a repository's files that match `patterns`: from the cache if whole, else downloaded.

  name: what the user named; cure: the end of an error's message. place: repo_type, and revision if there is one.
  Raises InputError where neither succeeds.
  """
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(f"{name}: huggingface_hub is not installed; pip install 'jaxrlvr[hub]', or {cure}") from None
  for offline in (True, False):
    try:
      folder = huggingface_hub.snapshot_download(
        repository, allow_patterns=list(patterns), local_files_only=offline, **place
      )
      if not offline:
        return str(folder)
      is_dataset = place["repo_type"] == "dataset"
      cached = rows.files(folder, patterns) if is_dataset else Path(folder).glob("*.safetensors")
      if _complete(cached):
        return str(folder)
    except Exception as error:  # what it raises depends on its version and on the network's client
      reason = f"{type(error).__name__}: {error}".partition("\n")[0]
  raise InputError(f"{name}: {repository} is neither in the hub's cache nor to be fetched ({reason}); {cure}")


def _complete(files: Iterable[Path]) -> bool:
  """Returns whether there are any files, and, where they are named `-of-N`, at least N."""
  stated_counts = []
  for file in files:
    match = re.search(r"-of-(\d+)$", file.stem)
    stated_counts.append(int(match[1]) if match else 0)
  return len(stated_counts) >= max(stated_counts, default=1)
