"""Raw data sets of the study by name: where the Hugging Face hub keeps them, and which column holds what."""

from __future__ import annotations

import re
from typing import NamedTuple

from jaxrlvr import remote
from jaxrlvr.data import layout, rows
from jaxrlvr.types import InputError


class Raw(NamedTuple):
  repository: str  # on the hub, of type dataset
  patterns: tuple[str, ...] = ()  # its files that are wanted
  columns: tuple[str, ...] = ()  # for layout.load
  text: str = ""  # column of plain text, where that is all there is


RAW = {
  "skywork-or1": Raw("Skywork/Skywork-OR1-RL-Data", ("data/math-*.parquet",), layout.STUDY),
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


def find(source: str) -> tuple[str, Raw]:
  """(path, what is known of it) of `NAME` (from RAW: the hub's cache, else the network), `NAME:COPY`, or a path."""
  name, _, copy = source.partition(":")
  if name not in RAW:
    return remote.local(source), Raw("")
  return remote.local(copy) or _snapshot(name, RAW[name]), RAW[name]


def _snapshot(name: str, entry: Raw) -> str:
  cure = f"take {name}:FOLDER with a local copy of {entry.repository}"
  try:
    import huggingface_hub
  except ImportError:
    raise InputError(f"{name}: huggingface_hub is not installed; pip install 'jaxrlvr[hub]', or {cure}") from None
  for offline in (True, False):
    try:
      found = huggingface_hub.snapshot_download(
        entry.repository, repo_type="dataset", allow_patterns=list(entry.patterns), local_files_only=offline
      )
      if not offline or _complete(found, entry.patterns):
        return str(found)
    except Exception as error:  # what it raises depends on its version and on the network's client
      reason = f"{type(error).__name__}: {error}".partition("\n")[0]
  raise InputError(f"{name}: {entry.repository} is neither in the hub's cache nor to be fetched ({reason}); {cure}")


def _complete(folder: str, patterns: tuple[str, ...]) -> bool:
  """Whether a cached folder has all N of its files that are named `-of-N`; an error where no file matches."""
  shards = [re.search(r"-of-(\d+)$", file.stem) for file in rows.files(folder, patterns)]
  return len(shards) >= max(int(shard[1]) if shard else 0 for shard in shards)
