"""Checks of the links of `config.chain`: the runs that the stages `chain` and `grid` start, each a table of entries."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from jaxrlvr.base.errors import InputError

# Folders that a grid writes beside the directories of its links, whose names no link may have.
_OWN_NAMES = ("links", "compiled")
# Entries that a link may have, with their types.
_LINK: Mapping[str, type] = {
  "name": object,  # see _check_places
  **dict.fromkeys(("stage", "init", "tokenizer"), str),
  **dict.fromkeys(("set", "files", "runs", "cell"), Mapping),
}


def check_link(link: Mapping) -> None:
  """Raises InputError, which names the link, for a link of `config.chain` that can't be right whatever the others are.

  A link is {"name": directory below the workdir, "stage": ..., "init": LINK, "tokenizer": LINK, "set": {key: value},
  "files": {key: LINK/PATH}, "runs": {title: LINK}, "cell": {...}}, in which LINK is the name of an earlier link. It is
  refused if it has another entry, an entry of another type, a name that no directory can have or that is a file or
  folder of the grid (such as "links" or "report"), or a LINK or PATH that begins with "/" or has a part "..". Whether a
  link has a name, and whether the LINKs exist, is checked by `stages.links.read_links`.
  """
  _check_entries(link)
  _check_places(link)


def _check_entries(link: Mapping) -> None:
  """Raises InputError for entries that are not in `_LINK`, and for entries of a wrong type."""
  for entry, value in link.items():
    if entry not in _LINK:
      raise InputError(f"config.chain: link {repr(dict(link))[:200]} has {entry!r}; a link has {', '.join(_LINK)}")
    if not isinstance(value, _LINK[entry]):
      kind = "a text" if _LINK[entry] is str else "a table {key: value}"
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry} = {repr(value)[:200]}: wanted {kind}")
    if entry in ("files", "runs") and not all(isinstance(path, str) for path in link[entry].values()):
      raise InputError(f"config.chain: link {link.get('name')!r}: {entry}: wanted paths, each a text")


def _check_places(link: Mapping) -> None:
  """Raises InputError for a name that can't be a directory's, and for a path that leaves the chain's directory."""
  if "name" not in link:
    return  # `stages.links.read_links` refuses it
  name = link["name"]
  plain = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= 100
  if not plain:
    raise InputError(
      f"config.chain: link name {name!r}: wanted letters, digits, '_', '-' and '.', at most 100 bytes of them: it "
      "names its directory"
    )
  if name in _OWN_NAMES or name.endswith((".json", ".txt")):
    raise InputError(f"config.chain: link name {name!r}: is a name that the chain uses itself; choose another")
  places = [link.get("init"), link.get("tokenizer")]
  for group in ("files", "runs"):
    places += dict(link.get(group, {})).values()
  for place in places:
    if place and (not isinstance(place, str) or ".." in place.split("/") or place.startswith("/")):
      raise InputError(f"config.chain: link {name!r}: names {place!r}; wanted a path below an earlier link")


def check_overrides(config: ConfigDict, overridden: Collection[str]) -> None:
  """Raises InputError for a key of the command line that no link of `config.chain` would see.

  A link's entry "set" overrules the config. So a key that a link sets is refused, unless another link of the same stage
  leaves it as it is in the config. Links without a stage don't count.
  overridden: dotted names of the keys that were set on the command line.
  """
  changes_of_links = [(link["stage"], link.get("set", {})) for link in config.chain if "stage" in link]
  for key in overridden:
    stages = {stage for stage, changes in changes_of_links if key in changes}
    if stages and all(key in changes for stage, changes in changes_of_links if stage in stages):
      raise InputError(
        f"config.{key}: would change nothing, for each link of {', '.join(sorted(stages))} in config.chain sets its "
        "own (the config file has them, perhaps by its argument); leave it out, or change it there"
      )
