"""Data sets by name, of the Hugging Face hub and of tfds, among them the study's raw ones; and models of the hub."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from jaxrlvr.base import object_store
from jaxrlvr.base.errors import InputError
from jaxrlvr.data import columns as layout
from jaxrlvr.data import files as rows
from jaxrlvr.data import tfds_catalog


class DataSet(NamedTuple):
  """Which files of a data set hold its rows, and in which columns the fields of a problem or the texts are."""

  repository: str  # ORG/NAME on the hub; "": none is known
  patterns: tuple[str, ...] = ()  # of the files to read, such as `data/*.parquet`; (): all
  columns: tuple[str, ...] = ()  # entries TARGET=COLUMN of `columns.load`; (): not known
  text_column: str = ""  # column of plain text; "": the set holds problems
  split: str = ""  # split that the source itself names, as in ORG/NAME@train; "": it names none


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


_HUB = re.compile(  # ORG/NAME[@REVISION][:CONFIG][@SPLIT]
  r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?"
)
_HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # ORG/NAME[@REVISION]
# Folder of a model in the hub's cache.
_CACHED_MODEL = re.compile(r"/models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<revision>\w+)/?$")
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv")
_NO_CONFIGS = ("data", "train", "test", "validation")  # folders of a data set that are not configs
_DEFAULT_CONFIG = "default"  # name of the only config of a set without folders of configs
_TFDS = "tfds:"  # beginning of the name of a set of tfds


class _HubName(NamedTuple):
  """The parts of the name of a data set of the hub; "": the name lacks the part."""

  repository: str  # ORG/NAME
  revision: str
  config: str
  split: str


def locate(source: str) -> tuple[str, DataSet]:
  """Returns the local path of a data set, and the DataSet that says how to read it, whose fields are empty if unknown.

  source, of which the first form that fits counts:
    tfds:NAME[/CONFIG][:VERSION]: a set of tfds (`tfds_catalog.folder`)
    NAME: a set whose columns are known (skywork-or1, scp-116k, openthoughts-114k or nemotron-cc-math), from the hub
    NAME:PATH: a local copy of it, or one on an object store
    ORG/NAME[@REVISION][:CONFIG]: a set of the hub, unless such a path exists. CONFIG: a folder of it
    anything else: a path, which need not exist, or an address on an object store, which is copied
  A set of tfds or of the hub, and a folder that exists, may be followed by @SPLIT, which becomes the DataSet's `split`.
  Of ORG/NAME@WORD alone the word is a split if it is a usual one (`files.is_split`), else a revision.
  A set of the hub is taken from the hub's cache if it is there as a whole, else it is downloaded, by each process for
  itself. Raises InputError for a set that can't be had, for a config that it lacks, and if it has several and none is
  named.
  """
  if source.startswith(_TFDS):
    name, _, split = source.removeprefix(_TFDS).partition("@")
    return tfds_catalog.folder(name, split), DataSet("", split=split)
  name, _, copy = source.partition(":")
  if name in _KNOWN_SETS and copy:
    path, split = _path_and_split(copy)
    return object_store.local(path), _KNOWN_SETS[name]._replace(split=split)
  if name in _KNOWN_SETS:
    known = _KNOWN_SETS[name]
    cure = f"take {name}:FOLDER with a local copy of {known.repository}"
    is_whole = functools.partial(_holds_all_shards, patterns=known.patterns)
    return _snapshot(name, cure, known.patterns, is_whole, known.repository, repo_type="dataset", revision=None), known
  path, split = _path_and_split(source)
  hub_name = _hub_name(source)
  if hub_name and not split and not Path(source).exists():
    return _hub_folder(source, hub_name)
  return object_store.local(path), DataSet("", split=split)


def split_to_read(source: str, data_set: DataSet, split: rows.Split | None) -> rows.Split:
  """Returns the split that is read of a source: the one that the source names, else `split`.

  data_set: what `locate` returned for the source. split: what the config says; None: nothing. Raises InputError where
  both name one.
  """
  split = split or rows.Split()
  if not data_set.split:
    return split
  if split.name:
    raise InputError(
      f"{split.key} = {split.name!r}: the source {source} names the split {data_set.split!r} already; clear one of them"
    )
  return split._replace(name=data_set.split, key=f"the split of {source}")


def _path_and_split(source: str) -> tuple[str, str]:
  """Returns (FOLDER, SPLIT) of a source FOLDER@SPLIT whose folder exists, else (the source as it is, "")."""
  folder, _, split = source.rpartition("@")
  if folder and split and not os.path.exists(os.path.expanduser(source)) and os.path.isdir(os.path.expanduser(folder)):
    return folder, split
  return source, ""


def _hub_name(source: str) -> _HubName | None:
  """Returns the parts of a source that has the form of a data set of the hub, None for any other."""
  match = _HUB.fullmatch(source)
  if not match or Path(source).suffix in rows.SUFFIXES:
    return None
  name = _HubName(**{part: text or "" for part, text in match.groupdict().items()})
  if rows.is_split(name.revision) and not name.config and not name.split:
    return name._replace(revision="", split=name.revision)
  return name


def _hub_folder(source: str, name: _HubName) -> tuple[str, DataSet]:
  """Returns the folder of a data set of the hub, or of its config, and a DataSet with the split.

  A set without any names of splits is all train. Raises InputError for an unknown config, and for none if the set has
  several.
  """
  is_folder_of_config = name.config not in ("", _DEFAULT_CONFIG)
  patterns = tuple(f"{name.config}/{pattern}" for pattern in _FILES) if is_folder_of_config else _FILES
  snapshot = _snapshot(
    source,
    _cure_by_local_copy(name),
    patterns,
    functools.partial(_holds_config_and_split, name=name),
    name.repository,
    repo_type="dataset",
    revision=name.revision or None,
  )
  folder = _folder_of_config(Path(snapshot), name)
  split = name.split
  if rows.is_training(split) and not rows.splits_of(folder):
    split = ""
  return str(folder), DataSet("", split=split)


def _cure_by_local_copy(name: _HubName) -> str:
  """Returns how to make and name a local copy of a data set of the hub, as the end of an error's message."""
  folder = name.repository.rpartition("/")[2]
  copy = folder if name.config in ("", _DEFAULT_CONFIG) else f"{folder}/{name.config}"
  split = f"@{name.split}" if name.split else ""
  revision = f" --revision {name.revision}" if name.revision else ""
  return (
    f"name a local copy, as {copy}{split}, which `hf download {name.repository} --repo-type dataset{revision} "
    f"--local-dir {folder}` makes where there is a network"
  )


