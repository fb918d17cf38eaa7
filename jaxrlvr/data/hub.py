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


class DataSet(NamedTuple):
  """Which files of a data set hold its rows, and in which columns the fields of a problem or the texts are."""

  repository: str  # ORG/NAME on the hub; "": none is known
  patterns: tuple[str, ...] = ()  # of the files to read, such as `data/*.parquet`; (): all
  columns: tuple[str, ...] = ()  # entries TARGET=COLUMN of `columns.load`; (): not known
  text_column: str = ""  # column of plain text; "": the set holds problems


# Data sets whose files and columns are known, by the names under which `locate` takes them.
_KNOWN_SETS = {
  "skywork-or1": DataSet("Skywork/Skywork-OR1-RL-Data", ("data/math-*.parquet",), layout.STUDY_COLUMNS),
  # The first version has matched_solution, a later one extracted_solution; both are worked solutions.
  "scp-116k": DataSet(
    "EricLu/SCP-116K",
    ("*.parquet", "*.jsonl"),
    ("prompt=problem", "boxed=matched_solution|extracted_solution|solution?", "extra.domain=domain?"),
  ),
  "openthoughts-114k": DataSet(
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
  "nemotron-cc-math": DataSet("nvidia/Nemotron-CC-Math-v1", ("4plus/*.parquet",), text_column="text"),
}


_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?(?::([\w.-]+))?")  # ORG/NAME[@REVISION][:CONFIG]
_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # ORG/NAME[@REVISION]
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv")
_NO_CONFIGS = ("data", "train", "test", "validation")  # folders of a data set that are not configs


def locate(source: str) -> tuple[str, DataSet]:
  """Returns the local path of a data set, and the DataSet that says how to read it, whose fields are empty if unknown.

  source, of which the first form that fits counts:
    NAME: a set whose columns are known (skywork-or1, scp-116k, openthoughts-114k or nemotron-cc-math), from the hub
    NAME:PATH: a local copy of it, or one on an object store
    ORG/NAME, ORG/NAME@REVISION, ORG/NAME:CONFIG: a set of the hub, unless such a path exists. CONFIG: a folder of it
    anything else: a path, which need not exist, or an address on an object store, which is copied
  A set of the hub is taken from the hub's cache if it is there as a whole, else it is downloaded, by each process for
  itself. Raises InputError for a set that can't be had, for a config that it lacks, and if it has several and none is
  named.
  """
  name, _, copy = source.partition(":")
  if name not in _KNOWN_SETS:
    match = _HUB.fullmatch(source)
    if match and not Path(source).exists() and Path(source).suffix not in rows.SUFFIXES:
      repository, revision, config = match.groups()
      return _hub_folder(repository, revision, config), DataSet("")
    return object_store.local(source), DataSet("")
  known = _KNOWN_SETS[name]
  if copy:
    return object_store.local(copy), known
  cure = f"take {name}:FOLDER with a local copy of {known.repository}"
  return _snapshot(name, cure, known.patterns, known.repository, repo_type="dataset", revision=None), known


def _hub_folder(repository: str, revision: str | None, config: str | None) -> str:
  """Returns the folder of a data set of the hub, or of its config.

  Raises InputError for an unknown config, and for None if the set has several.
  """
  cure = "name a file or a folder that exists"
  folder = Path(_snapshot(repository, cure, _FILES, repository, repo_type="dataset", revision=revision))
  configs = set()
  for file in rows.files(folder, split=rows.Split(rows.ALL)):
    parts = file.relative_to(folder).parts
    if len(parts) > 1 and parts[0] not in _NO_CONFIGS:
      configs.add(parts[0])
  names = ", ".join(sorted(configs))
  if config and config not in configs:
    raise InputError(f"{repository}:{config}: it has the configs {names or 'none'}; name one of these")
  if not config and len(configs) > 1:
    raise InputError(f"{repository}: has the configs {names}; name one, as {repository}:{min(configs)}")
  return str(folder / config if config else folder)


def model_folder(name: str) -> str:
  """Returns the path of the folder with a model's weights (*.safetensors), settings (*.json) and tokenizer.

  name: `ORG/NAME` or `ORG/NAME@REVISION` of the hub, unless such a path exists: taken from the hub's cache if all
  weights are there, else downloaded, by each process for itself. Anything else is a path and is returned as it is, with
  `~` expanded; it need not exist. Raises InputError for a model that is neither in the cache nor to be downloaded.
  """
  path = object_store.local(name) if name.startswith("~") else name
  if Path(path).exists() or not _HUB_MODEL.fullmatch(path):
    return path
  repository, _, revision = name.partition("@")
  cure = "name a folder that exists"
  return _snapshot(name, cure, _MODEL_FILES, repository, repo_type="model", revision=revision or None)


def _snapshot(
  name: str, cure: str, patterns: tuple[str, ...], repository: str, *, repo_type: str, revision: str | None
) -> str:
  """Returns the folder of a repository's files that match `patterns`: from the cache if whole, else downloaded.

  name: what the user named. cure: the end of an error's message. repo_type: "dataset" or "model". revision: None: the
  newest. Raises InputError where neither succeeds.
  """
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(f"{name}: huggingface_hub is not installed; pip install 'jaxrlvr[hub]', or {cure}") from None
  for cache_only in (True, False):
    try:
      folder = huggingface_hub.snapshot_download(
        repository,
        repo_type=repo_type,
        revision=revision,
        allow_patterns=list(patterns),
        local_files_only=cache_only,
      )
      if not cache_only:
        return str(folder)
      if repo_type == "dataset":
        needed_files = rows.files(folder, patterns)
      else:
        needed_files = list(Path(folder).glob("*.safetensors"))
      if _is_complete(needed_files):
        return str(folder)
    except Exception as error:  # what it raises depends on its version and on the network's client
      reason = f"{type(error).__name__}: {error}".partition("\n")[0]
  raise InputError(f"{name}: {repository} is neither in the hub's cache nor to be fetched ({reason}); {cure}")


def _is_complete(files: Iterable[Path]) -> bool:
  """Returns whether there are any files, and, where they are named `-of-N`, at least N."""
  stated_counts = []
  for file in files:
    match = re.search(r"-of-(\d+)$", file.stem)
    stated_counts.append(int(match[1]) if match else 0)
  return len(stated_counts) >= max(stated_counts, default=1)
