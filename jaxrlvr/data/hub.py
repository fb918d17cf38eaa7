"""The Hugging Face hub: the raw data sets of the study by name, which column holds what, and models by name."""

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
  repository: str  # on the hub, of type dataset
  patterns: tuple[str, ...] = ()  # its files that are wanted
  columns: tuple[str, ...] = ()  # for layout.load
  text: str = ""  # column of plain text, where that is all there is


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
_NO_CONFIGS = ("data", "train", "test", "validation")  # folders of a data set that are none of its configs


def locate(source: str) -> tuple[str, Raw]:
  """(path, what is known of it) of `NAME` (from RAW: the hub's cache, else the network), `NAME:COPY`, or a path.

  What is no path that exists and looks like `ORG/NAME`, `ORG/NAME@REVISION`, `ORG/NAME:CONFIG` is a set of the hub.
  """
  name, _, copy = source.partition(":")
  if name not in RAW:
    match = _HUB.fullmatch(source)
    if match and not Path(source).exists() and Path(source).suffix not in rows.SUFFIXES:
      return _hub(*match.groups()), Raw("")
    return object_store.local(source), Raw("")
  entry = RAW[name]
  cure = f"take {name}:FOLDER with a local copy of {entry.repository}"
  return object_store.local(copy) or _snapshot(name, cure, entry.patterns, entry.repository, repo_type="dataset"), entry


def _hub(repository: str, revision: str | None, config: str | None) -> str:
  """The folder of a data set of the hub, or that of one of its configs; more than one and none named is an error."""
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
  """The folder of a model: a path as it is, `ORG/NAME` or `ORG/NAME@REVISION` from the hub's cache or the network."""
  name = object_store.local(name) if name.startswith("~") else name
  if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
    return name
  repository, _, revision = name.partition("@")
  place = {"repo_type": "model"} | ({"revision": revision} if revision else {})
  patterns = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
  return _snapshot(name, "name a folder that exists", patterns, repository, **place)


def _snapshot(name: str, cure: str, patterns: tuple[str, ...], repository: str, **place) -> str:
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(f"{name}: huggingface_hub is not installed; pip install 'jaxrlvr[hub]', or {cure}") from None
  for offline in (True, False):
    try:
      fetch = {"allow_patterns": list(patterns), "local_files_only": offline, **place}
      found = huggingface_hub.snapshot_download(repository, **fetch)
      dataset = place["repo_type"] == "dataset"
      if not offline or _complete(rows.files(found, patterns) if dataset else Path(found).glob("*.safetensors")):
        return str(found)
    except Exception as error:  # what it raises depends on its version and on the network's client
      reason = f"{type(error).__name__}: {error}".partition("\n")[0]
  raise InputError(f"{name}: {repository} is neither in the hub's cache nor to be fetched ({reason}); {cure}")


def _complete(files: Iterable[Path]) -> bool:
  """Whether there are files in a cached folder, and all N of those that are named `-of-N`."""
  shards = [re.search(r"-of-(\d+)$", file.stem) for file in files]
  return len(shards) >= max((int(shard[1]) if shard else 0 for shard in shards), default=1)