def _folder_of_config(folder: Path, name: _HubName) -> Path:
  """Returns the folder of the config that a name says, in the folder of its data set; see `_hub_folder` for errors."""
  configs = set()
  for file in rows.files(folder, split=rows.Split(rows.ALL)):
    parts = file.relative_to(folder).parts
    if len(parts) > 1 and parts[0] not in _NO_CONFIGS:
      configs.add(parts[0])
  if name.config == _DEFAULT_CONFIG and name.config not in configs:
    return folder / "data" if (folder / "data").is_dir() else folder
  names = ", ".join(sorted(configs))
  if name.config and name.config not in configs:
    raise InputError(f"{name.repository}:{name.config}: it has the configs {names or 'none'}; name one of these")
  if not name.config and len(configs) > 1:
    raise InputError(f"{name.repository}: has the configs {names}; name one, as {name.repository}:{min(configs)}")
  return folder / name.config


def _holds_config_and_split(folder: Path, name: _HubName) -> bool:
  """Returns whether a folder holds the config and the split that a name says, as a whole.

  Raises InputError where it lacks one of them.
  """
  if name.config:
    folder = _folder_of_config(folder, name)
  files = rows.files(folder, split=rows.Split(rows.ALL))
  if name.split and rows.splits_of(folder):
    rows.files(folder, split=rows.Split(name.split, key=f"the split of {name.repository}"))
  return _is_complete(files)


def _holds_all_shards(folder: Path, patterns: tuple[str, ...]) -> bool:
  """Returns whether a folder holds files of these patterns, and as many as their names say."""
  return _is_complete(rows.files(folder, patterns))


def _holds_all_weights(folder: Path) -> bool:
  """Returns whether a folder holds as many files of weights, at least one, as their names say."""
  return _is_complete(folder.glob("*.safetensors"))


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
  folder, at_revision = repository.rpartition("/")[2], f" --revision {revision}" if revision else ""
  cure = (
    f"name a folder that exists, as {folder}, which `hf download {repository}{at_revision} --local-dir {folder}` makes "
    "where there is a network"
  )
  return _snapshot(
    name, cure, _MODEL_FILES, _holds_all_weights, repository, repo_type="model", revision=revision or None
  )


def name_of_folder(folder: str) -> tuple[str, str]:
  """Returns (name, revision) of a model's folder: ORG/NAME and the commit of one in the hub's cache.

  Of any other folder the name is its absolute path, or its address on an object store, and the revision "".
  """
  if match := _CACHED_MODEL.search(folder):
    return f"{match['org']}/{match['name']}", match["revision"]
  return folder if object_store.is_remote(folder) else os.path.abspath(folder), ""


def _snapshot(
  name: str,
  cure: str,
  patterns: tuple[str, ...],
  is_whole: Callable[[Path], bool],
  repository: str,
  *,
  repo_type: str,
  revision: str | None,
) -> str:
  """Returns the folder of a repository's files that match `patterns`: from the cache if whole, else downloaded.

  name: what the user named. cure: the end of an error's message. is_whole: returns whether a folder of the cache holds
  what is needed; it may raise InputError instead. repo_type: "dataset" or "model". revision: None: the newest. Raises
  InputError where neither succeeds, and what is_whole raises for what was downloaded.
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
    except Exception as error:  # what it raises depends on its version and on the network's client
      reason = f"{type(error).__name__}: {error}".partition("\n")[0]
      continue
    try:
      if is_whole(Path(folder)):  # also of what is not only in the cache: without a network the cache is returned
        return str(folder)
      reason = "only some of its files are there"
    except InputError as error:
      if not cache_only:
        raise
      reason = str(error)
  subject = name if name.startswith(repository) else f"{name}: {repository}"
  raise InputError(f"{subject} is neither in the hub's cache nor to be fetched ({reason}); {cure}")


def _is_complete(files: Iterable[Path]) -> bool:
  """Returns whether there are any files, and, where they are named `-of-N`, at least N."""
  stated_counts = []
  for file in files:
    match = re.search(r"-of-(\d+)$", file.stem)
    stated_counts.append(int(match[1]) if match else 0)
  return len(stated_counts) >= max(stated_counts, default=1)
